#pragma once
// Recognises files that Python's pickle wrote, which nacre does not read, because reading them can run code.
#include <string_view>

namespace nacre {

/// True for the first bytes of a PyTorch file: a zip archive, or a bare pickle of protocol 2 to 5. `head` should have
/// nine bytes or more: a safetensors file may begin with the same bytes, and is told apart by its ninth, '{'.
inline bool is_pytorch_file(std::string_view head) noexcept {
  if (head.size() > 8 && head[8] == '{' && head.substr(4, 4) == std::string_view("\0\0\0\0", 4)) return false;
  return head.starts_with("PK\x03\x04") || (head.size() > 1 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5);
}
/// True for the first bytes of a NumPy file. descript-audio-codec's .dac files are such, with a pickle inside.
inline bool is_numpy_file(std::string_view head) noexcept { return head.starts_with("\x93NUMPY"); }

inline constexpr const char* pytorch_file_text = "is a pickle or zip archive, as PyTorch files are";
inline constexpr const char* pytorch_file_advice = "scripts/convert_pth.py turns a .pth file into safetensors";

}  // namespace nacre
