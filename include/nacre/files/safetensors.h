#pragma once
// Reading and writing weights as safetensors: a header of JSON, then the tensors' bytes back to back. The reader trusts
// nothing in the file: every size is checked before it is used, and nothing is ever executed or mapped.
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nacre/files/atomic_file.h"

namespace nacre {

/// The element types we read. (Types below one byte are refused by name.)
enum class Dtype : uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64
};

/// As written in the file: "F32", "BF16", ...
std::string_view str(Dtype) noexcept;
size_t bytes_per_element(Dtype) noexcept;

/// A named array. `data` belongs to somebody else, is row-major and little-endian, and need not be aligned.
struct StoredTensor {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;

  int64_t elements() const noexcept;
};
/// "F32 [64, 1, 7]"
std::string str(const StoredTensor&);

/// A tensor's values as floats. F32, F16 and BF16 are exact; F64 is rounded, and refused where it overflows. Any other
/// type is refused.
std::vector<float> to_floats(const StoredTensor&);
/// The index of the first element of a floating-point tensor (F16, BF16, F32, C64, F64) that is NaN or infinite, or -1.
int64_t first_nonfinite(const StoredTensor&) noexcept;

/// 64 bits that name these weights: FNV-1a over the tensors in order of name, each as name, a zero byte, type name, a
/// zero byte, rank and dimensions (64-bit little-endian), data. Metadata do not count.
uint64_t weights_identity(std::span<const StoredTensor>);

struct SafetensorsOptions {
  uint64_t max_file_bytes = uint64_t{1} << 36;
  bool allow_nonfinite = true;        ///< false: a NaN or infinity in the file is an error
  bool allow_trailing_bytes = false;  ///< some files in the wild carry a few
};

/// A file in memory, checked. Error(input) names the file, what is wrong and where.
class Safetensors {
 public:
  static Safetensors read(const std::filesystem::path&, SafetensorsOptions = {});
  /// `name` is what messages call it.
  static Safetensors parse(std::vector<std::byte> file, const std::string& name, SafetensorsOptions = {});
  Safetensors(Safetensors&&) = default;
  Safetensors& operator=(Safetensors&&) = default;

  /// In order of name.
  std::span<const StoredTensor> tensors() const& noexcept { return tensors_; }
  std::span<const StoredTensor> tensors() const&& = delete;  // they would be gone
  size_t size() const noexcept { return tensors_.size(); }
  /// nullptr if there is none of this name.
  const StoredTensor* find(std::string_view name) const noexcept;
  /// Throws Error(input) if there is none of this name.
  const StoredTensor& at(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  const std::string& name() const noexcept { return name_; }

 private:
  Safetensors() = default;
  std::string name_;
  std::vector<std::byte> file_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsWriteOptions {
  bool allow_nonfinite = false;  ///< false: Error(diverged) names the tensor that has a NaN or infinity
};

/// Writes the tensors, wider types first and then by name, so that every one is aligned to its element; the data begin
/// at a multiple of 64 bytes. Everything is checked before the first byte goes out. The same input gives the same
/// bytes.
void write_safetensors(const ByteSink&, std::span<const StoredTensor>,
                       const std::map<std::string, std::string>& metadata = {}, SafetensorsWriteOptions = {});
/// The same to a file, which appears complete or not at all.
void write_safetensors(const std::filesystem::path&, std::span<const StoredTensor>,
                       const std::map<std::string, std::string>& metadata = {}, SafetensorsWriteOptions = {});

}  // namespace nacre
