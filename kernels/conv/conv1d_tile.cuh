#pragma once
// Convolution as a product of matrices over shifted rows. Channels are innermost, so that x is a matrix of rows and a
// tap is the same matrix some rows further down: a block keeps one tile of x with its halo in shared memory and all
// taps read it, at any dilation. A block makes BM rows by BN columns of the result; it walks the reduced channels 128
// bytes at a time (32 floats, 64 bf16), and within them the taps. cp.async brings x's tile and, per tap, the weights'
// tile, `stages` steps ahead.
//
// One description (Shifted) covers three uses:
//   forward, stride 1       row t of a is x's row t - left; step u of the taps is `dilation` rows further
//   forward, stride s       a row is s samples wide (s in columns) and a tap of it is s taps of the kernel, so that a
//                           kernel of 2 s has two; the weights are the same memory
//   input gradient          taps are taken backwards and the weights are read across; with stride s a row of the result
//                           is s samples wide, which makes it the upsampled signal as it lies in memory
// Items of a batch are laid below each other, so that a tile may span several. In shared memory each has its halo below
// it. Among the rows of the result it has not where every item is made of whole warps' 64 rows, which then all lie in one
// item: [16 | 72][16896 / 2^n][C] fills an H200's 132 multiprocessors in whole rounds, which a few rows more would not.
// Nor where that saves a round, on tensor cores, whose lanes find their rows one by one.
//
// A warp's products are an engine's (conv1d_engines.cuh). What is done to x as it arrives, and to the result as it leaves,
// are policies: see PlainInput and PlainOutput.
//
// Seven taps of bf16 in tiles of 256 x 128: 21 KB through cp.async for 4.2 million operations, 3 TB/s of L2 at 600
// TFLOP/s; 31 bytes of shared memory read per thousand operations, of the 49 that there are at that rate. x is read
// once per column of tiles, the result written once.
#include <initializer_list>

#include "conv/conv1d_engines.cuh"
#include "nacre/ops/conv1d.h"

