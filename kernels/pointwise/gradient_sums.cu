#include "nacre/ops/gradient_sums.h"

#include "pointwise/snake.cuh"
#include "runtime/gradient_sums.h"

// One kernel for the second stages of all gradients of a step: to[i] = (or +=) the sum over parts p of partial[p][i]
// (runtime/gradient_sums.h). A launch has up to 60 sums. Their descriptions are the kernel's parameter, so nothing is
// copied to the device first, and a captured graph keeps them.
// Calls with `later` only note their sum in the context; finish_gradient_sums() launches all noted sums at once.
//
//   parts   way of a sum    threads of a block                           loads in flight
//   < 32    element, pack   one or four elements each, all parts         8 of 4 or 16 bytes
//   < 512   columns         32 columns, each by 8 threads                8 of 4 bytes, 128 bytes side by side
//   more    columns         8 columns, each by 32 threads                8 of 4 bytes, 32 bytes side by side
//
// Snake's parameters always go by columns. A thread has every 8th (32nd) part; the threads of a column are added in
// order. So the order of a sum depends on the number of its parts alone, and not on the other sums of the launch.
namespace nacre::cuda {

void finish_gradient_sums(Context&);

namespace {

constexpr int threads = 256, few_parts = 32, many_parts = 512;

/// P adjacent elements per thread, all parts in ascending order in double. For few parts: adjacent threads read
/// adjacent elements of a part, coalesced.
template <int P>
__device__ __forceinline__ void add_elements(const GradientSum& s, int64_t block) {
  const int64_t i = (block * threads + threadIdx.x) * P;
  if (i >= s.n) return;
  double sum[P];
#pragma unroll
  for (int e = 0; e < P; ++e) sum[e] = 0;
#pragma unroll 8
  for (int p = 0; p < s.parts; ++p) {
    const Pack<float> v = load_elements<P>(s.partial + p * s.n + i);
#pragma unroll
    for (int e = 0; e < P; ++e) sum[e] += static_cast<double>(v.v[e]);
  }
#pragma unroll
  for (int e = 0; e < P; ++e) s.to[i + e] = (s.add ? s.to[i + e] : 0.0f) + static_cast<float>(sum[e]);
}

/// Gradients of Snake's parameters for channel c, from the two sums.
__device__ __forceinline__ void add_snake(const GradientSum& s, int64_t c, double sum_a, double sum_b) {
  const SnakeChannel p = snake_channel(s.alpha, s.beta, c, s.log_scale);
  const double gain = static_cast<double>(p.gain);
  double da = 2 * sum_a * gain, db = -sum_b * gain * gain;
  if (s.log_scale) {
    da *= static_cast<double>(p.a);
    db *= static_cast<double>(s.beta != nullptr ? vec::exp(s.beta[c]) : p.a);
  }
  if (s.to != nullptr) s.to[c] += static_cast<float>(s.beta != nullptr ? da : da + db);
  if (s.dbeta != nullptr) s.dbeta[c] += static_cast<float>(db);
}

/// `columns` elements per block. threads / columns threads share a column: thread l of them adds every such part from
/// part l on. Adjacent threads
/// have adjacent columns. After the barrier the first thread of a column adds the others' sums in ascending order.
/// `values` sums per column: one, or the two of Snake. buffer: shared memory for `values` doubles per thread.
template <int columns, int values>
__device__ __forceinline__ void add_columns(const GradientSum& s, int64_t block, double* buffer) {
  constexpr int shares = threads / columns;
  const int column = static_cast<int>(threadIdx.x) % columns, share = static_cast<int>(threadIdx.x) / columns;
  const int64_t i = block * columns + column;
  double sum[values];
#pragma unroll
  for (int v = 0; v < values; ++v) sum[v] = 0;
  if (i < s.n) {
#pragma unroll 8
    for (int p = share; p < s.parts; p += shares) {
#pragma unroll
      for (int v = 0; v < values; ++v) sum[v] += static_cast<double>(s.partial[(int64_t{p} * values + v) * s.n + i]);
    }
  }
#pragma unroll
  for (int v = 0; v < values; ++v) buffer[v * threads + static_cast<int>(threadIdx.x)] = sum[v];
  __syncthreads();
  if (share != 0 || i >= s.n) return;
  for (int l = 1; l < shares; ++l) {
#pragma unroll
    for (int v = 0; v < values; ++v) sum[v] += buffer[v * threads + l * columns + column];
  }
  if constexpr (values == 2)
    add_snake(s, i, sum[0], sum[1]);
  else
    s.to[i] = (s.add ? s.to[i] : 0.0f) + static_cast<float>(sum[0]);
}
template <int values>
__device__ __forceinline__ void add_columns(const GradientSum& s, int64_t block, double* buffer) {
  if (s.parts < many_parts)
    add_columns<32, values>(s, block, buffer);
  else
    add_columns<8, values>(s, block, buffer);
}

__global__ void __launch_bounds__(threads) gradient_sums_kernel(const __grid_constant__ SumBatch batch) {
  NACRE_SHARED(double, buffer, 2 * threads);
  // This block belongs to the last sum that begins at it or before. All threads of the block take the same branches.
  int at = 0;
#pragma unroll
  for (int step = 32; step > 0; step /= 2)
    if (at + step < batch.count && batch.sums[at + step].first_block <= blockIdx.x) at += step;
  const GradientSum& s = batch.sums[at];
  const int64_t block = blockIdx.x - s.first_block;
  if (s.by == SumBy::element)
    add_elements<1>(s, block);
  else if (s.by == SumBy::pack)
    add_elements<4>(s, block);
  else if (s.by == SumBy::columns)
    add_columns<1>(s, block, buffer);
  else
    add_columns<2>(s, block, buffer);
}

/// Blocks of a sum. The numbers of elements per block must be those of the kernel.
unsigned blocks_of(const GradientSum& s) {
  if (s.by == SumBy::element || s.by == SumBy::pack) return blocks_for(s.n, threads * (s.by == SumBy::pack ? 4 : 1));
  return blocks_for(s.n, s.parts < many_parts ? 32 : 8);
}
/// Whether two sums write the same gradient. In one launch, both might read it before either has written it.
bool writes_the_same(const GradientSum& a, const GradientSum& b) {
  const auto meets = [](const float* p, const GradientSum& s) { return p != nullptr && (p == s.to || p == s.dbeta); };
  return meets(a.to, b) || meets(a.dbeta, b);
}
void append(SumBatch& batch, GradientSum s) {
  s.first_block = batch.blocks;
  batch.sums[batch.count++] = s;
  batch.blocks += blocks_of(s);
}
void launch_batch(Context& ctx, const SumBatch& batch) {
  launch(ctx, {.name = "gradient_sums", .grid = batch.blocks, .block = threads}, gradient_sums_kernel, batch);
}

/// Notes the sum, or launches it. The sums of a launch run side by side, so those of one gradient take two launches.
void add(Context& ctx, const GradientSum& s, bool later) {
  if (s.n == 0) return;
  SumBatch& noted = runtime(ctx).noted_sums();
  bool meets = false;
  for (int i = 0; i < noted.count; ++i) meets = meets || writes_the_same(noted.sums[i], s);
  if (meets || noted.count == SumBatch::most) cuda::finish_gradient_sums(ctx);
  if (later) return append(noted, s);
  // A sum that does not wait has a launch of its own. Noted sums of other gradients may come before or after it.
  SumBatch alone;
  append(alone, s);
  launch_batch(ctx, alone);
}

}  // namespace

void add_parts(Context& ctx, const float* partial, int64_t parts, int64_t n, float* to, bool add, bool later) {
  GradientSum s{.partial = partial, .to = to, .n = n, .parts = static_cast<int>(parts), .add = add};
  if (parts >= few_parts)
    s.by = SumBy::columns;
  else if (n % 4 == 0 && aligned16(partial) && aligned16(to))
    s.by = SumBy::pack;
  cuda::add(ctx, s, later);
}
void snake_parameter_gradients(Context& ctx, View<const float> alpha, View<const float> beta, bool log_scale,
                               View<float> dalpha, View<float> dbeta, int64_t parts, const float* partial, bool later) {
  add(ctx,
      {.partial = partial,
       .to = dalpha.data,
       .dbeta = dbeta.data,
       .alpha = alpha.data,
       .beta = beta.data,
       .n = alpha.shape.channels,
       .parts = static_cast<int>(parts),
       .by = SumBy::snake,
       .add = true,
       .log_scale = log_scale},
      later);
}

void finish_gradient_sums(Context& ctx) {
  SumBatch& noted = runtime(ctx).noted_sums();
  if (noted.count == 0) return;
  launch_batch(ctx, noted);
  noted.count = 0, noted.blocks = 0;
}
void forget_gradient_sums(Context& ctx) noexcept {
  SumBatch& noted = runtime(ctx).noted_sums();
  noted.count = 0, noted.blocks = 0;
}

}  // namespace nacre::cuda
