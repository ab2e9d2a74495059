// Random convolutions on codes: sums in double precision, the same bits on every instruction set and
// however many threads, nothing read or written beyond.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "packing.h"
#include "random.h"
#include "rounding.h"

namespace convolutions {

class Problem {
 public:
  explicit Problem(Random& random) {
    c_.images = random.between(1, 2);
    c_.groups = random.one_in(3) ? random.between(2, 3) : 1;
    channels_ = random.size(60);
    c_.in = c_.groups * channels_;
    c_.out = c_.groups * (c_.groups > 1 ? 16 * random.between(1, 2) : random.size(70));
    for (int i = 0; i < 3; ++i) {
      const bool there = i == 0 || random.one_in(2);
      c_.kernel[i] = there ? random.between(1, 3) : 1;
      c_.stride[i] = there ? random.between(1, 3) : 1;
      c_.padding[i] = there ? random.between(0, 3) : 0;
      c_.dilation[i] = there ? random.between(1, 2) : 1;
      const int64_t reach = c_.dilation[i] * (c_.kernel[i] - 1) + 1;
      // Now and then more lines than a strip has.
      const int64_t most = !there ? 1 : i == 0 && random.one_in(20) ? 1500 : 7;
      c_.size[i] = std::max(random.size(most), reach - 2 * c_.padding[i]);
      c_.places[i] = (c_.size[i] + 2 * c_.padding[i] - reach) / c_.stride[i] + 1;
    }
    c_.channels_last = random.one_in(2);
    c_.picoseconds = random.one_in(2) ? 1e12 : 0;  // all threads, or one
    vq::Books& books = c_.books;
    books.dim = random.between(1, 9);
    books.stages = random.one_in(4) ? 2 : 1;
    books.k = random.one_in(2) ? 16 : random.size(16);
    books.rounding = static_cast<vq::Rounding>(random.between(0, 2));
    pieces_ = vq::div_up(channels_, books.dim);
    positions_ = c_.kernel[0] * c_.kernel[1] * c_.kernel[2];
    fill(random);
    for (int64_t image = 0; image < c_.images; ++image)
      for (int64_t o = 0; o < c_.out; ++o)
        for (int64_t place = 0; place < places(); ++place)
          expected_.push_back(sum(image, o, place));
  }

  // On a thread of its own: what kernels keep from call to call has its exact size then.
  Buffer<float> run(const vq::ConvolutionKernel& kernel, const vq::Pool& pool) const {
    Buffer<float> y(c_.images * c_.out * places(), 1, std::nanf(""));
    vq::Convolution c = c_;
    c.y = y.data();
    std::thread([&] { kernel.run(c, pool); }).join();
    return y;
  }

  // Whether values are the definition's within `error` of the size of what is added up.
  bool solved_by(const Buffer<float>& y, double error) const {
    const Sum* expected = expected_.data();
    for (int64_t image = 0; image < c_.images; ++image)
      for (int64_t o = 0; o < c_.out; ++o)
        for (int64_t place = 0; place < places(); ++place, ++expected) {
          const float found = y[c_.channels_last ? (image * places() + place) * c_.out + o
                                                 : (image * c_.out + o) * places() + place];
          if (std::isfinite(expected->value) ? std::abs(found - expected->value) >
                                                   error * expected->size + 1e-30
                                             : std::isfinite(found))
            return false;
        }
    return true;
  }

  void print() const {
    std::printf(
        "  %lld images, %lld -> %lld channels, %lld groups, %lldx%lldx%lld, kernel "
        "%lldx%lldx%lld, dim %lld, k %lld, stages %lld%s%s\n",
        (long long)c_.images, (long long)c_.in, (long long)c_.out, (long long)c_.groups,
        (long long)c_.size[0], (long long)c_.size[1], (long long)c_.size[2],
        (long long)c_.kernel[0], (long long)c_.kernel[1], (long long)c_.kernel[2],
        (long long)c_.books.dim, (long long)c_.books.k, (long long)c_.books.stages,
        c_.channels_last ? ", channels last" : "", c_.books.book_step == 0 ? ", shared" : "");
  }

 private:
  struct Sum {
    double value, size;
  };

  int64_t places() const { return c_.places[0] * c_.places[1] * c_.places[2]; }

  Sum sum(int64_t image, int64_t o, int64_t place) const {
    const int64_t at[3] = {place / c_.places[2] / c_.places[1], place / c_.places[2] % c_.places[1],
                           place % c_.places[2]};
    const int64_t group = o / (c_.out / c_.groups), all = c_.size[0] * c_.size[1] * c_.size[2];
    double value = 0, size = 0, largest = 0;
    for (int64_t p = 0; p < positions_; ++p) {
      const int64_t k[3] = {p / c_.kernel[2] / c_.kernel[1], p / c_.kernel[2] % c_.kernel[1],
                            p % c_.kernel[2]};
      int64_t from = 0;
      bool inside = true;
      for (int i = 0; i < 3; ++i) {
        const int64_t x = at[i] * c_.stride[i] - c_.padding[i] + k[i] * c_.dilation[i];
        inside = inside && x >= 0 && x < c_.size[i];
        from = from * c_.size[i] + x;
      }
      if (!inside) continue;
      for (int64_t j = 0; j < channels_; ++j) {
        const int64_t channel = group * channels_ + j;
        const double x = x_[c_.channels_last ? (image * all + from) * c_.in + channel
                                             : (image * c_.in + channel) * all + from];
        for (int64_t t = 0; t < c_.books.stages; ++t) {
          const double product = x * center(t, o, p, j);
          value += product;
          size += std::abs(product);
          largest = std::max(largest, std::abs(x));
        }
      }
    }
    // A step is a part of what any code of a place may add.
    size += largest * widest_ * static_cast<double>(channels_ * positions_ * c_.books.stages);
    const double scale = scale_.size() > 0 ? scale_[o] : 1.0;
    const double bias = bias_.size() > 0 ? bias_[o] : 0.0;
    return {value * scale + bias, size * std::abs(scale) + std::abs(bias)};
  }

