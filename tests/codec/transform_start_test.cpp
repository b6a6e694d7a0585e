// A codec that starts as a transform codec. Before any step, encoder and decoder reproduce their input if no quantizer
// lies between them.
#include "nacre/codec/transform_start.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "harness.h"
#include "nacre/codec/codec.h"

using namespace nacre;

namespace {

#if defined(NACRE_EMULATED)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

/// Encoder and decoder joined, on `frames` frames of one item.
struct Joined {
  Context ctx;
  CodecConfig config;
  Parameters parameters;
  Net encoder, decoder;
  Plan plan;
  View<float> in;
  View<const float> out;

  Joined(Device device, const CodecConfig& c, int64_t frames)
      : ctx({.device = device, .threads = 2}),
        config(c),
        encoder(encoder_of(parameters, c)),
        decoder(decoder_of(parameters, c)),
        plan(ctx, Purpose::inference) {
    parameters.allocate(ctx, false);
    parameters.initialise(ctx, 5);
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>({.time = frames * c.hop()});
      in = source.value;
      out = p.result<float>(decoder(p, encoder(p, source.flow)));
    });
  }
  std::vector<float> run(const std::vector<float>& x) {
    std::vector<float> y(x.size());
    ctx.write<float>(x, in);
    plan.run();
    ctx.read<float>(out, y);
    return y;
  }
};

/// Harmonics of a falling pitch under a syllable's envelope, with a peak of 0.95. The amplitudes are those of speech
/// scaled by its peak. No harmonic lies above `highest`, in cycles per sample.
std::vector<float> voice(int64_t samples, double highest) {
  std::vector<float> x(static_cast<size_t>(samples));
  double phase = 0, peak = 0;
  for (int64_t i = 0; i < samples; ++i) {
    const double t = static_cast<double>(i) / static_cast<double>(samples);
    const double pitch = 0.012 * (1.3 - 0.6 * t), envelope = std::pow(std::sin(std::numbers::pi * t), 2) + 0.02;
    phase += 2 * std::numbers::pi * pitch;
    double sum = 0;
    for (int h = 1; h * 0.012 * 1.3 < highest; ++h) sum += std::cos(h * phase + 0.3 * h * h) / h;
    x[static_cast<size_t>(i)] = static_cast<float>(envelope * sum);
    peak = std::max(peak, std::fabs(envelope * sum));
  }
  for (float& v : x) v *= static_cast<float>(0.95 / peak);
  return x;
}

/// Energy of the error over that of the input, in dB. The frames at both ends are left out, because their windows are
/// cut off.
double error_db(const std::vector<float>& x, const std::vector<float>& y, int64_t hop) {
  double signal = 0, error = 0;
  for (size_t i = static_cast<size_t>(2 * hop); i + static_cast<size_t>(2 * hop) < x.size(); ++i) {
    const double a = x[i], b = y[i];
    signal += a * a, error += (a - b) * (a - b);
  }
  return 10 * std::log10(error / signal);
}

CodecConfig small(ActivationKind activation, std::vector<int64_t> rates, bool tanh_at_end) {
  CodecConfig c;
  c.encoder_dim = 8, c.encoder_rates = rates;
  std::reverse(rates.begin(), rates.end());
  c.decoder_dim = 8 << rates.size(), c.decoder_rates = rates;
  c.latent_dim = c.hop() + 3;  // a few dimensions that carry nothing
  c.activation = activation, c.output_tanh = tanh_at_end;
  return c;
}

/// Strides that do not mirror each other but give the transform's window the same position, and convolutions of one
/// tap.
CodecConfig other_strides(std::vector<int64_t> encoder, std::vector<int64_t> decoder) {
  CodecConfig c = small(ActivationKind::snake, std::move(encoder), false);
  c.decoder_dim = 16 << decoder.size(), c.decoder_rates = std::move(decoder);
  c.kernel_size = 1;
  return c;
}

