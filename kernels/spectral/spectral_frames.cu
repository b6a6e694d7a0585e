#include "spectral/spectral_frames.cuh"

// Framing and overlap-add on the device (contracts: spectral_frames.cuh; twin: framing.cpp). Unlike on the CPU there is
// no padded copy: a position in the padding is mapped to the sample that it repeats whenever it is read.
// Both directions gather: an element of a frame reads its sample; a sample adds its frames in ascending order, then
// those of its reflections. No atomics are needed, and the order of every sum is fixed. P = 4 where sizes and addresses
// allow packs that lie within one frame (see make_frames and add_frames).
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int block_elements = 4096;  // elements of frames per block

/// rows = hann x frames; see make_frames. `limited`: the last frame reaches beyond the trail. `aligned`: signals can be
/// read in packs.
template <int P, bool limited>
__global__ void __launch_bounds__(threads, 4)
    frames_kernel(Framing g, const float* first, const float* second, const int32_t* lengths, float* rows,
                  int frames_per_block, bool aligned) {
  // A block has adjacent frames of one item, whose rows are contiguous in the output: writes are coalesced. blockIdx.y
  // loops over items, because grid.y is limited to 65535; blockIdx.z selects the signal. Bound by memory; samples that
  // frames share come from cache.
  const float* const signal = blockIdx.z == 0 ? first : second;
  const int packs_per_frame = g.window / P, frame0 = static_cast<int>(blockIdx.x) * frames_per_block,
            remaining = g.frames - frame0;
  const int count = (remaining < frames_per_block ? remaining : frames_per_block) * packs_per_frame;
  for (int64_t b = blockIdx.y; b < g.batch; b += gridDim.y) {
    const CountedPart c = counted_part(g, lengths, b);
    const float* const x = signal + b * g.time;
    float* const to = rows + ((int64_t{blockIdx.z} * g.batch + b) * g.frames + frame0) * g.window;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
      // Unsigned 32-bit division, which is several times cheaper than a 64-bit one.
      const int f = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(packs_per_frame)),
                n = (i - f * packs_per_frame) * P;
      const int begin = (frame0 + f) * g.hop - g.lead + n;
      float v[P];
      if (frame0 + f >= c.frames) {
#pragma unroll
        for (int k = 0; k < P; ++k) v[k] = 0;
      } else if (P > 1 && aligned && begin >= 0 && begin + P <= c.samples) {
        const Pack<float> p = load_pack(x + begin), h = load_pack(g.hann + n);
#pragma unroll
        for (int k = 0; k < P; ++k) v[k] = p.v[k] * h.v[k];
      } else {
#pragma unroll
        for (int k = 0; k < P; ++k) v[k] = sample<limited>(g, c, x, begin + k) * g.hann[n + k];
      }
      float* const out = to + int64_t{i} * P;
      if constexpr (P == 1)
        *out = v[0];
      else
        store_pack(out, Pack<float>{v[0], v[1], v[2], v[3]});
    }
  }
}

/// Adds to sum the counted frames of an item at positions position .. position + P - 1, which may be in the padding.
/// Packs and single samples give the same bits, because fmaf leaves the compiler no choice of what to fuse.
template <int P, int at_once = 4>
__device__ __forceinline__ void add_position(const Framing& g, const float* rows, int counted_frames, int position,
                                             float (&sum)[P]) {
  // Frame f starts at f hop - lead. With q = position + lead, it covers the position if f hop <= q < f hop + window.
  const unsigned q = static_cast<unsigned>(position + g.lead), window = static_cast<unsigned>(g.window),
                 hop = static_cast<unsigned>(g.hop);
  const unsigned last = q / hop;  // the last frame that starts at or before the position
  const int high = static_cast<int>(last) < counted_frames ? static_cast<int>(last) + 1 : counted_frames;
  const int low = q < window ? 0 : static_cast<int>((q - window) / hop) + 1;
#pragma unroll at_once
  for (int f = low; f < high; ++f) {
    const int n = static_cast<int>(q) - f * g.hop;
    const float* const row = rows + int64_t{f} * g.window + n;
    if constexpr (P == 1) {
      sum[0] = fmaf(g.hann[n], *row, sum[0]);
    } else {
      const Pack<float> h = load_pack(g.hann + n), v = load_pack(row);
#pragma unroll
      for (int k = 0; k < P; ++k) sum[k] = fmaf(h.v[k], v.v[k], sum[k]);
    }
  }
}

