// WAV files. WavWriter writes through libsndfile into an OutputFile, which gets its name at commit(). wav_header() and
// wav_bytes() make plain RIFF in memory, for streams whose header cannot be written later and for small files.
#include <fcntl.h>
#include <sndfile.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "files/files.h"
#include "nacre/data/audio.h"

namespace nacre::training {
namespace {

struct CloseSound {
  void operator()(SNDFILE* f) const { sf_close(f); }
};
using Sound = std::unique_ptr<SNDFILE, CloseSound>;

/// libsndfile closes a descriptor that it cannot open, whatever the caller requested. By then the number may belong to
/// another thread's file. It therefore gets a duplicate, which it closes in every case, and the caller keeps its own
/// descriptor. Null on failure: see sf_strerror().
Sound open_to_write(int fd, SF_INFO& info, const std::string& name) {
  const int own = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) throw_errno(name, "cannot open");
  return Sound(sf_open_fd(own, SFM_WRITE, &info, SF_TRUE));
}

/// Sample bytes that the 32-bit sizes of a RIFF file can hold, less the headers of its chunks.
constexpr int64_t riff_data_bytes = 0xFFFFFFFFll - 1024;

constexpr int64_t bytes_per_sample(WavFormat format) { return format == WavFormat::pcm16 ? 2 : 4; }

}  // namespace

struct WavWriter::Impl {
  Impl(const std::string& path, int c, WavFormat f) : name(path), file(path), channels(c), format(f) {}
  std::string name;
  OutputFile file;
  int channels;
  WavFormat format;
  Sound sound = nullptr;
  bool plain = false;  // RIFF, whose sizes have 32 bits
  // Numbers of samples of all channels together: written, and at most.
  int64_t samples = 0, most = std::numeric_limits<int64_t>::max(), clipped = 0;
  std::vector<int16_t> buffer = {};
};

WavWriter::WavWriter(const std::string& path, int sample_rate, int channels, WavFormat format,
                     std::optional<int64_t> frames) {
  if (channels < 1 || channels > max_channels || sample_rate < min_sample_rate || sample_rate > max_sample_rate)
    throw Error(ErrorKind::usage, path + ": cannot write " + std::to_string(channels) + " channels at " +
                                      std::to_string(sample_rate) + " Hz");
  impl_ = std::make_unique<Impl>(path, channels, format);
  if (frames) impl_->most = *frames * channels;
  SF_INFO info{};
  info.samplerate = sample_rate;
  info.channels = channels;
  impl_->plain = frames && fits_wav(*frames, channels, format);
  info.format = (impl_->plain ? SF_FORMAT_WAV : SF_FORMAT_RF64) |
                (format == WavFormat::pcm16 ? SF_FORMAT_PCM_16 : SF_FORMAT_FLOAT);
  impl_->sound = open_to_write(impl_->file.fd(), info, path);
  if (!impl_->sound) throw Error(ErrorKind::io, path + ": cannot write: " + sf_strerror(nullptr));
  // If the length is unknown, RF64 keeps room for 64-bit sizes; a file that stays small becomes plain WAV when it is
  // closed.
  if (!impl_->plain) sf_command(impl_->sound.get(), SFC_RF64_AUTO_DOWNGRADE, nullptr, SF_TRUE);
  // The PEAK chunk contains the time of day. With it, equal samples would not give equal bytes.
  sf_command(impl_->sound.get(), SFC_SET_ADD_PEAK_CHUNK, nullptr, SF_FALSE);
}
WavWriter::WavWriter(WavWriter&&) noexcept = default;
WavWriter& WavWriter::operator=(WavWriter&&) noexcept = default;
WavWriter::~WavWriter() = default;

