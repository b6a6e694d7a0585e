#pragma once
#include <memory>

#include "nacre/context.h"
// Short-time Fourier transform of real signals and its adjoint (not its inverse).
//
//   frames     1 + floor(time / hop); frame f starts at sample f hop - window / 2, so that it is centred on f hop.
//              With `aligned`: ceil(time / hop); frame f starts at sample f hop - (window - hop) / 2, so that the hops
//              of the frames divide the signal (the spectrogram of DAC's discriminators).
//              Samples outside are zero, or reflected without repeating the ends (several times if the signal is
//              shorter than what frames reach past its ends).
//              With `inside`: 1 + floor((time - window) / hop); frame f starts at sample f hop, and no frame reaches
//              past the ends, so `padding` is not used. Samples behind the last frame are in no frame
//   forward    X[b, f, k] = sum_n h[n] x[b, start of f + n] exp(-2 pi i k n / window),  k = 0 .. window / 2
//              h[n] = 1/2 - 1/2 cos(2 pi n / window), the periodic Hann window; with `normalised`, divided by
//              sqrt(sum h^2) = sqrt(3 window / 8), so that white noise of variance v has |X|^2 = v in the mean
//   adjoint    dx[t] = sum over all (f, n) that read x[t] of h[n] sum_k (Re D cos(2 pi k n / window) - Im D sin(...)):
//              the gradient of sum (Re D Re X + Im D Im X), real and imaginary part taken as independent outputs
//   saved      nothing; both directions are linear
//   writes     spectrum is =; dx is = unless add_dx
//   aliasing   none
//   order      every sample adds its frames in ascending order, then its reflections: bits do not depend on threads
//   accuracy   |error of a bin| <= 4 (1 + log2 window) 2^-24 |h x|_2 of its frame; the spectrum of a frame of zeros is
//              exactly zero
//   cost       2.5 window log2 window operations per frame
//   plan       window: even, from 4, prime factors 2, 3 and 5. A plan owns its work areas, so it serves one call at a
//              time. The context must be on the plan's device and have at most as many threads as the one that made the
//              plan. CUDA uses cuFFT, for signals of at most 2^28 samples
namespace nacre {
enum class StftPadding : uint8_t { reflect, zero };
struct StftGeometry {
  int64_t window = 1024, hop = 256;
  StftPadding padding = StftPadding::reflect;
  bool aligned = false;     ///< window - hop must be even and not negative
  bool inside = false;      ///< frames within the signal only; time must be at least window, and aligned is false
  bool normalised = false;  ///< the window has the L2 norm 1
  bool operator==(const StftGeometry&) const = default;
};
/// Throws Error(usage) for a time or a hop below 1, for aligned frames that window and hop do not allow, and for frames
/// inside a signal that is shorter than one window.
int64_t stft_frames(int64_t time, const StftGeometry&);

/// Window, transform and work areas for one shape; made once, before the first step.
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
