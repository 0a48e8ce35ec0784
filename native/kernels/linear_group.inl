// Weight-only products (abf16, a32) of coded weights: the exact value of a code times an input, the
// scale once per step. A step is min(group, 64) inputs, or 32 where 64 doesn't fit (a8_group_for):
//   sums[j] = fma(v, x, sums[j]) from +0, K ascending, j = 0 for even inputs, 1 for odd ones;
//   y = fma(sums[0] + sums[1], s, y); with offsets then y = fma(sum x, o, y)
// With a zero point per group v is the code, and fma(-zero, sum x, sums[0] + sums[1]) is scaled.
// Two sums keep two chains in flight. One row of activations goes straight through the codes; for
// many rows values are decoded once. Which number is which product is a `Product`: fp32 here,
// pairs of bf16 in linear_group_bf16.inl.

#include "kernels/a8_codes.inl"

// Compiled once for all that use it.
#define OCTAVO_APART [[gnu::noinline]] inline

constexpr int kGroupChunk = 128;  // inputs decoded at once: whole steps
constexpr int kWideChunk = 2048;  // inputs of a row widened at once

struct ValueTable {
  Levels32 levels;
  F few, zero;  // up to 16 values in a register; or what a code stands above its value
};

inline void open_values(const PackedWeight& w, ValueTable* t) {
  if (w.levels8 || w.levels || level_count(w.code) == 16) {
    fill_levels(w, &t->levels);
    t->few = f_load(t->levels.v);
  }
  t->zero = f_set1(static_cast<float>(w.zero));
}

template <Code kCode, bool kLut, int kByte>
OCTAVO_INLINE F value_in(I codes, const ValueTable& t) {
  const I shifted = kByte == 0 ? codes : i_shr(codes, 8 * kByte);
  if constexpr (level_count(kCode) == 16 && (kLut || kQuickPick)) return f_pick16(t.few, shifted);
  const I code = kByte == 3 ? shifted : i_and(shifted, i_set1(255));
  if constexpr (kLut) {
    return level_count(kCode) == 16 ? f_pick16(t.few, code) : f_lookup256(t.levels.v, code);
  }
  return f_sub(f_of_int(code), t.zero);
}

// One input at a time, in fp32.
struct SingleInputs {
  using Input = float;
  using Operand = F;
  using Table = ValueTable;
  static constexpr int kOperands = 4;  // of a quad
  static constexpr int kInputs = 1;    // of an operand

  template <Code kCode, bool kLut, int kQuad>
  OCTAVO_INLINE static void operands(const uint8_t* unit, const Table& t, F* out) {
    const I codes = load_codes<kCode, kQuad>(unit);
    out[0] = value_in<kCode, kLut, 0>(codes, t);
    out[1] = value_in<kCode, kLut, 1>(codes, t);
    out[2] = value_in<kCode, kLut, 2>(codes, t);
    out[3] = value_in<kCode, kLut, 3>(codes, t);
  }
  OCTAVO_INLINE static F add(F sum, F v, const float* x) { return f_fma(v, f_set1(*x), sum); }
  OCTAVO_INLINE static F load(const uint8_t* p) {
    return f_load(reinterpret_cast<const float*>(p));
  }
  OCTAVO_INLINE static void store(uint8_t* p, F v) { f_store(reinterpret_cast<float*>(p), v); }
  OCTAVO_INLINE static F sixteen(const float* x) { return f_load(x); }
};

// kPanels panels by kRows rows. Inputs are counted from the tile's first.
template <class Product, int kPanels, int kRows>
struct GroupTile {
  const uint8_t* panel[kPanels];
  const typename Product::Input* in[kRows];
  float* y[kRows];
  F sums[kPanels][kRows][2], out[kPanels][kRows];
  int step, group, left;  // inputs that the group still has
};

template <class Product, int kPanels, int kRows>
OCTAVO_INLINE void clear_sums(GroupTile<Product, kPanels, kRows>& t) {
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) t.sums[p][r][0] = t.sums[p][r][1] = f_zero();
  }
}

