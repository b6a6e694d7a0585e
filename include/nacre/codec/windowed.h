#pragma once
// Coding of audio of any length in bounded memory, by windows of one fixed length that overlap by the receptive field.
// The first window starts at the first frame. The last window ends at the last frame: it is shifted back and never
// extended with zeros. Each side of a kept frame therefore has either its whole receptive field or the true edge of the
// signal. The windows depend only on the total length, so the sizes of the pushed pieces do not change any bit.
//
// A recurrent network (CodecConfig::recurrent) needs all that came before. Its windows do not overlap: they are the
// blocks of nacre/codec/streaming.h. A signal of at most one window is coded as a whole.
//
// If every frame depends on the whole signal (CodecConfig::needs_whole_signal), there is one window of all of it, when
// the signal ends. Memory then grows with its length.
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "nacre/codec/codec.h"

namespace nacre {

template <class In, class Out>
class BlockStream;

/// Default window length in frames: about two seconds, at least four receptive fields. Half a second for a recurrent
/// network, whose last window is completed by zeros.
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
/// and change nothing: non-finite samples, a push() or a second finish() after finish().
class WindowedEncoder {
 public:
  /// Receives consecutive frames of codes [1, frames, 1, codebooks].
  using Sink = std::function<void(View<const int32_t> codes)>;
  /// codebooks: as of Codec::reserve_inference().
  WindowedEncoder(Codec&, Sink, int64_t window_frames = 0, int64_t codebooks = 0);
  WindowedEncoder(WindowedEncoder&&) noexcept;
  ~WindowedEncoder();
  /// Any number of mono samples at the model's rate.
  void push(std::span<const float> samples);
  /// Ends the signal and pads its last frame with zeros. Returns the number of samples.
  int64_t finish();

 private:
  void take(std::span<const float> samples);
  void end();
  void run(const WindowSchedule::Window&);
  void run_blocks(bool last);
  Codec& codec_;
  Sink sink_;
  int64_t window_, stages_, context_;
  WindowSchedule schedule_;
  std::unique_ptr<BlockStream<float, int32_t>> blocks_;  // of a recurrent codec, once the signal exceeds a window
  std::vector<float> buffer_;
  int64_t buffer_start_ = 0, samples_ = 0;  // in samples of the signal
  bool finished_ = false;
};

/// Decodes codes to samples, under the same rules. Codes outside of [0, codebook_size) throw Error(usage).
class WindowedDecoder {
 public:
  /// Receives consecutive samples at the model's rate.
  using Sink = std::function<void(std::span<const float> samples)>;
  /// codebooks: as of Codec::reserve_inference().
  WindowedDecoder(Codec&, Sink, int64_t window_frames = 0, int64_t codebooks = 0);
  WindowedDecoder(WindowedDecoder&&) noexcept;
  ~WindowedDecoder();
  /// Frames of `codebooks` codes each, stages innermost.
  void push(std::span<const int32_t> codes);
  void finish();

 private:
  void take(std::span<const int32_t> codes);
  void end();
  void run(const WindowSchedule::Window&);
  void run_blocks(bool last);
  Codec& codec_;
  Sink sink_;
  int64_t window_, stages_, context_;
  WindowSchedule schedule_;
  std::unique_ptr<BlockStream<int32_t, float>> blocks_;
  std::vector<int32_t> buffer_;
  int64_t buffer_start_ = 0, frames_ = 0;
  bool finished_ = false;
};

}  // namespace nacre
