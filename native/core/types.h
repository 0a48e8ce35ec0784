// Plain views shared by pack, kernels and exec. No ownership, no STL: ISA files include this.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int kLanes = 16;  // output rows of a panel = lanes of a 512-bit register of 32-bit values
constexpr int kUnit = 32;   // inputs of a unit: K is padded with zeros to a multiple of it

enum class Code : uint8_t { kNibble, kByte, kBf16, kF32 };
enum class Act : uint8_t { kA8, kBf16, kF32 };  // a8, abf16, a32

// A weight [n, k] packed in panels of 16 rows. One layout for all ISAs ("T16", docs/kernels.md).
//
//   panel p:  [ scales | offsets | codes ]   codes at data + p * panel_bytes, 64-byte aligned
//
// Scales come first so that a panel is read front to back without a gap: with tables behind the
// codes, read in turn with them, one core got 9.7 GB/s of this from memory that gives it 25.
//
//   kNibble  per unit of 32 k, 4 lines of 64 B; line j = [row 0..15][4 bytes];
//            low nibble of byte (r, c) = code[r][4j + c], high nibble = code[r][16 + 4j + c]
//   kByte    per unit of 32 k, 8 lines of 64 B; line j = [row 0..15][4 bytes] = code[r][4j + c]
//   kBf16    per 2 k, one line of 64 B = [row 0..15][2] bf16 (k even, k odd)
//   kF32     per k, one line of 64 B = [row 0..15] float
//   scales   at scale_offset (negative) from the codes: per group g, 16 x fp16 or fp32 (row 0..15);
//            likewise offsets.
//
// w[r][k] = fl(fl(scale[r][k / group] * v) + offset[r][k / group]), v = code - zero, or
// levels8[code], or levels[code]; kBf16 and kF32 have neither scales nor offsets. Padding (rows
// n.., inputs k..) holds codes equal to `zero` (or any code) with scale 0 and offset 0.
struct PackedWeight {
  int32_t n = 0, k = 0, k_pad = 0, panels = 0;
  Code code = Code::kF32;
  // Inputs per scale: 16, or a multiple of 32 that divides k_pad, or k_pad (one scale a row).
  int32_t group = 0;
  int32_t n_groups = 0;
  int32_t zero = 0;
  bool scale_f32 = false;  // scales and offsets are fp32 (true) or fp16 (false)
  bool has_offset = false;
  const int8_t* levels8 = nullptr;  // integer codebook (IQ4_NL): 16 or 256 levels
  const float* levels = nullptr;    // float codebook (NF4, fp8): 16 or 256 levels
  const uint8_t* data = nullptr;
  int64_t panel_bytes = 0, scale_offset = 0, offset_offset = 0;
};

// Rows of activations, prepared for linear layers. All rows are padded to k_pad with zeros.
//
// a8: q = round_half_even(x * (127 / amax)), scale = amax / 127 over each `group` (32 or 64)
// inputs; amax < 2^-118 (127 / amax is no longer finite) gives q = 0, scale = 0. sum[unit] = sum of
// q over 32 inputs (for zeros and offsets). Rows lie one after another, without gaps.
struct ActView {
  int32_t k = 0, k_pad = 0;
  int32_t a8_group = 32;
  const int8_t* q = nullptr;       // [m][k_pad]
  const float* scale = nullptr;    // [m][k_pad / a8_group]
  const int32_t* sum = nullptr;    // [m][k_pad / 32]
  const uint16_t* bf16 = nullptr;  // [m][k_pad], rounded half to even
  const float* f32 = nullptr;      // [m][k_pad]
};

// Inputs of one activation scale for a given weight group: 64 when the weight's group and k_pad are
// multiples of 64, else 32.
static inline int a8_group_for(int weight_group, int k_pad) {
  return (weight_group % 64 == 0 || weight_group >= k_pad) && k_pad % 64 == 0 ? 64 : 32;
}

enum class KvFormat : uint8_t { kBf16, kF32 };

// One layer's paged K and V. Block b of this layer lies at base + b * block_stride; head h of its K
// at + h * head_stride_k, of its V at + v_offset + h * head_stride_v. All strides are in bytes.
//   K of a block, per kv head: bf16 [head_dim / 2][block_size][2] (f32: [head_dim][block_size])
//   V of a block, per kv head: [block_size][head_dim]
// so that a register of 16 lanes holds 16 tokens of K, or 16 elements of V. block_size % 16 == 0;
// head_dim is even.
struct KvLayerView {
  uint8_t* base = nullptr;
  int64_t block_stride = 0, v_offset = 0, head_stride_k = 0, head_stride_v = 0;
  int32_t block_size = 16, kv_heads = 0, head_dim = 0;
  KvFormat format = KvFormat::kBf16;
};

}  // namespace octavo
