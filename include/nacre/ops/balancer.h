#pragma once
#include <array>

#include "nacre/context.h"
// Loss balancer (EnCodec, arXiv 2210.13438, section 3.4): each loss gets a fixed share of the gradient at the waveform,
// whatever its scale.
//
//   norm_i   = |g_i|_2 over the whole batch; with BalancerNorm::item the mean over the items b of |g_i[b]|_2, as
//              EnCodec was published
//   mean_i   = bias-corrected exponential moving average of norm_i with `decay`, this step included: S / W with
//              S <- decay S + norm_i and W <- decay W + 1
//   gradient = total_norm * sum_i (weight_i / sum_j weight_j) g_i / (mean_i + eps)
//   share_i  = norm of the i-th term over the sum of the norms of all terms, as applied in this step
// With gates, weight_i gate_i takes the place of weight_i, also in the sum of the weights. Gates are device memory, so
// that a loss can be switched on and off between the replays of one captured step.
// Plain weights (balanced = false): gradient = sum_i weight_i g_i; shares as above; state is not used.
// A non-finite norm does not change mean_i. Non-finite values are passed on to the gradient, so that the optimizer
// skips the step. A loss of weight 0 or gate 0 does not enter the gradient, even if it is NaN; its mean is still
// updated.
//
//   writes     gradient and shares are =, state is updated in place. If all terms are 0, all shares are 0
//   aliasing   gradient may be any of the gradients
//   order      norms are summed in double, over parts fixed by the shape; terms are added in the order of the losses
//   accuracy   norms within 2 u (u = 2^-24), gradient within (4 + count) u of the sum of the sizes of its terms
//   cost       8 count + 4 bytes per sample: bound by memory
namespace nacre {
inline constexpr int balancer_max = 8;
enum class BalancerNorm : uint8_t { batch, item };
struct Balancer {
  std::array<View<const float>, balancer_max> gradients{};  ///< the first `count` are used, each [batch, time, 1, 1]
  std::array<float, balancer_max> weights{};                ///< at least 0
  int count = 0;
  View<const float> gates{};  ///< [count], at least 0: factors of the weights, read in every step; empty: all ones
  View<float> state;   ///< [2 * count]: decayed sums of the norms, then decayed sums of ones; zeros at the start
  View<float> shares;  ///< [count] =
  View<float> gradient;   ///< =
  View<float> scratch{};  ///< balancer_scratch
  float decay = 0.999f, total_norm = 1.0f, eps = 1e-12f;
  bool balanced = true;
  BalancerNorm norm = BalancerNorm::batch;
};
Shape balancer_scratch(Context&, Shape gradient, int count, BalancerNorm = BalancerNorm::batch);
void balancer(Context&, const Balancer&);
}  // namespace nacre
