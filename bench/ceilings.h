#pragma once
// Peak rates of this machine with the given number of threads. Every case is compared with them.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nacre/context.h"

namespace nacre::bench {

struct Ceilings {
  struct Copy {
    int64_t bytes;               ///< read + written, all threads together
    double bytes_per_second;     ///< the larger of the two below
    double own = 0, vendor = 0;  ///< our loop's and memcpy's
  };
  std::vector<Copy> copies;  ///< in order of footprint, from the first-level cache to memory
  double flops_one = 0;      ///< fp32 operations per second of one thread
  double flops_all = 0;      ///< fp32 operations per second of all threads: fused multiply-adds on registers

  // Of CUDA devices only.
  std::vector<Copy> cold_copies;  ///< single copies with a cold cache, timed as cold cases are
  double fp32_product = 0, tf32_product = 0, bf16_product = 0;  ///< cuBLAS on large random matrices; 0 without cuBLAS
  double tf32_mma = 0, bf16_mma = 0;                            ///< mma.sync on registers
  double special = 0;  ///< results per second of the special function units (__sinf)
  double launch = 0;   ///< seconds that one more kernel adds to a captured graph
  std::string cublas;  ///< version, or one line that says why it is missing

  /// Bytes per second of the measured footprint nearest to `bytes`.
  double copy(int64_t bytes) const;
  /// Bytes per second of a cold copy. Times are interpolated linearly between the measured footprints. Returns copy()
  /// if no cold copy was measured.
  double cold_copy(int64_t bytes) const;
  /// The largest measured operations per second in "fp32", "tf32" or "bf16". 0: not measured.
  double peak(std::string_view arithmetic) const;
  /// All values except the copies, for the header of a run. Names begin with their units.
  std::vector<std::pair<std::string, double>> named() const;
};

/// Takes two or three seconds. On a CUDA device it uses the whole device, so nothing else may run there.
Ceilings measure_ceilings(Context&);

}  // namespace nacre::bench
