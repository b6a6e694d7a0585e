#pragma once
// Long sums in double, in an order fixed by the length: parts of 32768 elements; in each part 16 running sums (the
// lanes of a vector), added in order; then the parts in order. Partial sums are doubles stored in scratch, an array of
// floats.
#include <cstring>

#include "runtime/host.h"

namespace nacre {

inline constexpr int64_t sum_part = 32768;
inline int64_t sum_parts(int64_t n) { return (n + sum_part - 1) / sum_part; }
/// Floats that hold `count` partials.
inline int64_t partial_floats(int64_t count) { return 2 * count; }
/// The scratch need not be aligned for double.
inline void put_partial(float* scratch, int64_t i, double value) {
  std::memcpy(scratch + 2 * i, &value, sizeof(value));
}
inline double get_partial(const float* scratch, int64_t i) {
  double value;
  std::memcpy(&value, scratch + 2 * i, sizeof(value));
  return value;
}
inline double add_partials(const float* scratch, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += get_partial(scratch, i);
  return sum;
}

/// The sum of squares of one part, on this thread.
double sum_of_squares_part(const float* x, int64_t n);
/// The sum of squares of x; scratch holds partial_floats(sum_parts(n)) floats.
double sum_of_squares(Context&, const float* x, int64_t n, float* scratch);

}  // namespace nacre
