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
    int64_t bytes;  ///< read + written, all threads together
    double bytes_per_second;
  };
  std::vector<Copy> copies;  ///< ascending footprints, from the first-level cache to memory
  double flops_one = 0;      ///< fp32, one thread, per second
  double flops_all = 0;      ///< fp32, every thread

  /// Of the measured footprint nearest to `bytes`.
  double copy(int64_t bytes) const;
  /// Operations per second of "fp32", "tf32" or "bf16"; 0: not measured.
  double peak(std::string_view arithmetic) const;
  /// All but the copies, in GFLOP/s, as a run's header shows them.
  std::vector<std::pair<std::string, double>> named() const;
};

/// Takes about two seconds.
Ceilings measure_ceilings(Context&);

}  // namespace nacre::bench
