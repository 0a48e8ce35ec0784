// The codec path: a chunk of a panel is decoded to fp32 once, then multiplied by every row of
// activations. It serves each (code, abf16 or a32); only the decoder differs.

constexpr int kTilePanels = 4;  // panels at once for one row of activations (hides fma latency)
constexpr int kChunk = 128;     // inputs decoded at once: a multiple of kUnit

struct Levels32 {
  float v[256];
};

// Values of all codes, so that decoding has one form: levels8, levels, or code - zero.
inline void fill_levels(const PackedWeight& w, Levels32* out) {
  const int n = level_count(w.code);
  for (int i = 0; i < n; ++i) {
    out->v[i] = w.levels8 ? static_cast<float>(w.levels8[i])
                          : (w.levels ? w.levels[i] : static_cast<float>(i - w.zero));
  }
}

inline const uint8_t* panel_at(const PackedWeight& w, int p) {
  return w.data + static_cast<int64_t>(p) * w.panel_bytes;
}
inline int group_of(const PackedWeight& w, int k) { return w.n_groups == 1 ? 0 : k / w.group; }

#include "kernels/scales.inl"

// Scales of 16 consecutive inputs (groups are never finer).
struct Scales {
  F scale, offset, zero;
  bool has_offset;
};
inline Scales scales_at(const PackedWeight& w, const uint8_t* panel, int k) {
  const int g = group_of(w, k);
  return {scale_of(w, panel, g), w.has_offset ? offset_of(w, panel, g) : f_zero(),
          w.has_zero ? f_of_int(zero_of(w, panel, g)) : f_set1(static_cast<float>(w.zero)),
          w.has_offset};
}

template <bool kRound>
inline void put(float* out, F value, const Scales& s) {
  F x = f_mul(s.scale, value);
  if (s.has_offset) x = f_add(x, s.offset);
  f_store(out, kRound ? f_round_bf16(x) : x);
}

inline I bits_at(const uint8_t* line, int shift, int mask) {
  return i_and(i_shr(i_load(line), shift), i_set1(mask));
}

// The codes of input i of a unit, one a lane (core/types.h says where they lie).
template <Code kCode>
inline I codes_of(const uint8_t* unit, int i) {
  const int quad = i / 4, byte = 8 * (i % 4), half = quad / 4, part = quad % 4;
  if (kCode == Code::kByte) return bits_at(unit + 64 * quad, byte, 255);
  if (kCode == Code::kTwo || kCode == Code::kThree) {
    const I two = bits_at(unit + 64 * half, byte + 2 * part, 3);
    if (kCode == Code::kTwo) return two;
    return i_or(two, i_shl(bits_at(unit + 128, byte + quad, 1), 2));
  }
  const I four = bits_at(unit + 64 * part, byte + 4 * half, 15);
  if (kCode == Code::kFive) return i_or(four, i_shl(bits_at(unit + 256, byte + quad, 1), 4));
  if (kCode == Code::kNibble) return four;
  return i_or(four, i_shl(bits_at(unit + 256 + 64 * half, byte + 2 * part, 3), 4));
}

// Inputs [k, k + 32) of a panel to out[32][16].
template <Code kCode, bool kLut, bool kRound>
inline void decode_codes(const PackedWeight& w, const Levels32& lv, const uint8_t* panel, int k,
                         float* out) {
  const uint8_t* unit = panel + static_cast<int64_t>(k / kUnit) * unit_bytes(kCode);
  for (int half = 0; half < 2; ++half) {
    const Scales s = scales_at(w, panel, k + 16 * half);
    for (int i = 16 * half; i < 16 * half + 16; ++i) {
      const I code = codes_of<kCode>(unit, i);
      F v;
      if (kLut) {
        v = level_count(kCode) == 16 ? f_lookup16(lv.v, code) : f_lookup256(lv.v, code);
      } else {
        v = f_sub(f_of_int(code), s.zero);
      }
      put<kRound>(out + i * 16, v, s);
    }
  }
}

template <bool kRound>
inline void decode_f16(const uint8_t* panel, int k, float* out) {
  const uint16_t* in = reinterpret_cast<const uint16_t*>(panel) + static_cast<int64_t>(k) * 16;
  for (int i = 0; i < kUnit; ++i) {
    const F v = f_load_half(in + 16 * i);
    f_store(out + i * 16, kRound ? f_round_bf16(v) : v);
  }
}

inline void decode_bf16(const uint8_t* panel, int k, float* out) {
  for (int i = 0; i < kUnit; i += 2) {
    const I pair = i_load(panel + static_cast<int64_t>(k + i) * 32);
    f_store(out + i * 16, f_bf16_low(pair));
    f_store(out + i * 16 + 16, f_bf16_high(pair));
  }
}

