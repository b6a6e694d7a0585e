#pragma once
// Convolution loops for what matrix products of whole windows do slowly: weight gradients (all of one group), and few
// output channels. One scheme for all instruction sets: rows are taken in chunks of 128 or 256, a chunk that reaches
// over an edge, is stored as bf16 or does not fill vectors is first written out as float in scratch, and everything
// else is read where it lies. Sums are cut into parts by shape alone, so that bits do not depend on the number of
// threads.
#include "nacre/ops/conv1d.h"

namespace nacre::direct {

int64_t weight_gradient_scratch(const Context&, Shape x, Shape weight, Shape y, const Conv1dGeometry&);
/// a.dweight += ...; biases are not looked at.
template <class T>
void weight_gradient(Context&, const Conv1dWeightGradient<T>& a, float* scratch);

bool takes_forward(Shape x, Shape weight, const Conv1dGeometry&);
int64_t forward_scratch(const Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
void forward(Context&, const Conv1dForward<T>& a, float* scratch);

}  // namespace nacre::direct
