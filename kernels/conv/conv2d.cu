#include "nacre/ops/conv2d.h"

#include <limits>

#include "conv/conv2d_stack.h"
#include "runtime/device.cuh"
#include "runtime/host.h"

// Both passes are bound by memory. A block has a range of one row of one part, a thread one piece of it for all taps of
// time: 16 bytes where the channels of a column and all addresses are multiples of that, else one element. So frames
// and parts cost a block a few operations, and a thread divides once, by the channels. In the layers of DAC's
// spectrogram discriminators a row has up to 1025 columns, and the frames that several taps share come from L2.
namespace nacre::cuda {
namespace {

using nacre::conv::columns_of;
using nacre::conv::PartColumns;
using nacre::conv::StackSizes;

constexpr int most_threads = 256;

/// P elements that are copied as they are.
template <class T, int P>
struct Bits {
  using type = uint4;
};
template <class T>
struct Bits<T, 1> {
  using type = T;
};

/// Where a block works: a row, counted over items and frames, and this thread's piece of the row.
struct Place {
  int64_t item;
  int frame;
  unsigned piece;
};
__device__ __forceinline__ Place place(int64_t frames, unsigned row_blocks) {
  const unsigned row = blockIdx.x / row_blocks, item = row / static_cast<unsigned>(frames);
  return {item, static_cast<int>(row - item * static_cast<unsigned>(frames)),
          (blockIdx.x - row * row_blocks) * blockDim.x + threadIdx.x};
}

/// One row of the stacked tensor per row_blocks blocks, one part per blockIdx.y. A thread loads its piece, P elements
/// of a column, from the frame of each tap, or takes zeros, and stores it behind the piece of the tap before. Loads of
/// a block are contiguous, stores are contiguous within a column and tap. The elements behind the last tap, up to the
/// pitch, become zeros.
template <class T, int P>
__global__ void __launch_bounds__(most_threads)
    conv2d_stack_kernel(Conv2dParts<const T> x, StackSizes s, T* stacked, unsigned row_blocks) {
  using Piece = typename Bits<T, P>::type;
  const PartColumns c = columns_of(x, static_cast<int>(blockIdx.y), s);
  const Place at = place(s.frames, row_blocks);
  const auto pieces = static_cast<unsigned>(s.channels / P);  // of a column
  if (at.piece >= static_cast<unsigned>(c.count) * pieces) return;
  const unsigned column = at.piece / pieces, i = at.piece - column * pieces;
  const int64_t frame_pieces = x.part[blockIdx.y].shape.width * pieces;
  const Piece* const from = reinterpret_cast<const Piece*>(x.part[blockIdx.y].data) + at.item * s.time * frame_pieces +
                            c.first * pieces + at.piece;
  Piece* to = reinterpret_cast<Piece*>(stacked) +
              ((at.item * s.frames + at.frame) * s.columns + c.to + column) * (s.pitch / P) + i;
  int64_t frame = at.frame * s.stride - s.left;
  for (int k = 0; k < static_cast<int>(s.taps); ++k, frame += s.dilation, to += pieces) {
    Piece value{};
    if (frame >= 0 && frame < s.time) value = from[frame * frame_pieces];
    *to = value;
  }
  for (auto e = static_cast<int64_t>(s.taps * pieces + i); e < s.pitch / P; e += pieces, to += pieces) *to = Piece{};
}

template <class T, int P>
__device__ __forceinline__ void add_piece(const T* p, float (&sum)[P]) {
  if constexpr (P == 1) {
    sum[0] += to_float(*p);
  } else {
    const Pack<T> v = load_pack(p);
#pragma unroll
    for (int e = 0; e < P; ++e) sum[e] += v.v[e];
  }
}

/// dx = or += the sum of the taps that read a frame, in ascending order of the frames of y, or zero outside of the
/// columns. A row is a frame of dx here. A thread has one piece of it, sums in float and rounds once.
template <class T, int P>
__global__ void __launch_bounds__(most_threads)
    conv2d_unstack_kernel(const T* stacked, StackSizes s, Conv2dParts<T> dx, unsigned adds, unsigned row_blocks) {
  const View<T> part = dx.part[blockIdx.y];
  if (part.data == nullptr) return;
  const bool add = (adds >> blockIdx.y & 1) != 0;
  const PartColumns c = columns_of(dx, static_cast<int>(blockIdx.y), s);
  const Place at = place(s.time, row_blocks);
  const auto pieces = static_cast<unsigned>(s.channels / P);
  if (at.piece >= static_cast<unsigned>(part.shape.width) * pieces) return;
  const unsigned column = at.piece / pieces, i = at.piece - column * pieces;
  const bool inside = column >= c.first && column < c.first + c.count;
  if (add && !inside) return;
  float sum[P] = {};
  if (inside) {
    const int stride = static_cast<int>(s.stride), frames = static_cast<int>(s.frames);
    const T* const from = stacked + at.item * s.frames * s.row() + (c.to + column - c.first) * s.pitch + i * P;
    // Taps descend, so frames of y ascend: once one is behind the last, so are the others.
    for (int k = static_cast<int>(s.taps) - 1; k >= 0; --k) {
      const int64_t first = at.frame + s.left - k * s.dilation;
      if (first < 0) continue;
      const int t = stride == 1 ? static_cast<int>(first) : static_cast<int>(first) / stride;
      if (t >= frames) break;
      if (stride == 1 || t * stride == first) add_piece<T, P>(from + t * s.row() + k * s.channels, sum);
    }
  }
  T* const to = part.data + ((at.item * s.time + at.frame) * part.shape.width * pieces + at.piece) * P;
  if (add) add_piece<T, P>(to, sum);
  if constexpr (P == 1) {
    *to = store<T>(sum[0]);
  } else {
    Pack<T> out;
#pragma unroll
    for (int e = 0; e < P; ++e) out.v[e] = sum[e];
    store_pack(to, out);
  }
}

/// Whether pieces may be packs: channels and pitch fill them, and all addresses are aligned. Absent parts have address
/// 0.
template <class T>
bool by_packs(const Conv2dParts<T>& x, const StackSizes& s, const void* stacked) {
  constexpr int pack = pack_size<std::remove_const_t<T>>;
  bool vectorized = s.channels % pack == 0 && s.pitch % pack == 0 && aligned16(static_cast<const char*>(stacked));
  for (int p = 0; p < x.count; ++p) vectorized = vectorized && aligned16(x.part[static_cast<size_t>(p)].data);
  return vectorized;
}
/// The blocks of a launch over `rows` rows of the parts, whose pieces have `elements` elements. whole_rows: also over
/// the columns that do not take part.
/// Warps are whole, but a block has no more of them than the widest part needs; shorter parts leave threads without a
/// piece.
struct Blocks {
  unsigned row_blocks, threads;
  dim3 grid;
};
template <class T>
Blocks blocks_of(const char* op, const Conv2dParts<T>& x, const StackSizes& s, int64_t rows, int elements,
                 bool whole_rows) {
  int64_t most = 0;  // pieces of the widest part
  for (int p = 0; p < x.count; ++p)
    most = std::max(most, whole_rows ? x.part[static_cast<size_t>(p)].shape.width : columns_of(x, p, s).count);
  most *= s.channels / elements;
  const int64_t warps = ceil_div<int64_t>(most, 32), threads = warps < most_threads / 32 ? warps * 32 : most_threads,
                row_blocks = ceil_div(most, threads), limit = std::numeric_limits<int32_t>::max();
  // Place holds rows and pieces in 32 bits, and so does the grid.
  if (most > limit || rows > limit / row_blocks || s.time + s.left > limit || s.frames > limit) [[unlikely]]
    throw_usage(op, "x is " + str(x.shape()) + ", too large for the kernels' 32-bit indices of rows");
  return {static_cast<unsigned>(row_blocks), static_cast<unsigned>(threads),
          dim3(static_cast<unsigned>(rows * row_blocks), static_cast<unsigned>(x.count))};
}

}  // namespace

template <class T>
void conv2d_stack(Context& ctx, const Conv2dParts<const T>& x, const StackSizes& s, T* stacked) {
  const bool vectorized = by_packs(x, s, stacked);
  const Blocks b = blocks_of("conv2d_stack", x, s, s.batch * s.frames, vectorized ? pack_size<T> : 1, false);
  launch(ctx, {.name = vectorized ? "conv2d_stack_packs" : "conv2d_stack", .grid = b.grid, .block = b.threads},
         vectorized ? conv2d_stack_kernel<T, pack_size<T>> : conv2d_stack_kernel<T, 1>, x, s, stacked, b.row_blocks);
}

template <class T>
void conv2d_unstack(Context& ctx, const T* stacked, const StackSizes& sizes, const Conv2dParts<T>& dx,
                    const std::array<bool, conv2d_max_parts>& add) {
  // The kernel divides frames, which fit 32 bits, by the stride. A stride beyond that reads the same frames as this
  // one.
  StackSizes s = sizes;
  s.stride = std::min<int64_t>(s.stride, std::numeric_limits<int32_t>::max());
  const bool vectorized = by_packs(dx, s, stacked);
  const Blocks b = blocks_of("conv2d_unstack", dx, s, s.batch * s.time, vectorized ? pack_size<T> : 1, true);
  unsigned adds = 0;
  for (int p = 0; p < dx.count; ++p) adds |= static_cast<unsigned>(add[static_cast<size_t>(p)]) << p;
  launch(ctx, {.name = vectorized ? "conv2d_unstack_packs" : "conv2d_unstack", .grid = b.grid, .block = b.threads},
         vectorized ? conv2d_unstack_kernel<T, pack_size<T>> : conv2d_unstack_kernel<T, 1>, stacked, s, dx, adds,
         b.row_blocks);
}

#define NACRE_INSTANTIATE(T)                                                                    \
  template void conv2d_stack<T>(Context&, const Conv2dParts<const T>&, const StackSizes&, T*);  \
  template void conv2d_unstack<T>(Context&, const T*, const StackSizes&, const Conv2dParts<T>&, \
                                  const std::array<bool, conv2d_max_parts>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre::cuda
