#pragma once
// Coding of a signal while it arrives, block by block. Every layer keeps the rows of its input that later outputs need,
// so nothing is computed twice and a block costs the same wherever it stands. A network that looks ahead delivers its
// results later by exactly that much; see latency().
//
// Every block has the same shape, so the sizes of the pushed pieces do not change any bit. Codes and samples are those
// of Codec::encode() and decode() for the whole signal up to rounding, because sums over other shapes have another
// order.
//
// A network that reflects the start of the signal (CodecConfig::padding) needs more of it before the first result:
// StreamingLatency::start.
#include <functional>
#include <memory>
#include <span>

#include "nacre/codec/codec.h"

namespace nacre {

struct StreamingOptions {
  int64_t block_frames = 1;  ///< frames per block. Longer blocks take less time per frame and delay results
  int64_t codebooks = 0;     ///< as of Codec::reserve_inference()
};

/// Delays of a streaming encoder or decoder, in samples at the model's rate.
struct StreamingLatency {
  int64_t block = 0;      ///< samples of a block
  int64_t lookahead = 0;  ///< samples by which results are behind the blocks that have been pushed
  int64_t start = 0;      ///< samples of the first block, if it must be longer; 0: it is as long as the others
  bool operator==(const StreamingLatency&) const = default;
};

/// The delays of a configuration, for blocks of this many frames. Throw Error(usage) for a network whose frames depend
/// on the whole signal.
StreamingLatency encoding_latency(const CodecConfig&, int64_t block_frames = 1);
StreamingLatency decoding_latency(const CodecConfig&, int64_t block_frames = 1);

/// Encodes samples to codes. The codec must outlive the encoder, and its parameters must not change meanwhile. The
/// encoder has memory of its own: any number of encoders and decoders of one codec may run at the same time, each in
/// one thread at a time. A beam and denoising are those of the codec when the encoder was made; no other thread may set
/// them then.
///
/// No call allocates after the constructor, except in error messages. Invalid calls throw Error(usage) and change
/// nothing: non-finite samples, a push() or a second finish() after finish(). If a call ends by another exception, also
/// one of the sink, results are lost, and calls throw Error(usage) until reset().
class StreamingEncoder {
 public:
  /// Receives consecutive frames of codes [1, frames, 1, codes per frame], valid during the call.
  using Sink = std::function<void(View<const int32_t> codes)>;
  /// Throws Error(usage) for a network whose frames depend on the whole signal (CodecConfig::needs_whole_signal), for a
  /// segmented codec and for options out of range.
  StreamingEncoder(Codec&, Sink, StreamingOptions = {});
  StreamingEncoder(StreamingEncoder&&) noexcept;
  StreamingEncoder& operator=(StreamingEncoder&&) noexcept;
  ~StreamingEncoder();
  /// Any number of samples at the model's rate, channels interleaved. The sink gets every frame that they complete.
  void push(std::span<const float> samples);
  /// Ends the signal: pads its last frame with zeros and delivers the remaining frames. Returns the number of samples
  /// per channel.
  int64_t finish();
  /// Prepares for another signal.
  void reset();
  StreamingLatency latency() const;
  size_t reserved_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Decodes codes to samples, under the same rules. Codes outside of [0, codebook_size) throw Error(usage).
class StreamingDecoder {
 public:
  /// Receives consecutive samples at the model's rate, channels interleaved, valid during the call.
  using Sink = std::function<void(std::span<const float> samples)>;
  StreamingDecoder(Codec&, Sink, StreamingOptions = {});
  StreamingDecoder(StreamingDecoder&&) noexcept;
  StreamingDecoder& operator=(StreamingDecoder&&) noexcept;
  ~StreamingDecoder();
  /// Frames of CodecConfig::codes_per_frame(codebooks) codes each, stages innermost. The sink gets every sample
  /// that they complete.
  void push(std::span<const int32_t> codes);
  /// Ends the signal and delivers the remaining samples: hop for every frame. Returns the number of frames.
  int64_t finish();
  void reset();
  StreamingLatency latency() const;
  size_t reserved_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
