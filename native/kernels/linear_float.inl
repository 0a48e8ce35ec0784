// Values of a panel in fp32: how any code is decoded (unpack_row), and products of weights that
// hold values themselves (kF16, kBf16, kF32) with abf16 and a32. For several rows of activations a
// chunk of a panel is decoded once, then multiplied by every row.

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

inline const uint8_t* panel_at(const PackedWeight& w, int p) { return w.data + panel_start(w, p); }
inline int group_of(const PackedWeight& w, int k) { return w.n_groups == 1 ? 0 : k / w.group; }

#include "kernels/scales.inl"

// Of a kBlock* weight: words of 64 bits, one for each 64 units of a panel.
inline uint64_t block_word(const PackedWeight& w, const uint8_t* panel, int word) {
  uint64_t bits;
  __builtin_memcpy(&bits, panel - block_mask_bytes(w.k_pad) + 8 * word, 8);
  return bits;
}

// Where unit u of a panel lies; null: a block that isn't there.
template <Code kCode>
inline const uint8_t* unit_at(const PackedWeight& w, const uint8_t* panel, int u) {
  if constexpr (!is_block(kCode)) return panel + static_cast<int64_t>(u) * unit_bytes(kCode);
  const uint64_t mine = block_word(w, panel, u / 64);
  if ((mine >> (u % 64) & 1) == 0) return nullptr;
  int before = __builtin_popcountll(mine & ((uint64_t{1} << (u % 64)) - 1));
  for (int i = 0; i < u / 64; ++i) before += __builtin_popcountll(block_word(w, panel, i));
  return panel + static_cast<int64_t>(before) * unit_bytes(kCode);
}

// A panel's tables are wanted all along it, but lie in front: they are fetched first, in order, so
// that memory sees one stream without a gap. The codes that follow need no software prefetch: with
// it the same stream came at 17 GB/s, without it at 28.
inline void touch_tables(const PackedWeight& w, const uint8_t* panel) {
  for (const uint8_t* line = panel + w.scale_offset; line < panel; line += 64) {
    __builtin_prefetch(line);
  }
}

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

inline void put(float* out, F value, const Scales& s) {
  const F x = f_mul(s.scale, value);
  f_store(out, s.has_offset ? f_add(x, s.offset) : x);
}

inline I bits_at(const uint8_t* line, int shift, int mask) {
  return i_and(i_shr(i_load(line), shift), i_set1(mask));
}

template <Code kCode>
inline I sparse_codes_of(const uint8_t* unit, int i) {
  const int quad = i / 4, c = i % 4;
  const I zero = i_set1(0), mask = bits_at(unit + unit_bytes(kCode) - 4 * kLanes, 4 * quad, 15);
  const bool nibbles = kCode == Code::kSparseNibble;
  const uint8_t* line = unit + 64 * (nibbles ? quad / 2 % 2 : quad / 2);
  const int shift = 16 * (quad % 2) + (nibbles ? 4 * (quad / 4) : 0), all = nibbles ? 15 : 255;
  const I before = i_and(mask, i_set1((1 << c) - 1));
  const I kept = i_gt(before, zero, bits_at(line, shift + 8, all), bits_at(line, shift, all));
  const I there = i_and(mask, i_set1(1 << c));
  return i_xor(i_gt(there, zero, kept, zero), i_set1(sparse_zero(kCode)));
}

// The windows of input i, one a lane.
inline I windows_of(const uint8_t* unit, int i) {
  const int from = 2 * (i % 16), line = i / 16;
  I bits = i_shr(i_load(unit + 64 * line), from);
  if (from > 24) bits = i_or(bits, i_shl(i_load(unit + 64 * (1 - line)), 32 - from));
  return i_and(bits, i_set1(255));
}

