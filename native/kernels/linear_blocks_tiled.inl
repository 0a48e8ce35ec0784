// Weights of which whole blocks of 16 outputs by 32 inputs are zero (kBlock*, core/types.h): what
// is there is read and multiplied, in the tiles of one panel. A block that isn't there would add 0
// to an exact integer sum. A step without any would add +-0 to an output, which is never -0: it
// begins at +0, and a sum of fp32 products of an integer and a scale is +0 where it cancels
// (docs/numerics.md). So the result is the dense one, bit for bit.

// Sums of a step of 64 begin at -zero * (the sum of inputs that are multiplied).
template <int kRows>
OCTAVO_INLINE void start_blocks(A8Tile<1, kRows>& t, int k, int first, int second) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const int32_t* unit = t.sum[r] + k / kUnit;
    t.acc[0][r] = i_set1(-t.zero * ((unit[0] & -first) + (unit[1] & -second)));
  }
}

template <int kStep, int kParts, int kRows>
OCTAVO_INLINE void finish_blocks(const PackedWeight& w, A8Tile<1, kRows>& t, int k, int a8_shift) {
  if constexpr (kParts == 2) {
    finish_wide_step<kStep, 1, kRows / 2>(w, t, k, group_of(w, k), a8_shift);
  } else {
    finish_step<kStep>(w, t, k, group_of(w, k), a8_shift);
  }
}

// From unit `u` on all of a step, or two of 16 inputs; bit i of `there`: unit u + i is. Returns the
// codes that follow.
template <Wide kMode, int kStep, int kParts, int kRows>
OCTAVO_INLINE const uint8_t* block_step(const PackedWeight& w, A8Tile<1, kRows>& t,
                                        const uint8_t* codes, int u, int there, int a8_shift) {
  constexpr int kBytes = unit_bytes(kMode.code);
  const int k = u * kUnit;
  if constexpr (kStep == 64) {
    const int first = there & 1, second = there >> 1;
    start_blocks(t, k, first, second);
    if (first != 0) dot_lines<kMode>(t, &codes, k, 2);
    codes += first * kBytes;
    if (second != 0) dot_lines<kMode>(t, &codes, k + kUnit, 2);
    codes += second * kBytes;
    finish_blocks<kStep, kParts>(w, t, k, a8_shift);
    return codes;
  }
  for (int at = k; at < k + kUnit; at += kStep) {
    start_step<kStep>(w, t, at, 0);
    if constexpr (kStep == kUnit) {
      dot_lines<kMode>(t, &codes, k, 2);
    } else {
      at == k ? dot_lines<kMode>(t, &codes, k, 0) : dot_lines<kMode>(t, &codes, k, 1);
    }
    finish_blocks<kStep, kParts>(w, t, at, a8_shift);
  }
  return codes + kBytes;
}

// kParts 1: a8; 2: a16, whose rows are two rows of bytes each.
template <Wide kMode, int kStep, int kParts, int kRows>
inline void block_tile(const PackedWeight& w, const ActView& x, int p, int r, float* y, int64_t ldy,
                       Ahead& ahead) {
  A8Tile<1, kParts * kRows> t;
  if constexpr (kParts == 2) {
    open_wide_tile<1, kRows>(w, x, p, r, t);
  } else {
    open_tile(w, x, p, r, t);
  }
  touch_tables(w, t.panel[0]);
  const int a8_shift = x.a8_group == 64 ? 6 : 5;
  const uint8_t* codes = t.panel[0];
  for (int word = 0; word * 64 < w.k_pad / kUnit; ++word) {
    const uint64_t blocks = block_word(w, t.panel[0], word);
    const uint64_t pairs = (blocks | blocks >> 1) & 0x5555555555555555u;
    for (uint64_t steps = kStep == 64 ? pairs : blocks; steps != 0; steps &= steps - 1) {
      const int i = __builtin_ctzll(steps), there = static_cast<int>(blocks >> i & 3);
      if (kRows > 1) fetch_share(ahead);
      codes = block_step<kMode, kStep, kParts>(w, t, codes, 64 * word + i, there, a8_shift);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kRows; ++j) {
    f_store(y + row_of(x, r + j) * ldy + 16 * p, t.y[0][kParts * j]);
  }
}

// All rows of a panel.
template <Wide kMode, int kStep, int kParts>
inline void block_rows(const PackedWeight& w, const ActView& x, int m, int p, int p1, float* y,
                       int64_t ldy) {
  constexpr int kMost = kFlatRows / kParts;
  const int64_t bytes = panel_start(w, p + 1) - panel_start(w, p) - w.panel_bytes;
  const int tiles = (m + kMost - 1) / kMost;
  const int steps = tiles * static_cast<int>(bytes / unit_bytes(kMode.code) / (kStep / kUnit + 1));
  Ahead ahead = panels_ahead(w, p + 1, m < kRowsToFetchFor ? 0 : p1, 1, steps + 1);
  int r = 0;
  for (; r + kMost <= m; r += kMost)
    block_tile<kMode, kStep, kParts, kMost>(w, x, p, r, y, ldy, ahead);
  if constexpr (kMost > 4) {
    if (r + 4 <= m) {
      block_tile<kMode, kStep, kParts, 4>(w, x, p, r, y, ldy, ahead);
      r += 4;
    }
  }
  if constexpr (kMost > 2) {
    if (r + 2 <= m) {
      block_tile<kMode, kStep, kParts, 2>(w, x, p, r, y, ldy, ahead);
      r += 2;
    }
  }
  if (r < m) block_tile<kMode, kStep, kParts, 1>(w, x, p, r, y, ldy, ahead);
}

template <Wide kMode, int kParts>
inline void linear_blocks_tiled(const PackedWeight& w, const ActView& x, int m, float* y,
                                int64_t ldy, int p0, int p1) {
  constexpr Wide kHere = {within_blocks(kMode.code), kMode.levels};
  const int step = smaller(w.group, x.a8_group);
  for (int p = p0; p < p1; ++p) {
    if (step == 16) {
      block_rows<kHere, 16, kParts>(w, x, m, p, p1, y, ldy);
    } else if (step == 32) {
      block_rows<kHere, 32, kParts>(w, x, m, p, p1, y, ldy);
    } else {
      block_rows<kHere, 64, kParts>(w, x, m, p, p1, y, ldy);
    }
  }
}

#undef OCTAVO_INLINE
