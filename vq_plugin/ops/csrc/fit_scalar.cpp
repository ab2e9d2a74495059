#include "fit_scalar.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace vq {
namespace {

// Ascends as the float does.
uint32_t ascending_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

// Even bins over the boundaries, most of them with none or one: a value needs no search there.
class Bins {
 public:
  Bins(const float* boundaries, int64_t count)
      : boundaries_(boundaries),
        low_(boundaries[0]),
        scale_((kBins - 1) / (boundaries[count - 1] - low_)) {
    for (int64_t b = 0; b < count; ++b) ++first_[static_cast<size_t>(bin(boundaries[b])) + 1];
    crowded_ = *std::max_element(first_.begin(), first_.end()) > 1;
    for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    inside_.fill(std::numeric_limits<float>::infinity());
    for (int64_t b = count - 1; b >= 0; --b)
      inside_[static_cast<size_t>(bin(boundaries[b]))] = boundaries[b];
  }

  void count_below(const float* values, int64_t n, uint8_t* codes) const {
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(bin(values[i]));
      codes[i] = static_cast<uint8_t>(first_[at] + (values[i] > inside_[at]));
    }
    if (!crowded_) return;
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(bin(values[i]));
      if (first_[at + 1] - first_[at] > 1)
        codes[i] = static_cast<uint8_t>(
            std::lower_bound(boundaries_ + first_[at], boundaries_ + first_[at + 1], values[i]) -
            boundaries_);
    }
  }

 private:
  static constexpr int32_t kBins = 1 << 12;

  // Never falls as v grows, however it rounds; NaN counts as low.
  int32_t bin(float v) const {
    const float at = (v - low_) * scale_, most = kBins - 1;
    const float floored = at > 0 ? at : 0.0f;
    return static_cast<int32_t>(floored < most ? floored : most);
  }

  const float* boundaries_;
  float low_, scale_;
  bool crowded_;
  std::array<int32_t, kBins + 1> first_{};
  std::array<float, kBins> inside_;
};

// best[q][j] = max_i best[q − 1][i] + gain(i, j) for all j of one q, with arg maxima that ascend.
struct Layer {
  const double* mass;
  const double* moment;
  const double* before;
  double* best;
  int32_t* cut;

  void solve(int64_t first, int64_t last, int64_t low, int64_t high) const {
    if (first > last) return;
    const int64_t j = (first + last) / 2;
    double most = -std::numeric_limits<double>::infinity();
    int64_t at = low;
    for (int64_t i = low; i <= std::min(high, j - 1); ++i) {
      const double inside = std::max(mass[j] - mass[i], 1e-300), sum = moment[j] - moment[i];
      const double value = before[i] + sum * sum / inside;
      if (value > most) most = value, at = i;
    }
    best[j] = most;
    cut[j] = static_cast<int32_t>(at);
    solve(first, j - 1, low, at);
    solve(j + 1, last, at, high);
  }
};

}  // namespace

int64_t cell_count(const CellMap& map) {
  int64_t end = 0;
  for (int64_t bin = 0; bin < kCellBins; ++bin) {
    if (map.offset[bin] < 0 || map.shift[bin] > 16) return -1;
    end = std::max(end, map.offset[bin] + (int64_t(0xffff) >> map.shift[bin]) + 1);
  }
  return end;
}

void add_to_cells(const float* values, const float* mass, int64_t n, const CellMap& map,
                  double* sums) {
  struct Bin {
    int32_t offset, shift;
  };
  std::vector<Bin> bins(kCellBins);
  for (int64_t b = 0; b < kCellBins; ++b)
    bins[static_cast<size_t>(b)] = {map.offset[b], map.shift[b]};
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = ascending_bits(values[i]);
    const Bin bin = bins[bits >> 16];
    const int64_t cell = bin.offset + int64_t{(bits & 0xffff) >> bin.shift};
    const double weight = mass == nullptr ? 1.0 : mass[i];
    sums[2 * cell] += weight;
    sums[2 * cell + 1] += weight * values[i];
  }
}

void count_below(const FitKernels& kernels, const float* values, int64_t n, const float* boundaries,
                 int64_t count, uint8_t* codes) {
  constexpr int64_t kFew = 16;
  if (count <= kFew) return kernels.count_below(values, n, boundaries, count, codes);
  Bins(boundaries, count).count_below(values, n, codes);
}

void optimal_starts(const double* mass, const double* moment, int64_t m, int64_t k,
                    int64_t* starts) {
  const auto width = static_cast<size_t>(m + 1);
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  std::vector<double> before(width, kNever), best(width);
  std::vector<int32_t> cuts(static_cast<size_t>(k) * width);
  for (int64_t j = 1; j <= m; ++j) {
    const double sum = moment[j] - moment[0];
    before[static_cast<size_t>(j)] = sum * sum / std::max(mass[j] - mass[0], 1e-300);
  }
  for (int64_t q = 1; q < k; ++q) {
    std::fill(best.begin(), best.end(), kNever);
    int32_t* cut = cuts.data() + static_cast<size_t>(q) * width;
    // q intervals need q points.
    Layer{mass, moment, before.data(), best.data(), cut}.solve(q + 1, m, q, m - 1);
    std::swap(before, best);
  }
  int64_t end = m;
  for (int64_t q = k - 1; q >= 0; --q) {
    end = q == 0 ? 0 : cuts[static_cast<size_t>(q) * width + static_cast<size_t>(end)];
    starts[q] = end;
  }
}

std::vector<double> few_centers(const float* values, int64_t n, int64_t k) {
  std::vector<float> x(values, values + n);
  std::sort(x.begin(), x.end());
  // The first points of runs of equal ones, and one past the last.
  std::vector<int64_t> runs;
  std::vector<double> total(static_cast<size_t>(n) + 1);
  for (size_t i = 0; i < x.size(); ++i) {
    if (i == 0 || x[i] != x[i - 1]) runs.push_back(static_cast<int64_t>(i));
    total[i + 1] = total[i] + x[i];
  }
  const auto m = static_cast<int64_t>(runs.size());
  std::vector<double> centers;
  if (m <= k) {
    // No -0, whichever zero was first.
    for (const int64_t run : runs) centers.push_back(x[static_cast<size_t>(run)] + 0.0);
    return centers;
  }
  runs.push_back(n);
  const double middle = total.back() / static_cast<double>(n);
  const double spread = std::max(std::abs(x.front() - middle), std::abs(x.back() - middle));
  std::vector<double> mass, moment;
  for (const int64_t run : runs) {
    mass.push_back(static_cast<double>(run));
    moment.push_back((total[static_cast<size_t>(run)] - middle * mass.back()) / spread);
  }
  std::vector<int64_t> starts(static_cast<size_t>(k));
  optimal_starts(mass.data(), moment.data(), m, k, starts.data());
  starts.push_back(m);
  for (size_t q = 0; q + 1 < starts.size(); ++q) {
    const auto first = static_cast<size_t>(runs[static_cast<size_t>(starts[q])]),
               end = static_cast<size_t>(runs[static_cast<size_t>(starts[q + 1])]);
    const double mean = (total[end] - total[first]) / static_cast<double>(end - first);
    // A mean can leave its interval by rounding; ascending centers must stay ascending.
    centers.push_back(std::min(std::max(mean, double{x[first]}), double{x[end - 1]}));
  }
  return centers;
}

}  // namespace vq
