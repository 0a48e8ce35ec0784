#include "pack/gram.h"

#include <algorithm>

#include "core/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {

static int panels_of(int width) { return (width + kGramPanel - 1) / kGramPanel; }

int64_t gram_words(int width) {
  return static_cast<int64_t>(panels_of(width)) * kGramPairs * kGramPanel;
}

int gram_tasks(int width) { return (panels_of(width) + kGramTask - 1) / kGramTask; }

#if defined(__x86_64__)

#define OCTAVO_BF16 [[gnu::target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]]

namespace {

constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of the unmasked intrinsics' own undefined values
constexpr int kLanes = 16, kRows = 8;  // of H that one tile keeps in registers, 2 vectors wide
constexpr int kPanelWords = kGramPairs * kGramPanel;
static_assert(kGramPanel == 2 * kLanes && kGramPanel % kRows == 0);

OCTAVO_BF16 __m512i rounded(const float* x, __mmask16 mask) {
  const __m256bh low = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x));
  return _mm512_maskz_cvtepu16_epi32(kAll, (__m256i)low);
}

// One pair of rows; `second` may be null.
OCTAVO_BF16 void pack_pair(const float* first, const float* second, int width, uint32_t* out) {
  for (int j = 0; j < panels_of(width) * kGramPanel; j += kLanes) {
    const int left = std::clamp(width - j, 0, kLanes);
    const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1);
    __m512i words = rounded(first + j, mask);
    if (second) {
      const __m512i above = rounded(second + j, mask);
      words = _mm512_or_si512(words, _mm512_maskz_slli_epi32(kAll, above, 16));
    }
    const int64_t panel = j / kGramPanel;
    _mm512_storeu_si512(out + panel * kPanelWords + j % kGramPanel, words);
  }
}

OCTAVO_BF16 __m512bh vector_of(const uint32_t* words) {
  return (__m512bh)_mm512_loadu_si512(words);
}

OCTAVO_BF16 __m512bh spread(const uint32_t* word) {
  return (__m512bh)_mm512_set1_epi32(static_cast<int>(*word));
}

// acc[i][half] = sum over n pairs of left[i] * right[16 half ...].
OCTAVO_BF16 void multiply(const uint32_t* left, const uint32_t* right, int n,
                          __m512 (&acc)[kRows][2]) {
  for (auto& row : acc) row[0] = row[1] = _mm512_setzero_ps();
  for (int pair = 0; pair < n; ++pair, left += kGramPanel, right += kGramPanel) {
    const __m512bh low = vector_of(right), high = vector_of(right + kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512bh x = spread(left + i);
      acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, low);
      acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, high);
    }
  }
}

OCTAVO_BF16 void add_row(const __m512 (&sum)[2], int left, float* h) {
  for (int half = 0; half < 2; ++half, h += kLanes, left -= kLanes) {
    const __mmask16 mask = static_cast<__mmask16>((1u << std::clamp(left, 0, kLanes)) - 1);
    _mm512_mask_storeu_ps(h, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, h), sum[half]));
  }
}

// The square of H where rows of one panel meet columns of another.
OCTAVO_BF16 void add_square(const uint32_t* pairs, int n, int width, int rows, int columns,
                            float* H) {
  const uint32_t *left = pairs + static_cast<int64_t>(rows) * kPanelWords,
                 *right = pairs + static_cast<int64_t>(columns) * kPanelWords;
  const int j = columns * kGramPanel;
  for (int i = 0; i < kGramPanel && rows * kGramPanel + i < width; i += kRows) {
    __m512 acc[kRows][2];
    multiply(left + i, right, n, acc);
    const int first = rows * kGramPanel + i;
    for (int r = 0; r < std::min(kRows, width - first); ++r) {
      add_row(acc[r], width - j, H + static_cast<int64_t>(first + r) * width + j);
    }
  }
}

}  // namespace

bool gram_supported() { return cpu_has_avx512bf16(); }

void gram_pack(const float* x, int rows, int width, int at, uint32_t* pairs) {
  for (int i = 0; i < rows; i += 2) {
    const float* first = x + static_cast<int64_t>(i) * width;
    uint32_t* out = pairs + static_cast<int64_t>(at + i) / 2 * kGramPanel;
    pack_pair(first, i + 1 < rows ? first + width : nullptr, width, out);
  }
}

void gram_add(const uint32_t* pairs, int n, int width, int task, float* H) {
  const int panels = panels_of(width), begin = task * kGramTask;
  for (int rows = begin; rows < panels; ++rows) {
    for (int columns = begin; columns < std::min(begin + kGramTask, rows + 1); ++columns) {
      add_square(pairs, n, width, rows, columns, H);
    }
  }
}

#else

bool gram_supported() { return false; }
void gram_pack(const float*, int, int, int, uint32_t*) {}
void gram_add(const uint32_t*, int, int, int, float*) {}

#endif

}  // namespace octavo
