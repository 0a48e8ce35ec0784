// Sixteen lanes in two AVX2 registers. The meaning of each function is in vec_generic.h.

constexpr int kFloatPanels = 1, kFloatRows = 6;  // registers of a tile of fp32 sums
constexpr int kGroupRows = 3;                    // of two sums each
constexpr bool kQuickPick = false;               // f_pick16 is faster than a conversion
constexpr int kQueryTile = 4, kValueTile = 4;    // queries, and registers, of attention

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};
struct D {
  __m256d v[4];
};

inline __m256i mask_below(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F f_set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F f_load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, mask_below(n)), _mm256_maskload_ps(p + 8, mask_below(n - 8))};
}
inline void f_store(float* p, F a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void f_store_n(float* p, F a, int n) {
  _mm256_maskstore_ps(p, mask_below(n), a.lo);
  _mm256_maskstore_ps(p + 8, mask_below(n - 8), a.hi);
}
inline F f_add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F f_sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F f_mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F f_div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F f_fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F f_max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F f_min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F f_rint(F a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F f_gt(F a, F b, F yes, F no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))};
}
inline bool f_any_eq(F a, F b) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ),
                                         _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ))) != 0;
}

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline I i_set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I i_load(const void* p) { return {load256(p), load256(static_cast<const char*>(p) + 32)}; }
inline I i_load_u16(const uint16_t* p) {
  const __m256i v = load256(p);
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1))};
}
inline I i_load_u8(const uint8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
inline I i_load_s8(const int8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
inline void i_store(int32_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
inline void i_store_u16(uint16_t* p, I a) {  // values within 0..65535
  const __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(a.lo, a.hi), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
inline void i_store_s8(int8_t* p, I a) {  // values within -128..127
  const __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i b = _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), b);
}
inline I i_add(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I i_sub(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
// One of the two products of 16 bits is the wanted one, the other of a high half that must be 0.
inline I i_mul16(I a, I b) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  return {_mm256_madd_epi16(a.lo, _mm256_and_si256(b.lo, low)),
          _mm256_madd_epi16(a.hi, _mm256_and_si256(b.hi, low))};
}
inline I i_and(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I i_or(I a, I b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline I i_xor(I a, I b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
inline I i_shr(I a, int n) { return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
inline I i_shl(I a, int n) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
inline I i_shr_each(I a, I n) {
  return {_mm256_srlv_epi32(a.lo, n.lo), _mm256_srlv_epi32(a.hi, n.hi)};
}
inline I i_gt(I a, I b, I yes, I no) {
  return {_mm256_blendv_epi8(no.lo, yes.lo, _mm256_cmpgt_epi32(a.lo, b.lo)),
          _mm256_blendv_epi8(no.hi, yes.hi, _mm256_cmpgt_epi32(a.hi, b.hi))};
}
inline int32_t i_fold_add(I a) {
  const __m256i s = _mm256_add_epi32(a.lo, a.hi);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}

// Bytes: a8_codes.inl says what each does.
template <int kLeft>
inline I b_shift(I v) {
  if constexpr (kLeft > 0) return {_mm256_slli_epi16(v.lo, kLeft), _mm256_slli_epi16(v.hi, kLeft)};
  if constexpr (kLeft < 0)
    return {_mm256_srli_epi16(v.lo, -kLeft), _mm256_srli_epi16(v.hi, -kLeft)};
  return v;
}
inline I b_and(I v, int mask) { return i_and(v, i_set1(mask * 0x01010101)); }
inline I b_insert(I low, I v, int mask) { return i_or(low, b_and(v, mask)); }
inline I b_table16(const int8_t* p) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i both = _mm256_broadcastsi128_si256(table);
  return {both, both};
}
inline I b_lookup16(I table, I index) {
  return {_mm256_shuffle_epi8(table.lo, index.lo), _mm256_shuffle_epi8(table.hi, index.hi)};
}

inline F f_of_int(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I i_of_float(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F f_bits(I a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I i_bits(F a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }

inline F f_load_half(const uint16_t* p) {
  const __m256i v = load256(p);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
}
inline void f_store_half(uint16_t* p, F a) {
  const __m128i lo = _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT);
  const __m128i hi = _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_set_m128i(hi, lo));
}
template <int kBit>
inline F f_swap(F a) {
  if (kBit == 8) return {a.hi, a.lo};
  if (kBit == 4) {
    return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  }
  constexpr int kOrder = kBit == 2 ? 0x4e : 0xb1;
  return {_mm256_permute_ps(a.lo, kOrder), _mm256_permute_ps(a.hi, kOrder)};
}
inline __m256 pick16_half(F table, __m256i index) {
  const __m256 lo = _mm256_permutevar8x32_ps(table.lo, index);
  const __m256 hi = _mm256_permutevar8x32_ps(table.hi, index);
  return _mm256_blendv_ps(lo, hi, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline F f_pick16(F table, I index) {
  return {pick16_half(table, index.lo), pick16_half(table, index.hi)};
}
inline F f_lookup256(const float* table, I index) {
  return {_mm256_i32gather_ps(table, index.lo, 4), _mm256_i32gather_ps(table, index.hi, 4)};
}

inline float f_fold_add(F a) {
  const __m256 a8 = _mm256_add_ps(a.lo, a.hi);
  __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
  a4 = _mm_add_ps(a4, _mm_movehl_ps(a4, a4));
  return _mm_cvtss_f32(_mm_add_ss(a4, _mm_movehdup_ps(a4)));
}
inline float f_fold_max(F a) {
  const __m256 a8 = _mm256_max_ps(a.lo, a.hi);
  __m128 a4 = _mm_max_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
  a4 = _mm_max_ps(a4, _mm_movehl_ps(a4, a4));
  return _mm_cvtss_f32(_mm_max_ss(a4, _mm_movehdup_ps(a4)));
}

inline D d_zero() {
  const __m256d z = _mm256_setzero_pd();
  return {{z, z, z, z}};
}
inline D d_add(D a, F b) {
  a.v[0] = _mm256_add_pd(a.v[0], _mm256_cvtps_pd(_mm256_castps256_ps128(b.lo)));
  a.v[1] = _mm256_add_pd(a.v[1], _mm256_cvtps_pd(_mm256_extractf128_ps(b.lo, 1)));
  a.v[2] = _mm256_add_pd(a.v[2], _mm256_cvtps_pd(_mm256_castps256_ps128(b.hi)));
  a.v[3] = _mm256_add_pd(a.v[3], _mm256_cvtps_pd(_mm256_extractf128_ps(b.hi, 1)));
  return a;
}
inline double d_fold_add(D a) {
  const __m256d a4 = _mm256_add_pd(_mm256_add_pd(a.v[0], a.v[2]), _mm256_add_pd(a.v[1], a.v[3]));
  const __m128d a2 = _mm_add_pd(_mm256_castpd256_pd128(a4), _mm256_extractf128_pd(a4, 1));
  return _mm_cvtsd_f64(_mm_add_sd(a2, _mm_unpackhi_pd(a2, a2)));
}
