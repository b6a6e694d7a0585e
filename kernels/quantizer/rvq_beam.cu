// The codes of rvq_forward with beam > 1. nacre/ops/rvq.h defines the arithmetic. Candidates are compared as 64-bit
// keys, no two of which are equal, so the result does not depend on the order in which candidates are found.
//
// For each stage, pass of sixteen hypotheses and 1024 codes, search_pass takes these steps:
//
//   score all codes  ->  bound_row: a bound per row  ->  collect candidates up to it  ->  merge_row: the best `beam`
//                                                          ^                      |
//                                                          +-- bisect the bound --+  if they do not fit `found`
#include "quantizer/rvq.cuh"

namespace nacre::cuda {
namespace {

constexpr int columns = tile_rows;            ///< hypotheses scored at once
constexpr int max_rows = columns / 2;         ///< rows of a block: one per warp
constexpr int max_hypotheses = max_rvq_beam;  ///< hypotheses of a block
constexpr int groups = tile_threads / 8;      ///< groups of eight lanes; each provides its least score
constexpr int found_keys = 1024;              ///< candidates that a block can hold at once
constexpr float largest = 3.402823466e38f;
static_assert(max_rows == tile_warps && groups == 32 && max_hypotheses >= columns);

/// Layout of a block: `rows` rows of `beam` columns each, scored in passes of sixteen columns. A column is a
/// hypothesis.
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

/// A score as an unsigned integer of the same order; no_score for NaN and +inf.
constexpr uint32_t no_score = 0xffffffffu;
__device__ __forceinline__ uint32_t ordered(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes +0: they compare equal
  const uint32_t order = bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
  return score <= largest ? order : no_score;
}
__device__ __forceinline__ uint64_t key_of(uint32_t order, uint32_t id) { return uint64_t{order} << 32 | id; }

/// State of a block, in shared memory.
struct State {
  uint64_t kept[2][max_hypotheses];      ///< keys kept, row after row, best first; two buffers, which merge_row swaps
  uint64_t found[found_keys];            ///< keys of collected candidates, row after row
  uint64_t bounds[columns];              ///< candidates of a column with keys up to this are collected
  uint64_t low[max_rows];                ///< bisection of a row's bound: had too few candidates
  uint64_t high[max_rows];               ///< had too many; 0: no bound had
  unsigned long long nearest[max_rows];  ///< nearest code of the greedy hypothesis: ordered half distance, then code
  float energy[max_hypotheses];          ///< half energies; +inf for columns without a hypothesis
  uint32_t least[columns][groups];       ///< least score of each group of lanes, as ordered()
  int live[max_rows], counts[max_rows];  ///< number of keys kept, and found
  int stages_used[max_rows];             ///< number of stages after which only the best hypothesis continues
  int row_of[max_hypotheses];            ///< row of each column; unused columns have `rows`
  int greedy[max_rows];                  ///< hypothesis with the codes of beam = 1; -1: they have no finite score
};

/// A warp sets the bound of its row: at least `beam` candidates, including kept ones, are not above it, and few more.
/// The candidates form 64 sets: those of one group of lanes in even columns, and in odd columns. Each set has a least
/// score, and the beam-th smallest of these is a bound, because `beam` sets have a candidate up to it. If fewer than
/// `beam` sets have a candidate (few codes, or the first stage of a wide beam), every candidate passes.
__device__ __forceinline__ void bound_row(State& b, int iterations, const Layout& l, int pass) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x) / 32;
  // Columns of the row within this pass. A beam wider than sixteen spreads over passes, and a pass of narrow beams has
  // several rows.
  const int begin = row * l.beam - pass * columns < 0 ? 0 : row * l.beam - pass * columns;
  const int row_end = (row + 1) * l.beam - pass * columns, end = row_end < columns ? row_end : columns;
  uint32_t even = no_score, odd = no_score;  // least scores of the even and of the odd columns
  for (int c = begin; c < end; ++c) {
    const uint32_t least = b.least[c][lane];
    if (c % 2 == 0)
      even = least < even ? least : even;
    else
      odd = least < odd ? least : odd;
  }
  // The rank of each of the 64 least scores; ties by lane, even before odd, so that every rank occurs once.
  int even_rank = 0, odd_rank = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t e = __shfl_sync(full_warp, even, i), o = __shfl_sync(full_warp, odd, i);
    even_rank += (e < even || (e == even && i < lane) ? 1 : 0) + (o < even ? 1 : 0);
    odd_rank += (e <= odd ? 1 : 0) + (o < odd || (o == odd && i < lane) ? 1 : 0);
  }
  const uint32_t candidate = even_rank == l.beam - 1 ? even : (odd_rank == l.beam - 1 ? odd : no_score);
  uint64_t bound = key_of(__reduce_min_sync(full_warp, candidate), 0xffffffffu);
  // With a full list, nothing above its worst key can be kept.
  if (b.live[row] == l.beam) {
    const uint64_t worst = b.kept[iterations % 2][row * l.beam + l.beam - 1];
    bound = worst < bound ? worst : bound;
  }
  for (int c = begin + lane; c < end; c += 32) b.bounds[c] = bound;
  __syncwarp();
  if (lane == 0) b.counts[row] = 0, b.low[row] = 0, b.high[row] = 0;
}

