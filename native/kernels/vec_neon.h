// Sixteen lanes in four NEON registers. The meaning of each function is in vec_generic.h.

constexpr int kFloatPanels = 1, kFloatRows = 4;  // registers of a tile of fp32 sums
constexpr int kGroupRows = 3;                    // of two sums each
constexpr bool kQuickPick = false;               // f_pick16 is faster than a conversion
constexpr int kQueryTile = 4, kValueTile = 4;    // queries, and registers, of attention

struct F {
  float32x4_t a, b, c, d;
};
struct I {
  int32x4_t a, b, c, d;
};
struct D {
  float64x2_t v[8];
};

#define OCTAVO_MAP1(R, op) \
  R { op(x.a), op(x.b), op(x.c), op(x.d) }
#define OCTAVO_MAP2(R, op) \
  R { op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d) }

inline F f_set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {v, v, v, v};
}
inline F f_load(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
inline void f_store(float* p, F x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
inline F f_load_n(const float* p, int n) {
  if (n == 16) return f_load(p);
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return f_load(lanes);
}
inline void f_store_n(float* p, F x, int n) {
  if (n == 16) return f_store(p, x);
  float lanes[16];
  f_store(lanes, x);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
inline F f_add(F x, F y) { return OCTAVO_MAP2(F, vaddq_f32); }
inline F f_sub(F x, F y) { return OCTAVO_MAP2(F, vsubq_f32); }
inline F f_mul(F x, F y) { return OCTAVO_MAP2(F, vmulq_f32); }
inline F f_div(F x, F y) { return OCTAVO_MAP2(F, vdivq_f32); }
inline F f_fma(F x, F y, F z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
          vfmaq_f32(z.d, x.d, y.d)};
}
// fmax and fmin treat NaN otherwise than our contract: a comparison and a choice.
inline float32x4_t greater_of(float32x4_t x, float32x4_t y) {
  return vbslq_f32(vcgtq_f32(x, y), x, y);
}
inline float32x4_t lesser_of(float32x4_t x, float32x4_t y) {
  return vbslq_f32(vcltq_f32(x, y), x, y);
}
inline F f_max(F x, F y) { return OCTAVO_MAP2(F, greater_of); }
inline F f_min(F x, F y) { return OCTAVO_MAP2(F, lesser_of); }
inline F f_rint(F x) { return OCTAVO_MAP1(F, vrndnq_f32); }
inline F f_gt(F x, F y, F yes, F no) {
  return {vbslq_f32(vcgtq_f32(x.a, y.a), yes.a, no.a), vbslq_f32(vcgtq_f32(x.b, y.b), yes.b, no.b),
          vbslq_f32(vcgtq_f32(x.c, y.c), yes.c, no.c), vbslq_f32(vcgtq_f32(x.d, y.d), yes.d, no.d)};
}
inline bool f_any_eq(F x, F y) {
  const uint32x4_t low = vorrq_u32(vceqq_f32(x.a, y.a), vceqq_f32(x.b, y.b));
  const uint32x4_t high = vorrq_u32(vceqq_f32(x.c, y.c), vceqq_f32(x.d, y.d));
  return vmaxvq_u32(vorrq_u32(low, high)) != 0;
}

inline I i_set1(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}
inline int32x4_t load16(const void* p) {
  return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
}
inline I i_load(const void* p) {
  const uint8_t* b = static_cast<const uint8_t*>(p);
  return {load16(b), load16(b + 16), load16(b + 32), load16(b + 48)};
}
inline int32x4_t widen_low(uint16x8_t v) {
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(v)));
}
inline int32x4_t widen_high(uint16x8_t v) { return vreinterpretq_s32_u32(vmovl_high_u16(v)); }
inline I i_load_u16(const uint16_t* p) {
  const uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8);
  return {widen_low(low), widen_high(low), widen_low(high), widen_high(high)};
}
inline I i_load_u8(const uint8_t* p) {
  const uint8x16_t v = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(v)), high = vmovl_high_u8(v);
  return {widen_low(low), widen_high(low), widen_low(high), widen_high(high)};
}
inline I i_load_s8(const int8_t* p) {
  const int8x16_t v = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v);
  return {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
          vmovl_high_s16(high)};
}
inline void i_store(int32_t* p, I x) {
  vst1q_s32(p, x.a);
  vst1q_s32(p + 4, x.b);
  vst1q_s32(p + 8, x.c);
  vst1q_s32(p + 12, x.d);
}
inline int16x8_t narrow(int32x4_t low, int32x4_t high) {
  return vmovn_high_s32(vmovn_s32(low), high);
}
inline void i_store_u16(uint16_t* p, I x) {
  vst1q_u16(p, vreinterpretq_u16_s16(narrow(x.a, x.b)));
  vst1q_u16(p + 8, vreinterpretq_u16_s16(narrow(x.c, x.d)));
}
inline void i_store_s8(int8_t* p, I x) {
  vst1q_s8(p, vmovn_high_s16(vmovn_s16(narrow(x.a, x.b)), narrow(x.c, x.d)));
}
inline I i_add(I x, I y) { return OCTAVO_MAP2(I, vaddq_s32); }
inline I i_sub(I x, I y) { return OCTAVO_MAP2(I, vsubq_s32); }
inline I i_mul16(I x, I y) { return OCTAVO_MAP2(I, vmulq_s32); }
inline I i_and(I x, I y) { return OCTAVO_MAP2(I, vandq_s32); }
inline I i_or(I x, I y) { return OCTAVO_MAP2(I, vorrq_s32); }
inline I i_xor(I x, I y) { return OCTAVO_MAP2(I, veorq_s32); }
// A logical shift: left by n, right by -n.
inline int32x4_t shifted(int32x4_t v, int n) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(n)));
}
inline I i_shl(I x, int n) {
  return {shifted(x.a, n), shifted(x.b, n), shifted(x.c, n), shifted(x.d, n)};
}
inline I i_shr(I x, int n) { return i_shl(x, -n); }
inline int32x4_t shifted_right(int32x4_t v, int32x4_t n) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vnegq_s32(n)));
}
inline I i_shr_each(I x, I n) {
  return {shifted_right(x.a, n.a), shifted_right(x.b, n.b), shifted_right(x.c, n.c),
          shifted_right(x.d, n.d)};
}
inline int32x4_t pick(uint32x4_t mask, int32x4_t yes, int32x4_t no) {
  return vbslq_s32(mask, yes, no);
}
inline I i_gt(I x, I y, I yes, I no) {
  return {pick(vcgtq_s32(x.a, y.a), yes.a, no.a), pick(vcgtq_s32(x.b, y.b), yes.b, no.b),
          pick(vcgtq_s32(x.c, y.c), yes.c, no.c), pick(vcgtq_s32(x.d, y.d), yes.d, no.d)};
}
inline int32_t i_fold_add(I x) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
}

