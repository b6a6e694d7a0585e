// The .nacre stream (docs/format.md): the checks of a header, the arithmetic of frames and samples, the packing of
// codes, the writer, and the reader that refuses damage. stream_recovery.cpp holds the reader that goes on behind
// damage. files/stream_layout.h declares what both readers and FileCodec share.
// The writer and the reader keep the same three counters. packets_ counts data packets of all groups. frames_ is the
// place behind the last frame of the last stretch that is complete in all groups. stretch_before_ and stretch_frames_
// are the frames of the last two stretches. A stretch is the time of one packet: packet_frames frames, or one segment.
#include "nacre/files/stream.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>

#include "files/stream_layout.h"
#include "nacre/error.h"
#include "nacre/files/crc32c.h"

namespace nacre {

using namespace stream_layout;

namespace {

// As in PNG, the first byte and the line ending show a transfer that dropped the eighth bit or converted line ends.
constexpr unsigned char magic[8] = {0x89, 'N', 'A', 'C', 'R', 'E', '\r', '\n'};
constexpr uint32_t version = 1;

/// Appends a number in little-endian order.
template <class T>
void put(std::vector<std::byte>& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xff));
}

/// ceil(segment / hop) in 64 bits, because the sum could exceed 32 bits in a header that has not been checked.
uint32_t frames_of_segment(const StreamHeader& h) {
  return static_cast<uint32_t>((uint64_t{h.segment} + h.hop - 1) / h.hop);
}

/// What messages call a group. A group of one channel is that channel.
const char* unit_of(const StreamHeader& h) { return h.joint == 1 ? "channel" : "group"; }

/// The defect of a header, or "". The factors of all products below are bounded, and no product overflows.
std::string problem(const StreamHeader& h) {
  const auto outside = [](const char* name, uint64_t found, uint64_t low, uint64_t high) {
    return std::string(name) + " is " + std::to_string(found) + ", expected " + std::to_string(low) + " to " +
           std::to_string(high);
  };
  const auto bad = [](uint64_t v, uint64_t low, uint64_t high) { return v < low || v > high; };
  if (bad(h.model_rate, 1, max_rate)) return outside("the model's sample rate", h.model_rate, 1, max_rate);
  if (bad(h.original_rate, 1, max_rate)) return outside("the original sample rate", h.original_rate, 1, max_rate);
  if (bad(h.channels, 1, 64)) return outside("the number of channels", h.channels, 1, 64);
  if (bad(h.codebooks, 1, 256)) return outside("the number of codebooks", h.codebooks, 1, 256);
  if (bad(h.codebook_size, 2, 65536)) return outside("the codebook size", h.codebook_size, 2, 65536);
  if (bad(h.hop, 1, max_hop)) return outside("the hop", h.hop, 1, max_hop);
  if (bad(h.packet_frames, 1, max_packet_frames))
    return outside("the number of frames per packet", h.packet_frames, 1, max_packet_frames);
  // All factors of the payload have been checked above: it has at most 2^16 * 2^8 * 2^4 bits.
  if (payload_bytes(h, h.packet_frames) > max_payload)
    return outside("the size of a packet", payload_bytes(h, h.packet_frames), 1, max_payload);
  if (h.samples != StreamHeader::unknown && h.samples > max_samples)
    return outside("the number of samples", h.samples, 0, max_samples);
  // Written so that NaN is refused, too.
  if (!(h.gain >= 0x1p-40f && h.gain <= 0x1p40f)) return "the gain is not between 2^-40 and 2^40";
  if (bad(h.joint, 1, max_joint))
    return outside("the number of channels that are coded together", h.joint, 1, max_joint);
  if (h.segment == 0) {
    if (h.stride != 0) return "there is a distance of segments, and there are no segments";
    if (h.scaled) return "there are scales of segments, and there are no segments";
    return {};
  }
  if (bad(h.segment, 1, max_segment)) return outside("the length of a segment", h.segment, 1, max_segment);
  // With a distance of half a segment or more, a sample lies in two segments at most.
  const uint32_t half = (h.segment + 1) / 2, frames = frames_of_segment(h);
  if (bad(h.stride, half, h.segment)) return outside("the distance of segments", h.stride, half, h.segment);
  if (h.packet_frames != frames)
    return "the number of frames per packet is " + std::to_string(h.packet_frames) + ", expected " +
           std::to_string(frames) + ", those of a segment";
  return {};
}

