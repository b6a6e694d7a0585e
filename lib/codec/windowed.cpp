#include "nacre/codec/windowed.h"

#include <algorithm>
#include <string>
#include <utility>

#include "codec/block_coder.h"
#include "codec/callers.h"

namespace nacre {

namespace {

/// Whether windows are blocks of a stream.
bool in_blocks(const CodecConfig& c) { return c.recurrent() && !c.needs_whole_signal(); }

}  // namespace

int64_t default_window_frames(const CodecConfig& c) {
  if (in_blocks(c)) return std::max<int64_t>(1, static_cast<int64_t>(0.5 * c.frame_rate()));
  // Eight contexts, of which two are computed twice: a quarter of the work at most.
  const int64_t context = std::max(c.encoder_context(), c.decoder_context());
  const auto two_seconds = static_cast<int64_t>(2.0 * c.frame_rate());
  return std::max(two_seconds, 4 * 2 * context);
}

int64_t fitting_window(int64_t window, int64_t context, int64_t total) {
  // Halving gives few lengths, hence few plans, for files of all lengths.
  while (window > total && window / 2 >= 4 * context && window > 1) window /= 2;
  // A schedule needs at least one frame between its contexts, even if one window holds the whole signal.
  return window > total ? std::max(total, 2 * context + 1) : window;
}

// ---- WindowSchedule

WindowSchedule::WindowSchedule(int64_t window, int64_t context)
    : window_(window), context_(context), step_(window - 2 * context) {
  if (context < 0 || step_ < 1)
    throw Error(ErrorKind::usage, "window of " + std::to_string(window) +
                                      " frames, expected more than twice the context of " + std::to_string(context));
}

bool WindowSchedule::next(int64_t available, Window& out) {
  // Window i starts at i * step. Its first `context` frames were kept from the window before, and its last ones will be
  // kept from the next. The first window keeps its first frames as well, because nothing is cut off there.
  const int64_t start = index_ * step_;
  if (start + window_ >= available) return false;  // not >: this window could be the last one
  ++index_;
  out = {start, window_, done_, start + window_ - context_ - done_};
  done_ += out.kept;
  return true;
}

bool WindowSchedule::last(int64_t total, Window& out) {
  if (done_ >= total) return false;
  // Shifted back to end at the end of the signal. It starts at or before done_ - context, or at 0, so the first kept
  // frame has its whole context.
  const int64_t start = std::max<int64_t>(0, total - window_);
  out = {start, total - start, done_, total - done_};
  done_ = total;
  return true;
}

int64_t WindowSchedule::needed_from() const {
  // At least one frame follows the newest window, so the last window starts at least one frame later.
  return index_ == 0 ? 0 : (index_ - 1) * step_ + 1;
}

namespace {

void expect_unfinished(const char* call, bool finished) {
  if (finished)
    throw Error(ErrorKind::usage,
                std::string(call) + ": called after finish; expected a new object for another signal");
}
template <class Sink>
Sink expect_sink(const char* object, Sink sink) {
  if (!sink) throw Error(ErrorKind::usage, std::string(object) + ": the sink is empty, expected a function");
  return sink;
}
int64_t window_or_default(const char* object, int64_t frames, const CodecConfig& config) {
  if (frames < 0)
    throw Error(ErrorKind::usage, std::string(object) + ": window of " + std::to_string(frames) +
                                      " frames, expected a positive number, or 0 for the default");
  return frames > 0 ? frames : default_window_frames(config);
}

}  // namespace

// ---- WindowedEncoder

WindowedEncoder::WindowedEncoder(Codec& codec, Sink sink, int64_t window_frames, int64_t codebooks)
    : codec_(codec),
      sink_(expect_sink("WindowedEncoder", std::move(sink))),
      window_(window_or_default("WindowedEncoder", window_frames, codec.config())),
      stages_(codec.config().codebooks_used("WindowedEncoder", codebooks)),
      context_(codec.config().encoder_context()),
      schedule_(std::max(window_, in_blocks(codec.config()) ? 2 * context_ + 1 : 0), context_) {}
WindowedEncoder::WindowedEncoder(WindowedEncoder&&) noexcept = default;
WindowedEncoder::~WindowedEncoder() = default;

void WindowedEncoder::run(const WindowSchedule::Window& w) {
  const int64_t hop = codec_.config().hop();
  // No new plan unless the length changes.
  codec_.reserve_inference(1, w.frames * hop, Codec::Use::encode, stages_);
  Context& ctx = codec_.context();
  Memory audio(ctx, static_cast<size_t>(w.frames * hop) * sizeof(float));
  Memory codes(ctx, static_cast<size_t>(w.frames * stages_) * sizeof(int32_t));
  const View<float> x(reinterpret_cast<float*>(audio.data()), {.time = w.frames * hop});
  const View<int32_t> c(reinterpret_cast<int32_t*>(codes.data()), {.time = w.frames, .channels = stages_});
  ctx.write<float>(
      std::span<const float>(buffer_.data() + (w.start * hop - buffer_start_), static_cast<size_t>(w.frames * hop)), x);
  codec_.encode(x, c);
  std::vector<int32_t> host(static_cast<size_t>(w.frames * stages_));
  ctx.read<int32_t>(c, host);
  sink_(View<const int32_t>(host.data() + (w.keep - w.start) * stages_, {.time = w.kept, .channels = stages_}), 1);
}

/// Passes on what has been pushed, and ends the signal if it is the last part.
void WindowedEncoder::run_blocks(bool last) {
  const char* const call = last ? "finish" : "push";
  const std::vector<float> taken = std::exchange(buffer_, {});
  std::span<const float> x = taken;
  std::vector<int32_t> codes;
  for (bool more = true; more;) {
    {
      // The sink may use the codec, so the codec is free again when it is called.
      const InUse alone(CodecBlocks::in_use(codec_, call), call, "codec");
      EncodeBlocks& coder = CodecBlocks::shared_encoder(codec_, window_, stages_);
      if (!blocks_) blocks_ = std::make_unique<BlockStream<float, int32_t>>(coder, true);
      more = !x.empty() || (last && blocks_->owes(coder));
      if (!more) break;
      const std::span<const int32_t> rows = x.empty() ? blocks_->take_last(coder) : blocks_->take(coder, x);
      codes.assign(rows.begin(), rows.end());
    }
    const auto frames = static_cast<int64_t>(codes.size()) / stages_;
    if (frames > 0) sink_({codes.data(), {.time = frames, .channels = stages_}}, 1);
  }
}

void WindowedEncoder::push(std::span<const float> samples) {
  expect_unfinished("push", finished_);
  expect_finite("push", samples);
  Changing change(broken_, "push", "a new object");
  within_memory("push", [&] { take(samples); });
  change.done();
}
void WindowedEncoder::take(std::span<const float> samples) {
  const int64_t hop = codec_.config().hop();
  const auto piece = static_cast<size_t>(window_ * hop);  // samples; bounds the buffer even if a push is large
  for (size_t at = 0; at < samples.size(); at += piece) {
    const std::span<const float> part = samples.subspan(at, std::min(piece, samples.size() - at));
    buffer_.insert(buffer_.end(), part.begin(), part.end());
    samples_ += static_cast<int64_t>(part.size());
    if (in_blocks(codec_.config())) {
      if (samples_ > window_ * hop) run_blocks(false);
      continue;
    }
    // A frame counts as available if its samples are and at least one more sample shows that the signal continues.
    WindowSchedule::Window w;
    while (!codec_.config().needs_whole_signal() && schedule_.next((samples_ + hop - 1) / hop, w)) {
      run(w);
      const int64_t drop = schedule_.needed_from() * hop - buffer_start_;
      if (drop > 0) {
        buffer_.erase(buffer_.begin(), buffer_.begin() + drop);
        buffer_start_ += drop;
      }
    }
  }
}

int64_t WindowedEncoder::finish() {
  expect_unfinished("finish", finished_);
  Changing change(broken_, "finish", "a new object");
  within_memory("finish", [&] { end(); });
  finished_ = true;
  change.done();
  return samples_;
}
void WindowedEncoder::end() {
  if (blocks_) return run_blocks(true);
  const int64_t hop = codec_.config().hop(), frames = (samples_ + hop - 1) / hop;
  // Whole frames: the last one is padded with zeros.
  buffer_.resize(buffer_.size() + static_cast<size_t>(frames * hop - samples_), 0.0f);
  // Short enough for one window of the usual length, so no window has been computed yet, and shorter ones may be used.
  if (codec_.config().needs_whole_signal() || in_blocks(codec_.config()))
    schedule_ = WindowSchedule(std::max(frames, 2 * context_ + 1), context_);
  else if (frames <= window_)
    schedule_ = WindowSchedule(fitting_window(window_, context_, frames), context_);
  WindowSchedule::Window w;
  while (schedule_.next(frames, w)) run(w);
  if (schedule_.last(frames, w)) run(w);
}

// ---- WindowedDecoder

// The decoder mirrors the encoder. Its unit is the frame, so it needs no padding and no rounding.
WindowedDecoder::WindowedDecoder(Codec& codec, Sink sink, int64_t window_frames, int64_t codebooks)
    : codec_(codec),
      sink_(expect_sink("WindowedDecoder", std::move(sink))),
      window_(window_or_default("WindowedDecoder", window_frames, codec.config())),
      stages_(codec.config().codebooks_used("WindowedDecoder", codebooks)),
      context_(codec.config().decoder_context()),
      schedule_(std::max(window_, in_blocks(codec.config()) ? 2 * context_ + 1 : 0), context_) {}
WindowedDecoder::WindowedDecoder(WindowedDecoder&&) noexcept = default;
WindowedDecoder::~WindowedDecoder() = default;

void WindowedDecoder::run(const WindowSchedule::Window& w) {
  const int64_t hop = codec_.config().hop();
  codec_.reserve_inference(1, w.frames * hop, Codec::Use::decode, stages_);
  Context& ctx = codec_.context();
  Memory audio(ctx, static_cast<size_t>(w.frames * hop) * sizeof(float));
  Memory codes(ctx, static_cast<size_t>(w.frames * stages_) * sizeof(int32_t));
  const View<float> x(reinterpret_cast<float*>(audio.data()), {.time = w.frames * hop});
  const View<int32_t> c(reinterpret_cast<int32_t*>(codes.data()), {.time = w.frames, .channels = stages_});
  ctx.write<int32_t>(std::span<const int32_t>(buffer_.data() + (w.start - buffer_start_) * stages_,
                                              static_cast<size_t>(w.frames * stages_)),
                     c);
  codec_.decode(c, x);
  std::vector<float> host(static_cast<size_t>(w.frames * hop));
  ctx.read<float>(x, host);
  sink_(std::span<const float>(host).subspan(static_cast<size_t>((w.keep - w.start) * hop),
                                             static_cast<size_t>(w.kept * hop)));
}

void WindowedDecoder::run_blocks(bool last) {
  const char* const call = last ? "finish" : "push";
  const std::vector<int32_t> taken = std::exchange(buffer_, {});
  std::span<const int32_t> x = taken;
  std::vector<float> samples;
  for (bool more = true; more;) {
    {
      const InUse alone(CodecBlocks::in_use(codec_, call), call, "codec");
      DecodeBlocks& coder = CodecBlocks::shared_decoder(codec_, window_, stages_);
      if (!blocks_) blocks_ = std::make_unique<BlockStream<int32_t, float>>(coder, true);
      more = !x.empty() || (last && blocks_->owes(coder));
      if (!more) break;
      const std::span<const float> rows = x.empty() ? blocks_->take_last(coder) : blocks_->take(coder, x);
      samples.assign(rows.begin(), rows.end());
    }
    if (!samples.empty()) sink_(samples);
  }
}

void WindowedDecoder::push(std::span<const int32_t> codes, float) {
  expect_unfinished("push", finished_);
  if (static_cast<int64_t>(codes.size()) % stages_ != 0)
    throw Error(ErrorKind::usage, "decoder: " + std::to_string(codes.size()) +
                                      " codes are not a whole number of frames of " + std::to_string(stages_));
  expect_codes("push", codes, codec_.config());
  Changing change(broken_, "push", "a new object");
  within_memory("push", [&] { take(codes); });
  change.done();
}
void WindowedDecoder::take(std::span<const int32_t> codes) {
  const auto piece = static_cast<size_t>(window_ * stages_);
  for (size_t at = 0; at < codes.size(); at += piece) {
    const std::span<const int32_t> part = codes.subspan(at, std::min(piece, codes.size() - at));
    buffer_.insert(buffer_.end(), part.begin(), part.end());
    frames_ += static_cast<int64_t>(part.size()) / stages_;
    if (in_blocks(codec_.config())) {
      if (frames_ > window_) run_blocks(false);
      continue;
    }
    WindowSchedule::Window w;
    while (!codec_.config().needs_whole_signal() && schedule_.next(frames_, w)) {
      run(w);
      const int64_t drop = schedule_.needed_from() - buffer_start_;
      if (drop > 0) {
        buffer_.erase(buffer_.begin(), buffer_.begin() + drop * stages_);
        buffer_start_ += drop;
      }
    }
  }
}

void WindowedDecoder::finish() {
  expect_unfinished("finish", finished_);
  Changing change(broken_, "finish", "a new object");
  within_memory("finish", [&] { end(); });
  finished_ = true;
  change.done();
}
void WindowedDecoder::end() {
  if (blocks_) return run_blocks(true);
  if (codec_.config().needs_whole_signal() || in_blocks(codec_.config()))
    schedule_ = WindowSchedule(std::max(frames_, 2 * context_ + 1), context_);
  else if (frames_ <= window_)
    schedule_ = WindowSchedule(fitting_window(window_, context_, frames_), context_);
  WindowSchedule::Window w;
  while (schedule_.next(frames_, w)) run(w);
  if (schedule_.last(frames_, w)) run(w);
}

}  // namespace nacre
