#pragma once
// What baselines need to take nacre's tensors, and to show that they compute the same. Made at setup, never timed.
#include "nacre/context.h"

namespace nacre::bench {

/// to [batch, columns, rows] = from [batch, rows, columns].
template <class T>
void transpose(Context&, const T* from, T* to, int64_t batch, int64_t rows, int64_t columns);

/// to [batch, rows, terms, channels] = from[b, row step + term jump + first, c] of [batch, time, channels]; else zero.
struct Unfold {
  int64_t batch, time, channels;
  int64_t rows, terms, step, jump, first;
  int64_t elements() const { return batch * rows * terms * channels; }
};
template <class T>
void unfold(Context&, const T* from, T* to, const Unfold&);

/// The weights [out, taps, in] of an input gradient as one matrix product:
/// to [stride, in][terms, out] = weight[o, r + term stride, i]; zero where that is no tap.
template <class T>
void phases(Context&, const T* weight, T* to, int64_t out, int64_t taps, int64_t in, int64_t stride, int64_t terms);

/// sqrt(sum (a - b)^2 / sum b^2) over `batch` pieces of n elements, which begin a_pitch and b_pitch apart. Waits.
template <class A, class B>
double relative_difference(Context&, const A* a, int64_t a_pitch, const B* b, int64_t b_pitch, int64_t batch,
                           int64_t n);

}  // namespace nacre::bench
