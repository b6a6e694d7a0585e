#include "spectral/spectral_fused.cuh"

// One kernel per scale for windows of a power of two. A block takes as many frames as give 1024 complex points per
// signal (at least one frame). It transforms both signals in registers and shared memory, compares them, and transforms
// the gradients back. It reads the signals and writes the gradient's frames: for 72 x 16896 samples, hop = window / 4,
// 10 + 20 MB instead of the 230 MB around cuFFT. It is bound by arithmetic: with both losses and both gradients about
// 2900 instructions per thread (SASS, sm_90a), which is 61 us of all issue slots for a window of 2048, less for shorter
// ones.
//
// A frame of N samples is M = N / 2 complex points; samples 2 m and 2 m + 1 form point m. Stages and their order are
// those of frame_transform.cpp. M / 4 threads work on a frame; between stages thread i has the points i + k M / 4 of
// both signals in registers. The end of a transform (X from Z) and the start of its adjoint combine k and M - k. One
// thread has both, so that the estimate's spectrum stays in registers.
// Shared memory: four planes of points (real and imaginary parts of two signals; later of two gradients), 16.5 KiB, or
// 33 KiB for M = 2048; then, with mel terms, BandBuffers.
namespace nacre::cuda {
namespace {

/// Sizes for M points. A block has 1024 points per signal, four per thread; M = 2048 has one frame and 512 threads.
template <int M>
struct FrameShape {
  static constexpr int lanes = M / 4;  ///< threads per frame
  static constexpr int threads = lanes > 256 ? lanes : 256;
  static constexpr int frames = threads / lanes;  ///< frames per block
  /// Blocks per multiprocessor that are asked for. With more, the compiler would spill registers.
  static constexpr int blocks(bool general) { return threads > 256 ? 1 : general || M > 64 ? 3 : 4; }
  static constexpr int points = frames * M;
  static constexpr int plane = points + points / 32;  ///< real or imaginary parts of a signal, one padding float per 32
  static constexpr int floats = 4 * plane;
};
/// Barrier among the threads of a frame. Frames of up to 128 points are within one warp.
template <int M>
__device__ __forceinline__ void sync_frame() {
  if constexpr (FrameShape<M>::lanes <= 32)
    __syncwarp();
  else
    __syncthreads();
}
// The first stage writes with a stride of four points. With one padding float per 32, these fall into all banks.
__device__ __forceinline__ int padded(int n) { return n + (n >> 5); }

/// The points of this thread's frame in shared memory: [signal][re, im][plane].
template <int M>
struct Points {
  float* shared;
  int first;  ///< index of the frame's first point
  __device__ __forceinline__ Complex get(int signal, int n) const {
    const float* const point = shared + signal * 2 * FrameShape<M>::plane + padded(first + n);
    return {point[0], point[FrameShape<M>::plane]};
  }
  __device__ __forceinline__ void put(int signal, int n, Complex v) const {
    float* const point = shared + signal * 2 * FrameShape<M>::plane + padded(first + n);
    point[0] = v.re, point[FrameShape<M>::plane] = v.im;
  }
};

__device__ __forceinline__ void radix_4(Complex (&v)[4]) {
  const float er = v[0].re + v[2].re, ei = v[0].im + v[2].im, fr = v[0].re - v[2].re, fi = v[0].im - v[2].im;
  const float gr = v[1].re + v[3].re, gi = v[1].im + v[3].im;
  const float hr = v[1].im - v[3].im, hi = v[3].re - v[1].re;  // -i (v[1] - v[3])
  v[0] = {er + gr, ei + gi}, v[1] = {fr + hr, fi + hi}, v[2] = {er - gr, ei - gi}, v[3] = {fr - hr, fi - hi};
}
__device__ __forceinline__ void radix_2(Complex& a, Complex& b) {
  const Complex sum{a.re + b.re, a.im + b.im};
  b = {a.re - b.re, a.im - b.im}, a = sum;
}
__device__ __forceinline__ Complex multiplied(Complex v, float2 w) {
  return {w.x * v.re - w.y * v.im, w.x * v.im + w.y * v.re};
}

/// Stockham's stages from stride S on, for one or two signals (`two`). Input and output of a thread are the points
/// i + k M / 4: the inputs of one butterfly of radix 4, or of two of radix 2. With i = p S + q, the outputs of a stage
/// are the points 4 p S + q + k S, times the twiddles of p. In the last stage (of radix 2 or 4) there is only p = 0:
/// the twiddles are 1, and the outputs are the points that the thread has already, so nothing is exchanged.
template <int M, int S>
__device__ __forceinline__ void stages(Complex (&v)[2][4], bool two, const Points<M>& points, const float* twiddles,
                                       int i) {
  constexpr int B = M / 4;
  if constexpr (M / S == 2) {
#pragma unroll
    for (int g = 0; g < 2; ++g) radix_2(v[g][0], v[g][2]), radix_2(v[g][1], v[g][3]);
  } else if constexpr (M / S == 4) {
#pragma unroll
    for (int g = 0; g < 2; ++g) radix_4(v[g]);
  } else {
    // The first barrier: all threads have read the previous contents. The second: all points of this stage are written.
    // Real and imaginary parts are in planes of their own, so threads with adjacent points use adjacent banks.
    const int p = i / S, q = i % S;
    const float2* const w = reinterpret_cast<const float2*>(twiddles) + 3 * p;
    const float2 w1 = __ldg(w), w2 = __ldg(w + 1), w3 = __ldg(w + 2);
    sync_frame<M>();
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      if (g == 1 && !two) continue;
      radix_4(v[g]);
      points.put(g, 4 * p * S + q, v[g][0]);
      points.put(g, 4 * p * S + q + S, multiplied(v[g][1], w1));
      points.put(g, 4 * p * S + q + 2 * S, multiplied(v[g][2], w2));
      points.put(g, 4 * p * S + q + 3 * S, multiplied(v[g][3], w3));
    }
    sync_frame<M>();
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      if (g == 1 && !two) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) v[g][k] = points.get(g, i + k * B);
    }
    stages<M, 4 * S>(v, two, points, twiddles + 6 * (M / (4 * S)), i);
  }
}

