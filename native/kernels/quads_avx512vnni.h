// vpdpbusd on 512 bits, for a8_dot_quads.inl: unsigned codes by signed inputs.

constexpr bool kSignedCodes = false;
constexpr int kTallPanels = 2, kTallRows = 4;  // of a tile when there are many rows
constexpr int kFlatRows = 8;                   // of a tile of one panel

using Quads = const int8_t*;
inline Quads quads_at(const int8_t* q) { return q; }

template <int j>
inline I word(Quads q) {
  int32_t four;
  __builtin_memcpy(&four, q + 4 * j, 4);
  return _mm512_set1_epi32(four);
}

inline I i_dot(I acc, I codes, I q) { return _mm512_dpbusd_epi32(acc, codes, q); }

inline int32_t sum16(const int8_t* q) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  __m128i s = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), v);
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
