#include "fit_sweep.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "fit_book.h"

namespace vq {
namespace {

// Partial sums that are kept from stage to stage; as in vq_plugin/fit/beam.py.
constexpr int64_t kBeam = 4;
// Points of one book from which on they are faster side by side than one by one.
constexpr int64_t kFewest = 8;

// Centers of the books that points taken one by one ask for.
class JoinTables {
 public:
  explicit JoinTables(const Block& b)
      : b_(b),
        wide_((b.k + kJoinLanes - 1) / kJoinLanes * kJoinLanes),
        center_(static_cast<size_t>(b.stages * b.books)),
        one_(static_cast<size_t>(wide_), 1.0f),
        beside_(static_cast<size_t>(wide_), std::numeric_limits<float>::infinity()) {
    std::fill_n(beside_.begin(), b.k, 0.0f);
  }

  Join operator()(int64_t stage, int64_t book, int64_t counted) {
    const int64_t at = stage * b_.books + book;
    std::vector<float>& center = center_[static_cast<size_t>(at)];
    if (center.empty()) {
      center.resize(static_cast<size_t>(b_.dim * wide_));
      for (int64_t c = 0; c < b_.k; ++c)
        for (int64_t j = 0; j < b_.dim; ++j)
          center[static_cast<size_t>(j * wide_ + c)] = b_.scored[(at * b_.k + c) * b_.dim + j];
    }
    return {wide_, counted, center.data(), one_.data(), beside_.data()};
  }

 private:
  const Block& b_;
  int64_t wide_;
  std::vector<std::vector<float>> center_;
  std::vector<float> one_, beside_;
};

// A sum of centers, one of each stage so far, and what it leaves of a point.
struct Partial {
  explicit Partial(const Block& b)
      : codes(static_cast<size_t>(b.stages)), left(static_cast<size_t>(b.dim)) {}

  std::vector<uint8_t> codes;
  std::vector<float> left;
};

class Beam {
 public:
  Beam(const FitKernels& kernels, const Block& b, JoinTables& tables)
      : kernels_(kernels),
        b_(b),
        tables_(tables),
        now_(kBeam, Partial(b)),
        next_(kBeam, Partial(b)),
        earlier_(b),
        cost_(static_cast<size_t>((b.k + kJoinLanes - 1) / kJoinLanes * kJoinLanes)) {}

  // Codes of a point, a `step` apart; they hold those from before.
  void choose(const float* x, int64_t book, int64_t counted, uint8_t* codes, int64_t step) {
    std::copy_n(x, counted, now_[0].left.begin());
    int64_t width = 1;
    float least = 0;
    for (int64_t stage = 0; stage < b_.stages; ++stage) {
      Choice best[kBeam];
      const int64_t most = stage + 1 == b_.stages ? 1 : kBeam;
      int64_t kept = 0;
      for (int64_t parent = 0; parent < width; ++parent) {
        kernels_.costs(now_[static_cast<size_t>(parent)].left.data(), tables_(stage, book, counted),
                       cost_.data());
        for (int64_t c = 0; c < b_.k; ++c) {
          const float cost = cost_[static_cast<size_t>(c)];
          if (kept == most && !(cost < best[kept - 1].cost)) continue;
          int64_t at = kept < most ? kept++ : kept - 1;
          for (; at > 0 && cost < best[at - 1].cost; --at) best[at] = best[at - 1];
          best[at] = {cost, parent, c};
        }
      }
      for (int64_t i = 0; i < kept; ++i) {
        Partial& to = next_[static_cast<size_t>(i)];
        to = now_[static_cast<size_t>(best[i].parent)];
        extend(to, stage, book, counted, best[i].center);
      }
      std::swap(now_, next_);
      width = kept;
      least = best[0].cost;
    }
    std::copy_n(x, counted, earlier_.left.begin());
    for (int64_t stage = 0; stage < b_.stages; ++stage)
      extend(earlier_, stage, book, counted, codes[stage * step]);
    float cost = 0;
    for (int64_t j = 0; j < counted; ++j) {
      const float left = earlier_.left[static_cast<size_t>(j)];
      cost += left * left;
    }
    if (!(least < cost)) return;
    for (int64_t stage = 0; stage < b_.stages; ++stage)
      codes[stage * step] = now_[0].codes[static_cast<size_t>(stage)];
  }

 private:
  struct Choice {
    float cost;
    int64_t parent, center;
  };

  void extend(Partial& to, int64_t stage, int64_t book, int64_t counted, int64_t code) const {
    to.codes[static_cast<size_t>(stage)] = static_cast<uint8_t>(code);
    const float* center = b_.scored + ((stage * b_.books + book) * b_.k + code) * b_.dim;
    for (int64_t j = 0; j < counted; ++j) to.left[static_cast<size_t>(j)] -= center[j];
  }

