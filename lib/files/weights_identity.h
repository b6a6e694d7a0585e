#pragma once
// weights_identity() of safetensors.h tensor by tensor, for weights that are not all in memory at once.
#include <cstdint>

#include "nacre/files/safetensors.h"

namespace nacre {

class WeightsIdentity {
 public:
  /// Tensors come in the order of their names.
  void add(const StoredTensor&);
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;  // FNV-1a
};

}  // namespace nacre
