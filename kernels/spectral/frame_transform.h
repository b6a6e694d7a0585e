#pragma once
// The windowed DFT of real frames and its adjoint, sixteen frames at a time. Spectra are stored as [bin][lane] with one
// frame per lane, so that later loops over them work on whole vectors.
#include <cstdint>
#include <vector>

namespace nacre {

inline constexpr int64_t frame_lanes = 16;

/// Stockham's FFT with stages of radix 4, 2, 3 and 5, and the periodic Hann window, for one length. Each operation
/// works on one vector of lanes; only the transposition at the start and the end shuffles. Threads may share an object,
/// because all mutable data is in `work`.
///
/// A frame of N samples is transformed as N / 2 complex numbers. Two real signals in one complex transform would cost
/// the same, but rounding errors of the louder one would leak into the other: the spectrum of silence would not be
/// zero.
class FrameTransform {
 public:
  /// Throws unless the window is even, at least 4, and its half has no factor but 2, 3 and 5. `normalised`: hann()
  /// has the L2 norm 1.
  FrameTransform(const char* op, int64_t window, bool normalised = false);
  int64_t window() const { return window_; }
  int64_t bins() const { return window_ / 2 + 1; }
  // Tables, copied to the device by the CUDA kernels.
  const std::vector<float>& hann() const { return hann_; }
  const std::vector<float>& cosine() const { return cos_; }
  const std::vector<float>& sine() const { return sin_; }
  const std::vector<float>& twiddles() const { return twiddles_; }
  /// Elements of `work`.
  int64_t work() const { return frame_lanes * window_; }

  /// re, im [bins][lanes] = the DFT of hann x frame. frames[j] points to `window` samples; null: zeros.
  void forward(const float* const* frames, float* re, float* im, float* work) const;
  /// frames[j][n] = hann[n] sum_k (re cos(2 pi k n / N) - im sin(2 pi k n / N)) over k = 0 .. N / 2; overwrites re,
  /// im. Null frames[j] are skipped.
  void adjoint(float* re, float* im, float* const* frames, float* work) const;

 private:
  /// One pass over all points: `stride` interleaved transforms of `length` points, split into `radix` of
  /// length / radix.
  struct Stage {
    int64_t radix, stride;
    int64_t count;     ///< length / radix
    int64_t twiddles;  ///< index of the first of count x 2 (radix - 1) numbers
  };
  void transform(float* re, float* im, float* work_re, float* work_im) const;

  int64_t window_;
  std::vector<float> hann_, cos_, sin_;  ///< [N], [N / 4 + 1] of 2 pi k / N
  std::vector<Stage> stages_;
  std::vector<float> twiddles_;
};

}  // namespace nacre
