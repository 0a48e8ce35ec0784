// `octavo._native.testing`: pack and kernels, one call each, for tests and `octavo doctor`. Buffers
// are padded with sentinels; a call that writes outside its range throws.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bind/testing.h"
#include "codecs/half.h"
#include "core/cpu.h"
#include "core/types.h"
#include "kernels/table.h"
#include "pack/pack.h"

namespace nb = nanobind;

void bind_testing(nb::module_& m);

namespace {

using namespace octavo::testing;
using octavo::Act;
using octavo::ActView;
using octavo::AffineRows;
using octavo::Code;
using octavo::KernelTable;
using octavo::PackedWeight;
using octavo::PackPlan;
using octavo::Scaling;

// In the order of Code.
constexpr const char* kCodeNames[] = {
    "two",  "three", "nibble",        "five",        "six",     "byte",         "f16",
    "bf16", "f32",   "sparse_nibble", "sparse_byte", "trellis", "block_nibble", "block_byte"};

Code code_of(const std::string& name) {
  for (size_t i = 0; i < std::size(kCodeNames); ++i) {
    if (name == kCodeNames[i]) return static_cast<Code>(i);
  }
  throw std::invalid_argument("no such code: " + name);
}

Act act_of(const std::string& name) {
  if (name == "a8") return Act::kA8;
  if (name == "a16") return Act::kA16;
  if (name == "abf16") return Act::kBf16;
  if (name == "a32") return Act::kF32;
  throw std::invalid_argument("no such activation format: " + name);
}

template <class T>
std::vector<T> vector_of(const std::optional<In<T>>& a) {
  return a ? std::vector<T>(a->data(), a->data() + a->size()) : std::vector<T>();
}

// A packed weight with its memory.
struct Packed {
  PackPlan plan;
  std::unique_ptr<Guarded<uint8_t>> data;
  PackedWeight view;

  explicit Packed(PackPlan p) : plan(std::move(p)) {
    data = std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(octavo::packed_bytes(plan)));
    octavo::clear_padding(plan, data->data());
    view = octavo::packed_view(plan, data->data());
  }
};

Scaling scaling_of(const std::string& name) {
  constexpr std::pair<const char*, Scaling> kNames[] = {{"f16", Scaling::kF16},
                                                        {"f32", Scaling::kF32},
                                                        {"sub4", Scaling::kSub4},
                                                        {"sub6", Scaling::kSub6},
                                                        {"sub8", Scaling::kSub8}};
  for (const auto& [known, scaling] : kNames) {
    if (name == known) return scaling;
  }
  throw std::invalid_argument("no such scaling: " + name);
}

// extra: "", "offset" or "zero"; supers: inputs of a super-group, and sub_bias.
std::unique_ptr<Packed> make_packed(int n, int k, const std::string& code, int group, int zero,
                                    const std::string& scaling, const std::string& extra,
                                    std::tuple<int, int> supers,
                                    const std::optional<In<uint8_t>>& blocks) {
  PackPlan plan;
  plan.n = n;
  plan.k = k;
  plan.code = code_of(code);
  plan.group = group;
  plan.zero = zero;
  plan.scaling = scaling_of(scaling);
  plan.has_offset = extra == "offset";
  plan.has_zero = extra == "zero";
  std::tie(plan.super_group, plan.sub_bias) = supers;
  if (blocks) octavo::set_blocks(&plan, vector_of(blocks));
  return std::make_unique<Packed>(std::move(plan));
}

// Gives a weight its codebook: integers, or floats with their levels of 16 bits.
void set_levels8(Packed& w, In<int8_t> levels) {
  w.plan.levels8.assign(levels.data(), levels.data() + levels.size());
  w.view = octavo::packed_view(w.plan, w.data->data());
}
void set_levels(Packed& w, In<float> levels, const std::vector<int>& levels16, float step) {
  w.plan.levels.assign(levels.data(), levels.data() + levels.size());
  if (!levels16.empty()) octavo::set_levels16(&w.plan, levels16, step);
  w.view = octavo::packed_view(w.plan, w.data->data());
}

std::unique_ptr<Packed> gguf_packed(const std::string& type, int n, int k) {
  PackPlan plan;
  if (!octavo::gguf_plan(type, n, k, &plan)) throw std::invalid_argument("unknown type " + type);
  return std::make_unique<Packed>(std::move(plan));
}

