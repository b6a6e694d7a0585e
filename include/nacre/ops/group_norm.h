#pragma once
#include "nacre/context.h"
// Group normalisation (Wu and He 2018, arXiv 1803.08494) and layer normalisation over channels (Ba et al. 2016, arXiv
// 1607.06450). The channels form `groups` groups of consecutive channels. A set is normalised as a whole. It has n
// elements: the channels of a group at all positions of an item, or at one position.
//
//   forward    h  = (x - mean) r,  r = 1 / sqrt(var + eps),  var = mean of (x - mean)^2 over the set
//              y  = h gain[c] + bias[c] (+ residual)
//   backward   with d = dy gain[c]:  dx = r (d - mean(d) - h mean(d h)), the means over the set
//              dgain[c] += sum of dy h;  dbias[c] += sum of dy, both over batch, time and width.  The gradient of the
//              residual is dy
//   saved      x, mean and r
//   writes     y, mean and inverse_deviation are =; dx is = unless add_dx; dgain and dbias are +=; an empty output of
//              the backward pass is skipped. Nothing is written if x is empty
//   aliasing   outputs do not overlap inputs
//   order      sums run over parts fixed by the shape, on CUDA also by whether addresses are multiples of 16 bytes:
//              those of mean and variance in double, of differences from an element of the set, so a large mean costs
//              no accuracy of the variance; those of the backward pass in float over at most 32 terms and then in
//              double. Bits do not depend on the number of threads
//   accuracy   with u = 2^-24 and q = |mean| r:  y within u (|gain| (6 |h| + q) + 3 (|gain h| + |bias| + |residual|)),
//              where q comes from the rounding of the mean;  dgain within u times the sum of |dy| (48 |h| + q) and
//              dbias within 48 u times the sum of |dy|, on top of two roundings of the result;  dx within
//              r u (6 |d| + 48 mean|d| + |h| mean(|d| (48 |h| + q)) + |mean(d h)| (8 |h| + q)). Results in bf16
//              are rounded once more. A set that contains a NaN or an infinity gives NaN; so does a set of equal values
//              with eps 0. eps must not be negative
//   cost       forward 12 bytes per float (16 with a residual) over an item, where x is read twice and a large item
//              comes from memory both times; 8 (12) over a position. Backward 20 (x and dy are read twice). Bound by
//              memory where a multiprocessor adds doubles at half the rate of floats (compute capability 8.0, 9.0); on
//              others by the double sums of the forward pass. CUDA: 3 launches over an item and 1 over a position,
//              backward 4 and 3
namespace nacre {

/// What mean and variance are taken over, besides the channels of a group.
enum class NormOver : uint8_t {
  item,     ///< all positions of an item: PyTorch's GroupNorm
  position  ///< one position: PyTorch's LayerNorm over the channels, if there is one group
};

template <class T>
struct GroupNormForward {
  View<const T> x;
  View<const float> gain, bias;  ///< [1, 1, 1, channels]
  View<const T> residual{};      ///< added to the result; may be empty
  View<T> y;
  View<float> mean, inverse_deviation;  ///< group_norm_statistics =
  View<float> scratch{};                ///< group_norm_forward_scratch
  int64_t groups = 1;
  NormOver over = NormOver::item;
  float eps = 1e-5f;
};
template <class T>
struct GroupNormBackward {
  View<const T> x;
  View<const float> gain, mean, inverse_deviation;
  View<const T> dy;
  View<T> dx{};                  ///< = unless add_dx; empty: skipped
  View<float> dgain{}, dbias{};  ///< += ; empty: skipped
  View<float> scratch{};         ///< group_norm_backward_scratch
  int64_t groups = 1;
  NormOver over = NormOver::item;
  bool add_dx = false;
};
/// Shape of mean and inverse_deviation: [batch, 1, 1, groups], or [batch, time, width, groups] over a position.
Shape group_norm_statistics(Shape x, int64_t groups, NormOver);
template <class T>
Shape group_norm_forward_scratch(Context&, Shape x, int64_t groups, NormOver);
template <class T>
Shape group_norm_backward_scratch(Context&, Shape x, int64_t groups, NormOver);
template <class T = float>
void group_norm_forward(Context&, const GroupNormForward<T>&);
template <class T = float>
void group_norm_backward(Context&, const GroupNormBackward<T>&);

}  // namespace nacre
