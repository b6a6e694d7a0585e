#pragma once
// The limits of a CUDA device, and the arithmetic that divides work by them. It is plain C++, so that every build has
// it: builds without CUDA count the costs of CUDA's kernels.
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nacre {
class Context;
}

namespace nacre::cuda {

/// The limits of a device. Tiles, parts of sums and grids are chosen by them; no kernel contains the numbers of a
/// particular device.
struct DeviceLimits {
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  size_t shared_per_block = 0;           ///< bytes, static and dynamic together, with the opt-in attribute
  size_t shared_per_multiprocessor = 0;  ///< bytes; each block takes 1 KiB more than it requested
  int registers_per_block = 0;           ///< of 32 bits; equal to those of a multiprocessor
  int threads_per_multiprocessor = 0;
};

/// Those of an H200, for the emulated device and for costs, which are counted without a device.
inline constexpr DeviceLimits h200_limits{9, 0, 132, 227 << 10, 228 << 10, 65536, 2048};
/// The limits of a CUDA context's device. Builds without CUDA have no such function.
const DeviceLimits& limits(const Context&);

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

/// Elements of T in 16 bytes: 4 floats, 8 bf16.
template <class T>
inline constexpr int pack_size = 16 / static_cast<int>(sizeof(T));

/// Shared memory per block, in bytes, that every device from compute capability 8.0 on has. A kernel that needs no
/// more, static and dynamic together, runs on all of them. One that may need more is chosen by
/// DeviceLimits::shared_per_block.
inline constexpr size_t least_shared_per_block = 99 << 10;

/// Two blocks per multiprocessor, so that one computes while the other waits for memory. The least number of blocks for
/// work that is cheaper in few large blocks.
inline int64_t two_blocks_each(const DeviceLimits& d) { return int64_t{2} * d.multiprocessors; }
/// How many blocks with this much shared memory (static and dynamic) a multiprocessor holds at once, clamped to
/// [1, most_blocks], the number that the kernel's launch bounds leave registers for.
inline int blocks_that_share(const DeviceLimits& d, size_t shared_bytes, int most_blocks) {
  const size_t reserved = 1 << 10;  // by the driver, per block
  const auto blocks = static_cast<int>(d.shared_per_multiprocessor / (shared_bytes + reserved));
  return std::clamp(blocks, 1, most_blocks);
}

/// ceil(n / each) blocks, at most `most`; kernels then loop over the grid.
inline unsigned blocks_for(int64_t n, int64_t each, int64_t most = 0x7fffffff) {
  const int64_t blocks = (n + each - 1) / each;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace nacre::cuda
