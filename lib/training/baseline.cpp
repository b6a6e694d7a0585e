// Opus through libsndfile: samples -> resampled to a rate of Opus -> Ogg Opus in memory -> decoded -> resampled back.
// The size counts the packets and not their container, so the Ogg pages are parsed here.
#include "nacre/training/baseline.h"

#include <sndfile.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "nacre/data/audio.h"
#include "nacre/error.h"

namespace nacre::training {
namespace {

// The rates that Opus accepts (RFC 6716, section 2). libsndfile makes packets of 20 ms.
constexpr int opus_rates[] = {8000, 12000, 16000, 24000, 48000};
constexpr int64_t packets_per_second = 50;

struct CloseSound {
  void operator()(SNDFILE* f) const { sf_close(f); }
};
using Sound = std::unique_ptr<SNDFILE, CloseSound>;

/// A file in memory, accessed by libsndfile.
struct MemoryFile {
  std::string bytes = {};
  size_t at = 0;
};

// The five functions that libsndfile calls instead of those of a file on disk. `user` is the MemoryFile.
sf_count_t length_of(void* user) { return static_cast<sf_count_t>(static_cast<MemoryFile*>(user)->bytes.size()); }
sf_count_t position_of(void* user) { return static_cast<sf_count_t>(static_cast<MemoryFile*>(user)->at); }
sf_count_t seek_in(sf_count_t offset, int whence, void* user) {
  auto& f = *static_cast<MemoryFile*>(user);
  const sf_count_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? position_of(user) : length_of(user);
  if (from + offset < 0) return -1;
  f.at = static_cast<size_t>(from + offset);
  return position_of(user);
}
sf_count_t read_from(void* to, sf_count_t count, void* user) {
  auto& f = *static_cast<MemoryFile*>(user);
  if (f.at >= f.bytes.size()) return 0;
  const size_t n = std::min(static_cast<size_t>(count), f.bytes.size() - f.at);
  std::memcpy(to, f.bytes.data() + f.at, n);
  f.at += n;
  return static_cast<sf_count_t>(n);
}
sf_count_t write_to(const void* from, sf_count_t count, void* user) {
  auto& f = *static_cast<MemoryFile*>(user);
  const auto n = static_cast<size_t>(count);
  if (f.bytes.size() < f.at + n) f.bytes.resize(f.at + n);
  std::memcpy(f.bytes.data() + f.at, from, n);
  f.at += n;
  return count;
}

/// The file must outlive the sound. Throws Error(usage) if libsndfile refuses the format.
Sound open_memory(MemoryFile& file, int mode, SF_INFO& info) {
  // libsndfile copies the table, and keeps the pointer to the file.
  SF_VIRTUAL_IO io{
      .get_filelen = length_of, .seek = seek_in, .read = read_from, .write = write_to, .tell = position_of};
  Sound sound(sf_open_virtual(&io, mode, &info, &file));
  if (!sound) throw Error(ErrorKind::usage, std::string("Opus: ") + sf_strerror(nullptr));
  return sound;
}

SF_INFO opus_info(int rate, int channels) {
  SF_INFO info{};
  info.samplerate = rate;
  info.channels = channels;
  info.format = SF_FORMAT_OGG | SF_FORMAT_OPUS;
  return info;
}

int opus_rate(int sample_rate) {
  // Rounded up, so that resampling removes no frequency of the original.
  for (const int rate : opus_rates)
    if (rate >= sample_rate) return rate;
  return opus_rates[std::size(opus_rates) - 1];
}

/// Total size of an Ogg file's packets after the first two (identification and comment). Pages: RFC 3533, section 6.
int64_t packet_bytes(const std::string& ogg) {
  // Bytes of a page's fixed header, and the place of the number of its segments there. The table of segment sizes
  // follows, one byte each, then the segments.
  constexpr size_t header = 27, segment_count = 26;
  int64_t packets = 0, bytes = 0;
  for (size_t page = 0; page + header <= ogg.size();) {
    const size_t segments = static_cast<unsigned char>(ogg[page + segment_count]);
    if (ogg.compare(page, 4, "OggS") != 0 || page + header + segments > ogg.size())
      throw Error(ErrorKind::usage, "Opus: libsndfile wrote no Ogg page at byte " + std::to_string(page));
    size_t body = 0;
    for (size_t i = 0; i < segments; ++i) {
      const auto size = static_cast<unsigned char>(ogg[page + header + i]);
      body += size;
      // Page headers are not counted, as no container is counted for the codec.
      if (packets >= 2) bytes += size;
      if (size < 255) ++packets;  // a segment of 255 bytes continues in the next one
    }
    page += header + segments + body;
  }
  return bytes;
}

/// As code_opus(), at a rate that Opus supports.
OpusCoded code_at(std::span<const float> interleaved, int rate, double bitrate, int channels) {
  MemoryFile file;
  {
    SF_INFO info = opus_info(rate, channels);
    // The block ends before the file is read: closing writes the last page.
    const Sound sound = open_memory(file, SFM_WRITE, info);
    // libsndfile's ogg_opus.c maps level 0 to 256 kbit/s per channel and level 1 to 6 kbit/s, linearly in between.
    double level = 1 - (std::clamp(bitrate / channels, min_opus_bitrate, max_opus_bitrate) - min_opus_bitrate) /
                           (max_opus_bitrate - min_opus_bitrate);
    if (sf_command(sound.get(), SFC_SET_COMPRESSION_LEVEL, &level, sizeof level) != SF_TRUE)
      throw Error(ErrorKind::usage, "Opus: libsndfile does not take a bitrate of " + std::to_string(bitrate));
    // The encoder delays by 6.5 ms (RFC 7845's pre-skip). If the delayed end needs one more packet, libsndfile 1.2
    // feeds the last samples again. Zeros up to the end of that packet prevent this and add no packet.
    const int64_t packet = rate / packets_per_second, delay = rate * 13 / 2000;
    const int64_t n = static_cast<int64_t>(interleaved.size()) / channels;
    const int64_t padded = (n + delay + packet - 1) / packet * packet - delay;
    std::vector<float> samples(interleaved.begin(), interleaved.end());
    samples.resize(static_cast<size_t>(padded * channels));
    if (sf_writef_float(sound.get(), samples.data(), padded) != padded)
      throw Error(ErrorKind::usage, std::string("Opus: ") + sf_strerror(sound.get()));
  }
  OpusCoded coded{.samples = std::vector<float>(interleaved.size()), .bytes = packet_bytes(file.bytes)};
  file.at = 0;
  SF_INFO info{};
  const Sound sound = open_memory(file, SFM_READ, info);
  const auto n = static_cast<sf_count_t>(interleaved.size()) / channels;
  // libsndfile drops the pre-skip, so the samples are aligned with the original.
  if (info.samplerate != rate || info.channels != channels || sf_readf_float(sound.get(), coded.samples.data(), n) != n)
    throw Error(ErrorKind::usage,
                "Opus: libsndfile does not read back what it wrote at " + std::to_string(rate) + " Hz");
  return coded;
}

}  // namespace

std::optional<std::string> opus_unavailable() {
  const SF_INFO info = opus_info(48000, 1);
  MemoryFile file;
  if (sf_format_check(&info) == SF_TRUE) {
    // sf_format_check() accepts the format even if libsndfile was built without Opus, so a file is opened as a test.
    SF_INFO opened = info;
    try {
      open_memory(file, SFM_WRITE, opened);
      return {};
    } catch (const Error&) {  // libsndfile knows the name but was compiled without Opus
    }
  }
  char version[128] = "";
  sf_command(nullptr, SFC_GET_LIB_VERSION, version, sizeof version);
  return std::string(version) + " cannot write Ogg Opus";
}

OpusCoded code_opus(std::span<const float> interleaved, int sample_rate, double bitrate, int channels) {
  if (const std::optional<std::string> reason = opus_unavailable()) throw Error(ErrorKind::usage, "Opus: " + *reason);
  if (sample_rate < min_sample_rate || sample_rate > max_sample_rate)
    throw Error(ErrorKind::usage, "Opus: sample rate " + std::to_string(sample_rate) + ", expected " +
                                      std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
  if (channels < 1 || channels > 2 || interleaved.size() % static_cast<size_t>(channels) != 0)
    throw Error(ErrorKind::usage, "Opus: " + std::to_string(interleaved.size()) + " samples of " +
                                      std::to_string(channels) + " channels, expected whole ones of 1 or 2");
  if (!std::isfinite(bitrate)) throw Error(ErrorKind::usage, "Opus: the bitrate is not a finite number");
  if (interleaved.empty()) return {};
  const int rate = opus_rate(sample_rate);
  if (rate == sample_rate) return code_at(interleaved, rate, bitrate, channels);
  // The bytes are those at Opus's rate; resampling changes the samples only.
  OpusCoded coded = code_at(resample(interleaved, channels, sample_rate, rate), rate, bitrate, channels);
  coded.samples = resample(coded.samples, channels, rate, sample_rate);
  coded.samples.resize(interleaved.size());  // rounding the length twice can change it by one sample
  return coded;
}

}  // namespace nacre::training
