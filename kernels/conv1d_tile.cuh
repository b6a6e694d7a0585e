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
// it; among the rows of the result it has not where every item is made of whole warps' 64 rows, which then all lie in
// one item: [16 | 72][16896 / 2^n][C] fills 132 multiprocessors in whole rounds, which a few rows more would not.
//
// Three products (Engine): float fused multiply-adds, and the tensor cores on tf32 or bf16. A warp makes 64 x 32 or
// 64 x 64. What is done to x as it arrives, and to the result as it leaves, are policies: see PlainInput and
// PlainOutput.
//
// Seven taps of bf16 in tiles of 256 x 128: 21 KB through cp.async for 4.2 million operations, 3 TB/s of L2 at 600
// TFLOP/s; 31 bytes of shared memory read per thousand operations, of the 49 that there are at that rate. x is read
// once per column of tiles, the result written once.
#include "device.cuh"
#include "nacre/ops/conv1d.h"

namespace nacre::cuda::tile {

inline constexpr int step_bytes = 128;             // of the reduced dimension
inline constexpr int stages = 3;                   // of weights in flight or in use
inline constexpr int pitch = step_bytes + 16;      // of a row of them: eight rows lie in different banks
inline constexpr size_t shared_limit = 163 << 10;  // of a block on sm_80
inline constexpr int packs = step_bytes / 16;

enum class Product : uint8_t { fma, tf32, bf16 };
/// How an operand's tile lies in shared memory: rows of the reduced dimension (as weights do for the forward, and x),
/// or with the reduced dimension going down.
enum class Lies : uint8_t { along, across };

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
  int gap;          // rows of halo between items that are rows of x alone
  int input_bytes;  // of shared memory for the input policy's channels
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
/// The byte of `a` where sample `part` of a row begins; -1 for zeros.
template <class T>
__device__ __forceinline__ int64_t in_sample(const Shifted& s, const Place& p, int part) {
  int64_t sample = p.row * s.samples + part - s.lead;
  if (p.item >= s.items) return -1;
  if (s.reflect) sample = sample < 0 ? -sample : (sample < s.time ? sample : 2 * (s.time - 1) - sample);
  return sample < 0 || sample >= s.time ? -1 : (p.item * s.time + sample) * s.channels * int64_t{sizeof(T)};
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

// ---- engines: 64 rows per warp, one step of 128 bytes
// -----------------------------------------------------------------

__device__ __forceinline__ float4 load4(const unsigned char* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float2 load2(const unsigned char* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ float word(const unsigned char* p) { return *reinterpret_cast<const float*>(p); }

/// Float fused multiply-adds: 8 x 8 per thread, lanes 8 down and 4 across.
struct FmaEngine {
  using T = float;
  static constexpr int depth = 32;
  float sum[8][8];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i][j] = 0;
  }
  /// a: the warp's first row (along) or column (across); b likewise. The first `here` of the depth are not zero.
  /// meanwhile() is what else the thread has to do, and is called once.
  template <Lies A, Lies B, class Meanwhile>
  __device__ __forceinline__ void multiply(const unsigned char* a, int a_pitch, const unsigned char* b, int b_pitch,
                                           int lane, int here, Meanwhile&& meanwhile) {
    meanwhile();
    const int ty = lane / 4, tx = lane % 4;
    if constexpr (A == Lies::along && B == Lies::along) {
      a += ty * a_pitch, b += tx * b_pitch;
#pragma unroll 1
      for (int k = 0; k < here; k += 4) {
        float4 row[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) row[i] = load4(a + 8 * i * a_pitch + k * 4);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 w = load4(b + 4 * j * b_pitch + k * 4);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            sum[i][j] += row[i].x * w.x;
            sum[i][j] += row[i].y * w.y;
            sum[i][j] += row[i].z * w.z;
            sum[i][j] += row[i].w * w.w;
          }
        }
      }
    } else if constexpr (A == Lies::along) {
      a += ty * a_pitch, b += tx * 16;
#pragma unroll 2
      for (int k = 0; k < here; k += 2) {  // pairs: four rows more would not fit the registers
        float2 row[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) row[i] = load2(a + 8 * i * a_pitch + k * 4);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 low = load4(b + (k + e) * b_pitch), high = load4(b + (k + e) * b_pitch + 64);
#pragma unroll
          for (int i = 0; i < 8; ++i) add(sum[i], e == 0 ? row[i].x : row[i].y, low, high);
        }
      }
    } else {
      static_assert(B == Lies::across);
#pragma unroll 2
      for (int k = 0; k < here; ++k) {
        const float4 top = load4(a + k * a_pitch + ty * 16), bottom = load4(a + k * a_pitch + 128 + ty * 16);
        const float4 low = load4(b + k * b_pitch + tx * 16), high = load4(b + k * b_pitch + 64 + tx * 16);
        add(sum[0], top.x, low, high), add(sum[1], top.y, low, high);
        add(sum[2], top.z, low, high), add(sum[3], top.w, low, high);
        add(sum[4], bottom.x, low, high), add(sum[5], bottom.y, low, high);
        add(sum[6], bottom.z, low, high), add(sum[7], bottom.w, low, high);
      }
    }
  }
  /// The warp's sums to shared memory, as rows of `stride` floats.
  template <Lies A, Lies B>
  __device__ __forceinline__ void save(float* to, int stride, int lane) const {
    const int ty = lane / 4, tx = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = A == Lies::along ? ty + 8 * i : i / 4 * 32 + ty * 4 + i % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = B == Lies::along ? tx + 4 * j : j / 4 * 16 + tx * 4 + j % 4;
        to[row * stride + column] = sum[i][j];
      }
    }
  }
  static __device__ __forceinline__ void add(float (&to)[8], float x, const float4& low, const float4& high) {
    to[0] += x * low.x, to[1] += x * low.y, to[2] += x * low.z, to[3] += x * low.w;
    to[4] += x * high.x, to[5] += x * high.y, to[6] += x * high.z, to[7] += x * high.w;
  }
};

