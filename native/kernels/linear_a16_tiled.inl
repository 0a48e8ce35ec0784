// 16-bit activations in the tiles of a8: a row is two rows of bytes to the dot, so codes are
// unpacked once for both, and the two exact sums meet at the end of each step.

template <int kPanels, int kRows>
OCTAVO_INLINE void open_wide_tile(const PackedWeight& w, const ActView& x, int p, int r,
                                  A8Tile<kPanels, 2 * kRows>& t) {
  for (int i = 0; i < kPanels; ++i) t.panel[i] = panel_at(w, p + i);
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = row_of(x, r + i);
    for (int part = 0; part < 2; ++part) {
      t.q[2 * i + part] = x.q + (2 * row + part) * x.k_pad;
      t.sum[2 * i + part] = x.sum + (2 * row + part) * (x.k_pad / kUnit);
      t.sa[2 * i + part] = x.scale + row * (x.k_pad / x.a8_group);
    }
    for (int j = 0; j < kPanels; ++j) t.y[j][2 * i] = f_zero();
  }
  t.zero = code_zero(w);
  t.table = w.levels8 ? lut_of(w.levels8) : i_set1(0);
}

// y = fma(float(256 high + low), s * sa, y), then the offsets.
template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE void finish_wide_step(const PackedWeight& w, A8Tile<kPanels, 2 * kRows>& t, int k,
                                    int group, int a8_shift) {
  F s[kPanels];
  for (int p = 0; p < kPanels; ++p) s[p] = scale_of(w, t.panel[p], group);
  for (int r = 0; r < 2 * kRows; r += 2) {
    const F sa = f_set1(t.sa[r][k >> a8_shift]);
    for (int p = 0; p < kPanels; ++p) {
      const I acc = i_add(i_shl(t.acc[p][r], 8), t.acc[p][r + 1]);
      t.y[p][r] = f_fma(f_of_int(acc), f_mul(s[p], sa), t.y[p][r]);
    }
  }
  if (!w.has_offset) return;
  for (int p = 0; p < kPanels; ++p) s[p] = offset_of(w, t.panel[p], group);
  for (int r = 0; r < 2 * kRows; r += 2) {
    const F sa = f_set1(t.sa[r][k >> a8_shift]);
    const int32_t total = 256 * step_sum<kStep>(t, r, k) + step_sum<kStep>(t, r + 1, k);
    const F sum = f_set1(static_cast<float>(total));
    for (int p = 0; p < kPanels; ++p) t.y[p][r] = f_fma(sum, f_mul(s[p], sa), t.y[p][r]);
  }
}

template <Wide kMode, int kStep, int kPanels, int kRows>
inline void a16_tile(const PackedWeight& w, const ActView& x, int p, int r, float* y, int64_t ldy) {
  constexpr int kBlock = kStep == 64 ? 64 : kUnit;
  A8Tile<kPanels, 2 * kRows> t;
  open_wide_tile<kPanels, kRows>(w, x, p, r, t);
  if (kPanels == 1) touch_tables(w, t.panel[0]);
  const int a8_shift = x.a8_group == 64 ? 6 : 5, group_inputs = w.group;
  int group = 0, left = group_inputs;  // instead of a division per step
  for (int k = 0; k < w.k_pad; k += kBlock) {
    for (int part = 0; part < kBlock; part += kStep) {
      start_step<kStep>(w, t, k + part, group);
      if (kStep == 16) {
        part == 0 ? dot_unit<kMode>(t, k / kUnit, 0) : dot_unit<kMode>(t, k / kUnit, 1);
      } else {
        for (int u = 0; u < kStep / kUnit; ++u) dot_unit<kMode>(t, k / kUnit + u, 2);
      }
      finish_wide_step<kStep, kPanels, kRows>(w, t, k + part, group, a8_shift);
      left -= kStep;
      group += left == 0 ? 1 : 0;
      left = left == 0 ? group_inputs : left;
    }
  }
  for (int j = 0; j < kRows; ++j) {
    float* out = y + row_of(x, r + j) * ldy + 16 * p;
    for (int i = 0; i < kPanels; ++i) f_store(out + 16 * i, t.y[i][2 * j]);
  }
}

// All rows of kPanels panels, in tiles of at most kMost rows.
template <Wide kMode, int kStep, int kPanels, int kMost>
inline void a16_rows(const PackedWeight& w, const ActView& x, int m, int p, float* y, int64_t ldy) {
  int r = 0;
  for (; r + kMost <= m; r += kMost) a16_tile<kMode, kStep, kPanels, kMost>(w, x, p, r, y, ldy);
  if (kMost > 2 && r + 2 <= m) {
    a16_tile<kMode, kStep, kPanels, 2>(w, x, p, r, y, ldy);
    r += 2;
  }
  if (r < m) a16_tile<kMode, kStep, kPanels, 1>(w, x, p, r, y, ldy);
}

template <Wide kMode, int kStep>
inline void a16_panels(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                       int p0, int p1) {
  int p = p0;
  if (2 * m > kFlatRows) {
    for (; p + kTallPanels <= p1; p += kTallPanels)
      a16_rows<kMode, kStep, kTallPanels, kTallRows / 2>(w, x, m, p, y, ldy);
  }
  for (; p < p1; ++p) a16_rows<kMode, kStep, 1, kFlatRows / 2>(w, x, m, p, y, ldy);
}

template <Wide kMode>
inline void linear_a16_tiled(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                             int p0, int p1) {
  const int step = smaller(w.group, x.a8_group);
  if (step == 16) return a16_panels<kMode, 16>(w, x, m, y, ldy, p0, p1);
  if (step == 32) return a16_panels<kMode, 32>(w, x, m, y, ldy, p0, p1);
  a16_panels<kMode, 64>(w, x, m, y, ldy, p0, p1);
}
