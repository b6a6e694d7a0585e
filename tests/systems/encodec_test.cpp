// EnCodec's topology: published sizes, no lookahead, lengths, and keys that it shares with no other topology.
#include "systems/halves.h"

using namespace nacre;
using namespace nacre::test;

namespace {

CodecConfig tiny(bool causal, Padding padding) {
  CodecConfig c = CodecConfig::named("encodec-24k");
  c.encoder_dim = 2, c.encoder_rates = {2, 5};
  c.decoder_dim = 8, c.decoder_rates = {5, 2};
  c.latent_dim = 3, c.n_codebooks = 2, c.codebook_size = 8, c.codebooks_drawn = {};
  c.causal = causal, c.padding = padding;
  c.lstm_layers = 1;
  c.check();
  return c;
}

}  // namespace

TEST_CASE("encodec: sizes and operations are those of the published models", "[systems][encodec]") {
  // Counted from the published layers. Stored: directions and gains instead of effective weights.
  const CodecConfig at_24k = CodecConfig::named("encodec-24k"), at_32k = CodecConfig::named("encodec-32k"),
                    at_48k = CodecConfig::named("encodec-48k");
  CHECK(size_of(encoder_of, at_24k).effective == 7423472);
  CHECK(size_of(decoder_of, at_24k).effective == 7423345);
  CHECK(size_of(encoder_of, at_24k).stored + size_of(decoder_of, at_24k).stored == 14851810);
  CHECK(size_of(encoder_of, at_32k).effective == 28438432);
  CHECK(size_of(decoder_of, at_32k).effective == 28438305);
  CHECK(size_of(encoder_of, at_32k).stored + size_of(decoder_of, at_32k).stored == 56884674);
  // Its convolutions have no gains: their outputs are normalised.
  CHECK(size_of(encoder_of, at_48k).effective == 7428336);
  CHECK(size_of(decoder_of, at_48k).effective == 7427958);
  CHECK(size_of(encoder_of, at_48k).stored + size_of(decoder_of, at_48k).stored == 14856294);
  CHECK(at_24k.frame_rate() == 75);
  CHECK(at_32k.frame_rate() == 50);
  CHECK(static_cast<double>(at_24k.encoder_macs(75)) == Approx(1.490e9).epsilon(1e-3));
  CHECK(static_cast<double>(at_24k.decoder_macs(75)) == Approx(1.490e9).epsilon(1e-3));
  CHECK(static_cast<double>(at_32k.encoder_macs(50)) == Approx(3.888e9).epsilon(1e-3));
  CHECK(static_cast<double>(at_32k.decoder_macs(50)) == Approx(3.888e9).epsilon(1e-3));
  CHECK(at_48k.frame_rate() == 150);
  CHECK(static_cast<double>(at_48k.encoder_macs(150)) == Approx(2.990e9).epsilon(1e-3));
  CHECK(static_cast<double>(at_48k.decoder_macs(150)) == Approx(2.990e9).epsilon(1e-3));
  CHECK(at_48k.nominal_bitrate(2) == 3000);
  CHECK(at_48k.nominal_bitrate() == 24000);
  CHECK(at_24k.nominal_bitrate(2) == 1500);
  CHECK(at_24k.nominal_bitrate() == 24000);
  CHECK(at_32k.nominal_bitrate() == 2200);
}

TEST_CASE("encodec: a causal codec does not look ahead", "[systems][encodec]") {
  for (const Padding padding : {Padding::zero, Padding::reflect}) check_no_lookahead(tiny(true, padding));
}

TEST_CASE("encodec: every length from one frame on has its frames", "[systems][encodec]") {
  // Short signals are reflected further than they reach.
  for (const bool causal : {true, false})
    for (const Padding padding : {Padding::zero, Padding::reflect})
      for (const int64_t frames : {1, 2, 3, 6, 7, 8}) {
        const CodecConfig c = tiny(causal, padding);
        CAPTURE(causal, frames);
        Half encoder(encoder_of, c, {.batch = 2, .time = frames * c.hop()});
        CHECK(encoder.output.shape == Shape{.batch = 2, .time = frames, .channels = c.latent()});
        for (const float v : encoder(noise(2 * frames * c.hop()))) REQUIRE(std::isfinite(v));
        Half decoder(decoder_of, c, {.batch = 2, .time = frames, .channels = c.latent()});
        CHECK(decoder.output.shape == Shape{.batch = 2, .time = frames * c.hop()});
        for (const float v : decoder(noise(2 * frames * c.latent()))) REQUIRE(std::isfinite(v));
      }
}

TEST_CASE("encodec: what its keys cannot be is named", "[systems][encodec]") {
  CHECK_THAT(refusal(R"({"network": "encodec", "encoder_dim": 3})"), Catch::Matchers::Contains("codec.encoder_dim"));
  CHECK_THAT(refusal(R"({"network": "encodec", "decoder_dim": 16})"), Catch::Matchers::Contains("codec.decoder_dim"));
  CHECK_THAT(refusal(R"({"codebooks_drawn": [13]})"), Catch::Matchers::Contains("codec.codebooks_drawn"));
  CHECK_THAT(refusal(R"({"codebooks_drawn": [2], "quantizer_dropout": 0.5})"),
             Catch::Matchers::Contains("codec.quantizer_dropout"));
  for (const char* key : {R"("causal": true)", R"("padding": "reflect")", R"("norm": "group")",
                          R"("residual_kernel_size": 3)", R"("shortcut": "convolution")", R"("lstm_layers": 1)"}) {
    const std::string message = refusal(std::string("{\"network\": \"dac\", ") + key + "}");
    CAPTURE(message);
    const std::string name(key + 1, std::string_view(key).find('"', 1) - 1);
    CHECK_THAT(message, Catch::Matchers::Contains("codec." + name + " is "));
    CHECK_THAT(message, Catch::Matchers::Contains("with network \"dac\""));
  }
}