/// As split_pair and merge_pair of frame_transform.cpp: X[k], X[M - k] from Z[k], Z[M - k]; and Z from D for the
/// adjoint.
__device__ __forceinline__ void split(Complex& a, Complex& b, float c, float s) {
  const float er = 0.5f * (a.re + b.re), ei = 0.5f * (a.im - b.im), pr = 0.5f * (a.im + b.im),
              pi = 0.5f * (b.re - a.re);
  const float tr = c * pr + s * pi, ti = c * pi - s * pr;
  a = {er + tr, ei + ti}, b = {er - tr, ti - ei};
}
__device__ __forceinline__ void merge(Complex& a, Complex& b, float c, float s) {
  const float er = 0.5f * (a.re + b.re), ei = 0.5f * (a.im - b.im), pr = 0.5f * (a.re - b.re),
              pi = 0.5f * (a.im + b.im);
  const float tr = c * pr - s * pi, ti = s * pr + c * pi;
  a = {er - ti, ei + tr}, b = {er + ti, tr - ei};
}

/// i goes from 0 to M / 4 - 1, so k = i and k = i + M / 4 with their mirror images are all bins but M / 2.
/// Bins of a thread: i and M - i, i + M / 4 and its mirror image, and M / 2 for the first thread of a frame.
constexpr int thread_bins = 5;
template <int M>
__device__ __forceinline__ int thread_bin(int i, int j) {
  return j == 0 ? i : j == 1 ? M - i : j == 2 ? i + M / 4 : j == 3 ? M - i - M / 4 : M / 2;
}
/// x[j] = bin thread_bin(i, j) of a signal, from its transform Z in shared memory. Bins 0 and M are real and come from
/// Z[0]; bin M / 2 is conj Z[M / 2]. Threads other than the first of a frame have 0 in x[4].
template <int M>
__device__ __forceinline__ void to_bins(const Points<M>& points, int signal, const FusedTables& t, int i,
                                        Complex (&x)[thread_bins]) {
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const int k = thread_bin<M>(i, j);
    if (k == 0) {
      const Complex z = points.get(signal, 0);
      x[0] = {z.re + z.im, 0}, x[1] = {z.re - z.im, 0};
    } else {
      x[j] = points.get(signal, k), x[j + 1] = points.get(signal, M - k);
      split(x[j], x[j + 1], __ldg(t.cosine + k), __ldg(t.sine + k));
    }
  }
  const Complex z = i == 0 ? points.get(signal, M / 2) : Complex{0, 0};
  x[4] = {z.re, -z.im};
}
/// Stores the gradient slope X / |X| (with `powers`, 2 slope X) as input of the adjoint, with real and imaginary parts
/// exchanged.
template <int M, bool general = false>
__device__ __forceinline__ void from_bins(const Points<M>& points, int signal, const FusedTables& t, int i,
                                          const Complex (&x)[thread_bins], const float (&m)[thread_bins],
                                          const float (&slope)[thread_bins], bool powers = false) {
  Complex d[thread_bins];
#pragma unroll
  for (int j = 0; j < thread_bins; ++j) {
    float r = m[j] == 0.0f ? 0.0f : slope[j] / m[j];
    if constexpr (general) r = powers ? 2 * slope[j] : r;
    d[j] = {x[j].re * r, x[j].im * r};
  }
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const int k = thread_bin<M>(i, j);
    if (k == 0) {
      points.put(signal, 0, {d[0].re - d[1].re, d[0].re + d[1].re});
    } else {
      merge(d[j], d[j + 1], __ldg(t.cosine + k), __ldg(t.sine + k));
      points.put(signal, k, {d[j].im, d[j].re});
      points.put(signal, M - k, {d[j + 1].im, d[j + 1].re});
    }
  }
  if (i == 0) points.put(signal, M / 2, {-d[4].im, d[4].re});
}

