// The extension module octavo._native: thin, typed, no logic. Errors are ValueError (a bad
// description or batch), MemoryError, and step()'s status.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "exec/executor.h"
#include "exec/probe.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

template <class T, int kDims>
using In = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void bind_model(nb::module_& m);         // bind/model.cc
void bind_probe(nb::module_& m);         // bind/probe.cc
void bind_gram(nb::module_& m);          // bind/gram.cc
void bind_trellis(nb::module_& m);       // bind/trellis.cc
void bind_testing(nb::module_& m);       // bind/testing.cc
void bind_exec_testing(nb::module_& m);  // bind/exec_testing.cc
void bind_kv_testing(nb::module_& m);    // bind/kv_testing.cc

namespace {

template <class T>
T* writable(nb::handle batch, const char* name, size_t at_least) {
  using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
  const auto array = nb::cast<Array>(batch.attr(name));
  if (array.size() < at_least)
    throw nb::value_error((std::string("batch.") + name + " is too short").c_str());
  return array.data();
}

StepArrays batch_arrays(nb::handle batch, nb::handle result) {
  StepArrays a{};
  a.max_tokens = nb::cast<int>(batch.attr("max_tokens"));
  a.max_seqs = nb::cast<int>(batch.attr("max_seqs"));
  a.max_blocks = nb::cast<int>(batch.attr("max_blocks"));
  const size_t rows = static_cast<size_t>(a.max_tokens), seqs = static_cast<size_t>(a.max_seqs);
  a.token = writable<int32_t>(batch, "token", rows);
  a.position = writable<int32_t>(batch, "position", rows);
  a.want = writable<uint8_t>(batch, "want", rows);
  a.target = writable<int32_t>(batch, "target", rows);
  a.row_start = writable<int32_t>(batch, "row_start", seqs + 1);
  a.block_table = writable<int32_t>(batch, "block_table", seqs * static_cast<size_t>(a.max_blocks));
  a.adapter = writable<int32_t>(batch, "adapter", seqs);
  a.state_slot = writable<int32_t>(batch, "state_slot", seqs);
  a.seed = writable<uint64_t>(batch, "seed", seqs);
  a.choice = writable<int32_t>(batch, "choice", seqs);
  a.temperature = writable<float>(batch, "temperature", seqs);
  a.top_k = writable<int32_t>(batch, "top_k", seqs);
  a.top_p = writable<float>(batch, "top_p", seqs);
  a.min_p = writable<float>(batch, "min_p", seqs);
  a.repetition = writable<float>(batch, "repetition_penalty", seqs);
  a.presence = writable<float>(batch, "presence_penalty", seqs);
  a.frequency = writable<float>(batch, "frequency_penalty", seqs);
  a.n_logprobs = writable<int32_t>(batch, "n_logprobs", seqs);
  a.bias_start = writable<int32_t>(batch, "bias_start", seqs + 1);
  a.bias_token = writable<int32_t>(batch, "bias_token", 0);
  a.bias_value = writable<float>(batch, "bias_value", 0);
  a.mask_words = nb::cast<int>(batch.attr("mask_words"));
  a.mask = writable<uint32_t>(batch, "mask", seqs * static_cast<size_t>(a.mask_words));
  a.mask_state = writable<int32_t>(batch, "mask_state", seqs);
  a.out_row = writable<int32_t>(result, "row", rows);
  a.out_token = writable<int32_t>(result, "token", rows);
  a.out_logprob = writable<float>(result, "logprob", rows);
  a.out_top_token = writable<int32_t>(result, "top_token", rows * kMaxLogprobs);
  a.out_top_logprob = writable<float>(result, "top_logprob", rows * kMaxLogprobs);
  return a;
}

RowsOut rows_out(const nb::object& buffer, int width) {
  if (buffer.is_none()) return {};
  const auto array = nb::cast<Floats>(buffer);
  if (static_cast<int>(array.shape(1)) != width)
    throw nb::value_error("batch.logits or batch.hidden has the wrong width");
  return {array.data(), static_cast<int>(array.shape(0))};
}

// The ids, once they and the size of the caller's bytes are known to be right.
std::vector<int32_t> block_ids(const KvCache& cache, int group, const In<int32_t, 1>& blocks,
                               size_t bytes) {
  if (group < 0 || group >= cache.groups()) throw nb::value_error("there is no such KV group");
  std::vector<int32_t> ids(blocks.data(), blocks.data() + blocks.size());
  for (const int32_t id : ids)
    if (id < 0 || id >= cache.blocks(group))
      throw nb::value_error(("there is no block " + std::to_string(id)).c_str());
  if (bytes != ids.size() * static_cast<size_t>(cache.block_bytes(group)))
    throw nb::value_error("the bytes are not those of so many blocks");
  return ids;
}

void bind_executor(nb::module_& m) {
  nb::class_<Executor>(m, "Executor")
      .def(nb::init<ModelDesc, RuntimeDesc>(), "model"_a, "runtime"_a)
      .def(
          "bind",
          [](Executor& e, nb::handle batch, nb::handle result) {
            e.bind(batch_arrays(batch, result));
          },
          "batch"_a, "result"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def(
          "step",
          [](Executor& e, int n_seqs, const nb::object& logits, const nb::object& hidden,
             int times) {
            const RowsOut to_logits = rows_out(logits, e.plan().vocab);
            const RowsOut to_hidden = rows_out(hidden, e.plan().hidden);
            const nb::gil_scoped_release release;
            return static_cast<int>(e.step(n_seqs, to_logits, to_hidden, times));
          },
          "n_seqs"_a, "logits"_a.none(), "hidden"_a.none(), "times"_a = 1)
      .def_prop_ro("wanted", &Executor::wanted)
      .def_prop_ro("kv_lost", &Executor::kv_lost)
      .def("cancel", [](Executor& e) { e.pool().cancel(); })
      .def("clear_cancel", [](Executor& e) { e.pool().clear_cancel(); })
      .def(
          "copy_block",
          [](Executor& e, int group, int source, int destination) {
            e.cache().copy(group, source, destination);
          },
          "group"_a, "source"_a, "destination"_a)
      .def(
          "read_blocks",
          [](const Executor& e, int group, const In<int32_t, 1>& blocks, Bytes out) {
            const KvCache& cache = e.cache();
            const std::vector<int32_t> ids = block_ids(cache, group, blocks, out.size());
            const nb::gil_scoped_release release;
            cache.read(group, ids, out.data());
          },
          "group"_a, "blocks"_a, "out"_a)
      .def(
          "write_blocks",
          [](Executor& e, int group, const In<int32_t, 1>& blocks, const In<uint8_t, 1>& data) {
            KvCache& cache = e.cache();
            const std::vector<int32_t> ids = block_ids(cache, group, blocks, data.size());
            const nb::gil_scoped_release release;
            cache.write(group, ids, data.data());
          },
          "group"_a, "blocks"_a, "data"_a)
      .def(
          "reset_slot",
          [](Executor& e, int slot, const In<int32_t, 1>& prompt, const In<int32_t, 1>& output) {
            e.state().reset_slot(slot, prompt.data(), static_cast<int>(prompt.size()),
                                 output.data(), static_cast<int>(output.size()));
          },
          "slot"_a, "prompt"_a, "output"_a)
      .def("kernels",
           [](const Executor& e) {
             std::vector<std::tuple<int, std::string, std::string, bool, int64_t>> lines;
             for (const KernelLine& l : e.plan().lines)
               lines.emplace_back(l.layer, l.part, l.kernel, l.fast, l.bytes);
             return lines;
           })
      .def("stage_seconds", [](Executor& e) { return e.state().stage_seconds(); })
      .def("rows_seen",
           [](Executor& e) {
             std::vector<std::pair<int64_t, int64_t>> seen;
             for (const KernelLine& l : e.plan().lines)
               seen.push_back(e.state().rows_seen(l.input));
             return seen;
           })
      .def(
          "read_weights",
          [](Executor& e, int passes) { return read_weights(e.plan(), e.pool(), passes); },
          "passes"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("isa", [](const Executor& e) { return e.plan().table->isa; });
}

}  // namespace

NB_MODULE(_native, m) {
  bind_model(m);
  bind_executor(m);
  m.def(
      "resolve_isa",
      [](const std::string& isa) {
        const char* error = nullptr;
        const KernelTable* table = kernels_for(isa.c_str(), &error);
        if (table == nullptr) throw nb::value_error(error);
        return std::string(table->isa);
      },
      "isa"_a);
  m.attr("STAGES") = nb::cast(std::vector<std::string>(kStageNames.begin(), kStageNames.end()));
  bind_probe(m);
  bind_gram(m);
  bind_trellis(m);
  nb::module_ testing = m.def_submodule("testing", "Single kernels and parts, for tests.");
  bind_testing(testing);
  bind_exec_testing(testing);
  bind_kv_testing(testing);
}
