#include <algorithm>
#include <limits>

#include "fit_book.h"

namespace vq {
namespace {

// Sums in single precision are emptied into double ones after so many points.
constexpr int64_t kRun = 4096;

template <int64_t kDim>
void add_rows(const Points& p, const uint8_t* codes, int64_t first, int64_t last, float* sums) {
  const int64_t dim = kDim > 0 ? kDim : p.dim;
  for (int64_t i = first; i < last; ++i) {
    const float* __restrict x = p.x + i * p.point;
    float* __restrict sum = sums + codes[i] * dim;
    for (int64_t j = 0; j < dim; ++j) sum[j] += x[j];
  }
}

void add_weighted(const Points& p, const uint8_t* codes, int64_t first, int64_t last, float* sums,
                  float* mass) {
  for (int64_t i = first; i < last; ++i) {
    const float* x = p.x + i * p.point;
    const float* w = p.weight + i * p.weight_point;
    for (int64_t j = 0; j < p.dim; ++j) {
      sums[codes[i] * p.dim + j] += x[j * p.step] * w[j * p.weight_step];
      mass[codes[i] * p.dim + j] += w[j * p.weight_step];
    }
  }
}

void add_run(const Points& p, const uint8_t* codes, int64_t first, int64_t last, float* sums,
             float* mass) {
  if (p.weight != nullptr) return add_weighted(p, codes, first, last, sums, mass);
  for (int64_t i = first; i < last; ++i) mass[codes[i]] += 1;
  if (p.step == 1 && p.dim == 4) return add_rows<4>(p, codes, first, last, sums);
  if (p.step == 1 && p.dim == 8) return add_rows<8>(p, codes, first, last, sums);
  if (p.step == 1) return add_rows<0>(p, codes, first, last, sums);
  for (int64_t i = first; i < last; ++i)
    for (int64_t j = 0; j < p.dim; ++j)
      sums[codes[i] * p.dim + j] += p.x[i * p.point + j * p.step];
}

double distance(const Points& p, int64_t i, const float* center) {
  double sum = 0;
  for (int64_t j = 0; j < p.dim; ++j) {
    const double d = double(p.x[i * p.point + j * p.step]) - center[j];
    sum += p.weight == nullptr ? d * d : d * d * p.weight[i * p.weight_point + j * p.weight_step];
  }
  return sum;
}

// Moves centers without points to the points that are farthest from their own.
void reseed(const Points& p, const std::vector<int64_t>& empty, const uint8_t* codes,
            const std::vector<float>& before, float* centers) {
  std::vector<double> far(static_cast<size_t>(p.n));
  for (int64_t i = 0; i < p.n; ++i)
    far[static_cast<size_t>(i)] = distance(p, i, before.data() + codes[i] * p.dim);
  for (const int64_t c : empty) {
    const auto worst = std::max_element(far.begin(), far.end());
    if (*worst <= 0) return;
    const int64_t i = worst - far.begin();
    for (int64_t j = 0; j < p.dim; ++j) centers[c * p.dim + j] = p.x[i * p.point + j * p.step];
    *worst = 0;
  }
}

class Means {
 public:
  Means(int64_t k, const Points& p)
      : k_(k), sums_(static_cast<size_t>(k * p.dim)),
        mass_(p.weight == nullptr ? static_cast<size_t>(k) : sums_.size()) {}

  // Means of the points of every code; centers without points stay, or are moved far away.
  void update(const Points& p, const uint8_t* codes, float* centers) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(mass_.begin(), mass_.end(), 0.0);
    sum_by_code(p, codes, k_, sums_.data(), mass_.data());
    std::vector<int64_t> empty;
    for (int64_t c = 0; c < k_; ++c)
      if (mass_[static_cast<size_t>(p.weight == nullptr ? c : c * p.dim)] <= 0) empty.push_back(c);
    std::vector<float> before;
    if (!empty.empty()) before.assign(centers, centers + k_ * p.dim);
    for (int64_t at = 0; at < k_ * p.dim; ++at) {
      const double mass = mass_[static_cast<size_t>(p.weight == nullptr ? at / p.dim : at)];
      if (mass > 0) centers[at] = static_cast<float>(sums_[static_cast<size_t>(at)] / mass);
    }
    if (!empty.empty()) reseed(p, empty, codes, before, centers);
  }

 private:
  int64_t k_;
  std::vector<double> sums_, mass_;
};

}  // namespace

void sum_by_code(const Points& p, const uint8_t* codes, int64_t k, double* sums, double* mass) {
  const int64_t masses = p.weight == nullptr ? k : k * p.dim;
  std::vector<float> part(static_cast<size_t>(k * p.dim + masses));
  float* part_mass = part.data() + k * p.dim;
  for (int64_t first = 0; first < p.n; first += kRun) {
    std::fill(part.begin(), part.end(), 0.0f);
    add_run(p, codes, first, std::min(p.n, first + kRun), part.data(), part_mass);
    for (int64_t at = 0; at < k * p.dim; ++at) sums[at] += part[static_cast<size_t>(at)];
    for (int64_t at = 0; at < masses; ++at) mass[at] += part_mass[at];
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
    if (distance == nullptr) continue;
    for (int64_t i = 0; i < block.n; ++i)
      distance[first + i] = std::max(
          0.0f, static_cast<float>(points.norm(i) + 2.0 * score[static_cast<size_t>(i)]));
  }
}

void lloyd(const FitKernels& kernels, const Points& p, int64_t k, int iterations,
           double tolerance, float* centers, uint8_t* codes) {
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
    double total = 0;
    for (int64_t i = 0; i < p.n; ++i) total += score[static_cast<size_t>(i)];
    total = std::max(0.0, norms + 2 * total);
    if (done == iterations || total >= error * (1 - tolerance)) break;
    error = total;
    means.update(p, found.data(), centers);
  }
  std::copy_n(found.begin(), p.n, codes);
}

}  // namespace vq
