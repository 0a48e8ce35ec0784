// Codes on the 2-bit trellis (src/octavo/formats/trellis.py), for encoders.
#pragma once

#include <cstdint>

namespace octavo {

// Codes of n runs of 32 weights: x [n][32] in units of the scale, words [n] with the code of weight
// i from bit 2 i on. u is upper triangular [32][32]: weight i at level v leaves e = (x_i - v) /
// u_ii, moves those behind it, x_j -= e u_ij, and costs e^2. Rings close in one of `tries` states
// (1 to 64), the likeliest first. The same codes on every machine.
void trellis_encode(const float* x, int n, const float* u, const float* levels, int tries,
                    uint64_t* words);

}  // namespace octavo
