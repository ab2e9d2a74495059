// y = x · W^T + bias in double precision, and how far from it a kernel may be.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "problem.h"
#include "rounding.h"

// What rounding to fewer bits may add to one output, from the largest error of each of its terms.
struct Errors {
  double sum = 0, squares = 0;

  void add(double error, double times = 1) {
    sum += times * error;
    squares += times * error * error;
  }
  // The bound, or what sums of as many independent errors never reach where that is less: a kernel
  // that leaves out one of hundreds of terms stays within the bound.
  double limit() const { return std::min(sum, 6 * std::sqrt(squares)); }
};

struct Reference {
  std::vector<double> y;      // (batch, out)
  std::vector<double> exact;  // how far from y an exact kernel may be
  std::vector<double> high;   // how far one of precision "high" may be
  std::vector<double> fast;   // how far a fast one may be
  std::vector<bool> open;     // (out): whether a damaged code makes any result right

  explicit Reference(const Problem& problem) : problem_(problem), p_(problem.linear) {
    const auto weights = static_cast<size_t>(p_.in * p_.out);
    weight_.assign(weights, 0);
    size_.assign(weights, 0);
    open.assign(static_cast<size_t>(p_.out), false);
    decode();
    const bool has_fast = problem.kind.fast != nullptr, has_high = problem.kind.high != nullptr;
    for (int64_t b = 0; b < p_.batch; ++b) {
      const std::vector<Errors> errors = !has_fast             ? std::vector<Errors>()
                                         : problem.kind.single ? scalar_errors(b)
                                                               : lookup_errors(b, kFastStep);
      const std::vector<Errors> fine =
          has_high ? lookup_errors(b, kHighStep) : std::vector<Errors>();
      for (int64_t o = 0; o < p_.out; ++o) {
        double sum = p_.bias == nullptr ? 0 : p_.bias[o], size = std::abs(sum);
        for (int64_t i = 0; i < p_.in; ++i) {
          sum += input(b, i) * weight_[at(o, i)];
          size += std::abs(input(b, i)) * size_[at(o, i)];
        }
        y.push_back(sum);
        exact.push_back(kRelative * size);
        if (!has_fast) continue;
        const double factor = p_.scale == nullptr ? 1 : std::abs(p_.scale[o]);
        const auto at = static_cast<size_t>(o);
        if (has_high) high.push_back(factor * fine[at].limit() + kRelative * size);
        fast.push_back(factor * errors[at].limit() + kRelative * size);
      }
    }
  }

 private:
  static constexpr double kRelative = 1e-5;
  // planes.h: of the largest entry at most.
  static constexpr double kHighStep = 1 / 16382.0, kFastStep = 1 / 63.4;

  double input(int64_t sample, int64_t i) const { return p_.x[sample * p_.x_row + i * p_.x_step]; }
  size_t at(int64_t o, int64_t i) const { return static_cast<size_t>(o * p_.in + i); }

  double center(int64_t stage, int64_t group, int64_t s, int64_t c, int64_t j) const {
    const vq::Books& b = p_.books;
    return rounded(b.data[stage * b.stage_step + group * b.group_step + s * b.book_step +
                          c * b.center_step + j * b.value_step],
                   b.rounding);
  }

  // The weight, and the sum of its stages' sizes.
  void decode() {
    const vq::Books& b = p_.books;
    const int64_t length = problem_.kind.along_out ? p_.out : p_.in;
    for (int64_t t = 0; t < b.stages; ++t) {
      for (int64_t r = 0; r < p_.rows; ++r) {
        for (int64_t i = 0; i < length; ++i) {
          const int64_t s = i / b.dim;
          const uint8_t code = problem_.codes[(t * p_.rows + r) * p_.subspaces + s];
          const int64_t output = problem_.kind.along_out ? i : r;
          if (code >= b.k) {
            open[static_cast<size_t>(output)] = true;
            continue;
          }
          const double value =
              center(t, r / p_.group, s, code, i % b.dim) * (p_.scale == nullptr ? 1 : p_.scale[r]);
          const size_t place = at(output, problem_.kind.along_out ? r : i);
          weight_[place] += value;
          size_[place] += std::abs(value);
        }
      }
    }
  }

  // Every look-up is off by half a step.
  std::vector<Errors> lookup_errors(int64_t sample, double step) const {
    const vq::Books& b = p_.books;
    Errors errors;
    for (int64_t t = 0; t < b.stages; ++t) {
      double largest = 0;
      for (int64_t s = 0; s < p_.subspaces; ++s) {
        for (int64_t c = 0; c < b.k; ++c) {
          double product = 0;
          for (int64_t i = s * b.dim; i < std::min((s + 1) * b.dim, p_.in); ++i)
            product += input(sample, i) * center(t, 0, s, c, i % b.dim);
          largest = std::max(largest, std::abs(product));
        }
      }
      errors.add(largest * step / 2, static_cast<double>(p_.subspaces));
    }
    return std::vector<Errors>(static_cast<size_t>(p_.out), errors);
  }

  // scalar_nibbles_fast.h: inputs are off by max |x| / 254, centers by (high - low) / 254, and by
  // what that is on average.
  std::vector<Errors> scalar_errors(int64_t sample) const {
    double largest = 0;
    for (int64_t i = 0; i < p_.in; ++i) largest = std::max(largest, std::abs(input(sample, i)));
    std::vector<Errors> all;
    for (int64_t g = 0; g < problem_.groups; ++g) {
      double low = center(0, g, 0, 0, 0), high = low;
      for (int64_t c = 1; c < p_.books.k; ++c) {
        low = std::min(low, center(0, g, 0, c, 0));
        high = std::max(high, center(0, g, 0, c, 0));
      }
      Errors errors;
      const double weight = std::max(std::abs(low), std::abs(high));
      for (int64_t i = 0; i < p_.in; ++i)
        errors.add(std::abs(input(sample, i)) * (high - low) / 127 + weight * largest / 254);
      const int64_t end = std::min((g + 1) * p_.group, p_.rows);
      all.resize(static_cast<size_t>(end), errors);
    }
    return all;
  }

  const Problem& problem_;
  const vq::Linear& p_;
  std::vector<double> weight_, size_;  // (out, in)
};