/// The number of frames that is nearest to one second, but at least 1; of a segmented stream, those of a segment. For a
/// header without packet_frames, which problem() has not seen yet.
uint32_t about_a_second(const StreamHeader& h) {
  if (h.hop == 0 || h.codebooks == 0) return 1;
  if (h.segment != 0) return frames_of_segment(h);
  // A second of a large model may exceed the largest packet; the packet is then as long as the limits permit. The
  // header has not been checked yet, so nothing may divide by zero.
  const uint64_t bits = uint64_t{h.codebooks} * static_cast<uint64_t>(code_bits(h));
  const uint64_t most = std::min<uint64_t>(max_packet_frames, max_payload * 8 / std::max<uint64_t>(bits, 1));
  return static_cast<uint32_t>(
      std::clamp<uint64_t>((uint64_t{h.model_rate} + h.hop / 2) / h.hop, 1, std::max<uint64_t>(most, 1)));
}

}  // namespace

/// The number of bits of codebook_size - 1, the largest code.
int code_bits(const StreamHeader& h) noexcept { return h.codebook_size < 2 ? 0 : std::bit_width(h.codebook_size - 1); }

double nominal_bits_per_second(const StreamHeader& h) noexcept {
  return static_cast<double>(h.groups()) * h.codebooks * code_bits(h) * h.model_rate / h.hop;
}

/// Segment i begins at i * stride, and its frames are numbered from i * packet_frames on (docs/format.md, "Segments").
uint64_t first_sample(const StreamHeader& h, uint64_t frame) noexcept {
  if (h.segment == 0) return frame * h.hop;
  return frame / h.packet_frames * h.stride + frame % h.packet_frames * h.hop;
}

bool stream_layout::may_follow(const StreamHeader& h, const LastStretches& s, uint32_t frames) {
  if (s.last == 0 || s.last == h.packet_frames) return true;
  // The last stretch is shorter than a packet, so the signal ended in it. Only the next segment can hold samples of its
  // end once more, and only if the last stretch is not such a repetition itself: then the one before is whole, or there
  // is none.
  if (h.segment == 0 || (s.before != 0 && s.before != h.packet_frames)) return false;
  // The last stretch holds at most this many samples. The next segment begins `stride` samples behind its beginning and
  // holds what remains of them.
  const uint64_t most = uint64_t{s.last} * h.hop;
  return most > h.stride && frames <= (most - h.stride + h.hop - 1) / h.hop;
}

uint64_t stream_layout::at_model_rate(const StreamHeader& h, uint64_t samples) {
  using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide{samples} * h.model_rate + h.original_rate / 2) / h.original_rate);
}

uint64_t frames_of(const StreamHeader& h, uint64_t samples) noexcept {
  if (h.segment == 0 || samples == 0) return (samples + h.hop - 1) / h.hop;
  // The segment that begins last in front of the end of the signal.
  const uint64_t last = (samples - 1) / h.stride;
  return last * h.packet_frames + segment_frames(h, samples, last);
}

uint32_t stream_layout::segment_frames(const StreamHeader& h, uint64_t samples, uint64_t stretch) {
  const uint64_t begins = stretch * h.stride;
  if (begins >= samples) return 0;
  return static_cast<uint32_t>((std::min<uint64_t>(samples - begins, h.segment) + h.hop - 1) / h.hop);
}

