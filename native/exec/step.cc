#include "exec/step.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace octavo {
namespace {

constexpr int64_t kLogitsBytes = 32 << 20;  // of rows whose logits are kept at a time
constexpr int kMaxHeadRows = 64;

int64_t line(int64_t floats) { return (floats + 15) / 16 * 16; }

[[noreturn]] void bad(const std::string& what, int64_t value, const std::string& rule) {
  throw std::invalid_argument(what + " is " + std::to_string(value) + ": " + rule);
}

void check(bool ok, const std::string& what, int64_t value, const char* rule) {
  if (!ok) bad(what, value, rule);
}

}  // namespace

Step::Step(const Plan& plan, ThreadPool& pool)
    : plan_(plan),
      k_(*plan.table),
      pool_(pool),
      arena_(size_t{1} << 20, false),
      workers_(static_cast<size_t>(pool.threads())),
      slots_(static_cast<size_t>(plan.max_seqs), TokenCounts(plan.vocab)),
      taken_(static_cast<size_t>(plan.max_tokens)),
      next_item_(plan.layers.size()),
      pending_(workers_.size()),
      seen_(static_cast<size_t>(plan.n_inputs)) {
  const int64_t vocab = line(plan.head.w.panels * kLanes);
  head_rows_ = static_cast<int>(std::clamp<int64_t>(kLogitsBytes / (4 * vocab), 8, kMaxHeadRows));
  ld_logits_ = vocab;
  seq_of_row_.resize(static_cast<size_t>(plan.max_tokens));
  wanted_.reserve(static_cast<size_t>(plan.max_tokens));
  tiles_.reserve(static_cast<size_t>(plan.max_tokens));
  full_groups_.reserve(static_cast<size_t>(plan.max_tokens));
  blocks_.reserve(static_cast<size_t>(plan.max_tokens));
  allocate();
}

ActRows Step::act_rows(int rows) {
  const size_t n = static_cast<size_t>(rows) * static_cast<size_t>(line(plan_.max_k_pad));
  uint32_t forms = plan_.head_in.forms | plan_.embed_up.in.forms | plan_.head_down.in.forms;
  for (const Layer& l : plan_.layers)
    forms |= l.attn_in.forms | l.o_in.forms | l.mlp_in.forms | l.down_in.forms;
  ActRows act{};
  for (int i = 0; i < 4; ++i) {
    const uint32_t mixed = i % 2 == 0 ? kFormMixedG32 : kFormMixedG64;
    if ((forms & (mixed | 1u << i)) == 0) continue;
    const size_t bytes = i < 2 ? n : 2 * n;
    act.q[i] = arena_.array<int8_t>(bytes);
    act.scale[i] = arena_.array<float>(n / 16);
    act.sum[i] = arena_.array<int32_t>(bytes / 16);
  }
  for (int i = 4; i < 6; ++i) {
    if ((forms & (i == 4 ? kFormInt8g32 : kFormInt8g64)) == 0) continue;
    act.q[i] = arena_.array<int8_t>(n);
    act.scale[i] = arena_.array<float>(n / 16);
    act.sum[i] = arena_.array<int32_t>(n / 16);
  }
  act.wide = arena_.array<uint8_t>(static_cast<size_t>(rows));
  act.outliers = arena_.array<int32_t>(static_cast<size_t>(rows));
  if ((forms & kFormBf16) != 0) act.bf16 = arena_.array<uint16_t>(n);
  if ((forms & (kFormF32 | kFormSplit)) != 0) act.f32 = arena_.array<float>(n);
  return act;
}

