// Windows of a codec whose sums are exact, and whose codes and samples depend on both ends of their receptive field.
// The output changes if and only if a window has a frame of context too few.
#include <algorithm>
#include <map>
#include <random>
#include <string>

#include "harness.h"
#include "nacre/codec/windowed.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Topology {
  std::vector<int64_t> rates;
  std::vector<int64_t> dilations;
  int64_t kernel_size;
};
// Strides of 4 give the rows of ones in transposed convolutions exact norms.
const Topology nets[] = {
    {{4}, {1}, 7},     // the encoder's receptive field is a whole number of frames
    {{4}, {1, 3}, 7},  // the field reaches one sample into its last frame
    {{4, 4}, {1}, 5},  // two levels
};
constexpr int64_t levels = 400;  ///< number of values of a latent channel, more than the sums below need

/// In every layer, one channel looks as far back as possible and the other as far ahead. Units add their result to
/// their input, so values are small integers. The codes hold the values of both latent channels, one codebook each.
Codec looking_both_ways(Context& ctx, const Topology& net) {
  CodecConfig c;
  c.encoder_dim = 2, c.encoder_rates = c.decoder_rates = net.rates;
  c.decoder_dim = 2 << net.rates.size(), c.latent_dim = 2;
  c.kernel_size = net.kernel_size, c.dilations = net.dilations;
  c.activation = ActivationKind::leaky_relu;  // passes positive values unchanged
  c.output_tanh = false;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
  c.n_codebooks = 2, c.codebook_size = levels;
  Codec codec(ctx, c);
  Parameters& p = codec.parameters();
  struct Tensor {
    std::string name;
    std::vector<int64_t> stored;
    std::vector<float> values;
  };
  std::vector<Tensor> tensors;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float> v) {
    tensors.push_back({name, stored, std::vector<float>(v.size(), 0.0f)});
  });
  const auto ends_with = [](const std::string& s, const std::string& end) {
    return s.size() >= end.size() && s.substr(s.size() - end.size()) == end;
  };
  std::map<std::string, float> norms;  // norms of the rows of a layer: 1 or 2
  for (Tensor& t : tensors) {
    if (!ends_with(t.name, ".weight_v")) continue;
    const int64_t rows = t.stored[0], inner = t.stored[1], taps = t.stored[2];
    const auto one = [&](int64_t row, int64_t i, int64_t tap) {
      t.values[static_cast<size_t>((row * inner + i) * taps + tap)] = 1;
    };
    // Names are decoder.model.1.block.1, and decoder.model.1.block.2.block.1 for the convolution of a unit.
    const bool transposed = t.name.starts_with("decoder") && ends_with(t.name, ".block.1.weight_v") &&
                            t.name.find(".block.") == t.name.rfind(".block.");
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t side = row % 2;
      if (transposed) {  // [in, out, taps]: the earlier or the later of the two inputs that feed an output
        for (int64_t tap = 0; tap < taps / 2; ++tap) one(row, side, side == 0 ? taps / 2 + tap : tap);
      } else if (rows == 1) {  // the output layer: both sides
        one(row, 0, 0), one(row, 0, 1), one(row, 1, taps - 2), one(row, 1, taps - 1);
      } else {
        one(row, std::min(side, inner - 1), side == 0 ? 0 : taps - 1);
      }
    }
    norms[t.name.substr(0, t.name.size() - 1)] = transposed || rows == 1 ? 2.0f : 1.0f;
  }
  for (Tensor& t : tensors) {
    if (ends_with(t.name, ".weight_g"))
      std::fill(t.values.begin(), t.values.end(), norms.at(t.name.substr(0, t.name.size() - 1)));
    // One stage per channel. Its code k is the value k. The other channel is left to the other stage.
    if (ends_with(t.name, ".codebook.embed")) {
      const size_t stage = t.name.find(".0.") != std::string::npos ? 0 : 1;
      for (size_t k = 0; k < static_cast<size_t>(levels); ++k) t.values[k * 2 + stage] = static_cast<float>(k);
    }
    REQUIRE(p.set_tensor(ctx, t.name, t.stored, t.values));
  }
  p.refresh(ctx);
  return codec;
}

template <class T>
std::vector<T> whole_numbers(int64_t n, int low, int high, uint64_t salt) {
  std::mt19937_64 random(seed() + salt);
  std::uniform_int_distribution<int> draw(low, high);
  std::vector<T> x(static_cast<size_t>(n));
  for (T& v : x) v = static_cast<T>(draw(random));
  return x;
}

std::vector<int32_t> encoded(Codec& codec, std::span<const float> x, int64_t window) {
  std::vector<int32_t> codes;
  WindowedEncoder encoder(
      codec, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); }, window);
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

size_t differences(const auto& a, const auto& b) {
  REQUIRE(a.size() == b.size());
  size_t n = 0;
  for (size_t i = 0; i < a.size(); ++i) n += a[i] != b[i];
  return n;
}

}  // namespace

TEST_CASE("windows give, bit for bit, what one window gives, and need all of their context", "[windowed]") {
  for (const Device device : devices())
    for (const Topology& net : nets) {
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
  for (const Topology& net : nets) {
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
