// A codec's configuration in JSON, and the receptive fields of samples and frames.
#include "nacre/systems/codec_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness.h"
#include "nacre/codec/codec.h"

using namespace nacre;

namespace {

std::string refusal(const std::string& json) {
  try {
    CodecConfig::from_json(json);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "accepted";
}

/// Makes all weights positive and all biases zero. The response to an impulse is then positive wherever the impulse
/// reaches, and exactly zero elsewhere.
void open_up(Context& ctx, Parameters& p) {
  p.allocate(ctx, false);
  p.initialise(ctx, 1);
  for (Parameter& x : p.all()) {
    std::vector<float> v(static_cast<size_t>(x.value.elements()));
    ctx.read<float>(x.value, v);
    const bool bias = x.names[0].size() > 5 && x.names[0].substr(x.names[0].size() - 5) == ".bias";
    for (float& y : v) y = bias ? 0.0f : std::fabs(y);
    ctx.write<float>(v, x.value);
  }
  p.refresh(ctx);
}

/// First and last output row that an impulse at row `at` of the input reaches.
struct Probe {
  Context ctx{{.threads = 1}};
  Parameters p;
  Net net;
  Plan plan;
  View<float> input;
  View<const float> output;

  Probe(Net (*build)(Parameters&, const CodecConfig&), const CodecConfig& c, Shape shape)
      : net(build(p, c)), plan(ctx, Purpose::inference) {
    open_up(ctx, p);
    plan.reserve([&](Plan& w) {
      const Output<float> source = w.source<float>(shape);
      input = source.value;
      output = w.result<float>(net(w, source.flow));
    });
  }
  std::pair<int64_t, int64_t> reach(int64_t at) {
    std::vector<float> x(static_cast<size_t>(input.elements())), y(static_cast<size_t>(output.elements()));
    const int64_t c = input.shape.channels;
    std::fill(x.begin() + at * c, x.begin() + (at + 1) * c, 0.5f);
    ctx.write<float>(x, input);
    plan.run();
    ctx.read<float>(output, y);
    int64_t first = -1, last = -1;
    for (size_t i = 0; i < y.size(); ++i)
      if (y[i] != 0) {
        last = static_cast<int64_t>(i) / output.shape.channels;
        if (first < 0) first = last;
      }
    return {first, last};
  }
};

struct Reach {
  std::vector<int64_t> encoder_rates, decoder_rates, dilations;
  int64_t kernel_size;
};
const Reach reaches[] = {
    {{2}, {2}, {1}, 1},                    // the smallest
    {{2, 3}, {3, 2}, {1, 3, 9}, 7},        // the usual units
    {{3}, {3}, {1}, 3},                    // odd strides: output padding
    {{2}, {2}, {2}, 5},                    // the shortest possible hop, dilated
    {{5, 4}, {10, 2}, {1}, 3},             // the decoder is not the encoder's mirror image
    {{2, 2, 2, 2}, {4, 4}, {1, 2}, 3},     // the encoder has more strides than the decoder
    {{8}, {2, 2, 2}, {9}, 7},              // a frame is shorter than the dilation
    {{64}, {64}, {1}, 7},                  // the field is far shorter than a frame
    {{2, 4, 5}, {5, 4, 2}, {1, 3, 9}, 7},  // speech-16k-small's
};

}  // namespace

TEST_CASE("a codec's contexts are the receptive fields, exactly") {
  for (const Reach& r : reaches) {
    CodecConfig c;
    c.encoder_dim = 1, c.encoder_rates = r.encoder_rates;
    c.decoder_dim = 1 << r.decoder_rates.size(), c.decoder_rates = r.decoder_rates;
    c.latent_dim = 1, c.kernel_size = r.kernel_size, c.dilations = r.dilations;
    c.check();
    const int64_t hop = c.hop(), back = c.encoder_context(), ahead = c.decoder_context();
    CAPTURE(r.encoder_rates, r.decoder_rates, r.dilations, r.kernel_size, hop, back, ahead);

    const int64_t middle = std::max(back, ahead) + 2, frames = 2 * middle + 1;
    Probe encoder(encoder_of, c, {.time = frames * hop});
    int64_t farthest = 0;
    for (int64_t s = middle * hop; s < (middle + 1) * hop; ++s) {
      const auto [first, last] = encoder.reach(s);
      REQUIRE(first >= 0);
      farthest = std::max({farthest, middle - first, last - middle});
    }
    CHECK(std::max<int64_t>(farthest, 1) == back);

    Probe decoder(decoder_of, c, {.time = frames});
    REQUIRE(decoder.output.shape.time == frames * hop);
    const auto [first, last] = decoder.reach(middle);
    REQUIRE(first >= 0);
    farthest = std::max(middle - first / hop, last / hop - middle);
    CHECK(std::max<int64_t>(farthest, 1) == ahead);
  }
}

TEST_CASE("codec configurations: what is wrong is named") {
  struct Wrong {
    const char *json, *named;
  };
  for (const Wrong& w : {
           Wrong{R"({"encoder_rate": [2]})", "codec.encoder_rate "},
           Wrong{R"({"sample_rate": "16k"})", "codec.sample_rate"},
           Wrong{R"({"sample_rate": 16000.5})", "codec.sample_rate"},
           Wrong{R"({"sample_rate": 10})", "codec.sample_rate"},
           Wrong{R"({"sample_rate": 1e300})", "codec.sample_rate"},
           Wrong{R"({"encoder_dim": 0})", "codec.encoder_dim"},
           Wrong{R"({"encoder_dim": 18446744073709551615})", "codec.encoder_dim"},
           Wrong{R"({"encoder_rates": []})", "codec.encoder_rates"},
           Wrong{R"({"encoder_rates": 8})", "codec.encoder_rates"},
           Wrong{R"({"encoder_rates": [2, "4"]})", "codec.encoder_rates"},
           Wrong{R"({"encoder_rates": [1, 4]})", "codec.encoder_rates"},  // would add a frame
           Wrong{R"({"encoder_rates": [64, 64, 64, 64, 64, 64, 64, 64]})", "_rates"},
           Wrong{R"({"encoder_rates": [2, 2]})", "codec.decoder_rates"},
           Wrong{R"({"decoder_dim": 24})", "codec.decoder_dim"},
           Wrong{R"({"latent_dim": -1})", "codec.latent_dim"},
           Wrong{R"({"latent_dim": 1000000})", "codec.latent_dim"},
           Wrong{R"({"kernel_size": 4})", "codec.kernel_size"},
           Wrong{R"({"dilations": [1, 0]})", "codec.dilations"},
           Wrong{R"({"dilations": []})", "codec.dilations"},
           Wrong{R"({"activation": "relu"})", "activation"},
           Wrong{R"({"activation": 3})", "codec.activation"},
           Wrong{R"({"output_tanh": 1})", "codec.output_tanh"},
           Wrong{R"({"quantizer": "fsq"})", "codec.quantizer"},
           Wrong{R"({"n_codebooks": 0})", "codec.n_codebooks"},
           Wrong{R"({"n_codebooks": 65})", "codec.n_codebooks"},
           Wrong{R"({"codebook_size": 1})", "codec.codebook_size"},
           Wrong{R"({"codebook_dim": 0})", "codec.codebook_dim"},
           Wrong{R"({"metric": "angle"})", "codec.metric"},
           Wrong{R"({"quantizer_dropout": 1.5})", "codec.quantizer_dropout"},
           Wrong{R"({"quantizer_dropout": "half"})", "codec.quantizer_dropout"},
           Wrong{R"({"ema_decay": 1})", "codec.ema_decay"},
           Wrong{R"({"ema_rows": -1})", "codec.ema_rows"},
           Wrong{R"({"ema_rows": 10000001})", "codec.ema_rows"},
           Wrong{R"({"dead_below": -0.1})", "codec.dead_below"},
           Wrong{R"({"beam": 0})", "codec.beam"},
           Wrong{R"({"beam": "4"})", "codec.beam"},
           Wrong{R"({"beam": 65, "quantizer": "ema", "metric": "euclidean"})", "codec.beam"},
           Wrong{R"({"beam": 2, "quantizer": "factorised", "metric": "euclidean"})", "codec.beam"},
           Wrong{R"({"beam": 2, "quantizer": "ema", "metric": "cosine"})", "codec.beam"},
           Wrong{R"([])", "codec config"},
           Wrong{R"({"sample_rate": 16000)", "codec config"},
           Wrong{R"()", "codec config"},
       }) {
    const std::string what = refusal(w.json);
    INFO(w.json << " -> " << what);
    CHECK(what.find(w.named) != std::string::npos);
  }
  CHECK(refusal("{}") == "accepted");
  CHECK(refusal(R"({"beam": 64, "quantizer": "ema", "metric": "euclidean"})") == "accepted");
}

TEST_CASE("codec configurations: there and back again") {
  for (const std::string& name : CodecConfig::names()) {
    CAPTURE(name);
    const CodecConfig c = CodecConfig::named(name);
    c.check();
    const CodecConfig again = CodecConfig::from_json(c.to_json());
    CHECK(again.to_json() == c.to_json());
    CHECK(again.latent() == c.latent());
    CHECK(again.hop() == c.hop());
    CHECK(again.quantizer == c.quantizer);
    CHECK(again.activation == c.activation);
    CHECK(again.metric == c.metric);
    CHECK(again.beam == c.beam);
    CHECK(again.nominal_bitrate() == c.nominal_bitrate());
  }
  try {
    CodecConfig::named("dac-48k");
    FAIL_CHECK("dac-48k is no name");
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("dac-44k") != std::string::npos);
  }
  // Published kbit/s and frames per second.
  CHECK(CodecConfig::named("dac-16k").nominal_bitrate() == 6000);
  CHECK(CodecConfig::named("dac-24k").nominal_bitrate() == 24000);
  CHECK(CodecConfig::named("dac-44k").nominal_bitrate() == Approx(7751.95).epsilon(1e-6));
  CHECK(CodecConfig::named("speech-16k").nominal_bitrate() == 64000);
  CHECK(CodecConfig::named("speech-16k-small").nominal_bitrate() == 32000);
  // Files that are older than the beam search have no such key.
  CHECK(CodecConfig::from_json("{}").beam == 1);
  CodecConfig c = CodecConfig::named("speech-16k");
  c.beam = 16;
  CHECK(CodecConfig::from_json(c.to_json()).beam == 16);
  c.codebook_size = 1025;
  CHECK(c.code_bits() == 11);
}

