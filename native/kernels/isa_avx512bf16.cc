// AVX-512 VNNI with vdpbf16ps: the rows of avx512vnni, and faster ones of abf16.
#include <stddef.h>
#include <stdint.h>

// gcc 12 warns about its own _mm512_undefined_ps() wherever an intrinsic is inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/table.h"

namespace octavo {
namespace {

#include "kernels/vec_avx512.h"
#include "kernels/math.inl"
#include "kernels/linear_float.inl"
#include "kernels/linear_group.inl"
#include "kernels/linear_bf16.inl"
#include "kernels/linear_group_bf16.inl"
#include "kernels/peaks.inl"

#define OCTAVO_PAIR_ROW(what, code, levels) \
  {"linear_abf16_" what "_avx512bf16",      \
   Act::kBf16,                              \
   code,                                    \
   levels,                                  \
   true,                                    \
   true,                                    \
   linear_group_bf16<code>}

const LinearKernel kOwn[] = {
    {"linear_abf16_bf16_avx512bf16", Act::kBf16, Code::kBf16, Levels::kNone, true, true,
     linear_bf16},
    OCTAVO_PAIR_ROW("w2", Code::kTwo, Levels::kNone),
    OCTAVO_PAIR_ROW("w3", Code::kThree, Levels::kNone),
    OCTAVO_PAIR_ROW("w4", Code::kNibble, Levels::kNone),
    OCTAVO_PAIR_ROW("w5", Code::kFive, Levels::kNone),
    OCTAVO_PAIR_ROW("w6", Code::kSix, Levels::kNone),
    OCTAVO_PAIR_ROW("w8", Code::kByte, Levels::kNone),
    OCTAVO_PAIR_ROW("lut4", Code::kNibble, Levels::kInt8),
};
constexpr int kMaxRows = 128;

struct Extended {
  LinearKernel rows[kMaxRows];
  KernelTable table;
};

// Own rows first: of two fast ones the first is taken.
Extended extend(const KernelTable& base) {
  Extended e = {};
  e.table = base;
  e.table.isa = "avx512bf16";
  e.table.n_linear = 0;
  for (const LinearKernel& row : kOwn) e.rows[e.table.n_linear++] = row;
  for (int i = 0; i < base.n_linear && e.table.n_linear < kMaxRows; ++i) {
    e.rows[e.table.n_linear++] = base.linear[i];
  }
  return e;
}

}  // namespace

const KernelTable* table_avx512bf16() {
  static const Extended extended = extend(*table_avx512vnni());
  static const KernelTable table = [] {
    KernelTable t = extended.table;
    t.linear = extended.rows;
    return t;
  }();
  return &table;
}

}  // namespace octavo
