// Panels of 16 rows (T16) from rows, and their geometry.
#include "pack/pack.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "codecs/half.h"

namespace octavo {
namespace {

struct Geometry {
  int k_pad, panels, n_groups;
  int64_t table_bytes;  // of the scales, and of the offsets
  int64_t front;        // bytes of a panel before its codes
  int64_t panel_bytes;
};

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

Geometry geometry(const PackPlan& plan) {
  Geometry g = {};
  g.k_pad = static_cast<int>(round_up(plan.k, kUnit));
  g.panels = static_cast<int>(round_up(plan.n, kLanes) / kLanes);
  if (has_codes(plan.code)) {
    g.n_groups = plan.group >= plan.k ? 1 : g.k_pad / plan.group;
    g.table_bytes = static_cast<int64_t>(g.n_groups) * kLanes * (plan.scale_f32 ? 4 : 2);
    g.front = round_up(g.table_bytes * (plan.has_offset ? 2 : 1), 64);
  }
  g.panel_bytes = g.front + static_cast<int64_t>(g.k_pad / kUnit) * unit_bytes(plan.code);
  return g;
}

// Where row `row` puts its 4-byte words: every 64 bytes from here.
uint8_t* row_words(const Geometry& g, uint8_t* data, int row) {
  return data + (row / kLanes) * g.panel_bytes + g.front + (row % kLanes) * 4;
}

inline void put_word(uint8_t* line, uint32_t word) { std::memcpy(line, &word, 4); }

// Bits [from, from + width) of the codes of the unit's quads `first`, first + step, ... as one word
// of a plane: the i-th of them in the i-th field of each byte.
inline uint32_t plane_word(const uint8_t* codes, int from, int width, int first, int step) {
  const uint32_t mask = ((1u << width) - 1u) * 0x01010101u;
  uint32_t word = 0;
  for (int i = 0; i < 8 / width; ++i) {
    word |= (load_u32(codes + 4 * (first + step * i)) >> from & mask) << (width * i);
  }
  return word;
}

inline void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int j = 0; j < 4; ++j) put_word(out + 64 * j, plane_word(codes, 0, 4, j, 4));
}
inline void put_pairs(const uint8_t* codes, int from, uint8_t* out) {
  for (int j = 0; j < 2; ++j) put_word(out + 64 * j, plane_word(codes, from, 2, 4 * j, 1));
}

// 32 codes of one row to its words, one a line.
inline void pack_unit(Code code, const uint8_t* codes, uint8_t* out) {
  if (code == Code::kByte) {
    for (int j = 0; j < 8; ++j) put_word(out + 64 * j, load_u32(codes + 4 * j));
  } else if (code == Code::kTwo || code == Code::kThree) {
    put_pairs(codes, 0, out);
    if (code == Code::kThree) put_word(out + 128, plane_word(codes, 2, 1, 0, 1));
  } else {
    put_nibbles(codes, out);
    if (code == Code::kFive) put_word(out + 256, plane_word(codes, 4, 1, 0, 1));
    if (code == Code::kSix) put_pairs(codes, 4, out + 256);
  }
}

void pack_codes(const PackPlan& plan, const Geometry& g, uint8_t* out, const uint8_t* codes) {
  const int64_t unit = unit_bytes(plan.code);
  int k = 0;
  for (; k + kUnit <= plan.k; k += kUnit) {
    pack_unit(plan.code, codes + k, out + k / kUnit * unit);
  }
  if (k == g.k_pad) return;
  uint8_t last[kUnit];
  std::memset(last, plan.zero, kUnit);
  std::memcpy(last, codes + k, static_cast<size_t>(plan.k - k));
  pack_unit(plan.code, last, out + k / kUnit * unit);
}

// One value per group of row `row`; groups that the row doesn't have (padding) are 0.
void pack_table(const PackPlan& plan, const Geometry& g, uint8_t* table, int row,
                const float* values, int n) {
  const int lane = row % kLanes;
  for (int i = 0; i < g.n_groups; ++i) {
    const float v = i < n ? values[i] : 0.0f;
    const int64_t at = static_cast<int64_t>(i) * kLanes + lane;
    if (plan.scale_f32) {
      std::memcpy(table + 4 * at, &v, 4);
    } else {
      const uint16_t h = float_to_half(v);
      std::memcpy(table + 2 * at, &h, 2);
    }
  }
}

void pack_affine_row(const PackPlan& plan, const Geometry& g, uint8_t* data, int row,
                     const uint8_t* codes, const float* scales, const float* offsets) {
  const int stored = plan.group >= plan.k ? 1 : (plan.k + plan.group - 1) / plan.group;
  uint8_t* panel = data + (row / kLanes) * g.panel_bytes;
  pack_codes(plan, g, row_words(g, data, row), codes);
  pack_table(plan, g, panel, row, scales, stored);
  if (plan.has_offset) pack_table(plan, g, panel + g.table_bytes, row, offsets, stored);
}

