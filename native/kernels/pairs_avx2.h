// Pairs of bytes on two registers of 256 bits, for a8_dot_pairs.inl.

constexpr int kTallPanels = 1, kTallRows = 4;
constexpr int kFlatRows = 4;

inline I p_mul(I codes, I q) {
  return {_mm256_maddubs_epi16(codes.lo, q.lo), _mm256_maddubs_epi16(codes.hi, q.hi)};
}
inline I p_add(I a, I b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
inline I p_widen(I pairs, int16_t weight) {
  const __m256i w = _mm256_set1_epi16(weight);
  return {_mm256_madd_epi16(pairs.lo, w), _mm256_madd_epi16(pairs.hi, w)};
}
inline I b_abs(I v) { return {_mm256_abs_epi8(v.lo), _mm256_abs_epi8(v.hi)}; }
inline I b_sign(I q, I v) { return {_mm256_sign_epi8(q.lo, v.lo), _mm256_sign_epi8(q.hi, v.hi)}; }