/// What a thread works on: `lanes` threads share a frame, `frames` frames share a block.
template <int M>
struct Lane {
  int tid;      ///< thread of the block
  int frame;    ///< frame of the block
  int i;        ///< thread of the frame
  int64_t row;  ///< the frame among those of all items
  Points<M> points;
  int bin_count;  ///< number of this thread's bins: the first thread of a frame has bin M / 2, too
};

/// Reads both signals straight into registers, windowed. Blocks may have frames beyond the last row, and frames that do
/// not count: these are zero, add nothing, and take part in all barriers.
template <int M, bool general>
__device__ __forceinline__ void load_frames(const ScaleView& s, const Framing& g, const float* estimate,
                                            const float* target, const int32_t* lengths, bool aligned,
                                            const Lane<M>& lane, Complex (&v)[2][4]) {
  const int64_t b = lane.row / g.frames;
  const int f = static_cast<int>(lane.row - b * g.frames), begin = f * g.hop - (general ? g.lead : M);
  const CountedPart c = lane.row < s.rows ? counted_part(g, lengths, b) : CountedPart{0, 0};
  const bool included = f < c.frames, within_signal = begin >= 0 && begin + 2 * M <= c.samples;
  // Formed once, so that the addresses below differ by constants.
  const float* const signals[2] = {estimate + b * g.time, target + b * g.time};
  const int first = begin + 2 * lane.i;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int n = 2 * (lane.i + k * FrameShape<M>::lanes), at = first + 2 * k * FrameShape<M>::lanes;
    const float2 h = __ldg(reinterpret_cast<const float2*>(g.hann + n));
#pragma unroll
    for (int signal = 0; signal < 2; ++signal) {
      const float* const x = signals[signal];
      float2 pair = make_float2(0, 0);
      if (included && within_signal && aligned)
        pair = *reinterpret_cast<const float2*>(x + at);
      else if (included)
        pair = make_float2(sample<general>(g, c, x, at), sample<general>(g, c, x, at + 1));
      v[signal][k] = {h.x * pair.x, h.y * pair.y};
    }
  }
}

