#pragma once
// The .ecdc file of EnCodec: codes without a checksum. Layout in docs/exchange.md, source: Défossez et al., "High
// Fidelity Neural Audio Compression" (2022), and the package encodec. Files of the 24 kHz model (one channel) and of
// the 48 kHz model (two channels, segments with a scale) without a language model are read and written, with the bytes
// that the package writes. Reader and writer are incremental: their memory is that of about one second of codes,
// whatever the length.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/files/atomic_file.h"
#include "nacre/files/stream.h"

namespace nacre {

/// A model whose files have this format. A file says its name alone, and the model decides the rest.
struct EcdcModel {
  const char* name;      ///< as in the file: "encodec_24khz"
  uint32_t sample_rate;  ///< Hz
  uint32_t channels;
  uint32_t max_codebooks;
  uint32_t segment, stride;  ///< samples; 0: the file is one segment without a scale
};
inline constexpr EcdcModel ecdc_models[] = {{"encodec_24khz", 24000, 1, 32, 0, 0},
                                            {"encodec_48khz", 48000, 2, 16, 48000, 47520}};
inline constexpr uint32_t ecdc_hop = 320;  ///< samples per frame, of both
inline constexpr uint32_t ecdc_codebook_size = 1024;

struct EcdcHeader {
  const EcdcModel* model = &ecdc_models[0];
  uint64_t samples = 0;    ///< per channel at the model's rate, 0 to 2^40
  uint32_t codebooks = 0;  ///< 1 to those of the model

  /// The number of frames: of every segment, samples / 320 rounded up.
  uint64_t frames() const noexcept;
  /// The number of segments, and the frames of one of them. A file without segments is one segment, of frames() frames;
  /// without samples, there is none.
  uint64_t segments() const noexcept;
  uint64_t segment_frames(uint64_t segment) const noexcept;
  bool operator==(const EcdcHeader&) const = default;
};

/// Throws Error(usage) for a header, a code or a count outside the limits, and for a call after the end.
class EcdcWriter {
 public:
  /// Writes the header. The format has the length in front, so it must be known.
  EcdcWriter(EcdcHeader, ByteSink);

  /// Appends frames: codes[frame][codebook], each code below 1024. With segments, the frames of one whole segment and
  /// its scale, finite and positive; without, the scale must be 1.
  void write(std::span<const int32_t> codes, float scale = 1);
  /// Writes the bits of the last byte. The number of frames must be that of the header.
  void finish();

  const EcdcHeader& header() const noexcept { return header_; }
  uint64_t bytes() const noexcept { return bytes_; }

 private:
  void emit();
  void end_of_bits();

  EcdcHeader header_;
  ByteSink sink_;
  std::vector<std::byte> buffer_;
  uint32_t pending_ = 0;  // the bits that do not fill a byte yet
  int filled_ = 0;        // number of these bits
  uint64_t frames_ = 0, segment_ = 0, bytes_ = 0;
  bool finished_ = false;
};

/// Reads a file. Throws Error(input) with the position in bytes for a file that is damaged, that has another version or
/// model, or that was made with a language model.
class EcdcReader {
 public:
  /// Reads the header. `name` is the file's name in messages.
  explicit EcdcReader(ByteSource, std::string name = "file");

  const EcdcHeader& header() const noexcept { return header_; }
  /// The next frames, about one second, or those of a segment, which are numbered as in a .nacre stream; of group 0.
  /// Returns nothing behind the last frame; by then the end of the file has been verified.
  std::optional<StreamPacket> next();

 private:
  enum class State { open, finished, failed };
  [[noreturn]] void fail(const std::string&) const;
  void read(std::span<std::byte>);

  ByteSource source_;
  std::string name_;
  EcdcHeader header_;
  std::vector<std::byte> buffer_;
  std::vector<int32_t> codes_;
  uint64_t frames_ = 0, segment_ = 0, at_ = 0;
  State state_ = State::open;
};

}  // namespace nacre