/// A warp merges the kept and the found keys of its row and keeps the best `beam`. All keys differ, so the rank of a
/// key is the number of smaller ones.
__device__ __forceinline__ void merge_row(State& b, int iterations, const Layout& l) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x) / 32;
  const int live = b.live[row], n = live + b.counts[row];
  const uint64_t *kept = b.kept[iterations % 2] + row * l.beam, *found = b.found + row * (found_keys / l.rows);
  for (int i = lane; i < n; i += 32) {
    const uint64_t key = i < live ? kept[i] : found[i - live];
    // All lanes read the same key of the lists: broadcasts. The lists are short, because few candidates pass the bound.
    int rank = 0;
    for (int j = 0; j < live; ++j) rank += kept[j] < key ? 1 : 0;
    for (int j = 0; j < n - live; ++j) rank += found[j] < key ? 1 : 0;
    if (rank < l.beam) b.kept[(iterations + 1) % 2][row * l.beam + rank] = key;
  }
  __syncwarp();
  if (lane == 0) b.live[row] = n < l.beam ? n : l.beam;
}

/// A warp puts the greedy continuation of its row into the last slot if it is not among those kept. It is found by
/// half distance, as beam = 1 finds it: scores are sums and round, so codes may share the least score.
__device__ __forceinline__ void keep_greedy(State& b, int iterations, const Layout& l, uint32_t codes) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x) / 32;
  const int live = b.live[row], parent = b.greedy[row];
  const OrderedBest nearest{static_cast<uint32_t>(b.nearest[row] >> 32), static_cast<uint32_t>(b.nearest[row])};
  uint64_t* const kept = b.kept[iterations % 2] + row * l.beam;
  uint32_t order = no_score;
  if (parent >= 0 && half_distance(nearest) <= largest)
    order = ordered(__fadd_rn(half_distance(nearest), b.energy[row * l.beam + parent]));
  int slot = -1;
  if (order != no_score) {
    // All candidates of a list that is not full are in it, so the last slot is that of a full list.
    const uint64_t key = key_of(order, static_cast<uint32_t>(parent) * codes + nearest.k);
    slot = l.beam - 1;
    for (int first = 0; first < live; first += 32) {
      const unsigned found = __ballot_sync(full_warp, first + lane < live && kept[first + lane] == key);
      if (found != 0) slot = first + __ffs(static_cast<int>(found)) - 1;
    }
    __syncwarp();
    if (lane == 0) kept[slot] = key;
  }
  __syncwarp();
  if (lane == 0) b.greedy[row] = slot;
}

/// One pass of sixteen hypotheses over a codebook, 1024 codes at a time. The caller synchronises the block before and
/// after. `iterations` counts the steps of all passes; its parity selects the current buffer of `kept`.
__device__ __forceinline__ void search_pass(State& b, int& iterations, const Layout& l, int pass, const float* x,
                                            int dim, const float* prepared, int padded, uint32_t codes) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int capacity = found_keys / l.rows, used_columns = l.rows * l.beam - pass * columns;
  unsigned watched = 0;  // bit per column: greedy hypotheses
  for (int r = 0; r < l.rows; ++r) {
    const int c = r * l.beam + b.greedy[r] - pass * columns;
    if (b.greedy[r] >= 0 && c >= 0 && c < columns) watched |= 1u << c;
  }
