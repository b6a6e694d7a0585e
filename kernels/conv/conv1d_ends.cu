#include "conv/conv1d_ends.cuh"

#include "pointwise/snake.cuh"

// The first and the last layer of a codec. One side is wide (C channels), the other narrow (one channel). A thread
// holds the seven taps of one 16-byte pack of channels in registers and walks down a strip of rows. A block has several
// strips side by side. Three kernels serve both layers in all directions, because the weight is addressed by strides
// and its taps may be mirrored:
//   expand    wide   = sum_k w(c, k) narrow[r + shift + k]        a window of the narrow side slides through registers
//   contract  narrow = sum_{k, c} w(c, k) wide[r + shift + k, c]  seven sums slide; columns are added in shared memory
//   weights   w(c, k) += sum_r wide[r, c] narrow[r + shift + k]   seven sums per channel; a second kernel adds blocks
//
// Each element of the wide side moves once, 2 or 4 bytes for 14 operations, so memory bounds these kernels. Counted in
// SASS (sm_90a, bf16), an element takes 11.5 instructions in expand, contract and weights; with Snake 29 in the
// forward, 38 in the input gradient and 23 in the weight gradient. That is 0.8, 2.1, 1.4 and 1.7 times the issue slots
// available while the element's bytes are transferred.
namespace nacre::cuda {
namespace {

constexpr int threads = 128, taps = 7, halo = taps - 1;
constexpr int max_strips = 32;
// Rows of a strip: a multiple of the window, whose positions are unrolled, and odd, so that the strips of a warp begin
// in different banks.
constexpr int short_strip = 3 * taps, long_strip = 5 * taps;

/// How a problem is divided: a block has `strips` strips of rows of one batch item, which has `tiles` blocks.
/// `columns`: packs of channels, one per thread of a strip. In contract the strips of neighbouring blocks overlap by
/// the halo.
struct StripPlan {
  int64_t wide_time, narrow_time, tiles, shift;
  int channels, columns, strips;
  bool reflect;  ///< padding of the side that is read through a window: reflected, else zero
};
/// Channels of the wide side; 0 for layers that these kernels do not support.
template <class T>
int64_t wide_channels(Shape x, Shape weight, const Conv1dGeometry& g) {
  const bool first_layer = x.channels == 1,
             plain_geometry = g.stride == 1 && g.dilation == 1 && g.groups == 1 && weight.time == taps;
  const int64_t channels = first_layer ? weight.batch : x.channels;
  const bool one_narrow_side = first_layer != (weight.batch == 1);
  return plain_geometry && one_narrow_side && channels % pack_size<T> == 0 && channels / pack_size<T> <= threads
             ? channels
             : 0;
}
template <class T>
StripPlan strip_plan(int64_t wide_time, int64_t narrow_time, int64_t channels, int64_t rows, int strip, int overlap,
                     int64_t shift, bool reflect) {
  StripPlan c{wide_time, narrow_time, 0, shift, static_cast<int>(channels), static_cast<int>(channels) / pack_size<T>,
              0,         reflect};
  c.strips = threads / c.columns < max_strips ? threads / c.columns : max_strips;
  c.tiles = ceil_div<int64_t>(rows, c.strips * strip - overlap);
  return c;
}

/// The sample at position `at` of the padded signal; -1 for a zero.
__device__ __forceinline__ int64_t source_sample(int64_t at, int64_t time, bool reflect) {
  if (at >= 0 && at < time) return at;
  if (!reflect) return -1;
  const int64_t mirrored = at < 0 ? -at : 2 * (time - 1) - at;
  return mirrored >= 0 && mirrored < time ? mirrored : -1;  // -1: beyond the padding, for sums that are not stored
}
template <bool aligned, class T>
__device__ __forceinline__ uint4 load_raw_pack(const T* p) {
  if constexpr (aligned)
    return *reinterpret_cast<const uint4*>(p);
  else
    return packed(load_some(p, pack_size<T>));
}
template <bool aligned, class T>
__device__ __forceinline__ void save_pack(T* p, const Pack<T>& v) {
  if constexpr (aligned)
    store_pack(p, v);
  else
    store_some(p, v, pack_size<T>);
}

/// Access to the weight as w(channel, k).
template <class T>
struct Weight {
  const T* data;
  int64_t channel_stride, tap_stride;
  bool mirrored;
  __device__ __forceinline__ int64_t index(int64_t channel, int k) const {
    return channel * channel_stride + (mirrored ? taps - 1 - k : k) * tap_stride;
  }
};
template <class T>
__device__ __forceinline__ void load_weight(const Weight<T>& weight, int channel, float (&w)[taps][pack_size<T>]) {
#pragma unroll
  for (int k = 0; k < taps; ++k)
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) w[k][i] = to_float(weight.data[weight.index(channel + i, k)]);
}

struct SnakeParameters {
  const float *alpha, *beta;
  bool log_scale;
};

/// Loads the narrow side's samples for a block that begins at row `first_row`: narrow[i] is the padded signal at
/// first_row + shift + i.
template <class T>
__device__ __forceinline__ void load_narrow(const T* from, const StripPlan& c, int64_t first_row, int count,
                                            float* narrow) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    const int64_t at = source_sample(first_row + c.shift + i, c.narrow_time, c.reflect);
    narrow[i] = at < 0 ? 0.0f : to_float(from[at]);
  }
}

