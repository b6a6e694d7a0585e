#include "conv/conv1d_ends.cuh"
#include "runtime/gradient_sums.h"

// The forward and the input gradient of the first and the last layer: expand and contract (conv1d_ends.cuh has the idea
// and the counts), each with or without Snake. conv1d_ends_weights.cu is the third kernel.
//
//   layer    forward            input gradient
//   first    expand             contract, taps mirrored
//   last     contract           expand, taps mirrored
//
// In both kernels thread t has pack t % columns of the wide side's channels in strip t / columns of the block. The
// threads of a strip read a row's packs side by side, so accesses of the wide side are coalesced. Threads from strips *
// columns on only take part in barriers and sums.
namespace nacre::cuda::ends {
namespace {

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
/// wide[row, c] = bias[c] + sum over k of w(c, k) narrow[row + shift + k] + add[row, c]. With `snake` this sum, without
/// a bias, is the gradient g at Snake's output, and dx = g (1 + 2 a gain sin cos) + add is stored unless `wide` is
/// null. The terms g x sin cos and g sin^2 are summed for alpha and beta over the block.
///
/// Shared memory holds the samples of the narrow side that the block's rows read, halo included: 4 (32 * 21 + 6) bytes.
/// The seven of a row are in the registers `window`, sample s of the strip at index s % 7. A row loads its last sample
/// over the first one of the row before, so a sample is read from shared memory once per thread. All threads of a strip
/// read the same sample.
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
    // Rows of the strip in [skipped, rows) are stored. `rows` is 0 or less behind the end of the result.
    const float* const from = narrow + strip * short_strip;
    const int64_t row = first_row + strip * short_strip, base = (item * c.wide_time + row) * c.channels + channel;
    const int rows = c.out_end - row < short_strip ? static_cast<int>(c.out_end - row) : short_strip;
    const int skipped =
        c.out_begin > row ? static_cast<int>(c.out_begin - row < short_strip ? c.out_begin - row : short_strip) : 0;
    float window[taps];
#pragma unroll
    for (int j = 0; j < halo; ++j) window[j] = from[j];
    for (int strip_row = 0; strip_row < rows; strip_row += taps) {
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        // Row strip_row + j: strip_row is a multiple of 7, so all indices of `window` are constants.
        const int64_t at = base + int64_t{strip_row + j} * c.channels;
        const bool inside = strip_row + j >= skipped && strip_row + j < rows;
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
          // Rows that are not stored contribute nothing to the sums: g and x count as zero.
          Pack<T> x;
          if (inside) {
            unpack(load_raw_pack<aligned>(e.x + at), x);
          } else {
#pragma unroll
            for (int i = 0; i < P; ++i) x.v[i] = v.v[i] = 0;
          }
#pragma unroll
          for (int i = 0; i < P; ++i) {
            // sin and cos may both have the wrong sign (sin_cos_pi_unsigned): only their products are used.
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

/// The arguments of contract_kernel: narrow[t] = bias + sum over k, c of w(c, k) wide[t + shift + k, c] + add[t].
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
// The most is at 4 packs of channels: 32 strips at a pitch of 5 floats.
constexpr int contract_floats = max_strips * sums_of_strip * 5;  // at most strips * sums_of_strip * (columns | 1)

/// A block begins at row `first_row` of the narrow side, which is first_row + shift of the wide side, and computes
/// count = strips * 21 - 6 results. Its strips cover strips * 21 wide rows.
///
/// Row p of a strip contributes to the results p - 6 to p (tap k to p - k). A thread keeps these seven sums in
/// registers, that of result p - k at index (p + 6 - k) % 7. Row p is the last of result p - 6, whose sum is then
/// written to parts[strip][p][column] and reset for result p + 1. Behind the last row the six sums that the next strip
/// completes are written to rows 21 to 26 of `parts`. So parts[strip][q] belongs to result strip * 21 + q - 6 of the
/// block.
///
/// After the barrier a thread adds the columns of one result, and, for the first six rows of a strip, those that the
/// strip before it left. The first six rows of strip 0 belong to results of the block before, which computes them
/// itself: blocks overlap by the halo. `pitch` is odd, so threads that read neighbouring rows of `parts` are in
/// different banks.
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
      // Seven rows are requested before the first is used, so that the waits for memory overlap.
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
    // The sums of the results that the next strip completes.
#pragma unroll
    for (int j = 0; j < halo; ++j) to[(short_strip + j) * pitch] = sums[j];
  }
  __syncthreads();
  // The columns of a result are added in ascending order: first those of the strip that completes it, then those of the
  // strip before.
  const float bias = e.bias == nullptr ? 0.0f : e.bias[0];
  for (int t = static_cast<int>(threadIdx.x); t < count && first_row + t < c.out_end; t += threads) {
    if (first_row + t < c.out_begin) continue;
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

// ---- launches

// An absent tensor has the address 0 and counts as aligned.
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

}  // namespace

template <class T>
void forward(Context& ctx, const Conv1dForward<T>& a, const StripPlan& c) {
  const int64_t batch = a.x.shape.batch;
  if (a.x.shape.channels == 1) {
    Expand<T> e{.narrow = a.x.data, .weight = weight_of_first(a.weight.data, false)};
    e.bias = a.bias.data, e.add = a.residual.data, e.wide = a.y.data;
    expand<T, false>(ctx, "conv1d_ends_expand", batch, e, c);
  } else {
    Contract<T> e{.wide = a.x.data, .weight = weight_of_last(a.weight.data, c.channels, false)};
    e.bias = a.bias.data, e.add = a.residual.data, e.narrow = a.y.data;
    contract<T, false>(ctx, "conv1d_ends_contract", batch, e, c);
  }
}

template <class T>
void input_gradient(Context& ctx, const Conv1dInputGradient<T>& a, const StripPlan& c) {
  const int64_t batch = a.dx.shape.batch;
  const T* const previous = a.add_dx ? a.dx.data : nullptr;
  if (a.dx.shape.channels == 1) {
    Contract<T> e{.wide = a.dy.data, .weight = weight_of_first(a.weight.data, true)};
    e.bias = a.bias.data, e.add = previous, e.narrow = a.dx.data;
    contract<T, false>(ctx, "conv1d_ends_contract", batch, e, c);
  } else {
    Expand<T> e{.narrow = a.dy.data, .weight = weight_of_last(a.weight.data, c.channels, true)};
    e.bias = a.bias.data, e.add = previous, e.wide = a.dx.data;
    expand<T, false>(ctx, "conv1d_ends_expand", batch, e, c);
  }
}

template <class T>
void forward(Context& ctx, const SnakeConv1dForward<T>& a, const StripPlan& c) {
  Contract<T> e{.wide = a.x.data, .weight = weight_of_last(a.weight.data, c.channels, false)};
  e.bias = a.bias.data, e.add = a.residual.data, e.narrow = a.y.data;
  e.snake = {a.alpha.data, a.beta.data, a.log_scale};
  contract<T, true>(ctx, "snake_conv1d_ends_contract", a.x.shape.batch, e, c);
}

/// Each block leaves a part of the sums for alpha and beta, in `parts` if the caller gave it (they are then added
/// later), else in scratch.
template <class T>
void input_gradient(Context& ctx, const SnakeConv1dInputGradient<T>& a, const StripPlan& c) {
  const int64_t batch = a.x.shape.batch;
  const bool sums = a.dalpha || a.dbeta;
  Expand<T> e{.narrow = a.dy.data, .weight = weight_of_last(a.weight.data, c.channels, true)};
  e.add = a.add_dx ? a.dx.data : nullptr, e.wide = a.dx.data, e.x = a.x.data;
  e.snake = {a.alpha.data, a.beta.data, a.log_scale};
  const bool later = static_cast<bool>(a.parts);
  e.partial = !sums ? nullptr : later ? a.parts.data : a.scratch.data;
  expand<T, true>(ctx, "snake_conv1d_ends_expand", batch, e, c);
  if (sums)
    snake_parameter_gradients(ctx, a.alpha, a.beta, a.log_scale, a.dalpha, a.dbeta, batch * c.tiles, e.partial, later);
}

#define NACRE_INSTANTIATE(T)                                                                  \
  template void forward<T>(Context&, const Conv1dForward<T>&, const StripPlan&);              \
  template void forward<T>(Context&, const SnakeConv1dForward<T>&, const StripPlan&);         \
  template void input_gradient<T>(Context&, const Conv1dInputGradient<T>&, const StripPlan&); \
  template void input_gradient<T>(Context&, const SnakeConv1dInputGradient<T>&, const StripPlan&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda::ends
