// Plain views shared by pack, kernels and exec. No ownership, no STL: ISA files include this.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int kLanes = 16;  // output rows of a panel = lanes of a 512-bit register of 32-bit values
constexpr int kUnit = 32;   // inputs of a unit: K is padded with zeros to a multiple of it

// How codes lie, by their bits: 2, 3, 4, 5, 6, 8; kF16, kBf16 and kF32 hold values, not codes.
// kTrellis: 2 bits whose levels go by windows of four codes (src/octavo/formats/trellis.py).
// kSparse*: codes of 4 or 8 bits of which at most two in every aligned four aren't 8 or 128.
// kBlock*: codes of 4 or 8 bits; blocks of 16 rows by 32 inputs that are all 8 or 128 aren't there.
enum class Code : uint8_t {
  kTwo,
  kThree,
  kNibble,
  kFive,
  kSix,
  kByte,
  kF16,
  kBf16,
  kF32,
  kSparseNibble,
  kSparseByte,
  kTrellis,
  kBlockNibble,
  kBlockByte
};
enum class Act : uint8_t { kA8, kBf16, kF32, kA16, kA8A16 };  // a8, abf16, a32, a16, a8a16

// Bits of a code, or of a value.
static inline constexpr int code_bits(Code code) {
  switch (code) {
    case Code::kTwo:
    case Code::kTrellis:
      return 2;
    case Code::kThree:
      return 3;
    case Code::kNibble:
    case Code::kSparseNibble:
    case Code::kBlockNibble:
      return 4;
    case Code::kFive:
      return 5;
    case Code::kSix:
      return 6;
    case Code::kByte:
    case Code::kSparseByte:
    case Code::kBlockByte:
      return 8;
    case Code::kF16:
    case Code::kBf16:
      return 16;
    case Code::kF32:
      break;
  }
  return 32;
}
static inline constexpr bool has_codes(Code code) { return code_bits(code) <= 8; }
static inline constexpr bool is_sparse(Code code) {
  return code == Code::kSparseNibble || code == Code::kSparseByte;
}
static inline constexpr bool is_block(Code code) {
  return code == Code::kBlockNibble || code == Code::kBlockByte;
}
// How the codes of a block that is there lie.
static inline constexpr Code within_blocks(Code code) {
  if (!is_block(code)) return code;
  return code == Code::kBlockByte ? Code::kByte : Code::kNibble;
}
// What codes that aren't stored are.
static inline constexpr int sparse_zero(Code code) { return 1 << (code_bits(code) - 1); }
// Bytes of 16 rows by 32 inputs.
static inline constexpr int unit_bytes(Code code) {
  const int all = code_bits(code) * kLanes * kUnit / 8;
  return is_sparse(code) ? all / 2 + 4 * kLanes : all;
}
static inline constexpr int level_count(Code code) {
  return code_bits(code) <= 4 && code != Code::kTrellis ? 16 : 256;
}

