#include "frame_transform.h"

#include <kiss_fft.h>

#include <cmath>
#include <numbers>
#include <string>

#include "host.h"

namespace nacre {
namespace {

constexpr int64_t L = frame_lanes;

NACRE_CLONES void multiply(const float* __restrict x, const float* __restrict w, float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * w[i];
}

// rows [lane][2 M] of interleaved complex numbers -> re, im [M][lane], and back.
NACRE_CLONES void to_lanes(const float* __restrict rows, float* __restrict re, float* __restrict im, int64_t M) {
  for (int64_t m = 0; m < M; ++m)
    for (int64_t j = 0; j < L; ++j) {
      re[m * L + j] = rows[j * 2 * M + 2 * m];
      im[m * L + j] = rows[j * 2 * M + 2 * m + 1];
    }
}
NACRE_CLONES void from_lanes(const float* __restrict re, const float* __restrict im, float* __restrict rows,
                             int64_t M) {
  for (int64_t m = 0; m < M; ++m)
    for (int64_t j = 0; j < L; ++j) {
      rows[j * 2 * M + 2 * m] = re[m * L + j];
      rows[j * 2 * M + 2 * m + 1] = im[m * L + j];
    }
}

// With Z the DFT of z[m] = x[2 m] + i x[2 m + 1], E = (Z[k] + conj Z[M - k]) / 2 and O = (Z[k] - conj Z[M - k]) / 2i
// are those of the even and the odd samples: X[k] = E + W^k O, X[M - k] = conj(E - W^k O), W = exp(-2 pi i / N).
NACRE_CLONES void split_pair(float* __restrict ar, float* __restrict ai, float* __restrict br, float* __restrict bi,
                             float c, float s) {
  for (int64_t j = 0; j < L; ++j) {
    const float er = 0.5f * (ar[j] + br[j]), ei = 0.5f * (ai[j] - bi[j]);
    const float pr = 0.5f * (ai[j] + bi[j]), pi = 0.5f * (br[j] - ar[j]);
    const float tr = c * pr + s * pi, ti = c * pi - s * pr;
    ar[j] = er + tr, ai[j] = ei + ti;
    br[j] = er - tr, bi[j] = ti - ei;
  }
}
void split(float* re, float* im, const float* c, const float* s, int64_t M) {
  for (int64_t j = 0; j < L; ++j) {
    const float even = re[j], odd = im[j];
    re[j] = even + odd, im[j] = 0;
    re[M * L + j] = even - odd, im[M * L + j] = 0;
  }
  for (int64_t k = 1; 2 * k < M; ++k) {
    const int64_t a = k * L, b = (M - k) * L;
    split_pair(re + a, im + a, re + b, im + b, c[k], s[k]);
  }
  if (M % 2 == 0)
    for (int64_t j = 0; j < L; ++j) im[M / 2 * L + j] = -im[M / 2 * L + j];
}

// The transpose of split, up to the transform in between: the real sum over k = 0 .. M is the inverse DFT of V with
// V[0], V[M] the real parts and V[k] = D[k] / 2, V[N - k] = conj V[k] otherwise; its half-length form is
// E[k] = V[k] + conj V[M - k], O[k] = (V[k] - conj V[M - k]) / W^k, Z = E + i O.
NACRE_CLONES void merge_pair(float* __restrict ar, float* __restrict ai, float* __restrict br, float* __restrict bi,
                             float c, float s) {
  for (int64_t j = 0; j < L; ++j) {
    const float er = 0.5f * (ar[j] + br[j]), ei = 0.5f * (ai[j] - bi[j]);
    const float pr = 0.5f * (ar[j] - br[j]), pi = 0.5f * (ai[j] + bi[j]);
    const float tr = c * pr - s * pi, ti = s * pr + c * pi;
    ar[j] = er - ti, ai[j] = ei + tr;
    br[j] = er + ti, bi[j] = tr - ei;
  }
}
void merge(float* re, float* im, const float* c, const float* s, int64_t M) {
  for (int64_t j = 0; j < L; ++j) {
    const float first = re[j], last = re[M * L + j];
    re[j] = first + last, im[j] = first - last;
  }
  for (int64_t k = 1; 2 * k < M; ++k) {
    const int64_t a = k * L, b = (M - k) * L;
    merge_pair(re + a, im + a, re + b, im + b, c[k], s[k]);
  }
  if (M % 2 == 0)
    for (int64_t j = 0; j < L; ++j) im[M / 2 * L + j] = -im[M / 2 * L + j];
}

kiss_fft_cpx* complex(float* p) { return reinterpret_cast<kiss_fft_cpx*>(p); }

}  // namespace

void FrameTransform::Free::operator()(kiss_fft_state* p) const { kiss_fft_free(p); }

FrameTransform::FrameTransform(const char* op, int64_t window) : window_(window) {
  // Other factors work in KissFFT, but slowly and with an allocation in every call.
  int64_t rest = window / 2;
  for (const int64_t factor : {2, 3, 5})
    while (rest > 1 && rest % factor == 0) rest /= factor;
  if (window < 4 || window % 2 != 0 || rest != 1 || window > (int64_t{1} << 24))
    throw_usage(op, "window is " + std::to_string(window) +
                        ", expected an even number from 4 whose prime factors are 2, 3 and 5");
  const size_t N = static_cast<size_t>(window);
  const double step = 2 * std::numbers::pi / static_cast<double>(window);
  hann_.resize(N), cos_.resize(N / 4 + 1), sin_.resize(N / 4 + 1);
  for (size_t n = 0; n < N; ++n) {
    const double s = std::sin(0.5 * step * static_cast<double>(n));
    hann_[n] = static_cast<float>(s * s);
  }
  for (size_t k = 0; k < cos_.size(); ++k) {
    cos_[k] = static_cast<float>(std::cos(step * static_cast<double>(k)));
    sin_[k] = static_cast<float>(std::sin(step * static_cast<double>(k)));
  }
  forward_.reset(kiss_fft_alloc(static_cast<int>(window / 2), 0, nullptr, nullptr));
  inverse_.reset(kiss_fft_alloc(static_cast<int>(window / 2), 1, nullptr, nullptr));
  if (!forward_ || !inverse_) throw Error(ErrorKind::memory, std::string(op) + ": no memory for a transform");
}

void FrameTransform::forward(const float* const* frames, float* re, float* im, float* work) const {
  const int64_t N = window_, M = N / 2;
  float *row = work, *rows = work + N;
  for (int64_t j = 0; j < L; ++j) {
    if (frames[j] == nullptr) {
      std::fill_n(rows + j * N, N, 0.0f);
      continue;
    }
    multiply(frames[j], hann_.data(), row, N);
    kiss_fft(forward_.get(), complex(row), complex(rows + j * N));
  }
  to_lanes(rows, re, im, M);
  split(re, im, cos_.data(), sin_.data(), M);
}

void FrameTransform::adjoint(float* re, float* im, float* const* frames, float* work) const {
  const int64_t N = window_, M = N / 2;
  float *row = work, *rows = work + N;
  merge(re, im, cos_.data(), sin_.data(), M);
  from_lanes(re, im, rows, M);
  for (int64_t j = 0; j < L; ++j) {
    if (frames[j] == nullptr) continue;
    kiss_fft(inverse_.get(), complex(rows + j * N), complex(row));
    multiply(row, hann_.data(), frames[j], N);
  }
}

}  // namespace nacre