void WavWriter::write(std::span<const float> x) {
  Impl& m = *impl_;
  if (x.size() % static_cast<size_t>(m.channels) != 0)
    throw Error(ErrorKind::usage, m.name + ": the samples end within a frame");
  for (const float v : x)
    if (!std::isfinite(v)) throw Error(ErrorKind::usage, m.name + ": a sample to write is not finite");
  const auto n = static_cast<sf_count_t>(x.size());
  m.samples += n;
  if (m.samples > m.most) throw Error(ErrorKind::usage, m.name + ": more audio than the length that was declared");
  sf_count_t written = 0;
  if (m.format == WavFormat::float32) {
    written = sf_write_float(m.sound.get(), x.data(), n);
  } else {
    m.buffer.resize(x.size());
    std::transform(x.begin(), x.end(), m.buffer.begin(), [&](float v) { return to_pcm16(v, m.clipped); });
    written = sf_write_short(m.sound.get(), m.buffer.data(), n);
  }
  if (written != n) throw Error(ErrorKind::io, m.name + ": cannot write: " + sf_strerror(m.sound.get()));
}

int64_t WavWriter::commit() {
  Impl& m = *impl_;
  // Closing writes the sizes into the header, so it can fail, and it comes before the file gets its name.
  const int error = sf_close(m.sound.release());
  if (error != SF_ERR_NO_ERROR) throw Error(ErrorKind::io, m.name + ": cannot write: " + sf_error_number(error));
  m.file.commit();
  return m.clipped;
}

int64_t write_wav(const std::string& path, const Audio& audio, WavFormat format) {
  WavWriter writer(path, audio.sample_rate, audio.channels, format, audio.frames());
  writer.write(audio.samples);
  return writer.commit();
}

bool fits_wav(int64_t frames, int channels, WavFormat format) {
  // The division keeps the product from overflowing.
  return frames <= riff_data_bytes / (channels * bytes_per_sample(format));
}

std::string wav_header(int sample_rate, int channels, WavFormat format, std::optional<int64_t> frames) {
  if (frames && !fits_wav(*frames, channels, format))
    throw Error(ErrorKind::usage, "wav_header: " + std::to_string(*frames) + " frames are too long for RIFF");
  std::string out;
  const auto number = [&](uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 255));
  };
  const uint64_t width = static_cast<uint64_t>(bytes_per_sample(format)),
                 frame = width * static_cast<uint64_t>(channels);
  const uint64_t data = frames ? static_cast<uint64_t>(*frames) * frame : 0xFFFFFFFFu;
  // Formats other than PCM have a chunk with the number of frames. Without a number there is none.
  const bool fact = format == WavFormat::float32 && frames;
  out += "RIFF";
  // The size of all that follows: 4 bytes "WAVE", chunk "fmt " of 8 + 16, chunk "fact" of 8 + 4, 8 of the chunk "data".
  number(frames ? (fact ? 48 : 36) + data : 0xFFFFFFFFu, 4);
  out += "WAVEfmt ";
  // The chunk "fmt ": coding (1: integers, 3: floats), channels, rate, bytes per second, bytes per frame, bits per
  // sample.
  number(16, 4);
  number(format == WavFormat::float32 ? 3 : 1, 2);
  number(static_cast<uint64_t>(channels), 2);
  number(static_cast<uint64_t>(sample_rate), 4);
  number(static_cast<uint64_t>(sample_rate) * frame, 4);
  number(frame, 2);
  number(8 * width, 2);
  if (fact) {
    out += "fact";
    number(4, 4);
    number(static_cast<uint64_t>(*frames), 4);
  }
  out += "data";
  number(data, 4);
  return out;
}

std::string wav_bytes(std::span<const float> x, int sample_rate, int channels) {
  std::string out =
      wav_header(sample_rate, channels, WavFormat::pcm16, static_cast<int64_t>(x.size()) / std::max(channels, 1));
  out.reserve(out.size() + 2 * x.size());
  int64_t clipped = 0;
  for (const float v : x) {
    const auto bits = static_cast<uint16_t>(to_pcm16(std::isfinite(v) ? v : 0.0f, clipped));
    out.push_back(static_cast<char>(bits & 255));
    out.push_back(static_cast<char>(bits >> 8));
  }
  return out;
}

}  // namespace nacre::training
