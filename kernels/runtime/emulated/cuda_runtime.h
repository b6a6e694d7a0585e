#pragma once
// The part of CUDA's runtime library that runtime.cpp calls, implemented on the CPU (streams.cpp, memory.cpp), so that
// the same host code runs in both builds. Names, arguments and error codes are CUDA's. Features that are not modelled
// are not declared.
//
// Work is done as late as CUDA allows: a launch, a copy or a transform is only queued, and a queue runs when a caller
// waits for it. Every second wait first runs all other queues as far as possible. A device may choose either order, so
// a missing wait becomes visible, as old bytes or as bytes that arrived too early. Errors that the emulator finds in a
// kernel are printed on stderr, break the device, and make the exit code of the process non-zero.
//
//   NACRE_EMULATION_BREAK=NAME     the first kernel launched under this name does not run and fails: illegal address
//   NACRE_EMULATION_LAUNCHES=DIR   writes a file per process: offset of each kernel in the program, most threads
//   NACRE_EMULATION_TRAFFIC=FILE   appends the bytes of device memory that each kernel has moved (traffic.h)
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "runtime/emulated/types.h"

#define CUDART_VERSION 13000

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorUnknown = 999,
};

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

enum cudaMemcpyKind : int { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute : int { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode : int { cudaStreamCaptureModeThreadLocal = 1, cudaStreamCaptureModeRelaxed = 2 };
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, regsPerBlock, maxThreadsPerMultiProcessor;
  size_t sharedMemPerBlockOptin, sharedMemPerMultiprocessor, totalGlobalMem;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaRuntimeGetVersion(int*);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int device);
/// The current device is a thread's own.
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);

cudaError_t cudaMemGetInfo(size_t* free, size_t* all);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaMallocHost(void**, size_t);
cudaError_t cudaFreeHost(void*);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void*, int value, size_t, cudaStream_t);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t*);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value);
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t);

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);

namespace nacre::emulation {

/// What nvcc knows about a kernel, but the emulator must be told: how to call it, and the layout of its parameters.
struct Signature {
  struct Parameter {
    size_t bytes, alignment;
  };
  void (*run)(const void* function, void* const* arguments);  ///< runs one thread
  std::span<const Parameter> parameters;
};
template <class... P>
inline constexpr Signature::Parameter parameters[] = {{sizeof(P), alignof(P)}..., {0, 1}};
/// The signature of kernels with these parameters.
template <class... P>
inline const Signature signature = {[](const void* function, void* const* arguments) {
                                      const auto kernel = reinterpret_cast<void (*)(P...)>(const_cast<void*>(function));
                                      [&]<size_t... i>(std::index_sequence<i...>) {
                                        kernel(*static_cast<const P*>(arguments[i])...);
                                      }
                                      (std::index_sequence_for<P...>{});
                                    },
                                    std::span(parameters<P...>).first(sizeof...(P))};
/// Announces name and signature of this thread's next cudaLaunchKernel.
void announce(const char* name, const Signature&);

/// Queues work of a library in stream order.
cudaError_t enqueue(cudaStream_t, std::function<void()>);

}  // namespace nacre::emulation
