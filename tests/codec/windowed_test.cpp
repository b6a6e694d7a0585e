// Audio in windows. The schedule keeps every frame once, and only where its receptive field is complete. Pieces of any
// size give the same bits. The result is that of one pass over the whole signal.
#include "nacre/codec/windowed.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "codec/whole.h"

using namespace nacre;
using namespace nacre::test;

namespace {

CodecConfig tiny(std::vector<int64_t> rates) {
  CodecConfig c;
  c.encoder_dim = 4, c.decoder_dim = 4 << rates.size();
  c.encoder_rates = rates;
  std::reverse(rates.begin(), rates.end());
  c.decoder_rates = rates;
  c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

Codec made(Context& ctx, const CodecConfig& config) {
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, 3);
  codec.parameters().refresh(ctx);
  return codec;
}

std::vector<int32_t> encoded(Codec& codec, std::span<const float> x, size_t piece, int64_t window) {
  std::vector<int32_t> codes;
  WindowedEncoder encoder(
      codec, [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); }, window);
  for (size_t at = 0; at < x.size(); at += piece) encoder.push(x.subspan(at, std::min(piece, x.size() - at)));
  CHECK(encoder.finish() == static_cast<int64_t>(x.size()));
  return codes;
}

std::vector<float> decoded(Codec& codec, std::span<const int32_t> codes, size_t frames, int64_t window) {
  std::vector<float> y;
  WindowedDecoder decoder(codec, [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); }, window);
  const size_t piece = frames * static_cast<size_t>(codec.config().n_codebooks);
  for (size_t at = 0; at < codes.size(); at += piece)
    decoder.push(codes.subspan(at, std::min(piece, codes.size() - at)));
  decoder.finish();
  return y;
}

}  // namespace

TEST_CASE("a window schedule keeps every frame once, with its context", "[windowed]") {
  for (const int64_t context : {0, 1, 3, 10})
    for (const int64_t window : {2 * context + 1, 2 * context + 2, 3 * context + 5, 50 + 2 * context})
      for (int64_t total = 0; total < 5 * window + 3; total += 1 + total / 40)
        for (const int64_t piece : {int64_t{1}, int64_t{7}, total + 1}) {
          WindowSchedule schedule(window, context);
          int64_t done = 0, forgotten = 0;
          bool fine = true;
          const auto look = [&](const WindowSchedule::Window& w, int64_t there) {
            fine = fine && w.keep == done && w.kept > 0 && w.frames <= window && w.start >= forgotten && w.start >= 0 &&
                   w.start + w.frames <= there;
            // A kept frame has its whole context, or the context ends at the signal's edge.
            fine = fine && (w.start == 0 || w.keep - w.start >= context);
            fine = fine && (w.start + w.frames == total || w.start + w.frames - (w.keep + w.kept) >= context);
            done = w.keep + w.kept;
          };
          WindowSchedule::Window w;
          for (int64_t there = 0; there < total;) {
            there = std::min(total, there + piece);
            while (schedule.next(there, w)) {
              look(w, there);
              forgotten = std::max(forgotten, schedule.needed_from());
            }
          }
          if (schedule.last(total, w)) look(w, total);
          INFO("window " << window << ", context " << context << ", " << total << " frames in pieces of " << piece);
          CHECK(fine);
          CHECK(done == total);
        }
  CHECK_THROWS_AS(WindowSchedule(6, 3), Error);
  CHECK_THROWS_AS(WindowSchedule(6, -1), Error);
}

TEST_CASE("pieces of any size give the same bits", "[windowed][step]") {
  Context ctx;
  Codec codec = made(ctx, tiny({2, 4}));
  const std::vector<float> x = noise(70001, 1);  // more than two default windows
  const std::vector<int32_t> codes = encoded(codec, x, x.size(), 0);
  REQUIRE(codes.size() == 3 * ((70001 + 7) / 8));
  for (const size_t piece : {1, 997, 16000}) {
    INFO(piece);
    CHECK(encoded(codec, x, piece, 0) == codes);
  }
  const std::vector<float> y = decoded(codec, codes, codes.size(), 0);
  REQUIRE(y.size() == 8 * codes.size() / 3);
  for (const size_t frames : {1, 13, 1000, 5000}) {
    INFO(frames);
    CHECK(decoded(codec, codes, frames, 0) == y);
  }
}

