// Any machine: plain C++, and the meaning that the other ISAs must reproduce bit for bit.
#include <stddef.h>
#include <stdint.h>

#include "kernels/table.h"

#define OCTAVO_ISA_NAME "generic"
#define OCTAVO_INLINE \
  inline  // plain C++ gains nothing from being unrolled, and compiles for minutes

namespace octavo {
namespace {

#include "kernels/vec_generic.h"
#include "kernels/math.inl"
#include "kernels/elementwise.inl"
#include "kernels/linear_float.inl"
#include "kernels/linear_group.inl"
#include "kernels/linear_a8.inl"
#include "kernels/linear_a16.inl"
#include "kernels/kv_write.inl"
#include "kernels/kv_kivi.inl"
#include "kernels/kv_dot_generic.inl"
#include "kernels/attention.inl"
#include "kernels/attention_kivi.inl"
#include "kernels/peaks.inl"
#include "kernels/rows.inl"

const LinearKernel kRows[] = {OCTAVO_PLAIN_A8_ROWS,
                              OCTAVO_PLAIN_A16_ROWS,
                              OCTAVO_SPARSE_ROWS(OCTAVO_PLAIN_A8_ROW),
                              OCTAVO_SPARSE_ROWS(OCTAVO_PLAIN_A16_ROW),
                              OCTAVO_BLOCK_ROWS_OF(OCTAVO_PLAIN_A8_ROW),
                              OCTAVO_BLOCK_ROWS_OF(OCTAVO_PLAIN_A16_ROW),
                              OCTAVO_FLOAT_ROWS(false)};
const KernelTable kTable = OCTAVO_TABLE(kRows);

}  // namespace

const KernelTable* table_generic() { return &kTable; }

}  // namespace octavo
