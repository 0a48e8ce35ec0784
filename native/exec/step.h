// One step: everything from embedding lookup to sampled token, in one parallel region.
//
// Steps of few rows (decode) keep the residual stream and the prepared activations private to each
// thread and compute them redundantly: cheaper than a barrier. Steps of many rows split the rows
// between threads instead. Both do the same arithmetic on a row, so results are equal bit for bit.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "exec/plan.h"
#include "exec/sample.h"
#include "exec/stage_clock.h"

namespace octavo {

constexpr int kFewRows = 7;        // of one or two threads (docs/performance.md)
constexpr int kFewRowsOfMany = 4;  // and of more, each of which would prepare all rows
constexpr int kSplitKeys = 256;    // docs/numerics.md: attention splits at fixed boundaries
constexpr int kTileRows = 16;      // query rows of one attention item
constexpr int kTileQueries = kMaxGroupHeads;  // rows * heads per kv head of one attention item
constexpr int kSharedSplitRows = 8;  // steps of at most so many rows may share splits over threads
constexpr int kSharesPerThread = 4;  // runs of splits that a thread takes, about
constexpr int kBlockRows = 32;       // rows that a thread takes through a layer, at most
constexpr int kMinBlockRows = 4;     // and at least, lest it wait for weights
constexpr int kBlocksPerThread = 4;  // or more, so that threads end a layer together
constexpr int kActColumns = 256;     // columns of gate and up at a time, of such a block
constexpr int kMixedBytes = 65536;   // of panels, through which both kinds of rows go in turn
constexpr int kOutlierPanels = 32;   // at most, through which a row's integers and outliers go
constexpr int kWarmBytes = 4096;     // of the next matrix, fetched before a thread waits
constexpr int kMaxLogprobs = 20;

// Row flags of StepBatch.want.
enum Want : uint8_t {
  kToken = 1,
  kLogprobs = 2,
  kLogits = 4,
  kTarget = 8,
  kHidden = 16,
  kNormed = 32
};

// StepBatch.mask_state.
enum MaskState : int32_t { kNoMask = 0, kPending = 1, kReady = 2 };

// The arrays of backends/base.py's StepBatch, and of the result.
struct StepArrays {
  int32_t *token, *position;  // `advance` writes the next ones
  const int32_t *target, *row_start, *block_table, *adapter, *state_slot;
  const uint8_t* want;
  const uint64_t* seed;
  const int32_t *choice, *top_k, *n_logprobs, *bias_start, *bias_token;
  const float *temperature, *top_p, *min_p, *repetition, *presence, *frequency, *bias_value;
  const uint32_t* mask;       // [max_seqs][mask_words]
  const int32_t* mask_state;  // [max_seqs] MaskState; another thread makes it kReady
  int max_tokens, max_seqs, max_blocks, mask_words;
  int32_t *out_row, *out_token, *out_top_token;
  float *out_logprob, *out_top_logprob;
};

// A caller's buffer for rows of logits or hidden states.
struct RowsOut {
  float* data = nullptr;
  int rows = 0;
};

// Prepared rows of activations in every form that some linear wants.
struct ActRows {
  int8_t* q[6];  // [a8 32 | a8 64 | a16 32 | a16 64 | one scale a row, 32 | 64]
  float* scale[6];
  int32_t* sum[6];
  uint8_t* wide;      // whether the row is held in a16, where a linear takes either
  int32_t* outliers;  // kOutliers: how many inputs of the row stand in f32
  uint16_t* bf16;
  float* f32;
};

struct Tile {
  int seq, row0, rows;
};

// What a thread takes of attention: a tile's rows, one head, one split (or all, and then the one
// that is computed).
struct Item {
  const Tile& tile;
  int kv_head, split;
};

// Rows that one thread takes through a layer, with their tiles.
struct RowBlock {
  int row0, rows, tile0, tile1;
};

// A row that wants something, in row order.
struct Wanted {
  int row, seq;
  uint8_t want;
  int logits_index, hidden_index;
  bool greedy;  // nothing but the largest logit is needed, of the tokens that the mask allows
  bool masked;
};

// Attention splits that are not merged yet: o is [query][split][head_dim], m and l [split][query].
// Query (kv head, row, head of group) is kv_head * kv_stride + row * group + head.
struct Partials {
  float *o, *m, *l;
  int64_t queries, kv_stride;
  int splits, split0;  // how many, and the index of the first
};

struct Worker {
  float *x, *row, *query, *scores, *merged;
  ActRows act, act_down;  // of few rows, or of a block; act_down: of blocks only
  ActRows act_thin;       // of one row, through a factor of the vocabulary
  float* thin;            // and what goes in or comes out on the side of its rank
  float *gate, *up;       // [kBlockRows][kActColumns]
  Partials partials;
  float* chunk;  // head logits of a few panels
  SampleScratch sample;
  StageClock clock;
  int32_t *narrow_rows, *wide_rows;  // the rows of this step in a8 and a16, of mixed ones
  int n_narrow, n_wide;
  float peak;                // kTensor: the largest of the thread's rows
  float* extra;              // [kOutlierPanels * kLanes], what outliers add
  const uint32_t* mask[64];  // of the rows of a greedy head; null: all tokens are allowed
  float best[64];
  int32_t best_token[64];
};

class Step {
 public:
  // `plan` and `pool` outlive the step. There is a state slot per sequence of a step.
  Step(const Plan& plan, ThreadPool& pool);

