// Integer products by vpdpbusd: codes stay unsigned, every int32 lane is one output row.

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

template <int kLeft>
OCTAVO_INLINE I shifted(I line) {  // towards the high bits, or the low ones if negative
  if constexpr (kLeft > 0) return _mm512_slli_epi16(line, kLeft);
  if constexpr (kLeft < 0) return _mm512_srli_epi16(line, -kLeft);
  return line;
}
// The bits `mask` of each byte of `plane`, moved by kLeft, in `low`, where they are 0.
template <int kLeft>
OCTAVO_INLINE I with_plane(I low, I plane, int mask) {
  constexpr int kAOrBAndC = 0xf8;
  const I bits = _mm512_set1_epi8(static_cast<char>(mask));
  return _mm512_ternarylogic_epi32(low, shifted<kLeft>(plane), bits, kAOrBAndC);
}

// Codes of quad kQuad of a unit: byte (row, c) of the register is the code of input 4 kQuad + c.
template <Code kCode, int kQuad>
OCTAVO_INLINE I load_codes(const uint8_t* unit) {
  if (kCode == Code::kByte) return i_load(unit + 64 * kQuad);
  constexpr int kHalf = kQuad / 4, kPart = kQuad % 4;
  if (kCode == Code::kTwo || kCode == Code::kThree) {
    const I two =
        _mm512_and_si512(shifted<-2 * kPart>(i_load(unit + 64 * kHalf)), _mm512_set1_epi8(3));
    return kCode == Code::kTwo ? two : with_plane<2 - kQuad>(two, i_load(unit + 128), 4);
  }
  const I four =
      _mm512_and_si512(shifted<-4 * kHalf>(i_load(unit + 64 * kPart)), _mm512_set1_epi8(15));
  if (kCode == Code::kFive) return with_plane<4 - kQuad>(four, i_load(unit + 256), 16);
  if (kCode == Code::kSix)
    return with_plane<4 - 2 * kPart>(four, i_load(unit + 256 + 64 * kHalf), 48);
  return four;
}

template <Wide kMode, int kQuad, int kPanels, int kRows>
OCTAVO_INLINE void dot_quad(A8Tile<kPanels, kRows>& t, const uint8_t* const* units, int k) {
  I v[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    v[p] = load_codes<kMode.code, kQuad>(units[p]);
    if (kMode.levels == Levels::kInt8) v[p] = _mm512_shuffle_epi8(t.table, v[p]);
  }
  for (int r = 0; r < kRows; ++r) {
    const I q = broadcast4(t.q[r] + k + 4 * kQuad);
    for (int p = 0; p < kPanels; ++p) t.acc[p][r] = _mm512_dpbusd_epi32(t.acc[p][r], v[p], q);
  }
}

// acc += v * q over inputs [k, k + 16) of a unit (`half` 0 or 1), or all 32 (`half` 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(A8Tile<kPanels, kRows>& t, int unit, int half) {
  const int k = unit * kUnit;
  const uint8_t* units[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    units[p] = t.panel[p] + static_cast<int64_t>(unit) * unit_bytes(kMode.code);
  }
  if (half != 1) {
    dot_quad<kMode, 0>(t, units, k);
    dot_quad<kMode, 1>(t, units, k);
    dot_quad<kMode, 2>(t, units, k);
    dot_quad<kMode, 3>(t, units, k);
  }
  if (half == 0) return;
  dot_quad<kMode, 4>(t, units, k);
  dot_quad<kMode, 5>(t, units, k);
  dot_quad<kMode, 6>(t, units, k);
  dot_quad<kMode, 7>(t, units, k);
}