TEST_CASE("codebooks of a bitrate: as many as do not exceed it", "[config][codebooks]") {
  for (const std::string& name : CodecConfig::names()) {
    const CodecConfig c = CodecConfig::named(name);
    const double one = c.nominal_bitrate(1);
    for (int64_t n = 1; n <= c.n_codebooks; ++n) {
      CAPTURE(name, n);
      const double rate = c.nominal_bitrate(n);
      CHECK(rate == Approx(static_cast<double>(c.codes_per_frame(n)) * one).epsilon(1e-15));
      CHECK(c.codebooks_within(rate) == n);
      CHECK(c.codebooks_within(1000 * (rate / 1000)) == n);
      CHECK(c.codebooks_within(rate + 0.999 * one) == n);
      CHECK(c.codebooks_within(rate - 1e-6 * one) == n - 1);
    }
    CHECK(c.nominal_bitrate(c.n_codebooks) == c.nominal_bitrate());
    CHECK(c.codebooks_within(10 * c.nominal_bitrate()) == c.n_codebooks);
    CHECK(c.codebooks_within(std::numeric_limits<double>::infinity()) == c.n_codebooks);
    CHECK(c.codebooks_within(0) == 0);
  }
  // 160/3 frames per second of 10 bits: three codebooks have 1.6 kbit/s. Neither 160/3 nor 1.6 is a double.
  CodecConfig c;
  c.encoder_rates = {3, 10, 10}, c.decoder_rates = {10, 10, 3}, c.n_codebooks = 12;
  for (int64_t n = 3; n <= 12; n += 3) {
    CAPTURE(n);
    const double kilobits = std::stod(std::to_string(16 * n / 30) + "." + std::to_string(16 * n / 3 % 10));
    CHECK(c.codebooks_within(1000 * kilobits) == n);
    CHECK(c.codebooks_within(1000 * kilobits - 1e-3) == n - 1);
  }
  CHECK(c.codebooks_used("call", 0) == 12);
  CHECK(c.codebooks_used("call", 12) == 12);
  CHECK(c.codebooks_used("call", 1) == 1);
  CHECK_THROWS_WITH(c.codebooks_used("call", 13), "call: codebooks is 13, expected 1 to 12, or 0 for all");
  CHECK_THROWS_WITH(c.codebooks_used("call", -1), "call: codebooks is -1, expected 1 to 12, or 0 for all");
}

TEST_CASE("averages of codebooks span their frames, however few a step has", "[config]") {
  CodecConfig c;
  c.ema_decay = 0.98;
  CHECK(c.ema_decay_of(1) == 0.98);
  c.ema_rows = 1000;
  CHECK(c.ema_decay_of(20) == 0.98);
  CHECK(c.ema_decay_of(5) == Approx(0.995));
  CHECK(c.ema_decay_of(5000) == 0.98);
  c.dead_below = 0.25, c.codebook_size = 64;
  CHECK(c.dead_below_of(1000) == 0.25);
  CHECK(c.dead_below_of(32) == 0.25);
  CHECK(c.dead_below_of(16) == 0.125);
  CHECK(CodecConfig::from_json(c.to_json()).ema_rows == 1000);
}
