// AVX-512 F, BW, VL, DQ and VNNI.
#include <stddef.h>
#include <stdint.h>

// gcc 12 warns about its own _mm512_undefined_ps() wherever an intrinsic is inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/table.h"

#define OCTAVO_ISA_NAME "avx512vnni"

namespace octavo {
namespace {

#include "kernels/vec_avx512.h"
#include "kernels/math.inl"
#include "kernels/elementwise.inl"
#include "kernels/linear_float.inl"
#include "kernels/linear_group.inl"
#include "kernels/linear_a8.inl"
#include "kernels/quads_avx512vnni.h"
#include "kernels/a8_codes.inl"
#include "kernels/sparse_avx512.h"
#include "kernels/a8_dot_quads.inl"
#include "kernels/linear_a8_tiled.inl"
#include "kernels/linear_a16.inl"
#include "kernels/linear_a16_tiled.inl"
#include "kernels/linear_blocks_tiled.inl"
#include "kernels/trellis_avx512vbmi.inl"
#include "kernels/kv_write.inl"
#include "kernels/kv_kivi.inl"
#include "kernels/kv_dot_vnni.inl"
#include "kernels/attention.inl"
#include "kernels/attention_kivi.inl"
#include "kernels/peaks.inl"
#include "kernels/rows.inl"

const LinearKernel kRows[] = {OCTAVO_VBMI_ROWS,
                              OCTAVO_TILED_A8_ROWS,
                              OCTAVO_TILED_A16_ROWS,
                              OCTAVO_SPARSE_ROWS(OCTAVO_TILED_A8_ROW),
                              OCTAVO_SPARSE_ROWS(OCTAVO_TILED_A16_ROW),
                              OCTAVO_BLOCK_ROWS,
                              OCTAVO_FLOAT_ROWS(true)};
const KernelTable kTable = OCTAVO_TABLE(kRows);

}  // namespace

const KernelTable* table_avx512vnni() { return &kTable; }

}  // namespace octavo
