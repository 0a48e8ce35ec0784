// Four products of bytes a lane on NEON, for a8_dot_quads.inl. A unit's inputs stay in one register
// of 16 and are taken by lane, so that a line costs no broadcast.
//   i8mm      usdot: unsigned codes as they are
//   dotprod   sdot: signed codes
//   neither   smull, addp, sadalp: a pair is at most 2 * 128 * 127 < 2^15

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kSignedCodes = false;
#else
constexpr bool kSignedCodes = true;
#endif
constexpr int kTallPanels = 1, kTallRows = 4;  // 16 sums, 4 of a line, 4 of inputs: 24 of 32
constexpr int kFlatRows = 4;

using Quads = int8x16_t;
inline Quads quads_at(const int8_t* q) { return vld1q_s8(q); }

template <int j>
struct Word {
  int8x16_t q;
};
template <int j>
inline Word<j> word(Quads q) {
  return {q};
}

template <int j>
inline int32x4_t dot_by_lane(int32x4_t acc, int32x4_t codes, Word<j> word) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_laneq_s32(acc, vreinterpretq_u8_s32(codes), word.q, j);
#elif defined(__ARM_FEATURE_DOTPROD)
  return vdotq_laneq_s32(acc, vreinterpretq_s8_s32(codes), word.q, j);
#else
  const int8x16_t v = vreinterpretq_s8_s32(codes);
  const int8x16_t q = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(word.q), j));
  const int16x8_t low = vmull_s8(vget_low_s8(v), vget_low_s8(q));
  return vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(v, q)));
#endif
}

template <int j>
inline I i_dot(I acc, I codes, Word<j> q) {
  return {dot_by_lane(acc.a, codes.a, q), dot_by_lane(acc.b, codes.b, q),
          dot_by_lane(acc.c, codes.c, q), dot_by_lane(acc.d, codes.d, q)};
}

inline int32_t sum16(const int8_t* q) { return vaddlvq_s8(vld1q_s8(q)); }
