#include "nacre/ops/feature_loss.h"

#include "loss/distance.h"
#include "runtime/partials.cuh"

// feature_loss on the device (contract: nacre/ops/feature_loss.h; twin: feature_loss.cpp).
// Two launches for all pairs: parts of 4096 elements with their gradient, each of one pair; then the sums of the parts,
// pair by pair. Bound by memory: 12 bytes per element with gradient, 6 in bf16. Relative losses have two launches
// before them: sums of the magnitudes of the real activations by part, then the divisors of all pairs.
// Scratch, in floats: [2 blocks] sums of distances; then, for relative losses, [2 blocks] sums of magnitudes, [2 count]
// divisors, [count] scales. All but the scales are doubles.
namespace nacre::cuda {
namespace {

template <class T>
struct Pair {
  const T *real, *fake;
  T* gradient;
  int64_t elements;
  float scale;      // weight / elements
  int first_block;  // blocks are numbered through all pairs
  bool aligned;     // 16-byte accesses are possible
};
/// Travels in the parameters of the kernel.
template <class T>
struct Pairs {
  Pair<T> pairs[feature_loss_max];
  int count, blocks;
  const float *divisors, *scales;  // of relative losses: a double and a float per pair, in scratch; else null
};

/// The pair of a block: the last one that begins at it or before it. Pairs without elements begin where the next one
/// does, so they are never the last.
template <class T>
__device__ __forceinline__ int pair_of(const Pairs<T>& a, int block) {
  int pair = 0;
#pragma unroll
  for (int step = feature_loss_max / 2; step > 0; step /= 2)
    if (pair + step < a.count && a.pairs[pair + step].first_block <= block) pair += step;
  return pair;
}

/// Distances and gradient of one part per block. Thread i takes a pack of each 256 packs, aligned or not, so that the
/// order of the sum does not depend on addresses. All loads come before the first store: the gradient may be the fake
/// activation, so the compiler cannot move them. Four blocks per multiprocessor leave 64 registers; without that bound
/// ptxas takes 48 and spills.
template <class T>
__global__ void __launch_bounds__(sum_threads, 4) feature_loss_kernel(Pairs<T> a, float* scratch) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  constexpr int P = pack_size<T>, steps = sum_part / (P * sum_threads);
  const int block = static_cast<int>(blockIdx.x);
  const int index = pair_of(a, block);
  const Pair<T>& pair = a.pairs[index];
  const int64_t begin = int64_t{block - pair.first_block} * sum_part, remaining = pair.elements - begin;
  const int n = static_cast<int>(remaining < sum_part ? remaining : sum_part);
  const bool aligned = pair.aligned;
  const float scale = a.scales == nullptr ? pair.scale : a.scales[index];
  const T *const real = pair.real + begin, *const fake = pair.fake + begin;
  T* const gradient = pair.gradient == nullptr ? nullptr : pair.gradient + begin;
  const auto offset = [](int step) { return (step * sum_threads + static_cast<int>(threadIdx.x)) * P; };
  Pack<T> r[steps], f[steps];
  // A full part in packs: all loads of `real` and of `fake` are in flight together. The other branch gives zeros beyond
  // the end, whose difference is 0.
  if (aligned && n == sum_part) {
#pragma unroll
    for (int step = 0; step < steps; ++step) r[step] = load_pack(real + offset(step));
#pragma unroll
    for (int step = 0; step < steps; ++step) f[step] = load_pack(fake + offset(step));
  } else {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int at = offset(step);
      const bool full_pack = aligned && at + P <= n;
      r[step] = full_pack ? load_pack(real + at) : load_some(real + at, n - at);
      f[step] = full_pack ? load_pack(fake + at) : load_some(fake + at, n - at);
    }
  }
  double sum = 0;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    Pack<T> g;
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const float d = f[step].v[i] - r[step].v[i];  // zero beyond the end
      sum += magnitude(d);
      g.v[i] = scaled_sign(d, scale);
    }
    if (gradient == nullptr) continue;
    const int at = offset(step);
    if (aligned && at + P <= n)
      store_pack(gradient + at, g);
    else
      store_some(gradient + at, g, n - at);
  }
  sum = block_sum<sum_threads>(sum, sums);
  if (threadIdx.x == 0) put_partial(scratch, block, sum);
}

/// As feature_loss_kernel, for the magnitudes of the real activations. Their parts come after those of the distances.
template <class T>
__global__ void __launch_bounds__(sum_threads) feature_loss_magnitudes_kernel(Pairs<T> a, float* scratch) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  constexpr int P = pack_size<T>;
  const int block = static_cast<int>(blockIdx.x);
  const Pair<T>& pair = a.pairs[pair_of(a, block)];
  const int64_t begin = int64_t{block - pair.first_block} * sum_part, remaining = pair.elements - begin;
  const int n = static_cast<int>(remaining < sum_part ? remaining : sum_part);
  const T* const real = pair.real + begin;
  double sum = 0;
