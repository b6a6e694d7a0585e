// Coding while the signal arrives, without a spool file and without knowing the length.
// encode_live(): LiveReader gives what has arrived, at most 20 ms at once. Each group of channels has a resampler and
// an encoder. StreamWriter writes a stretch when every group has its packet. decode_live(): each packet goes through
// its group's decoder and resampler into an Interleaver, which gives the samples that all channels have.
// Waiting for input and output is in wait_for(), which calls Hooked::check(), so a signal ends it.
#include "coding/live.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <limits>
#include <variant>

#include "coding/group_decoder.h"
#include "coding/groups.h"
#include "data/arriving.h"
#include "files/files.h"
#include "nacre/codec/streaming.h"
#include "nacre/codec/windowed.h"

namespace nacre::training {
namespace {

using Clock = std::chrono::steady_clock;

/// Bytes that a pipe takes without waiting once it can be written (PIPE_BUF on Linux).
constexpr size_t written_at_once = 4096;

/// Writes to standard output, a pipe or a device at once, and to a file that gets its name with commit().
class LiveOutput {
 public:
  LiveOutput(const std::string& path, const Hooked& hooked)
      : name_(path == "-" ? "standard output" : path), hooked_(hooked) {
    struct stat status {};
    // A folder goes to OutputFile, which refuses it.
    const bool there = path != "-" && ::stat(path.c_str(), &status) == 0;
    if (path == "-") {
      fd_ = STDOUT_FILENO;
    } else if (there && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
      do {
        // Opening a pipe waits for a reader. A signal interrupts the wait, and check() then throws.
        hooked_.check();
        place_ = Descriptor(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      } while (!place_ && errno == EINTR);
      if (!place_) throw_errno(path, "cannot open");
      fd_ = place_.get();
    } else {
      file_.emplace(path);
      fd_ = file_->fd();
    }
  }
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      // write() of more bytes than have room would wait where no signal is looked at.
      wait_for(fd_, POLLOUT, [this] { hooked_.check(); });
      const ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), written_at_once));
      if (n < 0 && errno != EINTR && errno != EAGAIN) throw_errno(name_, "cannot write");
      if (n > 0) bytes = bytes.subspan(static_cast<size_t>(n));
    }
  }
  void commit() {
    if (file_) file_->commit();
    // Standard output stays open.
    if (place_ && ::close(place_.release()) != 0) throw_errno(name_, "cannot close");
  }

 private:
  std::string name_;
  const Hooked& hooked_;
  std::optional<OutputFile> file_;
  Descriptor place_;  // a pipe or a device
  int fd_ = -1;       // of file_, of place_ or of standard output
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Interleaves channels, scales them, and writes them as WAV up to a number of frames.
class LiveWav {
 public:
  // The header is written at once. Without a length its sizes are 0xFFFFFFFF.
  LiveWav(LiveOutput& to, const StreamHeader& h, int rate, WavFormat format, std::optional<int64_t> frames)
      : to_(to), waiting_(h), format_(format), end_(frames.value_or(std::numeric_limits<int64_t>::max())) {
    const std::string header = wav_header(rate, static_cast<int>(h.channels), format, frames);
    to_.write(std::as_bytes(std::span(header)));
  }
  std::vector<float>& group(uint32_t g) { return waiting_.group(g); }
  int64_t written() const { return waiting_.taken(); }
  int64_t clipped() const { return clipped_; }
  /// Writes the samples that all channels have, except the last `keep_back` ones.
  void write(int64_t keep_back) { put(waiting_.take(keep_back, end_)); }
  /// Writes the rest up to `end` frames. Missing samples are silence.
  void finish(int64_t end) { put(waiting_.finish(end)); }

 private:
  void put(std::span<const float> samples) {
    if (samples.empty()) return;
    bytes_.clear();
    for (const float x : samples) put(x);
    to_.write(bytes_);
  }
  void put(float x) {
    if (!std::isfinite(x)) throw Error(ErrorKind::usage, "standard output: a sample to write is not finite");
    // Little-endian, as everything in a WAV file.
    const bool pcm = format_ == WavFormat::pcm16;
    const uint32_t bits = pcm ? static_cast<uint16_t>(to_pcm16(x, clipped_)) : std::bit_cast<uint32_t>(x);
    for (int i = 0; i < (pcm ? 2 : 4); ++i) bytes_.push_back(static_cast<std::byte>(bits >> (8 * i) & 255));
  }

  LiveOutput& to_;
  Interleaver waiting_;
  std::vector<std::byte> bytes_;
  WavFormat format_;
  int64_t end_, clipped_ = 0;
};

