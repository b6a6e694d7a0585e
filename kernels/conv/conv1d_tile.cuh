#pragma once
// Convolution as an implicit matrix product over shifted rows. Channels are innermost, so x is a matrix with one row
// per sample, and each tap multiplies the same matrix some rows further down. A block keeps one tile of x with its halo
// in shared memory, and all taps read that tile, at any dilation. A block computes BM rows by BN columns of the result.
// The outer loop runs over chunks of 128 bytes of the reduced channels (32 floats, 64 bf16), the inner loop over the
// taps. cp.async fetches one tile of x per chunk and one tile of weights per tap, `stages` - 1 steps ahead of their
// use.
//
// One description (Shifted) covers three uses:
//   forward, stride 1       row t of a is sample t - left of x; tap u reads `dilation` * u rows further down
//   forward, stride s       a row of a holds s samples (s in columns), and a tap of the product covers s taps of the
//                           kernel, so a kernel of 2 s taps becomes two taps; the weights are the same memory
//   input gradient          taps run backwards and the weights are read transposed; with stride s a row of the result
//                           holds s samples, which is the layout of the upsampled signal in memory
//
// The items of a batch are stacked, so a tile may span several items. In shared memory each item's rows of x are
// followed by its halo. In the numbering of the result's rows there are two choices (lay_items in choose_cuda.cpp):
// either each item includes its halo, whose rows are computed and dropped, or the halo is a gap that only x's tile has.
// The gap is used
//   - where every item consists of whole groups of 64 rows, so that the rows of a warp belong to one item. Then batches
//     such as [16 | 72][16896 / 2^n][C] fill the 132 multiprocessors of an H200 in whole rounds, which they would not
//     with the halo's rows;
//   - on tensor cores, where each lane looks up its own rows, also where the gap saves a round of blocks.
//
// A warp's products are computed by an engine (conv1d_engines.cuh). Policies change x after it has arrived in shared
// memory (PlainInput) and finish the result before it is stored (PlainOutput).
//
// Costs for seven taps of bf16 in tiles of 256 x 128: 21 KB through cp.async per 4.2 million operations, which is 3
// TB/s from L2 at 600 TFLOP/s; 31 bytes read from shared memory per thousand operations, of the 49 that it can deliver
// at that rate. x is read once per column of tiles, from DRAM once (ResultTile), and the result is written once.
#include "conv/choose_cuda.h"
#include "conv/conv1d_pipeline.cuh"

