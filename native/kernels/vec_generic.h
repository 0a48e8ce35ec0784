// Sixteen lanes in plain C++: the vector type of the generic ISA and the meaning of all the others.
// Included by one isa_*.cc only, inside its namespace.

constexpr int kFloatPanels = 2, kFloatRows = 4;  // registers of a tile of fp32 sums
constexpr int kGroupRows = 4;                    // of two sums each
constexpr bool kQuickPick = false;               // f_pick16 is faster than a conversion
constexpr int kQueryTile = 4, kValueTile = 8;    // queries, and registers, of attention

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct D {
  double v[16];
};

#define OCTAVO_LANES for (int i = 0; i < 16; ++i)

inline F f_set1(float x) {
  F r;
  OCTAVO_LANES r.v[i] = x;
  return r;
}
inline F f_load(const float* p) {
  F r;
  OCTAVO_LANES r.v[i] = p[i];
  return r;
}
inline F f_load_n(const float* p, int n) {  // lanes n.. are zero
  F r;
  OCTAVO_LANES r.v[i] = i < n ? p[i] : 0.0f;
  return r;
}
inline void f_store(float* p, F a) { OCTAVO_LANES p[i] = a.v[i]; }
inline void f_store_n(float* p, F a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline F f_add(F a, F b) {
  OCTAVO_LANES a.v[i] += b.v[i];
  return a;
}
inline F f_sub(F a, F b) {
  OCTAVO_LANES a.v[i] -= b.v[i];
  return a;
}
inline F f_mul(F a, F b) {
  OCTAVO_LANES a.v[i] *= b.v[i];
  return a;
}
inline F f_div(F a, F b) {
  OCTAVO_LANES a.v[i] /= b.v[i];
  return a;
}
inline F f_fma(F a, F b, F c) {
  OCTAVO_LANES c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return c;
}
// As x86 does: the second operand when the comparison is false, so also when one is NaN.
inline F f_max(F a, F b) {
  OCTAVO_LANES b.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return b;
}
inline F f_min(F a, F b) {
  OCTAVO_LANES b.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return b;
}
inline F f_rint(F a) {
  OCTAVO_LANES a.v[i] = __builtin_rintf(a.v[i]);
  return a;
}
inline F f_gt(F a, F b, F yes, F no) {  // a > b ? yes : no
  OCTAVO_LANES no.v[i] = a.v[i] > b.v[i] ? yes.v[i] : no.v[i];
  return no;
}
inline bool f_any_eq(F a, F b) {
  bool any = false;
  OCTAVO_LANES any |= a.v[i] == b.v[i];
  return any;
}

inline I i_set1(int32_t x) {
  I r;
  OCTAVO_LANES r.v[i] = x;
  return r;
}
inline I i_load(const void* p) {
  I r;
  __builtin_memcpy(&r, p, 64);
  return r;
}
inline I i_load_u16(const uint16_t* p) {
  I r;
  OCTAVO_LANES r.v[i] = p[i];
  return r;
}
inline I i_load_u8(const uint8_t* p) {
  I r;
  OCTAVO_LANES r.v[i] = p[i];
  return r;
}
inline I i_load_s8(const int8_t* p) {
  I r;
  OCTAVO_LANES r.v[i] = p[i];
  return r;
}
inline void i_store(int32_t* p, I a) { __builtin_memcpy(p, &a, 64); }
inline void i_store_u16(uint16_t* p, I a) { OCTAVO_LANES p[i] = static_cast<uint16_t>(a.v[i]); }
inline void i_store_s8(int8_t* p, I a) { OCTAVO_LANES p[i] = static_cast<int8_t>(a.v[i]); }
inline I i_add(I a, I b) {
  OCTAVO_LANES a.v[i] =
      static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
  return a;
}
inline I i_sub(I a, I b) {
  OCTAVO_LANES a.v[i] =
      static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
  return a;
}
inline I i_mul16(I a, I b) {  // of factors within 16 bits, signed
  OCTAVO_LANES a.v[i] *= b.v[i];
  return a;
}
inline I i_and(I a, I b) {
  OCTAVO_LANES a.v[i] &= b.v[i];
  return a;
}
inline I i_or(I a, I b) {
  OCTAVO_LANES a.v[i] |= b.v[i];
  return a;
}
inline I i_xor(I a, I b) {
  OCTAVO_LANES a.v[i] ^= b.v[i];
  return a;
}
inline I i_shr(I a, int n) {  // logical
  OCTAVO_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n);
  return a;
}
inline I i_shl(I a, int n) {
  OCTAVO_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n);
  return a;
}
inline I i_shr_each(I a, I n) {  // logical, of each lane by its own 0 to 31
  OCTAVO_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n.v[i]);
  return a;
}
inline I i_gt(I a, I b, I yes, I no) {
  OCTAVO_LANES no.v[i] = a.v[i] > b.v[i] ? yes.v[i] : no.v[i];
  return no;
}
inline int32_t i_fold_add(I a) {
  int32_t s = 0;
  OCTAVO_LANES s += a.v[i];
  return s;
}