void pack_affine(Packed& w, int row0, In<uint8_t> codes, In<float> scales,
                 std::optional<In<float>> offsets, std::optional<In<uint8_t>> zeros,
                 std::optional<In<uint8_t>> subs, std::optional<In<uint8_t>> sub_offsets) {
  AffineRows rows;
  rows.rows = static_cast<int>(codes.shape(0));
  rows.k = static_cast<int>(codes.shape(1));
  rows.codes.assign(codes.data(), codes.data() + codes.size());
  rows.scales.assign(scales.data(), scales.data() + scales.size());
  rows.offsets = vector_of(offsets);
  rows.zeros = vector_of(zeros);
  rows.subs = vector_of(subs);
  rows.sub_offsets = vector_of(sub_offsets);
  octavo::pack_affine(w.plan, w.data->data(), row0, rows);
}

void pack_f32(Packed& w, int row0, In<float> values) {
  octavo::pack_f32(w.plan, w.data->data(), row0, static_cast<int>(values.shape(0)), values.data());
}

void pack_gguf(Packed& w, int row0, const std::string& type, In<uint8_t> data) {
  AffineRows rows;
  if (!octavo::gguf_affine(type, data.data(), static_cast<int>(data.shape(0)), w.plan.k, &rows)) {
    throw std::invalid_argument("unknown type " + type);
  }
  octavo::pack_affine(w.plan, w.data->data(), row0, rows);
}

Out<float> unpack(Packed& w, const std::string& isa) {
  const KernelTable& table = table_of(isa);
  const size_t n = static_cast<size_t>(w.plan.n), k = static_cast<size_t>(w.plan.k);
  std::vector<float> all;
  for (size_t r = 0; r < n; ++r) {
    Guarded<float> row(k);
    table.unpack_row(w.view, static_cast<int>(r), row.data());
    const std::vector<float> values = row.take();
    all.insert(all.end(), values.begin(), values.end());
  }
  return give(std::move(all), {n, k});
}

nb::bytes raw_bytes(Packed& w) {
  const std::vector<uint8_t> all = w.data->take();
  return nb::bytes(reinterpret_cast<const char*>(all.data()), all.size());
}

// Rows of activations in the three formats, as exec prepares them.
struct Activations {
  std::vector<int8_t> q, q16;
  std::vector<float> scale, scale16, wide;
  std::vector<int32_t> sum, sum16;
  std::vector<uint16_t> bf16;
  ActView view;

  Activations(const KernelTable& table, const PackedWeight& w, const In<float>& x, Act act) {
    const int m = static_cast<int>(x.shape(0)), k = w.k, k_pad = w.k_pad;
    const int group = octavo::a8_group_for(w.group, k_pad);
    const size_t size = static_cast<size_t>(m) * static_cast<size_t>(k_pad);
    q.resize(size);
    scale.resize(size / static_cast<size_t>(group));
    sum.resize(size / 32);
    q16.resize(2 * size);
    scale16.resize(scale.size());
    sum16.resize(2 * sum.size());
    bf16.resize(size);
    wide.resize(size);
    for (int r = 0; r < m; ++r) {
      const float* row = x.data() + static_cast<int64_t>(r) * k;
      const int64_t at = static_cast<int64_t>(r) * k_pad;
      table.quantize_a8(row, k, k_pad, group, q.data() + at, scale.data() + at / group,
                        sum.data() + at / 32);
      table.quantize_a16(row, k, k_pad, group, q16.data() + 2 * at, scale16.data() + at / group,
                         sum16.data() + at / 16);
      table.round_bf16(row, k, k_pad, bf16.data() + at);
      std::memcpy(wide.data() + at, row, static_cast<size_t>(k) * 4);
    }
    view.k = k;
    view.k_pad = k_pad;
    view.a8_group = group;
    const bool two = act == Act::kA16;
    view.q = (two ? q16 : q).data();
    view.scale = (two ? scale16 : scale).data();
    view.sum = (two ? sum16 : sum).data();
    view.bf16 = bf16.data();
    view.f32 = wide.data();
  }
};

