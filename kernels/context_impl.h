#pragma once
// The inside of Context. Each library underneath keeps its cache in one slot, created on first use by the kernel file
// that owns it, so that this header includes none of them.
#include <memory>
#include <string>

#include "nacre/context.h"

namespace nacre {

namespace cuda {
class Runtime;
}

/// Base of a library's per-context cache (oneDNN primitives, FFT configurations).
struct Cache {
  virtual ~Cache() = default;
};

struct Context::Impl {
  Device device{};
  int threads = 1;
  Precision precision = Precision::fp32;
  std::string description;               ///< of a CUDA device: its name, versions, precision
  std::shared_ptr<cuda::Runtime> cuda;  ///< of a CUDA context; its destructor came with it
  std::unique_ptr<Cache> convolutions;  ///< owned by kernels/conv1d.cpp
};

}  // namespace nacre
