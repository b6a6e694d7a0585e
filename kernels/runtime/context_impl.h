#pragma once
// The implementation of Context, shared by its handles.
#include <memory>
#include <string>

#include "nacre/context.h"
#include "runtime/thread_pool.h"

namespace nacre {

namespace cuda {
class Runtime;
}

struct Context::Impl {
  Device device{};
  int threads = 1;
  std::unique_ptr<ThreadPool> pool;  ///< has `threads` threads
  Precision precision = Precision::fp32;
  std::string description;              ///< of a CUDA device: its name, versions, precision
  std::shared_ptr<cuda::Runtime> cuda;  ///< of a CUDA context; shared_ptr, because Runtime is incomplete here
};

}  // namespace nacre
