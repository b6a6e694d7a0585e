#pragma once
// Streams of either format: .nacre and .ecdc, from files and standard input.
#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "coding/live.h"
#include "files/files.h"
#include "nacre/coding/codec_files.h"
#include "nacre/files/ecdc.h"

namespace nacre::training {

/// Reads bytes from a file or from standard input.
class Input {
 public:
  Input(const std::string& path, const Hooked*);
  const std::string& name() const { return name_; }
  /// Read so far.
  uint64_t bytes() const { return bytes_; }
  /// The first bytes, up to sniffed_bytes. source() gives them, too.
  const std::string& head() const { return head_; }
  /// Whether it is a file, which positioned() reads at any position.
  bool has_positions() const { return start_ >= 0; }
  PositionedSource positioned();
  ByteSource source() {
    return [this, at = size_t{0}](std::span<std::byte> to) mutable -> size_t {
      if (at == head_.size()) return read_next(to);
      const size_t n = head_.copy(reinterpret_cast<char*>(to.data()), to.size(), at);
      at += n;
      return n;
    };
  }

 private:
  int fd() const { return file_ ? file_.get() : STDIN_FILENO; }
  size_t read_next(std::span<std::byte> to);
  template <class Call>
  size_t read(Call&&);

  std::string name_;
  Descriptor file_;
  const Hooked* hooked_;
  off_t start_ = -1, size_ = 0;  // of what a file has from here on
  bool arrives_;
  uint64_t bytes_ = 0;
  std::string head_;
};

/// Reads a .nacre stream or an .ecdc file. The first bytes decide. The error for other input names what the input is.
class CodesReader {
 public:
  /// positions: seek() skips bytes where that is possible.
  explicit CodesReader(Input& input, StreamReaderOptions options = {}, bool positions = false);
  StreamFormat format() const {
    return std::holds_alternative<EcdcReader>(reader_) ? StreamFormat::ecdc : StreamFormat::nacre;
  }
  const StreamHeader& header() const { return header_; }
  std::optional<StreamPacket> next() {
    std::optional<StreamPacket> packet = std::visit([](auto& reader) { return reader.next(); }, reader_);
    if (packet)
      frames_ = packet->first_frame + packet->frames;
    else
      finished_ = true;
    return packet;
  }
  /// Passes packets in front of this frame. Those of an .ecdc file are not passed: it has no positions.
  void seek(uint64_t frame) {
    if (auto* nacre = std::get_if<StreamReader>(&reader_)) nacre->seek(frame);
  }
  /// Per channel; the number of samples is valid once next() has returned nothing.
  uint64_t frames() const { return frames_; }
  uint64_t samples() const {
    const auto* nacre = std::get_if<StreamReader>(&reader_);
    return nacre != nullptr ? nacre->samples() : header_.samples;
  }
  bool finished() const { return finished_; }
  /// The reader of a .nacre stream, or null.
  const StreamReader* stream() const { return std::get_if<StreamReader>(&reader_); }

 private:
  using Reader = std::variant<StreamReader, EcdcReader>;
  static Reader open(Input&, StreamReaderOptions, bool positions);

  Reader reader_;
  StreamHeader header_;
  uint64_t frames_ = 0;
  bool finished_ = false;
};

/// Writes a .nacre stream or an .ecdc file. The latter has of the header the length and the number of codebooks alone.
class CodesWriter {
 public:
  CodesWriter(StreamFormat format, const StreamHeader& h, const ByteSink& sink) : writer_(make(format, h, sink)) {}
  void write(uint32_t group, std::span<const int32_t> codes, float scale) {
    if (auto* nacre = std::get_if<StreamWriter>(&writer_))
      nacre->write(group, codes, scale);
    else
      std::get<EcdcWriter>(writer_).write(codes, scale);
  }
  /// Refuses groups that differ in length, and frames that do not hold the samples.
  void finish(uint64_t samples) {
    if (auto* nacre = std::get_if<StreamWriter>(&writer_))
      nacre->finish(samples);
    else
      std::get<EcdcWriter>(writer_).finish();
  }
  uint64_t bytes() const {
    return std::visit([](const auto& writer) { return writer.bytes(); }, writer_);
  }

 private:
  using Writer = std::variant<StreamWriter, EcdcWriter>;
  static Writer make(StreamFormat, const StreamHeader&, const ByteSink&);
  Writer writer_;
};

}  // namespace nacre::training