// A weight [n, k] packed in panels of 16 rows. One layout for all ISAs ("T16", docs/kernels.md).
//
//   panel p:  [ scales | offsets | codes ]   codes at data + panel_start(p), 64-byte aligned
//
// Scales come first so that a panel is read front to back without a gap: with tables behind the
// codes, read in turn with them, one core got 9.7 GB/s of this from memory that gives it 25.
//
// Codes lie in units of 32 k, in lines of 64 B = [row 0..15][4 bytes]. Quad q of a unit is its
// inputs 4q .. 4q + 3; byte (r, c) of a line speaks of input 4q + c of row r, for these q:
//   kTwo     2 lines; bits 2i, 2i + 1 of line j = code of quad 4j + i
//   kThree   2 lines as kTwo: the low bits; 1 line, bit q: bit 2 of the code of quad q
//   kNibble  4 lines; low nibble of line j = code of quad j, high nibble = of quad 4 + j
//   kFive    4 lines as kNibble: the low bits; 1 line, bit q: bit 4 of the code of quad q
//   kSix     4 lines as kNibble: the low bits; 2 lines as kTwo: bits 4 and 5
//   kByte    8 lines; line q = codes of quad q
//   kSparseNibble, kSparseByte
//            of each quad two codes, the others being 8 (128): those of quads 2j, 2j + 1 are bytes
//            0, 1 and 2, 3 of a row's word. kSparseByte 4 lines, of j = 0 .. 3; kSparseNibble 2
//            lines: low nibble of line i for j = i, high nibble for j = 2 + i. Stored as code xor
//            8 (128). Then a line of masks: bit c of nibble q of a row's word = input 4q + c is
//            stored; two in each nibble
//   kTrellis 2 lines: codes of inputs 0 .. 15 and 16 .. 31, two bits each from the lowest on. Both
//            words of a row are a run, a ring of 64 bits: the level of input i is
//            levels8[rotr(run, 2 i) & 255]. Codes of such rows are given as these windows
//   kBlockNibble, kBlockByte
//            units as kNibble and kByte, those alone that are there, in order. Before the codes, in
//            block_mask_bytes: bit u of a run of words of 64 bits = unit u is there. Neither
//            offsets nor zero points nor levels; `zero` is 8 (128)
//   kF16     per k, 32 B = [row 0..15] fp16
//   kBf16    per 2 k, one line of 64 B = [row 0..15][2] bf16 (k even, k odd)
//   kF32     per k, one line of 64 B = [row 0..15] float
//   scales   at scale_offset (negative) from the codes: per group g, 16 x fp16 or fp32 (row 0..15),
//            or two levels (below); likewise offsets, at offset_offset
//   zeros    in place of offsets, at offset_offset: per group 16 bytes, the code that stands for 0
//
// Two levels: per super-group of 2^super_shift groups 16 x fp16 supers, then the subs of all
// groups, unsigned integers with 16 rows side by side. kSub4: byte g / 2 holds those of groups g
// (low nibble for even g). kSub6: likewise the low 4 bits, then at pair_at byte g / 4 holds bits 4
// and 5, two for each of four groups. kSub8: a byte each. scale = super * (sub - sub_bias), exact
// in fp32; offsets have no bias (their supers are negative where they should be).
//
// w[r][k] = fl(fl(scale[r][k / group] * v) + offset[r][k / group]), v = code - zero, or
// levels8[code], or levels[code]; kF16, kBf16 and kF32 have neither scales nor offsets. Padding
// (rows n.., inputs k..) holds codes equal to `zero` (or any code) with scale 0 and offset 0.
enum class Scaling : uint8_t { kF16, kF32, kSub4, kSub6, kSub8 };

struct PackedWeight {
  int32_t n = 0, k = 0, k_pad = 0, panels = 0;
  Code code = Code::kF32;
  // Inputs per scale: 16, or a multiple of 32 that divides k_pad, or k_pad (one scale a row).
  int32_t group = 0;
  int32_t n_groups = 0;
  int32_t zero = 0;
  Scaling scaling = Scaling::kF16;  // of scales and offsets
  bool has_offset = false;
  bool has_zero = false;  // a zero per group, and no offsets; `zero` is 0 then
  int32_t super_shift = 0, sub_bias = 0;
  // A codebook has 16 levels (codes of up to 4 bits; those beyond the codes are unused) or 256 (a
  // trellis has too).
  const int8_t* levels8 = nullptr;  // integers (IQ4_NL)
  const float* levels = nullptr;    // floats (NF4, fp8)
  // For a8, levels as 16-bit integers: level = level_step * (256 * levels16[i] + levels16[n + i])
  // for each of the n levels, rounded where it isn't one.
  const int8_t* levels16 = nullptr;
  float level_step = 1;
  const uint8_t* data = nullptr;
  int64_t panel_bytes = 0, scale_offset = 0, offset_offset = 0;
  int32_t sub_at = 0, pair_at = 0;  // of two-level tables, from their start
  // kBlock*: [panels + 1], how many units come before each panel; panel_bytes is without them then.
  const int64_t* units_before = nullptr;
};