// Bytes: a8_codes.inl says what each does.
template <int kLeft>
inline int32x4_t shift_bytes(int32x4_t v) {
  const uint8x16_t b = vreinterpretq_u8_s32(v);
  if constexpr (kLeft > 0) return vreinterpretq_s32_u8(vshlq_n_u8(b, kLeft));
  if constexpr (kLeft < 0) return vreinterpretq_s32_u8(vshrq_n_u8(b, -kLeft));
  return v;
}
template <int kLeft>
inline I b_shift(I x) {
  return OCTAVO_MAP1(I, shift_bytes<kLeft>);
}
inline I b_and(I v, int mask) { return i_and(v, i_set1(mask * 0x01010101)); }
inline I b_insert(I low, I v, int mask) { return i_or(low, b_and(v, mask)); }
inline I b_table16(const int8_t* p) {
  const int32x4_t table = load16(p);
  return {table, table, table, table};
}
inline int32x4_t lookup_bytes(int32x4_t table, int32x4_t index) {
  return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(index)));
}
inline I b_lookup16(I x, I y) { return OCTAVO_MAP2(I, lookup_bytes); }

inline F f_of_int(I x) { return OCTAVO_MAP1(F, vcvtq_f32_s32); }
inline I i_of_float(F x) { return OCTAVO_MAP1(I, vcvtq_s32_f32); }
inline F f_bits(I x) { return OCTAVO_MAP1(F, vreinterpretq_f32_s32); }
inline I i_bits(F x) { return OCTAVO_MAP1(I, vreinterpretq_s32_f32); }

