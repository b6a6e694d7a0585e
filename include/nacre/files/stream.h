#pragma once
// The .nacre stream: codes in packets, every byte under a CRC, nothing trusted before it is bounded. docs/format.md
// says what every byte means. Both ends are incremental: memory is that of one packet per channel, whatever the length.
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
  uint32_t model_rate = 0;     ///< Hz, 1 to 2^20: what the model ran at
  uint32_t original_rate = 0;  ///< Hz, 1 to 2^20: what the decoded file is to have
  uint32_t channels = 1;       ///< 1 to 64, each coded by itself
  /// What decoded samples are multiplied by, over all channels; 2^-40 to 2^40.
  float gain = 1;
  uint64_t samples = unknown;  ///< per channel at the original rate, up to 2^40; unknown: the end of the stream says it
  uint32_t hop = 0;            ///< samples at the model's rate per frame, 1 to 2^20
  uint32_t codebooks = 0;      ///< 1 to 256
  uint32_t codebook_size = 0;  ///< 2 to 65536, not necessarily a power of two
  uint32_t packet_frames = 0;  ///< 1 to 65536; in the writer 0: about a second

  bool operator==(const StreamHeader&) const = default;
};

/// Bits of one code: enough for codebook_size - 1.
int code_bits(const StreamHeader&) noexcept;
/// The nominal rate of all channels in bit/s, without container.
double nominal_bits_per_second(const StreamHeader&) noexcept;

/// Throws Error(usage) for a header, a code or a count outside the limits.
class StreamWriter {
 public:
  /// Writes the header.
  StreamWriter(StreamHeader, ByteSink);

  /// Appends frames to one channel: codes[frame][codebook]. Packets go out as soon as every channel has a whole one;
  /// until then the channels that are ahead wait in memory.
  void write(uint32_t channel, std::span<const int32_t> codes);
  /// Writes what is left and the closing packet. `samples` per channel at the original rate: what the header said, if
  /// it said it, and within what the frames hold.
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

/// Fills the front of the span and returns how much; 0 only at the end.
using ByteSource = std::function<size_t(std::span<std::byte>)>;

struct StreamPacket {
  uint32_t channel = 0;
  uint64_t first_frame = 0;
  uint32_t frames = 0;
  std::span<const int32_t> codes;  ///< [frame][codebook], valid until the next call
};

/// Throws Error(input) with the byte where the stream stops making sense. Nothing that throws has been handed out.
class StreamReader {
 public:
  /// Reads the header. `name` is what messages call the stream.
  explicit StreamReader(ByteSource, std::string name = "stream");

  const StreamHeader& header() const noexcept { return header_; }
  /// The next packet: those of channel 0, 1, ... for one stretch of time, then the next stretch. Nothing after the
  /// closing packet, which has then been verified, with nothing behind it.
  std::optional<StreamPacket> next();

  bool finished() const noexcept { return state_ == State::finished; }
  /// Per channel; of use once finished().
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
