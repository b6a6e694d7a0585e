#include "nacre/ops/balancer.h"

#include <limits>

#include "runtime/partials.cuh"

// balancer on the device (formulas and contract: nacre/ops/balancer.h; twin: balancer.cpp).
// Three launches: sums of squares of 4096 samples of each gradient (of one item, if norms are taken by item); one warp
// per gradient adds them, and one thread computes the factors and updates the averages; the weighted sum. 8 count + 4
// bytes per sample: 34 MB and 8 us at the copy rate for three losses on 72 x 16896 samples.
namespace nacre::cuda {
namespace {

/// Signals whose norms are averaged: all samples as one, or the items of the batch.
struct Items {
  int64_t count, elements, parts;  // samples and parts of each
};
Items items_of(Shape s, BalancerNorm norm) {
  const int64_t count = norm == BalancerNorm::item ? std::max<int64_t>(s.batch, 1) : 1, n = s.elements() / count;
  return {count, n, sum_parts(n)};
}

/// One part of one gradient per block: grid.x runs over [items][parts], grid.y over gradients. `aligned`: parts begin
/// at multiples of 16 bytes.
template <bool aligned>
__global__ void __launch_bounds__(sum_threads) balancer_norms_kernel(Balancer a, Items items) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  constexpr int P = pack_size<float>;
  const int64_t item = blockIdx.x / items.parts, begin = (blockIdx.x - item * items.parts) * sum_part;
  const float* const g = a.gradients[blockIdx.y].data + item * items.elements + begin;
  const int64_t remaining = items.elements - begin;
  const int count = static_cast<int>(remaining < sum_part ? remaining : sum_part);
  double sum = 0;
#pragma unroll
  // Thread t takes elements 4 t to 4 t + 3 of each 1024, aligned or not: the order of the sum does not depend on
  // addresses, and accesses are coalesced. Bound by memory.
  for (int step = 0; step < sum_part / (P * sum_threads); ++step) {
    const int offset = (step * sum_threads + static_cast<int>(threadIdx.x)) * P;
    const Pack<float> v =
        aligned && offset + P <= count ? load_pack(g + offset) : load_some(g + offset, count - offset);
#pragma unroll
    for (int i = 0; i < P; ++i) sum += static_cast<double>(v.v[i]) * static_cast<double>(v.v[i]);
  }
  sum = block_sum<sum_threads>(sum, sums);
  if (threadIdx.x == 0) put_partial(a.scratch.data, int64_t{blockIdx.y} * items.count * items.parts + blockIdx.x, sum);
}

/// The same statements as in balancer.cpp.
__device__ double weight_of(const Balancer& a, int i) {
  const double weight = static_cast<double>(a.weights[i]);
  return a.gates.data == nullptr ? weight : weight * static_cast<double>(a.gates.data[i]);
}
__device__ void find_factors(const Balancer& a, const double* norms, float* factors) {
  double total_weight = 0;
  for (int i = 0; i < a.count; ++i) total_weight += weight_of(a, i);
  for (int i = 0; i < a.count; ++i) {
    if (!a.balanced) {
      factors[i] = static_cast<float>(weight_of(a, i));
      continue;
    }
    float &sum = a.state.data[i], &ones = a.state.data[a.count + i];
    const float norm = static_cast<float>(norms[i]);
    if (norm <= std::numeric_limits<float>::max()) {  // not NaN, not infinite
      sum = a.decay * sum + norm;
      ones = a.decay * ones + 1.0f;
    }
    const double mean = ones > 0 ? static_cast<double>(sum) / static_cast<double>(ones) : 0;
    const double share = total_weight > 0 ? weight_of(a, i) / total_weight : 0;
    factors[i] = static_cast<float>(static_cast<double>(a.total_norm) * share / (mean + static_cast<double>(a.eps)));
  }
}
__device__ void find_shares(const Balancer& a, const double* norms, const float* factors) {
  // A factor of 0 counts as a share of 0, also where the norm is infinite.
  const auto term = [&](int i) { return factors[i] != 0 ? fabs(static_cast<double>(factors[i])) * norms[i] : 0; };
  double total = 0;
  for (int i = 0; i < a.count; ++i) total += term(i);
  for (int i = 0; i < a.count; ++i) a.shares.data[i] = total == 0 ? 0.0f : static_cast<float>(term(i) / total);
}

/// The norm of a gradient from its parts, by one warp. A lane takes an item, which has few parts.
__device__ double norm_of(const float* scratch, const Items& items, int lane) {
  if (items.count == 1) return sqrt(warp_sum(add_partials(scratch, items.parts, lane, 32)));
  double sum = 0;
  for (int64_t item = lane; item < items.count; item += 32)
    sum += sqrt(add_partials(scratch + 2 * item * items.parts, items.parts, 0, 1));
  return warp_sum(sum) / static_cast<double>(items.count);
}

/// One block: norms, moving averages, factors and shares. `factors` [count] go to the scratch, where balancer_kernel
/// reads them.
__global__ void __launch_bounds__(32 * balancer_max) balancer_factors_kernel(Balancer a, Items items, float* factors) {
  NACRE_SHARED(double, norms, balancer_max);
  NACRE_SHARED(float, shared_factors, balancer_max);
  // Warp i adds the parts of gradient i. The barrier hands the norms to thread 0, which has few operations to do.
  const int i = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const double norm = i < a.count ? norm_of(a.scratch.data + 2 * i * items.count * items.parts, items, lane) : 0;
  if (lane == 0) norms[i] = norm;
  __syncthreads();
  if (threadIdx.x != 0) return;
  find_factors(a, norms, shared_factors);
  find_shares(a, norms, shared_factors);
  for (int k = 0; k < a.count; ++k) factors[k] = shared_factors[k];
}

/// Each thread reads all gradients before it writes the sum, which may overwrite one of them. fmaf leaves the compiler
/// no choice of what to fuse, so that bits do not depend on alignment.
template <bool aligned>
__global__ void __launch_bounds__(256) balancer_kernel(Balancer a, int64_t n, const float* factors) {
  constexpr int P = pack_size<float>;
  const int64_t offset = grid_thread() * P;
  if (offset >= n) return;
  const bool full_pack = aligned && offset + P <= n;
  const int count = static_cast<int>(n - offset < P ? n - offset : P);
  Pack<float> sum;
#pragma unroll
  for (int i = 0; i < P; ++i) sum.v[i] = 0;
#pragma unroll
  for (int k = 0; k < balancer_max; ++k) {
    if (k >= a.count) continue;
    const float factor = factors[k];
    if (factor == 0) continue;
    const float* const g = a.gradients[k].data + offset;
    const Pack<float> v = full_pack ? load_pack(g) : load_some(g, count);
#pragma unroll
    for (int i = 0; i < P; ++i) sum.v[i] = fmaf(factor, v.v[i], sum.v[i]);
  }
  if (full_pack)
    store_pack(a.gradient.data + offset, sum);
  else
    store_some(a.gradient.data + offset, sum, count);
}

}  // namespace

