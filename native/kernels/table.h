// The kernel table: every ISA fills one; `exec` resolves pointers from it at load, never in a step.
//
// A kernel is a pure function on raw pointers: no allocation, threads, exceptions or globals. It
// works on the output range it is given, so the caller partitions. Numerics (docs/numerics.md):
// each output is one scalar sequence, whatever m, the range or the vector width; K ascends; every
// fma is written out; so all ISAs agree bit for bit, except where a row is marked `isa_rounding`.
#pragma once

#include "core/types.h"

namespace octavo {

// y[r * ldy + i] for r < m, i in [16 p0, 16 p1): 16 floats per panel, padding rows included; i
// counts from row 0 of the weight, whatever p0. y is overwritten.
//
// a8:    acc = sum over min(group, a8_group) inputs of (v * q), exact in int32, v the integer that
//        the code stands for (zero points per group included; of levels16 the 16-bit integer);
//        y = fma(float(acc), s * sa, y), s times level_step first with levels16; with offsets then
//        y = fma(float(sum q), o * sa, y)
// a16:   the same with 16-bit q: acc = 256 * sum(v * hi) + sum(v * lo), exact in int32; not with
//        levels16
// a32:   codes: over a step of min(group, a8_group_for) inputs even = fma(v, x, even) over its even
//        inputs, odd likewise, from +0; y = fma(even + odd, s, y); with offsets then
//        y = fma(sum x, o, y), x summed in 16 lanes (index mod 16), folded 8, 4, 2, 1. With zero
//        points per group v is the code, and y = fma(fma(-zero, sum x, even + odd), s, y).
//        kF16, kBf16, kF32: y = fma(w, x, y)
// abf16: the same with x rounded to bf16, half to even; weights aren't rounded. By vdpbf16ps even
//        takes inputs 4q and 4q + 1, odd 4q + 2 and 4q + 3, in the rounding of the instruction.
// y starts at +0 for each output; bias and the rest are epilogues of the caller.
using LinearFn = void (*)(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                          int p0, int p1);

// Which codebooks a row serves: none (affine codes only), those of integers of 8 bits, those given
// as levels16, or any.
enum class Levels : uint8_t { kNone, kInt8, kInt16, kAny };

// What a row needs beyond its instruction set.
enum class Needs : uint8_t { kNothing, kVbmi };

struct LinearKernel {
  // Grammar: linear_<a8|a16|abf16|a32>_<w2|w3|w4|w5|w6|w8|s4|s8|b4|b8|f16|bf16|f32|lut2 ..
  // lut8|lutw2 .. lutw8|t2>_<isa>
  const char* name;
  Act act;
  Code code;
  Levels levels;
  bool fast;          // a hand-written kernel; false: plain code, named as a fallback
  bool isa_rounding;  // rounds in the instruction's own way (vdpbf16ps): equality is per ISA only
  LinearFn run;
  Needs needs = Needs::kNothing;
};

enum class MlpAct : uint8_t { kSilu, kGeluTanh };

// A block of queries of one kv head against keys [key0, key1) of one sequence: one *split* of
// `attention`. Queries are rows q[i] = q + i * q_stride, i < n_q; query i sits at position
// pos[i] and sees keys j with j <= pos[i] and j > pos[i] - window (window 0: no limit).
// For every query and split, results do not depend on n_q or on the other queries.
//   s = scale * (q . k), dot as fma over head_dim ascending; softcap c: s = c * tanh(s / c)
//   int8, int4 (q rotated, in 16 bits with scale sq; K with scale sk): dot = float(acc) * (sk *
//   sq), or with groups dot = fma(float(acc), sk, dot), then dot * sq m = max s; p = exp(s - m); l
//   = sum p (16 lanes by key index mod 16, folded in a fixed order); o[d] = fma(p[j], v[j][d]) over
//   j ascending, un-normalised; int8, int4: p[j] * sv[j] in the place of p[j] and the code in that
//   of v; int4: o is rotated back
//   KIVI: as bf16, of keys and values as query i reads them (core/types.h): either from `kv` and
//   `block_table` or from `recent` and `recent_table`
//
// Keys that are wanted next, of this sequence and head or of others, and fetched meanwhile.
struct KeysAhead {
  const int32_t* block_table = nullptr;
  int32_t kv_head = 0, key0 = 0, key1 = 0;  // key0 % 16 == 0; key0 == key1: none
};

struct AttentionArgs {
  KvLayerView kv;
  const int32_t* block_table;                // of this sequence; -1 = absent (never visible)
  KvLayerView recent;                        // KIVI: bf16
  const int32_t* recent_table;               // KIVI
  int32_t kv_head, n_q, key0, key1, window;  // key0 % 16 == 0; present keys < key1 were written
  KeysAhead ahead;
  const float* q;
  int64_t q_stride;
  const int32_t* pos;    // [n_q]
  float scale, softcap;  // softcap 0: none
  float* o;              // [n_q][head_dim]
  int64_t o_stride;
  float* m;        // [n_q] maximum, -inf when the split holds no visible key
  float* l;        // [n_q] sum of exponentials
  float* scratch;  // attention_scratch(n_q, key1 - key0, head_dim) floats, 64-byte aligned
};

// Bare loops at the rate that the arithmetic units allow, and a plain read: what exec/probe.h
// measures the machine's limits with.
struct Peak {
  const char* instruction;
  double ops;  // multiplications and additions of a round
  void (*run)(int64_t rounds);
};

struct PeakLoops {
  Peak int8, bf16, f32;
  uint64_t (*read)(const uint8_t* data, size_t bytes);  // 64-byte aligned, whole KB
};

// Per query: a score for each key, and its prepared form (integer formats).
static inline int64_t attention_scratch(int64_t n_q, int64_t keys, int64_t head_dim) {
  return n_q * ((keys + 15) / 16 * 16 + (head_dim + 15) / 16 * 16 + 32);
}

struct KernelTable {
  const char* isa;
  const LinearKernel* linear;
  int n_linear;

