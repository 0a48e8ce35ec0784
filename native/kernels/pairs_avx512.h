// Pairs of bytes on one register of 512 bits, for a8_dot_pairs.inl.

constexpr int kTallPanels = 1, kTallRows = 8;
constexpr int kFlatRows = 8;

inline I p_mul(I codes, I q) { return _mm512_maddubs_epi16(codes, q); }
inline I p_add(I a, I b) { return _mm512_add_epi16(a, b); }
inline I p_widen(I pairs, int16_t weight) {
  return _mm512_madd_epi16(pairs, _mm512_set1_epi16(weight));
}
inline I b_abs(I v) { return _mm512_abs_epi8(v); }
inline I b_sign(I q, I v) {
  return _mm512_mask_sub_epi8(q, _mm512_movepi8_mask(v), _mm512_setzero_si512(), q);
}
