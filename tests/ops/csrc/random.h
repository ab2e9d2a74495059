// Random numbers that a seed repeats.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  // Both ends included.
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool one_in(int64_t n) { return between(1, n) == 1; }
  // Small sizes as often as large ones: most edges of kernels lie there.
  int64_t size(int64_t top) {
    const double unit = std::uniform_real_distribution<double>()(engine_);
    return static_cast<int64_t>(std::exp(unit * std::log(static_cast<double>(top) + 0.999)));
  }
  float normal() { return std::normal_distribution<float>()(engine_); }
  uint32_t bits() { return static_cast<uint32_t>(engine_()); }

 private:
  std::mt19937_64 engine_;
};
