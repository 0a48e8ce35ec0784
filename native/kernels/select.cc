// Which table a machine gets, and which row a weight.
#include <string>
#include <string_view>

#include "core/cpu.h"
#include "kernels/table.h"

namespace octavo {

// The build defines OCTAVO_HAS_<isa> for each that it compiles.
#ifndef OCTAVO_HAS_avx2
const KernelTable* table_avx2() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_avx512
const KernelTable* table_avx512() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_avxvnni
const KernelTable* table_avxvnni() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_avx512vnni
const KernelTable* table_avx512vnni() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_avx512bf16
const KernelTable* table_avx512bf16() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_neon
const KernelTable* table_neon() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_neon_dotprod
const KernelTable* table_neon_dotprod() { return nullptr; }
#endif
#ifndef OCTAVO_HAS_neon_i8mm
const KernelTable* table_neon_i8mm() { return nullptr; }
#endif

namespace {

constexpr IsaChoice kCandidates[kIsaChoices] = {
    {"generic", table_generic, [] { return true; }},
    {"avx2", table_avx2, cpu_has_avx2},
    {"avx512", table_avx512, cpu_has_avx512},
    {"avxvnni", table_avxvnni, cpu_has_avxvnni},
    {"avx512vnni", table_avx512vnni, cpu_has_avx512vnni},
    {"avx512bf16", table_avx512bf16, cpu_has_avx512bf16},
    {"neon", table_neon, cpu_has_neon},
    {"neon_dotprod", table_neon_dotprod, cpu_has_neon_dotprod},
    {"neon_i8mm", table_neon_i8mm, cpu_has_neon_i8mm},
};

const char* unknown_isa() {
  static const std::string text = [] {
    std::string all;
    for (const IsaChoice& c : kCandidates) all += std::string(all.empty() ? "" : ", ") + c.isa;
    return "no such ISA; there are: " + all;
  }();
  return text.c_str();
}

const KernelTable* best() {
  const KernelTable* table = table_generic();
  for (const IsaChoice& c : kCandidates) {
    if (c.table() && c.cpu_has()) table = c.table();
  }
  return table;
}

bool serves(const LinearKernel& row, const PackedWeight& w, Act act) {
  if (row.act != act || row.code != w.code) return false;
  if (!w.levels8 && !w.levels) return row.levels == Levels::kNone;
  if (row.levels == Levels::kAny) return true;
  return row.levels == Levels::kInt8 ? w.levels8 != nullptr
                                     : row.levels == Levels::kInt16 && w.levels16 != nullptr;
}

}  // namespace

bool can_run(const LinearKernel& row) {
  return row.needs == Needs::kNothing || cpu_has_avx512vbmi();
}

const IsaChoice* isa_choices() { return kCandidates; }

const KernelTable* kernels_for(const char* isa, const char** error) {
  if (*isa == '\0') return best();
  for (const IsaChoice& c : kCandidates) {
    if (std::string_view(c.isa) != isa) continue;
    if (!c.table()) {
      *error = "this build has no kernels for that ISA";
    } else if (!c.cpu_has()) {
      *error = "this CPU (or its operating system) lacks that ISA";
    } else {
      return c.table();
    }
    return nullptr;
  }
  *error = unknown_isa();
  return nullptr;
}

const LinearKernel* select_linear(const KernelTable& table, const PackedWeight& w, Act act) {
  const LinearKernel* found = nullptr;
  for (int i = 0; i < table.n_linear; ++i) {
    const LinearKernel& row = table.linear[i];
    if (can_run(row) && serves(row, w, act) && (!found || (row.fast && !found->fast))) found = &row;
  }
  return found;
}

}  // namespace octavo
