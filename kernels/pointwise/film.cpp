#include "nacre/ops/film.h"

#include "runtime/elementwise.h"

// FiLM on the CPU (formulas and contract: nacre/ops/film.h; twin: film.cu). Channels are innermost, so loops run over
// vectors of data and parameters. The rows of one item have one label. Backward divides each item into parts of 64 rows
// with sums of their own; then add_sums() adds, for each label, the parts of the items that have it.
namespace nacre {
namespace cuda {
Shape film_backward_scratch(Shape x);
template <class T>
void film_forward(Context&, const FilmForward<T>&);
template <class T>
void film_backward(Context&, const FilmBackward<T>&);
}  // namespace cuda
namespace {

constexpr int64_t part_rows = 64;   // additions in float per sum; the sum over parts continues in double
constexpr int64_t max_width = 512;  // channels of a tile; its sums fit into the first-level cache

int64_t rows_of_item(Shape x) { return x.time * x.width; }
int64_t parts_of_item(Shape x) { return (rows_of_item(x) + part_rows - 1) / part_rows; }
/// The label of an item, clamped to [0, count).
int64_t label_of(View<const int32_t> labels, int64_t item, int64_t count) {
  return std::clamp<int64_t>(labels[item], 0, count - 1);
}

/// y = gamma x + beta for adjacent rows of n channels. y may be x.
template <class T>
NACRE_INLINE void forward(const T* x, T* y, const float* gamma, const float* beta, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r, x += n, y += n) {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = store<T>(gamma[i] * to_float(x[i]) + beta[i]);
  }
}
NACRE_CLONES void forward_loop(const float* x, float* y, const float* gamma, const float* beta, int64_t rows,
                               int64_t n) {
  forward(x, y, gamma, beta, rows, n);
}
NACRE_CLONES void forward_loop(const bf16* x, bf16* y, const float* gamma, const float* beta, int64_t rows, int64_t n) {
  forward(x, y, gamma, beta, rows, n);
}

// What happens to dx: nothing, dx = gradient, dx += gradient.
enum Dx { skip, write, add };

/// sum_gamma += dy x, sum_beta += dy and dx as `mode` says, over rows that are `stride` elements apart, for n channels
/// of them. dx may be dy.
template <Dx mode, bool sums, class T>
NACRE_INLINE void backward(const T* x, const T* dy, T* dx, const float* gamma, float* sum_gamma, float* sum_beta,
                           int64_t rows, int64_t stride, int64_t n) {
  for (int64_t r = 0; r < rows; ++r, x += stride, dy += stride) {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const float d = to_float(dy[i]);
      if constexpr (sums) {
        sum_gamma[i] += d * to_float(x[i]);
        sum_beta[i] += d;
      }
      if constexpr (mode != skip) dx[i] = store<T>(mode == add ? to_float(dx[i]) + gamma[i] * d : gamma[i] * d);
    }
    if constexpr (mode != skip) dx += stride;
  }
}
#define NACRE_BACKWARD_LOOP(name, mode, sums, T)                                                                \
  NACRE_CLONES void name(const T* x, const T* dy, T* dx, const float* gamma, float* sum_gamma, float* sum_beta, \
                         int64_t rows, int64_t stride, int64_t n) {                                             \
    backward<mode, sums>(x, dy, dx, gamma, sum_gamma, sum_beta, rows, stride, n);                               \
  }
#define NACRE_BACKWARD_LOOPS(T)                        \
  NACRE_BACKWARD_LOOP(write_loop, write, false, T)     \
  NACRE_BACKWARD_LOOP(add_loop, add, false, T)         \
  NACRE_BACKWARD_LOOP(sums_loop, skip, true, T)        \
  NACRE_BACKWARD_LOOP(write_sums_loop, write, true, T) \
  NACRE_BACKWARD_LOOP(add_sums_loop, add, true, T)
NACRE_BACKWARD_LOOPS(float)
NACRE_BACKWARD_LOOPS(bf16)

template <class T>
using BackwardLoop = void (*)(const T*, const T*, T*, const float*, float*, float*, int64_t, int64_t, int64_t);
/// The loop that computes what is wanted. Without dx there are always sums: film_backward returns early otherwise.
template <class T>
BackwardLoop<T> select_loop(bool dx, bool add_dx, bool sums) {
  if (!dx) return static_cast<BackwardLoop<T>>(sums_loop);
  if (add_dx) return sums ? static_cast<BackwardLoop<T>>(add_sums_loop) : static_cast<BackwardLoop<T>>(add_loop);
  return sums ? static_cast<BackwardLoop<T>>(write_sums_loop) : static_cast<BackwardLoop<T>>(write_loop);
}

/// Gradient of one part of the rows of an item; its sums go to scratch [batch parts][2][channels], if they are wanted.
template <class T>
void backward_part(const FilmBackward<T>& a, int64_t item, int64_t part, BackwardLoop<T> loop, float* partial) {
  alignas(64) float sum_gamma[max_width], sum_beta[max_width];
  const int64_t channels = a.x.shape.channels, rows = rows_of_item(a.x.shape), begin = part * part_rows;
  const float* const gamma = a.gamma.data + label_of(a.labels, item, a.gamma.shape.batch) * channels;
  // Tiles of channels, whose sums stay in cache while the rows pass.
  for (int64_t first = 0; first < channels; first += max_width) {
    const int64_t n = std::min(max_width, channels - first), offset = (item * rows + begin) * channels + first;
    std::fill_n(sum_gamma, n, 0.0f);
    std::fill_n(sum_beta, n, 0.0f);
    loop(a.x.data + offset, a.dy.data + offset, a.dx ? a.dx.data + offset : nullptr, gamma + first, sum_gamma, sum_beta,
         std::min(part_rows, rows - begin), channels, n);
    if (partial == nullptr) continue;
    std::copy_n(sum_gamma, n, partial + first);
    std::copy_n(sum_beta, n, partial + channels + first);
  }
}

