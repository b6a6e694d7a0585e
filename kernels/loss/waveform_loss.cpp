#include "nacre/ops/waveform_loss.h"

#include "loss/distance.h"
#include "runtime/elementwise.h"
#include "runtime/sums.h"

// waveform_loss on the CPU (contract: nacre/ops/waveform_loss.h; the loops over samples: distance.h; twin:
// waveform_loss.cu).
namespace nacre {
namespace cuda {
Shape waveform_loss_scratch(Shape);
void waveform_loss(Context&, const WaveformLoss&);
}  // namespace cuda
namespace {

// NACRE_CLONES needs plain functions: sum of |e - t| or of (e - t)^2, without and with gradient.
NACRE_CLONES double l1_part(const float* e, const float* t, int64_t n) {
  return distance_part<false, false, float>(e, t, nullptr, n, 0);
}
NACRE_CLONES double l2_part(const float* e, const float* t, int64_t n) {
  return distance_part<true, false, float>(e, t, nullptr, n, 0);
}
NACRE_CLONES double l1_gradient_part(const float* e, const float* t, float* g, int64_t n, float scale) {
  return distance_part<false, true, float>(e, t, g, n, scale);
}
NACRE_CLONES double l2_gradient_part(const float* e, const float* t, float* g, int64_t n, float scale) {
  return distance_part<true, true, float>(e, t, g, n, scale);
}

}  // namespace

Shape waveform_loss_scratch(Context& ctx, Shape estimate) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::waveform_loss_scratch(estimate);
  const int64_t per_item = estimate.time * estimate.width * estimate.channels;
  return {.channels = partial_floats(estimate.batch * sum_parts(per_item))};
}

void waveform_loss(Context& ctx, const WaveformLoss& a) {
  const Shape s = a.estimate.shape;
  expect_shape("waveform_loss", "estimate", a.estimate, s);
  expect_shape("waveform_loss", "target", a.target, s);
  expect_shape_or_empty("waveform_loss", "lengths", a.lengths, Shape{.channels = s.batch});
  expect_shape("waveform_loss", "loss", a.loss, Shape{});
  expect_shape_or_empty("waveform_loss", "gradient", a.gradient, s);
  expect_scratch("waveform_loss", a.scratch, waveform_loss_scratch(ctx, s));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::waveform_loss(ctx, a);

  // Parts begin anew with each item, so that the valid samples of an item are a prefix of its parts. The weight is
  // known before the loop, so loss and gradient take one pass.
  const int64_t frame = s.width * s.channels, per_item = s.time * frame, parts = sum_parts(per_item);
  // Elements of an item that count.
  const auto valid = [&](int64_t item) {
    return a.lengths ? std::clamp<int64_t>(a.lengths[item], 0, s.time) * frame : per_item;
  };
  int64_t count = 0;
  for (int64_t item = 0; item < s.batch; ++item) count += valid(item);
  const double weight = count > 0 ? 1 / static_cast<double>(count) : 0;
  const float scale = static_cast<float>(a.norm == WaveformNorm::l2 ? 2 * weight : weight);
  parallel_parts(ctx, s.batch * parts, [&](int64_t index) {
    // [begin, end) is the part, and its first n elements count. The others are not read; their gradient is 0.
    const int64_t item = index / parts, begin = index % parts * sum_part;
    const int64_t end = std::min(begin + sum_part, per_item),
                  n = std::clamp<int64_t>(valid(item) - begin, 0, end - begin);
    const float *estimate = a.estimate.data + item * per_item + begin,
                *target = a.target.data + item * per_item + begin;
    double sum = 0;
    if (a.gradient) {
      float* gradient = a.gradient.data + item * per_item + begin;
      sum = (a.norm == WaveformNorm::l2 ? l2_gradient_part : l1_gradient_part)(estimate, target, gradient, n, scale);
      std::fill(gradient + n, gradient + (end - begin), 0.0f);
    } else {
      sum = (a.norm == WaveformNorm::l2 ? l2_part : l1_part)(estimate, target, n);
    }
    put_partial(a.scratch.data, index, sum);
  });
  a.loss[0] = static_cast<float>(add_partials(a.scratch.data, s.batch * parts) * weight);
}

}  // namespace nacre