// x [m, k] through the named kernel for panels [p0, p1): y [m, 16 (p1 - p0)]. What lies outside the
// panels must stay untouched. With `rows` (ascending), only these are written: y [len(rows), ...].
Out<float> linear(const std::string& isa, const std::string& kernel, Packed& w, In<float> x, int p0,
                  int p1, std::optional<In<int32_t>> rows) {
  const KernelTable& table = table_of(isa);
  if (static_cast<int>(x.shape(1)) != w.plan.k) throw std::invalid_argument("x has another width");
  if (p0 < 0 || p1 > w.view.panels || p0 > p1) throw std::invalid_argument("no such panels");
  const size_t m = x.shape(0), ldy = static_cast<size_t>(w.view.panels) * 16 + 16;
  Guarded<float> y(m * ldy);
  for (int i = 0; i < table.n_linear; ++i) {
    const octavo::LinearKernel& row = table.linear[i];
    if (kernel != row.name) continue;
    Activations act(table, w.view, x, row.act);
    std::vector<bool> written(m, !rows);
    if (rows) {
      act.view.rows = rows->data();
      for (size_t r = 0; r < rows->size(); ++r)
        written.at(static_cast<size_t>(rows->data()[r])) = true;
    }
    const int count = static_cast<int>(rows ? rows->size() : m);
    row.run(w.view, act.view, count, y.data(), static_cast<int64_t>(ldy), p0, p1);
    const size_t first = static_cast<size_t>(p0) * 16, last = static_cast<size_t>(p1) * 16;
    const std::vector<float> all = y.take();
    std::vector<float> out;
    for (size_t r = 0; r < m; ++r) {
      for (size_t c = 0; c < ldy; ++c) {
        if (written[r] && c >= first && c < last) {
          out.push_back(all[r * ldy + c]);
        } else if (!y.untouched(r * ldy + c)) {
          throw std::runtime_error("wrote outside its panels");
        }
      }
    }
    return give(std::move(out), {static_cast<size_t>(count), last - first});
  }
  throw std::invalid_argument("no such kernel: " + kernel);
}

std::string selected(const std::string& isa, Packed& w, const std::string& act) {
  const octavo::LinearKernel* row = octavo::select_linear(table_of(isa), w.view, act_of(act));
  return row ? row->name : "";
}

using RowTuple = std::tuple<std::string, std::string, std::string, bool, bool, bool>;

std::vector<RowTuple> rows(const std::string& isa) {
  const KernelTable& table = table_of(isa);
  constexpr const char* kActs[] = {"a8", "abf16", "a32", "a16"};
  std::vector<RowTuple> out;
  for (int i = 0; i < table.n_linear; ++i) {
    const octavo::LinearKernel& r = table.linear[i];
    if (!can_run(r)) continue;
    out.emplace_back(r.name, kActs[static_cast<int>(r.act)], kCodeNames[static_cast<int>(r.code)],
                     r.levels != octavo::Levels::kNone, r.fast, r.isa_rounding);
  }
  return out;
}

std::vector<std::string> isas() {
  std::vector<std::string> out;
  for (int i = 0; i < octavo::kIsaChoices; ++i) {
    const octavo::IsaChoice& choice = octavo::isa_choices()[i];
    if (choice.table() && choice.cpu_has()) out.emplace_back(choice.isa);
  }
  return out;
}

// ---- one row ----

Out<float> rms_norm(const std::string& isa, In<float> x, std::optional<In<float>> w, float eps) {
  Guarded<float> out(x.size());
  table_of(isa).rms_norm(x.data(), w ? w->data() : nullptr, eps, static_cast<int>(x.size()),
                         out.data());
  return give(out.take(), {x.size()});
}

std::tuple<Out<int8_t>, Out<float>, Out<int32_t>> quantize_a8(const std::string& isa, In<float> x,
                                                              int k_pad, int group) {
  const size_t n = static_cast<size_t>(k_pad), groups = static_cast<size_t>(k_pad / group);
  Guarded<int8_t> q(n);
  Guarded<float> scale(groups);
  Guarded<int32_t> sum(n / 32);
  table_of(isa).quantize_a8(x.data(), static_cast<int>(x.size()), k_pad, group, q.data(),
                            scale.data(), sum.data());
  return {give(q.take(), {n}), give(scale.take(), {groups}), give(sum.take(), {n / 32})};
}

