#include "exec/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace octavo {
namespace {

constexpr int32_t kDrawToken = 0;

void philox_round(uint32_t counter[4], const uint32_t key[2]) {
  const uint64_t a = uint64_t{0xD2511F53} * counter[0];
  const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
  const uint32_t c1 = counter[1], c3 = counter[3];
  counter[0] = static_cast<uint32_t>(b >> 32) ^ c1 ^ key[0];
  counter[1] = static_cast<uint32_t>(b);
  counter[2] = static_cast<uint32_t>(a >> 32) ^ c3 ^ key[1];
  counter[3] = static_cast<uint32_t>(a);
}

void adjust(const SampleParams& p, float* x) {
  for (int i = 0; i < p.n_bias; ++i) x[p.bias_token[i]] += p.bias_value[i];
  if (p.counts == nullptr) return;
  for (const int32_t token : p.counts->seen()) {
    float& logit = x[token];
    if (p.repetition != 1) logit = logit > 0 ? logit / p.repetition : logit * p.repetition;
    const int32_t count = p.counts->output(token);
    if (count == 0) continue;
    logit = logit - p.frequency * static_cast<float>(count);
    logit = logit - p.presence;
  }
}

// Calls `take` for every i with x[i] >= low and some others, ascending. Most runs have none, and to
// see that costs a vector instruction or two.
template <class Take>
void each_above(const float* x, int n, float low, const Take& take) {
  constexpr int kRun = 64;
  int i = 0;
  for (; i + kRun <= n; i += kRun) {
    int any = 0;
    for (int j = 0; j < kRun; ++j) any |= x[i + j] >= low ? 1 : 0;
    if (any != 0)
      for (int j = 0; j < kRun; ++j) take(i + j);
  }
  for (; i < n; ++i) take(i);
}

// Candidates in order (logit descending, id ascending), produced only as far as they are asked for:
// each fill takes the ids within a further slice below the maximum and sorts those.
class Candidates {
 public:
  Candidates(const float* x, int n, float max, float temperature, SampleScratch& scratch)
      : x_(x), n_(n), max_(max), temperature_(temperature), s_(scratch) {
    s_.order.clear();
    s_.weight.clear();
  }

  bool has(int index) {
    while (index >= static_cast<int>(s_.order.size()) && slice_ < kSlices) fill();
    return index < static_cast<int>(s_.order.size());
  }
  int32_t token(int index) const { return s_.order[static_cast<size_t>(index)]; }
  int found() const { return static_cast<int>(s_.order.size()); }
  double weight(int index) const { return s_.weight[static_cast<size_t>(index)]; }

 private:
  static constexpr int kSlices = 4;
  static constexpr float kDepth[kSlices] = {4, 10, 24, std::numeric_limits<float>::infinity()};

  void fill() {
    const float low = slice_ + 1 < kSlices ? max_ - kDepth[slice_] * temperature_
                                           : -std::numeric_limits<float>::infinity();
    const size_t start = s_.order.size();
    const auto take = [&](int i) {
      if (x_[i] >= low && (slice_ == 0 || x_[i] < above_)) s_.order.push_back(i);
    };
    each_above(x_, n_, low, take);
    std::sort(s_.order.begin() + static_cast<int64_t>(start), s_.order.end(),
              [this](int32_t a, int32_t b) { return x_[a] > x_[b] || (x_[a] == x_[b] && a < b); });
    for (size_t i = start; i < s_.order.size(); ++i)
      s_.weight.push_back(
          std::exp((double{x_[s_.order[i]]} - double{max_}) / double{temperature_}));
    above_ = low;
    ++slice_;
  }

  const float* x_;
  int n_;
  float max_, temperature_, above_ = 0;
  int slice_ = 0;
  SampleScratch& s_;
};

// A sum of weights that is off by at most doubt * value.
struct Total {
  double value, doubt;
};

// By the fp32 kernel. A term exp(-t) is off by t * 2^-22 (temperature, difference and product are
// rounded, the exponential is good to 2^-23), so the sum by the mean of t, which is below 10 for
// 2^18 tokens and below 12 for 2^21.
Total quick_total(const KernelTable& table, const float* x, int n, float max, float temperature) {
  constexpr double kDoubt = 0x1p-18;
  return {table.sum_exp(x, n, max, 1.0F / temperature), kDoubt};
}

// Terms below e^-32 are left out: even of a million tokens they add less than 2^-20 by far.
double total_weight(const float* x, int n, float max, float temperature) {
  constexpr double kNegligible = -32;
  double total = 0;
  for (int i = 0; i < n; ++i) {
    const double z = (double{x[i]} - double{max}) / double{temperature};
    if (z > kNegligible) total += std::exp(z);
  }
  return total;
}

// Whether `total * share` can lie on either side of one of these two sums.
bool in_doubt(const Total& total, double share, double below, double above) {
  const double point = total.value * share, off = point * total.doubt;
  return total.doubt != 0 && !(below + off < point && point + off < above);
}

// Number of candidates that top-k, top-p and min-p leave of those that `total` is of, which becomes
// that of the kept. 0 when the doubt decides.
int keep(Candidates& candidates, int n, const SampleParams& p, Total* total) {
  int kept = p.top_k > 0 ? std::min(p.top_k, n) : n;
  if (p.top_p < 1) {
    const double wanted = double{p.top_p} * total->value;
    double sum = 0, before = -1;
    int i = 0;
    while (i < kept && sum < wanted && candidates.has(i)) {
      before = sum;
      sum += candidates.weight(i++);
    }
    if (in_doubt(*total, double{p.top_p}, before, sum)) return 0;
    kept = std::max(i, 1);
    *total = {sum, 0};
  }
  if (p.min_p > 0) {
    double sum = 0;
    int i = 0;
    while (i < kept && candidates.has(i) && candidates.weight(i) >= double{p.min_p})
      sum += candidates.weight(i++);
    kept = std::max(i, 1);
    *total = {sum, 0};
  }
  return kept;
}

// The candidate that the draw falls on; -1 when the doubt of `total` decides.
int32_t pick(Candidates& candidates, int n, const SampleParams& p, Total total, int32_t best) {
  const int kept = keep(candidates, n, p, &total);
  if (kept == 0) return -1;
  const double draw = uniform_draw(p.seed, p.position, p.choice, kDrawToken);
  const double target = draw * total.value;
  double sum = 0, before = -1;
  for (int i = 0; i < kept && candidates.has(i); ++i) {
    before = i == 0 ? -1 : sum;
    sum += candidates.weight(i);
    if (sum > target) return in_doubt(total, draw, before, sum) ? -1 : candidates.token(i);
  }
  if (total.doubt != 0) return -1;
  // Rounding left the target above the last sum: the last candidate of any weight is meant.
  int reached = std::min(kept, candidates.found());
  while (reached > 0 && candidates.weight(reached - 1) == 0) --reached;
  return reached == 0 ? best : candidates.token(reached - 1);
}

}  // namespace

