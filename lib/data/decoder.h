#pragma once
// Decoders behind AudioReader: libsndfile for most formats, libmpg123 for MP3, where libsndfile stops at a length that is
// an estimate.
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/container.h"
#include "nacre/data/audio.h"

namespace nacre::training {

/// A part of a descriptor as a file of its own. Reads at positions: it shares no position with anybody.
class ByteRange {
 public:
  ByteRange(int fd, Container::Part part, std::span<const Container::Patch> patches)
      : fd_(fd), part_(part), patches_(patches) {}
  int64_t size() const { return static_cast<int64_t>(part_.end - part_.begin); }
  int64_t tell() const { return static_cast<int64_t>(at_); }
  /// Fewer bytes than asked for at the end, and when the disk fails: see error().
  int64_t read(void* to, int64_t bytes);
  /// As lseek; -1 where that lies before the beginning.
  int64_t seek(int64_t offset, int whence);
  /// errno of the last read that failed, or 0.
  int error() const { return error_; }

 private:
  int fd_;
  Container::Part part_;
  std::span<const Container::Patch> patches_;
  uint64_t at_ = 0;
  int error_ = 0;
};

/// Thrown by a decoder; AudioReader adds the file's name and the place.
struct DecodeFault {
  std::string reason;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  const AudioInfo& info() const { return info_; }
  /// Interleaved frames to `to`; fewer than asked for only at the end, or in front of a place that throws DecodeFault at
  /// the next call.
  virtual int64_t read(int64_t frames, float* to) = 0;
  /// False where the format cannot, or fails to: the position is then undefined.
  virtual bool seek(int64_t frame) = 0;

 protected:
  AudioInfo info_;
};

/// Throw DecodeFault when the bytes are no audio. The range is used until the decoder goes.
std::unique_ptr<Decoder> open_with_libsndfile(ByteRange&);
std::unique_ptr<Decoder> open_with_libmpg123(ByteRange&);

}  // namespace nacre::training
