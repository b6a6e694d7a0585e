#pragma once
// The .nacre stream: codes in packets, with a CRC over every byte. The reader checks every value against its limits
// before it uses it. docs/format.md defines every byte. Reader and writer are incremental: their memory is that of one
// packet per channel, whatever the length.
#include <cstddef>
#include <cstdint>
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
  uint32_t channels = 1;       ///< 1 to 64, each coded separately
  /// The decoder multiplies all channels by this; 2^-40 to 2^40.
  float gain = 1;
  uint64_t samples = unknown;  ///< per channel at original_rate, up to 2^40; unknown: the closing packet has it
  uint32_t hop = 0;            ///< samples at the model's rate per frame, 1 to 2^20
  uint32_t codebooks = 0;      ///< 1 to 256
  uint32_t codebook_size = 0;  ///< 2 to 65536, not necessarily a power of two
  uint32_t packet_frames = 0;  ///< 1 to 65536; 0 in the writer: about one second

  bool operator==(const StreamHeader&) const = default;
};

/// The number of bits of one code, enough for codebook_size - 1.
int code_bits(const StreamHeader&) noexcept;
/// The nominal rate of all channels in bit/s, without the container.
double nominal_bits_per_second(const StreamHeader&) noexcept;

/// Throws Error(usage) for a header, a code or a count outside the limits.
class StreamWriter {
 public:
  /// Writes the header.
  StreamWriter(StreamHeader, ByteSink);

  /// Appends frames to one channel: codes[frame][codebook]. Packets are written as soon as every channel has a complete
  /// one. Until then, channels that are ahead are kept in memory.
  void write(uint32_t channel, std::span<const int32_t> codes);
  /// Writes the remaining frames and the closing packet. `samples` is the length per channel at the original rate. It
  /// must equal the header's length, if the header has one, and match the number of frames.
  void finish(uint64_t samples);

  const StreamHeader& header() const noexcept { return header_; }
  uint64_t bytes() const noexcept { return bytes_; }

 private:
  void emit(std::span<const std::byte>);
  void packet(uint32_t channel, size_t frames);

  StreamHeader header_;
  ByteSink sink_;
  std::vector<std::vector<int32_t>> waiting_;
  std::vector<std::byte> buffer_;
  uint32_t seed_ = 0, packets_ = 0;
  uint64_t frames_ = 0, bytes_ = 0;
  bool finished_ = false;
};

/// Fills the front of the span and returns the number of bytes; 0 only at the end.
using ByteSource = std::function<size_t(std::span<std::byte>)>;

struct StreamPacket {
  uint32_t channel = 0;
  uint64_t first_frame = 0;
  uint32_t frames = 0;
  std::span<const int32_t> codes;  ///< [frame][codebook], valid until the next call
};

/// Reads a stream. Throws Error(input) with the position of the first byte that is wrong. A packet is verified before
/// it is returned.
class StreamReader {
 public:
  /// Reads the header. `name` is the stream's name in messages.
  explicit StreamReader(ByteSource, std::string name = "stream");

  const StreamHeader& header() const noexcept { return header_; }
  /// The next packet: channels 0, 1, ... of one stretch of time, then those of the next. Returns nothing after the
  /// closing packet; by then the closing packet and the end of the stream behind it have been verified.
  std::optional<StreamPacket> next();

  bool finished() const noexcept { return state_ == State::finished; }
  /// Per channel; valid once finished().
  uint64_t frames() const noexcept { return frames_; }
  uint64_t samples() const noexcept { return samples_; }

 private:
  enum class State { open, finished, failed };
  [[noreturn]] void fail(const std::string&) const;
  void read(std::span<std::byte>);
  void close(std::span<const std::byte> head);

  ByteSource source_;
  std::string name_;
  StreamHeader header_;
  std::vector<std::byte> buffer_;
  std::vector<int32_t> codes_;
  uint32_t seed_ = 0, packets_ = 0, stretch_frames_ = 0;
  uint64_t frames_ = 0, samples_ = 0, at_ = 0;
  State state_ = State::open;
};

}  // namespace nacre
