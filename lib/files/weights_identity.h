#pragma once
// Computes weights_identity() of safetensors.h one tensor at a time, for weights that are not all in memory together.
#include <cstdint>

#include "nacre/files/safetensors.h"

namespace nacre {

class WeightsIdentity {
 public:
  /// Tensors must be added in the order of their names.
  void add(const StoredTensor&);
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;  // offset basis of FNV-1a
};

}  // namespace nacre
