// The class Codec, which owns parameters: inference plans and files.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "codec/callers.h"
#include "files/weights_identity.h"
#include "nacre/codec/codec.h"
#include "nacre/files/safetensors.h"
#include "nacre/formats/weights_file.h"

namespace nacre {

struct Codec::Impl {
  Impl(Context& c, CodecConfig cfg, Storage stored)
      : ctx(c.share()), config(std::move(cfg)), storage(stored), system(parameters, config) {
    config.check();
    parameters.allocate(c, false, storage);
  }

  void reserve(int64_t batch, int64_t samples, Use, int64_t codebooks);

  Context ctx;
  CodecConfig config;
  Storage storage;
  std::atomic<bool> in_use{false};
  Parameters parameters;
  System system;
  // One plan per direction, for the shape of the last reserve(). The views are memory of the plans: they are valid as
  // long as the plan exists.
  std::unique_ptr<Plan> encode_plan, decode_plan;
  View<float> audio_in;
  View<int32_t> codes_in, codes_out;
  View<const float> audio_out;
};

Codec::Codec(Context& ctx, CodecConfig config, Storage storage) {
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

void expect_part(const char* call, const SignalPart* part, int64_t batch, int64_t frames) {
  if (part == nullptr) return;
  const Window& w = part->window;
  if (batch != 1 || w.first < 0 || w.first >= frames || (w.next != -1 && w.next <= w.first) || w.next > frames)
    throw Error(ErrorKind::usage, std::string(call) + ": a part whose window is " + std::to_string(w.first) + " to " +
                                      std::to_string(w.next) + " of " + std::to_string(frames) + " frames with batch " +
                                      std::to_string(batch) + ", expected increasing positions and a batch of 1");
}

void run_part(Plan& plan, SignalPart* part) {
  plan.window() = part != nullptr ? part->window : Window{};
  if (plan.window().first > 0) plan.set_state(part->state);
  plan.run();
  if (plan.window().next >= 0) part->state = plan.state();
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
  impl_->encode_plan.reset();
}
size_t Codec::reserved_bytes() const {
  return (impl_->encode_plan ? impl_->encode_plan->bytes() : 0) +
         (impl_->decode_plan ? impl_->decode_plan->bytes() : 0);
}
size_t Codec::unshared_bytes() const {
  return (impl_->encode_plan ? impl_->encode_plan->unshared_bytes() : 0) +
         (impl_->decode_plan ? impl_->decode_plan->unshared_bytes() : 0);
}

void Codec::reserve_inference(int64_t batch, int64_t samples, Use use, int64_t codebooks) {
  const InUse alone(inside(impl_, "reserve_inference").in_use, "reserve_inference", "codec");
  within_memory("reserve_inference", [&] { impl_->reserve(batch, samples, use, codebooks); });
}
void Codec::Impl::reserve(int64_t batch, int64_t samples, Use use, int64_t codebooks) {
  Impl& m = *this;
  if (batch < 1 || samples < 1 || samples % m.config.hop() != 0)
    throw Error(ErrorKind::usage, "reserve_inference: " + std::to_string(batch) + " x " + std::to_string(samples) +
                                      " samples, expected at least one and a multiple of the hop, " +
                                      std::to_string(m.config.hop()));
  const int64_t frames = samples / m.config.hop(), stages = m.config.codebooks_used("reserve_inference", codebooks);
  const Shape audio{.batch = batch, .time = samples};
  const Shape codes{.batch = batch, .time = frames, .channels = stages};
  if (use != Use::decode && !(m.encode_plan && m.audio_in.shape == audio && m.codes_out.shape == codes)) {
    // The old plan is freed first, so that both are never in memory at once. If the new one does not fit, none is left,
    // and encode() refuses.
    m.encode_plan.reset();
    auto plan = std::make_unique<Plan>(m.ctx, Purpose::inference);
    plan->reserve([&](Plan& p) {
      const Output<float> source = p.source<float>(audio);
      m.audio_in = source.value;
      // The quantizer works on floats whatever the storage is.
      const Flow latent = stored_as(p, m.system.encoder(p, stored_as(p, source.flow, m.storage)), Storage::float32);
      m.codes_out = m.system.quantizer.plan(p, latent, {.codebooks = stages, .beam = m.config.beam}).codes;
    });
    m.encode_plan = std::move(plan);
  }
  if (use != Use::encode && !(m.decode_plan && m.codes_in.shape == codes)) {
    m.decode_plan.reset();
    auto plan = std::make_unique<Plan>(m.ctx, Purpose::inference);
    plan->reserve([&](Plan& p) {
      m.codes_in = p.persistent<int32_t>(codes);
      const Flow latent = stored_as(p, m.system.quantizer.plan_decode(p, m.codes_in), m.storage);
      m.audio_out = p.result<float>(stored_as(p, m.system.decoder(p, latent), Storage::float32));
    });
    m.decode_plan = std::move(plan);
  }
}

void Codec::encode(View<const float> audio, View<int32_t> codes, SignalPart* part) {
  Impl& m = inside(impl_, "encode");
  const InUse alone(m.in_use, "encode", "codec");
  if (!m.encode_plan || audio.shape != m.audio_in.shape)
    throw Error(ErrorKind::usage,
                "encode: audio is " + str(audio.shape) + ", expected the reserved shape " + str(m.audio_in.shape));
  if (codes.shape != m.codes_out.shape)
    throw Error(ErrorKind::usage, "encode: codes is " + str(codes.shape) + ", expected " + str(m.codes_out.shape));
  expect_part("encode", part, audio.shape.batch, codes.shape.time);
  expect_data("encode", "audio", audio);
  expect_data("encode", "codes", codes);
  // On CUDA the samples are on the device, and reading them back would make the host wait.
  if (m.ctx.device().kind == Device::cpu) expect_finite("encode", {audio.data, static_cast<size_t>(audio.elements())});
  m.ctx.copy<float>(audio, m.audio_in);
  run_part(*m.encode_plan, part);
  m.ctx.copy<int32_t>(m.codes_out, codes);
}

void Codec::decode(View<const int32_t> codes, View<float> audio, SignalPart* part) {
  Impl& m = inside(impl_, "decode");
  const InUse alone(m.in_use, "decode", "codec");
  if (!m.decode_plan || codes.shape != m.codes_in.shape)
    throw Error(ErrorKind::usage,
                "decode: codes is " + str(codes.shape) + ", expected the reserved shape " + str(m.codes_in.shape));
  if (audio.shape != m.audio_out.shape)
    throw Error(ErrorKind::usage, "decode: audio is " + str(audio.shape) + ", expected " + str(m.audio_out.shape));
  expect_part("decode", part, codes.shape.batch, codes.shape.time);
  expect_data("decode", "codes", codes);
  expect_data("decode", "audio", audio);
  if (m.ctx.device().kind == Device::cpu)
    expect_codes("decode", {codes.data, static_cast<size_t>(codes.elements())}, m.config);
  m.ctx.copy<int32_t>(codes, m.codes_in);
  run_part(*m.decode_plan, part);
  m.ctx.copy<float>(m.audio_out, audio);
}

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

LoadReport load_from(Context& ctx, Parameters& parameters, const WeightsFile& file, bool strict) {
  struct Wanted {
    std::string name;
    std::vector<int64_t> shape;
    WeightsFile::Place place;
  };
  LoadReport report;
  std::vector<Wanted> wanted;
  std::vector<const StoredTensor*> used, misshapen;
  parameters.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float>) {
    const WeightsFile::Place place = file.find(name);
    if (place.tensor == nullptr) {
      // The product of a gain and a direction would be missing twice.
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
