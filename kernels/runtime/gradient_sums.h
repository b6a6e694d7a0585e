#pragma once
// Sums over the parts that kernels left of the gradients of parameters: pointwise/gradient_sums.cu adds the parts of up
// to 60 of them in one launch. A context keeps those that wait for finish_gradient_sums().
#include <cstdint>

#include "nacre/context.h"

namespace nacre::cuda {

/// The kernel's way to add the parts of a sum: a thread per element or pack of four, or a block per few columns.
enum class SumBy : uint8_t { element, pack, columns, snake };

/// to[i] = (or += with `add`) the sum of partial[p][i] over the parts p, i in [0, n). For SumBy::snake the parts are
/// [parts][2][n]: sums of g x sin(2 a x) / 2 and of g sin^2(a x), of which dalpha (`to`) and dbeta are computed.
struct GradientSum {
  const float* partial = nullptr;
  float* to = nullptr;     ///< may be null for SumBy::snake
  float* dbeta = nullptr;  ///< these three are of SumBy::snake
  const float *alpha = nullptr, *beta = nullptr;
  int64_t n = 0;
  int parts = 0;
  unsigned first_block = 0;  ///< of the launch
  SumBy by = SumBy::element;
  bool add = false, log_scale = false;
};

/// A parameter of the kernel, which may have 4 KiB in all.
struct SumBatch {
  static constexpr int most = 60;
  GradientSum sums[most];
  int count = 0;
  unsigned blocks = 0;
};
static_assert(sizeof(SumBatch) <= 4096);

/// Second stage of a sum: to[i] = (or += with `add`) the sum of `parts` parts of n floats each, in double, in an order
/// fixed by `parts`. later: waits for finish_gradient_sums().
void add_parts(Context&, const float* partial, int64_t parts, int64_t n, float* to, bool add, bool later = false);
/// dalpha and dbeta +=, from partial [parts][2][channels]; see GradientSum.
void snake_parameter_gradients(Context&, View<const float> alpha, View<const float> beta, bool log_scale,
                               View<float> dalpha, View<float> dbeta, int64_t parts, const float* partial,
                               bool later = false);

}  // namespace nacre::cuda
