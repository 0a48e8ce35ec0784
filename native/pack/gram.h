// X^T X of bf16 rows, for encoders that want a Hessian: half of its products, in twice the width.
#pragma once

#include <cstdint>

namespace octavo {

// Columns of a panel, and pairs of rows that are packed and multiplied at once.
constexpr int kGramPanel = 32, kGramPairs = 512;
// Panels of columns that a task multiplies; they stay in the second-level cache meanwhile.
constexpr int kGramTask = 4;

// Whether this CPU has vdpbf16ps; the others need it.
bool gram_supported();

// Words of `pairs` below: [panels of width][kGramPairs][kGramPanel].
int64_t gram_words(int width);
int gram_tasks(int width);

// Rounds rows x [rows][width] to bf16, half to even, rows at + i of at most 2 kGramPairs, `at`
// even. A word holds a column of two rows, the earlier one below; what no row fills becomes 0, up
// to the next pair.
void gram_pack(const float* x, int rows, int width, int at, uint32_t* pairs);

// Adds the products of the first n pairs to H [width][width], on and below the diagonal, for the
// columns of one task: h[i][j] += sum over pairs, ascending, of two products each, in the rounding
// of vdpbf16ps. Some of what is above the diagonal is written too.
void gram_add(const uint32_t* pairs, int n, int width, int task, float* H);

}  // namespace octavo
