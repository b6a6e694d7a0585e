// Any bytes are either refused with Error(input), or are a stream that the writer reproduces byte for byte. Where
// damage is read around, packets are in order and of whole stretches, and a stream without damage gives the same codes.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "nacre/error.h"
#include "nacre/files/crc32c.h"
#include "nacre/files/stream.h"

using namespace nacre;

namespace {

uint64_t get(const std::vector<std::byte>& b, size_t at, size_t size) {
  uint64_t v = 0;
  for (size_t i = 0; i < size; ++i) v |= std::to_integer<uint64_t>(b[at + i]) << (8 * i);
  return v;
}
void set(std::vector<std::byte>& b, size_t at, uint64_t v, size_t size) {
  for (size_t i = 0; i < size; ++i) b[at + i] = static_cast<std::byte>(v >> (8 * i) & 0xff);
}

/// Corrects the magic, the version and every CRC. Otherwise the fuzzer would never get past them.
void repair(std::vector<std::byte>& b) {
  if (b.size() < 60) return;
  // The flag of the extension stays.
  std::memcpy(b.data(), "\x89NACRE\r\n\x01", 9);
  set(b, 9, get(b, 10, 1) % 2 << 8, 3);
  const bool extended = get(b, 10, 1) != 0;
  const size_t head = extended ? 76 : 60;
  if (b.size() < head) return;
  uint64_t scale = 0;
  if (extended) {
    // Seldom wrong, and one of few segments, so that packets are read.
    set(b, 56, get(b, 56, 1) % 4, 2), set(b, 58, get(b, 58, 1) % 2, 2), set(b, 68, 0, 4);
    set(b, 60, get(b, 60, 1), 4), set(b, 64, get(b, 64, 1), 4);
    set(b, 24, get(b, 24, 1) % 16, 4);
    const uint64_t hop = get(b, 24, 4), segment = get(b, 60, 4);
    if (segment != 0 && hop != 0) set(b, 32, (segment + hop - 1) / hop, 4);
    scale = get(b, 58, 2) * 4;
  }
  const uint32_t seed = crc32c(std::span(b).first(head - 4));
  set(b, head - 4, seed, 4);
  const uint64_t books = get(b, 22, 2), size = get(b, 28, 4);
  uint64_t bits = 0;
  while (bits < 32 && (uint64_t{1} << bits) < size) ++bits;
  for (size_t at = head; at + 12 <= b.size();) {
    const bool last = b[at] == std::byte{'E'};
    const uint64_t covered = last ? 28 : 12 + scale + (get(b, at + 8, 4) % 65537 * books * bits + 7) / 8;
    if (covered + 4 > b.size() - at) return;
    set(b, at + covered, crc32c(std::span(b).subspan(at, covered), seed), 4);
    if (last) return;
    at += covered + 4;
  }
}

/// Reads around damage. Returns false if the bytes are refused.
bool recover(const std::vector<std::byte>& bytes, size_t piece, std::vector<int32_t>& codes) {
  size_t at = 0;
  uint64_t number = 0, frames = 0;
  try {
    StreamReader reader(
        [&](std::span<std::byte> into) {
          const size_t n = std::min({into.size(), bytes.size() - at, piece});
          if (n > 0) std::memcpy(into.data(), bytes.data() + at, n);
          at += n;
          return n;
        },
        "stream", {.recover = true});
    const StreamHeader& h = reader.header();
    // A few bytes may stand for ten minutes of lost packets of one frame.
    for (int i = 0; i < 100000; ++i) {
      const auto packet = reader.next();
      if (!packet) return reader.finished() && !reader.cut_off() && !reader.continued();
      if (packet->group != number++ % h.groups() || packet->first_frame != frames || packet->frames == 0 ||
          packet->frames > h.packet_frames || packet->codes.size() != (packet->lost ? 0 : packet->frames * h.codebooks))
        std::abort();
      if (!(packet->scale >= 0x1p-60f && packet->scale <= 0x1p60f) || (!h.scaled && packet->scale != 1)) std::abort();
      if (packet->group + 1 == h.groups()) frames += h.segment != 0 ? h.packet_frames : packet->frames;
      for (int32_t c : packet->codes)
        if (c < 0 || static_cast<uint32_t>(c) >= h.codebook_size) std::abort();
      codes.insert(codes.end(), packet->codes.begin(), packet->codes.end());
    }
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) std::abort();
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::vector<std::byte> bytes(size - 1);
  if (size > 1) std::memcpy(bytes.data(), data + 1, size - 1);
  if (data[0] % 4 != 0) repair(bytes);
  size_t at = 0;
  const size_t piece = 1 + data[0] % 64u;
  std::vector<std::byte> out;
  std::vector<int32_t> codes, recovered;
  const bool whole = recover(bytes, piece, recovered);
  try {
    StreamReader reader([&](std::span<std::byte> into) {
      const size_t n = std::min({into.size(), bytes.size() - at, piece});
      if (n > 0) std::memcpy(into.data(), bytes.data() + at, n);
      at += n;
      return n;
    });
    StreamWriter writer(reader.header(),
                        [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
    while (const auto packet = reader.next()) {
      for (int32_t c : packet->codes)
        if (c < 0 || static_cast<uint32_t>(c) >= reader.header().codebook_size) std::abort();
      writer.write(packet->group, packet->codes, packet->scale);
      codes.insert(codes.end(), packet->codes.begin(), packet->codes.end());
    }
    writer.finish(reader.samples());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) std::abort();
    return 0;
  }
  if (out != bytes || !whole || codes != recovered) std::abort();
  return 0;
}