/// Adds `sums` over the strips, in double, for `slots` values per channel: out[slot * pitch + channel].
/// `buffer`: slots * threads * P floats.
template <class T, int slots>
__device__ __forceinline__ void add_strips(const StripPlan& c, const float (&sums)[slots][pack_size<T>], float* buffer,
                                           float* out, int64_t pitch) {
  constexpr int P = pack_size<T>;
  const int column = static_cast<int>(threadIdx.x) % c.columns, strip = static_cast<int>(threadIdx.x) / c.columns;
  __syncthreads();
  if (strip < c.strips) {
#pragma unroll
    for (int s = 0; s < slots; ++s)
#pragma unroll
      for (int i = 0; i < P; ++i) buffer[(s * c.strips + strip) * c.channels + column * P + i] = sums[s][i];
  }
  __syncthreads();
  for (int item = static_cast<int>(threadIdx.x); item < slots * c.channels; item += threads) {
    const int slot = item / c.channels, channel = item - slot * c.channels;
    double total = 0;
    for (int s = 0; s < c.strips; ++s)
      total += static_cast<double>(buffer[(slot * c.strips + s) * c.channels + channel]);
    out[slot * pitch + channel] = static_cast<float>(total);
  }
}

// ---- expand

template <class T>
struct Expand {
  const T* narrow;
  Weight<T> weight;
  const float* bias = nullptr;
  const T* add = nullptr;  ///< added to the result; may be equal to `wide`
  T* wide = nullptr;
  const T* x = nullptr;  ///< with Snake: the gradient g at Snake's output is multiplied by Snake's slope at x
  SnakeParameters snake = {};
  float* partial = nullptr;  ///< [blocks][2][channels] of sums for alpha and beta; may be null
};
template <class T, bool snake, bool aligned>
__global__ void __launch_bounds__(threads, 3) expand_kernel(Expand<T> e, StripPlan c) {
  constexpr int P = pack_size<T>;
  NACRE_SHARED(float, narrow, max_strips* short_strip + halo);
  const int64_t item = blockIdx.x / c.tiles, first_row = (blockIdx.x - item * c.tiles) * c.strips * short_strip;
  load_narrow(e.narrow + item * c.narrow_time, c, first_row, c.strips * short_strip + halo, narrow);
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x) % c.columns, strip = static_cast<int>(threadIdx.x) / c.columns;
  const int channel = column * P;
  float sums[2][P];
