// Random k-means problems: every instruction set gives the same bytes, and codes are the nearest.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "bits.h"
#include "buffer.h"
#include "fit.h"
#include "fit_scalar.h"
#include "fit_sweep.h"
#include "kernels.h"
#include "random.h"

namespace fits {

inline int fail(int number, const char* what) {
  std::printf("problem %d: %s\n", number, what);
  return 1;
}

struct Book {
  explicit Book(Random& random)
      : n(random.size(300)),
        dim(random.size(20)),
        k(random.size(40)),
        trials(random.between(1, 4)),
        x(n * dim, 0, 0.0f),
        weight(random.one_in(2) ? n * dim : 0, 0, 0.0f),
        mass(n, 0, 1.0f),
        draws((k - 1) * trials, 0, 0.0),
        first(0.5) {
    const bool few = random.one_in(4);  // distinct points, so that centers run empty
    for (int64_t i = 0; i < x.size(); ++i)
      x[i] = few ? static_cast<float>(random.between(0, 1)) : random.normal();
    for (int64_t i = 0; i < weight.size(); ++i)
      weight[i] = static_cast<float>(random.between(1, 1000)) / 1000;
    for (int64_t i = 0; i < draws.size(); ++i) draws[i] = random.between(0, 999) / 1000.0;
  }

  vq::Points points() const {
    return {n, dim, x.data(), dim, 1, weight.size() ? weight.data() : nullptr, dim, 1};
  }
  double distance(int64_t i, const float* center) const {
    double sum = 0;
    for (int64_t j = 0; j < dim; ++j) {
      const double d = double(x[i * dim + j]) - center[j];
      sum += d * d * (weight.size() ? weight[i * dim + j] : 1.0f);
    }
    return sum;
  }

  int64_t n, dim, k, trials;
  Buffer<float> x, weight, mass;
  Buffer<double> draws;
  double first;
};

struct Fitted {
  explicit Fitted(const Book& book)
      : centers(book.k * book.dim, 0, 0.0f),
        codes(book.n, 0, uint8_t{0}),
        nearest(book.n, 0, uint8_t{0}),
        distance(book.n, 0, 0.0f),
        moved(book.n, 0, uint8_t{0}) {}

  bool same(const Fitted& other) const {
    const auto equal = [](const auto& a, const auto& b) {
      return std::equal(a.data(), a.data() + a.size(), b.data());
    };
    return equal(centers, other.centers) && equal(codes, other.codes) &&
           equal(nearest, other.nearest) && equal(distance, other.distance) &&
           equal(moved, other.moved);
  }

