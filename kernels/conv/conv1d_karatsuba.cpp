#include "conv/conv1d_karatsuba.h"

#include <cstring>
#include <numeric>

#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/host.h"

// What surrounds the loops of conv1d_karatsuba_tiles.cpp: how a convolution becomes tiles of rows (Side, Problem,
// Tiles), where factors and products lie (Groups), how tiles are divided among tasks (ProductPlan, GradientPlan), and
// the two passes. product() is the forward and the input gradient, weight_gradient() is at the end of the file.
//
// A tile is 8 rows of y (7 taps) or 2 rows (2 taps) that are computed together. For a group of tiles each product of
// the scheme is one matrix product, [tiles][in] times [in][out], of factors that were made by sums and differences of
// rows and of taps.
namespace nacre::karatsuba {
namespace {

constexpr int64_t outputs_per_task = 64;  // of a weight gradient

/// Zeros for rows that lie outside of the signal, as wide as the widest supported row.
constexpr int64_t max_width = 8192;
alignas(64) const float zero_row[max_width] = {};

int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

/// One side of the convolution as rows of `width` floats. A row of the strided side holds one stride of samples. Row 0
/// begins at `offset` in an item, so the first and the last rows may extend beyond the item.
struct Side {
  int64_t item, rows, width, offset = 0, channels = width;
  bool is_whole(int64_t row) const {
    const int64_t at = row * width + offset;
    return at >= 0 && at + width <= item;
  }
  /// The part of a row that lies in its item.
  struct Part {
    int64_t at, skip, size;  // its begin in the item, its begin in the row, its floats
  };
  Part part(int64_t row) const {
    const int64_t at = row * width + offset, begin = std::max<int64_t>(at, 0), end = std::min(at + width, item);
    return {begin, begin - at, std::max<int64_t>(end - begin, 0)};
  }
  /// Copies a row with samples beyond an end of its item, which are reflected. Every row of [0, rows) is read whole by
  /// an output, so its samples are no further outside than the padding, and one reflection suffices.
  void copy_reflected(const float* of_item, int64_t row, float* to) const {
    for (int64_t i = 0; i < width; i += channels) {
      int64_t at = row * width + offset + i;
      at = at < 0 ? -at : at >= item ? 2 * (item - channels) - at : at;
      std::memcpy(to + i, of_item + at, static_cast<size_t>(channels) * sizeof(float));
    }
  }
};

/// y row t = sum over k of x row (t + k dilation - left) times tap k. With stride 1 rows are samples. A kernel of two
/// strides has two taps: the strided side has rows of one stride, which begin at a multiple of the stride from the
/// first padded sample, so row t of the other side reads its rows t and t + 1. The input gradient exchanges the sides
/// and mirrors the taps: row r of dx is made of the rows r - 1 and r of dy.
struct Problem {
  Side x, y;
  int64_t batch, dilation = 1, left = 0;
  Padding padding = Padding::zero;
  bool adjoint = false;  // the weight is [in][taps][out] and its taps run backwards

  static Problem forward(Shape x, Shape y, const Conv1dGeometry& g) {
    Problem p{.x = side(x), .y = side(y), .batch = x.batch, .padding = g.padding};
    if (g.stride == 1)
      p.dilation = g.dilation, p.left = g.left;
    else
      p.x = strides(x, y.time + 1, g);
    return p;
  }
  static Problem input_gradient(Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g) {
    Problem p{.x = side(dy), .y = side(dx), .batch = dx.batch, .adjoint = true};
    if (g.stride == 1)
      p.dilation = g.dilation, p.left = (weight.time - 1) * g.dilation - g.left;
    else
      p.y = strides(dx, (dx.time + g.left + g.stride - 1) / g.stride, g), p.left = 1;
    return p;
  }

 private:
  static Side side(Shape s) { return {.item = s.time * s.channels, .rows = s.time, .width = s.channels}; }
  static Side strides(Shape s, int64_t rows, const Conv1dGeometry& g) {
    return {.item = s.time * s.channels,
            .rows = rows,
            .width = g.stride * s.channels,
            .offset = -g.left * s.channels,
            .channels = s.channels};
  }
};

/// A range of a tensor's elements.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

/// The tiles of outputs. The rows of a tile are `dilation` rows apart, so a sheet of `phases` tiles covers contiguous
/// rows: tile (sheet, phase) has the rows sheet rows_out dilation + phase + r dilation, r < rows_out, and reads rows_in
/// rows of x at the same distance. Tiles are numbered by item, then sheet, then phase. Where the dilation exceeds the
/// rows of y, there are only as many phases as rows.
struct Tiles {
  Problem p;
  int64_t rows_in, rows_out, taps, phases, sheets, count;  // sheets: per item; count: all tiles