// The codes of input i of a unit, one a lane (core/types.h says where they lie).
template <Code kCode>
inline I codes_of(const uint8_t* unit, int i) {
  if constexpr (is_sparse(kCode)) return sparse_codes_of<kCode>(unit, i);
  if constexpr (kCode == Code::kTrellis) return windows_of(unit, i);
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

// Inputs [k, k + 32) of a panel, whose codes are `unit`, to out[32][16].
template <Code kCode, bool kLut>
inline void decode_codes(const PackedWeight& w, const Levels32& lv, const uint8_t* panel,
                         const uint8_t* unit, int k, float* out) {
  for (int half = 0; half < 2; ++half) {
    const Scales s = scales_at(w, panel, k + 16 * half);
    for (int i = 16 * half; i < 16 * half + 16; ++i) {
      const I code = codes_of<kCode>(unit, i);
      F v;
      if (kLut) {
        v = level_count(kCode) == 16 ? f_pick16(f_load(lv.v), code) : f_lookup256(lv.v, code);
      } else {
        v = f_sub(f_of_int(code), s.zero);
      }
      put(out + i * 16, v, s);
    }
  }
}

inline void decode_f16(const uint8_t* panel, int k, float* out) {
  const uint16_t* in = reinterpret_cast<const uint16_t*>(panel) + static_cast<int64_t>(k) * 16;
  for (int i = 0; i < kUnit; ++i) f_store(out + i * 16, f_load_half(in + 16 * i));
}

inline void decode_bf16(const uint8_t* panel, int k, float* out) {
  for (int i = 0; i < kUnit; i += 2) {
    const I pair = i_load(panel + static_cast<int64_t>(k + i) * 32);
    f_store(out + i * 16, f_bf16_low(pair));
    f_store(out + i * 16 + 16, f_bf16_high(pair));
  }
}

inline void decode_f32(const uint8_t* panel, int k, float* out) {
  const float* in = reinterpret_cast<const float*>(panel) + static_cast<int64_t>(k) * 16;
  for (int i = 0; i < kUnit; ++i) f_store(out + i * 16, f_load(in + 16 * i));
}

template <Code kCode>
inline void decode_coded(const PackedWeight& w, const Levels32& lv, const uint8_t* panel, int k,
                         float* out) {
  const uint8_t* unit = unit_at<kCode>(w, panel, k / kUnit);
  w.levels8 || w.levels ? decode_codes<kCode, true>(w, lv, panel, unit, k, out)
                        : decode_codes<kCode, false>(w, lv, panel, unit, k, out);
}

template <Code kCode>
inline void decode_block(const PackedWeight& w, const Levels32& lv, const uint8_t* panel, int k,
                         float* out) {
  const uint8_t* unit = unit_at<kCode>(w, panel, k / kUnit);
  alignas(64) uint8_t zeros[unit_bytes(kCode)];
  const int zero = sparse_zero(kCode);
  for (uint8_t& byte : zeros)
    byte = static_cast<uint8_t>(kCode == Code::kBlockByte ? zero : 17 * zero);
  decode_codes<within_blocks(kCode), false>(w, lv, panel, unit ? unit : zeros, k, out);
}

inline void decode_unit(const PackedWeight& w, const Levels32& lv, const uint8_t* panel, int k,
                        float* out) {
  switch (w.code) {
    case Code::kTwo:
      return decode_coded<Code::kTwo>(w, lv, panel, k, out);
    case Code::kThree:
      return decode_coded<Code::kThree>(w, lv, panel, k, out);
    case Code::kNibble:
      return decode_coded<Code::kNibble>(w, lv, panel, k, out);
    case Code::kFive:
      return decode_coded<Code::kFive>(w, lv, panel, k, out);
    case Code::kSix:
      return decode_coded<Code::kSix>(w, lv, panel, k, out);
    case Code::kByte:
      return decode_coded<Code::kByte>(w, lv, panel, k, out);
    case Code::kTrellis:
      return decode_coded<Code::kTrellis>(w, lv, panel, k, out);
    case Code::kF16:
      return decode_f16(panel, k, out);
    case Code::kBf16:
      return decode_bf16(panel, k, out);
    case Code::kF32:
      return decode_f32(panel, k, out);
    case Code::kSparseNibble:
      return decode_coded<Code::kSparseNibble>(w, lv, panel, k, out);
    case Code::kSparseByte:
      return decode_coded<Code::kSparseByte>(w, lv, panel, k, out);
    case Code::kBlockNibble:
      return decode_block<Code::kBlockNibble>(w, lv, panel, k, out);
    case Code::kBlockByte:
      return decode_block<Code::kBlockByte>(w, lv, panel, k, out);
  }
}

// A chunk of inputs of kPanels panels ([kc][16] each) by kRows rows of activations.
template <int kRows>
struct FloatRows {
  const float* x[kRows];
  float* y[kRows];
};

template <int kPanels, int kRows>
inline void float_tile(const float* const* panels, int kc, const FloatRows<kRows>& rows) {
  F acc[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) acc[p][r] = f_load(rows.y[r] + 16 * p);
  }
  for (int k = 0; k < kc; ++k) {
    F w[kPanels];
    for (int p = 0; p < kPanels; ++p) w[p] = f_load(panels[p] + 16 * k);
    for (int r = 0; r < kRows; ++r) {
      const F x = f_set1(rows.x[r][k]);
      for (int p = 0; p < kPanels; ++p) acc[p][r] = f_fma(w[p], x, acc[p][r]);
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) f_store(rows.y[r] + 16 * p, acc[p][r]);
  }
}

// kRound: the activations are those of abf16.
template <int kPanels, int kRows, bool kRound>
inline void float_rows(const float* const* panels, const ActView& x, int k, int kc, int r, float* y,
                       int64_t ldy) {
  alignas(64) float wide[kRound ? kRows * kChunk : 1];
  FloatRows<kRows> rows;
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = row_of(x, r + i), at = row * x.k_pad + k;
    rows.y[i] = y + row * ldy;
    rows.x[i] = kRound ? wide + i * kChunk : x.f32 + at;
    for (int j = 0; kRound && j < kc; j += 16) {
      f_store(wide + i * kChunk + j, f_load_bf16(x.bf16 + at + j));
    }
  }
  float_tile<kPanels, kRows>(panels, kc, rows);
}

