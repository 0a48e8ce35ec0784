// One split of attention for the queries of one kv head, and the merge of splits.

constexpr bool integers(KvFormat format) {
  return format == KvFormat::kInt8 || format == KvFormat::kInt4;
}
inline int padded_keys(const AttentionArgs& a) { return (a.key1 - a.key0 + 15) / 16 * 16; }
inline float* scores_of(const AttentionArgs& a, int i) {
  return a.scratch + static_cast<int64_t>(i) * padded_keys(a);
}
inline uint8_t* query_of(const AttentionArgs& a, int i) {
  return reinterpret_cast<uint8_t*>(scores_of(a, a.n_q)) + i * query_bytes(a.kv.head_dim);
}

// `rows` runs of `bytes` from p on, `stride` apart, on their way into L2. Always inlined, as are
// its callers: gcc takes a function that only prefetches for one without effects, and drops the
// calls.
OCTAVO_HOT void fetch(const uint8_t* p, int rows, int64_t stride, int64_t bytes) {
  for (int r = 0; r < rows; ++r, p += stride) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 2);
  }
}

// What memory is asked for while the sums of what came before are computed: of each split its
// values behind its scores, and behind its values the keys that come next, of this head or of
// another. Each stays in L2 that long (a split of 256 keys of 128 elements of 16 bits: 64 KB).
OCTAVO_HOT void fetch_keys_ahead(const AttentionArgs& a, int key) {
  if (key >= a.ahead.key1) return;
  const KvLayerView& kv = a.kv;
  const int block = a.ahead.block_table[key / kv.block_size], slot = key % kv.block_size;
  if (block < 0) return;
  const uint8_t* k = k_block(kv, block, a.ahead.kv_head);
  if (kv.block_size == 16) return fetch(k, 1, 0, kv.block_stride);
  const int64_t codes = kv_code_bytes(kv.format, kv.head_dim, kv.block_size);
  if (is_kivi(kv.format)) {
    const int64_t line = 16 * codes / kv.block_size;
    return fetch(k + slot / 16 * line, 1, 0, line);
  }
  const int64_t stride = kv.format == KvFormat::kF16 ? 2 * kv.block_size : 4 * kv.block_size;
  fetch(k + stride / kv.block_size * slot, static_cast<int>(codes / stride), stride, 64);
}

OCTAVO_HOT void fetch_values(const AttentionArgs& a, int key) {
  const KvLayerView& kv = a.kv;
  const int block = a.block_table[key / kv.block_size];
  if (block < 0) return;
  const uint8_t* v = v_block(kv, block, a.kv_head);
  if (kv.block_size == 16) return fetch(v, 1, 0, kv.block_stride);
  const int64_t row = kv_code_bytes(kv.format, kv.head_dim, 1);
  fetch(v + key % kv.block_size * row, 1, 0, 16 * row);
}

// The value of each byte.
template <KvFormat kFormat>
OCTAVO_HOT F f_of_fp8(I byte) {
  constexpr int kFraction = kFormat == KvFormat::kE4m3 ? 3 : 2;
  constexpr int kRaise = 127 - (kFormat == KvFormat::kE4m3 ? 7 : 15);
  const I bits = i_shl(i_and(byte, i_set1(127)), 23 - kFraction);
  const F normal = f_bits(i_add(bits, i_set1(kRaise << 23)));
  const I one = i_set1((kRaise + 1) << 23);
  const F tiny = f_sub(f_bits(i_add(bits, one)), f_bits(one));
  const I magnitude = i_gt(i_set1(1 << 23), bits, i_bits(tiny), i_bits(normal));
  return f_bits(i_or(magnitude, i_shl(i_and(byte, i_set1(128)), 24)));
}

template <KvFormat kFormat, int kRows>
OCTAVO_HOT void dot_fp8(const AttentionArgs& a, const uint8_t* k, int slot, int i, F* s) {
  const int64_t stride = 4 * static_cast<int64_t>(a.kv.block_size);
  const float* q = a.q + i * a.q_stride;
  for (int r = 0; r < kRows; ++r) s[r] = f_zero();
  const uint8_t* from = k + 4 * slot;
  for (int d = 0; d < a.kv.head_dim; d += 4, from += stride) {
    const I word = i_load(from);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F key = f_of_fp8<kFormat>(i_shr(word, 8 * c));
      for (int r = 0; r < kRows; ++r) s[r] = f_fma(f_set1(q[r * a.q_stride + d + c]), key, s[r]);
    }
  }
}

