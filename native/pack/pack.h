// From rows as stored to panels. Pure, block by block; `unpack_row` is the inverse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/types.h"

namespace octavo {

// What a source row range becomes before packing: the affine view of formats/quantized.py. With
// group >= k there is one scale a row.
struct AffineRows {
  int rows = 0, k = 0, group = 0, zero = 0, bits = 8;
  std::vector<uint8_t> codes;  // [rows][k]
  std::vector<float> scales;   // [rows][k / group]
  std::vector<float> offsets;  // [rows][k / group] or empty
  std::vector<uint8_t> zeros;  // [rows][k / group] zero points, or empty
  // Two levels: scales and offsets are the supers, [rows][k / super_group]; these [rows][k /
  // group].
  std::vector<uint8_t> subs, sub_offsets;
};

// The smallest code that holds `bits` bits (codes keep their values).
Code code_for(int bits);

// Describes the panels of a weight before any row is known. `scaling`
// kF32: some scale is not an fp16 value; kSub*: two levels, whose subs fit in 4, 6 or 8 bits, with
// a power of two of groups to a super_group.
struct PackPlan {
  int n = 0, k = 0;
  Code code = Code::kF32;
  int group = 0, zero = 0;
  Scaling scaling = Scaling::kF16;
  bool has_offset = false, has_zero = false;
  int super_group = 0, sub_bias = 0;
  // Codebooks: 16 entries for codes of up to 4 bits, else 256 (filled up with zeros), or none.
  std::vector<int8_t> levels8;
  std::vector<float> levels;
  std::vector<int8_t> levels16;  // see set_levels16
  float level_step = 1;
  // See set_blocks.
  std::vector<uint8_t> blocks;
  std::vector<int64_t> units_before;
};

// For kBlock*: which blocks of 16 rows by 32 inputs are there, a bit each from the lowest on,
// [n / 16][k / 32 bits in whole bytes]. std::invalid_argument when n and k aren't whole blocks, the
// bytes aren't as many, or the plan isn't symmetric.
void set_blocks(PackPlan* plan, const std::vector<uint8_t>& mask);

// For a8: the levels of a float codebook as integers times `step`. std::invalid_argument when there
// are not as many as the plan's code has, or one is beyond -32639..32639.
void set_levels16(PackPlan* plan, const std::vector<int>& levels, float step);

int64_t packed_bytes(const PackPlan& plan);  // panels, 64-byte aligned
// Fills the view (pointers into `data`, level tables inside `plan`, which must outlive it).
PackedWeight packed_view(const PackPlan& plan, uint8_t* data);

// Writes rows [row0, row0 + rows.rows) into the panels, padded inputs included. Row ranges may come
// in any order, from several threads if they don't overlap; padding rows and the gaps between
// panels are cleared by `clear_padding`, once. std::invalid_argument for a code that isn't zero and
// has no place (kSparse*, kBlock*).
void pack_affine(const PackPlan& plan, uint8_t* data, int row0, const AffineRows& rows);
void pack_f32(const PackPlan& plan, uint8_t* data, int row0, int rows,
              const float* w);  // kF32, kF16, kBf16
void clear_padding(const PackPlan& plan, uint8_t* data);

// GGUF blocks -> affine rows (exact). type: "Q4_0" ... "IQ4_XS". Returns false for an unknown type.
bool gguf_affine(const std::string& type, const uint8_t* data, int rows, int k, AffineRows* out);
// The plan (code, group, zero, scale type, levels) a GGUF type packs to.
bool gguf_plan(const std::string& type, int n, int k, PackPlan* out);
// "F32", "F16", "BF16" rows to fp32; every other GGUF type dequantized.
bool gguf_dequantize(const std::string& type, const uint8_t* data, int rows, int k, float* out);
int64_t gguf_row_bytes(const std::string& type, int k);

// Round to nearest, bit-equal to octavo.formats (rounding.py states the arithmetic): w [rows][k]
// fp32, finite, to codes and scales per `group` inputs (group >= k: per channel). convention:
// "absmax", "full", "signed", "no_clip" (symmetric: zero = 2^(bits-1)) or "minmax" (an integer zero
// point per group). Scales are rounded to
// fp16 before the codes are computed unless scale_f32; one beyond fp16's range becomes infinite (to
// be checked by the caller). False: no such convention, or bits not in 2..8.
bool encode_rtn(const float* w, int rows, int k, int group, int bits, const std::string& convention,
                bool scale_f32, AffineRows* out);

}  // namespace octavo