unsigned __int128 stream_layout::end_of_frames(const StreamHeader& h, uint64_t frames) {
  using Wide = unsigned __int128;
  if (h.segment == 0 || frames == 0) return Wide{frames} * h.hop;
  // 128 bits: packet numbers allow 2^48 frames, each of up to 2^20 samples. The last frame of a whole segment may reach
  // beyond the segment, whose length bounds the samples.
  const uint64_t last = (frames - 1) / h.packet_frames, held = (frames - last * h.packet_frames) * h.hop;
  return Wide{last} * h.stride + std::min<uint64_t>(held, h.segment);
}

std::string stream_layout::length_problem(const StreamHeader& h, uint64_t frames, uint64_t samples, uint32_t before) {
  if (samples > max_samples)
    return "the number of samples is " + std::to_string(samples) + ", expected at most " + std::to_string(max_samples);
  if (h.samples != StreamHeader::unknown && h.samples != samples)
    return "the header has " + std::to_string(h.samples) + " samples, the end " + std::to_string(samples);
  // long double: up to 2^40 samples times 2^20 Hz does not fit into the 53 bits of a double.
  const long double needed = static_cast<long double>(samples) * h.model_rate / h.original_rate;
  const long double held = static_cast<long double>(frames) * h.hop;
  bool fits = held >= needed - 2 && held <= needed + 4.0L * h.hop + 2;
  if (h.segment != 0) {
    // Frames of segments determine the number of samples up to a hop. Any length within two samples of the nearest one
    // may be the one that was coded, because the resampler rounds. The stretch before the last one must fit the same
    // length.
    const uint64_t nearest = at_model_rate(h, samples);
    fits = false;
    for (uint64_t n = nearest - std::min<uint64_t>(nearest, 2); n <= nearest + 2 && !fits; ++n)
      fits = frames_of(h, n) == frames &&
             (before == 0 || n <= h.stride || before == segment_frames(h, n, (n - 1) / h.stride - 1));
  }
  if (!fits)
    return std::to_string(frames) + " frames of " + std::to_string(h.hop) + " samples do not match the length of " +
           std::to_string(samples) + " samples";
  return {};
}

namespace {

std::string scale_problem(float scale) {
  if (scale >= min_scale && scale <= max_scale) return {};  // written so that NaN is refused, too
  return "the scale is " + std::to_string(scale) + ", expected 2^-60 to 2^60";
}

}  // namespace

std::string stream_layout::unpack(const StreamHeader& h, std::span<const std::byte> payload, uint32_t number,
                                  uint32_t frames, std::vector<int32_t>& codes, float& scale) {
  scale = 1;
  if (h.scaled) {
    scale = std::bit_cast<float>(get<uint32_t>(payload, 0));
    if (const std::string what = scale_problem(scale); !what.empty())
      return "packet " + std::to_string(number) + ": " + what;
    payload = payload.subspan(scale_bytes);
  }
  const int bits = code_bits(h);
  const uint32_t mask = (1u << bits) - 1;
  codes.resize(size_t{frames} * h.codebooks);
  uint32_t pending = 0;
  int filled = 0;
  size_t at = 0;
  for (auto& code : codes) {
    // pending holds the bits that were read and not used, the next code in its lowest bits: at most 15 + 8 of them.
    // Never past the payload, whose size was computed from the same number of bits.
    for (; filled < bits; filled += 8) pending |= std::to_integer<uint32_t>(payload[at++]) << filled;
    const uint32_t value = pending & mask;
    // Only a codebook size that is no power of two leaves such values.
    if (value >= h.codebook_size)
      return "code is " + std::to_string(value) + ", expected 0 to " + std::to_string(h.codebook_size - 1);
    code = static_cast<int32_t>(value);
    pending >>= bits;
    filled -= bits;
  }
  // So every stream of codes has one encoding only.
  if (pending != 0) return "the padding of packet " + std::to_string(number) + " is not zero";
  return {};
}

