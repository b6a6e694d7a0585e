#pragma once
// Files that are either wholly there or not there at all. A file or a folder is written under a temporary name beside
// its target; every write, flush and close is checked; it is synchronised to the disk, renamed, and its parent
// synchronised. A failure (disk full, I/O error) throws Error(io), removes the temporary and leaves what was there
// before.
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

/// Takes bytes, in order. Throws if it cannot.
using ByteSink = std::function<void(std::span<const std::byte>)>;

/// What was written to a file.
struct FileRecord {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc = 0;  ///< CRC-32C of the whole content
};

/// One file: write() as often as needed, then commit(). Without commit() nothing is left. The target may exist if it is
/// a regular file; it is replaced in one moment. Its permissions come from the umask.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  /// If this throws after the rename, the new file is complete and in place, but might not survive a power cut.
  FileRecord commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A folder of files that appears in one moment. The target must not exist.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::filesystem::path target);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where the files are until commit(): for reading them back.
  const std::filesystem::path& temporary() const;
  /// Writes one file of the folder; `name` is a plain file name. The file is on the disk when this returns.
  FileRecord write(const std::string& name, const std::function<void(const ByteSink&)>& content);
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Removes a folder of files; to others it vanishes in one moment, whole.
void remove_folder_atomically(const std::filesystem::path&);

/// Writes `text` to `target` in one moment.
void write_file_atomically(const std::filesystem::path& target, std::string_view text);

/// The whole of a regular file. Error(io) if it cannot be read or changes meanwhile, Error(input) if it is longer than
/// `max_bytes` or not a regular file, Error(memory) if there is not enough memory for it.
std::vector<std::byte> read_file(const std::filesystem::path&, uint64_t max_bytes);

/// Reads a file in pieces, without keeping it: its size and CRC-32C.
FileRecord measure_file(const std::filesystem::path&);

/// Removes temporaries of AtomicFile and AtomicDirectory that a killed process left in `folder`, and nothing else;
/// returns how many. Only for somebody who knows that nobody else writes there now: the holder of the folder's lock.
int remove_leftovers(const std::filesystem::path& folder);

}  // namespace nacre
