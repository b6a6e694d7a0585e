#include "nacre/ops/stft.h"

#include "spectral/spectral_frames.cuh"

// stft on the device (contract: nacre/ops/stft.h; twin: stft.cpp). Forward: frames, then cuFFT. Adjoint: halved
// spectrum, cuFFT, overlap-add, which applies the window. A frame of N samples moves 4 N bytes each to write and to
// read the windowed frame and for the spectrum, besides the signal.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;

/// Table of the window, frames of all items [batch frames][window], and a spectrum: the halved copy of the adjoint, and
/// the output of cuFFT if the caller's is not aligned.
struct Device : DevicePlan {
  Device(Context& ctx, const StftPlan::Impl& p)
      : window(table(ctx, p.transform.hann())),
        rows(ctx, static_cast<size_t>(p.signal.batch * p.frames * p.geometry.window) * sizeof(float)),
        spectrum(ctx, static_cast<size_t>(p.spectrum().elements()) * sizeof(float)),
        fft(ctx, p.geometry.window, p.signal.batch * p.frames),
        frame(framing(p.signal, p.geometry, pointer<float>(window))) {}
  Memory window, rows, spectrum;
  Fft fft;
  Framing frame;
};
Device& device(const StftPlan& plan) { return static_cast<Device&>(*plan.impl().on_device); }

/// Halves bins 1 .. N / 2 - 1, which the inverse transform counts twice (with their mirror images), and clears the
/// imaginary parts of the other two, which have no effect on real samples.
__global__ void __launch_bounds__(threads)
    halve_spectrum_kernel(const float* from, float* to, int64_t cells, int64_t bins) {
  const int64_t i = grid_thread();
  if (i >= cells) return;
  const int64_t k = i % bins;
  const bool inside = k > 0 && k < bins - 1;
  to[2 * i] = inside ? 0.5f * from[2 * i] : from[2 * i];
  to[2 * i + 1] = inside ? 0.5f * from[2 * i + 1] : 0.0f;
}

}  // namespace

std::unique_ptr<DevicePlan> plan(Context& ctx, const StftPlan::Impl& p) { return std::make_unique<Device>(ctx, p); }

void stft_forward(Context& ctx, const StftForward& a) {
  Device& d = device(a.plan);
  make_frames(ctx, d.frame, a.x.data, nullptr, nullptr, pointer<float>(d.rows));
  // cuFFT needs complex numbers aligned to 8 bytes.
  const bool aligned = reinterpret_cast<uintptr_t>(a.spectrum.data) % 8 == 0;
  float* const spectrum = aligned ? a.spectrum.data : pointer<float>(d.spectrum);
  d.fft.forward(ctx, pointer<float>(d.rows), spectrum);
  if (!aligned) ctx.copy<float>(View<const float>(spectrum, a.spectrum.shape), a.spectrum);
}

void stft_adjoint(Context& ctx, const StftAdjoint& a) {
  Device& d = device(a.plan);
  // The halved copy is needed in any case, because the inverse transform overwrites its input.
  const int64_t bins = a.dspectrum.shape.width, cells = a.dspectrum.elements() / 2;
  launch(ctx, {.name = "halve_spectrum", .grid = blocks_for(cells, threads), .block = threads}, halve_spectrum_kernel,
         a.dspectrum.data, pointer<float>(d.spectrum), cells, bins);
  d.fft.inverse(ctx, pointer<float>(d.spectrum), pointer<float>(d.rows));
  add_frames(ctx, d.frame, {pointer<float>(d.rows), a.dx.data, a.add_dx}, {nullptr, nullptr, false}, nullptr);
}

}  // namespace nacre::cuda