/// Tensor cores: products of 16 x 8, four down and N / 8 across. A step of 32 bytes is one instruction's depth, 8 of
/// tf32 or 16 of bf16. Per such step a warp reads (64 + N) 32 bytes of shared memory for 64 N products of that depth:
/// 32 columns take 1.5 times the bytes of 64, and more than an H200's tensor cores leave time for at full rate.
template <class T_, int N>
struct MmaEngine {
  using T = T_;
  static constexpr int across = N / 8;
  static constexpr int depth = step_bytes / static_cast<int>(sizeof(T));
  static constexpr bool tf32 = sizeof(T) == 4;
  float sum[4][across][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }
  /// meanwhile() comes between the first products and the next, whose operands are on their way: nothing waits for it.
  template <Lies A, Lies B, class Meanwhile>
  __device__ __forceinline__ void multiply(const unsigned char* a, int a_pitch, const unsigned char* b, int b_pitch,
                                           int lane, int, Meanwhile&& meanwhile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t left[4][4], right[across][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (A == Lies::along) {
          ldmatrix_x4(left[i], a + (16 * i + lane % 16) * a_pitch + step * 32 + lane / 16 * 16);
        } else if constexpr (tf32) {
          const unsigned char* const p = a + (step * 8 + lane % 4) * a_pitch + (16 * i + lane / 4) * 4;
          left[i][0] = __float_as_uint(word(p)), left[i][1] = __float_as_uint(word(p + 32));
          left[i][2] = __float_as_uint(word(p + 4 * a_pitch)), left[i][3] = __float_as_uint(word(p + 4 * a_pitch + 32));
        } else {
          ldmatrix_x4_trans(left[i],
                            a + (step * 16 + lane % 8 + lane / 16 * 8) * a_pitch + (16 * i + lane / 8 % 2 * 8) * 2);
        }
      }
#pragma unroll
      for (int j = 0; j < across; j += 2) {
        uint32_t two[4];
        if constexpr (B == Lies::along) {
          ldmatrix_x4(two, b + (8 * j + lane / 16 * 8 + lane % 8) * b_pitch + step * 32 + lane / 8 % 2 * 16);
        } else if constexpr (tf32) {
          const unsigned char* const p = b + (step * 8 + lane % 4) * b_pitch + (8 * j + lane / 4) * 4;
          two[0] = __float_as_uint(word(p)), two[1] = __float_as_uint(word(p + 4 * b_pitch));
          two[2] = __float_as_uint(word(p + 32)), two[3] = __float_as_uint(word(p + 4 * b_pitch + 32));
        } else {
          ldmatrix_x4_trans(two, b + (step * 16 + lane % 16) * b_pitch + (8 * j + lane / 16 * 8) * 2);
        }
        right[j][0] = two[0], right[j][1] = two[1], right[j + 1][0] = two[2], right[j + 1][1] = two[3];
      }
      if (step == 1) meanwhile();
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < across; ++j) {
          if constexpr (tf32)
            mma_tf32_16x8x8(sum[i][j], left[i], right[j]);
          else
            mma_bf16_16x8x16(sum[i][j], left[i], right[j]);
        }
    }
  }
  template <Lies, Lies>
  __device__ __forceinline__ void save(float* to, int stride, int lane) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          *reinterpret_cast<float2*>(to + (16 * i + lane / 4 + e / 2 * 8) * stride + 8 * j + lane % 4 * 2) =
              make_float2(sum[i][j][e], sum[i][j][e + 1]);
  }
};