template <bool kRound>
inline void decode_f32(const uint8_t* panel, int k, float* out) {
  const float* in = reinterpret_cast<const float*>(panel) + static_cast<int64_t>(k) * 16;
  for (int i = 0; i < kUnit; ++i) {
    const F v = f_load(in + 16 * i);
    f_store(out + i * 16, kRound ? f_round_bf16(v) : v);
  }
}

template <Code kCode, bool kRound>
inline void decode_coded(const PackedWeight& w, const Levels32& lv, const uint8_t* panel, int k,
                         float* out) {
  w.levels8 || w.levels ? decode_codes<kCode, true, kRound>(w, lv, panel, k, out)
                        : decode_codes<kCode, false, kRound>(w, lv, panel, k, out);
}

template <bool kRound>
inline void decode_unit(const PackedWeight& w, const Levels32& lv, const uint8_t* panel, int k,
                        float* out) {
  switch (w.code) {
    case Code::kTwo:
      return decode_coded<Code::kTwo, kRound>(w, lv, panel, k, out);
    case Code::kThree:
      return decode_coded<Code::kThree, kRound>(w, lv, panel, k, out);
    case Code::kNibble:
      return decode_coded<Code::kNibble, kRound>(w, lv, panel, k, out);
    case Code::kFive:
      return decode_coded<Code::kFive, kRound>(w, lv, panel, k, out);
    case Code::kSix:
      return decode_coded<Code::kSix, kRound>(w, lv, panel, k, out);
    case Code::kByte:
      return decode_coded<Code::kByte, kRound>(w, lv, panel, k, out);
    case Code::kF16:
      return decode_f16<kRound>(panel, k, out);
    case Code::kBf16:
      return decode_bf16(panel, k, out);
    case Code::kF32:
      return decode_f32<kRound>(panel, k, out);
  }
}

// A chunk of inputs of kPanels panels ([kc][16] each) and of kRows rows of activations.
struct FloatChunk {
  const float* w[kTilePanels];
  const float* x;
  int64_t ldx;
  int kc;
};

template <int kPanels, int kRows>
inline void float_tile(const FloatChunk& c, float* y, int64_t ldy) {
  F acc[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) acc[p][r] = f_load(y + r * ldy + 16 * p);
  }
  for (int k = 0; k < c.kc; ++k) {
    F w[kPanels];
    for (int p = 0; p < kPanels; ++p) w[p] = f_load(c.w[p] + 16 * k);
    for (int r = 0; r < kRows; ++r) {
      const F x = f_set1(c.x[r * c.ldx + k]);
      for (int p = 0; p < kPanels; ++p) acc[p][r] = f_fma(w[p], x, acc[p][r]);
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) f_store(y + r * ldy + 16 * p, acc[p][r]);
  }
}

// Rows [r, r + rows) of bf16 activations at input k, widened.
inline void widen_rows(const ActView& x, int r, int rows, int k, int kc, float* out) {
  for (int i = 0; i < rows; ++i) {
    const uint16_t* row = x.bf16 + static_cast<int64_t>(r + i) * x.k_pad + k;
    for (int j = 0; j < kc; j += 16) f_store(out + i * kChunk + j, f_load_bf16(row + j));
  }
}

template <int kPanels, int kRows, bool kRound>
inline void float_rows(const ActView& x, FloatChunk& c, int k, int r, float* y, int64_t ldy) {
  alignas(64) float wide[kRows * kChunk];
  if (kRound) {
    widen_rows(x, r, kRows, k, c.kc, wide);
    c.x = wide;
    c.ldx = kChunk;
  } else {
    c.x = x.f32 + static_cast<int64_t>(r) * x.k_pad + k;
    c.ldx = x.k_pad;
  }
  float_tile<kPanels, kRows>(c, y + r * ldy, ldy);
}

// kPanels panels from p, all inputs, all rows.
template <int kPanels, bool kRound>
inline void float_panels(const PackedWeight& w, const Levels32& lv, const ActView& x, int m,
                         float* y, int64_t ldy, int p) {
  alignas(64) float decoded[kPanels * kChunk * 16];
  for (int r = 0; r < m; ++r) {
    for (int i = 0; i < kPanels; ++i) f_store(y + r * ldy + 16 * i, f_zero());
  }
  FloatChunk c = {};
  for (int k = 0; k < w.k_pad; k += kChunk) {
    c.kc = smaller(kChunk, w.k_pad - k);
    for (int i = 0; i < kPanels; ++i) {
      if (w.code == Code::kF32 && !kRound) {
        c.w[i] = reinterpret_cast<const float*>(panel_at(w, p + i)) + static_cast<int64_t>(k) * 16;
        continue;
      }
      float* out = decoded + i * kChunk * 16;
      c.w[i] = out;
      for (int u = 0; u < c.kc; u += kUnit) {
        decode_unit<kRound>(w, lv, panel_at(w, p + i), k + u, out + u * 16);
      }
    }
    int r = 0;
    if (kPanels < kTilePanels) {  // kFloatRows rows by kFloatPanels panels: what registers hold
      constexpr int kRows = kPanels < kTilePanels ? kFloatRows : 1;
      for (; r + kRows <= m; r += kRows) float_rows<kPanels, kRows, kRound>(x, c, k, r, y, ldy);
    }
    if (kPanels < kTilePanels) {
      for (; r + 2 <= m; r += 2) float_rows<kPanels, 2, kRound>(x, c, k, r, y, ldy);
    }
    for (; r < m; ++r) float_rows<kPanels, 1, kRound>(x, c, k, r, y, ldy);
  }
}

