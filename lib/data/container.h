#pragma once
// What a container says of its audio, before a decoder sees it: where in the file it lies, what is missing, which sizes
// were never filled in. libsndfile shortens in silence what is incomplete here: RIFF, RF64, Wave64, AIFF, AU and SPHERE
// data that ends before its declared length, Ogg streams without their end, all links of a chained Ogg but the first.
#include <cstdint>
#include <string>
#include <vector>

namespace nacre::training {

struct Container {
  /// Bytes that are a file of their own.
  struct Part {
    uint64_t begin = 0, end = 0;
  };
  /// Bytes of the file that a decoder is to see instead of those that are there.
  struct Patch {
    uint64_t at = 0;
    std::string bytes;
  };

  std::vector<Part> parts;     ///< one, or the links of a chained Ogg in order
  std::vector<Patch> patches;  ///< in order of position
  bool mpeg = false;           ///< bare MPEG audio frames (MP3), behind ID3 tags or not
  std::string fault;           ///< why the file is not whole; empty if it is
  bool salvageable = false;    ///< there is audio to take in spite of the fault
  std::string warning;         ///< what is taken although the header says otherwise
};

/// Does not move the descriptor's position. An empty file has a fault and no parts.
Container inspect_container(int fd);

}  // namespace nacre::training
