#pragma once
#include "nacre/context.h"
// Hyperbolic tangent: the last step of a decoder.
//
//   forward    y  = tanh(x)
//   backward   dx = dy (1 - y^2)
//   saved      y
//   writes     dx is = unless add_dx
//   aliasing   y may be x; dx may be dy
//   accuracy   forward within 3 ulp, backward within 4 ulp of dy (1 - y^2) for the y given
//   cost       forward 8 bytes per element, one exponential and one division; backward 12 bytes: bound by memory
namespace nacre {
template <class T>
struct TanhForward {
  View<const T> x;
  View<T> y;  ///< may be x
};
template <class T>
struct TanhBackward {
  View<const T> y;  ///< the output of the forward pass
  View<const T> dy;
  View<T> dx;  ///< = unless add_dx; may be dy
  bool add_dx = false;
};
template <class T = float>
void tanh_forward(Context&, const TanhForward<T>&);
template <class T = float>
void tanh_backward(Context&, const TanhBackward<T>&);
}  // namespace nacre