namespace nacre::cuda::tile {

__device__ __forceinline__ int clamp_to(int64_t v, int most) {
  return v < 0 ? 0 : (v < most ? static_cast<int>(v) : most);
}

/// Item and row within it, for a row number counted over all items. The first is found by division, others by advancing
/// from it: by rows of the result (gap 0) or by rows of x's tile, which include the gaps.
struct ItemRow {
  int64_t item, row;
  __device__ __forceinline__ ItemRow(const Shifted& s, int64_t v)
      : item(v / s.virtual_rows), row(v - item * s.virtual_rows) {}
  __device__ __forceinline__ ItemRow(const ItemRow& p, const Shifted& s, int offset, int gap = 0)
      : item(p.item), row(p.row + offset) {
    while (row >= s.virtual_rows + gap) row -= s.virtual_rows + gap, ++item;
  }
};
__device__ __forceinline__ OutputRow output_row(const Shifted& s, const ItemRow& p) {
  const int64_t start = p.row * s.out_pitch - s.out_offset;
  OutputRow row{p.item * s.out_item + start, clamp_to(s.out_begin - start, s.columns),
                clamp_to(s.out_end - start, s.columns)};
  if (p.item >= s.items || p.row >= s.rows) row.end = 0;
  return row;
}
/// The offset in bytes of sample `part` of a row of `a`, or zeros_here where the sample is zero.
template <class T>
__device__ __forceinline__ int64_t sample_offset(const Shifted& s, const ItemRow& p, int part) {
  int64_t sample = p.row * s.samples + part - s.lead;
  if (p.item >= s.items) return zeros_here;
  if (s.reflect) sample = sample < 0 ? -sample : (sample < s.time ? sample : 2 * (s.time - 1) - sample);
  return sample < 0 || sample >= s.time ? zeros_here : (p.item * s.time + sample) * s.channels * int64_t{sizeof(T)};
}

/// A block's tile of the result, counted in tiles. Blocks are numbered along the columns first, because blocks with
/// neighbouring numbers run at the same time: the tiles beside each other read the same rows of x, the first from DRAM
/// and the others from L2.
struct ResultTile {
  int row, column;
  /// column_tiles: tiles beside each other.
  explicit __device__ __forceinline__ ResultTile(int column_tiles)
      : row(static_cast<int>(blockIdx.x / static_cast<unsigned>(column_tiles))),
        column(static_cast<int>(blockIdx.x) - row * column_tiles) {}
};

/// Input policy that leaves x unchanged. A policy that applies a function to x has `active` true, a type Parameters
/// with channel(c) for one channel of x, and apply(column, pack), where Column holds the parameters of a pack's
/// channels. The function is applied to padding as well, so it must map 0 to 0.
template <class T>
struct PlainInput {
  static constexpr bool active = false;
  struct Column {};
  __device__ Column column(int64_t) const { return {}; }
  __device__ void apply(const Column&, Pack<T>&) const {}
};

/// Output policy that adds bias and residual (or the previous content) and stores. A policy has
///   column(n)             called once per thread, for the pack of columns that begins at n; a thread keeps its columns
///   row(column, at, v)    called for each pack v that exists in these columns; `at` is its first element in the output
///   finish<BN, threads>   called once by all threads of the block, with or without columns, with the block's tile of
///                         the result. `shared` has 64 floats per thread, which other threads may still be reading:
///                         begin with __syncthreads(). The pack of columns that a thread has is thread % (BN / pack),
///                         if it has one (rows_of_packs).
template <class T>
struct PlainOutput {
  T* out;
  const float* bias;
  const T* residual;  // may be equal to out
  int channels;       // of the bias, which repeats for each sample of a row
  struct Column {
    float bias[pack_size<T>];
  };
  __device__ __forceinline__ Column column(int n) const {
    Column c;
    const int first = n % channels;  // a pack does not cross samples
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) c.bias[i] = bias != nullptr ? bias[first + i] : 0.0f;
    return c;
  }
  __device__ __forceinline__ void row(Column& c, int64_t at, Pack<T>& v) const {
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) v.v[i] += c.bias[i];
    if (residual != nullptr) {
      const Pack<T> r = load_pack(residual + at);
#pragma unroll
      for (int i = 0; i < pack_size<T>; ++i) v.v[i] += r.v[i];
    }
    store_pack(out + at, v);
  }
  template <int BN, int threads>
  __device__ __forceinline__ void finish(const Column&, const ResultTile&, float*) const {}
};

// ---- the kernel of the forward and the input gradient

template <int BM, int BN, Product P, Major B>
struct Layout : LayoutSizes<BM, BN, P, B> {
  using Engine = typename EngineOf<P, warp_columns(P, BM, BN)>::type;
  static constexpr int warps_per_row = BN / warp_columns(P, BM, BN);
  /// The first row and column of a warp's part of the result.
  static __device__ __forceinline__ int warp_row(int warp) { return warp / warps_per_row * 64; }
  static __device__ __forceinline__ int warp_column(int warp) { return warp % warps_per_row * warp_columns(P, BM, BN); }
};

