#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "core/float_mode.h"
#include "core/platform.h"
#include "exec/step.h"

namespace octavo {
namespace {
constexpr int kMaskSpins = 1000;  // a few microseconds: then whoever fills the mask needs the CPU
constexpr int kChunkPanels = 32;  // logits of a greedy head live only so long
constexpr uint8_t kNeedsLogits = kToken | kLogprobs | kLogits | kTarget;
}  // namespace

void Step::head(int t) {
  const size_t group = static_cast<size_t>(head_rows_);
  for (size_t first = 0; first < wanted_.size(); first += group) {
    if (first != 0 && !barrier(t, Stage::kHead))
      return;  // the buffers of the group before are free again
    if (!head_group(t, first, std::min(group, wanted_.size() - first))) return;
  }
}

bool Step::head_group(int t, size_t first, size_t count) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const int n = static_cast<int>(count);
  const int i0 = few() ? 0 : part(n, t), i1 = few() ? n : part(n, t + 1);
  uint8_t needs = 0;
  bool greedy = true;
  for (int i = 0; i < n; ++i) {
    needs |= wanted_[first + static_cast<size_t>(i)].want;
    greedy &= wanted_[first + static_cast<size_t>(i)].greedy;
  }
  for (int i = i0; i < i1; ++i) {
    const Wanted& wanted = wanted_[first + static_cast<size_t>(i)];
    float* x = (few() ? w.x : x_) + wanted.row * ld_x_;
    residual(x, wanted.row, w);
    if ((wanted.want & kHidden) != 0 && (!few() || t == 0))
      std::copy_n(x, plan_.hidden, hidden_out_ + int64_t{wanted.hidden_index} * plan_.hidden);
    k_.rms_norm(x, plan_.final_norm, plan_.norm_eps, plan_.hidden, w.row);
    if ((wanted.want & kNormed) != 0 && (!few() || t == 0))
      std::copy_n(w.row, plan_.hidden, hidden_out_ + int64_t{wanted.hidden_index} * plan_.hidden);
    const bool factored = plan_.head_down.linear.run != nullptr;
    if (factored) thin(t, plan_.head_down, w.row, w.thin);
    prepare_row(factored ? w.thin : w.row, plan_.head_in, few() ? w.act : act_, i);
  }
  if (!finish_tensor(t, plan_.head_in, few() ? w.act : act_, i0, i1)) return false;
  if (!few() && !barrier(t, Stage::kHead)) return false;
  sort_rows(t, plan_.head_in, n);
  if ((needs & kNeedsLogits) == 0) return true;
  if (greedy) {
    head_greedy(t, first, n);
    if (!barrier(t, Stage::kHead)) return false;
    if (t == 0) finish_greedy(first, n);
    return true;
  }
  head_logits(t, n);
  if (!barrier(t, Stage::kHead)) return false;
  for (int i = t; i < n; i += pool_.threads())
    finish_row(t, first + static_cast<size_t>(i), logits_ + i * ld_logits_);
  return true;
}

// The row's mask, once it is ready; null where there is none. Whoever left it pending fills it
// while this step runs, and always ends.
const uint32_t* Step::await_mask(const Wanted& wanted) const {
  if (!wanted.masked) return nullptr;
  int32_t& state = const_cast<int32_t&>(a_.mask_state[wanted.seq]);
  const std::atomic_ref<int32_t> shared(state);
  for (int looks = 0; shared.load(std::memory_order_acquire) != kReady; ++looks)
    looks < kMaskSpins ? cpu_pause() : platform::yield();
  return a_.mask + int64_t{wanted.seq} * a_.mask_words;
}

void Step::head_greedy(int t, size_t first, int n) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const int p0 = part(plan_.head.w.panels, t), p1 = part(plan_.head.w.panels, t + 1);
  constexpr int64_t kChunk = kChunkPanels * kLanes;
  std::fill_n(w.best, n, -std::numeric_limits<float>::infinity());
  std::fill_n(w.best_token, n, -1);
  for (int i = 0; i < n; ++i) w.mask[i] = await_mask(wanted_[first + static_cast<size_t>(i)]);
  for (int c0 = p0; c0 < p1; c0 += kChunkPanels) {
    const int c1 = std::min(p1, c0 + kChunkPanels), column = c0 * kLanes;
    const int columns = std::min(c1 * kLanes, plan_.vocab) - column;
    linear(plan_.head, plan_.head_in, t, n, w.chunk - column, kChunk, c0, c1);
    for (int i = 0; i < n; ++i) {
      float* logits = w.chunk + i * kChunk;
      if (plan_.softcap > 0) k_.softcap(logits, plan_.softcap, columns);
      if (w.mask[i] != nullptr) apply_mask(w.mask[i], column, columns, logits);
      float best = 0;
      const int token = column + k_.argmax(logits, columns, &best);
      if (best > w.best[i] || w.best_token[i] < 0) {
        w.best[i] = best;
        w.best_token[i] = token;
      }
    }
  }
}

