#pragma once
// nacre_probes: asks a device what the kernels, or the next rung of one, take for granted, and writes an answer a line.
// Here is what a probe is; main and the table are in probes.cpp, the probes in probes_*.cu.
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "nacre/context.h"

namespace nacre::probes {

// The emulated device shows fewer things than a real one.
#if defined(NACRE_EMULATED)
inline constexpr bool emulated = true;
#else
inline constexpr bool emulated = false;
#endif

struct Options {
  int index = 0;       ///< of the device
  bool small = false;  ///< sizes that take moments, for tests
  double seconds = 0;  ///< after which the probe is killed; 0: never
};

struct Result {
  enum Outcome : uint8_t {
    ok,         ///< what is taken for granted holds
    failed,     ///< it does not
    skipped,    ///< cannot be asked here; `says` tells why
    no_answer,  ///< the probe broke down; written as failed, and the program ends with 1
  };
  Outcome outcome = ok;
  std::string says;                                          ///< in words, one line
  std::vector<std::pair<std::string, std::string>> figures;  ///< names and JSON values

  Result& figure(const std::string& name, double);
  Result& figure(const std::string& name, int64_t);
  Result& figure(const std::string& name, const std::string& text);
};
Result skip(const std::string& why);
/// With spaces for line ends and tabs.
std::string one_line(std::string);
/// A string as JSON writes it.
std::string quoted(const std::string&);
/// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...);

struct Probe {
  const char* name;
  const char* asks;
  /// Runs in a process of its own that has not touched CUDA. May throw: then there is no answer.
  Result (*run)(const Options&);
};

inline Context context(const Options& o) { return Context({.device = {Device::cuda, o.index}}); }

/// Small whole numbers, in a fixed order: products and sums of them are exact in every arithmetic of tensor cores.
class Integers {
 public:
  explicit Integers(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  /// In [-most, most].
  int operator()(int most) { return static_cast<int>(bits() % static_cast<uint32_t>(2 * most + 1)) - most; }
  uint32_t bits() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }

 private:
  uint64_t state_;
};

/// A child process that runs `work` and writes to the pipe it is given; what it wrote, and how it ended. A child that
/// takes longer than `seconds` (0: may) is killed with all of its own. One that even that does not end, since it waits within
/// the driver, is left behind.
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
