// A codec that denoises on request: the label reaches every plan that encodes or decodes, and only the half that it
// conditions.
#include <algorithm>

#include "harness.h"
#include "nacre/codec/streaming.h"
#include "nacre/codec/windowed.h"

using namespace nacre;
using namespace nacre::test;

namespace {

CodecConfig denoising(Denoise half, bool recurrent = false) {
  CodecConfig c = CodecConfig::named("soundstream-24k");
  c.encoder_dim = 4, c.encoder_rates = {2, 5}, c.decoder_dim = 16, c.decoder_rates = {5, 2};
  c.latent_dim = 6, c.n_codebooks = 3, c.codebook_size = 16, c.denoise = half;
  c.kernel_size = 3, c.dilations = {1};  // windows of 20 frames hold the context twice
  c.lstm_layers = recurrent ? 1 : 0;
  return c;
}

/// A codec of drawn parameters. Those of label 1 are not the identity, but for `untrained`.
Codec made(Context& ctx, const CodecConfig& config, bool untrained = false) {
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, 3);
  if (untrained || config.denoise == Denoise::none) return codec;
  const std::string name = config.denoise == Denoise::encoder ? "encoder.film" : "decoder.film";
  const int64_t channels = 16;  // at the bottleneck of either half
  std::vector<float> gamma(2 * channels, 1.0f), beta(2 * channels, 0.0f);
  for (size_t i = channels; i < gamma.size(); ++i) gamma[i] = -2, beta[i] = 0.5f;
  REQUIRE(codec.parameters().set_tensor(ctx, name + ".gamma", {2, channels}, gamma));
  REQUIRE(codec.parameters().set_tensor(ctx, name + ".beta", {2, channels}, beta));
  return codec;
}

std::vector<float> noise(int64_t n) {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<float> draw(-0.8f, 0.8f);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = draw(rng);
  return x;
}

/// What a codec makes of the same audio and the same codes.
struct Results {
  std::vector<int32_t> codes;
  std::vector<float> audio;
  bool operator==(const Results&) const = default;
};
constexpr int64_t frames = 60;
std::vector<int32_t> given() {
  std::vector<int32_t> codes;
  for (int32_t i = 0; i < 3 * frames; ++i) codes.push_back(i * 7 % 16);
  return codes;
}

Results windowed(Codec& codec) {
  Results r;
  WindowedEncoder encoder(
      codec, [&](View<const int32_t> c, float) { r.codes.insert(r.codes.end(), c.begin(), c.end()); }, 20);
  encoder.push(noise(frames * 10)), encoder.finish();
  WindowedDecoder decoder(
      codec, [&](std::span<const float> s) { r.audio.insert(r.audio.end(), s.begin(), s.end()); }, 20);
  decoder.push(given()), decoder.finish();
  return r;
}
Results streamed(Codec& codec) {
  Results r;
  StreamingEncoder encoder(codec, [&](View<const int32_t> c) { r.codes.insert(r.codes.end(), c.begin(), c.end()); },
                           {.block_frames = 4});
  StreamingDecoder decoder(codec, [&](std::span<const float> s) { r.audio.insert(r.audio.end(), s.begin(), s.end()); },
                           {.block_frames = 4});
  encoder.push(noise(frames * 10)), encoder.finish();
  decoder.push(given()), decoder.finish();
  return r;
}
/// Three equal items, by plans that are reserved before and by those of `ends`.
Results in_batch(Codec& codec, Codec::Ends ends) {
  Context& ctx = codec.context();
  const Shape audio{.batch = 3, .time = frames * 10}, codes{.batch = 3, .time = frames, .channels = 3};
  codec.reserve_inference(3, audio.time, Codec::Use::both, 0, ends);
  Buffer<float> x(ctx, "x", audio, std::vector<float>(static_cast<size_t>(audio.elements()))),
      y(ctx, "y", audio, x.before());
  Buffer<int32_t> coded(ctx, "coded", codes, std::vector<int32_t>(static_cast<size_t>(codes.elements()))),
      chosen(ctx, "chosen", codes, coded.before());
  std::vector<float> all;
  std::vector<int32_t> all_codes;
  for (int i = 0; i < 3; ++i) {
    const std::vector<float> one = noise(audio.time);
    const std::vector<int32_t> of_one = given();
    all.insert(all.end(), one.begin(), one.end()), all_codes.insert(all_codes.end(), of_one.begin(), of_one.end());
  }
  x.write(all), chosen.write(all_codes);
  codec.encode(x, coded);
  codec.decode(chosen, y);
  Results r{coded.read(), y.read()};
  for (size_t i = 1; i < 3; ++i) {  // every item is denoised
    const size_t c = r.codes.size() / 3, s = r.audio.size() / 3;
    CHECK(std::equal(r.codes.begin(), r.codes.begin() + int64_t(c), r.codes.begin() + int64_t(i * c)));
    CHECK(std::equal(r.audio.begin(), r.audio.begin() + int64_t(s), r.audio.begin() + int64_t(i * s)));
  }
  r.codes.resize(r.codes.size() / 3), r.audio.resize(r.audio.size() / 3);
  return r;
}

}  // namespace

