#pragma once
#include "nacre/context.h"
// Sum of two activations, and accumulation into one: the forward and backward pass of a skip connection.
//
//   forward    y = a + b
//   backward   da = dy or da += dy, db likewise: accumulate() computes either gradient
//   saved      nothing
//   aliasing   add: y may be a or b; accumulate: x and y are the same buffer or do not overlap
//   accuracy   one rounding to float, and one more to bf16 where that is the storage
//   cost       add 12 bytes per element, accumulate 12 (8 without add): bound by memory
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
