// What the parts of `octavo._native.testing` share: arrays, buffers between sentinels, tables by
// name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/table.h"

namespace octavo::testing {

namespace nb = nanobind;

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T, nb::c_contig>;

// An array that numpy owns.
template <class T>
Out<T> give(std::vector<T> values, std::vector<size_t> shape) {
  auto* held = new std::vector<T>(std::move(values));
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return Out<T>(held->data(), shape.size(), shape.data(), owner);
}

constexpr size_t kGuard = 64;  // sentinel elements on each side

// A 64-byte aligned buffer between sentinels.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t n) : n_(n), bytes_(pad() + n * sizeof(T) + pad()) {
    raw_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t{64}));
    std::memset(raw_, kSentinel, bytes_);
  }
  ~Guarded() { ::operator delete(raw_, std::align_val_t{64}); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return reinterpret_cast<T*>(raw_ + pad()); }
  void fill(const T* from) { std::memcpy(data(), from, n_ * sizeof(T)); }
  bool untouched(size_t i) {  // element i still holds the sentinel
    const uint8_t* p = raw_ + pad() + i * sizeof(T);
    for (size_t b = 0; b < sizeof(T); ++b) {
      if (p[b] != kSentinel) return false;
    }
    return true;
  }
  std::vector<T> take() {
    for (size_t b = 0; b < bytes_; ++b) {
      const bool inside = b >= pad() && b < pad() + n_ * sizeof(T);
      if (!inside && raw_[b] != kSentinel) throw std::runtime_error("wrote outside its buffer");
    }
    return std::vector<T>(data(), data() + n_);
  }

 private:
  static constexpr uint8_t kSentinel = 0xa5;
  static constexpr size_t pad() { return kGuard * 8; }
  size_t n_, bytes_;
  uint8_t* raw_ = nullptr;
};

inline const KernelTable& table_of(const std::string& isa) {
  const char* error = nullptr;
  const KernelTable* table = octavo::kernels_for(isa.c_str(), &error);
  if (!table) throw std::invalid_argument(error);
  return *table;
}

}  // namespace octavo::testing