/// The error of a built-in configuration with random weights, and with those of the transform start.
void check_transform(const std::string& name, Device device) {
  const CodecConfig c = CodecConfig::named(name);
  CAPTURE(name, str(device));
  const TransformStart start = transform_start_of(c);
  REQUIRE(start.refused.empty());
  CHECK(start.bands == c.hop());
  const int64_t frames = std::max<int64_t>(5, 960 / c.hop());  // two at each end are left out
  Joined model(device, c, frames);
  const std::vector<float> x = voice(frames * c.hop(), 0.4);
  CHECK(error_db(x, model.run(x), c.hop()) > -10);  // random weights do not reproduce the input
  transform_start(model.ctx, model.parameters, c);
  // The final tanh leaves -55.6 dB over speech. The margin of 3 dB covers the other amplitudes of this voice.
  CHECK(error_db(x, model.run(x), c.hop()) < -52);
}
bool published(const std::string& name) { return name.starts_with("dac-"); }

}  // namespace

TEST_CASE("without a quantizer and before any step, every built-in configuration of network dac gives back its input",
          "[start][step]") {
  for (const std::string& name : CodecConfig::names())
    if (CodecConfig::named(name).network == "dac" && !published(name))
      for (const Device device : test::devices()) check_transform(name, device);
}
// The emulator would take minutes and gigabytes.
TEST_CASE("without a quantizer and before any step, the published sizes of DAC give back their input",
          "[start][wide]") {
  for (const std::string& name : CodecConfig::names())
    if (published(name))
      for (const Device device : test::devices())
        if (device.kind == Device::cpu || !emulated) check_transform(name, device);
}

TEST_CASE("the transform start stands for each activation, odd strides and a plain end", "[start][step]") {
  struct Variant {
    CodecConfig config;
    // dB. Snake and leaky ReLU leave only rounding: a dozen layers add errors of about 16 u = 2^-20 of the signal each,
    // together -110 dB. ELU loses u/4 of u per activation, at most 1/256 of 1/64 times the largest
    // coefficient, four times. tanh loses less. The final tanh leaves -55.6 dB over speech, with a margin of 3 dB for
    // other amplitudes.
    double error;
  };
  const Variant variants[] = {
      {small(ActivationKind::snake, {2, 3}, false), -100},
      {small(ActivationKind::snake_beta, {3, 2, 2}, false), -100},
      {small(ActivationKind::leaky_relu, {3}, false), -100},
      {small(ActivationKind::snake, {2, 5}, true), -52},
      {other_strides({2, 4}, {2, 4}), -100},
      {other_strides({8}, {4, 2}), -100},
      {small(ActivationKind::snake_beta, {4}, true), -52},
      {small(ActivationKind::elu, {2, 2}, false), -30},
      {small(ActivationKind::tanh, {2, 2}, false), -30},
  };
  for (const Variant& v : variants)
    for (const Device device : test::devices()) {
      CAPTURE(str(v.config.activation), v.config.hop(), v.config.output_tanh, str(device));
      const int64_t frames = 60;
      Joined model(device, v.config, frames);
      transform_start(model.ctx, model.parameters, v.config);
      const std::vector<float> x = voice(frames * v.config.hop(), 0.4);
      CHECK(error_db(x, model.run(x), v.config.hop()) < v.error);
    }
}

