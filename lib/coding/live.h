#pragma once
// Coding of a signal while it arrives. FileCodec decides when; see docs/program.md, "Live".
#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "nacre/coding/codec_files.h"

namespace nacre::training {

/// Applies FileHooks during one call. `unfinished` is true from the moment when an output file may exist until the call
/// ends, also by an exception.
class Hooked {
 public:
  explicit Hooked(const FileHooks& hooks) : hooks_(hooks) {}
  ~Hooked() {
    // OutputFile has removed the file by then, or renamed it.
    if (hooks_.unfinished != nullptr) hooks_.unfinished->store(false);
  }
  void output_begins() {
    if (hooks_.unfinished != nullptr) hooks_.unfinished->store(true);
  }
  void check() const {
    if (hooks_.stop != nullptr && hooks_.stop->load() != 0) throw Stopped{hooks_.stop->load()};
  }
  void at(double seconds, double total) const {
    check();
    if (hooks_.progress) hooks_.progress(seconds, total);
  }

 private:
  const FileHooks& hooks_;
};

/// True for standard input and for a pipe with a name.
bool arrives(const std::string& path);

/// FileCodec::encode() with EncodeOptions::gain for audio that arrives.
FileReport encode_live(Codec&, uint64_t identity, const std::string& audio, const std::string& stream, Hooked&,
                       const EncodeOptions&);

/// A stream whose header has been read and belongs to the model.
struct ArrivingStream {
  StreamHeader header;
  std::string name;
  std::function<std::optional<StreamPacket>()> next;
  std::function<uint64_t()> samples, bytes;  ///< valid once next() has returned nothing
};
/// True if decode_live() can write this stream: the codec does not need the whole signal or has segments, and the sizes
/// fit into a WAV header.
bool can_decode_live(const CodecConfig&, const StreamHeader&, const DecodeOptions&);
/// FileCodec::decode() from standard input to standard output. codebooks: how many of the stream's are decoded.
FileReport decode_live(Codec&, const ArrivingStream&, int64_t codebooks, const DecodeOptions&, Hooked&);

}  // namespace nacre::training
