// Which table a machine gets, and which row a weight.
#include <string_view>

#include "core/cpu.h"
#include "kernels/table.h"

namespace octavo {

#if !defined(__x86_64__)
const KernelTable* table_avx2() { return nullptr; }
const KernelTable* table_avx512vnni() { return nullptr; }
const KernelTable* table_avx512bf16() { return nullptr; }
#endif

namespace {

struct Candidate {
  std::string_view isa;
  const KernelTable* (*table)();
  bool (*cpu_has)();
};

constexpr Candidate kCandidates[] = {
    {"generic", table_generic, [] { return true; }},
    {"avx2", table_avx2, cpu_has_avx2},
    {"avx512vnni", table_avx512vnni, cpu_has_avx512vnni},
    {"avx512bf16", table_avx512bf16, cpu_has_avx512bf16},
};

const KernelTable* best() {
  const KernelTable* table = table_generic();
  for (const Candidate& c : kCandidates) {
    if (c.table() && c.cpu_has()) table = c.table();
  }
  return table;
}

bool serves(const LinearKernel& row, const PackedWeight& w, Act act) {
  if (row.act != act || row.code != w.code) return false;
  if (!w.levels8 && !w.levels) return row.levels == Levels::kNone;
  return row.levels == Levels::kAny || (w.levels8 && row.levels == Levels::kInt8);
}

}  // namespace

const KernelTable* kernels_for(const char* isa, const char** error) {
  if (*isa == '\0') return best();
  for (const Candidate& c : kCandidates) {
    if (c.isa != isa) continue;
    if (!c.table()) {
      *error = "this build has no kernels for that ISA";
    } else if (!c.cpu_has()) {
      *error = "this CPU (or its operating system) lacks that ISA";
    } else {
      return c.table();
    }
    return nullptr;
  }
  *error = "no such ISA; there are: generic, avx2, avx512vnni, avx512bf16";
  return nullptr;
}

const LinearKernel* select_linear(const KernelTable& table, const PackedWeight& w, Act act) {
  const LinearKernel* found = nullptr;
  for (int i = 0; i < table.n_linear; ++i) {
    const LinearKernel& row = table.linear[i];
    if (serves(row, w, act) && (!found || (row.fast && !found->fast))) found = &row;
  }
  return found;
}

}  // namespace octavo
