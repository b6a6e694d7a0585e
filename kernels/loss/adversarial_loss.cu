#include "nacre/ops/adversarial_loss.h"

#include "loss/adversarial.h"
#include "runtime/partials.cuh"

// adversarial_loss on the device (contract: nacre/ops/adversarial_loss.h; the terms of a logit: adversarial.h; twin:
// adversarial_loss.cpp).
// Two launches: parts of 4096 logits with their gradient, each of one half of the batch; then the sums of the parts. A
// discriminator may have only a few hundred logits, and then launches take all of the time: if a half has one part, one
// block does everything.
namespace nacre::cuda {
namespace {

/// Arguments of the kernels. Null: absent (gradient, right).
template <class T>
struct Judged {
  const T* logits;
  T* gradient;
  int64_t n, parts;  // logits and parts per half; the logits of the first half shall be judged real, others fake
  float scale;
  float *scratch, *loss, *right;
  int halves;
  bool add_loss;
};

/// Sums over the logits of a part.
struct Part {
  double loss;
  int right;
};
/// Part `part` of a half: the gradient, and the sums, valid in every thread. Thread i takes a pack of each 256 packs,
/// aligned or not, so that the order of the sum does not depend on addresses.
template <class T, AdversarialKind kind, bool aligned>
__device__ __forceinline__ Part add_part(const Judged<T>& a, int64_t half, int64_t part, double* sums, int* counts) {
  constexpr int P = pack_size<T>;
  const int64_t begin = part * sum_part, remaining = a.n - begin, first = half * a.n + begin;
  const int n = static_cast<int>(remaining < sum_part ? remaining : sum_part);
  const T* const logits = a.logits + first;
  T* const gradient = a.gradient == nullptr ? nullptr : a.gradient + first;
  double sum = 0;
  int right = 0;
#pragma unroll
  for (int step = 0; step < sum_part / (P * sum_threads); ++step) {
    const int offset = (step * sum_threads + static_cast<int>(threadIdx.x)) * P;
    const bool full_pack = aligned && offset + P <= n;
    const Pack<T> x = full_pack ? load_pack(logits + offset) : load_some(logits + offset, n - offset);
    Pack<T> g;
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const AdversarialTerm term = adversarial_term<kind>(x.v[i], half == 0, a.scale);
      g.v[i] = term.gradient;
      // Elements beyond the end were loaded as zeros, whose term need not be 0.
      if (offset + i >= n) continue;
      sum += term.loss;
      right += term.right ? 1 : 0;
    }
    if (gradient == nullptr) continue;
    if (full_pack)
      store_pack(gradient + offset, g);
    else
      store_some(gradient + offset, g, n - offset);
  }
  return {block_sum<sum_threads>(sum, sums), block_sum<sum_threads>(right, counts)};
}

/// One part per block, those of the first half first. Scratch: [halves][parts] losses, then as many counts, all as
/// doubles.
template <class T, AdversarialKind kind, bool aligned>
__global__ void __launch_bounds__(sum_threads) adversarial_loss_kernel(Judged<T> a) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  NACRE_SHARED(int, counts, sum_threads / 32);
  const int64_t half = blockIdx.x / a.parts;
  const Part part = add_part<T, kind, aligned>(a, half, blockIdx.x - half * a.parts, sums, counts);
  if (threadIdx.x != 0) return;
  put_partial(a.scratch, blockIdx.x, part.loss);
  put_partial(a.scratch, a.halves * a.parts + blockIdx.x, part.right);
}
/// One block for halves of one part. Four blocks per multiprocessor leave 64 registers; without that bound ptxas takes
/// fewer for sm_80 and spills.
template <class T, AdversarialKind kind, bool aligned>
__global__ void __launch_bounds__(sum_threads, 4) adversarial_loss_short_kernel(Judged<T> a) {
  NACRE_SHARED(double, sums, sum_threads / 32);
  NACRE_SHARED(int, counts, sum_threads / 32);
  const double logits = static_cast<double>(a.n);
  double loss = 0;
  for (int half = 0; half < a.halves; ++half) {
    const Part part = add_part<T, kind, aligned>(a, half, 0, sums, counts);
    loss += part.loss / logits;
    if (a.right != nullptr && threadIdx.x == 0) a.right[half] = static_cast<float>(part.right / logits);
  }
  if (threadIdx.x == 0) a.loss[0] = (a.add_loss ? a.loss[0] : 0.0f) + static_cast<float>(loss);
}

