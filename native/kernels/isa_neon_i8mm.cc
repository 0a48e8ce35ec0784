// NEON with sdot and usdot (FEAT_DotProd, FEAT_I8MM).
#include <stddef.h>
#include <stdint.h>

#include <arm_neon.h>

#include "kernels/table.h"

#define OCTAVO_ISA_NAME "neon_i8mm"

namespace octavo {
namespace {

#include "kernels/vec_neon.h"
#include "kernels/math.inl"
#include "kernels/elementwise.inl"
#include "kernels/linear_float.inl"
#include "kernels/linear_group.inl"
#include "kernels/linear_a8.inl"
#include "kernels/quads_neon.h"
#include "kernels/a8_dot_quads.inl"
#include "kernels/linear_a8_tiled.inl"
#include "kernels/linear_a16.inl"
#include "kernels/linear_a16_tiled.inl"
#include "kernels/linear_blocks_tiled.inl"
#include "kernels/kv_write.inl"
#include "kernels/kv_kivi.inl"
#include "kernels/kv_dot_generic.inl"
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

const KernelTable* table_neon_i8mm() { return &kTable; }

}  // namespace octavo
