#pragma once
#include "nacre/context.h"
// Removes the mean of every item and scales it to a fixed peak: the conditioning of audio in front of DAC's
// discriminators (Kumar et al. 2023, arXiv 2306.06546, published code).
//
//   forward    u[b, t] = x[b, t] - mean_t x[b, t];  m[b] = max_t |u[b, t]|;  y[b, t] = peak u[b, t] / (m[b] + eps)
//   backward   with s = peak / (m + eps), p the first position of the peak:
//              du[b, t] = s dy[b, t] - [t = p] sign(u[b, p]) s / (m + eps) sum_t dy[b, t] u[b, t]
//              dx[b, t] = du[b, t] - mean_t du[b, t]
//   saved      x and statistics
//   writes     y and statistics are =; dx is = unless add_dx
//   aliasing   none
//   order      means and sums in double, over parts fixed by the shape
//   accuracy   u = 2^-24. y within 6 u |y| + 2^-39 peak max |x| / (m + eps); dx within 8 u of the sum of the sizes of
//              its terms where max |x| is below 2^10 m. A constant item gives zeros (NaN with eps 0). A NaN or an
//              infinity makes its item NaN
//   cost       forward reads x three times and writes y; backward reads x and dy twice and writes dx: bound by memory
namespace nacre {
struct LevelForward {
  View<const float> x;     ///< [batch, time, 1, 1]; time below 2^31
  View<float> y;           ///< the same
  View<float> statistics;  ///< level_statistics =
  View<float> scratch{};   ///< level_scratch
  float peak = 0.8f, eps = 1e-9f;
};
struct LevelBackward {
  View<const float> x;
  View<const float> statistics;  ///< of the forward pass
  View<const float> dy;
  View<float> dx;
  View<float> scratch{};  ///< level_scratch
  float peak = 0.8f, eps = 1e-9f;
  bool add_dx = false;
};
/// [batch, 1, 1, 4]: mean, peak m, position of the peak (as the bits of an int32), what rounding took from the mean.
Shape level_statistics(Shape x);
Shape level_scratch(Context&, Shape x);
void level_forward(Context&, const LevelForward&);
void level_backward(Context&, const LevelBackward&);
}  // namespace nacre
