// What the loader builds a model from: packed weights and plain descriptions.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "exec/model.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_model(nb::module_& m);

namespace {

template <class T, int kDims>
using In = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::vector<float> floats(const In<float, 1>& array) {
  return {array.data(), array.data() + array.size()};
}

PackPlan plan_of_gguf(const std::string& type, int n, int k) {
  PackPlan plan;
  if (!gguf_plan(type, n, k, &plan)) throw nb::value_error(("no packing for " + type).c_str());
  return plan;
}

int rows_of(const Weight& weight, const std::string& type, const In<uint8_t, 2>& data) {
  const int64_t expected = gguf_row_bytes(type, weight.plan().k);
  if (static_cast<int64_t>(data.shape(1)) != expected)
    throw nb::value_error(("a row of " + type + " has " + std::to_string(data.shape(1)) +
                           " bytes, expected " + std::to_string(expected))
                              .c_str());
  return static_cast<int>(data.shape(0));
}

template <class T>
std::vector<T> copied(const nb::object& array) {
  if (array.is_none()) return {};
  const auto values = nb::cast<In<T, 2>>(array);
  return {values.data(), values.data() + values.size()};
}

// Throws unless every part of `rows` has the values that the plan takes.
void check_parts(const PackPlan& plan, const AffineRows& rows) {
  const bool subs = plan.scaling != Scaling::kF16 && plan.scaling != Scaling::kF32;
  const size_t n = static_cast<size_t>(rows.rows);
  const size_t groups = n * static_cast<size_t>(plan.group >= plan.k ? 1 : plan.k / plan.group);
  const size_t supers = subs ? n * static_cast<size_t>(plan.k / plan.super_group) : groups;
  const bool fits = rows.codes.size() == n * static_cast<size_t>(plan.k) &&
                    rows.scales.size() == supers &&
                    rows.offsets.size() == (plan.has_offset ? supers : 0) &&
                    rows.zeros.size() == (plan.has_zero ? groups : 0) &&
                    rows.subs.size() == (subs ? groups : 0) &&
                    rows.sub_offsets.size() == (subs && plan.has_offset ? groups : 0);
  if (!fits) throw nb::value_error("codes, scales and offsets do not match the weight");
}

// A copy of canonical rows as the packer takes them.
AffineRows affine_rows(const Weight& weight, const In<uint8_t, 2>& codes,
                       const In<float, 2>& scales, const nb::object& offsets,
                       const nb::object& zeros, const nb::object& subs,
                       const nb::object& sub_offsets) {
  const PackPlan& plan = weight.plan();
  AffineRows rows;
  rows.rows = static_cast<int>(codes.shape(0));
  rows.k = plan.k;
  rows.group = plan.group;
  rows.zero = plan.zero;
  rows.codes.assign(codes.data(), codes.data() + codes.size());
  rows.scales.assign(scales.data(), scales.data() + scales.size());
  rows.offsets = copied<float>(offsets);
  rows.zeros = copied<uint8_t>(zeros);
  rows.subs = copied<uint8_t>(subs);
  rows.sub_offsets = copied<uint8_t>(sub_offsets);
  check_parts(plan, rows);
  return rows;
}

void bind_weight(nb::module_& m) {
  nb::class_<Arena>(m, "Arena").def(nb::init<>()).def_prop_ro("allocated", &Arena::allocated);
  nb::enum_<Code>(m, "Code")
      .value("TWO", Code::kTwo)
      .value("THREE", Code::kThree)
      .value("NIBBLE", Code::kNibble)
      .value("FIVE", Code::kFive)
      .value("SIX", Code::kSix)
      .value("BYTE", Code::kByte)
      .value("F16", Code::kF16)
      .value("BF16", Code::kBf16)
      .value("F32", Code::kF32)
      .value("SPARSE_NIBBLE", Code::kSparseNibble)
      .value("SPARSE_BYTE", Code::kSparseByte)
      .value("TRELLIS", Code::kTrellis)
      .value("BLOCK_NIBBLE", Code::kBlockNibble)
      .value("BLOCK_BYTE", Code::kBlockByte);
  nb::enum_<Act>(m, "Act")
      .value("A8", Act::kA8)
      .value("A16", Act::kA16)
      .value("A8A16", Act::kA8A16)
      .value("BF16", Act::kBf16)
      .value("F32", Act::kF32);
  nb::enum_<Scaling>(m, "Scaling")
      .value("F16", Scaling::kF16)
      .value("F32", Scaling::kF32)
      .value("SUB4", Scaling::kSub4)
      .value("SUB6", Scaling::kSub6)
      .value("SUB8", Scaling::kSub8);
  m.def("code_for", &code_for, "bits"_a);
  nb::class_<PackPlan>(m, "PackPlan")
      .def(nb::init<>())
      .def_static("gguf", &plan_of_gguf, "type"_a, "n"_a, "k"_a)
      .def_rw("n", &PackPlan::n)
      .def_rw("k", &PackPlan::k)
      .def_rw("code", &PackPlan::code)
      .def_rw("group", &PackPlan::group)
      .def_rw("zero", &PackPlan::zero)
      .def_rw("scaling", &PackPlan::scaling)
      .def_rw("has_offset", &PackPlan::has_offset)
      .def_rw("has_zero", &PackPlan::has_zero)
      .def_rw("super_group", &PackPlan::super_group)
      .def_rw("sub_bias", &PackPlan::sub_bias)
      .def(
          "set_levels16",
          [](PackPlan& plan, const std::vector<int>& levels, float step) {
            set_levels16(&plan, levels, step);
          },
          "levels"_a, "step"_a)
      .def(
          "set_blocks",
          [](PackPlan& plan, const In<uint8_t, 2>& mask) {
            set_blocks(&plan, {mask.data(), mask.data() + mask.size()});
          },
          "mask"_a)
      .def_rw("levels8", &PackPlan::levels8)
      .def_rw("levels", &PackPlan::levels)
      .def_prop_ro("packed_bytes", [](const PackPlan& plan) { return packed_bytes(plan); });
  nb::class_<Weight>(m, "Weight")
      .def(nb::init<std::shared_ptr<Arena>, PackPlan>(), "arena"_a, "plan"_a)
      .def_prop_ro("bytes", &Weight::bytes)
      .def_prop_ro("row_bytes", [](const Weight& w) { return mean_panel_bytes(w.view()) / kLanes; })
      .def(
          "pack_gguf",
          [](Weight& w, const std::string& type, const In<uint8_t, 2>& data, int row0) {
            const int rows = rows_of(w, type, data);
            const nb::gil_scoped_release release;
            w.pack_gguf(type, data.data(), row0, rows);
          },
          "type"_a, "data"_a, "row0"_a)
      .def(
          "pack_floats",
          [](Weight& w, const std::string& type, const In<uint8_t, 2>& data, int row0) {
            const int rows = rows_of(w, type, data);
            const nb::gil_scoped_release release;
            w.pack_floats(type, data.data(), row0, rows);
          },
          "type"_a, "data"_a, "row0"_a)
      .def(
          "pack_rounded",
          [](Weight& w, const std::string& type, const In<uint8_t, 2>& data, int row0, int bits,
             const std::string& convention) {
            const int rows = rows_of(w, type, data);
            const nb::gil_scoped_release release;
            w.pack_rounded(type, data.data(), row0, rows, bits, convention);
          },
          "type"_a, "data"_a, "row0"_a, "bits"_a, "convention"_a)
      .def(
          "pack_affine",
          [](Weight& w, const In<uint8_t, 2>& codes, const In<float, 2>& scales, int row0,
             const nb::object& offsets, const nb::object& zeros, const nb::object& subs,
             const nb::object& sub_offsets) {
            w.pack_affine(affine_rows(w, codes, scales, offsets, zeros, subs, sub_offsets), row0);
          },
          "codes"_a, "scales"_a, "row0"_a, "offsets"_a.none() = nb::none(),
          "zeros"_a.none() = nb::none(), "subs"_a.none() = nb::none(),
          "sub_offsets"_a.none() = nb::none())
      .def(
          "unpack",
          [](const Weight& w, int row0, Floats out) {
            w.unpack(row0, static_cast<int>(out.shape(0)), out.data());
          },
          "row0"_a, "out"_a);
}

void bind_descriptions(nb::module_& m) {
  nb::enum_<ActScale>(m, "ActScale")
      .value("GROUP", ActScale::kGroup)
      .value("TOKEN", ActScale::kToken)
      .value("TENSOR", ActScale::kTensor)
      .value("STATIC", ActScale::kStatic)
      .value("OUTLIERS", ActScale::kOutliers);
  nb::enum_<MlpAct>(m, "MlpAct").value("SILU", MlpAct::kSilu).value("GELU_TANH", MlpAct::kGeluTanh);
  nb::enum_<KvFormat>(m, "KvFormat")
      .value("BF16", KvFormat::kBf16)
      .value("F32", KvFormat::kF32)
      .value("F16", KvFormat::kF16)
      .value("INT8", KvFormat::kInt8)
      .value("INT4", KvFormat::kInt4)
      .value("KIVI2", KvFormat::kKivi2)
      .value("KIVI4", KvFormat::kKivi4)
      .value("E4M3", KvFormat::kE4m3)
      .value("E5M2", KvFormat::kE5m2);
  nb::class_<LayerDesc>(m, "LayerDesc")
      .def(nb::init<>())
      .def_rw("heads", &LayerDesc::heads)
      .def_rw("kv_heads", &LayerDesc::kv_heads)
      .def_rw("head_dim", &LayerDesc::head_dim)
      .def_rw("intermediate", &LayerDesc::intermediate)
      .def_rw("scale", &LayerDesc::scale)
      .def_rw("softcap", &LayerDesc::softcap)
      .def_rw("window", &LayerDesc::window)
      .def_rw("rope", &LayerDesc::rope)
      .def_rw("kv_group", &LayerDesc::kv_group)
      .def_rw("recent_group", &LayerDesc::recent_group)
      .def_rw("activation", &LayerDesc::activation)
      .def(
          "set_vector",
          [](LayerDesc& layer, const std::string& part, const In<float, 1>& values) {
            layer.vectors[part] = floats(values);
          },
          "part"_a, "values"_a)
      .def(
          "set_weight",
          [](LayerDesc& layer, const std::string& part, std::shared_ptr<Weight> weight, Act act,
             ActScale scale,
             float peak) { layer.weights[part] = {std::move(weight), act, scale, peak}; },
          "part"_a, "weight"_a, "act"_a, "scale"_a = ActScale::kGroup, "peak"_a = 0.0F);
  nb::class_<ModelDesc>(m, "ModelDesc")
      .def(nb::init<>())
      .def_rw("hidden", &ModelDesc::hidden)
      .def_rw("vocab", &ModelDesc::vocab)
      .def_rw("norm_eps", &ModelDesc::norm_eps)
      .def_rw("embed_scale", &ModelDesc::embed_scale)
      .def_rw("softcap", &ModelDesc::softcap)
      .def_rw("embed", &ModelDesc::embed)
      .def(
          "set_head",
          [](ModelDesc& model, std::shared_ptr<Weight> weight, Act act, ActScale scale,
             float peak) { model.head = {std::move(weight), act, scale, peak}; },
          "weight"_a, "act"_a, "scale"_a = ActScale::kGroup, "peak"_a = 0.0F)
      .def(
          "set_embed_up",
          [](ModelDesc& model, std::shared_ptr<Weight> weight, Act act, ActScale scale,
             float peak) { model.embed_up = {std::move(weight), act, scale, peak}; },
          "weight"_a, "act"_a, "scale"_a = ActScale::kGroup, "peak"_a = 0.0F)
      .def(
          "set_head_down",
          [](ModelDesc& model, std::shared_ptr<Weight> weight, Act act, ActScale scale,
             float peak) { model.head_down = {std::move(weight), act, scale, peak}; },
          "weight"_a, "act"_a, "scale"_a = ActScale::kGroup, "peak"_a = 0.0F)
      .def(
          "set_final_norm",
          [](ModelDesc& model, const In<float, 1>& values) { model.final_norm = floats(values); },
          "values"_a)
      .def(
          "add_rope",
          [](ModelDesc& model, const In<float, 2>& cos, const In<float, 2>& sin) {
            if (cos.size() != sin.size()) throw nb::value_error("cos and sin differ in size");
            model.ropes.push_back({{cos.data(), cos.data() + cos.size()},
                                   {sin.data(), sin.data() + sin.size()},
                                   static_cast<int>(cos.shape(1))});
          },
          "cos"_a, "sin"_a)
      .def(
          "add_layer",
          [](ModelDesc& model, const LayerDesc& layer) { model.layers.push_back(layer); },
          "layer"_a);
  nb::class_<RuntimeDesc>(m, "RuntimeDesc")
      .def(nb::init<>())
      .def_rw("max_tokens", &RuntimeDesc::max_tokens)
      .def_rw("max_seqs", &RuntimeDesc::max_seqs)
      .def_rw("context", &RuntimeDesc::context)
      .def_rw("threads", &RuntimeDesc::threads)
      .def_rw("usable_cpus", &RuntimeDesc::usable_cpus)
      .def_rw("block_size", &RuntimeDesc::block_size)
      .def_rw("kv_format", &RuntimeDesc::kv_format)
      .def_rw("kv_blocks", &RuntimeDesc::kv_blocks)
      .def_rw("wide_ratio", &RuntimeDesc::wide_ratio)
      .def_rw("isa", &RuntimeDesc::isa);
}

}  // namespace

void bind_model(nb::module_& m) {
  bind_weight(m);
  bind_descriptions(m);
}