template <class Product, int kPanels, int kRows>
OCTAVO_INLINE void open_group_tile(const PackedWeight& w, int k0,
                                   GroupTile<Product, kPanels, kRows>& t) {
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) t.out[p][r] = k0 == 0 ? f_zero() : f_load(t.y[r] + 16 * p);
  }
  clear_sums(t);
  t.step = smaller(w.group, a8_group_for(w.group, w.k_pad));
  t.group = k0 / w.group;
  t.left = w.group - k0 % w.group;
}

template <class Product, int kPanels, int kRows>
OCTAVO_INLINE void close_group_tile(const GroupTile<Product, kPanels, kRows>& t) {
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) f_store(t.y[r] + 16 * p, t.out[p][r]);
  }
}

template <class Product>
inline F sum_of_inputs(const typename Product::Input* x, int n) {
  F sum = Product::sixteen(x);
  for (int i = 16; i < n; i += 16) sum = f_add(sum, Product::sixteen(x + i));
  return f_set1(f_fold_add(sum));
}

// A zero point per group leaves the codes as they are: what it takes off every input is taken off
// their sum.
template <class Product, int kPanels, int kRows>
OCTAVO_INLINE void subtract_zeros(const PackedWeight& w, int at,
                                  GroupTile<Product, kPanels, kRows>& t) {
  for (int r = 0; r < kRows; ++r) {
    const F sum = sum_of_inputs<Product>(t.in[r] + at, t.step);
    for (int p = 0; p < kPanels; ++p) {
      const F minus = f_of_int(i_sub(i_set1(0), zero_of(w, t.panel[p], t.group)));
      F* sums = t.sums[p][r];
      sums[0] = f_fma(minus, sum, f_add(sums[0], sums[1]));
      sums[1] = f_zero();
    }
  }
}

// The step that began at input `at` is summed up.
template <class Product, int kPanels, int kRows>
OCTAVO_INLINE void finish_group_step(const PackedWeight& w, int at,
                                     GroupTile<Product, kPanels, kRows>& t) {
  if (w.has_zero) subtract_zeros(w, at, t);
  for (int p = 0; p < kPanels; ++p) {
    const F s = scale_of(w, t.panel[p], t.group);
    for (int r = 0; r < kRows; ++r) {
      t.out[p][r] = f_fma(f_add(t.sums[p][r][0], t.sums[p][r][1]), s, t.out[p][r]);
    }
  }
  clear_sums(t);
  if (w.has_offset) {
    for (int r = 0; r < kRows; ++r) {
      const F sum = sum_of_inputs<Product>(t.in[r] + at, t.step);
      for (int p = 0; p < kPanels; ++p) {
        const F o = offset_of(w, t.panel[p], t.group);
        t.out[p][r] = f_fma(sum, o, t.out[p][r]);
      }
    }
  }
  t.left -= t.step;
  if (t.left == 0) {
    ++t.group;
    t.left = w.group;
  }
}

template <class Product, Code kCode, bool kLut, int kQuad>
OCTAVO_INLINE void add_quad(const uint8_t* unit, const typename Product::Table& table, int at,
                            GroupTile<Product, 1, 1>& t) {
  typename Product::Operand v[Product::kOperands];
  Product::template operands<kCode, kLut, kQuad>(unit, table, v);
  for (int i = 0; i < Product::kOperands; ++i) {
    const auto* x = t.in[0] + at + 4 * kQuad + i * Product::kInputs;
    t.sums[0][0][i % 2] = Product::add(t.sums[0][0][i % 2], v[i], x);
  }
}

template <class Product, Code kCode, bool kLut, int kHalf>
OCTAVO_INLINE void add_half(const uint8_t* unit, const typename Product::Table& table, int at,
                            GroupTile<Product, 1, 1>& t) {
  add_quad<Product, kCode, kLut, 4 * kHalf>(unit, table, at, t);
  add_quad<Product, kCode, kLut, 4 * kHalf + 1>(unit, table, at, t);
  add_quad<Product, kCode, kLut, 4 * kHalf + 2>(unit, table, at, t);
  add_quad<Product, kCode, kLut, 4 * kHalf + 3>(unit, table, at, t);
}

