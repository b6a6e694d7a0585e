// The codes of rvq_forward with beam > 1. The arithmetic is given in nacre/ops/rvq.h; candidates are compared as 64-bit
// keys, of which no two are equal: whatever order they are found in, the same ones stay.
#include "quantizer/rvq.cuh"

namespace nacre::cuda {
namespace {

constexpr int columns = tile_rows;            ///< hypotheses scored at once
constexpr int max_rows = columns / 2;         ///< of a block: one for each of its warps
constexpr int max_hypotheses = max_rvq_beam;  ///< of a block
constexpr int groups = tile_threads / 8;      ///< of eight lanes, each with its least score
constexpr int found_keys = 1024;              ///< candidates that a block can hold at once
constexpr float largest = 3.402823466e38f;
static_assert(max_rows == tile_warps && groups == 32 && max_hypotheses >= columns);

/// How a block is laid out: `rows` rows with `beam` columns each, sixteen columns a pass.
struct Layout {
  int rows, beam, passes;
};
Layout layout_of(int64_t beam) {
  const int b = static_cast<int>(beam);
  return {b > columns ? 1 : columns / b, b, b > columns ? ceil_div(b, columns) : 1};
}

/// Floats of a block's paths, 16-byte aligned.
__host__ __device__ inline int64_t path_floats(const Layout& l, int64_t stages) {
  return ceil_div(int64_t{l.rows} * l.beam * stages, int64_t{4}) * 4;
}

/// Orders as the score does; what is NaN or not below +inf is `nothing`.
constexpr uint32_t nothing = 0xffffffffu;
__device__ __forceinline__ uint32_t ordered(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 is no less than +0
  const uint32_t order = bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
  return score <= largest ? order : nothing;
}
__device__ __forceinline__ uint64_t key_of(uint32_t order, uint32_t id) { return uint64_t{order} << 32 | id; }

/// What a block knows, in shared memory.
struct State {
  uint64_t kept[2][max_hypotheses];      ///< row after row, best first; before and after a turn
  uint64_t found[found_keys];            ///< row after row
  uint64_t bounds[columns];              ///< candidates of a column up to here are taken
  uint64_t low[max_rows];                ///< bounds that had too few candidates,
  uint64_t high[max_rows];               ///< and too many; 0: none had
  float energy[max_hypotheses];          ///< half; +inf where there is no hypothesis
  uint32_t least[columns][groups];       ///< scores, ordered
  int live[max_rows], counts[max_rows];  ///< keys kept, and found
  int cuts[max_rows];                    ///< stages after which only the best hypothesis goes on
  int row_of[max_hypotheses];            ///< row of a column; those without one have `rows`
};

/// A warp bounds its row: at least `beam` candidates, kept ones included, are no worse, and few more. Sixty-four sets of
/// candidates have a least score each; the beam-th of these is a bound, for so many sets have a candidate up to it. With
/// fewer filled sets than `beam` (few codes, or the first stage of a wide beam) every candidate passes.
__device__ __forceinline__ void bound_row(State& b, int turns, const Layout& l, int pass) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x) / 32;
  const int begin = row * l.beam - pass * columns < 0 ? 0 : row * l.beam - pass * columns;
  const int row_end = (row + 1) * l.beam - pass * columns, end = row_end < columns ? row_end : columns;
  uint32_t even = nothing, odd = nothing;  // of the columns with such numbers
  for (int c = begin; c < end; ++c) {
    const uint32_t here = b.least[c][lane];
    if (c % 2 == 0)
      even = here < even ? here : even;
    else
      odd = here < odd ? here : odd;
  }
  int even_rank = 0, odd_rank = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t e = __shfl_sync(full_warp, even, i), o = __shfl_sync(full_warp, odd, i);
    even_rank += (e < even || (e == even && i < lane) ? 1 : 0) + (o < even ? 1 : 0);
    odd_rank += (e <= odd ? 1 : 0) + (o < odd || (o == odd && i < lane) ? 1 : 0);
  }
  const uint32_t mine = even_rank == l.beam - 1 ? even : (odd_rank == l.beam - 1 ? odd : nothing);
  uint64_t bound = key_of(__reduce_min_sync(full_warp, mine), 0xffffffffu);
  if (b.live[row] == l.beam) {
    const uint64_t worst = b.kept[turns % 2][row * l.beam + l.beam - 1];
    bound = worst < bound ? worst : bound;
  }
  for (int c = begin + lane; c < end; c += 32) b.bounds[c] = bound;
  __syncwarp();
  if (lane == 0) b.counts[row] = 0, b.low[row] = 0, b.high[row] = 0;
}

