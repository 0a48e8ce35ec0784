// AVX-512 VNNI with vdpbf16ps: the rows of avx512vnni, and faster ones for bf16.
#include <stddef.h>
#include <stdint.h>

// gcc 12 warns about its own _mm512_undefined_ps() wherever an intrinsic is inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/table.h"

namespace octavo {

const KernelTable* table_avx512bf16() { return nullptr; }

}  // namespace octavo
