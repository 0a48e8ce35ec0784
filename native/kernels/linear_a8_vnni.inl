// Integer products by vpdpbusd. Codes stay unsigned; the zero point is folded into the start of each
// integer sum, -zero * sum(q). Every lane is one output row: no horizontal sums. A tile keeps
// kPanels x kRows sums in registers; its outputs don't depend on the tile's shape.

enum class Wide { kNibble, kLut, kByte };

#define OCTAVO_INLINE [[gnu::always_inline]] inline

constexpr int kPrefetchAhead = 2048;  // bytes; about what a core has in flight

inline I broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

template <int kPanels, int kRows>
struct VnniTile {
  const uint8_t* panel[kPanels];
  const int8_t* q[kRows];
  const float* sa[kRows];
  const int32_t* sum[kRows];
  I acc[kPanels][kRows];
  F y[kPanels][kRows];
  I table;   // levels8 + 128, as bytes
  int zero;  // 128 for a codebook
};

// Codes of one line: the low or the high nibbles, looked up if they are indices.
template <Wide kMode>
OCTAVO_INLINE I nibbles(I line, int half, I table) {
  const I mask = _mm512_set1_epi8(15);
  const I code = _mm512_and_si512(half ? _mm512_srli_epi16(line, 4) : line, mask);
  return kMode == Wide::kLut ? _mm512_shuffle_epi8(table, code) : code;
}

// acc += v * q over inputs [k, k + 16) of a unit (`half` 0 or 1), or all 32 (`half` 2).
template <Wide kMode, int kPanels, int kRows>
OCTAVO_INLINE void dot_unit(VnniTile<kPanels, kRows>& t, int unit, int half) {
  constexpr int kUnitBytes = kMode == Wide::kByte ? 512 : 256;
  const int k = unit * kUnit;
  for (int j = 0; j < 4; ++j) {
    for (int h = half == 1 ? 1 : 0; h < (half == 0 ? 1 : 2); ++h) {
      I v[kPanels];
      for (int p = 0; p < kPanels; ++p) {
        const uint8_t* lines = t.panel[p] + static_cast<int64_t>(unit) * kUnitBytes;
        v[p] = kMode == Wide::kByte ? i_load(lines + (4 * h + j) * 64)
                                    : nibbles<kMode>(i_load(lines + j * 64), h, t.table);
      }
      for (int r = 0; r < kRows; ++r) {
        const I q = broadcast4(t.q[r] + k + 16 * h + 4 * j);
        for (int p = 0; p < kPanels; ++p) t.acc[p][r] = _mm512_dpbusd_epi32(t.acc[p][r], v[p], q);
      }
    }
  }
}

// The sum of q over 16 inputs, in every lane.
inline I sum16(const int8_t* q) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  __m128i s = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), v);
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm512_broadcastd_epi32(s);
}

template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE I step_sum(const VnniTile<kPanels, kRows>& t, int r, int k) {
  const int32_t* unit = t.sum[r] + k / kUnit;
  if (kStep == 16) return sum16(t.q[r] + k);
  return _mm512_set1_epi32(kStep == 64 ? unit[0] + unit[1] : unit[0]);
}

template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE void start_step(VnniTile<kPanels, kRows>& t, int k) {
  for (int r = 0; r < kRows; ++r) {
    const int32_t* unit = t.sum[r] + k / kUnit;
    const I start =
        kStep == 16 ? _mm512_mullo_epi32(_mm512_set1_epi32(-t.zero), sum16(t.q[r] + k))
                    : _mm512_set1_epi32(-t.zero * (kStep == 64 ? unit[0] + unit[1] : unit[0]));
    for (int p = 0; p < kPanels; ++p) t.acc[p][r] = start;
  }
}

// y = fma(float(acc), s * sa, y), then the offsets.
template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE void finish_step(const PackedWeight& w, VnniTile<kPanels, kRows>& t, int k, int group,
                               int a8_shift) {
  F s[kPanels];
  for (int p = 0; p < kPanels; ++p) s[p] = load_scale(w, t.panel[p] + w.scale_offset, group);
  for (int r = 0; r < kRows; ++r) {
    const F sa = f_set1(t.sa[r][k >> a8_shift]);
    for (int p = 0; p < kPanels; ++p) {
      t.y[p][r] = f_fma(f_of_int(t.acc[p][r]), f_mul(s[p], sa), t.y[p][r]);
    }
  }
  if (!w.has_offset) return;
  for (int p = 0; p < kPanels; ++p) s[p] = load_scale(w, t.panel[p] + w.offset_offset, group);
  for (int r = 0; r < kRows; ++r) {
    const F sa = f_set1(t.sa[r][k >> a8_shift]);
    const F sum = f_of_int(step_sum<kStep>(t, r, k));
    for (int p = 0; p < kPanels; ++p) t.y[p][r] = f_fma(sum, f_mul(s[p], sa), t.y[p][r]);
  }
}