/// The best of what a row kept and found become what it keeps. All keys differ, so a key's place is how many are less.
__device__ __forceinline__ void merge_row(State& b, int turns, const Layout& l) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x) / 32;
  const int live = b.live[row], n = live + b.counts[row];
  const uint64_t *kept = b.kept[turns % 2] + row * l.beam, *found = b.found + row * (found_keys / l.rows);
  for (int i = lane; i < n; i += 32) {
    const uint64_t key = i < live ? kept[i] : found[i - live];
    int rank = 0;
    for (int j = 0; j < live; ++j) rank += kept[j] < key ? 1 : 0;
    for (int j = 0; j < n - live; ++j) rank += found[j] < key ? 1 : 0;
    if (rank < l.beam) b.kept[(turns + 1) % 2][row * l.beam + rank] = key;
  }
  __syncwarp();
  if (lane == 0) b.live[row] = n < l.beam ? n : l.beam;
}

/// One pass of sixteen hypotheses over a codebook, 1024 codes at a time. The block meets before and after. `turns`
/// counts them all: after each, the other half of `kept` holds what is kept.
__device__ __forceinline__ void search_pass(State& b, int& turns, const Layout& l, int pass, const float* x, int dim,
                                            const float* prepared, int padded, uint32_t codes) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int capacity = found_keys / l.rows, used = l.rows * l.beam - pass * columns;
#pragma unroll 1
  for (int turn = 0; turn < padded; turn += tile_turn) {
    const int k = turn + static_cast<int>(threadIdx.x) * 4;
    float h[columns][4];
    uint32_t orders[columns][4];
    if (k < padded) {
      tile_scores(x, dim, prepared, padded, k, h);
    } else {
#pragma unroll
      for (int c = 0; c < columns; ++c)
#pragma unroll
        for (int t = 0; t < 4; ++t) h[c][t] = no_code().h;
    }
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const float energy = b.energy[pass * columns + c];
      uint32_t least = nothing;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        orders[c][t] = ordered(__fadd_rn(h[c][t], energy));
        least = orders[c][t] < least ? orders[c][t] : least;
      }
#pragma unroll
      for (int lanes = 4; lanes > 0; lanes /= 2) {
        const uint32_t other = __shfl_xor_sync(full_warp, least, lanes);
        least = other < least ? other : least;
      }
      if (lane % 8 == 0) b.least[c][threadIdx.x / 8] = least;
    }
    __syncthreads();
    if (warp < l.rows) bound_row(b, turns, l, pass);
    __syncthreads();
    // Once, where at least `beam` sets are filled. Where more candidates pass than there is room for, their bound is halved into a range that has
    // at least `beam` and fits: as no two keys are equal, there is one.