#pragma unroll 1
  for (int begin_code = 0; begin_code < padded; begin_code += tile_codes) {
    const int k = begin_code + static_cast<int>(threadIdx.x) * 4;
    // The scores stay in registers through all attempts: `orders` is what each attempt compares.
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
      uint32_t least = no_score;
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
      if ((watched >> c & 1u) != 0) {
        Best best = no_code();
#pragma unroll
        for (int t = 0; t < 4; ++t)
          if (h[c][t] < best.h) best.h = h[c][t], best.k = k + t;
        const OrderedBest of_warp = warp_ordered_best(best);
        if (lane == 0) atomicMin(b.nearest + b.row_of[pass * columns + c], uint64_t{of_warp.h} << 32 | of_warp.k);
      }
    }
    __syncthreads();
    if (warp < l.rows) bound_row(b, iterations, l, pass);
    __syncthreads();
    // Collect candidates up to the bound. If they do not fit `found`, bisect the bound until at least `beam` candidates
    // pass and all of them fit. Such a bound exists because no two keys are equal. If at least `beam` sets have a
    // candidate, the first bound usually does.
#pragma unroll 1
    while (true) {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        const uint64_t bound = c < used_columns ? b.bounds[c] : 0;
        const auto bound_order = static_cast<uint32_t>(bound >> 32);
        const int row = b.row_of[pass * columns + c], hypothesis = pass * columns + c - row * l.beam;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          if (orders[c][t] > bound_order || orders[c][t] == no_score) continue;
          const uint64_t key =
              key_of(orders[c][t], static_cast<uint32_t>(hypothesis) * codes + static_cast<uint32_t>(k + t));
          if (key > bound) continue;
          // The slot in `found` depends on timing, the set of keys does not; merge_row() orders them by value.
          const int at = atomicAdd(b.counts + row, 1);
          if (at < capacity) b.found[row * capacity + at] = key;
        }
      }
      __syncthreads();
      // All threads compute the same answer from shared memory. The barrier afterwards keeps a warp from resetting the
      // counts before others have read them.
      bool retry = false;
      for (int r = 0; r < l.rows; ++r)
        retry = retry || b.counts[r] > capacity || (b.high[r] != 0 && b.counts[r] < l.beam);
      __syncthreads();
      if (!retry) break;
      if (warp < l.rows) {
        const int first_column = warp * l.beam - pass * columns < 0 ? 0 : warp * l.beam - pass * columns;
        const int row_end = (warp + 1) * l.beam - pass * columns, end_column = row_end < columns ? row_end : columns;
        const int count = b.counts[warp];
        uint64_t bound = b.bounds[first_column];
        uint64_t low = b.low[warp], high = b.high[warp];
        __syncwarp();
        // `low` and `high` bracket the bound. While high is 0, no bound had too many, so a count below `beam` means
        // that there are no more candidates.
        const bool too_many = count > capacity, too_few = high != 0 && count < l.beam;
        if (too_many) high = bound;
        if (too_few) low = bound;
        if (too_many || too_few) bound = low + (high - low) / 2;
        for (int c = first_column + lane; c < end_column; c += 32) b.bounds[c] = bound;
        if (lane == 0) b.counts[warp] = 0, b.low[warp] = low, b.high[warp] = high;
      }
      __syncthreads();
    }
    if (warp < l.rows) merge_row(b, iterations, l);
    ++iterations;
    __syncthreads();
  }
}

