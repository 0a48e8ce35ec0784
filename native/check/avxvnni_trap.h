// vpdpbusd in VEX encoding on an x86 processor that lacks AVX-VNNI: the illegal instruction is
// caught, computed on the saved registers, and stepped over. So the very bytes that the compiler
// emitted for `avxvnni` run, one product at a time.
#pragma once

namespace octavo::check {

bool trap_avxvnni();  // false: this platform has no such trap

}  // namespace octavo::check
