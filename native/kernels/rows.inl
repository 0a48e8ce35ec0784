// The rows that every ISA has: the plain integer products and the codec path. `fast` marks the
// codec rows that are as good as hand-written (floats need no decoding).

#define OCTAVO_ROW_NAME(what) "linear_" what "_" OCTAVO_ISA_NAME

#define OCTAVO_PLAIN_A8_ROWS                                                     \
  {OCTAVO_ROW_NAME("a8_w4"),    Act::kA8, Code::kNibble, false, false, false,    \
   linear_a8_plain<true, false>},                                                \
      {OCTAVO_ROW_NAME("a8_w8"),     Act::kA8, Code::kByte, false, false, false, \
       linear_a8_plain<false, false>},                                           \
      {OCTAVO_ROW_NAME("a8_lut4"), Act::kA8, Code::kNibble, true, false, false,  \
       linear_a8_plain<true, true>},                                             \
  {                                                                              \
    OCTAVO_ROW_NAME("a8_lut8"), Act::kA8, Code::kByte, true, false, false,       \
        linear_a8_plain<false, true>                                             \
  }

// With hand-written dots; codebooks of bytes stay plain.
#define OCTAVO_TILED_A8_ROWS                                                   \
  {OCTAVO_ROW_NAME("a8_w4"),      Act::kA8, Code::kNibble, false, true, false, \
   linear_a8_tiled<Wide::kNibble>},                                            \
      {OCTAVO_ROW_NAME("a8_lut4"), Act::kA8, Code::kNibble, true, true, false, \
       linear_a8_tiled<Wide::kLut>},                                           \
      {OCTAVO_ROW_NAME("a8_w8"),    Act::kA8, Code::kByte, false, true, false, \
       linear_a8_tiled<Wide::kByte>},                                          \
  {                                                                            \
    OCTAVO_ROW_NAME("a8_lut8"), Act::kA8, Code::kByte, true, false, false,     \
        linear_a8_plain<false, true>                                           \
  }

#define OCTAVO_FLOAT_ROWS_OF(act, name, round, fast)                                                \
  {OCTAVO_ROW_NAME(name "_w4"), act, Code::kNibble, false, false, false, linear_float<round>},      \
      {OCTAVO_ROW_NAME(name "_lut4"), act, Code::kNibble, true, false, false, linear_float<round>}, \
      {OCTAVO_ROW_NAME(name "_w8"), act, Code::kByte, false, false, false, linear_float<round>},    \
      {OCTAVO_ROW_NAME(name "_lut8"), act, Code::kByte, true, false, false, linear_float<round>},   \
      {OCTAVO_ROW_NAME(name "_bf16"), act, Code::kBf16, false, fast, false, linear_float<round>},   \
  {                                                                                                 \
    OCTAVO_ROW_NAME(name "_f32"), act, Code::kF32, false, fast, false, linear_float<round>          \
  }

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
   round_bf16,                     \
   rope,                           \
   act_mul,                        \
   add,                            \
   scale,                          \
   softcap,                        \
   kv_write,                       \
   attention,                      \
   attention_merge,                \
   argmax,                         \
   sum_exp,                        \
   unpack_row}