/// The block's shared memory, in the order of Layout::shared_bytes:
///
///   parameters  input_bytes, of the input policy
///   offsets     [x_rows][samples] of int64_t, rounded up to 16 bytes
///   x           [x_tiles][x_rows] rows of `pitch` bytes: 128 bytes of channels, 16 of spare
///   w           [stages][w_rows] rows of `w_pitch` bytes
///
/// Behind the loop, x and w make room for the result, float [BM][out_stride], and OutputRow [BM].
template <class L>
struct BlockMemory {
  int x_rows, x_tiles, x_tile_bytes;  // rows of a tile of x; buffers for such tiles; their size
  unsigned char* parameters;          // of the input policy, one per channel of x
  int64_t* offsets;                   // sample_offset of each sample of x's tile
  unsigned char *x, *w;               // the buffers
  __device__ __forceinline__ BlockMemory(const Shifted& s, unsigned char* shared)
      : x_rows(L::a_rows(s)),
        x_tiles(L::a_tiles(s)),
        x_tile_bytes(x_rows * pitch),
        parameters(shared),
        offsets(reinterpret_cast<int64_t*>(shared + s.input_bytes)),
        x(shared + s.input_bytes + L::table_bytes(s)),
        w(x + x_tiles * x_tile_bytes) {}
  /// Writes the offsets and the parameters, which all chunks share. A barrier must follow.
  template <class Input>
  __device__ __forceinline__ void fill(const Shifted& s, const ItemRow& first, const Input& input, int thread) const {
    for (int r = thread; r < x_rows; r += L::threads) {
      const ItemRow item_row(first, s, r, s.gap);
      for (int part = 0; part < s.samples; ++part)
        offsets[r * s.samples + part] = sample_offset<typename L::T>(s, item_row, part);
    }
    if constexpr (Input::active) {
      auto* const of = reinterpret_cast<typename Input::Parameters*>(parameters);
      const int channels = static_cast<int>(s.channels);
      for (int c = thread; c < channels; c += L::threads) of[c] = input.channel(c);
    }
  }
};

/// Copies x's tiles, one chunk of channels after the other, into a ring of their own. Eight neighbouring threads copy
/// the 128 bytes of a row. Within a chunk a thread needs one sample of a row and one pack of its channels, (part,
/// channel), which advance from chunk to chunk without divisions.
template <class L>
struct XLoader {
  using T = typename L::T;
  static constexpr int rows_at_once = L::threads / packs_per_step;
  const Shifted& s;
  const BlockMemory<L>& memory;
  const T* x;
  const PackColumn<packs_per_step, pitch> share;
  const int chunks;
  int channel, part, chunk = 0, slot = 0;
  __device__ __forceinline__ XLoader(const Shifted& s_, const BlockMemory<L>& memory_, const T* x_, int thread)
      : s(s_), memory(memory_), x(x_), share(thread), chunks((s_.depth + L::depth - 1) / L::depth) {
    const int column = share.column * pack_size<T>, channels = static_cast<int>(s.channels);
    part = column / channels, channel = column - part * channels;
  }
  /// Starts the copies of the next chunk, if there is one.
  __device__ __forceinline__ void fetch() {
    if (chunk == chunks) return;
    constexpr int batch = 4;  // offsets are read ahead of the copies
    unsigned char* to = share.in(memory.x + slot * memory.x_tile_bytes);
    const bool exists = part < s.samples;
    const int64_t* const offsets = memory.offsets + (exists ? part : 0);
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(x + channel);
#pragma unroll 1
    for (int r = share.row; r < memory.x_rows; r += batch * rows_at_once, to += batch * rows_at_once * pitch) {
      int64_t of_row[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        of_row[i] = zeros_here;
        if (r + i * rows_at_once < memory.x_rows) of_row[i] = offsets[(r + i * rows_at_once) * s.samples];
      }
#pragma unroll
      for (int i = 0; i < batch; ++i)
        if (r + i * rows_at_once < memory.x_rows)
          cp_async_or_zeros(to + i * rows_at_once * pitch, from + of_row[i], exists && of_row[i] >= 0);
    }
    const int channels = static_cast<int>(s.channels);
    channel += L::depth;
    while (channel >= channels && part < s.samples) channel -= channels, ++part;
    ++chunk;
    advance(slot, memory.x_tiles);
  }
};

