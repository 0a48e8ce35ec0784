// Everything of a step that walks one row. Tails are masked lanes, so no order changes with n.

inline void map_rms_norm(const float* x, const float* w, float inv, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const int left = smaller(16, n - i);
    const F y = f_mul(f_load_n(x + i, left), f_set1(inv));
    f_store_n(out + i, w ? f_mul(y, f_load_n(w + i, left)) : y, left);
  }
}

inline void rms_norm(const float* x, const float* w, float eps, int n, float* out) {
  F squares = f_zero();
  for (int i = 0; i < n; i += 16) {
    const F v = f_load_n(x + i, smaller(16, n - i));
    squares = f_fma(v, v, squares);
  }
  const float mean = f_fold_add(squares) / static_cast<float>(n);
  map_rms_norm(x, w, 1.0f / __builtin_sqrtf(mean + eps), n, out);
}

// kVecs registers of a group, `left` inputs of which exist, and the largest magnitude.
template <int kVecs>
OCTAVO_INLINE float load_group(const float* x, int left, F* v) {
  F amax = f_zero();
#pragma GCC unroll 4
  for (int i = 0; i < kVecs; ++i) {
    const int lanes = left - 16 * i;
    v[i] = left >= 16 * kVecs ? f_load(x + 16 * i)
           : lanes > 0        ? f_load_n(x + 16 * i, smaller(16, lanes))
                              : f_zero();
    amax = f_max(f_abs(v[i]), amax);
  }
  return f_fold_max(amax);
}

template <int kVecs>
OCTAVO_INLINE void write_codes(const F* v, float inverse, int8_t* q, int32_t* sum) {
  const F inv = f_set1(inverse);
#pragma GCC unroll 4
  for (int i = 0; i < kVecs; i += 2) {
    I total = i_set1(0);
#pragma GCC unroll 2
    for (int j = i; j < i + 2; ++j) {
      const F r = f_rint(f_min(f_max(f_mul(v[j], inv), f_set1(-127.0f)), f_set1(127.0f)));
      const I code = i_of_float(r);
      i_store_s8(q + 16 * j, code);
      total = i_add(total, code);
    }
    sum[i / 2] = i_fold_add(total);
  }
}

template <int kVecs>
OCTAVO_INLINE float quantize_group(const float* x, int left, int8_t* q, int32_t* sum) {
  F v[kVecs];
  const float peak = load_group<kVecs>(x, left, v);
  const bool live = peak >= 0x1p-118f;
  write_codes<kVecs>(v, live ? 127.0f / peak : 0.0f, q, sum);
  return live ? peak / 127.0f : 0.0f;
}

// Groups that all of their inputs exist of, and the others, so that the former need no masks.
template <int kVecs>
inline void quantize_groups(const float* x, int k, int k_pad, int8_t* q, float* scale,
                            int32_t* sum) {
  constexpr int kGroup = 16 * kVecs;
  int i = 0;
  for (; i + kGroup <= k; i += kGroup)
    scale[i / kGroup] = quantize_group<kVecs>(x + i, kGroup, q + i, sum + i / 32);
  for (; i < k_pad; i += kGroup)
    scale[i / kGroup] = quantize_group<kVecs>(x + i, k - i, q + i, sum + i / 32);
}

inline void quantize_a8(const float* x, int k, int k_pad, int group, int8_t* q, float* scale,
                        int32_t* sum) {
  group == 32 ? quantize_groups<2>(x, k, k_pad, q, scale, sum)
              : quantize_groups<4>(x, k, k_pad, q, scale, sum);
}

inline float peak(const float* x, int n) {
  F amax = f_zero();
  for (int i = 0; i < n; i += 16) {
    amax = f_max(f_abs(f_load_n(x + i, smaller(16, n - i))), amax);
  }
  return f_fold_max(amax);
}

inline void quantize_int8(const float* x, int k, int k_pad, int group, float amax, int8_t* q,
                          float* scale, int32_t* sum) {
  const bool live = amax >= 0x1p-118f;
  const float inverse = live ? 127.0f / amax : 0.0f;
  for (int i = 0; i < k_pad; i += 32) {
    F v[2];
    static_cast<void>(load_group<2>(x + i, k - i, v));
    write_codes<2>(v, inverse, q + i, sum + i / 32);
  }
  for (int g = 0; g < k_pad / group; ++g) scale[g] = live ? amax / 127.0f : 0.0f;
}

// hi and lo lie k_pad apart, their sums k_pad / 32.
inline float quantize_group_wide(const float* x, int left, int group, int k_pad, int8_t* q,
                                 int32_t* sum) {
  F v[4];
  const float peak = group == 32 ? load_group<2>(x, left, v) : load_group<4>(x, left, v);
  const bool live = peak >= 0x1p-100f;
  const F inv = f_set1(live ? 32639.0f / peak : 0.0f), top = f_set1(32639.0f);
  for (int u = 0; u < group / 32; ++u) {
    I high = i_set1(0), low = i_set1(0);
    for (int i = 2 * u; i < 2 * u + 2; ++i) {
      const F r = f_rint(f_min(f_max(f_mul(v[i], inv), f_sub(f_zero(), top)), top));
      const I code = i_of_float(r);
      // (code + 128) >> 8, counted from -32768 so that the shift may be a logical one
      const I hi = i_sub(i_shr(i_add(code, i_set1(128 + 32768)), 8), i_set1(128));
      const I rest = i_sub(code, i_shl(hi, 8));
      const I lo = i_gt(i_set1(-127), rest, i_set1(-127), rest);
      i_store_s8(q + 16 * i, hi);
      i_store_s8(q + k_pad + 16 * i, lo);
      high = i_add(high, hi);
      low = i_add(low, lo);
    }
    sum[u] = i_fold_add(high);
    sum[u + k_pad / 32] = i_fold_add(low);
  }
  return live ? peak / 32639.0f : 0.0f;
}

