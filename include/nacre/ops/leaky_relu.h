#pragma once
#include "nacre/context.h"
namespace nacre {
template <class T>
struct LeakyReluForward {
  View<const T> x;
  View<T> y;  ///< may be x
  float slope = 0.1f;
};
template <class T>
struct LeakyReluBackward {
  View<const T> y;  ///< the forward's output is all that is kept
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