  double center(int64_t t, int64_t o, int64_t position, int64_t channel) const {
    const vq::Books& b = c_.books;
    const int64_t piece = channel / b.dim;
    const int64_t code = codes_[(t * c_.out + o) * positions_ * pieces_ + position * pieces_ + piece];
    return rounded(b.data[t * b.stage_step + piece * b.book_step + code * b.center_step +
                          channel % b.dim * b.value_step],
                   b.rounding);
  }

  static Buffer<float> normal(int64_t size, Random& random) {
    Buffer<float> buffer(size, random.between(0, 3), 0.0f);
    for (int64_t i = 0; i < size; ++i) buffer[i] = random.normal();
    return buffer;
  }

  void fill(Random& random) {
    vq::Books& b = c_.books;
    const int64_t owners = random.one_in(2) ? pieces_ : 1;
    books_ = normal(b.stages * owners * b.k * b.dim, random);
    for (int64_t i = 0; i < books_.size(); ++i)
      widest_ = std::max(widest_, std::abs(rounded(books_[i], b.rounding)));
    b.data = books_.data();
    b.value_step = 1;
    b.center_step = b.dim;
    b.book_step = owners == 1 ? 0 : b.k * b.dim;
    b.stage_step = owners * b.k * b.dim;
    const int64_t subspaces = positions_ * pieces_;
    codes_ = Buffer<uint8_t>(b.stages * c_.out * subspaces, 0, 0);
    for (int64_t i = 0; i < codes_.size(); ++i)
      codes_[i] = static_cast<uint8_t>(random.between(0, b.k - 1));
    const vq::NibbleLayout layout(c_.out, subspaces, false);
    dwords_ = Buffer<int32_t>(b.stages * layout.size(), random.between(0, 3), 0);
    for (int64_t t = 0; t < b.stages; ++t)
      vq::pack_nibbles(codes_.data() + t * c_.out * subspaces, c_.out, subspaces, false,
                       dwords_.data() + t * layout.size());
    c_.codes = dwords_.data();
    x_ = normal(c_.images * c_.in * c_.size[0] * c_.size[1] * c_.size[2], random);
    const bool relu = random.one_in(2), odd = random.one_in(4);
    for (int64_t i = 0; relu && i < x_.size(); ++i) x_[i] = std::max(x_[i], 0.0f);
    if (odd) {
      constexpr float kOdd[] = {1e9f, 1e30f, 1e-30f, std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()};
      x_[random.between(0, x_.size() - 1)] = kOdd[random.between(0, 4)];
    }
    c_.x = x_.data();
    if (random.one_in(2)) scale_ = normal(c_.out, random);
    if (random.one_in(2)) bias_ = normal(c_.out, random);
    c_.scale = scale_.size() > 0 ? scale_.data() : nullptr;
    c_.bias = bias_.size() > 0 ? bias_.data() : nullptr;
  }

  vq::Convolution c_{};
  int64_t channels_, pieces_, positions_;
  double widest_ = 0;
  Buffer<float> books_, x_, scale_, bias_;
  Buffer<uint8_t> codes_;  // (stages, out, positions · pieces)
  Buffer<int32_t> dwords_;
  std::vector<Sum> expected_;  // (images, out, places): the same of every kernel
};

inline bool same_bits(const Buffer<float>& a, const Buffer<float>& b) {
  for (int64_t i = 0; i < a.size(); ++i)
    if (!(std::isnan(a[i]) && std::isnan(b[i])) && std::memcmp(&a[i], &b[i], sizeof a[i]) != 0)
      return false;
  return true;
}

// How many of the instruction sets and precisions fail.
inline int check(const std::vector<const vq::Kernels*>& isas, const vq::Pool& pool, int number) {
  constexpr double kErrors[] = {2e-6, 1e-4, 2e-2};
  Random random(static_cast<uint64_t>(number));
  const Problem problem(random);
  int wrong = 0;
  for (int precision = 0; precision < 3; ++precision) {
    Buffer<float> first;
    for (const vq::Kernels* kernels : isas) {
      const vq::ConvolutionKernel& kernel = kernels->convolve[precision];
      Buffer<float> y = problem.run(kernel, {1, pool.run});
      if (first.size() == 0) first = problem.run(kernel, pool);
      if (problem.solved_by(y, kErrors[precision]) && same_bits(y, first) &&
          same_bits(y, problem.run(kernel, pool)))
        continue;
      std::printf("%s convolution, precision %d, problem %d:\n", kernels->name, precision, number);
      problem.print();
      ++wrong;
    }
  }
  return wrong;
}

}  // namespace convolutions
