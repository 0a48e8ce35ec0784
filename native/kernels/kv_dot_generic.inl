// acc[r] = sum of q * code for kRows queries and 16 keys, in plain C++: the meaning of the others.
// `k` points at the first key's bytes, rows of 4 elements lie 4 * stride bytes apart. Sums are
// taken modulo 2^32; what is left after the caller's zero point fits in int32.

inline uint32_t code_at(const uint8_t* k, int stride, int key, int d, bool nibbles) {
  if (!nibbles) return k[static_cast<int64_t>(d / 4) * 4 * stride + 4 * key + d % 4];
  const uint8_t byte = k[static_cast<int64_t>(d / 8) * 4 * stride + 4 * key + d % 4];
  return d % 8 < 4 ? byte & 15u : static_cast<uint32_t>(byte) >> 4;
}

// Elements [d0, d1); for nibbles both are multiples of 8.
template <int kRows, bool kNibbles>
inline void dot_codes(const uint8_t* q, int64_t q_stride, int dim, const uint8_t* k, int stride,
                      int d0, int d1, I* acc) {
  static_cast<void>(dim);
  for (int r = 0; r < kRows; ++r) {
    uint32_t sum[16] = {};
    for (int d = d0; d < d1; ++d) {
      int16_t value;
      __builtin_memcpy(&value, q + r * q_stride + 2 * d, 2);
      const uint32_t wide = static_cast<uint32_t>(static_cast<int32_t>(value));
      for (int j = 0; j < 16; ++j) sum[j] += wide * code_at(k, stride, j, d, kNibbles);
    }
    acc[r] = i_load(sum);
  }
}

inline F nibble_low(I bytes) { return f_of_int(i_sub(i_and(bytes, i_set1(15)), i_set1(8))); }
inline F nibble_high(I bytes) { return f_of_int(i_sub(i_shr(bytes, 4), i_set1(8))); }
