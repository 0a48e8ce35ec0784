#include "exec/weight.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/table.h"

namespace octavo {

Weight::Weight(std::shared_ptr<Arena> arena, PackPlan plan)
    : arena_(std::move(arena)), plan_(std::move(plan)) {
  if (plan_.n <= 0 || plan_.k <= 0) throw std::invalid_argument("a weight needs rows and columns");
  data_ = arena_->allocate(static_cast<size_t>(packed_bytes(plan_)));
  clear_padding(plan_, data_);
  view_ = packed_view(plan_, data_);
}

void Weight::check_rows(int row0, int rows) const {
  if (row0 < 0 || rows < 0 || row0 > plan_.n - rows)
    throw std::invalid_argument("rows " + std::to_string(row0) + " to " +
                                std::to_string(row0 + rows) + " of a weight with " +
                                std::to_string(plan_.n));
}

std::vector<float> Weight::dequantize(const std::string& type, const uint8_t* data,
                                      int rows) const {
  std::vector<float> values(static_cast<size_t>(rows) * plan_.k);
  if (!gguf_dequantize(type, data, rows, plan_.k, values.data()))
    throw std::invalid_argument("unknown tensor type " + type);
  return values;
}

void Weight::pack_gguf(const std::string& type, const uint8_t* data, int row0, int rows) {
  check_rows(row0, rows);
  AffineRows affine;
  if (!gguf_affine(type, data, rows, plan_.k, &affine))
    throw std::invalid_argument("unknown tensor type " + type);
  octavo::pack_affine(plan_, data_, row0, affine);
}

void Weight::pack_floats(const std::string& type, const uint8_t* data, int row0, int rows) {
  check_rows(row0, rows);
  pack_f32(plan_, data_, row0, rows, dequantize(type, data, rows).data());
}

void Weight::pack_affine(const AffineRows& rows, int row0) {
  check_rows(row0, rows.rows);
  octavo::pack_affine(plan_, data_, row0, rows);
}

void Weight::pack_rounded(const std::string& type, const uint8_t* data, int row0, int rows,
                          int bits, const std::string& convention) {
  check_rows(row0, rows);
  const std::vector<float> values = dequantize(type, data, rows);
  AffineRows affine;
  if (!encode_rtn(values.data(), rows, plan_.k, plan_.group, bits, convention,
                  plan_.scaling == Scaling::kF32, &affine))
    throw std::invalid_argument("unknown rounding convention " + convention);
  octavo::pack_affine(plan_, data_, row0, affine);
}

void Weight::unpack(int row0, int rows, float* out) const {
  check_rows(row0, rows);
  std::vector<float> row(static_cast<size_t>(view_.k_pad));
  for (int i = 0; i < rows; ++i) {
    table_generic()->unpack_row(view_, row0 + i, row.data());
    std::copy_n(row.data(), plan_.k, out + static_cast<int64_t>(i) * plan_.k);
  }
}

}  // namespace octavo
