// exp and tanh: one polynomial in one order of operations on every ISA.

#ifndef OCTAVO_INLINE
#define OCTAVO_INLINE [[gnu::always_inline]] inline
#endif

inline F f_zero() { return f_set1(0.0f); }
inline F f_abs(F x) { return f_bits(i_and(i_bits(x), i_set1(0x7fffffff))); }

// 2^n for integer n in [-126, 127].
inline F f_pow2(I n) { return f_bits(i_shl(i_add(n, i_set1(127)), 23)); }

inline F f_exp_near_zero(F r) {
  F p = f_set1(0x1.6a1a72p-10f);
  p = f_fma(p, r, f_set1(0x1.123fc6p-7f));
  p = f_fma(p, r, f_set1(0x1.555916p-5f));
  p = f_fma(p, r, f_set1(0x1.55548ap-3f));
  p = f_fma(p, r, f_set1(0x1.fffffcp-2f));
  return f_fma(f_mul(r, r), p, f_add(r, f_set1(1.0f)));
}

// exp(x) within 2 ulp: x = n ln 2 + r (ln 2 in two parts, Cody and Waite), exp(r) by a polynomial
// of degree 6 (fitted for relative error 4e-9), then 2^n in two exact factors.
// Below -87.33 (results under FLT_MIN) it is 0, from 88.73 on infinity; NaN stays NaN.
inline F f_exp(F x) {
  const F lowest = f_set1(-87.33654f), highest = f_set1(88.7228394f);
  const F clamped = f_min(highest, f_max(lowest, x));
  const F n = f_rint(f_mul(clamped, f_set1(1.44269504f)));
  F r = f_fma(n, f_set1(-0.693145751953125f), clamped);
  r = f_fma(n, f_set1(-1.42860677e-6f), r);
  F p = f_exp_near_zero(r);
  const I k = i_of_float(n);
  const I half = i_sub(i_shr(i_add(k, i_set1(256)), 1), i_set1(128));
  p = f_mul(f_mul(p, f_pow2(half)), f_pow2(i_sub(k, half)));
  p = f_gt(x, highest, f_set1(__builtin_inff()), p);
  return f_gt(lowest, x, f_zero(), p);
}

// The bits of f_exp for x <= 0: nothing to clamp above, and one factor 2^n will do.
inline F f_exp_down(F x) {
  const F lowest = f_set1(-87.33654f);
  const F clamped = f_max(lowest, x);
  const F n = f_rint(f_mul(clamped, f_set1(1.44269504f)));
  F r = f_fma(n, f_set1(-0.693145751953125f), clamped);
  r = f_fma(n, f_set1(-1.42860677e-6f), r);
  const F p = f_mul(f_exp_near_zero(r), f_pow2(i_of_float(n)));
  return f_gt(lowest, x, f_zero(), p);
}

// tanh(x): an odd polynomial below 5/8, else 1 - 2 / (exp(2 |x|) + 1), with the sign of x.
inline F f_tanh(F x) {
  const F a = f_abs(x), z = f_mul(x, x);
  F p = f_set1(-0.0056669777f);
  p = f_fma(p, z, f_set1(0.020606177f));
  p = f_fma(p, z, f_set1(-0.053730007f));
  p = f_fma(p, z, f_set1(0.13331331f));
  p = f_fma(p, z, f_set1(-0.33333278f));
  const F small = f_fma(f_mul(p, z), x, x);
  const F e = f_exp(f_add(a, a));
  const F big = f_sub(f_set1(1.0f), f_div(f_set1(2.0f), f_add(e, f_set1(1.0f))));
  const I sign = i_and(i_bits(x), i_set1(static_cast<int32_t>(0x80000000u)));
  return f_gt(f_set1(0.625f), a, small, f_bits(i_or(i_bits(big), sign)));
}

// fp32 -> bf16 bits (low 16 of each lane), half to even; NaN stays NaN.
inline I bf16_bits(F x) {
  const I u = i_bits(x);
  const I odd = i_and(i_shr(u, 16), i_set1(1));
  const I rounded = i_shr(i_add(u, i_add(odd, i_set1(0x7fff))), 16);
  const I quiet = i_or(i_shr(u, 16), i_set1(0x40));
  return i_gt(i_and(u, i_set1(0x7fffffff)), i_set1(0x7f800000), quiet, rounded);
}
inline F f_round_bf16(F x) { return f_bits(i_shl(bf16_bits(x), 16)); }
inline F f_load_bf16(const uint16_t* p) { return f_bits(i_shl(i_load_u16(p), 16)); }
inline float bf16_value(uint16_t b) {
  const uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
inline F f_bf16_low(I pair) { return f_bits(i_shl(pair, 16)); }
inline F f_bf16_high(I pair) {
  return f_bits(i_and(pair, i_set1(static_cast<int32_t>(0xffff0000u))));
}

inline int smaller(int a, int b) { return a < b ? a : b; }
