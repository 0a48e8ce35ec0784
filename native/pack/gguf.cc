// GGUF rows: to the affine view, to a plan, or to fp32.
#include <cstring>

#include "codecs/gguf_blocks.h"
#include "codecs/half.h"
#include "pack/pack.h"

namespace octavo {
namespace {

int float_bytes(const std::string& type) {
  if (type == "F32") return 4;
  return type == "F16" || type == "BF16" ? 2 : 0;
}

void widen(const std::string& type, const uint8_t* data, int64_t n, float* out) {
  if (type == "F32") {
    std::memcpy(out, data, static_cast<size_t>(n) * 4);
  } else if (type == "F16") {
    for (int64_t i = 0; i < n; ++i) out[i] = load_half(data + 2 * i);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(load_u16(data + 2 * i));
  }
}

// The scale or offset of group g; super * (sub - bias) is exact.
float group_value(const GgufBlock& b, const float* values, const uint8_t* subs, int g, int bias) {
  return b.scaling == Scaling::kF16 ? values[0] : values[0] * static_cast<float>(subs[g] - bias);
}

void block_values(const GgufBlock& b, const BlockOut& from, float* out) {
  for (int i = 0; i < b.inputs; ++i) {
    const int g = i / b.group;
    const int v = b.levels8 ? b.levels8[from.codes[i]] : from.codes[i] - b.zero;
    const float x = group_value(b, from.scales, from.subs, g, b.sub_bias) * static_cast<float>(v);
    out[i] = b.has_offset ? x + group_value(b, from.offsets, from.sub_offsets, g, 0) : x;
  }
}

}  // namespace

int64_t gguf_row_bytes(const std::string& type, int k) {
  if (const int bytes = float_bytes(type)) return static_cast<int64_t>(k) * bytes;
  const GgufBlock* b = gguf_block(type);
  return b && k % b->inputs == 0 ? static_cast<int64_t>(k / b->inputs) * b->bytes : 0;
}

bool gguf_affine(const std::string& type, const uint8_t* data, int rows, int k, AffineRows* out) {
  const GgufBlock* b = gguf_block(type);
  if (!b || k % b->inputs != 0) return false;
  out->rows = rows;
  out->k = k;
  out->group = b->group;
  out->zero = b->zero;
  out->bits = b->bits;
  const size_t values = static_cast<size_t>(rows) * static_cast<size_t>(k);
  const size_t groups = values / static_cast<size_t>(b->group);
  const size_t blocks = values / static_cast<size_t>(b->inputs), per_block = groups / blocks;
  const bool subs = b->scaling != Scaling::kF16;
  out->codes.resize(values);
  out->scales.resize(blocks);
  out->offsets.resize(b->has_offset ? blocks : 0);
  out->subs.resize(subs ? groups : 0);
  out->sub_offsets.resize(subs && b->has_offset ? groups : 0);
  for (size_t i = 0; i < blocks; ++i) {
    b->decode(data + i * static_cast<size_t>(b->bytes),
              {out->codes.data() + i * static_cast<size_t>(b->inputs), out->scales.data() + i,
               out->offsets.data() + i, out->subs.data() + i * per_block,
               out->sub_offsets.data() + i * per_block});
  }
  return true;
}

bool gguf_plan(const std::string& type, int n, int k, PackPlan* out) {
  *out = PackPlan{};
  out->n = n;
  out->k = k;
  if (float_bytes(type) != 0) {
    out->code = type == "F32" ? Code::kF32 : type == "F16" ? Code::kF16 : Code::kBf16;
    return true;
  }
  const GgufBlock* b = gguf_block(type);
  if (!b || k % b->inputs != 0) return false;
  out->code = code_for(b->bits);
  out->group = b->group;
  out->zero = b->zero;
  out->scaling = b->scaling;
  out->super_group = b->scaling == Scaling::kF16 ? 0 : b->inputs;
  out->sub_bias = b->sub_bias;
  out->has_offset = b->has_offset;
  if (b->levels8) out->levels8.assign(b->levels8, b->levels8 + 16);
  return true;
}

bool gguf_dequantize(const std::string& type, const uint8_t* data, int rows, int k, float* out) {
  if (float_bytes(type) != 0) {
    widen(type, data, static_cast<int64_t>(rows) * k, out);
    return true;
  }
  const GgufBlock* b = gguf_block(type);
  if (!b || k % b->inputs != 0) return false;
  uint8_t codes[256];
  uint8_t subs[16], sub_offsets[16];
  float scale = 0, offset = 0;
  const BlockOut block = {codes, &scale, &offset, subs, sub_offsets};
  const int64_t blocks = static_cast<int64_t>(rows) * (k / b->inputs);
  for (int64_t i = 0; i < blocks; ++i) {
    b->decode(data + i * b->bytes, block);
    block_values(*b, block, out + i * b->inputs);
  }
  return true;
}

}  // namespace octavo