// Weights of 16 bits by one row, straight from their lines: the same sums without the detour of a
// chunk. Two inputs are one line.
struct TwoInputs {
  F even, odd;
};
template <Code kCode>
inline TwoInputs load_line(const uint8_t* line) {
  if (kCode == Code::kF16) {
    const uint16_t* half = reinterpret_cast<const uint16_t*>(line);
    return {f_load_half(half), f_load_half(half + 16)};
  }
  const I pair = i_load(line);
  return {f_bf16_low(pair), f_bf16_high(pair)};
}

template <Code kCode, int kPanels, bool kRound>
inline void short_row(const PackedWeight& w, const ActView& x, int r, float* y, int p) {
  const int64_t row = static_cast<int64_t>(r) * x.k_pad;
  F acc[kPanels];
  for (int i = 0; i < kPanels; ++i) acc[i] = f_zero();
  for (int k = 0; k < w.k_pad; k += 2) {
    const F even = f_set1(kRound ? bf16_value(x.bf16[row + k]) : x.f32[row + k]);
    const F odd = f_set1(kRound ? bf16_value(x.bf16[row + k + 1]) : x.f32[row + k + 1]);
    for (int i = 0; i < kPanels; ++i) {
      const uint8_t* line = panel_at(w, p + i) + static_cast<int64_t>(k) * 32;
      __builtin_prefetch(line + 1024);
      TwoInputs v = load_line<kCode>(line);
      if (kCode == Code::kF16 && kRound) v = {f_round_bf16(v.even), f_round_bf16(v.odd)};
      acc[i] = f_fma(v.odd, odd, f_fma(v.even, even, acc[i]));
    }
  }
  for (int i = 0; i < kPanels; ++i) f_store(y + 16 * i, acc[i]);
}

template <Code kCode, bool kRound>
inline void few_short_rows(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                           int p0, int p1) {
  int p = p0;
  for (; p + kTilePanels <= p1; p += kTilePanels) {
    for (int r = 0; r < m; ++r) {
      short_row<kCode, kTilePanels, kRound>(w, x, r, y + r * ldy + 16 * p, p);
    }
  }
  for (; p < p1; ++p) {
    for (int r = 0; r < m; ++r) short_row<kCode, 1, kRound>(w, x, r, y + r * ldy + 16 * p, p);
  }
}

template <bool kRound>
inline void linear_float(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                         int p0, int p1) {
  if (m <= 2 && w.code == Code::kBf16)
    return few_short_rows<Code::kBf16, kRound>(w, x, m, y, ldy, p0, p1);
  if (m <= 2 && w.code == Code::kF16)
    return few_short_rows<Code::kF16, kRound>(w, x, m, y, ldy, p0, p1);
  Levels32 lv;
  if (w.levels8 || w.levels) fill_levels(w, &lv);
  int p = p0;
  if (m == 1) {
    for (; p + kTilePanels <= p1; p += kTilePanels) {
      float_panels<kTilePanels, kRound>(w, lv, x, m, y + 16 * p, ldy, p);
    }
  }
  for (; p + kFloatPanels <= p1; p += kFloatPanels) {
    float_panels<kFloatPanels, kRound>(w, lv, x, m, y + 16 * p, ldy, p);
  }
  for (; p < p1; ++p) float_panels<1, kRound>(w, lv, x, m, y + 16 * p, ldy, p);
}

inline void unpack_row(const PackedWeight& w, int row, float* out) {
  Levels32 lv;
  if (w.levels8 || w.levels) fill_levels(w, &lv);
  const int lane = row % 16;
  const uint8_t* panel = panel_at(w, row / 16);
  alignas(64) float unit[kUnit * 16];
  for (int k = 0; k < w.k; k += kUnit) {
    decode_unit<false>(w, lv, panel, k, unit);
    for (int i = 0; i < smaller(kUnit, w.k - k); ++i) out[k + i] = unit[i * 16 + lane];
  }
}
