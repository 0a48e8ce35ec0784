// The codes of a line, unpacked in registers: all that knows how they lie (core/types.h). vec_*.h
// gives the bytes of an I: b_shift<kLeft>(v) (towards the high bits, or the low ones if negative;
// what crosses into a neighbour is masked by the caller), b_and(v, mask), b_insert(low, v, mask) =
// low | (v & mask), b_table16(levels) and b_lookup16(table, index).

#pragma once

// Sparse codes, where an instruction set has a way: sparse_*.h specialises it.
template <Code kCode, int kQuad>
struct Spread;

// Codes of quad kQuad of a unit: byte (row, c) of the register is the code of input 4 kQuad + c.
template <Code kCode, int kQuad>
OCTAVO_INLINE I load_codes(const uint8_t* unit) {
  if constexpr (is_sparse(kCode)) return Spread<kCode, kQuad>::codes(unit);
  if constexpr (kCode == Code::kByte) return i_load(unit + 64 * kQuad);
  if constexpr (kCode == Code::kTrellis) {
    I windows = windows_of(unit, 4 * kQuad);
    for (int c = 1; c < 4; ++c) {
      windows = i_or(windows, i_shl(windows_of(unit, 4 * kQuad + c), 8 * c));
    }
    return windows;
  }
  constexpr int kHalf = kQuad / 4, kPart = kQuad % 4;
  if constexpr (kCode == Code::kTwo || kCode == Code::kThree) {
    const I two = b_and(b_shift<-2 * kPart>(i_load(unit + 64 * kHalf)), 3);
    if constexpr (kCode == Code::kTwo) return two;
    return b_insert(two, b_shift<2 - kQuad>(i_load(unit + 128)), 4);
  }
  const I four = b_and(b_shift<-4 * kHalf>(i_load(unit + 64 * kPart)), 15);
  if constexpr (kCode == Code::kFive)
    return b_insert(four, b_shift<4 - kQuad>(i_load(unit + 256)), 16);
  if constexpr (kCode == Code::kSix)
    return b_insert(four, b_shift<4 - 2 * kPart>(i_load(unit + 256 + 64 * kHalf)), 48);
  return four;
}