// From `data` to the codes of panel p; of p = panels: to where the next panel's would be.
static inline int64_t panel_start(const PackedWeight& w, int64_t p) {
  const int64_t units = w.units_before ? w.units_before[p] : 0;
  return p * w.panel_bytes + units * unit_bytes(w.code);
}
// Bytes of all panels, and of one.
static inline int64_t weight_bytes(const PackedWeight& w) { return panel_start(w, w.panels); }
static inline int64_t mean_panel_bytes(const PackedWeight& w) {
  return w.panels > 0 ? weight_bytes(w) / w.panels : 0;
}
static inline constexpr int64_t block_mask_bytes(int k_pad) {
  return (k_pad / kUnit + 63) / 64 * 8;
}

// Rows of activations, prepared for linear layers. All rows are padded to k_pad with zeros.
//
// a8: q = round_half_even(x * (127 / amax)), scale = amax / 127 over each `group` (32 or 64)
// inputs; amax < 2^-118 (127 / amax is no longer finite) gives q = 0, scale = 0. sum[unit] = sum of
// q over 32 inputs (for zeros and offsets). Rows lie one after another, without gaps.
//
// a16: q = round_half_even(x * (32639 / amax)), scale = amax / 32639, in the same groups; amax <
// 2^-100 gives q = 0, scale = 0. q = 256 hi + lo with hi = (q + 128) >> 8 and lo = q - 256 hi, but
// at least -127, so that both are rows of a8 to a dot: row 2r holds hi, row 2r + 1 lo. sum
// likewise.
struct ActView {
  int32_t k = 0, k_pad = 0;
  int32_t a8_group = 32;
  const int8_t* q = nullptr;       // [m][k_pad]; a16: [2 m][k_pad]
  const float* scale = nullptr;    // [m][k_pad / a8_group]
  const int32_t* sum = nullptr;    // [m][k_pad / 32]; a16: [2 m][k_pad / 32]
  const uint16_t* bf16 = nullptr;  // [m][k_pad], rounded half to even
  const float* f32 = nullptr;      // [m][k_pad]
  // a8 and a16: the rows to multiply, which are the rows of y to write; null: rows 0 to m - 1.
  const int32_t* rows = nullptr;
};

static inline int64_t row_of(const ActView& x, int r) { return x.rows ? x.rows[r] : r; }

// Inputs of one activation scale for a given weight group: 64 when the weight's group and k_pad are
// multiples of 64, else 32.
static inline int a8_group_for(int weight_group, int k_pad) {
  return (weight_group % 64 == 0 || weight_group >= k_pad) && k_pad % 64 == 0 ? 64 : 32;
}

enum class KvFormat : uint8_t { kBf16, kF32, kF16, kInt8, kInt4, kKivi2, kKivi4, kE4m3, kE5m2 };
static inline constexpr bool is_fp8(KvFormat format) {
  return format == KvFormat::kE4m3 || format == KvFormat::kE5m2;
}
static inline constexpr bool is_kivi(KvFormat format) {
  return format == KvFormat::kKivi2 || format == KvFormat::kKivi4;
}
static inline constexpr int kivi_bits(KvFormat format) {
  return format == KvFormat::kKivi2 ? 2 : 4;
}

constexpr int kKvGroup = 32;      // head elements that share a scale of int4
constexpr int kKiviGroup = 32;    // tokens of a key's channel, channels of a token's value
constexpr int kKiviWindow = 128;  // youngest tokens that a query of KIVI reads in bf16
constexpr int kMaxKvDim = 512;    // of the integer formats: their sums of products fit in int32

