// Windows of a codec whose sums are exact, and whose codes and samples depend on both ends of their receptive field.
// The output changes if and only if a window has a frame of context too few.
#include "nacre/codec/windowed.h"

#include <algorithm>

#include "codec/exact_codec.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::vector<int32_t> encoded(Codec& codec, std::span<const float> x, int64_t window) {
  std::vector<int32_t> codes;
  WindowedEncoder encoder(
      codec, [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); }, window);
  encoder.push(x);
  encoder.finish();
  return codes;
}
std::vector<float> decoded(Codec& codec, std::span<const int32_t> codes, int64_t window) {
  std::vector<float> y;
  WindowedDecoder decoder(
      codec, [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); }, window);
  decoder.push(codes);
  decoder.finish();
  return y;
}

}  // namespace

TEST_CASE("windows give, bit for bit, what one window gives, and need all of their context", "[windowed]") {
  for (const Device device : devices())
    for (const Topology& net : exact_nets) {
      Context ctx({.device = device, .threads = 2});
      Codec codec = looking_both_ways(ctx, net);
      const int64_t hop = codec.config().hop(), back = codec.config().encoder_context(),
                    ahead = codec.config().decoder_context();
      const int64_t frames = 6 * std::max(back, ahead) + 5;
      CAPTURE(str(device), net.rates, net.dilations, hop, back, ahead, frames);
      const std::vector<float> x = whole_numbers<float>(frames * hop, 1, 3, 1);
      const std::vector<int32_t> codes = encoded(codec, x, frames);  // one window, so all of the context is present
      CHECK(*std::max_element(codes.begin(), codes.end()) < levels - 1);
      CHECK(std::count(codes.begin(), codes.end(), codes[0]) < static_cast<int64_t>(codes.size()) / 2);
      const std::vector<int32_t> made = whole_numbers<int32_t>(2 * frames, 1, 3, 2);
      const std::vector<float> y = decoded(codec, made, frames);
      for (const int64_t more : {1, 2, 7}) {  // frames that a window keeps
        INFO(more << " frames kept of a window");
        CHECK(differences(encoded(codec, x, 2 * back + more), codes) == 0);
        CHECK(differences(decoded(codec, made, 2 * ahead + more), y) == 0);
      }
    }
}

TEST_CASE("what a window lacks of its context is seen in what it keeps", "[windowed]") {
  // The same windows, cut by hand. A frame is right with the full context, and wrong with one frame less on either
  // side.
  Context ctx({.threads = 2});
  for (const Topology& net : exact_nets) {
    Codec codec = looking_both_ways(ctx, net);
    const int64_t hop = codec.config().hop(), back = codec.config().encoder_context(),
                  ahead = codec.config().decoder_context();
    const int64_t frames = 4 * std::max(back, ahead) + 5, at = frames / 2;
    CAPTURE(net.rates, net.dilations, hop, back, ahead);
    const std::vector<float> x = whole_numbers<float>(frames * hop, 1, 3, 3);
    const std::vector<int32_t> codes = encoded(codec, x, frames), made = whole_numbers<int32_t>(2 * frames, 1, 3, 4);
    const std::vector<float> y = decoded(codec, made, frames);
    const auto frame_right = [&](int64_t first, int64_t last) {
      const std::vector<int32_t> part =
          encoded(codec, std::span(x).subspan(size_t(first * hop), size_t((last - first + 1) * hop)), frames);
      return std::equal(codes.begin() + at * 2, codes.begin() + (at + 1) * 2, part.begin() + (at - first) * 2);
    };
    CHECK(frame_right(at - back, at + back));
    CHECK_FALSE((frame_right(at - back + 1, at + back) || frame_right(at - back, at + back - 1)));
    const auto samples_right = [&](int64_t first, int64_t last) {
      const std::vector<float> part =
          decoded(codec, std::span(made).subspan(size_t(first * 2), size_t((last - first + 1) * 2)), frames);
      return std::equal(y.begin() + at * hop, y.begin() + (at + 1) * hop, part.begin() + (at - first) * hop);
    };
    CHECK(samples_right(at - ahead, at + ahead));
    CHECK_FALSE((samples_right(at - ahead + 1, at + ahead) || samples_right(at - ahead, at + ahead - 1)));
  }
}
