#include "nacre/coding/codec_files.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <deque>
#include <optional>
#include <variant>

#include "coding/channel_decoder.h"
#include "coding/live.h"
#include "data/arriving.h"
#include "data/sniff.h"
#include "files/files.h"
#include "nacre/codec/windowed.h"
#include "nacre/files/ecdc.h"

namespace nacre::training {
namespace {

// A third of a second at 48 kHz: the granularity of progress and of stopping.
constexpr int64_t piece_frames = 1 << 14;
/// The smallest gain that a stream can hold. With it, any output of a model for silence is far below one 16-bit step.
constexpr float silent_gain = 0x1p-40f;

using Clock = std::chrono::steady_clock;

/// Reads bytes from a file or from standard input.
class Input {
 public:
  Input(const std::string& path, const Hooked* hooked)
      : name_(path == "-" ? "standard input" : path), hooked_(hooked), arrives_(arrives(path)) {
    if (path != "-") {
      struct stat status {};
      if (::stat(path.c_str(), &status) != 0) throw_errno(path, "cannot open");
      if (S_ISDIR(status.st_mode)) throw Error(ErrorKind::io, path + ": is a folder, expected a .nacre stream");
      file_ = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!file_) throw_errno(path, "cannot open");
    }
    // Standard input may be a file, too, and need not be at its beginning.
    struct stat status {};
    if (const off_t at = ::lseek(fd(), 0, SEEK_CUR); at >= 0 && ::fstat(fd(), &status) == 0 && S_ISREG(status.st_mode))
      start_ = at, size_ = std::max<off_t>(0, status.st_size - at);
    std::array<std::byte, sniffed_bytes> bytes{};
    for (size_t n = 1; n > 0 && head_.size() < sniffed_bytes;) {
      n = read_next(std::span(bytes).first(sniffed_bytes - head_.size()));
      head_.append(reinterpret_cast<const char*>(bytes.data()), n);
    }
  }
  const std::string& name() const { return name_; }
  /// Read so far.
  uint64_t bytes() const { return bytes_; }
  /// The first bytes, up to sniffed_bytes. source() gives them, too.
  const std::string& head() const { return head_; }
  /// Whether it is a file, which positioned() reads at any position.
  bool has_positions() const { return start_ >= 0; }
  PositionedSource positioned() {
    bytes_ = 0;  // reads the head again
    return {
        .read =
            [this](uint64_t position, std::span<std::byte> to) {
              return read([&] { return ::pread(fd(), to.data(), to.size(), start_ + static_cast<off_t>(position)); });
            },
        .size = static_cast<uint64_t>(size_)};
  }
  ByteSource source() {
    return [this, at = size_t{0}](std::span<std::byte> to) mutable -> size_t {
      if (at == head_.size()) return read_next(to);
      const size_t n = head_.copy(reinterpret_cast<char*>(to.data()), to.size(), at);
      at += n;
      return n;
    };
  }

 private:
  int fd() const { return file_ ? file_.get() : STDIN_FILENO; }
  size_t read_next(std::span<std::byte> to) {
    return read([&] { return ::read(fd(), to.data(), to.size()); });
  }
  template <class Call>
  size_t read(Call&& call) {
    for (;;) {
      // A signal that is to stop the call ends the wait for a pipe that is silent.
      if (arrives_ && hooked_ != nullptr) wait_for(fd(), POLLIN, [this] { hooked_->check(); });
      const ssize_t n = call();
      if (n >= 0) {
        bytes_ += static_cast<uint64_t>(n);
        return static_cast<size_t>(n);
      }
      if (errno != EINTR) throw_errno(name_, "cannot read");
    }
  }

