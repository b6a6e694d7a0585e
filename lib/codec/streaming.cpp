// Streaming encoder and decoder: one signal at a time, in blocks. block_coder.h has the plans and the cutting into
// blocks; here are the checks of arguments, the life of an object (push, finish, reset), and the delays.
#include "nacre/codec/streaming.h"

#include <string>

#include "codec/block_coder.h"
#include "codec/callers.h"

namespace nacre {
namespace {

/// Throws Error(usage) for a codec that cannot be coded in blocks, and for a block of no or too many frames.
void expect_streamable(const char* object, const CodecConfig& c, const StreamingOptions& o) {
  if (c.needs_whole_signal())
    throw Error(ErrorKind::usage, std::string(object) + ": codec.norm is group, so every frame depends on the whole " +
                                      "signal; expected another norm");
  if (c.segmented())
    throw Error(ErrorKind::usage, std::string(object) + ": the codec codes segments of " + std::to_string(c.segment) +
                                      " samples by themselves; expected codec.segment 0");
  constexpr int64_t most = 1 << 16;
  if (o.block_frames < 1 || o.block_frames > most)
    throw Error(ErrorKind::usage, std::string(object) + ": a block of " + std::to_string(o.block_frames) +
                                      " frames, expected 1 to " + std::to_string(most));
}

/// The delays in samples, of a plan whose result is `lag` rows late, where a frame of hop samples has `rows_per_frame`
/// rows. `start_frames`: length of the first block; not above block_frames if it is like the others.
StreamingLatency latency_of(int64_t hop, int64_t block_frames, int64_t start_frames, int64_t lag,
                            int64_t rows_per_frame) {
  return {.block = block_frames * hop,
          .lookahead = lag * hop / rows_per_frame,
          .start = start_frames > block_frames ? start_frames * hop : 0};
}

/// Delays of one half of a codec, from a survey, which allocates no memory for it. `frame` gives the shape of one frame
/// of the half's input. One thread is enough, because nothing runs.
StreamingLatency surveyed(const char* call, const CodecConfig& c, int64_t block_frames,
                          Net (*build)(Parameters&, const CodecConfig&), Shape (*frame)(const CodecConfig&)) {
  return within_memory(call, [&] {
    c.check();
    expect_streamable(call, c, {.block_frames = block_frames});
    Context ctx({.threads = 1});
    Parameters parameters;
    const Net net = build(parameters, c);
    Plan plan(ctx, Purpose::streaming, block_frames);
    Flow y;
    plan.survey([&](Plan& p) {
      Shape block = frame(c);
      block.time *= block_frames;
      y = net(p, p.source<float>(block).flow);
    });
    return latency_of(c.hop(), block_frames, plan.start_frames(), plan.lag(y), y.shape.time / block_frames);
  });
}

/// A direction of a codec for one signal at a time, with its checks. The blocks are its own, so the stream need not
/// keep their state (BlockStream's `shared` is false). Calls mark the object as in use and not the codec, of which they
/// only read parameters.
template <class In, class Out, class Sink>
struct Streaming {
  Streaming(const char* object, std::unique_ptr<BlockCoder<In, Out>> made, Sink to)
      : blocks(std::move(made)), stream(*blocks, false), sink(std::move(to)) {
    if (!sink) throw Error(ErrorKind::usage, std::string(object) + ": the sink is empty, expected a function");
  }
  std::unique_ptr<BlockCoder<In, Out>> blocks;
  BlockStream<In, Out> stream;
  Sink sink;
  std::atomic<bool> in_use{false};
  bool finished = false, broken = false;  // finish() was called; a call failed (see Changing). reset() clears both

