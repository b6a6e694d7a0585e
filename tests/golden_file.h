#pragma once
// Tensors of tests/golden/*.safetensors. The script that wrote a file, beside it, says what they are.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/files/safetensors.h"

namespace nacre::test {

struct GoldenTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;  ///< row-major
};

/// Opens tests/golden/<name>. Throws Error(input) if the file is missing or damaged.
Safetensors golden_file(const std::string& name);
/// Throws Error(input) if the file has no tensor of this name.
inline GoldenTensor golden_tensor(const Safetensors& file, const std::string& name) {
  const StoredTensor& t = file.at(name);
  return {t.shape, to_floats(t)};
}

}  // namespace nacre::test
