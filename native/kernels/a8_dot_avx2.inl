// Integer products by vpmaddubsw (unsigned x signed bytes, pairs summed to 16 bits), two registers
// of 8 rows. As many pairs are added in 16 bits as can't overflow: 2 * 127 * the largest code each.
// Bytes go as two planes of nibbles, the high one times 16. Levels are signed: |level| times q with
// its sign.

constexpr int kTallPanels = 1, kTallRows = 4;
constexpr int kFlatRows = 4;
constexpr int kLutZero = 0;

inline I lut_of(const int8_t* levels8) {
  const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels8));
  const __m256i both = _mm256_broadcastsi128_si256(levels);
  return {both, both};
}

inline int32_t sum16(const int8_t* q) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  __m128i s = _mm_madd_epi16(_mm_maddubs_epi16(_mm_set1_epi8(1), v), _mm_set1_epi16(1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#include "kernels/a8_tile.inl"

inline __m256i broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
inline __m256i low_bits(__m256i v, int mask) {
  return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(mask)));
}
template <int kLeft>
OCTAVO_INLINE __m256i shifted(__m256i v) {  // towards the high bits, or the low ones if negative
  if constexpr (kLeft > 0) return _mm256_slli_epi16(v, kLeft);
  if constexpr (kLeft < 0) return _mm256_srli_epi16(v, -kLeft);
  return v;
}
template <int kLeft>
OCTAVO_INLINE __m256i with_plane(__m256i low, __m256i plane, int mask) {
  return _mm256_or_si256(low, low_bits(shifted<kLeft>(plane), mask));
}

// Codes of quad kQuad of a unit, for the 8 rows that start at its lines' first or second half.
template <Code kCode, int kQuad>
OCTAVO_INLINE __m256i load_codes(const uint8_t* unit) {
  if (kCode == Code::kByte) return load256(unit + 64 * kQuad);
  constexpr int kHalf = kQuad / 4, kPart = kQuad % 4;
  if (kCode == Code::kTwo || kCode == Code::kThree) {
    const __m256i two = low_bits(shifted<-2 * kPart>(load256(unit + 64 * kHalf)), 3);
    return kCode == Code::kTwo ? two : with_plane<2 - kQuad>(two, load256(unit + 128), 4);
  }
  const __m256i four = low_bits(shifted<-4 * kHalf>(load256(unit + 64 * kPart)), 15);
  if (kCode == Code::kFive) return with_plane<4 - kQuad>(four, load256(unit + 256), 16);
  if (kCode == Code::kSix) {
    return with_plane<4 - 2 * kPart>(four, load256(unit + 256 + 64 * kHalf), 48);
  }
  return four;
}

inline __m256i widened(__m256i pairs, int16_t weight) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(weight));
}

// Quads whose sums of pairs fit in 16 bits together.
constexpr int quads_in_16_bits(Wide mode) {
  if (mode.levels != Levels::kNone) return 1;
  if (mode.code == Code::kFive) return 4;
  return mode.code == Code::kSix ? 2 : 8;
}

// Sums of 8 rows in progress: pairs in 16 bits, for kByte of both nibbles.
struct Sums {
  __m256i low, high;
};

template <Wide kMode>
OCTAVO_INLINE void add_codes(Sums& s, __m256i code, __m256i table, __m256i q) {
  if (kMode.levels == Levels::kInt8) {
    const __m256i level = _mm256_shuffle_epi8(table, code);
    s.low = _mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(q, level));
  } else if (kMode.code == Code::kByte) {
    const __m256i high = low_bits(shifted<-4>(code), 15);
    s.low = _mm256_add_epi16(s.low, _mm256_maddubs_epi16(low_bits(code, 15), q));
    s.high = _mm256_add_epi16(s.high, _mm256_maddubs_epi16(high, q));
  } else {
    s.low = _mm256_add_epi16(s.low, _mm256_maddubs_epi16(code, q));
  }
}

// acc += the sums, which start again from 0.
template <Wide kMode>
OCTAVO_INLINE void drain(Sums& s, __m256i& acc) {
  acc = _mm256_add_epi32(acc, widened(s.low, 1));
  if (kMode.code == Code::kByte) acc = _mm256_add_epi32(acc, widened(s.high, 16));
  s = {_mm256_setzero_si256(), _mm256_setzero_si256()};
}

template <int kRows>
struct UnitSums {
  Sums of[2][kRows];
};

template <Wide kMode, int kQuad, int kPanels, int kRows>
OCTAVO_INLINE void dot_quad(A8Tile<kPanels, kRows>& t, UnitSums<kRows>& sums, const uint8_t* unit,
                            int k) {
  constexpr bool kDrain = (kQuad + 1) % quads_in_16_bits(kMode) == 0;
  const __m256i low = load_codes<kMode.code, kQuad>(unit);
  const __m256i high = load_codes<kMode.code, kQuad>(unit + 32);
  for (int r = 0; r < kRows; ++r) {
    const __m256i q = broadcast4(t.q[r] + k + 4 * kQuad);
    add_codes<kMode>(sums.of[0][r], low, t.table.lo, q);
    add_codes<kMode>(sums.of[1][r], high, t.table.lo, q);
    if (kDrain) {
      drain<kMode>(sums.of[0][r], t.acc[0][r].lo);
      drain<kMode>(sums.of[1][r], t.acc[0][r].hi);
    }
  }
}

// acc += v * q over inputs [k, k + 16) of a unit (`half` 0 or 1), or all 32 (`half` 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(A8Tile<kPanels, kRows>& t, int unit, int half) {
  const uint8_t* lines = t.panel[0] + static_cast<int64_t>(unit) * unit_bytes(kMode.code);
  const int k = unit * kUnit;
  UnitSums<kRows> sums = {};
  if (half != 1) {
    dot_quad<kMode, 0>(t, sums, lines, k);
    dot_quad<kMode, 1>(t, sums, lines, k);
    dot_quad<kMode, 2>(t, sums, lines, k);
    dot_quad<kMode, 3>(t, sums, lines, k);
  }
  if (half != 0) {
    dot_quad<kMode, 4>(t, sums, lines, k);
    dot_quad<kMode, 5>(t, sums, lines, k);
    dot_quad<kMode, 6>(t, sums, lines, k);
    dot_quad<kMode, 7>(t, sums, lines, k);
  }
  if (quads_in_16_bits(kMode) < 8 || half == 2) return;  // drained already
  for (int r = 0; r < kRows; ++r) {
    drain<kMode>(sums.of[0][r], t.acc[0][r].lo);
    drain<kMode>(sums.of[1][r], t.acc[0][r].hi);
  }
}
