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
// followed by its halo. In the numbering of the result's rows there are two choices (lay_items in choose.cu): either
// each item includes its halo, whose rows are computed and dropped, or the halo is a gap that only x's tile has. The
// gap is used
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
// at that rate. x is read once per column of tiles, and the result is written once.
#include "conv/choose_cuda.h"
#include "conv/conv1d_engines.cuh"

namespace nacre::cuda::tile {

/// The element where a row of the result begins, and the range of its columns that are stored.
struct alignas(16) OutputRow {
  int64_t base;
  int begin, end;
};
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
///   finish<BN, threads>   called once by all threads of the block, with or without columns. `shared` has 64 floats per
///                         thread, which other threads may still be reading: begin with __syncthreads(). The pack of
///                         columns that a thread has is thread % (BN / pack).
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
  __device__ __forceinline__ void finish(const Column&, int, float*) const {}
};

// ---- the kernel of the forward and the input gradient

template <int BM, int BN, Product P, Major B>
struct Layout {
  using T = typename EngineOf<P, warp_columns(P, BM, BN)>::type::T;
  static constexpr int threads = block_threads(P, BM, BN);
  /// The weights' tile: BN rows of 128 bytes (K-major), or `depth` rows of BN elements (MN-major). The bytes added to a
  /// pitch keep rows that are read together in different banks.
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr int w_pitch = B == Major::k ? pitch : BN * static_cast<int>(sizeof(T)) + (sizeof(T) == 4 ? 32 : 16);
  static constexpr int w_rows = B == Major::k ? BN : depth;
  static constexpr int w_bytes = w_pitch * w_rows;
  static constexpr int out_stride = BN + 4;  // floats
  static __host__ __device__ int a_rows(const Shifted& s) {
    // Items begin at multiples of 64 rows, or at any row. `gaps`: the most that lie within a tile of BM rows.
    const int64_t item_alignment = s.virtual_rows % 64 == 0 ? 64 : 1;
    const int64_t gaps = s.gap == 0 || s.virtual_rows % BM == 0 ? 0 : ceil_div(BM - item_alignment, s.virtual_rows);
    return BM + (s.taps - 1) * s.tap_rows + static_cast<int>(gaps) * s.gap;
  }
  /// Buffers for x's tiles: as many chunks as `stages` consecutive steps can belong to. With three or more taps these
  /// are two: the tile being multiplied, and the next one, whose fetch starts as soon as its buffer is free.
  static __host__ __device__ int a_tiles(const Shifted& s) {
    const int tiles = (stages - 2 + s.taps) / s.taps + 1, chunks = (s.depth + depth - 1) / depth;
    return tiles < chunks ? tiles : chunks;
  }
  /// Bytes of the table of sample offsets (sample_offset), one int64_t per sample of x's tile.
  static __host__ __device__ int table_bytes(const Shifted& s) { return ceil_div(a_rows(s) * s.samples, 2) * 16; }
  /// After the products the tiles' memory is reused for the result and its OutputRows.
  static constexpr int out_bytes = BM * out_stride * 4;
  static size_t shared_bytes(const Shifted& s) {
    const size_t loop = static_cast<size_t>(a_tiles(s)) * a_rows(s) * pitch + stages * w_bytes,
                 out = out_bytes + BM * sizeof(OutputRow);
    return s.input_bytes + table_bytes(s) + (loop > out ? loop : out);
  }
};

