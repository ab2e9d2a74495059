// Convolutions whose codes choose among up to 16 centers of channels: the tables of an input place
// are computed once and looked up by every kernel position (Quantized CNN, Wu et al. 2016, arXiv
// 1512.06473, section 3.2). A position is a linear layer whose samples are places.
#pragma once

#include "lookup_nibbles.h"

namespace vq {
namespace {

// Tables that are there at the same time, half a megabyte to two: of whole lines of the first
// dimension. What strips of output lines read overlaps, so few and large ones repeat least.
constexpr int64_t kStripTables = 1 << 15;
// Places side by side, whose tables stay in the nearest cache from position to position.
constexpr int64_t kPlacesAtOnce = 16;

inline int64_t product(const int64_t* three) { return three[0] * three[1] * three[2]; }

// Some lines of one image and group, and some of its row blocks.
class ConvolvedStrip {
 public:
  ConvolvedStrip(const Convolution& c, int64_t image, int64_t group, int64_t first, int64_t last)
      : c_(c),
        channels_(c.in / c.groups),
        pieces_(div_up(channels_, c.books.dim)),
        positions_(product(c.kernel)),
        rows_(c.out / c.groups),
        codes_(c.out, positions_ * pieces_, false),
        places_((last - first) * c.places[1] * c.places[2]),
        group_(group) {
    const int64_t inner = c.size[1] * c.size[2], start = first * c.stride[0] - c.padding[0];
    const int64_t reach = (last - 1 - first) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1;
    first_line_ = std::clamp<int64_t>(start, 0, c.size[0]);
    inputs_ = (std::clamp<int64_t>(start + reach, first_line_, c.size[0]) - first_line_) * inner;
    const int64_t channel = group * channels_, place = first_line_ * inner;
    const int64_t all_in = product(c.size), all_out = product(c.places);
    const int64_t to = first * c.places[1] * c.places[2];
    x_ = c.x + image * c.in * all_in +
         (c.channels_last ? place * c.in + channel : channel * all_in + place);
    y_ = c.y + image * c.out * all_out +
         (c.channels_last ? to * c.out + group * rows_ : group * rows_ * all_out + to);
    find_sources(first, last);
  }

  template <int kBits>
  void run(int64_t first_block, int64_t last_block) {
    struct Sums;
    const int64_t width = (last_block - first_block) * kLanes;
    sums_ = scratch<Sums, float>(places_ * width);
    width_ = width;
    std::fill(sums_, sums_ + places_ * width, 0.0f);
    for (int64_t stage = 0; stage < c_.books.stages; ++stage)
      for (int64_t s = 0; s < pieces_; s += kPlaneTile)
        add_tile<kBits>(stage, s, std::min(s + kPlaneTile, pieces_), first_block, last_block);
    finish_places(first_block, last_block);
  }

 private:
  enum class Tables : uint8_t { zero, planes, floats };

  // sources_[position][output place] = the input place that it reads, or -1 beyond the image.
  void find_sources(int64_t first, int64_t last) {
    struct Sources;
    sources_ = scratch<Sources, int32_t>(positions_ * places_);
    int32_t* to = sources_;
    int64_t at[3];
    for (at[0] = 0; at[0] < c_.kernel[0]; ++at[0])
      for (at[1] = 0; at[1] < c_.kernel[1]; ++at[1])
        for (at[2] = 0; at[2] < c_.kernel[2]; ++at[2])
          for (int64_t i = first; i < last; ++i)
            for (int64_t j = 0; j < c_.places[1]; ++j, to += c_.places[2]) {
              const int64_t a = input_of(0, i, at), b = input_of(1, j, at);
              const int64_t row = ((a - first_line_) * c_.size[1] + b) * c_.size[2];
              fill_line(a < 0 || b < 0 ? -1 : row, at[2] * c_.dilation[2] - c_.padding[2], to);
            }
  }

  // Of the last dimension: the places from `row` on, `shift` away.
  void fill_line(int64_t row, int64_t shift, int32_t* to) const {
    const int64_t places = c_.places[2], stride = c_.stride[2];
    const int64_t start = std::clamp<int64_t>(div_up(std::max<int64_t>(-shift, 0), stride), 0, places);
    const int64_t room = std::max<int64_t>(c_.size[2] - shift, 0);
    const int64_t end = row < 0 ? start : std::clamp(div_up(room, stride), start, places);
    std::fill(to, to + start, -1);
    for (int64_t k = start; k < end; ++k) to[k] = static_cast<int32_t>(row + shift + k * stride);
    std::fill(to + end, to + places, -1);
  }

