#pragma once
// The pipeline of the tiled convolutions: tiles come from global memory by cp.async, are transformed where they lie in
// shared memory, and are multiplied, while later tiles are on their way. It stands here once, for the forward and the
// input gradient (conv1d_tile.cuh) and for the weight gradients (conv1d_tile_weights.cuh, conv1d_tile_taps.cuh).
//
// A kernel is
//   loaders      which copy one tile each into a buffer of a ring (PackColumn says which packs a thread copies)
//   a transform  the input policy's function and the rounding to tf32, of the packs that the thread copied itself
//   an engine    the products (conv1d_engines.cuh)
//   an epilogue  which takes the sums through shared memory to global memory in whole packs
// and a struct of steps that hands them to run_pipeline, which owns slots, waits and barriers.
//
// Timeline with three stages; tiles are named by the step that multiplies them. Slots hold tiles of steps with the same
// remainder by three.
//
//   step                    -2     -1      0      1      2      3     ...
//   locate                   0      1      2      3      4      5     offsets of rows for the fetch of this step
//   wait for                               0      1      2      3     the newest fetch (1, 2, 3, 4) stays in flight
//   arrived: transform                     0      1      2      3     a thread's own packs: no barrier before it
//   barrier                  (|)    (|)    |      |      |      |     (|) only where locate writes a table
//   fetch                    0      1      2      3      4      5     into the slot of the step before
//   multiply                               0      1      2      3
//   slots in use: 0                 0      0,1    1,2    2,3    3,4   before the fetch, which fills the third
//
// The barrier has three uses. It publishes the tiles that other threads copied and transformed; it publishes the table
// of locate; and behind it the slot of the previous step is free, because every thread has multiplied that step. So one
// barrier per step suffices. A fetch may start within the products (fetch_in_product): its instructions then fill time
// that the tensor cores need.
#include "conv/conv1d_engines.cuh"

namespace nacre::cuda::tile {

/// A thread's share of a tile whose rows are `row_pitch` bytes apart and hold `packs` packs of 16 bytes: column
/// `column` of row `row`, and of every (threads / packs)-th row below it. The thread copies and transforms these packs,
/// so it transforms what it copied.
template <int packs, int row_pitch>
struct PackColumn {
  int row, column;
  explicit __device__ __forceinline__ PackColumn(int thread) : row(thread / packs), column(thread % packs) {}
  /// The first of the column's packs, or the one `rows` rows below it.
  __device__ __forceinline__ unsigned char* in(unsigned char* tile, int rows = 0) const {
    return tile + (row + rows) * row_pitch + column * 16;
  }
};

/// How many rows of `packs` packs the threads of a block take at once. Where the threads are no multiple of `packs`, it
/// is a power of two, so that tiles of 32 and 64 rows divide evenly, and the threads beyond rows * packs have no share.
constexpr int rows_of_packs(int threads, int packs) {
  if (threads % packs == 0) return threads / packs;
  int rows = 1;
  while (2 * rows * packs <= threads) rows *= 2;
  return rows;
}

/// The transform of one pack in shared memory: the input policy's function, then the rounding to tf32.
template <Product P, class T, class Input>
__device__ __forceinline__ void transform_pack(T* at, const Input& input, const typename Input::Column& column) {
  Pack<T> v = load_pack(at);
  if constexpr (Input::active) input.apply(column, v);
  if constexpr (P == Product::tf32) round_pack(v);
  store_pack(at, v);
}

/// The next buffer of a ring of `count`.
__device__ __forceinline__ void advance(int& slot, int count) {
  if (++slot == count) slot = 0;
}

/// Runs steps 0 to count - 1. `steps` has
///   stages              slots of the ring: one in use, the others being filled
///   fetch_in_product    whether multiply calls `fetch`, exactly once; else it is called before
///   locates             whether locate(next) exists. It may write what fetch reads, one step before the barrier
///   waits_for_all()     whether each step waits for all copies, not only for its own
///   fetch(next, slot)   starts the copies of step `next` into `slot`. Steps past the last are asked for as well: they
///                       may fetch nothing, or zeros
///   arrived(step, slot) after the thread's own copies for this step have arrived, before the barrier
///   multiply(step, slot, fetch)
/// At the end copies may be in flight, and other threads may still multiply: see finish_pipeline.
template <class Steps>
__device__ __forceinline__ void run_pipeline(Steps& steps, int count) {
  constexpr int stages = Steps::stages;
  int step = 1 - stages, slot = 1;  // the slot of step 0 is 0, and slots are numbered modulo `stages`
  const auto fetch = [&] {
    steps.fetch(step + stages - 1, slot == 0 ? stages - 1 : slot - 1);
    cp_async_commit();
  };
  if constexpr (Steps::fetch_in_product) {
#pragma unroll 1
    for (; step < 0; ++step) fetch(), advance(slot, stages);
  }
  for (; step < count; ++step) {
    if constexpr (Steps::locates) steps.locate(step + stages - 1);
    if (Steps::fetch_in_product || step >= 0) {
      if (steps.waits_for_all())
        cp_async_wait<0>();
      else
        cp_async_wait<stages - 2>();
      steps.arrived(step, slot);
    }
    if (Steps::fetch_in_product || Steps::locates || step >= 0) __syncthreads();
    if constexpr (!Steps::fetch_in_product) fetch();
    if (Steps::fetch_in_product || step >= 0) steps.multiply(step, slot, fetch);
    advance(slot, stages);
  }
}

/// Frees the tiles' memory for the result: no copy is in flight, and all threads have multiplied.
__device__ __forceinline__ void finish_pipeline() {
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace nacre::cuda::tile