TEST_CASE("a beam is set between encodings", "[windowed]") {
  Context ctx;
  CodecConfig config = tiny({2, 4});
  config.quantizer = QuantizerKind::ema, config.metric = VqMetric::euclidean;
  Codec codec = made(ctx, config);
  const std::vector<float> x = noise(7001, 1);
  const std::vector<int32_t> nearest = encoded(codec, x, x.size(), 0);
  codec.set_beam(8);
  CHECK(codec.config().beam == 8);
  const std::vector<int32_t> best = encoded(codec, x, x.size(), 0);
  CHECK(best.size() == nearest.size());
  CHECK(best != nearest);
  CHECK(encoded(codec, x, 997, 0) == best);
  codec.set_beam(1);
  CHECK(encoded(codec, x, x.size(), 0) == nearest);
  CHECK_THROWS_WITH(codec.set_beam(65), Catch::Contains("codec.beam"));
  CHECK(codec.config().beam == 1);
  Codec factorised = made(ctx, tiny({2, 4}));
  CHECK_THROWS_WITH(factorised.set_beam(2), Catch::Contains("codec.beam"));
}

TEST_CASE("windows of a recurrent codec give what one pass gives", "[windowed][encodec]") {
  for (const Device device : devices())
    for (const bool causal : {true, false}) {
      // The emulator takes minutes for what the CPU does at once.
      const bool slow = emulated && device.kind != Device::cpu;
      if (slow && !causal) continue;
      Context ctx({.device = device});
      CodecConfig config = CodecConfig::named("encodec-24k");
      config.encoder_dim = 4, config.encoder_rates = {2, 5};
      config.decoder_dim = 16, config.decoder_rates = {5, 2};
      config.latent_dim = 6, config.n_codebooks = 3, config.codebook_size = 16, config.codebooks_drawn = {};
      config.causal = causal;
      Codec codec = made(ctx, config);
      const int64_t hop = config.hop(), context = 2 * std::max(config.encoder_context(), config.decoder_context());
      const std::vector<int64_t> few{2 * context + 3}, many{1, 2 * context + 1, 5 * context, 8 * context + 3};
      for (const int64_t frames : slow ? few : many) {
        const std::vector<float> x = noise(frames * hop, 7);
        CAPTURE(str(device), causal, frames, context);
        const std::vector<int32_t> codes = encoded_whole(codec, x);
        for (const int64_t window : slow ? std::vector{context / 2} : std::vector{context / 2, 3 * context}) {
          CHECK(encoded(codec, x, 97, window) == codes);
          // Rounding differs, because convolutions add in an order that depends on the length. A state that is lost or
          // taken up at another frame changes the first digits.
          const std::vector<float> whole = decoded_whole(codec, codes), y = decoded(codec, codes, 5, window);
          REQUIRE(y.size() == whole.size());
          double error = 0, size = 0;
          for (size_t i = 0; i < y.size(); ++i)
            error += std::pow(static_cast<double>(y[i]) - static_cast<double>(whole[i]), 2),
                size += std::pow(static_cast<double>(whole[i]), 2);
          CHECK(std::sqrt(error) <= 1e-5 * std::sqrt(size));
        }
      }
    }
}

