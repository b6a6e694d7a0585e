// The class Codec, which owns parameters: inference plans and files.
//
// Each direction has one plan at a time, for the shape that was reserved last. Items that end together are one run of
// an inference plan. Items that end apart are one block of a streaming plan, whose layers know where the signal of each
// item ends. With `lookahead` the samples by which the network looks ahead:
//
//   block    frames + ceil(lookahead / hop), or more if the first block of a stream must be longer
//   input    item b fills its rows 0 ... n_b - 1; zeros follow
//   result   row r of item b is row r + lag of the plan's result; behind the item's end the caller gets zeros
//
// Blocks of long signals (windowed.cpp, streaming.cpp) are recorded by the same walks, with a batch of 1.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "codec/block_coder.h"
#include "codec/callers.h"
#include "files/weights_identity.h"
#include "nacre/codec/codec.h"
#include "nacre/codec/streaming.h"
#include "nacre/files/safetensors.h"
#include "nacre/formats/weights_file.h"
#include "nn/segment_scale.h"

namespace nacre {

namespace {

/// The plan of one direction for the shapes of the last reserve_inference(). Views are memory of the plan.
template <class In, class Out>
struct Direction {
  std::unique_ptr<Plan> plan;
  PlannedBlock<In, Out> planned;
  Shape in, out;  // as the caller sees them
  // With ends of their own, the items are one block of a stream. It is longer than the signal by what the network looks
  // ahead, because results are late by so much.
  Codec::Ends ends = Codec::Ends::together;
  int64_t lag = 0;              // of the result, in its rows
  std::vector<int64_t> totals;  // frames of each item

  /// Whether there is a plan and it serves these shapes. The shape of codes includes the number of codebooks.
  bool fits(Shape wanted_in, Shape wanted_out, Codec::Ends wanted) const {
    return plan && in == wanted_in && out == wanted_out && ends == wanted;
  }
};

/// `count` rows of one item of a batch, from its row `first` on. Items are contiguous, so the part is one copy.
template <class T>
View<T> part_of(View<T> v, int64_t item, int64_t first, int64_t count) {
  v.data += (item * v.shape.time + first) * v.shape.channels;
  v.shape.batch = 1, v.shape.time = count;
  return v;
}

}  // namespace

struct Codec::Impl {
  /// `system` registers its layers in `parameters`, which are allocated once they are complete. Without gradients.
  Impl(Context& c, CodecConfig cfg, Storage stored)
      : ctx(c.share()), config(std::move(cfg)), storage(stored), system(parameters, config) {
    config.check();
    parameters.allocate(c, false, storage);
  }

  void reserve(int64_t batch, int64_t samples, Use, int64_t codebooks, Ends);
  /// Plans one direction: `in` and `out` are the caller's shapes of `frames` frames, `latency` what a stream of this
  /// direction needs (none for items that end together), walk(plan, frames) records a block of so many frames.
  template <class In, class Out, class Walk>
  void reserve(Direction<In, Out>&, Shape in, Shape out, int64_t frames, Ends, const StreamingLatency&, const Walk&);
  /// lengths: rows of `in` of each item; empty: all.
  template <class In, class Out>
  void run(Direction<In, Out>&, View<const In>, View<Out>, std::span<const int64_t> lengths);
  View<int32_t> plan_labels(Plan&, Denoise half, int64_t batch) const;
  /// Audio [batch, samples, 1, audio_channels] to codes [batch, frames, 1, codes per frame], and back. stages: how many
  /// codebooks are used.
  PlannedBlock<float, int32_t> walk_encoder(Plan&, int64_t batch, int64_t samples, int64_t stages) const;
  PlannedBlock<int32_t, float> walk_decoder(Plan&, int64_t batch, int64_t frames, int64_t stages) const;

