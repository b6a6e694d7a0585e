#pragma once
// Files of the formats that libsndfile writes, and functions that edit their bytes.
#include <sndfile.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "catch.h"
#include "data/files.h"
#include "harness.h"

namespace nacre::test {

/// Noise, because a second of it fills many pages and frames.
inline std::vector<float> noise(size_t n, uint64_t salt = 0, float amplitude = 0.9f) {
  std::mt19937_64 rng(seed() + salt);
  std::uniform_real_distribution<float> uniform(-amplitude, amplitude);
  std::vector<float> x(n);
  for (float& v : x) v = uniform(rng);
  return x;
}

inline void write_encoded(const std::string& path, int format, const std::vector<float>& interleaved, int rate,
                          int channels = 1) {
  SF_INFO info{};
  info.samplerate = rate;
  info.channels = channels;
  info.format = format;
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  const auto frames = static_cast<sf_count_t>(interleaved.size()) / channels;
  REQUIRE(sf_writef_float(file, interleaved.data(), frames) == frames);
  sf_close(file);
}

inline constexpr int flac_format = SF_FORMAT_FLAC | SF_FORMAT_PCM_16, vorbis_format = SF_FORMAT_OGG | SF_FORMAT_VORBIS,
                     opus_format = SF_FORMAT_OGG | SF_FORMAT_OPUS,
                     mp3_format = SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III,
                     aiff_format = SF_FORMAT_AIFF | SF_FORMAT_PCM_16, au_format = SF_FORMAT_AU | SF_FORMAT_PCM_16;

/// A FLAC file as written to a pipe: its header has no length (36 bits of STREAMINFO at byte 21).
inline std::string without_length(std::string flac) {
  flac[21] = static_cast<char>(flac[21] & 0xF0);
  std::fill(flac.begin() + 22, flac.begin() + 26, '\0');
  return flac;
}

/// The file behind an ID3v2.4 tag.
inline std::string behind_tag(const std::string& file) {
  return std::string("ID3\4\0\0\0\0\0\x14TIT2\0\0\0\x0a\0\0\3a  title", 30) + file;
}

/// The offset of the second frame of an MP3, which follows the index. The frames must have equal sizes.
inline size_t second_frame(const std::string& mp3) {
  for (size_t at = 4; at + 3 < mp3.size(); ++at)
    if (mp3[at] == mp3[0] && mp3[at + 1] == mp3[1]) return at;
  return 0;
}

/// A WAV or AIFF file whose writer stopped before it filled in the sizes.
inline std::string unfinished(std::string file, const std::string& data_name) {
  std::fill_n(file.begin() + 4, 4, '\0');
  std::fill_n(file.begin() + static_cast<std::ptrdiff_t>(file.find(data_name)) + 4, 4, '\0');
  return file;
}

/// The file without its last page, which is marked as the end of the stream.
inline std::string without_last_page(const std::string& ogg) { return ogg.substr(0, ogg.rfind("OggS")); }

}  // namespace nacre::test
