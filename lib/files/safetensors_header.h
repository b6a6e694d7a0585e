#pragma once
// Parser for exactly the JSON of a safetensors header: {"name": {"dtype": .., "shape": [..], "data_offsets": [..]}} and
// "__metadata__" with strings. The nesting is fixed, and no recursion is needed. Duplicate keys are refused at every
// level.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "nacre/files/safetensors.h"

namespace nacre {

struct SafetensorsEntry {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in order of name
  std::map<std::string, std::string> metadata;
};

inline constexpr uint64_t max_safetensors_header = 100'000'000;
inline constexpr size_t max_safetensors_rank = 8;
inline constexpr uint64_t max_safetensors_elements = uint64_t{1} << 40;

/// `file` is the file's name in messages. `json` starts at byte 8 of the file.
SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file);
/// False for the name of a type that cannot be read.
bool dtype_from(std::string_view name, Dtype&) noexcept;

}  // namespace nacre
