#include "spectral/frame_transform.h"

#include <cmath>
#include <cstring>
#include <numbers>
#include <string>

#include "runtime/host.h"

// The FFT of FrameTransform on the CPU, for sixteen frames side by side. Forward, of N = 2 M samples:
//   to_lanes      z[m] = h[2 m] x[2 m] + i h[2 m + 1] x[2 m + 1], transposed to [point][lane]
//   transform     Z = DFT of z, M complex points, in Stockham stages of radix 4, 2, 3 and 5
//   split         the M + 1 bins of the real frame from Z
// The adjoint is the transpose of these steps in reverse order: merge, transform with real and imaginary parts
// exchanged, from_lanes. The window h is applied in both directions. The device's kernel with the same stages is
// spectral_fused.cu; it copies the tables of this class.
namespace nacre {
namespace {

constexpr int64_t L = frame_lanes;

// Sixteen frames, one per lane. Compilers split the vector where registers are narrower; the operations per lane stay
// the same.
using Vector = float __attribute__((vector_size(L * sizeof(float))));

// 16 x 16, in place. Interleaving rows i and i + 8 rotates the eight bits of the index (row, column) by one; four times
// that exchanges row and column.
[[gnu::always_inline]] inline void transpose(Vector* t) {
  for (int round = 0; round < 4; ++round) {
    Vector u[L];
    for (int i = 0; i < L / 2; ++i) {
      u[2 * i] = __builtin_shufflevector(t[i], t[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      u[2 * i + 1] =
          __builtin_shufflevector(t[i], t[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < L; ++i) t[i] = u[i];
  }
}

// re[m], im[m] = windowed samples 2 m and 2 m + 1 of each frame, m < M; from_lanes goes back: it multiplies by the
// window and stores the frames that exist.
// Eight points of sixteen frames at a time are a 16 x 16 block of samples, which is transposed in registers. Frames
// begin at any sample, hence memcpy for unaligned loads. The last M % 8 points are moved one by one.
NACRE_CLONES void to_lanes(const float* const* frames, const float* __restrict w, float* __restrict re,
                           float* __restrict im, int64_t M) {
  int64_t m = 0;
  for (; m + L / 2 <= M; m += L / 2) {
    Vector t[L], h;
    std::memcpy(&h, w + 2 * m, sizeof h);
    for (int64_t j = 0; j < L; ++j) {
      if (frames[j] != nullptr)
        std::memcpy(&t[j], frames[j] + 2 * m, sizeof h);
      else
        t[j] = Vector{};
      t[j] *= h;
    }
    transpose(t);
    for (int64_t i = 0; i < L / 2; ++i) {
      std::memcpy(re + (m + i) * L, &t[2 * i], sizeof h);
      std::memcpy(im + (m + i) * L, &t[2 * i + 1], sizeof h);
    }
  }
  for (; m < M; ++m)
    for (int64_t j = 0; j < L; ++j) {
      const float* x = frames[j];
      re[m * L + j] = x == nullptr ? 0 : x[2 * m] * w[2 * m];
      im[m * L + j] = x == nullptr ? 0 : x[2 * m + 1] * w[2 * m + 1];
    }
}
NACRE_CLONES void from_lanes(const float* __restrict re, const float* __restrict im, const float* __restrict w,
                             float* const* frames, int64_t M) {
  int64_t m = 0;
  for (; m + L / 2 <= M; m += L / 2) {
    Vector t[L], h;
    std::memcpy(&h, w + 2 * m, sizeof h);
    for (int64_t i = 0; i < L / 2; ++i) {
      std::memcpy(&t[2 * i], re + (m + i) * L, sizeof h);
      std::memcpy(&t[2 * i + 1], im + (m + i) * L, sizeof h);
    }
    transpose(t);
    for (int64_t j = 0; j < L; ++j) {
      t[j] *= h;
      if (frames[j] != nullptr) std::memcpy(frames[j] + 2 * m, &t[j], sizeof h);
    }
  }
  for (; m < M; ++m)
    for (int64_t j = 0; j < L; ++j)
      if (float* x = frames[j]; x != nullptr) {
        x[2 * m] = re[m * L + j] * w[2 * m];
        x[2 * m + 1] = im[m * L + j] * w[2 * m + 1];
      }
}

// Stockham's form: every stage reads one array and writes another, in an order that needs no bit reversal at the end.
// The innermost loops have the constant length of one vector.
// One stage of radix r: y[r p + k] = w^(p k) sum_j x[p + count j] exp(-2 pi i j k / r), where each element is `size`
// floats: `stride` vectors of lanes.
#define NACRE_FFT_STAGE(name)                                                                          \
  NACRE_CLONES void name(const float* __restrict xr, const float* __restrict xi, float* __restrict yr, \
                         float* __restrict yi, int64_t count, int64_t size, const float* __restrict w)

// In all stages: a, b, c, ... are the inputs, p counts the butterflies of a transform, q and j run over the interleaved
// transforms and their lanes, and w holds cos and sin of the twiddles of outputs 1, 2, ...; output 0 has none.
NACRE_FFT_STAGE(radix_2) {
  for (int64_t p = 0; p < count; ++p, w += 2) {
    const int64_t a = p * size, b = a + count * size, out = 2 * p * size;
    const float c1 = w[0], s1 = w[1];
    for (int64_t q = 0; q < size; q += L)
      for (int64_t j = q; j < q + L; ++j) {
        const float dr = xr[a + j] - xr[b + j], di = xi[a + j] - xi[b + j];
        yr[out + j] = xr[a + j] + xr[b + j], yi[out + j] = xi[a + j] + xi[b + j];
        yr[out + size + j] = c1 * dr - s1 * di, yi[out + size + j] = c1 * di + s1 * dr;
      }
  }
}
NACRE_FFT_STAGE(radix_3) {
  // sin(60 degrees)
  constexpr float half_root = 0.866025403784438647f;
  for (int64_t p = 0; p < count; ++p, w += 4) {
    const int64_t a = p * size, step = count * size, out = 3 * p * size;
    const float c1 = w[0], s1 = w[1], c2 = w[2], s2 = w[3];
    for (int64_t q = 0; q < size; q += L)
      for (int64_t j = q; j < q + L; ++j) {
        const float ar = xr[a + j], ai = xi[a + j];
        const float br = xr[a + step + j], bi = xi[a + step + j], cr = xr[a + 2 * step + j], ci = xi[a + 2 * step + j];
        // t = b + c, h = a - t / 2, e = -i sqrt(3)/2 (b - c): the outputs are a + t, h + e, h - e.
        const float tr = br + cr, ti = bi + ci, hr = ar - 0.5f * tr, hi = ai - 0.5f * ti;
        const float er = half_root * (bi - ci), ei = half_root * (cr - br);
        const float ur = hr + er, ui = hi + ei, vr = hr - er, vi = hi - ei;
        yr[out + j] = ar + tr, yi[out + j] = ai + ti;
        yr[out + size + j] = c1 * ur - s1 * ui, yi[out + size + j] = c1 * ui + s1 * ur;
        yr[out + 2 * size + j] = c2 * vr - s2 * vi, yi[out + 2 * size + j] = c2 * vi + s2 * vr;
      }
  }
}
NACRE_FFT_STAGE(radix_4) {
  for (int64_t p = 0; p < count; ++p, w += 6) {
    const int64_t a = p * size, step = count * size, out = 4 * p * size;
    const float c1 = w[0], s1 = w[1], c2 = w[2], s2 = w[3], c3 = w[4], s3 = w[5];
    for (int64_t q = 0; q < size; q += L)
      for (int64_t j = q; j < q + L; ++j) {
        const float ar = xr[a + j], ai = xi[a + j], br = xr[a + step + j], bi = xi[a + step + j];
        const float cr = xr[a + 2 * step + j], ci = xi[a + 2 * step + j];
        const float dr = xr[a + 3 * step + j], di = xi[a + 3 * step + j];
        // e = a + c, f = a - c, g = b + d: the outputs are e + g, f + h, e - g, f - h.
        const float er = ar + cr, ei = ai + ci, fr = ar - cr, fi = ai - ci;
        const float gr = br + dr, gi = bi + di, hr = bi - di, hi = dr - br;  // h = -i (b - d)
        const float ur = fr + hr, ui = fi + hi, vr = er - gr, vi = ei - gi, tr = fr - hr, ti = fi - hi;
        yr[out + j] = er + gr, yi[out + j] = ei + gi;
        yr[out + size + j] = c1 * ur - s1 * ui, yi[out + size + j] = c1 * ui + s1 * ur;
        yr[out + 2 * size + j] = c2 * vr - s2 * vi, yi[out + 2 * size + j] = c2 * vi + s2 * vr;
        yr[out + 3 * size + j] = c3 * tr - s3 * ti, yi[out + 3 * size + j] = c3 * ti + s3 * tr;
      }
  }
}
NACRE_FFT_STAGE(radix_5) {
  constexpr float c72 = 0.309016994374947424f, s72 = 0.951056516295153572f;  // of 72 and of 144 degrees
  constexpr float c144 = -0.809016994374947424f, s144 = 0.587785252292473129f;
  for (int64_t p = 0; p < count; ++p, w += 8) {
    const int64_t a = p * size, step = count * size, out = 5 * p * size;
    for (int64_t q = 0; q < size; q += L)
      for (int64_t j = q; j < q + L; ++j) {
        const float* const re = xr + a + j;
        const float* const im = xi + a + j;
        const float ar = re[0], ai = im[0];
        // With inputs x0 to x4:
        //   p = x1 + x4, m = x1 - x4, q = x2 + x3, n = x2 - x3
        //   f = x0 + c72 p + c144 q,  h = -i (s72 m + s144 n)
        //   g = x0 + c144 p + c72 q,  k = -i (s144 m - s72 n)
        // The outputs are x0 + p + q, f + h, g + k, g - k, f - h.
        const float pr = re[step] + re[4 * step], pi = im[step] + im[4 * step];
        const float mr = re[step] - re[4 * step], mi = im[step] - im[4 * step];
        const float qr = re[2 * step] + re[3 * step], qi = im[2 * step] + im[3 * step];
        const float nr = re[2 * step] - re[3 * step], ni = im[2 * step] - im[3 * step];
        const float fr = ar + c72 * pr + c144 * qr, fi = ai + c72 * pi + c144 * qi;
        const float gr = ar + c144 * pr + c72 * qr, gi = ai + c144 * pi + c72 * qi;
        const float hr = s72 * mi + s144 * ni, hi = -s72 * mr - s144 * nr;
        const float kr = s144 * mi - s72 * ni, ki = -s144 * mr + s72 * nr;
        float* const or_ = yr + out + j;
        float* const oi = yi + out + j;
        or_[0] = ar + pr + qr, oi[0] = ai + pi + qi;
        or_[size] = w[0] * (fr + hr) - w[1] * (fi + hi), oi[size] = w[0] * (fi + hi) + w[1] * (fr + hr);
        or_[2 * size] = w[2] * (gr + kr) - w[3] * (gi + ki), oi[2 * size] = w[2] * (gi + ki) + w[3] * (gr + kr);
        or_[3 * size] = w[4] * (gr - kr) - w[5] * (gi - ki), oi[3 * size] = w[4] * (gi - ki) + w[5] * (gr - kr);
        or_[4 * size] = w[6] * (fr - hr) - w[7] * (fi - hi), oi[4 * size] = w[6] * (fi - hi) + w[7] * (fr - hr);
      }
  }
}
#undef NACRE_FFT_STAGE

// The DFT X of N real samples from Z, the DFT of z[m] = x[2 m] + i x[2 m + 1], with M = N / 2 and W = exp(-2 pi i / N):
//   E = (Z[k] + conj Z[M - k]) / 2 and O = (Z[k] - conj Z[M - k]) / 2i are the DFTs of even and odd samples;
//   X[k] = E + W^k O,   X[M - k] = conj(E - W^k O).
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
// In place. Bin 0 of Z gives the real bins X[0] and X[M]; k and M - k are computed together; for k = M / 2, W^k = -i
// makes X[k] = conj Z[k].
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

// The first step of the adjoint. The real sum over k = 0 .. M is the unnormalised inverse DFT of V, where V[0] and V[M]
// are the real parts of D and otherwise V[k] = D[k] / 2, V[N - k] = conj V[k]. In half-length form:
//   E[k] = V[k] + conj V[M - k],   O[k] = (V[k] - conj V[M - k]) / W^k,   Z = E + i O.
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
// In place, with the same three cases as split().
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

}  // namespace

// The stages in the order in which transform() runs them. A stage of radix r turns `stride` interleaved transforms of
// `length` points into r stride interleaved ones of length / r. Its twiddles are exp(-2 pi i p k / length) for p <
// length / r and k = 1 .. r - 1, [p][k - 1][cos, sin].
FrameTransform::FrameTransform(const char* op, int64_t window, bool normalised) : window_(window) {
  // Only the half length is transformed, so only its factors matter.
  int64_t rest = window / 2;
  for (const int64_t factor : {2, 3, 5})
    while (rest > 1 && rest % factor == 0) rest /= factor;
  if (window < 4 || window % 2 != 0 || rest != 1 || window > (int64_t{1} << 24))
    throw_usage(op, "window is " + std::to_string(window) +
                        ", expected an even number from 4 whose prime factors are 2, 3 and 5");
  const size_t N = static_cast<size_t>(window);
  const double step = 2 * std::numbers::pi / static_cast<double>(window);
  // Tables are computed in double and rounded once. Split and merge need angles up to a quarter turn.
  // The mean of sin^4 over the window is 3 / 8.
  const double factor = normalised ? 1 / std::sqrt(0.375 * static_cast<double>(window)) : 1;
  hann_.resize(N), cos_.resize(N / 4 + 1), sin_.resize(N / 4 + 1);
  for (size_t n = 0; n < N; ++n) {
    // sin^2 instead of (1 - cos) / 2, which would cancel at the ends of the window.
    const double s = std::sin(0.5 * step * static_cast<double>(n));
    hann_[n] = static_cast<float>(factor * (s * s));
  }
  for (size_t k = 0; k < cos_.size(); ++k) {
    cos_[k] = static_cast<float>(std::cos(step * static_cast<double>(k)));
    sin_[k] = static_cast<float>(std::sin(step * static_cast<double>(k)));
  }
  const int64_t M = window / 2;
  for (int64_t length = M, stride = 1; length > 1;) {
    // Radix 4 first: it needs the fewest passes and operations. spectral_fused.cu reads the twiddles in this order.
    const int64_t radix = length % 4 == 0 ? 4 : length % 2 == 0 ? 2 : length % 3 == 0 ? 3 : 5;
    stages_.push_back({radix, stride, length / radix, static_cast<int64_t>(twiddles_.size())});
    for (int64_t p = 0; p < length / radix; ++p)
      for (int64_t k = 1; k < radix; ++k) {
        const double angle = -2 * std::numbers::pi * static_cast<double>(p * k) / static_cast<double>(length);
        twiddles_.push_back(static_cast<float>(std::cos(angle)));
        twiddles_.push_back(static_cast<float>(std::sin(angle)));
      }
    length /= radix, stride *= radix;
  }
}

// Stages alternate between the two pairs of arrays and end in re, im. If their number is odd, the input is in work.
void FrameTransform::transform(float* re, float* im, float* work_re, float* work_im) const {
  bool in_work = stages_.size() % 2 != 0;
  for (const Stage& s : stages_) {
    const auto run = s.radix == 4 ? radix_4 : s.radix == 2 ? radix_2 : s.radix == 3 ? radix_3 : radix_5;
    const float* w = twiddles_.data() + s.twiddles;
    if (in_work)
      run(work_re, work_im, re, im, s.count, s.stride * L, w);
    else
      run(re, im, work_re, work_im, s.count, s.stride * L, w);
    in_work = !in_work;
  }
}

void FrameTransform::forward(const float* const* frames, float* re, float* im, float* work) const {
  const int64_t M = window_ / 2;
  float *work_re = work, *work_im = work + M * L;
  const bool in_work = stages_.size() % 2 != 0;
  to_lanes(frames, hann_.data(), in_work ? work_re : re, in_work ? work_im : im, M);
  transform(re, im, work_re, work_im);
  split(re, im, cos_.data(), sin_.data(), M);
}

// With real and imaginary parts exchanged, a forward transform computes the inverse. The input is in re, im, so the
// output is in work if the number of stages is odd.
void FrameTransform::adjoint(float* re, float* im, float* const* frames, float* work) const {
  const int64_t M = window_ / 2;
  float *work_re = work, *work_im = work + M * L;
  merge(re, im, cos_.data(), sin_.data(), M);
  if (stages_.size() % 2 != 0) {
    transform(work_im, work_re, im, re);
    from_lanes(work_re, work_im, hann_.data(), frames, M);
  } else {
    transform(im, re, work_im, work_re);
    from_lanes(re, im, hann_.data(), frames, M);
  }
}

}  // namespace nacre