// Everything a step can need, as address space: only what is touched costs memory.
void Step::allocate() {
  const int rows = plan_.max_tokens;
  auto matrix = [&](int64_t count, int64_t ld) {
    return arena_.array<float>(static_cast<size_t>(count) * static_cast<size_t>(ld));
  };
  const int64_t queries = int64_t{kSharedSplitRows} * plan_.max_heads;
  const int64_t splits = (plan_.context + kSplitKeys - 1) / kSplitKeys;
  ld_x_ = line(std::max(plan_.hidden, plan_.embed.k_pad));
  ld_qkv_ = line(plan_.max_qkv);
  ld_attn_ = line(int64_t{plan_.max_heads} * plan_.max_head_dim);
  ld_y_ = line(std::max(plan_.max_out, plan_.hidden));
  ld_gate_ = line(plan_.max_inter);
  x_ = matrix(rows, ld_x_);
  qkv_ = matrix(rows, ld_qkv_);
  attn_ = matrix(rows, ld_attn_);
  y_ = matrix(rows, ld_y_);
  gate_ = matrix(rows, ld_gate_);
  up_ = matrix(rows, ld_gate_);
  logits_ = matrix(head_rows_, ld_logits_);
  act_ = act_rows(std::max(rows, head_rows_));
  shared_ = {matrix(queries * splits, plan_.max_head_dim),
             matrix(splits, queries),
             matrix(splits, queries),
             0,
             0,
             0,
             0};
  for (Worker& w : workers_) {
    w.x = matrix(kFewRows, ld_x_);
    w.row = matrix(1, std::max(line(plan_.max_k_pad), ld_x_));
    w.query = matrix(kTileQueries, plan_.max_head_dim);
    w.scores = matrix(1, attention_scratch(kTileQueries, kSplitKeys, plan_.max_head_dim));
    w.merged = matrix(2, splits);
    w.act = act_rows(kBlockRows);
    w.act_down = act_rows(kBlockRows);
    w.act_thin = act_rows(1);
    w.thin = matrix(1, line(plan_.max_k_pad));
    w.gate = matrix(kBlockRows, kActColumns);
    w.up = matrix(kBlockRows, kActColumns);
    w.narrow_rows = arena_.array<int32_t>(static_cast<size_t>(std::max(rows, head_rows_)));
    w.wide_rows = arena_.array<int32_t>(static_cast<size_t>(std::max(rows, head_rows_)));
    w.partials = {matrix(kTileQueries * splits, plan_.max_head_dim),
                  matrix(splits, kTileQueries),
                  matrix(splits, kTileQueries),
                  0,
                  0,
                  0,
                  0};
    w.chunk = matrix(head_rows_, 512);
    w.extra = matrix(1, kOutlierPanels * kLanes);
  }
}

void Step::prepare(const StepArrays& arrays, int n_seqs, const RowsOut& logits,
                   const RowsOut& hidden, const KvCache& cache) {
  a_ = arrays;
  check(n_seqs >= 1 && n_seqs <= plan_.max_seqs, "n_seqs", n_seqs, "1 to max_seqs");
  n_seqs_ = n_seqs;
  rows_ = a_.row_start[n_seqs];
  check(a_.row_start[0] == 0, "row_start[0]", a_.row_start[0], "rows begin at 0");
  check(rows_ >= 1 && rows_ <= plan_.max_tokens, "the number of rows", rows_, "1 to max_tokens");
  wanted_.clear();
  for (int s = 0; s < n_seqs; ++s) check_sequence(s, cache);
  for (int s = 0; s < n_seqs; ++s)
    for (int r = a_.row_start[s]; r < a_.row_start[s + 1]; ++r) want_row(s, r);
  int n_logits = 0, n_hidden = 0;
  for (Wanted& w : wanted_) {
    if ((w.want & kLogits) != 0) w.logits_index = n_logits++;
    if ((w.want & (kHidden | kNormed)) != 0) w.hidden_index = n_hidden++;
  }
  check(n_logits <= logits.rows, "rows that want logits", n_logits, "more than batch.logits has");
  check(n_hidden <= hidden.rows, "rows that want hidden", n_hidden, "more than batch.hidden has");
  logits_out_ = logits.data;
  hidden_out_ = hidden.data;
  full_groups_.clear();
  for (int r = 0; r < rows_ && plan_.layers.front().recent_group >= 0; ++r)
    if (a_.position[r] % kKiviGroup == kKiviGroup - 1) full_groups_.push_back(r);
  plan_tiles();
  if (by_rows()) plan_blocks();
}

void Step::check_sequence(int s, const KvCache& cache) const {
  const std::string who = "sequence " + std::to_string(s);
  check(a_.row_start[s + 1] > a_.row_start[s], "the rows of " + who,
        a_.row_start[s + 1] - a_.row_start[s], "at least 1");
  check(a_.adapter[s] < 0, "the adapter of " + who, a_.adapter[s], "adapters are not supported");
  check(a_.state_slot[s] < plan_.max_seqs, "the state slot of " + who, a_.state_slot[s],
        "at most max_seqs - 1");
  check(a_.bias_start[s + 1] >= a_.bias_start[s] && a_.bias_start[s] >= 0,
        "the bias list of " + who, a_.bias_start[s], "starts must ascend from 0");
  check(a_.mask_state[s] == kNoMask || a_.mask_words >= (plan_.vocab + 31) / 32,
        "the mask of " + who, a_.mask_words, "a word for every 32 tokens");
  for (int i = a_.bias_start[s]; i < a_.bias_start[s + 1]; ++i)
    check(a_.bias_token[i] >= 0 && a_.bias_token[i] < plan_.vocab, "a bias token of " + who,
          a_.bias_token[i], "0 to vocab - 1");
  int last = 0;
  for (int r = a_.row_start[s]; r < a_.row_start[s + 1]; ++r) {
    check_row(s, r, cache);
    last = std::max(last, a_.position[r]);
  }
  for (int g = 0; g < cache.groups(); ++g)
    for (int b = 0; b <= last / plan_.block_size; ++b)
      check(table(s, g)[b] >= -1 && table(s, g)[b] < cache.blocks(g), "a block of " + who,
            table(s, g)[b], "-1 to the blocks of its group - 1");
}