/// The partial sums, then the factors.
Shape balancer_scratch(Shape gradient, int count, BalancerNorm norm) {
  const int64_t losses = count < 0 ? 0 : count;
  const Items items = items_of(gradient, norm);
  return {.channels = 2 * losses * items.count * items.parts + losses};
}

void balancer(Context& ctx, const Balancer& a) {
  const int64_t n = a.gradient.shape.elements();
  const Items items = items_of(a.gradient.shape, a.norm);
  // Packs of the whole batch need aligned addresses; those of the norms need items of whole packs, too.
  bool aligned = aligned16(a.gradient.data);
  for (int i = 0; i < a.count; ++i) aligned = aligned && aligned16(a.gradients[static_cast<size_t>(i)].data);
  float* const factors = a.scratch.data + 2 * a.count * items.count * items.parts;
  launch(ctx,
         {.name = "balancer_norms",
          .grid = {blocks_for(items.count * items.parts, 1), static_cast<unsigned>(a.count), 1},
          .block = sum_threads},
         aligned && (items.count == 1 || items.elements % pack_size<float> == 0) ? balancer_norms_kernel<true>
                                                                                 : balancer_norms_kernel<false>,
         a, items);
  launch(ctx, {.name = "balancer_factors", .block = 32 * balancer_max}, balancer_factors_kernel, a, items, factors);
  launch(ctx,
         {.name = aligned ? "balancer_packs" : "balancer", .grid = blocks_for(n, 256 * pack_size<float>), .block = 256},
         aligned ? balancer_kernel<true> : balancer_kernel<false>, a, n, factors);
}

}  // namespace nacre::cuda
