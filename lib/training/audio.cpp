#include "nacre/training/audio.h"

#include <fcntl.h>
#include <sndfile.h>
#include <soxr.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "container_check.h"
#include "files.h"
#include "sniff.h"
#include "soxr_memory.h"

namespace nacre::training {
namespace {

struct CloseSound {
  void operator()(SNDFILE* f) const { sf_close(f); }
};
using Sound = std::unique_ptr<SNDFILE, CloseSound>;

/// libsndfile closes a descriptor that it cannot open, whatever it was told: by then it may be another thread's file. It
/// gets one of its own, which it closes in every case; the caller's is for the caller to close. Null: see sf_strerror().
Sound open_sound(int fd, int mode, SF_INFO& info, const std::string& name) {
  const int own = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) throw_errno(name, "cannot open");
  return Sound(sf_open_fd(own, mode, &info, SF_TRUE));
}

[[noreturn]] void bad(const std::string& path, const std::string& reason) {
  throw Error(ErrorKind::input, path + ": " + reason);
}

Descriptor open_seekable(const std::string& path) {
  Descriptor fd;
  if (path != "-") {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) throw_errno(path, "cannot open");
    if (S_ISDIR(status.st_mode)) throw Error(ErrorKind::io, path + ": is a folder, expected an audio file");
    fd = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) throw_errno(path, "cannot open");
    if (S_ISREG(status.st_mode)) return fd;
    if (!S_ISFIFO(status.st_mode) && !S_ISSOCK(status.st_mode))
      throw Error(ErrorKind::io, path + ": is a device, expected an audio file");
  }
  Descriptor spool = unnamed_file();
  copy_all(path == "-" ? STDIN_FILENO : fd.get(), spool.get(), path == "-" ? "standard input" : path, "temporary file");
  if (::lseek(spool.get(), 0, SEEK_SET) != 0) throw_errno("temporary file", "cannot rewind");
  return spool;
}

}  // namespace

struct AudioReader::Impl {
  std::string name;
  Descriptor fd;
  Sound sound;
  AudioInfo info;
  bool length_is_estimate = false;
  int64_t position = 0;
};

AudioReader::AudioReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  m.name = path == "-" ? "standard input" : path;
  m.fd = open_seekable(path);
  const Thing found = thing_of(head_of(m.fd.get()));
  if (const std::string reason = mistaken(found, Thing::audio); !reason.empty() && found != Thing::empty)
    bad(m.name, reason);
  if (const std::string reason = container_fault(m.fd.get()); !reason.empty()) bad(m.name, reason);
  SF_INFO info{};
  // By descriptor: by name, libsndfile would take some extensions as the format of headerless data.
  m.sound = open_sound(m.fd.get(), SFM_READ, info, m.name);
  if (!m.sound) bad(m.name, std::string("not readable as audio: ") + sf_strerror(nullptr));
  m.info = {.sample_rate = info.samplerate, .channels = info.channels, .frames = info.frames};
  m.length_is_estimate = (info.format & SF_FORMAT_TYPEMASK) == SF_FORMAT_MPEG;
  if (info.samplerate < min_sample_rate || info.samplerate > max_sample_rate)
    bad(m.name, "sample rate " + std::to_string(info.samplerate) + ", expected " + std::to_string(min_sample_rate) +
                    " to " + std::to_string(max_sample_rate));
  if (info.channels < 1 || info.channels > max_channels)
    bad(m.name, std::to_string(info.channels) + " channels, expected 1 to " + std::to_string(max_channels));
  if (info.frames <= 0) bad(m.name, "empty: no audio in it");
}
AudioReader::AudioReader(AudioReader&&) noexcept = default;
AudioReader& AudioReader::operator=(AudioReader&&) noexcept = default;
AudioReader::~AudioReader() = default;

const AudioInfo& AudioReader::info() const noexcept { return impl_->info; }

