#pragma once
#include <memory>

#include "nacre/context.h"
// Short-time Fourier transform of real signals and its adjoint (not its inverse).
//
//   frame f of item b starts at f hop - window / 2 (centred); samples outside are reflected or zero
//   X[b, f, k] = sum_n h[n] x[b, f hop - window / 2 + n] exp(-2 pi i k n / window),  k = 0 .. window / 2, h = periodic
//   Hann frames = 1 + floor(time / hop) adjoint: dx = gradient of sum Re(conj(dX) X) for dX over the real and imaginary
//   parts as independent outputs
namespace nacre {
enum class StftPadding : uint8_t { reflect, zero };
struct StftGeometry {
  int64_t window = 1024, hop = 256;
  StftPadding padding = StftPadding::reflect;
  bool operator==(const StftGeometry&) const = default;
};
int64_t stft_frames(int64_t time, const StftGeometry&);

/// Window, transform and work area for one shape; made once, at planning time.
class StftPlan {
 public:
  StftPlan(Context&, Shape signal, StftGeometry);
  StftPlan(StftPlan&&) noexcept;
  StftPlan& operator=(StftPlan&&) noexcept;
  ~StftPlan();
  Shape signal() const noexcept;    ///< [batch, time, 1, 1]
  Shape spectrum() const noexcept;  ///< [batch, frames, bins, 2]: real and imaginary part innermost
  StftGeometry geometry() const noexcept;
  struct Impl;
  Impl& impl() const noexcept { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};
struct StftForward {
  const StftPlan& plan;
  View<const float> x;
  View<float> spectrum;
};
struct StftAdjoint {
  const StftPlan& plan;
  View<const float> dspectrum;
  View<float> dx;
  bool add_dx = false;
};
void stft_forward(Context&, const StftForward&);
void stft_adjoint(Context&, const StftAdjoint&);
}  // namespace nacre