/// Copies the weights' tiles, one tap of one chunk after the other, and rounds them.
template <int BN, Product P, Major B, class L>
struct WeightLoader {
  using T = typename L::T;
  static constexpr int packs = B == Major::k ? packs_per_step : BN / pack_size<T>,
                       rows_at_once = rows_of_packs(L::threads, packs), passes = L::w_rows / rows_at_once;
  static constexpr bool some_idle = rows_at_once * packs < L::threads;  // threads without a share of the tile
  static_assert(L::w_rows % rows_at_once == 0);
  const Shifted& s;
  unsigned char* const tiles;
  const PackColumn<packs, L::w_pitch> share;
  const int first_column;
  const T* const first;
  int chunk = 0, tap = 0;
  __device__ __forceinline__ WeightLoader(const Shifted& s_, unsigned char* tiles_, const T* w, int first_column_,
                                          int thread)
      : s(s_),
        tiles(tiles_),
        share(thread),
        first_column(first_column_),
        first(w + (B == Major::k ? first_column_ + share.row : share.row) * s_.w_row) {}
  __device__ __forceinline__ bool idle() const { return some_idle && share.row >= rows_at_once; }
  /// Starts the copies of the next tap. Past the last one the tile is filled with zeros.
  __device__ __forceinline__ void fetch(int slot) {
    if (!idle()) copy(slot);
    if (++tap == s.taps) tap = 0, ++chunk;
  }
  /// K-major: the thread's pack of the rows n, n + rows_at_once, ... (outputs), from element c + column of the tap on.
  /// MN-major: its pack of result columns of the rows c, c + rows_at_once, ... (reduced channels), of the mirrored tap.
  /// Neighbouring threads have neighbouring packs of a row. The taps that complete a whole stride lie behind the row's
  /// w_row elements and are zeros.
  __device__ __forceinline__ void copy(int slot) const {
    unsigned char* to = share.in(tiles + slot * L::w_bytes);
    const int c = chunk * L::depth, n = first_column, w_tap = static_cast<int>(s.w_tap),
              column = share.column * pack_size<T>;
    const int offset = B == Major::k ? tap * w_tap + (c + column) : (s.taps - 1 - tap) * w_tap + (n + column);
    const bool exists =
        (B == Major::k ? c + column < s.depth : n + column < s.columns) && offset < static_cast<int>(s.w_row);
    const int rows_left = (B == Major::k ? s.columns - n : s.depth - c) - share.row;
    const T* from = first + ((B == Major::k ? 0 : c * s.w_row) + offset);
#pragma unroll
    for (int i = 0; i < passes; ++i, to += rows_at_once * L::w_pitch, from += rows_at_once * s.w_row)
      cp_async_or_zeros(to, from, exists && i * rows_at_once < rows_left);
  }
  __device__ __forceinline__ void round(int slot) const {
    if constexpr (P == Product::tf32) {
      if (idle()) return;
      unsigned char* at = share.in(tiles + slot * L::w_bytes);
#pragma unroll
      for (int i = 0; i < passes; ++i, at += rows_at_once * L::w_pitch)
        transform_pack<P>(reinterpret_cast<T*>(at), PlainInput<T>{}, {});
    }
  }
};

