// Two channels in one signal, signals of any length, and segments that are coded by themselves, scaled and overlapped.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "codec/overlap.h"
#include "codec/whole.h"
#include "nacre/codec/streaming.h"
#include "nacre/codec/windowed.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// A narrow EnCodec with a hop of 10.
CodecConfig narrow(const char* preset) {
  CodecConfig c = CodecConfig::named(preset);
  c.encoder_dim = 4, c.decoder_dim = 16, c.latent_dim = 6;
  c.encoder_rates = {2, 5}, c.decoder_rates = {5, 2};
  c.n_codebooks = 3, c.codebook_size = 16, c.codebooks_drawn = {};
  return c;
}
/// Two channels; segments of 200 samples, 30 of which overlap.
CodecConfig segmented() {
  CodecConfig c = narrow("encodec-48k");
  c.segment = 200, c.segment_stride = 170;
  return c;
}

Codec made(Context& ctx, const CodecConfig& config) {
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, 3);
  codec.parameters().refresh(ctx);
  return codec;
}

/// Memory of a device.
template <class T>
struct Values : OnDevice<T> {
  Values(Context& c, Shape s) : OnDevice<T>(c, s), ctx(c) {}
  void set(const std::vector<T>& values) { ctx.template write<T>(values, this->view); }
  std::vector<T> get() const {
    std::vector<T> values(static_cast<size_t>(this->view.elements()));
    ctx.template read<T>(this->view, values);
    return values;
  }
  operator View<T>() const { return this->view; }
  operator View<const T>() const { return this->view; }
  Context& ctx;
};

struct Segment {
  std::vector<int32_t> codes;
  float scale = 1;
  bool operator==(const Segment&) const = default;
};

std::vector<Segment> encoded(Codec& codec, std::span<const float> x, size_t piece) {
  std::vector<Segment> all;
  WindowedEncoder encoder(codec, [&](View<const int32_t> c, float scale) {
    all.push_back({{c.begin(), c.end()}, scale});
  });
  const int64_t channels = codec.config().audio_channels;
  const auto total = static_cast<int64_t>(x.size()) / channels;
  for (piece *= static_cast<size_t>(channels); !x.empty(); x = x.subspan(std::min(piece, x.size())))
    encoder.push(x.first(std::min(piece, x.size())));
  CHECK(encoder.finish() == total);
  return all;
}
std::vector<float> decoded(Codec& codec, const std::vector<Segment>& segments) {
  std::vector<float> y;
  WindowedDecoder decoder(codec, [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); });
  for (const Segment& s : segments) decoder.push(s.codes, s.scale);
  decoder.finish();
  return y;
}

/// One signal through the codec by itself.
struct Direct {
  Segment coded;
  std::vector<float> audio;  // hop samples for every frame
};
Direct direct(Codec& codec, std::span<const float> x) {
  Context& ctx = codec.context();
  const CodecConfig& c = codec.config();
  const int64_t samples = static_cast<int64_t>(x.size()) / c.audio_channels, frames = c.frames_of(samples);
  codec.reserve_inference(1, samples, Codec::Use::encode);
  codec.reserve_inference(1, frames * c.hop(), Codec::Use::decode);
  Values<float> audio(ctx, {.time = samples, .channels = c.audio_channels}), scale(ctx, {}),
      y(ctx, {.time = frames * c.hop(), .channels = c.audio_channels});
  Values<int32_t> codes(ctx, {.time = frames, .channels = c.n_codebooks});
  audio.set(std::vector<float>(x.begin(), x.end()));
  const View<float> scales = c.segment_scale ? View<float>(scale) : View<float>{};
  codec.encode(audio, codes, {}, scales);
  codec.decode(codes, y, {}, scales);
  return {.coded = {.codes = codes.get(), .scale = c.segment_scale ? scale.get()[0] : 1}, .audio = y.get()};
}

}  // namespace

