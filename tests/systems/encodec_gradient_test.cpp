// EnCodec's gradients against those that transformers computed in double (golden/make_encodec.py).
#include <cmath>
#include <cstring>
#include <functional>

#include "formats/weights_tools.h"
#include "golden_file.h"
#include "gradient_check.h"
#include "harness.h"
#include "nacre/systems/system.h"
#include "nn/segment_scale.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t frames = 32;

/// The configurations of the golden models, as far as encoder and decoder need them.
CodecConfig config_of(const std::string& model) {
  CodecConfig c = CodecConfig::named("encodec-24k");
  c.encoder_dim = 2, c.latent_dim = 8;
  c.n_codebooks = 3, c.codebook_size = 16, c.codebooks_drawn = {};
  if (model == "encodec_24k") {
    c.encoder_rates = {2, 4}, c.decoder_rates = {4, 2}, c.decoder_dim = 8;
  } else if (model == "encodec_32k") {
    c.encoder_rates = {2, 3}, c.decoder_rates = {3, 2}, c.decoder_dim = 8;
    c.causal = false, c.shortcut = Shortcut::identity, c.dilations = {1, 2};
  } else if (model == "encodec_48k") {
    c.audio_channels = 2, c.segment = 480, c.segment_stride = 475, c.segment_scale = true;
    c.encoder_rates = {2, 5}, c.decoder_rates = {5, 2}, c.decoder_dim = 8;
    c.causal = false, c.norm = Norm::group;
  } else {
    c.encoder_rates = {3}, c.decoder_rates = {3}, c.decoder_dim = 4;
    c.causal = false, c.norm = Norm::group;
  }
  return c;
}

std::string our_name(std::string name) {
  name = replaced(std::move(name), "quantizer.layers.", "quantizer.quantizers.");
  name = replaced(std::move(name), "parametrizations.weight.original0", "weight_g");
  return replaced(std::move(name), "parametrizations.weight.original1", "weight_v");
}

/// The sum of the codes' vectors.
std::vector<float> quantised(const Safetensors& weights, const Safetensors& results, const CodecConfig& c) {
  const StoredTensor& codes = results.at("codes." + std::to_string(frames));
  std::vector<float> all(static_cast<size_t>(frames * c.latent()));
  for (int64_t i = 0; i < c.n_codebooks; ++i) {
    const std::vector<float> book =
        golden_tensor(weights, "quantizer.layers." + std::to_string(i) + ".codebook.embed").values;
    for (int64_t t = 0; t < frames; ++t) {
      int32_t code = 0;
      std::memcpy(&code, codes.data.data() + static_cast<size_t>(t * c.n_codebooks + i) * sizeof code, sizeof code);
      for (int64_t d = 0; d < c.latent(); ++d)
        all[static_cast<size_t>(t * c.latent() + d)] += book[static_cast<size_t>(code * c.latent() + d)];
    }
  }
  return all;
}

/// Gradients of sum(y * weights), where `walk` plans y. `prepare` runs between the plan and its pass.
template <class Walk>
Tensors gradients(
    Context& ctx, Parameters& parameters, const std::vector<float>& x, const std::vector<float>& weights, Shape shape,
    Walk&& walk, const std::function<void()>& prepare = [] {}) {
  Plan plan(ctx, Purpose::training);
  View<float> in;
  plan.reserve([&](Plan& p) {
    const Output<float> source = p.source<float>(shape);
    in = source.value;
    const Flow y = walk(p, source.flow);
    const Step s = p.step("loss");
    const Input<float> end = s.reads<float>(y);
    s.forward([](Context&) {});
    s.backward([&weights, end](Context& on) { on.write<float>(weights, end.grad); });
    parameters.clear_gradients(p);
  });
  ctx.write<float>(x, in);
  prepare();
  plan.run_gradients();
  parameters.finish_gradients(ctx);
  return gradients_of(ctx, parameters);
}

double distance(const Values& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, power = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(a[i] - b[i], 2);
    power += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / power);
}

