// Integer products in tiles that stay in registers, over the dot of the ISA (a8_dot_*.inl). The
// zero point is folded into the start of each integer sum, -zero * sum(q). No horizontal sums. An
// output doesn't depend on the shape of its tile. Loops over a tile are unrolled by pragma, or else
// so late that its pointers and sums begin in memory.

// What is wanted next, fetched a share at a time while the tiles of several rows compute: memory
// would idle meanwhile, and the next panel would come at the speed of a stream that just began.
struct Ahead {
  const uint8_t *next, *end;
  int share;  // bytes a block of inputs
};

OCTAVO_INLINE void fetch_share(Ahead& a) {
  const uint8_t* stop = a.next + a.share < a.end ? a.next + a.share : a.end;
  for (; a.next < stop; a.next += 64) __builtin_prefetch(a.next, 0, 2);
}

// The panels [p, p1), at most `panels` of them, while `blocks` blocks of inputs pass.
inline Ahead panels_ahead(const PackedWeight& w, int p, int p1, int panels, int blocks) {
  const int count = smaller(panels, p1 - p);
  if (count <= 0) return {nullptr, nullptr, 0};
  const uint8_t* next = panel_at(w, p) + w.scale_offset;
  const int64_t bytes = panel_start(w, p + count) - panel_start(w, p);
  return {next, next + bytes, static_cast<int>((bytes / blocks + 63) / 64 * 64)};
}

template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE int32_t step_sum(const A8Tile<kPanels, kRows>& t, int r, int k) {
  if (kStep == 16) return sum16(t.q[r] + k);
  const int32_t* unit = t.sum[r] + k / kUnit;
  return kStep == 64 ? unit[0] + unit[1] : unit[0];
}

template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE void start_step(const PackedWeight& w, A8Tile<kPanels, kRows>& t, int k, int group) {
  if (w.has_zero) {
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      const I zero = i_add(zero_of(w, t.panel[p], group), i_set1(t.zero));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        t.acc[p][r] = i_mul16(zero, i_set1(-step_sum<kStep>(t, r, k)));
      }
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const I start = i_set1(-t.zero * step_sum<kStep>(t, r, k));
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) t.acc[p][r] = start;
  }
}

template <Wide kMode, int kStep, int kPanels, int kRows>
OCTAVO_INLINE void sum_step(const PackedWeight& w, A8Tile<kPanels, kRows>& t, int k, int group) {
  start_step<kStep>(w, t, k, group);
  if (kStep == 16) {
    k % kUnit == 0 ? dot_unit<kMode>(t, k / kUnit, 0) : dot_unit<kMode>(t, k / kUnit, 1);
  } else {
    for (int u = 0; u < kStep / kUnit; ++u) dot_unit<kMode>(t, k / kUnit + u, 2);
  }
}

// The integer sums of inputs [k, k + kStep). Levels of 16 bits go as two codebooks of bytes.
template <Wide kMode, int kStep, int kPanels, int kRows>
OCTAVO_INLINE void integer_step(const PackedWeight& w, A8Tile<kPanels, kRows>& t, int k,
                                int group) {
  if (kMode.levels != Levels::kInt16) return sum_step<kMode, kStep>(w, t, k, group);
  constexpr Wide kBytes = {kMode.code, Levels::kInt8};
  I high[kPanels][kRows];
  t.table = t.tables[0];
  sum_step<kBytes, kStep>(w, t, k, group);
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) high[p][r] = i_shl(t.acc[p][r], 8);
  }
  t.table = t.tables[1];
  sum_step<kBytes, kStep>(w, t, k, group);
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) t.acc[p][r] = i_add(t.acc[p][r], high[p][r]);
  }
}

// y = fma(float(acc), s * sa, y), then the offsets.
template <int kStep, int kPanels, int kRows>
OCTAVO_INLINE void finish_step(const PackedWeight& w, A8Tile<kPanels, kRows>& t, int k, int group,
                               int a8_shift) {
  F s[kPanels];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) s[p] = a8_scale_of(w, t.panel[p], group);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const F sa = f_set1(t.sa[r][k >> a8_shift]);
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      t.y[p][r] = f_fma(f_of_int(t.acc[p][r]), f_mul(s[p], sa), t.y[p][r]);
    }
  }
  if (!w.has_offset) return;
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) s[p] = offset_of(w, t.panel[p], group);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const F sa = f_set1(t.sa[r][k >> a8_shift]);
    const F sum = f_set1(static_cast<float>(step_sum<kStep>(t, r, k)));
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) t.y[p][r] = f_fma(sum, f_mul(s[p], sa), t.y[p][r]);
  }
}

template <int kPanels, int kRows>
OCTAVO_INLINE void open_levels(const PackedWeight& w, A8Tile<kPanels, kRows>& t) {
  t.zero = code_zero(w);
  t.table = w.levels8 ? lut_of(w.levels8) : i_set1(0);
  t.tables[0] = t.tables[1] = t.table;
  if (!w.levels16) return;
  t.tables[0] = lut_of(w.levels16);
  t.tables[1] = lut_of(w.levels16 + level_count(w.code));
}

