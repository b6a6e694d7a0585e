#pragma once
// Files and folders that appear complete or not at all. A file or folder is written under a temporary name beside its
// target. Every write, flush and close is checked. The result is synchronised to the disk and renamed, and then its
// parent folder is synchronised. A failure (disk full, I/O error) throws Error(io), removes the temporary and leaves
// the old target unchanged.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nacre/cxx20.h"

namespace nacre {

/// Takes bytes in order. Throws if it cannot take them.
using ByteSink = std::function<void(std::span<const std::byte>)>;

/// Facts about a file that was written.
struct FileRecord {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc = 0;  ///< CRC-32C of the whole content
};

/// One file: call write() as often as needed, then commit(). Without commit() no file remains. An existing target must
/// be a regular file and is replaced atomically. The permissions come from the umask.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  /// If this throws after the rename, the new file is complete and in place, but might not survive a power failure.
  FileRecord commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A folder of files that appears atomically. The target must not exist.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::filesystem::path target);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// The location of the files until commit(), for reading them back.
  const std::filesystem::path& temporary() const;
  /// Writes one file of the folder; `name` is a plain file name. The file is on the disk when this returns.
  FileRecord write(const std::string& name, const std::function<void(const ByteSink&)>& content);
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Removes a folder of files. For other processes the whole folder disappears at once.
void remove_folder_atomically(const std::filesystem::path&);

/// Replaces the content of `target` by `text` atomically.
void write_file_atomically(const std::filesystem::path& target, std::string_view text);

/// Reads a whole regular file. Throws Error(io) if it cannot be read or changes meanwhile, Error(input) if it is longer
/// than `max_bytes` or not a regular file, Error(memory) if there is not enough memory for it.
std::vector<std::byte> read_file(const std::filesystem::path&, uint64_t max_bytes);

/// Reads a file in pieces, without keeping them, and returns its size and CRC-32C.
FileRecord measure_file(const std::filesystem::path&);

/// Removes only the temporaries of AtomicFile and AtomicDirectory that a killed process left in `folder`, and returns
/// their number. The caller must know that no other process is writing there; it must hold the folder's lock.
int remove_leftovers(const std::filesystem::path& folder);

}  // namespace nacre
