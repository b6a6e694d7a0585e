#pragma once
// All times of the bench are taken here.
//
// CUDA: the op is captured as a graph, so that launches cost what they cost in a training step. Cold: 256 MiB, more
// than any second-level cache holds, are written before every run. Two events enclose each run, and the host does not
// wait between runs. Warm: consecutive runs form one graph of about 100 microseconds.
// CPU: consecutive runs, each timed by the clock.
#include "harness.h"

namespace nacre::bench {

struct Sample {
  double best = 0, median = 0, mean = 0, p10 = 0, p90 = 0, p99 = 0;  ///< seconds of one run
  int runs = 0;
};
struct Timing {
  Sample warm, cold;      ///< cold only on CUDA
  int64_t launches = -1;  ///< kernels and transforms of one run, only on CUDA; 0 where another library launches
  size_t peak_bytes = 0;  ///< peak bytes of Memory up to the first run, the data of the case included
};
struct TimingOptions {
  bool eager = false;  ///< never captured
  bool timed = true;   ///< false: one run and the launches, no times
  double seconds = 0;  ///< approximate seconds per kind of sample; 0: 0.25
};
/// Takes at least 50 runs of each kind. If they would take more than ten times `seconds`, there are fewer, but at least
/// 5.
Timing measure(Context&, const Run&, const TimingOptions&);

}  // namespace nacre::bench