#pragma unroll
  for (int i = 0; i < P; ++i) sums[0][i] = sums[1][i] = 0;
  if (strip < c.strips) {
    float w[taps][P], bias[P], frequency[P], slope[P];
    load_weight(e.weight, channel, w);
#pragma unroll
    for (int i = 0; i < P; ++i) {
      if constexpr (snake) {
        const SnakeChannel p = snake_channel(e.snake.alpha, e.snake.beta, channel + i, e.snake.log_scale);
        frequency[i] = p.frequency, slope[i] = 2.0f * p.a * p.gain;
      } else {
        bias[i] = e.bias == nullptr ? 0.0f : e.bias[channel + i];
      }
    }
    const float* const from = narrow + strip * short_strip;
    const int64_t row = first_row + strip * short_strip, base = (item * c.wide_time + row) * c.channels + channel;
    const int rows = c.wide_time - row < short_strip ? static_cast<int>(c.wide_time - row) : short_strip;
    float window[taps];
#pragma unroll
    for (int j = 0; j < halo; ++j) window[j] = from[j];
    for (int strip_row = 0; strip_row < rows; strip_row += taps) {
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        const int64_t at = base + int64_t{strip_row + j} * c.channels;
        const bool inside = strip_row + j < rows;
        window[(j + halo) % taps] = from[strip_row + j + halo];
        Pack<T> v, previous;
        if (inside && e.add != nullptr) {
          unpack(load_raw_pack<aligned>(e.add + at), previous);
        } else {
#pragma unroll
          for (int i = 0; i < P; ++i) previous.v[i] = 0;
        }
#pragma unroll
        for (int i = 0; i < P; ++i) {
          v.v[i] = snake ? 0.0f : bias[i];
#pragma unroll
          for (int k = 0; k < taps; ++k) v.v[i] += w[k][i] * window[(j + k) % taps];
        }
        if constexpr (snake) {
          Pack<T> x;
          if (inside) {
            unpack(load_raw_pack<aligned>(e.x + at), x);
          } else {
#pragma unroll
            for (int i = 0; i < P; ++i) x.v[i] = v.v[i] = 0;
          }
#pragma unroll
          for (int i = 0; i < P; ++i) {
            const vec::SinCos s = vec::sin_cos_pi_unsigned(frequency[i], x.v[i]);
            const float by_phase = v.v[i] * (s.sin * s.cos);
            sums[0][i] += by_phase * x.v[i];
            sums[1][i] += v.v[i] * (s.sin * s.sin);
            v.v[i] += slope[i] * by_phase;
          }
        }
#pragma unroll
        for (int i = 0; i < P; ++i) v.v[i] += previous.v[i];
        if (inside && e.wide != nullptr) save_pack<aligned>(e.wide + at, v);
      }
    }
  }
  if constexpr (snake) {
    NACRE_SHARED(float, buffer, 2 * threads * P);
    if (e.partial != nullptr)
      add_strips<T, 2>(c, sums, buffer, e.partial + int64_t{blockIdx.x} * 2 * c.channels, c.channels);
  }
}

// ---- contract

template <class T>
struct Contract {
  const T* wide;
  Weight<T> weight;
  const float* bias = nullptr;
  const T* add = nullptr;  ///< added to the result; may be equal to `narrow`
  T* narrow = nullptr;
  SnakeParameters snake = {};  ///< Snake is applied to wide
};
constexpr int sums_of_strip = short_strip + halo;                // result rows to which one strip contributes
constexpr int contract_floats = max_strips * sums_of_strip * 5;  // at most strips * sums_of_strip * (columns | 1)

