// `octavo._native.testing`, the executor's half: sampling on given logits, for its Python twin.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "exec/sample.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_exec_testing(nb::module_& m);

namespace {

template <class T>
using Row = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const KernelTable& table_of(const std::string& isa) {
  const char* error = nullptr;
  const KernelTable* table = kernels_for(isa.c_str(), &error);
  if (table == nullptr) throw nb::value_error(error);
  return *table;
}

int32_t sample_logits(const std::string& isa, const Row<float>& logits, const SampleParams& params,
                      const Row<int32_t>& prompt, const Row<int32_t>& output, bool counted,
                      const nb::object& mask) {
  const int vocab = static_cast<int>(logits.size());
  TokenCounts counts(vocab);
  counts.reset(prompt.data(), static_cast<int>(prompt.size()), output.data(),
               static_cast<int>(output.size()));
  SampleParams with_counts = params;
  with_counts.counts = counted ? &counts : nullptr;
  if (!mask.is_none()) {
    const auto words = nb::cast<Row<uint32_t>>(mask);
    if (static_cast<int>(words.size()) < (vocab + 31) / 32) throw nb::value_error("short mask");
    with_counts.mask = words.data();
  }
  SampleScratch scratch;
  return sample(table_of(isa), logits.data(), vocab, with_counts, scratch);
}

std::tuple<std::vector<int32_t>, std::vector<float>> top_logprobs(const std::string& isa,
                                                                  const Row<float>& logits,
                                                                  int count) {
  SampleScratch scratch;
  const int vocab = static_cast<int>(logits.size());
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  top_tokens(logits.data(), vocab, count, scratch, tokens.data());
  const LogSoftmax logprob = log_softmax(table_of(isa), logits.data(), vocab);
  std::vector<float> values;
  for (const int32_t token : tokens) values.push_back(logprob(logits.data()[token]));
  return {tokens, values};
}

}  // namespace

void bind_exec_testing(nb::module_& m) {
  nb::class_<SampleParams>(m, "SampleParams")
      .def(nb::init<>())
      .def_rw("temperature", &SampleParams::temperature)
      .def_rw("top_k", &SampleParams::top_k)
      .def_rw("top_p", &SampleParams::top_p)
      .def_rw("min_p", &SampleParams::min_p)
      .def_rw("repetition", &SampleParams::repetition)
      .def_rw("presence", &SampleParams::presence)
      .def_rw("frequency", &SampleParams::frequency)
      .def_rw("seed", &SampleParams::seed)
      .def_rw("position", &SampleParams::position)
      .def_rw("choice", &SampleParams::choice);
  m.def("sample", &sample_logits, "isa"_a, "logits"_a, "params"_a, "prompt"_a, "output"_a,
        "counted"_a, "mask"_a = nb::none());
  m.def("uniform_draw", &uniform_draw, "seed"_a, "position"_a, "choice"_a, "kind"_a);
  m.def("top_logprobs", &top_logprobs, "isa"_a, "logits"_a, "count"_a);
}
