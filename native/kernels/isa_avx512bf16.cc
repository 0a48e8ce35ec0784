// AVX-512 VNNI with vdpbf16ps: the rows of avx512vnni, and a faster one for bf16 weights.
#include <stddef.h>
#include <stdint.h>

// gcc 12 warns about its own _mm512_undefined_ps() wherever an intrinsic is inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/table.h"

namespace octavo {
namespace {

#include "kernels/linear_bf16.inl"
#include "kernels/peaks.inl"

constexpr int kMaxRows = 64;

struct Extended {
  LinearKernel rows[kMaxRows];
  KernelTable table;
};

Extended extend(const KernelTable& base) {
  Extended e = {};
  e.table = base;
  e.table.isa = "avx512bf16";
  e.table.peaks = kPeakLoops;
  e.rows[0] = {"linear_abf16_bf16_avx512bf16",
               Act::kBf16,
               Code::kBf16,
               Levels::kNone,
               true,
               true,
               linear_bf16};
  e.table.n_linear = 1 + base.n_linear;
  for (int i = 0; i < base.n_linear && i + 1 < kMaxRows; ++i) e.rows[i + 1] = base.linear[i];
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
