#include "codecs/gguf_blocks.h"

#include <cstring>

#include "codecs/half.h"

namespace octavo {
namespace {

constexpr int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

// n bytes of nibbles: the low ones are inputs 0 .. n-1, the high ones n .. 2n-1.
inline void split_nibbles(const uint8_t* in, int n, uint8_t* codes) {
  for (int i = 0; i < n; ++i) {
    codes[i] = in[i] & 15;
    codes[n + i] = static_cast<uint8_t>(in[i] >> 4);
  }
}

// Bit i of a word of 32 becomes bit 4 of code i, eight codes at a time.
inline void add_fifth_bit(uint32_t bits, uint8_t* codes) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t copies = ((bits >> (8 * i)) & 255u) * 0x0101010101010101u;
    const uint64_t own = copies & 0x8040201008040201u;  // byte j keeps bit j
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    eight |= ((own + 0x7f7f7f7f7f7f7f7fu) >> 3) & 0x1010101010101010u;
    std::memcpy(codes + 8 * i, &eight, 8);
  }
}

void decode_q4_0(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  split_nibbles(b + 2, 16, out.codes);
}

void decode_q4_1(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  out.offsets[0] = load_half(b + 2);
  split_nibbles(b + 4, 16, out.codes);
}

void decode_q5_0(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  split_nibbles(b + 6, 16, out.codes);
  add_fifth_bit(load_u32(b + 2), out.codes);
}

void decode_q5_1(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  out.offsets[0] = load_half(b + 2);
  split_nibbles(b + 8, 16, out.codes);
  add_fifth_bit(load_u32(b + 4), out.codes);
}

void decode_q8_0(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  for (int i = 0; i < 32; ++i) out.codes[i] = static_cast<uint8_t>(b[2 + i] ^ 0x80u);
}

inline void two_bits(const uint8_t* in, int shift, uint8_t* codes) {  // of 32 bytes
  for (int i = 0; i < 32; ++i) codes[i] = (in[i] >> shift) & 3;
}

// codes |= bits `shift` of 32 bytes, moved to `to`; mask is of the bits before the move.
inline void or_bits(const uint8_t* in, int shift, int mask, int to, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>(((in[i] >> shift) & mask) << to);
}

void decode_q2_k(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b + 80);
  out.offsets[0] = -load_half(b + 82);
  for (int g = 0; g < 16; ++g) {
    out.subs[g] = b[g] & 15;
    out.sub_offsets[g] = static_cast<uint8_t>(b[g] >> 4);
  }
  for (int i = 0; i < 8; ++i) {  // 128 inputs share 32 bytes, two bits each
    two_bits(b + 16 + 32 * (i / 4), 2 * (i % 4), out.codes + 32 * i);
  }
}

void decode_q3_k(const uint8_t* b, const BlockOut& out) {
  const uint8_t *high = b, *low = b + 32, *sub = b + 96;
  out.scales[0] = load_half(b + 108);
  for (int g = 0; g < 16; ++g) {
    const int nibble = (sub[g % 8] >> (4 * (g / 8))) & 15;
    const int top = (sub[8 + g % 4] >> (2 * (g / 4))) & 3;
    out.subs[g] = static_cast<uint8_t>(nibble | top << 4);
  }
  for (int i = 0; i < 8; ++i) {  // the high bit adds 4; zero is 4
    two_bits(low + 32 * (i / 4), 2 * (i % 4), out.codes + 32 * i);
    or_bits(high, i, 1, 2, out.codes + 32 * i);
  }
}

// Eight 6-bit scales and minima in 12 bytes (Q4_K, Q5_K), under d and -dmin.
inline void decode_k_scales(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  out.offsets[0] = -load_half(b + 2);
  const uint8_t* s = b + 4;
  for (int g = 0; g < 8; ++g) {
    int scale = s[g % 4] & 63, min = s[4 + g % 4] & 63;
    if (g >= 4) {
      scale = (s[8 + g % 4] & 15) | (s[g % 4] >> 6) << 4;
      min = (s[8 + g % 4] >> 4) | (s[4 + g % 4] >> 6) << 4;
    }
    out.subs[g] = static_cast<uint8_t>(scale);
    out.sub_offsets[g] = static_cast<uint8_t>(min);
  }
}

