// 16-bit activations through plain C++: a row is a high and a low row of a8 (types.h). Also what
// the hand-written kernels must equal.

// One panel, one row of activations.
template <Wide kMode>
inline F a16_plain(const PackedWeight& w, const uint8_t* panel, const int8_t* hi, const float* sa,
                   int a8_group) {
  const int8_t* lo = hi + w.k_pad;
  const int step = smaller(w.group, a8_group);
  F y = f_zero();
  for (int k = 0; k < w.k_pad; k += step) {
    int32_t high[16] = {}, low[16] = {};
    if (!dot_step<kMode>(w, panel, k, step, hi, high)) continue;
    dot_step<kMode>(w, panel, k, step, lo, low);
    const F a = f_set1(sa[k / a8_group]);
    const int g = group_of(w, k);
    const int sum_hi = sum_q(hi + k, step), sum_lo = sum_q(lo + k, step);
    if (w.has_zero) {
      const I zero = zero_of(w, panel, g);
      i_store(high, i_add(i_load(high), i_mul16(zero, i_set1(-sum_hi))));
      i_store(low, i_add(i_load(low), i_mul16(zero, i_set1(-sum_lo))));
    }
    const I acc = i_add(i_shl(i_load(high), 8), i_load(low));
    y = f_fma(f_of_int(acc), f_mul(scale_of(w, panel, g), a), y);
    if (w.has_offset) {
      const F sum = f_set1(static_cast<float>(256 * sum_hi + sum_lo));
      y = f_fma(sum, f_mul(offset_of(w, panel, g), a), y);
    }
  }
  return y;
}

template <Wide kMode>
inline void linear_a16_plain(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                             int p0, int p1) {
  for (int p = p0; p < p1; ++p) {
    for (int r = 0; r < m; ++r) {
      const int64_t row = row_of(x, r);
      const int8_t* hi = x.q + 2 * row * x.k_pad;
      const float* sa = x.scale + row * (x.k_pad / x.a8_group);
      f_store(y + row * ldy + 16 * p, a16_plain<kMode>(w, panel_at(w, p), hi, sa, x.a8_group));
    }
  }
}
