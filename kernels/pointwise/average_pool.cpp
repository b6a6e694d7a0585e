#include "nacre/ops/average_pool.h"

#include "runtime/host.h"

// Average pooling along time on the CPU (formulas and contract: nacre/ops/average_pool.h; twin: average_pool.cu).
// Windows in the middle lie inside x and have the same count, so a tap of all of them is one loop with a constant
// stride; the few windows at the edges are processed one by one.
namespace nacre {
namespace cuda {
void average_pool_forward(Context&, const AveragePoolForward&);
void average_pool_backward(Context&, const AveragePoolBackward&);
}  // namespace cuda
namespace {

// Positions of y (forward) or x (backward) that a thread computes at once: they are in cache while taps are added.
constexpr int64_t chunk = 1024;

// A padding of at most taps / 2 leaves every window at least one position of x.
void expect_geometry(const char* op, const char* argument, Shape x, const AveragePoolGeometry& g) {
  if (g.taps < 1 || g.stride < 1 || g.padding < 0 || g.padding > g.taps / 2)
    throw_usage(op, "taps are " + std::to_string(g.taps) + ", stride is " + std::to_string(g.stride) +
                        " and padding is " + std::to_string(g.padding) +
                        ", expected taps and a stride of at least 1 and a padding of 0 to taps / 2");
  if (x.time < 1 || x.time + 2 * g.padding < g.taps)
    throw_usage(op, std::string(argument) + " is " + str(x) + ", expected a time of at least " +
                        std::to_string(std::max<int64_t>(g.taps - 2 * g.padding, 1)));
}

/// One item. A position has `inner` elements, and windows [whole, partial) lie inside x.
struct Item {
  int64_t time, length, inner, whole, partial;
  AveragePoolGeometry g;

