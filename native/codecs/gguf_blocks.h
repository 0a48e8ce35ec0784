// The block formats of GGUF as data: one row a type. Decoding a block gives codes, scales and
// offsets of the affine view (core/types.h), identical in value to ggml's own dequantization.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/types.h"

namespace octavo {

// Where one block goes: `codes` takes `inputs` values; `scales` and `offsets` one value a block,
// the super of two levels, whose `subs` and `sub_offsets` take one integer a group.
struct BlockOut {
  uint8_t* codes;
  float* scales;
  float* offsets;
  uint8_t* subs;
  uint8_t* sub_offsets;
};

struct GgufBlock {
  std::string_view type;
  int inputs, bytes;  // of a block
  int group, bits, zero;
  bool has_offset;
  Scaling scaling;  // kF16: one group a block
  int sub_bias;
  const int8_t* levels8;  // 16 levels, or null
  void (*decode)(const uint8_t* block, const BlockOut& out);
};

// Null when `type` isn't a block type ("F32" isn't) or unknown.
const GgufBlock* gguf_block(std::string_view type);

}  // namespace octavo