/// The input policy's function and the rounding to tf32, on the packs of x's tiles that the thread copied itself.
template <Product P, class L, class Input>
struct XTransform {
  using T = typename L::T;
  static constexpr bool needed = Input::active || P == Product::tf32;
  static constexpr int rows_at_once = L::threads / packs_per_step;
  const Shifted& s;
  const BlockMemory<L>& memory;
  const Input& input;
  const PackColumn<packs_per_step, pitch> share;
  const int packs;  // of the thread
  int channel, chunk = 0, slot = 0;
  __device__ __forceinline__ XTransform(const Shifted& s_, const BlockMemory<L>& memory_, const Input& input_,
                                        int thread)
      : s(s_),
        memory(memory_),
        input(input_),
        share(thread),
        packs((memory_.x_rows - share.row + rows_at_once - 1) / rows_at_once),
        channel(share.column * pack_size<T> % static_cast<int>(s_.channels)) {}
  /// Transforms the packs [begin, end) of the thread.
  __device__ __forceinline__ void apply(int begin, int end) const {
    if (chunk * L::depth + share.column * pack_size<T> >= s.depth) return;
    typename Input::Column column;
    if constexpr (Input::active) {
      const auto* const parameters = reinterpret_cast<const typename Input::Parameters*>(memory.parameters) + channel;
      column = *reinterpret_cast<const typename Input::Column*>(parameters);
    }
    if (end > packs) end = packs;
    unsigned char* at = share.in(memory.x + slot * memory.x_tile_bytes, begin * rows_at_once);
#pragma unroll 1
    for (int i = begin; i < end; ++i, at += rows_at_once * pitch)
      transform_pack<P>(reinterpret_cast<T*>(at), input, column);
  }
  __device__ __forceinline__ void next_chunk() {
    const int channels = static_cast<int>(s.channels);
    ++chunk;
    advance(slot, memory.x_tiles);
    channel += L::depth;
    while (channel >= channels) channel -= channels;
  }
};

/// The steps of run_pipeline: one tap of one chunk each. x's tile of a chunk serves all its taps, so it is fetched and
/// transformed once per chunk. Timeline with seven taps (t) of chunk c:
///
///   step            c.0   c.1   c.2   c.3   c.4   c.5   c.6  (c+1).0
///   multiply         t0    t1    t2    t3    t4    t5    t6    t0
///   fetch weights    t2    t3    t4    t5    t6    t0'   t1'   t2'      two steps ahead; ' belongs to chunk c + 1
///   fetch x         c+1                                        c+2      (spread) into the buffer of c - 1
///   x has arrived               c+1                                     the wait leaves one younger group in flight
///   transform x                 [------ c+1, in equal parts ---]        first_tap = 2
///
/// ahead     the tile of the next chunk is transformed beside the products of this one. In a block of more than four
///           warps, half of them do so before a step's products and half after them, so that the tensor cores always
///           have work (two_groups).
/// spread    with three or more taps: the order shown above.
/// Otherwise (one or two taps, or nothing to transform) x is fetched with the weights of its first tap, two steps
/// ahead. With an active input policy every step then waits for all copies, so the tile has arrived one step before
/// its use and is transformed in that step. Rounding to tf32 alone is not worth that wait: it is done at the tile's
/// first step, before the barrier.
template <int BM, int BN, Product P, Major B, class Input>
struct ShiftedSteps {
  using L = Layout<BM, BN, P, B>;
  using Engine = typename L::Engine;
  using Transform = XTransform<P, L, Input>;
  static constexpr int stages = tile::stages, WN = warp_columns(P, BM, BN);
  static constexpr bool fetch_in_product = true, locates = false, two_groups = L::threads > 128;
  const Shifted& s;
  const BlockMemory<L>& memory;
  const int lane, warp_row, warp_column;
  const bool spread, ahead, before_product;  // before_product: this warp transforms there, not after it
  const int first_tap, packs_per_tap;        // the transform begins at this tap; packs of a thread per tap
  XLoader<L> x;
  WeightLoader<BN, P, B, L> w;
  Transform transform;
  const typename Engine::Rows rows;
  Engine sums;
  int chunk = 0, tap = 0, x_slot = 0;  // of the step that is multiplied

