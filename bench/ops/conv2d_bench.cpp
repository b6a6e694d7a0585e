#include "nacre/ops/conv2d.h"

#include "harness.h"

namespace nacre::bench {
namespace {

Conv2dAxis same(int64_t taps, int64_t stride = 1) {
  return {.stride = stride, .left = (taps - 1) / 2, .right = (taps - 1) / 2};
}

struct Layer2d {
  std::string name;
  int64_t batch, time;
  std::vector<int64_t> widths;  ///< of the parts of x
  int64_t in, out, taps_time, taps_width;
  Conv2dGeometry g{};

  Shape part(size_t p) const { return {batch, time, widths[p], in}; }
  int parts() const { return static_cast<int>(widths.size()); }
  Shape x() const {
    Shape s = part(0);
    for (size_t p = 1; p < widths.size(); ++p) s.width += widths[p];
    return s;
  }
  Shape weight() const { return {out, taps_width, taps_time, in}; }
  Shape y() const { return conv2d_output(x(), weight(), g); }
  int64_t flops() const { return 2 * y().rows() * weight().elements(); }
  /// Bytes of the columns of x that take part, of y and of the weight. The gradient of a weight is float.
  int64_t bytes(int64_t size, int64_t weight_size) const {
    const int64_t columns = g.columns > 0 ? g.columns : x().width;
    return size * (batch * time * columns * in + y().elements()) + weight_size * weight().elements();
  }
  std::string case_name(const std::string& direction, const std::string& arithmetic) const {
    return "conv2d_" + direction + "/" + arithmetic + "/" + name + "/" + label(x()) + "/to:" + std::to_string(out);
  }
};

template <class T>
void add_layer(Suite& suite, Layer2d l, const std::string& arithmetic) {
  l.batch = suite.least(l.batch, 2), l.time = suite.least(l.time, 8);
  const Shape x = l.x(), w = l.weight(), y = l.y();
  const Conv2dGeometry g = l.g;
  const int parts = l.parts();
  constexpr int64_t size = sizeof(T);
  const auto info = [&](const char* direction, int64_t weight_size) {
    return CaseInfo{.name = l.case_name(direction, arithmetic),
                    .bytes = l.bytes(size, weight_size),
                    .flops = l.flops(),
                    .arithmetic = arithmetic};
  };
  const auto random = [l](Data& data) {
    Conv2dParts<T> all;
    all.count = l.parts();
    for (size_t p = 0; p < l.widths.size(); ++p) all.part[p] = data.random<T>(l.part(p));
    return all;
  };
  const auto constant = [](const Conv2dParts<T>& from) {
    Conv2dParts<const T> all;
    all.count = from.count;
    for (size_t p = 0; p < all.part.size(); ++p) all.part[p] = from.part[p];
    return all;
  };
  suite.add(info("forward", size), [=](Data& data) -> Run {
    const Conv2dParts<const T> xs = constant(random(data));
    const View<T> ws = data.random<T>(w), ys = data.random<T>(y);
    const View<float> bias = data.random({.channels = y.channels});
    const View<float> scratch = data.random(conv2d_forward_scratch<T>(data.ctx, x, parts, w, g));
    return [=](Context& ctx) {
      conv2d_forward<T>(ctx, {.x = xs, .weight = ws, .bias = bias, .y = ys, .scratch = scratch, .geometry = g});
    };
  });
  suite.add(info("input_gradient", size), [=](Data& data) -> Run {
    const Conv2dParts<T> xs = random(data);
    const View<T> ws = data.random<T>(w), ys = data.random<T>(y);
    const View<float> scratch = data.random(conv2d_input_gradient_scratch<T>(data.ctx, x, parts, w, g));
    return [=](Context& ctx) {
      conv2d_input_gradient<T>(ctx, {.dy = ys, .weight = ws, .dx = xs, .scratch = scratch, .geometry = g});
    };
  });
  suite.add(info("weight_gradient", 8), [=](Data& data) -> Run {
    const Conv2dParts<const T> xs = constant(random(data));
    const View<T> ys = data.random<T>(y);
    const View<float> ws = data.random(w, -1e-6, 1e-6), dbias = data.random({.channels = y.channels});
    const View<float> scratch = data.random(conv2d_weight_gradient_scratch<T>(data.ctx, x, parts, w, g));
    return [=](Context& ctx) {
      conv2d_weight_gradient<T>(ctx,
                                {.x = xs, .dy = ys, .dweight = ws, .dbias = dbias, .scratch = scratch, .geometry = g});
    };
  });
}

/// DAC's discriminator of spectra at 16 kHz: crops of 6080 samples, window 1024 and hop 256, so 24 frames of 513
/// columns. The layers are those of its highest band, of 129 columns, and the last layer, which joins all five bands.
std::vector<Layer2d> layers() {
  const Conv2dGeometry strided{same(3), same(9, 2)};
  Conv2dGeometry band{same(3), same(9)};
  band.first_column = 384, band.columns = 129;
  return {{"k3x9_band", 12, 24, {513}, 2, 32, 3, 9, band},
          {"k3x9_s1x2", 12, 24, {129}, 32, 32, 3, 9, strided},
          {"k3x9_s1x2", 12, 24, {65}, 32, 32, 3, 9, strided},
          {"k3x9_s1x2", 12, 24, {33}, 32, 32, 3, 9, strided},
          {"k3x3", 12, 24, {17}, 32, 32, 3, 3, {same(3), same(3)}},
          {"k3x3_bands", 12, 24, {7, 10, 16, 16, 17}, 32, 1, 3, 3, {same(3), same(3)}}};
}

const Cases cases([](Suite& suite) {
  for (const Layer2d& l : layers()) {
    add_layer<float>(suite, l, "fp32");
    if (!suite.cuda()) continue;
    add_layer<float>(suite, l, "tf32");
    add_layer<bf16>(suite, l, "bf16");
  }
});

}  // namespace
}  // namespace nacre::bench