/// A block begins at row `first_row` of the narrow side, which is first_row + shift of the wide side. A strip computes
/// the contributions of its rows to every sum, including those to the six sums that the next strip completes.
template <class T, bool snake, bool aligned>
__global__ void __launch_bounds__(threads, 3) contract_kernel(Contract<T> e, StripPlan c) {
  constexpr int P = pack_size<T>;
  NACRE_SHARED(float, parts, contract_floats);
  const int pitch = c.columns | 1, count = c.strips * short_strip - halo;
  const int64_t item = blockIdx.x / c.tiles, first_row = (blockIdx.x - item * c.tiles) * count;
  const int column = static_cast<int>(threadIdx.x) % c.columns, strip = static_cast<int>(threadIdx.x) / c.columns;
  const int channel = column * P;
  if (strip < c.strips) {
    float w[taps][P], frequency[P], gain[P];
    load_weight(e.weight, channel, w);
    if constexpr (snake) {
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const SnakeChannel p = snake_channel(e.snake.alpha, e.snake.beta, channel + i, e.snake.log_scale);
        frequency[i] = p.frequency, gain[i] = p.gain;
      }
    }
    const T* const from = e.wide + item * c.wide_time * c.channels + channel;
    const int64_t row = first_row + c.shift + strip * short_strip;
    float* to = parts + strip * sums_of_strip * pitch + column;
    float sums[taps];
#pragma unroll
    for (int k = 0; k < taps; ++k) sums[k] = 0;
    for (int strip_row = 0; strip_row < short_strip; strip_row += taps) {
      uint4 raw[taps];
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        const int64_t at = source_sample(row + strip_row + j, c.wide_time, c.reflect);
        raw[j] = at < 0 ? make_uint4(0, 0, 0, 0) : load_raw_pack<aligned>(from + at * c.channels);
      }
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        Pack<T> v;
        unpack(raw[j], v);
#pragma unroll
        for (int i = 0; i < P; ++i) {
          if constexpr (snake) v.v[i] += vec::sin_squared_pi(frequency[i], v.v[i]) * gain[i];
#pragma unroll
          for (int k = 0; k < taps; ++k) sums[(j + halo - k) % taps] += w[k][i] * v.v[i];
        }
        to[(strip_row + j) * pitch] = sums[j];
        sums[j] = 0;
      }
    }
#pragma unroll
    for (int j = 0; j < halo; ++j) to[(short_strip + j) * pitch] = sums[j];
  }
  __syncthreads();
  const float bias = e.bias == nullptr ? 0.0f : e.bias[0];
  for (int t = static_cast<int>(threadIdx.x); t < count && first_row + t < c.narrow_time; t += threads) {
    const int strip_index = (t + halo) / short_strip, in_strip = (t + halo) - strip_index * short_strip;
    const float* p = parts + (strip_index * sums_of_strip + in_strip) * pitch;
    float sum = 0;
    for (int k = 0; k < c.columns; ++k) sum += p[k];
    if (in_strip < halo && strip_index > 0) {
      p = parts + ((strip_index - 1) * sums_of_strip + short_strip + in_strip) * pitch;
      for (int k = 0; k < c.columns; ++k) sum += p[k];
    }
    const int64_t at = item * c.narrow_time + first_row + t;
    sum += bias;
    e.narrow[at] = store<T>(e.add == nullptr ? sum : sum + to_float(e.add[at]));
  }
}

// ---- weights

constexpr int slots = taps + 1;  // values per channel: the taps, then the sum of the wide side

template <class T>
struct Weights {
  const T *wide, *narrow;
  SnakeParameters snake = {};  ///< Snake is applied to wide
  float* partial = nullptr;    ///< [blocks][slots channels + 1]
  bool narrow_sum = false;
};
inline int64_t partial_size(int64_t channels) { return slots * channels + 1; }

template <class T, bool snake, bool aligned>
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
    const int64_t row = first_row + strip * long_strip;
    const T* const from = e.wide + (item * c.wide_time + row) * c.channels + channel;
    const int rows = c.wide_time - row < long_strip ? static_cast<int>(c.wide_time - row) : long_strip;
    const float* const strip_narrow = narrow + strip * long_strip;
    float window[taps];
#pragma unroll
    for (int j = 0; j < halo; ++j) window[j] = strip_narrow[j];
    for (int strip_row = 0; strip_row < rows; strip_row += taps) {
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        window[(j + halo) % taps] = strip_narrow[strip_row + j + halo];
        Pack<T> v;
        unpack(strip_row + j < rows ? load_raw_pack<aligned>(from + int64_t{strip_row + j} * c.channels)
                                    : make_uint4(0, 0, 0, 0),
               v);
#pragma unroll
        for (int i = 0; i < P; ++i) {
          if constexpr (snake) v.v[i] += vec::sin_squared_pi(frequency[i], v.v[i]) * gain[i];
#pragma unroll
          for (int k = 0; k < 4; ++k) low[k][i] += v.v[i] * window[(j + k) % taps];
#pragma unroll
          for (int k = 4; k < taps; ++k) high[k - 4][i] += v.v[i] * window[(j + k) % taps];
          high[3][i] += v.v[i];
        }
      }
    }
  }
  float* const out = e.partial + int64_t{blockIdx.x} * (slots * c.channels + 1);
  add_strips<T, 4>(c, low, buffer, out, c.channels);
  add_strips<T, 4>(c, high, buffer, out + 4 * c.channels, c.channels);
  if (!e.narrow_sum) return;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < rows_of_block && first_row + i < c.narrow_time; i += threads)
    sum += to_float(narrow_from[first_row + i]);
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

