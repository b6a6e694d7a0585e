#include "nacre/ops/snake.h"

#include "snake.cuh"

// Channels are innermost, so a thread that keeps to its channels and walks down the rows has alpha and its reciprocal
// in registers. P elements per access: 1 fits any shape and is the kernel to read first; a 16-byte pack is what runs
// where channels and addresses allow. Bound by memory in both directions.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int64_t rows_per_thread = 32;  // of the backward: bounds the float sums

/// How a [rows, channels] matrix is cut: a block has `columns` threads side by side, each P channels wide, and
/// `rows_at_once` rows; grid.x runs over rows, grid.y over columns.
struct Tiling {
  int64_t rows, channels;
  int columns, rows_at_once;
  unsigned row_blocks, column_blocks;
};
Tiling tiling(Shape s, int pack) {
  Tiling t{s.rows(), s.channels, 0, 0, 0, 0};
  const int64_t columns = s.channels / pack;
  t.columns = static_cast<int>(columns < threads ? columns : threads);
  t.rows_at_once = threads / t.columns;
  t.row_blocks = blocks_for(t.rows, t.rows_at_once * rows_per_thread);
  t.column_blocks = blocks_for(columns, t.columns);
  return t;
}
/// The scratch's shape may not depend on addresses: the cut of the backward is that of the widest pack, or of none.
template <class T>
int pack_of(Shape s) {
  return s.channels % pack_size<T> == 0 ? pack_size<T> : 1;
}

/// What this thread works on; `active` is false for threads beyond the last whole row or column.
struct Mine {
  int64_t channel, row, row_step;
  bool active;
};
template <int P>
__device__ __forceinline__ Mine mine(const Tiling& t) {
  const int column = static_cast<int>(threadIdx.x) % t.columns, row = static_cast<int>(threadIdx.x) / t.columns;
  Mine m;
  m.channel = (int64_t{blockIdx.y} * t.columns + column) * P;
  m.row = int64_t{blockIdx.x} * t.rows_at_once + row;
  m.row_step = int64_t{gridDim.x} * t.rows_at_once;
  m.active = row < t.rows_at_once && m.channel < t.channels;
  return m;
}

template <class T, int P>
__device__ __forceinline__ Pack<T> load(const T* p) {
  if constexpr (P == 1)
    return load_some(p, 1);
  else
    return load_pack(p);
}
template <class T, int P>
__device__ __forceinline__ void save(T* p, const Pack<T>& v) {
  if constexpr (P == 1)
    store_some(p, v, 1);
  else
    store_pack(p, v);
}

template <class T, int P>
__global__ void __launch_bounds__(threads) snake_forward_kernel(SnakeForward<T> f, Tiling t) {
  const Mine m = mine<P>(t);
  if (!m.active) return;
  float a[P], gain[P];
#pragma unroll
  for (int i = 0; i < P; ++i) {
    const SnakeChannel c = snake_channel(f.alpha.data, f.beta.data, m.channel + i, f.log_scale);
    a[i] = c.a, gain[i] = c.gain;
  }
  // A batch is loaded before any of it is stored: y may be x, so the compiler may not do that by itself.
  constexpr int batch = 4;
  for (int64_t first = m.row; first < t.rows; first += batch * m.row_step) {
    Pack<T> v[batch]{};
#pragma unroll
    for (int k = 0; k < batch; ++k)
      if (first + k * m.row_step < t.rows)
        v[k] = load<T, P>(f.x.data + (first + k * m.row_step) * t.channels + m.channel);
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      if (first + k * m.row_step >= t.rows) break;
#pragma unroll
      for (int i = 0; i < P; ++i) v[k].v[i] += vec::sin_squared(a[i] * v[k].v[i]) * gain[i];
      save<T, P>(f.y.data + (first + k * m.row_step) * t.channels + m.channel, v[k]);
    }
  }
}