  template <class RowOffset>
  __device__ __forceinline__ ShiftedSteps(const Shifted& s_, const BlockMemory<L>& memory_, const typename L::T* x_,
                                          const typename L::T* w_, const Input& input, int first_column, int thread,
                                          const RowOffset& row_offset)
      : s(s_),
        memory(memory_),
        lane(thread % 32),
        warp_row(L::warp_row(thread / 32)),
        warp_column(L::warp_column(thread / 32)),
        spread(Transform::needed && s_.taps >= stages),
        ahead(Input::active || spread),
        before_product(!two_groups || thread / 32 < L::threads / 64),
        first_tap(min(stages, s_.taps) - 1),
        packs_per_tap(ceil_div(ceil_div(memory_.x_rows, Transform::rows_at_once), s_.taps - first_tap)),
        x(s_, memory_, x_, thread),
        w(s_, memory_.w, w_, first_column, thread),
        transform(s_, memory_, input, thread),
        rows(Engine::rows(row_offset, lane)) {
    sums.clear();
  }
  __device__ __forceinline__ bool waits_for_all() const { return ahead && !spread; }
  __device__ __forceinline__ void fetch(int next, int slot) {
    const bool filling = next < stages - 1;
    if (spread ? (filling ? next == 0 : tap == 0) : w.tap == 0) x.fetch();
    w.fetch(slot);
  }
  __device__ __forceinline__ void arrived(int step, int slot) {
    if constexpr (Transform::needed)
      if (ahead ? step == 0 : tap == 0) transform.apply(0, transform.packs), transform.next_chunk();
    w.round(slot);
  }
  template <class Fetch>
  __device__ __forceinline__ void multiply(int, int slot, const Fetch& fetch_next) {
    transform_part(before_product);
    const unsigned char* const x_tile = memory.x + x_slot * memory.x_tile_bytes + tap * s.tap_rows * pitch;
    const unsigned char* const w_tile =
        memory.w + slot * L::w_bytes +
        (B == Major::k ? warp_column * L::w_pitch : warp_column * static_cast<int>(sizeof(typename L::T)));
    sums.template multiply<Major::k, B>(x_tile, rows, pitch, w_tile, L::w_pitch, lane,
                                        min(L::depth, s.depth - chunk * L::depth), fetch_next);
    if constexpr (two_groups) transform_part(!before_product);
    if (++tap == s.taps) {
      tap = 0, ++chunk;
      advance(x_slot, memory.x_tiles);
      if (ahead) transform.next_chunk();
    }
  }
  /// This step's part of the next chunk's transform, if it is this warp's turn.
  __device__ __forceinline__ void transform_part(bool turn) {
    const int first = (tap - first_tap) * packs_per_tap;
    if constexpr (Transform::needed)
      if (turn && ahead && first >= 0) transform.apply(first, first + packs_per_tap);
  }
};

/// The epilogue: stores the result, BM by BN floats in shared memory with L::out_stride from row to row, in rows of
/// whole packs. All threads have written their sums to `result`, which needs a barrier: it is here.
template <int BM, int BN, class L, class Output>
__device__ __forceinline__ void store_result(const Shifted& s, const ResultTile& tile, const ItemRow& first,
                                             float* result, const Output& output, int thread) {
  using T = typename L::T;
  constexpr int pack = pack_size<T>, packs_per_row = BN / pack, rows_at_once = rows_of_packs(L::threads, packs_per_row);
  OutputRow* const out_rows = reinterpret_cast<OutputRow*>(reinterpret_cast<unsigned char*>(result) + L::out_bytes);
  for (int r = thread; r < BM; r += L::threads) out_rows[r] = output_row(s, ItemRow(first, s, r));
  // This barrier publishes both the warps' sums in `result` and the table of rows.
  __syncthreads();
  const int column = thread % packs_per_row * pack, n = tile.column * BN + column;
  auto column_state = output.column(n < s.columns ? n : 0);
  if (n < s.columns && (rows_at_once * packs_per_row == L::threads || thread < rows_at_once * packs_per_row)) {
    for (int r = thread / packs_per_row; r < BM; r += rows_at_once) {
      const OutputRow row = out_rows[r];
      if (n < row.begin || n >= row.end) continue;
      Pack<T> v;
#pragma unroll
      for (int i = 0; i < pack; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(result + r * L::out_stride + column + i);
        v.v[i] = four.x, v.v[i + 1] = four.y, v.v[i + 2] = four.z, v.v[i + 3] = four.w;
      }
      output.row(column_state, row.base + n, v);
    }
  }
  output.template finish<BN, L::threads>(column_state, tile, result);
}

