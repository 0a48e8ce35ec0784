// `octavo._native.testing`: pages of keys and values, and attention over them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/testing.h"
#include "core/types.h"
#include "kernels/table.h"

namespace nb = nanobind;
using namespace octavo::testing;

void bind_kv_testing(nb::module_& m);

namespace {

octavo::KvFormat kv_format_of(const std::string& name) {
  constexpr std::pair<const char*, octavo::KvFormat> kFormats[] = {
      {"bf16", octavo::KvFormat::kBf16},    {"f32", octavo::KvFormat::kF32},
      {"f16", octavo::KvFormat::kF16},      {"int8", octavo::KvFormat::kInt8},
      {"int4", octavo::KvFormat::kInt4},    {"kivi2", octavo::KvFormat::kKivi2},
      {"kivi4", octavo::KvFormat::kKivi4},  {"fp8_e4m3", octavo::KvFormat::kE4m3},
      {"fp8_e5m2", octavo::KvFormat::kE5m2}};
  for (const auto& [known, format] : kFormats) {
    if (name == known) return format;
  }
  throw std::invalid_argument("no such KV format: " + name);
}

// Pages of one layer: `blocks` blocks, all K and V NaN until written.
struct Pages {
  octavo::KvLayerView view;
  std::unique_ptr<Guarded<uint8_t>> data;

  Pages(int blocks, int block_size, int kv_heads, int head_dim, const std::string& format) {
    view.format = kv_format_of(format);
    view.block_size = block_size;
    view.kv_heads = kv_heads;
    view.head_dim = head_dim;
    octavo::kv_lay_out(&view, blocks);
    const auto bytes = static_cast<size_t>(view.head_stride_k * kv_heads);
    data = std::make_unique<Guarded<uint8_t>>(bytes);
    std::memset(data->data(), 0xff, bytes);
    view.base = data->data();
  }
};

// How many values the format could not hold.
int kv_write(const std::string& isa, Pages& pages, int block, int slot, In<float> k, In<float> v) {
  const int lost = table_of(isa).kv_write(pages.view, block, slot, k.data(), v.data());
  static_cast<void>(pages.data->take());
  return lost;
}

// KIVI: codes of the keys of slots `slot` to slot + 31, of all heads.
void kivi_keys(const std::string& isa, Pages& pages, int block, const Pages& recent,
               int recent_block, int slot) {
  for (int head = 0; head < pages.view.kv_heads; ++head) {
    table_of(isa).kivi_keys(pages.view, block, recent.view, recent_block, slot, head);
  }
  static_cast<void>(pages.data->take());
}

nb::bytes page_bytes(Pages& pages) {
  const std::vector<uint8_t> all = pages.data->take();
  return nb::bytes(reinterpret_cast<const char*>(all.data()), all.size());
}

using Split = std::tuple<Out<float>, Out<float>, Out<float>>;

// One split: q [n_q, head_dim] of `kv_head`, positions [n_q] -> (o, m, l). KIVI: with pages of bf16
// and their table.
Split attention(const std::string& isa, Pages& pages, In<int32_t> table, In<float> q,
                In<int32_t> pos, std::tuple<int, int, int, int> head_key0_key1_window, float scale,
                float softcap, const Pages* recent, std::optional<In<int32_t>> recent_table) {
  const size_t n = q.shape(0), dim = q.shape(1);
  const auto [head, key0, key1, window] = head_key0_key1_window;
  const int64_t room =
      octavo::attention_scratch(static_cast<int64_t>(n), key1 - key0, static_cast<int64_t>(dim));
  Guarded<float> o(n * dim), m(n), l(n), scratch(static_cast<size_t>(room));
  octavo::AttentionArgs a = {};
  a.kv = pages.view;
  a.block_table = table.data();
  if (recent != nullptr) a.recent = recent->view;
  if (recent_table) a.recent_table = recent_table->data();
  a.kv_head = head;
  a.n_q = static_cast<int>(n);
  a.key0 = key0;
  a.key1 = key1;
  a.window = window;
  a.q = q.data();
  a.q_stride = static_cast<int64_t>(dim);
  a.pos = pos.data();
  a.scale = scale;
  a.softcap = softcap;
  a.o = o.data();
  a.o_stride = static_cast<int64_t>(dim);
  a.m = m.data();
  a.l = l.data();
  a.scratch = scratch.data();
  table_of(isa).attention(a);
  static_cast<void>(scratch.take());
  return {give(o.take(), {n, dim}), give(m.take(), {n}), give(l.take(), {n})};
}

Out<float> attention_merge(const std::string& isa, In<float> o, In<float> m, In<float> l) {
  const size_t dim = o.shape(1);
  Guarded<float> out(dim);
  table_of(isa).attention_merge(o.data(), static_cast<int64_t>(dim), m.data(), l.data(),
                                static_cast<int>(o.shape(0)), static_cast<int>(dim), out.data());
  return give(out.take(), {dim});
}

}  // namespace

void bind_kv_testing(nb::module_& m) {
  nb::class_<Pages>(m, "Pages")
      .def(nb::init<int, int, int, int, const std::string&>())
      .def("raw", &page_bytes);
  m.def("kv_write", &kv_write);
  m.def("kivi_keys", &kivi_keys);
  m.def("attention", &attention, nb::arg("isa"), nb::arg("pages"), nb::arg("table"), nb::arg("q"),
        nb::arg("pos"), nb::arg("head_key0_key1_window"), nb::arg("scale"), nb::arg("softcap"),
        nb::arg("recent").none() = nb::none(), nb::arg("recent_table").none() = nb::none());
  m.def("attention_merge", &attention_merge);
}