/// Adds the blocks' partial sums in double, in an order fixed by the number of blocks.
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

// ---- launches

template <class T>
Weight<T> weight_of_first(const T* w, bool mirrored) {
  return {w, taps, 1, mirrored};
}
template <class T>
Weight<T> weight_of_last(const T* w, int64_t channels, bool mirrored) {
  return {w, 1, channels, mirrored};
}
unsigned grid_of(int64_t batch, const StripPlan& c) { return static_cast<unsigned>(batch * c.tiles); }

template <class T, bool snake>
void expand(Context& ctx, const char* name, int64_t batch, const Expand<T>& e, const StripPlan& c) {
  const bool aligned = aligned16(e.wide) && aligned16(e.add) && aligned16(e.x);
  launch(ctx, {.name = name, .grid = grid_of(batch, c), .block = threads},
         aligned ? expand_kernel<T, snake, true> : expand_kernel<T, snake, false>, e, c);
}
template <class T, bool snake>
void contract(Context& ctx, const char* name, int64_t batch, const Contract<T>& e, const StripPlan& c) {
  launch(ctx, {.name = name, .grid = grid_of(batch, c), .block = threads},
         aligned16(e.wide) ? contract_kernel<T, snake, true> : contract_kernel<T, snake, false>, e, c);
}
template <class T, bool snake>
void weights(Context& ctx, const char* name, int64_t batch, Weights<T> e, const StripPlan& c, WeightTotals<T> totals) {
  totals.partial = e.partial, totals.parts = batch * c.tiles, totals.channels = c.channels;
  e.narrow_sum = totals.narrow_sum != nullptr;
  launch(ctx, {.name = name, .grid = grid_of(batch, c), .block = threads},
         aligned16(e.wide) ? weights_kernel<T, snake, true> : weights_kernel<T, snake, false>, e, c);
  launch(ctx, {.name = "conv1d_ends_totals", .grid = blocks_for(partial_size(c.channels), 32), .block = 32 * lanes},
         totals_kernel<T>, totals);
}

// The plans of the three kernels, for both layers. `mirrored`: taps run backwards.
int64_t shift_of(const Conv1dGeometry& g, bool mirrored) { return mirrored ? g.left - halo : -g.left; }

template <class T>
StripPlan expand_plan(int64_t wide_time, int64_t narrow_time, int64_t channels, const Conv1dGeometry& g,
                      bool mirrored) {
  return strip_plan<T>(wide_time, narrow_time, channels, wide_time, short_strip, 0, shift_of(g, mirrored),
                       g.padding == Padding::reflect);
}
template <class T>
StripPlan contract_plan(int64_t wide_time, int64_t narrow_time, int64_t channels, const Conv1dGeometry& g,
                        bool mirrored) {
  return strip_plan<T>(wide_time, narrow_time, channels, narrow_time, short_strip, halo, shift_of(g, mirrored),
                       g.padding == Padding::reflect);
}
template <class T>
StripPlan weights_plan(int64_t wide_time, int64_t narrow_time, int64_t channels, const Conv1dGeometry& g,
                       bool mirrored) {
  return strip_plan<T>(wide_time, narrow_time, channels, std::max(wide_time, narrow_time), long_strip, 0,
                       shift_of(g, mirrored), g.padding == Padding::reflect);
}

}  // namespace

