#pragma once
// Reading and writing of weights as safetensors: a JSON header, followed by the contiguous bytes of the tensors. The
// reader does not trust the file: every size is checked before it is used. Nothing from the file is executed or
// memory-mapped.
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

/// The element types that can be read. Types of less than one byte are refused with a message that names them.
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

/// The name in the file: "F32", "BF16", ...
std::string_view str(Dtype) noexcept;
size_t bytes_per_element(Dtype) noexcept;

/// A named array. `data` is not owned. It is row-major and little-endian, and it need not be aligned.
struct StoredTensor {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;

  int64_t elements() const noexcept;
};
/// "F32 [64, 1, 7]"
std::string str(const StoredTensor&);

/// A tensor's values as floats. F32, F16 and BF16 are exact. F64 is rounded, and refused if it overflows. All other
/// types are refused.
std::vector<float> to_floats(const StoredTensor&);
/// The index of the first NaN or infinity of a floating-point tensor (F16, BF16, F32, C64, F64), or -1 if there is
/// none.
int64_t first_nonfinite(const StoredTensor&) noexcept;

/// A 64-bit hash that identifies the weights: FNV-1a over the tensors in order of name, each as name, a zero byte, type
/// name, a zero byte, rank and dimensions (64-bit little-endian), data. Metadata are not included.
uint64_t weights_identity(std::span<const StoredTensor>);

struct SafetensorsOptions {
  uint64_t max_file_bytes = uint64_t{1} << 36;
  bool allow_nonfinite = true;        ///< false: a NaN or infinity in the file is an error
  bool allow_trailing_bytes = false;  ///< some existing files have a few
};

/// A checked file in memory. Error(input) names the file, the defect and its place.
class Safetensors {
 public:
  static Safetensors read(const std::filesystem::path&, SafetensorsOptions = {});
  /// `name` is the file's name in messages.
  static Safetensors parse(std::vector<std::byte> file, const std::string& name, SafetensorsOptions = {});
  Safetensors(Safetensors&&) = default;
  Safetensors& operator=(Safetensors&&) = default;

  /// Ordered by name.
  std::span<const StoredTensor> tensors() const& noexcept { return tensors_; }
  std::span<const StoredTensor> tensors() const&& = delete;  // the spans would dangle
  size_t size() const noexcept { return tensors_.size(); }
  /// nullptr if no tensor has this name.
  const StoredTensor* find(std::string_view name) const noexcept;
  /// Throws Error(input) if no tensor has this name.
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

/// Writes the tensors ordered by decreasing element size and then by name, so that each one is aligned to its element.
/// The data begin at a multiple of 64 bytes. Everything is checked before the first byte is written. Equal input gives
/// equal bytes.
void write_safetensors(const ByteSink&, std::span<const StoredTensor>,
                       const std::map<std::string, std::string>& metadata = {}, SafetensorsWriteOptions = {});
/// The same to a file, which appears complete or not at all.
void write_safetensors(const std::filesystem::path&, std::span<const StoredTensor>,
                       const std::map<std::string, std::string>& metadata = {}, SafetensorsWriteOptions = {});

}  // namespace nacre
