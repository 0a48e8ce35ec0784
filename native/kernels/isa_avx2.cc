// AVX2 with FMA and F16C.
#include <stddef.h>
#include <stdint.h>

#include <immintrin.h>

#include "kernels/table.h"

#define OCTAVO_ISA_NAME "avx2"

namespace octavo {
namespace {

#include "kernels/vec_avx2.h"
#include "kernels/math.inl"
#include "kernels/elementwise.inl"
#include "kernels/linear_float.inl"
#include "kernels/linear_group.inl"
#include "kernels/linear_a8.inl"
#include "kernels/pairs_avx2.h"
#include "kernels/a8_dot_pairs.inl"
#include "kernels/linear_a8_tiled.inl"
#include "kernels/linear_a16.inl"
#include "kernels/linear_a16_tiled.inl"
#include "kernels/linear_blocks_tiled.inl"
#include "kernels/kv_write.inl"
#include "kernels/kv_kivi.inl"
#include "kernels/kv_dot_avx2.inl"
#include "kernels/attention.inl"
#include "kernels/attention_kivi.inl"
#include "kernels/peaks.inl"
#include "kernels/rows.inl"

const LinearKernel kRows[] = {OCTAVO_TILED_A8_ROWS,
                              OCTAVO_TILED_A16_ROWS,
                              OCTAVO_SPARSE_ROWS(OCTAVO_PLAIN_A8_ROW),
                              OCTAVO_SPARSE_ROWS(OCTAVO_PLAIN_A16_ROW),
                              OCTAVO_BLOCK_ROWS,
                              OCTAVO_FLOAT_ROWS(true)};
const KernelTable kTable = OCTAVO_TABLE(kRows);

}  // namespace

const KernelTable* table_avx2() { return &kTable; }

}  // namespace octavo
