// The block formats of GGUF as data: one row a type. Decoding a block gives codes, scales and
// offsets of the affine view (core/types.h), identical in value to ggml's own dequantization.
#pragma once

#include <cstdint>
#include <string_view>

namespace octavo {

// Where one block goes: `codes` takes `inputs` values, `scales` and `offsets` one per group.
struct BlockOut {
  uint8_t* codes;
  float* scales;
  float* offsets;  // null when the type has none
};

struct GgufBlock {
  std::string_view type;
  int inputs, bytes;  // of a block
  int group, bits, zero;
  bool has_offset;
  bool half_scales;       // scales (and offsets) are stored as fp16 values
  const int8_t* levels8;  // 16 levels, or null
  void (*decode)(const uint8_t* block, const BlockOut& out);
};

// Null when `type` isn't a block type ("F32" isn't) or unknown.
const GgufBlock* gguf_block(std::string_view type);

}  // namespace octavo
