// Convolutions whose codes choose among up to 16 centers of channels: the tables of an input place
// are computed once and looked up by every kernel position (Quantized CNN, Wu et al. 2016, arXiv
// 1512.06473, section 3.2). A position is a linear layer whose samples are places.
#pragma once

#include "lookup_nibbles.h"
#include "place_tables.h"
#include "sources.h"

namespace vq {
namespace {

// Tables of a strip: of whole lines of the first dimension. What strips of output lines read
// overlaps, so few and large ones repeat least; sums of all of their places stay where channels are
// many.
constexpr int64_t kStripTables = 1 << 16;
// Places whose tables are made side by side.
constexpr int64_t kTablesAtOnce = 16;
// Output places of a chunk, about: whole lines, whose input lines' tables are there at the same
// time.
constexpr int64_t kChunkPlaces = 64;
// Of codes that stay in the nearest cache while a chunk's places go through them.
constexpr int64_t kNearIndices = 16 << 10;

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
        first_(first),
        line_(c.places[1] * c.places[2]),
        lines_(last - first),
        places_(lines_ * line_),
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
    struct Sources;
    sources_ = scratch<Sources, int32_t>(positions_ * places_);
    find_sources(c, first, last, first_line_, sources_);
  }

  template <int kBits>
  void run(int64_t first_block, int64_t last_block) {
    struct Sums;
    first_block_ = first_block;
    last_block_ = last_block;
    width_ = (last_block - first_block) * kLanes;
    // Sums of more than one tile wait for the last one.
    kept_ = c_.books.stages > 1 || pieces_ > kPlaneTile;
    sums_ = scratch<Sums, float>((kept_ ? places_ : most_places()) * width_);
    if (kept_) std::fill(sums_, sums_ + places_ * width_, 0.0f);
    for (int64_t stage = 0; stage < c_.books.stages; ++stage)
      for (int64_t s = 0; s < pieces_; s += kPlaneTile)
        add_tile<kBits>(stage, s, std::min(s + kPlaneTile, pieces_));
  }

 private:
  // Lines of a chunk, and its places.
  int64_t chunk_lines() const { return std::min(div_up(kChunkPlaces, line_), lines_); }
  int64_t most_places() const { return chunk_lines() * line_; }

  // The subspaces [s, last) of one stage: chunks of output lines one after another, behind the
  // tables of the input lines that they read.
  template <int kBits>
  void add_tile(int64_t stage, int64_t s, int64_t last) {
    columns_ = div_up(last - s, kNibbles);
    load_books(stage, s, last);
    decode_positions(stage, s);
    make_room<kBits>();
    const bool ends = stage == c_.books.stages - 1 && last == pieces_;
    int64_t made = 0;
    for (int64_t line = 0; line < lines_; line += chunk_lines()) {
      const int64_t end = std::min(line + chunk_lines(), lines_);
      const int64_t first = line * line_, count = (end - line) * line_;
      const int64_t needed = inputs_before(end);
      for (; made < needed; made += kTablesAtOnce)
        make_tables<kBits>(made, std::min(made + kTablesAtOnce, inputs_), s, last);
      float* sums = sums_ + (kept_ ? first * width_ : 0);
      if (!kept_) std::fill(sums, sums + count * width_, 0.0f);
      add_chunk<kBits>(first, count, sums);
      if (any_floats_) add_floats(stage, s, last, first, count, sums);
      if (ends) finish_places(first, count, sums);
    }
  }

  // Input places of the strip that lines of outputs before `line` read.
  int64_t inputs_before(int64_t line) const {
    const int64_t inner = c_.size[1] * c_.size[2];
    const int64_t reach = (first_ + line - 1) * c_.stride[0] - c_.padding[0] +
                          (c_.kernel[0] - 1) * c_.dilation[0] + 1;
    return std::clamp<int64_t>((reach - first_line_) * inner, 0, inputs_);
  }

  // Tables stand in a ring: of as many input lines as a chunk reads, and some that are made ahead.
  template <int kBits>
  void make_room() {
    struct PlaneBytes;
    struct Found;
    struct ByFloats;
    const int64_t inner = c_.size[1] * c_.size[2];
    const int64_t reach =
        (chunk_lines() - 1) * c_.stride[0] + (c_.kernel[0] - 1) * c_.dilation[0] + 1;
    ring_ = std::min(reach * inner + kTablesAtOnce, inputs_);
    table_bytes_ = columns_ * Planes::kColumnBytes<kBits>;
    planes_ = scratch<PlaneBytes, uint8_t>((ring_ + 2) * table_bytes_);
    uint8_t* zeros = planes_ + ring_ * table_bytes_;
    spare_ = zeros + table_bytes_;
    std::fill(zeros, zeros + table_bytes_, uint8_t{0});
    tables_ = scratch<Found, PlaneTable>(inputs_ + 1) + 1;
    zero_ = {zeros, 0.0f, 0};
    tables_[-1] = zero_;  // beyond the image
    by_floats_ = scratch<ByFloats, bool>(inputs_);
    any_floats_ = false;
  }

