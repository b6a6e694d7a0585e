#pragma once
// What this machine reaches with these threads: the yardsticks of every case.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nacre/context.h"

namespace nacre::bench {

struct Ceilings {
  struct Copy {
    int64_t bytes;               ///< read + written, all threads together
    double bytes_per_second;     ///< the better one of
    double own = 0, vendor = 0;  ///< our loop's, and memcpy's
  };
  std::vector<Copy> copies;  ///< ascending footprints, from the first-level cache to memory
  double flops_one = 0;      ///< fp32, one thread, per second
  double flops_all = 0;      ///< fp32, every thread; fused multiply-adds in registers

  // Of a CUDA device only.
  std::vector<Copy> cold_copies;  ///< one copy each with nothing in the cache, timed as cold cases are
  double fp32_product = 0, tf32_product = 0, bf16_product = 0;  ///< of large random matrices by cuBLAS; 0 without it
  double tf32_mma = 0, bf16_mma = 0;                            ///< mma.sync on registers
  double special = 0;  ///< results per second of the special function units (__sinf)
  double launch = 0;   ///< seconds that one more kernel costs within a captured graph
  std::string cublas;  ///< its version, or one line that says why there is none

  /// Of the measured footprint nearest to `bytes`.
  double copy(int64_t bytes) const;
  /// Between the measured footprints their times are joined by lines; copy() where nothing was measured so.
  double cold_copy(int64_t bytes) const;
  /// Operations per second of "fp32", "tf32" or "bf16", the best that was seen; 0: not measured.
  double peak(std::string_view arithmetic) const;
  /// All but the copies, as a run's header shows them; names begin with their units.
  std::vector<std::pair<std::string, double>> named() const;
};

/// Takes two or three seconds; of a CUDA device all of it, so nothing else may run there.
Ceilings measure_ceilings(Context&);

}  // namespace nacre::bench
