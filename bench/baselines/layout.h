#pragma once
// Layout changes for the baselines, and the comparison of their results with ours. They run at setup and are never
// timed.
#include "nacre/context.h"

namespace nacre::bench {

/// Transposes `from` [batch, rows, columns] to `to` [batch, columns, rows].
template <class T>
void transpose(Context&, const T* from, T* to, int64_t batch, int64_t rows, int64_t columns);

/// to [batch, rows, terms, channels] = from[b, row step + term jump + first, c], with from [batch, time, channels].
/// Elements outside of `from` are zero.
struct Unfold {
  int64_t batch, time, channels;
  int64_t rows, terms, step, jump, first;
  int64_t elements() const { return batch * rows * terms * channels; }
};
template <class T>
void unfold(Context&, const T* from, T* to, const Unfold&);

/// Arranges weights [out, taps, in] so that an input gradient is one matrix product: to [stride, in][terms, out] =
/// weight[o, r + term stride, i]. Elements without a tap are zero.
template <class T>
void phases(Context&, const T* weight, T* to, int64_t out, int64_t taps, int64_t in, int64_t stride, int64_t terms);

/// Returns sqrt(sum (a - b)^2 / sum b^2) over `batch` pieces of n elements. Pieces begin a_pitch and b_pitch elements
/// apart. Waits for the device.
template <class A, class B>
double relative_difference(Context&, const A* a, int64_t a_pitch, const B* b, int64_t b_pitch, int64_t batch,
                           int64_t n);

}  // namespace nacre::bench