  Context ctx;
  CodecConfig config;
  Storage storage;
  std::atomic<bool> in_use{false};
  Parameters parameters;
  System system;
  Direction<float, int32_t> encoding;
  Direction<int32_t, float> decoding;
  // Blocks of long signals in windows, and the codebooks that they were made for.
  std::unique_ptr<EncodeBlocks> encode_blocks;
  std::unique_ptr<DecodeBlocks> decode_blocks;
  int64_t encode_stages = 0, decode_stages = 0;
  bool denoises = false;  // of set_denoise()
};

Codec::Codec(Context& ctx, CodecConfig config, Storage storage) {
  // check() comes first: Impl builds the layers in its initialisers, before its body.
  impl_ = within_memory("Codec", [&] {
    config.check();
    return std::make_unique<Impl>(ctx, std::move(config), storage);
  });
}
Codec::Codec(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Codec::Codec(Codec&&) noexcept = default;
Codec& Codec::operator=(Codec&&) noexcept = default;
Codec::~Codec() = default;

namespace {

template <class T>
void expect_data(const char* call, const char* argument, const View<T>& v) {
  if (v.data == nullptr)
    throw Error(ErrorKind::usage, std::string(call) + ": " + argument + " is " + str(v.shape) + " and has no data");
}

}  // namespace

Context& Codec::context() const noexcept { return impl_->ctx; }
const CodecConfig& Codec::config() const noexcept { return impl_->config; }
Parameters& Codec::parameters() noexcept { return impl_->parameters; }
namespace {

/// The implementation of a codec. Throws Error(usage) for a codec that was moved from.
template <class Impl>
Impl& inside(const std::unique_ptr<Impl>& impl, const char* call) {
  if (!impl) throw Error(ErrorKind::usage, std::string(call) + ": the codec was moved from");
  return *impl;
}

}  // namespace

void Codec::set_beam(int64_t beam) {
  const InUse alone(inside(impl_, "set_beam").in_use, "set_beam", "codec");
  within_memory("set_beam", [&] {
    CodecConfig changed = impl_->config;
    changed.beam = beam;
    changed.check();
    impl_->config = std::move(changed);
  });
  // The beam is part of the plan. The next reserve_inference() makes it again.
  impl_->encoding.plan.reset();
  impl_->encode_blocks.reset();
}
void Codec::set_denoise(bool on) {
  Impl& m = inside(impl_, "set_denoise");
  const InUse alone(m.in_use, "set_denoise", "codec");
  if (on && m.config.denoise == Denoise::none)
    throw Error(ErrorKind::usage, "set_denoise: codec.denoise is none, expected encoder or decoder");
  m.denoises = on;
  // Labels are memory that plans read when they run, so no plan has to be made again. Later plans take `denoises`.
  within_memory("set_denoise", [&] {
    if (m.encoding.plan) write_labels(m.ctx, m.encoding.planned.labels, on);
    if (m.decoding.plan) write_labels(m.ctx, m.decoding.planned.labels, on);
    if (m.encode_blocks) m.encode_blocks->set_labels(on);
    if (m.decode_blocks) m.decode_blocks->set_labels(on);
  });
}
size_t Codec::reserved_bytes() const {
  const Impl& m = *impl_;
  return (m.encoding.plan ? m.encoding.plan->bytes() : 0) + (m.decoding.plan ? m.decoding.plan->bytes() : 0) +
         (m.encode_blocks ? m.encode_blocks->bytes() : 0) + (m.decode_blocks ? m.decode_blocks->bytes() : 0);
}
size_t Codec::unshared_bytes() const {
  const Impl& m = *impl_;
  return (m.encoding.plan ? m.encoding.plan->unshared_bytes() : 0) +
         (m.decoding.plan ? m.decoding.plan->unshared_bytes() : 0) +
         (m.encode_blocks ? m.encode_blocks->unshared_bytes() : 0) +
         (m.decode_blocks ? m.decode_blocks->unshared_bytes() : 0);
}

void Codec::reserve_inference(int64_t batch, int64_t samples, Use use, int64_t codebooks, Ends ends) {
  const InUse alone(inside(impl_, "reserve_inference").in_use, "reserve_inference", "codec");
  within_memory("reserve_inference", [&] { impl_->reserve(batch, samples, use, codebooks, ends); });
}
/// Labels for the half that denoises on request, if it is this one; else none.
View<int32_t> Codec::Impl::plan_labels(Plan& p, Denoise half, int64_t batch) const {
  if (config.denoise != half) return {};
  const auto labels = p.persistent<int32_t>({.channels = batch});
  p.set_labels(labels);
  return labels;
}
PlannedBlock<float, int32_t> Codec::Impl::walk_encoder(Plan& p, int64_t batch, int64_t samples, int64_t stages) const {
  const Output<float> source = p.source<float>({.batch = batch, .time = samples, .channels = config.audio_channels});
  const Normalised audio = config.segment_scale ? normalised(p, source.flow) : Normalised{.flow = source.flow};
  const View<int32_t> labels = plan_labels(p, Denoise::encoder, batch);
  // The quantizer works on floats whatever the storage is.
  const Flow latent = stored_as(p, system.encoder(p, stored_as(p, audio.flow, storage)), Storage::float32);
  const Quantized quantized =
      system.quantizer.plan(p, latent, {.codebooks = stages, .beam = config.beam, .codes_only = true});
  return {.in = source.value, .out = quantized.codes, .late = quantized.late, .scales = audio.scales, .labels = labels};
}
PlannedBlock<int32_t, float> Codec::Impl::walk_decoder(Plan& p, int64_t batch, int64_t frames, int64_t stages) const {
  const View<int32_t> codes =
      p.persistent<int32_t>({.batch = batch, .time = frames, .channels = config.codes_per_frame(stages)});
  const View<int32_t> labels = plan_labels(p, Denoise::decoder, batch);
  const Flow latent = stored_as(p, system.quantizer.plan_decode(p, codes), storage);
  const Flow unscaled = stored_as(p, system.decoder(p, latent), Storage::float32);
  if (!config.segment_scale) return {.in = codes, .out = p.result<float>(unscaled), .late = unscaled, .labels = labels};
  const View<float> scales = p.persistent<float>({.channels = batch});
  const Flow audio = scaled(p, unscaled, scales);
  return {.in = codes, .out = p.result<float>(audio), .late = audio, .scales = scales, .labels = labels};
}
template <class In, class Out, class Walk>
void Codec::Impl::reserve(Direction<In, Out>& d, Shape in, Shape out, int64_t frames, Ends ends,
                          const StreamingLatency& latency, const Walk& walk) {
  // The old plan is freed first, so that both are never in memory at once. If the new one does not fit, none is left,
  // and encode() and decode() refuse.
  d.plan.reset();
  const bool apart = ends == Ends::apart;
  // The last frames of an item come out of the block only if the block goes on behind them by what the network looks
  // ahead.
  const int64_t hop = config.hop(), block = frames + (latency.lookahead + hop - 1) / hop,
                length = apart ? std::max(block, latency.start / hop) : frames;
  auto plan = std::make_unique<Plan>(ctx, apart ? Purpose::streaming : Purpose::inference, apart ? length : 0);
  plan->reserve([&](Plan& p) {
    d.planned = walk(p, length);
    d.lag = apart ? p.lag(d.planned.late) : 0;
  });
  // The plan itself comes last: if something fails before, this direction has none.
  d.in = in, d.out = out, d.ends = ends;
  d.totals.assign(apart ? static_cast<size_t>(in.batch) : 0, frames);
  write_labels(ctx, d.planned.labels, denoises);
  d.plan = std::move(plan);
}

void Codec::Impl::reserve(int64_t batch, int64_t samples, Use use, int64_t codebooks, Ends ends) {
  if (batch < 1 || samples < 1 || (samples % config.hop() != 0 && !config.takes_any_length()))
    throw Error(ErrorKind::usage, "reserve_inference: " + std::to_string(batch) + " x " + std::to_string(samples) +
                                      " samples, expected at least one and a multiple of the hop, " +
                                      std::to_string(config.hop()));
  const int64_t frames = config.frames_of(samples), stages = config.codebooks_used("reserve_inference", codebooks);
  const bool apart = ends == Ends::apart;
  const Shape audio{.batch = batch, .time = samples, .channels = config.audio_channels};
  const Shape codes{.batch = batch, .time = frames, .channels = config.codes_per_frame(stages)};
  if (use != Use::decode && !encoding.fits(audio, codes, ends))
    reserve(encoding, audio, codes, frames, ends, apart ? encoding_latency(config) : StreamingLatency{},
            [&](Plan& p, int64_t n) { return walk_encoder(p, batch, apart ? n * config.hop() : samples, stages); });
  if (use != Use::encode && !decoding.fits(codes, audio, ends))
    reserve(decoding, codes, audio, frames, ends, apart ? decoding_latency(config) : StreamingLatency{},
            [&](Plan& p, int64_t n) { return walk_decoder(p, batch, n, stages); });
}

namespace {

/// Throws unless there is one scale per item, and none of a codec without scales.
void expect_scales(const char* call, View<const float> scales, const CodecConfig& c, int64_t batch) {
  const Shape expected{.channels = batch};
  if (c.segment_scale && scales.data != nullptr && scales.shape == expected) return;
  if (!c.segment_scale && scales.data == nullptr) return;
  throw Error(ErrorKind::usage, std::string(call) + ": scales is " + str(scales.shape) +
                                    (scales.data == nullptr ? " without data" : "") + ", expected " +
                                    (c.segment_scale ? str(expected) : "none, because codec.segment_scale is false"));
}

/// Throws unless there is one length per item, and a plan for them.
void expect_lengths(const char* call, std::span<const int64_t> lengths, Codec::Ends ends, Shape in) {
  if (lengths.empty()) return;
  if (ends != Codec::Ends::apart)
    throw Error(ErrorKind::usage, std::string(call) + ": lengths of items, and the plan was reserved for items that " +
                                      "end together; expected Codec::Ends::apart");
  if (lengths.size() != static_cast<size_t>(in.batch))
    throw Error(ErrorKind::usage, std::string(call) + ": " + std::to_string(lengths.size()) + " lengths, expected " +
                                      std::to_string(in.batch) + ", one per item");
  for (const int64_t n : lengths)
    if (n < 0 || n > in.time)
      throw Error(ErrorKind::usage, std::string(call) + ": a length of " + std::to_string(n) + ", expected 0 to " +
                                        std::to_string(in.time));
}

}  // namespace

template <class In, class Out>
void Codec::Impl::run(Direction<In, Out>& d, View<const In> in, View<Out> out, std::span<const int64_t> lengths) {
  // Copies between the caller's memory and the plan's, in stream order; nothing waits for the device.
  if (d.ends == Ends::together) {
    ctx.copy<In>(in, d.planned.in);
    d.plan->run();
    if (out.shape == d.planned.out.shape) return ctx.copy<Out>(d.planned.out, out);
    // A last frame has more samples than the signal.
    for (int64_t b = 0; b < out.shape.batch; ++b)
      ctx.copy<Out>(part_of(d.planned.out, b, 0, out.shape.time), part_of(out, b, 0, out.shape.time));
    return;
  }
  // in_rows and out_rows: rows of a frame, at the input and in the result.
  const int64_t batch = in.shape.batch, frames = d.plan->block_frames(), in_rows = d.planned.in.shape.time / frames,
                out_rows = d.planned.out.shape.time / frames;
  const auto length = [&](int64_t b) { return lengths.empty() ? in.shape.time : lengths[static_cast<size_t>(b)]; };
  // What lies behind the items is cleared: the rest of a last frame is part of it.
  ctx.zero(d.planned.in);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t n = length(b);
    if (n > 0) ctx.copy<In>(part_of(in, b, 0, n), part_of(d.planned.in, b, 0, n));
    d.totals[static_cast<size_t>(b)] = (n + in_rows - 1) / in_rows;
  }
  // Every call is a whole signal, so the layers' state of the last one is cleared. `totals` is read during the run.
  d.plan->reset();
  d.plan->block() = {.first = 0, .totals = d.totals};
  d.plan->run();
  ctx.zero(out);
  for (int64_t b = 0; b < batch; ++b)
    if (const int64_t n = d.totals[static_cast<size_t>(b)] * out_rows; n > 0)
      ctx.copy<Out>(part_of(d.planned.out, b, d.lag, n), part_of(out, b, 0, n));
}

void Codec::encode(View<const float> audio, View<int32_t> codes, std::span<const int64_t> lengths, View<float> scales) {
  Impl& m = inside(impl_, "encode");
  const InUse alone(m.in_use, "encode", "codec");
  if (!m.encoding.plan || audio.shape != m.encoding.in)
    throw Error(ErrorKind::usage,
                "encode: audio is " + str(audio.shape) + ", expected the reserved shape " + str(m.encoding.in));
  if (codes.shape != m.encoding.out)
    throw Error(ErrorKind::usage, "encode: codes is " + str(codes.shape) + ", expected " + str(m.encoding.out));
  expect_lengths("encode", lengths, m.encoding.ends, m.encoding.in);
  expect_scales("encode", scales, m.config, audio.shape.batch);
  expect_data("encode", "audio", audio);
  expect_data("encode", "codes", codes);
  // Values behind an item's length are not read, so they may be anything. On CUDA the samples are on the device, and
  // reading them back would make the host wait.
  if (m.ctx.device().kind == Device::cpu)
    for (int64_t b = 0; b < audio.shape.batch; ++b) {
      const int64_t n = lengths.empty() ? audio.shape.time : lengths[static_cast<size_t>(b)];
      const int64_t width = audio.shape.channels, first = b * audio.shape.time * width;
      expect_finite("encode", {audio.data + first, static_cast<size_t>(n * width)}, first);
    }
  m.run(m.encoding, audio, codes, lengths);
  if (m.config.segment_scale) m.ctx.copy<float>(m.encoding.planned.scales, scales);
}

void Codec::decode(View<const int32_t> codes, View<float> audio, std::span<const int64_t> lengths,
                   View<const float> scales) {
  Impl& m = inside(impl_, "decode");
  const InUse alone(m.in_use, "decode", "codec");
  if (!m.decoding.plan || codes.shape != m.decoding.in)
    throw Error(ErrorKind::usage,
                "decode: codes is " + str(codes.shape) + ", expected the reserved shape " + str(m.decoding.in));
  if (audio.shape != m.decoding.out)
    throw Error(ErrorKind::usage, "decode: audio is " + str(audio.shape) + ", expected " + str(m.decoding.out));
  expect_lengths("decode", lengths, m.decoding.ends, m.decoding.in);
  expect_scales("decode", scales, m.config, audio.shape.batch);
  expect_data("decode", "codes", codes);
  expect_data("decode", "audio", audio);
  if (m.ctx.device().kind == Device::cpu) {
    expect_codes("decode", {codes.data, static_cast<size_t>(codes.elements())}, m.config);
    if (m.config.segment_scale)
      for (const float s : scales) expect_scale("decode", s);
  }
  if (m.config.segment_scale) m.ctx.copy<float>(scales, m.decoding.planned.scales);
  m.run(m.decoding, codes, audio, lengths);
}

// ---- blocks

// The walk runs while the blocks are made. What it records refers to the codec's parameters, so the codec outlives its
// blocks.
std::unique_ptr<EncodeBlocks> CodecBlocks::encoder(Codec& codec, const char* call, int64_t frames, int64_t codebooks) {
  const Codec::Impl& m = inside(codec.impl_, call);
  const int64_t stages = m.config.codebooks_used(call, codebooks);
  auto blocks = std::make_unique<EncodeBlocks>(
      codec.impl_->ctx, frames, [&](Plan& p, int64_t n) { return m.walk_encoder(p, 1, n * m.config.hop(), stages); });
  blocks->set_labels(m.denoises);
  return blocks;
}
std::unique_ptr<DecodeBlocks> CodecBlocks::decoder(Codec& codec, const char* call, int64_t frames, int64_t codebooks) {
  const Codec::Impl& m = inside(codec.impl_, call);
  const int64_t stages = m.config.codebooks_used(call, codebooks);
  auto blocks = std::make_unique<DecodeBlocks>(codec.impl_->ctx, frames,
                                               [&](Plan& p, int64_t n) { return m.walk_decoder(p, 1, n, stages); });
  blocks->set_labels(m.denoises);
  return blocks;
}
EncodeBlocks& CodecBlocks::shared_encoder(Codec& codec, int64_t frames, int64_t codebooks) {
  Codec::Impl& m = inside(codec.impl_, "encoder");
  if (!m.encode_blocks || m.encode_blocks->frames(false) != frames || m.encode_stages != codebooks) {
    m.encode_blocks.reset();  // first, so that both are never in memory at once
    m.encode_blocks = encoder(codec, "encoder", frames, codebooks), m.encode_stages = codebooks;
  }
  return *m.encode_blocks;
}
DecodeBlocks& CodecBlocks::shared_decoder(Codec& codec, int64_t frames, int64_t codebooks) {
  Codec::Impl& m = inside(codec.impl_, "decoder");
  if (!m.decode_blocks || m.decode_blocks->frames(false) != frames || m.decode_stages != codebooks) {
    m.decode_blocks.reset();
    m.decode_blocks = decoder(codec, "decoder", frames, codebooks), m.decode_stages = codebooks;
  }
  return *m.decode_blocks;
}
std::atomic<bool>& CodecBlocks::in_use(Codec& codec, const char* call) { return inside(codec.impl_, call).in_use; }
void CodecBlocks::expect_codec(const Codec& codec, const char* call) { inside(codec.impl_, call); }

// ---- files

namespace {

/// Tensors and the memory that they point to. Moving the outer vector leaves the inner ones where they are.
struct Gathered {
  std::vector<std::vector<float>> values;
  std::vector<StoredTensor> tensors;
};
Gathered gather(Context& ctx, const Parameters& parameters) {
  Gathered g;
  parameters.each_tensor(
      ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float> v) {
        g.values.emplace_back(v.begin(), v.end());
        g.tensors.push_back({name, Dtype::f32, stored, std::as_bytes(std::span<const float>(g.values.back()))});
      });
  return g;
}

}  // namespace