/// dgamma and dbeta of one label, from the sums of all parts: items in ascending order, and the parts of each. Labels
/// run in parallel, each with its own rows of dgamma and dbeta.
template <class T>
void add_sums(const FilmBackward<T>& a, int64_t label) {
  const int64_t channels = a.x.shape.channels, parts = parts_of_item(a.x.shape);
  for (int64_t first = 0; first < channels; first += max_width) {
    const int64_t n = std::min(max_width, channels - first);
    double gamma[max_width] = {}, beta[max_width] = {};
    for (int64_t item = 0; item < a.x.shape.batch; ++item) {
      if (label_of(a.labels, item, a.gamma.shape.batch) != label) continue;
      for (int64_t part = item * parts; part < (item + 1) * parts; ++part) {
        const float* const partial = a.scratch.data + part * 2 * channels + first;
        for (int64_t c = 0; c < n; ++c) {
          gamma[c] += static_cast<double>(partial[c]);
          beta[c] += static_cast<double>(partial[channels + c]);
        }
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      if (a.dgamma) a.dgamma[label * channels + first + c] += static_cast<float>(gamma[c]);
      if (a.dbeta) a.dbeta[label * channels + first + c] += static_cast<float>(beta[c]);
    }
  }
}

/// The shape that tables must have: that of `gamma`, if it has channels of x and at least one label.
Shape table_of(const char* op, View<const float> gamma, Shape x) {
  const Shape table{.batch = std::max<int64_t>(gamma.shape.batch, 1), .channels = x.channels};
  expect_shape(op, "gamma", gamma, table);
  return table;
}

}  // namespace

Shape film_backward_scratch([[maybe_unused]] Context& ctx, Shape x) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::film_backward_scratch(x);
  return {.batch = x.batch * parts_of_item(x), .width = 2, .channels = x.channels};
}

template <class T>
void film_forward(Context& ctx, const FilmForward<T>& a) {
  const Shape x = a.x.shape;
  expect_shape("film_forward", "x", a.x, x);
  expect_shape("film_forward", "labels", a.labels, {.channels = x.batch});
  const Shape table = table_of("film_forward", a.gamma, x);
  expect_shape("film_forward", "beta", a.beta, table);
  expect_shape("film_forward", "y", a.y, x);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::film_forward(ctx, a);
  if (x.elements() == 0) return;
  const int64_t channels = x.channels, rows = rows_of_item(x);
  // A range of rows may begin and end inside items. The smallest ranges have about 8192 elements.
  parallel_ranges(ctx, x.rows(), 8192 / channels, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // the rows of one item at a time
      const int64_t item = begin / rows, count = std::min(end, (item + 1) * rows) - begin;
      const int64_t label = label_of(a.labels, item, table.batch) * channels, offset = begin * channels;
      forward_loop(a.x.data + offset, a.y.data + offset, a.gamma.data + label, a.beta.data + label, count, channels);
      begin += count;
    }
  });
}

template <class T>
void film_backward(Context& ctx, const FilmBackward<T>& a) {
  const Shape x = a.x.shape;
  expect_shape("film_backward", "x", a.x, x);
  expect_shape("film_backward", "labels", a.labels, {.channels = x.batch});
  const Shape table = table_of("film_backward", a.gamma, x);
  expect_shape("film_backward", "dy", a.dy, x);
  expect_shape_or_empty("film_backward", "dx", a.dx, x);
  expect_shape_or_empty("film_backward", "dgamma", a.dgamma, table);
  expect_shape_or_empty("film_backward", "dbeta", a.dbeta, table);
  const bool sums = a.dgamma || a.dbeta;
  if (sums) expect_scratch("film_backward", a.scratch, film_backward_scratch(ctx, x));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::film_backward(ctx, a);
  if (x.elements() == 0 || (!a.dx && !sums)) return;
  // One of five loops, so that no branch on dx, add_dx or sums is left inside.
  const BackwardLoop<T> loop = select_loop<T>(bool(a.dx), a.add_dx, sums);
  const int64_t parts = parts_of_item(x);
  parallel_parts(ctx, x.batch * parts, [&](int64_t part) {
    // Part p of item b is number b parts + p in scratch.
    float* const partial = sums ? a.scratch.data + part * 2 * x.channels : nullptr;
    backward_part(a, part / parts, part % parts, loop, partial);
  });
  if (sums) parallel_parts(ctx, table.batch, [&](int64_t label) { add_sums(a, label); });
}

template void film_forward<float>(Context&, const FilmForward<float>&);
template void film_forward<bf16>(Context&, const FilmForward<bf16>&);
template void film_backward<float>(Context&, const FilmBackward<float>&);
template void film_backward<bf16>(Context&, const FilmBackward<bf16>&);

}  // namespace nacre
