// Scales, offsets and zero points of a group of inputs, 16 rows at a time (core/types.h).

// super * (sub - bias): exact, for a super has 11 significant bits and a sub at most 8.
inline F two_level(const PackedWeight& w, const uint8_t* table, int group, int bias) {
  I sub;
  if (w.scaling == Scaling::kSub8) {
    sub = i_load_u8(table + w.sub_at + 16 * group);
  } else {
    sub = i_and(i_shr(i_load_u8(table + w.sub_at + 16 * (group / 2)), 4 * (group % 2)), i_set1(15));
    if (w.scaling == Scaling::kSub6) {
      const I pairs = i_load_u8(table + w.pair_at + 16 * (group / 4));
      sub = i_or(sub, i_shl(i_and(i_shr(pairs, 2 * (group % 4)), i_set1(3)), 4));
    }
  }
  const uint16_t* supers = reinterpret_cast<const uint16_t*>(table);
  return f_mul(f_load_half(supers + 16 * (group >> w.super_shift)),
               f_of_int(i_sub(sub, i_set1(bias))));
}

inline F table_value(const PackedWeight& w, const uint8_t* table, int group, int bias) {
  if (w.scaling == Scaling::kF16) {
    return f_load_half(reinterpret_cast<const uint16_t*>(table) + 16 * group);
  }
  if (w.scaling == Scaling::kF32) {
    return f_load(reinterpret_cast<const float*>(table) + 16 * group);
  }
  return two_level(w, table, group, bias);
}

inline F scale_of(const PackedWeight& w, const uint8_t* panel, int group) {
  return table_value(w, panel + w.scale_offset, group, w.sub_bias);
}
inline F offset_of(const PackedWeight& w, const uint8_t* panel, int group) {
  return table_value(w, panel + w.offset_offset, group, 0);
}
inline I zero_of(const PackedWeight& w, const uint8_t* panel, int group) {
  return i_load_u8(panel + w.offset_offset + 16 * group);
}
// What an exact integer sum is multiplied by, before the scale of the activations.
inline F a8_scale_of(const PackedWeight& w, const uint8_t* panel, int group) {
  const F s = scale_of(w, panel, group);
  return w.levels16 ? f_mul(s, f_set1(w.level_step)) : s;
}
