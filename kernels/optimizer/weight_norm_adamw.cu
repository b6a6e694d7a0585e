#include "nacre/ops/weight_norm_adamw.h"

#include "optimizer/adamw.cuh"
#include "optimizer/weight_norm.cuh"

// Six launches:
//
//   norm_rows, norm_rest     squared norms of the gradient, per row and per block of the rest
//   begin                    their sum, and the factors of the step
//   rows, short_rows         update of long and of short rows, and their new weights
//   rest                     update of the rest
//
// With dg = dw . v / |v| and dv = g / |v| (dw - dg v / |v|), |dv|^2 = (g / |v|)^2 (|dw|^2 - dg^2): the norm of the
// gradient needs no dv, which is never stored. A row stays in registers between its update and its new norm. A row
// without a gain has g / |v| = 1 and dg = 0: dv = dw.
// Scratch, in floats: [16] AdamWStep, [4 rows] RowSums, [2 (rows + blocks of the rest)] partial sums of squares.
namespace nacre::cuda {
namespace {

/// Sums of a row from norm_rows that its update needs.
struct RowSums {
  double inverse;  ///< 1 / |v|, or 0 without a direction; 1 without a gain
  double dg;       ///< 0 without a gain
};
static_assert(sizeof(RowSums) == 16);

/// One row: sums[index] for the update, and partials[index] = |dv|^2 + dg^2, its part of the squared norm. A row
/// without a direction has no gradient.
template <class Team, class T>
__device__ __forceinline__ void norm_row(const WeightNormAdamW<T>& a, const Team& team, int64_t index,
                                         const WeightRow& row, RowSums* sums, float* partials) {
  const float *const v = a.adamw.value.data + row.offset, *const dw = a.dw.data + row.offset;
  // In double: the two terms of |dv|^2 cancel when dw is nearly parallel to v.
  double vv = 0, vd = 0, dd = 0;
  const auto add = [&](float x, float d) {
    vv += static_cast<double>(x) * static_cast<double>(x);
    vd += static_cast<double>(x) * static_cast<double>(d);
    dd += static_cast<double>(d) * static_cast<double>(d);
  };
  if (row_vectorizable(row.length, v) && row_vectorizable(row.length, dw)) {
    for (int64_t i = int64_t{team.thread} * 4; i < row.length; i += Team::threads * 4) {
      const Pack<float> x = load_pack(v + i), d = load_pack(dw + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) add(x.v[k], d.v[k]);
    }
  } else {
    for (int64_t i = team.thread; i < row.length; i += Team::threads) add(v[i], dw[i]);
  }
  vv = team.sum(vv);
  vd = team.sum(vd);
  dd = team.sum(dd);
  if (team.thread != 0) return;
  if (row.gain == WeightRow::no_gain) {
    sums[index] = {1, 0};
    put_partial(partials, index, dd);
    return;
  }
  // across = |dw|^2 - dg^2: the square of the part of dw that is perpendicular to v.
  const double inverse = inverse_norm(vv), dg = vd * inverse;
  const double factor = static_cast<double>(a.adamw.value.data[a.directions + row.gain]) * inverse;
  const double across = dd - dg * dg;
  sums[index] = {inverse, dg};
  // If dw is parallel to v, rounding may make `across` negative. The comparison keeps a NaN.
  put_partial(partials, index, inverse == 0 ? 0.0 : factor * factor * (across < 0 ? 0.0 : across) + dg * dg);
}

template <class T>
__global__ void __launch_bounds__(row_threads)
    norm_rows_kernel(WeightNormAdamW<T> a, int per_block, RowSums* sums, float* partials) {
  each_row(a.rows, per_block, [&](const auto& team, int64_t index, const WeightRow& row) {
    norm_row(a, team, index, row, sums, partials);
  });
}

constexpr int register_packs = 7;  // per thread: rows up to 7168 weights are read once, longer ones again from L2
static_assert(warp_row == register_packs * 32 * 4);

/// AdamW for one row and its gain, then w = g v / |v| from the new values. In order: the update of v, whose new
/// elements stay in registers and are summed in `square`; the sum over the team; the update of the gain by thread 0,
/// which shares the new factor; w by all threads. `square` is rounded as in row_dot (see add_products).
/// vectorized: the row is accessed four elements at a time.
template <bool vectorized, bool with_ema, class Team, class T>
__device__ __forceinline__ void update_row(const WeightNormAdamW<T>& a, const Team& team, const WeightRow& row,
                                           const RowSums& sums, const AdamWStep& step) {
  constexpr int threads = Team::threads;
  constexpr int size = vectorized ? 4 : 1;
  float *const value = a.adamw.value.data + row.offset, *const m = a.adamw.m.data + row.offset;
  float *const v = a.adamw.v.data + row.offset, *const ema = with_ema ? a.adamw.ema.data + row.offset : nullptr;
  const float* const dw = a.dw.data + row.offset;
  // Among the directions if the row has no gain. A flag of its own would be a register too many.
  const int64_t gain_at = a.directions + row.gain;
  const double factor = gain_at < a.directions ? 1 : static_cast<double>(a.adamw.value.data[gain_at]) * sums.inverse;
  const float of_dw = static_cast<float>(factor), of_v = static_cast<float>(factor * sums.dg * sums.inverse);
  // team.sum() below is a barrier, so every thread has read the old gain before thread 0 replaces it.
  float square = 0;
  Pack<float> in_registers[register_packs];
  const auto update = [&](int64_t i) {
    Pack<float> x{}, d{}, mi{}, vi{}, e{};
    if constexpr (vectorized) {
      x = load_pack(value + i), d = load_pack(dw + i), mi = load_pack(m + i), vi = load_pack(v + i);
      if (with_ema) e = load_pack(ema + i);
    } else {
      x.v[0] = value[i], d.v[0] = dw[i], mi.v[0] = m[i], vi.v[0] = v[i];
      if (with_ema) e.v[0] = ema[i];
    }
#pragma unroll
    for (int k = 0; k < size; ++k) {
      const float gradient = sums.inverse == 0 ? 0.0f : of_dw * d.v[k] - of_v * x.v[k];
      x.v[k] = adamw_update(x.v[k], gradient, mi.v[k], vi.v[k], step);
      if (with_ema) e.v[k] += step.ema_rate * (x.v[k] - e.v[k]);
    }
    square = vectorized ? add_products(square, x, x) : __fmaf_rn(x.v[0], x.v[0], square);
    if constexpr (vectorized) {
      store_pack(value + i, x), store_pack(m + i, mi), store_pack(v + i, vi);
      if (with_ema) store_pack(ema + i, e);
    } else {
      value[i] = x.v[0], m[i] = mi.v[0], v[i] = vi.v[0];
      if (with_ema) ema[i] = e.v[0];
    }
    return x;
  };
#pragma unroll
  for (int k = 0; k < register_packs; ++k) {
    const int64_t i = (int64_t{team.thread} + k * threads) * size;
    in_registers[k] = i < row.length ? update(i) : Pack<float>{};
  }
  // Elements that the registers do not hold: updated here, and read again below by the thread that stored them.
  const int64_t beyond = (int64_t{team.thread} + register_packs * threads) * size;
  for (int64_t i = beyond; i < row.length; i += threads * size) update(i);
  // The norm of the new direction.
  const double inverse = inverse_norm(team.sum(static_cast<double>(square)));
  float scale = 1;
  if (gain_at >= a.directions && team.thread == 0) {
    float gain = a.adamw.value.data[gain_at], mi = a.adamw.m.data[gain_at], vi = a.adamw.v.data[gain_at];
    gain = adamw_update(gain, static_cast<float>(sums.dg), mi, vi, step);
    a.adamw.value.data[gain_at] = gain, a.adamw.m.data[gain_at] = mi, a.adamw.v.data[gain_at] = vi;
    if (with_ema) {
      float& e = a.adamw.ema.data[gain_at];
      e += step.ema_rate * (gain - e);
    }
    scale = static_cast<float>(static_cast<double>(gain) * inverse);
  }
  // From thread 0, which alone has the new gain; 1 without a gain.
  scale = team.shared(scale);
  T* const w = a.w.data + row.offset;
  const auto write = [&](int64_t i, Pack<float> x) {
    if constexpr (vectorized) {
#pragma unroll
      for (int k = 0; k < 4; ++k) x.v[k] *= scale;
      if constexpr (sizeof(T) == 4)
        store_pack(w + i, x);
      else
        *reinterpret_cast<uint2*>(w + i) = make_uint2(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]));
    } else {
      w[i] = store<T>(scale * x.v[0]);
    }
  };
#pragma unroll
  for (int k = 0; k < register_packs; ++k) {
    const int64_t i = (int64_t{team.thread} + k * threads) * size;
    if (i < row.length) write(i, in_registers[k]);
  }
  for (int64_t i = beyond; i < row.length; i += threads * size) {  // stored by this thread above
    if constexpr (vectorized)
      write(i, load_pack(value + i));
    else
      write(i, Pack<float>{{value[i], 0, 0, 0}});
  }
}