TEST_CASE("overlapping segments are weighted as published", "[segments]") {
  for (const int64_t channels : {1, 2})
    for (const auto& [segment, stride] : {std::pair<int64_t, int64_t>{10, 10}, {10, 9}, {10, 5}, {11, 6}, {4, 3}})
      for (const int64_t last : {int64_t{1}, stride - 1, stride, segment})
        for (const int64_t whole : {0, 1, 4}) {
          CAPTURE(channels, segment, stride, last, whole);
          std::vector<std::vector<float>> parts;
          for (int64_t i = 0; i <= whole; ++i)
            parts.push_back(noise((i < whole ? segment : last) * channels, static_cast<uint64_t>(i + 1)));
          OverlapAdd joined(stride, channels);
          std::vector<float> y;
          for (size_t i = 0; i < parts.size(); ++i) {
            const std::span<const float> ready = joined.add(parts[i]);
            // All that the next segment cannot change.
            CHECK(static_cast<int64_t>(ready.size()) ==
                  channels * std::min(stride, static_cast<int64_t>(parts[i].size()) / channels));
            y.insert(y.end(), ready.begin(), ready.end());
          }
          const std::span<const float> rest = joined.finish();
          y.insert(y.end(), rest.begin(), rest.end());
          const int64_t length = static_cast<int64_t>(parts[0].size()) / channels;
          std::vector<double> sums(y.size(), 0.0), weights(y.size(), 0.0);
          int64_t end = 0;
          for (int64_t i = 0; i <= whole; ++i)
            for (int64_t n = 0; n * channels < static_cast<int64_t>(parts[static_cast<size_t>(i)].size()); ++n) {
              const double weight = 0.5 - std::fabs(double(n + 1) / double(length + 1) - 0.5);
              end = std::max(end, i * stride + n + 1);
              for (int64_t c = 0; c < channels; ++c) {
                const auto at = static_cast<size_t>((i * stride + n) * channels + c);
                REQUIRE(at < sums.size());
                sums[at] += weight * parts[static_cast<size_t>(i)][static_cast<size_t>(n * channels + c)];
                weights[at] += weight;
              }
            }
          REQUIRE(static_cast<int64_t>(y.size()) == end * channels);
          // At most three segments meet in a sample. Weights, products, sums and the quotient are rounded once each.
          for (size_t i = 0; i < y.size(); ++i) CHECK(std::fabs(y[i] - sums[i] / weights[i]) <= 8 * 0x1p-24 * 2);
        }
}

TEST_CASE("segments of a long signal are coded as signals by themselves", "[segments]") {
  for (const Device device : devices()) {
    const bool slow = emulated && device.kind != Device::cpu;
    Context ctx({.device = device});
    for (const bool scaled : {true, false}) {
      CodecConfig config = segmented();
      config.segment_scale = scaled;
      Codec codec = made(ctx, config);
      // The last segment begins at a multiple of the stride, and may hold as little as one sample.
      for (const int64_t samples :
           slow ? std::vector<int64_t>{341}
                : std::vector<int64_t>{0, 1, 9, 10, 170, 171, 185, 200, 201, 340, 341, 515, 555}) {
        CAPTURE(str(device), scaled, samples);
        std::vector<float> x = noise(2 * samples, 7);
        for (size_t i = 0; i < x.size(); ++i) x[i] *= 1e-3f * static_cast<float>(i + 1);  // levels of all sizes
        std::vector<Segment> expected;
        OverlapAdd joined(170, 2);
        std::vector<float> y;
        const auto append = [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); };
        for (int64_t at = 0; at < samples; at += 170) {
          const int64_t n = std::min<int64_t>(200, samples - at);
          Direct one = direct(codec, std::span(x).subspan(static_cast<size_t>(2 * at), static_cast<size_t>(2 * n)));
          append(joined.add(one.audio));
          expected.push_back(std::move(one.coded));
        }
        append(joined.finish());
        for (const size_t piece : slow ? std::vector<size_t>{1000} : std::vector<size_t>{1, 7, 199, 200, 1000}) {
          INFO("pieces of " << piece);
          CHECK((encoded(codec, x, piece) == expected));
        }
        CHECK(decoded(codec, expected) == y);
        for (const Segment& s : expected) CHECK((s.scale == 1) == !scaled);
      }
    }
  }
}

