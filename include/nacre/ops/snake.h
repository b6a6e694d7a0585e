#pragma once
#include "nacre/context.h"
// Snake (Ziyin et al. 2020, arXiv 2006.08195) and SnakeBeta (BigVGAN): a periodic activation with one learned frequency
// per channel.
//
//   plain      a = alpha, b = alpha;  beta given: b = beta;  log_scale: a = exp(alpha), b = exp(beta) (plain: b = a)
//   forward    y  = x + sin^2(a x) / (b + eps)
//   backward   dx = dy (1 + a sin(2 a x) / (b + eps))
//              da = sum over batch, time and width of dy x sin(2 a x) / (b + eps)
//              db = sum of -dy sin^2(a x) / (b + eps)^2
//              dalpha = da + db (plain) or da; dbeta = db; log_scale: times a, times b
//   saved      x; y is not enough, because the inverse has no closed form
//   writes     dx is = unless add_dx; dalpha and dbeta are +=; an empty output is skipped
//   aliasing   y may be x if no gradient is needed; dx may be dy
//   order      sums run over blocks of rows fixed by the shape (on CUDA also by the device), in float within a block
//              and in double over blocks
//   accuracy   for |a x| <= 1e4, with u = 2^-24: y within 12 u (|x| (1 + a/b) + 1/b); dx within
//              u |dy| (16 (1 + a/b) + 8 |a x| a/b), the latter from the rounding of the phase; dalpha and dbeta within
//              64 u of the sizes of their terms on top of such errors in each. Beyond 1e4 the phase loses its accuracy,
//              but y stays in [x, x + 1/b]. NaN and infinities in x give NaN
//   cost       forward 8 bytes and about 20 operations per element, backward 12 bytes and about 40: bound by memory
//              beyond the caches
namespace nacre {
inline constexpr float snake_eps = 1e-9f;

template <class T>
struct SnakeForward {
  View<const T> x;
  View<const float> alpha;   ///< [1, 1, 1, channels]
  View<const float> beta{};  ///< the same; empty: plain Snake, whose amplitude is 1 / alpha
  View<T> y;
  bool log_scale = false;
};
template <class T>
struct SnakeBackward {
  View<const T> x;
  View<const float> alpha;
  View<const float> beta{};
  View<const T> dy;
  View<T> dx{};           ///< = unless add_dx; empty: skipped
  View<float> dalpha{};   ///< += ; empty: skipped
  View<float> dbeta{};    ///< += ; empty: skipped
  View<float> scratch{};  ///< snake_backward_scratch; needed for dalpha and dbeta
  View<float> parts{};    ///< snake_backward_parts; in place of scratch, see gradient_sums.h
  bool log_scale = false, add_dx = false;
};
Shape snake_backward_scratch(Context&, Shape x, bool with_beta);
Shape snake_backward_parts(Context&, Shape x, bool with_beta);
template <class T = float>
void snake_forward(Context&, const SnakeForward<T>&);
template <class T = float>
void snake_backward(Context&, const SnakeBackward<T>&);
}  // namespace nacre
