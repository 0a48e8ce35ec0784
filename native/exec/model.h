// What the loader describes: a decoder as plain fields, named vectors and named packed weights.
// Names are those of spec/decoder.py's `Part`. `Plan` resolves them once.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "exec/weight.h"
#include "kernels/table.h"

namespace octavo {

// What shares a scale of kA8: a group of inputs; or the row, whose amax is its own (kToken), that
// of all rows multiplied at once (kTensor), or `peak` (kStatic). kOutliers is kToken without the
// inputs beyond kOutlier, which are multiplied in fp32 (LLM.int8(), arXiv 2208.07339, row by row).
enum class ActScale : uint8_t { kGroup, kToken, kTensor, kStatic, kOutliers };
constexpr float kOutlier = 6;

struct NamedWeight {
  std::shared_ptr<Weight> weight;
  Act act = Act::kA8;
  ActScale scale = ActScale::kGroup;
  float peak = 0;
};

struct RopeTable {
  std::vector<float> cos, sin;  // [positions][half]
  int half = 0;
};

struct LayerDesc {
  int heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;
  float scale = 1, softcap = 0;
  int window = 0;
  int rope = 0;           // index of ModelDesc::ropes
  int kv_group = 0;       // index of the KV group
  int recent_group = -1;  // of KIVI's keys and values in bf16; -1: the format has none
  MlpAct activation = MlpAct::kSilu;
  std::map<std::string, std::vector<float>> vectors;
  std::map<std::string, NamedWeight> weights;
};

struct ModelDesc {
  int hidden = 0, vocab = 0;
  float norm_eps = 1e-6F, embed_scale = 1, softcap = 0;
  std::shared_ptr<Weight> embed;
  NamedWeight head;
  // Of a factored vocabulary: [hidden, rank of the table] and [rank of the head, hidden]; else
  // null.
  NamedWeight embed_up, head_down;
  std::vector<float> final_norm;
  std::vector<RopeTable> ropes;
  std::vector<LayerDesc> layers;
};

struct RuntimeDesc {
  int max_tokens = 0, max_seqs = 0, context = 0, threads = 1, usable_cpus = 1, block_size = 16;
  KvFormat kv_format = KvFormat::kBf16;
  std::vector<int> kv_blocks;  // per group
  std::string isa;
  float wide_ratio = 0;  // a8a16: rows whose maximum over RMS is larger take 16 bits
};

}  // namespace octavo
