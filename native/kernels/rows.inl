// The rows that every ISA has.

#define OCTAVO_ROW_NAME(what) "linear_" what "_" OCTAVO_ISA_NAME

#define OCTAVO_A8_ROW(what, code, levels, fast, run) \
  {OCTAVO_ROW_NAME("a8_" what), Act::kA8, code, levels, fast, false, run}

#define OCTAVO_PLAIN_A8_ROW(what, code, levels) \
  OCTAVO_A8_ROW(what, code, levels, false, (linear_a8_plain<Wide{code, levels}>))

#define OCTAVO_TILED_A8_ROW(what, code, levels) \
  OCTAVO_A8_ROW(what, code, levels, true, (linear_a8_tiled<Wide{code, levels}>))

// Codebooks whose levels are floats, as integers of 16 bits: few levels, and many.
#define OCTAVO_FEW_LEVELS_A8_ROWS(row)                                                  \
  row("lutw2", Code::kTwo, Levels::kInt16), row("lutw3", Code::kThree, Levels::kInt16), \
      row("lutw4", Code::kNibble, Levels::kInt16)
#define OCTAVO_MANY_LEVELS_A8_ROWS(row)                                                \
  row("lutw5", Code::kFive, Levels::kInt16), row("lutw6", Code::kSix, Levels::kInt16), \
      row("lutw8", Code::kByte, Levels::kInt16)

#define OCTAVO_AFFINE_ROWS(row)                                                       \
  row("w2", Code::kTwo, Levels::kNone), row("w3", Code::kThree, Levels::kNone),       \
      row("w4", Code::kNibble, Levels::kNone), row("w5", Code::kFive, Levels::kNone), \
      row("w6", Code::kSix, Levels::kNone), row("w8", Code::kByte, Levels::kNone)

#define OCTAVO_PLAIN_A8_ROWS                                                               \
  OCTAVO_AFFINE_ROWS(OCTAVO_PLAIN_A8_ROW), OCTAVO_FEW_LEVELS_A8_ROWS(OCTAVO_PLAIN_A8_ROW), \
      OCTAVO_MANY_LEVELS_A8_ROWS(OCTAVO_PLAIN_A8_ROW),                                     \
      OCTAVO_PLAIN_A8_ROW("lut4", Code::kNibble, Levels::kInt8),                           \
      OCTAVO_PLAIN_A8_ROW("lut8", Code::kByte, Levels::kInt8),                             \
      OCTAVO_PLAIN_A8_ROW("t2", Code::kTrellis, Levels::kInt8)

// With hand-written dots; codebooks of more than 16 levels stay plain.
#define OCTAVO_TILED_A8_ROWS                                                               \
  OCTAVO_AFFINE_ROWS(OCTAVO_TILED_A8_ROW), OCTAVO_FEW_LEVELS_A8_ROWS(OCTAVO_TILED_A8_ROW), \
      OCTAVO_MANY_LEVELS_A8_ROWS(OCTAVO_PLAIN_A8_ROW),                                     \
      OCTAVO_TILED_A8_ROW("lut4", Code::kNibble, Levels::kInt8),                           \
      OCTAVO_PLAIN_A8_ROW("lut8", Code::kByte, Levels::kInt8),                             \
      OCTAVO_PLAIN_A8_ROW("t2", Code::kTrellis, Levels::kInt8)

#define OCTAVO_A16_ROW(what, code, levels, fast, run) \
  {OCTAVO_ROW_NAME("a16_" what), Act::kA16, code, levels, fast, false, run}

#define OCTAVO_PLAIN_A16_ROW(what, code, levels) \
  OCTAVO_A16_ROW(what, code, levels, false, (linear_a16_plain<Wide{code, levels}>))

#define OCTAVO_TILED_A16_ROW(what, code, levels) \
  OCTAVO_A16_ROW(what, code, levels, true, (linear_a16_tiled<Wide{code, levels}>))

#define OCTAVO_PLAIN_A16_ROWS                                     \
  OCTAVO_AFFINE_ROWS(OCTAVO_PLAIN_A16_ROW),                       \
      OCTAVO_PLAIN_A16_ROW("lut4", Code::kNibble, Levels::kInt8), \
      OCTAVO_PLAIN_A16_ROW("lut8", Code::kByte, Levels::kInt8),   \
      OCTAVO_PLAIN_A16_ROW("t2", Code::kTrellis, Levels::kInt8)

#define OCTAVO_TILED_A16_ROWS                                     \
  OCTAVO_AFFINE_ROWS(OCTAVO_TILED_A16_ROW),                       \
      OCTAVO_TILED_A16_ROW("lut4", Code::kNibble, Levels::kInt8), \
      OCTAVO_PLAIN_A16_ROW("lut8", Code::kByte, Levels::kInt8),   \
      OCTAVO_PLAIN_A16_ROW("t2", Code::kTrellis, Levels::kInt8)