StreamWriter::StreamWriter(StreamHeader header, ByteSink sink) : header_(header), sink_(std::move(sink)) {
  if (header_.packet_frames == 0) header_.packet_frames = about_a_second(header_);
  if (const std::string what = problem(header_); !what.empty()) throw Error(ErrorKind::usage, "stream: " + what);
  // Codes that are not in a packet yet, per group. Of a segmented stream, segments_ divides them into segments.
  waiting_.resize(header_.groups());
  segments_.resize(header_.groups());
  for (unsigned char c : magic) buffer_.push_back(static_cast<std::byte>(c));
  // The fields have the order and the sizes of the tables in docs/format.md.
  put(buffer_, static_cast<uint16_t>(version));
  put(buffer_, extended(header_) ? extended_flag : uint16_t{0});
  put(buffer_, header_.model_rate);
  put(buffer_, header_.original_rate);
  put(buffer_, static_cast<uint16_t>(header_.channels));
  put(buffer_, static_cast<uint16_t>(header_.codebooks));
  put(buffer_, header_.hop);
  put(buffer_, header_.codebook_size);
  put(buffer_, header_.packet_frames);
  put(buffer_, std::bit_cast<uint32_t>(header_.gain));
  put(buffer_, header_.model);
  put(buffer_, header_.samples);
  if (extended(header_)) {
    put(buffer_, static_cast<uint16_t>(header_.joint));
    put(buffer_, header_.scaled ? scaled_flag : uint16_t{0});
    put(buffer_, header_.segment);
    put(buffer_, header_.stride);
    put(buffer_, uint32_t{0});
  }
  // The header's CRC is the seed of every packet's CRC, so that a packet of another stream does not verify.
  seed_ = crc32c(buffer_);
  put(buffer_, seed_);
  emit(buffer_);
}

// After an exception of the sink, bytes_ does not count what was passed to it.
void StreamWriter::emit(std::span<const std::byte> data) {
  sink_(data);
  bytes_ += data.size();
}

/// Writes the first `frames` frames that wait in a group as the next data packet. The caller keeps the order: groups 0,
/// 1, ... of a stretch, each with the same number of frames.
void StreamWriter::packet(uint32_t group, uint32_t frames, float scale) {
  // Packets are numbered in 32 bits, and the closing packet needs a number, too.
  if (packets_ == ~uint32_t{0}) throw Error(ErrorKind::usage, "stream: too many packets");
  auto& codes = waiting_[group];
  const size_t count = size_t{frames} * header_.codebooks;
  buffer_.clear();
  buffer_.push_back(data_kind);
  put(buffer_, uint8_t{0});
  put(buffer_, static_cast<uint16_t>(group));
  put(buffer_, packets_);
  put(buffer_, frames);
  if (header_.scaled) put(buffer_, std::bit_cast<uint32_t>(scale));
  const int bits = code_bits(header_);
  // Codes are packed without gaps, least significant bit first. Zero bits fill the last byte.
  uint32_t pending = 0;
  int filled = 0;
  for (size_t i = 0; i < count; ++i) {
    pending |= static_cast<uint32_t>(codes[i]) << filled;  // at most 7 + 16 bits
    for (filled += bits; filled >= 8; filled -= 8, pending >>= 8)
      buffer_.push_back(static_cast<std::byte>(pending & 0xff));
  }
  if (filled > 0) buffer_.push_back(static_cast<std::byte>(pending));
  put(buffer_, crc32c(buffer_, seed_));
  codes.erase(codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(count));
  ++packets_;
  emit(buffer_);
}

