#pragma once
// The bytes of a .nacre stream that its writer and its reader share: offsets and limits of docs/format.md.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nacre/files/stream.h"

namespace nacre::stream_layout {

constexpr size_t header_bytes = 60, packet_head_bytes = 12, crc_bytes = 4, closing_bytes = 28;
constexpr std::byte data_kind{'P'}, closing_kind{'E'};
constexpr uint32_t max_rate = 1u << 20, max_hop = 1u << 20, max_packet_frames = 65536;
constexpr uint64_t max_payload = uint64_t{1} << 20, max_samples = uint64_t{1} << 40;

/// A little-endian number.
template <class T>
T get(std::span<const std::byte> data, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(value | static_cast<T>(std::to_integer<T>(data[at + i]) << (8 * i)));
  return value;
}

inline uint64_t payload_bytes(const StreamHeader& h, uint64_t frames) {
  return (frames * h.codebooks * static_cast<uint64_t>(code_bits(h)) + 7) / 8;
}
/// The size of a data packet with its head and its CRC.
inline uint64_t packet_bytes(const StreamHeader& h, uint64_t frames) {
  return packet_head_bytes + payload_bytes(h, frames) + crc_bytes;
}

/// The defect of a length, or "". The frames must hold the samples and may exceed them by at most four hops of padding
/// and two samples of rounding in the resampler.
std::string length_problem(const StreamHeader&, uint64_t frames, uint64_t samples);

/// Unpacks the codes of packet `number`. Returns the defect of the payload, or "".
std::string unpack(const StreamHeader&, std::span<const std::byte> payload, uint32_t number, uint32_t frames,
                   std::vector<int32_t>& codes);

}  // namespace nacre::stream_layout