// One layer's paged K and V. K of head h in block b lies at base + b * block_stride + h *
// head_stride_k, its V at base + v_offset + b * block_stride + h * head_stride_v. Strides in bytes.
//   K of a block, per kv head: bf16 [head_dim / 2][block_size][2], f32 and f16 [head_dim]
//     [block_size], fp8 and int8 [head_dim / 4][block_size][4] (code + 128), int4 [head_dim / 8]
//     [block_size][4]: low nibble of byte c = code[8i + c], high nibble = code[8i + 4 + c]
//   V of a block, per kv head: [block_size][head_dim]; int4 [block_size][head_dim / 2]: in a group
//     of 32, low nibble of byte i = code[i], high nibble = code[16 + i]
// so that a register of 16 lanes holds 16 tokens of K, or 16 elements of V. The codes of K and of V
// are each followed by bf16 scales: int8 [block_size], int4 [head_dim / 32][block_size].
// block_size % 16 == 0; head_dim is even (int8, fp8: % 16 == 0, int4: % 32 == 0).
//
// int8: s = absmax / 127 rounded up to bf16, code = rint(x * (1 / s)). int4: s = x of the largest
// absolute value (the negative one if both signs have it) / -8, rounded to bf16, over each group;
// code = rint(x * (1 / s)) within [-8, 7], stored + 8. Largest value < 2^-100: s = 0, codes 0.
// K of int8 and int4 and V of int4 are stored rotated by the Hadamard transform / its length, over
// blocks of the largest power of two that divides head_dim: q . k = (H q) . (H k / n), and
// o = H (sum p H v / n). Queries of the integer formats are H q in 16 bits: s = absmax / 32512,
// rint(x * (32512 / absmax)); their products with K are exact in int32 per scale of K.
//
// KIVI has two views of a layer, with tables of their own: one of its format for what is old, one
// of bf16 for what is recent. block_size % 32 == 0, head_dim % 32 == 0. Codes (2 or 4 bits, `per` =
// 32 / bits of them in a word):
//   K  [block_size / 16][head_dim / per][16 tokens] words, channel d at bits * (d % per) of its
//      word; then fp16 [block_size / 32][step, least][head_dim]
//   V  [block_size][head_dim * bits / 8] as int4; of 2 bits words, channel d at 2 * (d % 16) of
//   word
//      d / 16; then fp16 [head_dim / 32][step, least][block_size]
// least = min, step = (max - least) / (2^bits - 1) over a group, both fp16; code = rint((x - least)
// / step) within the codes, x as bf16 holds it; read as fl(least + step * code). Query i reads
// value j so if j <= i - 128, key j if the end of its group of 32 tokens is: 32 (j / 32) + 32 <= i
// - 127.
struct KvLayerView {
  uint8_t* base = nullptr;
  int64_t block_stride = 0, v_offset = 0, head_stride_k = 0, head_stride_v = 0;
  int32_t block_size = 16, kv_heads = 0, head_dim = 0;
  KvFormat format = KvFormat::kBf16;
};

// Bytes of the codes, and of the scales, of one head's K (V takes as much) in one block.
static inline int64_t kv_code_bytes(KvFormat format, int head_dim, int block_size) {
  const int64_t n = static_cast<int64_t>(head_dim) * block_size;
  if (format == KvFormat::kF32) return 4 * n;
  if (format == KvFormat::kInt8 || is_fp8(format)) return n;
  if (is_kivi(format)) return n * kivi_bits(format) / 8;
  return format == KvFormat::kInt4 ? n / 2 : 2 * n;
}
static inline int64_t kv_scale_bytes(KvFormat format, int head_dim, int block_size) {
  if (format == KvFormat::kInt8) return 2 * static_cast<int64_t>(block_size);
  if (is_kivi(format)) return 4 * static_cast<int64_t>(block_size) * (head_dim / kKiviGroup);
  if (format != KvFormat::kInt4) return 0;
  return 2 * static_cast<int64_t>(block_size) * (head_dim / kKvGroup);
}

// Codes and scales of one head's K in one block; its V takes as much.
static inline int64_t kv_run_bytes(const KvLayerView& kv) {
  return kv_code_bytes(kv.format, kv.head_dim, kv.block_size) +
         kv_scale_bytes(kv.format, kv.head_dim, kv.block_size);
}

// Fills strides for a pool of `blocks`: all blocks of a head's K lie in one run, then those of its
// V. A pool gives out blocks in order where it can, so that the past of a sequence is one ascending
// stream for the thread that reads that head: what memory likes best.
static inline void kv_lay_out(KvLayerView* kv, int64_t blocks) {
  kv->block_stride = kv_run_bytes(*kv);
  kv->v_offset = kv->block_stride * blocks;
  kv->head_stride_k = kv->head_stride_v = 2 * kv->v_offset;
}

}  // namespace octavo
