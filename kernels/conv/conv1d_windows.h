#pragma once
// Convolutions in float for every shape, channels last: each row of y is the product of a window of x with the whole
// weight. Only the windows that reach beyond an end of x are copied, with their padding. Used for the forward, and for
// the input gradient as a convolution of dy with the adjoint weight.
#include <cstdint>

#include "nacre/context.h"

namespace nacre::windows {

/// y row t = sum over k < taps of x row (t stride + k dilation - left) times tap k; rows outside x are zero or
/// reflected.
struct Problem {
  int64_t batch = 0, time = 0, length = 0;  ///< rows of x, rows of y
  int64_t in = 0, out = 0, taps = 0;        ///< floats of a row of x, of y
  int64_t stride = 1, dilation = 1, groups = 1, left = 0;
  bool reflect = false;
  /// The weight is [group][in][taps][out] and its taps run backwards; else it is [group][out][taps][in].
  bool adjoint = false;
  int64_t samples = 1;  ///< samples per row of y; with groups, each sample has the channels of every group
};

struct Arguments {
  const float *x = nullptr, *weight = nullptr;
  const float* bias = nullptr;  ///< [out / samples]; null: none
  float* y = nullptr;
  bool add = false;  ///< y += instead of y =
  float* scratch = nullptr;
};

/// Whether y has so few rows, of all items, that the weight is read in place.
bool is_few(int64_t rows);
/// Whether the weight of one group is copied slice by slice, as for short signals with a heavy weight.
bool by_slices(const Problem&);
/// Floats of scratch that run() needs.
int64_t scratch(const Context&, const Problem&);
/// Computes y. The order of summation is fixed by the problem: slices of the reduced dimension in order, in each slice
/// over taps and channels.
void run(Context&, const Problem&, const Arguments&);

/// to[r][c] = from[r][first + c] for c < n: copies the columns of a group.
void take_columns(Context&, const float* from, int64_t rows, int64_t channels, int64_t first, int64_t n, float* to);

}  // namespace nacre::windows
