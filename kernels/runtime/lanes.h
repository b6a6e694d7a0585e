#pragma once
// Vectors of a fixed number of floats, for loops that are compiled once per instruction set.
#include <cstdint>
#include <utility>

#include "runtime/inline.h"

namespace nacre {

// `aligned(4)`: loads and stores take any float's address. `may_alias`: the memory is declared as floats.
template <int lanes>
struct Vector {
  typedef float Type __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
};
template <int lanes>
NACRE_INLINE typename Vector<lanes>::Type& at(float* p) {
  return *reinterpret_cast<typename Vector<lanes>::Type*>(p);
}
template <int lanes>
NACRE_INLINE const typename Vector<lanes>::Type& at(const float* p) {
  return *reinterpret_cast<const typename Vector<lanes>::Type*>(p);
}

/// The shuffle mask that takes from two rows h apart the columns whose bit h is 0 (`high` = 0) or 1.
template <int lanes>
struct Mask {
  typedef int Type __attribute__((vector_size(4 * lanes)));
};
template <int lanes, int h, int high, int... j>
NACRE_INLINE void shuffle_mask(typename Mask<lanes>::Type& to, std::integer_sequence<int, j...>) {
  // Indices below `lanes` choose from the first operand of the shuffle, the others from the second. Low: columns
  // with bit h = 0 stay, those with bit h = 1 come from column j - h of the second row. High: columns with bit h = 0
  // come from column j + h of the first row, those with bit h = 1 stay in the second.
  to = typename Mask<lanes>::Type{((j & h) != 0 ? lanes + j - h + high * h : j + high * h)...};
}
/// Transposes by exchanging off-diagonal blocks of h by h, for h = lanes / 2, ..., 1.
template <int lanes, int h = lanes / 2>
NACRE_INLINE void exchange(typename Vector<lanes>::Type* rows) {
  typename Mask<lanes>::Type low, high;
  shuffle_mask<lanes, h, 0>(low, std::make_integer_sequence<int, lanes>());
  shuffle_mask<lanes, h, 1>(high, std::make_integer_sequence<int, lanes>());
  // Rows i and i + h, where bit h of i is 0, exchange their columns: element (i, j + h) and element (i + h, j) change
  // places. After all h, element (i, j) is where (j, i) was.
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    if ((i & h) != 0) continue;
    const auto a = rows[i], b = rows[i + h];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + h] = __builtin_shuffle(a, b, high);
  }
  if constexpr (h > 1) exchange<lanes, h / 2>(rows);
}

}  // namespace nacre
