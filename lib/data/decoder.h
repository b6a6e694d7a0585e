#pragma once
// Decoders for AudioReader. libmpg123 decodes MP3, because libsndfile stops at the header's length even if it is an
// estimate. libsndfile decodes all other formats.
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/container.h"
#include "nacre/data/audio.h"

namespace nacre::training {

/// A part of a file that is read like a file of its own. It keeps its own position and uses positional reads, so that
/// it shares no position with other users of the descriptor.
class ByteRange {
 public:
  ByteRange(int fd, Container::Part part, std::span<const Container::Patch> patches)
      : fd_(fd), part_(part), patches_(patches) {}
  int64_t size() const { return static_cast<int64_t>(part_.end - part_.begin); }
  int64_t tell() const { return static_cast<int64_t>(at_); }
  /// Returns fewer bytes than requested at the end and after a read error; see error().
  int64_t read(void* to, int64_t bytes);
  /// Like lseek; -1 for a position before the beginning.
  int64_t seek(int64_t offset, int whence);
  /// errno of the last failed read, or 0.
  int error() const { return error_; }

 private:
  int fd_;
  Container::Part part_;
  std::span<const Container::Patch> patches_;
  uint64_t at_ = 0;
  int error_ = 0;
};

/// Thrown by a decoder. AudioReader adds the file's name and the position.
struct DecodeFault {
  std::string reason;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  const AudioInfo& info() const { return info_; }
  /// Writes interleaved frames to `to`. Returns fewer frames than requested only at the end, or before a position at
  /// which the next call throws DecodeFault.
  virtual int64_t read(int64_t frames, float* to) = 0;
  /// False if the format cannot seek or seeking fails. The position is then undefined.
  virtual bool seek(int64_t frame) = 0;

 protected:
  AudioInfo info_;
};

/// Throw DecodeFault if the bytes are not audio. The range must outlive the decoder.
std::unique_ptr<Decoder> open_with_libsndfile(ByteRange&);
std::unique_ptr<Decoder> open_with_libmpg123(ByteRange&);

}  // namespace nacre::training
