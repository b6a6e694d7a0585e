#include "conv/conv1d_ends.cuh"

// The weight gradient of the first and the last layer (conv1d_ends.cuh), of the last one also with Snake before it:
// w(c, k) += sum over rows r of wide[r, c] narrow[r + shift + k], and the sums of both sides, which are the gradients
// of the biases. weights_kernel leaves a part per block, [taps and wide sum][channels] and one float for the narrow
// sum; totals_kernel adds the parts.
//
//   layer    wide    narrow    taps        wide sum     narrow sum
//   first    dy      x         forward     dbias        dbias_of_x
//   last     x       dy        mirrored    dbias_of_x   dbias
namespace nacre::cuda::ends {
namespace {

template <class T>
struct Weights {
  const T *wide, *narrow;
  SnakeParameters snake = {};  ///< Snake is applied to wide
  float* partial = nullptr;    ///< [blocks][slots channels + 1]
  bool narrow_sum = false;
};

/// Thread t has pack t % columns of the channels in strip t / columns of the block, and adds the strip's 35 rows in
/// float and in their order: seven products and the value itself for each of P channels. As in expand_kernel, a window
/// of the narrow side slides through registers, sample s of the strip at index s % 7. Samples come from shared memory,
/// which holds those of the whole block. add_strips then adds the strips in double. It takes the eight sums in two
/// rounds of four, so that `buffer` is half as large: 16 P threads bytes.
///
/// padded: the wide side has reflected padding. Its rows are then counted from the first row of padding, and row r is
/// sample r - lead or what it reflects.
template <class T, bool snake, bool aligned, bool padded>
__global__ void __launch_bounds__(threads, 3) weights_kernel(Weights<T> e, StripPlan c) {
  constexpr int P = pack_size<T>;
  NACRE_SHARED(float, buffer, 4 * threads * P);
  NACRE_SHARED(float, narrow, max_strips* long_strip + halo);
  const int rows_of_block = c.strips * long_strip;
  const int64_t item = blockIdx.x / c.tiles, first_row = (blockIdx.x - item * c.tiles) * rows_of_block;
  const T* const narrow_from = e.narrow + item * c.narrow_time;
  load_narrow(narrow_from, c, first_row, rows_of_block + halo, narrow);
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x) % c.columns, strip = static_cast<int>(threadIdx.x) / c.columns;
  const int channel = column * P;
  float low[4][P], high[4][P];  // sums of taps 0 to 3; of taps 4 to 6 and of the wide side
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < P; ++i) low[k][i] = high[k][i] = 0;
  if (strip < c.strips) {
    float frequency[P], gain[P];
    if constexpr (snake) {
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const SnakeChannel p = snake_channel(e.snake.alpha, e.snake.beta, channel + i, e.snake.log_scale);
        frequency[i] = p.frequency, gain[i] = p.gain;
      }
    }
    // Rows beyond the end count as zeros; a strip may lie beyond the end as a whole.
    const int64_t row = first_row + strip * long_strip;
    const T* const from = e.wide + (item * c.wide_time + (padded ? 0 : row)) * c.channels + channel;
    const int rows = c.wide_rows - row < long_strip ? static_cast<int>(c.wide_rows - row) : long_strip;
    const float* const strip_narrow = narrow + strip * long_strip;
    float window[taps];
#pragma unroll
    for (int j = 0; j < halo; ++j) window[j] = strip_narrow[j];
    for (int strip_row = 0; strip_row < rows; strip_row += taps) {
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        window[(j + halo) % taps] = strip_narrow[strip_row + j + halo];
        const int64_t at = strip_row + j + (padded ? row - c.lead : 0);
        const int64_t source = padded ? source_sample(at, c.wide_time, true) : at;
        Pack<T> v;
        unpack(strip_row + j < rows ? load_raw_pack<aligned>(from + source * c.channels) : make_uint4(0, 0, 0, 0), v);
#pragma unroll
        for (int i = 0; i < P; ++i) {
          if constexpr (snake) v.v[i] += vec::sin_squared_pi(frequency[i], v.v[i]) * gain[i];
#pragma unroll
          for (int k = 0; k < 4; ++k) low[k][i] += v.v[i] * window[(j + k) % taps];
#pragma unroll
          for (int k = 4; k < taps; ++k) high[k - 4][i] += v.v[i] * window[(j + k) % taps];
          // Padding repeats samples: the sum of the wide side takes each of them once.
          if (!padded || source == at) high[3][i] += v.v[i];
        }
      }
    }
  }
  float* const out = e.partial + int64_t{blockIdx.x} * (slots * c.channels + 1);
  add_strips<T, 4>(c, low, buffer, out, c.channels);
  add_strips<T, 4>(c, high, buffer, out + 4 * c.channels, c.channels);
  if (!e.narrow_sum) return;
  // The block's share of the narrow side without padding: samples [first_row, first_row + rows_of_block). They are read
  // from memory, because the copy in shared memory is shifted and padded. The tiles cover the longer of the two sides.
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < rows_of_block && first_row + i < c.narrow_time; i += threads)
    sum += to_float(narrow_from[first_row + i]);
  // block_sum writes to `buffer`, which add_strips has just read.
  __syncthreads();
  sum = block_sum<threads>(sum, buffer);
  if (threadIdx.x == 0) out[slots * c.channels] = sum;
}

