#include <algorithm>
#include <limits>

#include "fit_book.h"

namespace vq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Sums of every center's points, and the means that they give, coordinate by coordinate.
class Clusters {
 public:
  Clusters(const Points& p, int64_t k)
      : p_(p),
        wide_((k + kJoinLanes - 1) / kJoinLanes * kJoinLanes),
        sums_(static_cast<size_t>(k * p.dim)),
        mass_(sums_.size()),
        count_(static_cast<size_t>(k)),
        center_(static_cast<size_t>(wide_ * p.dim)),
        factor_(p.weight == nullptr ? static_cast<size_t>(wide_) : center_.size(), 1.0f),
        beside_(static_cast<size_t>(wide_), kInfinity) {
    std::fill_n(beside_.begin(), k, 0.0f);
  }

  void add(int64_t i, int64_t c, int sign) {
    count_[static_cast<size_t>(c)] += sign;
    for (int64_t j = 0; j < p_.dim; ++j) {
      const auto at = static_cast<size_t>(c * p_.dim + j);
      const double w = weight(i, j);
      sums_[at] += sign * w * x(i, j);
      mass_[at] += sign * w;
    }
  }

  // Brings the mean of a center up to date.
  void refresh(int64_t c) {
    const bool empty = count_[static_cast<size_t>(c)] == 0;
    for (int64_t j = 0; j < p_.dim; ++j) {
      const auto at = static_cast<size_t>(c * p_.dim + j);
      const auto lane = static_cast<size_t>(j * wide_ + c);
      // What rounding leaves behind in an empty cluster is no sum of anything.
      if (empty) sums_[at] = mass_[at] = 0;
      center_[lane] = empty ? 0.0f : static_cast<float>(sums_[at] / mass_[at]);
      if (p_.weight != nullptr) factor_[lane] = static_cast<float>(mass_[at]);
    }
    if (p_.weight == nullptr) {
      const auto n = static_cast<float>(count_[static_cast<size_t>(c)]);
      factor_[static_cast<size_t>(c)] = n / (n + 1);
    }
  }

  // What leaving center c would save; a point alone with its center saves nothing.
  double leaving(int64_t i, int64_t c) const {
    if (count_[static_cast<size_t>(c)] <= 1) return 0;
    double sum = 0;
    for (int64_t j = 0; j < p_.dim; ++j) {
      const double w = weight(i, j), mass = mass_[static_cast<size_t>(c * p_.dim + j)];
      const double d = x(i, j) - double(center_[static_cast<size_t>(j * wide_ + c)]);
      if (mass - w > 1e-6 * mass) sum += d * d * w * mass / (mass - w);
    }
    return sum;
  }

  // The best center for a point but its own.
  Joined cheapest(const FitKernels& kernels, const float* x, const float* weight, int64_t own) {
    beside_[static_cast<size_t>(own)] = kInfinity;
    const Join join{wide_, p_.dim, center_.data(), factor_.data(), beside_.data()};
    const Joined joined = kernels.cheapest(x, weight, join);
    beside_[static_cast<size_t>(own)] = 0;
    return joined;
  }

 private:
  float x(int64_t i, int64_t j) const { return p_.x[i * p_.point + j * p_.step]; }
  double weight(int64_t i, int64_t j) const {
    return p_.weight == nullptr ? 1.0 : p_.weight[i * p_.weight_point + j * p_.weight_step];
  }

  const Points& p_;
  int64_t wide_;
  std::vector<double> sums_, mass_;  // (k, dim)
  std::vector<int64_t> count_;
  std::vector<float> center_, factor_, beside_;  // as Join
};

void copy_row(const float* from, int64_t step, int64_t dim, std::vector<float>& to) {
  for (int64_t j = 0; j < dim; ++j) to[static_cast<size_t>(j)] = from[j * step];
}

}  // namespace

void exchange(const FitKernels& kernels, const Points& p, int64_t k, int sweeps, uint8_t* codes) {
  // A move has to gain more than rounding can pretend.
  constexpr double kWorth = 1 - 1e-5;
  Clusters clusters(p, k);
  for (int64_t i = 0; i < p.n; ++i) clusters.add(i, codes[i], 1);
  for (int64_t c = 0; c < k; ++c) clusters.refresh(c);
  std::vector<float> x(static_cast<size_t>(p.dim)), w(x.size());
  bool moved = k > 1;
  for (int sweep = 0; moved && sweep < sweeps; ++sweep) {
    moved = false;
    for (int64_t i = 0; i < p.n; ++i) {
      const int64_t own = codes[i];
      const double saved = clusters.leaving(i, own);
      if (saved <= 0) continue;
      copy_row(p.x + i * p.point, p.step, p.dim, x);
      if (p.weight != nullptr) copy_row(p.weight + i * p.weight_point, p.weight_step, p.dim, w);
      const Joined to =
          clusters.cheapest(kernels, x.data(), p.weight == nullptr ? nullptr : w.data(), own);
      if (to.cost >= saved * kWorth) continue;
      clusters.add(i, own, -1);
      clusters.add(i, to.center, 1);
      clusters.refresh(own);
      clusters.refresh(to.center);
      codes[i] = static_cast<uint8_t>(to.center);
      moved = true;
    }
  }
}

}  // namespace vq