TEST_CASE("two signals in turn on one recurrent codec keep their states apart", "[windowed][encodec]") {
  Context ctx;
  CodecConfig config = CodecConfig::named("speech-8k");
  config.encoder_dim = 4, config.encoder_rates = {2, 2};
  config.decoder_dim = 16, config.decoder_rates = {2, 2};
  config.latent_dim = 6, config.n_codebooks = 3, config.codebook_size = 16, config.codebooks_drawn = {};
  Codec codec = made(ctx, config);
  const int64_t window = 4 * config.encoder_context() + 3;
  const std::vector<float> first = noise(3000, 1), second = noise(3000, 2);
  std::vector<int32_t> both[2];
  const auto sink = [&](size_t i) {
    return [&both, i](View<const int32_t> c, float) { both[i].insert(both[i].end(), c.begin(), c.end()); };
  };
  WindowedEncoder a(codec, sink(0), window), b(codec, sink(1), window);
  for (size_t at = 0; at < first.size(); at += 250)
    a.push(std::span(first).subspan(at, 250)), b.push(std::span(second).subspan(at, 250));
  a.finish(), b.finish();
  CHECK(both[0] == encoded(codec, first, first.size(), window));
  CHECK(both[1] == encoded(codec, second, second.size(), window));
}

TEST_CASE("windows give what one pass gives", "[windowed]") {
  Context ctx;
  int64_t codes_seen = 0, codes_differ = 0;
  // Odd strides are included: their transposed convolutions have output padding.
  for (const std::vector<int64_t>& rates : {std::vector<int64_t>{2, 4}, std::vector<int64_t>{3, 5}}) {
    Codec codec = made(ctx, tiny(rates));
    const int64_t hop = codec.config().hop();
    const int64_t context = std::max(codec.config().encoder_context(), codec.config().decoder_context());
    for (const int64_t window : {2 * context + 1, 5 * context}) {
      const int64_t step = window - 2 * context;
      for (const int64_t frames :
           {int64_t{1}, window - 1, window, window + 1, window + step, window + 3 * step - 1, window + 3 * step + 1})
        for (const int64_t extra : {-hop + 1, int64_t{0}}) {
          const std::vector<float> x = noise(frames * hop + extra, 2);
          INFO("hop " << hop << ", window " << window << ", context " << context << ", " << x.size() << " samples");
          const std::vector<int32_t> codes = encoded_whole(codec, x), windowed = encoded(codec, x, 997, window);
          REQUIRE(windowed.size() == codes.size());
          // After a difference, the later codes of the frame follow from it, so only the first difference of a frame
          // counts.
          for (size_t f = 0; f < codes.size(); f += 3) {
            codes_seen += 3;
            for (size_t i = f; i < f + 3; ++i)
              if (codes[i] != windowed[i]) {
                ++codes_differ;
                break;
              }
          }
          const std::vector<float> y = decoded_whole(codec, codes), z = decoded(codec, codes, 100, window);
          REQUIRE(y.size() == z.size());
          float peak = 0, worst = 0;
          for (size_t i = 0; i < y.size(); ++i)
            peak = std::max(peak, std::fabs(y[i])), worst = std::max(worst, std::fabs(y[i] - z[i]));
          CHECK(peak > 0);
          CHECK(worst <= 1e-5f * peak);
        }
    }
  }
  // Sums of another length may round the last bit differently, which decides between two equally near codes. About one
  // code in 10^5 is expected to differ.
  INFO(codes_differ << " of " << codes_seen);
  CHECK(codes_seen > 10000);
  CHECK(codes_differ <= 3 + codes_seen / 10000);
}

TEST_CASE("short signals and wrong calls", "[windowed]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device});
  Codec codec = made(ctx, tiny({2, 4}));
  CHECK(encoded(codec, {}, 1, 0).empty());
  for (const int64_t n : {1, 7, 8, 9}) {
    const std::vector<float> x = noise(n, 4);
    CHECK(encoded(codec, x, 1, 0) == encoded_whole(codec, x));
  }
  CHECK(decoded(codec, {}, 1, 0).empty());
  WindowedDecoder decoder(codec, [](std::span<const float>) {});
  const std::vector<int32_t> odd(4, 0);
  CHECK_THROWS_AS(decoder.push(odd), Error);
}
