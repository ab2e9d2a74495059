// Look-ups among 256 floats, one by one.
#pragma once

#include <cstdint>
#include <cstring>

namespace vq {
namespace {

struct PlainBytes {
  struct Table256 {
    float values[256];
  };
  static void load_table256(const float* from, bool, Table256* to) {
    std::memcpy(to->values, from, sizeof to->values);
  }
  // to[i] = the float at codes[i] for n codes, with zeros up to a multiple of 16.
  static void lookup256(const Table256& table, const uint8_t* codes, int64_t n, float* to) {
    int64_t i = 0;
    // Eight codes of one load: compilers would make gathers of the plain loop, which are slower.
    for (; i + 8 <= n; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, codes + i, 8);
      for (int j = 0; j < 8; ++j) to[i + j] = table.values[eight >> (8 * j) & 255];
    }
    for (; i < n; ++i) to[i] = table.values[codes[i]];
    for (; i % 16 != 0; ++i) to[i] = 0.0f;
  }
};

}  // namespace
}  // namespace vq
