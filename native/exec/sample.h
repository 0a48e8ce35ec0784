// From logits to a token: docs/numerics.md's order of operations, and the exact log-softmax.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace octavo {

// Tokens that a sequence has seen, prompt and output apart. Costs memory from the first reset on.
class TokenCounts {
 public:
  explicit TokenCounts(int vocab) : vocab_(static_cast<size_t>(vocab)) {}

  void reset(const int32_t* prompt, int n_prompt, const int32_t* output, int n_output);
  void add_output(int32_t token);

  const std::vector<int32_t>& seen() const { return seen_; }  // each token once
  int32_t output(int32_t token) const { return output_[static_cast<size_t>(token)]; }

 private:
  void touch(int32_t token);

  size_t vocab_;
  std::vector<uint8_t> prompt_;  // [vocab] 1: occurs in the prompt
  std::vector<int32_t> output_;  // [vocab] occurrences
  std::vector<int32_t> seen_;
};

struct SampleParams {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: off
  float top_p = 1, min_p = 0;
  float repetition = 1, presence = 0, frequency = 0;
  uint64_t seed = 0;
  int32_t position = 0;  // of the new token
  int32_t choice = 0;
  const int32_t* bias_token = nullptr;
  const float* bias_value = nullptr;
  int n_bias = 0;
  const uint32_t* mask = nullptr;       // bit i of word i / 32: token i is allowed; null: all are
  const TokenCounts* counts = nullptr;  // null: no penalties

  bool adjusts() const {
    return n_bias != 0 || mask != nullptr ||
           (counts != nullptr && (repetition != 1 || presence != 0 || frequency != 0));
  }
};

// Working memory of one thread.
struct SampleScratch {
  std::vector<float> logits;  // with bias and penalties; empty until some row has them
  std::vector<int32_t> order;
  std::vector<double> weight;  // exp of the scaled logits of `order`, maximum = 1
};

// The uniform draw in [0, 1) for (seed, position, choice, kind): Philox4x32-10.
double uniform_draw(uint64_t seed, int32_t position, int32_t choice, int32_t kind);

// Takes what a mask doesn't allow out of logits of the tokens `first` .. `first + count`.
void apply_mask(const uint32_t* mask, int first, int count, float* x);

// Logits are read only. Ties go to the lowest id.
int32_t sample(const KernelTable& table, const float* logits, int vocab, const SampleParams& params,
               SampleScratch& scratch);

struct LogSoftmax {
  double max = 0, log_sum = 0;
  float operator()(float logit) const { return static_cast<float>(logit - max - log_sum); }
};
LogSoftmax log_softmax(const KernelTable& table, const float* logits, int vocab);

// The `count` largest by (logit descending, id ascending).
void top_tokens(const float* logits, int vocab, int count, SampleScratch& scratch, int32_t* tokens);

}  // namespace octavo