void StreamWriter::write(uint32_t group, std::span<const int32_t> codes, float scale) {
  if (finished_) throw Error(ErrorKind::usage, "stream: write after the end of the stream");
  if (group >= header_.groups())
    throw Error(ErrorKind::usage, std::string("stream: ") + unit_of(header_) + " is " + std::to_string(group) +
                                      ", expected 0 to " + std::to_string(header_.groups() - 1));
  // All codes are checked before the first one is stored.
  if (codes.size() % header_.codebooks != 0)
    throw Error(ErrorKind::usage, "stream: " + std::to_string(codes.size()) + " codes are not whole frames of " +
                                      std::to_string(header_.codebooks));
  for (int32_t c : codes)
    if (c < 0 || static_cast<uint32_t>(c) >= header_.codebook_size)
      throw Error(ErrorKind::usage, "stream: code is " + std::to_string(c) + ", expected 0 to " +
                                        std::to_string(header_.codebook_size - 1));
  if (const std::string what = scale_problem(scale); !what.empty()) throw Error(ErrorKind::usage, "stream: " + what);
  if (!header_.scaled && scale != 1)
    throw Error(ErrorKind::usage, "stream: the scale is " + std::to_string(scale) + ", expected 1: it has no scales");
  if (header_.segment != 0) return write_segment(group, codes, scale);
  const size_t whole = size_t{header_.packet_frames} * header_.codebooks;
  // A long input is split into packets, so that little data waits if the channels advance together.
  while (!codes.empty()) {
    const size_t take = std::min(codes.size(), std::max<size_t>(whole - waiting_[group].size() % whole, 1));
    waiting_[group].insert(waiting_[group].end(), codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(take));
    codes = codes.subspan(take);
    // A stretch of time is one packet of each group, in order of group. So a decoder needs one packet per group
    // at most.
    while (std::all_of(waiting_.begin(), waiting_.end(), [&](const auto& w) { return w.size() >= whole; })) {
      for (uint32_t c = 0; c < header_.groups(); ++c) packet(c, header_.packet_frames, 1);
      stretch_done(header_.packet_frames);
    }
  }
}

/// Stores one segment of a group, and writes the stretch when every group has its segment. A group that is ahead waits
/// in waiting_ and segments_.
void StreamWriter::write_segment(uint32_t group, std::span<const int32_t> codes, float scale) {
  if (codes.empty()) return;
  const size_t frames = codes.size() / header_.codebooks;
  if (frames > header_.packet_frames)
    throw Error(ErrorKind::usage, "stream: a segment of " + std::to_string(frames) + " frames, expected at most " +
                                      std::to_string(header_.packet_frames));
  waiting_[group].insert(waiting_[group].end(), codes.begin(), codes.end());
  segments_[group].push_back({static_cast<uint32_t>(frames), scale});
  while (std::none_of(segments_.begin(), segments_.end(), [](const auto& s) { return s.empty(); })) {
    const uint32_t first = segments_[0].front().frames;
    for (const auto& s : segments_)
      if (s.front().frames != first) throw Error(ErrorKind::usage, "stream: the groups differ in length");
    if (!may_follow(header_, {stretch_before_, stretch_frames_}, first))
      throw Error(ErrorKind::usage, "stream: a segment of " + std::to_string(first) + " frames behind one of " +
                                        std::to_string(stretch_frames_) + ", which ends the signal");
    for (uint32_t c = 0; c < header_.groups(); ++c) {
      packet(c, first, segments_[c].front().scale);
      segments_[c].pop_front();
    }
    stretch_done(first);
  }
}

/// After the last packet of a stretch: packets_ is a multiple of the number of groups. frames_ is the place behind the
/// stretch. Those before count as whole, also a shorter one of a segmented stream.
void StreamWriter::stretch_done(uint32_t frames) {
  stretch_before_ = stretch_frames_, stretch_frames_ = frames;
  frames_ = uint64_t{packets_ / header_.groups() - 1} * header_.packet_frames + frames;
}