// Threads hold ascending ranges, so the first of equals has the lowest id.
void Step::finish_greedy(size_t first, int n) {
  for (int i = 0; i < n; ++i) {
    float best = 0;
    int32_t token = -1;
    for (const Worker& w : workers_) {
      if (w.best_token[i] < 0 || (token >= 0 && !(w.best[i] > best))) continue;
      best = w.best[i];
      token = w.best_token[i];
    }
    a_.out_token[first + static_cast<size_t>(i)] = token;
  }
}

void Step::head_logits(int t, int n) {
  const int p0 = part(plan_.head.w.panels, t), p1 = part(plan_.head.w.panels, t + 1);
  const int column = p0 * kLanes, columns = std::min(p1 * kLanes, plan_.vocab) - column;
  linear(plan_.head, plan_.head_in, t, n, logits_, ld_logits_, p0, p1);
  if (plan_.softcap > 0 && columns > 0)
    for (int i = 0; i < n; ++i)
      k_.softcap(logits_ + i * ld_logits_ + column, plan_.softcap, columns);
}

void Step::finish_row(int t, size_t entry, const float* logits) {
  const Wanted& wanted = wanted_[entry];
  const int vocab = plan_.vocab;
  if ((wanted.want & kLogits) != 0)
    std::copy_n(logits, vocab, logits_out_ + int64_t{wanted.logits_index} * vocab);
  int32_t token = a_.target[wanted.row];
  if ((wanted.want & kToken) != 0) {
    token =
        sample(k_, logits, vocab, sample_params(wanted), workers_[static_cast<size_t>(t)].sample);
    a_.out_token[entry] = token;
  }
  if ((wanted.want & (kLogprobs | kTarget)) != 0) report_logprobs(t, entry, logits, token);
}

SampleParams Step::sample_params(const Wanted& wanted) {
  const int s = wanted.seq, slot = a_.state_slot[s];
  SampleParams p;
  p.temperature = a_.temperature[s];
  p.top_k = a_.top_k[s];
  p.top_p = a_.top_p[s];
  p.min_p = a_.min_p[s];
  p.repetition = a_.repetition[s];
  p.presence = a_.presence[s];
  p.frequency = a_.frequency[s];
  p.seed = a_.seed[s];
  p.position = a_.position[wanted.row] + 1;
  p.choice = a_.choice[s];
  p.bias_token = a_.bias_token + a_.bias_start[s];
  p.bias_value = a_.bias_value + a_.bias_start[s];
  p.n_bias = a_.bias_start[s + 1] - a_.bias_start[s];
  p.mask = await_mask(wanted);
  p.counts = slot < 0 ? nullptr : &slots_[static_cast<size_t>(slot)];
  return p;
}

void Step::report_logprobs(int t, size_t entry, const float* logits, int32_t token) {
  const Wanted& wanted = wanted_[entry];
  const LogSoftmax log_softmax_of = log_softmax(k_, logits, plan_.vocab);
  if (token >= 0) a_.out_logprob[entry] = log_softmax_of(logits[token]);
  if ((wanted.want & kLogprobs) == 0) return;
  const int count = std::min(std::min(a_.n_logprobs[wanted.seq], kMaxLogprobs), plan_.vocab);
  int32_t* tokens = a_.out_top_token + static_cast<int64_t>(entry) * kMaxLogprobs;
  float* values = a_.out_top_logprob + static_cast<int64_t>(entry) * kMaxLogprobs;
  top_tokens(logits, plan_.vocab, count, workers_[static_cast<size_t>(t)].sample, tokens);
  for (int i = 0; i < count; ++i) values[i] = log_softmax_of(logits[tokens[i]]);
}

// After the region: rows of one sequence may have been sampled by different threads.
void Step::count_tokens() {
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const int slot = a_.state_slot[wanted_[i].seq];
    if ((wanted_[i].want & kToken) != 0 && slot >= 0)
      slots_[static_cast<size_t>(slot)].add_output(a_.out_token[i]);
  }
}

}  // namespace octavo
