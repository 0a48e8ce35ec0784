// bf16 weights times bf16 activations by vdpbf16ps: pairs of inputs ascending, one fp32 sum per
// output in the rounding of the instruction. Four panels at once hide its latency at one row.

inline __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

template <int kPanels, int kRows>
inline void bf16_tile(const PackedWeight& w, const ActView& x, int p, int r, float* y,
                      int64_t ldy) {
  const uint8_t* panel = w.data + static_cast<int64_t>(p) * w.panel_bytes;
  const uint16_t* row = x.bf16 + static_cast<int64_t>(r) * x.k_pad;
  __m512 acc[kPanels][kRows];
  for (int i = 0; i < kPanels; ++i) {
    for (int j = 0; j < kRows; ++j) acc[i][j] = _mm512_setzero_ps();
  }
  for (int k = 0; k < w.k_pad; k += 2) {
    __m512i v[kPanels];
    for (int i = 0; i < kPanels; ++i) {
      const uint8_t* line = panel + i * w.panel_bytes + static_cast<int64_t>(k) * 32;
      if (kRows == 1) _mm_prefetch(reinterpret_cast<const char*>(line + 1024), _MM_HINT_T0);
      v[i] = _mm512_loadu_si512(line);
    }
    for (int j = 0; j < kRows; ++j) {
      int32_t pair;
      __builtin_memcpy(&pair, row + j * static_cast<int64_t>(x.k_pad) + k, 4);
      const __m512bh q = as_bf16(_mm512_set1_epi32(pair));
      for (int i = 0; i < kPanels; ++i) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], as_bf16(v[i]), q);
    }
  }
  for (int i = 0; i < kPanels; ++i) {
    for (int j = 0; j < kRows; ++j) {
      _mm512_storeu_ps(y + (r + j) * ldy + 16 * (p + i), acc[i][j]);
    }
  }
}

template <int kPanels, int kMost>
inline void bf16_rows(const PackedWeight& w, const ActView& x, int m, int p, float* y,
                      int64_t ldy) {
  int r = 0;
  for (; r + kMost <= m; r += kMost) bf16_tile<kPanels, kMost>(w, x, p, r, y, ldy);
  for (; r < m; ++r) bf16_tile<kPanels, 1>(w, x, p, r, y, ldy);
}

inline void linear_bf16(const PackedWeight& w, const ActView& x, int m, float* y, int64_t ldy,
                        int p0, int p1) {
  int p = p0;
  for (; p + 4 <= p1; p += 4) bf16_rows<4, 4>(w, x, m, p, y, ldy);
  for (; p < p1; ++p) bf16_rows<1, 4>(w, x, m, p, y, ldy);
}