int64_t AudioReader::read(int64_t frames, std::vector<float>& to) {
  Impl& m = *impl_;
  to.resize(static_cast<size_t>(frames * m.info.channels));
  const int64_t n = sf_readf_float(m.sound.get(), to.data(), frames);
  to.resize(static_cast<size_t>(n * m.info.channels));
  if (const int error = sf_error(m.sound.get()); error != SF_ERR_NO_ERROR)
    bad(m.name, "damaged after frame " + std::to_string(m.position + n) + ": " + std::string(sf_error_number(error)));
  for (size_t i = 0; i < to.size(); ++i)
    if (!(std::fabs(to[i]) <= largest_sample)) {
      const int64_t frame = m.position + static_cast<int64_t>(i) / m.info.channels;
      bad(m.name, (std::isfinite(to[i]) ? "sample out of any range (" + std::to_string(to[i]) + ")"
                                        : std::string("sample that is not a finite number")) +
                      " at frame " + std::to_string(frame));
    }
  m.position += n;
  if (n == 0 && m.position == 0) bad(m.name, "empty: no audio in it");
  if (n < frames && m.position < m.info.frames && !m.length_is_estimate)
    bad(m.name, "truncated: the header promises " + std::to_string(m.info.frames) + " frames, " +
                    std::to_string(m.position) + " are there");
  return n;
}

void AudioReader::rewind() {
  if (sf_seek(impl_->sound.get(), 0, SEEK_SET) != 0) bad(impl_->name, "cannot rewind");
  impl_->position = 0;
}

Audio read_audio(const std::string& path) {
  AudioReader reader(path);
  Audio audio{.samples = {}, .sample_rate = reader.info().sample_rate, .channels = reader.info().channels};
  // The header is not believed for the size of the allocation.
  std::vector<float> piece;
  while (reader.read(1 << 16, piece) > 0) audio.samples.insert(audio.samples.end(), piece.begin(), piece.end());
  return audio;
}

std::vector<float> to_mono(std::span<const float> interleaved, int channels) {
  if (channels < 1 || interleaved.size() % static_cast<size_t>(channels) != 0)
    throw Error(ErrorKind::usage, "to_mono: " + std::to_string(interleaved.size()) +
                                      " samples are no whole frames of " + std::to_string(channels) + " channels");
  if (channels == 1) return {interleaved.begin(), interleaved.end()};
  const size_t c = static_cast<size_t>(channels);
  std::vector<float> mono(interleaved.size() / c);
  for (size_t t = 0; t < mono.size(); ++t) {
    double sum = 0;
    for (size_t i = 0; i < c; ++i) sum += static_cast<double>(interleaved[t * c + i]);
    mono[t] = static_cast<float>(sum / channels);
  }
  return mono;
}

int64_t resampled_frames(int64_t frames, int from_rate, int to_rate) {
  if (frames <= 0) return 0;
  const auto exact = static_cast<__int128>(frames) * to_rate;
  return std::max<int64_t>(1, static_cast<int64_t>((exact + from_rate / 2) / from_rate));
}

struct Resampler::Impl {
  int from = 0, to = 0;
  size_t channels = 1;
  soxr_t soxr = nullptr;
  int64_t taken = 0, given = 0;
  std::vector<float> buffer = {};
  ~Impl() {
    if (soxr != nullptr) soxr_delete(soxr);
  }
};

Resampler::Resampler(int from_rate, int to_rate, int channels) : impl_(std::make_unique<Impl>()) {
  for (const int rate : {from_rate, to_rate})
    if (rate < min_sample_rate || rate > max_sample_rate)
      throw Error(ErrorKind::usage, "resample: rate " + std::to_string(rate) + ", expected " +
                                        std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
  if (channels < 1 || channels > max_channels)
    throw Error(ErrorKind::usage, "resample: " + std::to_string(channels) + " channels");
  impl_->from = from_rate;
  impl_->to = to_rate;
  impl_->channels = static_cast<size_t>(channels);
  if (from_rate == to_rate) return;
  const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_VHQ, 0);
  const soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
  soxr_error_t error = nullptr;
  expect_memory_for_soxr("resample", 0);
  impl_->soxr = soxr_create(from_rate, to_rate, static_cast<unsigned>(channels), &error, nullptr, &quality, &runtime);
  if (error != nullptr) throw Error(ErrorKind::memory, std::string("resample: ") + error);
}
Resampler::Resampler(Resampler&&) noexcept = default;
Resampler& Resampler::operator=(Resampler&&) noexcept = default;
Resampler::~Resampler() = default;