#pragma unroll 1
    while (true) {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        const uint64_t bound = c < used ? b.bounds[c] : 0;
        const auto bound_order = static_cast<uint32_t>(bound >> 32);
        const int row = b.row_of[pass * columns + c], hypothesis = pass * columns + c - row * l.beam;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          if (orders[c][t] > bound_order || orders[c][t] == nothing) continue;
          const uint64_t key =
              key_of(orders[c][t], static_cast<uint32_t>(hypothesis) * codes + static_cast<uint32_t>(k + t));
          if (key > bound) continue;
          const int at = atomicAdd(b.counts + row, 1);
          if (at < capacity) b.found[row * capacity + at] = key;
        }
      }
      __syncthreads();
      bool again = false;
      for (int r = 0; r < l.rows; ++r)
        again = again || b.counts[r] > capacity || (b.high[r] != 0 && b.counts[r] < l.beam);
      __syncthreads();
      if (!again) break;
      if (warp < l.rows) {
        const int begin = warp * l.beam - pass * columns < 0 ? 0 : warp * l.beam - pass * columns;
        const int row_end = (warp + 1) * l.beam - pass * columns, end = row_end < columns ? row_end : columns;
        const int count = b.counts[warp];
        uint64_t bound = b.bounds[begin];
        uint64_t low = b.low[warp], high = b.high[warp];
        __syncwarp();
        const bool many = count > capacity, few = high != 0 && count < l.beam;
        if (many) high = bound;
        if (few) low = bound;
        if (many || few) bound = low + (high - low) / 2;
        for (int c = begin + lane; c < end; c += 32) b.bounds[c] = bound;
        if (lane == 0) b.counts[warp] = 0, b.low[warp] = low, b.high[warp] = high;
      }
      __syncthreads();
    }
    if (warp < l.rows) merge_row(b, turns, l);
    ++turns;
    __syncthreads();
  }
}

/// A block takes its rows through all stages and turns to the next ones. Residuals, of this stage and of the next, lie in
/// shared memory or, where it holds too little, in scratch; paths (a hypothesis and a code per row, stage and hypothesis)
/// in scratch. For 800 rows, 8 stages of 1024 codes of 40 channels and 16 hypotheses: 8.4 GFLOP, 0.2 ms at the peak.
template <bool in_shared>
__global__ void __launch_bounds__(tile_threads, 2)
    rvq_beam_kernel(RvqForward a, RvqSizes n, Layout l, const float* prepared, float* scratch) {
  NACRE_DYNAMIC_SHARED(float, dynamic);
  NACRE_SHARED(State, state, 1);
  State& b = *state;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = static_cast<int>(n.dim), stages = static_cast<int>(n.stages);
  const auto codes = static_cast<uint32_t>(n.codes);
  const int set = l.passes * static_cast<int>(tile_floats(dim)), slots = l.rows * l.beam;
  const int64_t path_size = path_floats(l, stages);
  auto* paths = reinterpret_cast<uint32_t*>(scratch) + blockIdx.x * path_size;
  float* residuals = in_shared ? dynamic : scratch + gridDim.x * path_size + int64_t{blockIdx.x} * 2 * set;
  const int64_t padded = padded_codes(n.codes);

  int turns = 0;
  if (threadIdx.x < max_hypotheses) {
    const int row = static_cast<int>(threadIdx.x) / l.beam;
    b.row_of[threadIdx.x] = row < l.rows ? row : l.rows;
  }
#pragma unroll 1
  for (int64_t first = int64_t{blockIdx.x} * l.rows; first < n.rows; first += int64_t{gridDim.x} * l.rows) {
    float *here = residuals, *next = residuals + set;
    const auto column = [&](float* x, int c) { return x + c / columns * tile_floats(dim) + c % columns; };
    for (int i = static_cast<int>(threadIdx.x); i < 2 * set; i += tile_threads) residuals[i] = 0;
    if (static_cast<int>(threadIdx.x) < l.rows) {
      const int64_t row = first + static_cast<int>(threadIdx.x);
      b.live[threadIdx.x] = row < n.rows ? 1 : 0;
      b.cuts[threadIdx.x] = row < n.rows && a.stages.data != nullptr ? a.stages.data[row / a.z.shape.time] : stages;
    }
    __syncthreads();
    if (warp < l.rows && first + warp < n.rows)
      for (int d = lane; d < dim; d += 32)
        column(here, warp * l.beam)[d * tile_pitch] = a.z.data[(first + warp) * dim + d];
#pragma unroll 1
    for (int s = 0; s < stages; ++s) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < l.passes * columns) {
        const int c = static_cast<int>(threadIdx.x), row = b.row_of[c];
        float e = no_code().h;
        if (row < l.rows && c - row * l.beam < b.live[row]) {
          const float* x = column(here, c);
          float sum = 0;
#pragma unroll 4
          for (int d = 0; d < dim; ++d) sum = __fmaf_rn(x[d * tile_pitch], x[d * tile_pitch], sum);
          e = 0.5f * sum;
        }
        b.energy[c] = e;
      }
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < l.rows) b.live[threadIdx.x] = 0;
      __syncthreads();
