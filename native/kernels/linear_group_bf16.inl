// Weight-only products by vdpbf16ps: codes become pairs of bf16, in which integers of up to 8 bits
// are exact. The same sums as linear_group.inl, but a sum takes the four inputs of every other
// pair: sums[0] inputs 4q and 4q + 1, sums[1] 4q + 2 and 4q + 3, in the rounding of the
// instruction.

struct PairTable {
  __m512i low, high;  // values of codes 0 to 31, and 32 to 63
  __m512 even, odd;   // what the numbers made of bytes stand above their values
};

inline void open_values(const PackedWeight& w, PairTable* t) {
  Levels32 values;
  fill_levels(w, &values);
  alignas(64) uint16_t bits[64] = {};
  for (int i = 0; i < 64 && i < level_count(w.code); ++i) {
    uint32_t u;
    __builtin_memcpy(&u, values.v + i, 4);
    bits[i] = static_cast<uint16_t>(u >> 16);
  }
  t->low = _mm512_load_si512(bits);
  t->high = _mm512_load_si512(bits + 32);
  t->even = _mm512_set1_ps(0x1p23f + static_cast<float>(w.zero));
  t->odd = _mm512_set1_ps(0x1p15f + static_cast<float>(w.zero));
}

// Bytes 0 and 1 of each dword to its two words.
inline __m512i low_bytes(__m512i v) {
  return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8,
                                                                     -1, 9, -1, 12, -1, 13, -1)));
}
inline __m512i high_bytes(__m512i v) {
  return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10,
                                                                     -1, 11, -1, 14, -1, 15, -1)));
}

// Bytes 0 and 1 of each dword as bf16: a byte below the exponent of 2^23 (or, 8 bits further up, of
// 2^15) is that much more than its value.
inline __m512i pair_of_bytes(__m512i v, const PairTable& t) {
  constexpr int kAAndBOrC = 0xea;
  const __m512i first = _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(0xff),
                                                  _mm512_set1_epi32(0x4b000000), kAAndBOrC);
  const __m512i second = _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(0xff00),
                                                   _mm512_set1_epi32(0x47000000), kAAndBOrC);
  const __m512i even = i_bits(_mm512_sub_ps(f_bits(first), t.even));
  const __m512i odd = i_bits(_mm512_sub_ps(f_bits(second), t.odd));
  return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd);
}

struct InputPairs {
  using Input = uint16_t;
  using Operand = __m512i;
  using Table = PairTable;
  static constexpr int kOperands = 2;
  static constexpr int kInputs = 2;

  template <Code kCode>
  OCTAVO_INLINE static __m512i values(__m512i words, const Table& t) {
    if constexpr (code_bits(kCode) <= 5) return _mm512_permutexvar_epi16(words, t.low);
    return _mm512_permutex2var_epi16(t.low, words, t.high);
  }
  template <Code kCode, bool kLut, int kQuad>
  OCTAVO_INLINE static void operands(const uint8_t* unit, const Table& t, __m512i* out) {
    const __m512i codes = load_codes<kCode, kQuad>(unit);
    if constexpr (kCode == Code::kByte) {
      out[0] = pair_of_bytes(codes, t);
      out[1] = pair_of_bytes(_mm512_srli_epi32(codes, 16), t);
    } else {
      out[0] = values<kCode>(low_bytes(codes), t);
      out[1] = values<kCode>(high_bytes(codes), t);
    }
  }
  OCTAVO_INLINE static __m512 add(__m512 sum, __m512i v, const uint16_t* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, 4);
    return _mm512_dpbf16_ps(sum, as_bf16(v), as_bf16(_mm512_set1_epi32(pair)));
  }
  OCTAVO_INLINE static __m512i load(const uint8_t* p) { return _mm512_load_si512(p); }
  OCTAVO_INLINE static void store(uint8_t* p, __m512i v) { _mm512_store_si512(p, v); }
  OCTAVO_INLINE static __m512 sixteen(const uint16_t* x) { return f_load_bf16(x); }
};

// Affine codes, and codebooks of integers with up to 16 levels: both are values of a table.
template <Code kCode>
inline void linear_group_bf16(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                              int p0, int p1) {
  group_panels<InputPairs, false, kCode, false>(w, x, m, {y, ldy}, p0, p1);
}
