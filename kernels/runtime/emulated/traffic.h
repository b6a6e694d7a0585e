#pragma once
// Counts the bytes of device memory that kernels, copies and transforms move: of each launch the distinct bytes read
// and the distinct bytes written, each once per launch and direction. A device's DRAM moves at least these, unless they
// are still in its cache from an earlier launch. Only builds that watch accesses (NACRE_WATCH) can count kernels.
//
//   NACRE_EMULATION_TRAFFIC=FILE   counts from the start, and appends a table by kernel to FILE at the process's end
//
// A launch that runs in several orders counts once, in its first order. With edge_blocks, only the blocks that run
// count. Copies have the names "memset", "copy", "copy to device" and "copy to host"; transforms are "cufft". A copy
// between host and device counts the bytes of device memory only.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace nacre::emulation {

struct Traffic {
  int64_t launches = 0;
  int64_t read = 0, written = 0;  ///< bytes of device memory
};

/// Whether launches are counted from now on. A launch counts when it runs: wait for queued work first. Throws Fault in
/// a build that does not watch accesses, and if there are buffers of 64 MiB or more that were allocated while nothing
/// was counted, because those are not watched.
void count_traffic(bool on);
bool counts_traffic();
/// What has run since the last reset, by kernel.
std::map<std::string, Traffic> traffic();
void reset_traffic();

// ---- called by the emulator

/// Counts the accesses of kernels until the end of the scope, as one launch of this name.
class CountedLaunch {
 public:
  explicit CountedLaunch(const char* name);
  ~CountedLaunch();
  CountedLaunch(const CountedLaunch&) = delete;
  CountedLaunch& operator=(const CountedLaunch&) = delete;

 private:
  const char* name_;
};
/// Counts a copy or transform.
void traffic_moved(const char* name, size_t read, size_t written);

/// True inside of a CountedLaunch.
extern bool counts_accesses;
/// An access of the running kernel to [offset, offset + bytes) of the watched arena, which has `arena` bytes.
void traffic_access(size_t arena, size_t offset, size_t bytes, bool writes);
/// These bytes of the arena will not be accessed any more.
void traffic_release(size_t offset, size_t bytes);

}  // namespace nacre::emulation