/// Transforms both signals; the points come to lie in shared memory in their order.
template <int M>
__device__ __forceinline__ void transform(const FusedTables& t, const Lane<M>& lane, Complex (&v)[2][4]) {
  stages<M, 1>(v, true, lane.points, t.twiddles, lane.i);
  sync_frame<M>();
#pragma unroll
  for (int signal = 0; signal < 2; ++signal)
#pragma unroll
    for (int k = 0; k < 4; ++k) lane.points.put(signal, lane.i + k * FrameShape<M>::lanes, v[signal][k]);
  sync_frame<M>();
}

/// Shared memory of the bands: magnitudes [frames][bins] of both signals, slopes [frames][bands] and, for norms, one
/// float per frame.
struct BandBuffers {
  float *magnitudes, *target_magnitudes, *slopes;
};

/// The estimate's bins of a thread: X and |X|, which the gradients need.
struct Bins {
  Complex x[thread_bins];
  float m[thread_bins];
};

/// Compares the thread's bins, stores the gradient of the STFT terms as input of the adjoint, and leaves magnitudes for
/// the bands. One thread reads and later writes points k and M - k of both signals, so there is no barrier until the
/// next transform. sums[0], sums[1]: |difference| of magnitudes and of their logarithms.
template <int M, bool general>
__device__ __forceinline__ void compare_bins(const ScaleView& s, const FusedTables& t, const Lane<M>& lane, float w0,
                                             float w1, const BandBuffers& bands, Bins& e, double (&sums)[4]) {
  float n[thread_bins], slope[thread_bins];
  {
    // The target's bins become magnitudes at once, which frees their registers.
    Complex y[thread_bins];
    to_bins<M>(lane.points, 1, t, lane.i, y);
#pragma unroll
    for (int j = 0; j < thread_bins; ++j) {
      if constexpr (general)
        n[j] = power(y[j]);
      else
        n[j] = magnitude(y[j]);
    }
  }
  to_bins<M>(lane.points, 0, t, lane.i, e.x);
  // At most five bins per thread in float; the sums over threads are in double.
  float linear = 0, logarithmic = 0;
#pragma unroll
  for (int j = 0; j < thread_bins; ++j) {
    const bool exists = j < lane.bin_count;
    e.m[j] = magnitude(e.x[j]);
    if constexpr (general) {
      // n is a power until here.
      const float root = sqrtf(n[j]);
      if (s.mel && exists) {
        bands.magnitudes[lane.frame * (M + 1) + thread_bin<M>(lane.i, j)] = s.power ? power(e.x[j]) : e.m[j];
        bands.target_magnitudes[lane.frame * (M + 1) + thread_bin<M>(lane.i, j)] = s.power ? n[j] : root;
      }
      n[j] = root;
    } else if (s.mel && exists) {
      bands.magnitudes[lane.frame * (M + 1) + thread_bin<M>(lane.i, j)] = e.m[j];
      bands.target_magnitudes[lane.frame * (M + 1) + thread_bin<M>(lane.i, j)] = n[j];
    }
    slope[j] = 0;
    if (s.stft && exists) {
      const Compared c = compare(e.m[j], n[j], w0, w1, s.floor, s.logs[0]);
      linear += c.difference, logarithmic += c.log_difference, slope[j] = c.slope;
    }
  }
  if (s.gradient[0]) from_bins<M>(lane.points, 0, t, lane.i, e.x, e.m, slope);
  sums[0] = static_cast<double>(linear), sums[1] = static_cast<double>(logarithmic);
}

