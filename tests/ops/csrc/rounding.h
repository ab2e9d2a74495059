// Rounding to 16-bit floats, from the definition of the formats.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"

// To the nearest, ties to even, as nearbyint does.
inline double rounded(float value, vq::Rounding rounding) {
  if (rounding == vq::Rounding::none || value == 0 || !std::isfinite(value)) return value;
  const bool half = rounding == vq::Rounding::half;
  const int digits = half ? 11 : 8, least = half ? -13 : -125;
  int exponent;
  std::frexp(value, &exponent);
  const double place = std::ldexp(1.0, std::max(exponent, least) - digits);
  const double r = std::nearbyint(value / place) * place;
  const double beyond = half ? 65536.0 : std::ldexp(1.0, 128);
  return std::abs(r) < beyond ? r : std::copysign(std::numeric_limits<double>::infinity(), r);
}