  std::string name_;
  Descriptor file_;
  const Hooked* hooked_;
  off_t start_ = -1, size_ = 0;  // of what a file has from here on
  bool arrives_;
  uint64_t bytes_ = 0;
  std::string head_;
};

/// The header of a .nacre stream with the same content, as far as an .ecdc file says it. It knows no model.
StreamHeader header_of(const EcdcHeader& h) {
  return {.model_rate = ecdc_models[0].sample_rate,
          .original_rate = ecdc_models[0].sample_rate,
          .samples = h.samples,
          .hop = ecdc_hop,
          .codebooks = h.codebooks,
          .codebook_size = ecdc_codebook_size};
}

/// Reads a .nacre stream or an .ecdc file. The first bytes decide. The error for other input names what the input is.
class CodesReader {
 public:
  /// positions: seek() skips bytes where that is possible.
  explicit CodesReader(Input& input, StreamReaderOptions options = {}, bool positions = false)
      : reader_(open(input, options, positions)) {
    const auto* ecdc = std::get_if<EcdcReader>(&reader_);
    header_ = ecdc != nullptr ? header_of(ecdc->header()) : std::get<StreamReader>(reader_).header();
  }
  StreamFormat format() const {
    return std::holds_alternative<EcdcReader>(reader_) ? StreamFormat::ecdc : StreamFormat::nacre;
  }
  const StreamHeader& header() const { return header_; }
  std::optional<StreamPacket> next() {
    std::optional<StreamPacket> packet = std::visit([](auto& reader) { return reader.next(); }, reader_);
    if (packet)
      frames_ = packet->first_frame + packet->frames;
    else
      finished_ = true;
    return packet;
  }
  /// Passes packets in front of this frame. Those of an .ecdc file are not passed: it has no positions.
  void seek(uint64_t frame) {
    if (auto* nacre = std::get_if<StreamReader>(&reader_)) nacre->seek(frame);
  }
  /// Per channel; the number of samples is valid once next() has returned nothing.
  uint64_t frames() const { return frames_; }
  uint64_t samples() const {
    const auto* nacre = std::get_if<StreamReader>(&reader_);
    return nacre != nullptr ? nacre->samples() : header_.samples;
  }
  bool finished() const { return finished_; }
  /// The reader of a .nacre stream, or null.
  const StreamReader* stream() const { return std::get_if<StreamReader>(&reader_); }

 private:
  using Reader = std::variant<StreamReader, EcdcReader>;
  static Reader open(Input& input, StreamReaderOptions options, bool positions) {
    const Thing thing = thing_of(input.head());
    if (thing == Thing::ecdc) return EcdcReader(input.source(), input.name());
    try {
      if (positions && input.has_positions()) return StreamReader(input.positioned(), input.name(), options);
      return StreamReader(input.source(), input.name(), options);
    } catch (const Error& e) {
      const std::string reason = mistaken(thing, Thing::stream);
      if (e.kind() != ErrorKind::input || reason.empty()) throw;
      throw Error(ErrorKind::input, input.name() + ": " + reason);
    }
  }

  Reader reader_;
  StreamHeader header_;
  uint64_t frames_ = 0;
  bool finished_ = false;
};

/// Writes a .nacre stream or an .ecdc file. The latter has of the header the length and the number of codebooks alone.
class CodesWriter {
 public:
  CodesWriter(StreamFormat format, const StreamHeader& h, const ByteSink& sink) : writer_(make(format, h, sink)) {}
  void write(uint32_t channel, std::span<const int32_t> codes) {
    if (auto* nacre = std::get_if<StreamWriter>(&writer_))
      nacre->write(channel, codes);
    else
      std::get<EcdcWriter>(writer_).write(codes);
  }
  /// Refuses channels that differ in length, and frames that do not hold the samples.
  void finish(uint64_t samples) {
    if (auto* nacre = std::get_if<StreamWriter>(&writer_))
      nacre->finish(samples);
    else
      std::get<EcdcWriter>(writer_).finish();
  }
  uint64_t bytes() const {
    return std::visit([](const auto& writer) { return writer.bytes(); }, writer_);
  }