/// The longest block that packets consist of, up to the usual window. No frame then waits for another packet, and
/// memory and time do not grow with a packet that the signal does not fill.
int64_t block_of(const CodecConfig& c, const StreamHeader& h) {
  int64_t block = std::min<int64_t>(h.packet_frames, default_window_frames(c));
  // Ends at 1 at the latest.
  while (h.packet_frames % block != 0) --block;
  return block;
}

/// Coders of one group. Segments are coded as wholes, each when it is complete.
using LiveEncoder = std::variant<StreamingEncoder, WindowedEncoder>;
using LiveDecoder = std::variant<StreamingDecoder, WindowedDecoder>;

LiveEncoder live_encoder(Codec& codec, const StreamHeader& h, WindowedEncoder::Sink sink, int64_t codebooks) {
  if (h.segment != 0) return WindowedEncoder(codec, std::move(sink), 0, codebooks);
  return StreamingEncoder(codec, [sink = std::move(sink)](View<const int32_t> codes) { sink(codes, 1); },
                          {.block_frames = block_of(codec.config(), h), .codebooks = codebooks});
}
LiveDecoder live_decoder(Codec& codec, const StreamHeader& h, StreamingDecoder::Sink sink, int64_t codebooks) {
  if (h.segment != 0) return WindowedDecoder(codec, std::move(sink), 0, codebooks);
  return StreamingDecoder(codec, std::move(sink),
                          {.block_frames = block_of(codec.config(), h), .codebooks = codebooks});
}
void push(LiveDecoder& decoder, std::span<const int32_t> codes, float scale) {
  if (auto* windowed = std::get_if<WindowedDecoder>(&decoder))
    windowed->push(codes, scale);
  else
    std::get<StreamingDecoder>(decoder).push(codes);
}

}  // namespace

bool arrives(const std::string& path) {
  struct stat status {};
  return path == "-" || (::stat(path.c_str(), &status) == 0 && S_ISFIFO(status.st_mode));
}

FileReport encode_live(Codec& codec, uint64_t identity, const std::string& audio, const std::string& stream,
                       Hooked& hooked, const EncodeOptions& options) {
  const auto start = Clock::now();
  const CodecConfig& config = codec.config();
  LiveReader reader(audio, options.audio, [&] { hooked.check(); });
  const int rate = reader.info().sample_rate, channels = reader.info().channels;
  const int model_rate = static_cast<int>(config.sample_rate);
  StreamHeader header = stream_header(config, identity, rate, channels, options.codebooks);
  header.gain = 1 / options.gain;
  // With salvage, the declared length may not come.
  if (reader.info().frames_known && !options.audio.salvage)
    header.samples = static_cast<uint64_t>(reader.info().frames);
  if (!config.segmented()) header.packet_frames = static_cast<uint32_t>(std::max<int64_t>(1, options.block_frames));

  hooked.output_begins();
  LiveOutput output(stream, hooked);
  StreamWriter writer(header, [&](std::span<const std::byte> bytes) { output.write(bytes); });
  // Their sinks refer to `writer`, which outlives them.
  std::vector<LiveEncoder> encoders;
  std::vector<Resampler> resamplers;
  for (uint32_t g = 0; g < header.groups(); ++g) {
    encoders.push_back(live_encoder(
        codec, header,
        [&writer, g](View<const int32_t> codes, float scale) {
          writer.write(g, {codes.data, static_cast<size_t>(codes.elements())}, scale);
        },
        options.codebooks));
    resamplers.emplace_back(rate, model_rate, static_cast<int>(header.joint));
  }
  const auto push_to = [&](uint32_t g, std::span<const float> samples) {
    std::visit([&](auto& encoder) { encoder.push(samples); }, encoders[g]);
  };
  // At most 20 ms at once, so that a long piece that is already there does not delay the first packets.
  const int64_t most = std::max(1, rate / 50);
  const auto width = static_cast<size_t>(channels);
  std::vector<float> piece, ready;
  int64_t samples = 0;
  while (const int64_t n = reader.read(most, piece)) {
    // All groups get the same number of samples, so they complete their frames in the same round, and no packet waits
    // long in the writer.
    for (uint32_t g = 0; g < header.groups(); ++g) {
      ready.clear();
      resamplers[g].process(signals_of(piece, width, group_of(header, g), header.joint, options.gain), ready);
      push_to(g, ready);
      hooked.check();
    }
    samples += n;
  }
  for (uint32_t g = 0; g < header.groups(); ++g) {
    ready.clear();
    // First the resampler's tail, then the encoder's last frames, which its padding completes.
    resamplers[g].finish(ready);
    push_to(g, ready);
    std::visit([](auto& encoder) { encoder.finish(); }, encoders[g]);
    hooked.check();
  }
  writer.finish(static_cast<uint64_t>(samples));
  output.commit();
  // After commit(): the stream is complete, and what follows the samples is of no interest to it.
  reader.drain();
  return {.seconds = static_cast<double>(samples) / rate,
          .wall_seconds = seconds_since(start),
          .bytes = writer.bytes(),
          .codebooks = config.codebooks_of(header.codebooks),
          .channels = channels,
          .sample_rate = rate,
          .samples = samples,
          .warnings = reader.warnings()};
}

