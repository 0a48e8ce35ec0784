// Round to nearest: src/octavo/formats/rounding.py states the arithmetic, this repeats it bit for
// bit.
#include <algorithm>
#include <optional>
#include <string_view>

#include "codecs/half.h"
#include "pack/pack.h"

namespace octavo {
namespace {

enum class Rule { kAbsmax, kFull, kSigned, kNoClip, kMinmax };

std::optional<Rule> rule_of(std::string_view name) {
  if (name == "absmax") return Rule::kAbsmax;
  if (name == "full") return Rule::kFull;
  if (name == "signed") return Rule::kSigned;
  if (name == "no_clip") return Rule::kNoClip;
  if (name == "minmax") return Rule::kMinmax;
  return std::nullopt;
}

struct Extremes {
  float lo, hi;
};

Extremes extremes(const float* w, int n) {  // n > 0; eight lanes, so that the loop vectorises
  float lo[8], hi[8];
  for (int j = 0; j < 8; ++j) lo[j] = hi[j] = w[0];
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      lo[j] = w[i + j] < lo[j] ? w[i + j] : lo[j];
      hi[j] = w[i + j] > hi[j] ? w[i + j] : hi[j];
    }
  }
  for (; i < n; ++i) {
    lo[0] = std::min(lo[0], w[i]);
    hi[0] = std::max(hi[0], w[i]);
  }
  return {*std::min_element(lo, lo + 8), *std::max_element(hi, hi + 8)};
}

float ideal_step(Extremes e, Rule rule, int bits) {
  const float half = static_cast<float>(1 << (bits - 1));
  const float lo0 = std::min(e.lo, 0.0f), hi0 = std::max(e.hi, 0.0f);
  const float peak = std::max(-e.lo, e.hi);
  switch (rule) {
    case Rule::kAbsmax:
      return peak / (half - 1.0f);
    case Rule::kFull:
      return peak * 2.0f / (2.0f * half - 1.0f);
    case Rule::kNoClip:
      return std::max(-lo0 / half, hi0 / (half - 1.0f));
    case Rule::kMinmax:
      return (hi0 - lo0) / (2.0f * half - 1.0f);
    case Rule::kSigned:
      break;
  }
  return (-e.lo >= e.hi ? e.lo : e.hi) / -half;
}

// Half to even for |x| < 2^22, as an addition that vectorises on every machine.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

inline float ratio(float x, float step) { return step == 0.0f ? 0.0f : x / step; }

struct Range {
  float zero, low, high;
};

void round_codes(const float* w, int n, float step, Range r, uint8_t* codes) {
  const float divisor = step == 0.0f ? 1.0f : step, live = step == 0.0f ? 0.0f : 1.0f;
  for (int i = 0; i < n; ++i) {
    float t = w[i] * live / divisor;
    t = t < -512.0f ? -512.0f : t;  // far outside every grid: the clip below stays the same
    t = t > 512.0f ? 512.0f : t;
    t = round_even(t) + r.zero;
    t = t < r.low ? r.low : t;
    t = t > r.high ? r.high : t;
    codes[i] = static_cast<uint8_t>(static_cast<int>(t));
  }
}

struct Group {
  float scale;
  uint8_t zero;
};

Group encode_group(const float* w, int n, Rule rule, int bits, bool scale_f32, uint8_t* codes) {
  const Extremes e = extremes(w, n);
  float step = ideal_step(e, rule, bits);
  if (!scale_f32) step = half_to_float(float_to_half(step));
  step += 0.0f;  // -0 becomes +0
  const float last = static_cast<float>((1 << bits) - 1);
  Range range = {static_cast<float>(1 << (bits - 1)), rule == Rule::kAbsmax ? 1.0f : 0.0f, last};
  if (rule == Rule::kMinmax) {
    const float z = ratio(-std::min(e.lo, 0.0f), step);
    range.zero = std::min(round_even(std::min(z, 512.0f)), last);
  }
  round_codes(w, n, step, range, codes);
  return {step, static_cast<uint8_t>(range.zero)};
}

}  // namespace

bool encode_rtn(const float* w, int rows, int k, int group, int bits, const std::string& convention,
                bool scale_f32, AffineRows* out) {
  const std::optional<Rule> rule = rule_of(convention);
  if (!rule || bits < 2 || bits > 8) return false;
  const bool asymmetric = *rule == Rule::kMinmax;
  const int size = std::min(group, k), groups = (k + size - 1) / size;
  out->rows = rows;
  out->k = k;
  out->group = size;
  out->zero = asymmetric ? 0 : 1 << (bits - 1);
  out->bits = bits;
  out->codes.resize(static_cast<size_t>(rows) * static_cast<size_t>(k));
  out->scales.resize(static_cast<size_t>(rows) * static_cast<size_t>(groups));
  out->zeros.resize(asymmetric ? out->scales.size() : 0);
  for (int r = 0; r < rows; ++r) {
    const int64_t row = static_cast<int64_t>(r) * k;
    for (int g = 0; g < groups; ++g) {
      const int start = g * size, n = std::min(size, k - start);
      const Group one =
          encode_group(w + row + start, n, *rule, bits, scale_f32, out->codes.data() + row + start);
      const size_t at =
          static_cast<size_t>(r) * static_cast<size_t>(groups) + static_cast<size_t>(g);
      out->scales[at] = one.scale;
      if (asymmetric) out->zeros[at] = one.zero;
    }
  }
  return true;
}

}  // namespace octavo