namespace nacre::cuda::tile {

/// Rows by columns of a block.
struct Blocking {
  int rows, columns;
  bool operator==(const Blocking&) const = default;
};

/// The product. Row r of item b of `a` is the samples r samples - lead and on, `samples` of them, of `channels` each:
/// depth = samples channels. What lies outside [0, time) is zero, or its reflection. Result row r, column n is
///   sum over taps u, columns c of a[r + u tap_rows][c] w[...]   with w's element (Lies::along) n w_row + u w_tap + c,
///   or (across, taps backwards) c w_row + (taps - 1 - u) w_tap + n, zero where the position in its row exceeds w_row.
/// It goes to element b out_item + r out_pitch - out_offset + n, if that is in [out_begin, out_end) of the item.
struct Shifted {
  int64_t time, lead, channels;
  int64_t out_item, out_pitch, out_offset, out_begin, out_end;
  int64_t w_row, w_tap;
  int64_t items, rows, virtual_rows;  // of the result; of an item among them, its halo with it unless there is a gap
  int samples, taps, tap_rows, depth, columns;
  int gap;            // rows of halo between items that are rows of x alone
  int input_bytes;    // of shared memory for the input policy's channels
  int element_bytes;  // of x and w
  Blocking block;
  bool reflect;
};

/// Where a row of the result begins, and which of its columns exist.
struct alignas(16) Row {
  int64_t base;
  int begin, end;
};
__device__ __forceinline__ int clamp_to(int64_t v, int most) {
  return v < 0 ? 0 : (v < most ? static_cast<int>(v) : most);
}

/// A row counted over all items. Found by division once, then by counting: rows of the result, or of x with the gaps.
struct Place {
  int64_t item, row;
  __device__ __forceinline__ Place(const Shifted& s, int64_t v)
      : item(v / s.virtual_rows), row(v - item * s.virtual_rows) {}
  __device__ __forceinline__ Place(const Place& p, const Shifted& s, int further, int gap = 0)
      : item(p.item), row(p.row + further) {
    while (row >= s.virtual_rows + gap) row -= s.virtual_rows + gap, ++item;
  }
};
__device__ __forceinline__ Row out_row(const Shifted& s, const Place& p) {
  const int64_t start = p.row * s.out_pitch - s.out_offset;
  Row row{p.item * s.out_item + start, clamp_to(s.out_begin - start, s.columns),
          clamp_to(s.out_end - start, s.columns)};
  if (p.item >= s.items || p.row >= s.rows) row.end = 0;
  return row;
}
/// The byte of `a` where sample `part` of a row begins; zeros_here for zeros.
template <class T>
__device__ __forceinline__ int64_t in_sample(const Shifted& s, const Place& p, int part) {
  int64_t sample = p.row * s.samples + part - s.lead;
  if (p.item >= s.items) return zeros_here;
  if (s.reflect) sample = sample < 0 ? -sample : (sample < s.time ? sample : 2 * (s.time - 1) - sample);
  return sample < 0 || sample >= s.time ? zeros_here : (p.item * s.time + sample) * s.channels * int64_t{sizeof(T)};
}

/// x as it is. A policy that changes it has `active` true, Parameters that channel(c) makes for one channel of x, and
/// apply, which changes a pack by its Column of them. Padding too: the function must map 0 to 0.
template <class T>
struct PlainInput {
  static constexpr bool active = false;
  struct Column {};
  __device__ Column column(int64_t) const { return {}; }
  __device__ void apply(const Column&, Pack<T>&) const {}
};

/// Bias, residual or what is there already, then one store. A policy has column(n), called once per thread for the pack
/// that begins at result column n; row, called for each of its packs that exist, with the element where it lies; and
/// finish<BN, threads>, called by all threads of the block (whether or not they had a column) with shared memory of 64
/// floats per thread, which others may still read; thread % (BN / pack) is the pack of columns that a thread had.
template <class T>
struct PlainOutput {
  T* out;
  const float* bias;
  const T* residual;  // may be out
  int channels;       // of the bias
  struct Column {
    float bias[pack_size<T>];
  };
  __device__ __forceinline__ Column column(int n) const {
    Column c;
    const int first = n % channels;  // a pack lies in one sample
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
// -----------------------------------------------------------------

template <int BM, int BN, Product P, Lies B>
struct Layout {
  using T = typename EngineOf<P, warp_columns(P, BM, BN)>::type::T;
  static constexpr int threads = block_threads(P, BM, BN);
  /// The weights' tile: BN rows of 128 bytes, or `depth` rows of BN.
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr int w_pitch =
      B == Lies::along ? pitch : BN * static_cast<int>(sizeof(T)) + (sizeof(T) == 4 ? 32 : 16);
  static constexpr int w_rows = B == Lies::along ? BN : depth;
  static constexpr int w_bytes = w_pitch * w_rows;
  static constexpr int out_stride = BN + 4;  // floats
  static __host__ __device__ int a_rows(const Shifted& s) {
    // Items begin at multiples of 64 rows, or anywhere.
    const int64_t item_alignment = s.virtual_rows % 64 == 0 ? 64 : 1;
    const int64_t gaps = s.gap == 0 || s.virtual_rows % BM == 0 ? 0 : ceil_div(BM - item_alignment, s.virtual_rows);
    return BM + (s.taps - 1) * s.tap_rows + static_cast<int>(gaps) * s.gap;
  }
  /// x's tiles that are in use or on their way while `stages` steps are. Of three taps and more they are two, the one
  /// that is multiplied and the next, which may then be fetched as early as the last one is free.
  static __host__ __device__ int a_tiles(const Shifted& s) {
    const int tiles = (stages - 2 + s.taps) / s.taps + 1, chunks = (s.depth + depth - 1) / depth;
    return tiles < chunks ? tiles : chunks;
  }
  /// Of the table that says where rows of x begin.
  static __host__ __device__ int table_bytes(const Shifted& s) { return ceil_div(a_rows(s) * s.samples, 2) * 16; }
  /// At last: the result, and where its rows begin.
  static constexpr int out_bytes = BM * out_stride * 4;
  static size_t shared_bytes(const Shifted& s) {
    const size_t loop = static_cast<size_t>(a_tiles(s)) * a_rows(s) * pitch + stages * w_bytes,
                 out = out_bytes + BM * sizeof(Row);
    return s.input_bytes + table_bytes(s) + (loop > out ? loop : out);
  }
};

template <int BM, int BN, Product P, Lies B, class Input, class Output>
__global__ void __launch_bounds__(block_threads(P, BM, BN), blocks_at_once(P, BM, BN))
    shifted_product_kernel(Shifted s, const typename EngineOf<P>::type::T* a, const typename EngineOf<P>::type::T* w,
                           Input input, Output output) {
  constexpr int WN = warp_columns(P, BM, BN);
  using Engine = typename EngineOf<P, WN>::type;
  using T = typename Engine::T;
  using L = Layout<BM, BN, P, B>;
  constexpr int pack = pack_size<T>, depth = Engine::depth, threads = L::threads, rows_at_once = threads / packs;
  NACRE_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int a_rows = L::a_rows(s), a_tiles = L::a_tiles(s), a_bytes = a_rows * pitch;
  int64_t* const table = reinterpret_cast<int64_t*>(shared + s.input_bytes);
  unsigned char* const a_shared = shared + s.input_bytes + L::table_bytes(s);
  unsigned char* const w_shared = a_shared + a_tiles * a_bytes;
  const int64_t first_row = int64_t{blockIdx.x} * BM;
  const int channels = static_cast<int>(s.channels);
  const int first_column = static_cast<int>(blockIdx.y) * BN;
  const Place first(s, first_row);
  for (int r = thread; r < a_rows; r += threads) {
    const Place place(first, s, r, s.gap);
    for (int part = 0; part < s.samples; ++part) table[r * s.samples + part] = in_sample<T>(s, place, part);
  }
  if constexpr (Input::active) {
    auto* const parameters = reinterpret_cast<typename Input::Parameters*>(shared);
    for (int c = thread; c < channels; c += threads) parameters[c] = input.channel(c);
  }
  __syncthreads();

  // A thread copies the same 16-byte column of every row it takes: of x, one channel of one sample per chunk.
  const int a_column = thread % packs * pack, a_row = thread / packs;
  int next_part = a_column / channels, next_channel = a_column - next_part * channels;
  const auto copy_a = [&](int slot) {
    constexpr int batch = 4;
    unsigned char* to = a_shared + slot * a_bytes + a_row * pitch + thread % packs * 16;
    const bool exists = next_part < s.samples;
    const int64_t* const samples = table + (exists ? next_part : 0);
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(a + next_channel);
#pragma unroll 1
    for (int r = a_row; r < a_rows; r += batch * rows_at_once, to += batch * rows_at_once * pitch) {
      int64_t begin[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        begin[i] = zeros_here;
        if (r + i * rows_at_once < a_rows) begin[i] = samples[(r + i * rows_at_once) * s.samples];
      }
#pragma unroll
      for (int i = 0; i < batch; ++i)
        if (r + i * rows_at_once < a_rows)
          cp_async_or_zeros(to + i * rows_at_once * pitch, from + begin[i], exists && begin[i] >= 0);
    }
    next_channel += depth;
    while (next_channel >= channels && next_part < s.samples) next_channel -= channels, ++next_part;
  };
  constexpr int w_packs = B == Lies::along ? packs : BN / pack, w_at_once = threads / w_packs;
  static_assert(threads % w_packs == 0 && L::w_rows % w_at_once == 0);
  const int w_column = thread % w_packs * pack, w_row = thread / w_packs;
  const T* const w_first = w + (B == Lies::along ? first_column + w_row : w_row) * s.w_row;
  const auto copy_w = [&](int chunk, int u, int slot) {
    unsigned char* to = w_shared + slot * L::w_bytes + w_row * L::w_pitch + thread % w_packs * 16;
    const int c = chunk * depth, n = first_column, w_tap = static_cast<int>(s.w_tap);
    const int in_row = B == Lies::along ? u * w_tap + (c + w_column) : (s.taps - 1 - u) * w_tap + (n + w_column);
    const bool exists =
        (B == Lies::along ? c + w_column < s.depth : n + w_column < s.columns) && in_row < static_cast<int>(s.w_row);
    const int rows_left = (B == Lies::along ? s.columns - n : s.depth - c) - w_row;
    const T* from = w_first + ((B == Lies::along ? 0 : c * s.w_row) + in_row);
#pragma unroll
    for (int i = 0; i < L::w_rows / w_at_once; ++i, to += w_at_once * L::w_pitch, from += w_at_once * s.w_row)
      cp_async_or_zeros(to, from, exists && i * w_at_once < rows_left);
  };
  // The thread that copied a pack may change it before the others see it. Of the next tile to change, packs `begin` to
  // `end` of the thread's own:
  constexpr bool changes = Input::active || P == Product::tf32;
  const int a_per_thread = (a_rows - a_row + rows_at_once - 1) / rows_at_once;
  int change_chunk = 0, change_slot = 0, change_channel = a_column % channels;
  const auto change_a = [&](int begin, int end) {
    if (change_chunk * depth + a_column >= s.depth) return;
    typename Input::Column column;
    if constexpr (Input::active) {
      const auto* const parameters = reinterpret_cast<const typename Input::Parameters*>(shared) + change_channel;
      column = *reinterpret_cast<const typename Input::Column*>(parameters);
    }
    if (end > a_per_thread) end = a_per_thread;
    unsigned char* at = a_shared + change_slot * a_bytes + (a_row + begin * rows_at_once) * pitch + thread % packs * 16;
#pragma unroll 1
    for (int i = begin; i < end; ++i, at += rows_at_once * pitch) {
      T* const p = reinterpret_cast<T*>(at);
      Pack<T> v = load_pack(p);
      if constexpr (Input::active) input.apply(column, v);
      if constexpr (P == Product::tf32) round_pack(v);
      store_pack(p, v);
    }
  };
  const auto next_change = [&] {
    ++change_chunk;
    if (++change_slot == a_tiles) change_slot = 0;
    change_channel += depth;
    while (change_channel >= channels) change_channel -= channels;
  };
  const auto change_w = [&](int slot) {
    unsigned char* at = w_shared + slot * L::w_bytes + w_row * L::w_pitch + thread % w_packs * 16;
#pragma unroll
    for (int i = 0; i < L::w_rows / w_at_once; ++i, at += w_at_once * L::w_pitch) {
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
  // The next tile of x is changed beside this one's products: by half of the warps before a step's products and by the
  // other half behind them, so that tensor cores have work all the time. Of three taps and more it is fetched at the
  // first, has arrived at the third, and is changed from there on; of fewer it is fetched as the weights are, arrives a
  // step later and is changed in that one. Rounding alone does not make up for that haste.
  constexpr bool halves = threads > 128;
  const bool spread = changes && s.taps >= stages, ahead = Input::active || spread,
             changes_first = !halves || warp < threads / 64;
  const int change_tap = min(stages, s.taps) - 1, share = ceil_div(ceil_div(a_rows, rows_at_once), s.taps - change_tap);
  // What is fetched next, and the step that is multiplied.
  int next_x = 0, next_chunk = 0, next_tap = 0, next_a = 0, next_w = 0, chunk = 0, tap = 0, now_a = 0, now_w = 0;
  // Behind the last step the weights are zeros, so that no branch parts the products.
  const auto fetch = [&](bool x_too) {
    if (x_too && next_x < chunks) {
      copy_a(next_a), ++next_x;
      if (++next_a == a_tiles) next_a = 0;
    }
    copy_w(next_chunk, next_tap, next_w);
    cp_async_commit();
    if (++next_w == stages) next_w = 0;
    if (++next_tap == s.taps) next_tap = 0, ++next_chunk;
  };
  const int warp_row = warp / (BN / WN) * 64, warp_column = warp % (BN / WN) * WN;
  const auto row_offset = [&](int r) {
    r += warp_row;
    return (r + static_cast<int>(Place(first, s, r).item - first.item) * s.gap) * pitch;
  };
  const typename Engine::Rows rows = Engine::rows(row_offset, lane);
#pragma unroll 1
  for (int step = 1 - stages; step < 0; ++step) fetch(spread ? step == 1 - stages : next_tap == 0);
  for (int step = 0; step < steps; ++step) {
    if (ahead && !spread)
      cp_async_wait<0>();
    else
      cp_async_wait<stages - 2>();
    if constexpr (changes)
      if (ahead ? step == 0 : tap == 0) change_a(0, a_per_thread), next_change();
    if constexpr (P == Product::tf32) change_w(now_w);
    __syncthreads();  // this step's tiles are complete, and the last step's are free
    const int slice = (tap - change_tap) * share;
    if constexpr (changes)
      if (changes_first && ahead && slice >= 0) change_a(slice, slice + share);
    const unsigned char* const left = a_shared + now_a * a_bytes + tap * s.tap_rows * pitch;
    const unsigned char* const right =
        w_shared + now_w * L::w_bytes +
        (B == Lies::along ? warp_column * L::w_pitch : warp_column * static_cast<int>(sizeof(T)));
    sums.template multiply<Lies::along, B>(left, rows, pitch, right, L::w_pitch, lane,
                                           min(depth, s.depth - chunk * depth),
                                           [&] { fetch(spread ? tap == 0 : next_tap == 0); });
    if constexpr (changes && halves)
      if (!changes_first && ahead && slice >= 0) change_a(slice, slice + share);
    if (++now_w == stages) now_w = 0;
    if (++tap == s.taps) {
      tap = 0, ++chunk;
      if (++now_a == a_tiles) now_a = 0;
      if (ahead) next_change();
    }
  }

  // Through shared memory, so that rows leave as whole packs.
  cp_async_wait<0>();
  __syncthreads();
  float* const result = reinterpret_cast<float*>(a_shared);
  sums.template save<Lies::along, B>(result + warp_row * L::out_stride + warp_column, L::out_stride, lane);
  Row* const out_rows = reinterpret_cast<Row*>(a_shared + L::out_bytes);
  for (int r = thread; r < BM; r += threads) out_rows[r] = out_row(s, Place(first, s, r));
  __syncthreads();
  constexpr int out_packs = BN / pack, out_at_once = threads / out_packs;
  static_assert(threads % out_packs == 0);
  const int column = thread % out_packs * pack, n = first_column + column;
  auto state = output.column(n < s.columns ? n : 0);
  if (n < s.columns) {
    for (int r = thread / out_packs; r < BM; r += out_at_once) {
      const Row row = out_rows[r];
      if (n < row.begin || n >= row.end) continue;
      Pack<T> v;
#pragma unroll
      for (int i = 0; i < pack; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(result + r * L::out_stride + column + i);
        v.v[i] = four.x, v.v[i + 1] = four.y, v.v[i + 2] = four.z, v.v[i + 3] = four.w;
      }
      output.row(state, row.base + n, v);
    }
  }
  output.template finish<BN, threads>(state, n, result);
}

// ---- what runs
// ----------------------------------------------------------------------------------------------------------

/// Shared memory that is enough for such a block, whichever product on the elements of s it makes and however w lies.
inline size_t shared_bytes(const Shifted& s, Blocking b) {
  const auto most = [&]<int BM, int BN, Product P>() {
    return std::max(Layout<BM, BN, P, Lies::along>::shared_bytes(s), Layout<BM, BN, P, Lies::across>::shared_bytes(s));
  };
  const auto bytes = [&]<int BM, int BN>() {
    return s.element_bytes == 2 ? most.template operator()<BM, BN, Product::bf16>()
                                : most.template operator()<BM, BN, Product::fma>();
  };
  if (b.rows == 64) return bytes.template operator()<64, 64>();
  if (b.rows == 128 && b.columns == 64) return bytes.template operator()<128, 64>();
  if (b.rows == 128)
    return b.columns == 96 ? bytes.template operator()<128, 96>() : bytes.template operator()<128, 128>();
  if (b.columns == 32) return bytes.template operator()<256, 32>();
  return b.columns == 64 ? bytes.template operator()<256, 64>() : bytes.template operator()<256, 128>();
}
inline bool block_fits(const DeviceLimits& d, const Shifted& s, Blocking b) {
  return shared_bytes(s, b) <= d.shared_per_block;
}

/// The width that wastes least: a column of tiles costs its width and, for loading x, about 32 more. Tall tiles fetch
/// the weights less often (128 columns at the tensor cores' rate: 5 TB/s of L2 for 128 rows, 3 for 256), but tiles are
/// made smaller when there are too few for all multiprocessors, or when tile and halo are more than a block's shared
/// memory. Of those that then fit, 128 rows are better than 64: half the halo, and warps enough for a multiprocessor
/// that holds one block. The smallest is returned even if it does not fit.
inline Blocking choose_blocks(const DeviceLimits& d, const Shifted& s) {
  const auto columns = [&](int n) { return ceil_div(s.columns, n); };
  const auto least_waste = [&](std::initializer_list<int> widths, const auto& fits) {
    int best = 0;
    int64_t least = INT64_MAX;
    for (const int n : widths) {
      const int64_t cost = columns(n) * int64_t{n + 32};
      if (cost < least && fits(n)) least = cost, best = n;
    }
    return best;
  };
  const int best = least_waste({128, 96, 64, 32}, [](int) { return true; });
  const int64_t rows = s.items * s.virtual_rows;
  const auto busy = [&](int64_t of_block, int n) { return ceil_div(rows, of_block) * columns(n) >= d.multiprocessors; };
  const bool tall = best != 96 && busy(256, best);
  if (tall && block_fits(d, s, {256, best})) return {256, best};
  if (best >= 96 && busy(128, best) && block_fits(d, s, {128, best})) return {128, best};
  if (tall || (best >= 96 && busy(128, best))) {  // it is room that lacks
    const int narrow = least_waste({64, 96}, [&](int n) { return block_fits(d, s, {128, n}); });
    if (narrow != 0) return {128, narrow};
  }
  return {64, 64};
}

template <int BM, int BN, Product P, Lies B, class T, class Input, class Output>
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

/// How many parts a sum over rows is cut into, at most `most`: as many as one round of all multiprocessors takes, if
/// that keeps nine tenths of them busy; or the fewest whose rounds together do; or else the best. `tiles` blocks per
/// part, `at_once` blocks per multiprocessor.
inline int64_t even_parts(const DeviceLimits& d, int64_t tiles, int64_t at_once, int64_t most) {
  const int64_t slots = d.multiprocessors * at_once, round = std::min(slots / tiles, most);
  if (round * tiles * 10 >= slots * 9) return round;
  int64_t best = 1;
  double most_used = 0;
  for (int64_t parts = 1; parts <= std::min<int64_t>(most, 1024); ++parts) {
    const int64_t blocks = tiles * parts;
    const double used = static_cast<double>(blocks) / static_cast<double>(ceil_div(blocks, slots) * slots);
    if (used > most_used + 1e-9) most_used = used, best = parts;
    if (used >= 0.9) break;
  }
  return best;
}
/// Whether the kernel counts far enough, and the device has room for the blocks that were chosen.
inline bool fits(const DeviceLimits& d, const Shifted& s) {
  return int64_t{s.taps} * s.tap_rows < 4096 && s.samples <= 256 && s.taps * s.w_tap + s.columns < INT32_MAX &&
         block_fits(d, s, s.block);
}
/// Queues the product.
template <Product P, Lies B, class T, class Input, class Output>
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

/// Whether the channels fill packs and the geometry is one of whole rows.
template <class T>
bool suits(const Conv1dGeometry& g, int64_t in, int64_t out) {
  return g.groups == 1 && (g.stride == 1 || g.dilation == 1) && in % pack_size<T> == 0 && out % pack_size<T> == 0 &&
         std::max(in, out) * g.stride < (1 << 20) && g.dilation < 4096;
}
/// Rounds on all multiprocessors of blocks of 256 x 128; 0 for other blocks, of which several are there at once.
inline int64_t rounds(const DeviceLimits& d, const Shifted& s) {
  if (s.block != Blocking{256, 128}) return 0;
  const int64_t blocks = ceil_div<int64_t>(s.items * s.virtual_rows, 256) * ceil_div(s.columns, 128);
  return ceil_div<int64_t>(blocks, d.multiprocessors);
}
/// Lays the items below each other and chooses the blocks. With a gap between items where rows are whole warps', unless
/// it takes so much shared memory that blocks become smaller; and of other rows on tensor cores, where that saves a
/// round (of 256 x 128: of 128 x 128 two share a multiprocessor, and the gap would leave room for one).
inline void lay_items(const DeviceLimits& d, Shifted& s, int64_t items, int64_t rows, bool tensor_cores) {
  const int64_t halo = int64_t{s.taps - 1} * s.tap_rows;
  s.items = items, s.rows = rows;
  const auto laid = [&](int64_t gap) {
    Shifted l = s;
    l.gap = static_cast<int>(gap), l.virtual_rows = rows + halo - gap;
    l.block = choose_blocks(d, l);
    return l;
  };
  s = laid(0);
  if (halo == 0 || halo > rows || halo >= 4096) return;
  const Shifted with = laid(halo);
  if (with.block != s.block || !block_fits(d, with, with.block)) return;
  if (rows % 64 == 0 || (tensor_cores && rounds(d, with) < rounds(d, s))) s = with;
}
/// Whether a product in this context is the tensor cores'.
template <class T>
bool on_tensor_cores(const Context& ctx) {
  return sizeof(T) == 2 || ctx.precision() == Precision::tf32;
}
/// The forward as a product.
template <class T>
Shifted forward_product(const DeviceLimits& d, Shape x, Shape weight, Shape y, const Conv1dGeometry& g,
                        bool tensor_cores, int input_bytes = 0) {
  Shifted s{};
  s.element_bytes = sizeof(T);
  s.input_bytes = input_bytes;
  s.time = x.time, s.lead = g.left, s.channels = x.channels, s.samples = static_cast<int>(g.stride);
  s.out_pitch = y.channels, s.out_item = y.time * y.channels, s.out_end = s.out_item;
  s.w_row = weight.time * x.channels, s.w_tap = g.stride * x.channels;
  s.taps = static_cast<int>(ceil_div(weight.time, g.stride)), s.tap_rows = static_cast<int>(g.dilation);
  s.depth = static_cast<int>(s.w_tap), s.columns = static_cast<int>(y.channels);
  lay_items(d, s, x.batch, y.time, tensor_cores);
  s.reflect = g.padding == Padding::reflect;
  return s;
}
/// The input gradient as a product of dy; with reflected padding only for samples [left + 1, time - 1 - right).
template <class T>
Shifted input_gradient_product(const DeviceLimits& d, Shape x, Shape weight, Shape y, const Conv1dGeometry& g,
                               bool tensor_cores) {
  Shifted s{};
  s.element_bytes = sizeof(T);
  s.time = y.time, s.channels = y.channels, s.samples = 1;
  s.out_pitch = g.stride * x.channels, s.out_item = x.time * x.channels;
  const bool reflect = g.padding == Padding::reflect;
  s.out_begin = reflect ? (g.left + 1) * x.channels : 0;
  s.out_end = s.out_item - (reflect ? (g.right + 1) * x.channels : 0);
  s.w_row = weight.time * x.channels, s.w_tap = s.out_pitch;
  s.taps = static_cast<int>(ceil_div(weight.time, g.stride)), s.tap_rows = static_cast<int>(g.dilation);
  s.depth = static_cast<int>(y.channels), s.columns = static_cast<int>(s.out_pitch);
  // Row r of the result is padded samples (first + r) stride and on; the last tap backwards reads dy's row first + r.
  const int64_t first = g.left / g.stride;
  s.out_offset = (g.left - first * g.stride) * x.channels;
  s.lead = int64_t{s.taps - 1} * s.tap_rows - first;
  lay_items(d, s, x.batch, ceil_div(g.left + x.time, g.stride) - first, tensor_cores);
  return s;
}

/// conv1d's own uses, a file per product: they compile side by side.
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
