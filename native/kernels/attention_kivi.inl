// Attention over a cache of KIVI: old keys and values from their codes, recent ones from bf16. A
// line of 16 keys is one or the other for each query, but values of the line where the window ends.

template <KvFormat kFormat, int kRows>
OCTAVO_HOT void dot_kivi_codes(const AttentionArgs& a, const uint8_t* k, const uint8_t* grids,
                               int slot, int i, F* s) {
  constexpr int kBits = kivi_bits(kFormat), kPer = 32 / kBits;
  const int dim = a.kv.head_dim;
  const uint8_t* line = k + static_cast<int64_t>(slot / 16) * (dim / kPer) * 64;
  const uint16_t* grid = reinterpret_cast<const uint16_t*>(grids) + slot / kKiviGroup * 2 * dim;
  const float* q = a.q + i * a.q_stride;
  const I mask = i_set1((1 << kBits) - 1);
  for (int r = 0; r < kRows; ++r) s[r] = f_zero();
  for (int d = 0; d < dim; d += 16, q += 16) {
    alignas(64) float step[16], least[16];
    f_store(step, f_load_half(grid + d));
    f_store(least, f_load_half(grid + dim + d));
    for (int w = 0; w < 16 / kPer; ++w, line += 64) {
      const I word = i_load(line);
#pragma GCC unroll 16
      for (int c = 0; c < kPer; ++c) {
        const int at = w * kPer + c;
        const F code = f_of_int(i_and(i_shr(word, kBits * c), mask));
        const F key = f_fma(f_set1(step[at]), code, f_set1(least[at]));
        for (int r = 0; r < kRows; ++r) s[r] = f_fma(f_set1(q[r * a.q_stride + at]), key, s[r]);
      }
    }
  }
}

// q . k for the 16 keys from `key` on, each query's as it reads them; -inf where they are absent.
template <KvFormat kFormat, int kRows>
OCTAVO_HOT void dot_kivi(const AttentionArgs& a, int key, int i, F* s) {
  const int size = a.kv.block_size, slot = key % size;
  const int first = key / kKiviGroup * kKiviGroup + kKiviGroup + kKiviWindow - 1;
  int old = 0;
  for (int r = 0; r < kRows; ++r) old += a.pos[i + r] >= first ? 1 : 0;
  F coded[kRows];
  for (int r = 0; r < kRows; ++r) s[r] = coded[r] = f_set1(-__builtin_inff());
  const int block = a.block_table[key / size], recent = a.recent_table[key / size];
  if (old > 0 && block >= 0) {
    uint8_t* k = k_block(a.kv, block, a.kv_head);
    dot_kivi_codes<kFormat, kRows>(a, k, scales_of(a.kv, k), slot, i, coded);
  }
  if (old < kRows && recent >= 0) {
    dot_floats<KvFormat::kBf16, kRows>(a, k_block(a.recent, recent, a.kv_head), slot, i, s);
  }
  for (int r = 0; r < kRows; ++r) s[r] = a.pos[i + r] >= first ? coded[r] : s[r];
}

