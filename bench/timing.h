#pragma once
// The one place that takes times.
//
// CUDA: the op is captured as a graph, so that launches cost what they cost in a trained step. Cold: before every run
// 256 MiB are written, more than any second-level cache holds; two events stand around each run, and nothing is waited
// for between runs. Warm: runs one behind the other in one graph, as many as make 100 microseconds.
// CPU: one run after the other, each by the clock.
#include "harness.h"

namespace nacre::bench {

struct Sample {
  double best = 0, median = 0, p10 = 0, p90 = 0, p99 = 0;  ///< seconds of one run
  int runs = 0;
};
struct Timing {
  Sample warm, cold;      ///< cold only on CUDA
  int64_t launches = -1;  ///< kernels (and transforms) of one run; only on CUDA; 0 where another library launches
  size_t peak_bytes = 0;  ///< what Memory held at most up to the first run, the case's data included
};
struct TimingOptions {
  bool eager = false;  ///< never captured
  bool timed = true;   ///< false: one run, and the launches
  double seconds = 0;  ///< per kind of sample, about; 0: 0.25
};
/// At least 50 runs of each kind, fewer only where they would take ten times as long as `seconds`, but at least 5.
Timing measure(Context&, const Run&, const TimingOptions&);

}  // namespace nacre::bench
