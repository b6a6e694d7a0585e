#pragma once
// The .nacre stream: codes in packets, with a CRC over every byte. The reader checks every value against its limits
// before it uses it. docs/format.md defines every byte. Reader and writer are incremental: their memory is that of one
// packet per channel, whatever the length.
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/files/atomic_file.h"

namespace nacre {

struct StreamHeader {
  static constexpr uint64_t unknown = ~uint64_t{0};

  uint64_t model = 0;          ///< weights_identity of the model that made the codes
  uint32_t model_rate = 0;     ///< Hz, 1 to 2^20: sample rate of the model
  uint32_t original_rate = 0;  ///< Hz, 1 to 2^20: sample rate of the decoded file
  uint32_t channels = 1;       ///< of the file, 1 to 64
  uint32_t joint = 1;          ///< channels coded together as one group, 1 to 64; a last group may have fewer
  /// The decoder multiplies all channels by this; 2^-40 to 2^40.
  float gain = 1;
  uint64_t samples = unknown;  ///< per channel at original_rate, up to 2^40; unknown: the closing packet has it
  uint32_t hop = 0;            ///< samples at the model's rate per frame, 1 to 2^20
  uint32_t codebooks = 0;      ///< 1 to 256
  uint32_t codebook_size = 0;  ///< 2 to 65536, not necessarily a power of two
  uint32_t packet_frames = 0;  ///< 1 to 65536; 0 in the writer: about one second, or those of a segment
  /// Of a segmented codec, samples at the model's rate: the length of a segment, up to 2^24, and the distance from one
  /// to the next, from half a segment to a whole one. Every packet is a segment, and packet_frames are its frames: the
  /// segment's samples divided by the hop, rounded up. 0: no segments.
  uint32_t segment = 0, stride = 0;
  bool scaled = false;  ///< every packet has a scale; only with segments

  /// Groups of channels: packets are those of groups.
  uint32_t groups() const noexcept { return (channels + joint - 1) / joint; }
  bool operator==(const StreamHeader&) const = default;
};
/// The sample at the model's rate at which a frame begins. Frames of a segmented stream are numbered by their place:
/// those of segment i from i * packet_frames on, also if a segment before is shorter (docs/format.md).
uint64_t first_sample(const StreamHeader&, uint64_t frame) noexcept;
/// The place behind the last frame of a signal of `samples` samples at the model's rate that is padded to whole frames.
/// Of a segmented stream, the header must have packet_frames.
uint64_t frames_of(const StreamHeader&, uint64_t samples) noexcept;

/// The number of bits of one code, enough for codebook_size - 1.
int code_bits(const StreamHeader&) noexcept;
/// The nominal rate of all channels in bit/s, without the container, scales and what segments have twice.
double nominal_bits_per_second(const StreamHeader&) noexcept;

/// Throws Error(usage) for a header, a code or a count outside the limits.
class StreamWriter {
 public:
  /// Writes the header.
  StreamWriter(StreamHeader, ByteSink);

  /// Appends frames to one group: codes[frame][codebook]. Packets are written as soon as every group has a complete
  /// one. Until then, groups that are ahead are kept in memory. Of a segmented stream, the frames are those of one
  /// segment: packet_frames, or fewer in the last two. scale: from 2^-60 to 2^60; 1 unless the stream has scales.
  void write(uint32_t group, std::span<const int32_t> codes, float scale = 1);
  /// Writes the remaining frames and the closing packet. `samples` is the length per channel at the original rate. It
  /// must equal the header's length, if the header has one, and match the number of frames.
  void finish(uint64_t samples);

  const StreamHeader& header() const noexcept { return header_; }
  uint64_t bytes() const noexcept { return bytes_; }

 private:
  struct Segment {
    uint32_t frames;
    float scale;
  };
  void emit(std::span<const std::byte>);
  void packet(uint32_t group, uint32_t frames, float scale);
  void write_segment(uint32_t group, std::span<const int32_t> codes, float scale);
  void stretch_done(uint32_t frames);

