#pragma once
#include "nacre/context.h"
// What lies between the two cascades of a residual quantizer with two rates (nacre/systems/quantizer.h): the rest of the
// latent that the first cascade leaves, the numbers of stages and frames of each cascade, and the order of the codes.
//
//   rest           y = z - p
//   rest_backward  dz = m dy, dp = -m dy, with m = [stages[b] > 0]: an item whose second cascade is not used has no rest
//   split_stages   long = min(stages, long_codebooks), short = max(stages - long_codebooks, 0),
//                  short_frames = frames positions
//   copy_columns   y[row][to + i] = x[row][from + i] for 0 <= i < columns; other columns of y are kept
//   writes         y and the numbers are =; dz and dp are = unless add_dz and add_dp; an empty one is skipped
//   aliasing       rest: y may be z or p; otherwise none
//   order          no sums
//   accuracy       one rounding; with add_dz or add_dp one more. Integers are exact
//   cost           rest 12 bytes per element, rest_backward 12 (20 with both sums): bound by memory
namespace nacre {
struct Rest {
  View<const float> z, p;  ///< [batch, time, width, channels]
  View<float> y;
};
struct RestBackward {
  View<const float> dy;
  View<const int32_t> stages;  ///< [1, 1, 1, batch]: stages of the second cascade
  View<float> dz{}, dp{};
  bool add_dz = false, add_dp = false;
};
struct SplitStages {
  View<const int32_t> stages, frames;  ///< [1, 1, 1, batch]
  View<int32_t> long_stages, short_stages, short_frames;
  int64_t long_codebooks = 0;  ///< stages of the first cascade
  int64_t positions = 1;       ///< rows of the second cascade for one of the first
};
struct CopyColumns {
  View<const int32_t> x;  ///< [batch, time, 1, columns of x]
  View<int32_t> y;        ///< [batch, time, 1, columns of y]
  int64_t from = 0, to = 0, columns = 0;
};
void rest(Context&, const Rest&);
void rest_backward(Context&, const RestBackward&);
void split_stages(Context&, const SplitStages&);
void copy_columns(Context&, const CopyColumns&);
}  // namespace nacre
