#pragma once
#include "nacre/context.h"
// Conversion between float and bf16, for layers of different storage types.
//
//   forward    y = x, rounded to nearest even where y is bf16
//   backward   dx = dy or dx += dy: the same op with the types exchanged
//   saved      nothing
//   writes     y is = unless add
//   aliasing   none
//   accuracy   exact to float; one rounding to bf16, of the sum with add
//   cost       6 bytes per element, 8 or 10 with add: bound by memory
namespace nacre {
template <class From, class To>
struct Convert {
  View<const From> x;
  View<To> y;
  bool add = false;
};
template <class From, class To>
void convert(Context&, const Convert<From, To>&);
}  // namespace nacre