void StreamWriter::finish(uint64_t samples) {
  if (finished_) throw Error(ErrorKind::usage, "stream: ended twice");
  // Everything is checked before the last packets are written.
  const auto rest = static_cast<uint32_t>(waiting_[0].size() / header_.codebooks);
  for (const auto& w : waiting_)
    if (w.size() != waiting_[0].size())
      throw Error(ErrorKind::usage, std::string("stream: the ") + unit_of(header_) + "s differ in length");
  // Of a segmented stream, nothing waits here: if all groups have the same number of codes, write_segment() has written
  // every segment.
  if (const std::string what = length_problem(header_, frames_ + rest, samples, stretch_before_); !what.empty())
    throw Error(ErrorKind::usage, "stream: " + what);
  if (rest > 0) {
    for (uint32_t c = 0; c < header_.groups(); ++c) packet(c, rest, 1);
    stretch_done(rest);
  }
  buffer_.clear();
  buffer_.push_back(closing_kind);
  // Bytes 1 to 3 are zero.
  buffer_.resize(4);
  put(buffer_, packets_);
  put(buffer_, uint32_t{0});
  put(buffer_, frames_);
  put(buffer_, samples);
  put(buffer_, crc32c(buffer_, seed_));
  emit(buffer_);
  finished_ = true;
}

StreamReader::StreamReader(ByteSource source, std::string name, StreamReaderOptions options)
    : source_(std::move(source)), name_(std::move(name)), options_(options) {
  read_header();
}

StreamReader::StreamReader(PositionedSource source, std::string name, StreamReaderOptions options)
    : positioned_(std::move(source)), name_(std::move(name)), options_(options) {
  read_header();
}

/// Reads and checks the header. Afterwards header_ is within its limits, and seed_ is its CRC, from which the CRCs of
/// all packets continue.
void StreamReader::read_header() {
  // The magic and the version are compared before the rest is read: another file may be shorter than a header, and a
  // later version may have another one.
  buffer_.resize(plain_header_bytes + extension_bytes);
  read(std::span(buffer_).first(8));
  for (size_t i = 0; i < 8; ++i)
    if (std::to_integer<unsigned char>(buffer_[i]) != magic[i]) {
      at_ = 0;
      fail("is not a .nacre stream");
    }
  read(std::span(buffer_).subspan(8, 2));
  if (const auto found = get<uint16_t>(buffer_, 8); found != version)
    fail("has version " + std::to_string(found) + ", this program reads version " + std::to_string(version));
  read(std::span(buffer_).subspan(10, 2));
  const auto flags = get<uint16_t>(buffer_, 10);
  if ((flags & extended_flag) == 0) buffer_.resize(plain_header_bytes);
  read(std::span(buffer_).subspan(12));
  const std::span<const std::byte> h = buffer_;
  // The CRC comes before the checks of the fields: a message about a field would mislead if the header is damaged.
  seed_ = crc32c(h.first(h.size() - crc_bytes));
  if (get<uint32_t>(h, h.size() - crc_bytes) != seed_) fail("the CRC of the header does not match");
  constexpr const char* unknown_flags = "has flags that this program does not know";
  if ((flags & ~extended_flag) != 0) fail(unknown_flags);
  header_.model_rate = get<uint32_t>(h, 12);
  header_.original_rate = get<uint32_t>(h, 16);
  header_.channels = get<uint16_t>(h, 20);
  header_.codebooks = get<uint16_t>(h, 22);
  header_.hop = get<uint32_t>(h, 24);
  header_.codebook_size = get<uint32_t>(h, 28);
  header_.packet_frames = get<uint32_t>(h, 32);
  header_.gain = std::bit_cast<float>(get<uint32_t>(h, 36));
  header_.model = get<uint64_t>(h, 40);
  header_.samples = get<uint64_t>(h, 48);
  if (flags != 0) {
    const auto more = get<uint16_t>(h, 58);
    if ((more & ~scaled_flag) != 0 || get<uint32_t>(h, 68) != 0) fail(unknown_flags);
    header_.joint = get<uint16_t>(h, 56);
    header_.scaled = more != 0;
    header_.segment = get<uint32_t>(h, 60);
    header_.stride = get<uint32_t>(h, 64);
    // So every stream has one encoding only.
    if (!extended(header_)) fail("the extension of the header says nothing");
  }
  if (const std::string what = problem(header_); !what.empty()) fail(what);
}