TEST_CASE("one, two and more residual units undo the tanh", "[start]") {
  // Over speech, the fitted steps leave -31.8, -34.8 and -41.8 dB if a layer has two channels, otherwise -38.1, -47.0
  // and -55.6 dB. The margin of 3 dB covers the other amplitudes of this voice. A fourth unit has no effect.
  const double narrow[] = {-31.8, -34.8, -41.8, -41.8}, wide[] = {-38.1, -47.0, -55.6, -55.6};
  const std::vector<int64_t> dilations[] = {{1}, {1, 3}, {1, 3, 9}, {1, 2, 4, 8}};
  for (const bool two_channels : {true, false}) {
    double before = 0;
    for (size_t i = 0; i < std::size(dilations); ++i) {
      CodecConfig c = small(ActivationKind::snake, {two_channels ? 2 : 4}, true);
      if (two_channels) c.decoder_dim = 4;
      c.dilations = dilations[i];
      Joined model({Device::cpu, 0}, c, 240);
      transform_start(model.ctx, model.parameters, c);
      const std::vector<float> x = voice(240 * c.hop(), 0.4);
      const double error = error_db(x, model.run(x), c.hop());
      CAPTURE(c.dilations, two_channels, error, before);
      CHECK(error < (two_channels ? narrow : wide)[i] + 3);
      if (i < 3)
        CHECK(error < before);
      else
        CHECK(error == Approx(before).margin(0.01));  // only rounding differs
      before = error;
    }
  }
}

TEST_CASE("a codec too narrow for all bands carries the lowest, or says why it carries none", "[start]") {
  CodecConfig c = small(ActivationKind::snake, {4, 5}, false);
  c.latent_dim = 12;
  CHECK(transform_start_of(c).bands == 12);
  Joined model({Device::cpu, 0}, c, 100);
  transform_start(model.ctx, model.parameters, c);
  // Twelve of twenty bands end at 0.3 cycles per sample.
  const std::vector<float> low = voice(100 * c.hop(), 0.15);
  std::vector<float> high(low.size());
  for (size_t i = 0; i < high.size(); ++i) high[i] = 0.5f * std::sin(2.5f * static_cast<float>(i));  // 0.4 / sample
  CHECK(error_db(low, model.run(low), c.hop()) < -25);
  CHECK(error_db(high, model.run(high), c.hop()) > -3);

  c.encoder_dim = 4;  // 4 channels after the first layer's 2 x 1, 8 for the 2 x 4 of the second, 16 for 8 bands
  CHECK(transform_start_of(c).bands == 8);
  c.encoder_dim = 2;
  CHECK(transform_start_of(c).bands == 0);
  CHECK(transform_start_of(c).refused == "encoder layer 1 has 4 channels, expected 8 or more");
  Parameters none;
  Context ctx;
  CHECK_THROWS_AS(transform_start(ctx, none, c), Error);
  c = small(ActivationKind::snake, {4, 5}, false);
  c.decoder_rates = {4, 5};
  CHECK(transform_start_of(c).refused ==
        "the strides next to the latent are 5 (encoder) and 4 (decoder), expected equal or both even, "
        "because their padding sets the place of the transform's windows");
  c.decoder_rates = {5, 2, 2};
  c.decoder_dim = 8;
  CHECK(transform_start_of(c).refused == "decoder layer 1 has 4 channels, expected 8 or more");
  c.network = "other";
  CHECK(transform_start_of(c).refused == "network is \"other\", expected \"dac\"");
}

TEST_CASE("the transform start is the same on every device, and changes neither names nor shapes", "[start]") {
  using Tensors = std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>>;
  const auto tensors = [](Context& ctx, const Parameters& p) {
    Tensors all;
    p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
      all[name] = {shape, {v.begin(), v.end()}};
    });
    return all;
  };
  const CodecConfig c = CodecConfig::named("speech-16k-small");
  Tensors first;
  std::vector<Device> devices{{Device::cpu, 0}};
  for (const Device device : test::devices())
    if (device.kind != Device::cpu) devices.push_back(device);
  for (const Device device : devices) {
    Joined model(device, c, 1);
    const Tensors drawn = tensors(model.ctx, model.parameters);
    transform_start(model.ctx, model.parameters, c);
    const Tensors made = tensors(model.ctx, model.parameters);
    REQUIRE(made.size() == drawn.size());
    for (const auto& [name, t] : drawn) CHECK(made.at(name).first == t.first);
    CHECK(made != drawn);
    if (first.empty()) first = made;
    CHECK(made == first);
  }
}