// q . k for kRows queries and the 16 keys of one line from `slot` on.
template <KvFormat kFormat, int kRows>
OCTAVO_HOT void dot_floats(const AttentionArgs& a, const uint8_t* k, int slot, int i, F* s) {
  const int64_t stride = a.kv.block_size;
  const float* q = a.q + i * a.q_stride;
  for (int r = 0; r < kRows; ++r) s[r] = f_zero();
  if (kFormat == KvFormat::kBf16) {
    const uint8_t* from = k + 4 * slot;
    for (int d = 0; d < a.kv.head_dim; d += 2, from += 4 * stride) {
      const I pair = i_load(from);
      const F even = f_bf16_low(pair), odd = f_bf16_high(pair);
      for (int r = 0; r < kRows; ++r) {
        s[r] = f_fma(f_set1(q[r * a.q_stride + d]), even, s[r]);
      }
      for (int r = 0; r < kRows; ++r) {
        s[r] = f_fma(f_set1(q[r * a.q_stride + d + 1]), odd, s[r]);
      }
    }
    return;
  }
  for (int d = 0; d < a.kv.head_dim; ++d) {
    const F key = kFormat == KvFormat::kF32
                      ? f_load(reinterpret_cast<const float*>(k) + d * stride + slot)
                      : f_load_half(reinterpret_cast<const uint16_t*>(k) + d * stride + slot);
    for (int r = 0; r < kRows; ++r) s[r] = f_fma(f_set1(q[r * a.q_stride + d]), key, s[r]);
  }
}

inline F scales_at(const uint8_t* scales, int slot) {
  return f_load_bf16(reinterpret_cast<const uint16_t*>(scales) + slot);
}

template <int kRows>
OCTAVO_HOT void dot_int8(const AttentionArgs& a, uint8_t* k, int slot, int i, F* s) {
  const int dim = a.kv.head_dim;
  const uint8_t* q = query_of(a, i);
  I acc[kRows];
  dot_codes<kRows, false>(q, query_bytes(dim), dim, k + 4 * slot, a.kv.block_size, 0, dim, acc);
  const F scale = scales_at(scales_of(a.kv, k), slot);
  for (int r = 0; r < kRows; ++r, q += query_bytes(dim)) {
    int32_t sum = 0;
    for (int g = 0; g < (dim + 31) / 32; ++g) sum += query_sums(q, dim)[g];
    const F dot = f_of_int(i_sub(acc[r], i_set1(128 * sum)));
    s[r] = f_mul(dot, f_mul(scale, f_set1(query_scale(q, dim))));
  }
}