void StreamReader::fail(const std::string& what) const {
  throw Error(ErrorKind::input, name_ + ": byte " + std::to_string(at_) + ": " + what);
}

/// One call of the source, for up to into.size() bytes. 0 means the end. A source that reports more bytes than it was
/// asked for is not believed.
size_t StreamReader::take(uint64_t position, std::span<std::byte> into) {
  const size_t n = positioned_.read ? positioned_.read(position, into) : source_(into);
  return std::min(n, into.size());
}

/// Fills the whole span from at_ on, across short reads.
void StreamReader::read(std::span<std::byte> into) {
  while (!into.empty()) {
    const size_t n = take(at_, into);
    if (n == 0) fail("the stream is cut off" + whole_packets());
    at_ += n;
    into = into.subspan(n);
  }
}

/// For the message about a stream that is cut off: what can be decoded of it.
std::string StreamReader::whole_packets() const {
  if (header_.hop == 0) return {};  // within the header
  char seconds[40];
  std::snprintf(seconds, sizeof seconds, "%.2f",
                static_cast<double>(end_of_frames(header_, frames_)) / static_cast<double>(header_.model_rate));
  return " after " + std::to_string(packets_) + (packets_ == 1 ? " whole packet (" : " whole packets (") + seconds +
         " s)";
}

void StreamReader::seek(uint64_t frame) {
  const uint64_t stretch = frame / header_.packet_frames;
  if (positioned_.read && !options_.recover) {
    // The last packets are shorter, and behind the end there is nothing. So it jumps as far as a closing packet would
    // still fit, and reads on from there. Two shorter stretches may have more bytes than a whole one: one stretch less.
    const uint64_t bytes = header_.groups() * packet_bytes(header_, header_.packet_frames);
    const uint64_t least = header_bytes(header_) + closing_bytes + crc_bytes;
    uint64_t held = positioned_.size < least ? 0 : (positioned_.size - least) / bytes;
    if (header_.segment != 0 && held > 0) --held;
    const uint64_t to = std::min({stretch, held, uint64_t{~uint32_t{0}} / header_.groups()});
    // As if all stretches in front of `to` had been read and were whole. The number in the next packet's head and its
    // CRC show whether a packet does begin here.
    at_ = header_bytes(header_) + to * bytes;
    packets_ = static_cast<uint32_t>(to * header_.groups());
    frames_ = to * header_.packet_frames;
    stretch_before_ = stretch_frames_ = to == 0 ? 0 : header_.packet_frames;
    state_ = State::open;
  } else if (stretch < packets_ / header_.groups() || packets_ % header_.groups() != 0) {
    throw Error(ErrorKind::usage, name_ + ": cannot go back to frame " + std::to_string(frame) +
                                      " of a source that is read from front to back");
  }
  while (packets_ / header_.groups() < stretch && next()) {
  }
}