template <int BM, int BN, Product P, Major B, class Input, class Output>
__global__ void __launch_bounds__(block_threads(P, BM, BN), blocks_at_once(P, BM, BN))
    shifted_product_kernel(Shifted s, const typename EngineOf<P>::type::T* a, const typename EngineOf<P>::type::T* w,
                           Input input, Output output) {
  constexpr int WN = warp_columns(P, BM, BN);
  using Engine = typename EngineOf<P, WN>::type;
  using T = typename Engine::T;
  using L = Layout<BM, BN, P, B>;
  constexpr int pack = pack_size<T>, depth = Engine::depth, threads = L::threads,
                rows_at_once = threads / packs_per_step;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int a_rows = L::a_rows(s), a_tiles = L::a_tiles(s), a_bytes = a_rows * pitch;
  int64_t* const table = reinterpret_cast<int64_t*>(shared + s.input_bytes);
  unsigned char* const a_shared = shared + s.input_bytes + L::table_bytes(s);
  unsigned char* const w_shared = a_shared + a_tiles * a_bytes;
  const int64_t first_row = int64_t{blockIdx.x} * BM;
  const int channels = static_cast<int>(s.channels);
  const int first_column = static_cast<int>(blockIdx.y) * BN;
  const ItemRow first(s, first_row);
  for (int r = thread; r < a_rows; r += threads) {
    const ItemRow item_row(first, s, r, s.gap);
    for (int part = 0; part < s.samples; ++part) table[r * s.samples + part] = sample_offset<T>(s, item_row, part);
  }
  if constexpr (Input::active) {
    auto* const parameters = reinterpret_cast<typename Input::Parameters*>(shared);
    for (int c = thread; c < channels; c += threads) parameters[c] = input.channel(c);
  }
  __syncthreads();

  // Each thread copies one 16-byte column of every rows_at_once-th row. So within a chunk it needs one sample of a row
  // and one pack of channels, (copy_part, copy_channel), which advance from chunk to chunk without divisions.
  const int thread_a_column = thread % packs_per_step * pack, thread_a_row = thread / packs_per_step;
  int copy_part = thread_a_column / channels, copy_channel = thread_a_column - copy_part * channels;
  const auto copy_a = [&](int slot) {
    constexpr int batch = 4;
    unsigned char* to = a_shared + slot * a_bytes + thread_a_row * pitch + thread % packs_per_step * 16;
    const bool exists = copy_part < s.samples;
    const int64_t* const samples = table + (exists ? copy_part : 0);
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(a + copy_channel);
#pragma unroll 1
    for (int r = thread_a_row; r < a_rows; r += batch * rows_at_once, to += batch * rows_at_once * pitch) {
      int64_t offsets[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        offsets[i] = zeros_here;
        if (r + i * rows_at_once < a_rows) offsets[i] = samples[(r + i * rows_at_once) * s.samples];
      }
#pragma unroll
      for (int i = 0; i < batch; ++i)
        if (r + i * rows_at_once < a_rows)
          cp_async_or_zeros(to + i * rows_at_once * pitch, from + offsets[i], exists && offsets[i] >= 0);
    }
    copy_channel += depth;
    while (copy_channel >= channels && copy_part < s.samples) copy_channel -= channels, ++copy_part;
  };
  constexpr int w_packs_per_row = B == Major::k ? packs_per_step : BN / pack,
                w_rows_at_once = threads / w_packs_per_row;
  static_assert(threads % w_packs_per_row == 0 && L::w_rows % w_rows_at_once == 0);
  const int thread_w_column = thread % w_packs_per_row * pack, thread_w_row = thread / w_packs_per_row;
  const T* const w_first = w + (B == Major::k ? first_column + thread_w_row : thread_w_row) * s.w_row;
  const auto copy_w = [&](int chunk, int u, int slot) {
    unsigned char* to = w_shared + slot * L::w_bytes + thread_w_row * L::w_pitch + thread % w_packs_per_row * 16;
    const int c = chunk * depth, n = first_column, w_tap = static_cast<int>(s.w_tap);
    const int w_offset =
        B == Major::k ? u * w_tap + (c + thread_w_column) : (s.taps - 1 - u) * w_tap + (n + thread_w_column);
    const bool exists = (B == Major::k ? c + thread_w_column < s.depth : n + thread_w_column < s.columns) &&
                        w_offset < static_cast<int>(s.w_row);
    const int rows_left = (B == Major::k ? s.columns - n : s.depth - c) - thread_w_row;
    const T* from = w_first + ((B == Major::k ? 0 : c * s.w_row) + w_offset);
#pragma unroll
    for (int i = 0; i < L::w_rows / w_rows_at_once;
         ++i, to += w_rows_at_once * L::w_pitch, from += w_rows_at_once * s.w_row)
      cp_async_or_zeros(to, from, exists && i * w_rows_at_once < rows_left);
  };
  // A transform is the input policy's function and the rounding to tf32. Each thread transforms the packs that it
  // copied itself: after cp_async_wait it sees them without a barrier, and the barrier that publishes the tile follows.
  // transform_a works on the packs [begin, end) of the thread, of tile transform_chunk.
  constexpr bool transforms = Input::active || P == Product::tf32;
  const int a_packs_per_thread = (a_rows - thread_a_row + rows_at_once - 1) / rows_at_once;
  int transform_chunk = 0, transform_slot = 0, transform_channel = thread_a_column % channels;
  const auto transform_a = [&](int begin, int end) {
    if (transform_chunk * depth + thread_a_column >= s.depth) return;
    typename Input::Column column;
    if constexpr (Input::active) {
      const auto* const parameters = reinterpret_cast<const typename Input::Parameters*>(shared) + transform_channel;
      column = *reinterpret_cast<const typename Input::Column*>(parameters);
    }
    if (end > a_packs_per_thread) end = a_packs_per_thread;
    unsigned char* at = a_shared + transform_slot * a_bytes + (thread_a_row + begin * rows_at_once) * pitch +
                        thread % packs_per_step * 16;
#pragma unroll 1
    for (int i = begin; i < end; ++i, at += rows_at_once * pitch) {
      T* const p = reinterpret_cast<T*>(at);
      Pack<T> v = load_pack(p);
      if constexpr (Input::active) input.apply(column, v);
      if constexpr (P == Product::tf32) round_pack(v);
      store_pack(p, v);
    }
  };
  const auto next_transform = [&] {
    ++transform_chunk;
    if (++transform_slot == a_tiles) transform_slot = 0;
    transform_channel += depth;
    while (transform_channel >= channels) transform_channel -= channels;
  };
  const auto transform_w = [&](int slot) {
    unsigned char* at = w_shared + slot * L::w_bytes + thread_w_row * L::w_pitch + thread % w_packs_per_row * 16;
#pragma unroll
    for (int i = 0; i < L::w_rows / w_rows_at_once; ++i, at += w_rows_at_once * L::w_pitch) {
      if constexpr (P == Product::tf32) {
        float* const p = reinterpret_cast<float*>(at);
        Pack<float> v = load_pack(p);
        round_pack(v);
        store_pack(p, v);
      }
    }
  };

  Engine sums;
  sums.clear();
  const int chunks = (s.depth + depth - 1) / depth, steps = chunks * s.taps;
  // Timeline with `stages` = 3 and seven taps. A step multiplies one tap (t) of one chunk (c) of x:
  //
  //   step            c.0   c.1   c.2   c.3   c.4   c.5   c.6  (c+1).0
  //   multiply         t0    t1    t2    t3    t4    t5    t6    t0
  //   fetch weights    t2    t3    t4    t5    t6    t0'   t1'   t2'      two steps ahead; ' belongs to chunk c + 1
  //   fetch x         c+1                                        c+2      (transform_spread) into the buffer of c - 1
  //   x has arrived               c+1                                     the wait leaves one younger group in flight
  //   transform x                 [------ c+1, in equal parts ---]        first_transform_tap = 2
  //
  // transform_ahead    the tile of the next chunk is transformed beside the products of this one. In a block of more
  //                    than four warps, half of them do so before a step's products and half after them, so that the
  //                    tensor cores always have work (two_groups).
  // transform_spread   with three or more taps: the order shown above.
  // Otherwise (one or two taps, or nothing to transform) x is fetched with the weights of its first tap, two steps
  // ahead. With an active input policy every step then waits for all copies, so the tile has arrived one step before
  // its use and is transformed in that step. Rounding to tf32 alone is not worth that wait: it is done at the tile's
  // first step, before the barrier.
  constexpr bool two_groups = threads > 128;
  const bool transform_spread = transforms && s.taps >= stages, transform_ahead = Input::active || transform_spread,
             transforms_first = !two_groups || warp < threads / 64;
  const int first_transform_tap = min(stages, s.taps) - 1,
            packs_per_tap = ceil_div(ceil_div(a_rows, rows_at_once), s.taps - first_transform_tap);
  // fetch_*: the next tiles to fetch. The others: the step that is multiplied, and its buffers.
  int fetch_a_chunk = 0, fetch_chunk = 0, fetch_tap = 0, fetch_a_slot = 0, fetch_w_slot = 0, chunk = 0, tap = 0,
      a_slot = 0, w_slot = 0;
  // Past the last step the weights are filled with zeros: the last steps need no branch around the products.
  const auto fetch = [&](bool with_a) {
    if (with_a && fetch_a_chunk < chunks) {
      copy_a(fetch_a_slot), ++fetch_a_chunk;
      if (++fetch_a_slot == a_tiles) fetch_a_slot = 0;
    }
    copy_w(fetch_chunk, fetch_tap, fetch_w_slot);
    cp_async_commit();
    if (++fetch_w_slot == stages) fetch_w_slot = 0;
    if (++fetch_tap == s.taps) fetch_tap = 0, ++fetch_chunk;
  };
  const int warp_row = warp / (BN / WN) * 64, warp_column = warp % (BN / WN) * WN;
  const auto row_offset = [&](int r) {
    r += warp_row;
    return (r + static_cast<int>(ItemRow(first, s, r).item - first.item) * s.gap) * pitch;
  };
  const typename Engine::Rows rows = Engine::rows(row_offset, lane);
#pragma unroll 1
  for (int step = 1 - stages; step < 0; ++step) fetch(transform_spread ? step == 1 - stages : fetch_tap == 0);
  for (int step = 0; step < steps; ++step) {
    if (transform_ahead && !transform_spread)
      cp_async_wait<0>();
    else
      cp_async_wait<stages - 2>();
    if constexpr (transforms)
      if (transform_ahead ? step == 0 : tap == 0) transform_a(0, a_packs_per_thread), next_transform();
    if constexpr (P == Product::tf32) transform_w(w_slot);
    __syncthreads();  // publishes this step's tiles, and frees the buffers of the previous step
    const int first_pack = (tap - first_transform_tap) * packs_per_tap;
    if constexpr (transforms)
      if (transforms_first && transform_ahead && first_pack >= 0) transform_a(first_pack, first_pack + packs_per_tap);
    const unsigned char* const a_tile = a_shared + a_slot * a_bytes + tap * s.tap_rows * pitch;
    const unsigned char* const w_tile =
        w_shared + w_slot * L::w_bytes +
        (B == Major::k ? warp_column * L::w_pitch : warp_column * static_cast<int>(sizeof(T)));
    sums.template multiply<Major::k, B>(a_tile, rows, pitch, w_tile, L::w_pitch, lane,
                                        min(depth, s.depth - chunk * depth),
                                        [&] { fetch(transform_spread ? tap == 0 : fetch_tap == 0); });
    if constexpr (transforms && two_groups)
      if (!transforms_first && transform_ahead && first_pack >= 0) transform_a(first_pack, first_pack + packs_per_tap);
    if (++w_slot == stages) w_slot = 0;
    if (++tap == s.taps) {
      tap = 0, ++chunk;
      if (++a_slot == a_tiles) a_slot = 0;
      if (transform_ahead) next_transform();
    }
  }

  // The result goes through shared memory, so that it is stored in rows of whole packs.
  cp_async_wait<0>();
  __syncthreads();
  float* const result = reinterpret_cast<float*>(a_shared);
  sums.template save<Major::k, B>(result + warp_row * L::out_stride + warp_column, L::out_stride, lane);
  OutputRow* const out_rows = reinterpret_cast<OutputRow*>(a_shared + L::out_bytes);
  for (int r = thread; r < BM; r += threads) out_rows[r] = output_row(s, ItemRow(first, s, r));
  __syncthreads();
  constexpr int out_packs_per_row = BN / pack, out_rows_at_once = threads / out_packs_per_row;
  static_assert(threads % out_packs_per_row == 0);
  const int column = thread % out_packs_per_row * pack, n = first_column + column;
  auto column_state = output.column(n < s.columns ? n : 0);
  if (n < s.columns) {
    for (int r = thread / out_packs_per_row; r < BM; r += out_rows_at_once) {
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
  output.template finish<BN, threads>(column_state, n, result);
}

// ---- launches

template <int BM, int BN, Product P, Major B, class T, class Input, class Output>
void launch_blocks(Context& ctx, const char* name, const Shifted& s, const T* a, const T* w, const Input& input,
                   const Output& output) {
  using L = Layout<BM, BN, P, B>;
  launch(ctx,
         {.name = name,
          .grid = {blocks_for(s.items * s.virtual_rows, BM), blocks_for(s.columns, BN), 1},
          .block = L::threads,
          .shared_bytes = L::shared_bytes(s)},
         shifted_product_kernel<BM, BN, P, B, Input, Output>, s, a, w, input, output);
}

/// Launches the product.
template <Product P, Major B, class T, class Input, class Output>
void launch_product(Context& ctx, const char* name, const Shifted& s, const T* a, const T* w, const Input& input,
                    const Output& output) {
  const Blocking b = s.block;
  if (b.rows == 64) return launch_blocks<64, 64, P, B>(ctx, name, s, a, w, input, output);
  if (b.columns == 96) return launch_blocks<128, 96, P, B>(ctx, name, s, a, w, input, output);
  if (b == Blocking{128, 64}) return launch_blocks<128, 64, P, B>(ctx, name, s, a, w, input, output);
  if (b.columns == 64) return launch_blocks<256, 64, P, B>(ctx, name, s, a, w, input, output);
  if (b.columns == 32) return launch_blocks<256, 32, P, B>(ctx, name, s, a, w, input, output);
  if (b.rows == 256) return launch_blocks<256, 128, P, B>(ctx, name, s, a, w, input, output);
  return launch_blocks<128, 128, P, B>(ctx, name, s, a, w, input, output);
}

/// The launches of plain conv1d. Each product has a file of its own, so that they compile in parallel.
template <class T>
struct Plain {
  Shifted s;
  const T* a;
  const T* w;
  PlainOutput<T> output;
};
void forward_fma(Context&, const Plain<float>&);
void forward_tf32(Context&, const Plain<float>&);
void forward_bf16(Context&, const Plain<bf16>&);
void input_gradient_fma(Context&, const Plain<float>&);
void input_gradient_tf32(Context&, const Plain<float>&);
void input_gradient_bf16(Context&, const Plain<bf16>&);

}  // namespace nacre::cuda::tile
