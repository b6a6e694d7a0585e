// A system: the topology of an encoder and a decoder, and a preset. Its test plans it for encoding, for decoding, and
// for a step of training.
#include <set>

#include "adding/steps.h"
#include "gradient_check.h"
#include "nacre/losses/loss.h"
#include "reference/layers.h"
#include "reference/losses.h"
#include "reference/quantizer.h"
#include "systems/list.h"

// [system]
namespace nacre::systems {
namespace {

/// One strided convolution per rate, with an ELU before each except the first.
Net encoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  int64_t channels = 1, out = c.encoder_dim;
  for (size_t i = 0; i < c.encoder_rates.size(); ++i) {
    const int64_t rate = c.encoder_rates[i];
    const bool last = i + 1 == c.encoder_rates.size();
    const std::string name = "encoder." + std::to_string(i);
    if (i > 0) layers << Activation(p, name + ".elu", channels, ActivationKind::elu);
    layers << Conv1d(p, name, channels, last ? c.latent() : out, rate, {.stride = rate});
    channels = out, out *= 2;
  }
  return layers;
}
/// The mirror image of the encoder.
Net decoder(Parameters& p, const CodecConfig& c) {
  Chain layers;
  int64_t channels = c.latent(), out = c.decoder_dim;
  for (size_t i = 0; i < c.decoder_rates.size(); ++i) {
    const int64_t rate = c.decoder_rates[i];
    const bool last = i + 1 == c.decoder_rates.size();
    const std::string name = "decoder." + std::to_string(i);
    if (i > 0) layers << Activation(p, name + ".elu", channels, ActivationKind::elu);
    layers << ConvTranspose1d(p, name, channels, last ? 1 : out, rate, rate, 0, 0);
    channels = out, out /= 2;
  }
  return layers;
}

}  // namespace

SystemFile plain() {
  CodecConfig c;
  c.network = "plain";
  c.encoder_dim = 16, c.encoder_rates = {4, 5, 8};
  c.decoder_dim = 64, c.decoder_rates = {8, 5, 4};
  c.latent_dim = 64;
  return {.networks = {{.name = "plain", .encoder = encoder, .decoder = decoder}},
          .presets = {{.name = "plain-16k", .codec = c, .settings = {{"loss.mel", "2"}}}}};
}

}  // namespace nacre::systems
// [/system]

using namespace nacre;
using namespace nacre::test;

namespace {

CodecConfig tiny() {
  CodecConfig c = systems::plain().presets[0].codec;
  c.encoder_dim = 4, c.encoder_rates = {2, 3}, c.decoder_dim = 4, c.decoder_rates = {3, 2}, c.latent_dim = 3;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean, c.n_codebooks = 2, c.codebook_size = 8;
  return c;
}

/// The same topology in double, on a tape.
test::Layer reference_of(const CodecConfig& c, bool encodes) {
  test::Chain net;
  const std::vector<int64_t>& rates = encodes ? c.encoder_rates : c.decoder_rates;
  for (size_t i = 0; i < rates.size(); ++i) {
    const std::string name = (encodes ? "encoder." : "decoder.") + std::to_string(i);
    if (i > 0) net << elu;
    net << (encodes ? conv1d(name, rates[i], {.stride = rates[i]})
                    : conv_transpose1d(name, rates[i], {.stride = rates[i]}));
  }
  return net;
}

}  // namespace

TEST_CASE("system: encoding, decoding and a step of training") {
  const CodecConfig c = tiny();
  const int64_t batch = 2, frames = 5, stages = c.n_codebooks;
  const Shape audio{.batch = batch, .time = frames * c.hop()};
  const std::vector<double> one{1};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const Network network = systems::plain().networks[0];
    Plan encode(ctx, Purpose::inference), decode(ctx, Purpose::inference), train(ctx, Purpose::training);
    Output<float> heard, learnt;
    View<int32_t> codes, given;
    View<const float> decoded, estimate;
    Quantized quantized;
    // [system walks]
    const Net encoder = network.encoder(parameters, c);  // System does these three for a network of the list
    const Quantizer quantizer(parameters, c);
    const Net decoder = network.decoder(parameters, c);
    parameters.allocate(ctx, true);
    parameters.initialise(ctx, seed());

    encode.reserve([&](Plan& p) {
      heard = p.source<float>(audio);
      codes = quantizer.plan(p, encoder(p, heard.flow)).codes;
    });
    decode.reserve([&](Plan& p) {
      given = p.persistent<int32_t>({.batch = batch, .time = frames, .channels = stages});
      decoded = p.result<float>(decoder(p, quantizer.plan_decode(p, given)));
    });
    train.reserve([&](Plan& p) {
      learnt = p.source<float>(audio);
      quantized = quantizer.plan(p, encoder(p, learnt.flow), {.commitment_weight = 0.25f});
      const Flow y = decoder(p, quantized.flow);
      estimate = p.result<float>(y);
      const Branches branches = GradientBalancer(0, false).plan(p, y, one);
      waveform_loss_of({}).plan(p, {.estimates = branches.flows,
                                    .target = learnt.value,
                                    .lengths = {},
                                    .values = p.persistent<float>({.channels = 1})});
      parameters.clear_gradients(p);
    });
    // [/system walks]
    CHECK(decoded.shape == audio);
    std::mt19937_64 rng(seed());
    const std::vector<float> x = drawn(rng, audio.elements());
    std::vector<int32_t> chosen(static_cast<size_t>(codes.elements())), trained(chosen.size());
    ctx.write<float>(x, heard.value);
    encode.run();
    ctx.read<int32_t>(View<const int32_t>(codes), chosen);
    ctx.write<int32_t>(chosen, given);
    decode.run();
    ctx.write<float>(x, learnt.value);
    ctx.write<int32_t>(std::vector<int32_t>(2, static_cast<int32_t>(stages)), quantized.stages);
    ctx.write<int32_t>(std::vector<int32_t>(2, static_cast<int32_t>(frames)), quantized.frames);
    train.run_gradients();
    parameters.finish_gradients(ctx);
    ctx.read<int32_t>(View<const int32_t>(quantized.codes), trained);
    CHECK(trained == chosen);
    CHECK(std::set<int32_t>(chosen.begin(), chosen.end()).size() > 1);
    std::vector<float> by_codes(x.size()), by_training(x.size());
    ctx.read<float>(decoded, by_codes), ctx.read<float>(estimate, by_training);
    CHECK(by_codes == by_training);  // ops/rvq.h: decoding gives the bits of the forward pass

    RvqReference rvq;
    rvq.stages = stages, rvq.codes = c.codebook_size, rvq.dim = c.latent();
    rvq.chosen.assign(chosen.begin(), chosen.end());
    rvq.used.assign(static_cast<size_t>(batch * frames), stages), rvq.valid.assign(rvq.used.size(), true);
    const test::Layer encodes = reference_of(c, true), decodes = reference_of(c, false);
    const std::vector<int32_t> lengths(2, static_cast<int32_t>(audio.time));
    const auto model = [&](Tape& t) {
      Node* z = encodes(t, t.constant(audio, {x.begin(), x.end()}));
      const Quantised q = quantise(t, z, "quantizer.quantizers", rvq);
      Node* loss = test::waveform_loss(t, decodes(t, q.y), {x.begin(), x.end()}, lengths);
      return sum(t, {{1, loss}, {0.25, q.commitment}});
    };
    Tape tape;
    tape.parameters = values_of(ctx, parameters);
    const Comparison comparison(tape, model);
    CHECK(comparison.blunt() == "");
    comparison.check(gradients_of(ctx, parameters));
    check_differences(tape, model, rng, 20);
  }
}
