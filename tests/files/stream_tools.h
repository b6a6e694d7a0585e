#pragma once
// Small .nacre streams, as bytes in memory.
#include <cstring>
#include <random>
#include <vector>

#include "harness.h"
#include "nacre/files/crc32c.h"
#include "nacre/files/stream.h"

namespace nacre::test {

using Bytes = std::vector<std::byte>;

struct Stream {
  StreamHeader header;
  std::vector<std::vector<int32_t>> codes;  // per channel
  uint64_t samples = 0;
};

inline StreamHeader small_header() {
  return {.model = 0x0123456789abcdef,
          .model_rate = 16000,
          .original_rate = 16000,
          .gain = 0.75f,
          .hop = 320,
          .codebooks = 2,
          .codebook_size = 1000,
          .packet_frames = 3};
}

inline Stream random_stream(StreamHeader h, uint64_t frames, std::mt19937_64& rng) {
  Stream s{h, {}, frames * h.hop * h.original_rate / h.model_rate};
  for (uint32_t c = 0; c < h.channels; ++c) {
    s.codes.emplace_back(frames * h.codebooks);
    for (auto& code : s.codes.back()) code = static_cast<int32_t>(rng() % h.codebook_size);
  }
  return s;
}

/// Writes the stream in pieces of `piece` frames per channel (0: all of a channel at once).
inline Bytes written(const Stream& s, size_t piece = 0) {
  Bytes out;
  StreamWriter w(s.header, [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
  const size_t total = s.codes[0].size(), step = piece == 0 ? std::max<size_t>(total, 1) : piece * s.header.codebooks;
  for (size_t at = 0; at < total; at += step)
    for (uint32_t c = 0; c < s.header.channels; ++c)
      w.write(c, std::span(s.codes[c]).subspan(at, std::min(step, total - at)));
  w.finish(s.samples);
  REQUIRE(w.bytes() == out.size());
  return out;
}

inline ByteSource source_of(const Bytes& bytes, size_t piece = ~size_t{0}) {
  return [&bytes, piece, at = size_t{0}](std::span<std::byte> into) mutable {
    const size_t n = std::min({into.size(), bytes.size() - at, piece});
    if (n > 0) std::memcpy(into.data(), bytes.data() + at, n);
    at += n;
    return n;
  };
}

inline void set(Bytes& b, size_t at, uint64_t value, size_t size) {
  for (size_t i = 0; i < size; ++i) b[at + i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
}
inline uint32_t header_crc(const Bytes& b) { return crc32c(std::span(b).first(56)); }

}  // namespace nacre::test
