#include "nacre/ops/two_rates.h"

#include <string>

#include "runtime/elementwise.h"

// The operations between the two cascades on the CPU; two_rates.cu is the same on CUDA. nacre/ops/two_rates.h gives the
// formulas.
namespace nacre {
namespace cuda {
void rest(Context&, const Rest&);
void rest_backward(Context&, const RestBackward&);
void split_stages(Context&, const SplitStages&);
void copy_columns(Context&, const CopyColumns&);
}  // namespace cuda
namespace {

/// y = a - b. y may be a or b: an iteration reads its elements before it writes one.
NACRE_CLONES void difference(const float* a, const float* b, float* y, int64_t n) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] - b[i];
}
/// y = sign x, or y += sign x. A product with 1 or -1 is exact.
NACRE_CLONES void pass(const float* x, float sign, bool add, float* y, int64_t n) {
  if (add) {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] += sign * x[i];
  } else {
    NACRE_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = sign * x[i];
  }
}

/// Throws unless the columns [first, first + count) exist in s.
void expect_columns(const char* what, int64_t first, int64_t count, Shape s) {
  if (first < 0 || count < 0 || first + count > s.channels)
    throw Error(ErrorKind::usage, std::string("copy_columns: columns ") + std::to_string(first) + " to " +
                                      std::to_string(first + count - 1) + " of " + what + ", expected 0 to " +
                                      std::to_string(s.channels - 1));
}

}  // namespace

void rest(Context& ctx, const Rest& a) {
  expect_shape("rest", "z", a.z, a.z.shape);
  expect_shape("rest", "p", a.p, a.z.shape);
  expect_shape("rest", "y", a.y, a.z.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rest(ctx, a);
  parallel_elements(ctx, a.y.elements(), [&](int64_t begin, int64_t end) {
    difference(a.z.data + begin, a.p.data + begin, a.y.data + begin, end - begin);
  });
}

void rest_backward(Context& ctx, const RestBackward& a) {
  expect_shape("rest_backward", "dy", a.dy, a.dy.shape);
  expect_shape("rest_backward", "stages", a.stages, {.channels = a.dy.shape.batch});
  if (a.dz) expect_shape("rest_backward", "dz", a.dz, a.dy.shape);
  if (a.dp) expect_shape("rest_backward", "dp", a.dp, a.dy.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rest_backward(ctx, a);
  // An item is passed or not as a whole, because its number of stages decides. An item without a rest has the gradient
  // 0: there is nothing to add, but without `add` zeros must be written.
  if (a.dy.elements() == 0) return;
  const int64_t per_item = a.dy.elements() / a.dy.shape.batch;
  for (int64_t b = 0; b < a.dy.shape.batch; ++b) {
    const int64_t first = b * per_item;
    const bool used = a.stages[b] > 0;
    const auto to = [&](View<float> d, float sign, bool add) {
      if (!d || (!used && add)) return;
      parallel_elements(ctx, per_item, [&](int64_t begin, int64_t end) {
        if (used)
          pass(a.dy.data + first + begin, sign, add, d.data + first + begin, end - begin);
        else
          std::fill(d.data + first + begin, d.data + first + end, 0.0f);
      });
    };
    to(a.dz, 1, a.add_dz);
    to(a.dp, -1, a.add_dp);
  }
}

void split_stages(Context& ctx, const SplitStages& a) {
  expect_shape("split_stages", "stages", a.stages, a.stages.shape);
  expect_shape("split_stages", "frames", a.frames, a.stages.shape);
  expect_shape("split_stages", "long_stages", a.long_stages, a.stages.shape);
  expect_shape("split_stages", "short_stages", a.short_stages, a.stages.shape);
  expect_shape("split_stages", "short_frames", a.short_frames, a.stages.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::split_stages(ctx, a);
  // Three numbers per item: too few for a parallel loop.
  const auto most = static_cast<int32_t>(a.long_codebooks), positions = static_cast<int32_t>(a.positions);
  for (int64_t b = 0; b < a.stages.elements(); ++b) {
    a.long_stages[b] = std::min(a.stages[b], most);
    a.short_stages[b] = std::max(a.stages[b] - most, 0);
    a.short_frames[b] = a.frames[b] * positions;
  }
}

void copy_columns(Context& ctx, const CopyColumns& a) {
  Shape like_x = a.x.shape;
  like_x.channels = a.y.shape.channels;
  expect_shape("copy_columns", "x", a.x, a.x.shape);
  expect_shape("copy_columns", "y", a.y, like_x);
  expect_columns("x", a.from, a.columns, a.x.shape);
  expect_columns("y", a.to, a.columns, a.y.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::copy_columns(ctx, a);
  const int64_t in = a.x.shape.channels, out = a.y.shape.channels;
  for (int64_t row = 0; row < a.x.shape.rows(); ++row)
    std::copy_n(a.x.data + row * in + a.from, a.columns, a.y.data + row * out + a.to);
}

}  // namespace nacre
