#include "nacre/ops/snake_conv1d.h"

#include "conv/conv1d_ends.cuh"
#include "conv/snake_conv1d.cuh"

// Snake inside the tiled convolution (conv1d_tile.cuh): on the way in, each element of a block's tile of x is activated
// once, where it lies in shared memory, and all taps read it; on the way out of the input gradient, the product g is
// multiplied by the slope at x, and leaves per block what it adds to the gradients of alpha and beta.
//
//   forward          2 or 4 bytes less read and as much less written per element of x than Snake on its own; about 12
//                    operations per element and column of tiles, against 2 taps columns of the product
//   input gradient   g is neither written nor read: two of five passes over tensors like x are left out
//
// Many columns of tiles activate the same x again and again. Of three taps and more that is work for issue slots which
// tensor cores leave free; of fewer it is more than they leave, and there Snake on its own is quicker.
namespace nacre::cuda {
namespace tile {
namespace {

/// dx (= or +=) g snake'(x), and sums of g x sin(2 a x) / 2 and g sin^2(a x) over the rows of the block.
template <class T>
struct SlopeOutput {
  static constexpr int pack = pack_size<T>;
  T* dx;  ///< may be null
  const T* x;
  const float *alpha, *beta;
  float* partial;  ///< [row blocks][samples per row][2][channels]; may be null
  int channels = 0, columns = 0;
  bool log_scale = false, add_dx = false;
  struct Column {
    float frequency[pack], slope[pack], sum_a[pack], sum_b[pack];
  };
  __device__ __forceinline__ Column column(int n) const {
    Column c;
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      const SnakeChannel p = snake_channel(alpha, beta, n % channels + i, log_scale);
      c.frequency[i] = p.frequency, c.slope[i] = 2.0f * p.a * p.gain;
      c.sum_a[i] = c.sum_b[i] = 0;
    }
    return c;
  }
  __device__ __forceinline__ void row(Column& c, int64_t at, Pack<T>& g) const {
    const Pack<T> xs = load_pack(x + at);
    Pack<T> before;
    if (add_dx && dx != nullptr) {
      before = load_pack(dx + at);
    } else {
#pragma unroll
      for (int i = 0; i < pack; ++i) before.v[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      const vec::SinCos s = vec::sin_cos_pi_unsigned(c.frequency[i], xs.v[i]);
      const float by_phase = g.v[i] * (s.sin * s.cos);
      c.sum_a[i] += by_phase * xs.v[i];
      c.sum_b[i] += g.v[i] * (s.sin * s.sin);
      g.v[i] = before.v[i] + (g.v[i] + c.slope[i] * by_phase);
    }
    if (dx != nullptr) store_pack(dx + at, g);
  }
  template <int BN, int threads>
  __device__ __forceinline__ void finish(const Column& c, int, float* shared) const {
    if (partial == nullptr) return;
    constexpr int packs = BN / pack, lanes = threads / packs, sums = 2 * BN;
    static_assert(lanes * sums <= 64 * threads);
    const int thread = static_cast<int>(threadIdx.x), lane = thread / packs, column = thread % packs * pack;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < pack; i += 4) {
      *reinterpret_cast<float4*>(shared + lane * sums + column + i) =
          make_float4(c.sum_a[i], c.sum_a[i + 1], c.sum_a[i + 2], c.sum_a[i + 3]);
      *reinterpret_cast<float4*>(shared + lane * sums + BN + column + i) =
          make_float4(c.sum_b[i], c.sum_b[i + 1], c.sum_b[i + 2], c.sum_b[i + 3]);
    }
    __syncthreads();
    for (int item = thread; item < sums; item += threads) {
      const int n = static_cast<int>(blockIdx.y) * BN + item % BN;
      if (n >= columns) continue;
      double total = 0;
      for (int l = 0; l < lanes; ++l) total += static_cast<double>(shared[l * sums + item]);
      const int sample = n / channels, channel = n - sample * channels;
      partial[((int64_t{blockIdx.x} * (columns / channels) + sample) * 2 + item / BN) * channels + channel] =
          static_cast<float>(total);
    }
  }
};

/// Rows of tiles times samples per row: the parts of the sums for alpha and beta.
inline int64_t slope_parts(const Shifted& s, int64_t channels) {
  return ceil_div(s.items * s.virtual_rows, int64_t{s.block.rows}) * (s.columns / channels);
}

/// Whether activating x once per column of tiles is the quicker way. Its parameters may leave no room for the halo
/// between items, or for tiles as large, and so cost a round of blocks.
bool worth_it(const DeviceLimits& d, bool tensor_cores, const Shifted& s, const Shifted& plain) {
  if (!tensor_cores) return true;
  return s.block == plain.block && rounds(d, s) <= rounds(d, plain) && (s.columns <= 256 || s.taps >= stages);
}

template <class T>
bool forward(Context& ctx, const SnakeConv1dForward<T>& a) {
  const Shape x = a.x.shape, y = a.y.shape;
  if (!suits<T>(a.geometry, x.channels, y.channels)) return false;
  if (!aligned16(a.x.data) || !aligned16(a.weight.data) || !aligned16(a.y.data) || !aligned16(a.residual.data))
    return false;
  const bool tensor_cores = on_tensor_cores<T>(ctx);
  const auto parameters = static_cast<int>(x.channels * sizeof(typename SnakeInput<T>::Parameters));
  const DeviceLimits& d = limits(ctx);
  const Shifted s = forward_product<T>(d, x, a.weight.shape, y, a.geometry, tensor_cores, parameters),
                plain = forward_product<T>(d, x, a.weight.shape, y, a.geometry, tensor_cores);
  if (!fits(d, s) || !worth_it(d, tensor_cores, s, plain)) return false;
  const SnakeInput<T> input{a.alpha.data, a.beta.data, a.log_scale};
  const PlainOutput<T> output{a.y.data, a.bias.data, a.residual.data, s.columns};
  if constexpr (sizeof(T) == 2)
    launch_product<Product::bf16, Lies::along>(ctx, "snake_conv1d_forward_bf16", s, a.x.data, a.weight.data, input,
                                               output);
  else if (ctx.precision() == Precision::tf32)
    launch_product<Product::tf32, Lies::along>(ctx, "snake_conv1d_forward_tf32", s, a.x.data, a.weight.data, input,
                                               output);
  else
    launch_product<Product::fma, Lies::along>(ctx, "snake_conv1d_forward_fma", s, a.x.data, a.weight.data, input,
                                              output);
  return true;
}

template <class T>
bool input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a) {
  const Shape x = a.x.shape, y = a.dy.shape;
  if (!suits<T>(a.geometry, x.channels, y.channels) || a.geometry.padding == Padding::reflect) return false;
  if (!aligned16(a.x.data) || !aligned16(a.dx.data) || !aligned16(a.weight.data) || !aligned16(a.dy.data)) return false;
  const Shifted s = input_gradient_product<T>(limits(ctx), x, a.weight.shape, y, a.geometry, on_tensor_cores<T>(ctx));
  if (!fits(limits(ctx), s) || s.out_begin >= s.out_end) return false;
  const bool sums = a.dalpha || a.dbeta;
  SlopeOutput<T> output{a.dx.data, a.x.data, a.alpha.data, a.beta.data, sums ? a.scratch.data : nullptr};
  output.channels = static_cast<int>(x.channels), output.columns = s.columns;
  output.log_scale = a.log_scale, output.add_dx = a.add_dx;
  const PlainInput<T> input;
  if constexpr (sizeof(T) == 2)
    launch_product<Product::bf16, Lies::across>(ctx, "snake_conv1d_input_gradient_bf16", s, a.dy.data, a.weight.data,
                                                input, output);
  else if (ctx.precision() == Precision::tf32)
    launch_product<Product::tf32, Lies::across>(ctx, "snake_conv1d_input_gradient_tf32", s, a.dy.data, a.weight.data,
                                                input, output);
  else
    launch_product<Product::fma, Lies::across>(ctx, "snake_conv1d_input_gradient_fma", s, a.dy.data, a.weight.data,
                                               input, output);
  if (sums)
    snake_parameter_gradients(ctx, a.alpha, a.beta, a.log_scale, a.dalpha, a.dbeta, slope_parts(s, x.channels),
                              a.scratch.data);
  return true;
}

}  // namespace
}  // namespace tile

template <class T>
int64_t snake_conv1d_input_gradient_scratch(Context& ctx, Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  int64_t floats = snake_conv1d_ends_input_gradient_scratch<T>(x, weight, dy, g);
  if (tile::suits<T>(g, x.channels, dy.channels))
    floats = std::max(
        floats, tile::slope_parts(tile::input_gradient_product<T>(limits(ctx), x, weight, dy, g, false), x.channels) *
                    2 * x.channels);
  return floats;
}
template <class T>
bool snake_conv1d_forward(Context& ctx, const SnakeConv1dForward<T>& a) {
  return snake_conv1d_ends_forward(ctx, a) || tile::forward(ctx, a);
}
template <class T>
bool snake_conv1d_input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a) {
  return snake_conv1d_ends_input_gradient(ctx, a) || tile::input_gradient(ctx, a);
}

#define NACRE_INSTANTIATE(T)                                                                                     \
  template int64_t snake_conv1d_input_gradient_scratch<T>(Context&, Shape, Shape, Shape, const Conv1dGeometry&); \
  template bool snake_conv1d_forward<T>(Context&, const SnakeConv1dForward<T>&);                                 \
  template bool snake_conv1d_input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