std::optional<StreamPacket> StreamReader::next() {
  if (state_ == State::finished) return {};
  if (state_ == State::failed) fail("reading has failed before");
  // An error leaves this state, because the position in the stream is then unknown.
  state_ = State::failed;  // until this packet has been verified
  if (options_.recover) return next_recovered();
  // Data packets and the closing packet begin with the same 12 bytes: kind, 0, group, number, frames. In the closing
  // packet, group and frames are 0.
  buffer_.resize(packet_head_bytes);
  read(buffer_);
  const auto kind = buffer_[0];
  if ((kind != data_kind && kind != closing_kind) || buffer_[1] != std::byte{0}) fail("this is not a packet");
  if (get<uint32_t>(buffer_, 4) != packets_)
    fail("found packet " + std::to_string(get<uint32_t>(buffer_, 4)) + ", expected packet " + std::to_string(packets_));
  if (kind == closing_kind) {
    close(buffer_);
    return {};
  }
  const uint32_t group = get<uint16_t>(buffer_, 2), frames = get<uint32_t>(buffer_, 8);
  if (group != packets_ % header_.groups())
    fail(std::string("found a packet of ") + unit_of(header_) + " " + std::to_string(group) + ", expected one of " +
         unit_of(header_) + " " + std::to_string(packets_ % header_.groups()));
  if (frames == 0 || frames > header_.packet_frames)
    fail("found a packet of " + std::to_string(frames) + " frames, expected 1 to " +
         std::to_string(header_.packet_frames));
  // All groups of a stretch have the same number of frames.
  if (group > 0 ? frames != stretch_frames_ : !may_follow(header_, {stretch_before_, stretch_frames_}, frames))
    fail("found a packet of " + std::to_string(frames) + " frames, expected " + std::to_string(stretch_frames_) +
         " as in the other " + unit_of(header_) + "s");
  // The closing packet needs a number, too.
  if (packets_ == ~uint32_t{0}) fail("there are too many packets");

  const size_t payload = static_cast<size_t>(packet_bytes(header_, frames)) - packet_head_bytes - crc_bytes;
  // The size follows from checked numbers and is at most max_payload, whatever the file says.
  buffer_.resize(packet_head_bytes + payload + crc_bytes);
  read(std::span(buffer_).subspan(packet_head_bytes));
  const auto covered = std::span<const std::byte>(buffer_).first(packet_head_bytes + payload);
  if (get<uint32_t>(buffer_, covered.size()) != crc32c(covered, seed_))
    fail("the CRC of packet " + std::to_string(packets_) + " does not match");

  if (const std::string what = unpack(header_, covered.subspan(packet_head_bytes), packets_, frames, codes_, scale_);
      !what.empty())
    fail(what);
  state_ = State::open;
  return passed(group, frames);
}

/// Counts the packet and returns it, with the codes and the scale that unpack() left in codes_ and scale_. All
/// stretches in front of this one have packet_frames places, whatever they hold.
StreamPacket StreamReader::passed(uint32_t group, uint32_t frames) {
  const uint64_t first = uint64_t{packets_ / header_.groups()} * header_.packet_frames;
  const StreamPacket packet{.group = group, .first_frame = first, .frames = frames, .codes = codes_, .scale = scale_};
  if (group == 0) stretch_before_ = stretch_frames_, stretch_frames_ = frames;
  ++packets_;
  // Frames count per channel, once the stretch is complete.
  if (group + 1 == header_.groups()) frames_ = first + frames;
  return packet;
}

/// Reads the rest of the closing packet, whose first 12 bytes are `head`, and compares it with what was read.
void StreamReader::close(std::span<const std::byte> head) {
  std::array<std::byte, closing_bytes + crc_bytes> all{};
  std::copy(head.begin(), head.end(), all.begin());
  read(std::span(all).subspan(head.size()));
  const auto covered = std::span<const std::byte>(all).first(closing_bytes);
  if (get<uint32_t>(all, closing_bytes) != crc32c(covered, seed_)) fail("the CRC of the closing packet does not match");
  if (get<uint16_t>(all, 2) != 0 || get<uint32_t>(all, 8) != 0) fail("the closing packet is malformed");
  if (packets_ % header_.groups() != 0)
    fail(std::string("the stream ends before the packets of every ") + unit_of(header_));
  if (get<uint64_t>(all, 12) != frames_)
    fail("has " + std::to_string(frames_) + " frames, the closing packet says " +
         std::to_string(get<uint64_t>(all, 12)));
  samples_ = get<uint64_t>(all, 20);
  if (const std::string what = length_problem(header_, frames_, samples_, stretch_before_); !what.empty()) fail(what);
  std::byte more{};
  // A second stream appended to the first would otherwise be lost without a message.
  if (take(at_, {&more, 1}) != 0) fail("unexpected data after the end of the stream");
  state_ = State::finished;
}

}  // namespace nacre
