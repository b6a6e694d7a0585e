#pragma once
// The tiled kernels of conv1d, those for several groups, and sums over partial results.
#include "conv/choose_cuda.h"
#include "runtime/gradient_sums.h"

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
                      bool add_dweight, View<float> dbias, bool later);

}  // namespace nacre::cuda::tile

namespace nacre::cuda::groups {

// Engine::groups. As above, the input gradient leaves out the samples that receive a reflection. The weight gradient
// has its parts of dweight in scratch, and behind them those of dbias, [parts][out]; a single part is written to
// dweight and dbias themselves.
template <class T>
void forward(Context&, const Conv1dForward<T>&, const ProductPlan&);
template <class T>
void input_gradient(Context&, const Conv1dInputGradient<T>&, const ProductPlan&);
template <class T>
void weight_gradient(Context&, const Conv1dWeightGradient<T>&, const WeightPlan&);

}  // namespace nacre::cuda::groups

namespace nacre::cuda {

/// to[c] += the sums of x's columns. `partial` holds column_sum_parts rows. later: see
/// add_parts.
template <class T>
void add_column_sums(Context&, View<const T> x, float* to, float* partial, bool later = false);

}  // namespace nacre::cuda