  Tiles(const Problem& problem, const Scheme& s)
      : p(problem), rows_in(s.rows_in), rows_out(s.rows_out), taps(s.taps), phases(std::min(p.dilation, p.y.rows)) {
    sheets = ((p.y.rows + p.dilation - 1) / p.dilation + rows_out - 1) / rows_out;
    count = p.batch * sheets * phases;
  }
  /// The fraction of computed outputs that exist.
  double used_fraction() const {
    return static_cast<double>(p.batch * p.y.rows) / static_cast<double>(count * rows_out);
  }

  /// The sheets [begin, end) of one item that a run of tiles touches.
  struct Piece {
    int64_t item, begin, end;
  };
  /// Calls f(piece) for each item in the tiles [begin, end).
  template <class F>
  void pieces(int64_t begin, int64_t end, F&& f) const {
    while (begin < end) {
      const Piece piece = piece_at(begin, end);
      f(piece);
      begin = (piece.item + 1) * sheets * phases;
    }
  }
  Piece piece_at(int64_t begin, int64_t end) const {
    const int64_t item = begin / (sheets * phases), first = item * sheets;
    return {item, begin / phases - first, std::min(sheets, (end + phases - 1) / phases - first)};
  }
  /// The range of x that the tiles of a piece read.
  Range read(const Piece& c) const {
    const int64_t low = c.begin * rows_out * p.dilation - p.left;
    return part_of(p.x, c.item, low, low + phases + ((c.end - c.begin) * rows_out + taps - 2) * p.dilation);
  }
  /// The range of y that they write, for pieces of whole sheets.
  Range written(const Piece& c) const {
    const int64_t sheet = rows_out * p.dilation;
    return part_of(p.y, c.item, c.begin * sheet, std::min(c.end * sheet, p.y.rows));
  }
  /// Upper bounds of the floats that n tiles read and write.
  int64_t most_read(int64_t n) const {
    const int64_t items = n / (sheets * phases) + 2, rows = (n / phases + 2) * rows_out * p.dilation;
    return std::min({items * p.x.item, p.batch * p.x.item, (rows + items * (phases + taps * p.dilation)) * p.x.width});
  }
  int64_t most_written(int64_t n) const {
    return std::min(p.batch * p.y.item, (n / phases + 2) * rows_out * p.dilation * p.y.width);
  }

