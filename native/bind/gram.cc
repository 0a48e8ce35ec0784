// Hessians of bf16 inputs, for encoders (pack/gram.h).
#include "pack/gram.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_gram(nb::module_& m);

namespace {

using Rows = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Square = nb::ndarray<float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<uint32_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(bool good, const char* what) {
  if (!gram_supported()) throw nb::value_error("this CPU has no AVX-512 BF16");
  if (!good) throw nb::value_error(what);
}

void pack(const Rows& x, int at, const Words& pairs) {
  const int rows = static_cast<int>(x.shape(0)), width = static_cast<int>(x.shape(1));
  check(at >= 0 && at % 2 == 0 && at + rows <= 2 * kGramPairs &&
            static_cast<int64_t>(pairs.size()) == gram_words(width),
        "x [rows, width], an even `at`, at + rows <= 1024, pairs [gram_words(width)] expected");
  nb::gil_scoped_release free;
  gram_pack(x.data(), rows, width, at, pairs.data());
}

void add(const Words& pairs, int n, int task, const Square& h) {
  const int width = static_cast<int>(h.shape(0));
  check(static_cast<int>(h.shape(1)) == width && n >= 0 && n <= kGramPairs && task >= 0 &&
            task < gram_tasks(width) && static_cast<int64_t>(pairs.size()) == gram_words(width),
        "h [width, width], n <= 512, task < gram_tasks(width), pairs [gram_words(width)] expected");
  nb::gil_scoped_release free;
  gram_add(pairs.data(), n, width, task, h.data());
}

}  // namespace

void bind_gram(nb::module_& m) {
  m.def("gram_supported", &gram_supported);
  m.def("gram_words", &gram_words, "width"_a);
  m.def("gram_tasks", &gram_tasks, "width"_a);
  m.def("gram_pack", &pack, "x"_a, "at"_a, "pairs"_a);
  m.def("gram_add", &add, "pairs"_a, "n"_a, "task"_a, "h"_a);
}