  Item(Shape x, Shape y, const AveragePoolGeometry& geometry)
      : time(x.time), length(y.time), inner(x.width * x.channels), g(geometry) {
    // whole: the first window that does not begin before x. partial: the first one from there on that ends beyond x.
    whole = std::min(length, (g.padding + g.stride - 1) / g.stride);
    const int64_t last = time + g.padding - g.taps;  // t stride of the last window inside, if it is not negative
    partial = last < 0 ? whole : std::max(whole, std::min(length, last / g.stride + 1));
  }
  /// The divisor of window t.
  float count(int64_t t) const {
    if (g.count_padding) return static_cast<float>(g.taps);
    const int64_t begin = t * g.stride - g.padding;
    return static_cast<float>(std::min(begin + g.taps, time) - std::max<int64_t>(begin, 0));
  }
};

// y = x, or y += x, for n positions of `inner` elements; those of x are `step` elements apart.
NACRE_CLONES void set(const float* __restrict x, float* __restrict y, int64_t n, int64_t inner, int64_t step) {
  for (int64_t t = 0; t < n; ++t)
    for (int64_t c = 0; c < inner; ++c) y[t * inner + c] = x[t * step + c];
}
NACRE_CLONES void add(const float* __restrict x, float* __restrict y, int64_t n, int64_t inner, int64_t step) {
  for (int64_t t = 0; t < n; ++t)
    for (int64_t c = 0; c < inner; ++c) y[t * inner + c] += x[t * step + c];
}
NACRE_CLONES void divide(float* y, int64_t n, float count) {
  for (int64_t i = 0; i < n; ++i) y[i] /= count;
}
/// Adds the shares of n windows to positions that are `step` elements apart.
NACRE_CLONES void add_shares(const float* __restrict dy, float* __restrict dx, int64_t n, int64_t inner, int64_t step,
                             float count) {
  for (int64_t t = 0; t < n; ++t)
    for (int64_t c = 0; c < inner; ++c) dx[t * step + c] += dy[t * inner + c] / count;
}

/// Windows [first, end) of y of one item: the sum of the taps in ascending order, then the division. [a, b) are the
/// windows that lie inside x.
void forward_part(const Item& m, const float* x, float* y, int64_t first, int64_t end) {
  const AveragePoolGeometry& g = m.g;
  // A window that reaches beyond x: only its positions inside are added.
  const auto edge = [&](int64_t t) {
    const int64_t begin = t * g.stride - g.padding, from = std::max<int64_t>(begin, 0),
                  to = std::min(begin + g.taps, m.time);
    set(x + from * m.inner, y + t * m.inner, 1, m.inner, m.inner);
    for (int64_t s = from + 1; s < to; ++s) add(x + s * m.inner, y + t * m.inner, 1, m.inner, m.inner);
    divide(y + t * m.inner, m.inner, m.count(t));
  };
  const int64_t a = std::clamp(m.whole, first, end), b = std::clamp(m.partial, a, end);
  for (int64_t t = first; t < a; ++t) edge(t);
  if (b > a) {
    const float* const from = x + (a * g.stride - g.padding) * m.inner;
    for (int64_t k = 0; k < g.taps; ++k)
      (k == 0 ? set : add)(from + k * m.inner, y + a * m.inner, b - a, m.inner, g.stride * m.inner);
    divide(y + a * m.inner, (b - a) * m.inner, static_cast<float>(g.taps));
  }
  for (int64_t t = b; t < end; ++t) edge(t);
}

/// Positions [first, end) of dx of one item, tap by tap. [begin, last) are the windows whose tap k lies in the range,
/// [a, b) those of them that lie inside x.
void backward_part(const Item& m, const float* dy, float* dx, int64_t first, int64_t end, bool add_dx) {
  const AveragePoolGeometry& g = m.g;
  if (!add_dx) std::fill(dx + first * m.inner, dx + end * m.inner, 0.0f);
  // The later a tap in its window, the earlier is the window that has a given position there.
  for (int64_t k = g.taps; k-- > 0;) {
    const auto windows_before = [&](int64_t position) {  // whose tap k lies before it
      const int64_t n = position + g.padding - k;
      return n <= 0 ? 0 : std::min(m.length, (n + g.stride - 1) / g.stride);
    };
    const int64_t begin = windows_before(first), last = windows_before(end);
    const int64_t a = std::clamp(m.whole, begin, last), b = std::clamp(m.partial, a, last);
    const auto shares = [&](int64_t t, int64_t n, float count) {
      add_shares(dy + t * m.inner, dx + (t * g.stride - g.padding + k) * m.inner, n, m.inner, g.stride * m.inner,
                 count);
    };
    for (int64_t t = begin; t < a; ++t) shares(t, 1, m.count(t));
    if (b > a) shares(a, b - a, static_cast<float>(g.taps));
    for (int64_t t = b; t < last; ++t) shares(t, 1, m.count(t));
  }
}

/// Runs f(item, first, end) over chunks of each item's positions.
template <class F>
void chunks(const Context& ctx, int64_t items, int64_t length, int64_t inner, const F& f) {
  const int64_t each = std::max<int64_t>(1, chunk / std::max<int64_t>(inner, 1)), count = (length + each - 1) / each;
  parallel_ranges(ctx, items * count, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % count * each;
      f(i / count, first, std::min(first + each, length));
    }
  });
}

}  // namespace

Shape average_pool_output(Shape x, const AveragePoolGeometry& g) {
  expect_geometry("average_pool_output", "x", x, g);
  Shape y = x;
  y.time = (x.time + 2 * g.padding - g.taps) / g.stride + 1;
  return y;
}

void average_pool_forward(Context& ctx, const AveragePoolForward& a) {
  const Shape s = a.x.shape;
  expect_geometry("average_pool_forward", "x", s, a.geometry);
  const Shape out = average_pool_output(s, a.geometry);
  expect_shape("average_pool_forward", "x", a.x, s);
  expect_shape("average_pool_forward", "y", a.y, out);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::average_pool_forward(ctx, a);
  const Item item(s, out, a.geometry);
  chunks(ctx, s.batch, out.time, item.inner, [&](int64_t b, int64_t first, int64_t end) {
    forward_part(item, a.x.data + b * item.time * item.inner, a.y.data + b * item.length * item.inner, first, end);
  });
}

void average_pool_backward(Context& ctx, const AveragePoolBackward& a) {
  const Shape s = a.dx.shape;
  expect_geometry("average_pool_backward", "dx", s, a.geometry);
  const Shape out = average_pool_output(s, a.geometry);
  expect_shape("average_pool_backward", "dy", a.dy, out);
  expect_shape("average_pool_backward", "dx", a.dx, s);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::average_pool_backward(ctx, a);
  const Item item(s, out, a.geometry);
  chunks(ctx, s.batch, s.time, item.inner, [&](int64_t b, int64_t first, int64_t end) {
    backward_part(item, a.dy.data + b * item.length * item.inner, a.dx.data + b * item.time * item.inner, first, end,
                  a.add_dx);
  });
}

}  // namespace nacre
