// Random arguments of the linear kernels.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "packing.h"
#include "random.h"

// What kernels of one kind take.
struct Kind {
  const char* name;
  vq::Kernel vq::Kernels::*exact;
  vq::Kernel vq::Kernels::*high;  // or null
  vq::Kernel vq::Kernels::*fast;  // or null
  bool packed, along_out, single;
};

inline const Kind kKinds[] = {
    {"lookup_nibbles", &vq::Kernels::lookup_nibbles, &vq::Kernels::lookup_nibbles_high,
     &vq::Kernels::lookup_nibbles_fast, true, false, false},
    {"scalar_nibbles", &vq::Kernels::scalar_nibbles, nullptr, &vq::Kernels::scalar_nibbles_fast,
     true, false, true},
    {"outward_nibbles", &vq::Kernels::outward_nibbles, nullptr, nullptr, true, true, false},
    {"lookup_bytes", &vq::Kernels::lookup_bytes, nullptr, nullptr, false, false, false},
    {"scalar_bytes", &vq::Kernels::scalar_bytes, nullptr, nullptr, false, false, true},
    {"outward_bytes", &vq::Kernels::outward_bytes, nullptr, nullptr, false, true, false},
};

// Arguments and the memory behind them. What lies between the values in use is NaN.
struct Problem {
  Kind kind;
  vq::Linear linear{};    // without an output
  Buffer<uint8_t> codes;  // (stages, rows, subspaces)
  Buffer<int32_t> packed;
  Buffer<float> x, books, scale, bias;
  int64_t groups = 1;

  explicit Problem(Random& random) : kind(kKinds[random.between(0, std::size(kKinds) - 1)]) {
    choose_sizes(random);
    fill_inputs(random);
    fill_books(random);
    fill_codes(random);
    scale = floats(random.one_in(2) ? linear.rows : 0, random);
    bias = floats(random.one_in(2) ? linear.out : 0, random);
    linear.scale = scale.size() > 0 ? scale.data() : nullptr;
    linear.picoseconds = random.one_in(2) ? 1e12 : 0;  // all threads, or one
    linear.bias = bias.size() > 0 ? bias.data() : nullptr;
  }

  std::string text() const {
    char line[300];
    const vq::Books& b = linear.books;
    std::snprintf(line, sizeof line,
                  "%s: batch %lld, in %lld, out %lld, k %lld, dim %lld, stages %lld, group %lld, "
                  "%s, center step %lld, rounding %d, x row %lld step %lld%s%s",
                  kind.name, (long long)linear.batch, (long long)linear.in, (long long)linear.out,
                  (long long)b.k, (long long)b.dim, (long long)b.stages, (long long)linear.group,
                  b.book_step == 0 ? "shared" : "a codebook per subspace", (long long)b.center_step,
                  static_cast<int>(b.rounding), (long long)linear.x_row, (long long)linear.x_step,
                  linear.scale == nullptr ? "" : ", scale", linear.bias == nullptr ? "" : ", bias");
    return line;
  }

 private:
  static constexpr float kGap = std::numeric_limits<float>::quiet_NaN();

  static Buffer<float> floats(int64_t size, Random& random) {
    Buffer<float> buffer(size, random.between(0, 3), 0.0f);
    for (int64_t i = 0; i < size; ++i) buffer[i] = random.normal();
    return buffer;
  }

  void choose_sizes(Random& random) {
    linear.batch = random.size(70);
    linear.in = random.size(300);
    linear.out = random.size(300);
    // Beyond the kernels' tiles, and enough work for several threads.
    if (random.one_in(8)) (random.one_in(2) ? linear.in : linear.out) = random.between(300, 2500);
    linear.rows = kind.along_out ? linear.in : linear.out;
    vq::Books& books = linear.books;
    books.k = random.size(kind.packed ? 16 : 256);
    if (random.one_in(3)) books.k = kind.packed ? 16 : 256;
    books.dim = kind.single ? 1 : random.between(1, 13);
    books.stages = kind.single ? 1 : random.between(1, 3);
    books.rounding = static_cast<vq::Rounding>(random.between(0, 2));
    linear.subspaces = vq::div_up(kind.along_out ? linear.out : linear.in, books.dim);
    linear.group = linear.rows;
    if (kind.single && random.one_in(2)) {
      linear.group = kind.packed ? vq::kLanes * random.size(vq::div_up(linear.rows, vq::kLanes))
                                 : random.size(linear.rows);
      groups = vq::div_up(linear.rows, linear.group);
    }
  }