inline F f_load_half(const uint16_t* p) {
  const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(p));
  const float16x8_t high = vreinterpretq_f16_u16(vld1q_u16(p + 8));
  return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
          vcvt_high_f32_f16(high)};
}
// Floats of a table of 64 bytes: byte i of lane l is byte 4 * index + i.
inline float32x4_t lookup_floats(uint8x16x4_t table, int32x4_t index) {
  const int32x4_t first = vmulq_n_s32(index, 0x04040404);
  const int32x4_t bytes = vaddq_s32(first, vdupq_n_s32(0x03020100));
  return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_s32(bytes)));
}
inline void f_store_half(uint16_t* p, F x) {
  const float16x8_t low = vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b);
  const float16x8_t high = vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d);
  vst1q_u16(p, vreinterpretq_u16_f16(low));
  vst1q_u16(p + 8, vreinterpretq_u16_f16(high));
}
template <int kBit>
inline float32x4_t swap_within(float32x4_t x) {
  return kBit == 1 ? vrev64q_f32(x) : vextq_f32(x, x, 2);
}
template <int kBit>
inline F f_swap(F x) {
  if (kBit == 8) return {x.c, x.d, x.a, x.b};
  if (kBit == 4) return {x.b, x.a, x.d, x.c};
  return {swap_within<kBit>(x.a), swap_within<kBit>(x.b), swap_within<kBit>(x.c),
          swap_within<kBit>(x.d)};
}
inline F f_pick16(F x, I index) {
  const uint8x16x4_t t = {{vreinterpretq_u8_f32(x.a), vreinterpretq_u8_f32(x.b),
                           vreinterpretq_u8_f32(x.c), vreinterpretq_u8_f32(x.d)}};
  const I low = i_and(index, i_set1(15));
  return {lookup_floats(t, low.a), lookup_floats(t, low.b), lookup_floats(t, low.c),
          lookup_floats(t, low.d)};
}
inline F f_lookup256(const float* table, I index) {
  int32_t at[16];
  float lanes[16];
  i_store(at, index);
  for (int i = 0; i < 16; ++i) lanes[i] = table[at[i]];
  return f_load(lanes);
}

inline float f_fold_add(F x) {
  const float32x4_t v = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  const float32x2_t w = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(w, 0) + vget_lane_f32(w, 1);
}
inline float f_fold_max(F x) {
  const float32x4_t v = greater_of(greater_of(x.a, x.c), greater_of(x.b, x.d));
  const float32x4_t w = greater_of(v, vextq_f32(v, v, 2));
  return vgetq_lane_f32(greater_of(w, vextq_f32(w, w, 1)), 0);
}

inline D d_zero() {
  D r;
  for (int i = 0; i < 8; ++i) r.v[i] = vdupq_n_f64(0);
  return r;
}
inline D d_add(D x, F y) {
  const float32x4_t parts[4] = {y.a, y.b, y.c, y.d};
  for (int i = 0; i < 4; ++i) {
    x.v[2 * i] = vaddq_f64(x.v[2 * i], vcvt_f64_f32(vget_low_f32(parts[i])));
    x.v[2 * i + 1] = vaddq_f64(x.v[2 * i + 1], vcvt_high_f64_f32(parts[i]));
  }
  return x;
}
inline double d_fold_add(D x) {
  for (int i = 0; i < 4; ++i) x.v[i] = vaddq_f64(x.v[i], x.v[i + 4]);
  for (int i = 0; i < 2; ++i) x.v[i] = vaddq_f64(x.v[i], x.v[i + 2]);
  const float64x2_t s = vaddq_f64(x.v[0], x.v[1]);
  return vgetq_lane_f64(s, 0) + vgetq_lane_f64(s, 1);
}

#undef OCTAVO_MAP1
#undef OCTAVO_MAP2