/// Compares the bands of the block's frames and stores the gradient of the mel terms as input of the adjoint. Bands
/// need bins of other threads: one barrier after the magnitudes, one after the slopes. Frames of a block share both,
/// also where sync_frame() is a warp barrier. sums[2], sums[3]: |difference| of bands and of their logarithms.
template <int M, bool general>
__device__ __forceinline__ void compare_all_bands(const ScaleView& s, const FusedTables& t, const Lane<M>& lane,
                                                  float w2, float w3, const BandBuffers& b, const Bins& e,
                                                  double (&sums)[4]) {
  using S = FrameShape<M>;
  constexpr int bins = M + 1;
  const int bands = static_cast<int>(s.bands);
  __syncthreads();
  float linear = 0, logarithmic = 0;
  const auto compare_bands = [&] {
    for (int k = lane.tid; k < S::frames * bands; k += S::threads) {
      const int r = k / bands;
      const Compared c = compare_band<general>(s, int64_t{blockIdx.x} * S::frames + r, k - r * bands,
                                               b.magnitudes + r * bins, b.target_magnitudes + r * bins, w2, w3);
      linear += c.difference, logarithmic += c.log_difference;
      b.slopes[k] = c.slope;
    }
  };
  if constexpr (!general)
    compare_bands();
  else if (s.norms)
    compare_norms<S::threads>(s, S::frames, b.magnitudes, b.target_magnitudes, b.slopes, b.slopes + S::frames * bands,
                              w2, w3, linear, logarithmic);
  else
    compare_bands();
  sums[2] = static_cast<double>(linear), sums[3] = static_cast<double>(logarithmic);
  __syncthreads();
  if (s.gradient[1]) {
    float slope[thread_bins];
#pragma unroll
    for (int j = 0; j < thread_bins; ++j)
      slope[j] = j < lane.bin_count ? bin_slope(s, thread_bin<M>(lane.i, j), b.slopes + lane.frame * bands) : 0.0f;
    from_bins<M, general>(lane.points, s.gradient[0] ? 1 : 0, t, lane.i, e.x, e.m, slope, general && s.power);
  }
}

/// The adjoint transforms of one or two gradients, in the place of the two signals. Real and imaginary parts come out
/// exchanged, as they went in. Rows are not windowed: overlap-add does that.
template <int M>
__device__ __forceinline__ void transform_back(const ScaleView& s, const FusedTables& t, const Lane<M>& lane,
                                               Complex (&v)[2][4], float* rows) {
  constexpr int B = FrameShape<M>::lanes;
  const bool two = s.gradient[0] && s.gradient[1];
  sync_frame<M>();
#pragma unroll
  for (int signal = 0; signal < 2; ++signal)
#pragma unroll
    for (int k = 0; k < 4; ++k)
      v[signal][k] = signal == 0 || two ? lane.points.get(signal, lane.i + k * B) : Complex{0, 0};
  stages<M, 1>(v, two, lane.points, t.twiddles, lane.i);
  if (lane.row >= s.rows) return;
#pragma unroll
  for (int signal = 0; signal < 2; ++signal) {
    if (signal == 1 && !two) continue;
    float2* const to = reinterpret_cast<float2*>(rows + (signal * s.rows + lane.row) * (2 * M));
#pragma unroll
    for (int k = 0; k < 4; ++k) to[lane.i + k * B] = make_float2(v[signal][k].im, v[signal][k].re);
  }
}

