// All files below a folder that have a wanted name, in order of path, over links but each folder once.
#include "data/folder_scan.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <string_view>

namespace nacre::training {
namespace {

constexpr std::array<std::string_view, 25> extensions{
    "wav", "wave", "flac", "ogg", "oga", "opus", "mp3", "aif",  "aiff", "aifc", "au",  "snd", "caf",
    "w64", "rf64", "sph",  "m4a", "aac", "mp4",  "wma", "webm", "amr",  "ape",  "mka", "3gp"};

struct CloseFolder {
  void operator()(DIR* d) const { ::closedir(d); }
};

/// The reason why stat("NAME/") failed.
std::string why_no_folder() {
  return errno == ENOTDIR  ? "is a file, expected a folder of audio files"
         : errno == ENOENT ? "no such folder"
                           : std::string("cannot open folder: ") + std::strerror(errno);
}

class Scanner {
 public:
  Scanner(const std::string& root, bool (*wanted)(const std::string&)) : root_(root), wanted_(wanted) {}

  FolderScan run() {
    if (const std::string reason = enter(""); !reason.empty()) throw Error(ErrorKind::io, root_ + ": " + reason);
    // The order of clips decides what a crop's number means, so it must not depend on the file system.
    std::sort(out_.files.begin(), out_.files.end());
    std::sort(out_.bad.begin(), out_.bad.end(), [](const BadFile& a, const BadFile& b) { return a.path < b.path; });
    return std::move(out_);
  }

 private:
  /// `below` is "" or ends in '/'. Returns the reason why the folder cannot be read, or "".
  std::string enter(const std::string& below) {
    const std::string path = root_ + "/" + below;
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return why_no_folder();
    // A folder is entered once, so links that lead back end here.
    if (!seen_.insert({status.st_dev, status.st_ino}).second) return "";
    const std::unique_ptr<DIR, CloseFolder> dir(::opendir(path.c_str()));
    if (!dir) return std::string("cannot open folder: ") + std::strerror(errno);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(dir.get())) names.emplace_back(entry->d_name);
    if (errno != 0) return std::string("cannot read folder: ") + std::strerror(errno);
    // Sorted, because the first of two links to the same folder is the one that is followed.
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      if (name == "." || name == "..") continue;
      // Hidden files, such as the "._NAME.wav" that macOS leaves beside audio.
      if (name.front() == '.') {
        ++out_.ignored;
        continue;
      }
      const std::string file = below + name;
      const bool known = ::stat((root_ + "/" + file).c_str(), &status) == 0;
      if (known && S_ISDIR(status.st_mode)) {
        if (const std::string reason = enter(file + "/"); !reason.empty()) out_.bad.push_back({file, reason});
      } else if (wanted_(name) && known && !S_ISREG(status.st_mode)) {
        // Opening a pipe would block until a process writes to it.
        out_.bad.push_back({file, S_ISFIFO(status.st_mode) ? "a pipe, expected a file" : "not a regular file"});
      } else if (wanted_(name)) {
        out_.files.push_back(file);
      } else {
        ++out_.ignored;
      }
    }
    return "";
  }

  std::string root_;
  bool (*wanted_)(const std::string&);
  FolderScan out_ = {};
  std::set<std::pair<dev_t, ino_t>> seen_ = {};
};

}  // namespace

FolderScan scan_folder(const std::string& folder, bool (*wanted)(const std::string&)) {
  return Scanner(folder, wanted).run();
}

void expect_folder(const std::string& folder) {
  struct stat status {};
  if (::stat((folder + "/").c_str(), &status) != 0) throw Error(ErrorKind::io, folder + ": " + why_no_folder());
}

bool has_audio_extension(const std::string& path) {
  const size_t dot = path.rfind('.');
  if (dot == std::string::npos || path.find('/', dot) != std::string::npos) return false;
  std::string ending = path.substr(dot + 1);
  for (char& c : ending)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return std::find(extensions.begin(), extensions.end(), ending) != extensions.end();
}

}  // namespace nacre::training