  StreamHeader header_;
  ByteSink sink_;
  std::vector<std::vector<int32_t>> waiting_;
  std::vector<std::deque<Segment>> segments_;  // of the codes that wait, per group; of a segmented stream
  std::vector<std::byte> buffer_;
  uint32_t seed_ = 0, packets_ = 0;
  uint32_t stretch_before_ = 0, stretch_frames_ = 0;  // frames of the last two stretches
  uint64_t frames_ = 0, bytes_ = 0;
  bool finished_ = false;
};

/// Fills the front of the span and returns the number of bytes; 0 only at the end.
using ByteSource = std::function<size_t(std::span<std::byte>)>;

/// Bytes at any position. `read` fills the front of the span with the bytes from `position` on and returns their
/// number; 0 only at the end.
struct PositionedSource {
  std::function<size_t(uint64_t position, std::span<std::byte>)> read;
  uint64_t size = 0;  ///< in bytes; a source that grows may give more
};

struct StreamPacket {
  uint32_t group = 0;  ///< of channels; the channel itself, if every one is coded by itself
  uint64_t first_frame = 0;
  uint32_t frames = 0;
  std::span<const int32_t> codes;  ///< [frame][codebook], valid until the next call; empty if lost
  float scale = 1;                 ///< of a segment
  bool lost = false;               ///< damaged or missing; only with StreamReaderOptions::recover
};

struct StreamReaderOptions {
  /// Reads on behind damage (docs/format.md, "Reading around damage"). What cannot be read is returned as lost packets,
  /// so every channel keeps its time, and the stream may end without a closing packet. A damaged header is refused. So
  /// is a stream in which more than 10 minutes have no bytes at all, because a packet's number alone would then make a
  /// caller produce hours of audio.
  bool recover = false;
};

/// Reads a stream. Throws Error(input) with the position of the first byte that is wrong. A packet is verified before
/// it is returned.
class StreamReader {
 public:
  /// Reads the header. `name` is the stream's name in messages.
  explicit StreamReader(ByteSource, std::string name = "stream", StreamReaderOptions = {});
  explicit StreamReader(PositionedSource, std::string name = "stream", StreamReaderOptions = {});

  const StreamHeader& header() const noexcept { return header_; }
  /// The next packet: groups 0, 1, ... of one stretch of time, then those of the next. Returns nothing after the
  /// closing packet; by then the closing packet and the end of the stream behind it have been verified. recover:
  /// returns nothing at the end of the source as well.
  std::optional<StreamPacket> next();
  /// next() goes on with the packets of the stretch of time that holds this frame, or with nothing if the stream has
  /// fewer frames. A positioned source is not read in between, so damage there is not seen. From a ByteSource, and if
  /// damage is read around, all packets in between are read, and a frame before the next packet is refused by
  /// Error(usage).
  void seek(uint64_t frame);

  bool finished() const noexcept { return state_ == State::finished; }
  /// Per channel; valid once finished(). Of a segmented stream, frames() is the place behind the last frame. Without a
  /// closing packet, these are the frames of the stretches of which every group's packet was found, and the samples are
  /// the header's if the frames hold them, otherwise as many as they hold.
  uint64_t frames() const noexcept { return frames_; }
  uint64_t samples() const noexcept { return samples_; }
  /// recover, once finished(): the stream has no closing packet, or there are bytes behind the closing packet.
  bool cut_off() const noexcept { return recovery_.cut_off; }
  bool continued() const noexcept { return recovery_.continued; }

 private:
  enum class State { open, finished, failed };
  /// A verified packet. A closing packet has the number of packets in the stream.
  struct Found {
    bool closing = false;
    uint32_t number = 0, group = 0;
    uint64_t stretch = 0;  // the stretch that it belongs to, or that it closes
    uint32_t frames = 0;   // of that stretch
    size_t bytes = 0;
    uint64_t samples = 0;  // of a closing packet
  };
  struct Recovery {
    std::vector<std::byte> window = {};  // bytes that were read, from `first` on not yet passed
    size_t first = 0;
    bool at_end = false;
    std::optional<Found> found = {};  // the next packet, whose codes wait in codes_
    uint64_t checked = 0;             // bytes over which CRCs were computed
    uint64_t absent = 0;              // lost packets without bytes
    bool cut_off = false, continued = false;
  };
  [[noreturn]] void fail(const std::string&) const;
  void read_header();
  size_t take(uint64_t position, std::span<std::byte>);
  void read(std::span<std::byte>);
  std::string whole_packets() const;
  StreamPacket passed(uint32_t group, uint32_t frames);
  void close(std::span<const std::byte> head);
  // stream_recovery.cpp
  std::optional<StreamPacket> next_recovered();
  bool have(size_t bytes);
  void skip(size_t bytes);
  bool follows(const Found&) const;
  uint32_t lost_frames(const Found&) const;
  std::optional<Found> packet_at(size_t offset);
  std::optional<Found> verified(size_t offset, Found);
  std::optional<Found> find();
  void end_without_closing();

  ByteSource source_;
  PositionedSource positioned_;
  std::string name_;
  StreamReaderOptions options_;
  StreamHeader header_;
  std::vector<std::byte> buffer_;
  std::vector<int32_t> codes_;
  float scale_ = 1;
  uint32_t seed_ = 0, packets_ = 0;
  uint32_t stretch_before_ = 0, stretch_frames_ = 0;  // frames of the last packet's stretch and of the one before
  uint64_t frames_ = 0, samples_ = 0, at_ = 0;
  State state_ = State::open;
  Recovery recovery_;
};

}  // namespace nacre
