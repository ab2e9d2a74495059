#include <algorithm>
#include <cstring>
#include <limits>

#include "fit_book.h"

namespace vq {
namespace {

// Sums of every code's points, kept up to date as points change their codes.
class Means {
 public:
  Means(int64_t k, const Points& p)
      : p_(p),
        k_(k),
        sums_(static_cast<size_t>(k * p.dim)),
        mass_(p.weight == nullptr ? 0 : sums_.size()),
        count_(static_cast<size_t>(k)),
        codes_(static_cast<size_t>(p.n)) {}

  // Means of the points of every code; centers without points move to the worst points.
  void update(const uint8_t* codes, float* centers) {
    if (first_)
      for (int64_t i = 0; i < p_.n; ++i) add(i, codes[i], 1);
    else
      move_changed(codes);
    first_ = false;
    std::copy_n(codes, p_.n, codes_.begin());

    std::vector<int64_t> empty;
    for (int64_t c = 0; c < k_; ++c)
      if (count_[static_cast<size_t>(c)] == 0) empty.push_back(c);
    std::vector<float> before;
    if (!empty.empty()) before.assign(centers, centers + k_ * p_.dim);
    for (int64_t c = 0; c < k_; ++c) {
      const auto count = static_cast<double>(count_[static_cast<size_t>(c)]);
      for (int64_t at = c * p_.dim; at < (c + 1) * p_.dim; ++at) {
        const auto slot = static_cast<size_t>(at);
        // What rounding leaves behind in an empty cluster is no sum of anything.
        if (count == 0) sums_[slot] = 0;
        if (count == 0 && p_.weight != nullptr) mass_[slot] = 0;
        if (count > 0)
          centers[at] =
              static_cast<float>(sums_[slot] / (p_.weight == nullptr ? count : mass_[slot]));
      }
    }
    if (!empty.empty()) reseed(empty, codes, before, centers);
  }

 private:
  void add(int64_t i, int64_t code, int sign) {
    count_[static_cast<size_t>(code)] += sign;
    const float* x = p_.x + i * p_.point;
    double* sums = sums_.data() + code * p_.dim;
    if (p_.weight == nullptr) {
      for (int64_t j = 0; j < p_.dim; ++j) sums[j] += sign * double(x[j * p_.step]);
      return;
    }
    const float* w = p_.weight + i * p_.weight_point;
    double* mass = mass_.data() + code * p_.dim;
    for (int64_t j = 0; j < p_.dim; ++j) {
      const double weight = sign * double(w[j * p_.weight_step]);
      sums[j] += weight * x[j * p_.step];
      mass[j] += weight;
    }
  }

  void move_changed(const uint8_t* codes) {
    constexpr int64_t kWord = 8;
    for (int64_t first = 0; first < p_.n; first += kWord) {
      const auto n = std::min(kWord, p_.n - first);
      if (std::memcmp(codes + first, codes_.data() + first, static_cast<size_t>(n)) == 0) continue;
      for (int64_t i = first; i < first + n; ++i) {
        const uint8_t before = codes_[static_cast<size_t>(i)];
        if (codes[i] == before) continue;
        add(i, before, -1);
        add(i, codes[i], 1);
      }
    }
  }

  void reseed(const std::vector<int64_t>& empty, const uint8_t* codes,
              const std::vector<float>& before, float* centers) const {
    std::vector<double> far(static_cast<size_t>(p_.n));
    for (int64_t i = 0; i < p_.n; ++i)
      far[static_cast<size_t>(i)] = distance(i, before.data() + codes[i] * p_.dim);
    for (const int64_t c : empty) {
      const auto worst = std::max_element(far.begin(), far.end());
      if (*worst <= 0) return;
      const int64_t i = worst - far.begin();
      for (int64_t j = 0; j < p_.dim; ++j)
        centers[c * p_.dim + j] = p_.x[i * p_.point + j * p_.step];
      *worst = 0;
    }
  }

