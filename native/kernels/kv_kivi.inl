// KIVI's codes (core/types.h): of a token's values when they are written, of keys when their group
// of tokens is full.

// x as fp16 holds it, which it stores; |x| < 65520.
inline float narrow_half(float x, uint16_t* out) {
  uint16_t halves[16];
  float wide[16];
  f_store_half(halves, f_set1(x));
  f_store(wide, f_load_half(halves));
  *out = halves[0];
  return wide[0];
}

// The codes of 32 values on the grid from their least to their most.
inline void kivi_codes(KvFormat format, F a, F b, I* codes, uint16_t* step, uint16_t* least) {
  const float top = format == KvFormat::kKivi2 ? 3.0f : 15.0f;
  const F zero = f_zero();
  const float most = f_fold_max(f_max(a, b));
  const float start = narrow_half(-f_fold_max(f_max(f_sub(zero, a), f_sub(zero, b))), least);
  const float apart = narrow_half((most - start) / top, step);
  const F width = f_set1(apart > 0.0f ? apart : 1.0f), from = f_set1(start);
  const F scaled[2] = {f_rint(f_div(f_sub(a, from), width)), f_rint(f_div(f_sub(b, from), width))};
  for (int i = 0; i < 2; ++i) {
    codes[i] = i_of_float(f_min(f_max(scaled[i], f_zero()), f_set1(top)));
  }
}

// A head as bf16 holds it. False: a value is beyond fp16, which holds minima, or NaN.
inline bool load_bf16_head(const float* x, int dim, F* v) {
  F worst = f_zero();
  for (int i = 0; i < dim / 16; ++i) {
    v[i] = f_round_bf16(f_load(x + 16 * i));
    worst = f_gt(f_set1(65504.0f), f_abs(v[i]), worst, f_set1(1.0f));
  }
  return f_fold_max(worst) == 0.0f;
}

inline void write_kivi_values(const KvLayerView& kv, uint8_t* out, int slot, const F* v) {
  const int64_t row = kv_code_bytes(kv.format, kv.head_dim, 1);
  uint8_t* to = out + slot * row;
  uint16_t* grids = reinterpret_cast<uint16_t*>(scales_of(kv, out)) + slot;
  for (int g = 0; g < kv.head_dim / kKiviGroup; ++g, grids += 2 * kv.block_size) {
    I codes[2];
    kivi_codes(kv.format, v[2 * g], v[2 * g + 1], codes, grids, grids + kv.block_size);
    int8_t bytes[32];
    i_store_s8(bytes, codes[0]);
    i_store_s8(bytes + 16, codes[1]);
    if (kv.format == KvFormat::kKivi4) {
      for (int i = 0; i < 16; ++i) {
        to[16 * g + i] = static_cast<uint8_t>(bytes[i] | bytes[16 + i] << 4);
      }
      continue;
    }
    uint32_t words[2] = {};
    for (int i = 0; i < 32; ++i) {
      words[i / 16] |= static_cast<uint32_t>(bytes[i]) << 2 * (i % 16);
    }
    __builtin_memcpy(to + 8 * g, words, 8);
  }
}

inline int write_kivi(const KvLayerView& kv, int block, int slot, const float* k, const float* v) {
  F head[kMaxKvDim / 16];
  int lost = 0;
  for (int h = 0; h < kv.kv_heads; ++h, k += kv.head_dim, v += kv.head_dim) {
    if (!load_bf16_head(k, kv.head_dim, head)) ++lost;
    if (load_bf16_head(v, kv.head_dim, head)) {
      write_kivi_values(kv, v_block(kv, block, h), slot, head);
    } else {
      ++lost;
    }
  }
  return lost;
}

inline void kivi_keys(const KvLayerView& kv, int block, const KvLayerView& recent, int recent_block,
                      int slot, int head) {
  const int bits = kivi_bits(kv.format), per = 32 / bits, size = kv.block_size, dim = kv.head_dim;
  const uint8_t* from = k_block(recent, recent_block, head) + 4 * slot;
  uint8_t* to = k_block(kv, block, head);
  uint16_t* grid = reinterpret_cast<uint16_t*>(scales_of(kv, to)) + slot / kKiviGroup * 2 * dim;
  const int64_t line = static_cast<int64_t>(dim) / per * 64;
  to += slot / 16 * line;
  I words[2] = {};
  for (int d = 0; d < dim; ++d, ++grid) {
    const uint8_t* pair = from + static_cast<int64_t>(d / 2) * 4 * size;
    const I low = i_load(pair), high = i_load(pair + 64);
    I codes[2];
    kivi_codes(kv.format, d % 2 == 0 ? f_bf16_low(low) : f_bf16_high(low),
               d % 2 == 0 ? f_bf16_low(high) : f_bf16_high(high), codes, grid, grid + dim);
    for (int i = 0; i < 2; ++i) {
      const I placed = i_shl(codes[i], bits * (d % per));
      words[i] = d % per == 0 ? placed : i_or(words[i], placed);
      if (d % per != per - 1) continue;
      i_store(reinterpret_cast<int32_t*>(to + i * line + d / per * 64), words[i]);
    }
  }
}
