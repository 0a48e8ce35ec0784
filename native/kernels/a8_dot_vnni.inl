// Integer products by vpdpbusd: codes stay unsigned, every int32 lane is one output row.

enum class Wide { kNibble, kLut, kByte };

constexpr int kTallPanels = 2, kTallRows = 4;  // of a tile when there are many rows
constexpr int kFlatRows = 8;                   // of a tile of one panel
constexpr int kLutZero = 128;                  // levels are stored as level + 128

inline I lut_of(const int8_t* levels8) {
  const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels8));
  return _mm512_broadcast_i32x4(_mm_xor_si128(levels, _mm_set1_epi8(-128)));
}

inline I broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

inline int32_t sum16(const int8_t* q) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  __m128i s = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), v);
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#include "kernels/a8_tile.inl"

// Codes of one line: the low or the high nibbles, looked up if they are indices.
template <Wide kMode>
OCTAVO_INLINE I nibbles(I line, int half, I table) {
  const I mask = _mm512_set1_epi8(15);
  const I code = _mm512_and_si512(half ? _mm512_srli_epi16(line, 4) : line, mask);
  return kMode == Wide::kLut ? _mm512_shuffle_epi8(table, code) : code;
}

// acc += v * q over inputs [k, k + 16) of a unit (`half` 0 or 1), or all 32 (`half` 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(A8Tile<kPanels, kRows>& t, int unit, int half) {
  constexpr int kUnitBytes = kMode == Wide::kByte ? 512 : 256;
  const int k = unit * kUnit;
  for (int j = 0; j < 4; ++j) {
    for (int h = half == 1 ? 1 : 0; h < (half == 0 ? 1 : 2); ++h) {
      I v[kPanels];
      for (int p = 0; p < kPanels; ++p) {
        const uint8_t* lines = t.panel[p] + static_cast<int64_t>(unit) * kUnitBytes;
        v[p] = kMode == Wide::kByte ? i_load(lines + (4 * h + j) * 64)
                                    : nibbles<kMode>(i_load(lines + j * 64), h, t.table);
      }
      for (int r = 0; r < kRows; ++r) {
        const I q = broadcast4(t.q[r] + k + 16 * h + 4 * j);
        for (int p = 0; p < kPanels; ++p) t.acc[p][r] = _mm512_dpbusd_epi32(t.acc[p][r], v[p], q);
      }
    }
  }
}
