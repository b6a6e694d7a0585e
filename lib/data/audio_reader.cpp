// AudioReader: audio files of all formats, with the checks that the decoders lack. The container is inspected first
// (container.h): it finds parts, defects and wrong sizes without decoding. Then each part is opened by a decoder
// (decoder.h), and read() goes through the parts as one signal. What is wrong throws, or becomes a warning with
// AudioOptions::salvage.
#include <fcntl.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "data/audio_checks.h"
#include "data/decoder.h"
#include "data/sniff.h"
#include "files/files.h"
#include "nacre/data/audio.h"

namespace nacre::training {

void bad(const std::string& name, const std::string& reason) { throw Error(ErrorKind::input, name + ": " + reason); }

void expect_plausible(const AudioInfo& info, const std::string& name) {
  if (info.sample_rate < min_sample_rate || info.sample_rate > max_sample_rate)
    bad(name, "the sample rate is " + std::to_string(info.sample_rate) + ", expected " +
                  std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
  if (info.channels < 1 || info.channels > max_channels)
    bad(name, std::to_string(info.channels) + " channels, expected 1 to " + std::to_string(max_channels));
  if (info.frames_known && info.frames <= 0) bad(name, "empty: it contains no audio");
}

void expect_samples(std::span<const float> x, int channels, int64_t position, const std::string& name) {
  for (size_t i = 0; i < x.size(); ++i)
    // Written so that NaN is refused, too.
    if (!(std::fabs(x[i]) <= largest_sample)) {
      const int64_t frame = position + static_cast<int64_t>(i) / channels;
      bad(name, (std::isfinite(x[i]) ? "sample out of range (" + std::to_string(x[i]) + ")"
                                     : std::string("sample that is not a finite number")) +
                    " at frame " + std::to_string(frame));
    }
}

std::string fewer_frames(int64_t declared, int64_t there) {
  return "truncated: the header declares " + std::to_string(declared) + " frames, " + std::to_string(there) +
         " are there";
}

namespace {

/// Decoders seek, and a file may be read twice. Pipes and standard input are therefore copied to an unnamed file first.
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
  return spool;
}

bool ends_as_mp3(const std::string& path) {
  return path.size() > 4 && ::strcasecmp(path.c_str() + path.size() - 4, ".mp3") == 0;
}

}  // namespace

struct AudioReader::Impl {
  std::string name;
  AudioOptions options;
  Descriptor fd;
  Container container;
  AudioInfo info;
  std::vector<int64_t> part_frames;  // according to their headers
  std::vector<std::string> warnings;

  size_t part = 0;
  std::unique_ptr<ByteRange> bytes;  // the decoder reads from this
  std::unique_ptr<Decoder> decoder;
  int64_t position = 0;  // in frames, over all parts
  bool ended = false;    // the last part is read, or damage was accepted

  void open(size_t which);
  std::unique_ptr<Decoder> decoder_of(ByteRange&) const;
  void survey();
  int64_t decode(int64_t frames, float* to);
  void at_end();
  void warn(const std::string& text) {
    if (std::find(warnings.begin(), warnings.end(), text) == warnings.end()) warnings.push_back(text);
  }
  /// Throws, or adds a warning with AudioOptions::salvage.
  void not_whole(const std::string& reason) {
    if (!options.salvage) bad(name, reason + "; --salvage uses the part that is there");
    warn(reason + "; the part that is there is used");
  }
};

std::unique_ptr<Decoder> AudioReader::Impl::decoder_of(ByteRange& from) const {
  if (container.mpeg) return open_with_libmpg123(from);
  try {
    return open_with_libsndfile(from);
  } catch (const DecodeFault& fault) {
    // MP3 frames may follow arbitrary bytes. As players do, look for them if the name has the extension of MP3.
    if (!ends_as_mp3(name)) throw;
    from.seek(0, SEEK_SET);
    try {
      return open_with_libmpg123(from);
    } catch (const DecodeFault&) {
      throw fault;
    }
  }
}

void AudioReader::Impl::open(size_t which) {
  // Before `bytes`, which the decoder reads from.
  decoder.reset();
  bytes = std::make_unique<ByteRange>(fd.get(), container.parts[which], container.patches);
  part = which;
  try {
    decoder = decoder_of(*bytes);
  } catch (const DecodeFault& fault) {
    if (bytes->error() != 0) throw Error(ErrorKind::io, name + ": cannot read: " + std::strerror(bytes->error()));
    // Most files have one part, which needs no number.
    if (which == 0) bad(name, fault.reason);
    bad(name,
        "part " + std::to_string(which + 1) + " of " + std::to_string(container.parts.size()) + ": " + fault.reason);
  }
}

/// Opens each part once, so that an unreadable part is found before the first read.
void AudioReader::Impl::survey() {
  for (size_t p = 0; p < container.parts.size(); ++p) {
    try {
      open(p);
    } catch (const Error& e) {
      if (p == 0 || !options.salvage || e.kind() != ErrorKind::input) throw;
      container.parts.resize(p);  // a part that ends within its header has no audio
      break;
    }
    const AudioInfo& now = decoder->info();
    if (p == 0) {
      info = now;
    } else if (now.sample_rate != info.sample_rate || now.channels != info.channels) {
      bad(name, "contains chained Ogg streams of different formats: " + std::to_string(info.sample_rate) + " Hz with " +
                    std::to_string(info.channels) + " channels, then " + std::to_string(now.sample_rate) + " Hz with " +
                    std::to_string(now.channels) + "; split the file");
    } else {
      info.frames += now.frames;
      info.frames_known = info.frames_known && now.frames_known;
    }
    part_frames.push_back(now.frames);
  }
  // Reading begins with the first part.
  if (part != 0 || !decoder) open(0);
}

AudioReader::AudioReader(const std::string& path, AudioOptions options) : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  m.name = path == "-" ? "standard input" : path;
  m.options = options;
  m.fd = open_seekable(path);
  // First by its beginning: a stream or a model given by mistake gets a message that names it. Then the container is
  // inspected, and only then a decoder opens the parts.
  const Thing found = thing_of(head_of(m.fd.get()));
  if (const std::string reason = mistaken(found, Thing::audio); !reason.empty() && found != Thing::empty)
    bad(m.name, reason);
  m.container = inspect_container(m.fd.get());
  if (const Container& c = m.container; !c.fault.empty()) {
    if (!c.salvageable) bad(m.name, c.fault);
    m.not_whole(c.fault);
  }
  if (!m.container.warning.empty()) m.warn(m.container.warning);
  m.survey();
  expect_plausible(m.info, m.name);
}
AudioReader::AudioReader(AudioReader&&) noexcept = default;
AudioReader& AudioReader::operator=(AudioReader&&) noexcept = default;
AudioReader::~AudioReader() = default;

