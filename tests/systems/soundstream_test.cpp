// SoundStream's topology and what is built on it: published sizes, no lookahead, lengths, and what its keys can be.
#include <array>

#include "systems/halves.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Every way in which units and halves are built.
std::vector<CodecConfig> tiny_ones() {
  CodecConfig c = CodecConfig::named("soundstream-24k");
  c.encoder_dim = 2, c.encoder_rates = {2, 5};
  c.decoder_dim = 8, c.decoder_rates = {5, 2};
  c.latent_dim = 3, c.n_codebooks = 2, c.codebook_size = 8;
  std::vector<CodecConfig> all(6, c);
  all[1].activation_order = ActivationOrder::after, all[1].residual_width = 1, all[1].norm = Norm::none;
  all[1].padding = Padding::reflect;
  all[2].encoder_channels = {2, 3, 6}, all[2].decoder_channels = {6, 5, 3}, all[2].latent_dim = 6;
  all[2].latent_convolutions = false, all[2].upsampling_strides = 1;
  all[2].residual_width = 2, all[2].residual_kernel_sizes = {7, 5, 3};
  all[3].lstm_layers = 1, all[3].shortcut = Shortcut::convolution;
  all[4].denoise = Denoise::encoder;
  all[5] = all[2], all[5].denoise = Denoise::decoder;
  for (const CodecConfig& one : all) one.check();
  return all;
}

int64_t parameters_of(const CodecConfig& c) {
  return size_of(encoder_of, c).effective + size_of(decoder_of, c).effective;
}

/// Multiply-adds, and additions of biases, in one second.
struct Operations {
  double products, biases;
  double flops() const { return 2 * products + biases; }
};

}  // namespace

TEST_CASE("soundstream: parameters are those of the paper's table", "[systems][soundstream]") {
  // Table I: widths of encoder and decoder, and parameters in millions, to one decimal.
  const std::array<std::array<double, 3>, 6> table{
      {{32, 32, 8.4}, {16, 16, 2.4}, {16, 32, 5.5}, {8, 32, 4.8}, {32, 16, 5.3}, {32, 8, 4.4}}};
  for (const auto& [encoder, decoder, millions] : table) {
    CodecConfig c = CodecConfig::named("soundstream-24k");
    c.encoder_dim = static_cast<int64_t>(encoder), c.decoder_dim = 16 * static_cast<int64_t>(decoder);
    CAPTURE(encoder, decoder);
    CHECK(std::fabs(static_cast<double>(parameters_of(c)) / 1e6 - millions) <= 0.05);
  }
  const CodecConfig c = CodecConfig::named("soundstream-24k");
  CHECK(c.frame_rate() == 75);
  CHECK(c.nominal_bitrate() == 6000);
  // Units of full width have twice as many weights, which the table excludes.
  CodecConfig wide = c;
  wide.residual_width = 1;
  CHECK(static_cast<double>(parameters_of(wide)) / 1e6 > 10);
}

TEST_CASE("lrac: operations are within the challenge's limits", "[systems][lrac]") {
  const CodecConfig c = CodecConfig::named("lrac-24k");
  CHECK(c.frame_rate() == 100);
  CHECK(c.nominal_bitrate(1) == 1000);
  CHECK(c.nominal_bitrate() == 6000);
  // Outputs per second of every convolution, each with a bias: the first one, two per unit, the strided ones.
  const double units = 3 * 2;
  const double encoder_biases =
      24000 * 8 + units * (24000 * 8 + 8000 * 16 + 2000 * 32 + 500 * 64) + 8000 * 16 + 2000 * 32 + 500 * 64 + 100 * 160;
  const double decoder_biases =
      units * (500 * 48 + 2000 * 24 + 8000 * 16 + 24000 * 8) + 500 * 48 + 2000 * 24 + 8000 * 16 + 24000 * 8 + 24000;
  const Operations encoder{static_cast<double>(c.encoder_macs(100)), encoder_biases},
      decoder{static_cast<double>(c.decoder_macs(100)), decoder_biases};
  // Published: 378 MFLOPS. Limits of the challenge: 300 at the receiver, 700 in all.
  CHECK(std::lround(encoder.flops() / 1e6) == 378);
  CHECK(decoder.flops() <= 300e6);
}