/// dx, and per block the sums over its rows of dy x sin(2 a x) / 2 and of dy sin^2(a x): partial [row
/// blocks][2][channels].
template <class T, int P>
__global__ void __launch_bounds__(threads) snake_backward_kernel(SnakeBackward<T> g, Tiling t, float* partial) {
  NACRE_SHARED(float, sums, 2 * threads * P);
  const Mine m = mine<P>(t);
  float sum_a[P], sum_b[P];
#pragma unroll
  for (int i = 0; i < P; ++i) sum_a[i] = sum_b[i] = 0;
  if (m.active) {
    float a[P], slope[P];
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const SnakeChannel c = snake_channel(g.alpha.data, g.beta.data, m.channel + i, g.log_scale);
      a[i] = c.a, slope[i] = 2.0f * c.a * c.gain;
    }
    constexpr int batch = 2;
    for (int64_t first = m.row; first < t.rows; first += batch * m.row_step) {
      Pack<T> x[batch]{}, dy[batch]{}, dx[batch]{};
#pragma unroll
      for (int k = 0; k < batch; ++k) {
        if (first + k * m.row_step >= t.rows) break;
        const int64_t at = (first + k * m.row_step) * t.channels + m.channel;
        x[k] = load<T, P>(g.x.data + at);
        dy[k] = load<T, P>(g.dy.data + at);
        if (g.dx && g.add_dx) dx[k] = load<T, P>(g.dx.data + at);
      }
#pragma unroll
      for (int k = 0; k < batch; ++k) {
        if (first + k * m.row_step >= t.rows) break;
#pragma unroll
        for (int i = 0; i < P; ++i) {
          const float v = x[k].v[i], d = dy[k].v[i];
          const vec::SinCos s = vec::sin_cos_unsigned(a[i] * v);
          const float product = s.sin * s.cos;
          sum_a[i] += d * v * product;
          sum_b[i] += d * (s.sin * s.sin);
          const float slope_of_x = d + d * (slope[i] * product);
          dx[k].v[i] = g.add_dx ? dx[k].v[i] + slope_of_x : slope_of_x;
        }
        if (g.dx) save<T, P>(g.dx.data + (first + k * m.row_step) * t.channels + m.channel, dx[k]);
      }
    }
  }
  if (partial == nullptr) return;
  const int width = t.columns * P, column = static_cast<int>(threadIdx.x) % t.columns,
            row = static_cast<int>(threadIdx.x) / t.columns;
  if (m.active) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      sums[row * width + column * P + i] = sum_a[i];
      sums[(t.rows_at_once + row) * width + column * P + i] = sum_b[i];
    }
  }
  __syncthreads();
  const int64_t first = int64_t{blockIdx.y} * width;
  for (int c = static_cast<int>(threadIdx.x); c < width && first + c < t.channels; c += threads) {
    float total_a = 0, total_b = 0;
    for (int r = 0; r < t.rows_at_once; ++r) {
      total_a += sums[r * width + c];
      total_b += sums[(t.rows_at_once + r) * width + c];
    }
    float* out = partial + int64_t{blockIdx.x} * 2 * t.channels + first + c;
    out[0] = total_a;
    out[t.channels] = total_b;
  }
}

constexpr int lanes = 8;  // of a channel, in the second stage

/// What snake_parameters_kernel turns sums into.
struct Parameters {
  const float *alpha, *beta;
  float *dalpha, *dbeta;
  int64_t channels;
  bool log_scale;
};

/// Adds the blocks' sums in double, in an order fixed by their number, and turns them into the parameters' gradients.
__global__ void __launch_bounds__(32 * lanes)
    snake_parameters_kernel(Parameters g, int64_t parts, const float* partial) {
  NACRE_SHARED(double, sums, 2 * lanes * 32);
  const int column = static_cast<int>(threadIdx.x) % 32, lane = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + column;
  double sum_a = 0, sum_b = 0;
  if (c < g.channels)
    for (int64_t p = lane; p < parts; p += lanes) {
      sum_a += static_cast<double>(partial[p * 2 * g.channels + c]);
      sum_b += static_cast<double>(partial[(p * 2 + 1) * g.channels + c]);
    }
  sums[lane * 32 + column] = sum_a;
  sums[(lanes + lane) * 32 + column] = sum_b;
  __syncthreads();
  if (lane != 0 || c >= g.channels) return;
  for (int l = 1; l < lanes; ++l) {
    sum_a += sums[l * 32 + column];
    sum_b += sums[(lanes + l) * 32 + column];
  }
  const SnakeChannel p = snake_channel(g.alpha, g.beta, c, g.log_scale);
  const double gain = static_cast<double>(p.gain);
  double da = 2 * sum_a * gain, db = -sum_b * gain * gain;
  if (g.log_scale) {
    da *= static_cast<double>(p.a);
    db *= static_cast<double>(g.beta != nullptr ? vec::exp(g.beta[c]) : p.a);
  }
  if (g.dalpha != nullptr) g.dalpha[c] += static_cast<float>(g.beta != nullptr ? da : da + db);
  if (g.dbeta != nullptr) g.dbeta[c] += static_cast<float>(db);
}

