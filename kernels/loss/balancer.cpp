#include "nacre/ops/balancer.h"

#include <cmath>

#include "runtime/elementwise.h"
#include "runtime/sums.h"

// balancer on the CPU (formulas and contract: nacre/ops/balancer.h; twin: balancer.cu). Four steps: the norm of each
// gradient, from sums of squares over parts; moving averages and the factor of each gradient; the shares; the sum of
// the gradients times their factors.
namespace nacre {
namespace cuda {
Shape balancer_scratch(Shape gradient, int count, BalancerNorm);
void balancer(Context&, const Balancer&);
}  // namespace cuda
namespace {

constexpr int64_t block = 1024;  // samples summed before they are stored, so that `gradient` may be one of the inputs

// sum += factor g
NACRE_CLONES void add_term(const float* __restrict g, float* __restrict sum, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) sum[i] += factor * g[i];
}

// gradient = sum over i of factors[i] gradients[i], on [begin, end), in the order of the losses. A factor of 0 skips
// its gradient, because 0 times NaN would be NaN.
void add_terms(const Balancer& a, const float* factors, int64_t begin, int64_t end) {
  float sum[block];
  for (int64_t at = begin; at < end; at += block) {
    const int64_t n = std::min(block, end - at);
    std::fill(sum, sum + n, 0.0f);
    for (int i = 0; i < a.count; ++i)
      if (factors[i] != 0) add_term(a.gradients[i].data + at, sum, n, factors[i]);
    std::copy(sum, sum + n, a.gradient.data + at);
  }
}

/// Signals whose norms are averaged, and the elements of each.
struct Items {
  int64_t count, elements;
  Items(Shape s, BalancerNorm norm)
      : count(norm == BalancerNorm::item ? std::max<int64_t>(s.batch, 1) : 1), elements(s.elements() / count) {}
  int64_t parts() const { return sum_parts(elements); }
};
/// The mean of the L2 norms of the items. scratch: [items][parts] partial sums of squares.
double norm_of(Context& ctx, const float* g, const Items& items, float* scratch) {
  const int64_t n = items.elements, parts = items.parts();
  parallel_parts(ctx, items.count * parts, [&](int64_t index) {
    const int64_t begin = index % parts * sum_part;
    put_partial(scratch, index, sum_of_squares_part(g + index / parts * n + begin, std::min(sum_part, n - begin)));
  });
  double sum = 0;
  for (int64_t item = 0; item < items.count; ++item)
    sum += std::sqrt(add_partials(scratch + partial_floats(item * parts), parts));
  return sum / static_cast<double>(items.count);
}

/// The weight of loss i times its gate. In double the product of two floats is exact.
double weight_of(const Balancer& a, int i) {
  const double weight = static_cast<double>(a.weights[i]);
  return a.gates ? weight * static_cast<double>(a.gates[i]) : weight;
}
/// Updates the moving averages and computes the factor of each gradient: total_norm share / (mean + eps), where share
/// is the part of its weight in the sum of all weights; without balancing the weight itself.
void find_factors(const Balancer& a, const double* norms, float* factors) {
  double total_weight = 0;
  for (int i = 0; i < a.count; ++i) total_weight += weight_of(a, i);
  for (int i = 0; i < a.count; ++i) {
    if (!a.balanced) {
      factors[i] = static_cast<float>(weight_of(a, i));
      continue;
    }
    // The moving average of the norm is sum / ones: `ones` averages 1 in the same way, which corrects the start from 0.
    // A norm that is not finite changes nothing, so one bad step does not spoil the average.
    float &sum = a.state[i], &ones = a.state[a.count + i];
    if (const float norm = static_cast<float>(norms[i]); std::isfinite(norm)) {
      sum = a.decay * sum + norm;
      ones = a.decay * ones + 1.0f;
    }
    const double mean = ones > 0 ? static_cast<double>(sum) / static_cast<double>(ones) : 0;
    const double share = total_weight > 0 ? weight_of(a, i) / total_weight : 0;
    factors[i] = static_cast<float>(static_cast<double>(a.total_norm) * share / (mean + static_cast<double>(a.eps)));
  }
}

/// shares[i] = |factor_i| norm_i over the sum of these; all 0 if the sum is 0.
void find_shares(const Balancer& a, const double* norms, const float* factors) {
  double terms[balancer_max], total = 0;
  for (int i = 0; i < a.count; ++i) {
    // A factor of 0 counts as a share of 0, also where the norm is infinite.
    terms[i] = factors[i] != 0 ? std::fabs(static_cast<double>(factors[i])) * norms[i] : 0;
    total += terms[i];
  }
  for (int i = 0; i < a.count; ++i) a.shares[i] = total == 0 ? 0.0f : static_cast<float>(terms[i] / total);
}

}  // namespace

Shape balancer_scratch(Context& ctx, Shape gradient, int count, BalancerNorm norm) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::balancer_scratch(gradient, count, norm);
  const Items items(gradient, norm);
  return {.channels = partial_floats(std::max(count, 0) * items.count * items.parts())};
}

void balancer(Context& ctx, const Balancer& a) {
  if (a.count < 1 || a.count > balancer_max) [[unlikely]]
    throw_usage("balancer", "count is " + std::to_string(a.count) + ", expected 1 to " + std::to_string(balancer_max));
  const Shape s = a.gradient.shape;
  expect_shape("balancer", "gradient", a.gradient, s);
  for (int i = 0; i < a.count; ++i) expect_shape("balancer", "gradients", a.gradients[i], s);
  for (int i = 0; i < a.count; ++i)
    if (!(a.weights[i] >= 0)) [[unlikely]]
      throw_usage("balancer",
                  "weights[" + std::to_string(i) + "] is " + std::to_string(a.weights[i]) + ", expected at least 0");
  expect_shape_or_empty("balancer", "gates", a.gates, Shape{.channels = a.count});
  if (a.balanced) expect_shape("balancer", "state", a.state, Shape{.channels = 2 * a.count});
  expect_shape("balancer", "shares", a.shares, Shape{.channels = a.count});
  expect_scratch("balancer", a.scratch, balancer_scratch(ctx, s, a.count, a.norm));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::balancer(ctx, a);

  double norms[balancer_max];
  float factors[balancer_max];
  const Items items(s, a.norm);
  const int64_t stride = partial_floats(items.count * items.parts());
  for (int i = 0; i < a.count; ++i) norms[i] = norm_of(ctx, a.gradients[i].data, items, a.scratch.data + i * stride);
  find_factors(a, norms, factors);
  find_shares(a, norms, factors);
  parallel_elements(ctx, s.elements(), [&](int64_t begin, int64_t end) { add_terms(a, factors, begin, end); });
}

}  // namespace nacre