uint64_t Codec::identity() const {
  return within_memory("identity", [&] {
    // each_tensor() goes in order of name, as the identity demands, and holds one tensor at a time.
    WeightsIdentity identity;
    impl_->parameters.each_tensor(
        impl_->ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float> v) {
          identity.add({name, Dtype::f32, stored, std::as_bytes(v)});
        });
    return identity.value();
  });
}

void Codec::save(const std::filesystem::path& path, const std::map<std::string, std::string>& metadata) const {
  within_memory("save", [&] {
    const Gathered g = gather(impl_->ctx, impl_->parameters);
    std::map<std::string, std::string> all = metadata;
    all[config_metadata_key] = impl_->config.to_json();
    write_safetensors(path, g.tensors, all);
  });
}

namespace {

/// "kind (12): a, b, ... and 2 more", with ten names at most.
std::string listing(const char* kind, const std::vector<std::string>& names) {
  constexpr size_t most = 10;
  if (names.empty()) return "";
  std::string text = std::string(" ") + kind + " (" + std::to_string(names.size()) + "):";
  for (size_t i = 0; i < std::min(most, names.size()); ++i) text += (i > 0 ? ", " : " ") + names[i];
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text + ";";
}

/// Sets the model's tensors from a file. First every tensor of the model is looked for, then everything is reported or
/// refused, and only then is the first value written. Tensors of another shape keep their values.
LoadReport load_from(Context& ctx, Parameters& parameters, const WeightsFile& file, bool strict) {
  struct Wanted {
    std::string name;
    std::vector<int64_t> shape;
    WeightsFile::Place place;
  };
  LoadReport report;
  // The model's tensors that the file has. Addresses in `used` and `misshapen` are those of the file's tensors, since
  // one of them may give several of the model's (a product of gain and direction).
  std::vector<Wanted> wanted;
  std::vector<const StoredTensor*> used, misshapen;
  parameters.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float>) {
    const WeightsFile::Place place = file.find(name);
    if (place.tensor == nullptr) {
      // The product of a gain and a direction would be missing twice. Its two names follow each other, because
      // each_tensor() goes in order of name.
      if (std::string theirs = file.name_of(name); report.missing.empty() || report.missing.back() != theirs)
        report.missing.push_back(std::move(theirs));
      return;
    }
    used.push_back(place.tensor);
    wanted.push_back({name, shape, place});
    // What values follow from is compared with its own shape.
    if (place.take != WeightsFile::Place::values || WeightsFile::fits(place, name, shape)) return;
    misshapen.push_back(place.tensor);
    StoredTensor expected = *place.tensor;
    expected.shape = shape;
    report.misshapen.push_back(place.tensor->name + " is " + str(*place.tensor) + ", expected " + str(expected));
  });
  std::sort(used.begin(), used.end());
  for (const StoredTensor& t : file.tensors())
    if (!file.ignored(t) && !std::binary_search(used.begin(), used.end(), &t)) report.surplus.push_back(t.name);
  if (strict && (!report.missing.empty() || !report.surplus.empty() || !report.misshapen.empty())) {
    std::string what = file.path().string() + ": does not fit the model;" + listing("missing", report.missing) +
                       listing("unexpected", report.surplus) + listing("of another shape", report.misshapen);
    what.pop_back();
    throw Error(ErrorKind::input, what);
  }
  // Nothing was changed before this line.
  for (const Wanted& w : wanted) {
    if (std::find(misshapen.begin(), misshapen.end(), w.place.tensor) != misshapen.end()) continue;
    parameters.set_tensor(ctx, w.name, w.shape, WeightsFile::values(w.place));
    ++report.matched;
  }
  parameters.refresh(ctx);
  return report;
}

}  // namespace

LoadReport load_parameters(Context& ctx, Parameters& parameters, const std::filesystem::path& path, bool strict) {
  return within_memory("load_parameters", [&] { return load_from(ctx, parameters, WeightsFile::read(path), strict); });
}

Codec Codec::load(Context& ctx, const std::filesystem::path& path, Storage storage) {
  return within_memory("load", [&] {
    const WeightsFile file = WeightsFile::read(path);
    return load(ctx, file, file.config(), storage);
  });
}

Codec Codec::load(Context& ctx, const WeightsFile& file, CodecConfig config, Storage storage) {
  return within_memory("load", [&] {
    Codec codec(ctx, std::move(config), storage);
    load_from(ctx, codec.parameters(), file, true);
    return codec;
  });
}

}  // namespace nacre
