#pragma once
// The gradients of biases, which are sums of the columns of dy (or of x, for transposed convolutions), computed beside a
// weight gradient. Its tiles hold all columns in shared memory anyway, so no kernel reads them from global memory once
// more. A thread adds the packs that it copied itself, between their arrival and the barrier, in float and in the order
// of rows. The blocks that load the same tiles divide the steps among themselves, so that none of them ends much later
// than the others. Each leaves a row of partial sums.
#include "runtime/device.cuh"

namespace nacre::cuda::tile {

/// The partial sums that a weight gradient leaves besides those of the weights. Of dy's columns, [parts][tiles][out]:
/// the `tiles` of weights share a tile of dy. Of x's, [parts][tiles][stride in]: the tiles of outputs share a tile of x.
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
  /// Called in every step: whether this block sums the step's tile. It is the same for all threads.
  __device__ __forceinline__ bool has_turn(unsigned blocks) {
    const bool turn = steps_left_ == 0;
    steps_left_ = turn ? blocks - 1 : steps_left_ - 1;
    return turn;
  }
  __device__ __forceinline__ void add(const unsigned char* pack) {
    const Pack<T> v = load_pack(reinterpret_cast<const T*>(pack));
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) sum_[i] += v.v[i];
  }
  /// Adds the sums of the `rows` threads of a column, in their order, and calls store(column, sum) for each of the
  /// block's `columns` columns. All threads of the block take part; none may use `shared` any more. Thread t has pack
  /// t % (columns / pack_size) of the columns.
  template <int columns, class Store>
  __device__ __forceinline__ void finish(float* shared, int threads, const Store& store) const {
    constexpr int packs = columns / pack_size<T>;
    const int thread = static_cast<int>(threadIdx.x), rows = threads / packs;
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i) shared[thread * pack_size<T> + i] = sum_[i];
    __syncthreads();
    for (int c = thread; c < columns; c += threads) {
      float total = shared[c];
      for (int r = 1; r < rows; ++r) total += shared[r * columns + c];
      store(c, total);
    }
    __syncthreads();
  }

 private:
  float sum_[pack_size<T>];
  unsigned steps_left_;
};

}  // namespace nacre::cuda::tile