/// Updates long rows or short ones. One kernel for both would need more registers, so that only two blocks instead of
/// three would fit on a multiprocessor.
template <bool long_rows, bool with_ema, class T>
__global__ void __launch_bounds__(row_threads, long_rows ? 3 : 2)
    update_rows_kernel(WeightNormAdamW<T> a, int per_block, const RowSums* sums, const AdamWStep* shared_step) {
  const AdamWStep step = *shared_step;
  if (step.apply == 0) return;  // the same for the whole block
  const auto work = [&](const auto& team, int64_t index, const WeightRow& row) {
    const bool vectorized = row_vectorizable(row.length, a.adamw.value.data + row.offset) &&
                            row_vectorizable(row.length, a.dw.data + row.offset) &&
                            row_vectorizable(row.length, a.adamw.m.data + row.offset) &&
                            row_vectorizable(row.length, a.adamw.v.data + row.offset) &&
                            row_vectorizable(row.length, a.w.data + row.offset) &&
                            (!with_ema || row_vectorizable(row.length, a.adamw.ema.data + row.offset));
    if (vectorized)
      update_row<true, with_ema>(a, team, row, sums[index], step);
    else
      update_row<false, with_ema>(a, team, row, sums[index], step);
  };
  if constexpr (long_rows)
    each_long_row(a.rows, per_block, work);
  else
    each_short_row(a.rows, per_block, work);
}