/// One block adds the parts of each half, loss = sum of the means of the halves, right = fraction of each half.
template <class T>
__global__ void __launch_bounds__(sum_threads) adversarial_loss_sum_kernel(Judged<T> a) {
  NACRE_SHARED(double, buffer, sum_threads / 32);
  const double logits = static_cast<double>(a.n > 0 ? a.n : 1);
  double loss = 0;
  for (int half = 0; half < a.halves; ++half) {
    const float* const sums = a.scratch + 2 * half * a.parts;
    loss += sum_partials(sums, a.parts, buffer) / logits;
    if (a.right == nullptr) continue;
    const double right = sum_partials(sums + 2 * a.halves * a.parts, a.parts, buffer) / logits;
    if (threadIdx.x == 0) a.right[half] = static_cast<float>(right);
  }
  if (threadIdx.x == 0) a.loss[0] = (a.add_loss ? a.loss[0] : 0.0f) + static_cast<float>(loss);
}

template <class T, AdversarialKind kind>
void run(Context& ctx, const Judged<T>& a) {
  // Packs need both halves to begin at a multiple of 16 bytes.
  const bool aligned = aligned16(a.logits) && aligned16(a.gradient) && (a.halves == 1 || a.n % pack_size<T> == 0);
  if (a.parts == 1)
    return launch(
        ctx, {.name = aligned ? "adversarial_loss_short_packs" : "adversarial_loss_short", .block = sum_threads},
        aligned ? adversarial_loss_short_kernel<T, kind, true> : adversarial_loss_short_kernel<T, kind, false>, a);
  launch(ctx,
         {.name = aligned ? "adversarial_loss_packs" : "adversarial_loss",
          .grid = blocks_for(a.halves * a.parts, 1),
          .block = sum_threads},
         aligned ? adversarial_loss_kernel<T, kind, true> : adversarial_loss_kernel<T, kind, false>, a);
  launch(ctx, {.name = "adversarial_loss_sum", .block = sum_threads}, adversarial_loss_sum_kernel<T>, a);
}
template <class T>
void run(Context& ctx, View<const T> logits, View<T> gradient, View<float> scratch, View<float> loss, View<float> right,
         AdversarialKind kind, float weight, bool add_loss, int halves) {
  const int64_t n = logits.elements() / halves;
  const Judged<T> a{.logits = logits.data,
                    .gradient = gradient.data,
                    .n = n,
                    .parts = sum_parts(n),
                    .scale = adversarial_scale(kind, weight, n),
                    .scratch = scratch.data,
                    .loss = loss.data,
                    .right = right.data,
                    .halves = halves,
                    .add_loss = add_loss};
  switch (adversarial_rule(kind, halves)) {
    case AdversarialKind::least_squares:
      return run<T, AdversarialKind::least_squares>(ctx, a);
    case AdversarialKind::hinge:
      return run<T, AdversarialKind::hinge>(ctx, a);
    case AdversarialKind::hinge_linear:
      return run<T, AdversarialKind::hinge_linear>(ctx, a);
  }
}

}  // namespace

/// Sums and counts of two halves, which have at least as many parts as the whole.
Shape adversarial_loss_scratch(Shape logits) { return {.channels = 8 * sum_parts((logits.elements() + 1) / 2)}; }

template <class T>
void discriminator_loss(Context& ctx, const DiscriminatorLoss<T>& a) {
  run(ctx, a.logits, a.gradient, a.scratch, a.loss, a.right, a.kind, a.weight, a.add_loss, 2);
}
template <class T>
void generator_loss(Context& ctx, const GeneratorLoss<T>& a) {
  run(ctx, a.logits, a.gradient, a.scratch, a.loss, View<float>(), a.kind, a.weight, a.add_loss, 1);
}

template void discriminator_loss<float>(Context&, const DiscriminatorLoss<float>&);
template void discriminator_loss<bf16>(Context&, const DiscriminatorLoss<bf16>&);
template void generator_loss<float>(Context&, const GeneratorLoss<float>&);
template void generator_loss<bf16>(Context&, const GeneratorLoss<bf16>&);

}  // namespace nacre::cuda
