#pragma once
#include "nacre/context.h"
namespace nacre {
template <class T>
struct EluForward {
  View<const T> x;
  View<T> y;  ///< may be x
  float alpha = 1.0f;
};
template <class T>
struct EluBackward {
  View<const T> y;  ///< the forward's output is all that is kept
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