void load(Context& ctx, Parameters& parameters, const std::string& model) {
  parameters.allocate(ctx, true);
  const Safetensors weights = golden_file(model + "/model.safetensors");
  for (const StoredTensor& t : weights.tensors())
    if (!t.name.ends_with(".inited")) REQUIRE(parameters.set_tensor(ctx, our_name(t.name), t.shape, to_floats(t)));
  parameters.refresh(ctx);
}

/// Compares all gradients among the results; returns how many.
int compare(const Tensors& found, const Safetensors& results, double bound) {
  int compared = 0;
  for (const StoredTensor& t : results.tensors()) {
    const std::string start = "gradient.";
    if (!t.name.starts_with(start)) continue;
    const std::string name = t.name.substr(start.size());
    INFO(name);
    REQUIRE(found.count(name) == 1);
    CHECK(distance(found.at(name), to_floats(t)) < bound);
    ++compared;
  }
  return compared;
}

}  // namespace

TEST_CASE("EnCodec: gradients are those of transformers (golden)") {
  const std::string model = GENERATE("encodec_24k", "encodec_32k", "encodec_group");
  INFO(model);
  const CodecConfig c = config_of(model);
  const Safetensors weights = golden_file(model + "/model.safetensors");
  const Safetensors results = golden_file(model + "/results.safetensors");
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const System system(parameters, c);
    load(ctx, parameters, model);
    Tensors found = gradients(ctx, parameters, golden_tensor(results, "audio." + std::to_string(frames)).values,
                              golden_tensor(results, "weights.latents").values, {.time = frames * c.hop()},
                              [&](Plan& p, Flow x) { return system.encoder(p, x); });
    const Tensors of_decoder =
        gradients(ctx, parameters, quantised(weights, results, c), golden_tensor(results, "weights.output").values,
                  {.time = frames, .channels = c.latent()}, [&](Plan& p, Flow x) { return system.decoder(p, x); });
    for (const auto& [name, v] : of_decoder)
      if (name.starts_with("decoder.")) found[name] = v;
    // Forward and backward pass are 40 layers of sums of up to 56 products, then a sum over 256 positions, whose terms
    // cancel: 2^-24 * sqrt(40 * 56) = 3e-6 of the terms. The bound allows a sum of a tenth of its terms.
    CHECK(compare(found, results, 3e-5) >= 10);
  }
}

TEST_CASE("EnCodec: gradients of segments with a scale are those of transformers (golden)") {
  const std::string model = "encodec_48k";
  const CodecConfig c = config_of(model);
  const Safetensors results = golden_file(model + "/results.safetensors");
  constexpr int64_t batch = 2;
  const Shape wave{.batch = batch, .time = c.segment, .channels = c.audio_channels};
  std::vector<float> segments;
  const std::vector<float> audio = golden_tensor(results, "audio.1097").values;
  for (int64_t b = 0; b < batch; ++b) {
    const auto first = audio.begin() + b * c.segment_stride * c.audio_channels;
    segments.insert(segments.end(), first, first + c.segment * c.audio_channels);
  }
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const System system(parameters, c);
    load(ctx, parameters, model);
    Quantized quantized;
    const Tensors found = gradients(
        ctx, parameters, segments, golden_tensor(results, "weights.pass").values, wave,
        [&](Plan& p, Flow x) {
          const Normalised level = normalised(p, x);
          quantized = system.quantizer.plan(p, system.encoder(p, level.flow), {.commitment_weight = 0});
          return scaled(p, system.decoder(p, quantized.flow), level.scales);
        },
        [&] {
          ctx.write<int32_t>(std::vector(batch, static_cast<int32_t>(c.n_codebooks)), quantized.stages);
          ctx.write<int32_t>(std::vector(batch, static_cast<int32_t>(c.segment / c.hop())), quantized.frames);
        });
    // As above, with 60 layers, half of them normalisations: 2^-24 * sqrt(60 * 56) = 3.5e-6 of the terms.
    CHECK(compare(found, results, 3.5e-5) == 16);
  }
}