// One panel by one row, inputs [k0, k1), straight from the codes.
template <class Product, Code kCode, bool kLut>
OCTAVO_APART void direct_tile(const PackedWeight& w, const typename Product::Table& table, int k0,
                              int k1, const GroupTile<Product, 1, 1>& from) {
  GroupTile<Product, 1, 1> t = from;  // its own, to stay in registers
  open_group_tile(w, k0, t);
  if (k0 == 0) touch_tables(w, t.panel[0]);
  const uint8_t* unit = t.panel[0] + static_cast<int64_t>(k0 / kUnit) * unit_bytes(kCode);
  for (int at = 0; at < k1 - k0; at += kUnit, unit += unit_bytes(kCode)) {
    add_half<Product, kCode, kLut, 0>(unit, table, at, t);
    if (t.step == 16) finish_group_step(w, at, t);
    add_half<Product, kCode, kLut, 1>(unit, table, at, t);
    const int done = at + kUnit;
    if ((done & (t.step - 1)) == 0) finish_group_step(w, done - t.step, t);
  }
  close_group_tile(t);
}

// Operands of inputs [k, k + n) of a panel: 64 bytes each.
template <class Product, Code kCode, bool kLut, int kQuad>
OCTAVO_INLINE void decode_quads(const uint8_t* unit, const typename Product::Table& table,
                                uint8_t* out) {
  typename Product::Operand v[Product::kOperands];
  Product::template operands<kCode, kLut, kQuad>(unit, table, v);
  for (int i = 0; i < Product::kOperands; ++i) {
    Product::store(out + 64 * (kQuad * Product::kOperands + i), v[i]);
  }
  if constexpr (kQuad < 7) decode_quads<Product, kCode, kLut, kQuad + 1>(unit, table, out);
}
template <class Product, Code kCode, bool kLut>
OCTAVO_APART void decode_operands(const uint8_t* panel, const typename Product::Table& table, int k,
                                  int n, uint8_t* out) {
  const uint8_t* unit = panel + static_cast<int64_t>(k / kUnit) * unit_bytes(kCode);
  for (int i = 0; i < n; i += kUnit, unit += unit_bytes(kCode)) {
    decode_quads<Product, kCode, kLut, 0>(unit, table, out);
    out += 64 * 8 * Product::kOperands;
  }
}

// Inputs [k0, k0 + n) of kPanels panels from their operands. `t` has its pointers.
template <class Product, int kPanels, int kRows>
OCTAVO_APART void decoded_tile(const PackedWeight& w, const uint8_t* operands, int k0, int n,
                               const GroupTile<Product, kPanels, kRows>& from) {
  constexpr int kStride = 64 * (kGroupChunk / 4) * Product::kOperands;  // from panel to panel
  GroupTile<Product, kPanels, kRows> t = from;
  open_group_tile(w, k0, t);
  for (int start = 0; start < n; start += t.step) {
    for (int at = start; at < start + t.step; at += 4) {
      for (int i = 0; i < Product::kOperands; ++i, operands += 64) {
        typename Product::Operand v[kPanels];
        for (int p = 0; p < kPanels; ++p) v[p] = Product::load(operands + p * kStride);
        for (int r = 0; r < kRows; ++r) {
          const auto* x = t.in[r] + at + i * Product::kInputs;
          for (int p = 0; p < kPanels; ++p) {
            t.sums[p][r][i % 2] = Product::add(t.sums[p][r][i % 2], v[p], x);
          }
        }
      }
    }
    finish_group_step(w, start, t);
  }
  close_group_tile(t);
}

// Where rows of activations are: as they lie, or widened from bf16 to fp32 through a buffer.
template <class Product, bool kWiden>
inline const typename Product::Input* inputs_at(const ActView& x, int64_t row, int k, int n,
                                                typename Product::Input* wide) {
  const int64_t at = row * x.k_pad + k;
  if constexpr (kWiden) {
    for (int i = 0; i < n; i += 16) f_store(wide + i, f_load_bf16(x.bf16 + at + i));
    return wide;
  } else if constexpr (Product::kInputs == 2) {
    return x.bf16 + at;
  } else {
    return x.f32 + at;
  }
}

struct LinearOut {
  float* y;
  int64_t ldy;
};

