#include "nacre/ops/feature_loss.h"

#include "loss/distance.h"
#include "runtime/elementwise.h"
#include "runtime/sums.h"

// feature_loss on the CPU (contract: nacre/ops/feature_loss.h; the loops over elements: distance.h; twin:
// feature_loss.cu). The parts of all pairs are numbered through and run in one parallel loop, so that small activations
// do not leave threads idle. Relative losses take one pass more: it gives the mean of |real|, the divisor, on which the
// scale of the gradient depends.
namespace nacre {
namespace cuda {
Shape feature_loss_scratch(int64_t elements, int count, bool relative);
template <class T>
void feature_loss(Context&, const FeatureLoss<T>&);
}  // namespace cuda
namespace {

// NACRE_CLONES needs plain functions, one per type.
#define NACRE_LOOPS(T)                                                                                   \
  NACRE_CLONES double sum_loop(const T* fake, const T* real, int64_t n) {                                \
    return distance_part<false, false, T>(fake, real, nullptr, n, 0);                                    \
  }                                                                                                      \
  NACRE_CLONES double gradient_loop(const T* fake, const T* real, T* gradient, int64_t n, float scale) { \
    return distance_part<false, true, T>(fake, real, gradient, n, scale);                                \
  }                                                                                                      \
  NACRE_CLONES double magnitude_loop(const T* x, int64_t n) { return magnitude_part<T>(x, n); }
NACRE_LOOPS(float)
NACRE_LOOPS(bf16)

}  // namespace

Shape feature_loss_scratch(Context& ctx, int64_t elements, int count, bool relative) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::feature_loss_scratch(elements, count, relative);
  // Each pair begins a part of its own, so at most one part of each is not full. Distances and magnitudes take turns.
  return {.channels = partial_floats(elements / sum_part + std::max(count, 0))};
}

template <class T>
void feature_loss(Context& ctx, const FeatureLoss<T>& a) {
  if (a.count < 1 || a.count > feature_loss_max) [[unlikely]]
    throw_usage("feature_loss",
                "count is " + std::to_string(a.count) + ", expected 1 to " + std::to_string(feature_loss_max));
  int64_t elements = 0;
  for (int i = 0; i < a.count; ++i) {
    const FeaturePair<T>& pair = a.pairs[static_cast<size_t>(i)];
    expect_shape("feature_loss", "real", pair.real, pair.real.shape);
    expect_shape("feature_loss", "fake", pair.fake, pair.real.shape);
    expect_shape_or_empty("feature_loss", "gradient", pair.gradient, pair.real.shape);
    elements += pair.real.elements();
  }
  expect_shape("feature_loss", "loss", a.loss, Shape{});
  expect_scratch("feature_loss", a.scratch, feature_loss_scratch(ctx, elements, a.count, a.relative));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::feature_loss(ctx, a);

  int64_t first[feature_loss_max + 1] = {};  // the first part of each pair
  for (int i = 0; i < a.count; ++i)
    first[i + 1] = first[i] + sum_parts(a.pairs[static_cast<size_t>(i)].real.elements());
  // The last pair that begins at the part or before it: a pair without elements begins where the next one does.
  const auto pair_of = [&](int64_t part) { return std::upper_bound(first, first + a.count, part) - first - 1; };
  /// The sum of pair i from the parts in scratch, over its elements.
  const auto mean_of = [&](int i) {
    return add_partials(a.scratch.data + partial_floats(first[i]), first[i + 1] - first[i]) /
           static_cast<double>(a.pairs[static_cast<size_t>(i)].real.elements());
  };
  // 1 unless the loss is relative, also for pairs without elements.
  double divisors[feature_loss_max];
  std::fill(divisors, divisors + feature_loss_max, 1.0);
  if (a.relative) {
    parallel_parts(ctx, first[a.count], [&](int64_t part) {
      const int64_t i = pair_of(part), begin = (part - first[i]) * sum_part;
      const View<const T> real = a.pairs[static_cast<size_t>(i)].real;
      put_partial(a.scratch.data, part, magnitude_loop(real.data + begin, std::min(sum_part, real.elements() - begin)));
    });
    for (int i = 0; i < a.count; ++i)
      if (first[i + 1] > first[i]) divisors[i] = relative_divisor(mean_of(i));
  }
  parallel_parts(ctx, first[a.count], [&](int64_t part) {
    const int64_t i = pair_of(part);
    const FeaturePair<T>& pair = a.pairs[static_cast<size_t>(i)];
    const int64_t total = pair.real.elements(), begin = (part - first[i]) * sum_part,
                  n = std::min(sum_part, total - begin);
    const T *fake = pair.fake.data + begin, *real = pair.real.data + begin;
    const float scale = static_cast<float>(static_cast<double>(a.weight) / static_cast<double>(total) / divisors[i]);
    put_partial(
        a.scratch.data, part,
        pair.gradient ? gradient_loop(fake, real, pair.gradient.data + begin, n, scale) : sum_loop(fake, real, n));
  });
  // Pairs without elements have no mean and add nothing.
  double loss = 0;
  for (int i = 0; i < a.count; ++i)
    if (first[i + 1] > first[i]) loss += mean_of(i) / divisors[i];
  a.loss[0] = (a.add_loss ? a.loss[0] : 0.0f) + static_cast<float>(loss);
}

template void feature_loss<float>(Context&, const FeatureLoss<float>&);
template void feature_loss<bf16>(Context&, const FeatureLoss<bf16>&);

}  // namespace nacre
