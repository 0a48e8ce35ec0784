// Integer products of the 2-bit trellis with AVX-512 VBMI. A word of 64 bits is a run's ring of
// codes, and vpmultishiftqb takes eight unaligned bytes of each word, around its end: the windows
// of eight inputs. 256 levels are four registers, two vpermi2b and a blend. The sums of a row lie
// in two lanes, those of its even and its odd quads, and meet at the end of a step.
//
// Part of the instruction sets with VNNI; processors that have VNNI without VBMI (Cascade Lake,
// Cooper Lake) skip these rows (Needs::kVbmi), so every function here names its instructions.

#define OCTAVO_VBMI [[gnu::target("avx512vbmi"), gnu::always_inline]] inline
#define OCTAVO_VBMI_APART [[gnu::target("avx512vbmi")]] inline

struct ByteLevels {
  I part[4];  // level + 128 of windows 64 i .. 64 i + 63
};

OCTAVO_VBMI ByteLevels open_byte_levels(const int8_t* levels8) {
  ByteLevels t;
  for (int i = 0; i < 4; ++i) t.part[i] = i_xor(i_load(levels8 + 64 * i), i_set1(kFlip));
  return t;
}

// Levels of inputs 8 kPart .. 8 kPart + 7 of eight runs: a run's in its 64 bits.
template <int kPart>
OCTAVO_VBMI I run_levels(I words, const ByteLevels& t) {
  constexpr int64_t kBits = 0x0e0c0a0806040200 + kPart * 0x1010101010101010;
  const I windows = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(kBits), words);
  const I low = _mm512_permutex2var_epi8(t.part[0], windows, t.part[1]);
  const I high = _mm512_permutex2var_epi8(t.part[2], windows, t.part[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(windows), low, high);
}

// Sums of rows 0, 1 of every four in `even`, of rows 2, 3 in `odd` (as unpacking interleaves them).
template <int kRows>
struct RunSums {
  I even[kRows], odd[kRows];
};

template <int kPart, int kRows>
OCTAVO_VBMI void dot_part(I even, I odd, const ByteLevels& levels, const int8_t* const* q, int k,
                          RunSums<kRows>& sums) {
  const I v0 = run_levels<kPart>(even, levels), v1 = run_levels<kPart>(odd, levels);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    int64_t eight;
    __builtin_memcpy(&eight, q[r] + k + 8 * kPart, 8);
    const I inputs = _mm512_set1_epi64(eight);
    sums.even[r] = _mm512_dpbusd_epi32(sums.even[r], v0, inputs);
    sums.odd[r] = _mm512_dpbusd_epi32(sums.odd[r], v1, inputs);
  }
}

template <int kRows>
OCTAVO_VBMI void dot_runs(const uint8_t* unit, const ByteLevels& levels, const int8_t* const* q,
                          int k, RunSums<kRows>& sums) {
  const I low = i_load(unit), high = i_load(unit + 64);
  const I even = _mm512_unpacklo_epi32(low, high), odd = _mm512_unpackhi_epi32(low, high);
  dot_part<0>(even, odd, levels, q, k, sums);
  dot_part<1>(even, odd, levels, q, k, sums);
  dot_part<2>(even, odd, levels, q, k, sums);
  dot_part<3>(even, odd, levels, q, k, sums);
}

// acc of inputs [k, k + kStep), with what levels + 128 count too much taken off.
template <int kStep, int kRows>
OCTAVO_VBMI void trellis_step(const PackedWeight& w, A8Tile<1, kRows>& t, const ByteLevels& levels,
                              int k, int group) {
  RunSums<kRows> sums;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums.even[r] = sums.odd[r] = i_set1(0);
  const uint8_t* unit = t.panel[0] + static_cast<int64_t>(k / kUnit) * unit_bytes(Code::kTrellis);
#pragma GCC unroll 2
  for (int u = 0; u < kStep / kUnit; ++u) {
    dot_runs<kRows>(unit + u * unit_bytes(Code::kTrellis), levels, t.q, k + u * kUnit, sums);
  }
  start_step<kStep>(w, t, k, group);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const F even = f_bits(sums.even[r]), odd = f_bits(sums.odd[r]);
    const I first = i_bits(_mm512_shuffle_ps(even, odd, 0x88));
    const I second = i_bits(_mm512_shuffle_ps(even, odd, 0xdd));
    t.acc[0][r] = i_add(t.acc[0][r], i_add(first, second));
  }
}