  // Of the input places [start, end), at most kTablesAtOnce.
  template <int kBits>
  void make_tables(int64_t start, int64_t end, int64_t s, int64_t last) {
    if constexpr (Planes::kSideBySide)
      make_side_by_side<kBits>(start, end, s, last);
    else
      make_one_by_one<kBits>(start, end, s, last);
  }

  uint8_t* planes_of(int64_t input) const { return planes_ + input % ring_ * table_bytes_; }

  // What becomes of a place's tables; those that are not integers are looked up in the end.
  void note(int64_t input, bool fits, float largest, float per_unit, uint32_t offset) {
    by_floats_[input] = !fits;
    any_floats_ |= !fits;
    tables_[input] =
        fits && largest > 0 ? PlaneTable{planes_of(input), 1 / per_unit, offset} : zero_;
  }

  template <int kBits>
  void make_side_by_side(int64_t start, int64_t end, int64_t s, int64_t last) {
    struct Entries;
    struct Channels;
    struct Spreads;
    PlacesSpread& spread = *scratch<Spreads, PlacesSpread>(1);
    const int64_t dim = c_.books.dim;
    const int64_t channels = std::min((last - s) * dim, channels_ - s * dim);
    float* x = scratch<Channels, float>(channels * kTablesAtOnce);
    if (c_.channels_last) {
      transpose(x_ + start * c_.in + s * dim, c_.in, end - start, channels, x, kTablesAtOnce);
    } else {
      const int64_t size = product(c_.size);
      const float* from = x_ + s * dim * size + start;
      for (int64_t i = 0; i < channels; ++i, from += size)
        for (int64_t v = 0; v < end - start; v += Vec::kWidth)
          Vec::store(x + i * kTablesAtOnce + v,
                     Vec::load_part(from + v, std::min<int64_t>(Vec::kWidth, end - start - v)));
    }
    float* entries = scratch<Entries, float>(columns_ * kNibbles * kLanes * kPlaces);
    for (int64_t first = start; first < end; first += kPlaces) {
      place_tables<kBits>(books_, book_step_, dim, x + (first - start), kTablesAtOnce, channels,
                          last - s, entries, &spread);
      alignas(64) float per_unit[kPlaces];
      alignas(64) uint32_t offsets[kPlaces];
      uint8_t* to[kPlaces];
      for (int64_t lane = 0; lane < kPlaces; ++lane)
        to[lane] = first + lane < end ? planes_of(first + lane) : spare_;
      store_places<kBits>(entries, columns_, spread, to, per_unit, offsets);
      for (int64_t lane = 0; lane < std::min(kPlaces, end - first); ++lane) {
        const float largest = spread.largest[lane], squares = spread.squares[lane];
        const int64_t known = (last - s) * kLanes;
        const bool fits =
            fits_planes<kBits>(largest, squares, known) ||
            fits_planes<kBits>(largest, squares,
                               entries_not_zero(entries + lane, last - s, kPlaces));
        note(first + lane, fits, largest, per_unit[lane], offsets[lane]);
      }
    }
  }