  /// Iterates over tiles without divisions, which would take as long as the sums of a tile.
  class Walk {
   public:
    enum class Ranges : uint8_t { no, read, written };
    /// Begins at tile `begin`. With `local`, the ranges that the pieces up to `end` read or write are stored
    /// contiguously in a local buffer instead of in the tensor.
    Walk(const Tiles& t, int64_t begin, int64_t end, Ranges local) : t_(t), end_(end), tile_(begin), local_(local) {
      item_ = begin / (t.sheets * t.phases);
      sheet_ = begin / t.phases % t.sheets, phase_ = begin % t.phases;
      row_ = sheet_ * t.rows_out * t.p.dilation + phase_;
      enter_piece();
    }
    int64_t item() const { return item_; }
    /// Element i of the tensor is element i + shift() of the buffer.
    int64_t shift() const { return shift_; }
    bool valid() const { return tile_ < end_; }
    void next() {
      ++tile_, ++row_;
      if (++phase_ < t_.phases) return;
      phase_ = 0;
      if (++sheet_ == t_.sheets) sheet_ = 0, ++item_, enter_piece();
      row_ = sheet_ * t_.rows_out * t_.p.dilation;
    }
    /// The rows of x that the tile reads, with their padding. Rows that cross an end are copied to `edge_rows`.
    void inputs(const float* x, float* edge_rows, const float** rows) const {
      const Problem& problem = t_.p;
      if (!valid()) return void(std::fill(rows, rows + t_.rows_in, zero_row));
      const int64_t base = item_ * problem.x.item + shift_;
      int64_t at = row_ - problem.left;
      const int64_t last = at + (t_.rows_in - 1) * problem.dilation;
      // Nearly all tiles are inside their item: rows at equal distances, in place.
      if (at >= 0 && last < problem.x.rows && problem.x.is_whole(at) && problem.x.is_whole(last)) {
        const float* from = x + (base + at * problem.x.width + problem.x.offset);
        for (int64_t r = 0; r < t_.rows_in; ++r, from += problem.dilation * problem.x.width) rows[r] = from;
        return;
      }
      for (int64_t r = 0; r < t_.rows_in; ++r, at += problem.dilation) {
        int64_t s = at;
        const bool reflect = problem.padding == Padding::reflect;
        if (reflect && problem.x.channels == problem.x.width)  // rows are samples
          s = s < 0 ? -s : s >= problem.x.rows ? 2 * (problem.x.rows - 1) - s : s;
        rows[r] = zero_row;
        if (s < 0 || s >= problem.x.rows) continue;
        if (problem.x.is_whole(s)) {
          rows[r] = x + (base + s * problem.x.width + problem.x.offset);
          continue;
        }
        float* const copy = edge_rows + r * problem.x.width;
        rows[r] = copy;
        if (reflect) {
          problem.x.copy_reflected(x + base, s, copy);
          continue;
        }
        const Side::Part part = problem.x.part(s);
        std::memset(copy, 0, static_cast<size_t>(problem.x.width) * sizeof(float));
        std::memcpy(copy + part.skip, x + (base + part.at), static_cast<size_t>(part.size) * sizeof(float));
      }
    }
    /// The row of y that is row r of the tile, or -1 if it does not exist.
    int64_t output(int64_t r) const {
      const int64_t t = row_ + r * t_.p.dilation;
      return valid() && t < t_.p.y.rows ? t : -1;
    }

   private:
    void enter_piece() {
      if (local_ == Ranges::no || !valid()) return;
      const Piece piece = t_.piece_at(tile_, end_);
      const Range range = local_ == Ranges::read ? t_.read(piece) : t_.written(piece);
      shift_ = filled_ - range.begin;
      filled_ += range.size();
    }
    // row_ is the first row of y of the tile. filled_: floats of the local buffer before the next piece.
    const Tiles& t_;
    int64_t end_, tile_, item_ = 0, sheet_ = 0, phase_ = 0, row_ = 0, shift_ = 0, filled_ = 0;
    Ranges local_;
  };

