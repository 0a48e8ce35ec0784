// A packed weight that owns its memory, filled row range by row range.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "pack/pack.h"

namespace octavo {

class Weight {
 public:
  // Throws std::invalid_argument when the plan is not packable, std::bad_alloc without memory.
  Weight(std::shared_ptr<Arena> arena, PackPlan plan);
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  const PackedWeight& view() const { return view_; }
  const PackPlan& plan() const { return plan_; }
  int64_t bytes() const { return weight_bytes(view_); }

  // Each fills rows [row0, row0 + rows); `data` is [rows][gguf_row_bytes(type, k)]. Throw
  // std::invalid_argument naming the type or the rows that don't fit.
  void pack_gguf(const std::string& type, const uint8_t* data, int row0, int rows);
  void pack_floats(const std::string& type, const uint8_t* data, int row0, int rows);
  void pack_affine(const AffineRows& rows, int row0);
  void pack_rounded(const std::string& type, const uint8_t* data, int row0, int rows, int bits,
                    const std::string& convention);

  // Rows [row0, row0 + rows) dequantized into out [rows][k].
  void unpack(int row0, int rows, float* out) const;

 private:
  void check_rows(int row0, int rows) const;
  std::vector<float> dequantize(const std::string& type, const uint8_t* data, int rows) const;

  std::shared_ptr<Arena> arena_;
  PackPlan plan_;
  uint8_t* data_ = nullptr;
  PackedWeight view_;
};

}  // namespace octavo
