// A model resolved for one machine: flat operations with kernel pointers, nothing left to look up.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "exec/kv.h"
#include "exec/model.h"

namespace octavo {

constexpr int kMaxGroupHeads = 64;  // query heads of one kv head

// The forms in which a stage's linears want their input, as bits of a mask.
// The first six are 8 or 16 bits, or either of them by row, over groups of 32 or 64 inputs;
// kFormInt8* 8 bits with one scale a row, in as many groups; kFormSplit keeps fp32 rows for the
// scales of kTensor and the outliers of kOutliers.
enum Form : uint32_t {
  kFormA8g32 = 1,
  kFormA8g64 = 2,
  kFormA16g32 = 4,
  kFormA16g64 = 8,
  kFormMixedG32 = 16,
  kFormMixedG64 = 32,
  kFormBf16 = 64,
  kFormF32 = 128,
  kFormInt8g32 = 256,
  kFormInt8g64 = 512,
  kFormSplit = 1024
};

struct Linear {
  PackedWeight w;
  LinearFn run = nullptr;
  LinearFn run_wide = nullptr;      // a8a16: for the rows in 16 bits
  LinearFn run_outliers = nullptr;  // kOutliers: for the inputs in fp32
  Form form = kFormF32;
  ActScale scale = ActScale::kGroup;
  float peak = 0;  // kStatic
  int a8_group = 32;
  int column = 0;               // first output column in the stage's row
  const float* bias = nullptr;  // [n]
};

// Linears that share an input of k values.
struct Input {
  uint32_t forms = 0;
  ActScale scale = ActScale::kGroup;
  float peak = 0;
  int k = 0, k_pad = 0;
  int index = 0;  // among the inputs of the plan
};

// A factor of the vocabulary: small, so whoever has a row takes it through all of it.
struct Thin {
  Linear linear;  // run == nullptr: the vocabulary has no such factor
  Input in;
};

// What one thread does in the stage of q, k and v: whole heads, k and v of a kv head together.
struct HeadRange {
  int kv0 = 0, kv1 = 0, q0 = 0, q1 = 0;
};

struct Layer {
  const float *attn_norm, *attn_post_norm, *mlp_norm, *mlp_post_norm;  // post norms: null for none
  const float *q_norm, *k_norm;                                        // null for none
  const float *cos, *sin;                                              // [positions][half]
  int rope_half;
  int heads, kv_heads, head_dim, window, kv_group;
  int recent_group;  // KIVI: of `recent`
  float scale, softcap;
  KvLayerView kv, recent;
  Input attn_in, o_in, mlp_in, down_in;
  Linear q, k, v, o, gate, up, down;
  MlpAct activation;
  std::vector<HeadRange> head_ranges;  // per thread
};

// One line of the receipt.
struct KernelLine {
  int layer;  // -1: the head
  std::string part, kernel;
  bool fast;
  int64_t bytes;
  int input;  // index of the Input that it reads
};

struct Plan {
  const KernelTable* table = nullptr;
  int hidden = 0, vocab = 0, max_tokens = 0, max_seqs = 0, context = 0, block_size = 0;
  float norm_eps = 0, embed_scale = 1, softcap = 0;
  float wide_ratio = 0;  // a8a16: rows whose maximum over RMS is larger take 16 bits
  int n_inputs = 0;
  // Some input is a16 or a8a16, or has a scale a row: rows are prepared whole, not by columns.
  bool whole_rows = false;
  PackedWeight embed;
  Thin embed_up, head_down;  // hidden = up * embedding row, and head's input = down * hidden
  Linear head;
  Input head_in;
  const float* final_norm = nullptr;
  std::vector<Layer> layers;
  std::vector<KernelLine> lines;
  // Largest of every kind of row, for the workspace.
  int max_k_pad = 0, max_qkv = 0, max_heads = 0, max_head_dim = 0, max_inter = 0, max_out = 0;
  int max_group_heads = 1;
};

// Throws std::invalid_argument naming the layer and part that can't be planned. `model` and `cache`
// must outlive the plan.
Plan make_plan(const ModelDesc& model, const RuntimeDesc& runtime, const KvCache& cache);

}  // namespace octavo
