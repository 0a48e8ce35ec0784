// Panels of 16 rows (T16) from rows, and their geometry.
#include "pack/pack.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "codecs/half.h"

namespace octavo {
namespace {

struct Geometry {
  int k_pad, panels, n_groups, n_supers;
  int64_t sub_at, pair_at;            // of a two-level table, from its start
  int64_t scale_bytes, offset_bytes;  // of the two tables of a panel
  int64_t front;                      // bytes of a panel before its codes
  int64_t panel_bytes;
};

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

bool two_level(Scaling scaling) { return scaling != Scaling::kF16 && scaling != Scaling::kF32; }

// Fills in where the parts of a table of scales lie; its bytes.
int64_t table_bytes(const PackPlan& plan, Geometry* g) {
  const int64_t groups = g->n_groups;
  if (!two_level(plan.scaling)) return groups * kLanes * (plan.scaling == Scaling::kF32 ? 4 : 2);
  g->sub_at = int64_t{g->n_supers} * kLanes * 2;
  if (plan.scaling == Scaling::kSub8) return g->sub_at + groups * kLanes;
  g->pair_at = g->sub_at + (groups + 1) / 2 * kLanes;
  return g->pair_at + (plan.scaling == Scaling::kSub6 ? (groups + 3) / 4 * kLanes : 0);
}

Geometry geometry(const PackPlan& plan) {
  Geometry g = {};
  g.k_pad = static_cast<int>(round_up(plan.k, kUnit));
  g.panels = static_cast<int>(round_up(plan.n, kLanes) / kLanes);
  if (has_codes(plan.code)) {
    g.n_groups = plan.group >= plan.k ? 1 : g.k_pad / plan.group;
    if (two_level(plan.scaling)) g.n_supers = (g.k_pad + plan.super_group - 1) / plan.super_group;
    g.scale_bytes = table_bytes(plan, &g);
    const int64_t zeros = plan.has_zero ? int64_t{g.n_groups} * kLanes : 0;
    g.offset_bytes = plan.has_offset ? g.scale_bytes : zeros;
    const int64_t mask = is_block(plan.code) ? block_mask_bytes(g.k_pad) : 0;
    g.front = round_up(g.scale_bytes + g.offset_bytes + mask, 64);
  }
  const int units = is_block(plan.code) ? 0 : g.k_pad / kUnit;  // theirs differ by panel
  g.panel_bytes = g.front + static_cast<int64_t>(units) * unit_bytes(plan.code);
  return g;
}

uint8_t* panel_of(const PackPlan& plan, const Geometry& g, uint8_t* data, int panel) {
  const int64_t units =
      is_block(plan.code) ? plan.units_before[static_cast<size_t>(panel)] : int64_t{0};
  return data + panel * g.panel_bytes + units * unit_bytes(plan.code);
}

// Where row `row` puts its 4-byte words: every 64 bytes from here.
uint8_t* row_words(const PackPlan& plan, const Geometry& g, uint8_t* data, int row) {
  return panel_of(plan, g, data, row / kLanes) + g.front + (row % kLanes) * 4;
}

size_t mask_row_bytes(const PackPlan& plan) {
  return static_cast<size_t>((plan.k / kUnit + 7) / 8);
}

// The bits of a panel's blocks, [mask_row_bytes].
const uint8_t* mask_of(const PackPlan& plan, int panel) {
  return plan.blocks.data() + static_cast<size_t>(panel) * mask_row_bytes(plan);
}
bool is_there(const uint8_t* mask, int unit) { return (mask[unit / 8] >> (unit % 8) & 1) != 0; }

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

// A quad's mask of stored codes, always two, and these: the first in the low byte.
struct Stored {
  uint32_t mask, codes;
};
Stored stored_of(const uint8_t* quad, int zero) {
  Stored s = {};
  int count = 0;
  const auto keep = [&](int c) {
    s.mask |= 1u << c;
    ++count;
  };
  for (int c = 0; c < 4; ++c) {
    if (quad[c] != zero) keep(c);
  }
  if (count > 2) throw std::invalid_argument("more than two of four codes aren't zero");
  for (int c = 0; count < 2; ++c) {
    if ((s.mask >> c & 1) == 0) keep(c);
  }
  for (int c = 3; c >= 0; --c) {
    if (s.mask >> c & 1) s.codes = s.codes << 8 | static_cast<uint32_t>(quad[c] ^ zero);
  }
  return s;
}

void pack_sparse(Code code, const uint8_t* codes, uint8_t* out) {
  uint32_t words[4] = {}, masks = 0;
  for (int quad = 0; quad < 8; ++quad) {
    const Stored s = stored_of(codes + 4 * quad, sparse_zero(code));
    words[quad / 2] |= s.codes << (16 * (quad % 2));
    masks |= s.mask << (4 * quad);
  }
  const int lines = code == Code::kSparseByte ? 4 : 2;
  for (int i = 0; i < lines; ++i) {
    put_word(out + 64 * i, lines == 4 ? words[i] : words[i] | words[2 + i] << 4);
  }
  put_word(out + 64 * lines, masks);
}

// A run: the code of each weight is the low bits of its window.
inline void put_run(const uint8_t* windows, uint8_t* out) {
  for (int half = 0; half < 2; ++half) {
    uint32_t word = 0;
    for (int i = 0; i < 16; ++i) {
      word |= static_cast<uint32_t>(windows[16 * half + i] & 3) << (2 * i);
    }
    put_word(out + 64 * half, word);
  }
}

// 32 codes of one row to its words, one a line.
inline void pack_unit(Code code, const uint8_t* codes, uint8_t* out) {
  if (is_sparse(code)) {
    pack_sparse(code, codes, out);
  } else if (code == Code::kTrellis) {
    put_run(codes, out);
  } else if (code == Code::kByte) {
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

void pack_blocks(const PackPlan& plan, const uint8_t* mask, const uint8_t* codes, uint8_t* out) {
  const auto zero = static_cast<uint8_t>(plan.zero);
  for (int unit = 0; unit < plan.k / kUnit; ++unit, codes += kUnit) {
    if (is_there(mask, unit)) {
      pack_unit(within_blocks(plan.code), codes, out);
      out += unit_bytes(plan.code);
    } else if (std::any_of(codes, codes + kUnit, [zero](uint8_t code) { return code != zero; })) {
      throw std::invalid_argument("a code that isn't zero in a block that isn't there");
    }
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
  std::memset(last, is_sparse(plan.code) ? sparse_zero(plan.code) : plan.zero, kUnit);
  std::memcpy(last, codes + k, static_cast<size_t>(plan.k - k));
  pack_unit(plan.code, last, out + k / kUnit * unit);
}

// n values of one row, 16 rows side by side.
void put_floats(uint8_t* table, int lane, const float* values, int n, bool wide) {
  for (int i = 0; i < n; ++i) {
    const int64_t at = static_cast<int64_t>(i) * kLanes + lane;
    if (wide) {
      std::memcpy(table + 4 * at, values + i, 4);
    } else {
      const uint16_t h = float_to_half(values[i]);
      std::memcpy(table + 2 * at, &h, 2);
    }
  }
}

// `width` bits from bit `from` of each value, 8 / width values to a byte.
void put_fields(uint8_t* table, int lane, const uint8_t* values, int n, int from, int width) {
  const int per_byte = 8 / width;
  for (int i = 0; i < n; i += per_byte) {
    int byte = 0;
    for (int j = 0; j < std::min(per_byte, n - i); ++j) {
      byte |= ((values[i + j] >> from) & ((1 << width) - 1)) << (width * j);
    }
    table[static_cast<int64_t>(i / per_byte) * kLanes + lane] = static_cast<uint8_t>(byte);
  }
}

// A row as a table takes it: a value per group, or a super per super-group and a sub per group.
struct TableRow {
  const float* values;
  const uint8_t* subs;
};

void pack_table(const PackPlan& plan, const Geometry& g, uint8_t* table, int lane, TableRow row) {
  if (!two_level(plan.scaling)) {
    return put_floats(table, lane, row.values, g.n_groups, plan.scaling == Scaling::kF32);
  }
  put_floats(table, lane, row.values, g.n_supers, false);
  if (plan.scaling == Scaling::kSub8) {
    return put_fields(table + g.sub_at, lane, row.subs, g.n_groups, 0, 8);
  }
  put_fields(table + g.sub_at, lane, row.subs, g.n_groups, 0, 4);
  if (plan.scaling == Scaling::kSub6) {
    put_fields(table + g.pair_at, lane, row.subs, g.n_groups, 4, 2);
  }
}

struct AffineRow {
  const uint8_t* codes;
  TableRow scales, offsets;
  const uint8_t* zeros;
};

void pack_affine_row(const PackPlan& plan, const Geometry& g, uint8_t* data, int row,
                     const AffineRow& from) {
  const int lane = row % kLanes;
  uint8_t* panel = panel_of(plan, g, data, row / kLanes);
  uint8_t* words = row_words(plan, g, data, row);
  if (is_block(plan.code)) {
    pack_blocks(plan, mask_of(plan, row / kLanes), from.codes, words);
  } else {
    pack_codes(plan, g, words, from.codes);
  }
  pack_table(plan, g, panel, lane, from.scales);
  if (plan.has_offset) pack_table(plan, g, panel + g.scale_bytes, lane, from.offsets);
  if (plan.has_zero) put_fields(panel + g.scale_bytes, lane, from.zeros, g.n_groups, 0, 8);
}

// Rows of [rows][stored] values, each followed by zeros where a panel has more of them (padding).
template <class T>
class RowReader {
 public:
  RowReader(const std::vector<T>& values, int rows, int n)
      : values_(values),
        stored_(rows > 0 ? static_cast<std::ptrdiff_t>(values.size()) / rows : 0),
        padded_(static_cast<size_t>(n)) {}
  const T* at(int row) {
    const auto n = std::min(stored_, static_cast<std::ptrdiff_t>(padded_.size()));
    std::copy_n(values_.begin() + row * stored_, n, padded_.begin());
    return padded_.data();
  }

 private:
  const std::vector<T>& values_;
  std::ptrdiff_t stored_;
  std::vector<T> padded_;
};

void pack_f32_row(const PackPlan& plan, const Geometry& g, uint8_t* data, int row, const float* w) {
  uint8_t* out = row_words(plan, g, data, row);
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

void set_levels16(PackPlan* plan, const std::vector<int>& levels, float step) {
  const size_t n = static_cast<size_t>(level_count(plan->code));
  if (levels.size() != n) throw std::invalid_argument("a codebook of another size");
  plan->levels16.resize(2 * n);
  plan->level_step = step;
  for (size_t i = 0; i < n; ++i) {
    if (std::abs(levels[i]) > 32639) throw std::invalid_argument("a level beyond 32639");
    const int low = ((levels[i] + 128) & 255) - 128;
    plan->levels16[i] = static_cast<int8_t>((levels[i] - low) / 256);
    plan->levels16[n + i] = static_cast<int8_t>(low);
  }
}

void set_blocks(PackPlan* plan, const std::vector<uint8_t>& mask) {
  const bool symmetric = !plan->has_offset && !plan->has_zero && plan->levels.empty() &&
                         plan->levels8.empty() && plan->zero == sparse_zero(plan->code);
  if (!is_block(plan->code) || !symmetric)
    throw std::invalid_argument("blocks are of symmetric codes of 4 or 8 bits");
  if (plan->n % kLanes != 0 || plan->k % kUnit != 0)
    throw std::invalid_argument("not a whole number of blocks of 16 by 32");
  const auto panels = static_cast<size_t>(plan->n / kLanes);
  if (mask.size() != panels * mask_row_bytes(*plan))
    throw std::invalid_argument("not a bit for each block");
  plan->blocks = mask;
  const int units = plan->k / kUnit;
  for (size_t last = mask_row_bytes(*plan); units % 8 != 0 && last <= mask.size();
       last += mask_row_bytes(*plan)) {
    plan->blocks[last - 1] &= static_cast<uint8_t>((1 << units % 8) - 1);  // kernels walk all bits
  }
  plan->units_before.assign(1, 0);
  for (int p = 0; p < static_cast<int>(panels); ++p) {
    int64_t there = 0;
    for (int u = 0; u < units; ++u) there += is_there(mask_of(*plan, p), u) ? 1 : 0;
    plan->units_before.push_back(plan->units_before.back() + there);
  }
}

int64_t packed_bytes(const PackPlan& plan) {
  const Geometry g = geometry(plan);
  if (!is_block(plan.code)) return g.panel_bytes * g.panels;
  if (plan.blocks.empty()) throw std::invalid_argument("set_blocks comes first");
  return g.panel_bytes * g.panels + plan.units_before.back() * unit_bytes(plan.code);
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
  w.scaling = plan.scaling;
  w.has_offset = plan.has_offset;
  w.has_zero = plan.has_zero;
  w.sub_bias = plan.sub_bias;
  w.sub_at = static_cast<int32_t>(g.sub_at);
  w.pair_at = static_cast<int32_t>(g.pair_at);
  if (two_level(plan.scaling)) {
    const auto per_super = static_cast<unsigned>(plan.super_group / plan.group);
    assert(std::has_single_bit(per_super));
    w.super_shift = std::countr_zero(per_super);
  }
  w.levels8 = plan.levels8.empty() ? nullptr : plan.levels8.data();
  w.levels = plan.levels.empty() ? nullptr : plan.levels.data();
  w.levels16 = plan.levels16.empty() ? nullptr : plan.levels16.data();
  w.level_step = plan.level_step;
  w.data = data + g.front;
  w.panel_bytes = g.panel_bytes;
  w.scale_offset = -g.front;
  w.offset_offset = g.scale_bytes - g.front;
  w.units_before = is_block(plan.code) ? plan.units_before.data() : nullptr;
  return w;
}

void pack_affine(const PackPlan& plan, uint8_t* data, int row0, const AffineRows& rows) {
  assert(has_codes(plan.code) && rows.k == plan.k && row0 + rows.rows <= plan.n);
  const Geometry g = geometry(plan);
  const int values = two_level(plan.scaling) ? g.n_supers : g.n_groups;
  RowReader<float> scales(rows.scales, rows.rows, values), offsets(rows.offsets, rows.rows, values);
  RowReader<uint8_t> subs(rows.subs, rows.rows, g.n_groups);
  RowReader<uint8_t> sub_offsets(rows.sub_offsets, rows.rows, g.n_groups);
  RowReader<uint8_t> zeros(rows.zeros, rows.rows, g.n_groups);
  for (int r = 0; r < rows.rows; ++r) {
    pack_affine_row(plan, g, data, row0 + r,
                    {rows.codes.data() + static_cast<size_t>(r) * static_cast<size_t>(plan.k),
                     {scales.at(r), subs.at(r)},
                     {offsets.at(r), sub_offsets.at(r)},
                     zeros.at(r)});
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
  const int zero = is_sparse(plan.code) ? sparse_zero(plan.code) : plan.zero;
  const std::vector<uint8_t> codes(static_cast<size_t>(plan.k), static_cast<uint8_t>(zero));
  const std::vector<float> zeros(static_cast<size_t>(g.k_pad), 0.0f);
  const std::vector<uint8_t> nothing(static_cast<size_t>(g.k_pad), 0);
  for (int row = plan.n; row < g.panels * kLanes; ++row) {
    if (has_codes(plan.code)) {
      pack_affine_row(plan, g, data, row,
                      {codes.data(),
                       {zeros.data(), nothing.data()},
                       {zeros.data(), nothing.data()},
                       nothing.data()});
    } else {
      pack_f32_row(plan, g, data, row, zeros.data());
    }
  }
  const int64_t tables = g.scale_bytes + g.offset_bytes;
  for (int p = 0; p < g.panels; ++p) {  // the gap that rounds the tables up to 64 bytes
    uint8_t* panel = panel_of(plan, g, data, p);
    std::memset(panel + tables, 0, static_cast<size_t>(g.front - tables));
    if (!is_block(plan.code)) continue;
    std::memcpy(panel + g.front - block_mask_bytes(g.k_pad), mask_of(plan, p),
                mask_row_bytes(plan));
  }
}

}  // namespace octavo
