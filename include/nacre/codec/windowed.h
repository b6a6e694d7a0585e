#pragma once
// Coding of audio of any length in bounded memory, by windows of one fixed length that overlap by the receptive field.
// The first window starts at the first frame. The last window ends at the last frame: it is shifted back and never
// extended with zeros. Each side of a kept frame therefore has either its whole receptive field or the true edge of the
// signal. The windows depend only on the total length, so the sizes of the pushed pieces do not change any bit.
//
// A recurrent network (CodecConfig::recurrent) needs all that came before. Its windows do not overlap: they are the
// blocks of nacre/codec/streaming.h. A signal of at most one window is coded as a whole.
//
// A segmented codec (CodecConfig::segmented) is coded segment by segment: segment i begins at sample i *
// segment_stride, and the last one ends with the signal. Decoded segments overlap and are joined as EnCodec joins them
// (published code): sample n of a segment has the weight 1/2 - |t - 1/2| with t = (n + 1) / (L + 1), where L is the
// length of the first decoded segment, and the output is the sum of weighted samples over the sum of weights.
//
// If every frame of another codec depends on the whole signal (CodecConfig::needs_whole_signal), there is one window of
// all of it, when the signal ends. Memory then grows with its length.
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "nacre/codec/codec.h"

namespace nacre {

template <class In, class Out>
class BlockStream;
class OverlapAdd;

/// Default window length in frames: about two seconds, at least four receptive fields. Half a second for a recurrent
/// network, whose last window is completed by zeros. For a segmented codec, the frames of a segment, whatever window is
/// asked for.
int64_t default_window_frames(const CodecConfig&);

/// The window length for a signal of `total` frames. It is `window` if the signal is that long. Otherwise it is the
/// longest of window / 2, window / 4, ... that fits and still holds four contexts, or the whole signal if none does.
/// Every new length needs a new plan, so a few lengths serve all files.
int64_t fitting_window(int64_t window, int64_t context, int64_t total);

/// Decides which frames of which window are kept. It only does arithmetic and serves both directions.
class WindowSchedule {
 public:
  /// context: number of frames dropped at a cut edge. Throws Error(usage) unless window > 2 * context.
  WindowSchedule(int64_t window, int64_t context);
  struct Window {
    int64_t start = 0, frames = 0;  ///< in frames of the signal
    int64_t keep = 0, kept = 0;     ///< first kept frame (in frames of the signal) and number of kept frames
  };
  /// The next window if `available` frames are known and the signal has more. Returns false if more frames are needed.
  bool next(int64_t available, Window& out);
  /// The last window of a signal of `total` frames. Returns false if all frames have been kept.
  bool last(int64_t total, Window& out);
  /// No later window needs frames before this one.
  int64_t needed_from() const;

 private:
  int64_t window_, context_, step_, index_ = 0, done_ = 0;
};

/// Encodes samples to codes. The codec must outlive the encoder and must not be moved. Invalid calls throw Error(usage)
/// and change nothing: non-finite samples, a push() or a second finish() after finish(). If a call ends by another
/// exception, also one of the sink, codes are lost, and later calls throw Error(usage).
class WindowedEncoder {
 public:
  /// Receives consecutive frames of codes [1, frames, 1, codes per frame]: of a segmented codec, those of one segment.
  /// scale: of that segment, if CodecConfig::segment_scale; otherwise 1.
  using Sink = std::function<void(View<const int32_t> codes, float scale)>;
  /// codebooks: as of Codec::reserve_inference().
  WindowedEncoder(Codec&, Sink, int64_t window_frames = 0, int64_t codebooks = 0);
  WindowedEncoder(WindowedEncoder&&) noexcept;
  ~WindowedEncoder();
  /// Any number of samples at the model's rate, channels interleaved. Throws Error(usage) for a part of a sample.
  void push(std::span<const float> samples);
  /// Ends the signal. Its last frame is padded with zeros, unless CodecConfig::takes_any_length(). Returns the number
  /// of samples per channel.
  int64_t finish();

 private:
  struct Coded {
    std::vector<int32_t> codes;
    float scale = 1;
  };
  void take(std::span<const float> samples);
  void end();
  Coded code(int64_t from, int64_t to);
  void run(const WindowSchedule::Window&);
  void run_whole(int64_t from, int64_t to);
  void drop_before(int64_t sample);
  void run_blocks(bool last);
  Codec& codec_;
  Sink sink_;
  int64_t window_, stages_, columns_, context_;
  WindowSchedule schedule_;
  std::unique_ptr<BlockStream<float, int32_t>> blocks_;  // of a recurrent codec, once the signal exceeds a window
  std::vector<float> buffer_;
  int64_t buffer_start_ = 0, samples_ = 0;  // in samples of the signal, per channel
  bool finished_ = false, broken_ = false;
};

/// Decodes codes to samples, under the same rules. Codes outside of [0, codebook_size) throw Error(usage).
class WindowedDecoder {
 public:
  /// Receives consecutive samples at the model's rate, channels interleaved.
  using Sink = std::function<void(std::span<const float> samples)>;
  /// codebooks: as of Codec::reserve_inference().
  WindowedDecoder(Codec&, Sink, int64_t window_frames = 0, int64_t codebooks = 0);
  WindowedDecoder(WindowedDecoder&&) noexcept;
  ~WindowedDecoder();
  /// Frames of CodecConfig::codes_per_frame(codebooks) codes each, stages innermost. For a segmented codec, the frames of one segment and its
  /// scale: those of `segment` samples, or fewer where the signal ends, which may be in the last two segments. Throws
  /// Error(usage) for a scale that is not finite or not positive, and for one other than 1 if the codec has no
  /// CodecConfig::segment_scale.
  void push(std::span<const int32_t> codes, float scale = 1);
  void finish();

 private:
  void take(std::span<const int32_t> codes);
  void expect_segment(int64_t frames) const;
  void take_segment(std::span<const int32_t> codes, float scale);
  void end();
  std::vector<float> samples_of(std::span<const int32_t> frames, float scale);
  void run(const WindowSchedule::Window&);
  void run_blocks(bool last);
  Codec& codec_;
  Sink sink_;
  int64_t window_, stages_, columns_, context_;
  WindowSchedule schedule_;
  std::unique_ptr<BlockStream<int32_t, float>> blocks_;
  std::unique_ptr<OverlapAdd> overlap_;  // of a segmented codec, from the first segment on
  std::vector<int32_t> buffer_;
  int64_t buffer_start_ = 0, frames_ = 0, short_frames_ = 0;  // the latter of a segment that is not whole
  bool finished_ = false, broken_ = false;
};

}  // namespace nacre
