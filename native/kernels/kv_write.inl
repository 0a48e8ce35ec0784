// Keys and values into their pages, and queries as the integer formats of keys want them. The
// numerics of each format stand in core/types.h.

// Sums in registers must not become arrays in memory, as they do where inlining comes late.
#define OCTAVO_HOT inline __attribute__((always_inline))

constexpr float kSmallestPeak = 0x1p-100f;  // of a head or group; below, it counts as zeros
constexpr float kQueryPeak = 32512.0f;      // 127 * 256: its high byte, rounded, still fits

inline uint8_t* k_block(const KvLayerView& kv, int block, int head) {
  return kv.base + block * kv.block_stride + head * kv.head_stride_k;
}
inline uint8_t* v_block(const KvLayerView& kv, int block, int head) {
  return kv.base + block * kv.block_stride + kv.v_offset + head * kv.head_stride_v;
}
inline uint8_t* scales_of(const KvLayerView& kv, uint8_t* codes) {
  return codes + kv_code_bytes(kv.format, kv.head_dim, kv.block_size);
}

// Lane i: the sum of lanes i and i ^ kBit where that bit of i is clear, else their difference.
template <int kBit>
inline F butterfly(F a) {
  static const float kSigns[2] = {1.0f, -1.0f};
  float signs[16];
  for (int i = 0; i < 16; ++i) signs[i] = kSigns[(i & kBit) != 0];
  return f_fma(a, f_load(signs), f_swap<kBit>(a));
}

// The Hadamard transform of each block of elements whose length is the largest power of two that
// divides dim (which is a multiple of 16): distances 1, 2, 4 ... in this order. Not normalised.
inline void hadamard(F* v, int dim) {
  const int block = (dim & -dim) / 16;
  for (int i = 0; i < dim / 16; ++i) {
    v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[i]))));
  }
  for (int h = 1; h < block; h *= 2) {
    for (int i = 0; i < dim / 16; ++i) {
      if ((i & h) != 0) continue;
      const F a = v[i], b = v[i + h];
      v[i] = f_add(a, b);
      v[i + h] = f_sub(a, b);
    }
  }
}

inline void load_head(const float* x, int dim, bool rotated, F* v) {
  for (int i = 0; i < dim / 16; ++i) v[i] = f_load(x + 16 * i);
  if (!rotated) return;
  hadamard(v, dim);
  const F share = f_set1(1.0f / static_cast<float>(dim & -dim));
  for (int i = 0; i < dim / 16; ++i) v[i] = f_mul(v[i], share);
}

inline bool all_finite(const F* v, int n) {
  F zero = f_zero();
  for (int i = 0; i < n; ++i) zero = f_fma(v[i], f_zero(), zero);
  return f_fold_add(zero) == 0.0f;
}

inline float peak_of(const F* v, int n) {
  F peak = f_zero();
  for (int i = 0; i < n; ++i) peak = f_max(f_abs(v[i]), peak);
  return f_fold_max(peak);
}

