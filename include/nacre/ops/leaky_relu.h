#pragma once
#include "nacre/context.h"
// Leaky rectified linear unit: the activation of the discriminators.
//
//   forward    y  = x where x > 0, else slope x
//   backward   dx = dy where y > 0, else slope dy
//   saved      y, whose sign is that of x because slope > 0 (checked)
//   writes     dx is = unless add_dx
//   aliasing   y may be x; dx may be dy
//   accuracy   one rounding, and one more of the sum with add_dx
//   cost       forward 8 bytes per element, backward 12: bound by memory
namespace nacre {
template <class T>
struct LeakyReluForward {
  View<const T> x;
  View<T> y;  ///< may be x
  float slope = 0.1f;
};
template <class T>
struct LeakyReluBackward {
  View<const T> y;  ///< the output of the forward pass
  View<const T> dy;
  View<T> dx;  ///< = unless add_dx; may be dy
  float slope = 0.1f;
  bool add_dx = false;
};
template <class T = float>
void leaky_relu_forward(Context&, const LeakyReluForward<T>&);
template <class T = float>
void leaky_relu_backward(Context&, const LeakyReluBackward<T>&);
}  // namespace nacre