void decode_q4_k(const uint8_t* b, const BlockOut& out) {
  decode_k_scales(b, out);
  for (int i = 0; i < 4; ++i) split_nibbles(b + 16 + 32 * i, 32, out.codes + 64 * i);
}

void decode_q5_k(const uint8_t* b, const BlockOut& out) {
  decode_k_scales(b, out);
  const uint8_t* high = b + 16;
  for (int i = 0; i < 4; ++i) split_nibbles(b + 48 + 32 * i, 32, out.codes + 64 * i);
  for (int i = 0; i < 8; ++i) or_bits(high, i, 1, 4, out.codes + 32 * i);
}

void decode_q6_k(const uint8_t* b, const BlockOut& out) {
  const uint8_t *low = b, *high = b + 128;
  out.scales[0] = load_half(b + 208);
  for (int g = 0; g < 16; ++g) out.subs[g] = static_cast<uint8_t>(b[192 + g] ^ 0x80u);
  for (int half = 0; half < 2; ++half) {
    split_nibbles(low + 64 * half, 64, out.codes + 128 * half);
    for (int i = 0; i < 4; ++i) {
      or_bits(high + 32 * half, 2 * i, 3, 4, out.codes + 128 * half + 32 * i);
    }
  }
}

void decode_iq4_xs(const uint8_t* b, const BlockOut& out) {
  out.scales[0] = load_half(b);
  const uint16_t high = load_u16(b + 2);
  for (int g = 0; g < 8; ++g) {
    const int nibble = (b[4 + g / 2] >> (4 * (g % 2))) & 15;
    out.subs[g] = static_cast<uint8_t>(nibble | ((high >> (2 * g)) & 3) << 4);
    split_nibbles(b + 8 + 16 * g, 16, out.codes + 32 * g);
  }
}

constexpr Scaling kHalf = Scaling::kF16, kSub4 = Scaling::kSub4, kSub6 = Scaling::kSub6;

//   type, inputs, bytes, group, bits, zero, has_offset, scaling, sub_bias, levels8, decode
constexpr GgufBlock kBlocks[] = {
    {"Q4_0", 32, 18, 32, 4, 8, false, kHalf, 0, nullptr, decode_q4_0},
    {"Q4_1", 32, 20, 32, 4, 0, true, kHalf, 0, nullptr, decode_q4_1},
    {"Q5_0", 32, 22, 32, 5, 16, false, kHalf, 0, nullptr, decode_q5_0},
    {"Q5_1", 32, 24, 32, 5, 0, true, kHalf, 0, nullptr, decode_q5_1},
    {"Q8_0", 32, 34, 32, 8, 128, false, kHalf, 0, nullptr, decode_q8_0},
    {"Q2_K", 256, 84, 16, 2, 0, true, kSub4, 0, nullptr, decode_q2_k},
    {"Q3_K", 256, 110, 16, 3, 4, false, kSub6, 32, nullptr, decode_q3_k},
    {"Q4_K", 256, 144, 32, 4, 0, true, kSub6, 0, nullptr, decode_q4_k},
    {"Q5_K", 256, 176, 32, 5, 0, true, kSub6, 0, nullptr, decode_q5_k},
    {"Q6_K", 256, 210, 16, 6, 32, false, Scaling::kSub8, 128, nullptr, decode_q6_k},
    {"IQ4_NL", 32, 18, 32, 4, 0, false, kHalf, 0, kIq4Levels, decode_q4_0},
    {"IQ4_XS", 256, 136, 32, 4, 0, false, kSub6, 32, kIq4Levels, decode_iq4_xs},
};

}  // namespace

const GgufBlock* gguf_block(std::string_view type) {
  for (const GgufBlock& b : kBlocks) {
    if (b.type == type) return &b;
  }
  return nullptr;
}

}  // namespace octavo
