#include "nacre/ops/snake.h"

#include <cmath>
#include <numeric>

#include "pointwise/snake_rows.h"
#include "runtime/elementwise.h"
#include "runtime/vector_math.h"

// Snake and its gradient on the CPU (formulas and contract: nacre/ops/snake.h; twin: snake.cu). With a frequency a / pi
// and a gain 1 / (b + eps) per channel, forward is y = x + gain sin^2(pi frequency x). Backward computes dx and, per
// channel, the sums of dy x sin(2 a x) / 2 and of dy sin^2(a x), from which add_snake_parameter_gradients() forms
// dalpha and dbeta.
// Channels are innermost, so loops run over vectors of data and parameters. Rows are narrow in the outer blocks of a
// codec, and one channel wide at its ends. Loops therefore treat as many rows as fit into `max_width` as one ("folded")
// row, with the parameters repeated. A row with more channels than that is processed in tiles of max_width channels.
namespace nacre {
namespace cuda {
Shape snake_backward_scratch(const Context&, Shape x);
template <class T>
void snake_forward(Context&, const SnakeForward<T>&);
template <class T>
void snake_backward(Context&, const SnakeBackward<T>&);
}  // namespace cuda
namespace {

constexpr int64_t max_width = 512;  // floats; eight arrays of this size fit into the first-level cache

/// How [rows, channels] is divided: `fold` rows form a group, and groups_per_part groups a part, which has sums of its
/// own. Parts depend on the shape alone, so that the order of the sums does not depend on threads. There are several
/// tiles only if fold is 1.
struct Layout {
  int64_t channels, rows;
  int64_t fold;    ///< rows that form one folded row
  int64_t groups;  ///< folded rows; the last may have fewer than `fold` rows
  int64_t groups_per_part, parts;

  explicit Layout(Shape s) : channels(std::max<int64_t>(s.channels, 1)), rows(s.rows()) {
    fold = std::max<int64_t>(max_width / channels, 1);
    const int64_t vector_rows = 16 / std::gcd(channels, int64_t{16});  // rows whose channels fill whole vectors
    if (fold > vector_rows) fold -= fold % vector_rows;
    groups = (rows + fold - 1) / fold;
    // About 32768 elements per part: enough work for a task, and at most 64 additions in float per sum; unfold() and
    // the sum over parts continue in double.
    groups_per_part = std::clamp<int64_t>(32768 / (fold * channels), 16, 64);
    parts = (groups + groups_per_part - 1) / groups_per_part;
  }
  /// Elements of a folded row, and the tiles that cover it.
  int64_t stride() const { return fold * channels; }
  int64_t tiles() const { return (stride() + max_width - 1) / max_width; }

