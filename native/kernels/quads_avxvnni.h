// vpdpbusd on 256 bits (AVX-VNNI), for a8_dot_quads.inl: unsigned codes by signed inputs.

constexpr bool kSignedCodes = false;
constexpr int kTallPanels = 1, kTallRows = 4;  // 8 sums, a line's two halves, their input, a mask
constexpr int kFlatRows = 4;

using Quads = const int8_t*;
inline Quads quads_at(const int8_t* q) { return q; }

template <int j>
inline __m256i word(Quads q) {
  int32_t four;
  __builtin_memcpy(&four, q + 4 * j, 4);
  return _mm256_set1_epi32(four);
}

inline I i_dot(I acc, I codes, __m256i q) {
  return {_mm256_dpbusd_avx_epi32(acc.lo, codes.lo, q),
          _mm256_dpbusd_avx_epi32(acc.hi, codes.hi, q)};
}

inline int32_t sum16(const int8_t* q) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  __m128i s = _mm_dpbusd_avx_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), v);
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
