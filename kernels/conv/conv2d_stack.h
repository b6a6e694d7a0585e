#pragma once
// Frames of an activation, stacked as channels. With them a two-dimensional convolution is one of conv1d along the
// width.
//
//   stacked[b, t, v, k, i] = x[b, t stride + k dilation - left, first_column + v, i], zero outside of the frames of x
//
// A column of the stacked tensor, one v, has `pitch` elements. Those behind the last tap are zero.
#include "nacre/ops/conv2d.h"

namespace nacre::conv {

struct StackSizes {
  int64_t batch, time, channels;  ///< of x
  int64_t frames, taps;           ///< t < frames, k < taps
  int64_t stride, dilation, left;
  int64_t first_column, columns;
  int64_t pitch;                                            ///< at least taps * channels
  NACRE_HD int64_t row() const { return columns * pitch; }  ///< elements of one b and t
};

/// The columns of a part that take part in the convolution: `count` from column `first` of the part on. The first of
/// them is column `to` of the stacked tensor.
struct PartColumns {
  int64_t first, count, to;
};
template <class T>
NACRE_HD PartColumns columns_of(const Conv2dParts<T>& x, int part, const StackSizes& s) {
  int64_t begin = 0;
  for (int p = 0; p < part; ++p) begin += x.part[static_cast<size_t>(p)].shape.width;
  const int64_t end = begin + x.part[static_cast<size_t>(part)].shape.width, last = s.first_column + s.columns;
  const int64_t from = begin > s.first_column ? begin : s.first_column, to = end < last ? end : last;
  return {from - begin, to > from ? to - from : 0, from - s.first_column};
}

}  // namespace nacre::conv
