#pragma once
// One direction of a codec over the blocks of a signal (nacre/nn/plan.h: StreamBlock), and the cutting of a signal into
// blocks. BlockCoder has the plans, BlockStream the position in one signal. A StreamingEncoder has one of each; the
// windows of a recurrent codec share the coder that the codec keeps, and have a stream each (CodecBlocks).
//
// Time is counted in frames of the signal, and in rows of the result, of which a frame has rows_per_frame(). A run of
// frames [p, p + n) gives the rows [p r - lag, (p + n) r - lag), with r = rows_per_frame(). BlockStream returns those
// within the signal, each once.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "nacre/codec/codec.h"
#include "nacre/nn/plan.h"

namespace nacre {

/// What a walk over a block records.
template <class In, class Out>
struct PlannedBlock {
  View<In> in{};           ///< memory of the plan that the block is written to
  View<const Out> out{};   ///< its result
  Flow late{};             ///< the activation whose lag is that of the result
  View<float> scales{};    ///< [1, 1, 1, batch]: of the items, if the codec has scales; a result of the encoder
  View<int32_t> labels{};  ///< [1, 1, 1, batch]: of the items, if this half denoises on request
};

/// Sets the label of all items, if there are labels.
inline void write_labels(Context& ctx, View<int32_t> labels, bool on) {
  if (!labels) return;
  const std::vector<int32_t> all(static_cast<size_t>(labels.elements()), on ? 1 : 0);
  ctx.write<int32_t>(all, labels);
}

/// The plans of one direction: for blocks of one length, and for a first block if that must be longer. The state of the
/// layers lies in the plans and has the same size in both. A signal that begins is a run with `first`, which clears it.
template <class In, class Out>
class BlockCoder {
 public:
  /// Records the direction for a block of `frames` frames.
  using Walk = std::function<PlannedBlock<In, Out>(Plan&, int64_t frames)>;

  BlockCoder(Context& ctx, int64_t frames, const Walk& walk)
      : ctx_(ctx.share()), frames_(frames), block_(std::make_unique<Planned>(ctx_, frames, walk)) {
    const int64_t start = block_->plan.start_frames();
    if (start > frames) start_ = std::make_unique<Planned>(ctx_, start, walk);
    result_.resize(static_cast<size_t>((start_ ? *start_ : *block_).views.out.elements()));
  }

  int64_t frames(bool first) const { return first && start_ ? start_->plan.block_frames() : frames_; }
  /// Rows of the result by which it is late, and rows and elements of a frame.
  int64_t lag() const { return block_->lag; }
  int64_t rows_per_frame() const { return block_->views.out.shape.time / frames_; }
  int64_t out_row() const { return block_->views.out.shape.channels; }
  int64_t in_per_frame() const { return block_->views.in.elements() / frames_; }
  size_t bytes() const { return block_->plan.bytes() + (start_ ? start_->plan.bytes() : 0); }
  size_t unshared_bytes() const { return block_->plan.unshared_bytes() + (start_ ? start_->plan.unshared_bytes() : 0); }

  /// Whether the signal is denoised from the next block on, if this half denoises on request.
  void set_labels(bool on) {
    write_labels(ctx_, block_->views.labels, on);
    if (start_) write_labels(ctx_, start_->views.labels, on);
  }

  size_t state_bytes() const { return block_->plan.state_bytes(); }
  void read_state(std::span<std::byte> to) const { block_->plan.read_state(to); }
  void write_state(std::span<const std::byte> from) { block_->plan.write_state(from); }

  /// Runs a block. `in` has frames(first) frames. The result is valid until the next call.
  std::span<const Out> run(const StreamBlock& at, bool first, std::span<const In> in) {
    Planned& p = first && start_ ? *start_ : *block_;
    if (first) p.plan.reset();
    p.plan.block() = at;
    ctx_.write<In>(in, p.views.in);
    p.plan.run();
    // The second block, and all after it, run in the other plan, which needs the state of the first.
    if (&p != block_.get()) block_->plan.continue_from(p.plan);
    const auto out = std::span(result_).first(static_cast<size_t>(p.views.out.elements()));
    ctx_.read<Out>(p.views.out, out);
    return out;
  }

 private:
  struct Planned {
    Planned(Context& ctx, int64_t frames, const Walk& walk) : plan(ctx, Purpose::streaming, frames) {
      plan.reserve([&](Plan& p) {
        views = walk(p, frames);
        lag = p.lag(views.late);
      });
    }
    Plan plan;
    PlannedBlock<In, Out> views{};
    int64_t lag = 0;  // of the result, in its rows
  };