void Resampler::process(std::span<const float> in, std::vector<float>& out) {
  Impl& m = *impl_;
  if (in.size() % m.channels != 0) throw Error(ErrorKind::usage, "resample: the input holds part of a frame");
  m.taken += static_cast<int64_t>(in.size() / m.channels);
  if (m.soxr == nullptr) {
    out.insert(out.end(), in.begin(), in.end());
    m.given = m.taken;
    return;
  }
  size_t frames = in.size() / m.channels;
  const float* data = in.data();
  m.buffer.resize(4096 * m.channels);
  expect_memory_for_soxr("resample", in.size() + m.buffer.size());
  for (size_t used = 1, made = 1; frames > 0 || made > 0;) {
    // A null input would mean the end of the stream.
    static const float nothing = 0;
    if (soxr_error_t e =
            soxr_process(m.soxr, frames > 0 ? data : &nothing, frames, &used, m.buffer.data(), 4096, &made))
      throw Error(ErrorKind::memory, std::string("resample: ") + e);
    out.insert(out.end(), m.buffer.begin(), m.buffer.begin() + static_cast<std::ptrdiff_t>(made * m.channels));
    m.given += static_cast<int64_t>(made);
    data += used * m.channels;
    frames -= used;
  }
}

void Resampler::finish(std::vector<float>& out) {
  Impl& m = *impl_;
  if (m.soxr == nullptr) return;
  m.buffer.resize(4096 * m.channels);
  expect_memory_for_soxr("resample", m.buffer.size());
  for (size_t made = 1; made > 0 && m.taken > 0;) {
    if (soxr_error_t e = soxr_process(m.soxr, nullptr, 0, nullptr, m.buffer.data(), 4096, &made))
      throw Error(ErrorKind::memory, std::string("resample: ") + e);
    out.insert(out.end(), m.buffer.begin(), m.buffer.begin() + static_cast<std::ptrdiff_t>(made * m.channels));
    m.given += static_cast<int64_t>(made);
  }
  // soxr's own rounding of the length may differ by a frame.
  const int64_t wanted = resampled_frames(m.taken, m.from, m.to);
  const int64_t size = static_cast<int64_t>(out.size()) + (wanted - m.given) * static_cast<int64_t>(m.channels);
  out.resize(static_cast<size_t>(std::max<int64_t>(size, 0)), 0.0f);
  m.given = wanted;
}

std::vector<float> resample(std::span<const float> interleaved, int channels, int from_rate, int to_rate) {
  Resampler resampler(from_rate, to_rate, channels);
  std::vector<float> out;
  resampler.process(interleaved, out);
  resampler.finish(out);
  return out;
}

float peak_of(std::span<const float> x) {
  float peak = 0;
  for (const float v : x) peak = std::max(peak, std::fabs(v));
  return peak;
}
float peak_gain(float peak) { return peak < silence_peak ? 1.0f : normalised_peak / peak; }
float normalise_peak(std::span<float> x) {
  const float gain = peak_gain(peak_of(x));
  if (gain != 1.0f)
    for (float& v : x) v *= gain;
  return gain;
}

int16_t to_pcm16(float x, int64_t& clipped) {
  // 32768, as the reader divides by it: what was read as 16 bits is written as the same 16 bits.
  const float scaled = std::nearbyint(x * 32768.0f);
  if (scaled > 32767.0f || scaled < -32768.0f) {
    ++clipped;
    return scaled > 0 ? int16_t{32767} : int16_t{-32768};
  }
  return static_cast<int16_t>(scaled);
}

