#pragma once
// The tiled kernels of conv1d, those for several groups, and sums over partial results.
#include "conv/choose_cuda.h"

namespace nacre::cuda::tile {

/// Engine::tiles.
template <class T>
void forward(Context&, const Conv1dForward<T>&, const Shifted&);
/// Engine::tiles. With reflected padding only samples [left + 1, time - 1 - right) are computed: the others also
/// receive the gradient of their reflections.
template <class T>
void input_gradient(Context&, const Conv1dInputGradient<T>&, const Shifted&);
/// Engine::taps or windows: dweight, dbias and dbias_of_x.
template <class T>
void weight_gradient(Context&, const Conv1dWeightGradient<T>&, const conv::WeightGradientChoice&);
/// The second stages of dweight and, if it is wanted, of dbias, for Engine::taps and windows.
void add_weight_parts(Context&, const conv::WeightGradientChoice&, const float* scratch, View<float> dweight,
                      bool add_dweight, View<float> dbias);

}  // namespace nacre::cuda::tile

namespace nacre::cuda::groups {

// Engine::groups. As above, the input gradient leaves out the samples that receive a reflection. The weight gradient has
// its parts of dweight in scratch, and behind them those of dbias, [parts][out]; a single part is written to dweight and
// dbias themselves.
template <class T>
void forward(Context&, const Conv1dForward<T>&, const ProductPlan&);
template <class T>
void input_gradient(Context&, const Conv1dInputGradient<T>&, const ProductPlan&);
template <class T>
void weight_gradient(Context&, const Conv1dWeightGradient<T>&, const WeightPlan&);

}  // namespace nacre::cuda::groups

namespace nacre::cuda {

/// Second stage of a sum: to[i] = (or += with `add`) the sum of `parts` parts of n floats each, in double, in their
/// order.
void add_parts(Context&, const float* partial, int64_t parts, int64_t n, float* to, bool add);
/// to[c] += the sums of x's columns. `partial` holds column_sum_parts rows.
template <class T>
void add_column_sums(Context&, View<const T> x, float* to, float* partial);

}  // namespace nacre::cuda
