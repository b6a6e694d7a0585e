#include "conv/conv1d_direct.h"

#include <cstring>

#include "conv/conv1d_tiles.h"
#include "runtime/host.h"

// The weight gradient and the forward to few outputs, on chunks of rows. Chunks says which rows of y and samples of x
// belong to a chunk, and copies them where they cannot be read in place. Work says how a weight gradient is cut into
// tasks, add_part() runs one. The innermost loops are in conv1d_tiles.cpp.
namespace nacre::direct {
namespace {

constexpr int64_t max_rows = 256;  // of y in a chunk

int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }

void to_float_row(const float* from, float* to, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}
NACRE_CLONES void to_float_row(const bf16* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = std::bit_cast<float>(uint32_t{from[i].bits} << 16);
}

/// The sample at position `at` of the padded signal; -1 for a zero.
int64_t source_sample(int64_t at, int64_t time, Padding padding) {
  if (at >= 0 && at < time) return at;
  if (padding == Padding::zero) return -1;
  return at < 0 ? -at : 2 * (time - 1) - at;
}

/// Copies rows [begin, begin + rows) of one padded item of x.
template <class T>
void copy_padded(const T* item, int64_t time, int64_t channels, Padding padding, int64_t begin, int64_t rows,
                 float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t s = source_sample(begin + r, time, padding);
    if (s < 0)
      std::memset(to + r * channels, 0, static_cast<size_t>(channels) * sizeof(float));
    else
      to_float_row(item + s * channels, to + r * channels, channels);
  }
}

/// Rows of 64 channels or more are at least 256 bytes apart, so the same channel of 128 rows maps to few sets of the
/// first-level cache. Such data is copied into columns of 8 (x) or 32 (dy) channels, each contiguous in time.
constexpr int64_t wide_row = 64, x_column = 8, dy_column = 32;

// Spread one row over its columns: to[i / column * step + i % column] = from[i], where `step` floats lie between
// columns. The functions for float write whole vectors; what is left of a row is shorter than a column.
NACRE_CLONES void spread_8(const float* __restrict from, int64_t n, int64_t step, float* __restrict to) {
  for (; n >= 8; n -= 8, from += 8, to += step)
    for (int i = 0; i < 8; ++i) to[i] = from[i];
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}
NACRE_CLONES void spread_32(const float* __restrict from, int64_t n, int64_t step, float* __restrict to) {
  for (; n >= 32; n -= 32, from += 32, to += step)
    for (int i = 0; i < 32; ++i) to[i] = from[i];
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}
void spread_row(const float* from, int64_t n, int64_t column, int64_t step, float* to) {
  column == x_column ? spread_8(from, n, step, to) : spread_32(from, n, step, to);
}
void spread_row(const bf16* from, int64_t n, int64_t column, int64_t step, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i / column * step + i % column] = to_float(from[i]);
}

/// How the rows of y are divided into chunks, and which rows of x a chunk reads.
struct Chunks {
  Shape x;
  int64_t length, stride, left, span;  // span: samples from the first to the last that one output reads
  Padding padding;
  // Chunks per item, their rows (the last one of an item may have fewer), and all chunks.
  int64_t per_item, chunk_rows, count;

  Chunks(Shape of_x, Shape y, int64_t taps, const Conv1dGeometry& g)
      : x(of_x), length(y.time), stride(g.stride), left(g.left), span((taps - 1) * g.dilation + 1), padding(g.padding) {
    // A chunk of x and dy should stay in the first-level cache: 256 narrow rows, or 256 rows in columns, of which one
    // is used at a time; else 128.
    const bool both_narrow = x.channels <= 16 && y.channels <= 16;
    const bool columns = x.channels >= wide_row && y.channels >= wide_row;
    const int64_t most = both_narrow || columns ? max_rows : max_rows / 2;
    per_item = (length + most - 1) / most;
    chunk_rows = (length + per_item - 1) / per_item;
    per_item = (length + chunk_rows - 1) / chunk_rows;
    count = per_item * x.batch;
  }
  int64_t item(int64_t c) const { return c / per_item; }
  int64_t begin(int64_t c) const { return c % per_item * chunk_rows; }
  int64_t rows(int64_t c) const { return std::min(chunk_rows, length - begin(c)); }
  int64_t window_floats() const { return ((chunk_rows - 1) * stride + span) * rounded(x.channels); }
  /// The samples that the chunk reads: in place, or copied to `buffer` where they include padding or are bf16.
  template <class T>
  const float* window(const T* data, int64_t c, float* buffer) const {
    const T* const of_item = data + item(c) * x.time * x.channels;
    const int64_t first = begin(c) * stride - left;
    if constexpr (std::is_same_v<T, float>) {
      if (first >= 0 && first + samples(c) <= x.time) return of_item + first * x.channels;
    }
    copy_padded(of_item, x.time, x.channels, padding, first, samples(c), buffer);
    return buffer;
  }
  int64_t samples(int64_t c) const { return (rows(c) - 1) * stride + span; }
  /// The same samples, copied into columns.
  template <class T>
  void window_columns(const T* data, int64_t c, float* buffer) const {
    const T* const of_item = data + item(c) * x.time * x.channels;
    const int64_t first = begin(c) * stride - left, n = samples(c);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t s = source_sample(first + r, x.time, padding);
      if (s >= 0) {
        spread_row(of_item + s * x.channels, x.channels, x_column, n * x_column, buffer + r * x_column);
        continue;
      }
      for (int64_t i = 0; i < x.channels; i += x_column)
        std::memset(buffer + i * n + r * x_column, 0, x_column * sizeof(float));
    }
  }
};