/// Adds the positions in the padding that repeat sample t: -t, t - period, -t - period, ... on the left; 2 (time - 1) -
/// t and so on on the right. For the first and the last sample two of these coincide, and one is skipped.
__device__ __forceinline__ float add_reflections(const Framing& g, const float* rows, int counted_frames, int t,
                                                 float value) {
  const int period = g.time == 1 ? 1 : 2 * (g.time - 1);
  const bool first = t == 0, last = 2 * t == period;
  const auto add = [&](int position) {
    float sum[1] = {0};
    add_position<1, 1>(g, rows, counted_frames, position, sum);
    value += sum[0];
  };
#pragma unroll 1
  // One round per reflection; short signals have several. The order is fixed: left side from the near to the far
  // reflections, then the right side.
  for (int base = 0; base <= g.lead + t; base += period) {
    if (!first && base + t <= g.lead) add(-t - base);
    if (!last && base + period - t <= g.lead) add(t - base - period);
  }
#pragma unroll 1
  for (int base = period; base - t < g.time + g.trail; base += period) {
    if (!first && !last) add(base - t);
    if (base + t < g.time + g.trail) add(base + t);
  }
  return value;
}

/// One sample, with its reflections if `edge`.
template <int at_once>
__device__ __forceinline__ void add_sample(const Framing& g, const CountedPart& c, const float* rows, int t, bool edge,
                                           bool add, float* dx) {
  if (t >= c.samples) {
    if (!add) *dx = 0;
    return;
  }
  float v[1] = {0};
  add_position<1, at_once>(g, rows, c.frames, t, v);
  // dx before the reflections, as on the CPU, where these are added to the sum in dx.
  if (add) v[0] += *dx;
  *dx = edge ? add_reflections(g, rows, c.frames, t, v[0]) : v[0];
}

template <int P>
__global__ void __launch_bounds__(threads)
    overlap_add_kernel(Framing g, Overlap first, Overlap second, const int32_t* lengths) {
  const Overlap o = blockIdx.z == 0 ? first : second;
  const int t = static_cast<int>(grid_thread()) * P;
  // A thread owns P samples of dx in every item and gathers their frames: no two threads write the same sample.
  if (t >= g.time) return;
  const bool edge = g.reflect && (t <= g.lead || t + P + g.trail >= g.time);
  for (int64_t b = blockIdx.y; b < g.batch; b += gridDim.y) {
    const CountedPart c = counted_part(g, lengths, b);
    const float* const rows = o.rows + b * g.frames * g.window;
    float* const dx = o.dx + b * g.time + t;
    // Threads near an end of the signal add reflections, or have samples beyond the item's length. They go sample by
    // sample; all others in packs.
    if (P == 1 || edge || t + P > c.samples) {
#pragma unroll 1
      for (int k = 0; k < P; ++k) add_sample<P == 1 ? 4 : 1>(g, c, rows, t + k, edge, o.add, dx + k);
    } else if constexpr (P > 1) {
      float v[P] = {0, 0, 0, 0};
      add_position<P>(g, rows, c.frames, t, v);
      Pack<float> sum{v[0], v[1], v[2], v[3]};
      if (o.add) {
        const Pack<float> before = load_pack(dx);
#pragma unroll
        for (int k = 0; k < P; ++k) sum.v[k] += before.v[k];
      }
      store_pack(dx, sum);
    }
  }
}

/// Whether samples and elements of frames that meet are at the same place of their packs.
bool in_packs(const Framing& g) { return g.hop % 4 == 0 && g.window % 4 == 0 && g.lead % 4 == 0 && g.time % 4 == 0; }
unsigned items(const Framing& g) { return static_cast<unsigned>(g.batch < 65535 ? g.batch : 65535); }

}  // namespace

void make_frames(Context& ctx, const Framing& g, const float* first, const float* second, const int32_t* lengths,
                 float* rows) {
  const int frames_per_block = g.window < block_elements ? block_elements / g.window : 1;
  // Stores need only a window of whole packs, because `rows` is aligned memory of the plan. Loads need samples and
  // elements of frames to be at the same place of their packs, too.
  const bool vectorized = g.window % 4 == 0;
  const bool aligned = in_packs(g) && aligned16(first) && aligned16(second);
  // Whether the last frame reaches beyond the trail.
  const bool limited = int64_t{g.frames - 1} * g.hop - g.lead + g.window > int64_t{g.time} + g.trail;
  const auto kernel = vectorized ? limited ? frames_kernel<4, true> : frames_kernel<4, false>
                      : limited ? frames_kernel<1, true>
                                 : frames_kernel<1, false>;
  launch(ctx,
         {.name = "spectral_frames",
          .grid = {blocks_for(g.frames, frames_per_block), items(g), second ? 2u : 1u},
          .block = threads},
         kernel, g, first, second, lengths, rows, frames_per_block, aligned);
}

void add_frames(Context& ctx, const Framing& g, const Overlap& first, const Overlap& second, const int32_t* lengths) {
  const bool vectorized = in_packs(g) && aligned16(first.dx) && aligned16(second.dx);
  launch(ctx,
         {.name = vectorized ? "overlap_add_packs" : "overlap_add",
          .grid = {blocks_for(g.time, threads * (vectorized ? 4 : 1)), items(g), second.dx ? 2u : 1u},
          .block = threads},
         vectorized ? overlap_add_kernel<4> : overlap_add_kernel<1>, g, first, second, lengths);
}

}  // namespace nacre::cuda