TEST_CASE("segments that are no whole number of frames are joined at their ends", "[segments]") {
  Context ctx;
  CodecConfig config = segmented();
  config.segment = config.segment_stride = 205;
  Codec codec = made(ctx, config);
  const std::vector<float> x = noise(2 * 400, 4);
  const std::vector<Segment> segments = encoded(codec, x, 400);
  const std::vector<float> y = decoded(codec, segments);
  const Direct second = direct(codec, std::span(x).subspan(2 * 205));
  REQUIRE(segments.size() == 2);
  // Nothing of the first segment is left in the second. Weight and quotient are rounded.
  for (size_t i = 0; i < 2 * 195; ++i) CHECK(y[2 * 205 + i] == Approx(second.audio[i]).epsilon(1e-6));
}

TEST_CASE("a segment is known when its last sample is", "[segments]") {
  Context ctx;
  Codec codec = made(ctx, segmented());
  std::vector<int64_t> frames;
  WindowedEncoder encoder(codec, [&](View<const int32_t> c, float) { frames.push_back(c.shape.time); });
  const std::vector<float> x = noise(2 * 371, 1);
  const auto push = [&](size_t from, size_t to) { encoder.push(std::span(x).subspan(2 * from, 2 * (to - from))); };
  push(0, 199);
  CHECK(frames.empty());
  push(199, 200);
  CHECK(frames == std::vector<int64_t>{20});
  push(200, 371);
  CHECK(frames == std::vector<int64_t>{20, 20});
  encoder.finish();
  CHECK(frames == std::vector<int64_t>{20, 20, 4});
}

TEST_CASE("the level of a segment does not change its codes", "[segments]") {
  Context ctx;
  Codec codec = made(ctx, segmented());
  const std::vector<float> x = noise(2 * 200, 3);
  const std::vector<Segment> loud = encoded(codec, x, 200);
  std::vector<float> quiet = x;
  for (float& s : quiet) s *= 0x1p-6f;  // exact
  const std::vector<Segment> other = encoded(codec, quiet, 200);
  REQUIRE(loud.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    // The summand 1e-8 of the scale is not scaled, so a near tie could go the other way.
    CHECK(loud[i].codes == other[i].codes);
    CHECK(other[i].scale == Approx(0x1p-6 * loud[i].scale).epsilon(1e-5));
  }
  const std::vector<float> a = decoded(codec, loud), b = decoded(codec, other);
  const auto largest = std::abs(*std::max_element(a.begin(), a.end()));
  for (size_t i = 0; i < a.size(); ++i) CHECK(std::fabs(b[i] - 0x1p-6 * a[i]) <= 1e-5 * 0x1p-6 * largest);
}