// Two stored codes of every four.
#define OCTAVO_SPARSE_ROWS(row) \
  row("s4", Code::kSparseNibble, Levels::kNone), row("s8", Code::kSparseByte, Levels::kNone)

// Whole blocks of zeros left out.
#define OCTAVO_TILED_BLOCK_A8_ROW(what, code, levels) \
  OCTAVO_A8_ROW(what, code, levels, true, (linear_blocks_tiled<Wide{code, levels}, 1>))

#define OCTAVO_TILED_BLOCK_A16_ROW(what, code, levels) \
  OCTAVO_A16_ROW(what, code, levels, true, (linear_blocks_tiled<Wide{code, levels}, 2>))

#define OCTAVO_BLOCK_ROWS_OF(row) \
  row("b4", Code::kBlockNibble, Levels::kNone), row("b8", Code::kBlockByte, Levels::kNone)

#define OCTAVO_BLOCK_ROWS \
  OCTAVO_BLOCK_ROWS_OF(OCTAVO_TILED_BLOCK_A8_ROW), OCTAVO_BLOCK_ROWS_OF(OCTAVO_TILED_BLOCK_A16_ROW)

// Weight-only products; `wide`: rows of bf16 are widened to fp32 (abf16). More than 16 float levels
// are looked up by gathers, at 2.5 GB/s: no fast kernel.
#define OCTAVO_GROUP_ROWS(act, name, bits, code, wide, fast, lut_fast)           \
  {OCTAVO_ROW_NAME(name "_w" bits), act, code, Levels::kNone, fast, false,       \
   linear_group<code, wide>},                                                    \
  {                                                                              \
    OCTAVO_ROW_NAME(name "_lut" bits), act, code, Levels::kAny, lut_fast, false, \
        linear_group<code, wide>                                                 \
  }

#define OCTAVO_TRELLIS_ROW(act, name, wide)                                            \
  {OCTAVO_ROW_NAME(name "_t2"),       act, Code::kTrellis, Levels::kAny, false, false, \
   linear_group<Code::kTrellis, wide>}

#define OCTAVO_VALUE_ROW(act, name, code, fast, run) \
  {OCTAVO_ROW_NAME(name), act, code, Levels::kNone, fast, false, run}

#define OCTAVO_FLOAT_ROWS_OF(act, name, wide, fast)                               \
  OCTAVO_GROUP_ROWS(act, name, "2", Code::kTwo, wide, fast, fast),                \
      OCTAVO_GROUP_ROWS(act, name, "3", Code::kThree, wide, fast, fast),          \
      OCTAVO_GROUP_ROWS(act, name, "4", Code::kNibble, wide, fast, fast),         \
      OCTAVO_GROUP_ROWS(act, name, "5", Code::kFive, wide, fast, false),          \
      OCTAVO_GROUP_ROWS(act, name, "6", Code::kSix, wide, fast, false),           \
      OCTAVO_GROUP_ROWS(act, name, "8", Code::kByte, wide, fast, false),          \
      OCTAVO_TRELLIS_ROW(act, name, wide),                                        \
      OCTAVO_VALUE_ROW(act, name "_f16", Code::kF16, fast, linear_float<wide>),   \
      OCTAVO_VALUE_ROW(act, name "_bf16", Code::kBf16, fast, linear_float<wide>), \
      OCTAVO_VALUE_ROW(act, name "_f32", Code::kF32, fast, linear_float<wide>)

#define OCTAVO_FLOAT_ROWS(fast)                          \
  OCTAVO_FLOAT_ROWS_OF(Act::kBf16, "abf16", true, fast), \
      OCTAVO_FLOAT_ROWS_OF(Act::kF32, "a32", false, fast)

// A table of `rows` with the functions of the .inl files.
#define OCTAVO_TABLE(rows)         \
  {OCTAVO_ISA_NAME,                \
   rows,                           \
   sizeof(rows) / sizeof(rows[0]), \
   rms_norm,                       \
   quantize_a8,                    \
   quantize_a16,                   \
   peak,                           \
   quantize_int8,                  \
   peaked,                         \
   round_bf16,                     \
   rope,                           \
   act_mul,                        \
   add,                            \
   scale,                          \
   softcap,                        \
   kv_write,                       \
   kivi_keys,                      \
   attention,                      \
   attention_merge,                \
   argmax,                         \
   sum_exp,                        \
   unpack_row,                     \
   kPeakLoops}