  void fill_inputs(Random& random) {
    const bool samples_inside = random.one_in(4);
    if (samples_inside) {  // a transposed input
      linear.x_row = 1;
      linear.x_step = linear.batch + random.between(0, 2);
    } else {
      linear.x_step = random.one_in(2) ? 1 : random.between(2, 3);
      linear.x_row = random.one_in(8) ? 0 : linear.in * linear.x_step + random.between(0, 5);
    }
    const int64_t last = (linear.batch - 1) * linear.x_row + (linear.in - 1) * linear.x_step;
    x = Buffer<float>(last + 1, random.between(0, 3), kGap);
    const bool zeros = random.one_in(20);
    for (int64_t b = 0; b < linear.batch; ++b)
      for (int64_t i = 0; i < linear.in; ++i)
        x[b * linear.x_row + i * linear.x_step] = zeros ? 0.0f : random.normal();
    if (random.one_in(10))  // kernels must not make a number of it
      x[random.between(0, linear.batch - 1) * linear.x_row +
        random.between(0, linear.in - 1) * linear.x_step] = std::nanf("");
    linear.x = x.data();
  }

  // Steps as of a tensor (stages, groups, books, k, dim), or of (stages, groups, books, dim, k).
  void fill_books(Random& random) {
    vq::Books& b = linear.books;
    const int64_t owners = !kind.single && random.one_in(2) ? linear.subspaces : 1;
    books = floats(b.stages * groups * owners * b.k * b.dim, random);
    const bool center_inside = random.one_in(2);
    const auto step = [](int64_t size, int64_t of_it) { return size == 1 ? 0 : of_it; };
    b.data = books.data();
    b.center_step = step(b.k, center_inside ? 1 : b.dim);
    b.value_step = step(b.dim, center_inside ? b.k : 1);
    b.book_step = step(owners, b.k * b.dim);
    b.group_step = step(groups, owners * b.k * b.dim);
    b.stage_step = step(b.stages, groups * owners * b.k * b.dim);
  }

  void fill_codes(Random& random) {
    const int64_t size = linear.books.stages * linear.rows * linear.subspaces;
    codes = Buffer<uint8_t>(size, random.between(0, 15), 0);
    const bool damaged = !kind.packed && random.one_in(4);
    for (int64_t i = 0; i < size; ++i)
      codes[i] = static_cast<uint8_t>(
          damaged && random.one_in(50) ? 255 : random.between(0, linear.books.k - 1));
    linear.codes = codes.data();
    if (kind.packed) pack(random);
  }

  // As packing.h describes the layout.
  void pack(Random& random) {
    const int64_t row_blocks = vq::div_up(linear.rows, 16);
    const int64_t column_blocks = vq::div_up(linear.subspaces, 8);
    const int64_t stage = row_blocks * column_blocks * 16;
    packed = Buffer<int32_t>(linear.books.stages * stage, random.between(0, 3), 0);
    for (int64_t i = 0; i < codes.size(); ++i) {
      const int64_t t = i / (linear.rows * linear.subspaces);
      const int64_t row = i / linear.subspaces % linear.rows, s = i % linear.subspaces;
      const int64_t block =
          kind.along_out ? s / 8 * row_blocks + row / 16 : row / 16 * column_blocks + s / 8;
      int32_t& dword = packed[t * stage + block * 16 + row % 16];
      dword =
          static_cast<int32_t>(static_cast<uint32_t>(dword) | uint32_t(codes[i]) << (4 * (s % 8)));
    }
    linear.codes = packed.data();
  }
};
