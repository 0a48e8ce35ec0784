// kv_dot_generic.inl by vpdpbusd: codes are unsigned, the two bytes of a query signed.

inline I four_bytes(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

template <int kRows>
OCTAVO_HOT void add_word(const uint8_t* q, int64_t q_stride, int dim, int d, I codes, I* high,
                         I* low) {
  for (int r = 0; r < kRows; ++r) {
    const int8_t* bytes = reinterpret_cast<const int8_t*>(q + r * q_stride + 2 * dim + d);
    high[r] = _mm512_dpbusd_epi32(high[r], codes, four_bytes(bytes));
    low[r] = _mm512_dpbusd_epi32(low[r], codes, four_bytes(bytes + dim));
  }
}

template <int kRows, bool kNibbles>
OCTAVO_HOT void dot_codes(const uint8_t* q, int64_t q_stride, int dim, const uint8_t* k, int stride,
                          int d0, int d1, I* acc) {
  I high[kRows], low[kRows];
  for (int r = 0; r < kRows; ++r) high[r] = low[r] = _mm512_setzero_si512();
  const I mask = _mm512_set1_epi8(15);
  const int step = kNibbles ? 8 : 4;
  const uint8_t* line = k + static_cast<int64_t>(d0 / step) * 4 * stride;
  for (int d = d0; d < d1; d += step, line += 4 * static_cast<int64_t>(stride)) {
    const I codes = i_load(line);
    if (!kNibbles) {
      add_word<kRows>(q, q_stride, dim, d, codes, high, low);
      continue;
    }
    add_word<kRows>(q, q_stride, dim, d, _mm512_and_si512(codes, mask), high, low);
    const I upper = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    add_word<kRows>(q, q_stride, dim, d + 4, upper, high, low);
  }
  for (int r = 0; r < kRows; ++r) acc[r] = i_add(i_shl(high[r], 8), low[r]);
}

// vpermps reads the low four bits of an index.
inline F nibble_of(I index) {
  return _mm512_permutexvar_ps(
      index, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
}
inline F nibble_low(I bytes) { return nibble_of(bytes); }
inline F nibble_high(I bytes) { return nibble_of(_mm512_srli_epi32(bytes, 4)); }
