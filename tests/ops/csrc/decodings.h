// Random weights written out from their codes: the bytes of the definition, on every instruction
// set and however many threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "packing.h"
#include "random.h"
#include "rounding.h"

namespace decodings {

class Problem {
 public:
  explicit Problem(Random& random) {
    p_.packed = random.one_in(2);
    p_.along_out = random.one_in(2);
    vq::Books& books = p_.books;
    books.dim = random.one_in(3) ? 1 : random.between(1, 20);
    books.stages = random.one_in(2) ? 1 : random.between(1, 3);
    const int64_t most = p_.packed ? 16 : 256;
    books.k = random.one_in(2) ? most : random.size(most);
    books.rounding = static_cast<vq::Rounding>(random.between(0, 2));
    p_.rows = random.size(random.one_in(8) ? 1500 : 100);
    p_.length = random.size(random.one_in(8) ? 5000 : 300);
    p_.subspaces = vq::div_up(p_.length, books.dim);
    p_.group = random.one_in(2) ? p_.rows : random.size(p_.rows);
    p_.picoseconds = random.one_in(2) ? 1e12 : 0;  // all threads, or one
    fill_books(random);
    fill_codes(random);
    if (random.one_in(2)) scale_ = normal(p_.rows, random);
    p_.scale = scale_.size() > 0 ? scale_.data() : nullptr;
  }

  // On a thread of its own: what kernels keep from call to call has its exact size then.
  Buffer<float> run(const vq::Kernels& kernels, const vq::Pool& pool) const {
    Buffer<float> weight(p_.rows * p_.length, 1, std::nanf(""));
    vq::Decoding p = p_;
    p.weight = weight.data();
    std::thread([&] { kernels.decode(p, pool); }).join();
    return weight;
  }

  // Whether the bytes are those of the definition, but for codes beyond the codebook.
  bool solved_by(const Buffer<float>& weight) const {
    const vq::Books& b = p_.books;
    for (int64_t r = 0; r < p_.rows; ++r) {
      for (int64_t i = 0; i < p_.length; ++i) {
        float expected = 0;
        bool damaged = false;
        for (int64_t t = 0; t < b.stages; ++t) {
          const int64_t s = i / b.dim, code = codes_[(t * p_.rows + r) * p_.subspaces + s];
          damaged = damaged || code >= b.k;
          if (damaged) break;
          const double center =
              rounded(b.data[t * b.stage_step + r / p_.group * b.group_step + s * b.book_step +
                             code * b.center_step + i % b.dim * b.value_step],
                      b.rounding);
          expected = t == 0 ? static_cast<float>(center) : expected + static_cast<float>(center);
        }
        if (p_.scale != nullptr) expected *= p_.scale[r];
        const float& found = weight[p_.along_out ? i * p_.rows + r : r * p_.length + i];
        if (!damaged && std::memcmp(&found, &expected, sizeof found) != 0) return false;
      }
    }
    return true;
  }

  void print() const {
    const vq::Books& b = p_.books;
    std::printf("  %lld x %lld, dim %lld, k %lld, stages %lld, group %lld, rounding %d%s%s%s%s\n",
                (long long)p_.rows, (long long)p_.length, (long long)b.dim, (long long)b.k,
                (long long)b.stages, (long long)p_.group, static_cast<int>(b.rounding),
                p_.packed ? ", packed" : "", p_.along_out ? ", along out" : "",
                b.book_step == 0 ? ", shared" : "", p_.scale == nullptr ? "" : ", scale");
  }

 private:
  static Buffer<float> normal(int64_t size, Random& random) {
    Buffer<float> buffer(size, random.between(0, 3), 0.0f);
    for (int64_t i = 0; i < size; ++i) buffer[i] = random.normal();
    return buffer;
  }

  // Steps as of a tensor (stages, groups, books, k, dim), or of (stages, groups, books, dim, k).
  void fill_books(Random& random) {
    vq::Books& b = p_.books;
    const int64_t groups = vq::div_up(p_.rows, p_.group);
    const bool few = groups * p_.subspaces * b.stages * b.k * b.dim < 1 << 18;
    const int64_t owners = few && random.one_in(2) ? p_.subspaces : 1;
    books_ = normal(b.stages * groups * owners * b.k * b.dim, random);
    const bool center_inside = random.one_in(4);
    const auto step = [](int64_t size, int64_t of_it) { return size == 1 ? 0 : of_it; };
    b.data = books_.data();
    b.center_step = step(b.k, center_inside ? 1 : b.dim);
    b.value_step = step(b.dim, center_inside ? b.k : 1);
    b.book_step = step(owners, b.k * b.dim);
    b.group_step = step(groups, owners * b.k * b.dim);
    b.stage_step = step(b.stages, groups * owners * b.k * b.dim);
  }

  void fill_codes(Random& random) {
    const int64_t size = p_.rows * p_.subspaces, most = p_.packed ? 15 : 255;
    codes_ = Buffer<uint8_t>(p_.books.stages * size, random.between(0, 15), 0);
    const bool damaged = random.one_in(4);
    for (int64_t i = 0; i < codes_.size(); ++i)
      codes_[i] = static_cast<uint8_t>(
          random.between(0, damaged && random.one_in(50) ? most : p_.books.k - 1));
    p_.codes = codes_.data();
    if (!p_.packed) return;
    const vq::NibbleLayout layout(p_.rows, p_.subspaces, p_.along_out);
    dwords_ = Buffer<int32_t>(p_.books.stages * layout.size(), random.between(0, 3), 0);
    for (int64_t t = 0; t < p_.books.stages; ++t)
      vq::pack_nibbles(codes_.data() + t * size, p_.rows, p_.subspaces, p_.along_out,
                       dwords_.data() + t * layout.size());
    p_.codes = dwords_.data();
  }

  vq::Decoding p_{};
  Buffer<uint8_t> codes_;  // (stages, rows, subspaces)
  Buffer<int32_t> dwords_;
  Buffer<float> books_, scale_;
};

// How many of the instruction sets fail.
inline int check(const std::vector<const vq::Kernels*>& isas, const vq::Pool& pool, int number) {
  Random random(static_cast<uint64_t>(number));
  const Problem problem(random);
  int wrong = 0;
  for (const vq::Kernels* kernels : isas) {
    if (problem.solved_by(problem.run(*kernels, {1, pool.run})) &&
        problem.solved_by(problem.run(*kernels, pool)))
      continue;
    std::printf("%s decode, problem %d:\n", kernels->name, number);
    problem.print();
    ++wrong;
  }
  return wrong;
}

}  // namespace decodings