std::tuple<Out<int8_t>, Out<float>, Out<int32_t>> quantize_int8(const std::string& isa, In<float> x,
                                                                int k_pad, int group, float amax) {
  const size_t n = static_cast<size_t>(k_pad), groups = static_cast<size_t>(k_pad / group);
  Guarded<int8_t> q(n);
  Guarded<float> scale(groups);
  Guarded<int32_t> sum(n / 32);
  table_of(isa).quantize_int8(x.data(), static_cast<int>(x.size()), k_pad, group, amax, q.data(),
                              scale.data(), sum.data());
  return {give(q.take(), {n}), give(scale.take(), {groups}), give(sum.take(), {n / 32})};
}

float peak(const std::string& isa, In<float> x) {
  return table_of(isa).peak(x.data(), static_cast<int>(x.size()));
}

// hi and lo [2, k_pad], scales, sums [2, k_pad / 32].
std::tuple<Out<int8_t>, Out<float>, Out<int32_t>> quantize_a16(const std::string& isa, In<float> x,
                                                               int k_pad, int group) {
  const size_t n = static_cast<size_t>(k_pad), groups = static_cast<size_t>(k_pad / group);
  Guarded<int8_t> q(2 * n);
  Guarded<float> scale(groups);
  Guarded<int32_t> sum(n / 16);
  table_of(isa).quantize_a16(x.data(), static_cast<int>(x.size()), k_pad, group, q.data(),
                             scale.data(), sum.data());
  return {give(q.take(), {2, n}), give(scale.take(), {groups}), give(sum.take(), {2, n / 32})};
}

bool peaked(const std::string& isa, In<float> x, float ratio) {
  return table_of(isa).peaked(x.data(), static_cast<int>(x.size()), ratio);
}

Out<uint16_t> round_bf16(const std::string& isa, In<float> x, int k_pad) {
  Guarded<uint16_t> out(static_cast<size_t>(k_pad));
  table_of(isa).round_bf16(x.data(), static_cast<int>(x.size()), k_pad, out.data());
  return give(out.take(), {static_cast<size_t>(k_pad)});
}

// A kernel that changes its row in place.
template <class Run>
Out<float> in_place(const In<float>& x, Run run) {
  Guarded<float> row(x.size());
  row.fill(x.data());
  run(row.data(), static_cast<int>(x.size()));
  return give(row.take(), {x.size()});
}

Out<float> rope(const std::string& isa, In<float> x, In<float> cos, In<float> sin) {
  return in_place(x, [&](float* row, int) {
    table_of(isa).rope(row, cos.data(), sin.data(), static_cast<int>(cos.size()));
  });
}
Out<float> add(const std::string& isa, In<float> x, In<float> y) {
  return in_place(x, [&](float* row, int n) { table_of(isa).add(row, y.data(), n); });
}
Out<float> scale(const std::string& isa, In<float> x, float s) {
  return in_place(x, [&](float* row, int n) { table_of(isa).scale(row, s, n); });
}
Out<float> softcap(const std::string& isa, In<float> x, float cap) {
  return in_place(x, [&](float* row, int n) { table_of(isa).softcap(row, cap, n); });
}

Out<float> act_mul(const std::string& isa, const std::string& act, In<float> gate, In<float> up) {
  Guarded<float> out(gate.size());
  const auto kind = act == "silu" ? octavo::MlpAct::kSilu : octavo::MlpAct::kGeluTanh;
  table_of(isa).act_mul(kind, gate.data(), up.data(), static_cast<int>(gate.size()), out.data());
  return give(out.take(), {gate.size()});
}

std::tuple<int, float> argmax(const std::string& isa, In<float> x) {
  float best = 0;
  const int index = table_of(isa).argmax(x.data(), static_cast<int>(x.size()), &best);
  return {index, best};
}

double sum_exp(const std::string& isa, In<float> x, float max, float inv_temperature) {
  return table_of(isa).sum_exp(x.data(), static_cast<int>(x.size()), max, inv_temperature);
}

// ---- codecs ----

Out<float> gguf_dequantize(const std::string& type, In<uint8_t> data, int k) {
  const size_t rows = data.shape(0), width = static_cast<size_t>(k);
  Guarded<float> out(rows * width);
  if (!octavo::gguf_dequantize(type, data.data(), static_cast<int>(rows), k, out.data())) {
    throw std::invalid_argument("unknown type " + type);
  }
  return give(out.take(), {rows, width});
}

using Encoded = std::tuple<Out<uint8_t>, Out<float>, Out<uint8_t>, int>;