struct WavWriter::Impl {
  Impl(const std::string& path, int c, WavFormat f) : name(path), file(path), channels(c), format(f) {}
  std::string name;
  OutputFile file;
  int channels;
  WavFormat format;
  Sound sound = nullptr;
  int64_t clipped = 0;
  std::vector<int16_t> buffer = {};
};

WavWriter::WavWriter(const std::string& path, int sample_rate, int channels, WavFormat format) {
  if (channels < 1 || channels > max_channels || sample_rate < min_sample_rate || sample_rate > max_sample_rate)
    throw Error(ErrorKind::usage, path + ": cannot write " + std::to_string(channels) + " channels at " +
                                      std::to_string(sample_rate) + " Hz");
  impl_ = std::make_unique<Impl>(path, channels, format);
  SF_INFO info{};
  info.samplerate = sample_rate;
  info.channels = channels;
  info.format = SF_FORMAT_RF64 | (format == WavFormat::pcm16 ? SF_FORMAT_PCM_16 : SF_FORMAT_FLOAT);
  impl_->sound = open_sound(impl_->file.fd(), SFM_WRITE, info, path);
  if (!impl_->sound) throw Error(ErrorKind::io, path + ": cannot write: " + sf_strerror(nullptr));
  sf_command(impl_->sound.get(), SFC_RF64_AUTO_DOWNGRADE, nullptr, SF_TRUE);
  // The chunk holds the time of day: the same samples would not give the same bytes.
  sf_command(impl_->sound.get(), SFC_SET_ADD_PEAK_CHUNK, nullptr, SF_FALSE);
}
WavWriter::WavWriter(WavWriter&&) noexcept = default;
WavWriter& WavWriter::operator=(WavWriter&&) noexcept = default;
WavWriter::~WavWriter() = default;

void WavWriter::write(std::span<const float> x) {
  Impl& m = *impl_;
  if (x.size() % static_cast<size_t>(m.channels) != 0)
    throw Error(ErrorKind::usage, m.name + ": the samples hold part of a frame");
  for (const float v : x)
    if (!std::isfinite(v)) throw Error(ErrorKind::usage, m.name + ": asked to write a sample that is not finite");
  const auto n = static_cast<sf_count_t>(x.size());
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
  const int error = sf_close(m.sound.release());
  if (error != SF_ERR_NO_ERROR) throw Error(ErrorKind::io, m.name + ": cannot write: " + sf_error_number(error));
  m.file.commit();
  return m.clipped;
}

int64_t write_wav(const std::string& path, const Audio& audio, WavFormat format) {
  WavWriter writer(path, audio.sample_rate, audio.channels, format);
  writer.write(audio.samples);
  return writer.commit();
}

std::string wav_bytes(std::span<const float> x, int sample_rate, int channels) {
  std::string out;
  const auto number = [&](uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 255));
  };
  const uint64_t data = 2 * x.size(), frame = 2 * static_cast<uint64_t>(channels);
  if (data > 0xFFFFFF00u) throw Error(ErrorKind::usage, "wav_bytes: too long for a WAV in memory");
  out.reserve(44 + data);
  out += "RIFF";
  number(36 + data, 4);
  out += "WAVEfmt ";
  number(16, 4);
  number(1, 2);
  number(static_cast<uint64_t>(channels), 2);
  number(static_cast<uint64_t>(sample_rate), 4);
  number(static_cast<uint64_t>(sample_rate) * frame, 4);
  number(frame, 2);
  number(16, 2);
  out += "data";
  number(data, 4);
  int64_t clipped = 0;
  for (const float v : x) number(static_cast<uint16_t>(to_pcm16(std::isfinite(v) ? v : 0.0f, clipped)), 2);
  return out;
}

}  // namespace nacre::training