inline void quantize_a16(const float* x, int k, int k_pad, int group, int8_t* hi_lo, float* scale,
                         int32_t* sum) {
  for (int i = 0; i < k_pad; i += group) {
    scale[i / group] = quantize_group_wide(x + i, k - i, group, k_pad, hi_lo + i, sum + i / 32);
  }
}

inline bool peaked(const float* x, int n, float ratio) {
  F squares = f_zero(), amax = f_zero();
  for (int i = 0; i < n; i += 16) {
    const F v = f_load_n(x + i, smaller(16, n - i));
    squares = f_add(f_mul(v, v), squares);
    amax = f_max(f_abs(v), amax);
  }
  const float peak = f_fold_max(amax);
  return peak * peak * static_cast<float>(n) > ratio * ratio * f_fold_add(squares);
}

inline void round_bf16(const float* x, int k, int k_pad, uint16_t* out) {
  for (int i = 0; i < k_pad; i += 16) {
    const int left = k - i;
    i_store_u16(out + i, bf16_bits(left > 0 ? f_load_n(x + i, smaller(16, left)) : f_zero()));
  }
}

inline void rope(float* head, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 16) {
    const int left = smaller(16, half - i);
    const F a = f_load_n(head + i, left), b = f_load_n(head + half + i, left);
    const F c = f_load_n(cos + i, left), s = f_load_n(sin + i, left);
    f_store_n(head + i, f_sub(f_mul(a, c), f_mul(b, s)), left);
    f_store_n(head + half + i, f_add(f_mul(b, c), f_mul(a, s)), left);
  }
}

// x / (1 + exp(-x))
inline F f_silu(F x) { return f_div(x, f_add(f_set1(1.0f), f_exp(f_sub(f_zero(), x)))); }

// x / 2 (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline F f_gelu_tanh(F x) {
  const F cubic = f_fma(f_mul(f_mul(x, x), x), f_set1(0.044715f), x);
  const F e = f_exp(f_mul(cubic, f_set1(-1.5957691216f)));
  return f_div(x, f_add(f_set1(1.0f), e));
}

inline void act_mul(MlpAct act, const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const int left = smaller(16, n - i);
    const F g = f_load_n(gate + i, left), u = f_load_n(up + i, left);
    f_store_n(out + i, f_mul(act == MlpAct::kSilu ? f_silu(g) : f_gelu_tanh(g), u), left);
  }
}

inline void add(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += 16) {
    const int left = smaller(16, n - i);
    f_store_n(x + i, f_add(f_load_n(x + i, left), f_load_n(y + i, left)), left);
  }
}

inline void scale(float* x, float s, int n) {
  for (int i = 0; i < n; i += 16) {
    const int left = smaller(16, n - i);
    f_store_n(x + i, f_mul(f_load_n(x + i, left), f_set1(s)), left);
  }
}

inline F f_softcap(F x, float cap) { return f_mul(f_set1(cap), f_tanh(f_div(x, f_set1(cap)))); }

inline void softcap(float* x, float cap, int n) {
  for (int i = 0; i < n; i += 16) {
    const int left = smaller(16, n - i);
    f_store_n(x + i, f_softcap(f_load_n(x + i, left), cap), left);
  }
}

// NaN never wins; a row of nothing but NaN answers 0.
inline int argmax(const float* x, int n, float* best) {
  const float lowest = -__builtin_inff();
  F peak = f_set1(lowest);
  int i = 0;
  for (; i + 16 <= n; i += 16) peak = f_max(f_load(x + i), peak);
  float top = f_fold_max(peak);
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  for (i = 0; i + 16 <= n && !f_any_eq(f_load(x + i), f_set1(top));) i += 16;
  while (i < n && x[i] != top) ++i;
  i = i < n ? i : 0;
  *best = x[i];
  return i;
}

inline double sum_exp(const float* x, int n, float max, float inv_temperature) {
  D sum = d_zero();
  for (int i = 0; i < n; i += 16) {
    const int left = smaller(16, n - i);
    F t = f_mul(f_sub(f_load_n(x + i, left), f_set1(max)), f_set1(inv_temperature));
    if (left < 16) {  // missing lanes count as exp(-inf)
      float lanes[16];
      f_store(lanes, t);
      for (int j = left; j < 16; ++j) lanes[j] = -__builtin_inff();
      t = f_load(lanes);
    }
    sum = d_add(sum, f_exp(t));
  }
  return d_fold_add(sum);
}