  int64_t input_of(int dimension, int64_t place, const int64_t* at) const {
    const int64_t i = place * c_.stride[dimension] - c_.padding[dimension] +
                      at[dimension] * c_.dilation[dimension];
    return i < c_.size[dimension] ? i : -1;
  }

  // The subspaces [s, last) of one stage.
  template <int kBits>
  void add_tile(int64_t stage, int64_t s, int64_t last, int64_t first_block, int64_t last_block) {
    struct PlaneBytes;
    struct Steps;
    struct Offsets;
    struct Kinds;
    struct Floats;
    struct Indices;
    columns_ = div_up(last - s, kNibbles);
    const int64_t table_bytes = columns_ * Planes::kColumnBytes<kBits>;
    auto* planes = scratch<PlaneBytes, uint8_t>(inputs_ * table_bytes);
    auto* steps = scratch<Steps, float>(inputs_);
    auto* offsets = scratch<Offsets, uint32_t>(inputs_);
    auto* kinds = scratch<Kinds, Tables>(inputs_);
    load_books(stage, s, last);
    bool any_floats = false;
    // Some places side by side: each waits for its own spread.
    const int64_t wide = div_up(last - s, kLanes) * kLanes, table_floats = wide * kLanes;
    const int64_t together = std::clamp<int64_t>(256 / wide, 1, kPlacesAtOnce);
    float* floats = scratch<Floats, float>(together * table_floats);
    Spread spreads[kPlacesAtOnce];
    float per_unit[kPlacesAtOnce];
    for (int64_t start = 0; start < inputs_; start += kPlacesAtOnce) {
      const int64_t end = std::min(start + kPlacesAtOnce, inputs_);
      turn(start, end);
      for (int64_t begin = start; begin < end; begin += together) {
        const int64_t stop = std::min(begin + together, end);
        for (int64_t i = begin; i < stop; ++i) {
          float* table = floats + (i - begin) * table_floats;
          compute_tables(i - start, s, last, table);
          find_spread<kBits>(table, wide, spreads + (i - begin));
        }
        for (int64_t i = begin; i < stop; ++i) {
          const Spread& spread = spreads[i - begin];
          // Zeros are integers as they are: places with few channels above 0 are no peaks.
          const float* table = floats + (i - begin) * table_floats;
          const bool fits = fits_planes<kBits>(spread, (last - s) * kLanes) ||
                            fits_planes<kBits>(spread, entries_not_zero(table, last - s));
          kinds[i] = !fits ? Tables::floats : spread.largest > 0 ? Tables::planes : Tables::zero;
          any_floats |= !fits;
          per_unit[i - begin] = entries_per_unit<kBits>(spread, columns_ * kNibbles);
          steps[i] = 1 / per_unit[i - begin];
        }
        for (int64_t i = begin; i < stop; ++i)
          if (kinds[i] == Tables::planes)
            offsets[i] = store_planes<kBits>(floats + (i - begin) * table_floats, columns_,
                                             spreads[i - begin].low, per_unit[i - begin],
                                             planes + i * table_bytes);
      }
    }
    const int64_t block_bytes = columns_ * kIndexBytes;
    const int64_t position_bytes = (last_block - first_block) * block_bytes;
    auto* indices = scratch<Indices, uint8_t>(positions_ * position_bytes);
    for (int64_t position = 0; position < positions_; ++position)
      each_plane_strip(first_block, last_block, [&](auto blocks, int64_t block) {
        decode_strip<blocks.value>(codes_of<blocks.value>(stage, position * pieces_ + s, block),
                                   columns_ * kLanes, columns_,
                                   indices + position * position_bytes +
                                       (block - first_block) * block_bytes);
      });
    for (int64_t start = 0; start < places_; start += kPlacesAtOnce) {
      const int64_t end = std::min(start + kPlacesAtOnce, places_);
      for (int64_t position = 0; position < positions_; ++position) {
        const uint8_t* tables[kPlacesAtOnce];
        PlaneSample samples[kPlacesAtOnce];
        int64_t count = 0;
        for (int64_t o = start; o < end; ++o) {
          const int32_t i = sources_[position * places_ + o];
          if (i < 0 || kinds[i] != Tables::planes) continue;
          tables[count] = planes + i * table_bytes;
          samples[count] = {tables + count, steps[i], offsets[i], sums_ + o * width_};
          ++count;
        }
        each_plane_strip(first_block, last_block, [&](auto blocks, int64_t block) {
          const int64_t at = block - first_block;
          add_planes<kBits, blocks.value>(indices + position * position_bytes + at * block_bytes, 1,
                                          columns_, samples, count, at * kLanes);
        });
      }
    }
    if (any_floats) add_floats(stage, s, last, first_block, last_block, kinds);
  }

