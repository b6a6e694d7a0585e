#pragma once
// Audio of any length in bounded memory: windows of one fixed length, overlapping by the receptive field. The first
// window starts at the first frame and the last ends at the last one (it is shifted back, never extended with zeros),
// so every kept frame has either its whole receptive field or the true edge of the signal on each side. Which windows
// there are depends on the total length alone, so pieces of any size give the same bits.
#include <functional>
#include <span>
#include <vector>

#include "nacre/codec/codec.h"

namespace nacre {

/// Frames per window when nothing else is asked for: about two seconds, at least four receptive fields.
int64_t default_window_frames(const CodecConfig&);

/// The window for a signal of `total` frames: `window`, or where the signal is shorter the longest of its halves,
/// quarters, ... that fits and still holds four contexts; below that the whole signal. A few lengths serve all files:
/// each new one is planned anew.
int64_t fitting_window(int64_t window, int64_t context, int64_t total);

/// Which frames of which window are kept. Pure arithmetic; shared by both directions.
class WindowSchedule {
 public:
  /// context: frames at a cut edge that are not kept. Throws Error(usage) unless window > 2 * context.
  WindowSchedule(int64_t window, int64_t context);
  struct Window {
    int64_t start = 0, frames = 0;  ///< in frames of the signal
    int64_t keep = 0, kept = 0;     ///< first kept frame (in frames of the signal) and how many
  };
  /// The next window when `available` frames are there and the signal goes on (there are more); none: wait.
  bool next(int64_t available, Window& out);
  /// The last window of a signal of `total` frames; none when everything has been kept.
  bool last(int64_t total, Window& out);
  /// Frames before this one are needed by no later window.
  int64_t needed_from() const;

 private:
  int64_t window_, context_, step_, index_ = 0, done_ = 0;
};

/// Samples in, codes out. The codec must stay where it is. Calls that cannot be taken throw Error(usage) and change
/// nothing: samples that are not finite, a push or a second finish after finish.
class WindowedEncoder {
 public:
  /// Gets consecutive frames of codes [1, frames, 1, n_codebooks].
  using Sink = std::function<void(View<const int32_t> codes)>;
  WindowedEncoder(Codec&, Sink, int64_t window_frames = 0);
  /// Mono samples at the model's rate, any number of them.
  void push(std::span<const float> samples);
  /// The signal ends here; its last frame is filled with zeros. Returns the number of samples.
  int64_t finish();

 private:
  void take(std::span<const float> samples);
  void end();
  void run(const WindowSchedule::Window&);
  Codec& codec_;
  Sink sink_;
  int64_t window_, context_;
  WindowSchedule schedule_;
  std::vector<float> buffer_;
  int64_t buffer_start_ = 0, samples_ = 0;  // in samples of the signal
  bool finished_ = false;
};

/// Codes in, samples out. As above; codes outside of [0, codebook_size) throw Error(usage).
class WindowedDecoder {
 public:
  /// Gets consecutive samples at the model's rate.
  using Sink = std::function<void(std::span<const float> samples)>;
  WindowedDecoder(Codec&, Sink, int64_t window_frames = 0);
  /// Frames of codes, n_codebooks each, stages innermost.
  void push(std::span<const int32_t> codes);
  void finish();

 private:
  void take(std::span<const int32_t> codes);
  void end();
  void run(const WindowSchedule::Window&);
  Codec& codec_;
  Sink sink_;
  int64_t window_, context_;
  WindowSchedule schedule_;
  std::vector<int32_t> buffer_;
  int64_t buffer_start_ = 0, frames_ = 0;
  bool finished_ = false;
};

}  // namespace nacre
