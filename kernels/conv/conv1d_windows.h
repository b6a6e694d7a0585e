#pragma once
// Convolutions of float for every shape, channels last, zero padding: each row of y is a product of the window of x
// under it with the whole weight. Forward, and the input gradient as a forward convolution of dy with the weight turned
// round.
#include <cstdint>

#include "nacre/context.h"

namespace nacre::windows {

/// y row t = sum over k < taps of x row (t stride + k dilation - left) times tap k; rows outside x are zero.
struct Problem {
  int64_t batch = 0, time = 0, length = 0;  ///< rows of x, rows of y
  int64_t in = 0, out = 0, taps = 0;        ///< floats of a row of x, of y
  int64_t stride = 1, dilation = 1, groups = 1, left = 0;
  /// The weight lies as [group][in][taps][out], its last tap comes first; else it is [group][out][taps][in].
  bool turned = false;
  int64_t samples = 1;  ///< that a row of y is made of; with groups, each has its channels of each group
};

struct Arguments {
  const float *x = nullptr, *weight = nullptr;
  const float* bias = nullptr;  ///< [out]; null: none
  float* y = nullptr;
  bool add = false;  ///< y += instead of y =
  float* scratch = nullptr;
};

/// Whether the signal is short and the weight heavy enough to be laid out slice by slice (of one group).
bool by_slices(const Problem&);
/// Floats of scratch that run() needs.
int64_t scratch(const Context&, const Problem&);
/// Every row of y is summed in an order that the problem fixes: by slices of the depth, in each over taps and channels.
void run(Context&, const Problem&, const Arguments&);

/// to[r][c] = from[r][first + c], c < n: the columns of a group.
void take_columns(Context&, const float* from, int64_t rows, int64_t channels, int64_t first, int64_t n, float* to);

}  // namespace nacre::windows