  // Of subspaces that are not all zero.
  static int64_t entries_not_zero(const float* table, int64_t subspaces) {
    int64_t count = 0;
    for (int64_t s = 0; s < subspaces; ++s, table += kLanes)
      count += std::any_of(table, table + kLanes, [](float entry) { return entry != 0; });
    return count * kLanes;
  }

  // What integers do not fit, place by place.
  void add_floats(int64_t stage, int64_t s, int64_t last, int64_t first_block, int64_t last_block,
                  const Tables* kinds) {
    struct OneTable;
    for (int64_t position = 0; position < positions_; ++position) {
      for (int64_t o = 0; o < places_; ++o) {
        const int32_t i = sources_[position * places_ + o];
        if (i < 0 || kinds[i] != Tables::floats) continue;
        turn(i, i + 1);
        float* table = scratch<OneTable, float>(kPlaneTile * kLanes);
        compute_tables(0, s, last, table);
        for (int64_t block = first_block; block < last_block; ++block)
          add_lookups<1, 1>(codes_of<1>(stage, position * pieces_ + s, block), 0, columns_, table, 0,
                            sums_ + o * width_ + (block - first_block) * kLanes, 0);
      }
    }
  }

  void load_books(int64_t stage, int64_t s, int64_t last) {
    struct TileBooks;
    const bool shared = c_.books.book_step == 0;
    const int64_t size = c_.books.dim * kLanes;
    book_step_ = shared ? 0 : size;
    books_ = scratch<TileBooks, float>((shared ? 1 : last - s) * size);
    for (int64_t i = 0; i < (shared ? 1 : last - s); ++i)
      load_book(c_.books, stage, 0, s + i, books_ + i * size);
  }

  // Input places as rows of channels.
  void turn(int64_t start, int64_t end) {
    struct Turned;
    if (c_.channels_last) {
      rows_of_x_ = x_ + start * c_.in;
      x_row_ = c_.in;
      return;
    }
    float* to = scratch<Turned, float>(kPlacesAtOnce * channels_);
    transpose(x_ + start, product(c_.size), channels_, end - start, to, channels_);
    rows_of_x_ = to;
    x_row_ = channels_;
  }

  // (subspaces, 16) of one place, with zeros up to a multiple of 16 subspaces.
  void compute_tables(int64_t row, int64_t s, int64_t last, float* table) const {
    const int64_t dim = c_.books.dim, all = div_up(last - s, kLanes) * kLanes;
    const float* x = rows_of_x_ + row * x_row_ + s * dim;
    const float* book = books_;
    float* const end = table + all * kLanes;
    for (int64_t i = s; i < last; ++i, x += dim, table += kLanes, book += book_step_) {
      const int64_t values = std::min(dim, channels_ - i * dim);
      if (values == 4)
        center_products<4>(book, x, 1, values, table);
      else if (values == 8)
        center_products<8>(book, x, 1, values, table);
      else
        center_products<0>(book, x, 1, values, table);
    }
    std::fill(table, end, 0.0f);
  }