  template <int kBits>
  void make_one_by_one(int64_t start, int64_t end, int64_t s, int64_t last) {
    struct Floats;
    // Some side by side all the same: each waits for its own spread.
    const int64_t wide = div_up(last - s, kLanes) * kLanes, table_floats = wide * kLanes;
    const int64_t together = std::clamp<int64_t>(256 / wide, 1, kTablesAtOnce);
    float* floats = scratch<Floats, float>(together * table_floats);
    Spread spreads[kTablesAtOnce];
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
        const float* table = floats + (i - begin) * table_floats;
        // Zeros are integers as they are: places with few channels above 0 are no peaks.
        const bool fits = fits_planes<kBits>(spread.largest, spread.squares, (last - s) * kLanes) ||
                          fits_planes<kBits>(spread.largest, spread.squares,
                                             entries_not_zero(table, last - s, 1));
        const float per_unit = entries_per_unit<kBits>(spread, columns_ * kNibbles);
        uint32_t offset = 0;
        if (fits && spread.largest > 0)
          offset = store_planes<kBits>(table, columns_, spread.low, per_unit, planes_of(i));
        note(i, fits, spread.largest, per_unit, offset);
      }
    }
  }

  // The codes of all positions, as indices into the planes.
  void decode_positions(int64_t stage, int64_t s) {
    struct Indices;
    const int64_t block_bytes = columns_ * kIndexBytes;
    position_bytes_ = (last_block_ - first_block_) * block_bytes;
    indices_ = scratch<Indices, uint8_t>(positions_ * position_bytes_);
    for (int64_t position = 0; position < positions_; ++position)
      each_plane_strip(first_block_, last_block_, [&](auto blocks, int64_t block) {
        decode_strip<blocks.value>(
            codes_of<blocks.value>(stage, position * pieces_ + s, block), columns_ * kLanes,
            columns_, indices_ + position * position_bytes_ + (block - first_block_) * block_bytes);
      });
  }

  // `count` output places from `first` on.
  template <int kBits>
  void add_chunk(int64_t first, int64_t count, float* sums) {
    each_plane_strip(first_block_, last_block_, [&](auto blocks, int64_t block) {
      const int64_t at = block - first_block_, bytes = columns_ * kIndexBytes;
      const int64_t near = std::max<int64_t>(kNearIndices / (blocks.value * bytes), 1);
      for (int64_t position = 0; position < positions_; position += near)
        add_positions<kBits, blocks.value>(indices_ + position * position_bytes_ + at * bytes,
                                           position_bytes_, std::min(near, positions_ - position),
                                           columns_, tables_, sources_ + position * places_ + first,
                                           places_, count, sums + at * kLanes, width_);
    });
  }

  // What integers do not fit, place by place.
  void add_floats(int64_t stage, int64_t s, int64_t last, int64_t first, int64_t count,
                  float* sums) {
    struct OneTable;
    for (int64_t position = 0; position < positions_; ++position) {
      for (int64_t o = 0; o < count; ++o) {
        const int32_t i = sources_[position * places_ + first + o];
        if (i < 0 || !by_floats_[i]) continue;
        turn(i, i + 1);
        float* table = scratch<OneTable, float>(kPlaneTile * kLanes);
        compute_tables(0, s, last, table);
        for (int64_t block = first_block_; block < last_block_; ++block)
          add_lookups<1, 1>(codes_of<1>(stage, position * pieces_ + s, block), 0, columns_, table,
                            0, sums + o * width_ + (block - first_block_) * kLanes, 0);
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
    float* to = scratch<Turned, float>(kTablesAtOnce * channels_);
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

  // y = sums · scale + bias, of `count` places from `first` on.
  void finish_places(int64_t first, int64_t count, float* sums) {
    const int64_t first_row = first_block_ * kLanes, row = group_ * rows_ + first_row;
    const int64_t rows = std::min(last_block_ * kLanes, rows_) - first_row;
    const bool changed = c_.scale != nullptr || c_.bias != nullptr || c_.channels_last;
    for (int64_t o = 0; changed && o < count; ++o) {
      float* of_place = sums + o * width_;
      for (int64_t r = 0; r < rows; r += Vec::kWidth) {
        const int64_t n = std::min<int64_t>(Vec::kWidth, rows - r);
        Vec::F v = Vec::load(of_place + r);
        if (c_.scale != nullptr) v = Vec::mul(v, Vec::load_part(c_.scale + row + r, n));
        if (c_.bias != nullptr) v = Vec::add(v, Vec::load_part(c_.bias + row + r, n));
        if (c_.channels_last)
          Vec::store_part(y_ + (first + o) * c_.out + first_row + r, n, v);
        else
          Vec::store(of_place + r, v);
      }
    }
    const int64_t all = product(c_.places);
    if (!c_.channels_last) transpose(sums, width_, count, rows, y_ + first_row * all + first, all);
  }

  const Convolution& c_;
  const int64_t channels_, pieces_, positions_, rows_;
  const NibbleLayout codes_;
  const int64_t first_, line_, lines_, places_, group_;
  int64_t first_block_ = 0, last_block_ = 0, width_ = 0;
  int64_t first_line_, inputs_, columns_ = 0, book_step_ = 0, x_row_ = 0;
  int64_t ring_ = 0, table_bytes_ = 0, position_bytes_ = 0;
  bool kept_ = false, any_floats_ = false;
  const float* x_;
  const float* rows_of_x_ = nullptr;
  float* y_;
  int32_t* sources_ = nullptr;  // (positions, output places): see find_sources()
  float* sums_ = nullptr;
  float* books_ = nullptr;
  uint8_t* planes_ = nullptr;
  uint8_t* spare_ = nullptr;  // of no place
  uint8_t* indices_ = nullptr;
  PlaneTable* tables_ = nullptr;  // of every input place; one before the first is of zeros
  PlaneTable zero_{};
  bool* by_floats_ = nullptr;
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