 private:
  static Range part_of(const Side& side, int64_t item, int64_t low, int64_t high) {
    const auto clipped = [&](int64_t row) {
      return item * side.item + std::clamp<int64_t>(row * side.width + side.offset, 0, side.item);
    };
    return {clipped(low), clipped(high)};
  }
};

/// Layout of the factors and products of a group of tiles: [product][tile][channels]. 26 streams are written or read at
/// a time. They must not map to the same set of the first-level cache, nor span more pages than the TLB holds.
struct Groups {
  int64_t products, tiles, channels;
  int64_t of_product() const { return tiles * channels + 16; }
  int64_t step() const { return products * of_product(); }
};
/// Floats from product to product of a whole weight: at least `floats`, and 16 more than a multiple of 64. So the same
/// element of successive products is one cache line further within 256 bytes, for the same reason as above.
int64_t product_stride(int64_t floats) { return floats / 64 * 64 + (floats % 64 > 16 ? 80 : 16); }

/// How product() divides its tiles: a group of `rows` tiles is what the matrix products take at a time (12 where at
/// most 32 outputs leave registers for that many rows, else 6), a block is what one thread computes from factors in its
/// slot.
struct ProductPlan {
  const Scheme& scheme;
  Tiles tiles;
  int64_t in, out, rows, block, blocks;  // rows: tiles per group; block: tiles per block
  Groups x, y;
  /// With `sheets`, a block consists of whole sheets.
  ProductPlan(const Problem& p, const Scheme& s, bool sheets)
      : scheme(s), tiles(p, s), in(p.x.width), out(p.y.width), rows(out <= 32 ? 12 : 6) {
    x = {s.products, rows, in}, y = {s.products, rows, out};
    // Blocks large enough that reading the weights pays. Their number is a multiple of four, for two and four threads
    // alike.
    const int64_t groups = (tiles.count + rows - 1) / rows, max_groups = std::max<int64_t>(512 / (in + out), 4);
    const int64_t wanted_blocks = ((groups + max_groups - 1) / max_groups + 3) / 4 * 4;
    block = (groups + wanted_blocks - 1) / wanted_blocks * rows;
    if (sheets) {
      // Snake's slope is applied to contiguous rows of y, which only whole sheets have.
      const int64_t unit = std::lcm(rows, tiles.phases);
      block = (block + unit - 1) / unit * unit;
    }
    blocks = (tiles.count + block - 1) / block;
  }
  int64_t weights() const { return scheme.products * product_stride(in * out); }
  int64_t factors() const { return block / rows * (x.step() + y.step()); }
  int64_t edge_floats() const { return scheme.rows_in * in + scheme.rows_out * out; }
  /// Floats per thread: factors, rows that cross an item's end, Snake's output, and g with the sums for Snake's
  /// parameters.
  int64_t slot(bool snake, int64_t slope_channels) const {
    return factors() + edge_floats() + (snake ? rounded(tiles.most_read(block)) : 0) +
           (slope_channels > 0 ? rounded(tiles.most_written(block)) + SnakeRows::sums(slope_channels) : 0);
  }
  /// The total, with a bias repeated to the width of a row.
  int64_t scratch(const Context& ctx, bool snake, int64_t slope_channels) const {
    return weights() + out + ctx.threads() * slot(snake, slope_channels);
  }
};

/// Computes the factors of the weight for 16 outputs from `begin` on: [product][panel of outputs][in][outputs of the
/// panel].
void spread_weight(const Scheme& scheme, bool adjoint, const float* weight, int64_t in, int64_t out, int64_t begin,
                   float* to) {
  const int64_t column = begin / panel * panel, width = std::min(panel, out - column), step = product_stride(in * out);
  const int taps = scheme.taps;
  float* const of_column = to + column * in + (begin - column);
  const float* rows[most_rows_out] = {};
  if (adjoint) {
    for (int64_t i = 0; i < in; ++i) {
      for (int k = 0; k < taps; ++k) rows[k] = weight + (i * taps + taps - 1 - k) * out + begin;
      scheme.spread(rows, 16, of_column + i * width, step);
    }
    return;
  }
  // The weight is [out][taps][in], the factors have outputs innermost: 16 x 16 squares are transposed on the way.
  alignas(64) float square[most_rows_out][16][16];
  for (int64_t i = 0; i < in; i += 16) {
    for (int k = 0; k < taps; ++k)
      matrices().transpose(weight + (begin * taps + k) * in + i, taps * in, square[k][0], 16);
    for (int64_t j = 0; j < 16; ++j) {
      for (int k = 0; k < taps; ++k) rows[k] = square[k][j];
      scheme.spread(rows, 16, of_column + (i + j) * width, step);
    }
  }
}

/// Arguments of product().
struct Factors {
  const float *x, *weight;
  View<const float> bias;  ///< repeated if it is narrower than a row of y, for each of the row's samples
  const float* add;
  float* y;
  const SnakeRows* snake = nullptr;   ///< applied to x first
  const SnakeSlope* slope = nullptr;  ///< y is only passed on as g: it is not stored, and add is not used
};

/// y = x * weight + bias + add
void product(Context& ctx, const Problem& problem, const Scheme& scheme, const Factors& f, float* scratch) {
  // The weight's factors are computed once. Then each block runs on one thread, in its slot: factors of x for all tiles
  // (after Snake, if any), one matrix product per product of the scheme, and the rows of y from the sums of products.
  // With `slope`, these rows stay local, are multiplied by Snake's slope, and add to the block's partial sums. Layout
  // of scratch: weight factors, wide bias, one slot per thread.
  using Walk = Tiles::Walk;
  const ProductPlan plan(problem, scheme, f.slope != nullptr);
  const Tiles& tiles = plan.tiles;
  const Matrices& matrix = matrices();
  const int64_t in = plan.in, out = plan.out, rows = plan.rows;
  parallel_parts(ctx, out / 16,
                 [&](int64_t o) { spread_weight(scheme, problem.adjoint, f.weight, in, out, o * 16, scratch); });
  float* const wide_bias = scratch + plan.weights();
  if (f.bias)
    for (int64_t j = 0; j < out; ++j) wide_bias[j] = f.bias[j % f.bias.elements()];
  float* const slots = wide_bias + out;
  const int64_t slot = plan.slot(f.snake != nullptr, f.slope != nullptr ? f.slope->rows.channels() : 0);
  parallel_parts(ctx, plan.blocks, [&](int64_t block, int thread) {
    const int64_t begin = block * plan.block, end = std::min(begin + plan.block, tiles.count);
    const int64_t groups = (end - begin + rows - 1) / rows;
    float* const factors = slots + thread * slot;
    float* const sums = factors + plan.block / rows * plan.x.step();
    float* const edge_rows_in = factors + plan.factors();
    float* const edge_rows_out = edge_rows_in + scheme.rows_in * in;
    float* const local = edge_rows_out + scheme.rows_out * out;

    const float* x = f.x;
    if (f.snake != nullptr) {
      float* to = local;
      tiles.pieces(begin, end, [&](const Tiles::Piece& piece) {
        const Range r = tiles.read(piece);
        f.snake->forward(f.x + r.begin, to, r.size() / f.snake->channels());
        to += r.size();
      });
      x = local;
    }
    // The last group may have tiles beyond the end: they are zero, and their products are computed and ignored.
    Walk input_tile(tiles, begin, end, f.snake != nullptr ? Walk::Ranges::read : Walk::Ranges::no);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t t = 0; t < rows; ++t, input_tile.next()) {
        const float* inputs[most_rows_in];
        input_tile.inputs(x, edge_rows_in, inputs);
        scheme.split(inputs, in, factors + g * plan.x.step() + t * in, plan.x.of_product());
      }
    for (int p = 0; p < scheme.products; ++p)
      for (int64_t j = 0; j < out; j += panel)
        matrix.multiply(factors + p * plan.x.of_product(), in, plan.x.step(),
                        scratch + p * product_stride(in * out) + j * in, std::min(panel, out - j), in,
                        sums + p * plan.y.of_product() + j, out, plan.y.step(), rows, groups);

    // Rows of y: the sums of products, plus bias and add. Tiles are walked in the same order as above.
    float* const y = f.slope != nullptr ? local : f.y;
    Walk output_tile(tiles, begin, end, f.slope != nullptr ? Walk::Ranges::written : Walk::Ranges::no);
    for (int64_t t = 0; output_tile.valid(); ++t, output_tile.next()) {
      const int64_t base = output_tile.item() * problem.y.item + output_tile.shift();
      float* to[most_rows_out] = {};
      const float* added[most_rows_out];
      // Rows that cross an end of their item are computed in edge_rows_out, and the part that exists is copied.
      bool crosses_edge = false;
      for (int64_t r = 0; r < scheme.rows_out; ++r) {
        const int64_t row = output_tile.output(r);
        if (row < 0) continue;
        const int64_t at = base + row * out + problem.y.offset;
        if (problem.y.is_whole(row)) {
          to[r] = y + at, added[r] = f.add == nullptr ? nullptr : f.add + at;
          continue;
        }
        crosses_edge = true;
        to[r] = edge_rows_out + r * out, added[r] = to[r];
        const Side::Part part = problem.y.part(row);
        if (f.add != nullptr)
          std::memcpy(to[r] + part.skip, f.add + base + part.at, static_cast<size_t>(part.size) * sizeof(float));
      }
      scheme.gather(sums + t / rows * plan.y.step() + t % rows * out, plan.y.of_product(), out,
                    f.bias ? wide_bias : nullptr, f.add != nullptr ? added : nullptr, to);
      if (!crosses_edge) continue;
      for (int64_t r = 0; r < scheme.rows_out; ++r) {
        const int64_t row = output_tile.output(r);
        if (row < 0 || problem.y.is_whole(row)) continue;
        const Side::Part part = problem.y.part(row);
        std::memcpy(y + base + part.at, to[r] + part.skip, static_cast<size_t>(part.size) * sizeof(float));
      }
    }
    if (f.slope == nullptr) return;
    const SnakeSlope& slope = *f.slope;
    const int64_t channels = slope.rows.channels();
    float* const partials = slope.partials == nullptr ? nullptr : local + rounded(tiles.most_written(plan.block));
    if (partials != nullptr) slope.rows.clear(partials);
    const float* g = local;
    tiles.pieces(begin, end, [&](const Tiles::Piece& piece) {
      const Range r = tiles.written(piece);
      slope.rows.backward(slope.x + r.begin, g, slope.dx == nullptr ? nullptr : slope.dx + r.begin, slope.add,
                          r.size() / channels, partials);
      g += r.size();
    });
    if (partials != nullptr) slope.rows.add_up(partials, slope.partials + block * 2 * channels);
  });
}

/// How weight_gradient() divides its work: a task has one part of the tiles and up to 64 outputs. Groups have 8 tiles,
/// the depth of multiply_across. There are parts enough for at least three tasks. More parts are used only if each has
/// at least 512 tiles, because every part has sums of the whole weight.
struct GradientPlan {
  const Scheme& scheme;
  Tiles tiles;
  int64_t in, out, block, parts, output_slices;
  Groups x, y;
  GradientPlan(const Problem& p, const Scheme& s) : scheme(s), tiles(p, s), in(p.x.width), out(p.y.width) {
    x = {s.products, depth_of_group, in}, y = {s.products, depth_of_group, outputs_per_task};
    // Groups of eight tiles per block: the factors of x and dy should fit the second-level cache.
    block = in <= 64 ? 6 : 3;
    if (s.products <= 3) block = in <= 512 ? 12 : 6;
    output_slices = (out + outputs_per_task - 1) / outputs_per_task;
    parts = std::clamp<int64_t>(tiles.count / 512, std::max<int64_t>(4 / output_slices, 1), 16);
  }
  int64_t sums() const { return scheme.products * product_stride(in * out); }
  // Floats per thread: the factors of a block of groups, and rows of x that cross an end of their item.
  int64_t slot() const { return block * (x.step() + y.step()) + scheme.rows_in * in; }
};

// Seven taps mean stride 1, because a kernel of two strides has an even number of taps.
const Scheme& scheme_of(Shape weight) { return scheme(weight.time == 7 ? 8 : 2); }

// Measured (docs/decisions/conv1d-fewer-products.md, conv1d-cpu-loops-by-shape.md): for narrow rows the sums and
// differences cost more than they save. With few tiles, so do the factors of a wide weight, which are 26 or 3 times as
// many floats as one of its taps.
bool is_faster(const Problem& p, const Scheme& s, bool factors_of_weight) {
  if (std::min(p.x.width, p.y.width) < (s.taps == 7 ? 32 : 64) || std::max(p.x.width, p.y.width) > max_width)
    return false;
  const Tiles tiles(p, s);
  return tiles.used_fraction() >= 0.75 && tiles.count >= 48 + (factors_of_weight ? p.x.width * p.y.width / 3072 : 0);
}
/// Seven taps at stride 1, or a kernel of two strides.
bool supports_geometry(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  if (g.groups != 1 || x.channels % 16 != 0 || y.channels % 16 != 0) return false;
  if (g.stride == 1) return weight.time == 7;
  return g.dilation == 1 && weight.time == 2 * g.stride;
}

}  // namespace

