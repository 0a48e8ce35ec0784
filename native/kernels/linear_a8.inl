// Integer products through plain C++: any group, affine or integer codebook. Also what the
// hand-written kernels must equal.

// acc[row] += v * q over 16 inputs; `half` 0 or 1 of a unit.
template <bool kNibble, bool kLut>
inline void dot16(const PackedWeight& w, const uint8_t* unit, int half, const int8_t* q,
                  int32_t* acc) {
  for (int j = 0; j < 4; ++j) {
    const uint8_t* line = unit + (kNibble ? j : 4 * half + j) * 64;
    for (int row = 0; row < 16; ++row) {
      for (int c = 0; c < 4; ++c) {
        const int code = kNibble ? (line[4 * row + c] >> (4 * half)) & 15 : line[4 * row + c];
        acc[row] += (kLut ? w.levels8[code] : code - w.zero) * q[4 * j + c];
      }
    }
  }
}

inline int32_t sum_q(const int8_t* q, int n) {
  int32_t s = 0;
  for (int i = 0; i < n; ++i) s += q[i];
  return s;
}

// One panel, one row of activations.
template <bool kNibble, bool kLut>
inline F a8_plain(const PackedWeight& w, const uint8_t* panel, const int8_t* q, const float* sa,
                  int a8_group) {
  const int step = smaller(w.group, a8_group);
  F y = f_zero();
  for (int k = 0; k < w.k_pad; k += step) {
    int32_t acc[16] = {};
    for (int h = k / 16; h < (k + step) / 16; ++h) {
      const uint8_t* unit = panel + static_cast<int64_t>(h / 2) * (kNibble ? 256 : 512);
      dot16<kNibble, kLut>(w, unit, h % 2, q + 16 * h, acc);
    }
    const F a = f_set1(sa[k / a8_group]);
    const int g = group_of(w, k);
    y = f_fma(f_of_int(i_load(acc)), f_mul(load_scale(w, panel + w.scale_offset, g), a), y);
    if (w.has_offset) {
      const F sum = f_set1(static_cast<float>(sum_q(q + k, step)));
      y = f_fma(sum, f_mul(load_scale(w, panel + w.offset_offset, g), a), y);
    }
  }
  return y;
}

template <bool kNibble, bool kLut>
inline void linear_a8_plain(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                            int p0, int p1) {
  for (int p = p0; p < p1; ++p) {
    for (int r = 0; r < m; ++r) {
      const int8_t* q = x.q + static_cast<int64_t>(r) * x.k_pad;
      const float* sa = x.scale + static_cast<int64_t>(r) * (x.k_pad / x.a8_group);
      f_store(y + r * ldy + 16 * p, a8_plain<kNibble, kLut>(w, panel_at(w, p), q, sa, x.a8_group));
    }
  }
}