void TokenCounts::touch(int32_t token) {
  prompt_.resize(vocab_);
  output_.resize(vocab_);
  if (prompt_[static_cast<size_t>(token)] == 0 && output_[static_cast<size_t>(token)] == 0)
    seen_.push_back(token);
}

void TokenCounts::reset(const int32_t* prompt, int n_prompt, const int32_t* output, int n_output) {
  for (const int32_t token : seen_) {
    prompt_[static_cast<size_t>(token)] = 0;
    output_[static_cast<size_t>(token)] = 0;
  }
  seen_.clear();
  for (int i = 0; i < n_prompt; ++i) {
    touch(prompt[i]);
    prompt_[static_cast<size_t>(prompt[i])] = 1;
  }
  for (int i = 0; i < n_output; ++i) add_output(output[i]);
}

void TokenCounts::add_output(int32_t token) {
  touch(token);
  ++output_[static_cast<size_t>(token)];
}

double uniform_draw(uint64_t seed, int32_t position, int32_t choice, int32_t kind) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(choice),
                         static_cast<uint32_t>(kind), 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    philox_round(counter, key);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  const uint64_t bits = (uint64_t{counter[0]} << 21) + (counter[1] >> 11);
  return static_cast<double>(bits) * 0x1p-53;
}

void apply_mask(const uint32_t* mask, int first, int count, float* x) {
  for (int i = 0; i < count;) {
    const int token = first + i, shift = token % 32;
    const int bits = std::min(32 - shift, count - i);
    const uint32_t all = ~uint32_t{0} >> (32 - bits);
    const uint32_t allowed = mask[token / 32] >> shift & all;
    if (allowed != all)
      for (int b = 0; b < bits; ++b)
        x[i + b] = (allowed >> b & 1) != 0 ? x[i + b] : -std::numeric_limits<float>::infinity();
    i += bits;
  }
}

int32_t sample(const KernelTable& table, const float* logits, int vocab, const SampleParams& params,
               SampleScratch& scratch) {
  const float* x = logits;
  if (params.adjusts()) {
    scratch.logits.assign(logits, logits + vocab);
    if (params.mask != nullptr) apply_mask(params.mask, 0, vocab, scratch.logits.data());
    adjust(params, scratch.logits.data());
    x = scratch.logits.data();
  }
  float max = 0;
  const int best = table.argmax(x, vocab, &max);
  if (params.temperature == 0 || params.top_k == 1) return best;
  Candidates candidates(x, vocab, max, params.temperature, scratch);
  if (params.top_k > 0 && params.top_k < vocab) {
    double total = 0;
    for (int i = 0; i < params.top_k && candidates.has(i); ++i) total += candidates.weight(i);
    return pick(candidates, vocab, params, {total, 0}, best);
  }
  const Total quick = quick_total(table, x, vocab, max, params.temperature);
  const int32_t token = pick(candidates, vocab, params, quick, best);
  if (token >= 0) return token;
  const Total exact = {total_weight(x, vocab, max, params.temperature), 0};
  return pick(candidates, vocab, params, exact, best);
}

LogSoftmax log_softmax(const KernelTable& table, const float* logits, int vocab) {
  float max = 0;
  table.argmax(logits, vocab, &max);
  return {double{max}, std::log(table.sum_exp(logits, vocab, max, 1.0F))};
}

void top_tokens(const float* logits, int vocab, int count, SampleScratch& scratch,
                int32_t* tokens) {
  if (count <= 0) return;  // only the chosen token's is wanted: the heap would have no front
  const auto before = [logits](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  std::vector<int32_t>& heap = scratch.order;  // the worst of the best on top
  heap.clear();
  for (int32_t i = 0; i < vocab; ++i) {
    if (static_cast<int>(heap.size()) < count) {
      heap.push_back(i);
      std::push_heap(heap.begin(), heap.end(), before);
    } else if (before(i, heap.front())) {
      std::pop_heap(heap.begin(), heap.end(), before);
      heap.back() = i;
      std::push_heap(heap.begin(), heap.end(), before);
    }
  }
  std::sort_heap(heap.begin(), heap.end(), before);
  std::copy(heap.begin(), heap.end(), tokens);
}

}  // namespace octavo
