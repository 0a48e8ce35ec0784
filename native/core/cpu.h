// What this machine can run: the CPU's instructions and the operating system's leave to use them.
#pragma once

#include <string>

namespace octavo {

bool cpu_has_avx2();        // with FMA and F16C
bool cpu_has_avxvnni();     // avx2 and AVX-VNNI
bool cpu_has_avx512();      // F, BW, VL, DQ, and all of avx2
bool cpu_has_avx512vnni();  // avx512 and VNNI
bool cpu_has_avx512bf16();  // avx512vnni and BF16
bool cpu_has_avx512vbmi();  // avx512vnni and VBMI
bool cpu_has_neon();        // every aarch64
bool cpu_has_neon_dotprod();
bool cpu_has_neon_i8mm();    // with dotprod
std::string cpu_features();  // every feature looked at that is present, separated by blanks

}  // namespace octavo