template <int BM, int BN, Product P, Major B, class Input, class Output>
__global__ void __launch_bounds__(block_threads(P, BM, BN), blocks_at_once(P, BM, BN))
    shifted_product_kernel(Shifted s, const Element<P>* x, const Element<P>* w, Input input, Output output) {
  using L = Layout<BM, BN, P, B>;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const ResultTile tile(ceil_div(s.columns, BN));
  const ItemRow first(s, int64_t{tile.row} * BM);
  const BlockMemory<L> memory(s, shared);
  memory.fill(s, first, input, thread);
  __syncthreads();

  // Where row r of the warp's rows begins in x's tile, in bytes: the gaps of the items before it lie above it.
  const auto row_offset = [&](int r) {
    r += L::warp_row(thread / 32);
    return (r + static_cast<int>(ItemRow(first, s, r).item - first.item) * s.gap) * pitch;
  };
  ShiftedSteps<BM, BN, P, B, Input> steps(s, memory, x, w, input, tile.column * BN, thread, row_offset);
  run_pipeline(steps, steps.x.chunks * s.taps);
  finish_pipeline();

  float* const result = reinterpret_cast<float*>(memory.x);
  steps.sums.template save<Major::k, B>(result + steps.warp_row * L::out_stride + steps.warp_column, L::out_stride,
                                        steps.lane);
  store_result<BM, BN, L>(s, tile, first, result, output, thread);
}

// ---- launches

template <int BM, int BN, Product P, Major B, class T, class Input, class Output>
void launch_blocks(Context& ctx, const char* name, const Shifted& s, const T* x, const T* w, const Input& input,
                   const Output& output) {
  using L = Layout<BM, BN, P, B>;
  launch(ctx,
         {.name = name,
          .grid = {blocks_for(s.items * s.virtual_rows, BM) * blocks_for(s.columns, BN), 1, 1},
          .block = L::threads,
          .shared_bytes = L::shared_bytes(s)},
         shifted_product_kernel<BM, BN, P, B, Input, Output>, s, x, w, input, output);
}

/// Launches the product.
template <Product P, Major B, class T, class Input, class Output>
void launch_product(Context& ctx, const char* name, const Shifted& s, const T* x, const T* w, const Input& input,
                    const Output& output) {
  const Blocking b = s.block;
  if (b.rows == 64) return launch_blocks<64, 64, P, B>(ctx, name, s, x, w, input, output);
  if (b.columns == 96) return launch_blocks<128, 96, P, B>(ctx, name, s, x, w, input, output);
  if (b == Blocking{128, 64}) return launch_blocks<128, 64, P, B>(ctx, name, s, x, w, input, output);
  if (b.columns == 64) return launch_blocks<256, 64, P, B>(ctx, name, s, x, w, input, output);
  if (b.columns == 32) return launch_blocks<256, 32, P, B>(ctx, name, s, x, w, input, output);
  if (b.rows == 256) return launch_blocks<256, 128, P, B>(ctx, name, s, x, w, input, output);
  return launch_blocks<128, 128, P, B>(ctx, name, s, x, w, input, output);
}

/// The launches of plain conv1d (conv1d_tile_plain.cuh). Each product has a file of its own, so that they compile in
/// parallel.
template <class T>
struct Plain {
  Shifted s;
  const T* x;
  const T* w;
  PlainOutput<T> output;
};
template <Product P>
void plain_forward(Context&, const Plain<Element<P>>&);
template <Product P>
void plain_input_gradient(Context&, const Plain<Element<P>>&);

}  // namespace nacre::cuda::tile
