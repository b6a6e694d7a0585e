#include "spectral_frames.cuh"

// Both directions are gathers: an element of a frame finds its sample, a sample adds its frames in ascending order and
// then those that cover its reflections. P = 4 where everything is a multiple of 4, so that a pack lies in one frame.
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int64_t block_elements = 4096;  // of frames

/// As nacre::reflected. One bounce is what happens; more need a signal shorter than half the window.
__device__ __forceinline__ int64_t reflected(int64_t i, int64_t time) {
  if (i < 0) i = -i;
  if (i < time) return i;
  if (time == 1) return 0;
  const int64_t period = 2 * (time - 1);
  if (i >= period) i %= period;
  return i < time ? i : period - i;
}

template <int P>
__global__ void __launch_bounds__(threads)
    frames_kernel(Framing g, const float* first, const float* second, const int32_t* lengths, float* rows, int frames_per_block,
                  bool aligned) {
  const float* const signal = blockIdx.z == 0 ? first : second;
  const unsigned packs = static_cast<unsigned>(g.window / P);
  const int64_t frame0 = int64_t{blockIdx.x} * frames_per_block, left = g.frames - frame0;
  const unsigned here = static_cast<unsigned>(left < frames_per_block ? left : frames_per_block) * packs;
  for (int64_t b = blockIdx.y; b < g.batch; b += gridDim.y) {
    const Counted c = counted(g, lengths, b);
    const float* const x = signal + b * g.time;
    float* const to = rows + ((int64_t{blockIdx.z} * g.batch + b) * g.frames + frame0) * g.window;
    for (unsigned i = threadIdx.x; i < here; i += threads) {
      const unsigned f = i / packs, n = (i - f * packs) * P;
      const int64_t at = (frame0 + f) * g.hop - g.window / 2 + n;
      float v[P];
      if (frame0 + f >= c.frames) {
#pragma unroll
        for (int k = 0; k < P; ++k) v[k] = 0;
      } else if (P > 1 && aligned && at >= 0 && at + P <= c.samples) {
        const Pack<float> p = load_pack(x + at);
#pragma unroll
        for (int k = 0; k < P; ++k) v[k] = p.v[k] * g.hann[n + k];
      } else {
#pragma unroll
        for (int k = 0; k < P; ++k) {
          int64_t t = at + k;
          if (g.reflect) t = reflected(t, g.time);
          v[k] = t >= 0 && t < c.samples ? x[t] * g.hann[n + k] : 0.0f;
        }
      }
      float* const out = to + int64_t{i} * P;
      if constexpr (P == 1)
        *out = v[0];
      else
        store_pack(out, Pack<float>{v[0], v[1], v[2], v[3]});
    }
  }
}

/// Adds to sum what the counted frames of an item have at position at (at .. at + P - 1), which may lie in the padding.
template <int P>
__device__ __forceinline__ void add_position(const Framing& g, const float* rows, int64_t counted_frames, int64_t at, float (&sum)[P]) {
  const int64_t q = at + g.window / 2;  // in frame 0
  const int64_t high = q / g.hop < counted_frames ? q / g.hop + 1 : counted_frames;
  const int64_t low = q < g.window ? 0 : (q - g.window) / g.hop + 1;
#pragma unroll 4
  for (int64_t f = low; f < high; ++f) {
    const int64_t n = q - f * g.hop;
    if constexpr (P == 1) {
      sum[0] += g.hann[n] * rows[f * g.window + n];
    } else {
      const Pack<float> h = load_pack(g.hann + n), v = load_pack(rows + f * g.window + n);
#pragma unroll
      for (int k = 0; k < P; ++k) sum[k] += h.v[k] * v.v[k];
    }
  }
}

/// The positions of the padding that show sample t: -t, t - period, -t - period ... on the left, 2 (time - 1) - t and so
/// on at the right. At the ends two of these are one.
__device__ float add_reflections(const Framing& g, const float* rows, int64_t counted_frames, int64_t t, float value) {
  const int64_t pad = g.window / 2, period = g.time == 1 ? 1 : 2 * (g.time - 1);
  const bool first = t == 0, last = 2 * t == period;
  const auto add = [&](int64_t at) {
    float sum[1] = {0};
    add_position<1>(g, rows, counted_frames, at, sum);
    value += sum[0];
  };
  for (int64_t base = 0; base <= pad + t; base += period) {
    if (!first && base + t <= pad) add(-t - base);
    if (!last && base + period - t <= pad) add(t - base - period);
  }
  for (int64_t base = period; base - t < g.time + pad; base += period) {
    if (!first && !last) add(base - t);
    if (base + t < g.time + pad) add(base + t);
  }
  return value;
}

template <int P>
__global__ void __launch_bounds__(threads) overlap_add_kernel(Framing g, Overlap first, Overlap second, const int32_t* lengths) {
  const Overlap o = blockIdx.z == 0 ? first : second;
  const int64_t t = grid_thread() * P, pad = g.window / 2;
  if (t >= g.time) return;
  const bool edge = g.reflect && (t <= pad || t + P + pad >= g.time);
  for (int64_t b = blockIdx.y; b < g.batch; b += gridDim.y) {
    const Counted c = counted(g, lengths, b);
    const float* const rows = o.rows + b * g.frames * g.window;
    float* const dx = o.dx + b * g.time + t;
    float v[P];
#pragma unroll
    for (int k = 0; k < P; ++k) v[k] = 0;
    if (t < c.samples) add_position<P>(g, rows, c.frames, t, v);
#pragma unroll
    for (int k = 0; k < P; ++k) {
      if (o.add) v[k] += dx[k];
      if (edge && t + k < c.samples) v[k] = add_reflections(g, rows, c.frames, t + k, v[k]);
      if (t + k >= c.samples) v[k] = o.add ? dx[k] : 0.0f;
    }
    if constexpr (P == 1)
      *dx = v[0];
    else
      store_pack(dx, Pack<float>{v[0], v[1], v[2], v[3]});
  }
}

unsigned items(const Framing& g) { return static_cast<unsigned>(g.batch < 65535 ? g.batch : 65535); }

}  // namespace

void make_frames(Context& ctx, const Framing& g, const float* first, const float* second, const int32_t* lengths, float* rows) {
  const int each = static_cast<int>(g.window < block_elements ? block_elements / g.window : 1);
  const bool packs = g.window % 4 == 0;
  const bool aligned = g.hop % 4 == 0 && g.window % 8 == 0 && g.time % 4 == 0 && aligned16(first) && aligned16(second);
  launch(ctx, {.name = "spectral_frames", .grid = {blocks_for(g.frames, each), items(g), second ? 2u : 1u}, .block = threads},
         packs ? frames_kernel<4> : frames_kernel<1>, g, first, second, lengths, rows, each, aligned);
}

void add_frames(Context& ctx, const Framing& g, const Overlap& first, const Overlap& second, const int32_t* lengths) {
  const bool packs = g.hop % 4 == 0 && g.window % 8 == 0 && g.time % 4 == 0 && aligned16(first.dx) && aligned16(second.dx);
  launch(ctx,
         {.name = packs ? "overlap_add_packs" : "overlap_add",
          .grid = {blocks_for(g.time, threads * (packs ? 4 : 1)), items(g), second.dx ? 2u : 1u},
          .block = threads},
         packs ? overlap_add_kernel<4> : overlap_add_kernel<1>, g, first, second, lengths);
}

}  // namespace nacre::cuda