/// signals -> spectra -> bins -> bands -> gradients of the spectra -> gradients of the frames. `general`: aligned
/// frames, any MelKind, weights. Without it the kernel is smaller.
template <int M, bool general>
__global__ void __launch_bounds__(FrameShape<M>::threads, FrameShape<M>::blocks(general))
    spectral_fused_kernel(ScaleView s, Framing g, FusedTables t, const float* estimate, const float* target,
                          const int32_t* lengths, float* rows, bool aligned) {
  using S = FrameShape<M>;
  NACRE_SHARED(double, buffer, 4 * (S::threads / 32));
  NACRE_DYNAMIC_SHARED(float, shared);  // points of both signals, then BandBuffers
  float *const magnitudes = shared + S::floats, *const target_magnitudes = magnitudes + S::frames * (M + 1);
  const BandBuffers bands{magnitudes, target_magnitudes, target_magnitudes + S::frames * (M + 1)};
  const int tid = static_cast<int>(threadIdx.x), frame = tid / S::lanes, i = tid % S::lanes;
  const Lane<M> lane{.tid = tid,
                     .frame = frame,
                     .i = i,
                     .row = int64_t{blockIdx.x} * S::frames + frame,
                     .points = {shared, frame * M},
                     .bin_count = i == 0 ? thread_bins : thread_bins - 1};
  const float w0 = s.weights[0], w1 = s.weights[1], w2 = s.weights[2], w3 = s.weights[3];

  Complex v[2][4];
  load_frames<M, general>(s, g, estimate, target, lengths, aligned, lane, v);
  transform<M>(t, lane, v);
  Bins bins;
  double sums[4] = {0, 0, 0, 0};
  compare_bins<M, general>(s, t, lane, w0, w1, bands, bins, sums);
  if (s.mel) compare_all_bands<M, general>(s, t, lane, w2, w3, bands, bins, sums);
  if (s.gradient[0] || s.gradient[1]) transform_back<M>(s, t, lane, v, rows);
  store_sums<S::threads>(s, sums, buffer);
}

/// Bytes of dynamic shared memory: the points, then BandBuffers.
template <int M>
size_t shared_for(const ScaleView& s) {
  const int64_t mel = s.mel ? FrameShape<M>::frames * (2 * s.bins + s.bands + s.norms) : 0;
  return static_cast<size_t>(FrameShape<M>::floats + mel) * sizeof(float);
}
/// Calls f<M> for the M of the scale; returns a default value if there is no kernel for it.
template <class F>
auto with_points(const ScaleView& s, F f) -> decltype(f.template operator()<16>()) {
  switch (s.bins - 1) {
    case 16:
      return f.template operator()<16>();
    case 32:
      return f.template operator()<32>();
    case 64:
      return f.template operator()<64>();
    case 128:
      return f.template operator()<128>();
    case 256:
      return f.template operator()<256>();
    case 512:
      return f.template operator()<512>();
    case 1024:
      return f.template operator()<1024>();
    case 2048:
      return f.template operator()<2048>();
    default:
      return {};
  }
}

}  // namespace

int64_t spectral_fused_parts(const DeviceLimits& d, const ScaleView& s) {
  return with_points(s, [&]<int M>() -> int64_t {
    const size_t buffer = 4 * (FrameShape<M>::threads / 32) * sizeof(double);
    return shared_for<M>(s) + buffer <= d.shared_per_block ? blocks_for(s.rows, FrameShape<M>::frames) : 0;
  });
}
void spectral_fused(Context& ctx, const ScaleView& s, const Framing& g, const FusedTables& t, const float* estimate,
                    const float* target, const int32_t* lengths, float* rows) {
  const auto even = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 8 == 0; };
  const bool aligned = g.hop % 2 == 0 && g.lead % 2 == 0 && g.time % 2 == 0 && even(estimate) && even(target);
  const bool general = s.power || s.norms || s.weighted || 2 * g.lead != g.window;
  with_points(s, [&]<int M>() -> bool {
    launch(ctx,
           {.name = "spectral_fused",
            .grid = blocks_for(s.rows, FrameShape<M>::frames),
            .block = FrameShape<M>::threads,
            .shared_bytes = shared_for<M>(s)},
           general ? spectral_fused_kernel<M, true> : spectral_fused_kernel<M, false>, s, g, t, estimate, target,
           lengths, rows, aligned);
    return true;
  });
}

}  // namespace nacre::cuda
