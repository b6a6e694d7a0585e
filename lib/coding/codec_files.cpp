// Files to streams and back. FileCodec::encode() reads a file twice (peak and length, then samples), and decode() reads
// a stream once. Both work piece by piece in bounded memory and write under a
// temporary name. live.cpp has the way of a signal that arrives.
// encode: AudioReader, then per group of channels signals_of (choice of channels, gain), Resampler, WindowedEncoder,
// and together CodesWriter. decode: CodesReader, then per group GroupDecoder (concealment, WindowedDecoder, Resampler),
// and together Interleaver (gain) and WavWriter.
#include "nacre/coding/codec_files.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <optional>

#include "coding/codes_files.h"
#include "coding/group_decoder.h"
#include "coding/groups.h"
#include "coding/live.h"
#include "files/files.h"
#include "files/stream_layout.h"
#include "nacre/codec/windowed.h"
#include "nacre/files/ecdc.h"

namespace nacre::training {
namespace {

// A third of a second at 48 kHz: the granularity of progress and of stopping.
constexpr int64_t piece_frames = 1 << 14;
/// The smallest gain that a stream can hold. With it, any output of a model for silence is far below one 16-bit step.
constexpr float silent_gain = 0x1p-40f;

using Clock = std::chrono::steady_clock;

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
  if (c.two_rates() && c.codebooks_of(h.codebooks) == 0)
    throw Error(ErrorKind::input, name + ": has " + std::to_string(h.codebooks) + " codes per frame, the model " +
                                      std::to_string(c.codes_per_frame()) + " or those of fewer codebooks");
  if (h.codebooks > static_cast<uint64_t>(c.codes_per_frame()))
    throw Error(ErrorKind::input, name + ": the number of codebooks is " + std::to_string(h.codebooks) +
                                      ", expected 1 to " + std::to_string(c.n_codebooks) + ", the model's");
  same("the codebook size", h.codebook_size, c.codebook_size);
  same("the number of channels coded together", h.joint, c.audio_channels);
  same("the length of a segment", h.segment, c.segment);
  same("the distance of segments", h.stride, c.segment_stride);
  if (h.scaled != c.segment_scale)
    throw Error(ErrorKind::input, name + ": has " + (h.scaled ? "" : "no ") + "scales of segments, the model has " +
                                      (c.segment_scale ? "some" : "none"));
  for (const uint32_t rate : {h.model_rate, h.original_rate})
    if (rate < static_cast<uint32_t>(min_sample_rate) || rate > static_cast<uint32_t>(max_sample_rate))
      throw Error(ErrorKind::input, name + ": the sample rate is " + std::to_string(rate) + ", expected " +
                                        std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
}

/// The number of a stream's codebooks that decoding uses.
int64_t codebooks_of(const CodecConfig& c, const StreamHeader& h, const DecodeOptions& options,
                     const std::string& name) {
  const int64_t there = c.codebooks_of(h.codebooks);
  if (options.codebooks < 0 || options.codebooks > there)
    throw Error(ErrorKind::usage, name + ": has " + std::to_string(there) +
                                      (there == 1 ? " codebook, " : " codebooks, ") +
                                      std::to_string(options.codebooks) + " are to be decoded; expected 1" +
                                      (there > 1 ? " to " + std::to_string(there) : ""));
  // `codebooks` must be there. `max_codebooks` is a limit that a stream with fewer meets anyway.
  const int64_t wanted = options.codebooks > 0 ? options.codebooks : there;
  return options.max_codebooks > 0 ? std::min(wanted, options.max_codebooks) : wanted;
}

/// Throws if a model or a file cannot be encoded as .ecdc.
void expect_ecdc(const CodecConfig& c, const AudioInfo& audio, const std::string& name) {
  if (const std::string why = not_for_ecdc(c); !why.empty())
    throw Error(ErrorKind::usage, "the model cannot write .ecdc files: " + why);
  if (c.audio_channels == 2 && audio.channels > 2)
    throw Error(ErrorKind::input, name + ": has " + std::to_string(audio.channels) +
                                      " channels, an .ecdc file of EnCodec's 48 kHz model has two; mix them to two "
                                      "before, or write a .nacre stream");
  if (c.audio_channels == 1 && audio.channels != 1)
    throw Error(ErrorKind::input, name + ": has " + std::to_string(audio.channels) +
                                      " channels, an .ecdc file of EnCodec's 24 kHz model has one; mix them to one "
                                      "before, or write a .nacre stream");
}

/// Throws Error(usage) for options of encoding that contradict each other, the input or the model.
void check_options(const CodecConfig& c, const std::string& audio, const EncodeOptions& options) {
  // 0 chooses the gain by the peak, which needs the whole file first. So nothing is coded live, and a pipe is spooled.
  if (options.gain == 0) {
    if (options.block_frames != 0)
      throw Error(ErrorKind::usage, "--block has no effect without --gain or --no-normalise");
    return;
  }
  // The stream's gain is the reciprocal. Written so that NaN is refused, too.
  if (!(options.gain >= 0x1p-40f && options.gain <= 0x1p40f))
    throw Error(ErrorKind::usage, "the gain is " + std::to_string(options.gain) + ", expected 2^-40 to 2^40");
  // The gain of a .nacre stream undoes this one in the decoder.
  if (options.format == StreamFormat::ecdc)
    throw Error(ErrorKind::usage, "an .ecdc file has no gain: its samples are coded as they are");
  if (options.block_frames != 0 && !arrives(audio))
    throw Error(ErrorKind::usage, audio + ": --block has no effect on a file; it is for standard input and pipes");
  if (options.block_frames != 0 && c.segmented())
    throw Error(ErrorKind::usage, "--block has no effect for this model: its packets are segments of " +
                                      std::to_string(c.segment) + " samples");
  if (arrives(audio) && c.needs_whole_signal() && !c.segmented())
    throw Error(ErrorKind::usage,
                "the model needs the whole signal before its first frame (codec.norm is group), so it "
                "cannot encode while the signal arrives; omit --gain and --no-normalise");
}

}  // namespace

// The identity is computed once: it hashes all weights.
FileCodec::FileCodec(Codec& codec) : codec_(codec), identity_(codec.identity()) {}

StreamHeader stream_header(const CodecConfig& c, uint64_t identity, int sample_rate, int channels, int64_t codebooks) {
  return {.model = identity,
          .model_rate = static_cast<uint32_t>(c.sample_rate),
          .original_rate = static_cast<uint32_t>(sample_rate),
          .channels = static_cast<uint32_t>(channels),
          .joint = static_cast<uint32_t>(c.audio_channels),
          .gain = 1,
          .samples = StreamHeader::unknown,
          .hop = static_cast<uint32_t>(c.hop()),
          .codebooks = static_cast<uint32_t>(c.codes_per_frame(c.codebooks_used("stream_header", codebooks))),
          .codebook_size = static_cast<uint32_t>(c.codebook_size),
          .packet_frames = static_cast<uint32_t>(c.frames_of(c.segment)),
          .segment = static_cast<uint32_t>(c.segment),
          .stride = static_cast<uint32_t>(c.segment_stride),
          .scaled = c.segment_scale};
}

uint64_t stream_bytes(const StreamHeader& wanted, uint64_t frames) {
  const StreamWriter writer(wanted, [](std::span<const std::byte>) {});  // determines packet_frames
  const StreamHeader& h = writer.header();
  const auto packet = [&](uint64_t n) { return n == 0 ? 0 : stream_layout::packet_bytes(h, n); };
  // Of each group: whole packets and one with the rest. An empty packet does not exist.
  const uint64_t whole = frames / h.packet_frames, rest = frames % h.packet_frames;
  uint64_t of_group = whole * packet(h.packet_frames) + packet(rest);
  if (h.segment != 0 && whole > 0 && rest > 0) {
    // The segment before the last one may be shorter.
    const auto samples = h.samples == StreamHeader::unknown
                             ? static_cast<uint64_t>(stream_layout::end_of_frames(h, frames))
                             : stream_layout::at_model_rate(h, h.samples);
    of_group -= packet(h.packet_frames) - packet(stream_layout::segment_frames(h, samples, whole - 1));
  }
  return writer.bytes() + stream_layout::closing_bytes + stream_layout::crc_bytes + h.groups() * of_group;
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
  // Writes the header at once, so gain and length must be known here.
  CodesWriter writer(options.format, header, [&](std::span<const std::byte> bytes) {
    if (!write_all(file.fd(), bytes.data(), bytes.size())) throw_errno(stream, "cannot write");
  });
  std::vector<WindowedEncoder> encoders;
  std::vector<Resampler> resamplers;
  for (uint32_t g = 0; g < header.groups(); ++g) {
    // The sink keeps a reference to `writer`, which is declared before the encoders and so outlives them. 0: the
    // default window.
    encoders.emplace_back(
        codec_,
        [&writer, g](View<const int32_t> codes, float level) {
          writer.write(g, {codes.data, static_cast<size_t>(codes.elements())}, level);
        },
        0, codebooks);
    resamplers.emplace_back(rate, model_rate, static_cast<int>(header.joint));
  }
  std::vector<float> ready;
  int64_t done = 0;
  while (reader.read(piece_frames, piece) > 0) {
    for (uint32_t g = 0; g < header.groups(); ++g) {
      ready.clear();
      resamplers[g].process(signals_of(piece, width, group_of(header, g), header.joint, scale), ready);
      encoders[g].push(ready);
      hooked.check();
    }
    done += static_cast<int64_t>(piece.size() / width);
    hooked.at(static_cast<double>(done) / rate, total);
  }
  // The header with the length is written already, and the gain is that of the first reading.
  if (done != samples)
    throw Error(ErrorKind::input, audio + ": changed while it was read: " + std::to_string(samples) + " frames, then " +
                                      std::to_string(done));
  for (size_t g = 0; g < encoders.size(); ++g) {
    ready.clear();
    resamplers[g].finish(ready);
    encoders[g].push(ready);
    encoders[g].finish();
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
  const int64_t codebooks = codebooks_of(codec_.config(), h, options, input.name());
  // Errors of a damaged .nacre stream, read without concealment, name the option that would decode the rest.
  const auto with_hint = [&](const auto& read) {
    try {
      return read();
    } catch (const Error& e) {
      if (options.conceal || e.kind() != ErrorKind::input || reader.stream() == nullptr) throw;
      throw Error(ErrorKind::input, std::string(e.what()) + "; --conceal decodes the rest");
    }
  };
  // Live decoding writes samples that it cannot take back, so it is only for what needs neither a part nor repair.
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
  // A length in the header shows here that the stream is too short. Otherwise the end of the stream does, below.
  const Section section = section_of(codec_.config(), h, rate, options);
  expect_within(section, options, total, rate, input.name());
  const int64_t end = std::min(section.end, total);
  // If the length is known only at the end of the stream, as many samples are held back as the frames may exceed it.
  const int64_t keep_back = known && !options.conceal ? 0 : resampled_frames(int64_t{5} * h.hop + 64, model_rate, rate);

  hooked.output_begins();
  WavWriter writer(audio, rate, static_cast<int>(h.channels), options.format,
                   end == Section::open ? std::nullopt : std::optional(end - section.first));
  Interleaver out(h);
  // A deque never moves its elements: the decoder inside holds a pointer to its GroupDecoder.
  std::deque<GroupDecoder> groups;
  for (uint32_t g = 0; g < h.groups(); ++g)
    groups.emplace_back(codec_, h, section, group_of(h, g).count, rate, codebooks, options.conceal, out.group(g));
  LossAccount losses;
  // Concealment needs the packets in front of a part, for what is heard of them in it.
  if (!options.conceal) with_hint([&] { reader.seek(static_cast<uint64_t>(section.frame_first)); });
  int64_t frames = 0;
  while (frames < section.frames_read) {
    const std::optional<StreamPacket> packet = with_hint([&] { return reader.next(); });
    // The end of the stream, before the end of the section.
    if (!packet) break;
    // The group decodes what its window permits and appends the samples to its part of `out`.
    groups[packet->group].push(*packet);
    losses.add(*packet);
    // Samples can be written only when every group has its packet of this stretch.
    if (packet->group + 1 != h.groups()) {
      hooked.check();
      continue;
    }
    frames = static_cast<int64_t>(packet->first_frame + packet->frames);
    writer.write(out.take(keep_back, end - section.first));
    hooked.at(static_cast<double>(first_sample(h, static_cast<uint64_t>(frames))) / model_rate,
              known ? static_cast<double>(h.samples) / original : 0);
  }
  for (GroupDecoder& group : groups) {
    // The decoder's last window, then the resampler's tail.
    group.finish();
    hooked.check();
  }
  // Only the end of a stream says its length, if the header has none. It is reached unless the section ends before.
  if (reader.finished()) {
    total = wanted(reader.samples());
    expect_within(section, options, total, rate, input.name());
  }
  // If the length is still unknown, total is `open`, and the section's end decides.
  const int64_t length = std::min(section.end, total) - section.first;
  // Only if the frames exceed the length by more than keep_back. The output has no name yet, so nothing wrong remains.
  if (out.taken() > length)
    throw Error(ErrorKind::input, input.name() + ": has more frames than its length of " +
                                      std::to_string(reader.samples()) + " samples needs");
  writer.write(out.finish(length));
  const int64_t clipped = writer.commit();
  FileReport report{.seconds = static_cast<double>(length) / rate,
                    .wall_seconds = std::chrono::duration<double>(Clock::now() - start).count(),
                    .bytes = input.bytes(),
                    .codebooks = codebooks,
                    .channels = static_cast<int>(h.channels),
                    .sample_rate = rate,
                    .samples = length,
                    .clipped = clipped};
  // An .ecdc file has no packets with CRCs, so nothing of it can be found lost.
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
  // Every packet is verified and dropped.
  while (reader.next()) {
  }
  return {.format = reader.format(),
          .header = reader.header(),
          .frames = reader.frames(),
          .samples = reader.samples(),
          .bytes = input.bytes()};
}

std::string not_for_ecdc(const CodecConfig& c) {
  // Of the two models, the one that the codec is closer to.
  const bool stereo = c.segmented() || c.audio_channels == 2 || c.sample_rate == ecdc_models[1].sample_rate;
  const EcdcModel& m = ecdc_models[stereo ? 1 : 0];
  const std::string has = std::string(", EnCodec's ") + (stereo ? "48" : "24") + " kHz model has ";
  std::string why;
  const auto expect = [&](const std::string& what, const std::string& value, const std::string& expected) {
    if (why.empty() && value != expected) why = what + " is " + value + has + expected;
  };
  const auto number = [](int64_t n) { return std::to_string(n); };
  expect("codec.network", c.network, "encodec");
  expect("codec.sample_rate", number(c.sample_rate), number(m.sample_rate));
  expect("codec.audio_channels", number(c.audio_channels), number(m.channels));
  expect("codec.segment", number(c.segment), number(m.segment));
  expect("codec.segment_stride", number(c.segment_stride), number(m.stride));
  expect("codec.segment_scale", c.segment_scale ? "true" : "false", m.segment != 0 ? "true" : "false");
  if (why.empty() && c.hop() != ecdc_hop) why = "the hop is " + number(c.hop()) + " samples" + has + number(ecdc_hop);
  expect("codec.codebook_size", number(c.codebook_size), number(ecdc_codebook_size));
  if (why.empty() && c.n_codebooks > m.max_codebooks)
    why = "codec.n_codebooks is " + number(c.n_codebooks) + has + number(m.max_codebooks);
  return why;
}

}  // namespace nacre::training