// kVecs registers of 16 codes of a value from element d on.
template <KvFormat kFormat, int kVecs>
OCTAVO_HOT void load_kivi_codes(const uint8_t* row, int d, F* v) {
  static const int32_t kShifts[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  for (int c = 0; c < kVecs; ++c) {
    if constexpr (kFormat == KvFormat::kKivi4) {
      const I bytes = i_load_u8(row + (d / 32 + c / 2) * 16);
      v[c] = f_of_int(c % 2 == 0 ? i_and(bytes, i_set1(15)) : i_shr(bytes, 4));
    } else {
      int32_t word;
      __builtin_memcpy(&word, row + (d / 16 + c) * 4, 4);
      v[c] = f_of_int(i_and(i_shr_each(i_set1(word), i_load(kShifts)), i_set1(3)));
    }
  }
}

// Where each query's values of a line stop being old: of the `keys` from `start` on so many are.
inline int old_values(const AttentionArgs& a, int i, int start, int keys) {
  const int old = a.pos[i] - kKiviWindow + 1 - start;
  return old < 0 ? 0 : smaller(old, keys);
}

// weight[r] points at the 16 weights of a line for query i + r: p within [from, to), else 0.
inline const float* weights_within(const float* p, int from, int to, float* room) {
  if (from <= 0 && to >= 16) return p;
  for (int j = 0; j < 16; ++j) room[j] = from <= j && j < to ? p[j] : 0.0f;
  return room;
}

// acc += weight * V for `keys` values from their codes; sums as in weigh_line.
template <KvFormat kFormat, int kRows, int kVecs>
OCTAVO_HOT void weigh_kivi_codes(const AttentionArgs& a, uint8_t* codes, int slot, int keys, int d,
                                 const float* (*weight)[1], F (*acc)[kVecs]) {
  constexpr int kGroups = kVecs / 2;
  alignas(64) float step[kGroups][16], least[kGroups][16];
  const int size = a.kv.block_size;
  const uint16_t* grid = reinterpret_cast<const uint16_t*>(scales_of(a.kv, codes)) + slot;
  for (int g = 0; g < kGroups; ++g) {
    const uint16_t* from = grid + static_cast<int64_t>(d / kKiviGroup + g) * 2 * size;
    f_store(step[g], f_load_half(from));
    f_store(least[g], f_load_half(from + size));
  }
  F sum[kRows][kVecs];
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
    for (int c = 0; c < kVecs; ++c) sum[r][c] = acc[r][c];
  }
  const int64_t row_bytes = kv_code_bytes(kFormat, a.kv.head_dim, 1);
  const uint8_t* row = codes + slot * row_bytes;
  for (int key = 0; key < keys; ++key, row += row_bytes) {
    F v[kVecs];
    load_kivi_codes<kFormat, kVecs>(row, d, v);
#pragma GCC unroll 32
    for (int c = 0; c < kVecs; ++c) {
      v[c] = f_fma(f_set1(step[c / 2][key]), v[c], f_set1(least[c / 2][key]));
    }
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
      for (int c = 0; c < kVecs; ++c) {
        sum[r][c] = f_fma(f_set1(weight[r][0][key]), v[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
    for (int c = 0; c < kVecs; ++c) acc[r][c] = sum[r][c];
  }
}

// acc += p * V over the line from `start` on, old values before recent ones, as they lie. What a
// query reads otherwise, or not at all, has weight 0 and leaves no trace.
template <KvFormat kFormat, int kRows, int kVecs>
OCTAVO_HOT void weigh_kivi(const AttentionArgs& a, int i, int start, int d, F (*acc)[kVecs]) {
  const int size = a.kv.block_size, slot = start % size, keys = smaller(16, a.key1 - start);
  const int block = a.block_table[start / size], recent = a.recent_table[start / size];
  const float *old[kRows][1], *fresh[kRows][1];
  alignas(64) float room[2][kRows][16];
  int most = 0, least = keys;
  for (int r = 0; r < kRows; ++r) {
    const float* p = scores_of(a, i + r) + (start - a.key0);
    const int n = old_values(a, i + r, start, keys);
    old[r][0] = weights_within(p, 0, n, room[0][r]);
    fresh[r][0] = weights_within(p, n, keys, room[1][r]);
    most = n > most ? n : most;
    if (a.pos[i + r] >= start) least = smaller(n, least);
  }
  if (most > 0 && block >= 0) {
    uint8_t* codes = v_block(a.kv, block, a.kv_head);
    weigh_kivi_codes<kFormat, kRows, kVecs>(a, codes, slot, most, d, old, acc);
  }
  if (least < keys && recent >= 0) {
    const int64_t row_bytes = 2 * static_cast<int64_t>(a.kv.head_dim);
    const uint8_t* row = v_block(a.recent, recent, a.kv_head) + slot * row_bytes;
    weigh_line<KvFormat::kBf16, kRows, kVecs, 1>(row, row_bytes, keys, d, 0, fresh, acc);
  }
}
