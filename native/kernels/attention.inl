// One split of attention for the queries of one kv head, the merge of splits, and the KV write.

inline uint8_t* k_block(const KvLayerView& kv, int block, int head) {
  return kv.base + block * kv.block_stride + head * kv.head_stride_k;
}
inline uint8_t* v_block(const KvLayerView& kv, int block, int head) {
  return kv.base + block * kv.block_stride + kv.v_offset + head * kv.head_stride_v;
}

inline uint16_t bf16_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline void write_k_head(const KvLayerView& kv, uint8_t* out, int slot, const float* k) {
  if (kv.format == KvFormat::kF32) {
    float* to = reinterpret_cast<float*>(out) + slot;
    for (int d = 0; d < kv.head_dim; ++d) to[static_cast<int64_t>(d) * kv.block_size] = k[d];
    return;
  }
  uint32_t* to = reinterpret_cast<uint32_t*>(out) + slot;
  for (int d = 0; d < kv.head_dim; d += 2) {
    const uint32_t pair = bf16_of(k[d]) | static_cast<uint32_t>(bf16_of(k[d + 1])) << 16;
    to[static_cast<int64_t>(d / 2) * kv.block_size] = pair;
  }
}

inline void write_v_head(const KvLayerView& kv, uint8_t* out, int slot, const float* v) {
  const int64_t row = static_cast<int64_t>(slot) * kv.head_dim;
  if (kv.format == KvFormat::kF32) {
    __builtin_memcpy(out + 4 * row, v, 4 * static_cast<size_t>(kv.head_dim));
    return;
  }
  uint16_t* to = reinterpret_cast<uint16_t*>(out) + row;
  for (int d = 0; d < kv.head_dim; ++d) to[d] = bf16_of(v[d]);
}

inline void kv_write(const KvLayerView& kv, int block, int slot, const float* k, const float* v) {
  for (int h = 0; h < kv.kv_heads; ++h) {
    write_k_head(kv, k_block(kv, block, h), slot, k + static_cast<int64_t>(h) * kv.head_dim);
    write_v_head(kv, v_block(kv, block, h), slot, v + static_cast<int64_t>(h) * kv.head_dim);
  }
}

inline int padded_keys(const AttentionArgs& a) { return (a.key1 - a.key0 + 15) / 16 * 16; }
inline float* scores_of(const AttentionArgs& a, int i) {
  return a.scratch + static_cast<int64_t>(i) * padded_keys(a);
}

// q . k for kRows queries and the 16 keys of one line; `k` points at the lane of the first key.
template <int kRows>
inline void dot_keys(const AttentionArgs& a, const uint8_t* k, int i, F* s) {
  const int stride = a.kv.block_size;
  for (int r = 0; r < kRows; ++r) s[r] = f_zero();
  if (a.kv.format == KvFormat::kF32) {
    const float* from = reinterpret_cast<const float*>(k);
    for (int d = 0; d < a.kv.head_dim; ++d) {
      const F key = f_load(from + static_cast<int64_t>(d) * stride);
      for (int r = 0; r < kRows; ++r)
        s[r] = f_fma(f_set1(a.q[(i + r) * a.q_stride + d]), key, s[r]);
    }
    return;
  }
  const uint32_t* from = reinterpret_cast<const uint32_t*>(k);
  for (int d = 0; d < a.kv.head_dim; d += 2) {
    const I pair = i_load(from + static_cast<int64_t>(d / 2) * stride);
    const F even = f_bf16_low(pair), odd = f_bf16_high(pair);
    for (int r = 0; r < kRows; ++r) {
      const float* q = a.q + (i + r) * a.q_stride + d;
      s[r] = f_fma(f_set1(q[1]), odd, f_fma(f_set1(q[0]), even, s[r]));
    }
  }
}

// Lanes of the 16 keys from `key` that query i may not see become -inf.
inline F hide(const AttentionArgs& a, int i, int key, F s) {
  const int last = smaller(a.pos[i], a.key1 - 1);
  const int first = a.window > 0 ? a.pos[i] - a.window + 1 : 0;
  if (first <= key && key + 15 <= last) return s;
  float lanes[16];
  f_store(lanes, s);
  for (int j = 0; j < 16; ++j) {
    if (key + j < first || key + j > last) lanes[j] = -__builtin_inff();
  }
  return f_load(lanes);
}

inline F finish_score(const AttentionArgs& a, int i, int key, F dot) {
  const F s = f_mul(dot, f_set1(a.scale));
  return hide(a, i, key, a.softcap > 0.0f ? f_softcap(s, a.softcap) : s);
}

template <int kRows>
inline void score_queries(const AttentionArgs& a, int i) {
  for (int key = a.key0; key < a.key1; key += 16) {
    const int block = a.block_table[key / a.kv.block_size], slot = key % a.kv.block_size;
    F s[kRows];
    if (block < 0) {
      for (int r = 0; r < kRows; ++r) s[r] = f_set1(-__builtin_inff());
    } else {
      dot_keys<kRows>(a, k_block(a.kv, block, a.kv_head) + 4 * slot, i, s);
      for (int r = 0; r < kRows; ++r) s[r] = finish_score(a, i + r, key, s[r]);
    }
    for (int r = 0; r < kRows; ++r) f_store(scores_of(a, i + r) + (key - a.key0), s[r]);
  }
}

