// Plain C++, for machines without any of the other instruction sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "plain_bytes.h"
#include "plain_words.h"

namespace vq {
namespace {

struct Vec : PlainBytes, PlainWords {
  static constexpr int kWidth = 4;
  static constexpr int kRowBlocks = 1;
  static constexpr int kSamples = 1;

  struct F {
    float v[kWidth];
  };
  struct I {
    uint32_t v[kWidth];
  };
  using Index = I;
  using Table = const float*;

  template <typename Value>
  static F make(Value value) {
    F r;
    for (int i = 0; i < kWidth; ++i) r.v[i] = value(i);
    return r;
  }
  static F zero() { return set1(0); }
  static F set1(float v) {
    return make([=](int) { return v; });
  }
  static F load(const float* p) {
    return make([=](int i) { return p[i]; });
  }
  static void store(float* p, F v) { std::memcpy(p, v.v, sizeof v.v); }
  static F load_part(const float* p, int64_t n) {
    return make([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store_part(float* p, int64_t n, F v) {
    for (int i = 0; i < kWidth && i < n; ++i) p[i] = v.v[i];
  }
  static F add(F a, F b) {
    return make([=](int i) { return a.v[i] + b.v[i]; });
  }
  static F mul(F a, F b) {
    return make([=](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return make([=](int i) { return a.v[i] / b.v[i]; });
  }
  // a where x < y, otherwise b.
  static F select_less(F x, F y, F a, F b) {
    return make([=](int i) { return x.v[i] < y.v[i] ? a.v[i] : b.v[i]; });
  }
  static F fmadd(F a, F b, F c) {
    return make([=](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  // Every other value of a and b.
  static F even(F a, F b) {
    return make([=](int i) { return (i < kWidth / 2 ? a : b).v[2 * i % kWidth]; });
  }
  static F odd(F a, F b) {
    return make([=](int i) { return (i < kWidth / 2 ? a : b).v[2 * i % kWidth + 1]; });
  }
  // a·b + c, rounded once, as the other instruction sets do it.
  static F fused(F a, F b, F c) {
    return make([=](int i) { return fused_one(a.v[i], b.v[i], c.v[i]); });
  }
  static F min(F a, F b) {
    return make([=](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F max(F a, F b) {
    return make([=](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F max_abs(F a, F b) {
    return max(a, make([=](int i) { return std::fabs(b.v[i]); }));
  }
  static float max(F v) { return std::fmax(std::fmax(v.v[0], v.v[1]), std::fmax(v.v[2], v.v[3])); }
  static float sum(F v) { return (v.v[0] + v.v[2]) + (v.v[1] + v.v[3]); }
  static F round_half(F v) {
    return make([=](int i) { return half(v.v[i]); });
  }
  static F round_bfloat(F v) {
    return make([=](int i) {
      // A NaN stays as it is: adding may carry it over to zero.
      if (std::isnan(v.v[i])) return v.v[i];
      uint32_t bits;
      std::memcpy(&bits, &v.v[i], 4);
      bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
      float r;
      std::memcpy(&r, &bits, 4);
      return r;
    });
  }

  static I load_codes(const int32_t* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  template <int kNibble>
  static Index index(I codes) {
    for (uint32_t& v : codes.v) v = v >> (4 * kNibble) & 15;
    return codes;
  }
  static I next_nibble(I codes) {
    for (uint32_t& v : codes.v) v >>= 4;
    return codes;
  }
  static Table table(const float* p) { return p; }
  static F lookup(Table t, Index x) {
    return make([=](int i) { return t[x.v[i]]; });
  }
  // to[i] = the float at nibble i of a dword.
  static void lookup8(Table t, uint32_t nibbles, float* to) {
    for (int i = 0; i < 8; ++i) to[i] = t[nibbles >> (4 * i) & 15];
  }

  // Four bytes of every row.
  struct Bytes {
    uint8_t v[4 * kWidth];
  };
  static I zero_int() { return {}; }
  static F to_float(I v) {
    return make([=](int i) { return static_cast<float>(static_cast<int32_t>(v.v[i])); });
  }
  // The even ones of every row's 8 nibbles.
  static Bytes even_nibbles(I codes) {
    Bytes r;
    for (int i = 0; i < 4 * kWidth; ++i) r.v[i] = codes.v[i / 4] >> (8 * (i % 4)) & 15;
    return r;
  }
  static Bytes table16(const uint8_t* p) {
    Bytes r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static Bytes lookup16(const Bytes& table, Bytes index) {
    for (uint8_t& v : index.v) v = table.v[v];
    return index;
  }
  // Adds the products of every row's four bytes, of 7 bits, with the same four signed ones.
  static I dot_bytes(I sum, const Bytes& values, int32_t four) {
    int8_t factors[4];
    std::memcpy(factors, &four, 4);
    for (int i = 0; i < 4 * kWidth; ++i)
      sum.v[i / 4] += static_cast<uint32_t>(values.v[i] * factors[i % 4]);
    return sum;
  }
  // 16 floats, between -127 and 127, rounded to signed bytes: of each 8 the even ones, then the odd
  // ones. Adds them to `sum`, too.
  static void store_even_odd(int32_t* p, const F* v, I* sum) {
    int8_t bytes[16];
    for (int i = 0; i < 16; ++i) {
      // Adding 1.5 · 2^23 leaves no bits below one: to the nearest, ties to even.
      const auto whole = static_cast<int8_t>((v[i / 4].v[i % 4] + 12582912.0f) - 12582912.0f);
      bytes[i / 8 * 8 + i % 2 * 4 + i % 8 / 2] = whole;
      sum->v[i % kWidth] += static_cast<uint32_t>(whole);
    }
    std::memcpy(p, bytes, sizeof bytes);
  }
  static int32_t sum_int(I v) {
    return static_cast<int32_t>(v.v[0] + v.v[1] + v.v[2] + v.v[3]);
  }

 private:
  // Rounds to odd in double precision, which makes the second rounding right (Boldo & Melquiond
  // 2008); std::fma takes a call, and far longer where the machine lacks the instruction.
  static float fused_one(float a, float b, float c) {
    const double product = double(a) * b, sum = product + c;
    const double rest = sum - product, error = (product - (sum - rest)) + (c - rest);
    uint64_t bits;
    std::memcpy(&bits, &sum, 8);
    if ((error < 0 || error > 0) && bits % 2 == 0)
      bits += (error > 0) == (sum > 0) ? uint64_t{1} : ~uint64_t{0};
    double odd;
    std::memcpy(&odd, &bits, 8);
    return static_cast<float>(odd);
  }
  // To IEEE half precision and back, to the nearest, ties to even.
  static float half(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint32_t sign = bits & 0x80000000u;
    uint32_t size = bits & 0x7fffffffu;
    if (size < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, as the last place of 0.5 is
      const float r = (std::fabs(v) + 0.5f) - 0.5f;
      return sign ? -r : r;
    }
    if (size < 0x7f800000u) {
      size = (size + 0xfff + (size >> 13 & 1)) & ~0x1fffu;
      if (size >= 0x47800000u) size = 0x7f800000u;  // 65520 and more: infinite
    }
    size |= sign;
    float r;
    std::memcpy(&r, &size, 4);
    return r;
  }
};

}  // namespace
}  // namespace vq