void pack_f32_row(const PackPlan& plan, const Geometry& g, uint8_t* data, int row, const float* w) {
  uint8_t* out = row_words(g, data, row);
  if (plan.code == Code::kF32) {
    for (int k = 0; k < plan.k; ++k) std::memcpy(out + 64 * static_cast<int64_t>(k), w + k, 4);
    for (int k = plan.k; k < g.k_pad; ++k) put_word(out + 64 * static_cast<int64_t>(k), 0);
    return;
  }
  if (plan.code == Code::kF16) {
    out -= row % kLanes * 2;  // 2 bytes a row
    for (int k = 0; k < g.k_pad; ++k) {
      const uint16_t h = k < plan.k ? float_to_half(w[k]) : uint16_t{0};
      std::memcpy(out + 32 * static_cast<int64_t>(k), &h, 2);
    }
    return;
  }
  for (int k = 0; k < g.k_pad; k += 2) {
    const uint32_t even = k < plan.k ? float_to_bf16(w[k]) : 0u;
    const uint32_t odd = k + 1 < plan.k ? float_to_bf16(w[k + 1]) : 0u;
    put_word(out + 32 * static_cast<int64_t>(k), even | odd << 16);
  }
}

}  // namespace

Code code_for(int bits) {
  constexpr Code kBits[] = {Code::kTwo,  Code::kTwo, Code::kTwo,  Code::kThree, Code::kNibble,
                            Code::kFive, Code::kSix, Code::kByte, Code::kByte};
  assert(bits >= 1 && bits <= 8);
  return kBits[bits];
}

int64_t packed_bytes(const PackPlan& plan) {
  const Geometry g = geometry(plan);
  return g.panel_bytes * g.panels;
}

PackedWeight packed_view(const PackPlan& plan, uint8_t* data) {
  const Geometry g = geometry(plan);
  const size_t codes = static_cast<size_t>(level_count(plan.code));
  assert(plan.levels8.empty() || plan.levels8.size() == codes);
  assert(plan.levels.empty() || plan.levels.size() == codes);
  static_cast<void>(codes);
  PackedWeight w;
  w.n = plan.n;
  w.k = plan.k;
  w.k_pad = g.k_pad;
  w.panels = g.panels;
  w.code = plan.code;
  w.group = has_codes(plan.code) ? std::min(plan.group, g.k_pad) : g.k_pad;
  if (g.n_groups == 1) w.group = g.k_pad;
  w.n_groups = g.n_groups;
  w.zero = plan.zero;
  w.scale_f32 = plan.scale_f32;
  w.has_offset = plan.has_offset;
  w.levels8 = plan.levels8.empty() ? nullptr : plan.levels8.data();
  w.levels = plan.levels.empty() ? nullptr : plan.levels.data();
  w.data = data + g.front;
  w.panel_bytes = g.panel_bytes;
  w.scale_offset = -g.front;
  w.offset_offset = g.table_bytes - g.front;
  return w;
}

void pack_affine(const PackPlan& plan, uint8_t* data, int row0, const AffineRows& rows) {
  assert(has_codes(plan.code) && rows.k == plan.k && row0 + rows.rows <= plan.n);
  const Geometry g = geometry(plan);
  const size_t k = static_cast<size_t>(plan.k);
  const size_t groups = rows.scales.size() / static_cast<size_t>(std::max(rows.rows, 1));
  for (int r = 0; r < rows.rows; ++r) {
    const size_t i = static_cast<size_t>(r);
    const float* offsets = plan.has_offset ? rows.offsets.data() + i * groups : nullptr;
    pack_affine_row(plan, g, data, row0 + r, rows.codes.data() + i * k,
                    rows.scales.data() + i * groups, offsets);
  }
}

void pack_f32(const PackPlan& plan, uint8_t* data, int row0, int rows, const float* w) {
  assert(!has_codes(plan.code) && row0 + rows <= plan.n);
  const Geometry g = geometry(plan);
  for (int r = 0; r < rows; ++r) {
    pack_f32_row(plan, g, data, row0 + r, w + static_cast<int64_t>(r) * plan.k);
  }
}

void clear_padding(const PackPlan& plan, uint8_t* data) {
  const Geometry g = geometry(plan);
  const std::vector<uint8_t> codes(static_cast<size_t>(plan.k), static_cast<uint8_t>(plan.zero));
  const std::vector<float> zeros(static_cast<size_t>(g.k_pad), 0.0f);
  for (int row = plan.n; row < g.panels * kLanes; ++row) {
    if (has_codes(plan.code)) {
      pack_affine_row(plan, g, data, row, codes.data(), zeros.data(), zeros.data());
    } else {
      pack_f32_row(plan, g, data, row, zeros.data());
    }
  }
  const int64_t tables = g.table_bytes * (plan.has_offset ? 2 : 1);
  for (int p = 0; p < g.panels; ++p) {  // the gap that rounds the tables up to 64 bytes
    std::memset(data + p * g.panel_bytes + tables, 0, static_cast<size_t>(g.front - tables));
  }
}

}  // namespace octavo