  Context ctx_;
  int64_t frames_;
  std::unique_ptr<Planned> block_, start_;  // start_: null if the first block is as long as the others
  std::vector<Out> result_;                 // the result of the last run on the host, of the longer plan's size
};

using EncodeBlocks = BlockCoder<float, int32_t>;
using DecodeBlocks = BlockCoder<int32_t, float>;

/// Cuts one signal into the blocks of a coder. A coder may serve several signals in turn: the stream then keeps the
/// state of its signal (`shared`).
template <class In, class Out>
class BlockStream {
 public:
  BlockStream(BlockCoder<In, Out>& coder, bool shared)
      : waiting_(static_cast<size_t>(std::max(coder.frames(true), coder.frames(false)) * coder.in_per_frame())),
        state_(shared ? coder.state_bytes() : 0) {}

  /// Elements pushed so far.
  int64_t pushed() const { return pushed_; }
  /// Takes from x what completes a block, removes it from x, and runs the block. Returns the rows that are complete by
  /// it, valid until the next call of the coder; often none.
  std::span<const Out> take(BlockCoder<In, Out>& coder, std::span<const In>& x) {
    const size_t block = size_of_block(coder), n = std::min(x.size(), block - filled_);
    std::copy_n(x.begin(), n, waiting_.begin() + static_cast<std::ptrdiff_t>(filled_));
    filled_ += n, pushed_ += static_cast<int64_t>(n), x = x.subspan(n);
    return filled_ == block ? run(coder, -1) : std::span<const Out>{};
  }
  /// Frames of the signal if it ends here.
  int64_t frames(const BlockCoder<In, Out>& coder) const {
    return (pushed_ + coder.in_per_frame() - 1) / coder.in_per_frame();
  }
  /// Whether rows of a signal that ends here have not been returned yet.
  bool owes(const BlockCoder<In, Out>& coder) const { return delivered_ < frames(coder) * coder.rows_per_frame(); }
  /// Runs one of the last blocks, if the stream owes rows. The last frame is completed by zeros.
  std::span<const Out> take_last(BlockCoder<In, Out>& coder) {
    std::fill(waiting_.begin() + static_cast<std::ptrdiff_t>(filled_), waiting_.end(), In{});
    return run(coder, frames(coder));
  }
  void reset() { filled_ = 0, pushed_ = position_ = delivered_ = 0; }

 private:
  size_t size_of_block(const BlockCoder<In, Out>& coder) const {
    return static_cast<size_t>(coder.frames(position_ == 0) * coder.in_per_frame());
  }
  /// Runs the block in waiting_. total: frames of the signal, if this is one of its last blocks; else -1.
  std::span<const Out> run(BlockCoder<In, Out>& coder, int64_t total) {
    const bool first = position_ == 0;
    const int64_t per_frame = coder.rows_per_frame(), begin = position_ * per_frame - coder.lag();
    // Another signal may have used the coder since. The first block clears the state anyway.
    if (!state_.empty() && !first) coder.write_state(state_);
    const std::span<const Out> out =
        coder.run({.first = position_, .total = total}, first, std::span(waiting_).first(size_of_block(coder)));
    if (!state_.empty()) coder.read_state(state_);
    position_ += coder.frames(first), filled_ = 0;
    int64_t end = position_ * per_frame - coder.lag();
    if (total >= 0) end = std::min(end, total * per_frame);
    // Rows before the signal's start and behind its end are not part of it.
    if (end <= delivered_) return {};
    const int64_t row = coder.out_row(), from = delivered_ - begin, count = end - delivered_;
    delivered_ = end;
    return out.subspan(static_cast<size_t>(from * row), static_cast<size_t>(count * row));
  }

  std::vector<In> waiting_;       // the block that is being filled: filled_ elements, and room for the longest block
  std::vector<std::byte> state_;  // of the layers behind the last block; empty if the coder serves this signal alone
  size_t filled_ = 0;
  int64_t pushed_ = 0, position_ = 0, delivered_ = 0;  // elements of In; frames before the next block; rows of Out
};

/// The blocks of a codec. `call` is the caller's name in messages.
struct CodecBlocks {
  static std::unique_ptr<EncodeBlocks> encoder(Codec&, const char* call, int64_t frames, int64_t codebooks);
  static std::unique_ptr<DecodeBlocks> decoder(Codec&, const char* call, int64_t frames, int64_t codebooks);
  /// Those that the codec keeps, for several signals in turn. They are made again if the numbers change.
  static EncodeBlocks& shared_encoder(Codec&, int64_t frames, int64_t codebooks);
  static DecodeBlocks& shared_decoder(Codec&, int64_t frames, int64_t codebooks);
  /// Set while a call uses the codec.
  static std::atomic<bool>& in_use(Codec&, const char* call);
  /// Throws Error(usage) for a codec that was moved from.
  static void expect_codec(const Codec&, const char* call);
};

}  // namespace nacre