/// A pointwise layer has no padding, so its items can be joined into one.
bool is_flat(int64_t taps, const Conv1dGeometry& g) {
  return taps == 1 && g.stride == 1 && g.left == 0 && g.right == 0;
}
Shape joined(Shape s) { return {1, s.rows(), 1, s.channels}; }

/// How a weight gradient is divided. Vectors run along the outputs, or along the window of x if outputs are few.
struct Work {
  Chunks chunks;
  int64_t in, out, taps, dilation;
  bool along_window, x_columns, dy_columns;
  int64_t q, wide, tall;  // q: weights per output. The sums of a part are [q] by columns of 32 outputs, or [out][wide]
  int64_t parts, blocks, groups;  // of rows; of vectors across; of taps
  int64_t vector_floats, slot;    // scratch of one thread

  Work(Shape x, Shape weight, Shape y, const Conv1dGeometry& g)
      : chunks(is_flat(weight.time, g) ? joined(x) : x, is_flat(weight.time, g) ? joined(y) : y, weight.time, g),
        in(x.channels),
        out(y.channels),
        taps(weight.time),
        dilation(g.dilation) {
    q = taps * in;
    along_window = out < 8;
    if (dilation == 1 && (along_window || in < 16)) in = q, taps = 1;  // the window is contiguous
    // x goes into columns where its rows are wide and a copy serves several taps, dy where its rows are wide or are no
    // whole vectors. See docs/decisions/conv1d-wide-rows-in-columns.md.
    x_columns = !along_window && in >= wide_row && taps > 1;
    dy_columns = out >= wide_row || out % 16 != 0;
    wide = rounded(along_window ? q : out);
    tall = along_window ? out : q;
    parts = std::clamp<int64_t>(std::min((int64_t{1} << 18) / (wide * tall), chunks.count / 2), 1, 32);
    // At least 16 tasks where the shape allows: parts of the rows, then blocks of outputs, then groups of taps. All
    // come from the shape alone.
    const int64_t splits = along_window ? 1 : (16 + parts - 1) / parts;
    blocks = std::clamp<int64_t>(wide / 32, 1, splits);
    groups = std::clamp<int64_t>(splits / blocks, 1, taps);
    vector_floats = chunks.chunk_rows * (wide + 16);  // the last column of dy may be half empty
    slot = chunks.window_floats() + vector_floats;
  }
  // Floats of the sums of one part.
  int64_t sums() const { return wide * tall; }
};

}  // namespace

int64_t weight_gradient_scratch(const Context& ctx, Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  const Work w(x, weight, y, g);
  return w.parts * w.sums() + ctx.threads() * w.slot;
}