/// Plain AdamW for the elements from `first` on, which belong to no row.
template <bool with_ema>
__global__ void __launch_bounds__(256) update_rest_kernel(AdamW a, int64_t first, const AdamWStep* shared_step) {
  const AdamWStep step = *shared_step;
  if (step.apply == 0) return;
  for (int64_t i = first + grid_thread(); i < a.value.elements(); i += grid_threads()) {
    float m = a.m.data[i], v = a.v.data[i];
    const float x = adamw_update(a.value.data[i], a.grad.data[i], m, v, step);
    a.value.data[i] = x, a.m.data[i] = m, a.v.data[i] = v;
    if (with_ema) a.ema.data[i] += step.ema_rate * (x - a.ema.data[i]);
  }
}

}  // namespace

Shape weight_norm_adamw_scratch(Shape value, int64_t directions, int64_t gains, int64_t rows) {
  const int64_t rest = value.elements() - directions - gains;
  return {.channels = adamw_step_floats + 4 * rows + 2 * (rows + sum_parts(rest))};
}

template <class T>
void weight_norm_adamw(Context& ctx, const WeightNormAdamW<T>& a) {
  const int64_t rows = a.rows.elements(), first = a.directions + a.gains, rest = a.adamw.value.elements() - first;
  auto* const step = reinterpret_cast<AdamWStep*>(a.adamw.scratch.data);
  auto* const sums = reinterpret_cast<RowSums*>(a.adamw.scratch.data + adamw_step_floats);
  float* const partials = a.adamw.scratch.data + adamw_step_floats + 4 * rows;
  const auto rest_blocks = static_cast<unsigned>(sum_parts(rest));
  const int per_block = rows_per_block(ctx, rows);
  const unsigned row_blocks = blocks_for(rows, per_block);
  launch(ctx, {.name = "weight_norm_adamw_norm_rows", .grid = row_blocks, .block = row_threads}, norm_rows_kernel<T>, a,
         per_block, sums, partials);
  launch(ctx, {.name = "weight_norm_adamw_norm_rest", .grid = rest_blocks, .block = sum_threads}, adamw_norm_kernel,
         a.adamw.grad.data + first, rest, partials + 2 * rows);
  launch(
      ctx, {.name = "weight_norm_adamw_begin", .block = sum_threads}, adamw_begin_kernel, partials, rows + rest_blocks,
      AdamWHyper{a.adamw.beta1, a.adamw.beta2, a.adamw.eps, a.adamw.weight_decay, a.adamw.max_norm, a.adamw.ema_decay},
      a.adamw.scalars.data, step);
  launch(ctx, {.name = "weight_norm_adamw_rows", .grid = row_blocks, .block = row_threads},
         a.adamw.ema ? update_rows_kernel<true, true, T> : update_rows_kernel<true, false, T>, a, per_block, sums,
         step);
  launch(ctx, {.name = "weight_norm_adamw_short_rows", .grid = row_blocks, .block = row_threads},
         a.adamw.ema ? update_rows_kernel<false, true, T> : update_rows_kernel<false, false, T>, a, per_block, sums,
         step);
  launch(ctx, {.name = "weight_norm_adamw_rest", .grid = blocks_for(rest, 256), .block = 256},
         a.adamw.ema ? update_rest_kernel<true> : update_rest_kernel<false>, a.adamw, first, step);
}

template void weight_norm_adamw<float>(Context&, const WeightNormAdamW<float>&);
template void weight_norm_adamw<bf16>(Context&, const WeightNormAdamW<bf16>&);

}  // namespace nacre::cuda
