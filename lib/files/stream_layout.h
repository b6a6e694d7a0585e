#pragma once
// The bytes of a .nacre stream that its writer and its reader share: offsets and limits of docs/format.md.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nacre/files/stream.h"

namespace nacre::stream_layout {

// Sizes in bytes. A packet's head has no CRC in it; the closing packet and its CRC have closing_bytes + crc_bytes.
constexpr size_t plain_header_bytes = 60, extension_bytes = 16, packet_head_bytes = 12, scale_bytes = 4, crc_bytes = 4,
                 closing_bytes = 28;
constexpr std::byte data_kind{'P'}, closing_kind{'E'};
// Hz, samples, frames.
constexpr uint32_t max_rate = 1u << 20, max_hop = 1u << 20, max_packet_frames = 65536;
constexpr uint32_t max_joint = 64, max_segment = 1u << 24;
/// Bits of the flags in the header, and of those in its extension.
constexpr uint16_t extended_flag = 1, scaled_flag = 1;
/// Of a scale. With the largest gain, samples remain finite.
constexpr float min_scale = 0x1p-60f, max_scale = 0x1p60f;
constexpr uint64_t max_payload = uint64_t{1} << 20, max_samples = uint64_t{1} << 40;

/// A little-endian number.
template <class T>
T get(std::span<const std::byte> data, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(value | static_cast<T>(std::to_integer<T>(data[at + i]) << (8 * i)));
  return value;
}

/// Whether the header has its extension. Without one, it has the bytes that it had before there was any.
inline bool extended(const StreamHeader& h) { return h.joint != 1 || h.segment != 0 || h.stride != 0 || h.scaled; }
inline size_t header_bytes(const StreamHeader& h) { return plain_header_bytes + (extended(h) ? extension_bytes : 0); }

/// The codes of a packet.
inline uint64_t payload_bytes(const StreamHeader& h, uint64_t frames) {
  return (frames * h.codebooks * static_cast<uint64_t>(code_bits(h)) + 7) / 8;
}
/// The size of a data packet with its head, its scale if it has one, and its CRC.
inline uint64_t packet_bytes(const StreamHeader& h, uint64_t frames) {
  return packet_head_bytes + (h.scaled ? scale_bytes : 0) + payload_bytes(h, frames) + crc_bytes;
}

/// Frames of the last stretches of time that were written or read; 0: there is none.
struct LastStretches {
  uint32_t before = 0, last = 0;
  void add(uint32_t frames) { before = last, last = frames; }
};
/// Whether a stretch of `frames` frames may be the next one. Only the last stretch may be shorter than a packet. Of a
/// segmented stream, the last two may be: a signal can end in the part of a segment that the next one holds, too.
bool may_follow(const StreamHeader&, const LastStretches&, uint32_t frames);

/// A length at the original rate, at the model's: rounded to nearest, as the resampler does.
uint64_t at_model_rate(const StreamHeader&, uint64_t samples);
/// The frames of a stretch of a segmented stream of `samples` samples at the model's rate; 0 behind the last stretch.
uint32_t segment_frames(const StreamHeader&, uint64_t samples, uint64_t stretch);
/// The end of the last frame in samples at the model's rate, if the stream has frames up to this one.
unsigned __int128 end_of_frames(const StreamHeader&, uint64_t frames);

/// The defect of a length, or "". The frames must hold the samples. They may exceed them by at most four hops of
/// padding and two samples of rounding in the resampler; those of segments are exact but for that rounding. before:
/// frames of the stretch before the last one; 0: unknown.
std::string length_problem(const StreamHeader&, uint64_t frames, uint64_t samples, uint32_t before = 0);

/// Unpacks the scale and the codes of packet `number`. Returns the defect of the payload, or "".
std::string unpack(const StreamHeader&, std::span<const std::byte> payload, uint32_t number, uint32_t frames,
                   std::vector<int32_t>& codes, float& scale);

}  // namespace nacre::stream_layout