  void expect_unfinished(const char* call) const {
    if (finished)
      throw Error(ErrorKind::usage, std::string(call) + ": called after finish; expected reset before another signal");
  }
  /// Runs the blocks that x completes, and keeps the rest of x. deliver(rows) gets every result that is not empty.
  template <class Deliver>
  void push(std::span<const In> x, Deliver&& deliver) {
    Changing change(broken, "push", "reset before another signal");
    within_memory("push", [&] {
      while (!x.empty())
        if (const std::span<const Out> rows = stream.take(*blocks, x); !rows.empty()) deliver(rows);
    });
    change.done();
  }
  /// Runs blocks until all rows of the signal have been delivered. Results are late, so this may take several blocks
  /// behind the signal's end. Returns the frames of the signal.
  template <class Deliver>
  int64_t finish(Deliver&& deliver) {
    expect_unfinished("finish");
    Changing change(broken, "finish", "reset before another signal");
    within_memory("finish", [&] {
      while (stream.owes(*blocks))
        if (const std::span<const Out> rows = stream.take_last(*blocks); !rows.empty()) deliver(rows);
    });
    finished = true;
    change.done();
    return stream.frames(*blocks);
  }
  void reset() { stream.reset(), finished = broken = false; }
  StreamingLatency latency(int64_t hop) const {
    return latency_of(hop, blocks->frames(false), blocks->frames(true), blocks->lag(), blocks->rows_per_frame());
  }
};

/// The streaming state of an object. Throws Error(usage) for one that was moved from.
template <class Impl>
Impl& inside(const std::unique_ptr<Impl>& impl, const char* call) {
  if (!impl) throw Error(ErrorKind::usage, std::string(call) + ": the object was moved from");
  return *impl;
}

}  // namespace

StreamingLatency encoding_latency(const CodecConfig& c, int64_t block_frames) {
  return surveyed("encoding_latency", c, block_frames, coder_of,
                  [](const CodecConfig& of) { return Shape{.time = of.hop(), .channels = of.audio_channels}; });
}
StreamingLatency decoding_latency(const CodecConfig& c, int64_t block_frames) {
  return surveyed("decoding_latency", c, block_frames, synthesis_of, [](const CodecConfig& of) {
    return Shape{.time = of.positions_per_frame(), .channels = of.latent()};
  });
}

// ---- StreamingEncoder

struct StreamingEncoder::Impl : Streaming<float, int32_t, Sink> {
  Impl(Codec& codec, Sink to, const StreamingOptions& o)
      : Streaming("StreamingEncoder", CodecBlocks::encoder(codec, "StreamingEncoder", o.block_frames, o.codebooks),
                  std::move(to)),
        hop(codec.config().hop()),
        channels(codec.config().audio_channels) {}
  int64_t hop, channels;
  /// Hands rows of codes to the sink, as a view [1, frames, 1, codes per frame].
  auto deliver() {
    return [this](std::span<const int32_t> codes) {
      const int64_t stages = blocks->out_row();
      sink(
          View<const int32_t>(codes.data(), {.time = static_cast<int64_t>(codes.size()) / stages, .channels = stages}));
    };
  }
};

StreamingEncoder::StreamingEncoder(Codec& codec, Sink sink, StreamingOptions options) {
  CodecBlocks::expect_codec(codec, "StreamingEncoder");
  expect_streamable("StreamingEncoder", codec.config(), options);
  impl_ = within_memory("StreamingEncoder", [&] { return std::make_unique<Impl>(codec, std::move(sink), options); });
}
StreamingEncoder::StreamingEncoder(StreamingEncoder&&) noexcept = default;
StreamingEncoder& StreamingEncoder::operator=(StreamingEncoder&&) noexcept = default;
StreamingEncoder::~StreamingEncoder() = default;

void StreamingEncoder::push(std::span<const float> samples) {
  Impl& m = inside(impl_, "push");
  const InUse alone(m.in_use, "push", "encoder");
  m.expect_unfinished("push");
  expect_samples("push", samples, m.channels);
  m.push(samples, m.deliver());
}
int64_t StreamingEncoder::finish() {
  Impl& m = inside(impl_, "finish");
  const InUse alone(m.in_use, "finish", "encoder");
  m.finish(m.deliver());
  return m.stream.pushed() / m.channels;
}
void StreamingEncoder::reset() {
  Impl& m = inside(impl_, "reset");
  const InUse alone(m.in_use, "reset", "encoder");
  m.reset();
}
StreamingLatency StreamingEncoder::latency() const { return inside(impl_, "latency").latency(impl_->hop); }
size_t StreamingEncoder::reserved_bytes() const { return inside(impl_, "reserved_bytes").blocks->bytes(); }

// ---- StreamingDecoder

struct StreamingDecoder::Impl : Streaming<int32_t, float, Sink> {
  Impl(Codec& codec, Sink to, const StreamingOptions& o)
      : Streaming("StreamingDecoder", CodecBlocks::decoder(codec, "StreamingDecoder", o.block_frames, o.codebooks),
                  std::move(to)),
        config(codec.config()) {}
  CodecConfig config;  // a copy: push() checks codes against it without touching the codec
};

StreamingDecoder::StreamingDecoder(Codec& codec, Sink sink, StreamingOptions options) {
  CodecBlocks::expect_codec(codec, "StreamingDecoder");
  expect_streamable("StreamingDecoder", codec.config(), options);
  impl_ = within_memory("StreamingDecoder", [&] { return std::make_unique<Impl>(codec, std::move(sink), options); });
}
StreamingDecoder::StreamingDecoder(StreamingDecoder&&) noexcept = default;
StreamingDecoder& StreamingDecoder::operator=(StreamingDecoder&&) noexcept = default;
StreamingDecoder::~StreamingDecoder() = default;

void StreamingDecoder::push(std::span<const int32_t> codes) {
  Impl& m = inside(impl_, "push");
  const InUse alone(m.in_use, "push", "decoder");
  m.expect_unfinished("push");
  const int64_t stages = m.blocks->in_per_frame();
  if (static_cast<int64_t>(codes.size()) % stages != 0)
    throw Error(ErrorKind::usage, "push: " + std::to_string(codes.size()) +
                                      " codes are not a whole number of frames of " + std::to_string(stages));
  expect_codes("push", codes, m.config);
  m.push(codes, m.sink);
}
int64_t StreamingDecoder::finish() {
  Impl& m = inside(impl_, "finish");
  const InUse alone(m.in_use, "finish", "decoder");
  return m.finish(m.sink);
}
void StreamingDecoder::reset() {
  Impl& m = inside(impl_, "reset");
  const InUse alone(m.in_use, "reset", "decoder");
  m.reset();
}
StreamingLatency StreamingDecoder::latency() const { return inside(impl_, "latency").latency(impl_->config.hop()); }
size_t StreamingDecoder::reserved_bytes() const { return inside(impl_, "reserved_bytes").blocks->bytes(); }

}  // namespace nacre