  double distance(int64_t i, const float* center) const {
    double sum = 0;
    for (int64_t j = 0; j < p_.dim; ++j) {
      const double d = double(p_.x[i * p_.point + j * p_.step]) - center[j];
      const float* w = p_.weight;
      sum += d * d * (w == nullptr ? 1.0f : w[i * p_.weight_point + j * p_.weight_step]);
    }
    return sum;
  }

  const Points& p_;
  int64_t k_;
  bool first_ = true;
  std::vector<double> sums_, mass_;
  std::vector<int64_t> count_;
  std::vector<uint8_t> codes_;
};

// Side by side, which the compiler vectorizes, and always in this order.
double sum_of(const float* values, int64_t n) {
  constexpr int64_t kSide = 8;
  double sums[kSide] = {};
  int64_t i = 0;
  for (; i + kSide <= n; i += kSide)
    for (int64_t lane = 0; lane < kSide; ++lane) sums[lane] += values[i + lane];
  for (; i < n; ++i) sums[0] += values[i];
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return sum;
}

}  // namespace

void sum_by_code(const Points& p, const uint8_t* codes, int64_t k, double* sums, double* mass) {
  std::fill_n(sums, k * p.dim, 0.0);
  std::fill_n(mass, p.weight == nullptr ? k : k * p.dim, 0.0);
  for (int64_t i = 0; i < p.n; ++i) {
    const float* x = p.x + i * p.point;
    double* sum = sums + codes[i] * p.dim;
    if (p.weight == nullptr) {
      mass[codes[i]] += 1;
      for (int64_t j = 0; j < p.dim; ++j) sum[j] += x[j * p.step];
      continue;
    }
    const float* w = p.weight + i * p.weight_point;
    for (int64_t j = 0; j < p.dim; ++j) {
      const double weight = w[j * p.weight_step];
      sum[j] += weight * x[j * p.step];
      mass[codes[i] * p.dim + j] += weight;
    }
  }
}

void assign(const FitKernels& kernels, const Points& p, int64_t k, const float* centers,
            uint8_t* codes, float* distance) {
  constexpr int64_t kBlock = 1024;  // points whose tiles stay in the nearest cache
  const std::vector<float> middle = middle_of(k, p.dim, centers);
  ScoreTable table(k, p.dim, p.weight != nullptr);
  table.fill(centers, middle);
  std::vector<float> score(kBlock);
  std::vector<uint8_t> block_codes(kBlock);
  for (int64_t first = 0; first < p.n; first += kBlock) {
    Points block = p;
    block.n = std::min(kBlock, p.n - first);
    block.x += first * p.point;
    if (p.weight != nullptr) block.weight += first * p.weight_point;
    const TiledPoints points(block, middle);
    kernels.nearest(points.tiles(), table.scores(), block_codes.data(), score.data());
    std::copy_n(block_codes.begin(), block.n, codes + first);
    for (int64_t i = 0; i < block.n; ++i)
      distance[first + i] =
          std::max(0.0f, static_cast<float>(points.norm(i) + 2.0 * score[static_cast<size_t>(i)]));
  }
}

void lloyd(const FitKernels& kernels, const Points& p, int64_t k, int iterations, double tolerance,
           float* centers, uint8_t* codes) {
  const std::vector<float> middle = middle_of(k, p.dim, centers);
  const TiledPoints points(p, middle);
  ScoreTable table(k, p.dim, p.weight != nullptr);
  Means means(k, p);
  std::vector<float> score(static_cast<size_t>(points.padded()));
  std::vector<uint8_t> found(score.size());
  double norms = 0, error = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < p.n; ++i) norms += points.norm(i);
  for (int done = 0;; ++done) {
    table.fill(centers, middle);
    kernels.nearest(points.tiles(), table.scores(), found.data(), score.data());
    const double total = std::max(0.0, norms + 2 * sum_of(score.data(), p.n));
    if (done == iterations || total >= error * (1 - tolerance)) break;
    error = total;
    means.update(found.data(), centers);
  }
  std::copy_n(found.begin(), p.n, codes);
}

}  // namespace vq