Encoded encode_rtn(In<float> w, int group, int bits, const std::string& convention,
                   bool scale_f32) {
  AffineRows rows;
  const int n = static_cast<int>(w.shape(0)), k = static_cast<int>(w.shape(1));
  if (!octavo::encode_rtn(w.data(), n, k, group, bits, convention, scale_f32, &rows)) {
    throw std::invalid_argument("no such convention or number of bits");
  }
  const size_t height = w.shape(0), groups = rows.scales.size() / height;
  const size_t zeros = rows.zeros.size() / height;
  return {give(std::move(rows.codes), {height, w.shape(1)}),
          give(std::move(rows.scales), {height, groups}),
          give(std::move(rows.zeros), {height, zeros}), rows.zero};
}

Out<float> half_round_trip(In<float> x) {
  std::vector<float> out;
  for (size_t i = 0; i < x.size(); ++i) {
    out.push_back(octavo::half_to_float(octavo::float_to_half(x.data()[i])));
  }
  return give(std::move(out), {x.size()});
}

}  // namespace

void bind_testing(nb::module_& m) {
  nb::class_<Packed>(m, "Packed")
      .def_prop_ro("n", [](const Packed& w) { return w.plan.n; })
      .def_prop_ro("k", [](const Packed& w) { return w.plan.k; })
      .def_prop_ro("panels", [](const Packed& w) { return w.view.panels; })
      .def_prop_ro("k_pad", [](const Packed& w) { return w.view.k_pad; })
      .def_prop_ro("panel_bytes", [](const Packed& w) { return w.view.panel_bytes; })
      .def_prop_ro("bytes", [](const Packed& w) { return octavo::weight_bytes(w.view); })
      .def("pack_affine", &pack_affine, nb::arg("row0"), nb::arg("codes"), nb::arg("scales"),
           nb::arg("offsets").none() = nb::none(), nb::arg("zeros").none() = nb::none(),
           nb::arg("subs").none() = nb::none(), nb::arg("sub_offsets").none() = nb::none())
      .def("set_levels8", &set_levels8, nb::arg("levels"))
      .def("set_levels", &set_levels, nb::arg("levels"), nb::arg("levels16") = std::vector<int>(),
           nb::arg("step") = 1.0f)
      .def("pack_f32", &pack_f32, nb::arg("row0"), nb::arg("values"))
      .def("pack_gguf", &pack_gguf, nb::arg("row0"), nb::arg("type"), nb::arg("data"))
      .def("unpack", &unpack, nb::arg("isa") = "generic")
      .def("raw", &raw_bytes);
  m.def("packed", &make_packed, nb::arg("n"), nb::arg("k"), nb::arg("code"), nb::arg("group") = 0,
        nb::arg("zero") = 0, nb::arg("scaling") = "f16", nb::arg("extra") = "",
        nb::arg("supers") = std::tuple<int, int>(0, 0), nb::arg("blocks").none() = nb::none());
  m.def("gguf_packed", &gguf_packed);
  m.def("isas", &isas);
  m.def("isa_of", [](const std::string& isa) { return std::string(table_of(isa).isa); });
  m.def("cpu_features", &octavo::cpu_features);
  m.def("rows", &rows);
  m.def("selected", &selected);
  m.def("linear", &linear, nb::arg("isa"), nb::arg("kernel"), nb::arg("packed"), nb::arg("x"),
        nb::arg("p0"), nb::arg("p1"), nb::arg("rows").none() = nb::none());
  m.def("rms_norm", &rms_norm, nb::arg("isa"), nb::arg("x"), nb::arg("w").none(), nb::arg("eps"));
  m.def("quantize_a8", &quantize_a8);
  m.def("quantize_int8", &quantize_int8);
  m.def("peak", &peak);
  m.def("quantize_a16", &quantize_a16);
  m.def("peaked", &peaked);
  m.def("round_bf16", &round_bf16);
  m.def("rope", &rope);
  m.def("add", &add);
  m.def("scale", &scale);
  m.def("softcap", &softcap);
  m.def("act_mul", &act_mul);
  m.def("argmax", &argmax);
  m.def("sum_exp", &sum_exp);
  m.def("gguf_dequantize", &gguf_dequantize);
  m.def("gguf_row_bytes", &octavo::gguf_row_bytes);
  m.def("encode_rtn", &encode_rtn);
  m.def("half_round_trip", &half_round_trip);
}