#pragma unroll
  for (int step = 0; step < sum_part / (P * sum_threads); ++step) {
    const int at = (step * sum_threads + static_cast<int>(threadIdx.x)) * P;
    const Pack<T> r = pair.aligned && at + P <= n ? load_pack(real + at) : load_some(real + at, n - at);
#pragma unroll
    for (int i = 0; i < P; ++i) sum += magnitude(r.v[i]);
  }
  sum = block_sum<sum_threads>(sum, sums);
  if (threadIdx.x == 0) put_partial(scratch, int64_t{a.blocks} + block, sum);
}

/// Warp i adds the parts of pair i and stores its divisor, and the scale of its gradient.
template <class T>
__global__ void __launch_bounds__(32 * feature_loss_max)
    feature_loss_divisors_kernel(Pairs<T> a, const float* scratch, float* divisors, float* scales, double weight) {
  const int i = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first = a.pairs[i].first_block, end = i + 1 < a.count ? a.pairs[i + 1].first_block : a.blocks;
  const double sum = warp_sum(add_partials(scratch + 2 * (int64_t{a.blocks} + first), end - first, lane, 32));
  if (lane != 0) return;
  const double elements = static_cast<double>(a.pairs[i].elements);
  const double divisor = end > first ? relative_divisor(sum / elements) : 1;
  put_partial(divisors, i, divisor);
  scales[i] = end > first ? static_cast<float>(weight / elements / divisor) : 0.0f;
}

/// Warp i adds the parts of pair i. Thread 0 adds the means in the order of the pairs.
template <class T>
__global__ void __launch_bounds__(32 * feature_loss_max)
    feature_loss_sum_kernel(Pairs<T> a, const float* scratch, float* loss, bool add_loss) {
  NACRE_SHARED(double, means, feature_loss_max);
  const int i = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first = a.pairs[i].first_block, end = i + 1 < a.count ? a.pairs[i + 1].first_block : a.blocks;
  const double sum = warp_sum(add_partials(scratch + 2 * int64_t{first}, end - first, lane, 32));
  const double divisor = a.divisors == nullptr ? 1 : get_partial(a.divisors, i);
  if (lane == 0) means[i] = end > first ? sum / static_cast<double>(a.pairs[i].elements) / divisor : 0;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0;
  for (int k = 0; k < a.count; ++k) total += means[k];
  loss[0] = (add_loss ? loss[0] : 0.0f) + static_cast<float>(total);
}

}  // namespace

/// Each pair begins a part of its own, so at most one part of each is not full. Relative losses need as many parts
/// again, and the divisors and scales of all pairs.
Shape feature_loss_scratch(int64_t elements, int count, bool relative) {
  const int64_t pairs = std::max(count, 0), parts = elements / sum_part + pairs;
  return {.channels = relative ? 4 * parts + 3 * pairs : 2 * parts};
}

template <class T>
void feature_loss(Context& ctx, const FeatureLoss<T>& a) {
  Pairs<T> pairs{};
  pairs.count = a.count;
  for (int i = 0; i < a.count; ++i) {
    const FeaturePair<T>& pair = a.pairs[static_cast<size_t>(i)];
    const int64_t n = pair.real.elements();
    const double mean = n > 0 ? static_cast<double>(a.weight) / static_cast<double>(n) : 0;
    pairs.pairs[i] = {
        .real = pair.real.data,
        .fake = pair.fake.data,
        .gradient = pair.gradient.data,
        .elements = n,
        .scale = static_cast<float>(mean),
        .first_block = pairs.blocks,
        .aligned = aligned16(pair.real.data) && aligned16(pair.fake.data) && aligned16(pair.gradient.data)};
    pairs.blocks += static_cast<int>(sum_parts(n));
  }
  if (a.relative) {
    float* const divisors = a.scratch.data + 4 * int64_t{pairs.blocks};
    float* const scales = divisors + 2 * a.count;
    launch(ctx, {.name = "feature_loss_magnitudes", .grid = blocks_for(pairs.blocks, 1), .block = sum_threads},
           feature_loss_magnitudes_kernel<T>, pairs, a.scratch.data);
    launch(ctx, {.name = "feature_loss_divisors", .block = 32 * static_cast<unsigned>(a.count)},
           feature_loss_divisors_kernel<T>, pairs, a.scratch.data, divisors, scales, static_cast<double>(a.weight));
    pairs.divisors = divisors, pairs.scales = scales;
  }
  launch(ctx, {.name = "feature_loss", .grid = blocks_for(pairs.blocks, 1), .block = sum_threads},
         feature_loss_kernel<T>, pairs, a.scratch.data);
  launch(ctx, {.name = "feature_loss_sum", .block = 32 * static_cast<unsigned>(a.count)}, feature_loss_sum_kernel<T>,
         pairs, a.scratch.data, a.loss.data, a.add_loss);
}

template void feature_loss<float>(Context&, const FeatureLoss<float>&);
template void feature_loss<bf16>(Context&, const FeatureLoss<bf16>&);

}  // namespace nacre::cuda
