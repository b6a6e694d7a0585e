#pragma once
// Shared by the emulated CUDA functions: one lock, the thread's current device, errors, and running of queues.
//
// The model of streams.cpp. A stream is a queue of entries: work (a copy, a launch, a transform), "event e is
// reached for the n-th time", and "wait until event e was reached n times". Nothing runs when it is queued, unless
// the queue has become too long or CUDA_LAUNCH_BLOCKING is 1. step() runs the first entry of a queue, unless that is
// a wait for an event which was not reached. run_until() steps one queue to its end, and the queues that it waits
// for as far as necessary. A function that waits (synchronise, free, a copy to pageable memory) calls it. All of
// this happens in the calling thread, under the lock.
//
// A capture diverts what would be queued to the nodes of a graph. Replaying the graph queues its nodes again.
#include <mutex>

#include "runtime/emulated/cuda_runtime.h"
#include "runtime/host.h"

namespace nacre::emulation {

inline constexpr int device_count = 2;

/// Constructed first in every emulated function. Serialises the functions of several threads, and marks their
/// allocations as the emulator's.
class Api {
 public:
  Api();
  Api(const Api&) = delete;
  Api& operator=(const Api&) = delete;
  /// The calling thread's current device.
  int device() const;
  /// Success, or the permanent error of a broken device.
  cudaError_t broken(int device) const;
  /// Remembers the error for cudaGetLastError.
  cudaError_t fails(cudaError_t) const;
  /// Success, or the error of a call that is forbidden in a capture of this thread; the call invalidates the captures.
  cudaError_t unsafe_in_capture() const;

 private:
  std::unique_lock<std::recursive_mutex> lock_;
  ForeignAllocations foreign_;
};

/// Runs all work queued for a device, or for all devices (-1).
void finish_device(int device);

}  // namespace nacre::emulation