template <Product, int N = 32>
struct EngineOf {
  static_assert(N == 32);
  using type = FmaEngine;
};
template <int N>
struct EngineOf<Product::tf32, N> {
  using type = MmaEngine<float, N>;
};
template <int N>
struct EngineOf<Product::bf16, N> {
  using type = MmaEngine<bf16, N>;
};
/// Columns per warp: as many as there are registers for, if enough warps are left.
constexpr int warp_columns(Product p, int rows, int columns) {
  return p != Product::fma && rows >= 128 && columns % 128 == 0 ? 64 : 32;
}
constexpr int block_threads(Product p, int rows, int columns) {
  return rows / 64 * (columns / warp_columns(p, rows, columns)) * 32;
}
/// Blocks that should fit a multiprocessor's shared memory and, at 128 to 250 registers a thread, its registers.
constexpr int blocks_at_once(Product p, int rows, int columns) {
  const int threads = block_threads(p, rows, columns);
  if (warp_columns(p, rows, columns) == 64) return threads > 128 ? 1 : 2;
  return threads > 256 ? 1 : (threads > 128 ? 2 : 3);
}

/// Rounds a pack that has arrived to what the tensor core takes.
__device__ __forceinline__ void round_pack(Pack<float>& p) {
#pragma unroll
  for (int i = 0; i < 4; ++i) p.v[i] = __uint_as_float(to_tf32(p.v[i]));
}

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
    const int64_t gaps = s.gap == 0 || s.virtual_rows % BM == 0 ? 0 : ceil_div(int64_t{BM - 64}, s.virtual_rows);
    return BM + (s.taps - 1) * s.tap_rows + static_cast<int>(gaps) * s.gap;
  }
  /// x's tiles that are in use or on their way while `stages` steps are.
  static __host__ __device__ int a_tiles(const Shifted& s) {
    const int tiles = (stages - 2 + s.taps) / s.taps + 1, chunks = (s.depth + depth - 1) / depth;
    return tiles < chunks ? tiles : chunks;
  }
  /// Of the table that says where rows begin: of x at first, of the result at last.
  static __host__ __device__ int table_bytes(const Shifted& s) {
    const int in = ceil_div(a_rows(s) * s.samples, 2) * 16, out = BM * static_cast<int>(sizeof(Row));
    return in > out ? in : out;
  }
  static size_t shared_bytes(const Shifted& s) {
    const size_t loop = static_cast<size_t>(a_tiles(s)) * a_rows(s) * pitch + stages * w_bytes,
                 out = BM * out_stride * 4;
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
    const int64_t* const begins = table + (exists ? next_part : 0);
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(a + next_channel);
#pragma unroll 1
    for (int r = a_row; r < a_rows; r += batch * rows_at_once, to += batch * rows_at_once * pitch) {
      int64_t begin[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        begin[i] = -1;
        if (r + i * rows_at_once < a_rows) begin[i] = begins[(r + i * rows_at_once) * s.samples];
      }
#pragma unroll
      for (int i = 0; i < batch; ++i)
        if (r + i * rows_at_once < a_rows)
          cp_async_or_zeros(to + i * rows_at_once * pitch, from + begin[i], exists && begin[i] >= 0);
    }
    for (next_channel += depth; next_channel >= channels && next_part < s.samples; ++next_part)
      next_channel -= channels;
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
    const int left = (B == Lies::along ? s.columns - n : s.depth - c) - w_row;
    const T* from = w_first + ((B == Lies::along ? 0 : c * s.w_row) + in_row);
#pragma unroll
    for (int i = 0; i < L::w_rows / w_at_once; ++i, to += w_at_once * L::w_pitch, from += w_at_once * s.w_row)
      cp_async_or_zeros(to, from, exists && i * w_at_once < left);
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
  const auto changed = [&] {
    ++change_chunk;
    if (++change_slot == a_tiles) change_slot = 0;
    for (change_channel += depth; change_channel >= channels;) change_channel -= channels;
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
  // Of three taps and more x's next tile is fetched at the first tap, has arrived at the third, and is changed from there
  // on: half of the warps before a step's products and half behind them, so that tensor cores have work all the time.
  constexpr bool halves = threads > 128;
  const bool ahead = changes && s.taps >= stages, before = !halves || warp < threads / 64;
  const int change_steps = s.taps - (stages - 1),
            share = ahead ? ceil_div(ceil_div(a_rows, rows_at_once), change_steps) : 0;
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
  const int first_of_warp = warp_row + static_cast<int>(Place(first, s, warp_row).item - first.item) * s.gap;
#pragma unroll 1
  for (int step = 1 - stages; step < 0; ++step) fetch(ahead ? step == 1 - stages : next_tap == 0);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<stages - 2>();
    if constexpr (changes)
      if (ahead ? step == 0 : tap == 0) change_a(0, a_per_thread), changed();
    if constexpr (P == Product::tf32) change_w(now_w);
    __syncthreads();  // this step's tiles are complete, and the last step's are free
    const int begin = (tap - (stages - 1)) * share;
    if constexpr (changes)
      if (before && ahead && begin >= 0) change_a(begin, begin + share);
    const unsigned char* const left = a_shared + now_a * a_bytes + (first_of_warp + tap * s.tap_rows) * pitch;
    const unsigned char* const right =
        w_shared + now_w * L::w_bytes +
        (B == Lies::along ? warp_column * L::w_pitch : warp_column * static_cast<int>(sizeof(T)));
    sums.template multiply<Lies::along, B>(left, pitch, right, L::w_pitch, lane, min(depth, s.depth - chunk * depth),
                                           [&] { fetch(ahead ? tap == 0 : next_tap == 0); });
    if constexpr (changes && halves)
      if (!before && ahead && begin >= 0) change_a(begin, begin + share);
    if (++now_w == stages) now_w = 0;
    if (++tap == s.taps) {
      tap = 0, ++chunk;
      if (++now_a == a_tiles) now_a = 0;
      if (ahead) changed();
    }
  }

  // Through shared memory, so that rows leave as whole packs.
  cp_async_wait<0>();
  __syncthreads();
  float* const result = reinterpret_cast<float*>(a_shared);
  sums.template save<Lies::along, B>(result + warp_row * L::out_stride + warp_column, L::out_stride, lane);
  Row* const out_rows = reinterpret_cast<Row*>(table);
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

/// Rows by columns of a block.
struct Blocking {
  int rows, columns;
};
/// The width that wastes least: a column of tiles costs its width and, for loading x, about 32 more. Tall tiles fetch
/// the weights less often (128 columns at the tensor cores' rate: 5 TB/s of L2 for 128 rows, 3 for 256), but tiles are
/// made smaller when there are too few for 132 multiprocessors or the halo is long.
inline Blocking blocking(const Shifted& s) {
  int best = 128;
  int64_t least = INT64_MAX;
  for (const int n : {128, 96, 64, 32}) {
    const int64_t cost = ceil_div(s.columns, n) * int64_t{n + 32};
    if (cost < least) least = cost, best = n;
  }
  const auto blocks = [&](int64_t rows) {
    return ceil_div(s.items * s.virtual_rows, rows) * ceil_div(s.columns, best);
  };
  const size_t shared = best == 128 ? Layout<256, 128, Product::fma, Lies::along>::shared_bytes(s)
                                    : Layout<256, 64, Product::fma, Lies::along>::shared_bytes(s);
  if (best != 96 && blocks(256) >= 132 && shared <= shared_limit) return {256, best};
  if (blocks(128) < 132 || best < 96) return {64, 64};
  return {128, best};
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

/// How many parts a sum over rows is cut into, at most `most`: as many as one round of 132 multiprocessors takes, if no
/// tenth of them is idle then; or the fewest that leave no tenth idle in the last round; or else the best. `tiles`
/// blocks per part, `at_once` blocks per multiprocessor.
inline int64_t even_parts(int64_t tiles, int64_t at_once, int64_t most) {
  const int64_t slots = 132 * at_once, round = std::min(slots / tiles, most);
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
/// Whether the halo fits beside the weights.
template <class T>
bool fits(const Shifted& s) {
  return int64_t{s.taps} * s.tap_rows < 4096 && s.samples <= 256 && s.taps * s.w_tap + s.columns < INT32_MAX &&
         Layout<128, 128, Product::fma, Lies::along>::shared_bytes(s) <= shared_limit;
}
/// Queues the product.
template <Product P, Lies B, class T, class Input, class Output>
void launch_product(Context& ctx, const char* name, const Shifted& s, const T* a, const T* w, const Input& input,
                    const Output& output) {
  const Blocking b = blocking(s);
  if (b.rows == 64) return launch_blocks<64, 64, P, B>(ctx, name, s, a, w, input, output);
  if (b.columns == 96) return launch_blocks<128, 96, P, B>(ctx, name, s, a, w, input, output);
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
/// Lays the items below each other. With a gap where rows are whole warps', unless items are short and halos long.
inline void lay_items(Shifted& s, int64_t items, int64_t rows) {
  const int64_t halo = int64_t{s.taps - 1} * s.tap_rows;
  s.items = items, s.rows = rows;
  s.gap = rows % 64 == 0 && halo <= rows && halo < 4096 ? static_cast<int>(halo) : 0;
  s.virtual_rows = rows + halo - s.gap;
}
/// The forward as a product.
inline Shifted forward_product(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  Shifted s{};
  s.time = x.time, s.lead = g.left, s.channels = x.channels, s.samples = static_cast<int>(g.stride);
  s.out_pitch = y.channels, s.out_item = y.time * y.channels, s.out_end = s.out_item;
  s.w_row = weight.time * x.channels, s.w_tap = g.stride * x.channels;
  s.taps = static_cast<int>(ceil_div(weight.time, g.stride)), s.tap_rows = static_cast<int>(g.dilation);
  s.depth = static_cast<int>(s.w_tap), s.columns = static_cast<int>(y.channels);
  lay_items(s, x.batch, y.time);
  s.reflect = g.padding == Padding::reflect;
  return s;
}
/// The input gradient as a product of dy; with reflected padding only for samples [left + 1, time - 1 - right).
inline Shifted input_gradient_product(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  Shifted s{};
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
  lay_items(s, x.batch, ceil_div(g.left + x.time, g.stride) - first);
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
