#pragma once
#include "nacre/context.h"
// Snake (Ziyin et al. 2020, arXiv 2006.08195) and SnakeBeta (BigVGAN): a periodic activation with one learned frequency
// per channel.
//
//   plain      a = alpha, b = alpha;  beta given: b = beta;  log_scale: a = exp(alpha), b = exp(beta)
//   forward    y  = x + sin^2(a x) / (b + eps)
//   backward   dx = dy (1 + a sin(2 a x) / (b + eps))
namespace nacre {
inline constexpr float snake_eps = 1e-9f;

template <class T>
struct SnakeForward {
  View<const T> x;
  View<const float> alpha;
  View<const float> beta{};  ///< empty: plain Snake, whose amplitude is 1 / alpha
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
  View<float> scratch{};  ///< snake_backward_scratch
  bool log_scale = false, add_dx = false;
};
Shape snake_backward_scratch(Context&, Shape x, bool with_beta);
template <class T = float>
void snake_forward(Context&, const SnakeForward<T>&);
template <class T = float>
void snake_backward(Context&, const SnakeBackward<T>&);
}  // namespace nacre
