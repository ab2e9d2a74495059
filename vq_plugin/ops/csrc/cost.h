// Whether a kernel is faster than the float layer that it replaces.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace vq {

constexpr int64_t kFewSamples = 4;
constexpr int64_t kTogether = 16;

// Of each input and output of a sample, beside what a kernel does with them.
constexpr double kInput = 200, kOutput = 300, kTranspose = 200;

// About how long a kernel takes on one thread.
inline double picoseconds(const Kernel& kernel, const Linear& p) {
  const bool together = p.batch >= kFewSamples && kernel.sixteen.code > 0;
  const Cost& cost = together ? kernel.sixteen : kernel.cost;
  const auto samples =
      static_cast<double>(together ? (p.batch + kTogether - 1) / kTogether * kTogether : p.batch);
  const double centers = double(p.books.stages) * double(p.subspaces);
  const double codes = centers * double(p.rows), dim = double(p.books.dim);
  const double book = double(p.books.k) * dim, values = centers * book;
  // Books are read once, or where kernels take one or sixteen samples at a time, each time.
  const double read = book * (p.books.book_step == 0 ? double(p.books.stages) : centers);
  const double passes = kernel.sixteen.code == 0 ? 1 : together ? samples / kTogether : samples;
  return codes * (samples * (cost.code + dim * cost.weight) + cost.code_once) +
         centers * samples * cost.table +
         values * samples * cost.value + read * passes * cost.value_once +
         samples * (double(p.in) * kInput + double(p.out) * kOutput);
}

// What a call of an operator of ours takes more than one of torch's.
constexpr double kCall = 2.5e6;

// The same of a layer with a kept weight in torch. Few samples are multiplied one by one, more in
// blocks; both take longer where the weight does not stay in a cache. At every pass codebooks are
// read, to see that they are those that the weight was decoded from.
inline double float_picoseconds(const FloatCost& cost, const Linear& p) {
  constexpr double kFar = 1 << 24, kRead = 100;
  const auto samples = static_cast<double>(p.batch);
  const double weights = double(p.in) * double(p.out);
  const double far_away = std::min(weights / kFar, 1.0);
  const double books = p.books.book_step == 0 ? 1.0 : double(p.subspaces);
  const double values = double(p.books.stages) * books * double(p.books.k * p.books.dim);
  const double one_by_one = (cost.one_by_one + cost.one_by_one_far * far_away) * samples;
  const double in_blocks = cost.blocks + cost.blocks_far * far_away +
                           (cost.in_block + cost.in_block_far * far_away) * samples;
  return values * kRead + weights * std::min(one_by_one, in_blocks);
}

}  // namespace vq