  /// Calls f(offset, groups, n) for the complete groups in [begin, end) of one tile, then for the last group if it is
  /// shorter.
  template <class F>
  void rows_of(int64_t begin, int64_t end, int64_t tile, F&& f) const {
    // Only the last group of all may be shorter. Then fold exceeds 1, so there is one tile, and its row is `rest`
    // elements long.
    const int64_t full_groups = std::min(end, rows / fold), column = tile * max_width;
    const int64_t n = std::min(max_width, stride() - column);
    if (full_groups > begin) f(begin * stride() + column, full_groups - begin, n);
    const int64_t rest = (rows - full_groups * fold) * channels;
    if (end > full_groups && rest > 0) f(full_groups * stride() + column, int64_t{1}, std::min(n, rest));
  }
};

/// Parameters of one channel: a, a / pi and 1 / (b + eps).
struct Channel {
  float a, frequency, gain;
};
/// alpha and beta give a and b (beta null: b = a), with log_scale through the exponential.
Channel channel(const float* alpha, const float* beta, int64_t c, bool log_scale) {
  const float a = log_scale ? vec::exp(alpha[c]) : alpha[c];
  const float b = beta == nullptr ? a : (log_scale ? vec::exp(beta[c]) : beta[c]);
  return {a, vec::frequency_of(a), 1.0f / (b + snake_eps)};
}

/// Parameters of the loops for channels [first, first + n); they repeat if n exceeds the number of channels.
void fill(const float* alpha, const float* beta, bool log_scale, int64_t channels, int64_t first, int64_t n,
          float* frequency, float* gain, float* slope) {
  for (int64_t i = 0; i < n; ++i) {
    if (i >= channels) {
      frequency[i] = frequency[i - channels], gain[i] = gain[i - channels], slope[i] = slope[i - channels];
    } else {
      const Channel p = channel(alpha, beta, first + i, log_scale);
      frequency[i] = p.frequency, gain[i] = p.gain, slope[i] = 2.0f * p.a * p.gain;
    }
  }
}

/// Parameters of one tile, repeated over its folded rows.
struct Parameters {
  alignas(64) float frequency[max_width], gain[max_width], slope[max_width];
  void fill_tile(const Layout& l, int64_t tile, const float* alpha, const float* beta, bool log_scale) {
    const int64_t first = tile * max_width;
    fill(alpha, beta, log_scale, l.channels, first, std::min(max_width, l.stride() - first), frequency, gain, slope);
  }
};

/// `groups` rows of n elements, `stride` apart. y may be x: an element is read before it is written.
template <class T>
NACRE_INLINE void forward(const T* x, T* y, const float* frequency, const float* gain, int64_t groups, int64_t stride,
                          int64_t n) {
  for (int64_t g = 0; g < groups; ++g, x += stride, y += stride) {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const float v = to_float(x[i]);
      y[i] = store<T>(v + vec::sin_squared_pi(frequency[i], v) * gain[i]);
    }
  }
}
NACRE_CLONES void forward_loop(const float* x, float* y, const float* frequency, const float* gain, int64_t groups,
                               int64_t stride, int64_t n) {
  forward(x, y, frequency, gain, groups, stride, n);
}
NACRE_CLONES void forward_loop(const bf16* x, bf16* y, const float* frequency, const float* gain, int64_t groups,
                               int64_t stride, int64_t n) {
  forward(x, y, frequency, gain, groups, stride, n);
}

// What happens to dx: nothing, dx = gradient, dx += gradient.
enum Dx { skip, write, add };

/// `groups` rows of n elements, `stride` apart: sum_a[i] += dy x sin(2 a x) / 2, sum_b[i] += dy sin^2(a x), and dx as
/// `mode` says; slope = 2 a gain. dx may be dy. With folded rows, several i belong to one channel; unfold() adds them.
template <Dx mode, bool sums, class T>
NACRE_INLINE void backward(const T* x, const T* dy, T* dx, const float* frequency, const float* slope, float* sum_a,
                           float* sum_b, int64_t groups, int64_t stride, int64_t n) {
  for (int64_t g = 0; g < groups; ++g, x += stride, dy += stride) {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const float v = to_float(x[i]), d = to_float(dy[i]);
      const vec::SinCos t = vec::sin_cos_pi_unsigned(frequency[i], v);
      // sin and cos may both have the wrong sign (sin_cos_pi_unsigned): only their products are used.
      const float by_phase = d * (t.sin * t.cos);
      if constexpr (sums) {
        sum_a[i] += by_phase * v;
        sum_b[i] += d * (t.sin * t.sin);
      }
      if constexpr (mode != skip) {
        // snake'(x) = 1 + a sin(2 a x) / b, and sin(2 a x) = 2 sin cos.
        const float gradient = d + slope[i] * by_phase;
        dx[i] = store<T>(mode == add ? to_float(dx[i]) + gradient : gradient);
      }
    }
    if constexpr (mode != skip) dx += stride;
  }
}
#define NACRE_BACKWARD_LOOP(name, mode, sums, T)                                                                   \
  NACRE_CLONES void name(const T* x, const T* dy, T* dx, const float* frequency, const float* slope, float* sum_a, \
                         float* sum_b, int64_t groups, int64_t stride, int64_t n) {                                \
    backward<mode, sums>(x, dy, dx, frequency, slope, sum_a, sum_b, groups, stride, n);                            \
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
using BackwardLoop = void (*)(const T*, const T*, T*, const float*, const float*, float*, float*, int64_t, int64_t,
                              int64_t);
/// The loop that computes what is wanted. Without dx there are always sums: the callers return early otherwise.
template <class T>
BackwardLoop<T> select_loop(bool dx, bool add_dx, bool sums) {
  if (!dx) return static_cast<BackwardLoop<T>>(sums_loop);
  if (add_dx) return sums ? static_cast<BackwardLoop<T>>(add_sums_loop) : static_cast<BackwardLoop<T>>(add_loop);
  return sums ? static_cast<BackwardLoop<T>>(write_sums_loop) : static_cast<BackwardLoop<T>>(write_loop);
}

/// partial[c] = the sum over the rows r < fold of sums[r channels + c], for n channels: the sums of a folded row become
/// those of its channels.
NACRE_CLONES void unfold(const float* sums, int64_t channels, int64_t fold, int64_t n, float* partial) {
  for (int64_t first = 0; first < n; first += max_width) {
    const int64_t size = std::min(max_width, n - first);
    double total[max_width] = {};
    for (int64_t row = 0; row < fold; ++row)
      for (int64_t c = 0; c < size; ++c) total[c] += static_cast<double>(sums[row * channels + first + c]);
    for (int64_t c = 0; c < size; ++c) partial[first + c] = static_cast<float>(total[c]);
  }
}

/// Gradient of one part of the rows, tile by tile; its sums go to `partial` [2][channels], unless it is null. A sum has
/// at most groups_per_part additions in float before it goes on in double.
template <class T>
void backward_part(const SnakeBackward<T>& a, const Layout& l, int64_t part, BackwardLoop<T> loop, float* partial) {
  Parameters p;
  alignas(64) float sum_a[max_width], sum_b[max_width];
  const int64_t begin = part * l.groups_per_part, end = std::min(begin + l.groups_per_part, l.groups);
  for (int64_t tile = 0; tile < l.tiles(); ++tile) {
    p.fill_tile(l, tile, a.alpha.data, a.beta.data, a.log_scale);
    std::fill(sum_a, sum_a + max_width, 0.0f);
    std::fill(sum_b, sum_b + max_width, 0.0f);
    l.rows_of(begin, end, tile, [&](int64_t offset, int64_t groups, int64_t n) {
      loop(a.x.data + offset, a.dy.data + offset, a.dx ? a.dx.data + offset : nullptr, p.frequency, p.slope, sum_a,
           sum_b, groups, l.stride(), n);
    });
    if (partial == nullptr) continue;
    const int64_t first = tile * max_width, n = std::min(max_width, l.channels - first);
    unfold(sum_a, l.channels, l.fold, n, partial + first);
    unfold(sum_b, l.channels, l.fold, n, partial + l.channels + first);
  }
}

}  // namespace

