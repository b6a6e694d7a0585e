#pragma once
// Convolutions that several benches measure.
#include "harness.h"
#include "nacre/ops/conv1d.h"

namespace nacre::bench {

struct Layer {
  std::string name;
  int64_t batch, time, in, out, taps;  ///< time is that of the longer side
  Conv1dGeometry g{};
  bool transposed = false;  ///< a decoder's layer, whose forward is the input gradient

  Shape x() const { return {.batch = batch, .time = time, .channels = in}; }
  Shape y() const { return {.batch = batch, .time = conv1d_length(time, taps, g), .channels = out}; }
  Shape weight() const { return {out, taps, 1, in}; }
  int64_t flops() const { return 2 * y().elements() * taps * in; }
  /// Bytes of x, y and the weight, with `size` bytes per element of x and y. The gradient of a weight is float.
  int64_t bytes(int64_t size, int64_t weight_size) const {
    return size * (x().elements() + y().elements()) + weight_size * weight().elements();
  }
  /// The name of a case, for example "conv1d_forward/bf16/k7_d1/72x2112x256/to:256".
  std::string case_name(const std::string& op, const std::string& arithmetic) const {
    return op + "/" + arithmetic + "/" + name + "/" + label(x()) + "/to:" + std::to_string(out);
  }
  std::vector<Parameter> parameters(const char* op, const char* direction, const std::string& arithmetic) const {
    return {{"op", op},
            {"direction", direction},
            {"type", arithmetic},
            {"batch", batch},
            {"time", time},
            {"in", in},
            {"out", out},
            {"taps", taps},
            {"stride", g.stride},
            {"dilation", g.dilation},
            {"left", g.left},
            {"right", g.right},
            {"reflect", int64_t{g.padding == Padding::reflect}},
            {"transposed", int64_t{transposed}}};
  }
};

inline Conv1dGeometry same(int64_t taps, int64_t dilation = 1) {
  return {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = (taps - 1) / 2 * dilation};
}
inline Conv1dGeometry strided(int64_t s) { return {.stride = s, .left = (s + 1) / 2, .right = (s + 1) / 2}; }
inline Layer unit(int64_t batch, int64_t time, int64_t channels, int64_t taps, int64_t dilation = 1) {
  return {taps == 1 ? "k1" : "k" + std::to_string(taps) + "_d" + std::to_string(dilation),
          batch,
          time,
          channels,
          channels,
          taps,
          same(taps, dilation)};
}
inline Layer down(int64_t batch, int64_t time, int64_t in, int64_t out, int64_t s) {
  return {"down_s" + std::to_string(s), batch, time, in, out, 2 * s, strided(s)};
}
/// A decoder's layer from `in` to `out` channels. The strided layer that it transposes has the two exchanged.
inline Layer up(int64_t batch, int64_t time, int64_t in, int64_t out, int64_t s) {
  Layer l = down(batch, time, out, in, s);
  l.name = "up_s" + std::to_string(s), l.transposed = true;
  return l;
}
/// With --small: few items, short and narrow. The time stays a whole number of strides.
inline Layer fit(const Suite& suite, Layer l) {
  l.batch = suite.least(l.batch, 2), l.time = suite.least(l.time, 72);
  l.time -= l.time % l.g.stride;
  l.in = suite.least(l.in, 40), l.out = suite.least(l.out, 40);
  return l;
}

// A small model at 16 kHz with strides 2, 4 and 5, and levels of 16, 32, 64, 128 and 256 channels.
inline std::vector<Layer> cpu_layers() {
  return {{"first_k7", 4, 8000, 1, 16, 7, same(7)},
          {"last_k7", 4, 8000, 16, 1, 7, same(7)},
          {"last_wide_k7", 4, 2000, 256, 1, 7, same(7)},
          unit(4, 8000, 16, 7),
          unit(4, 8000, 16, 7, 9),
          unit(4, 8000, 16, 1),
          down(4, 8000, 16, 32, 2),
          unit(4, 4000, 32, 7),
          unit(4, 4000, 32, 7, 9),
          unit(4, 4000, 32, 1),
          down(4, 4000, 32, 64, 4),
          up(4, 8000, 64, 32, 2),
          unit(4, 1000, 64, 7),
          unit(4, 1000, 64, 7, 3),
          unit(4, 1000, 64, 7, 9),
          unit(4, 1000, 64, 1),
          down(4, 1000, 64, 128, 5),
          up(4, 4000, 128, 64, 4),
          unit(8, 200, 128, 7),
          unit(8, 200, 128, 7, 9),
          unit(8, 200, 128, 1),
          down(8, 200, 128, 256, 8),
          up(4, 1000, 256, 128, 5),
          unit(8, 200, 256, 7),
          {"k3", 8, 25, 256, 64, 3, same(3)},
          unit(4, 1000, 128, 7)};
}
/// One second of EnCodec at 24 kHz: all padding on the left, reflected. Its transposed layers are trimmed on the right.
inline std::vector<Layer> cpu_causal_layers() {
  const auto causal = [](Layer l) {
    l.name += l.transposed ? "_causal" : "_causal_reflect";
    const int64_t padding = l.taps - l.g.stride;
    l.g = {.stride = l.g.stride, .left = l.transposed ? 0 : padding, .right = l.transposed ? padding : 0};
    if (!l.transposed) l.g.padding = Padding::reflect;
    return l;
  };
  return {causal({"k3", 1, 24000, 32, 16, 3}), causal(down(1, 12000, 64, 128, 4)), causal(up(1, 24000, 64, 32, 2)),
          causal({"k7", 8, 75, 512, 128, 7}), causal({"last_k7", 1, 24000, 32, 1, 7})};
}
/// DAC at 44.1 kHz, crops of 16896 samples, with batch 72, that of its training, and 16.
inline std::vector<Layer> cuda_wide_layers() {
  std::vector<Layer> all;
  for (const int64_t dilation : {1, 3, 9})
    for (const int64_t batch : {72, 16})
      all.insert(all.end(), {unit(batch, 2112, 256, 7, dilation), unit(batch, 2112, 384, 7, dilation),
                             unit(batch, 264, 512, 7, dilation), unit(batch, 264, 768, 7, dilation)});
  return all;
}
inline std::vector<Layer> cuda_narrow_layers() {
  std::vector<Layer> all;
  for (const int64_t dilation : {1, 3, 9})
    all.insert(all.end(), {unit(72, 8448, 128, 7, dilation), unit(72, 8448, 192, 7, dilation),
                           unit(72, 16896, 64, 7, dilation), unit(72, 16896, 96, 7, dilation)});
  return all;
}
inline std::vector<Layer> cuda_strided_layers() {
  return {down(72, 16896, 64, 128, 2), down(72, 8448, 128, 256, 4), down(72, 2112, 256, 512, 8),
          down(72, 264, 512, 1024, 8), up(72, 264, 1536, 768, 8),   up(72, 2112, 768, 384, 8),
          up(72, 8448, 384, 192, 4),   up(72, 16896, 192, 96, 2)};
}
inline std::vector<Layer> cuda_end_layers() {
  return {{"first_k7", 72, 16896, 1, 64, 7, same(7)}, {"last_k7", 72, 16896, 96, 1, 7, same(7)}};
}

}  // namespace nacre::bench
