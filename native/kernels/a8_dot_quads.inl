// Integer products by an instruction that sums four products of bytes into each lane of 32 bits:
// every lane is one output row. The ISA's quads_*.h says which: vpdpbusd, sdot, usdot, or NEON's
// long multiplies. It defines
//   kSignedCodes  its dot takes codes as signed bytes: bytes then go as code - 128
//   kFlatRows, kTallPanels, kTallRows  the tiles that fit its registers
//   Quads, quads_at(q)  16 inputs of one row; word<j>(quads): the j-th four of them, for i_dot
//   i_dot(acc, codes, word)  acc + the sum of four products, exact
//   sum16(q)  the sum of 16 inputs

#include "kernels/a8_codes.inl"

// Levels are stored as level + 128 where codes must be unsigned.
constexpr int kLutZero = kSignedCodes ? 0 : 128;
constexpr int kFlip = static_cast<int>(0x80808080u);  // in each byte: signed <-> unsigned

inline I lut_of(const int8_t* levels8) {
  const I levels = b_table16(levels8);
  return kSignedCodes ? levels : i_xor(levels, i_set1(kFlip));
}

// What a code stands above its value, as i_dot sees it.
inline int code_zero(const PackedWeight& w) {
  if (w.levels8 || w.levels16) return kLutZero;
  return kSignedCodes && w.code == Code::kByte ? w.zero - 128 : w.zero;
}

#include "kernels/a8_tile.inl"

template <Wide kMode, int kQuad>
OCTAVO_INLINE I dot_operand(const uint8_t* unit, I table) {
  const I code = load_codes<kMode.code, kQuad>(unit);
  if (kMode.levels == Levels::kInt8) return b_lookup16(table, code);
  return kSignedCodes && kMode.code == Code::kByte ? i_xor(code, i_set1(kFlip)) : code;
}

template <Wide kMode, int kQuad, int kPanels, int kRows>
OCTAVO_INLINE void dot_quad(A8Tile<kPanels, kRows>& t, const uint8_t* const* units,
                            const Quads* quads) {
  I v[kPanels];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) v[p] = dot_operand<kMode, kQuad>(units[p], t.table);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const auto q = word<kQuad % 4>(quads[r]);
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) t.acc[p][r] = i_dot(t.acc[p][r], v[p], q);
  }
}

template <Wide kMode, int kHalf, int kPanels, int kRows>
OCTAVO_INLINE void dot_half(A8Tile<kPanels, kRows>& t, const uint8_t* const* units, int k) {
  Quads quads[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) quads[r] = quads_at(t.q[r] + k + 16 * kHalf);
  dot_quad<kMode, 4 * kHalf>(t, units, quads);
  dot_quad<kMode, 4 * kHalf + 1>(t, units, quads);
  dot_quad<kMode, 4 * kHalf + 2>(t, units, quads);
  dot_quad<kMode, 4 * kHalf + 3>(t, units, quads);
}

// acc += v * q over inputs [k, k + 16) of a unit of each panel (`half` 0 or 1), or all 32 (`half`
// 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_lines(A8Tile<kPanels, kRows>& t, const uint8_t* const* units, int k,
                             int half) {
  if (half != 1) dot_half<kMode, 0>(t, units, k);
  if (half != 0) dot_half<kMode, 1>(t, units, k);
}

template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(A8Tile<kPanels, kRows>& t, int unit, int half) {
  const uint8_t* units[kPanels];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
    units[p] = t.panel[p] + static_cast<int64_t>(unit) * unit_bytes(kMode.code);
  }
  dot_lines<kMode>(t, units, unit * kUnit, half);
}