template <class T>
bool conv1d_ends_forward(Context& ctx, const Conv1dForward<T>& a) {
  const Shape x = a.x.shape, y = a.y.shape;
  const Conv1dGeometry& g = a.geometry;
  const int64_t channels = wide_channels<T>(x, a.weight.shape, g);
  if (channels == 0) return false;
  if (x.channels == 1) {
    Expand<T> e{.narrow = a.x.data, .weight = weight_of_first(a.weight.data, false)};
    e.bias = a.bias.data, e.add = a.residual.data, e.wide = a.y.data;
    expand<T, false>(ctx, "conv1d_ends_expand", x.batch, e, expand_plan<T>(y.time, x.time, channels, g, false));
  } else {
    Contract<T> e{.wide = a.x.data, .weight = weight_of_last(a.weight.data, channels, false)};
    e.bias = a.bias.data, e.add = a.residual.data, e.narrow = a.y.data;
    contract<T, false>(ctx, "conv1d_ends_contract", x.batch, e, contract_plan<T>(x.time, y.time, channels, g, false));
  }
  return true;
}

template <class T>
bool conv1d_ends_input_gradient(Context& ctx, const Conv1dInputGradient<T>& a) {
  const Shape x = a.dx.shape, y = a.dy.shape;
  const Conv1dGeometry& g = a.geometry;
  const int64_t channels = wide_channels<T>(x, a.weight.shape, g);
  if (channels == 0 || g.padding == Padding::reflect) return false;
  const T* const previous = a.add_dx ? a.dx.data : nullptr;
  if (x.channels == 1) {
    Contract<T> e{.wide = a.dy.data, .weight = weight_of_first(a.weight.data, true)};
    e.bias = a.bias.data, e.add = previous, e.narrow = a.dx.data;
    contract<T, false>(ctx, "conv1d_ends_contract", x.batch, e, contract_plan<T>(y.time, x.time, channels, g, true));
  } else {
    Expand<T> e{.narrow = a.dy.data, .weight = weight_of_last(a.weight.data, channels, true)};
    e.bias = a.bias.data, e.add = previous, e.wide = a.dx.data;
    expand<T, false>(ctx, "conv1d_ends_expand", x.batch, e, expand_plan<T>(x.time, y.time, channels, g, true));
  }
  return true;
}

template <class T>
int64_t conv1d_ends_weight_gradient_scratch(Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  const int64_t channels = wide_channels<T>(x, weight, g);
  const bool first_layer = x.channels == 1;
  if (channels == 0 || (!first_layer && g.padding == Padding::reflect)) return 0;
  const StripPlan c =
      weights_plan<T>(first_layer ? dy.time : x.time, first_layer ? x.time : dy.time, channels, g, !first_layer);
  return x.batch * c.tiles * partial_size(channels);
}
template <class T>
bool conv1d_ends_weight_gradient(Context& ctx, const Conv1dWeightGradient<T>& a) {
  const Shape x = a.x.shape, y = a.dy.shape;
  const Conv1dGeometry& g = a.geometry;
  if (conv1d_ends_weight_gradient_scratch<T>(x, a.dweight.shape, y, g) == 0) return false;
  Weights<T> e{};
  WeightTotals<T> totals{};
  e.partial = a.scratch.data, totals.dweight = a.dweight.data, totals.add = a.add_dweight;
  if (x.channels == 1) {
    e.wide = a.dy.data, e.narrow = a.x.data;
    totals.where = weight_of_first<T>(nullptr, false);
    totals.wide_sum = a.dbias.data, totals.narrow_sum = a.dbias_of_x.data;
    weights<T, false>(ctx, "conv1d_ends_weights", x.batch, e, weights_plan<T>(y.time, x.time, y.channels, g, false),
                      totals);
  } else {
    e.wide = a.x.data, e.narrow = a.dy.data;
    totals.where = weight_of_last<T>(nullptr, x.channels, true);
    totals.wide_sum = a.dbias_of_x.data, totals.narrow_sum = a.dbias.data;
    weights<T, false>(ctx, "conv1d_ends_weights", x.batch, e, weights_plan<T>(x.time, y.time, x.channels, g, true),
                      totals);
  }
  return true;
}

// ---- with Snake in front