// One row, all inputs, panels [p0, p1).
template <class Product, bool kWiden, Code kCode, bool kLut>
inline void one_group_row(const PackedWeight& w, const typename Product::Table& table,
                          const ActView& x, LinearOut to, int p0, int p1) {
  alignas(64) typename Product::Input wide[kWiden ? kWideChunk : 1];
  const int chunk = kWiden ? kWideChunk : w.k_pad;
  const int64_t row = row_of(x, 0);
  GroupTile<Product, 1, 1> t;
  for (int k = 0; k < w.k_pad; k += chunk) {
    const int n = smaller(chunk, w.k_pad - k);
    t.in[0] = inputs_at<Product, kWiden>(x, row, k, n, wide);
    for (int p = p0; p < p1; ++p) {
      t.panel[0] = panel_at(w, p);
      t.y[0] = to.y + row * to.ldy + 16 * p;
      direct_tile<Product, kCode, kLut>(w, table, k, k + n, t);
    }
  }
}

template <class Product, bool kWiden, int kPanels, int kRows>
inline void decoded_rows(const PackedWeight& w, const ActView& x, const uint8_t* operands, int r,
                         int p, int k, int n, LinearOut to) {
  alignas(64) typename Product::Input wide[kWiden ? kRows * kGroupChunk : 1];
  GroupTile<Product, kPanels, kRows> t;
  for (int i = 0; i < kPanels; ++i) t.panel[i] = panel_at(w, p + i);
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = row_of(x, r + i);
    t.in[i] = inputs_at<Product, kWiden>(x, row, k, n, wide + (kWiden ? i * kGroupChunk : 0));
    t.y[i] = to.y + row * to.ldy + 16 * p;
  }
  decoded_tile(w, operands, k, n, t);
}

// kPanels panels by all rows, through operands decoded once.
template <class Product, bool kWiden, Code kCode, bool kLut, int kPanels>
inline void many_group_rows(const PackedWeight& w, const typename Product::Table& table,
                            const ActView& x, int m, LinearOut to, int p) {
  constexpr int kStride = 64 * (kGroupChunk / 4) * Product::kOperands;
  alignas(64) uint8_t operands[kPanels * kStride];
  for (int k = 0; k < w.k_pad; k += kGroupChunk) {
    const int n = smaller(kGroupChunk, w.k_pad - k);
    for (int i = 0; i < kPanels; ++i) {
      decode_operands<Product, kCode, kLut>(panel_at(w, p + i), table, k, n,
                                            operands + i * kStride);
    }
    int r = 0;
    for (; r + kGroupRows <= m; r += kGroupRows) {
      decoded_rows<Product, kWiden, kPanels, kGroupRows>(w, x, operands, r, p, k, n, to);
    }
    for (; r + 2 <= m; r += 2) {
      decoded_rows<Product, kWiden, kPanels, 2>(w, x, operands, r, p, k, n, to);
    }
    if (r < m) decoded_rows<Product, kWiden, kPanels, 1>(w, x, operands, r, p, k, n, to);
  }
}

template <class Product, bool kWiden, Code kCode, bool kLut>
inline void group_panels(const PackedWeight& w, const ActView& x, int m, LinearOut to, int p0,
                         int p1) {
  typename Product::Table table;
  open_values(w, &table);
  if (m == 1) return one_group_row<Product, kWiden, kCode, kLut>(w, table, x, to, p0, p1);
  int p = p0;
  for (; p + kFloatPanels <= p1; p += kFloatPanels) {
    many_group_rows<Product, kWiden, kCode, kLut, kFloatPanels>(w, table, x, m, to, p);
  }
  for (; p < p1; ++p) many_group_rows<Product, kWiden, kCode, kLut, 1>(w, table, x, m, to, p);
}

// fp32 products: a32, and abf16 (kWiden) where there is no product of bf16.
template <Code kCode, bool kWiden>
inline void linear_group(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                         int p0, int p1) {
  w.levels8 || w.levels
      ? group_panels<SingleInputs, kWiden, kCode, true>(w, x, m, {y, ldy}, p0, p1)
      : group_panels<SingleInputs, kWiden, kCode, false>(w, x, m, {y, ldy}, p0, p1);
}