const AudioInfo& AudioReader::info() const noexcept { return impl_->info; }
const std::string& AudioReader::name() const noexcept { return impl_->name; }
const std::vector<std::string>& AudioReader::warnings() const noexcept { return impl_->warnings; }

/// Decodes across parts until `frames` frames are read or the last part ends.
int64_t AudioReader::Impl::decode(int64_t frames, float* to) {
  int64_t n = 0;
  while (n < frames && !ended) {
    int64_t got = 0;
    try {
      // Decoders report what they have first and throw at the next call, so that no frame in front of the damage is
      // lost.
      got = decoder->read(frames - n, to + n * info.channels);
    } catch (const DecodeFault& fault) {
      if (bytes->error() == 0) {
        const std::string where = "damaged after frame " + std::to_string(position + n) + ": " + fault.reason;
        if (!options.salvage) bad(name, where + "; --salvage uses the audio before it");
        warn(where + "; the rest is not used");
        ended = true;
      }
    }
    // A decoder takes an error of the disk for the end of the file or for damage. Salvage must not accept it.
    if (bytes->error() != 0) throw Error(ErrorKind::io, name + ": cannot read: " + std::strerror(bytes->error()));
    n += got;
    if (got == 0 && !ended) {
      // The next part of a chained file continues the same signal.
      if (part + 1 < container.parts.size())
        open(part + 1);
      else
        ended = true;
    }
  }
  return n;
}

int64_t AudioReader::read(int64_t frames, std::vector<float>& to) {
  Impl& m = *impl_;
  to.resize(static_cast<size_t>(frames * m.info.channels));
  const int64_t n = m.decode(frames, to.data());
  to.resize(static_cast<size_t>(n * m.info.channels));
  // position is still that of the first frame of `to`.
  expect_samples(to, m.info.channels, m.position, m.name);
  m.position += n;
  if (n < frames) m.at_end();
  return n;
}

void AudioReader::Impl::at_end() {
  if (position == 0) bad(name, "empty: it contains no audio");
  // With a warning, the reason has been given already.
  if (info.frames_known && position < info.frames && warnings.empty()) not_whole(fewer_frames(info.frames, position));
}

void AudioReader::rewind() {
  Impl& m = *impl_;
  // Some formats cannot seek back to their start; reopening always works.
  m.open(0);
  m.position = 0;
  m.ended = false;
}

void AudioReader::seek(int64_t frame) {
  Impl& m = *impl_;
  if (frame < 0) throw Error(ErrorKind::usage, m.name + ": asked for frame " + std::to_string(frame));
  bool lost = false;
  if (m.info.frames_known && frame <= m.info.frames) {
    size_t part = 0;
    int64_t before = 0;
    // The part that holds the frame, by the lengths in the headers.
    while (part + 1 < m.part_frames.size() && before + m.part_frames[part] <= frame) before += m.part_frames[part++];
    if (m.part != part) m.open(part);
    if (m.decoder->seek(frame - before)) {
      m.position = frame;
      m.ended = false;
      return;
    }
    lost = true;
  }
  // Decoding up to the frame always works. Without a usable position of the decoder it begins at the start.
  if (lost || frame < m.position) rewind();
  std::vector<float> skipped;
  while (m.position < frame && read(std::min<int64_t>(frame - m.position, 1 << 15), skipped) > 0) {
  }
}

Audio read_audio(const std::string& path, AudioOptions options, std::vector<std::string>* warnings) {
  AudioReader reader(path, options);
  Audio audio{.samples = {}, .sample_rate = reader.info().sample_rate, .channels = reader.info().channels};
  // The header's length is not trusted for the size of the allocation.
  std::vector<float> piece;
  while (reader.read(1 << 16, piece) > 0) audio.samples.insert(audio.samples.end(), piece.begin(), piece.end());
  if (warnings != nullptr) *warnings = reader.warnings();
  return audio;
}

}  // namespace nacre::training