// Frequency, gain and slope; and the two sums.
int64_t SnakeRows::table(int64_t channels) { return 3 * Layout({.channels = channels}).stride(); }
int64_t SnakeRows::sums(int64_t channels) { return 2 * Layout({.channels = channels}).stride(); }

SnakeRows::SnakeRows(View<const float> alpha, View<const float> beta, bool log_scale, float* storage)
    : channels_(alpha.elements()), fold_(Layout(alpha.shape).fold), table_(storage) {
  fill(alpha.data, beta.data, log_scale, channels_, 0, stride(), storage, storage + stride(), storage + 2 * stride());
}

// Whole folded rows, then the rest as one shorter row. The sums of backward() keep the folded width until add_up().
void SnakeRows::forward(const float* x, float* y, int64_t rows) const {
  const int64_t groups = rows / fold_, rest = rows % fold_ * channels_, full_size = groups * stride();
  const float *const frequency = table_, *const gain = frequency + stride();
  forward_loop(x, y, frequency, gain, groups, stride(), stride());
  if (rest > 0) forward_loop(x + full_size, y + full_size, frequency, gain, 1, stride(), rest);
}

void SnakeRows::backward(const float* x, const float* dy, float* dx, bool add, int64_t rows, float* sums) const {
  if (dx == nullptr && sums == nullptr) return;
  const int64_t groups = rows / fold_, rest = rows % fold_ * channels_, full_size = groups * stride();
  const float *const frequency = table_, *const slope = frequency + 2 * stride();
  float* const sums_b = sums == nullptr ? nullptr : sums + stride();
  const BackwardLoop<float> loop = select_loop<float>(dx != nullptr, add, sums != nullptr);
  loop(x, dy, dx, frequency, slope, sums, sums_b, groups, stride(), stride());
  if (rest > 0)
    loop(x + full_size, dy + full_size, dx == nullptr ? nullptr : dx + full_size, frequency, slope, sums, sums_b, 1,
         stride(), rest);
}
void SnakeRows::clear(float* sums) const { std::fill_n(sums, 2 * stride(), 0.0f); }
void SnakeRows::add_up(const float* sums, float* partial) const {
  unfold(sums, channels_, fold_, channels_, partial);
  unfold(sums + stride(), channels_, fold_, channels_, partial + channels_);
}

