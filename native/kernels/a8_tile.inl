// A tile of integer products in progress: kPanels panels by kRows rows of activations. Included by
// the dot of each ISA.

template <int kPanels, int kRows>
struct A8Tile {
  const uint8_t* panel[kPanels];
  const int8_t* q[kRows];
  const float* sa[kRows];
  const int32_t* sum[kRows];
  I acc[kPanels][kRows];
  F y[kPanels][kRows];
  I tables[2];  // high and low bytes of levels of 16 bits; `table` is one of them
  I table;      // of a codebook, as the dot of this ISA wants it
  int zero;     // what a code stands above its value
};