namespace {

/// Sums the chunks of one part for vector elements [from, to) and taps [first, last) into `sums`, which it clears
/// first. Tasks of one part share `sums` but no element of it. `buffer`: the thread's slot, a window of x and behind it
/// dy in columns or the windows side by side.
template <class T>
void add_part(const Work& w, const Conv1dWeightGradient<T>& a, int64_t part, int64_t from, int64_t to, int64_t first,
              int64_t last, float* sums, float* buffer) {
  const OuterProducts add = outer_products();
  const Chunks& chunks = w.chunks;
  if (w.along_window)
    std::memset(sums, 0, static_cast<size_t>(w.sums()) * sizeof(float));
  else
    for (int64_t j = from; j < to; j += dy_column) {
      const int64_t width = std::min(to - j, dy_column);
      std::memset(sums + j * w.q + first * w.in * width, 0,
                  static_cast<size_t>((last - first) * w.in * width) * sizeof(float));
    }
  // The chunks of a part are added one after the other. Per chunk: x in place or copied (padding, bf16, columns), dy in
  // place or in columns of 32, then one outer product per tap (and column of x), which adds all rows of the chunk.
  float* const packed = buffer + chunks.window_floats();
  const int64_t x_step = chunks.stride * chunks.x.channels, channels = chunks.x.channels;
  for (int64_t c = chunks.count * part / w.parts; c < chunks.count * (part + 1) / w.parts; ++c) {
    const int64_t rows = chunks.rows(c);
    const float* x = buffer;
    if (w.x_columns)
      chunks.window_columns(a.x.data, c, buffer);
    else
      x = chunks.window(a.x.data, c, buffer);
    const T* const dy = a.dy.data + (chunks.item(c) * chunks.length + chunks.begin(c)) * w.out;
    if (w.along_window) {
      // Sums are [out][window]: vectors run along the window, and the few outputs are the broadcast factors.
      const float* v = x;
      int64_t v_step = x_step;
      if (w.taps > 1 || w.wide != w.q) {  // copied next to each other, so that vectors are full
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < w.taps; ++k)
            to_float_row(x + r * x_step + k * w.dilation * channels, packed + r * w.wide + k * w.in, w.in);
          for (int64_t j = w.q; j < w.wide; ++j) packed[r * w.wide + j] = 0;
        }
        v = packed, v_step = w.wide;
      }
      const float* b;
      // Few outputs (below 8), so the whole chunk of dy fits.
      float dy_floats[max_rows * 8];
      if constexpr (std::is_same_v<T, float>) {
        b = dy;
      } else {
        to_float_row(dy, dy_floats, rows * w.out);
        b = dy_floats;
      }
      add(b, w.out, w.out, v, v_step, w.wide, rows, sums, w.wide);
      continue;
    }
    const bool dy_columns = w.dy_columns || !std::is_same_v<T, float>;
    if (dy_columns) {
      const int64_t n = std::min(to, w.out) - from, rest = rounded(n) - n;
      for (int64_t r = 0; r < rows; ++r) {
        float* const row = packed + r * dy_column;
        spread_row(dy + r * w.out + from, n, dy_column, rows * dy_column, row);
        for (int64_t j = n; j < n + rest; ++j) row[j / dy_column * rows * dy_column + j % dy_column] = 0;
      }
    }
    // Sums are [column of 32 outputs][tap][in][outputs of the column]: vectors run along the outputs, and x is
    // broadcast.
    const int64_t samples = chunks.samples(c);
    for (int64_t j = from; j < to; j += dy_column) {
      const int64_t width = std::min(to - j, dy_column), v_step = dy_columns ? dy_column : w.out;
      const float* v = packed + (j - from) * rows;
      if constexpr (std::is_same_v<T, float>) {
        if (!dy_columns) v = dy + j;
      }
      for (int64_t k = first; k < last; ++k) {
        float* const to_tap = sums + j * w.q + k * w.in * width;
        if (!w.x_columns) {
          add(x + k * w.dilation * channels, x_step, w.in, v, v_step, width, rows, to_tap, width);
          continue;
        }
        for (int64_t i = 0; i < w.in; i += x_column)
          add(x + i * samples + k * w.dilation * x_column, chunks.stride * x_column, std::min(x_column, w.in - i), v,
              v_step, width, rows, to_tap + i * width, width);
      }
    }
  }
}

/// dweight[o][j] += the parts' sums[j][o] for 16 outputs, transposed by way of a 16 by 16 square that stays in cache.
NACRE_CLONES void add_transposed(const float* __restrict sums, int64_t parts, int64_t part_step, int64_t wide,
                                 int64_t q, int64_t outs, float* __restrict dweight) {
  for (int64_t j0 = 0; j0 < q; j0 += 16) {
    const int64_t n = std::min<int64_t>(16, q - j0);
    float square[16][16];
    for (int64_t j = 0; j < n; ++j) {
      float* const row = square[j];
      for (int64_t o = 0; o < 16; ++o) row[o] = sums[(j0 + j) * wide + o];
      for (int64_t p = 1; p < parts; ++p)
        for (int64_t o = 0; o < 16; ++o) row[o] += sums[p * part_step + (j0 + j) * wide + o];
    }
    for (int64_t o = 0; o < outs; ++o)
      for (int64_t j = 0; j < n; ++j) dweight[o * q + j0 + j] += square[j][o];
  }
}

}  // namespace