// kRows rows of a8, or half as many of a16.
template <bool kWide, int kStep, int kRows>
OCTAVO_VBMI_APART void trellis_tile(const PackedWeight& w, const ActView& x, int p, int r, float* y,
                                    int64_t ldy, Ahead& ahead) {
  constexpr int kEach = kWide ? 2 : 1;
  A8Tile<1, kRows> t;
  if constexpr (kWide) {
    open_wide_tile<1, kRows / 2>(w, x, p, r, t);
  } else {
    open_tile(w, x, p, r, t);
  }
  const ByteLevels levels = open_byte_levels(w.levels8);
  touch_tables(w, t.panel[0]);
  const int a8_shift = x.a8_group == 64 ? 6 : 5, group_inputs = w.group;
  int group = 0, left = group_inputs;  // instead of a division per step
  for (int k = 0; k < w.k_pad; k += kStep) {
    fetch_share(ahead);
    trellis_step<kStep>(w, t, levels, k, group);
    if constexpr (kWide) {
      finish_wide_step<kStep, 1, kRows / 2>(w, t, k, group, a8_shift);
    } else {
      finish_step<kStep>(w, t, k, group, a8_shift);
    }
    left -= kStep;
    group += left == 0 ? 1 : 0;
    left = left == 0 ? group_inputs : left;
  }
#pragma GCC unroll 16
  for (int j = 0; j < kRows; j += kEach) {
    f_store(y + row_of(x, r + j / kEach) * ldy + 16 * p, t.y[0][j]);
  }
}

template <bool kWide, int kStep>
OCTAVO_VBMI_APART void trellis_panels(const PackedWeight& w, const ActView& x, int m, float* y,
                                      int64_t ldy, int p0, int p1) {
  constexpr int kMost = 8, kEach = kWide ? 2 : 1, kStepRows = kMost / kEach;
  for (int p = p0; p < p1; ++p) {
    const int blocks = w.k_pad / kStep * ((m + kStepRows - 1) / kStepRows);
    Ahead ahead = panels_ahead(w, p + 1, m < kRowsToFetchFor ? 0 : p1, 1, blocks);
    int r = 0;
    for (; r + kStepRows <= m; r += kStepRows)
      trellis_tile<kWide, kStep, kMost>(w, x, p, r, y, ldy, ahead);
    if (r + 4 / kEach <= m) {
      trellis_tile<kWide, kStep, 4>(w, x, p, r, y, ldy, ahead);
      r += 4 / kEach;
    }
    if (r + 2 / kEach <= m) {
      trellis_tile<kWide, kStep, 2>(w, x, p, r, y, ldy, ahead);
      r += 2 / kEach;
    }
    if constexpr (!kWide) {
      if (r < m) trellis_tile<kWide, kStep, 1>(w, x, p, r, y, ldy, ahead);
    }
  }
}

template <bool kWide>
OCTAVO_VBMI_APART void linear_trellis(const PackedWeight& w, const ActView& x, int m, float* y,
                                      int64_t ldy, int p0, int p1) {
  if (smaller(w.group, x.a8_group) == 32) return trellis_panels<kWide, 32>(w, x, m, y, ldy, p0, p1);
  trellis_panels<kWide, 64>(w, x, m, y, ldy, p0, p1);
}

#define OCTAVO_VBMI_ROWS                                                               \
  {"linear_a8_t2_avx512vbmi", Act::kA8,    Code::kTrellis, Levels::kInt8, true, false, \
   linear_trellis<false>,     Needs::kVbmi},                                           \
  {                                                                                    \
    "linear_a16_t2_avx512vbmi", Act::kA16, Code::kTrellis, Levels::kInt8, true, false, \
        linear_trellis<true>, Needs::kVbmi                                             \
  }
