// Integer products by vpmaddubsw (unsigned x signed bytes, pairs summed to 16 bits), two registers
// of 8 rows. Nibbles: 15 * 127 * 2 = 3810 a pair, so the 8 of a unit fit in 16 bits. Bytes go as
// two planes of nibbles, the high one times 16. Levels are signed: |level| times q with its sign.

enum class Wide { kNibble, kLut, kByte };

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
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

inline __m256i widened(__m256i pairs, int16_t weight) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(weight));
}

// One line's 8 rows, or the half of them: the sums of 16 bits that it adds to.
template <Wide kMode>
OCTAVO_INLINE void add_line(__m256i line, int half, __m256i table, __m256i q, __m256i* plane) {
  if (kMode == Wide::kByte) {
    plane[0] = _mm256_add_epi16(plane[0], _mm256_maddubs_epi16(low_nibbles(line), q));
    plane[1] = _mm256_add_epi16(plane[1], _mm256_maddubs_epi16(high_nibbles(line), q));
    return;
  }
  const __m256i code = half ? high_nibbles(line) : low_nibbles(line);
  if (kMode == Wide::kNibble) {
    plane[0] = _mm256_add_epi16(plane[0], _mm256_maddubs_epi16(code, q));
    return;
  }
  const __m256i level = _mm256_shuffle_epi8(table, code);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(q, level));
  plane[0] = _mm256_add_epi32(plane[0], widened(pairs, 1));  // already 32 bits
}

template <Wide kMode>
OCTAVO_INLINE __m256i total(const __m256i* plane) {
  if (kMode == Wide::kLut) return plane[0];
  const __m256i low = widened(plane[0], 1);
  return kMode == Wide::kByte ? _mm256_add_epi32(low, widened(plane[1], 16)) : low;
}

// acc += v * q over inputs [k, k + 16) of a unit (`half` 0 or 1), or all 32 (`half` 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(A8Tile<kPanels, kRows>& t, int unit, int half) {
  constexpr int kUnitBytes = kMode == Wide::kByte ? 512 : 256;
  const uint8_t* lines = t.panel[0] + static_cast<int64_t>(unit) * kUnitBytes;
  __m256i plane[2][kRows][2];
  for (int side = 0; side < 2; ++side) {
    for (int r = 0; r < kRows; ++r) plane[side][r][0] = plane[side][r][1] = _mm256_setzero_si256();
  }
  for (int h = half == 1 ? 1 : 0; h < (half == 0 ? 1 : 2); ++h) {
    for (int j = 0; j < 4; ++j) {
      const uint8_t* line = lines + (kMode == Wide::kByte ? 4 * h + j : j) * 64;
      const __m256i low = load256(line), high = load256(line + 32);
      for (int r = 0; r < kRows; ++r) {
        const __m256i q = broadcast4(t.q[r] + unit * kUnit + 16 * h + 4 * j);
        add_line<kMode>(low, h, t.table.lo, q, plane[0][r]);
        add_line<kMode>(high, h, t.table.lo, q, plane[1][r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    t.acc[0][r].lo = _mm256_add_epi32(t.acc[0][r].lo, total<kMode>(plane[0][r]));
    t.acc[0][r].hi = _mm256_add_epi32(t.acc[0][r].hi, total<kMode>(plane[1][r]));
  }
}