// Scores become exp(s - m); m and l are written.
inline void exponentials(const AttentionArgs& a, int i) {
  float* s = scores_of(a, i);
  const int n = padded_keys(a);
  F peak = f_set1(-__builtin_inff());
  for (int j = 0; j < n; j += 16) peak = f_max(f_load(s + j), peak);
  const float m = f_fold_max(peak);
  const bool visible = m > -__builtin_inff();
  F sum = f_zero();
  for (int j = 0; j < n; j += 16) {
    const F p = visible ? f_exp(f_sub(f_load(s + j), f_set1(m))) : f_zero();
    f_store(s + j, p);
    sum = f_add(sum, p);
  }
  a.m[i] = m;
  a.l[i] = f_fold_add(sum);
}

inline F load_v(const KvLayerView& kv, const uint8_t* row, int d) {
  return kv.format == KvFormat::kF32 ? f_load(reinterpret_cast<const float*>(row) + d)
                                     : f_load_bf16(reinterpret_cast<const uint16_t*>(row) + d);
}
inline F load_v_n(const KvLayerView& kv, const uint8_t* row, int d, int n) {
  if (kv.format == KvFormat::kF32) return f_load_n(reinterpret_cast<const float*>(row) + d, n);
  uint16_t lanes[16] = {};
  __builtin_memcpy(lanes, row + 2 * d, 2 * static_cast<size_t>(n));
  return f_load_bf16(lanes);
}

// o[d ...] of kRows queries for kVecs registers of 16 elements of V; `tail` > 0: only so many
// elements of the one register exist. The last addition turns -0 into +0, so that keys which
// count for nothing (p = 0) leave no trace.
template <int kRows, int kVecs>
inline void weigh_values(const AttentionArgs& a, int i, int d, int tail) {
  F acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kVecs; ++c) acc[r][c] = f_zero();
  }
  const int64_t row_bytes = a.kv.head_dim * (a.kv.format == KvFormat::kF32 ? 4 : 2);
  for (int start = a.key0; start < a.key1; start += 16) {
    const int block = a.block_table[start / a.kv.block_size];
    if (block < 0) continue;
    const uint8_t* row = v_block(a.kv, block, a.kv_head) + (start % a.kv.block_size) * row_bytes;
    for (int key = start; key < smaller(start + 16, a.key1); ++key, row += row_bytes) {
      F v[kVecs];
      for (int c = 0; c < kVecs; ++c) {
        v[c] = tail ? load_v_n(a.kv, row, d, tail) : load_v(a.kv, row, d + 16 * c);
      }
      for (int r = 0; r < kRows; ++r) {
        const F p = f_set1(scores_of(a, i + r)[key - a.key0]);
        for (int c = 0; c < kVecs; ++c) acc[r][c] = f_fma(p, v[c], acc[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* o = a.o + (i + r) * a.o_stride + d;
    for (int c = 0; c < kVecs; ++c) {
      f_store_n(o + 16 * c, f_add(acc[r][c], f_zero()), tail ? tail : 16);
    }
  }
}

template <int kRows>
inline void attend(const AttentionArgs& a, int i) {
  score_queries<kRows>(a, i);
  for (int r = 0; r < kRows; ++r) exponentials(a, i + r);
  int d = 0;
  for (; d + 16 * kValueVecs <= a.kv.head_dim; d += 16 * kValueVecs) {
    weigh_values<kRows, kValueVecs>(a, i, d, 0);
  }
  for (; d + 16 <= a.kv.head_dim; d += 16) weigh_values<kRows, 1>(a, i, d, 0);
  if (d < a.kv.head_dim) weigh_values<kRows, 1>(a, i, d, a.kv.head_dim - d);
}

inline void attention(const AttentionArgs& a) {
  int i = 0;
  for (; i + kQueryTile <= a.n_q; i += kQueryTile) attend<kQueryTile>(a, i);
  if (kQueryTile > 3 && a.n_q - i == 3) return attend<3>(a, i);
  for (; kQueryTile > 2 && i + 2 <= a.n_q; i += 2) attend<2>(a, i);
  for (; i < a.n_q; ++i) attend<1>(a, i);
}

inline float exp_of(float x) {
  float lanes[16];
  f_store(lanes, f_exp(f_set1(x)));
  return lanes[0];
}

// A part without a visible key is skipped: its o may hold anything.
inline void attention_merge(const float* o, int64_t part_stride, const float* m, const float* l,
                            int parts, int head_dim, float* out) {
  const float lowest = -__builtin_inff();
  float peak = lowest, total = 0.0f;
  for (int i = 0; i < parts; ++i) peak = m[i] > peak ? m[i] : peak;
  for (int d = 0; d < head_dim; ++d) out[d] = 0.0f;
  if (!(peak > lowest)) return;
  for (int i = 0; i < parts; ++i) {
    if (!(m[i] > lowest)) continue;
    const float weight = exp_of(m[i] - peak);
    total = __builtin_fmaf(weight, l[i], total);
    for (int d = 0; d < head_dim; d += 16) {
      const int left = smaller(16, head_dim - d);
      const F part = f_load_n(o + i * part_stride + d, left);
      f_store_n(out + d, f_fma(f_set1(weight), part, f_load_n(out + d, left)), left);
    }
  }
  for (int d = 0; d < head_dim; d += 16) {
    const int left = smaller(16, head_dim - d);
    f_store_n(out + d, f_div(f_load_n(out + d, left), f_set1(total)), left);
  }
}