  const FitKernels& kernels_;
  const Block& b_;
  JoinTables& tables_;
  std::vector<Partial> now_, next_;
  Partial earlier_;
  std::vector<float> cost_;
};

class Sweep {
 public:
  Sweep(const FitKernels& kernels, const Block& b, uint8_t* codes, float* change)
      : kernels_(kernels),
        b_(b),
        tables_(b),
        beam_(kernels, b, tables_),
        codes_(codes),
        change_(change),
        pulled_(static_cast<size_t>(b.size() * b.outputs)),
        target_(pulled_.size()),
        weighed_(b.factor == nullptr ? 0 : pulled_.size()),
        point_(static_cast<size_t>(b.dim)),
        distance_(static_cast<size_t>(b.points())) {}

  void step(int64_t s) {
    const int64_t size = b_.size(), inputs = b_.inputs(), w = b_.outputs, first = s * size;
    for (int64_t i = 0; i < size; ++i) {
      float* to = pulled_.data() + i * w;
      std::copy_n(b_.pull + (first + i) * w, w, to);
      kernels_.add_products(b_.inner + first + i, inputs, change_, first, w, to);
    }
    for (int64_t j = 0; j < size; ++j) {
      float* to = target_.data() + j * w;
      std::copy_n(b_.base + (first + j) * w, w, to);
      kernels_.add_products(b_.inverse + s * size * size + j, size, pulled_.data(), size, w, to);
    }
    const float* x = target_.data();
    if (b_.factor != nullptr) {
      std::fill(weighed_.begin(), weighed_.end(), 0.0f);
      for (int64_t j = 0; j < size; ++j)
        kernels_.add_products(b_.factor + s * size * size + j, size, x, size, w,
                              weighed_.data() + j * w);
      x = weighed_.data();
    }
    const int64_t points = b_.points();
    for (int64_t p = 0; p < points;) {
      const int64_t in_book = (b_.first + p) % b_.rows;
      const int64_t end = std::min(points, p + (b_.rows - in_book));
      choose(s, x, p, end);
      p = end;
    }
    for (int64_t p = 0; p < points; ++p) replace(s, p);
  }

 private:
  int64_t book(int64_t s, int64_t p) const { return s * b_.per_step + (b_.first + p) / b_.rows; }
  // From a coordinate of a point to the next, and from a point to the next.
  int64_t coordinate() const { return b_.along_out ? 1 : b_.outputs; }
  int64_t apart() const { return b_.along_out ? b_.dim : 1; }
  uint8_t* code(int64_t s, int64_t p) const { return codes_ + s * b_.points() + p; }

  // Coordinates of a point that count.
  int64_t counted(int64_t p) const {
    if (!b_.along_out) return b_.dim;
    return std::clamp<int64_t>(b_.outputs - b_.padding - p * b_.dim, 0, b_.dim);
  }

  // The points of one book.
  void choose(int64_t s, const float* x, int64_t p, int64_t end) {
    const int64_t own = book(s, p);
    if (b_.stages == 1) {
      int64_t whole = end;
      while (whole > p && counted(whole - 1) < b_.dim) --whole;
      if (whole - p >= kFewest) {
        const Points points{whole - p, b_.dim,  x + p * apart(), apart(), coordinate(),
                            nullptr,   0,       0};
        assign(kernels_, points, b_.k, b_.scored + own * b_.k * b_.dim, code(s, p),
               distance_.data());
        p = whole;
      }
    }
    for (; p < end; ++p) {
      const int64_t n = counted(p), step = b_.steps * b_.points();
      for (int64_t j = 0; j < n; ++j)
        point_[static_cast<size_t>(j)] = x[p * apart() + j * coordinate()];
      if (b_.stages == 1) {
        *code(s, p) = static_cast<uint8_t>(
            kernels_.cheapest(point_.data(), nullptr, tables_(0, own, n)).center);
        continue;
      }
      for (int64_t stage = 0; stage < b_.stages; ++stage)
        code(s, p)[stage * step] = b_.before[stage * step + s * b_.points() + p];
      beam_.choose(point_.data(), own, n, code(s, p), step);
    }
  }

  // Base less what was chosen.
  void replace(int64_t s, int64_t p) {
    const int64_t at = s * b_.points() + p;
    if (b_.kept != nullptr && b_.kept[at] >= 0) *code(s, p) = static_cast<uint8_t>(b_.kept[at]);
    const int64_t own = book(s, p), stage_step = b_.steps * b_.points();
    const int64_t place = s * b_.size() * b_.outputs + p * apart();
    for (int64_t j = 0; j < b_.dim; ++j) {
      float chosen = 0;
      for (int64_t stage = 0; stage < b_.stages; ++stage) {
        const int64_t center = code(s, p)[stage * stage_step];
        chosen += b_.centers[((stage * b_.books + own) * b_.k + center) * b_.dim + j];
      }
      change_[place + j * coordinate()] = b_.base[place + j * coordinate()] - chosen;
    }
  }

  const FitKernels& kernels_;
  const Block& b_;
  JoinTables tables_;
  Beam beam_;
  uint8_t* codes_;
  float* change_;
  std::vector<float> pulled_, target_, weighed_, point_, distance_;
};

}  // namespace

void sweep_block(const FitKernels& kernels, const Block& block, uint8_t* codes, float* change) {
  Sweep sweep(kernels, block, codes, change);
  for (int64_t s = 0; s < block.steps; ++s) sweep.step(s);
}

}  // namespace vq