  Buffer<float> centers;
  Buffer<uint8_t> codes, nearest;
  Buffer<float> distance;
  Buffer<uint8_t> moved;
};

inline Fitted fit(const vq::FitKernels& kernels, const Book& book) {
  const vq::Points points = book.points();
  Fitted result(book);
  const vq::Draws draws{book.first, book.draws.data(), book.trials, book.trials};
  vq::seed(kernels, points, book.mass.data(), book.k, draws, result.centers.data());
  vq::lloyd(kernels, points, book.k, 20, 1e-4, result.centers.data(), result.codes.data());
  vq::assign(kernels, points, book.k, result.centers.data(), result.nearest.data(),
             result.distance.data());
  std::copy_n(result.codes.data(), book.n, result.moved.data());
  vq::exchange(kernels, points, book.k, 3, result.moved.data());
  return result;
}

inline int check_book(const std::vector<const vq::Kernels*>& isas, int number) {
  Random random(static_cast<uint64_t>(number) + 1);
  const Book book(random);
  const Fitted first = fit(*isas.front()->fit, book);
  for (int64_t i = 0; i < book.n; ++i) {
    double least = book.distance(i, first.centers.data());
    for (int64_t c = 1; c < book.k; ++c)
      least = std::min(least, book.distance(i, first.centers.data() + c * book.dim));
    const double own = book.distance(i, first.centers.data() + first.nearest[i] * book.dim);
    const double slack = 1e-4 * (1 + least);
    if (own > least + slack) return fail(number, "a code is not the nearest center's");
    if (first.distance[i] > least + slack || first.distance[i] < least - slack)
      return fail(number, "a distance is wrong");
    if (first.moved[i] >= book.k) return fail(number, "the exchange gives no code");
  }
  for (const vq::Kernels* kernels : isas)
    if (!fit(*kernels->fit, book).same(first)) return fail(number, kernels->name);
  return 0;
}

inline int check_scalar(const std::vector<const vq::Kernels*>& isas, int number) {
  Random random(static_cast<uint64_t>(number) + 1);
  const int64_t n = random.size(500), count = random.between(0, 255);
  Buffer<float> values(n, 0, 0.0f), boundaries(count, 0, 0.0f);
  Buffer<uint8_t> codes(n, 0, uint8_t{0});
  const float spread = random.one_in(3) ? 1e-4f : 1.0f;  // several boundaries in a bin
  for (int64_t i = 0; i < n; ++i) values[i] = random.normal();
  for (int64_t i = 0; i < count; ++i) boundaries[i] = random.normal() * (i ? spread : 1.0f);
  std::sort(boundaries.data(), boundaries.data() + count);
  for (const vq::Kernels* kernels : isas) {
    vq::count_below(*kernels->fit, values.data(), n, boundaries.data(), count, codes.data());
    for (int64_t i = 0; i < n; ++i) {
      const float *begin = boundaries.data(), *end = begin + count;
      if (codes[i] != std::lower_bound(begin, end, values[i]) - begin)
        return fail(number, "a scalar code is wrong");
    }
  }
  return 0;
}

// A sweep in which inputs count only at themselves: every choice is the nearest center.
inline int check_sweep(const std::vector<const vq::Kernels*>& isas, int number) {
  Random random(static_cast<uint64_t>(number) + 1);
  vq::Block b{};
  b.along_out = random.one_in(2), b.dim = random.size(9), b.steps = random.size(6);
  b.k = random.size(40), b.stages = random.one_in(3) ? random.between(2, 3) : 1;
  const int64_t points = random.size(90);
  b.outputs = b.along_out ? points * b.dim : points;
  b.padding = b.along_out ? random.between(0, b.dim - 1) : 0;
  b.per_step = random.between(0, 1), b.rows = random.size(points), b.first = random.between(0, 5);
  b.books = (b.steps - 1) * b.per_step + (b.first + points - 1) / b.rows + 1;
  const int64_t inputs = b.inputs(), size = b.size();
  Buffer<float> inner(inputs * inputs, 0, 0.0f), pull(inputs * b.outputs, 0, 0.0f),
      base(inputs * b.outputs, 0, 0.0f), inverse(b.steps * size * size, 0, 0.0f),
      centers(b.stages * b.books * b.k * b.dim, 0, 0.0f);
  for (int64_t s = 0; s < b.steps; ++s)
    for (int64_t i = 0; i < size; ++i) inverse[(s * size + i) * size + i] = 1;
  for (int64_t i = 0; i < base.size(); ++i) base[i] = random.normal(), pull[i] = random.normal();
  for (int64_t i = 0; i < centers.size(); ++i) centers[i] = random.normal();
  Buffer<uint8_t> before(b.stages * b.steps * points, 0, uint8_t{0});
  b.inner = inner.data(), b.pull = pull.data(), b.base = base.data(), b.inverse = inverse.data();
  b.centers = b.scored = centers.data(), b.before = before.data();
  Buffer<uint8_t> first(before.size(), 0, uint8_t{0}), codes(before.size(), 0, uint8_t{0});
  Buffer<float> change(base.size(), 0, 0.0f);
  for (const vq::Kernels* kernels : isas) {
    vq::sweep_block(*kernels->fit, b, codes.data(), change.data());
    if (kernels == isas.front()) std::copy_n(codes.data(), codes.size(), first.data());
    if (!std::equal(codes.data(), codes.data() + codes.size(), first.data()))
      return fail(number, kernels->name);
  }
  for (int64_t at = 0; b.stages == 1 && at < codes.size(); ++at) {
    const int64_t s = at / points, p = at % points;
    const float* table = centers.data() + (s * b.per_step + (b.first + p) / b.rows) * b.k * b.dim;
    const auto distance = [&](int64_t c) {
      double sum = 0;
      for (int64_t j = 0; j < b.dim; ++j) {
        const int64_t output = b.along_out ? p * b.dim + j : p;
        const int64_t place = (s * size + (b.along_out ? 0 : j)) * b.outputs + output;
        const double d = double(base[place]) + pull[place] - table[c * b.dim + j];
        if (!b.along_out || output < b.outputs - b.padding) sum += d * d;
      }
      return sum;
    };
    for (int64_t c = 0; c < b.k; ++c)
      if (distance(codes[at]) > distance(c) + 1e-4 * (1 + distance(c)))
        return fail(number, "a sweep's code is not the nearest center's");
  }
  return 0;
}

inline int check_bits(int number) {
  Random random(static_cast<uint64_t>(number) + 1);
  const int64_t n = random.size(200) - 1, bits = random.between(1, 8);
  Buffer<uint8_t> codes(n, 0, uint8_t{0}), back(n, 0, uint8_t{0});
  Buffer<uint8_t> packed(vq::bytes_of(n, bits), 0, uint8_t{0xff});
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(random.bits() % (1u << bits));
  vq::pack_bits(codes.data(), n, bits, packed.data());
  vq::unpack_bits(packed.data(), n, bits, back.data());
  for (int64_t i = 0; i < n; ++i) {
    unsigned code = 0;
    for (int64_t b = 0; b < bits; ++b)
      code |= (packed[(i * bits + b) / 8] >> ((i * bits + b) % 8) & 1u) << b;
    if (code != codes[i] || back[i] != codes[i]) return fail(number, "a packed code is wrong");
  }
  return 0;
}

inline int check(const std::vector<const vq::Kernels*>& isas, int number) {
  return check_book(isas, number) + check_scalar(isas, number) + check_sweep(isas, number) +
         check_bits(number);
}

}  // namespace fits
