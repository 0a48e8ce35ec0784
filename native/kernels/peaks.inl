// Loops that do nothing but what bounds this ISA's kernels: the machine's limits are measured with
// them (exec/probe.h). Enough independent chains to fill two pipes of four cycles' latency.

constexpr int kChains = 12;
constexpr int64_t kStepsOfRound = 8 * kChains;

// The generic table's file leaves arm_neon.h out.
#if defined(_AARCH64_NEON_H_) || defined(__ARM_NEON_H)
#define OCTAVO_HAS_NEON
#endif

#if defined(__x86_64__)
#define OCTAVO_KEEP(v) asm volatile("" : "+" OCTAVO_REGISTER(v))
#if defined(__AVX512F__)
#define OCTAVO_REGISTER "v"
#else
#define OCTAVO_REGISTER "x"
#endif
#elif defined(__aarch64__)
#define OCTAVO_KEEP(v) asm volatile("" : "+w"(v))
#else
#define OCTAVO_KEEP(v) asm volatile("" : "+m"(v))
#endif

// Step::of(accumulator, operand) is the instruction whose rate is wanted. One variable per chain:
// gcc keeps an array of integer vectors in memory.
template <class Step>
void repeat_step(int64_t rounds) {
  using Vec = typename Step::Vec;
  Vec a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {}, k = {}, l = {}, m = {},
      n = {};
  Vec operand = {};
  OCTAVO_KEEP(operand);
#define OCTAVO_STEP(v)      \
  v = Step::of(v, operand); \
  OCTAVO_KEEP(v)
  for (int64_t i = 0; i < rounds * kStepsOfRound / kChains; ++i) {
    OCTAVO_STEP(a);
    OCTAVO_STEP(b);
    OCTAVO_STEP(c);
    OCTAVO_STEP(d);
    OCTAVO_STEP(e);
    OCTAVO_STEP(f);
    OCTAVO_STEP(g);
    OCTAVO_STEP(h);
    OCTAVO_STEP(k);
    OCTAVO_STEP(l);
    OCTAVO_STEP(m);
    OCTAVO_STEP(n);
  }
#undef OCTAVO_STEP
}

// `ops`: multiplications and additions of one step.
template <class Step>
constexpr Peak peak_of(const char* instruction, int ops) {
  return {instruction, static_cast<double>(ops) * kStepsOfRound, repeat_step<Step>};
}

#if defined(__AVX512F__)
struct FmaStep {
  using Vec = __m512;
  static Vec of(Vec a, Vec b) { return _mm512_fmadd_ps(b, b, a); }
};
constexpr Peak kPeakF32 = peak_of<FmaStep>("vfmadd231ps zmm", 32);
#elif defined(__AVX2__)
struct FmaStep {
  using Vec = __m256;
  static Vec of(Vec a, Vec b) { return _mm256_fmadd_ps(b, b, a); }
};
constexpr Peak kPeakF32 = peak_of<FmaStep>("vfmadd231ps ymm", 16);
#elif defined(OCTAVO_HAS_NEON)
struct FmaStep {
  using Vec = float32x4_t;
  static Vec of(Vec a, Vec b) { return vfmaq_f32(a, b, b); }
};
constexpr Peak kPeakF32 = peak_of<FmaStep>("fmla 4s", 8);
#else
struct FmaStep {
  typedef float Vec __attribute__((vector_size(16)));
  static Vec of(Vec a, Vec b) {
    OCTAVO_KEEP(b);  // or the product is taken out of the loop
    return a + b * b;
  }
};
constexpr Peak kPeakF32 = peak_of<FmaStep>("multiply and add, 4 floats", 8);
#endif

#if defined(__AVX512VNNI__)
struct DotStep {
  using Vec = __m512i;
  static Vec of(Vec a, Vec b) { return _mm512_dpbusd_epi32(a, b, b); }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("vpdpbusd zmm", 128);
#elif defined(__AVXVNNI__)
struct DotStep {
  using Vec = __m256i;
  static Vec of(Vec a, Vec b) { return _mm256_dpbusd_avx_epi32(a, b, b); }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("vpdpbusd ymm", 64);
#elif defined(__AVX512BW__)
struct DotStep {
  using Vec = __m512i;
  static Vec of(Vec a, Vec b) {
    Vec product;  // assembly, or the compiler takes it out of the loop
    asm volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(a), "=&v"(product) : "v"(b));
    return a;
  }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("vpmaddubsw and vpaddw zmm", 128);
#elif defined(__AVX2__)
struct DotStep {
  using Vec = __m256i;
  static Vec of(Vec a, Vec b) {
    Vec product;  // assembly, or the compiler takes it out of the loop
    asm volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(a), "=&x"(product) : "x"(b));
    return a;
  }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("vpmaddubsw and vpaddw ymm", 64);
#elif defined(OCTAVO_HAS_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
struct DotStep {
  using Vec = int32x4_t;
  static Vec of(Vec a, Vec b) {
    return vmmlaq_s32(a, vreinterpretq_s8_s32(b), vreinterpretq_s8_s32(b));
  }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("smmla", 64);
#elif defined(OCTAVO_HAS_NEON) && defined(__ARM_FEATURE_DOTPROD)
struct DotStep {
  using Vec = int32x4_t;
  static Vec of(Vec a, Vec b) {
    return vdotq_s32(a, vreinterpretq_s8_s32(b), vreinterpretq_s8_s32(b));
  }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("sdot", 32);
#else
struct DotStep {
  typedef int16_t Vec __attribute__((vector_size(16)));
  static Vec of(Vec a, Vec b) {
    OCTAVO_KEEP(b);  // or the product is taken out of the loop
    return a + b * b;
  }
};
constexpr Peak kPeakInt8 = peak_of<DotStep>("multiply and add, 8 of 16 bits", 16);
#endif

#if defined(__AVX512BF16__)
struct PairStep {
  using Vec = __m512;
  static Vec of(Vec a, Vec b) { return _mm512_dpbf16_ps(a, (__m512bh)b, (__m512bh)b); }
};
constexpr Peak kPeakBf16 = peak_of<PairStep>("vdpbf16ps zmm", 64);
#else
constexpr Peak kPeakBf16 = kPeakF32;  // weights widened, fp32 arithmetic
#endif

#if defined(__AVX512F__)
using Wide64 = __m512i;
#elif defined(__AVX2__)
using Wide64 = __m256i;
#else
typedef long long Wide64 __attribute__((vector_size(16)));
#endif

// Whole lines, front to back: eight independent sums, so that nothing but memory is waited for.
uint64_t read_lines(const uint8_t* data, size_t bytes) {
  constexpr size_t kVecs = 8;
  Wide64 sum[kVecs] = {};
  const Wide64* from = reinterpret_cast<const Wide64*>(data);
  for (size_t i = 0; (i + kVecs) * sizeof(Wide64) <= bytes; i += kVecs)
    for (size_t j = 0; j < kVecs; ++j) sum[j] ^= from[i + j];
  for (size_t j = 1; j < kVecs; ++j) sum[0] ^= sum[j];
  return static_cast<uint64_t>(sum[0][0]);
}

constexpr PeakLoops kPeakLoops = {kPeakInt8, kPeakBf16, kPeakF32, read_lines};