#pragma unroll 1
      for (int pass = 0; pass < l.passes; ++pass)
        search_pass(b, turns, l, pass, here + pass * static_cast<int>(tile_floats(dim)), dim,
                    prepared + s * prepared_size(n.codes, dim), static_cast<int>(padded), codes);
      if (static_cast<int>(threadIdx.x) < l.rows) {
        const int r = static_cast<int>(threadIdx.x);
        // NaN or overflow: code 0 of the first hypothesis.
        if (b.live[r] == 0) b.kept[turns % 2][r * l.beam] = 0;
        if (b.live[r] == 0 || s + 1 == b.cuts[r]) b.live[r] = 1;
      }
      __syncthreads();
#pragma unroll 1
      for (int c = warp; c < slots; c += tile_warps) {
        const int row = b.row_of[c], j = c - row * l.beam;
        if (j >= b.live[row]) continue;
        const auto id = static_cast<uint32_t>(b.kept[turns % 2][c]), parent = id / codes;
        if (lane == 0) paths[(row * stages + s) * l.beam + j] = id;
        const float* code = a.codebooks.data + (s * n.codes + id - parent * codes) * dim;
        const float* from = column(here, row * l.beam + static_cast<int>(parent));
        float* to = column(next, c);
        for (int d = lane; d < dim; d += 32) to[d * tile_pitch] = from[d * tile_pitch] - code[d];
      }
      float* const before = here;
      here = next, next = before;
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < l.rows && first + static_cast<int>(threadIdx.x) < n.rows) {
      const int r = static_cast<int>(threadIdx.x);
      uint32_t j = 0;
      for (int s = stages - 1; s >= 0; --s) {
        const uint32_t id = paths[(r * stages + s) * l.beam + static_cast<int>(j)];
        j = id / codes;
        a.codes.data[(first + r) * stages + s] = static_cast<int32_t>(id - j * codes);
      }
    }
    __syncthreads();
  }
}

struct Shapes {
  Layout layout;
  int64_t blocks, residuals, paths;  ///< floats of a block
  bool in_shared;
};
Shapes shapes_of(const Context& ctx, const RvqSizes& n, int64_t beam) {
  Shapes s{};
  s.layout = layout_of(beam);
  s.blocks = std::min(ceil_div(n.rows, int64_t{s.layout.rows}), two_blocks_each(limits(ctx)));
  s.residuals = 2 * s.layout.passes * tile_floats(n.dim);
  s.paths = path_floats(s.layout, n.stages);
  s.in_shared = static_cast<size_t>(s.residuals) * 4 + sizeof(State) <= limits(ctx).shared_per_block;
  return s;
}

}  // namespace

int64_t rvq_beam_size(const Context& ctx, const RvqSizes& n, int64_t beam) {
  const Shapes s = shapes_of(ctx, n, beam);
  return scratch_slack + s.blocks * (s.paths + (s.in_shared ? 0 : s.residuals));
}

void rvq_beam_codes(Context& ctx, const RvqForward& a, const RvqSizes& n, const float* prepared, float* scratch) {
  const Shapes s = shapes_of(ctx, n, a.beam);
  launch(ctx,
         {.name = s.in_shared ? "rvq_beam" : "rvq_beam_long",
          .grid = static_cast<unsigned>(s.blocks),
          .block = tile_threads,
          .shared_bytes = s.in_shared ? static_cast<size_t>(s.residuals) * sizeof(float) : 0},
         s.in_shared ? rvq_beam_kernel<true> : rvq_beam_kernel<false>, a, n, s.layout, prepared,
         aligned_scratch(scratch));
}

}  // namespace nacre::cuda
