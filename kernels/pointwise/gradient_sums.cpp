#include "nacre/ops/gradient_sums.h"

#include "runtime/host.h"

// Dispatch to gradient_sums.cu. Nothing to do on the CPU, where gradients are added at once
// (nacre/ops/gradient_sums.h).
namespace nacre {
namespace cuda {
void finish_gradient_sums(Context&);
void forget_gradient_sums(Context&) noexcept;
}  // namespace cuda

void finish_gradient_sums(Context& ctx) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) cuda::finish_gradient_sums(ctx);
}
void forget_gradient_sums(Context& ctx) noexcept {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) cuda::forget_gradient_sums(ctx);
}

}  // namespace nacre