template <class T>
void weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a, float* scratch) {
  // Scratch: the sums of all parts, then one slot per thread.
  const Work w(a.x.shape, a.dweight.shape, a.dy.shape, a.geometry);
  float* const slots = scratch + w.parts * w.sums();
  parallel_parts(ctx, w.parts * w.blocks * w.groups, [&](int64_t task, int slot) {
    const int64_t part = task / (w.blocks * w.groups), block = task / w.groups % w.blocks, group = task % w.groups;
    const int64_t vectors = w.wide / 16;
    // Block boundaries fall on multiples of two vectors.
    const auto block_begin = [&](int64_t b) { return b == w.blocks ? w.wide : vectors * b / w.blocks / 2 * 32; };
    add_part(w, a, part, block_begin(block), block_begin(block + 1), w.taps * group / w.groups,
             w.taps * (group + 1) / w.groups, scratch + part * w.sums(), slots + slot * w.slot);
  });
  // Parts are added in order, to each weight by one thread.
  if (w.along_window) {
    for (int64_t o = 0; o < w.out; ++o)
      for (int64_t p = 0; p < w.parts; ++p)
        for (int64_t j = 0; j < w.q; ++j) a.dweight.data[o * w.q + j] += scratch[p * w.sums() + o * w.wide + j];
    return;
  }
  parallel_ranges(ctx, w.wide / 16, 1 + (1 << 13) / w.q, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t column = v / 2 * dy_column, width = std::min(w.wide - column, dy_column);
      add_transposed(scratch + column * w.q + v % 2 * 16, w.parts, w.sums(), width, w.q,
                     std::min<int64_t>(16, w.out - v * 16), a.dweight.data + v * 16 * w.q);
    }
  });
}

// ---- forward to few outputs

int64_t forward_scratch(const Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  const Chunks chunks(x, {x.batch, conv1d_length(x.time, weight.time, g), 1, weight.batch}, weight.time, g);
  return rounded(weight.elements()) + ctx.threads() * chunks.window_floats();
}

/// One dot product per output and row: the window of x with the weight of output o, then the bias, then the residual.
/// Without dilation a window is contiguous and counts as one tap. Scratch: room for a weight converted to float, then a
/// window of x per thread.
template <class T>
void forward(Context& ctx, const Conv1dForward<T>& a, float* scratch) {
  const Conv1dGeometry& g = a.geometry;
  const Chunks chunks(a.x.shape, a.y.shape, a.weight.shape.time, g);
  const int64_t out = a.y.shape.channels, channels = a.x.shape.channels, q = a.weight.shape.time * channels;
  const int64_t taps = g.dilation == 1 ? 1 : a.weight.shape.time, width = q / taps;
  float* const slots = scratch + rounded(a.weight.elements());
  const float* weight;
  if constexpr (std::is_same_v<T, float>) {
    weight = a.weight.data;
  } else {
    to_float_row(a.weight.data, scratch, a.weight.elements());
    weight = scratch;
  }
  const WindowDots dots = window_dots();
  parallel_parts(ctx, chunks.count, [&](int64_t c, int slot) {
    // A chunk of rows, output by output: the window stays in cache, and few outputs read it again.
    const int64_t rows = chunks.rows(c), first = (chunks.item(c) * chunks.length + chunks.begin(c)) * out;
    const float* const x = chunks.window(a.x.data, c, slots + slot * chunks.window_floats());
    for (int64_t o = 0; o < out; ++o) {
      float y[max_rows];
      dots(x, g.stride * channels, taps, g.dilation * channels, width, weight + o * q, rows, y);
      const float bias = a.bias ? a.bias[o] : 0.0f;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = first + r * out + o;
        a.y.data[i] = store<T>(y[r] + bias + (a.residual ? to_float(a.residual.data[i]) : 0.0f));
      }
    }
  });
}

#define NACRE_INSTANTIATE(T)                                                          \
  template void weight_gradient<T>(Context&, const Conv1dWeightGradient<T>&, float*); \
  template void forward<T>(Context&, const Conv1dForward<T>&, float*);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::direct
