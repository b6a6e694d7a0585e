// The transforms of kernels/runtime/runtime.h on the CPU: in double, by recursion over prime factors, in stream order.
#include <cmath>
#include <complex>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "runtime/emulated/cuda_runtime.h"
#include "runtime/emulated/memory.h"
#include "runtime/emulated/scheduler.h"
#include "runtime/emulated/traffic.h"
#include "runtime/host.h"
#include "runtime/runtime.h"

namespace nacre::cuda {

std::vector<CudaInventory::Library> library_inventory() {
  return {{"cuFFT", "emulated", "", "stft, and spectral_loss with windows that are no power of two"}};
}

/// The plan of `batch` transforms of `length` real numbers. Twin of the cuFFT plans in kernels/runtime/cufft.cpp.
struct Fft::Impl {
  Impl(int64_t n, int64_t b) : length(n), batch(b), roots(static_cast<size_t>(n)), work(2 * static_cast<size_t>(n)) {
    for (int64_t i = 0; i < n; ++i) {
      const double angle = -2 * M_PI * static_cast<double>(i) / static_cast<double>(n);
      roots[static_cast<size_t>(i)] = {std::cos(angle), std::sin(angle)};
    }
  }
  using Complex = std::complex<double>;
  int64_t length, batch;
  // roots[k] = exp(-2 pi i k / length); work: input and output of one transform.
  std::vector<Complex> roots, work;
  Memory area;  // not read or written: it makes the plan take as much device memory as one of cuFFT may

  /// out = DFT of the n numbers in[0], in[stride], ...; splits n by its smallest prime factor p into p transforms of
  /// n / p numbers (Cooley and Tukey, decimation in time). length / n is the step between the roots of order n.
  void transform(const Complex* in, Complex* out, int64_t n, int64_t stride) {
    if (n == 1) {
      *out = *in;
      return;
    }
    int64_t p = 2;
    while (n % p != 0) ++p;
    const int64_t m = n / p, step = length / n;
    for (int64_t i = 0; i < p; ++i) transform(in + i * stride, out + i * m, m, stride * p);
    // Joins the p parts: for each k, a DFT of p points with the twiddles of all outputs k + q m.
    std::vector<Complex> column(static_cast<size_t>(p));
    for (int64_t k = 0; k < m; ++k) {
      for (int64_t i = 0; i < p; ++i) column[static_cast<size_t>(i)] = out[i * m + k];
      for (int64_t q = 0; q < p; ++q) {
        Complex sum = 0;
        for (int64_t i = 0; i < p; ++i)
          sum += column[static_cast<size_t>(i)] * roots[static_cast<size_t>(i * (k + q * m) % n * step)];
        out[q * m + k] = sum;
      }
    }
  }
  /// real [batch, length] -> spectrum [batch, length / 2 + 1, 2].
  void forward(const float* real, float* spectrum) {
    const int64_t bins = length / 2 + 1;
    for (int64_t b = 0; b < batch; ++b) {
      Complex *in = work.data(), *out = in + length;
      for (int64_t i = 0; i < length; ++i) in[i] = static_cast<double>(real[b * length + i]);
      transform(in, out, length, 1);
      for (int64_t k = 0; k < bins; ++k) {
        spectrum[2 * (b * bins + k)] = static_cast<float>(out[k].real());
        spectrum[2 * (b * bins + k) + 1] = static_cast<float>(out[k].imag());
      }
    }
  }
  /// spectrum [batch, length / 2 + 1, 2] -> real [batch, length], not normalised.
  void inverse(float* spectrum, float* real) {
    const int64_t bins = length / 2 + 1;
    for (int64_t b = 0; b < batch; ++b) {
      Complex *in = work.data(), *out = in + length;
      for (int64_t k = 0; k < length; ++k) {
        const int64_t mirrored = k < bins ? k : length - k;
        const float* c = spectrum + 2 * (b * bins + mirrored);
        // The spectrum is conjugated, because the roots are those of the forward direction. As in cuFFT, the imaginary
        // parts of the first bin and, for even lengths, of the last bin are ignored.
        const bool real_bin = mirrored == 0 || 2 * mirrored == length;
        const double im = real_bin ? 0 : static_cast<double>(c[1]);
        in[k] = {static_cast<double>(c[0]), k < bins ? -im : im};
      }
      transform(in, out, length, 1);
      for (int64_t i = 0; i < length; ++i) real[b * length + i] = static_cast<float>(out[i].real());
    }
    std::memset(spectrum, 0xff, static_cast<size_t>(2 * batch * bins) * sizeof(float));  // cuFFT overwrites it as well
  }
};
Fft::Fft(Context& ctx, int64_t length, int64_t batch) {
  runtime(ctx).refuse_in_capture("a transform's constructor");
  const ForeignAllocations emulator;  // tests that count allocations ignore those of the plan
  impl_ = std::make_shared<Impl>(length, batch);
  impl_->area =
      Memory(ctx, static_cast<size_t>(batch * (length / 2 + 1)) * 2 * sizeof(float));  // as much as cuFFT may allocate
}
Fft::Fft(Fft&&) noexcept = default;
Fft& Fft::operator=(Fft&&) noexcept = default;
Fft::~Fft() = default;

namespace {

/// Queues a transform. Both arrays must be in buffers of the stream's device, and the plan must exist when it runs.
void queue(Context& ctx, const std::shared_ptr<Fft::Impl>& plan, const float* real, float* spectrum, bool forward) {
  const ForeignAllocations emulator;
  const auto runtime_lock = runtime(ctx).enter();
  runtime(ctx).count("cufft");
  const cudaError_t e = emulation::enqueue(
      static_cast<cudaStream_t>(runtime(ctx).stream()),
      [=, weak = std::weak_ptr<Fft::Impl>(plan), device = ctx.device().index] {
        const std::shared_ptr<Fft::Impl> f = weak.lock();
        if (f == nullptr) throw emulation::Fault("cufft: the plan was destroyed");
        const auto is_in_buffer = [&](const float* at, int64_t floats) {
          return emulation::device_of(at, static_cast<size_t>(f->batch * floats) * sizeof(float)) == device;
        };
        if (!is_in_buffer(real, f->length) || !is_in_buffer(spectrum, 2 * (f->length / 2 + 1)))
          throw emulation::Fault("cufft: not memory of its device, or beyond its buffer");
        forward ? f->forward(real, spectrum) : f->inverse(spectrum, const_cast<float*>(real));
        const auto of_signals = static_cast<size_t>(f->batch * f->length) * sizeof(float);
        const auto of_spectra = static_cast<size_t>(f->batch * (f->length / 2 + 1)) * 2 * sizeof(float);
        emulation::traffic_moved("cufft", forward ? of_signals : of_spectra, forward ? of_spectra : of_signals);
      });
  if (e != cudaSuccess) runtime(ctx).library_failed("cufft: " + std::string(cudaGetErrorString(e)), false);
}

}  // namespace

void Fft::forward(Context& ctx, const float* real, float* spectrum) { queue(ctx, impl_, real, spectrum, true); }
void Fft::inverse(Context& ctx, float* spectrum, float* real) { queue(ctx, impl_, real, spectrum, false); }

}  // namespace nacre::cuda
