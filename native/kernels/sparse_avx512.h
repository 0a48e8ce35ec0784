// Two stored codes of every four to their places (core/types.h), by AVX-512 BW: a row's mask of
// four bits picks, from a table of 16, the bytes that vpshufb takes from the row's word; what isn't
// stored becomes 0, as 8 (128) xor 8 (128) is.

// Per mask, which of two bytes goes where; 0x80: none.
constexpr uint32_t spread_of(int mask) {
  uint32_t word = 0;
  for (int c = 0, stored = 0; c < 4; ++c) {
    const bool there = (mask >> c & 1) != 0;
    word |= (there ? static_cast<uint32_t>(stored) : 0x80u) << (8 * c);
    stored += there ? 1 : 0;
  }
  return word;
}

struct SpreadTable {
  alignas(64) uint32_t word[16];
};
constexpr SpreadTable spread_table() {
  SpreadTable t = {};
  for (int mask = 0; mask < 16; ++mask) t.word[mask] = spread_of(mask);
  return t;
}
constexpr SpreadTable kSpread = spread_table();

template <Code kCode, int kQuad>
struct Spread {
  static constexpr int kPair = kQuad / 2;
  static constexpr int kZeros = static_cast<int>(0x01010101u * sparse_zero(kCode));

  OCTAVO_INLINE static I stored(const uint8_t* unit) {
    if constexpr (kCode == Code::kSparseByte) return i_load(unit + 64 * kPair);
    return b_and(b_shift<-4 * (kPair / 2)>(i_load(unit + 64 * (kPair % 2))), 15);
  }

  OCTAVO_INLINE static I codes(const uint8_t* unit) {
    // Where a row's own two bytes begin in its 128 bits.
    const I base =
        _mm512_broadcast_i32x4(_mm_add_epi32(_mm_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0),
                                             _mm_set1_epi32(0x02020202 * (kQuad % 2))));
    const I masks = i_load(unit + unit_bytes(kCode) - 4 * kLanes);
    const I order = _mm512_permutexvar_epi32(i_shr(masks, 4 * kQuad), i_load(kSpread.word));
    const I bytes = _mm512_shuffle_epi8(stored(unit), i_or(order, base));
    return i_xor(bytes, i_set1(kZeros));
  }
};
