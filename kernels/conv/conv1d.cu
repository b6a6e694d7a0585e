#include "nacre/ops/conv1d.h"

#include "conv/conv1d_cuda.h"
#include "conv/conv1d_ends.cuh"
#include "runtime/device.cuh"
#include "runtime/host.h"

// The entry points of conv1d on CUDA, and the plain kernels, for every geometry. An entry point asks choose_cuda.h for
// the engine and calls it (conv1d_cuda.h, conv1d_ends.cuh), or launches a plain kernel: a thread computes one element
// and runs through its sum in the order of memory. Elements are numbered with channels innermost, so the stores of a
// warp are coalesced. conv1d.cpp has checked the arguments.
namespace nacre::cuda {
namespace {

using conv::Engine;

constexpr int threads = 256;

/// The sizes that the plain kernels use.
struct Sizes {
  int64_t batch, time, in, length, out, taps, stride, dilation, groups, left, right;
  bool reflect;
};
Sizes sizes(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return {x.batch,  x.time,     x.channels, y.time, y.channels, weight.time,
          g.stride, g.dilation, g.groups,   g.left, g.right,    g.padding == Padding::reflect};
}

/// The sample of x at position `at` of the padded signal, counted from the first sample; -1 for a zero.
__device__ __forceinline__ int64_t source_sample(const Sizes& s, int64_t at) {
  if (at >= 0 && at < s.time) return at;
  if (!s.reflect) return -1;
  return at < 0 ? -at : 2 * (s.time - 1) - at;
}

/// y[b, t, o] for one element per thread: taps outermost, channels innermost, in float. Threads of a group's outputs
/// read the same x at the same time, and each its own row of weights.
template <class T>
__global__ void __launch_bounds__(threads) conv1d_forward_kernel(Conv1dForward<T> f, Sizes s) {
  const int64_t in = s.in / s.groups, out = s.out / s.groups, elements = s.batch * s.length * s.out;
  for (int64_t e = grid_thread(); e < elements; e += grid_threads()) {
    const int64_t o = e % s.out, row = e / s.out, t = row % s.length, b = row / s.length;
    const int64_t first = o / out * in;
    float sum = 0;
    for (int64_t k = 0; k < s.taps; ++k) {
      const int64_t from = source_sample(s, t * s.stride + k * s.dilation - s.left);
      if (from < 0) continue;
      const T* const x = f.x.data + (b * s.time + from) * s.in + first;
      const T* const w = f.weight.data + (o * s.taps + k) * in;
      for (int64_t i = 0; i < in; ++i) sum += to_float(w[i]) * to_float(x[i]);
    }
    if (f.bias) sum += f.bias.data[o];
    if (f.residual) sum += to_float(f.residual.data[e]);
    f.y.data[e] = store<T>(sum);
  }
}

/// The gradient at position `at` of the padded x, channel i: the sum over taps k and outputs o of the channel's group
/// of weight[o, k, i] dy[b, t, o], where t stride = at + left - k dilation. Taps for which no such t exists, or none
/// within dy, are skipped. Neighbouring threads have neighbouring i, so their weights are neighbours and dy is the
/// same.
template <class T>
__device__ float gradient_at(const Conv1dInputGradient<T>& g, const Sizes& s, int64_t b, int64_t at, int64_t i) {
  const int64_t in = s.in / s.groups, out = s.out / s.groups, group = i / in, first = group * out;
  float sum = 0;
  for (int64_t k = 0; k < s.taps; ++k) {
    const int64_t start = at + s.left - k * s.dilation;
    if (start < 0 || start % s.stride != 0 || start / s.stride >= s.length) continue;
    const T* const dy = g.dy.data + (b * s.length + start / s.stride) * s.out + first;
    const T* const w = g.weight.data + (first * s.taps + k) * in + i - group * in;
    for (int64_t o = 0; o < out; ++o) sum += to_float(w[o * s.taps * in]) * to_float(dy[o]);
  }
  return sum;
}
/// Computes the first `head` and the last `tail` samples of every item; the plain engine has head = time. A sample that
/// padding reflects also gets the gradients at the reflecting positions, each a sum of its own. Then come bias and
/// previous content, and the only rounding.
template <class T>
__global__ void __launch_bounds__(threads)
    conv1d_input_gradient_kernel(Conv1dInputGradient<T> g, Sizes s, int64_t head, int64_t tail) {
  const int64_t rows = head + tail, elements = s.batch * rows * s.in;
  for (int64_t e = grid_thread(); e < elements; e += grid_threads()) {
    const int64_t i = e % s.in, row = e / s.in % rows, b = e / s.in / rows;
    const int64_t at = row < head ? row : s.time - rows + row;
    float sum = gradient_at(g, s, b, at, i);
    if (s.reflect && at >= 1 && at <= s.left) sum += gradient_at(g, s, b, -at, i);
    const int64_t from_end = s.time - 1 - at;
    if (s.reflect && from_end >= 1 && from_end <= s.right) sum += gradient_at(g, s, b, s.time - 1 + from_end, i);
    if (g.bias) sum += g.bias.data[i];
    T* const to = g.dx.data + (b * s.time + at) * s.in + i;
    *to = store<T>(g.add_dx ? to_float(*to) + sum : sum);
  }
}

/// Sums part blockIdx.y of the rows of dy for every weight: partial [parts][weights], in float. A thread has one
/// weight. Those of neighbouring channels read neighbouring x and the same dy.
template <class T>
__global__ void __launch_bounds__(threads)
    conv1d_weight_gradient_kernel(Conv1dWeightGradient<T> g, Sizes s, float* partial) {
  const int64_t in = s.in / s.groups, out = s.out / s.groups, weights = s.out * s.taps * in;
  const int64_t rows = s.batch * s.length, begin = rows * blockIdx.y / gridDim.y,
                end = rows * (int64_t{blockIdx.y} + 1) / gridDim.y;
  for (int64_t e = grid_thread(); e < weights; e += grid_threads()) {
    const int64_t i = e % in, k = e / in % s.taps, o = e / in / s.taps, channel = o / out * in + i;
    int64_t b = begin / s.length, t = begin - b * s.length;
    float sum = 0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t from = source_sample(s, t * s.stride + k * s.dilation - s.left);
      if (from >= 0)
        sum += to_float(g.dy.data[row * s.out + o]) * to_float(g.x.data[(b * s.time + from) * s.in + channel]);
      // Item and row advance with the rows, so only the first is found by division.
      if (++t == s.length) t = 0, ++b;
    }
    partial[int64_t{blockIdx.y} * weights + e] = sum;
  }
}

/// How the sums over a matrix's rows are divided: `threads_across` threads side by side with P columns each, and
/// `rows_at_once` such rows of threads in a block.
struct ColumnSumPlan {
  int64_t rows, channels, parts;
  int threads_across, rows_at_once;
};
template <int P>
ColumnSumPlan column_sum_plan(Shape s, int64_t parts) {
  const int64_t packs = ceil_div<int64_t>(s.channels, P);
  const int threads_across = static_cast<int>(packs < 32 ? packs : 32);
  return {s.rows(), s.channels, parts, threads_across, threads / threads_across};
}
/// Column sums of part blockIdx.y of the rows: partial [parts][channels]. A block has threads_across packs of P
/// columns, which coalesces its loads, and each of its rows of threads adds every rows_at_once-th row. `sums` holds P
/// planes of one float per thread, so that neighbouring threads write neighbouring words. Behind the barrier the first
/// row of threads adds the others in order. Where threads_across does not divide the block, the last threads belong to
/// no row of threads and add nothing.
template <class T, int P>
__global__ void __launch_bounds__(threads) conv1d_column_sums_kernel(const T* x, ColumnSumPlan plan, float* partial) {
  NACRE_SHARED(float, sums, threads* P);
  const int column = static_cast<int>(threadIdx.x) % plan.threads_across,
            thread_row = static_cast<int>(threadIdx.x) / plan.threads_across;
  const int64_t c = (int64_t{blockIdx.x} * plan.threads_across + column) * P,
                begin = plan.rows * blockIdx.y / plan.parts, end = plan.rows * (int64_t{blockIdx.y} + 1) / plan.parts;
  float sum[P];
#pragma unroll
  for (int i = 0; i < P; ++i) sum[i] = 0;
  if (c < plan.channels && thread_row < plan.rows_at_once) {
#pragma unroll 4
    for (int64_t row = begin + thread_row; row < end; row += plan.rows_at_once) {
      const T* const at = x + row * plan.channels + c;
      if constexpr (P == 1) {
        sum[0] += to_float(*at);
      } else {
        const Pack<T> v = load_pack(at);
#pragma unroll
        for (int i = 0; i < P; ++i) sum[i] += v.v[i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < P; ++i) sums[i * threads + static_cast<int>(threadIdx.x)] = sum[i];
  __syncthreads();
  if (thread_row != 0 || c >= plan.channels) return;
#pragma unroll
  for (int i = 0; i < P; ++i) {
    for (int l = 1; l < plan.rows_at_once; ++l) sum[i] += sums[i * threads + l * plan.threads_across + column];
    partial[int64_t{blockIdx.y} * plan.channels + c + i] = sum[i];
  }
}

template <class T>
void input_gradient_rows(Context& ctx, const Conv1dInputGradient<T>& a, const Sizes& s, int64_t head, int64_t tail) {
  launch(
      ctx,
      {.name = "conv1d_input_gradient", .grid = blocks_for(s.batch * (head + tail) * s.in, threads), .block = threads},
      conv1d_input_gradient_kernel<T>, a, s, head, tail);
}

template <class T>
void weight_gradient_parts(Context& ctx, const Conv1dWeightGradient<T>& a, const Sizes& s, int64_t parts) {
  launch(ctx,
         {.name = "conv1d_weight_gradient",
          .grid = {blocks_for(a.dweight.elements(), threads), static_cast<unsigned>(parts), 1},
          .block = threads},
         conv1d_weight_gradient_kernel<T>, a, s, a.scratch.data);
}

Shape scratch_shape(int64_t floats) { return floats == 0 ? Shape{0, 0, 0, 0} : Shape{.channels = floats}; }

}  // namespace

template <int P, class T>
void column_sums(Context& ctx, View<const T> x, float* partial) {
  const ColumnSumPlan c = column_sum_plan<P>(x.shape, conv::column_sum_parts(limits(ctx), x.shape));
  launch(ctx,
         {.name = P == 1 ? "conv1d_column_sums" : "conv1d_column_sums_packs",
          .grid = {blocks_for(c.channels, int64_t{c.threads_across} * P), static_cast<unsigned>(c.parts), 1},
          .block = threads},
         conv1d_column_sums_kernel<T, P>, x.data, c, partial);
}
/// Packs of 16 bytes where channels and address allow them. The number of parts depends on shape and device only, but
/// the order within a part on P, and so on the alignment.
template <class T>
void add_column_sums(Context& ctx, View<const T> x, float* to, float* partial, bool later) {
  if (x.shape.channels % pack_size<T> == 0 && aligned16(x.data))
    column_sums<pack_size<T>>(ctx, x, partial);
  else
    column_sums<1>(ctx, x, partial);
  add_parts(ctx, partial, conv::column_sum_parts(limits(ctx), x.shape), x.shape.channels, to, true, later);
}

template void add_column_sums<float>(Context&, View<const float>, float*, float*, bool);
template void add_column_sums<bf16>(Context&, View<const bf16>, float*, float*, bool);

template <class T>
Shape conv1d_forward_scratch(Context& ctx, Shape x, Shape weight, const Conv1dGeometry& g) {
  return scratch_shape(conv::choose_forward<T>(ctx, x, weight, g).scratch);
}
template <class T>
Shape conv1d_input_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape, const Conv1dGeometry& g) {
  return scratch_shape(conv::choose_input_gradient<T>(ctx, x, weight, g).scratch);
}
template <class T>
Shape conv1d_weight_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape, const Conv1dGeometry& g) {
  return scratch_shape(conv::choose_weight_gradient<T>(ctx, x, weight, g).scratch);
}

template <class T>
Shape conv1d_weight_gradient_parts(Context& ctx, Shape x, Shape weight, Shape, const Conv1dGeometry& g) {
  return scratch_shape(conv::choose_weight_gradient<T>(ctx, x, weight, g).of_parts);
}

template <class T>
void conv1d_forward(Context& ctx, const Conv1dForward<T>& a) {
  const Conv1dGeometry& g = a.geometry;
  const bool aligned =
      aligned16(a.x.data) && aligned16(a.weight.data) && aligned16(a.y.data) && aligned16(a.residual.data);
  const conv::ProductChoice choice = conv::choose_forward<T>(ctx, a.x.shape, a.weight.shape, g, aligned);
  switch (choice.engine) {
    case Engine::nothing:
      return;
    case Engine::ends:
      return ends::forward(ctx, a, choice.strips);
    case Engine::tiles:
      return tile::forward(ctx, a, choice.product);
    case Engine::groups:
      return groups::forward(ctx, a, choice.groups);
    default:
      break;
  }
  launch(ctx, {.name = "conv1d_forward", .grid = blocks_for(a.y.elements(), threads), .block = threads},
         conv1d_forward_kernel<T>, a, sizes(a.x.shape, a.weight.shape, a.y.shape, g));
}

template <class T>
void conv1d_input_gradient(Context& ctx, const Conv1dInputGradient<T>& a) {
  const Conv1dGeometry& g = a.geometry;
  const bool aligned = aligned16(a.dx.data) && aligned16(a.weight.data) && aligned16(a.dy.data);
  const conv::ProductChoice choice = conv::choose_input_gradient<T>(ctx, a.dx.shape, a.weight.shape, g, aligned);
  if (choice.engine == Engine::nothing) return;
  if (choice.engine == Engine::ends) ends::input_gradient(ctx, a, choice.strips);
  if (choice.engine == Engine::tiles) tile::input_gradient(ctx, a, choice.product);
  if (choice.engine == Engine::groups) groups::input_gradient(ctx, a, choice.groups);
  // The other engines leave out the samples that reflected padding adds to; the plain kernel computes those. For the
  // plain engine itself head is the whole item. The two write different samples, so their order does not matter.
  if (choice.head + choice.tail > 0)
    input_gradient_rows(ctx, a, sizes(a.dx.shape, a.weight.shape, a.dy.shape, g), choice.head, choice.tail);
}

template <class T>
void conv1d_weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& call) {
  // The partial sums lie in `parts`, if the caller gave it, and are then added by finish_gradient_sums() (later); else
  // they lie in scratch and are added here. Engine::ends always adds its own, so it takes scratch. The choice needs the
  // address of the memory that is used, for its alignment; Engine::ends does not depend on it.
  Conv1dWeightGradient<T> a = call;
  if (a.parts) a.scratch = a.parts;
  const bool aligned =
      aligned16(a.x.data) && aligned16(a.dy.data) && aligned16(a.dweight.data) && aligned16(a.scratch.data);
  const conv::WeightGradientChoice choice =
      conv::choose_weight_gradient<T>(ctx, a.x.shape, a.dweight.shape, a.geometry, aligned);
  if (choice.engine == Engine::nothing) return;
  const bool later = a.parts && choice.engine != Engine::ends;
  if (!later) a.scratch = call.scratch, a.parts = {};
  if (later)
    expect_parts("conv1d_weight_gradient", a.parts, scratch_shape(choice.of_parts));
  else
    expect_scratch("conv1d_weight_gradient", a.scratch, scratch_shape(choice.scratch));
  if (choice.engine == Engine::ends) return ends::weight_gradient(ctx, a, choice.strips);
  if (choice.engine == Engine::taps || choice.engine == Engine::windows) return tile::weight_gradient(ctx, a, choice);
  if (choice.engine == Engine::groups) {
    groups::weight_gradient(ctx, a, choice.groups);
  } else {
    weight_gradient_parts(ctx, a, sizes(a.x.shape, a.dweight.shape, a.dy.shape, a.geometry), choice.parts);
    add_parts(ctx, a.scratch.data, choice.parts, a.dweight.elements(), a.dweight.data, a.add_dweight, later);
    if (a.dbias) add_column_sums(ctx, a.dy, a.dbias.data, a.scratch.data + choice.bias_at, later);
  }
  if (a.dbias_of_x) add_column_sums(ctx, a.x, a.dbias_of_x.data, a.scratch.data + choice.bias_of_x_at, later);
}

#define NACRE_INSTANTIATE(T)                                                                              \
  template Shape conv1d_forward_scratch<T>(Context&, Shape, Shape, const Conv1dGeometry&);                \
  template Shape conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);  \
  template Shape conv1d_weight_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template Shape conv1d_weight_gradient_parts<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&);   \
  template void conv1d_forward<T>(Context&, const Conv1dForward<T>&);                                     \
  template void conv1d_input_gradient<T>(Context&, const Conv1dInputGradient<T>&);                        \
  template void conv1d_weight_gradient<T>(Context&, const Conv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
