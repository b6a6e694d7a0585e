// Coding of long signals by windows. The header has the rules. The configuration decides which of four ways is taken:
//
//   segmented             segment by segment (run_whole, take_segment), joined by OverlapAdd
//   needs_whole_signal    nothing until the end, then everything at once
//   in_blocks             recurrent: blocks of a stream with state (run_blocks), once the signal exceeds a window
//   takes_windows         windows that overlap by the receptive field (WindowSchedule, run)
//
// Encoder and decoder are twins. Both collect what is pushed in `buffer_`, whose first element is that of
// buffer_start_, run what is complete, and drop what no later window needs. end() runs the rest.
#include "nacre/codec/windowed.h"

#include <algorithm>
#include <string>
#include <utility>

#include "codec/block_coder.h"
#include "codec/callers.h"
#include "codec/overlap.h"

namespace nacre {

namespace {

/// Whether windows are blocks of a stream.
bool in_blocks(const CodecConfig& c) { return c.recurrent() && !c.takes_any_length(); }
/// Whether a window may be any part of the signal that holds the receptive field.
bool takes_windows(const CodecConfig& c) { return !c.recurrent() && !c.takes_any_length(); }

}  // namespace

int64_t default_window_frames(const CodecConfig& c) {
  if (c.segmented()) return c.frames_of(c.segment);
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

// Windows and what is kept of them, for a window of 8 frames and a context of 2, so that step is 4 (+ kept, - dropped):
//
//   frame      0   4   8   12
//   window 0   ++++++--
//   window 1       --++++--
//   last            -----+++     of a signal of 13 frames: it begins at 13 - 8
//
// Kept parts follow each other without gaps; done_ is the number of frames kept so far.
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
  // For every window but the first, done_ is start + context here.
  out = {start, window_, done_, start + window_ - context_ - done_};
  done_ += out.kept;
  return true;
}

bool WindowSchedule::last(int64_t total, Window& out) {
  if (done_ >= total) return false;
  // Shifted back to end at the end of the signal. Once next() has returned false for `total`, total is at most index_ *
  // step + window, so this window starts at or before index_ * step = done_ - context, or at 0. The first kept frame
  // has its whole context.
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

// Checks of arguments, before any member is used.
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
      columns_(codec.config().codes_per_frame(stages_)),
      context_(codec.config().encoder_context()),
      // Where windows are used, one of at most twice the context is refused here. Other codecs ignore the schedule, or
      // set it again in end(), so any valid one will do.
      schedule_(std::max(window_, takes_windows(codec.config()) ? 0 : 2 * context_ + 1), context_) {}
WindowedEncoder::WindowedEncoder(WindowedEncoder&&) noexcept = default;
WindowedEncoder::~WindowedEncoder() = default;

/// Codes the samples [from, to) of the signal, without what lies around them. They must be in the buffer. Copies to the
/// device and back, and waits.
WindowedEncoder::Coded WindowedEncoder::code(int64_t from, int64_t to) {
  const CodecConfig& config = codec_.config();
  const int64_t samples = to - from, frames = config.frames_of(samples), width = config.audio_channels;
  // No new plan unless the length changes.
  codec_.reserve_inference(1, samples, Codec::Use::encode, stages_);
  Context& ctx = codec_.context();
  Memory audio(ctx, static_cast<size_t>(samples * width) * sizeof(float));
  Memory codes(ctx, static_cast<size_t>(frames * columns_) * sizeof(int32_t));
  Memory level(ctx, sizeof(float));
  const View<float> x(reinterpret_cast<float*>(audio.data()), {.time = samples, .channels = width});
  const View<int32_t> c(reinterpret_cast<int32_t*>(codes.data()), {.time = frames, .channels = columns_});
  const View<float> scale(config.segment_scale ? reinterpret_cast<float*>(level.data()) : nullptr, {});
  ctx.write<float>(
      std::span<const float>(buffer_.data() + (from - buffer_start_) * width, static_cast<size_t>(samples * width)), x);
  codec_.encode(x, c, {}, scale);
  Coded coded{.codes = std::vector<int32_t>(static_cast<size_t>(frames * columns_))};
  ctx.read<int32_t>(c, coded.codes);
  if (config.segment_scale) ctx.read<float>(scale, std::span<float>(&coded.scale, 1));
  return coded;
}

/// Codes a window and passes on the frames that are kept of it.
void WindowedEncoder::run(const WindowSchedule::Window& w) {
  const int64_t hop = codec_.config().hop();
  const Coded coded = code(w.start * hop, (w.start + w.frames) * hop);
  sink_(View<const int32_t>(coded.codes.data() + (w.keep - w.start) * columns_, {.time = w.kept, .channels = columns_}),
        1);
}
/// Codes samples as a signal of their own, such as a segment, and passes all frames on.
void WindowedEncoder::run_whole(int64_t from, int64_t to) {
  const Coded coded = code(from, to);
  sink_({coded.codes.data(), {.time = codec_.config().frames_of(to - from), .channels = columns_}}, coded.scale);
}
/// Forgets the samples before this one. A segment's successor may begin behind the newest sample.
void WindowedEncoder::drop_before(int64_t sample) {
  sample = std::min(sample, samples_);
  if (sample <= buffer_start_) return;
  buffer_.erase(buffer_.begin(), buffer_.begin() + (sample - buffer_start_) * codec_.config().audio_channels);
  buffer_start_ = sample;
}

/// Passes on what has been pushed, and ends the signal if it is the last part.
void WindowedEncoder::run_blocks(bool last) {
  const char* const call = last ? "finish" : "push";
  // The stream copies what it needs, so the buffer is empty afterwards. buffer_start_ is not used from here on.
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
      // take() shortens x. Copied, because the result belongs to the coder, which the sink may use for another signal.
      const std::span<const int32_t> rows = x.empty() ? blocks_->take_last(coder) : blocks_->take(coder, x);
      codes.assign(rows.begin(), rows.end());
    }
    const auto frames = static_cast<int64_t>(codes.size()) / columns_;
    if (frames > 0) sink_({codes.data(), {.time = frames, .channels = columns_}}, 1);
  }
}