TEST_CASE("denoising on request: every way of coding, in one half alone", "[denoise][step]") {
  for (const Device device : devices())
    for (const Denoise half : {Denoise::encoder, Denoise::decoder})
      for (const bool recurrent : {false, true}) {
        CAPTURE(str(device), half == Denoise::encoder, recurrent);
        Context ctx({.device = device, .threads = 2});
        Codec codec = made(ctx, denoising(half, recurrent)), plain = made(ctx, denoising(Denoise::none, recurrent));
        using Way = std::function<Results(Codec&)>;
        for (const Way& way :
             {Way(windowed), Way(streamed), Way([](Codec& c) { return in_batch(c, Codec::Ends::together); }),
              Way([](Codec& c) { return in_batch(c, Codec::Ends::apart); })}) {
          const Results without = way(plain), off = way(codec);
          CHECK(off == without);  // the label 0 is the identity here
          codec.set_denoise(true);
          const Results on = way(codec), again = way(codec);
          CHECK((on.codes != off.codes) == (half == Denoise::encoder));
          CHECK((on.audio != off.audio) == (half == Denoise::decoder));
          CHECK(on == again);
          Codec set_first = made(ctx, denoising(half, recurrent));
          set_first.set_denoise(true);
          CHECK(way(set_first) == on);
          codec.set_denoise(false);
          CHECK(way(codec) == off);
        }
      }
}

TEST_CASE("denoising on request: a stream keeps what was set when it began", "[denoise]") {
  for (const Device device : devices()) {
    Context ctx({.device = device, .threads = 2});
    Codec codec = made(ctx, denoising(Denoise::encoder));
    const std::vector<float> x = noise(300);
    const auto coded = [&](bool before, bool after) {
      std::vector<int32_t> codes;
      codec.set_denoise(before);
      StreamingEncoder encoder(codec, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); });
      codec.set_denoise(after);
      encoder.push(x), encoder.finish();
      return codes;
    };
    CHECK(coded(true, false) == coded(true, true));
    CHECK(coded(false, true) == coded(false, false));
    CHECK(coded(true, true) != coded(false, false));
  }
}

TEST_CASE("denoising on request: an untrained codec is the codec without it", "[denoise]") {
  for (const Device device : devices())
    for (const Denoise half : {Denoise::encoder, Denoise::decoder}) {
      Context ctx({.device = device, .threads = 2});
      Codec codec = made(ctx, denoising(half), true), plain = made(ctx, denoising(Denoise::none));
      codec.set_denoise(true);
      CHECK(windowed(codec) == windowed(plain));
      // Two tables of two labels and 16 channels.
      CHECK(codec.parameters().effective_elements() == plain.parameters().effective_elements() + 2 * 2 * 16);
    }
}

TEST_CASE("denoising on request: refused where the codec cannot", "[denoise]") {
  Context ctx;
  Codec plain = made(ctx, denoising(Denoise::none));
  CHECK_THROWS_WITH(plain.set_denoise(true), "set_denoise: codec.denoise is none, expected encoder or decoder");
  plain.set_denoise(false);
  for (const char* network : {"dac", "encodec", "ldcodec"}) {
    CodecConfig c;
    c.network = network, c.denoise = Denoise::encoder;
    CHECK_THROWS_WITH(
        c.check(),
        Catch::Contains(std::string("codec.denoise is encoder, expected none with network \"") + network + "\""));
  }
}

TEST_CASE("Film: labels are those of the walk, one per item", "[denoise]") {
  for (const Device device : devices()) {
    Context ctx({.device = device});
    Parameters parameters;
    const Film film(parameters, "film", 2, 2);
    parameters.allocate(ctx, false);
    const std::vector<float> gamma{1, 1, 3, 5}, beta{0, 0, 10, 20};
    REQUIRE(parameters.set_tensor(ctx, "film.gamma", {2, 2}, gamma));
    REQUIRE(parameters.set_tensor(ctx, "film.beta", {2, 2}, beta));
    const Shape shape{.batch = 2, .time = 1, .channels = 2};
    View<const float> with, without;
    View<float> x;
    View<int32_t> labels;
    Plan plan(ctx, Purpose::inference);
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>(shape);
      x = source.value;
      without = p.result<float>(film.plan(p, source.flow));
      p.set_labels(labels = p.persistent<int32_t>({.channels = 2}));
      with = p.result<float>(film.plan(p, source.flow));
    });
    ctx.write<float>(std::vector<float>{1, 2, 3, 4}, x);
    ctx.write<int32_t>(std::vector<int32_t>{0, 1}, labels);
    plan.run();
    std::vector<float> found(4);
    ctx.read<float>(without, found);
    CHECK(found == std::vector<float>{1, 2, 3, 4});
    ctx.read<float>(with, found);
    CHECK(found == std::vector<float>{1, 2, 19, 40});
    Plan wrong(ctx, Purpose::inference);
    CHECK_THROWS_WITH(wrong.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>(shape);
      p.set_labels(p.persistent<int32_t>({.channels = 3}));
      film.plan(p, source.flow);
    }),
                      Catch::Contains("\"film\": labels is [1, 1, 1, 3], expected [1, 1, 1, 2]"));
    CHECK_THROWS_WITH(Plan(ctx, Purpose::inference).set_labels({}),
                      Catch::Contains("set_labels() is called outside of a walk"));
  }
}
