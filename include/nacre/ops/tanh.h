#pragma once
#include "nacre/context.h"
namespace nacre {
template <class T>
struct TanhForward {
  View<const T> x;
  View<T> y;  ///< may be x
};
template <class T>
struct TanhBackward {
  View<const T> y;  ///< the forward's output is all that is kept
  View<const T> dy;
  View<T> dx;  ///< = unless add_dx; may be dy
  bool add_dx = false;
};
template <class T = float>
void tanh_forward(Context&, const TanhForward<T>&);
template <class T = float>
void tanh_backward(Context&, const TanhBackward<T>&);
}  // namespace nacre
