#pragma once
// Convolution loops for cases in which matrix products of whole windows (conv1d_windows.h) are slow: weight gradients
// (of one group) and forward layers with few output channels. Rows are processed in chunks of 128 or 256. A chunk that
// reads padding, is stored as bf16 or does not fill vectors is first copied to scratch as float. All other chunks are
// read in place. Sums are divided into parts by shape alone, so that bits do not depend on the number of threads.
#include "nacre/ops/conv1d.h"

namespace nacre::direct {

int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&);
/// a.dweight += ...; bias gradients are not computed.
template <class T>
void weight_gradient(Context&, const Conv1dWeightGradient<T>& a, float* scratch);

/// For layers of one group.
int64_t forward_scratch(const Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
void forward(Context&, const Conv1dForward<T>& a, float* scratch);

}  // namespace nacre::direct