  // `columns_` times 8 subspaces from `subspace` on, which may begin inside of a dword.
  template <int kBlocks>
  const int32_t* codes_of(int64_t stage, int64_t subspace, int64_t block) {
    struct Codes;
    int32_t* to = scratch<Codes, int32_t>(kBlocks * columns_ * kLanes);
    const int64_t first = subspace / kNibbles, bits = subspace % kNibbles * 4;
    for (int64_t b = 0; b < kBlocks; ++b) {
      const int64_t row = group_ * rows_ / kLanes + block + b;
      const int32_t* from = c_.codes + stage * codes_.size() + row * codes_.row_step();
      for (int64_t column = first; column < first + columns_; ++column) {
        const bool ends = column + 1 >= codes_.column_blocks;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const auto low = static_cast<uint32_t>(from[column * kLanes + lane]);
          const auto high =
              ends ? 0u : static_cast<uint32_t>(from[(column + 1) * kLanes + lane]);
          const uint64_t both = uint64_t(high) << 32 | low;
          *to++ = static_cast<int32_t>(static_cast<uint32_t>(both >> bits));
        }
      }
    }
    return to - kBlocks * columns_ * kLanes;
  }

  // y = sums · scale + bias.
  void finish_places(int64_t first_block, int64_t last_block) {
    const int64_t first_row = first_block * kLanes, row = group_ * rows_ + first_row;
    const int64_t rows = std::min(last_block * kLanes, rows_) - first_row;
    for (int64_t o = 0; o < places_; ++o) {
      float* sums = sums_ + o * width_;
      for (int64_t r = 0; r < rows; r += Vec::kWidth) {
        const int64_t n = std::min<int64_t>(Vec::kWidth, rows - r);
        Vec::F v = Vec::load(sums + r);
        if (c_.scale != nullptr) v = Vec::mul(v, Vec::load_part(c_.scale + row + r, n));
        if (c_.bias != nullptr) v = Vec::add(v, Vec::load_part(c_.bias + row + r, n));
        if (c_.channels_last)
          Vec::store_part(y_ + o * c_.out + first_row + r, n, v);
        else
          Vec::store(sums + r, v);
      }
    }
    const int64_t all = product(c_.places);
    if (!c_.channels_last) transpose(sums_, width_, places_, rows, y_ + first_row * all, all);
  }

  const Convolution& c_;
  const int64_t channels_, pieces_, positions_, rows_;
  const NibbleLayout codes_;
  const int64_t places_, group_;
  int64_t first_line_, inputs_, columns_ = 0, width_ = 0, book_step_ = 0, x_row_ = 0;
  const float* x_;
  const float* rows_of_x_ = nullptr;
  float* y_;
  int32_t* sources_ = nullptr;
  float* sums_ = nullptr;
  float* books_ = nullptr;
};

template <int kBits>
void convolve_nibbles(const Convolution& c, const Pool& pool) {
  constexpr double kWorthAThread = 15e6;
  const int64_t blocks = div_up(c.out / c.groups, kLanes);
  const auto worth = static_cast<int64_t>(c.picoseconds / kWorthAThread);
  const int64_t threads = std::clamp<int64_t>(worth, 1, std::max(pool.threads, 1));
  const int64_t pieces = std::min(div_up(c.in / c.groups, c.books.dim), kPlaneTile);
  const int64_t needed = std::max(div_up(product(c.size) * pieces, kStripTables),
                                  div_up(threads, c.images * c.groups));
  const int64_t strips = std::min(needed, c.places[0]);
  // Threads that share a strip compute its tables each.
  const int64_t parts =
      std::min(blocks, std::max<int64_t>(threads / (c.images * c.groups * strips), 1));
  const int64_t tasks = c.images * c.groups * strips * parts;
  const auto task = [&](int64_t at) {
    const int64_t part = at % parts, strip = at / parts % strips;
    const int64_t group = at / parts / strips % c.groups, image = at / parts / strips / c.groups;
    // As equal as lines allow.
    const int64_t first = strip * c.places[0] / strips, last = (strip + 1) * c.places[0] / strips;
    ConvolvedStrip(c, image, group, first, last)
        .template run<kBits>(part * blocks / parts, (part + 1) * blocks / parts);
  };
  const auto run = [](int64_t at, void* context) {
    (*static_cast<decltype(task)*>(context))(at);
  };
  void* context = const_cast<void*>(static_cast<const void*>(&task));
  if (threads <= 1)
    for (int64_t at = 0; at < tasks; ++at) task(at);
  else
    pool.run(tasks, run, context);
}

}  // namespace
}  // namespace vq
