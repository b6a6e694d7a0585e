#pragma once
// A codec whose sums are exact, so that its bits do not depend on their order, and whose codes and samples depend on
// both ends of their receptive field.
#include <algorithm>
#include <map>
#include <random>
#include <string>

#include "harness.h"
#include "nacre/codec/codec.h"

namespace nacre::test {

struct Topology {
  std::vector<int64_t> rates;
  std::vector<int64_t> dilations;
  int64_t kernel_size;
};
// Strides of 4 give the rows of ones in transposed convolutions exact norms.
inline const Topology exact_nets[] = {
    {{4}, {1}, 7},     // the encoder's receptive field is a whole number of frames
    {{4}, {1, 3}, 7},  // the field reaches one sample into its last frame
    {{4, 4}, {1}, 5},  // two levels
};
inline constexpr int64_t levels = 400;  ///< number of values of a latent channel, more than the sums below need

/// In every layer, one channel looks as far back as possible and the other as far ahead. Units add their result to
/// their input, so values are small integers. The codes hold the values of both latent channels, one codebook each.
inline Codec looking_both_ways(Context& ctx, const Topology& net) {
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

/// The number of places where two lists of equal size differ.
size_t differences(const auto& a, const auto& b) {
  REQUIRE(a.size() == b.size());
  size_t n = 0;
  for (size_t i = 0; i < a.size(); ++i) n += a[i] != b[i];
  return n;
}

}  // namespace nacre::test
