// The search for codes on the trellis, for encoders.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "pack/trellis.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_trellis(nb::module_& m);

namespace {

template <int kDims>
using Floats = nb::ndarray<const float, nb::numpy, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<uint64_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void encode(const Floats<2>& x, const Floats<2>& u, const Floats<1>& levels, int tries,
            const Words& words) {
  if (x.shape(1) != 32 || u.shape(0) != 32 || u.shape(1) != 32 || levels.size() != 256 ||
      words.size() != x.shape(0) || tries < 1 || tries > 64) {
    throw nb::value_error("x [n, 32], u [32, 32], levels [256], words [n], 1 to 64 tries expected");
  }
  nb::gil_scoped_release free;
  trellis_encode(x.data(), static_cast<int>(x.shape(0)), u.data(), levels.data(), tries,
                 words.data());
}

}  // namespace

void bind_trellis(nb::module_& m) {
  m.def("trellis_encode", &encode, "x"_a, "u"_a, "levels"_a, "tries"_a, "words"_a);
}
