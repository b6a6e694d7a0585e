// Sums of squares on the CPU: see sums.h for their order. The device has the same scheme with parts of another size
// (partials.cuh), so the bits of both differ.
#include "runtime/sums.h"

#include <numeric>

#include "runtime/elementwise.h"

namespace nacre {
namespace {

// Sixteen sums whatever the vector width, so the bits are the same for all instruction sets. They are copied to a local
// array, which stays in registers.
NACRE_CLONES void add_squares(const float* __restrict x, double* __restrict lanes, int64_t vectors) {
  double sum[16];
  for (int k = 0; k < 16; ++k) sum[k] = lanes[k];
  for (int64_t i = 0; i < vectors; ++i)
    for (int k = 0; k < 16; ++k) {
      // The square of a float is exact in double, so only additions round.
      const double v = static_cast<double>(x[16 * i + k]);
      sum[k] += v * v;
    }
  for (int k = 0; k < 16; ++k) lanes[k] = sum[k];
}

}  // namespace

double sum_of_squares_part(const float* x, int64_t n) {
  double lanes[16] = {};
  add_squares(x, lanes, n / 16);
  // The rest of the last vector goes to the sums that a whole vector would have used.
  for (int64_t i = n / 16 * 16; i < n; ++i) lanes[i % 16] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::accumulate(lanes, lanes + 16, 0.0);
}

double sum_of_squares(Context& ctx, const float* x, int64_t n, float* scratch) {
  const int64_t parts = sum_parts(n);
  parallel_parts(ctx, parts, [&](int64_t part) {
    const int64_t begin = part * sum_part;
    put_partial(scratch, part, sum_of_squares_part(x + begin, std::min(sum_part, n - begin)));
  });
  return add_partials(scratch, parts);
}

}  // namespace nacre
