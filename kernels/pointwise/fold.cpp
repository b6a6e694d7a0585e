#include "nacre/ops/fold.h"

#include "runtime/host.h"

// fold on the CPU (formulas and contract: nacre/ops/fold.h; twin: fold.cu). An item becomes `period` signals of
// `length` positions: signal j has the samples j, j + period, j + 2 period, ... A chunk of positions of all signals of
// an item is a contiguous range of samples.
namespace nacre {
namespace cuda {
void fold_forward(Context&, const FoldForward&);
void fold_backward(Context&, const FoldBackward&);
}  // namespace cuda
namespace {

// Positions of the split signals. With few of them, the samples of a chunk are in cache.
constexpr int64_t chunk = 1024;

// n positions of one signal: x and dx are at its first sample, y and dy at its first position.
NACRE_CLONES void split(const float* __restrict x, float* __restrict y, int64_t period, int64_t n) {
  for (int64_t l = 0; l < n; ++l) y[l] = x[l * period];
}
NACRE_CLONES void join(const float* __restrict dy, float* __restrict dx, int64_t period, int64_t n) {
  for (int64_t l = 0; l < n; ++l) dx[l * period] = dy[l];
}
NACRE_CLONES void add_join(const float* __restrict dy, float* __restrict dx, int64_t period, int64_t n) {
  for (int64_t l = 0; l < n; ++l) dx[l * period] += dy[l];
}

/// The shape of the signals before they were split, checked.
void expect_signal(const char* op, const char* argument, Shape x, int64_t period, bool extend) {
  if (x.width != 1 || x.channels != 1)
    throw_usage(op, std::string(argument) + " is " + str(x) + ", expected [batch, time, 1, 1]");
  if (extend ? period < 1 || x.time <= period : period < 1 || x.time < 1 || x.time % period != 0)
    throw_usage(op, "time is " + std::to_string(x.time) + " and period is " + std::to_string(period) +
                        (extend ? ", expected a positive period below the time"
                                : ", expected a positive period that divides the time"));
}

/// Runs f(b, first, n) over chunks of the split signals' positions.
template <class F>
void chunks(const Context& ctx, int64_t batch, int64_t length, const F& f) {
  const int64_t count = (length + chunk - 1) / chunk;
  parallel_ranges(ctx, batch * count, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i / count, i % count * chunk, std::min(chunk, length - i % count * chunk));
  });
}

}  // namespace

Shape fold_output(Shape x, int64_t period, bool extend) {
  expect_signal("fold_output", "x", x, period, extend);
  return {.batch = x.batch * period, .time = x.time / period + (extend ? 1 : 0)};
}

void fold_forward(Context& ctx, const FoldForward& a) {
  const Shape s = a.x.shape;
  expect_signal("fold_forward", "x", s, a.period, a.extend);
  const Shape out = fold_output(s, a.period, a.extend);
  expect_shape("fold_forward", "x", a.x, s);
  expect_shape("fold_forward", "y", a.y, out);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::fold_forward(ctx, a);
  const int64_t period = a.period, length = out.time, time = s.time;
  chunks(ctx, s.batch, length, [&](int64_t b, int64_t first, int64_t n) {
    const float* const x = a.x.data + b * time;
    for (int64_t j = 0; j < period; ++j) {
      float* const y = a.y.data + (b * period + j) * length;
      // Only the last position of a signal can be in the reflection.
      const int64_t last = first + n - 1, at = last * period + j;
      split(x + first * period + j, y + first, period, n - 1);
      y[last] = x[at < time ? at : 2 * (time - 1) - at];
    }
  });
}

void fold_backward(Context& ctx, const FoldBackward& a) {
  const Shape s = a.dx.shape;
  expect_signal("fold_backward", "dx", s, a.period, a.extend);
  const Shape out = fold_output(s, a.period, a.extend);
  expect_shape("fold_backward", "dy", a.dy, out);
  expect_shape("fold_backward", "dx", a.dx, s);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::fold_backward(ctx, a);
  const int64_t period = a.period, length = out.time, time = s.time;
  chunks(ctx, s.batch, length, [&](int64_t b, int64_t first, int64_t n) {
    const float* const dy = a.dy.data + b * period * length;
    float* const dx = a.dx.data + b * time;
    for (int64_t j = 0; j < period; ++j) {
      const int64_t count = (first + n - 1) * period + j < time ? n : n - 1;
      (a.add_dx ? add_join : join)(dy + j * length + first, dx + first * period + j, period, count);
    }
  });
  // The reflection is shorter than or as long as a period: a few samples per item, added when all others are there.
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t at = time; at < length * period; ++at)
      a.dx.data[b * time + 2 * (time - 1) - at] += a.dy.data[(b * period + at % period) * length + at / period];
}

}  // namespace nacre
