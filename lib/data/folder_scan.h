#pragma once
// Every file of one kind below a folder, in order of path; links are followed, no folder is entered twice.
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/data/dataset.h"

namespace nacre::training {

struct FolderScan {
  std::vector<std::string> files;  ///< below the folder, sorted
  std::vector<BadFile> bad;        ///< folders that cannot be read
  int64_t ignored = 0;
};

/// Throws Error(io) when the folder itself is missing, no folder or unreadable.
FolderScan scan_folder(const std::string& folder, bool (*wanted)(const std::string& name) = has_audio_extension);

/// Throws what scan_folder would for the folder itself, before anything is read.
void expect_folder(const std::string& folder);

}  // namespace nacre::training