bool can_decode_live(const CodecConfig& c, const StreamHeader& h, const DecodeOptions& options) {
  if (c.needs_whole_signal() && !c.segmented()) return false;
  if (h.samples == StreamHeader::unknown) return true;
  // The header is written before the first sample, so a length beyond RIFF's sizes cannot be corrected later.
  const auto rate = static_cast<int>(options.model_rate ? h.model_rate : h.original_rate);
  return fits_wav(resampled_frames(static_cast<int64_t>(h.samples), static_cast<int>(h.original_rate), rate),
                  static_cast<int>(h.channels), options.format);
}

FileReport decode_live(Codec& codec, const ArrivingStream& stream, int64_t codebooks, const DecodeOptions& options,
                       Hooked& hooked) {
  const auto start = Clock::now();
  const StreamHeader& h = stream.header;
  const int model_rate = static_cast<int>(h.model_rate), original = static_cast<int>(h.original_rate);
  const int rate = options.model_rate ? model_rate : original;
  const auto wanted = [&](uint64_t samples) { return resampled_frames(static_cast<int64_t>(samples), original, rate); };
  const bool known = h.samples != StreamHeader::unknown;
  hooked.output_begins();
  LiveOutput output("-", hooked);
  LiveWav out(output, h, rate, options.format, known ? std::optional(wanted(h.samples)) : std::nullopt);
  std::vector<Resampler> resamplers;
  std::vector<LiveDecoder> decoders;
  std::vector<float> mixed;
  resamplers.reserve(h.groups());  // prevents reallocation, because the decoders below keep references
  for (uint32_t g = 0; g < h.groups(); ++g) {
    const size_t joint = h.joint, count = group_of(h, g).count;
    Resampler& resampler = resamplers.emplace_back(model_rate, rate, static_cast<int>(count));
    decoders.push_back(live_decoder(
        codec, h,
        [&out, &resampler, &mixed, g, joint, count](std::span<const float> samples) {
          resampler.process(channels_of(samples, joint, count, mixed), out.group(g));
        },
        codebooks));
  }
  // How far the frames of a live encoder may exceed the length: it pads the last frame by at most hop - 1 samples at
  // the model's rate. The decoder's lookahead keeps back a part of that or all. With resampling, each of the two
  // roundings adds at most half a sample, and the resampler one.
  int64_t keep_back = 0;
  if (!known) {
    const auto* streaming = std::get_if<StreamingDecoder>(&decoders.front());
    const int64_t lookahead = streaming != nullptr ? streaming->latency().lookahead : 0;
    const int64_t padding = std::max<int64_t>(0, h.hop - 1 - lookahead);
    keep_back = rate == model_rate ? padding : ((padding + 1) * rate + model_rate - 1) / model_rate + 2;
  }
  const int64_t there = codec.config().codebooks_of(h.codebooks);
  std::vector<int32_t> codes;
  while (const std::optional<StreamPacket> packet = stream.next()) {
    first_codebooks(codec.config(), packet->codes, there, codebooks, codes);
    // The decoder calls the sink above, which resamples into the group's waiting samples.
    push(decoders[packet->group], codes, packet->scale);
    // The last group of the stretch: all channels have it now.
    if (packet->group + 1 == h.groups()) out.write(keep_back);
    hooked.check();
  }
  for (uint32_t g = 0; g < h.groups(); ++g) {
    std::visit([](auto& decoder) { decoder.finish(); }, decoders[g]);
    resamplers[g].finish(out.group(g));
    hooked.check();
  }
  const int64_t length = wanted(stream.samples());
  // What was written cannot be taken back. Only a stream with more padding than a live encoder makes comes here.
  if (out.written() > length)
    throw Error(ErrorKind::input, stream.name + ": has more frames than its length of " +
                                      std::to_string(stream.samples()) + " samples needs; " +
                                      std::to_string(out.written() - length) + " samples too many were written");
  out.finish(length);
  output.commit();
  return {.seconds = static_cast<double>(length) / rate,
          .wall_seconds = seconds_since(start),
          .bytes = stream.bytes(),
          .codebooks = codebooks,
          .channels = static_cast<int>(h.channels),
          .sample_rate = rate,
          .samples = length,
          .clipped = out.clipped()};
}

}  // namespace nacre::training