void WindowedEncoder::push(std::span<const float> samples) {
  expect_unfinished("push", finished_);
  expect_samples("push", samples, codec_.config().audio_channels);
  Changing change(broken_, "push", "a new object");
  within_memory("push", [&] { take(samples); });
  change.done();
}
/// push() after its checks.
void WindowedEncoder::take(std::span<const float> samples) {
  const CodecConfig& config = codec_.config();
  const int64_t hop = config.hop(), width = config.audio_channels;
  // Bounds the buffer even if a push is large.
  const auto piece = static_cast<size_t>(window_ * hop * width);
  for (size_t at = 0; at < samples.size(); at += piece) {
    const std::span<const float> part = samples.subspan(at, std::min(piece, samples.size() - at));
    buffer_.insert(buffer_.end(), part.begin(), part.end());
    samples_ += static_cast<int64_t>(part.size()) / width;
    if (config.segmented()) {
      for (; buffer_start_ + config.segment <= samples_; drop_before(buffer_start_ + config.segment_stride))
        run_whole(buffer_start_, buffer_start_ + config.segment);
      continue;
    }
    if (config.needs_whole_signal()) continue;
    if (in_blocks(config)) {
      // A signal of at most one window is coded as a whole, by end(). The first run of blocks takes all that waited.
      if (samples_ > window_ * hop) run_blocks(false);
      continue;
    }
    // A frame counts as available if its samples are and at least one more sample shows that the signal continues.
    WindowSchedule::Window w;
    while (schedule_.next(config.frames_of(samples_), w)) {
      run(w);
      drop_before(schedule_.needed_from() * hop);
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
/// Codes what is left when the signal has ended.
void WindowedEncoder::end() {
  if (blocks_) return run_blocks(true);
  const CodecConfig& config = codec_.config();
  // Segments that begin before the end of the signal and reach beyond it are shorter than the others.
  if (config.takes_any_length()) {
    for (; buffer_start_ < samples_; drop_before(config.segmented() ? buffer_start_ + config.segment_stride : samples_))
      run_whole(buffer_start_, config.segmented() ? std::min(samples_, buffer_start_ + config.segment) : samples_);
    return;
  }
  const int64_t frames = config.frames_of(samples_);
  // Whole frames: the last one is padded with zeros.
  buffer_.resize(static_cast<size_t>((frames * config.hop() - buffer_start_) * config.audio_channels), 0.0f);
  // A recurrent codec gets one window of everything. Where windows overlap, a signal of at most one window of the usual
  // length has had none computed yet, and shorter ones may be used.
  if (in_blocks(config))
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
      columns_(codec.config().codes_per_frame(stages_)),
      context_(codec.config().decoder_context()),
      schedule_(std::max(window_, takes_windows(codec.config()) ? 0 : 2 * context_ + 1), context_) {}
WindowedDecoder::WindowedDecoder(WindowedDecoder&&) noexcept = default;
WindowedDecoder::~WindowedDecoder() = default;

/// The samples of frames, without what lies around them: hop for each frame, channels interleaved.
std::vector<float> WindowedDecoder::samples_of(std::span<const int32_t> frames, float scale) {
  const CodecConfig& config = codec_.config();
  const int64_t count = static_cast<int64_t>(frames.size()) / columns_, samples = count * config.hop();
  codec_.reserve_inference(1, samples, Codec::Use::decode, stages_);
  Context& ctx = codec_.context();
  std::vector<float> host(static_cast<size_t>(samples * config.audio_channels));
  Memory audio(ctx, host.size() * sizeof(float)), codes(ctx, frames.size_bytes()), level(ctx, sizeof(float));
  const View<float> x(reinterpret_cast<float*>(audio.data()), {.time = samples, .channels = config.audio_channels});
  const View<int32_t> c(reinterpret_cast<int32_t*>(codes.data()), {.time = count, .channels = columns_});
  const View<float> scales(config.segment_scale ? reinterpret_cast<float*>(level.data()) : nullptr, {});
  ctx.write<int32_t>(frames, c);
  if (config.segment_scale) ctx.write<float>(std::span<const float>(&scale, 1), scales);
  codec_.decode(c, x, {}, scales);
  ctx.read<float>(x, host);
  return host;
}

void WindowedDecoder::run(const WindowSchedule::Window& w) {
  const auto frames = std::span<const int32_t>(buffer_).subspan(
      static_cast<size_t>((w.start - buffer_start_) * columns_), static_cast<size_t>(w.frames * columns_));
  const int64_t per_frame = codec_.config().hop() * codec_.config().audio_channels;
  sink_(std::span<const float>(samples_of(frames, 1))
            .subspan(static_cast<size_t>((w.keep - w.start) * per_frame), static_cast<size_t>(w.kept * per_frame)));
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

void WindowedDecoder::push(std::span<const int32_t> codes, float scale) {
  expect_unfinished("push", finished_);
  if (static_cast<int64_t>(codes.size()) % columns_ != 0)
    throw Error(ErrorKind::usage, "decoder: " + std::to_string(codes.size()) +
                                      " codes are not a whole number of frames of " + std::to_string(columns_));
  const CodecConfig& config = codec_.config();
  expect_codes("push", codes, config);
  if (config.segment_scale) expect_scale("push", scale);
  if (!config.segment_scale && scale != 1)
    throw Error(ErrorKind::usage,
                "push: a scale of " + std::to_string(scale) + ", expected 1: the codec has no scales");
  if (config.segmented()) expect_segment(static_cast<int64_t>(codes.size()) / columns_);
  Changing change(broken_, "push", "a new object");
  within_memory("push", [&] { config.segmented() ? take_segment(codes, scale) : take(codes); });
  change.done();
}
void WindowedDecoder::expect_segment(int64_t frames) const {
  const int64_t whole = codec_.config().frames_of(codec_.config().segment);
  if (frames > whole)
    throw Error(ErrorKind::usage, "push: " + std::to_string(frames) + " frames, expected those of one segment, " +
                                      std::to_string(whole) + " or fewer");
  // A segment behind a short one begins before the short one ends. Segments overlap by half at most, so there is at
  // most one, and it is shorter.
  const CodecConfig& c = codec_.config();
  if (short_frames_ > 0 && frames > c.frames_of(std::max<int64_t>(0, short_frames_ * c.hop() - c.segment_stride)))
    throw Error(ErrorKind::usage, "push: " + std::to_string(frames) + " frames behind a segment of " +
                                      std::to_string(short_frames_) + " frames, which is longer than the signal; " +
                                      "expected finish");
}
void WindowedDecoder::take_segment(std::span<const int32_t> codes, float scale) {
  if (codes.empty()) return;
  if (!overlap_)
    overlap_ = std::make_unique<OverlapAdd>(codec_.config().segment_stride, codec_.config().audio_channels);
  const int64_t frames = static_cast<int64_t>(codes.size()) / columns_;
  if (frames < codec_.config().frames_of(codec_.config().segment)) short_frames_ = frames;
  frames_ += frames;
  const std::vector<float> samples = samples_of(codes, scale);
  // If a segment is no whole number of frames, its last frame gives more samples. They belong to the next segment.
  const CodecConfig& c = codec_.config();
  sink_(overlap_->add(
      std::span(samples).first(std::min(samples.size(), static_cast<size_t>(c.segment * c.audio_channels)))));
}
/// push() after its checks, for all codecs but segmented ones.
void WindowedDecoder::take(std::span<const int32_t> codes) {
  const auto piece = static_cast<size_t>(window_ * columns_);
  for (size_t at = 0; at < codes.size(); at += piece) {
    const std::span<const int32_t> part = codes.subspan(at, std::min(piece, codes.size() - at));
    buffer_.insert(buffer_.end(), part.begin(), part.end());
    frames_ += static_cast<int64_t>(part.size()) / columns_;
    if (codec_.config().needs_whole_signal()) continue;
    if (in_blocks(codec_.config())) {
      if (frames_ > window_) run_blocks(false);
      continue;
    }
    WindowSchedule::Window w;
    while (schedule_.next(frames_, w)) {
      run(w);
      const int64_t drop = schedule_.needed_from() - buffer_start_;
      if (drop > 0) {
        buffer_.erase(buffer_.begin(), buffer_.begin() + drop * columns_);
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
/// Decodes what is left when the signal has ended.
void WindowedDecoder::end() {
  if (blocks_) return run_blocks(true);
  if (codec_.config().segmented()) {
    if (!overlap_) return;
    if (const std::span<const float> rest = overlap_->finish(); !rest.empty()) sink_(rest);
    return;
  }
  if (codec_.config().needs_whole_signal() || in_blocks(codec_.config()))
    schedule_ = WindowSchedule(std::max(frames_, 2 * context_ + 1), context_);
  else if (frames_ <= window_)
    schedule_ = WindowSchedule(fitting_window(window_, context_, frames_), context_);
  WindowSchedule::Window w;
  while (schedule_.next(frames_, w)) run(w);
  if (schedule_.last(frames_, w)) run(w);
}

}  // namespace nacre