TEST_CASE("soundstream: a causal codec does not look ahead", "[systems][soundstream]") {
  for (const CodecConfig& c : tiny_ones()) {
    CAPTURE(c.to_json());
    check_no_lookahead(c);
  }
}

TEST_CASE("soundstream: every length from one frame on has its frames", "[systems][soundstream]") {
  for (CodecConfig c : tiny_ones())
    for (const bool causal : {true, false})
      for (const int64_t frames : {1, 2, 3, 6, 7, 8}) {
        c.causal = causal;
        CAPTURE(c.to_json(), frames);
        Half encoder(encoder_of, c, {.batch = 2, .time = frames * c.hop()});
        CHECK(encoder.output.shape == Shape{.batch = 2, .time = frames, .channels = c.latent()});
        for (const float v : encoder(noise(2 * frames * c.hop()))) REQUIRE(std::isfinite(v));
        Half decoder(decoder_of, c, {.batch = 2, .time = frames, .channels = c.latent()});
        CHECK(decoder.output.shape == Shape{.batch = 2, .time = frames * c.hop()});
        for (const float v : decoder(noise(2 * frames * c.latent()))) REQUIRE(std::isfinite(v));
      }
}

TEST_CASE("soundstream: what its keys cannot be is named", "[systems][soundstream]") {
  const std::string network = R"({"network": "soundstream", )",
                    two_strides = R"("encoder_rates": [2, 5], "decoder_rates": [5, 2], )";
  const auto says = [&](const std::string& keys, const std::string& expected) {
    CAPTURE(keys);
    CHECK_THAT(refusal(network + two_strides + keys + "}"), Catch::Matchers::Contains(expected));
  };
  says(R"("encoder_channels": [2, 4])",
       "codec.encoder_channels is 2 numbers, expected 3, one more than strides, or none");
  says(R"("decoder_channels": [8, 4, 2, 1])", "codec.decoder_channels is 4 numbers");
  says(R"("residual_kernel_sizes": [7])", "codec.residual_kernel_sizes is 1 numbers, expected 3, one per dilation");
  says(R"("encoder_dim": 3)", "codec.residual_width is 0.5, expected one that gives whole channels in units of 3");
  says(R"("residual_width": 0.3)", "codec.residual_width is 0.3");
  says(R"("latent_convolutions": false, "latent_dim": 8)", "codec.encoder_channels is 256 at the latent, expected 8");
  says(R"("latent_convolutions": false, "latent_dim": 256)",
       "codec.decoder_channels is 1536 at the latent, expected 256");
  says(R"("groups": 2)", "codec.groups is 2, expected 1 with network \"soundstream\"");
  says(R"("residual_taps": "second")", "codec.residual_taps is second, expected first");
  says(R"("segment": 16000, "segment_stride": 15840)", "codec.segment is 16000");
  // Other topologies refuse the keys of this one.
  for (const char* other : {"dac", "encodec"})
    for (const char* key :
         {R"("encoder_channels": [64, 128, 256, 512, 1024])", R"("residual_width": 1.0)",
          R"("residual_kernel_sizes": [7, 7, 7])", R"("activation_order": "after")", R"("upsampling_strides": 1)",
          R"("latent_convolutions": false)", R"("denoise": "decoder")"}) {
      const std::string message = refusal(std::string("{\"network\": \"") + other + "\", " + key + "}");
      CAPTURE(message);
      const std::string name(key + 1, std::string_view(key).find('"', 1) - 1);
      CHECK_THAT(message, Catch::Matchers::Contains("codec." + name + " is "));
      CHECK_THAT(message, Catch::Matchers::Contains(std::string("with network \"") + other + "\""));
    }
}
