// Four-bit codes in the layout that the kernels read: a dword holds 8 consecutive subspaces of one
// row, the first in its lowest bits, and 16 consecutive rows follow each other.
#pragma once

#include <cstdint>

namespace vq {

constexpr int64_t kLanes = 16;   // rows side by side
constexpr int64_t kNibbles = 8;  // subspaces in a dword

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the dwords of 16 rows and 8 subspaces start. Blocks of one row block follow each other, or
// those of one subspace block, in the order in which the kernels go through them.
struct NibbleLayout {
  int64_t row_blocks, column_blocks;
  bool along_out;

  NibbleLayout(int64_t rows, int64_t subspaces, bool out)
      : row_blocks(div_up(rows, kLanes)),
        column_blocks(div_up(subspaces, kNibbles)),
        along_out(out) {}
  int64_t size() const { return row_blocks * column_blocks * kLanes; }
  int64_t row_step() const { return along_out ? kLanes : column_blocks * kLanes; }
  int64_t column_step() const { return along_out ? row_blocks * kLanes : kLanes; }
};

// codes (rows, subspaces), each below 16 -> dwords; what is missing in the last blocks is 0.
void pack_nibbles(const uint8_t* codes, int64_t rows, int64_t subspaces, bool along_out,
                  int32_t* packed);
void unpack_nibbles(const int32_t* packed, int64_t rows, int64_t subspaces, bool along_out,
                    uint8_t* codes);

}  // namespace vq
