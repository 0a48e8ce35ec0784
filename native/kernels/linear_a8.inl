// Integer products through plain C++: any group, affine or integer codebook. Also what the
// hand-written kernels must equal.

// What a product by int8 activations depends on.
struct Wide {
  Code code;
  Levels levels;
};

template <Code kCode>
inline int sparse_code_at(const uint8_t* unit, int row, int quad, int c) {
  const uint8_t* masks = unit + unit_bytes(kCode) - 4 * kLanes + 4 * row;
  const int mask = (masks[quad / 2] >> (4 * (quad % 2))) & 15;
  if (((mask >> c) & 1) == 0) return sparse_zero(kCode);
  const int before = (mask & ((1 << c) - 1)) != 0, byte = 4 * row + 2 * (quad % 2) + before;
  if (kCode == Code::kSparseByte) return unit[64 * (quad / 2) + byte] ^ 128;
  return ((unit[64 * (quad / 2 % 2) + byte] >> (4 * (quad / 4))) & 15) ^ 8;
}

// The window of input i: of the run's 64 bits, as a ring, the 8 from bit 2 i on.
inline int window_at(const uint8_t* unit, int row, int i) {
  uint32_t low, high;
  __builtin_memcpy(&low, unit + 4 * row, 4);
  __builtin_memcpy(&high, unit + 64 + 4 * row, 4);
  const uint64_t run = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<int>((run >> (2 * i) | run << (64 - 2 * i) % 64) & 255);
}

// The code of input 4 quad + c of a unit (core/types.h says where it lies).
template <Code kCode>
inline int code_at(const uint8_t* unit, int row, int quad, int c) {
  if (is_sparse(kCode)) return sparse_code_at<kCode>(unit, row, quad, c);
  if (kCode == Code::kTrellis) return window_at(unit, row, 4 * quad + c);
  const uint8_t* at = unit + 4 * row + c;
  if (kCode == Code::kByte) return at[64 * quad];
  const int half = quad / 4, part = quad % 4;
  if (kCode == Code::kTwo || kCode == Code::kThree) {
    const int two = (at[64 * half] >> (2 * part)) & 3;
    return kCode == Code::kTwo ? two : two | ((at[128] >> quad) & 1) << 2;
  }
  const int four = (at[64 * part] >> (4 * half)) & 15;
  if (kCode == Code::kFive) return four | ((at[256] >> quad) & 1) << 4;
  if (kCode == Code::kSix) return four | ((at[256 + 64 * half] >> (2 * part)) & 3) << 4;
  return four;
}

template <Wide kMode>
inline int value_of(const PackedWeight& w, int code) {
  if (kMode.levels == Levels::kInt8) return w.levels8[code];
  if (kMode.levels == Levels::kNone) return code - w.zero;
  return 256 * w.levels16[code] + w.levels16[level_count(kMode.code) + code];
}

// acc[row] += v * q over 16 inputs; `half` 0 or 1 of a unit.
template <Wide kMode>
inline void dot16(const PackedWeight& w, const uint8_t* unit, int half, const int8_t* q,
                  int32_t* acc) {
  for (int j = 0; j < 4; ++j) {
    for (int row = 0; row < 16; ++row) {
      for (int c = 0; c < 4; ++c) {
        const int code = code_at<kMode.code>(unit, row, 4 * half + j, c);
        acc[row] += value_of<kMode>(w, code) * q[4 * j + c];
      }
    }
  }
}

inline int32_t sum_q(const int8_t* q, int n) {
  int32_t s = 0;
  for (int i = 0; i < n; ++i) s += q[i];
  return s;
}

// The same over all of a step that is there; false: nothing is, and there is no step.
template <Wide kMode>
inline bool dot_step(const PackedWeight& w, const uint8_t* panel, int k, int step, const int8_t* q,
                     int32_t* acc) {
  constexpr Wide kHere = {within_blocks(kMode.code), kMode.levels};
  bool any = false;
  for (int h = k / 16; h < (k + step) / 16; ++h) {
    const uint8_t* unit = unit_at<kMode.code>(w, panel, h / 2);
    if (unit == nullptr) continue;
    dot16<kHere>(w, unit, h % 2, q + 16 * h, acc);
    any = true;
  }
  return any;
}

// One panel, one row of activations.
template <Wide kMode>
inline F a8_plain(const PackedWeight& w, const uint8_t* panel, const int8_t* q, const float* sa,
                  int a8_group) {
  const int step = smaller(w.group, a8_group);
  F y = f_zero();
  for (int k = 0; k < w.k_pad; k += step) {
    int32_t acc[16] = {};
    if (!dot_step<kMode>(w, panel, k, step, q, acc)) continue;
    const F a = f_set1(sa[k / a8_group]);
    const int g = group_of(w, k);
    const int sum = sum_q(q + k, step);
    I total = i_load(acc);
    if (w.has_zero) total = i_add(total, i_mul16(zero_of(w, panel, g), i_set1(-sum)));
    y = f_fma(f_of_int(total), f_mul(a8_scale_of(w, panel, g), a), y);
    if (w.has_offset) {
      y = f_fma(f_set1(static_cast<float>(sum)), f_mul(offset_of(w, panel, g), a), y);
    }
  }
  return y;
}

template <Wide kMode>
inline void linear_a8_plain(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                            int p0, int p1) {
  for (int p = p0; p < p1; ++p) {
    for (int r = 0; r < m; ++r) {
      const int64_t row = row_of(x, r);
      const int8_t* q = x.q + row * x.k_pad;
      const float* sa = x.scale + row * (x.k_pad / x.a8_group);
      f_store(y + row * ldy + 16 * p, a8_plain<kMode>(w, panel_at(w, p), q, sa, x.a8_group));
    }
  }
}