template <int kPanels, int kRows>
OCTAVO_INLINE void open_tile(const PackedWeight& w, const ActView& x, int p, int r,
                             A8Tile<kPanels, kRows>& t) {
#pragma GCC unroll 16
  for (int i = 0; i < kPanels; ++i) t.panel[i] = panel_at(w, p + i);
  const int groups = x.k_pad >> (x.a8_group == 64 ? 6 : 5);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = row_of(x, r + i);
    t.q[i] = x.q + row * x.k_pad;
    t.sa[i] = x.scale + row * groups;
    t.sum[i] = x.sum + row * (x.k_pad / kUnit);
#pragma GCC unroll 16
    for (int j = 0; j < kPanels; ++j) t.y[j][i] = f_zero();
  }
  open_levels(w, t);
}

template <Wide kMode, int kStep, int kPanels, int kRows>
inline void a8_tile(const PackedWeight& w, const ActView& x, int p, int r, float* y, int64_t ldy,
                    Ahead& ahead) {
  constexpr int kBlock = kStep == 64 ? 64 : kUnit;
  A8Tile<kPanels, kRows> t;
  open_tile(w, x, p, r, t);
  if (kPanels == 1) touch_tables(w, t.panel[0]);
  const int a8_shift = x.a8_group == 64 ? 6 : 5, group_inputs = w.group;
  int group = 0, left = group_inputs;  // instead of a division per step
  for (int k = 0; k < w.k_pad; k += kBlock) {
    if (kRows > 1) fetch_share(ahead);
    for (int part = 0; part < kBlock; part += kStep) {
      integer_step<kMode, kStep>(w, t, k + part, group);
      finish_step<kStep>(w, t, k + part, group, a8_shift);
      left -= kStep;
      group += left == 0 ? 1 : 0;
      left = left == 0 ? group_inputs : left;
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kRows; ++j) {
    float* out = y + row_of(x, r + j) * ldy + 16 * p;
#pragma GCC unroll 16
    for (int i = 0; i < kPanels; ++i) f_store(out + 16 * i, t.y[i][j]);
  }
}

constexpr int kRowsToFetchFor = 4;  // fewer leave memory no time to idle

// All rows of kPanels panels, in tiles of at most kMost rows.
template <Wide kMode, int kStep, int kPanels, int kMost>
inline void a8_rows(const PackedWeight& w, const ActView& x, int m, int p, int p1, float* y,
                    int64_t ldy) {
  const int blocks = w.k_pad / (kStep == 64 ? 64 : kUnit) * ((m + kMost - 1) / kMost);
  Ahead ahead = panels_ahead(w, p + kPanels, m < kRowsToFetchFor ? 0 : p1, kPanels, blocks);
  int r = 0;
  for (; r + kMost <= m; r += kMost)
    a8_tile<kMode, kStep, kPanels, kMost>(w, x, p, r, y, ldy, ahead);
  if constexpr (kMost > 4) {
    if (r + 4 <= m) {
      a8_tile<kMode, kStep, kPanels, 4>(w, x, p, r, y, ldy, ahead);
      r += 4;
    }
  }
  if (m - r == 3) return a8_tile<kMode, kStep, kPanels, 3>(w, x, p, r, y, ldy, ahead);
  if (m - r == 2) return a8_tile<kMode, kStep, kPanels, 2>(w, x, p, r, y, ldy, ahead);
  if (m - r == 1) a8_tile<kMode, kStep, kPanels, 1>(w, x, p, r, y, ldy, ahead);
}

template <Wide kMode, int kStep>
inline void a8_panels(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy, int p0,
                      int p1) {
  int p = p0;
  if constexpr (kMode.levels == Levels::kInt16) {  // its sums need the registers of two tiles
    constexpr int kMost = kFlatRows > 4 ? 4 : kFlatRows;
    for (; p < p1; ++p) a8_rows<kMode, kStep, 1, kMost>(w, x, m, p, p1, y, ldy);
  } else {
    if (m > kFlatRows) {
      for (; p + kTallPanels <= p1; p += kTallPanels)
        a8_rows<kMode, kStep, kTallPanels, kTallRows>(w, x, m, p, p1, y, ldy);
    }
    for (; p < p1; ++p) a8_rows<kMode, kStep, 1, kFlatRows>(w, x, m, p, p1, y, ldy);
  }
}

template <Wide kMode>
inline void linear_a8_tiled(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                            int p0, int p1) {
  const int step = smaller(w.group, x.a8_group);
  if (step == 16) return a8_panels<kMode, 16>(w, x, m, y, ldy, p0, p1);
  if (step == 32) return a8_panels<kMode, 32>(w, x, m, y, ldy, p0, p1);
  a8_panels<kMode, 64>(w, x, m, y, ldy, p0, p1);
}