template <int kRows>
OCTAVO_HOT void dot_int4(const AttentionArgs& a, uint8_t* k, int slot, int i, F* s) {
  const int dim = a.kv.head_dim, size = a.kv.block_size;
  const int64_t stride = query_bytes(dim);
  const uint8_t* q = query_of(a, i);
  for (int r = 0; r < kRows; ++r) s[r] = f_zero();
  const uint8_t* scales = scales_of(a.kv, k);
  for (int g = 0; g < dim / kKvGroup; ++g, scales += 2 * size) {
    I acc[kRows];
    const int d = g * kKvGroup;
    dot_codes<kRows, true>(q, stride, dim, k + 4 * slot, size, d, d + kKvGroup, acc);
    const F scale = scales_at(scales, slot);
    for (int r = 0; r < kRows; ++r) {
      const int32_t zeros = 8 * query_sums(q + r * stride, dim)[g];
      s[r] = f_fma(f_of_int(i_sub(acc[r], i_set1(zeros))), scale, s[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) s[r] = f_mul(s[r], f_set1(query_scale(q + r * stride, dim)));
}

// KIVI's, in attention_kivi.inl.
template <KvFormat kFormat, int kRows>
void dot_kivi(const AttentionArgs& a, int key, int i, F* s);
template <KvFormat kFormat, int kRows, int kVecs>
void weigh_kivi(const AttentionArgs& a, int i, int start, int d, F (*acc)[kVecs]);

// Lanes of the 16 keys from `key` that query i may not see become -inf.
inline F hide(const AttentionArgs& a, int i, int key, F s) {
  static const int32_t kLaneIndex[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int last = smaller(a.pos[i], a.key1 - 1);
  const int first = a.window > 0 ? a.pos[i] - a.window + 1 : 0;
  if (first <= key && key + 15 <= last) return s;
  const I at = i_add(i_load(kLaneIndex), i_set1(key));
  const I hidden = i_bits(f_set1(-__builtin_inff()));
  const I late = i_gt(at, i_set1(last), hidden, i_bits(s));
  return f_bits(i_gt(i_set1(first), at, hidden, late));
}

inline F finish_score(const AttentionArgs& a, int i, int key, F dot) {
  const F s = f_mul(dot, f_set1(a.scale));
  return hide(a, i, key, a.softcap > 0.0f ? f_softcap(s, a.softcap) : s);
}

// Scores of kRows queries, and the largest of each.
template <KvFormat kFormat, int kRows>
inline void score_queries(const AttentionArgs& a, int i) {
  F peak[kRows];
  for (int r = 0; r < kRows; ++r) peak[r] = f_set1(-__builtin_inff());
  for (int key = a.key0; key < a.key1; key += 16) {
    if (i == 0) fetch_values(a, key);
    const int block = a.block_table[key / a.kv.block_size], slot = key % a.kv.block_size;
    F s[kRows];
    if constexpr (is_kivi(kFormat)) {
      dot_kivi<kFormat, kRows>(a, key, i, s);
    } else if (block < 0) {
      for (int r = 0; r < kRows; ++r) s[r] = f_set1(-__builtin_inff());
    } else {
      uint8_t* k = k_block(a.kv, block, a.kv_head);
      if constexpr (kFormat == KvFormat::kInt8) {
        dot_int8<kRows>(a, k, slot, i, s);
      } else if constexpr (kFormat == KvFormat::kInt4) {
        dot_int4<kRows>(a, k, slot, i, s);
      } else if constexpr (is_fp8(kFormat)) {
        dot_fp8<kFormat, kRows>(a, k, slot, i, s);
      } else {
        dot_floats<kFormat, kRows>(a, k, slot, i, s);
      }
    }
    if (is_kivi(kFormat) || block >= 0) {
      for (int r = 0; r < kRows; ++r) s[r] = finish_score(a, i + r, key, s[r]);
    }
    for (int r = 0; r < kRows; ++r) {
      f_store(scores_of(a, i + r) + (key - a.key0), s[r]);
      peak[r] = f_max(s[r], peak[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) a.m[i + r] = f_fold_max(peak[r]);
}

// Scores become exp(s - m); l is written.
inline void exponentials(const AttentionArgs& a, int i) {
  float* s = scores_of(a, i);
  const int n = padded_keys(a);
  const float m = a.m[i];
  const bool visible = m > -__builtin_inff();
  F sum = f_zero();
  for (int j = 0; j < n; j += 16) {
    const F p = visible ? f_exp_down(f_sub(f_load(s + j), f_set1(m))) : f_zero();
    f_store(s + j, p);
    sum = f_add(sum, p);
  }
  a.l[i] = f_fold_add(sum);
}

// kVecs registers of V from element d on; `tail` > 0: only so many elements of the one exist.
template <KvFormat kFormat, int kVecs>
OCTAVO_HOT void load_values(const uint8_t* row, int d, int tail, F* v) {
  if constexpr (kFormat == KvFormat::kInt4) {
    for (int c = 0; c < kVecs; c += 2) {
      const I bytes = i_load_u8(row + d / 2 + 8 * c);
      v[c] = nibble_low(bytes);
      v[c + 1] = nibble_high(bytes);
    }
    return;
  }
  for (int c = 0; c < kVecs; ++c) {
    const int at = d + 16 * c;
    if (kFormat == KvFormat::kInt8) {
      v[c] = f_of_int(i_load_s8(reinterpret_cast<const int8_t*>(row) + at));
    } else if constexpr (is_fp8(kFormat)) {
      v[c] = f_of_fp8<kFormat>(i_load_u8(row + at));
    } else if (kFormat == KvFormat::kF32) {
      const float* from = reinterpret_cast<const float*>(row) + at;
      v[c] = tail ? f_load_n(from, tail) : f_load(from);
    } else {
      uint16_t lanes[16] = {};
      const uint16_t* from = reinterpret_cast<const uint16_t*>(row) + at;
      if (tail) __builtin_memcpy(lanes, from, 2 * static_cast<size_t>(tail));
      from = tail ? lanes : from;
      v[c] = kFormat == KvFormat::kBf16 ? f_load_bf16(from) : f_load_half(from);
    }
  }
}

// What the keys of a line count for in elements [d, d + 16 kVecs): p, or p * scale per 32 elements
// (int8: per head). weight[r][group] points at 16 numbers; `room` holds products.
template <KvFormat kFormat, int kRows, int kGroups>
OCTAVO_HOT void weights_of(const AttentionArgs& a, int i, int line, int d, const uint8_t* scales,
                           const float* (*weight)[kGroups], float (*room)[kGroups][16]) {
  for (int r = 0; r < kRows; ++r) {
    const float* p = scores_of(a, i + r) + (line - a.key0);
    for (int g = 0; g < kGroups; ++g) {
      weight[r][g] = p;
      if (!integers(kFormat)) continue;
      const int group = kFormat == KvFormat::kInt4 ? d / kKvGroup + g : 0;
      const F scale = scales_at(scales, group * a.kv.block_size + line % a.kv.block_size);
      f_store(room[r][g], f_mul(f_load(p), scale));
      weight[r][g] = room[r][g];
    }
  }
}

// acc += weight * V over the keys of a line. The sums are locals of their own, and the loops
// unrolled at once: else the compiler stores all of them behind every key, which takes longer than
// the sums.
template <KvFormat kFormat, int kRows, int kVecs, int kGroups>
OCTAVO_HOT void weigh_line(const uint8_t* row, int64_t row_bytes, int keys, int d, int tail,
                           const float* (*weight)[kGroups], F (*acc)[kVecs]) {
  F sum[kRows][kVecs];
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
    for (int c = 0; c < kVecs; ++c) sum[r][c] = acc[r][c];
  }
  for (int key = 0; key < keys; ++key, row += row_bytes) {
    F v[kVecs];
    load_values<kFormat, kVecs>(row, d, tail, v);
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
      for (int c = 0; c < kVecs; ++c) {
        sum[r][c] = f_fma(f_set1(weight[r][c * kGroups / kVecs][key]), v[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
    for (int c = 0; c < kVecs; ++c) acc[r][c] = sum[r][c];
  }
}

// o[d ...] of kRows queries for kVecs registers of 16 elements of V. The last addition turns -0
// into +0, so that keys which count for nothing (p = 0) leave no trace.
template <KvFormat kFormat, int kRows, int kVecs>
inline void weigh_values(const AttentionArgs& a, int i, int d, int tail) {
  constexpr int kGroups = kFormat == KvFormat::kInt4 ? (kVecs + 1) / 2 : 1;
  F acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kVecs; ++c) acc[r][c] = f_zero();
  }
  const int64_t row_bytes = kv_code_bytes(kFormat, a.kv.head_dim, 1);
  for (int start = a.key0; start < a.key1; start += 16) {
    if (i == 0 && d == 0) fetch_keys_ahead(a, a.ahead.key0 + start - a.key0);
    if constexpr (is_kivi(kFormat)) {
      weigh_kivi<kFormat, kRows, kVecs>(a, i, start, d, acc);
      continue;
    }
    const int block = a.block_table[start / a.kv.block_size];
    if (block < 0) continue;
    uint8_t* codes = v_block(a.kv, block, a.kv_head);
    const uint8_t* row = codes + (start % a.kv.block_size) * row_bytes;
    const float* weight[kRows][kGroups];
    alignas(64) float room[kRows][kGroups][16];
    weights_of<kFormat, kRows, kGroups>(a, i, start, d, scales_of(a.kv, codes), weight, room);
    const int keys = smaller(16, a.key1 - start);
    weigh_line<kFormat, kRows, kVecs, kGroups>(row, row_bytes, keys, d, tail, weight, acc);
  }
  for (int r = 0; r < kRows; ++r) {
    float* o = a.o + (i + r) * a.o_stride + d;
    for (int c = 0; c < kVecs; ++c) {
      f_store_n(o + 16 * c, f_add(acc[r][c], f_zero()), tail ? tail : 16);
    }
  }
}

// All elements of kRows queries, in tiles of about kValueTile registers.
template <KvFormat kFormat, int kRows>
inline void weigh_rows(const AttentionArgs& a, int i) {
  constexpr int kRowsAtOnce = kValueTile / 2;
  if constexpr (kRows > kRowsAtOnce) {
    weigh_rows<kFormat, kRowsAtOnce>(a, i);
    weigh_rows<kFormat, kRows - kRowsAtOnce>(a, i + kRowsAtOnce);
  } else {
    constexpr int kWide = 4 * kRows <= kValueTile ? 4 : 2;
    int d = 0;
    for (; d + 16 * kWide <= a.kv.head_dim; d += 16 * kWide) {
      weigh_values<kFormat, kRows, kWide>(a, i, d, 0);
    }
    if constexpr (kFormat == KvFormat::kInt4 || is_kivi(kFormat)) {
      for (; d < a.kv.head_dim; d += kKvGroup) weigh_values<kFormat, kRows, 2>(a, i, d, 0);
    } else {
      for (; d + 16 <= a.kv.head_dim; d += 16) weigh_values<kFormat, kRows, 1>(a, i, d, 0);
      if (d < a.kv.head_dim) weigh_values<kFormat, kRows, 1>(a, i, d, a.kv.head_dim - d);
    }
  }
}

inline void rotate_back(const AttentionArgs& a, int i) {
  F v[kMaxKvDim / 16];
  float* o = a.o + i * a.o_stride;
  for (int c = 0; c < a.kv.head_dim / 16; ++c) v[c] = f_load(o + 16 * c);
  hadamard(v, a.kv.head_dim);
  for (int c = 0; c < a.kv.head_dim / 16; ++c) f_store(o + 16 * c, v[c]);
}

template <KvFormat kFormat, int kRows>
inline void attend(const AttentionArgs& a, int i) {
  if constexpr (integers(kFormat)) {
    for (int r = i; r < i + kRows; ++r) {
      prepare_query(a.q + r * a.q_stride, a.kv.head_dim, query_of(a, r));
    }
  }
  score_queries<kFormat, kRows>(a, i);
  for (int r = i; r < i + kRows; ++r) exponentials(a, r);
  weigh_rows<kFormat, kRows>(a, i);
  if (kFormat != KvFormat::kInt4) return;
  for (int r = i; r < i + kRows; ++r) rotate_back(a, r);
}

// The queries from i on that are less than kRows + 1.
template <KvFormat kFormat, int kRows>
inline void attend_rest(const AttentionArgs& a, int i) {
  if constexpr (kRows > 0) {
    if (a.n_q - i == kRows) return attend<kFormat, kRows>(a, i);
    attend_rest<kFormat, kRows - 1>(a, i);
  }
}

template <KvFormat kFormat>
inline void attention_in(const AttentionArgs& a) {
  int i = 0;
  for (; i + kQueryTile <= a.n_q; i += kQueryTile) attend<kFormat, kQueryTile>(a, i);
  attend_rest<kFormat, kQueryTile - 1>(a, i);
}

inline void attention(const AttentionArgs& a) {
  switch (a.kv.format) {
    case KvFormat::kBf16:
      return attention_in<KvFormat::kBf16>(a);
    case KvFormat::kF32:
      return attention_in<KvFormat::kF32>(a);
    case KvFormat::kF16:
      return attention_in<KvFormat::kF16>(a);
    case KvFormat::kInt8:
      return attention_in<KvFormat::kInt8>(a);
    case KvFormat::kInt4:
      return attention_in<KvFormat::kInt4>(a);
    case KvFormat::kE4m3:
      return attention_in<KvFormat::kE4m3>(a);
    case KvFormat::kE5m2:
      return attention_in<KvFormat::kE5m2>(a);
    case KvFormat::kKivi2:
      return attention_in<KvFormat::kKivi2>(a);
    case KvFormat::kKivi4:
      return attention_in<KvFormat::kKivi4>(a);
  }
}

// 16 kVecs elements of a merge, or `left` of the one register. Sums stay in registers over the
// parts; a part without a visible key is skipped, since its o may hold anything.
template <int kVecs>
OCTAVO_HOT void merge_elements(const float* o, int64_t part_stride, const float* m, const float* l,
                               int parts, float peak, int left, float* out) {
  F sum[kVecs], total = f_zero();
  for (int c = 0; c < kVecs; ++c) sum[c] = f_zero();
  for (int i = 0; i < parts; ++i, o += part_stride) {
    if (!(m[i] > -__builtin_inff())) continue;
    const F weight = f_exp(f_set1(m[i] - peak));
    total = f_fma(weight, f_set1(l[i]), total);
    for (int c = 0; c < kVecs; ++c) {
      sum[c] = f_fma(weight, kVecs > 1 ? f_load(o + 16 * c) : f_load_n(o, left), sum[c]);
    }
  }
  for (int c = 0; c < kVecs; ++c) {
    f_store_n(out + 16 * c, f_div(sum[c], total), kVecs > 1 ? 16 : left);
  }
}

inline void attention_merge(const float* o, int64_t part_stride, const float* m, const float* l,
                            int parts, int head_dim, float* out) {
  float peak = -__builtin_inff();
  for (int i = 0; i < parts; ++i) peak = m[i] > peak ? m[i] : peak;
  int d = 0;
  if (!(peak > -__builtin_inff())) {
    for (; d < head_dim; ++d) out[d] = 0.0f;
    return;
  }
  for (; d + 64 <= head_dim; d += 64)
    merge_elements<4>(o + d, part_stride, m, l, parts, peak, 0, out + d);
  for (; d < head_dim; d += 16)
    merge_elements<1>(o + d, part_stride, m, l, parts, peak, smaller(16, head_dim - d), out + d);
}
