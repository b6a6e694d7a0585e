#pragma once
#include "nacre/context.h"
//   forward    y = a + b      (y may be a or b)
//   backward   da = dy or da += dy: accumulate() is both gradients
namespace nacre {
template <class T>
struct Add {
  View<const T> a, b;
  View<T> y;
};
template <class T>
struct Accumulate {
  View<const T> x;
  View<T> y;
  bool add = true;  ///< y += x; false: y = x
};
template <class T = float>
void add(Context&, const Add<T>&);
template <class T = float>
void accumulate(Context&, const Accumulate<T>&);
}  // namespace nacre
