// Integer products by vpmaddubsw (unsigned x signed bytes, pairs summed to 16 bits, saturating) and
// vpmaddwd. As many pairs are added in 16 bits as can't overflow: 2 * 127 * the largest code each.
// Bytes go as two planes of nibbles, the high one times 16. Levels are signed: |level| times q with
// its sign. The ISA's pairs_*.h defines
//   kFlatRows, kTallPanels, kTallRows  the tiles that fit its registers (one panel each)
//   p_mul(codes, q), p_add(a, b), p_widen(pairs, weight)  on pairs of 16 bits; the last to 32
//   b_abs(v), b_sign(q, v)  q with the sign of v, anything where v is 0

#include "kernels/a8_codes.inl"

static_assert(kTallPanels == 1);

inline I lut_of(const int8_t* levels8) { return b_table16(levels8); }

// What a code stands above its value.
inline int code_zero(const PackedWeight& w) { return w.levels8 || w.levels16 ? 0 : w.zero; }

inline int32_t sum16(const int8_t* q) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  __m128i s = _mm_madd_epi16(_mm_maddubs_epi16(_mm_set1_epi8(1), v), _mm_set1_epi16(1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#include "kernels/a8_tile.inl"

inline I broadcast4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return i_set1(four);
}

// Quads whose sums of pairs fit in 16 bits together.
constexpr int quads_in_16_bits(Wide mode) {
  if (mode.levels != Levels::kNone) return 1;
  if (mode.code == Code::kFive) return 4;
  return mode.code == Code::kSix ? 2 : 8;
}

// Sums in progress: pairs in 16 bits, for kByte of both nibbles.
struct Sums {
  I low, high;
};

template <Wide kMode>
OCTAVO_INLINE void add_codes(Sums& s, I code, I table, I q) {
  if (kMode.levels == Levels::kInt8) {
    const I level = b_lookup16(table, code);
    s.low = p_mul(b_abs(level), b_sign(q, level));
  } else if (kMode.code == Code::kByte) {
    s.low = p_add(s.low, p_mul(b_and(code, 15), q));
    s.high = p_add(s.high, p_mul(b_and(b_shift<-4>(code), 15), q));
  } else {
    s.low = p_add(s.low, p_mul(code, q));
  }
}

// acc += the sums, which start again from 0.
template <Wide kMode>
OCTAVO_INLINE void drain(Sums& s, I& acc) {
  acc = i_add(acc, p_widen(s.low, 1));
  if (kMode.code == Code::kByte) acc = i_add(acc, p_widen(s.high, 16));
  s = {i_set1(0), i_set1(0)};
}

template <Wide kMode, int kQuad, int kPanels, int kRows>
OCTAVO_INLINE void dot_quad(A8Tile<kPanels, kRows>& t, Sums* sums, const uint8_t* unit, int k) {
  constexpr bool kDrain = (kQuad + 1) % quads_in_16_bits(kMode) == 0;
  const I code = load_codes<kMode.code, kQuad>(unit);
  for (int r = 0; r < kRows; ++r) {
    add_codes<kMode>(sums[r], code, t.table, broadcast4(t.q[r] + k + 4 * kQuad));
    if (kDrain) drain<kMode>(sums[r], t.acc[0][r]);
  }
}

template <Wide kMode, int kHalf, int kPanels, int kRows>
OCTAVO_INLINE void dot_half(A8Tile<kPanels, kRows>& t, Sums* sums, const uint8_t* unit, int k) {
  dot_quad<kMode, 4 * kHalf>(t, sums, unit, k);
  dot_quad<kMode, 4 * kHalf + 1>(t, sums, unit, k);
  dot_quad<kMode, 4 * kHalf + 2>(t, sums, unit, k);
  dot_quad<kMode, 4 * kHalf + 3>(t, sums, unit, k);
}

// acc += v * q over inputs [k, k + 16) of a unit (`half` 0 or 1), or all 32 (`half` 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_lines(A8Tile<kPanels, kRows>& t, const uint8_t* const* units, int k,
                             int half) {
  Sums sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = {i_set1(0), i_set1(0)};
  if (half != 1) dot_half<kMode, 0>(t, sums, units[0], k);
  if (half != 0) dot_half<kMode, 1>(t, sums, units[0], k);
  if (quads_in_16_bits(kMode) < 8 || half == 2) return;  // drained already
  for (int r = 0; r < kRows; ++r) drain<kMode>(sums[r], t.acc[0][r]);
}

template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(A8Tile<kPanels, kRows>& t, int unit, int half) {
  const uint8_t* lines = t.panel[0] + static_cast<int64_t>(unit) * unit_bytes(kMode.code);
  dot_lines<kMode>(t, &lines, unit * kUnit, half);
}
