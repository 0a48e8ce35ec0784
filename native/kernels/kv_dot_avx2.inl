// kv_dot_generic.inl by vpmaddwd: codes widened to 16 bits, queries in 16 bits. Eight keys at a
// time: each 32-bit sum holds two of a key's four elements, and they are paired at the end.

inline __m256i broadcast8(const uint8_t* p) {
  int64_t word;
  __builtin_memcpy(&word, p, 8);
  return _mm256_set1_epi64x(word);
}

inline __m256i low_codes(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline __m256i high_codes(__m256i v) { return low_codes(_mm256_srli_epi16(v, 4)); }

template <int kRows>
OCTAVO_HOT void add_word(const uint8_t* q, int64_t q_stride, int d, __m256i codes,
                         __m256i (*sum)[2]) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i first = _mm256_unpacklo_epi8(codes, zero);   // keys 0, 1 | 4, 5
  const __m256i second = _mm256_unpackhi_epi8(codes, zero);  // keys 2, 3 | 6, 7
  for (int r = 0; r < kRows; ++r) {
    const __m256i four = broadcast8(q + r * q_stride + 2 * d);
    sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(first, four));
    sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(second, four));
  }
}

template <int kRows, bool kNibbles>
OCTAVO_HOT void dot_half(const uint8_t* q, int64_t q_stride, const uint8_t* k, int stride, int d0,
                         int d1, __m256i* out) {
  __m256i sum[kRows][2];
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  const int step = kNibbles ? 8 : 4;
  const uint8_t* line = k + static_cast<int64_t>(d0 / step) * 4 * stride;
  for (int d = d0; d < d1; d += step, line += 4 * static_cast<int64_t>(stride)) {
    const __m256i codes = load256(line);
    add_word<kRows>(q, q_stride, d, kNibbles ? low_codes(codes) : codes, sum);
    if (kNibbles) add_word<kRows>(q, q_stride, d + 4, high_codes(codes), sum);
  }
  for (int r = 0; r < kRows; ++r) out[r] = _mm256_hadd_epi32(sum[r][0], sum[r][1]);
}

template <int kRows, bool kNibbles>
OCTAVO_HOT void dot_codes(const uint8_t* q, int64_t q_stride, int dim, const uint8_t* k, int stride,
                          int d0, int d1, I* acc) {
  static_cast<void>(dim);
  __m256i half[kRows];
  dot_half<kRows, kNibbles>(q, q_stride, k, stride, d0, d1, half);
  for (int r = 0; r < kRows; ++r) acc[r].lo = half[r];
  dot_half<kRows, kNibbles>(q, q_stride, k + 32, stride, d0, d1, half);
  for (int r = 0; r < kRows; ++r) acc[r].hi = half[r];
}

inline F nibble_low(I bytes) { return f_of_int(i_sub(i_and(bytes, i_set1(15)), i_set1(8))); }
inline F nibble_high(I bytes) { return f_of_int(i_sub(i_shr(bytes, 4), i_set1(8))); }