  // out = x * (1 / sqrt(mean(x^2) + eps)) * w. Squares are summed in 16 lanes (index mod 16) by
  // fma, lanes folded 8, 4, 2, 1. w may be null.
  void (*rms_norm)(const float* x, const float* w, float eps, int n, float* out);
  // Rows of activations (one row each); buffers hold k_pad elements, padded with zeros.
  void (*quantize_a8)(const float* x, int k, int k_pad, int group, int8_t* q, float* scale,
                      int32_t* sum);
  void (*quantize_a16)(const float* x, int k, int k_pad, int group, int8_t* hi_lo, float* scale,
                       int32_t* sum);    // hi_lo is [2][k_pad], sum [2][k_pad / 32]
  float (*peak)(const float* x, int n);  // max |x|
  // As a8 with one amax given for the whole row, which it clamps; every group gets its scale.
  void (*quantize_int8)(const float* x, int k, int k_pad, int group, float amax, int8_t* q,
                        float* scale, int32_t* sum);
  // a8a16: whether a row takes 16 bits: max |x|^2 * n > ratio^2 * sum x^2, where sum x^2 adds
  // rounded squares in 16 lanes (index mod 16), folded 8, 4, 2, 1.
  bool (*peaked)(const float* x, int n, float ratio);
  void (*round_bf16)(const float* x, int k, int k_pad, uint16_t* out);
  // Rotates the halves of the first 2 * half elements: (a, b) -> (a c - b s, b c + a s).
  void (*rope)(float* head, const float* cos, const float* sin, int half);
  // out[i] = act(gate[i]) * up[i]
  void (*act_mul)(MlpAct act, const float* gate, const float* up, int n, float* out);
  void (*add)(float* x, const float* y, int n);  // x += y
  void (*scale)(float* x, float s, int n);       // x *= s
  void (*softcap)(float* x, float cap, int n);   // x = cap * tanh(x / cap)
  // Writes K and V of one token (all kv heads; k and v are [kv_heads][head_dim]). How many values
  // the format could not hold: fp16 saturates beyond 65504, fp8 beyond 448 or 57344; int8 and int4
  // store a head or group with a value that isn't finite as zeros. KIVI writes V's codes only, and
  // counts heads of K and V with a value beyond fp16; `kivi_keys` follows.
  int (*kv_write)(const KvLayerView& kv, int block, int slot, const float* k, const float* v);
  // KIVI: codes of the keys of a whole group, slots `slot` to slot + 31 of one head, from their
  // bf16.
  void (*kivi_keys)(const KvLayerView& kv, int block, const KvLayerView& recent, int recent_block,
                    int slot, int head);
  void (*attention)(const AttentionArgs& args);
  // Merges splits in order: o = sum_i exp(m_i - M) o_i / sum_i exp(m_i - M) l_i. Parts are
  // o[i * part_stride ...], m[i], l[i]; out is [head_dim]. No visible key at all gives zeros.
  void (*attention_merge)(const float* o, int64_t part_stride, const float* m, const float* l,
                          int parts, int head_dim, float* out);
  // Index of the largest (lowest index wins) and its value.
  int (*argmax)(const float* x, int n, float* best);
  // sum of exp((x - max) * inv_temperature): argument and exp in fp32, summed in fp64 in 16 lanes
  // (index mod 16), folded 8, 4, 2, 1.
  double (*sum_exp)(const float* x, int n, float max, float inv_temperature);
  // Rows of a packed weight back to fp32 (the tied embedding's row accessor; also the test oracle).
  void (*unpack_row)(const PackedWeight& w, int row, float* out);
  PeakLoops peaks;
};

// Tables, each null when this build lacks it.
const KernelTable* table_generic();
const KernelTable* table_avx2();
const KernelTable* table_avx512();
const KernelTable* table_avxvnni();
const KernelTable* table_avx512vnni();
const KernelTable* table_avx512bf16();
const KernelTable* table_neon();
const KernelTable* table_neon_dotprod();
const KernelTable* table_neon_i8mm();

// Every instruction set there is, by expected speed, best last; `table` is null when this build
// lacks it.
struct IsaChoice {
  const char* isa;
  const KernelTable* (*table)();
  bool (*cpu_has)();
};
constexpr int kIsaChoices = 9;
const IsaChoice* isa_choices();  // [kIsaChoices]

// The table for `isa` ("" = the best this machine has). On failure returns null and sets *error
// to one of three texts: the CPU lacks it, this build lacks it, or no such ISA (with the list).
const KernelTable* kernels_for(const char* isa, const char** error);

// Whether this processor has what the row needs.
bool can_run(const LinearKernel& row);

// The first row (fast rows first, of those that can run) that serves the weight with this
// activation format; null: none.
const LinearKernel* select_linear(const KernelTable& table, const PackedWeight& w, Act act);

}  // namespace octavo
