#include "core/cpu.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace octavo {
namespace {

struct Features {
  bool fma = false, f16c = false, avx2 = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false;
  bool avx512vnni = false, avx512vbmi = false, avx512bf16 = false, avxvnni = false;
  bool asimd = false, asimddp = false, i8mm = false, bf16 = false;
};

#if defined(__x86_64__)

struct Leaf {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Leaf leaf(uint32_t number, uint32_t sub) {
  Leaf l;
  if (__get_cpuid_count(number, sub, &l.a, &l.b, &l.c, &l.d) == 0) return Leaf{};
  return l;
}

bool bit(uint32_t word, int n) { return (word >> n) & 1u; }

// XCR0: the register states that the operating system saves.
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

Features detect() {
  Features f;
  const Leaf one = leaf(1, 0), seven = leaf(7, 0), seven1 = leaf(7, 1);
  const bool osxsave = bit(one.c, 27);
  const uint64_t states = osxsave ? saved_states() : 0;
  const bool ymm = (states & 0x06u) == 0x06u, zmm = (states & 0xe6u) == 0xe6u;
  f.fma = ymm && bit(one.c, 12);
  f.f16c = ymm && bit(one.c, 29);
  f.avx2 = ymm && bit(seven.b, 5);
  f.avx512f = zmm && bit(seven.b, 16);
  f.avx512dq = zmm && bit(seven.b, 17);
  f.avx512bw = zmm && bit(seven.b, 30);
  f.avx512vl = zmm && bit(seven.b, 31);
  f.avx512vnni = zmm && bit(seven.c, 11);
  f.avx512vbmi = zmm && bit(seven.c, 1);
  f.avxvnni = ymm && bit(seven1.a, 4);
  f.avx512bf16 = zmm && bit(seven1.a, 5);
  return f;
}

#elif defined(__aarch64__)

Features detect() {
  Features f;
  f.asimd = true;  // ABI of the platform
  f.asimddp = (getauxval(AT_HWCAP) >> 20) & 1ul;
  f.i8mm = (getauxval(AT_HWCAP2) >> 13) & 1ul;
  f.bf16 = (getauxval(AT_HWCAP2) >> 14) & 1ul;
  return f;
}

#else

Features detect() { return {}; }

#endif

const Features& features() {
  static const Features found = detect();
  return found;
}

}  // namespace

bool cpu_has_avx2() { return features().avx2 && features().fma && features().f16c; }

bool cpu_has_avxvnni() { return cpu_has_avx2() && features().avxvnni; }

bool cpu_has_avx512() {
  const Features& f = features();
  return cpu_has_avx2() && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
}

bool cpu_has_avx512vnni() { return cpu_has_avx512() && features().avx512vnni; }

bool cpu_has_avx512vbmi() { return cpu_has_avx512vnni() && features().avx512vbmi; }

bool cpu_has_avx512bf16() { return cpu_has_avx512vnni() && features().avx512bf16; }

bool cpu_has_neon() { return features().asimd; }

bool cpu_has_neon_dotprod() { return features().asimd && features().asimddp; }

bool cpu_has_neon_i8mm() { return cpu_has_neon_dotprod() && features().i8mm; }

std::string cpu_features() {
  const Features& f = features();
  const struct {
    bool present;
    const char* name;
  } all[] = {{f.avx2, "avx2"},
             {f.fma, "fma"},
             {f.f16c, "f16c"},
             {f.avxvnni, "avx_vnni"},
             {f.avx512f, "avx512f"},
             {f.avx512bw, "avx512bw"},
             {f.avx512vl, "avx512vl"},
             {f.avx512dq, "avx512dq"},
             {f.avx512vnni, "avx512_vnni"},
             {f.avx512vbmi, "avx512vbmi"},
             {f.avx512bf16, "avx512_bf16"},
             {f.asimd, "asimd"},
             {f.asimddp, "asimddp"},
             {f.i8mm, "i8mm"},
             {f.bf16, "bf16"}};
  std::string out;
  for (const auto& one : all) {
    if (!one.present) continue;
    if (!out.empty()) out += ' ';
    out += one.name;
  }
  return out;
}

}  // namespace octavo
