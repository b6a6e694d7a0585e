#pragma once
// Rows of weights for the benches of weight_norm and weight_norm_adamw.
#include <memory>

#include "harness.h"
#include "nacre/ops/weight_norm.h"

namespace nacre::bench {

/// Layers of `count` rows of `length` weights each, every layer from a multiple of 64 on, as Parameters lays them.
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
  /// "3072x7168,7168x5376"
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

/// A small model that a CPU trains; DAC's generator, 76.7 million weights; its discriminators', 42.5 million (five
/// periods, fifteen bands).
inline std::vector<WeightRows> weight_rows(const Suite& suite) {
  const WeightRows small{"small", {{96, 448}, {192, 896}, {384, 1792}}};
  if (!suite.cuda() || suite.small()) return {suite.small() ? WeightRows{"tiny", {{6, 44}, {3, 129}}} : small};
  return {
      {"dac", {{3072, 7168}, {7168, 5376}, {3072, 3584}, {1536, 1792}, {1536, 768}}},
      {"discriminators",
       {{160, 5}, {640, 160}, {2560, 640}, {5120, 2560}, {5120, 5120}, {5, 3072}, {480, 54}, {1440, 864}, {480, 288}}}};
}

}  // namespace nacre::bench
