#include "nacre/ops/snake_conv1d.h"

#include "conv/conv1d_ends.cuh"
#include "conv/snake_conv1d.cuh"
#include "runtime/gradient_sums.h"

// Snake fused into the tiled convolution (conv1d_tile.cuh). In the forward, Snake is applied once to each element of a
// block's tile of x in shared memory, and all taps read the result. In the input gradient, the product g is multiplied
// by Snake's slope at x before it is stored, and each block leaves its part of the gradients of alpha and beta.
//
//   forward          saves reading and writing 2 or 4 bytes per element of x, compared with a separate Snake kernel;
//                    costs about 12 operations per element and column of tiles, beside 2 taps columns of the product
//   input gradient   g is neither written nor read, which saves two of five passes over tensors like x
//
// Every column of tiles applies Snake to the same x again. With three or more taps the tensor cores leave enough issue
// slots free for this work. With fewer taps they do not, and a separate Snake kernel is faster.
namespace nacre::cuda {
namespace tile {
namespace {

/// Output policy: dx (= or +=) g snake'(x), and the sums of g x sin(2 a x) / 2 and g sin^2(a x) over the block's rows.
template <class T>
struct SlopeOutput {
  static constexpr int pack = pack_size<T>;
  T* dx;  ///< may be null
  const T* x;
  const float *alpha, *beta;
  float* partial;  ///< [rows of tiles][samples per row][2][channels]; may be null
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
    Pack<T> previous;
    if (add_dx && dx != nullptr) {
      previous = load_pack(dx + at);
    } else {
#pragma unroll
      for (int i = 0; i < pack; ++i) previous.v[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      const vec::SinCos s = vec::sin_cos_pi_unsigned(c.frequency[i], xs.v[i]);
      const float by_phase = g.v[i] * (s.sin * s.cos);
      c.sum_a[i] += by_phase * xs.v[i];
      c.sum_b[i] += g.v[i] * (s.sin * s.sin);
      g.v[i] = previous.v[i] + (g.v[i] + c.slope[i] * by_phase);
    }
    if (dx != nullptr) store_pack(dx + at, g);
  }
  template <int BN, int threads>
  __device__ __forceinline__ void finish(const Column& c, const ResultTile& tile, float* shared) const {
    if (partial == nullptr) return;
    constexpr int packs_per_row = BN / pack, lanes = rows_of_packs(threads, packs_per_row), sums = 2 * BN;
    static_assert(lanes * sums <= 64 * threads);
    const int thread = static_cast<int>(threadIdx.x), lane = thread / packs_per_row,
              column = thread % packs_per_row * pack;
    __syncthreads();
    if (lanes * packs_per_row == threads || lane < lanes) {
#pragma unroll
    for (int i = 0; i < pack; i += 4) {
      *reinterpret_cast<float4*>(shared + lane * sums + column + i) =
          make_float4(c.sum_a[i], c.sum_a[i + 1], c.sum_a[i + 2], c.sum_a[i + 3]);
      *reinterpret_cast<float4*>(shared + lane * sums + BN + column + i) =
          make_float4(c.sum_b[i], c.sum_b[i + 1], c.sum_b[i + 2], c.sum_b[i + 3]);
    }
    }
    __syncthreads();
    for (int item = thread; item < sums; item += threads) {
      const int n = tile.column * BN + item % BN;
      if (n >= columns) continue;
      double total = 0;
      for (int l = 0; l < lanes; ++l) total += static_cast<double>(shared[l * sums + item]);
      const int sample = n / channels, channel = n - sample * channels;
      partial[((int64_t{tile.row} * (columns / channels) + sample) * 2 + item / BN) * channels + channel] =
          static_cast<float>(total);
    }
  }
};

template <class T>
void forward(Context& ctx, const SnakeConv1dForward<T>& a, const Shifted& s) {
  const SnakeInput<T> input{a.alpha.data, a.beta.data, a.log_scale};
  const PlainOutput<T> output{a.y.data, a.bias.data, a.residual.data, s.columns};
  with_product<T>(ctx, [&]<Product P>() {
    launch_product<P, Major::k>(ctx, product_name<"snake_conv1d_forward", P>, s, a.x.data, a.weight.data, input,
                                output);
  });
}

template <class T>
void input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a, const Shifted& s, int64_t parts) {
  const bool sums = a.dalpha || a.dbeta, later = static_cast<bool>(a.parts);
  float* const partial = !sums ? nullptr : later ? a.parts.data : a.scratch.data;
  SlopeOutput<T> output{a.dx.data, a.x.data, a.alpha.data, a.beta.data, partial};
  output.channels = static_cast<int>(a.x.shape.channels), output.columns = s.columns;
  output.log_scale = a.log_scale, output.add_dx = a.add_dx;
  const PlainInput<T> input;
  with_product<T>(ctx, [&]<Product P>() {
    launch_product<P, Major::mn>(ctx, product_name<"snake_conv1d_input_gradient", P>, s, a.dy.data, a.weight.data,
                                 input, output);
  });
  if (sums) snake_parameter_gradients(ctx, a.alpha, a.beta, a.log_scale, a.dalpha, a.dbeta, parts, partial, later);
}

}  // namespace
}  // namespace tile

template <class T>
bool snake_conv1d_forward(Context& ctx, const SnakeConv1dForward<T>& a) {
  const bool aligned =
      aligned16(a.x.data) && aligned16(a.weight.data) && aligned16(a.y.data) && aligned16(a.residual.data);
  const conv::ProductChoice choice = conv::choose_snake_forward<T>(ctx, a.x.shape, a.weight.shape, a.geometry, aligned);
  if (choice.engine == conv::Engine::separate) return false;
  if (choice.engine == conv::Engine::ends)
    ends::forward(ctx, a, choice.strips);
  else
    tile::forward(ctx, a, choice.product);
  return true;
}
template <class T>
bool snake_conv1d_input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a) {
  const bool aligned = aligned16(a.x.data) && aligned16(a.dx.data) && aligned16(a.weight.data) && aligned16(a.dy.data);
  const conv::ProductChoice choice =
      conv::choose_snake_input_gradient<T>(ctx, a.x.shape, a.weight.shape, a.geometry, aligned);
  if (choice.engine == conv::Engine::separate) return false;
  if (choice.engine == conv::Engine::ends)
    ends::input_gradient(ctx, a, choice.strips);
  else
    tile::input_gradient(ctx, a, choice.product, choice.parts);
  return true;
}

#define NACRE_INSTANTIATE(T)                                                     \
  template bool snake_conv1d_forward<T>(Context&, const SnakeConv1dForward<T>&); \
  template bool snake_conv1d_input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