// Bytes: a8_codes.inl says what each does.
template <int kLeft>
inline I b_shift(I v) {
  return kLeft > 0 ? i_shl(v, kLeft > 0 ? kLeft : 0) : i_shr(v, kLeft > 0 ? 0 : -kLeft);
}
inline I b_and(I v, int mask) { return i_and(v, i_set1(mask * 0x01010101)); }
inline I b_insert(I low, I v, int mask) { return i_or(low, b_and(v, mask)); }

inline F f_of_int(I a) {
  F r;
  OCTAVO_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
inline I i_of_float(F a) {  // a holds integers within the range of int32
  I r;
  OCTAVO_LANES r.v[i] = static_cast<int32_t>(a.v[i]);
  return r;
}
inline F f_bits(I a) {
  F r;
  __builtin_memcpy(&r, &a, 64);
  return r;
}
inline I i_bits(F a) {
  I r;
  __builtin_memcpy(&r, &a, 64);
  return r;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, e = (h >> 10) & 31u,
                 m = h & 1023u;
  uint32_t u = sign | (e == 31u ? 0x7f800000u : (e + 112u) << 23) | m << 13;
  if (e == 0) {
    const float f = static_cast<float>(m) * 0x1p-24f;
    __builtin_memcpy(&u, &f, 4);
    u |= sign;
  }
  float r;
  __builtin_memcpy(&r, &u, 4);
  return r;
}
inline uint16_t float_to_half(float x) {  // half to even; |x| < 65520
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    float magnitude;
    __builtin_memcpy(&magnitude, &a, 4);
    return static_cast<uint16_t>(sign |
                                 static_cast<uint32_t>(__builtin_rintf(magnitude * 0x1p24f)));
  }
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}
inline void f_store_half(uint16_t* p, F a) { OCTAVO_LANES p[i] = float_to_half(a.v[i]); }
inline F f_load_half(const uint16_t* p) {
  F r;
  OCTAVO_LANES r.v[i] = half_to_float(p[i]);
  return r;
}

template <int kBit>  // lane i gets lane i ^ kBit: 1, 2, 4 or 8
inline F f_swap(F a) {
  F r;
  OCTAVO_LANES r.v[i] = a.v[i ^ kBit];
  return r;
}
// The low 4 bits of each index count.
inline F f_pick16(F table, I index) {
  F r;
  OCTAVO_LANES r.v[i] = table.v[index.v[i] & 15];
  return r;
}
inline F f_lookup256(const float* table, I index) {
  F r;
  OCTAVO_LANES r.v[i] = table[index.v[i]];
  return r;
}

// Lanes folded 8, 4, 2, 1: the one order of every horizontal sum.
inline float f_fold_add(F a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
inline float f_fold_max(F a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  }
  return a.v[0];
}

inline D d_zero() {
  D r;
  OCTAVO_LANES r.v[i] = 0;
  return r;
}
inline D d_add(D a, F b) {
  OCTAVO_LANES a.v[i] += static_cast<double>(b.v[i]);
  return a;
}
inline double d_fold_add(D a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}

#undef OCTAVO_LANES