 private:
  using Writer = std::variant<StreamWriter, EcdcWriter>;
  static Writer make(StreamFormat format, const StreamHeader& h, const ByteSink& sink) {
    if (format == StreamFormat::nacre) return StreamWriter(h, sink);
    return EcdcWriter({.samples = h.samples, .codebooks = h.codebooks}, sink);
  }
  Writer writer_;
};

std::string hexadecimal(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

/// Throws unless this model made the codes. An .ecdc file does not say which weights did.
void expect_model(StreamFormat format, const StreamHeader& h, const CodecConfig& c, uint64_t identity,
                  const std::string& name) {
  if (const std::string why = format == StreamFormat::ecdc ? not_for_ecdc(c) : ""; !why.empty())
    throw Error(ErrorKind::input, name + ": cannot be decoded by this model: " + why);
  if (format == StreamFormat::nacre && h.model != identity)
    throw Error(ErrorKind::input, name + ": was encoded by model " + hexadecimal(h.model) + ", this is model " +
                                      hexadecimal(identity) + "; decode it with the model that encoded it");
  const auto same = [&](const char* what, uint64_t found, int64_t expected) {
    if (found != static_cast<uint64_t>(expected))
      throw Error(ErrorKind::input, name + ": " + what + " is " + std::to_string(found) + ", the model's is " +
                                        std::to_string(expected));
  };
  // The identity covers the weights and not the configuration, so the header's numbers are compared, too.
  same("the model's sample rate", h.model_rate, c.sample_rate);
  same("the hop", h.hop, c.hop());
  // A stream may have the model's first codebooks only.
  if (h.codebooks > static_cast<uint64_t>(c.n_codebooks))
    throw Error(ErrorKind::input, name + ": the number of codebooks is " + std::to_string(h.codebooks) +
                                      ", expected 1 to " + std::to_string(c.n_codebooks) + ", the model's");
  same("the codebook size", h.codebook_size, c.codebook_size);
  for (const uint32_t rate : {h.model_rate, h.original_rate})
    if (rate < static_cast<uint32_t>(min_sample_rate) || rate > static_cast<uint32_t>(max_sample_rate))
      throw Error(ErrorKind::input, name + ": the sample rate is " + std::to_string(rate) + ", expected " +
                                        std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
}

/// The number of a stream's codebooks that decoding uses.
int64_t codebooks_of(const StreamHeader& h, const DecodeOptions& options, const std::string& name) {
  const int64_t there = h.codebooks;
  if (options.codebooks < 0 || options.codebooks > there)
    throw Error(ErrorKind::usage, name + ": has " + std::to_string(there) +
                                      (there == 1 ? " codebook, " : " codebooks, ") +
                                      std::to_string(options.codebooks) + " are to be decoded; expected 1" +
                                      (there > 1 ? " to " + std::to_string(there) : ""));
  const int64_t wanted = options.codebooks > 0 ? options.codebooks : there;
  return options.max_codebooks > 0 ? std::min(wanted, options.max_codebooks) : wanted;
}

/// Throws if a model or a file cannot be encoded as .ecdc.
void expect_ecdc(const CodecConfig& c, const AudioInfo& audio, const std::string& name) {
  if (const std::string why = not_for_ecdc(c); !why.empty())
    throw Error(ErrorKind::usage, "the model cannot write .ecdc files: " + why);
  if (audio.channels != 1)
    throw Error(ErrorKind::input, name + ": has " + std::to_string(audio.channels) +
                                      " channels, an .ecdc file of EnCodec's 24 kHz model has one; mix them to one "
                                      "before, or write a .nacre stream");
}

/// Throws Error(usage) for options of encoding that contradict each other, the input or the model.
void check_options(const CodecConfig& c, const std::string& audio, const EncodeOptions& options) {
  if (options.gain == 0) {
    if (options.block_frames != 0)
      throw Error(ErrorKind::usage, "--block has no effect without --gain or --no-normalise");
    return;
  }
  // The stream's gain is the reciprocal. Written so that NaN is refused, too.
  if (!(options.gain >= 0x1p-40f && options.gain <= 0x1p40f))
    throw Error(ErrorKind::usage, "the gain is " + std::to_string(options.gain) + ", expected 2^-40 to 2^40");
  if (options.format == StreamFormat::ecdc)
    throw Error(ErrorKind::usage, "an .ecdc file has no gain: its samples are coded as they are");
  if (options.block_frames != 0 && !arrives(audio))
    throw Error(ErrorKind::usage, audio + ": --block has no effect on a file; it is for standard input and pipes");
  if (arrives(audio) && c.needs_whole_signal())
    throw Error(ErrorKind::usage,
                "the model needs the whole signal before its first frame (codec.norm is group), so it "
                "cannot encode while the signal arrives; omit --gain and --no-normalise");
}

std::vector<float> channel_of(std::span<const float> interleaved, size_t channels, size_t channel, float gain) {
  std::vector<float> out(interleaved.size() / channels);
  for (size_t t = 0; t < out.size(); ++t) out[t] = gain * interleaved[t * channels + channel];
  return out;
}

/// Interleaves channels that arrive one after the other, scales them, and writes exactly the requested number of
/// samples.
class Interleaver {
 public:
  Interleaver(WavWriter& to, size_t channels, float gain) : to_(to), waiting_(channels), gain_(gain) {}
  std::vector<float>& channel(size_t c) { return waiting_[c]; }
  /// Writes the samples that all channels have, except the last `keep_back` ones, and none past `end`.
  void write(int64_t keep_back, int64_t end) {
    // Channels arrive packet by packet, so some are ahead of others.
    size_t ready = waiting_[0].size();
    for (const auto& w : waiting_) ready = std::min(ready, w.size());
    const int64_t n = std::min(static_cast<int64_t>(ready) - keep_back, end - written_);
    if (n <= 0) return;
    piece_.resize(static_cast<size_t>(n) * waiting_.size());
    for (size_t c = 0; c < waiting_.size(); ++c) {
      for (size_t t = 0; t < static_cast<size_t>(n); ++t) piece_[t * waiting_.size() + c] = gain_ * waiting_[c][t];
      waiting_[c].erase(waiting_[c].begin(), waiting_[c].begin() + n);
    }
    to_.write(piece_);
    written_ += n;
  }
  /// Writes the rest. Missing samples are silence.
  void finish(int64_t end) {
    for (auto& w : waiting_) {
      const auto lacking = static_cast<size_t>(std::max<int64_t>(0, end - written_));
      if (w.size() < lacking) w.resize(lacking, 0.0f);
    }
    write(0, end);
  }
  int64_t written() const { return written_; }

 private:
  WavWriter& to_;
  std::vector<std::vector<float>> waiting_;
  std::vector<float> piece_;
  float gain_;
  int64_t written_ = 0;
};

}  // namespace

// The identity is computed once: it hashes all weights.
FileCodec::FileCodec(Codec& codec) : codec_(codec), identity_(codec.identity()) {}

StreamHeader stream_header(const CodecConfig& c, uint64_t identity, int sample_rate, int channels, int64_t codebooks) {
  return {.model = identity,
          .model_rate = static_cast<uint32_t>(c.sample_rate),
          .original_rate = static_cast<uint32_t>(sample_rate),
          .channels = static_cast<uint32_t>(channels),
          .gain = 1,
          .samples = StreamHeader::unknown,
          .hop = static_cast<uint32_t>(c.hop()),
          .codebooks = static_cast<uint32_t>(c.codebooks_used("stream_header", codebooks)),
          .codebook_size = static_cast<uint32_t>(c.codebook_size),
          .packet_frames = 0};
}

uint64_t stream_bytes(const StreamHeader& wanted, uint64_t frames) {
  const StreamWriter writer(wanted, [](std::span<const std::byte>) {});  // determines packet_frames
  const StreamHeader& h = writer.header();
  const auto payload = [&](uint64_t n) {
    // 12 bytes of head and 4 of CRC. The closing packet below has 28 and 4.
    return n == 0 ? 0 : 16 + (n * h.codebooks * static_cast<uint64_t>(code_bits(h)) + 7) / 8;
  };
  const uint64_t whole = frames / h.packet_frames;
  return writer.bytes() + 32 + h.channels * (whole * payload(h.packet_frames) + payload(frames % h.packet_frames));
}

FileReport FileCodec::encode(const std::string& audio, const std::string& stream, const FileHooks& hooks,
                             const EncodeOptions& options) {
  const auto start = Clock::now();
  const int64_t codebooks = codec_.config().codebooks_used("encode", options.codebooks);
  Hooked hooked(hooks);
  check_options(codec_.config(), audio, options);
  if (options.gain > 0 && arrives(audio)) return encode_live(codec_, identity_, audio, stream, hooked, options);
  AudioReader reader(audio, options.audio);
  const int rate = reader.info().sample_rate, channels = reader.info().channels;
  const int model_rate = static_cast<int>(codec_.config().sample_rate);
  const auto width = static_cast<size_t>(channels);
  const bool ecdc = options.format == StreamFormat::ecdc;
  if (ecdc) expect_ecdc(codec_.config(), reader.info(), reader.name());
  // The header needs the peak and the length. The file is therefore read twice.
  float peak = 0;
  int64_t samples = 0;
  std::vector<float> piece;
  while (reader.read(piece_frames, piece) > 0) {
    hooked.check();
    peak = std::max(peak, peak_of(piece));
    samples += static_cast<int64_t>(piece.size() / width);
  }
  reader.rewind();
  const double total = static_cast<double>(samples) / rate;
  // One gain for all channels, so that their balance is kept. Silence is not amplified, and the stream's gain makes
  // what a model gives for silence inaudible. An .ecdc file has no gain, so its samples are coded as they are.
  const float scale = options.gain > 0 ? options.gain : ecdc ? 1 : peak_gain(peak);
  StreamHeader header = stream_header(codec_.config(), identity_, rate, channels, codebooks);
  header.gain = options.gain <= 0 && peak < silence_peak ? silent_gain : 1 / scale;
  // The length in an .ecdc file is that at the model's rate.
  header.samples = static_cast<uint64_t>(ecdc ? resampled_frames(samples, rate, model_rate) : samples);

  hooked.output_begins();
  // The name appears with commit(). If anything below throws, no output remains.
  OutputFile file(stream);
  CodesWriter writer(options.format, header, [&](std::span<const std::byte> bytes) {
    if (!write_all(file.fd(), bytes.data(), bytes.size())) throw_errno(stream, "cannot write");
  });
  std::vector<WindowedEncoder> encoders;
  std::vector<Resampler> resamplers;
  for (uint32_t c = 0; c < header.channels; ++c) {
    encoders.emplace_back(
        codec_,
        [&writer, c](View<const int32_t> codes, float) {
          writer.write(c, {codes.data, static_cast<size_t>(codes.elements())});
        },
        0, codebooks);
    resamplers.emplace_back(rate, model_rate);
  }
  std::vector<float> ready;
  int64_t done = 0;
  while (reader.read(piece_frames, piece) > 0) {
    for (size_t c = 0; c < width; ++c) {
      ready.clear();
      resamplers[c].process(channel_of(piece, width, c, scale), ready);
      encoders[c].push(ready);
      hooked.check();
    }
    done += static_cast<int64_t>(piece.size() / width);
    hooked.at(static_cast<double>(done) / rate, total);
  }
  // The header with the length is written already, and the gain is that of the first reading.
  if (done != samples)
    throw Error(ErrorKind::input, audio + ": changed while it was read: " + std::to_string(samples) + " frames, then " +
                                      std::to_string(done));
  for (size_t c = 0; c < width; ++c) {
    ready.clear();
    resamplers[c].finish(ready);
    encoders[c].push(ready);
    encoders[c].finish();
    hooked.check();
  }
  writer.finish(header.samples);
  file.commit();
  return {.seconds = total,
          .wall_seconds = std::chrono::duration<double>(Clock::now() - start).count(),
          .bytes = writer.bytes(),
          .codebooks = codebooks,
          .channels = channels,
          .sample_rate = rate,
          .samples = samples,
          .warnings = reader.warnings()};
}

FileReport FileCodec::decode(const std::string& stream, const std::string& audio, const DecodeOptions& options,
                             const FileHooks& hooks) {
  const auto start = Clock::now();
  Hooked hooked(hooks);
  Input input(stream, &hooked);
  CodesReader reader(input, {.recover = options.conceal}, options.from > 0 && !options.conceal);
  const StreamHeader h = reader.header();
  expect_model(reader.format(), h, codec_.config(), identity_, input.name());
  const int64_t codebooks = codebooks_of(h, options, input.name());
  const auto with_hint = [&](const auto& read) {
    try {
      return read();
    } catch (const Error& e) {
      if (options.conceal || e.kind() != ErrorKind::input || reader.stream() == nullptr) throw;
      throw Error(ErrorKind::input, std::string(e.what()) + "; --conceal decodes the rest");
    }
  };
  const bool whole = options.from == 0 && !options.to && !options.conceal;
  if (stream == "-" && audio == "-" && reader.format() == StreamFormat::nacre && whole &&
      can_decode_live(codec_.config(), h, options))
    return decode_live(codec_,
                       {.header = h,
                        .name = input.name(),
                        .next = [&] { return with_hint([&] { return reader.next(); }); },
                        .samples = [&] { return reader.samples(); },
                        .bytes = [&] { return input.bytes(); }},
                       codebooks, options, hooked);
  const int model_rate = static_cast<int>(h.model_rate), original = static_cast<int>(h.original_rate);
  const int rate = options.model_rate ? model_rate : original;
  // `wanted`, `total`, `end` and `keep_back` count output samples per channel.
  const auto wanted = [&](uint64_t samples) { return resampled_frames(static_cast<int64_t>(samples), original, rate); };
  const bool known = h.samples != StreamHeader::unknown;
  int64_t total = known ? wanted(h.samples) : Section::open;
  const Section section = section_of(codec_.config(), h, rate, options);
  expect_within(section, options, total, rate, input.name());
  const int64_t end = std::min(section.end, total);
  // If the length is known only at the end of the stream, as many samples are held back as the frames may exceed it.
  const int64_t keep_back = known && !options.conceal ? 0 : resampled_frames(int64_t{5} * h.hop + 64, model_rate, rate);

  hooked.output_begins();
  WavWriter writer(audio, rate, static_cast<int>(h.channels), options.format,
                   end == Section::open ? std::nullopt : std::optional(end - section.first));
  Interleaver out(writer, h.channels, h.gain);
  std::deque<ChannelDecoder> channels;
  for (uint32_t c = 0; c < h.channels; ++c)
    channels.emplace_back(codec_, h, section, rate, codebooks, options.conceal, out.channel(c));
  LossAccount losses;
  // Concealment needs the packets in front of a part, for what is heard of them in it.
  if (!options.conceal) with_hint([&] { reader.seek(static_cast<uint64_t>(section.frame_first)); });
  int64_t frames = 0;
  while (frames < section.frames_read) {
    const std::optional<StreamPacket> packet = with_hint([&] { return reader.next(); });
    if (!packet) break;
    channels[packet->group].push(*packet);
    losses.add(*packet);
    // Samples can be written only when every channel has its packet of this stretch.
    if (packet->group + 1 != h.channels) {
      hooked.check();
      continue;
    }
    frames = static_cast<int64_t>(packet->first_frame + packet->frames);
    out.write(keep_back, end - section.first);
    hooked.at(static_cast<double>(frames) * h.hop / model_rate, known ? static_cast<double>(h.samples) / original : 0);
  }
  for (ChannelDecoder& channel : channels) {
    // The decoder's last window, then the resampler's tail.
    channel.finish();
    hooked.check();
  }
  if (reader.finished()) {
    total = wanted(reader.samples());
    expect_within(section, options, total, rate, input.name());
  }
  const int64_t length = std::min(section.end, total) - section.first;
  // Only if the frames exceed the length by more than keep_back. The output has no name yet, so nothing wrong remains.
  if (out.written() > length)
    throw Error(ErrorKind::input, input.name() + ": has more frames than its length of " +
                                      std::to_string(reader.samples()) + " samples needs");
  out.finish(length);
  const int64_t clipped = writer.commit();
  FileReport report{.seconds = static_cast<double>(length) / rate,
                    .wall_seconds = std::chrono::duration<double>(Clock::now() - start).count(),
                    .bytes = input.bytes(),
                    .codebooks = codebooks,
                    .channels = static_cast<int>(h.channels),
                    .sample_rate = rate,
                    .samples = length,
                    .clipped = clipped};
  if (options.conceal && reader.stream() != nullptr) {
    const double from = static_cast<double>(section.first) / rate;
    LossAccount::Lost lost = losses.within(from, from + report.seconds, h);
    report.warnings = loss_warnings(lost, *reader.stream());
    report.lost = std::move(lost.seconds), report.lost_frames = lost.frames;
  }
  return report;
}

StreamFacts check_stream(const std::string& path) {
  Input input(path, nullptr);
  CodesReader reader(input);
  while (reader.next()) {
  }
  return {.format = reader.format(),
          .header = reader.header(),
          .frames = reader.frames(),
          .samples = reader.samples(),
          .bytes = input.bytes()};
}

std::string not_for_ecdc(const CodecConfig& c) {
  const auto differs = [](const char* key, const std::string& value, const std::string& expected) {
    return "codec." + std::string(key) + " is " + value + ", EnCodec's 24 kHz model has " + expected;
  };
  if (c.network != "encodec") return differs("network", c.network, "encodec");
  if (c.sample_rate != ecdc_models[0].sample_rate)
    return differs("sample_rate", std::to_string(c.sample_rate), std::to_string(ecdc_models[0].sample_rate));
  if (c.hop() != ecdc_hop)
    return "the hop is " + std::to_string(c.hop()) + " samples, EnCodec's 24 kHz model has " + std::to_string(ecdc_hop);
  if (c.codebook_size != ecdc_codebook_size)
    return differs("codebook_size", std::to_string(c.codebook_size), std::to_string(ecdc_codebook_size));
  if (c.n_codebooks > ecdc_models[0].max_codebooks)
    return differs("n_codebooks", std::to_string(c.n_codebooks), std::to_string(ecdc_models[0].max_codebooks));
  return "";
}

}  // namespace nacre::training