inline void decode_values(const PackedWeight& w, const uint8_t* panel, int k, float* out) {
  if (w.code == Code::kF16) return decode_f16(panel, k, out);
  if (w.code == Code::kBf16) return decode_bf16(panel, k, out);
  decode_f32(panel, k, out);
}

// kPanels panels from p, all inputs, all rows.
template <int kPanels, bool kRound>
inline void float_panels(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                         int p) {
  alignas(64) float decoded[kPanels * kChunk * 16];
  for (int r = 0; r < m; ++r) {
    for (int i = 0; i < kPanels; ++i) f_store(y + row_of(x, r) * ldy + 16 * i, f_zero());
  }
  for (int k = 0; k < w.k_pad; k += kChunk) {
    const int kc = smaller(kChunk, w.k_pad - k);
    const float* panels[kPanels];
    for (int i = 0; i < kPanels; ++i) {
      const uint8_t* panel = panel_at(w, p + i);
      panels[i] = reinterpret_cast<const float*>(panel) + static_cast<int64_t>(k) * 16;
      if (w.code == Code::kF32) continue;
      panels[i] = decoded + i * kChunk * 16;
      for (int u = 0; u < kc; u += kUnit) {
        decode_values(w, panel, k + u, decoded + (i * kChunk + u) * 16);
      }
    }
    int r = 0;
    if (kPanels < kTilePanels) {  // kFloatRows rows by kFloatPanels panels: what registers hold
      constexpr int kRows = kPanels < kTilePanels ? kFloatRows : 1;
      for (; r + kRows <= m; r += kRows) {
        float_rows<kPanels, kRows, kRound>(panels, x, k, kc, r, y, ldy);
      }
      for (; r + 2 <= m; r += 2) float_rows<kPanels, 2, kRound>(panels, x, k, kc, r, y, ldy);
    }
    for (; r < m; ++r) float_rows<kPanels, 1, kRound>(panels, x, k, kc, r, y, ldy);
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
inline void short_row(const PackedWeight& w, const ActView& x, int64_t r, float* y, int p) {
  const int64_t row = r * x.k_pad;
  F acc[kPanels];
  for (int i = 0; i < kPanels; ++i) acc[i] = f_zero();
  for (int k = 0; k < w.k_pad; k += 2) {
    const F even = f_set1(kRound ? bf16_value(x.bf16[row + k]) : x.f32[row + k]);
    const F odd = f_set1(kRound ? bf16_value(x.bf16[row + k + 1]) : x.f32[row + k + 1]);
    for (int i = 0; i < kPanels; ++i) {
      const uint8_t* line = panel_at(w, p + i) + static_cast<int64_t>(k) * 32;
      __builtin_prefetch(line + 1024);
      const TwoInputs v = load_line<kCode>(line);
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
      const int64_t row = row_of(x, r);
      short_row<kCode, kTilePanels, kRound>(w, x, row, y + row * ldy + 16 * p, p);
    }
  }
  for (; p < p1; ++p) {
    for (int r = 0; r < m; ++r) {
      const int64_t row = row_of(x, r);
      short_row<kCode, 1, kRound>(w, x, row, y + row * ldy + 16 * p, p);
    }
  }
}

template <bool kRound>
inline void linear_float(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                         int p0, int p1) {
  if (m <= 2 && w.code == Code::kBf16)
    return few_short_rows<Code::kBf16, kRound>(w, x, m, y, ldy, p0, p1);
  if (m <= 2 && w.code == Code::kF16)
    return few_short_rows<Code::kF16, kRound>(w, x, m, y, ldy, p0, p1);
  int p = p0;
  if (m == 1) {
    for (; p + kTilePanels <= p1; p += kTilePanels) {
      float_panels<kTilePanels, kRound>(w, x, m, y + 16 * p, ldy, p);
    }
  }
  for (; p + kFloatPanels <= p1; p += kFloatPanels) {
    float_panels<kFloatPanels, kRound>(w, x, m, y + 16 * p, ldy, p);
  }
  for (; p < p1; ++p) float_panels<1, kRound>(w, x, m, y + 16 * p, ldy, p);
}

inline void unpack_row(const PackedWeight& w, int row, float* out) {
  Levels32 lv;
  if (w.levels8 || w.levels) fill_levels(w, &lv);
  const int lane = row % 16;
  const uint8_t* panel = panel_at(w, row / 16);
  alignas(64) float unit[kUnit * 16];
  for (int k = 0; k < w.k; k += kUnit) {
    decode_unit(w, lv, panel, k, unit);
    for (int i = 0; i < smaller(kUnit, w.k - k); ++i) out[k + i] = unit[i * 16 + lane];
  }
}
