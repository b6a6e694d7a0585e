#include "nacre/ops/rms_scale.h"

#include <cmath>

#include "runtime/elementwise.h"
#include "runtime/sums.h"

// The level of items and the scaling by it on the CPU; rms_scale.cu is the same on CUDA. nacre/ops/rms_scale.h gives
// the formulas.
//
// A part is up to sum_part samples of one item, of all channels; in scale_items it is up to sum_part elements.
namespace nacre {
namespace cuda {
Shape rms_scale_scratch(Shape);
void rms_scale(Context&, const RmsScale&);
void scale_items(Context&, const ScaleItems&);
}  // namespace cuda
namespace {

constexpr int64_t lanes = 16;  // running sums of a part: fixed, so that bits do not depend on the vector width

/// The square of the sum over channels.
NACRE_INLINE double square(const float* x, int64_t channels) {
  double sum = 0;
  for (int64_t c = 0; c < channels; ++c) sum += static_cast<double>(x[c]);
  return sum * sum;
}
/// The sum of square() over n samples. Samples behind the last full vector join the lanes 0, 1, ...; then the lanes are
/// added in order.
NACRE_INLINE double squares(const float* x, int64_t n, int64_t channels) {
  double sums[lanes] = {};
  for (int64_t i = 0; i + lanes <= n; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) sums[k] += square(x + (i + k) * channels, channels);
  for (int64_t i = n / lanes * lanes; i < n; ++i) sums[i % lanes] += square(x + i * channels, channels);
  double total = 0;
  for (int64_t k = 0; k < lanes; ++k) total += sums[k];
  return total;
}
/// squares() with two channels as a constant, and with any number at run time.
NACRE_CLONES double squares_of_two(const float* x, int64_t n) { return squares(x, n, 2); }
NACRE_CLONES double squares_of_any(const float* x, int64_t n, int64_t channels) { return squares(x, n, channels); }

/// The sum over n samples of (sum over channels)^2.
double squares_of_part(const float* x, int64_t n, int64_t channels) {
  if (channels == 1) return sum_of_squares_part(x, n);
  return channels == 2 ? squares_of_two(x, n) : squares_of_any(x, n, channels);
}

/// The four loops of scale_items. y may be x, hence no __restrict, and NACRE_INDEPENDENT instead.
NACRE_CLONES void multiply(const float* x, float* y, int64_t n, float scale) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale;
}
NACRE_CLONES void divide(const float* x, float* y, int64_t n, float scale) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] / scale;
}
NACRE_CLONES void add_multiple(const float* x, float* y, int64_t n, float scale) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] += x[i] * scale;
}
NACRE_CLONES void add_quotient(const float* x, float* y, int64_t n, float scale) {
  NACRE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] += x[i] / scale;
}

}  // namespace

Shape rms_scale_scratch(Context& ctx, Shape x) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rms_scale_scratch(x);
  return {.channels = partial_floats(x.batch * sum_parts(x.time))};
}

void rms_scale(Context& ctx, const RmsScale& a) {
  const Shape s = a.x.shape;
  if (s.time < 1 || s.width != 1 || s.channels < 1 || s.channels > 64)
    throw_usage("rms_scale", "x is " + str(s) + ", expected [batch, time, 1, channels] with 1 to 64 channels");
  expect_shape("rms_scale", "x", a.x, s);
  expect_shape_or_empty("rms_scale", "lengths", a.lengths, Shape{.channels = s.batch});
  expect_shape("rms_scale", "scale", a.scale, Shape{.channels = s.batch});
  expect_scratch("rms_scale", a.scratch, rms_scale_scratch(ctx, s));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rms_scale(ctx, a);

  const int64_t parts = sum_parts(s.time);
  const auto valid = [&](int64_t item) { return a.lengths ? std::clamp<int64_t>(a.lengths[item], 0, s.time) : s.time; };
  // Parts begin anew with each item, so that its valid samples are a prefix of its parts.
  parallel_parts(ctx, s.batch * parts, [&](int64_t index) {
    const int64_t item = index / parts, begin = index % parts * sum_part;
    const int64_t n = std::clamp<int64_t>(valid(item) - begin, 0, sum_part);
    put_partial(a.scratch.data, index, squares_of_part(a.x.data + (item * s.time + begin) * s.channels, n, s.channels));
  });
  for (int64_t item = 0; item < s.batch; ++item) {
    // The squares are those of sums over channels, not of means.
    const auto count = static_cast<double>(std::max<int64_t>(valid(item), 1) * s.channels * s.channels);
    const double sum = add_partials(a.scratch.data + partial_floats(item * parts), parts);
    a.scale[item] = static_cast<float>(static_cast<double>(a.eps) + std::sqrt(sum / count));
  }
}

void scale_items(Context& ctx, const ScaleItems& a) {
  const Shape s = a.x.shape;
  expect_shape("scale_items", "x", a.x, s);
  expect_shape("scale_items", "scale", a.scale, Shape{.channels = s.batch});
  expect_shape("scale_items", "y", a.y, s);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::scale_items(ctx, a);
  const int64_t per_item = s.time * s.width * s.channels, parts = sum_parts(per_item);
  // One indirect call per part; the loops have no branch.
  const auto part = a.divide ? (a.add ? add_quotient : divide) : (a.add ? add_multiple : multiply);
  parallel_parts(ctx, s.batch * parts, [&](int64_t index) {
    const int64_t item = index / parts, begin = index % parts * sum_part, first = item * per_item + begin;
    part(a.x.data + first, a.y.data + first, std::min(sum_part, per_item - begin), a.scale[item]);
  });
}

}  // namespace nacre