bool supports(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return supports_geometry(x, weight, y, g) && is_faster(Problem::forward(x, y, g), scheme_of(weight), true);
}
int64_t forward_scratch(const Context& ctx, Shape x, Shape weight, Shape y, const Conv1dGeometry& g, bool snake) {
  return ProductPlan(Problem::forward(x, y, g), scheme_of(weight), false).scratch(ctx, snake, 0);
}
void forward(Context& ctx, const Conv1dForward<float>& a, float* scratch, const SnakeRows* snake) {
  product(
      ctx, Problem::forward(a.x.shape, a.y.shape, a.geometry), scheme_of(a.weight.shape),
      {.x = a.x.data, .weight = a.weight.data, .bias = a.bias, .add = a.residual.data, .y = a.y.data, .snake = snake},
      scratch);
}

bool supports_input_gradient(Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g) {
  return g.padding == Padding::zero && supports_geometry(dx, weight, dy, g) &&
         is_faster(Problem::input_gradient(dx, weight, dy, g), scheme_of(weight), true);
}
int64_t input_gradient_scratch(const Context& ctx, Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g,
                               bool slope) {
  return ProductPlan(Problem::input_gradient(dx, weight, dy, g), scheme_of(weight), slope)
      .scratch(ctx, false, slope ? dx.channels : 0);
}
int64_t slope_parts(Shape dx, Shape weight, Shape dy, const Conv1dGeometry& g) {
  return ProductPlan(Problem::input_gradient(dx, weight, dy, g), scheme_of(weight), true).blocks;
}
void input_gradient(Context& ctx, const Conv1dInputGradient<float>& a, float* scratch, const SnakeSlope* slope) {
  product(ctx, Problem::input_gradient(a.dx.shape, a.weight.shape, a.dy.shape, a.geometry), scheme_of(a.weight.shape),
          {.x = a.dy.data,
           .weight = a.weight.data,
           .bias = a.bias,
           .add = a.add_dx ? a.dx.data : nullptr,
           .y = a.dx.data,
           .slope = slope},
          scratch);
}