  // Takes the first n_seqs sequences of `arrays`; `logits` and `hidden` have room for so many rows.
  // Throws std::invalid_argument naming what is out of range: then nothing may run.
  void prepare(const StepArrays& arrays, int n_seqs, const RowsOut& logits, const RowsOut& hidden,
               const KvCache& cache);
  RunStatus run();
  // Throws std::invalid_argument unless the step that was prepared may run `times` times: one row a
  // sequence, which wants a token, nothing that another thread or the caller has to see in between,
  // and room for all results.
  void check_times(int times) const;
  // After a run: each sequence's new token becomes its row, one position on, and `arrays` say where
  // the next results go.
  void advance(StepArrays& arrays) const;

  int wanted() const { return static_cast<int>(wanted_.size()); }
  int rows() const { return rows_; }
  // Keys and values of the last step that the cache's format could not hold (table.h, kv_write).
  int64_t kv_lost() const { return kv_lost_.load(std::memory_order_relaxed); }
  void reset_slot(int slot, const int32_t* prompt, int n_prompt, const int32_t* output,
                  int n_output);
  size_t workspace_bytes() const { return arena_.allocated(); }
  // Since this object was made: [thread][stage].
  std::vector<std::vector<double>> stage_seconds() const;
  // Rows that linears of a mixed input have seen since load, and how many of them in 16 bits. From
  // any thread.
  std::pair<int64_t, int64_t> rows_seen(int input) const;

 private:
  static void region(int thread, void* self) { static_cast<Step*>(self)->work(thread); }
  void work(int t);

  // stages.cc
  void allocate();
  ActRows act_rows(int rows);
  void embed(int t);
  void thin(int t, const Thin& thin, const float* x, float* y);
  bool begin_linear(int t, const float* norm, const Input& in, const float* source, int64_t ld);
  void residual(float* x, int row, Worker& w);
  void prepare_row(const float* x, const Input& in, const ActRows& act, int index) const;
  void prepare_whole(const float* x, const Input& in, const ActRows& act, int index) const;
  void prepare_scaled(const float* x, const Input& in, const ActRows& act, int index) const;
  void quantize_scaled(const float* x, const Input& in, const ActRows& act, int index,
                       float amax) const;
  void split_outliers(const float* x, const Input& in, const ActRows& act, int index) const;
  bool finish_tensor(int t, const Input& in, const ActRows& act, int r0, int r1);
  void prepare_columns(const float* x, const Input& in, const ActRows& act, int index, int column,
                       int n, int padded) const;
  void run_linear(const Linear& linear, const Input& in, const ActRows& act, int m, float* y,
                  int64_t ldy, int p0, int p1) const;
  void linear(const Linear& linear, const Input& in, int t, int m, float* y, int64_t ldy, int p0,
              int p1) const;
  void sort_rows(int t, const Input& in, int m);
  void mixed_linear(const Linear& linear, const Input& in, const ActRows& act, const Worker& w,
                    float* y, int64_t ldy, int p0, int p1) const;
  void outlier_linear(const Linear& linear, const Input& in, const ActRows& act, const Worker& w,
                      int m, float* y, int64_t ldy, int p0, int p1) const;
  void warm(const Linear& next, int p) const;
  void warm_after(int t, int index) const;
  bool layers(int t);
  bool layer(int t, const Layer& layer, int index);
  void project_heads(int t, const Layer& layer);
  void finish_heads(const Layer& layer, const HeadRange& mine, int row0, int row1);
  void rotate(const Layer& layer, float* head, const float* bias, const float* norm, int row) const;
  void write_kv(const Layer& layer, int row, int kv0, int kv1);
  void project_out(int t, const Layer& layer);
  void gate_up(int t, const Layer& layer);
  void down(int t, const Layer& layer);

