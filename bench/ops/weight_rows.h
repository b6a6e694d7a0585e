#pragma once
// Rows of weights for the benches of weight_norm and weight_norm_adamw.
#include <memory>

#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/ops/weight_norm.h"

namespace nacre::bench {

/// Layers of `count` rows with `length` weights each. Every layer begins at a multiple of 64, as in Parameters.
struct WeightRows {
  std::string name;
  std::vector<std::pair<int64_t, int64_t>> layers;

  static int64_t aligned(int64_t n) { return (n + 63) / 64 * 64; }
  std::vector<WeightRow> rows() const {
    std::vector<WeightRow> all;
    int64_t at = 0;
    for (const auto& [count, length] : layers) {
      for (int64_t i = 0; i < count; ++i, at += length) all.push_back({at, length, static_cast<int64_t>(all.size())});
      at = aligned(at);
    }
    return all;
  }
  int64_t elements() const {
    int64_t n = 0;
    for (const auto& [count, length] : layers) n = aligned(n + count * length);
    return n;
  }
  int64_t gains() const {
    int64_t n = 0;
    for (const auto& [count, length] : layers) n += count;
    return n;
  }
  /// The layers as text, for example "3072x7168,7168x5376".
  std::string text() const {
    std::string all;
    for (const auto& [count, length] : layers)
      all += (all.empty() ? "" : ",") + std::to_string(count) + "x" + std::to_string(length);
    return all;
  }
  View<const WeightRow> place(Data& data) const {
    const std::vector<WeightRow> all = rows();
    const Shape shape{.channels = static_cast<int64_t>(all.size())};
    const View<float> room = data.zeros({.channels = shape.channels * static_cast<int64_t>(sizeof(WeightRow) / 4)});
    const View<WeightRow> view(reinterpret_cast<WeightRow*>(room.data), shape);
    data.ctx.write<WeightRow>(all, view);
    return view;
  }
};

/// The weights of a configuration's generator, as the model declares them.
inline WeightRows weight_rows_of(const std::string& name) {
  WeightRows w{name, {}};
  const CodecConfig config = CodecConfig::named(name);
  nacre::Parameters parameters;  // never allocated
  const System system(parameters, config);
  for (const nacre::Parameter& p : parameters.all())
    if (p.names.front().ends_with(".weight_v")) {
      const int64_t rows = p.stored.front() * static_cast<int64_t>(p.names.size());
      w.layers.push_back({rows, p.shape.elements() / rows});
    }
  return w;
}
/// DAC's discriminators with 42.5 million weights: five periods, and five bands at each of three windows.
inline WeightRows discriminator_rows() {
  WeightRows w{"discriminators", {}};
  for (int period = 0; period < 5; ++period)
    w.layers.insert(w.layers.end(), {{32, 5}, {128, 160}, {512, 640}, {1024, 2560}, {1024, 5120}, {1, 3072}});
  for (int window = 0; window < 3; ++window) {
    for (int band = 0; band < 5; ++band)
      w.layers.insert(w.layers.end(), {{32, 54}, {32, 864}, {32, 864}, {32, 864}, {32, 288}});
    w.layers.push_back({1, 288});
  }
  return w;
}

/// The models that a CPU trains, or on CUDA DAC's generator and its discriminators.
inline std::vector<WeightRows> weight_rows(const Suite& suite) {
  if (suite.small()) return {{"tiny", {{6, 44}, {3, 129}}}};
  if (!suite.cuda()) return {weight_rows_of("speech-16k-small")};
  return {weight_rows_of("dac-44k"), discriminator_rows()};
}

}  // namespace nacre::bench
