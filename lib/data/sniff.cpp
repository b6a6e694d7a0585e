// Kinds of files by their first bytes, for messages that name what was given by mistake.
#include "data/sniff.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "data/folder_scan.h"
#include "files/files.h"
#include "files/pickle.h"

namespace nacre::training {
namespace {

namespace fs = std::filesystem;

/// Texts for messages: the kind of file, its name where it is expected, and the command that reads it.
struct Words {
  const char *what, *expected, *taken;
};
constexpr Words words[] = {
    {"", "", ""},
    {"is empty", "", ""},
    {"is a .nacre stream", "a .nacre stream", "nacre decode reads it"},
    {"is a model (safetensors)", "a model (safetensors)", "--model takes it"},
    {"is an audio file", "audio", "nacre encode and nacre eval read it"},
    {"is JSON", "a configuration (JSON)", "--config takes a configuration"},
    {"is a git-lfs pointer", "", "git lfs pull fetches the file itself"},
    {pytorch_file_text, "", pytorch_file_advice},
    {"is a NumPy file, as the .dac files of descript-audio-codec are", "",
     "python3 -m dac decode turns a .dac file into audio, which nacre encode reads"},
    {"is an .ecdc file of EnCodec", "", "nacre decode reads it"},
};
const Words& of(Thing t) { return words[static_cast<size_t>(t)]; }

bool is_named_audio(std::string_view head) {
  for (const std::string_view start :
       {"RIFF", "RIFX", "RF64", "riff", "fLaC", "OggS", "FORM", "ID3", ".snd", "dns.", "caff", "NIST_1A"})
    if (head.starts_with(start)) return true;
  return false;
}

}  // namespace

bool is_mpeg_frame(std::string_view head) {
  if (head.size() < 4) return false;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(head[i]); };
  // Eleven bits of synchronisation, then values that the standard reserves: version 1, layer 0, bitrate 15, rate 3. FF
  // FE is the byte order mark of UTF-16.
  return byte(0) == 0xFF && byte(1) != 0xFE && (byte(1) & 0xE0) == 0xE0 && (byte(1) >> 3 & 3) != 1 &&
         (byte(1) >> 1 & 3) != 0 && (byte(2) >> 4) != 15 && (byte(2) >> 2 & 3) != 3;
}

Thing thing_of(std::string_view head) {
  if (head.empty()) return Thing::empty;
  if (head.starts_with("\x89NACRE")) return Thing::stream;
  if (head.starts_with("ECDC")) return Thing::ecdc;
  if (is_named_audio(head))
    return Thing::audio;  // before the test for weights: the size of an ID3 tag may look like their header
  if (is_pytorch_file(head)) return Thing::pytorch;
  if (is_numpy_file(head)) return Thing::numpy;
  // Eight bytes of length, then JSON (safetensors).
  if (head.size() > 8 && head[8] == '{') {
    uint64_t length = 0;  // of the header
    for (size_t i = 0; i < 8; ++i) length |= uint64_t{static_cast<unsigned char>(head[i])} << (8 * i);
    if (length >= 2 && length < (uint64_t{1} << 32)) return Thing::weights;
  }
  if (is_mpeg_frame(head)) return Thing::audio;
  if (head.starts_with("version https://git-lfs.github.com/spec/")) return Thing::pointer;
  const size_t at = head.find_first_not_of(" \t\r\n");
  return at != std::string_view::npos && head[at] == '{' ? Thing::json : Thing::unknown;
}

std::string head_of(int fd) {
  std::array<char, sniffed_bytes> bytes{};
  ssize_t n = 0;
  do n = ::pread(fd, bytes.data(), bytes.size(), 0);
  while (n < 0 && errno == EINTR);
  return {bytes.data(), n > 0 ? static_cast<size_t>(n) : 0};
}

Thing thing_at(const fs::path& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) return Thing::unknown;
  return thing_of(head_of(fd.get()));
}

std::string mistaken(Thing found, Thing expected) {
  if (found == Thing::unknown || found == expected) return "";
  // Any zip archive begins as a PyTorch file does, so the name says something only where weights are expected.
  if (found == Thing::pytorch && expected != Thing::weights) return "";
  const std::string text = std::string(of(found).what) + ", expected " + of(expected).expected;
  return *of(found).taken != '\0' ? text + "; " + of(found).taken : text;
}

std::string about_folder(const fs::path& folder, Thing expected) {
  std::error_code failed;
  // From the most specific to the least: a checkpoint, a run, then what the names of the files say.
  if (fs::is_regular_file(folder / "manifest.json", failed))
    return expected == Thing::weights ? "" : "; it is a checkpoint of nacre train, which --model takes";
  if (fs::is_regular_file(folder / "config.json", failed) && fs::exists(folder / "run.lock", failed))
    return expected == Thing::weights ? "; it is a run of nacre train that has no checkpoint yet"
                                      : "; it is a run of nacre train, which --model takes";
  bool audio = false, streams = false, weights = false;
  std::string pytorch;
  for (fs::directory_iterator entry(folder, failed); !failed && entry != fs::directory_iterator();
       entry.increment(failed)) {
    const std::string name = entry->path().filename().string();
    audio = audio || has_audio_extension(name);
    streams = streams || name.ends_with(".nacre") || name.ends_with(".ecdc");
    weights = weights || name.ends_with(".safetensors");
    if (expected == Thing::weights && (name.ends_with(".pth") || name.ends_with(".bin")) &&
        thing_at(entry->path()) == Thing::pytorch && (pytorch.empty() || name < pytorch))
      pytorch = name;
  }
  if (weights) return expected == Thing::weights ? "; give the name of one of its safetensors files" : "";
  if (!pytorch.empty()) return "; its " + pytorch + " " + pytorch_file_text + "; " + pytorch_file_advice;
  if (audio && expected != Thing::audio) return "; it contains audio files, which nacre encode and nacre eval read";
  if (streams && expected != Thing::stream) return "; it contains streams, which nacre decode reads";
  return "";
}

}  // namespace nacre::training
