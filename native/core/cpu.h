// What this machine can run: the CPU's instructions and the operating system's leave to use them.
#pragma once

#include <string>

namespace octavo {

bool cpu_has_avx2();         // with FMA and F16C
bool cpu_has_avx512vnni();   // F, BW, VL, DQ, VNNI, and all of avx2
bool cpu_has_avx512bf16();   // avx512vnni and BF16
std::string cpu_features();  // every feature looked at that is present, separated by blanks

}  // namespace octavo
