// Sixteen lanes in one AVX-512 register. The meaning of each function is in vec_generic.h.

constexpr int kFloatPanels = 2, kFloatRows = 4;  // registers of a tile of fp32 sums
constexpr int kGroupRows = 4;                    // of two sums each
constexpr bool kQuickPick = true;                // f_pick16 is faster than a conversion
constexpr int kQueryTile = 8, kValueTile = 16;   // queries, and registers, of attention

using F = __m512;
using I = __m512i;
struct D {
  __m512d lo, hi;
};

inline __mmask16 lanes_below(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F f_set1(float x) { return _mm512_set1_ps(x); }
inline F f_load(const float* p) { return _mm512_loadu_ps(p); }
inline F f_load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes_below(n), p); }
inline void f_store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline void f_store_n(float* p, F a, int n) { _mm512_mask_storeu_ps(p, lanes_below(n), a); }
inline F f_add(F a, F b) { return _mm512_add_ps(a, b); }
inline F f_sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F f_mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F f_div(F a, F b) { return _mm512_div_ps(a, b); }
inline F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F f_max(F a, F b) { return _mm512_max_ps(a, b); }
inline F f_min(F a, F b) { return _mm512_min_ps(a, b); }
inline F f_rint(F a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F f_gt(F a, F b, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
inline bool f_any_eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }

inline I i_set1(int32_t x) { return _mm512_set1_epi32(x); }
inline I i_load(const void* p) { return _mm512_loadu_si512(p); }
inline I i_load_u16(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline I i_load_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I i_load_s8(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void i_store(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
inline void i_store_u16(uint16_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}
inline void i_store_s8(int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
inline I i_add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I i_sub(I a, I b) { return _mm512_sub_epi32(a, b); }
// One of the two products of 16 bits is the wanted one, the other of a high half that must be 0.
inline I i_mul16(I a, I b) {
  return _mm512_madd_epi16(a, _mm512_and_si512(b, _mm512_set1_epi32(0xffff)));
}
inline I i_and(I a, I b) { return _mm512_and_si512(a, b); }
inline I i_or(I a, I b) { return _mm512_or_si512(a, b); }
inline I i_xor(I a, I b) { return _mm512_xor_si512(a, b); }
// By the compiler's vectors: a constant n becomes an immediate.
typedef uint32_t Unsigned __attribute__((vector_size(64)));
inline I i_shr(I a, int n) { return reinterpret_cast<I>(reinterpret_cast<Unsigned>(a) >> n); }
inline I i_shl(I a, int n) { return reinterpret_cast<I>(reinterpret_cast<Unsigned>(a) << n); }
inline I i_shr_each(I a, I n) { return _mm512_srlv_epi32(a, n); }
inline I i_gt(I a, I b, I yes, I no) {
  return _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, b), no, yes);
}
inline int32_t i_fold_add(I a) { return _mm512_reduce_add_epi32(a); }

// Bytes: a8_codes.inl says what each does.
template <int kLeft>
inline I b_shift(I v) {
  if constexpr (kLeft > 0) return _mm512_slli_epi16(v, kLeft);
  if constexpr (kLeft < 0) return _mm512_srli_epi16(v, -kLeft);
  return v;
}
inline __m512i b_set1(int mask) { return _mm512_set1_epi8(static_cast<char>(mask)); }
inline I b_and(I v, int mask) { return _mm512_and_si512(v, b_set1(mask)); }
inline I b_insert(I low, I v, int mask) {
  constexpr int kAOrBAndC = 0xf8;
  return _mm512_ternarylogic_epi32(low, v, b_set1(mask), kAOrBAndC);
}
inline I b_table16(const int8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I b_lookup16(I table, I index) { return _mm512_shuffle_epi8(table, index); }

inline F f_of_int(I a) { return _mm512_cvtepi32_ps(a); }
inline I i_of_float(F a) { return _mm512_cvtps_epi32(a); }
inline F f_bits(I a) { return _mm512_castsi512_ps(a); }
inline I i_bits(F a) { return _mm512_castps_si512(a); }

inline F f_load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void f_store_half(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
template <int kBit>
inline F f_swap(F a) {
  if (kBit == 8) return _mm512_shuffle_f32x4(a, a, 0x4e);
  if (kBit == 4) return _mm512_shuffle_f32x4(a, a, 0xb1);
  return _mm512_permute_ps(a, kBit == 2 ? 0x4e : 0xb1);
}
inline F f_pick16(F table, I index) { return _mm512_permutexvar_ps(index, table); }
inline F f_lookup256(const float* table, I index) { return _mm512_i32gather_ps(index, table, 4); }

inline __m256 upper(F a) { return _mm512_extractf32x8_ps(a, 1); }
inline float f_fold_add(F a) {
  const __m256 a8 = _mm256_add_ps(_mm512_castps512_ps256(a), upper(a));
  __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
  a4 = _mm_add_ps(a4, _mm_movehl_ps(a4, a4));
  return _mm_cvtss_f32(_mm_add_ss(a4, _mm_movehdup_ps(a4)));
}
inline float f_fold_max(F a) {
  const __m256 a8 = _mm256_max_ps(_mm512_castps512_ps256(a), upper(a));
  __m128 a4 = _mm_max_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
  a4 = _mm_max_ps(a4, _mm_movehl_ps(a4, a4));
  return _mm_cvtss_f32(_mm_max_ss(a4, _mm_movehdup_ps(a4)));
}

inline D d_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
inline D d_add(D a, F b) {
  return {_mm512_add_pd(a.lo, _mm512_cvtps_pd(_mm512_castps512_ps256(b))),
          _mm512_add_pd(a.hi, _mm512_cvtps_pd(upper(b)))};
}
inline double d_fold_add(D a) {
  const __m512d a8 = _mm512_add_pd(a.lo, a.hi);
  const __m256d a4 = _mm256_add_pd(_mm512_castpd512_pd256(a8), _mm512_extractf64x4_pd(a8, 1));
  const __m128d a2 = _mm_add_pd(_mm256_castpd256_pd128(a4), _mm256_extractf128_pd(a4, 1));
  return _mm_cvtsd_f64(_mm_add_sd(a2, _mm_unpackhi_pd(a2, a2)));
}
