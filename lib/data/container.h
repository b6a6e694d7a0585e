#pragma once
// Inspection of an audio container before decoding: the position of the audio in the file, missing data, and sizes that
// were never filled in. Without it, libsndfile silently shortens incomplete files: RIFF, RF64, Wave64, AIFF, AU and
// SPHERE data that end before their declared length, Ogg streams without an end, and all links of a chained Ogg but the
// first.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nacre::training {

struct Container {
  /// A range of bytes that is a complete file of its own.
  struct Part {
    uint64_t begin = 0, end = 0;
  };
  /// Bytes that replace those of the file when a decoder reads it.
  struct Patch {
    uint64_t at = 0;
    std::string bytes;
  };

  std::vector<Part> parts;     ///< one part, or the links of a chained Ogg in order
  std::vector<Patch> patches;  ///< in order of position
  bool mpeg = false;           ///< bare MPEG audio frames (MP3), with or without ID3 tags
  std::string fault;           ///< why the file is not whole; empty if it is
  bool salvageable = false;    ///< audio can be read in spite of the fault
  std::string warning;         ///< a defect of the header that was corrected
  uint64_t audio = 0;          ///< formats with a header that declares the size: the position of the samples
  uint64_t audio_bytes = 0;    ///< Wave64: bytes of samples that the header declares, for which libsndfile has none
  bool endless = false;        ///< inspect_arriving(): the header has no length; patches make it endless
};

/// Does not move the descriptor's position. An empty file gives a fault and no parts.
Container inspect_container(int fd);

/// The size that is assumed of a file that arrives.
inline constexpr uint64_t arriving_size = uint64_t{1} << 60;
/// The bytes at a position; fewer if the file ends before them.
using ByteReader = std::function<std::string(uint64_t offset, size_t n)>;
/// The same for a file that arrives: WAV, RF64, Wave64, AIFF, AU and CAF, up to the position of their samples. It asks
/// for no byte behind those that it needs to find them. Other formats give no parts. Whether all samples come shows
/// only at the end.
Container inspect_arriving(const ByteReader&);

}  // namespace nacre::training