namespace {
template <class T>
bool supports_snake(Shape x, Shape weight, const Conv1dGeometry& g) {
  return x.channels > 1 && wide_channels<T>(x, weight, g) != 0 && g.padding == Padding::zero;
}
}  // namespace

template <class T>
bool snake_conv1d_ends_forward(Context& ctx, const SnakeConv1dForward<T>& a) {
  const Shape x = a.x.shape;
  if (!supports_snake<T>(x, a.weight.shape, a.geometry)) return false;
  Contract<T> e{.wide = a.x.data, .weight = weight_of_last(a.weight.data, x.channels, false)};
  e.bias = a.bias.data, e.add = a.residual.data, e.narrow = a.y.data;
  e.snake = {a.alpha.data, a.beta.data, a.log_scale};
  contract<T, true>(ctx, "snake_conv1d_ends_contract", x.batch, e,
                    contract_plan<T>(x.time, a.y.shape.time, x.channels, a.geometry, false));
  return true;
}

template <class T>
int64_t snake_conv1d_ends_input_gradient_scratch(Shape x, Shape weight, Shape dy, const Conv1dGeometry& g) {
  if (!supports_snake<T>(x, weight, g)) return 0;
  return x.batch * expand_plan<T>(x.time, dy.time, x.channels, g, true).tiles * 2 * x.channels;
}
template <class T>
bool snake_conv1d_ends_input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a) {
  const Shape x = a.x.shape;
  if (!supports_snake<T>(x, a.weight.shape, a.geometry)) return false;
  const bool sums = a.dalpha || a.dbeta;
  const StripPlan c = expand_plan<T>(x.time, a.dy.shape.time, x.channels, a.geometry, true);
  Expand<T> e{.narrow = a.dy.data, .weight = weight_of_last(a.weight.data, x.channels, true)};
  e.add = a.add_dx ? a.dx.data : nullptr, e.wide = a.dx.data, e.x = a.x.data;
  e.snake = {a.alpha.data, a.beta.data, a.log_scale};
  e.partial = sums ? a.scratch.data : nullptr;
  expand<T, true>(ctx, "snake_conv1d_ends_expand", x.batch, e, c);
  if (sums)
    snake_parameter_gradients(ctx, a.alpha, a.beta, a.log_scale, a.dalpha, a.dbeta, x.batch * c.tiles, a.scratch.data);
  return true;
}

template <class T>
bool snake_conv1d_ends_weight_gradient(Context& ctx, const SnakeConv1dWeightGradient<T>& a) {
  const Shape x = a.x.shape;
  if (!supports_snake<T>(x, a.dweight.shape, a.geometry)) return false;
  Weights<T> e{.wide = a.x.data, .narrow = a.dy.data, .snake = {a.alpha.data, a.beta.data, a.log_scale}};
  WeightTotals<T> totals{};
  e.partial = a.scratch.data, totals.dweight = a.dweight.data, totals.narrow_sum = a.dbias.data;
  totals.add = a.add_dweight;
  totals.where = weight_of_last<T>(nullptr, x.channels, true);
  weights<T, true>(ctx, "snake_conv1d_ends_weights", x.batch, e,
                   weights_plan<T>(x.time, a.dy.shape.time, x.channels, a.geometry, true), totals);
  return true;
}

#define NACRE_INSTANTIATE(T)                                                                                \
  template bool conv1d_ends_forward<T>(Context&, const Conv1dForward<T>&);                                  \
  template bool conv1d_ends_input_gradient<T>(Context&, const Conv1dInputGradient<T>&);                     \
  template int64_t conv1d_ends_weight_gradient_scratch<T>(Shape, Shape, Shape, const Conv1dGeometry&);      \
  template bool conv1d_ends_weight_gradient<T>(Context&, const Conv1dWeightGradient<T>&);                   \
  template bool snake_conv1d_ends_forward<T>(Context&, const SnakeConv1dForward<T>&);                       \
  template int64_t snake_conv1d_ends_input_gradient_scratch<T>(Shape, Shape, Shape, const Conv1dGeometry&); \
  template bool snake_conv1d_ends_input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&);          \
  template bool snake_conv1d_ends_weight_gradient<T>(Context&, const SnakeConv1dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