TEST_CASE("a signal of any length is coded as it is where frames depend on all of it", "[segments]") {
  Context ctx;
  CodecConfig config = segmented();
  config.segment = config.segment_stride = 0, config.segment_scale = false;
  Codec codec = made(ctx, config);
  int reflected = 0;
  for (const int64_t samples : {1, 3, 9, 10, 11, 137, 593}) {
    CAPTURE(samples);
    const std::vector<float> x = noise(2 * samples, 5);
    const Direct one = direct(codec, x);
    CHECK(static_cast<int64_t>(one.coded.codes.size()) == 3 * ((samples + 9) / 10));
    CHECK((encoded(codec, x, 64) == std::vector<Segment>{one.coded}));
    CHECK(decoded(codec, {one.coded}) == one.audio);
    // The audio may be asked for at the length of the signal.
    codec.reserve_inference(1, samples, Codec::Use::decode);
    Values<int32_t> codes(ctx, {.time = (samples + 9) / 10, .channels = 3});
    Values<float> y(ctx, {.time = samples, .channels = 2});
    codes.set(one.coded.codes);
    codec.decode(codes, y);
    CHECK(y.get() == std::vector<float>(one.audio.begin(), one.audio.begin() + 2 * samples));
    // The end is reflected, not completed by zeros.
    if (samples % 10 != 0 && samples > 10) {
      std::vector<float> longer = x;
      longer.resize(static_cast<size_t>(2 * ((samples + 9) / 10) * 10), 0.0f);
      reflected += direct(codec, longer).coded.codes != one.coded.codes;
    }
  }
  CHECK(reflected > 0);
}

TEST_CASE("a stream of two channels gives what the whole signal gives", "[segments][streaming][step]") {
  for (const Device device : devices()) {
    const bool slow = emulated && device.kind != Device::cpu;
    Context ctx({.device = device});
    for (const char* preset : {"encodec-24k", "dac-16k"}) {
      if (slow && std::string(preset) == "dac-16k") continue;
      CodecConfig config = CodecConfig::named(preset);
      config.encoder_dim = 4, config.decoder_dim = 16, config.encoder_rates = {2, 5}, config.decoder_rates = {5, 2};
      config.n_codebooks = 3, config.codebook_size = 16, config.codebook_dim = 4, config.codebooks_drawn = {};
      config.audio_channels = 2;
      Codec codec = made(ctx, config);
      CAPTURE(str(device), preset);
      const std::vector<float> x = noise(2 * 310, 9);
      const Direct whole = direct(codec, x);
      std::vector<int32_t> codes;
      StreamingEncoder encoder(codec, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); });
      for (size_t at = 0; at < x.size(); at += 14)
        encoder.push(std::span(x).subspan(at, std::min<size_t>(14, x.size() - at)));
      CHECK(encoder.finish() == 310);
      // Sums in another order may decide between two equally near codes.
      CHECK(std::inner_product(codes.begin(), codes.end(), whole.coded.codes.begin(), 0, std::plus<>(),
                               std::not_equal_to<>()) <= 3);
      std::vector<float> y;
      StreamingDecoder decoder(codec, [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); });
      decoder.push(whole.coded.codes);
      CHECK(decoder.finish() == 31);
      REQUIRE(y.size() == whole.audio.size());
      double error = 0, power = 0;
      for (size_t i = 0; i < y.size(); ++i)
        error += std::pow(y[i] - whole.audio[i], 2), power += std::pow(whole.audio[i], 2);
      CHECK(error <= 1e-10 * power);
      // The channels are not the same.
      CHECK(std::fabs(y[200] - y[201]) > 1e-3 * std::sqrt(power / double(y.size())));
    }
  }
}

