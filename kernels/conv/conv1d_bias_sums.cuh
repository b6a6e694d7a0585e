#pragma once
// The gradients of biases, which are sums of the columns of dy (or of x, for transposed convolutions), computed beside
// a weight gradient. Its tiles hold all columns in shared memory anyway, so no kernel reads them from global memory
// once more. A thread adds the packs that it copied itself, between their arrival and the barrier, in float and in the
// order of rows. The blocks that load the same tiles divide the steps among themselves, so that none of them ends much
// later than the others. Each leaves a row of partial sums.
#include "runtime/device.cuh"

namespace nacre::cuda::tile {

/// The partial sums that a weight gradient leaves besides those of the weights. Of dy's columns, [parts][tiles][out]:
/// the `tiles` of weights share a tile of dy. Of x's, [parts][tiles][stride in]: the tiles of outputs share a tile of
/// x.
struct BiasSums {
  float* to = nullptr;  ///< null: no sums
  bool of_x = false;
};

/// A thread's sums of one pack of columns.
template <class T>
class ColumnSums {
 public:
  /// Block `block` of the `blocks` that share a tile sums steps block, block + blocks, ...; `wanted` false: none.
  __device__ __forceinline__ ColumnSums(bool wanted, unsigned block) : steps_left_(wanted ? block : ~0u) {
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) sum_[i] = 0;
  }
  /// Called in every step: whether this block sums the step's tile. It is the same for all threads. A block that does
  /// calls end_turn.
  __device__ __forceinline__ bool has_turn() { return steps_left_-- == 0; }
  __device__ __forceinline__ void end_turn(unsigned blocks) { steps_left_ += blocks; }
  __device__ __forceinline__ void add(const unsigned char* pack) {
    const Pack<T> v = load_pack(reinterpret_cast<const T*>(pack));
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) sum_[i] += v.v[i];
  }
  /// Leaves the thread's sums in `shared`, which has pack_size floats for each thread of the block.
  __device__ __forceinline__ void save(float* shared) const {
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) shared[static_cast<int>(threadIdx.x) * pack_size<T> + i] = sum_[i];
  }
  /// After save() by all threads and a barrier: adds the sums of the threads of a column, in their order, and calls
  /// store(column, sum) for each of the block's `columns` columns. Thread t has pack t % (columns / pack_size) of the
  /// columns. A column has a multiple of `at_once` threads, whose sums are loaded together.
  template <int at_once, class Store>
  static __device__ __forceinline__ void finish(const float* shared, int threads, int columns, const Store& store) {
    const int sums = threads * pack_size<T>;
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x); c < columns; c += threads) {
      float total = 0;  // no sum is -0, so the first one keeps its bits
#pragma unroll 1
      for (int at = c; at < sums; at += at_once * columns) {
#pragma unroll
        for (int r = 0; r < at_once; ++r) total += shared[at + r * columns];
      }
      store(c, total);
    }
  }

 private:
  float sum_[pack_size<T>];
  unsigned steps_left_;
};

}  // namespace nacre::cuda::tile