template <int kPanels, int kRows>
OCTAVO_INLINE void open_tile(const PackedWeight& w, const ActView& x, int p, int r,
                             VnniTile<kPanels, kRows>& t) {
  for (int i = 0; i < kPanels; ++i) t.panel[i] = panel_at(w, p + i);
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = r + i;
    t.q[i] = x.q + row * x.k_pad;
    t.sa[i] = x.scale + row * (x.k_pad / x.a8_group);
    t.sum[i] = x.sum + row * (x.k_pad / kUnit);
    for (int j = 0; j < kPanels; ++j) t.y[j][i] = f_zero();
  }
  t.zero = w.zero;
  t.table = _mm512_setzero_si512();
  if (!w.levels8) return;
  const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.levels8));
  t.table = _mm512_broadcast_i32x4(_mm_xor_si128(levels, _mm_set1_epi8(-128)));
  t.zero = 128;
}

template <Wide kMode, int kStep, int kPanels, int kRows>
inline void vnni_tile(const PackedWeight& w, const ActView& x, int p, int r, float* y,
                      int64_t ldy) {
  constexpr int kBlock = kStep == 64 ? 64 : kUnit, kUnitBytes = kMode == Wide::kByte ? 512 : 256;
  VnniTile<kPanels, kRows> t;
  open_tile(w, x, p, r, t);
  const int a8_shift = x.a8_group == 64 ? 6 : 5, group_inputs = w.group;
  int group = 0, left = group_inputs;  // instead of a division per step
  for (int k = 0; k < w.k_pad; k += kBlock) {
    if (kPanels == 1) {
      const uint8_t* ahead = t.panel[0] + static_cast<int64_t>(k / kUnit) * kUnitBytes;
      for (int i = 0; i < kBlock / kUnit * kUnitBytes; i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + kPrefetchAhead + i), _MM_HINT_T0);
      }
    }
    for (int part = 0; part < kBlock; part += kStep) {
      start_step<kStep>(t, k + part);
      if (kStep == 16) {
        part == 0 ? dot_unit<kMode>(t, k / kUnit, 0) : dot_unit<kMode>(t, k / kUnit, 1);
      } else {
        for (int u = 0; u < kStep / kUnit; ++u) dot_unit<kMode>(t, k / kUnit + u, 2);
      }
      finish_step<kStep>(w, t, k + part, group, a8_shift);
      left -= kStep;
      group += left == 0 ? 1 : 0;
      left = left == 0 ? group_inputs : left;
    }
  }
  for (int i = 0; i < kPanels; ++i) {
    for (int j = 0; j < kRows; ++j) f_store(y + (r + j) * ldy + 16 * (p + i), t.y[i][j]);
  }
}

// All rows of kPanels panels, in tiles of at most kMost rows.
template <Wide kMode, int kStep, int kPanels, int kMost>
inline void vnni_rows(const PackedWeight& w, const ActView& x, int m, int p, float* y,
                      int64_t ldy) {
  int r = 0;
  for (; r + kMost <= m; r += kMost) vnni_tile<kMode, kStep, kPanels, kMost>(w, x, p, r, y, ldy);
  if (kMost > 4 && r + 4 <= m) {
    vnni_tile<kMode, kStep, kPanels, 4>(w, x, p, r, y, ldy);
    r += 4;
  }
  if (r + 2 <= m) {
    vnni_tile<kMode, kStep, kPanels, 2>(w, x, p, r, y, ldy);
    r += 2;
  }
  if (r < m) vnni_tile<kMode, kStep, kPanels, 1>(w, x, p, r, y, ldy);
}

template <Wide kMode, int kStep>
inline void vnni_panels(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                        int p0, int p1) {
  int p = p0;
  if (m > 8) {
    for (; p + 2 <= p1; p += 2) vnni_rows<kMode, kStep, 2, 4>(w, x, m, p, y, ldy);
  }
  for (; p < p1; ++p) vnni_rows<kMode, kStep, 1, 8>(w, x, m, p, y, ldy);
}

template <Wide kMode>
inline void linear_a8_vnni(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                           int p0, int p1) {
  const int step = smaller(w.group, x.a8_group);
  if (step == 16) return vnni_panels<kMode, 16>(w, x, m, y, ldy, p0, p1);
  if (step == 32) return vnni_panels<kMode, 32>(w, x, m, y, ldy, p0, p1);
  vnni_panels<kMode, 64>(w, x, m, y, ldy, p0, p1);
}

#undef OCTAVO_INLINE