inline uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
inline uint16_t bf16_up(float x) {  // of a positive number
  return static_cast<uint16_t>((bits_of(x) + 0xffffu) >> 16);
}
inline uint16_t bf16_nearest(float x) {
  const uint32_t u = bits_of(x);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline I code_of(F x, float inverse, float lowest, float highest) {
  const F scaled = f_rint(f_mul(x, f_set1(inverse)));
  return i_of_float(f_min(f_max(scaled, f_set1(lowest)), f_set1(highest)));
}

// Codes of a head and its scale. False: a value isn't finite, and zeros are stored.
inline bool encode_int8(const F* v, int dim, int8_t* codes, uint8_t* scale) {
  const bool finite = all_finite(v, dim / 16);
  const float peak = finite ? peak_of(v, dim / 16) : 0.0f;
  const uint16_t s = peak >= kSmallestPeak ? bf16_up(peak / 127.0f) : uint16_t{0};
  const float inverse = s ? 1.0f / bf16_value(s) : 0.0f;
  for (int i = 0; i < dim / 16; ++i) {
    i_store_s8(codes + 16 * i, finite ? code_of(v[i], inverse, -127.0f, 127.0f) : i_set1(0));
  }
  __builtin_memcpy(scale, &s, 2);
  return finite;
}

// The same for one group of 32: codes 0 to 15, zero is 8.
inline bool encode_int4(const F* v, int8_t* codes, uint8_t* scale) {
  const bool finite = all_finite(v, 2);
  const F zero = f_zero();
  const float high = f_fold_max(f_max(v[0], v[1]));
  const float low = -f_fold_max(f_max(f_sub(zero, v[0]), f_sub(zero, v[1])));
  const float most = high > -low ? high : low;
  const bool live = finite && (most >= kSmallestPeak || -most >= kSmallestPeak);
  const uint16_t s = live ? bf16_nearest(most / -8.0f) : uint16_t{0};
  const float inverse = live ? 1.0f / bf16_value(s) : 0.0f;
  for (int i = 0; i < 2; ++i) {
    const I code = live ? code_of(v[i], inverse, -8.0f, 7.0f) : i_set1(0);
    i_store_s8(codes + 16 * i, i_add(code, i_set1(8)));
  }
  __builtin_memcpy(scale, &s, 2);
  return finite;
}

// Sixteen values (n of them exist) in 16 bits. How many fp16 can't hold: they saturate.
inline int narrow(KvFormat format, const float* x, int n, uint16_t* out) {
  const F v = f_load_n(x, n);
  if (format == KvFormat::kBf16) {
    i_store_u16(out, bf16_bits(v));
    return 0;
  }
  const F most = f_set1(65504.0f);
  const F lost = f_gt(f_set1(65520.0f), f_abs(v), f_zero(), f_set1(1.0f));  // NaN is lost too
  f_store_half(out, f_max(f_sub(f_zero(), most), f_min(v, most)));
  return static_cast<int>(f_fold_add(lost));
}

// Sixteen values in 8 bits, half to even, without a scale. How many are too large: they saturate.
inline int narrow_fp8(KvFormat format, const float* x, uint8_t* out) {
  const bool e4m3 = format == KvFormat::kE4m3;
  const int fraction = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15, drop = 23 - fraction;
  const F v = f_load(x), top = f_set1(e4m3 ? 448.0f : 57344.0f);
  const F above = f_set1(e4m3 ? 0x1.c00002p8f : 0x1.c00002p15f);
  const F lost = f_gt(above, f_abs(v), f_zero(), f_set1(1.0f));  // NaN is lost too
  const F a = f_min(f_abs(v), top);
  const I odd = i_and(i_shr(i_bits(a), drop), i_set1(1));
  const I half = i_add(odd, i_set1((1 << (drop - 1)) - 1));
  const I normal = i_sub(i_shr(i_add(i_bits(a), half), drop), i_set1((127 - bias) << fraction));
  // below the normal ones: multiples of the smallest step
  const F steps = f_mul(a, f_pow2(i_set1(bias - 1 + fraction)));
  const I tiny = i_of_float(f_rint(f_min(steps, f_set1(256.0f))));
  const I small = i_bits(f_gt(f_pow2(i_set1(1 - bias)), a, f_bits(tiny), f_bits(normal)));
  const I code = i_or(small, i_and(i_shr(i_bits(v), 24), i_set1(128)));
  i_store_s8(reinterpret_cast<int8_t*>(out), i_sub(i_xor(code, i_set1(128)), i_set1(128)));
  return static_cast<int>(f_fold_add(lost));
}

inline int write_fp8(const KvLayerView& kv, uint8_t* to_k, uint8_t* to_v, int slot, const float* k,
                     const float* v) {
  int lost = 0;
  for (int d = 0; d < kv.head_dim; d += 16) {
    uint8_t codes[16];
    lost += narrow_fp8(kv.format, k + d, codes);
    for (int i = 0; i < 16; i += 4) {
      __builtin_memcpy(to_k + static_cast<int64_t>(d + i) * kv.block_size + 4 * slot, codes + i, 4);
    }
    lost += narrow_fp8(kv.format, v + d, to_v + static_cast<int64_t>(slot) * kv.head_dim + d);
  }
  return lost;
}

inline int write_k_floats(const KvLayerView& kv, uint8_t* out, int slot, const float* k) {
  const int64_t stride = kv.block_size;
  int lost = 0;
  if (kv.format == KvFormat::kF32) {
    float* to = reinterpret_cast<float*>(out) + slot;
    for (int d = 0; d < kv.head_dim; ++d) to[d * stride] = k[d];
    return 0;
  }
  uint16_t lanes[16];
  for (int d = 0; d < kv.head_dim; d += 16) {
    const int n = smaller(16, kv.head_dim - d);
    lost += narrow(kv.format, k + d, n, lanes);
    uint16_t* to = reinterpret_cast<uint16_t*>(out);
    if (kv.format == KvFormat::kF16) {
      for (int i = 0; i < n; ++i) to[(d + i) * stride + slot] = lanes[i];
    } else {
      for (int i = 0; i < n; i += 2) {
        __builtin_memcpy(to + (d + i) * stride + 2 * slot, lanes + i, 4);
      }
    }
  }
  return lost;
}

inline int write_v_floats(const KvLayerView& kv, uint8_t* out, int slot, const float* v) {
  const int64_t row = static_cast<int64_t>(slot) * kv.head_dim;
  if (kv.format == KvFormat::kF32) {
    __builtin_memcpy(out + 4 * row, v, 4 * static_cast<size_t>(kv.head_dim));
    return 0;
  }
  uint16_t lanes[16];
  int lost = 0;
  for (int d = 0; d < kv.head_dim; d += 16) {
    const int n = smaller(16, kv.head_dim - d);
    lost += narrow(kv.format, v + d, n, lanes);
    __builtin_memcpy(out + 2 * (row + d), lanes, 2 * static_cast<size_t>(n));
  }
  return lost;
}

inline int write_int8(const KvLayerView& kv, uint8_t* out, int slot, const F* v, bool is_key) {
  int8_t codes[kMaxKvDim];
  const int dim = kv.head_dim;
  const bool finite = encode_int8(v, dim, codes, scales_of(kv, out) + 2 * slot);
  if (!is_key) {
    __builtin_memcpy(out + static_cast<int64_t>(slot) * dim, codes, static_cast<size_t>(dim));
    return finite ? 0 : 1;
  }
  for (int d = 0; d < dim; d += 4) {
    uint32_t word;
    __builtin_memcpy(&word, codes + d, 4);
    word ^= 0x80808080u;
    __builtin_memcpy(out + static_cast<int64_t>(d) * kv.block_size + 4 * slot, &word, 4);
  }
  return finite ? 0 : 1;
}

inline int write_int4(const KvLayerView& kv, uint8_t* out, int slot, const F* v, bool is_key) {
  int8_t codes[kMaxKvDim];
  const int dim = kv.head_dim;
  uint8_t* scales = scales_of(kv, out) + 2 * slot;
  int lost = 0;
  for (int g = 0; g < dim / kKvGroup; ++g) {
    uint8_t* scale = scales + static_cast<int64_t>(g) * 2 * kv.block_size;
    lost += encode_int4(v + 2 * g, codes + g * kKvGroup, scale) ? 0 : 1;
  }
  if (is_key) {
    for (int d = 0; d < dim; d += 8) {
      uint32_t low, high;
      __builtin_memcpy(&low, codes + d, 4);
      __builtin_memcpy(&high, codes + d + 4, 4);
      low |= high << 4;
      __builtin_memcpy(out + static_cast<int64_t>(d / 2) * kv.block_size + 4 * slot, &low, 4);
    }
    return lost;
  }
  uint8_t* to = out + static_cast<int64_t>(slot) * (dim / 2);
  for (int d = 0; d < dim; ++d) {
    const int at = d / 32 * 16 + d % 16;
    const uint8_t code = static_cast<uint8_t>(codes[d]);
    to[at] = static_cast<uint8_t>(d % 32 < 16 ? code : to[at] | code << 4);
  }
  return lost;
}

inline int write_kivi(const KvLayerView& kv, int block, int slot, const float* k, const float* v);

inline int kv_write(const KvLayerView& kv, int block, int slot, const float* k, const float* v) {
  if (is_kivi(kv.format)) return write_kivi(kv, block, slot, k, v);
  const bool int8 = kv.format == KvFormat::kInt8, int4 = kv.format == KvFormat::kInt4;
  F head[kMaxKvDim / 16];
  int lost = 0;
  for (int h = 0; h < kv.kv_heads; ++h, k += kv.head_dim, v += kv.head_dim) {
    uint8_t *to_k = k_block(kv, block, h), *to_v = v_block(kv, block, h);
    if (is_fp8(kv.format)) {
      lost += write_fp8(kv, to_k, to_v, slot, k, v);
      continue;
    }
    if (!int8 && !int4) {
      lost += write_k_floats(kv, to_k, slot, k) + write_v_floats(kv, to_v, slot, v);
      continue;
    }
    load_head(k, kv.head_dim, true, head);
    lost += int8 ? write_int8(kv, to_k, slot, head, true) : write_int4(kv, to_k, slot, head, true);
    load_head(v, kv.head_dim, int4, head);
    lost +=
        int8 ? write_int8(kv, to_v, slot, head, false) : write_int4(kv, to_v, slot, head, false);
  }
  return lost;
}

// A query of the integer formats: int16 [dim], its high and low bytes as int8 [dim] each (value =
// 256 high + low), then the sum of each 32 as int32 and, 64 bytes after their start, the scale.
inline int64_t query_bytes(int dim) { return 4 * (static_cast<int64_t>(dim) + 32); }
inline const int32_t* query_sums(const uint8_t* query, int dim) {
  return reinterpret_cast<const int32_t*>(query + 4 * dim);
}
inline float query_scale(const uint8_t* query, int dim) {
  float scale;
  __builtin_memcpy(&scale, query + 4 * dim + 64, 4);
  return scale;
}

inline void prepare_query(const float* q, int dim, uint8_t* out) {
  F v[kMaxKvDim / 16];
  for (int i = 0; i < dim / 16; ++i) v[i] = f_load(q + 16 * i);
  hadamard(v, dim);
  const float peak = peak_of(v, dim / 16);
  const bool live = peak >= kSmallestPeak;
  const float inverse = live ? kQueryPeak / peak : 0.0f, scale = live ? peak / kQueryPeak : 0.0f;
  I total = i_set1(0);
  for (int i = 0; i < dim / 16; ++i) {
    const I code = code_of(v[i], inverse, -kQueryPeak, kQueryPeak);
    const I low = i_sub(i_and(i_add(code, i_set1(128)), i_set1(255)), i_set1(128));
    const I high = i_sub(i_shr(i_add(i_sub(code, low), i_set1(32768)), 8), i_set1(128));
    i_store_u16(reinterpret_cast<uint16_t*>(out) + 16 * i, i_and(code, i_set1(0xffff)));
    i_store_s8(reinterpret_cast<int8_t*>(out) + 2 * dim + 16 * i, high);
    i_store_s8(reinterpret_cast<int8_t*>(out) + 3 * dim + 16 * i, low);
    total = i % 2 == 0 ? code : i_add(total, code);
    const int32_t sum = i_fold_add(total);
    __builtin_memcpy(out + 4 * dim + 4 * (i / 2), &sum, 4);
  }
  __builtin_memcpy(out + 4 * dim + 64, &scale, 4);
}