TEST_CASE("segments, scales and channels that do not fit are refused", "[segments]") {
  Context ctx;
  Codec scaled = made(ctx, segmented());
  CodecConfig plain_config = narrow("encodec-24k");
  Codec plain = made(ctx, plain_config);
  Values<float> stereo(ctx, {.time = 200, .channels = 2}), mono(ctx, {.time = 200}), scale(ctx, {}),
      two(ctx, {.channels = 2});
  Values<int32_t> codes(ctx, {.time = 20, .channels = 3});
  scaled.reserve_inference(1, 200);
  plain.reserve_inference(1, 200);
  stereo.set(noise(400, 1)), mono.set(noise(200, 1)), codes.set(std::vector<int32_t>(60, 0));
  const auto refused = [](const auto& call, const std::string& part) {
    CHECK_THROWS_WITH(call(), Catch::Contains(part));
  };
  refused([&] { scaled.encode(stereo, codes); }, "scales is");
  refused([&] { scaled.encode(stereo, codes, {}, two); }, "scales is [1, 1, 1, 2], expected [1, 1, 1, 1]");
  refused([&] { scaled.encode(mono, codes, {}, scale); }, "expected the reserved shape [1, 200, 1, 2]");
  refused([&] { plain.encode(mono, codes, {}, scale); }, "codec.segment_scale is false");
  refused([&] { plain.reserve_inference(1, 201); }, "a multiple of the hop");
  refused([&] { scaled.reserve_inference(2, 200, Codec::Use::both, 0, Codec::Ends::apart); }, "codec.norm is group");
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    scale.set({bad});
    refused([&] { scaled.decode(codes, stereo, {}, scale); }, "expected a positive, finite number");
    WindowedDecoder decoder(scaled, [](std::span<const float>) {});
    refused([&] { decoder.push(std::vector<int32_t>(60, 0), bad); }, "expected a positive, finite number");
  }
  WindowedDecoder decoder(scaled, [](std::span<const float>) {});
  refused([&] { decoder.push(std::vector<int32_t>(63, 0)); }, "21 frames, expected those of one segment, 20 or fewer");
  decoder.push(std::vector<int32_t>(60, 0), 0.5f);
  decoder.push(std::vector<int32_t>(3, 0), 0.5f);
  refused([&] { decoder.push(std::vector<int32_t>(60, 0), 0.5f); }, "behind a segment of 1 frames");
  // A signal of 185 samples: 19 frames, then those of 15 samples.
  WindowedDecoder two_short(scaled, [](std::span<const float>) {});
  two_short.push(std::vector<int32_t>(57, 0), 0.5f);
  refused([&] { two_short.push(std::vector<int32_t>(9, 0), 0.5f); }, "3 frames behind a segment of 19 frames");
  two_short.push(std::vector<int32_t>(6, 0), 0.5f);
  refused([&] { two_short.push(std::vector<int32_t>(3, 0), 0.5f); }, "behind a segment of 2 frames");
  WindowedDecoder without(plain, [](std::span<const float>) {});
  refused([&] { without.push(std::vector<int32_t>(60, 0), 0.5f); }, "the codec has no scales");
  WindowedEncoder encoder(scaled, [](View<const int32_t>, float) {});
  refused([&] { encoder.push(std::vector<float>(3, 0)); }, "3 values are not whole samples of 2 channels");
  CodecConfig in_segments = plain_config;
  in_segments.segment = 200, in_segments.segment_stride = 170;
  Codec cut = made(ctx, in_segments);
  refused([&] { StreamingEncoder(cut, [](View<const int32_t>) {}); }, "codes segments of 200 samples by themselves");

  const auto config_refused = [&](auto change, const std::string& part) {
    CodecConfig c = segmented();
    change(c);
    CHECK_THROWS_WITH(c.check(), Catch::Contains(part));
  };
  config_refused([](CodecConfig& c) { c.segment = 9; }, "codec.segment is 9, expected at least one hop, 10");
  config_refused([](CodecConfig& c) { c.segment_stride = 99; }, "codec.segment_stride is 99, expected 100 to 200");
  config_refused([](CodecConfig& c) { c.segment_stride = 201; }, "codec.segment_stride is 201");
  config_refused([](CodecConfig& c) { c.segment = 0; }, "codec.segment_stride is 170, expected 0");
  config_refused([](CodecConfig& c) { c.segment = c.segment_stride = 0; }, "codec.segment_scale is true");
  config_refused([](CodecConfig& c) { c.audio_channels = 3; }, "codec.audio_channels is 3, expected 1 to 2");
  CodecConfig dac = CodecConfig::named("dac-16k");
  dac.segment = dac.segment_stride = 16000;
  CHECK_THROWS_WITH(dac.check(), Catch::Contains("codec.segment is 16000, expected 0 with network"));
}