template <class T>
struct WeightTotals {
  const float* partial;
  int64_t parts;
  int channels;
  Weight<T> where;  ///< the layout of dweight; its data is not used
  float *dweight, *wide_sum, *narrow_sum;
  bool add = true;  ///< dweight += instead of =; the other two are always added to
};
constexpr int lanes = 16;

/// Adds the blocks' partial sums in double, in an order fixed by the number of blocks. A block has 32 neighbouring
/// values, so loads are coalesced, and 16 threads for each: thread row l adds the parts l, l + 16, ..., and row 0 adds
/// the rows in order.
template <class T>
__global__ void __launch_bounds__(32 * lanes) totals_kernel(WeightTotals<T> e) {
  NACRE_SHARED(double, sums, lanes * 32);
  const int column = static_cast<int>(threadIdx.x) % 32, lane = static_cast<int>(threadIdx.x) / 32;
  const int item = static_cast<int>(blockIdx.x) * 32 + column, weight_values = taps * e.channels,
            last = slots * e.channels;
  const bool exists =
      item < weight_values || (item < last && e.wide_sum != nullptr) || (item == last && e.narrow_sum != nullptr);
  double sum = 0;
  if (exists) {
#pragma unroll 4
    for (int64_t p = lane; p < e.parts; p += lanes) sum += static_cast<double>(e.partial[p * (last + 1) + item]);
  }
  sums[lane * 32 + column] = sum;
  __syncthreads();
  if (lane != 0 || !exists) return;
  for (int l = 1; l < lanes; ++l) sum += sums[l * 32 + column];
  const int slot = item / e.channels, channel = item - slot * e.channels;
  float* const to = item < weight_values ? e.dweight + e.where.index(channel, slot)
                    : item < last        ? e.wide_sum + channel
                                         : e.narrow_sum;
  const float previous = item < weight_values && !e.add ? 0.0f : *to;
  *to = previous + static_cast<float>(sum);
}

template <class T, bool snake>
auto weights_kernel_for(bool aligned, bool padded) {
  if constexpr (!snake)  // Snake is only fused with zero padding
    if (padded) return aligned ? weights_kernel<T, false, true, true> : weights_kernel<T, false, false, true>;
  return aligned ? weights_kernel<T, snake, true, false> : weights_kernel<T, snake, false, false>;
}
template <class T, bool snake>
void weights(Context& ctx, const char* name, int64_t batch, Weights<T> e, const StripPlan& c, WeightTotals<T> totals) {
  totals.partial = e.partial, totals.parts = batch * c.tiles, totals.channels = c.channels;
  e.narrow_sum = totals.narrow_sum != nullptr;
  launch(ctx, {.name = name, .grid = grid_of(batch, c), .block = threads},
         weights_kernel_for<T, snake>(aligned16(e.wide), c.wide_rows != c.wide_time), e, c);
  launch(ctx, {.name = "conv1d_ends_totals", .grid = blocks_for(partial_size(c.channels), 32), .block = 32 * lanes},
         totals_kernel<T>, totals);
}

}  // namespace

template <class T>
void weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a, const StripPlan& c) {
  Weights<T> e{};
  WeightTotals<T> totals{};
  e.partial = a.scratch.data, totals.dweight = a.dweight.data, totals.add = a.add_dweight;
  if (a.x.shape.channels == 1) {
    e.wide = a.dy.data, e.narrow = a.x.data;
    totals.where = weight_of_first<T>(nullptr, false);
    totals.wide_sum = a.dbias.data, totals.narrow_sum = a.dbias_of_x.data;
  } else {
    e.wide = a.x.data, e.narrow = a.dy.data;
    totals.where = weight_of_last<T>(nullptr, c.channels, true);
    totals.wide_sum = a.dbias_of_x.data, totals.narrow_sum = a.dbias.data;
  }
  weights<T, false>(ctx, "conv1d_ends_weights", a.x.shape.batch, e, c, totals);
}

template <class T>
void weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a, const StripPlan& c) {
  Weights<T> e{.wide = a.x.data, .narrow = a.dy.data, .snake = {a.alpha.data, a.beta.data, a.log_scale}};
  WeightTotals<T> totals{};
  e.partial = a.scratch.data, totals.dweight = a.dweight.data, totals.narrow_sum = a.dbias.data;
  totals.add = a.add_dweight;
  totals.where = weight_of_last<T>(nullptr, c.channels, true);
  weights<T, true>(ctx, "snake_conv1d_ends_weights", a.x.shape.batch, e, c, totals);
}

template void weight_gradient<float>(Context&, const Conv1dWeightGradient<float>&, const StripPlan&);
template void weight_gradient<bf16>(Context&, const Conv1dWeightGradient<bf16>&, const StripPlan&);
template void weight_gradient<float>(Context&, const SnakeConv1dWeightGradient<float>&, const StripPlan&);
template void weight_gradient<bf16>(Context&, const SnakeConv1dWeightGradient<bf16>&, const StripPlan&);

}  // namespace nacre::cuda::ends
