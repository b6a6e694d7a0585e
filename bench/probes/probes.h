#pragma once
// nacre_probes asks a device whether the assumptions of the kernels, and of planned kernels, hold on it. It prints one
// answer per line. This file defines a probe. main and the table of probes are in probes.cpp, the probes in
// probes_*.cu.
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "nacre/context.h"

namespace nacre::probes {

// The emulated device has fewer features than a real one.
#if defined(NACRE_EMULATED)
inline constexpr bool emulated = true;
#else
inline constexpr bool emulated = false;
#endif

struct Options {
  int index = 0;       ///< number of the device
  bool small = false;  ///< small sizes for tests; a probe takes moments
  double seconds = 0;  ///< the probe is killed after these seconds; 0: never
};

struct Result {
  enum Outcome : uint8_t {
    ok,         ///< the assumption holds
    failed,     ///< the assumption does not hold
    skipped,    ///< cannot be tested here; `says` has the reason
    no_answer,  ///< the probe itself broke down; reported as failed, and the program ends with 1
  };
  Outcome outcome = ok;
  std::string says;                                          ///< the result in words, one line
  std::vector<std::pair<std::string, std::string>> figures;  ///< names and JSON values

  Result& figure(const std::string& name, double);
  Result& figure(const std::string& name, int64_t);
  Result& figure(const std::string& name, const std::string& text);
};
Result skip(const std::string& why);
/// Replaces line ends and tabs by spaces.
std::string one_line(std::string);
/// The string as a JSON string.
std::string quoted(const std::string&);
/// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...);

struct Probe {
  const char* name;
  const char* asks;
  /// Runs in its own process, which has not used CUDA before. If it throws, there is no answer.
  Result (*run)(const Options&);
};

inline Context context(const Options& o) { return Context({.device = {Device::cuda, o.index}}); }

/// Small integers in a fixed order. Their products and sums are exact in every arithmetic of tensor cores.
class Integers {
 public:
  explicit Integers(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  /// A value in [-most, most].
  int operator()(int most) { return static_cast<int>(bits() % static_cast<uint32_t>(2 * most + 1)) - most; }
  uint32_t bits() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }

 private:
  uint64_t state_;
};

/// The result of a child process that ran `work`: what it wrote to its pipe, and how it ended. A child that takes
/// longer than `seconds` (0: no limit) is killed with all of its own children. A child that waits within the driver may
/// not end even then; it is left behind.
struct Ended {
  std::string wrote;
  bool in_time = true;
  int signal = 0, code = 0;
};
Ended in_child(const std::function<void(int pipe)>& work, double seconds);
void write_all(int pipe, const std::string&);

// probes_tensor.cu
Result ignored_sources(const Options&);
Result mma_fragments(const Options&);
Result ldmatrix_fragments(const Options&);
Result tile_engines(const Options&);
Result tensor_core_sums(const Options&);
// probes_driver.cu
Result describe(const Options&);
Result shared_memory_limit(const Options&);
Result allocation_in_capture(const Options&);
// probes_hopper.cu
Result wgmma_shifted_rows(const Options&);
Result wgmma_mn_major(const Options&);
Result tma_boxes(const Options&);
// probes_times.cu
Result upload_beside_graph(const Options&);
Result launch_gap(const Options&);
Result copy_ceiling(const Options&);
Result product_ceiling(const Options&);

}  // namespace nacre::probes
