// octavo_check: every kernel of every instruction set against `generic`, bit for bit, on random
// shapes, between sentinels. No Python: it also runs under an emulator and a sanitizer.
//
//   octavo_check [--trap-avxvnni] [isa ...]     default: all that this machine has
//
// Rows marked isa_rounding are skipped (equality is per ISA there) and counted.
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check/avxvnni_trap.h"
#include "kernels/table.h"
#include "pack/pack.h"

namespace octavo::check {
namespace {

constexpr int kGuard = 256;  // sentinel bytes on each side

// A 64-byte aligned buffer between sentinels.
template <class T>
class Guarded {
 public:
  explicit Guarded(int n) : bytes_(static_cast<size_t>(n) * sizeof(T)), all_(bytes_ + 2 * kGuard) {
    raw_ = static_cast<uint8_t*>(::operator new(all_, std::align_val_t{64}));
    std::memset(raw_, kSentinel, all_);
  }
  ~Guarded() { ::operator delete(raw_, std::align_val_t{64}); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  T* data() { return reinterpret_cast<T*>(raw_ + kGuard); }
  bool same_as(const Guarded& other) const { return std::memcmp(raw_, other.raw_, all_) == 0; }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (raw_[i] != kSentinel || raw_[kGuard + bytes_ + i] != kSentinel) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kSentinel = 0xa5;
  size_t bytes_, all_;
  uint8_t* raw_;
};

using Random = std::mt19937;

int between(Random& random, int low, int high) {
  return low + static_cast<int>(random() % static_cast<uint32_t>(high - low + 1));
}
float normal(Random& random) { return std::normal_distribution<float>()(random); }

std::vector<float> floats(Random& random, int n, float size = 1) {
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = size * normal(random);
  return out;
}

struct Result {
  int cases = 0, skipped = 0;
  std::vector<std::string> wrong;
  void note(bool good, const std::string& what) {
    ++cases;
    if (!good) wrong.push_back(what);
  }
};

// ---- linear ----

struct Weights {
  PackPlan plan;
  std::vector<uint8_t> memory;
  uint8_t* data = nullptr;  // aligned within it
  PackedWeight view;
};

void random_levels(Random& random, Levels levels, PackPlan* plan) {
  const auto n = static_cast<size_t>(level_count(plan->code));
  if (levels == Levels::kInt8) {
    for (size_t i = 0; i < n; ++i)
      plan->levels8.push_back(static_cast<int8_t>(between(random, -128, 127)));
  } else if (levels != Levels::kNone) {
    plan->levels = floats(random, static_cast<int>(n));
  }
  if (levels != Levels::kInt16) return;
  std::vector<int> wide;
  for (size_t i = 0; i < n; ++i) wide.push_back(between(random, -32639, 32639));
  set_levels16(plan, wide, 0.001F);
}

bool two_level(const PackPlan& plan) {
  return plan.scaling != Scaling::kF16 && plan.scaling != Scaling::kF32;
}

// Scales of any kind, and offsets or zero points or neither.
void random_tables(Random& random, Levels levels, PackPlan* plan) {
  constexpr Scaling kScalings[] = {Scaling::kF16, Scaling::kF32, Scaling::kSub4, Scaling::kSub6,
                                   Scaling::kSub8};
  plan->scaling = kScalings[between(random, 0, 4)];
  if (two_level(*plan)) {
    plan->super_group = plan->group << between(random, 0, 3);
    plan->sub_bias = between(random, 0, 1) * 8;
  }
  plan->has_offset = between(random, 0, 2) == 1;
  if (levels != Levels::kNone) return;
  plan->has_zero = !plan->has_offset && between(random, 0, 1) == 1;
  if (!plan->has_zero) plan->zero = between(random, 0, 1 << (code_bits(plan->code) - 1));
}

std::vector<uint8_t> random_bytes(Random& random, int n, int most) {
  std::vector<uint8_t> bytes;
  for (int i = 0; i < n; ++i) bytes.push_back(static_cast<uint8_t>(between(random, 0, most)));
  return bytes;
}

// Blocks that are there, of each panel by chance, and zeros in the others.
void leave_out_blocks(Random& random, PackPlan* plan, std::vector<uint8_t>* codes) {
  const int units = plan->k / kUnit, row_bytes = (units + 7) / 8, percent = between(random, 0, 100);
  std::vector<uint8_t> mask(static_cast<size_t>(plan->n / kLanes * row_bytes));
  for (int panel = 0; panel < plan->n / kLanes; ++panel) {
    for (int u = 0; u < units; ++u) {
      if (between(random, 1, 100) <= percent) {
        mask[static_cast<size_t>(panel * row_bytes + u / 8)] |= static_cast<uint8_t>(1 << u % 8);
        continue;
      }
      for (int row = panel * kLanes; row < (panel + 1) * kLanes; ++row) {
        std::memset(codes->data() + row * plan->k + u * kUnit, plan->zero, kUnit);
      }
    }
  }
  if (is_block(plan->code)) set_blocks(plan, mask);
}

// Two of every four codes of a row become the zero of sparse codes.
void thin_out(Random& random, const PackPlan& plan, std::vector<uint8_t>* codes) {
  for (int row = 0; row < plan.n; ++row) {
    for (int k = 0; k < plan.k; k += 4) {
      const int first = between(random, 0, 3), second = first ^ between(random, 1, 3);
      for (const int c : {first, second}) {
        if (k + c >= plan.k) continue;
        const size_t at = static_cast<size_t>(row * plan.k + k + c);
        (*codes)[at] = static_cast<uint8_t>(sparse_zero(plan.code));
      }
    }
  }
}

void allocate(Weights* w) {
  w->memory.resize(static_cast<size_t>(packed_bytes(w->plan)) + 64);
  w->data = w->memory.data() + (64 - reinterpret_cast<uintptr_t>(w->memory.data()) % 64);
  clear_padding(w->plan, w->data);
  w->view = packed_view(w->plan, w->data);
}

// Also decides which blocks there are, and takes the memory.
AffineRows random_codes(Random& random, Weights* w) {
  PackPlan& plan = w->plan;
  AffineRows rows;
  rows.rows = plan.n;
  rows.k = plan.k;
  rows.group = plan.group;
  const int groups = plan.group >= plan.k ? 1 : plan.k / plan.group, top = code_bits(plan.code);
  for (int i = 0; i < plan.n * plan.k; ++i)
    rows.codes.push_back(static_cast<uint8_t>(between(random, 0, (1 << top) - 1)));
  if (is_sparse(plan.code)) thin_out(random, plan, &rows.codes);
  if (is_block(plan.code)) leave_out_blocks(random, &plan, &rows.codes);
  const int supers = two_level(plan) ? (plan.k + plan.super_group - 1) / plan.super_group : groups;
  const int most = plan.scaling == Scaling::kSub4 ? 15 : plan.scaling == Scaling::kSub6 ? 63 : 255;
  rows.scales = floats(random, plan.n * supers, 0.01F);
  if (plan.has_offset) rows.offsets = floats(random, plan.n * supers);
  if (plan.has_zero) rows.zeros = random_bytes(random, plan.n * groups, (1 << top) - 1);
  if (two_level(plan)) {
    rows.subs = random_bytes(random, plan.n * groups, most);
    rows.sub_offsets = random_bytes(random, plan.n * groups, most);
  }
  allocate(w);
  pack_affine(plan, w->data, 0, rows);
  return rows;
}

// A weight of blocks as it would be without: what a product by it must equal.
void pack_densely(const Weights& from, const AffineRows& rows, Weights* to) {
  to->plan = from.plan;
  to->plan.code = within_blocks(from.plan.code);
  allocate(to);
  pack_affine(to->plan, to->data, 0, rows);
}

// Several words of bits, now and then.
void whole_blocks(Random& random, PackPlan* plan) {
  plan->n = kLanes * between(random, 1, 6);
  if (between(random, 0, 3) == 0) plan->k *= 8;
  if (plan->k % kUnit != 0) plan->group = plan->k = kUnit * between(random, 1, 10);
}
void symmetric(PackPlan* plan) {
  plan->has_offset = plan->has_zero = false;
  plan->zero = sparse_zero(plan->code);
}

// `dense`: of blocks, the same values without.
std::unique_ptr<Weights> random_weights(Random& random, const LinearKernel& row, Weights* dense) {
  constexpr int kGroups[] = {16, 32, 64, 128, 1 << 20};
  auto w = std::make_unique<Weights>();
  PackPlan& plan = w->plan;
  plan.code = row.code;
  plan.n = between(random, 1, 100);
  plan.k = 128 * between(random, 1, 4);
  plan.group = kGroups[between(random, row.code == Code::kTrellis ? 1 : 0, 4)];
  if (plan.group > plan.k) {
    plan.group = plan.k = between(random, 1, 300);
  }
  if (is_block(row.code)) whole_blocks(random, &plan);
  if (has_codes(row.code)) {
    random_levels(random, row.levels, &plan);
    random_tables(random, row.levels, &plan);
    if (is_block(row.code)) symmetric(&plan);
    const AffineRows rows = random_codes(random, w.get());
    if (is_block(row.code)) pack_densely(*w, rows, dense);
  } else {
    allocate(w.get());
    pack_f32(plan, w->data, 0, plan.n, floats(random, plan.n * plan.k).data());
  }
  return w;
}

struct Rows {
  std::vector<int8_t> q;
  std::vector<float> scale, wide;
  std::vector<int32_t> sum;
  std::vector<uint16_t> bf16;
  ActView view;
};

// Prepared for `act`: a16 has two rows of bytes for each of activations.
std::unique_ptr<Rows> random_rows(Random& random, const PackedWeight& w, int m, Act act) {
  auto rows = std::make_unique<Rows>();
  const int k_pad = w.k_pad, group = a8_group_for(w.group, k_pad);
  const size_t size = static_cast<size_t>(m) * static_cast<size_t>(k_pad);
  const int parts = act == Act::kA16 ? 2 : 1;
  rows->q.resize(size * static_cast<size_t>(parts));
  rows->scale.resize(size / static_cast<size_t>(group));
  rows->sum.resize(rows->q.size() / 32);
  rows->bf16.resize(size);
  rows->wide.resize(size);
  const KernelTable& table = *table_generic();
  for (int r = 0; r < m; ++r) {
    const std::vector<float> x = floats(random, w.k);
    const int64_t at = static_cast<int64_t>(r) * k_pad;
    (parts == 2 ? table.quantize_a16 : table.quantize_a8)(
        x.data(), w.k, k_pad, group, rows->q.data() + parts * at, rows->scale.data() + at / group,
        rows->sum.data() + parts * at / 32);
    table.round_bf16(x.data(), w.k, k_pad, rows->bf16.data() + at);
    std::memcpy(rows->wide.data() + at, x.data(), x.size() * 4);
  }
  ActView& view = rows->view;
  view.k = w.k;
  view.k_pad = k_pad;
  view.a8_group = group;
  view.q = rows->q.data();
  view.scale = rows->scale.data();
  view.sum = rows->sum.data();
  view.bf16 = rows->bf16.data();
  view.f32 = rows->wide.data();
  return rows;
}

void check_linear(Random& random, const LinearKernel& row, Result* result) {
  if (row.isa_rounding) {
    ++result->skipped;
    return;
  }
  Weights dense;
  const auto w = random_weights(random, row, &dense);
  const PackedWeight& same = is_block(row.code) ? dense.view : w->view;
  const LinearKernel* plain = select_linear(*table_generic(), same, row.act);
  const int m = between(random, 1, 20), ldy = 16 * w->view.panels + 16;
  const auto x = random_rows(random, w->view, m, row.act);
  const int p0 = between(random, 0, w->view.panels - 1);
  const int p1 = between(random, p0 + 1, w->view.panels);
  Guarded<float> got(m * ldy), want(m * ldy);
  row.run(w->view, x->view, m, got.data(), ldy, p0, p1);
  plain->run(same, x->view, m, want.data(), ldy, p0, p1);
  result->note(got.intact() && got.same_as(want),
               std::string(row.name) + " n " + std::to_string(w->plan.n) + " k " +
                   std::to_string(w->plan.k) + " group " + std::to_string(w->plan.group) + " m " +
                   std::to_string(m));
}

// ---- rows ----

template <class T, class Run>
void compare(const KernelTable& table, const char* name, int n, const std::vector<T>& start,
             Run run, Result* result) {
  Guarded<T> got(n), want(n);
  if (!start.empty()) {
    std::memcpy(got.data(), start.data(), start.size() * sizeof(T));
    std::memcpy(want.data(), start.data(), start.size() * sizeof(T));
  }
  run(table, got.data());
  run(*table_generic(), want.data());
  result->note(got.intact() && got.same_as(want), std::string(name) + " n " + std::to_string(n));
}

void check_rows(Random& random, const KernelTable& table, Result* result) {
  const int n = between(random, 1, 300), half = between(random, 1, 80);
  const std::vector<float> x = floats(random, n, 5), y = floats(random, n, 5), none;
  const std::vector<float> head = floats(random, 2 * half), turn = floats(random, 2 * half);
  using Table = const KernelTable&;
  compare(
      table, "rms_norm", n, none,
      [&](Table t, float* to) { t.rms_norm(x.data(), y.data(), 1e-5F, n, to); }, result);
  for (const MlpAct act : {MlpAct::kSilu, MlpAct::kGeluTanh}) {
    compare(
        table, "act_mul", n, none,
        [&](Table t, float* to) { t.act_mul(act, x.data(), y.data(), n, to); }, result);
  }
  compare(table, "add", n, x, [&](Table t, float* to) { t.add(to, y.data(), n); }, result);
  compare(table, "scale", n, x, [&](Table t, float* to) { t.scale(to, 1.7F, n); }, result);
  compare(table, "softcap", n, x, [&](Table t, float* to) { t.softcap(to, 3, n); }, result);
  compare(
      table, "rope", 2 * half, head,
      [&](Table t, float* to) { t.rope(to, turn.data(), turn.data() + half, half); }, result);
  compare(
      table, "argmax", 2, none,
      [&](Table t, float* to) { to[1] = static_cast<float>(t.argmax(x.data(), n, to)); }, result);
  compare(
      table, "sum_exp", 1, std::vector<double>(),
      [&](Table t, double* to) { *to = t.sum_exp(x.data(), n, 9, 0.7F); }, result);
  const int k_pad = (n + 63) / 64 * 64;
  compare(
      table, "round_bf16", k_pad, std::vector<uint16_t>(),
      [&](Table t, uint16_t* to) { t.round_bf16(x.data(), n, k_pad, to); }, result);
  for (const int group : {32, 64}) {
    std::vector<float> scale(static_cast<size_t>(k_pad));
    std::vector<int32_t> sum(static_cast<size_t>(k_pad));
    compare(
        table, "quantize_a8", k_pad, std::vector<int8_t>(),
        [&](Table t, int8_t* to) {
          t.quantize_a8(x.data(), n, k_pad, group, to, scale.data(), sum.data());
        },
        result);
    compare(
        table, "quantize_a16", 2 * k_pad, std::vector<int8_t>(),
        [&](Table t, int8_t* to) {
          t.quantize_a16(x.data(), n, k_pad, group, to, scale.data(), sum.data());
        },
        result);
  }
}

void check_unpack(Random& random, const KernelTable& table, const LinearKernel& row,
                  Result* result) {
  Weights dense;
  const auto w = random_weights(random, row, &dense);
  const int at = between(random, 0, w->plan.n - 1);
  compare(
      table, "unpack_row", w->plan.k, std::vector<float>(),
      [&](const KernelTable& t, float* to) { t.unpack_row(w->view, at, to); }, result);
}

// ---- one instruction set ----

Result check_table(const KernelTable& table, int rounds) {
  Result result;
  Random random(20240229);
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < table.n_linear; ++i) {
      if (!can_run(table.linear[i])) continue;
      check_linear(random, table.linear[i], &result);
      check_unpack(random, table, table.linear[i], &result);
    }
    check_rows(random, table, &result);
  }
  return result;
}

bool report(const IsaChoice& choice, bool trapped) {
  const Result result = check_table(*choice.table(), 3);
  std::printf("%-13s %5d cases, %zu wrong, %d skipped (they round in their own way)%s\n",
              choice.isa, result.cases, result.wrong.size(), result.skipped,
              trapped ? ", vpdpbusd trapped and emulated" : "");
  for (const std::string& what : result.wrong) std::printf("  WRONG: %s\n", what.c_str());
  return result.wrong.empty();
}

int run(bool trap, const std::vector<std::string>& wanted) {
  int done = 0;
  bool good = true;
  for (int i = 0; i < kIsaChoices; ++i) {
    const IsaChoice& choice = isa_choices()[i];
    bool asked = wanted.empty();
    for (const std::string& name : wanted) asked = asked || name == choice.isa;
    const bool trapped =
        trap && std::string(choice.isa) == "avxvnni" && !choice.cpu_has() && trap_avxvnni();
    if (!asked || !choice.table() || !(choice.cpu_has() || trapped)) continue;
    good = report(choice, trapped) && good;
    ++done;
  }
  if (done == 0) std::printf("nothing to check: this machine or build has none of these\n");
  return good && done > 0 ? 0 : 1;
}

}  // namespace
}  // namespace octavo::check

int main(int argc, char** argv) {
  bool trap = false;
  std::vector<std::string> isas;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--trap-avxvnni") {
      trap = true;
    } else {
      isas.emplace_back(argv[i]);
    }
  }
  return octavo::check::run(trap, isas);
}