template <class T, int P>
void backward(Context& ctx, const SnakeBackward<T>& g, bool sums) {
  const Tiling t = tiling(g.x.shape, P);
  launch(ctx,
         {.name = P == 1 ? "snake_backward" : "snake_backward_packs",
          .grid = {t.row_blocks, t.column_blocks, 1},
          .block = threads},
         snake_backward_kernel<T, P>, g, t, sums ? g.scratch.data : nullptr);
  if (sums)
    snake_parameter_gradients(ctx, g.alpha, g.beta, g.log_scale, g.dalpha, g.dbeta, t.row_blocks, g.scratch.data);
}

}  // namespace

void snake_parameter_gradients(Context& ctx, View<const float> alpha, View<const float> beta, bool log_scale,
                               View<float> dalpha, View<float> dbeta, int64_t parts, const float* partial) {
  const int64_t channels = alpha.shape.channels;
  launch(ctx, {.name = "snake_parameters", .grid = blocks_for(channels, 32), .block = 32 * lanes},
         snake_parameters_kernel, Parameters{alpha.data, beta.data, dalpha.data, dbeta.data, channels, log_scale},
         parts, partial);
}

Shape snake_backward_scratch(Shape x) {
  if (x.elements() == 0) return {.channels = 0};
  // float packs are the narrowest: fewest rows at once, most blocks.
  const unsigned most = std::max(
      {tiling(x, 1).row_blocks, tiling(x, pack_of<float>(x)).row_blocks, tiling(x, pack_of<bf16>(x)).row_blocks});
  return {.batch = most, .width = 2, .channels = x.channels};
}

template <class T>
void snake_forward(Context& ctx, const SnakeForward<T>& f) {
  if (f.x.elements() == 0) return;
  const bool packs = pack_of<T>(f.x.shape) > 1 && aligned16(f.x.data) && aligned16(f.y.data);
  const Tiling t = tiling(f.x.shape, packs ? pack_size<T> : 1);
  // Four rows per thread keep enough bytes on their way.
  const dim3 grid(blocks_for(t.rows, int64_t{t.rows_at_once} * 4), t.column_blocks, 1);
  if (packs)
    launch(ctx, {.name = "snake_forward_packs", .grid = grid, .block = threads}, snake_forward_kernel<T, pack_size<T>>,
           f, t);
  else
    launch(ctx, {.name = "snake_forward", .grid = grid, .block = threads}, snake_forward_kernel<T, 1>, f, t);
}

template <class T>
void snake_backward(Context& ctx, const SnakeBackward<T>& g) {
  const bool sums = g.dalpha || g.dbeta;
  if (g.x.elements() == 0 || (!g.dx && !sums)) return;
  const bool packs = pack_of<T>(g.x.shape) > 1 && aligned16(g.x.data) && aligned16(g.dy.data) && aligned16(g.dx.data);
  if (packs)
    backward<T, pack_size<T>>(ctx, g, sums);
  else
    backward<T, 1>(ctx, g, sums);
}

template void snake_forward<float>(Context&, const SnakeForward<float>&);
template void snake_forward<bf16>(Context&, const SnakeForward<bf16>&);
template void snake_backward<float>(Context&, const SnakeBackward<float>&);
template void snake_backward<bf16>(Context&, const SnakeBackward<bf16>&);

}  // namespace nacre::cuda