void add_snake_parameter_gradients(const SnakeParameterGradients& g, const float* partials, int64_t parts) {
  const int64_t channels = g.alpha.elements();
  for (int64_t c = 0; c < channels; ++c) {
    double sum_a = 0, sum_b = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const float* partial = partials + part * 2 * channels;
      sum_a += static_cast<double>(partial[c]);
      sum_b += static_cast<double>(partial[channels + c]);
    }
    const Channel p = channel(g.alpha.data, g.beta.data, c, g.log_scale);
    // With y = x + sin^2(a x) / b: dy/da = x sin(2 a x) / b and dy/db = -sin^2(a x) / b^2. On a logarithmic scale the
    // chain rule adds the factors a and b; without beta, b is a, and alpha gets both.
    const double gain = static_cast<double>(p.gain);
    double da = 2 * sum_a * gain, db = -sum_b * gain * gain;
    if (g.log_scale) {
      da *= static_cast<double>(p.a);
      db *= static_cast<double>(g.beta ? vec::exp(g.beta[c]) : p.a);
    }
    if (g.dalpha) g.dalpha[c] += static_cast<float>(g.beta ? da : da + db);
    if (g.dbeta) g.dbeta[c] += static_cast<float>(db);
  }
}

Shape snake_backward_scratch(Context& ctx, Shape x, bool) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::snake_backward_scratch(ctx, x);
  const Layout l(x);
  return {.batch = l.parts, .width = 2, .channels = l.channels};
}

Shape snake_backward_parts(Context& ctx, Shape x, bool with_beta) {
  return on_cuda(ctx) ? snake_backward_scratch(ctx, x, with_beta) : Shape{0, 0, 0, 0};
}

template <class T>
void snake_forward(Context& ctx, const SnakeForward<T>& a) {
  const Shape per_channel{.channels = a.x.shape.channels};
  expect_shape("snake_forward", "x", a.x, a.x.shape);
  expect_shape("snake_forward", "alpha", a.alpha, per_channel);
  expect_shape_or_empty("snake_forward", "beta", a.beta, per_channel);
  expect_shape("snake_forward", "y", a.y, a.x.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::snake_forward(ctx, a);
  if (a.x.elements() == 0) return;
  const Layout l(a.x.shape);
  // A range fills the table of parameters for itself, so it has at least 8192 elements.
  parallel_ranges(ctx, l.groups, 8192 / l.stride(), [&](int64_t begin, int64_t end) {
    Parameters p;
    for (int64_t tile = 0; tile < l.tiles(); ++tile) {
      p.fill_tile(l, tile, a.alpha.data, a.beta.data, a.log_scale);
      l.rows_of(begin, end, tile, [&](int64_t offset, int64_t groups, int64_t n) {
        forward_loop(a.x.data + offset, a.y.data + offset, p.frequency, p.gain, groups, l.stride(), n);
      });
    }
  });
}

template <class T>
void snake_backward(Context& ctx, const SnakeBackward<T>& a) {
  const Shape per_channel{.channels = a.x.shape.channels};
  expect_shape("snake_backward", "x", a.x, a.x.shape);
  expect_shape("snake_backward", "alpha", a.alpha, per_channel);
  expect_shape_or_empty("snake_backward", "beta", a.beta, per_channel);
  expect_shape("snake_backward", "dy", a.dy, a.x.shape);
  expect_shape_or_empty("snake_backward", "dx", a.dx, a.x.shape);
  expect_shape_or_empty("snake_backward", "dalpha", a.dalpha, per_channel);
  expect_shape_or_empty("snake_backward", "dbeta", a.dbeta, per_channel);
  if (a.dbeta && !a.beta) throw_usage("snake_backward", "dbeta is given without beta");
  const bool sums = a.dalpha || a.dbeta;
  const Shape scratch = snake_backward_scratch(ctx, a.x.shape, bool(a.beta));
  if (sums && on_cuda(ctx) && a.parts)
    expect_parts("snake_backward", a.parts, scratch);
  else if (sums)
    expect_scratch("snake_backward", a.scratch, scratch);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::snake_backward(ctx, a);
  if (a.x.elements() == 0 || (!a.dx && !sums)) return;
  const Layout l(a.x.shape);
  // One of five loops, so that no branch on dx, add_dx or sums is left inside.
  const BackwardLoop<T> loop = select_loop<T>(bool(a.dx), a.add_dx, sums);
  parallel_parts(ctx, l.parts, [&](int64_t part) {
    backward_part(a, l, part, loop, sums ? a.scratch.data + part * 2 * l.channels : nullptr);
  });
  if (sums)
    add_snake_parameter_gradients(
        {.alpha = a.alpha, .beta = a.beta, .dalpha = a.dalpha, .dbeta = a.dbeta, .log_scale = a.log_scale},
        a.scratch.data, l.parts);
}

template void snake_forward<float>(Context&, const SnakeForward<float>&);
template void snake_forward<bf16>(Context&, const SnakeForward<bf16>&);
template void snake_backward<float>(Context&, const SnakeBackward<float>&);
template void snake_backward<bf16>(Context&, const SnakeBackward<bf16>&);

}  // namespace nacre