/// A block takes its rows through all stages, then the next rows, a grid apart. Residuals of this stage and of the next
/// are in shared memory if they fit, else in scratch. Paths (parent hypothesis and code of each row, stage and
/// hypothesis) are in scratch. For 800 rows, 8 stages of 1024 codes of 40 channels and 16 hypotheses: 8.4 GFLOP, 0.2 ms
/// at the peak.
template <bool in_shared>
__global__ void __launch_bounds__(tile_threads, 2)
    rvq_beam_kernel(RvqForward a, RvqSizes n, Layout l, const float* prepared, float* scratch) {
  NACRE_DYNAMIC_SHARED(float, dynamic);
  NACRE_SHARED(State, state, 1);
  State& b = *state;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = static_cast<int>(n.dim), stages = static_cast<int>(n.stages);
  const auto codes = static_cast<uint32_t>(n.codes);
  // A set is the residuals of all hypotheses of a block, [pass][channel][tile_pitch]; there are two, for this stage and
  // the next.
  const int set_floats = l.passes * static_cast<int>(tile_floats(dim)), hypotheses = l.rows * l.beam;
  const int64_t path_size = path_floats(l, stages);
  auto* paths = reinterpret_cast<uint32_t*>(scratch) + blockIdx.x * path_size;
  float* residuals = in_shared ? dynamic : scratch + gridDim.x * path_size + int64_t{blockIdx.x} * 2 * set_floats;
  const int64_t padded = padded_codes(n.codes);

  int iterations = 0;
  if (threadIdx.x < max_hypotheses) {
    const int row = static_cast<int>(threadIdx.x) / l.beam;
    b.row_of[threadIdx.x] = row < l.rows ? row : l.rows;
  }
#pragma unroll 1
  for (int64_t first = int64_t{blockIdx.x} * l.rows; first < n.rows; first += int64_t{gridDim.x} * l.rows) {
    float *current = residuals, *next = residuals + set_floats;
    const auto column = [&](float* x, int c) { return x + c / columns * tile_floats(dim) + c % columns; };
    // Unused columns stay zero: tile_scores() computes them, too, and their infinite energy excludes them.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * set_floats; i += tile_threads) residuals[i] = 0;
    if (static_cast<int>(threadIdx.x) < l.rows) {
      const int64_t row = first + static_cast<int>(threadIdx.x);
      b.live[threadIdx.x] = row < n.rows ? 1 : 0, b.greedy[threadIdx.x] = row < n.rows ? 0 : -1;
      b.stages_used[threadIdx.x] =
          row < n.rows && a.stages.data != nullptr ? a.stages.data[row / a.z.shape.time] : stages;
    }
    __syncthreads();
    if (warp < l.rows && first + warp < n.rows)
      for (int d = lane; d < dim; d += 32)
        column(current, warp * l.beam)[d * tile_pitch] = a.z.data[(first + warp) * dim + d];
#pragma unroll 1
    for (int s = 0; s < stages; ++s) {
      __syncthreads();
      // A thread per column adds its energy in channel order, as on the CPU.
      if (static_cast<int>(threadIdx.x) < l.passes * columns) {
        const int c = static_cast<int>(threadIdx.x), row = b.row_of[c];
        float e = no_code().h;
        if (row < l.rows && c - row * l.beam < b.live[row]) {
          const float* x = column(current, c);
          float sum = 0;
#pragma unroll 4
          for (int d = 0; d < dim; ++d) sum = __fmaf_rn(x[d * tile_pitch], x[d * tile_pitch], sum);
          e = 0.5f * sum;
        }
        b.energy[c] = e;
      }
      __syncthreads();
      // From here on `live` counts the keys kept in this stage. The barriers around it separate the readers of the old
      // count (energies) from this write, and this write from the search.
      if (static_cast<int>(threadIdx.x) < l.rows) b.live[threadIdx.x] = 0, b.nearest[threadIdx.x] = ~0ull;
      __syncthreads();
#pragma unroll 1
      for (int pass = 0; pass < l.passes; ++pass)
        search_pass(b, iterations, l, pass, current + pass * static_cast<int>(tile_floats(dim)), dim,
                    prepared + s * prepared_size(n.codes, dim), static_cast<int>(padded), codes);
      if (warp < l.rows) keep_greedy(b, iterations, l, codes);
      if (warp < l.rows && lane == 0) {
        // NaN or overflow: code 0 of the best hypothesis.
        if (b.live[warp] == 0) b.kept[iterations % 2][warp * l.beam] = 0, b.live[warp] = 1;
        if (s + 1 == b.stages_used[warp]) b.live[warp] = 1, b.greedy[warp] = 0;
      }
      __syncthreads();
#pragma unroll 1
      for (int c = warp; c < hypotheses; c += tile_warps) {
        // A warp per hypothesis: its parent's residual minus its code. Parents are in `current`, children in `next`, so
        // no order among warps is needed.
        const int row = b.row_of[c], j = c - row * l.beam;
        if (j >= b.live[row]) continue;
        const auto id = static_cast<uint32_t>(b.kept[iterations % 2][c]), parent = id / codes;
        if (lane == 0) paths[(row * stages + s) * l.beam + j] = id;
        const float* code = a.codebooks.data + (s * n.codes + id - parent * codes) * dim;
        const float* from = column(current, row * l.beam + static_cast<int>(parent));
        float* to = column(next, c);
        for (int d = lane; d < dim; d += 32) to[d * tile_pitch] = from[d * tile_pitch] - code[d];
      }
      float* const previous = current;
      current = next, next = previous;
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < l.rows && first + static_cast<int>(threadIdx.x) < n.rows) {
      const int r = static_cast<int>(threadIdx.x);
      // From the last stage back: hypothesis 0 is the best.
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

/// How the kernel runs for a shape: the layout of a block, how many blocks, and where the residuals of a block are.
struct Shapes {
  Layout layout;
  int64_t blocks;
  int64_t residuals, paths;  ///< floats per block
  bool in_shared;
};
Shapes shapes_of(const Context& ctx, const RvqSizes& n, int64_t beam) {
  Shapes s{};
  s.layout = layout_of(beam);
  // Scratch is needed per block, not per row: the blocks loop over the rows.
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