bool supports_weight_gradient(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return supports_geometry(x, weight, y, g) && is_faster(Problem::forward(x, y, g), scheme_of(weight), false);
}
int64_t weight_gradient_scratch(const Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const GradientPlan plan(Problem::forward(x, dy, g), scheme_of(weight));
  return plan.parts * plan.sums() + ctx.threads() * plan.slot();
}

void weight_gradient(Context& ctx, const Conv1dWeightGradient<float>& a, float* scratch) {
  const Scheme& scheme = scheme_of(a.dweight.shape);
  const GradientPlan plan(Problem::forward(a.x.shape, a.dy.shape, a.geometry), scheme);
  const Tiles& tiles = plan.tiles;
  const int64_t in = plan.in, out = plan.out, parts = plan.parts;
  float* const slots = scratch + parts * plan.sums();
  // A task has one part of the tiles and 64 outputs. It computes the factors of x and dy for a few groups at a time,
  // which stay in cache, and adds their products to its sums. Parts are added in order when the taps are gathered.
  // sums: [part][product][out][in]
  parallel_parts(ctx, parts * plan.output_slices, [&](int64_t task, int thread) {
    const int64_t part = task / plan.output_slices, first_out = task % plan.output_slices * outputs_per_task,
                  outs = std::min(outputs_per_task, out - first_out);
    const int64_t end = tiles.count * (part + 1) / parts, rows_at_once = plan.block * depth_of_group;
    float* const xs = slots + thread * plan.slot();
    float* const dys = xs + plan.block * plan.x.step();
    float* const edge_rows = dys + plan.block * plan.y.step();
    float* const sums = scratch + part * plan.sums() + first_out * in;
    bool add = false;
    for (int64_t begin = tiles.count * part / parts; begin < end; begin += rows_at_once, add = true) {
      const int64_t n = std::min(rows_at_once, end - begin), groups = (n + depth_of_group - 1) / depth_of_group;
      Tiles::Walk tile(tiles, begin, begin + n, Tiles::Walk::Ranges::no);
      for (int64_t t = 0; t < groups * depth_of_group; ++t, tile.next()) {
        const int64_t group = t / depth_of_group, row = t % depth_of_group;
        const float* rows[most_rows_in];
        // Factors of x are stored in panels of 64 inputs, as multiply_across reads them; those of dy in rows of 64
        // outputs. Rows of dy beyond the end are zeros.
        tile.inputs(a.x.data, edge_rows, rows);
        for (int64_t j = 0; j < in; j += panel) {
          const int64_t width = std::min(panel, in - j);
          scheme.split(rows, width, xs + group * plan.x.step() + j * depth_of_group + row * width, plan.x.of_product());
          for (int r = 0; r < scheme.rows_in; ++r) rows[r] += width;
        }
        const float* const dy = a.dy.data + tile.item() * tiles.p.y.item + first_out;
        for (int64_t r = 0; r < scheme.rows_out; ++r) {
          const int64_t at = tile.output(r);
          rows[r] = at < 0 ? zero_row : dy + at * out;
        }
        scheme.spread(rows, outs, dys + group * plan.y.step() + row * outputs_per_task, plan.y.of_product());
      }
      for (int p = 0; p < scheme.products; ++p)
        for (int64_t j = 0; j < in; j += panel)
          matrices().multiply_across(dys + p * plan.y.of_product(), outputs_per_task, plan.y.step(), outs,
                                     xs + p * plan.x.of_product() + j * depth_of_group, std::min(panel, in - j),
                                     plan.x.step(), groups, sums + p * product_stride(in * out) + j, in, add);
    }
  });
  parallel_ranges(ctx, out, 1 + (1 << 14) / (scheme.products * in), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      // The taps of an output from the sums of all parts, added to dweight in order of parts.
      scheme.gather_taps(scratch + o * in, product_stride(in * out), parts, plan.sums(), in,
                         a.dweight.data + o * scheme.taps * in, in);
  });
}

}  // namespace nacre::karatsuba
