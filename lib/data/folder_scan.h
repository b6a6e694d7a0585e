#pragma once
// Lists every file of one kind below a folder, ordered by path. Links are followed, and no folder is entered twice.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/data/dataset.h"

namespace nacre::training {

struct FolderScan {
  std::vector<std::string> files;  ///< relative to the folder, sorted
  std::vector<BadFile> bad;        ///< folders that cannot be read
  int64_t ignored = 0;
};

/// Throws Error(io) if the folder itself is missing, not a folder or unreadable.
FolderScan scan_folder(const std::string& folder, bool (*wanted)(const std::string& name) = has_audio_extension);

/// Throws what scan_folder() would throw for the folder itself, without reading its content.
void expect_folder(const std::string& folder);

}  // namespace nacre::training
