#pragma once
#include "nacre/context.h"
// Exponential linear unit (Clevert et al. 2015, arXiv 1511.07289): the activation of EnCodec and SoundStream.
//
//   forward    y  = x where x > 0, else alpha (exp(x) - 1)
//   backward   dx = dy where y > 0, else dy (y + alpha)
//   saved      y, whose sign is that of x because alpha > 0 (checked)
//   writes     dx is = unless add_dx
//   aliasing   y may be x; dx may be dy
//   accuracy   forward within 4 ulp; backward within 2 ulp of dy (y + alpha) for the y given
//   cost       forward 8 bytes and one exponential per element, backward 12 bytes: bound by memory
namespace nacre {
template <class T>
struct EluForward {
  View<const T> x;
  View<T> y;  ///< may be x
  float alpha = 1.0f;
};
template <class T>
struct EluBackward {
  View<const T> y;  ///< the output of the forward pass
  View<const T> dy;
  View<T> dx;  ///< = unless add_dx; may be dy
  float alpha = 1.0f;
  bool add_dx = false;
};
template <class T = float>
void elu_forward(Context&, const EluForward<T>&);
template <class T = float>
void elu_backward(Context&, const EluBackward<T>&);
}  // namespace nacre
