#pragma once
// What the emulated CUDA functions share: one lock, the thread's current device, errors, and queues that can be run.
#include <mutex>

#include "runtime/emulated/cuda_runtime.h"
#include "runtime/host.h"

namespace nacre::emulation {

inline constexpr int device_count = 2;

/// Stands at the beginning of every emulated function. Functions of several threads run one after the other; what they
/// allocate is the emulator's, not the library's.
class Api {
 public:
  Api();
  Api(const Api&) = delete;
  Api& operator=(const Api&) = delete;
  /// The calling thread's current device.
  int device() const;
  /// Success, or the error that a device is broken with for good.
  cudaError_t broken(int device) const;
  /// Remembers the error for cudaGetLastError.
  cudaError_t fails(cudaError_t) const;
  /// Success, or the error of a call that the captures of this thread forbid; it invalidates them.
  cudaError_t unsafe_in_capture() const;

 private:
  std::unique_lock<std::recursive_mutex> lock_;
  ForeignAllocations foreign_;
};

/// Runs all that is queued for a device, or (-1) for all of them.
void finish_device(int device);

}  // namespace nacre::emulation
