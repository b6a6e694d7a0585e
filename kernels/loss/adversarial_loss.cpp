#include "nacre/ops/adversarial_loss.h"

#include <numeric>

#include "loss/adversarial.h"
#include "runtime/elementwise.h"
#include "runtime/sums.h"

// adversarial_loss on the CPU (contract: nacre/ops/adversarial_loss.h; the terms of a logit: adversarial.h; twin:
// adversarial_loss.cu). Logits are divided into halves, judged real and fake, and each half into parts of 32768 logits.
// A part writes its gradient, its loss and its number of right judgements; losses and counts of the parts are added in
// order. The loss of a generator has one half, whose logits should be judged real.
namespace nacre {
namespace cuda {
Shape adversarial_loss_scratch(Shape);
template <class T>
void discriminator_loss(Context&, const DiscriminatorLoss<T>&);
template <class T>
void generator_loss(Context&, const GeneratorLoss<T>&);
}  // namespace cuda
namespace {

/// Sums over the logits of a part.
struct Part {
  double loss = 0;
  int64_t right = 0;
};
/// The sum over n logits in 16 lanes, and, with_gradient, the gradient, which may be the logits. Element i goes to lane
/// i % 16, also behind the last whole vector, so the order depends on n alone.
template <AdversarialKind kind, bool with_gradient, class T>
NACRE_INLINE Part add_part(const T* logits, T* gradient, int64_t n, bool real, float scale) {
  double losses[16] = {};
  int64_t right[16] = {};
  const auto element = [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const AdversarialTerm term = adversarial_term<kind>(to_float(logits[i]), real, scale);
    losses[lane] += term.loss;
    right[lane] += term.right ? 1 : 0;
    if constexpr (with_gradient) gradient[i] = store<T>(term.gradient);
  };
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    NACRE_INDEPENDENT
    for (int k = 0; k < 16; ++k) element(i + k, k);
  }
  for (int64_t i = n / 16 * 16; i < n; ++i) element(i, i % 16);
  return {std::accumulate(losses, losses + 16, 0.0), std::accumulate(right, right + 16, int64_t{0})};
}
// One function per kind and type, since NACRE_CLONES needs plain functions; each with and without gradient.
#define NACRE_LOOP(T, kind)                                                                                  \
  NACRE_CLONES Part kind##_part(const T* logits, T* gradient, int64_t n, bool real, float scale) {           \
    return gradient == nullptr ? add_part<AdversarialKind::kind, false, T>(logits, gradient, n, real, scale) \
                               : add_part<AdversarialKind::kind, true, T>(logits, gradient, n, real, scale); \
  }
#define NACRE_LOOPS(T)         \
  NACRE_LOOP(T, least_squares) \
  NACRE_LOOP(T, hinge)         \
  NACRE_LOOP(T, hinge_linear)
NACRE_LOOPS(float)
NACRE_LOOPS(bf16)

/// The loop of a kind. `rule` is a result of adversarial_rule.
template <class T>
Part part_of(AdversarialKind rule, const T* logits, T* gradient, int64_t n, bool real, float scale) {
  switch (rule) {
    case AdversarialKind::least_squares:
      return least_squares_part(logits, gradient, n, real, scale);
    case AdversarialKind::hinge:
      return hinge_part(logits, gradient, n, real, scale);
    case AdversarialKind::hinge_linear:
      break;
  }
  return hinge_linear_part(logits, gradient, n, real, scale);
}

struct Result {
  double loss = 0;    // the sum of the means
  double right[2]{};  // fractions
};
/// The logits in `halves` halves of n logits each; those of the first half shall be judged real, others fake.
template <class T>
Result run(Context& ctx, View<const T> logits, View<T> gradient, float* scratch, AdversarialKind kind, float weight,
           int halves) {
  const int64_t n = logits.elements() / halves, parts = sum_parts(n);
  const float scale = adversarial_scale(kind, weight, n);
  const AdversarialKind rule = adversarial_rule(kind, halves);
  // Scratch: [halves][parts] losses, then as many counts, all as doubles.
  float* const counts = scratch + partial_floats(halves * parts);
  parallel_parts(ctx, halves * parts, [&](int64_t index) {
    const int64_t half = index / parts, begin = index % parts * sum_part, at = half * n + begin;
    const T* const x = logits.data + at;
    T* const g = gradient ? gradient.data + at : nullptr;
    const int64_t length = std::min(sum_part, n - begin);
    const Part part = part_of(rule, x, g, length, half == 0, scale);
    put_partial(scratch, index, part.loss);
    put_partial(counts, index, static_cast<double>(part.right));
  });
  // Each half has a mean of its own. Without logits all results are 0.
  Result r;
  for (int half = 0; half < halves && n > 0; ++half) {
    const int64_t first = partial_floats(half * parts);
    r.loss += add_partials(scratch + first, parts) / static_cast<double>(n);
    r.right[half] = add_partials(counts + first, parts) / static_cast<double>(n);
  }
  return r;
}

}  // namespace

/// Sums and counts of two halves, which have at least as many parts as the whole.
Shape adversarial_loss_scratch(Context& ctx, Shape logits) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::adversarial_loss_scratch(logits);
  return {.channels = partial_floats(4 * sum_parts((logits.elements() + 1) / 2))};
}

template <class T>
void discriminator_loss(Context& ctx, const DiscriminatorLoss<T>& a) {
  const Shape s = a.logits.shape;
  expect_shape("discriminator_loss", "logits", a.logits, s);
  if (s.batch % 2 != 0) [[unlikely]]
    throw_usage("discriminator_loss", "logits have " + std::to_string(s.batch) +
                                          " items, expected an even number: real ones, then as many fake ones");
  expect_shape("discriminator_loss", "loss", a.loss, Shape{});
  expect_shape_or_empty("discriminator_loss", "right", a.right, Shape{.channels = 2});
  expect_shape_or_empty("discriminator_loss", "gradient", a.gradient, s);
  expect_scratch("discriminator_loss", a.scratch, adversarial_loss_scratch(ctx, s));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::discriminator_loss(ctx, a);
  const Result r = run(ctx, a.logits, a.gradient, a.scratch.data, a.kind, a.weight, 2);
  a.loss[0] = (a.add_loss ? a.loss[0] : 0.0f) + static_cast<float>(r.loss);
  if (a.right) std::transform(r.right, r.right + 2, a.right.data, [](double f) { return static_cast<float>(f); });
}

template <class T>
void generator_loss(Context& ctx, const GeneratorLoss<T>& a) {
  const Shape s = a.logits.shape;
  expect_shape("generator_loss", "logits", a.logits, s);
  expect_shape("generator_loss", "loss", a.loss, Shape{});
  expect_shape_or_empty("generator_loss", "gradient", a.gradient, s);
  expect_scratch("generator_loss", a.scratch, adversarial_loss_scratch(ctx, s));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::generator_loss(ctx, a);
  const Result r = run(ctx, a.logits, a.gradient, a.scratch.data, a.kind, a.weight, 1);
  a.loss[0] = (a.add_loss ? a.loss[0] : 0.0f) + static_cast<float>(r.loss);
}

template void discriminator_loss<float>(Context&, const DiscriminatorLoss<float>&);
template void discriminator_loss<bf16>(Context&, const DiscriminatorLoss<bf16>&);
template void generator_loss<float>(Context&, const GeneratorLoss<float>&);
template void generator_loss<bf16>(Context&, const GeneratorLoss<bf16>&);

}  // namespace nacre