  // rows.cc
  int block_rows() const;
  void plan_blocks();
  bool take_block(int t, int phase, int* block);
  RowBlock wanted_part(const RowBlock& block) const;
  bool layers_by_rows(int t);
  void prepare_block(int t, const RowBlock& block, const float* norm, const Input& in);
  void begin_layer(int t, const Layer& layer, const RowBlock& block, bool any_before);
  void finish_layer(int t, const Layer& layer, const RowBlock& block);
  void project_block(const Linear& linear, const Input& in, const ActRows& act,
                     const RowBlock& block);
  void gate_up_block(int t, const Layer& layer, const RowBlock& block);

  // attention.cc
  bool encode_keys(int t, const Layer& layer);
  bool attention(int t, const Layer& layer, int index);
  std::pair<int, int> positions(const Tile& tile) const;
  KeysAhead first_keys(const Layer& layer, const Item& item) const;
  void attend_tile(int t, const Layer& layer, Item item, const KeysAhead& ahead);
  void attend_split(int t, const Layer& layer, const Item& item, const KeysAhead& ahead,
                    const Partials& to, int64_t query0);
  void merge_row(int t, const Layer& layer, int row, int kv_head, const Partials& from,
                 int64_t query0);
  void plan_tiles();

  // step.cc
  void check_sequence(int s, const KvCache& cache) const;
  void check_row(int s, int row, const KvCache& cache) const;
  void want_row(int s, int row);
  bool greedy(int s, uint8_t want) const;

  // head.cc
  void head(int t);
  bool head_group(int t, size_t first, size_t count);
  void head_greedy(int t, size_t first, int n);
  const uint32_t* await_mask(const Wanted& wanted) const;
  void head_logits(int t, int n);
  void finish_greedy(size_t first, int n);
  void finish_row(int t, size_t entry, const float* logits);
  SampleParams sample_params(const Wanted& wanted);
  void report_logprobs(int t, size_t entry, const float* logits, int32_t token);
  void count_tokens();

  bool few() const { return rows_ <= (pool_.threads() <= 2 ? kFewRows : kFewRowsOfMany); }
  bool by_rows() const {
    return !few() && !plan_.whole_rows && rows_ >= kMinBlockRows * pool_.threads();
  }
  void charge(int t, Stage stage) { workers_[static_cast<size_t>(t)].clock.charge(stage); }
  // Ends a thread's part of `stage`.
  bool barrier(int t, Stage stage) {
    charge(t, stage);
    const bool go_on = pool_.barrier(t);
    charge(t, Stage::kWait);
    return go_on;
  }
  int part(int total, int t) const {
    return static_cast<int>(int64_t{total} * t / pool_.threads());
  }
  const int32_t* table(int seq, int group) const {
    return a_.block_table + (int64_t{group} * a_.max_seqs + seq) * a_.max_blocks;
  }

  const Plan& plan_;
  const KernelTable& k_;
  ThreadPool& pool_;
  Arena arena_;
  std::vector<Worker> workers_;
  std::vector<TokenCounts> slots_;

  StepArrays a_{};
  int n_seqs_ = 0, rows_ = 0;
  float *logits_out_ = nullptr, *hidden_out_ = nullptr;
  std::vector<int32_t> seq_of_row_;
  std::vector<Wanted> wanted_;
  std::vector<Tile> tiles_;
  std::vector<int> full_groups_;  // KIVI: rows that are the last of their group of tokens
  std::vector<RowBlock> blocks_;
  std::vector<std::atomic<int>> taken_;      // per block: phases that some thread has begun
  std::vector<std::atomic<int>> next_item_;  // one counter per layer: dynamic shares of attention
  int max_splits_ = 0;                       // of this step, over all its positions
  bool share_splits_ = false;
  std::atomic<int64_t> kv_lost_{0};

  // Row buffers, [max_tokens][...]
  float *x_ = nullptr, *qkv_ = nullptr, *attn_ = nullptr, *y_ = nullptr, *gate_ = nullptr,
        *up_ = nullptr, *logits_ = nullptr;
  ActRows act_{};
  Partials shared_{};
  int64_t ld_x_ = 0, ld_qkv_ = 0, ld_attn_ = 0, ld_y_ = 0, ld_gate_ = 0, ld_logits_ = 0;
  int head_rows_ = 8;
  // What stands in y_ and is not yet added to the residual stream (per thread alike).
  struct Pending {
    bool any = false;
    const float* post_norm = nullptr;
  };
  std::vector<Pending> pending_;
  TickLength tick_;
  struct Seen {
    std::atomic<int64_t> rows{0}, wide{0};
  };
  std::vector<Seen> seen_;  // per input of the plan
};

}  // namespace octavo