void Step::check_row(int s, int row, const KvCache& cache) const {
  const int position = a_.position[row];
  check(a_.token[row] >= 0 && a_.token[row] < plan_.vocab, "token of row " + std::to_string(row),
        a_.token[row], "0 to vocab - 1");
  check(position >= 0 && position < plan_.context &&
            position < int64_t{a_.max_blocks} * plan_.block_size,
        "position of row " + std::to_string(row), position, "0 to context - 1");
  for (int g = 0; g < cache.groups(); ++g)
    check(table(s, g)[position / plan_.block_size] >= 0, "block of row " + std::to_string(row), -1,
          "a row needs a block to write to");
  if ((a_.want[row] & kTarget) != 0)
    check(a_.target[row] >= 0 && a_.target[row] < plan_.vocab,
          "target of row " + std::to_string(row), a_.target[row], "0 to vocab - 1");
}

bool Step::greedy(int s, uint8_t want) const {
  const int slot = a_.state_slot[s];
  const bool penalized =
      slot >= 0 && (a_.repetition[s] != 1 || a_.presence[s] != 0 || a_.frequency[s] != 0);
  return (want & ~kHidden) == kToken && a_.temperature[s] == 0 && !penalized &&
         a_.bias_start[s] == a_.bias_start[s + 1];
}

void Step::want_row(int s, int row) {
  seq_of_row_[static_cast<size_t>(row)] = s;
  const uint8_t want = a_.want[row];
  if (want == 0) return;
  const size_t entry = wanted_.size();
  const bool masked = (want & kToken) != 0 && a_.mask_state[s] != kNoMask;
  wanted_.push_back({row, s, want, 0, 0, greedy(s, want), masked});
  a_.out_row[entry] = row;
  a_.out_token[entry] = -1;
  a_.out_logprob[entry] = 0;
  std::fill_n(a_.out_top_token + entry * kMaxLogprobs, kMaxLogprobs, -1);
  std::fill_n(a_.out_top_logprob + entry * kMaxLogprobs, kMaxLogprobs,
              -std::numeric_limits<float>::infinity());
}

RunStatus Step::run() {
  kv_lost_.store(0, std::memory_order_relaxed);
  const RunStatus status = pool_.run(&Step::region, this);
  if (status == RunStatus::kDone) count_tokens();
  return status;
}

void Step::check_times(int times) const {
  check(times >= 1 && int64_t{times} * n_seqs_ <= a_.max_tokens, "times", times,
        "1 to as many as have room for their results");
  if (times == 1) return;
  check(rows_ == n_seqs_, "the number of rows", rows_, "one a sequence, when run several times");
  for (int s = 0; s < n_seqs_; ++s) {
    const std::string who = "sequence " + std::to_string(s);
    check((a_.want[s] & ~kLogprobs) == kToken, "what is wanted of " + who, a_.want[s],
          "a token, when run several times");
    check(a_.state_slot[s] < 0 && a_.mask_state[s] == kNoMask, "the state slot or mask of " + who,
          a_.state_slot[s], "none, when run several times");
  }
}

void Step::advance(StepArrays& arrays) const {
  for (int s = 0; s < n_seqs_; ++s) {
    arrays.token[s] = arrays.out_token[s];
    ++arrays.position[s];
  }
  arrays.out_row += n_seqs_;
  arrays.out_token += n_seqs_;
  arrays.out_logprob += n_seqs_;
  arrays.out_top_token += int64_t{n_seqs_} * kMaxLogprobs;
  arrays.out_top_logprob += int64_t{n_seqs_} * kMaxLogprobs;
}

std::vector<std::vector<double>> Step::stage_seconds() const {
  const double tick = tick_.seconds();
  std::vector<std::vector<double>> seconds;
  for (const Worker& w : workers_) {
    seconds.emplace_back();
    for (int s = 0; s < kStages; ++s)
      seconds.back().push_back(tick * static_cast<double>(w.clock.total(s)));
  }
  return seconds;
}

std::pair<int64_t, int64_t> Step::rows_seen(int input) const {
  const Seen& seen = seen_[static_cast<size_t>(input)];
  return {seen.rows.load(std::memory_order_relaxed), seen.wide.load(std::memory_order_relaxed)};
}

void Step::reset_slot(int slot, const int32_t* prompt, int n_prompt, const int32_t* output,
                      int n_output) {
  check(slot >= 0 && slot < plan_.max_seqs, "the state slot", slot, "0 to max_seqs - 1");
  for (int i = 0; i < n_prompt; ++i)
    check(prompt[i] >= 0 && prompt[i] < plan_.vocab, "a prompt token", prompt[i], "0 to vocab - 1");
  for (int i = 0; i < n_output; ++i)
    check(output[i] >= 0 && output[i] < plan_.vocab, "an output token", output[i],
          "0 to vocab - 1");
  slots_[static_cast<size_t>(slot)].reset(prompt, n_prompt, output, n_output);
}

}  // namespace octavo
