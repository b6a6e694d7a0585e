#pragma once
// Tensors to be written, with the memory that they point to.
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nacre/files/safetensors.h"

namespace nacre {

struct OwnedTensors {
  // A growing outer vector leaves the elements of the inner ones where they are, so the spans in `list` stay valid.
  std::vector<std::vector<float>> values;
  std::vector<StoredTensor> list;

  void add(std::string name, std::vector<int64_t> shape, std::vector<float> v) {
    values.push_back(std::move(v));
    list.push_back(
        {std::move(name), Dtype::f32, std::move(shape), std::as_bytes(std::span<const float>(values.back()))});
  }
  void add_copy(std::string name, std::vector<int64_t> shape, std::span<const float> v) {
    add(std::move(name), std::move(shape), std::vector<float>(v.begin(), v.end()));
  }
};

}  // namespace nacre
