// Other libraries on the shapes of conv1d_bench.cpp. The cases are NAME/cudnn_nhwc, NAME/cudnn_nchw and NAME/gemm. Each
// result is compared with ours once before it is timed, so a wrong layout fails with a line instead of giving a wrong
// time. The libraries compute neither the bias nor its gradient, which our op does.
#include <cmath>
#include <cstdio>

#include "baselines/cublas.h"
#include "baselines/cudnn.h"
#include "baselines/layout.h"
#include "harness.h"
#include "ops/layers.h"

namespace nacre::bench {
namespace {

constexpr Conv1dDirection directions[] = {Conv1dDirection::forward, Conv1dDirection::input_gradient,
                                          Conv1dDirection::weight_gradient};
const char* name_of(Conv1dDirection d) {
  constexpr const char* names[] = {"forward", "input_gradient", "weight_gradient"};
  return names[static_cast<size_t>(d)];
}

/// Tensors of one case in nacre's layout. `ours` holds the result of our op in the direction: T, or float for the
/// gradient of the weight.
template <class T>
struct Tensors {
  View<T> x, weight, y, ours;
  View<float> ours_weight;
};

template <class T>
Tensors<T> tensors(Data& data, Conv1dDirection direction, const Layer& l) {
  Context& ctx = data.ctx;
  const Conv1dGeometry g = l.g;
  Tensors<T> t{.x = data.random<T>(l.x()),
               .weight = data.random<T>(l.weight()),
               .y = data.random<T>(l.y()),
               .ours = {},
               .ours_weight = {}};
  if (direction == Conv1dDirection::forward) {
    t.ours = data.zeros<T>(l.y());
    const View<float> scratch = data.zeros(conv1d_forward_scratch<T>(ctx, l.x(), l.weight(), g));
    conv1d_forward<T>(ctx, {.x = t.x, .weight = t.weight, .y = t.ours, .scratch = scratch, .geometry = g});
  } else if (direction == Conv1dDirection::input_gradient) {
    t.ours = data.zeros<T>(l.x());
    const View<float> scratch = data.zeros(conv1d_input_gradient_scratch<T>(ctx, l.x(), l.weight(), l.y(), g));
    conv1d_input_gradient<T>(ctx, {.dy = t.y, .weight = t.weight, .dx = t.ours, .scratch = scratch, .geometry = g});
  } else {
    t.ours_weight = data.zeros(l.weight());
    const View<float> scratch = data.zeros(conv1d_weight_gradient_scratch<T>(ctx, l.x(), l.weight(), l.y(), g));
    conv1d_weight_gradient<T>(ctx, {.x = t.x, .dy = t.y, .dweight = t.ours_weight, .scratch = scratch, .geometry = g});
  }
  return t;
}

/// Throws when two results differ by more than rounding can explain: rounding of factors (10 bits of mantissa) and of
/// results (8 bits) in both, fast algorithms in fp32, and sums in another order.
void expect_same(const char* library, double difference, const std::string& arithmetic, const Layer& l,
                 Conv1dDirection direction) {
  const double rounding = arithmetic == "bf16" ? 0x1p-7 : arithmetic == "tf32" ? 0x1p-9 : 0x1p-14;
  const double terms = static_cast<double>(
      direction == Conv1dDirection::weight_gradient ? l.y().rows() : l.taps * std::max(l.in, l.out));
  const double most = rounding + 4 * std::sqrt(terms) * 0x1p-24;
  if (difference <= most) return;
  char text[160];
  std::snprintf(text, sizeof(text),
                "%s computes something else: it differs from ours by %.3g of the whole, expected at most %.3g", library,
                difference, most);
  throw Error(ErrorKind::device, text);
}

#if defined(NACRE_BENCH_CUDNN)
template <class T>
Run cudnn(Data& data, Conv1dDirection direction, const Layer& l, const std::string& arithmetic, bool channels_last,
          bool first_plan) {
  Context& ctx = data.ctx;
  const Tensors<T> t = tensors<T>(data, direction, l);
  // Transposing weights [out, taps, in] to [out, in, taps] is transposing [batch, time, channels] to [batch, channels,
  // time].
  const auto taken = [&](const View<T>& v, Conv1dDirection written_by) {
    const View<T> to = data.zeros<T>(v.shape);
    if (direction != written_by) {
      if (channels_last)
        ctx.copy<T>(v, to);
      else
        transpose(ctx, v.data, to.data, v.shape.batch, v.shape.time, v.shape.channels);
    }
    return to;
  };
  const View<T> x = taken(t.x, Conv1dDirection::input_gradient), y = taken(t.y, Conv1dDirection::forward),
                weight = taken(t.weight, Conv1dDirection::weight_gradient);
  auto convolution = std::make_shared<CudnnConv1d>(ctx, CudnnConv1d::Problem{.direction = direction,
                                                                             .arithmetic = arithmetic,
                                                                             .channels_last = channels_last,
                                                                             .x_shape = l.x(),
                                                                             .weight_shape = l.weight(),
                                                                             .y_shape = l.y(),
                                                                             .geometry = l.g,
                                                                             .x = x.data,
                                                                             .weight = weight.data,
                                                                             .y = y.data,
                                                                             .first_plan = first_plan});
  convolution->run();
  View<T> theirs = direction == Conv1dDirection::forward          ? y
                   : direction == Conv1dDirection::input_gradient ? x
                                                                  : weight;
  const int64_t n = theirs.elements();
  if (!channels_last) {
    const View<T> back = data.zeros<T>(theirs.shape);
    transpose(ctx, theirs.data, back.data, theirs.shape.batch, theirs.shape.channels, theirs.shape.time);
    theirs = back;
  }
  const double difference = direction == Conv1dDirection::weight_gradient
                                ? relative_difference(ctx, theirs.data, n, t.ours_weight.data, n, 1, n)
                                : relative_difference(ctx, theirs.data, n, t.ours.data, n, 1, n);
  expect_same("cuDNN", difference, arithmetic, l, direction);
  data.figure("plans", convolution->plans());
  data.figure("difference", difference);
  return [convolution](Context&) { convolution->run(); };
}

#endif

#if defined(NACRE_BENCH_CUBLAS)
/// The convolution as one matrix product on memory that was unfolded before. The time is that of a convolution whose
/// unfolding is free. The product reads `taps` (divided by stride) times as much data.
template <class T>
Run gemm(Data& data, Conv1dDirection direction, const Layer& l, const std::string& arithmetic) {
  Context& ctx = data.ctx;
  if (l.g.stride > 1 && l.g.dilation > 1) throw Skip("gemm: no product was written for stride together with dilation");
  const Tensors<T> t = tensors<T>(data, direction, l);
  const bool is_bf16 = sizeof(T) == 2;
  Cublas::Product product{.arithmetic = {}, .m = 0, .n = 0, .k = 0, .a = nullptr, .b = nullptr, .c = nullptr};
  View<T> result;
  View<float> weight_result;
  // The part of the product that is the result: its pieces, where the first begins and how long each is. For an input
  // gradient, each item has rows ahead of time 0.
  int64_t first = 0, pitch = 0, pieces = 1, length = 0;
  if (direction == Conv1dDirection::input_gradient) {
    // With s + left = u stride + r and 0 <= r < stride, dx[s] takes taps r + j stride from dy[u - j]. With stride 1, it
    // takes taps j from dy[u - j dilation].
    const int64_t rows = (l.time + l.g.left + l.g.stride - 1) / l.g.stride,
                  terms = (l.taps + l.g.stride - 1) / l.g.stride;
    const Unfold u{l.batch, l.y().time, l.out, rows, terms, 1, -l.g.dilation, 0};
    const View<T> a = data.zeros<T>({.batch = l.batch * rows, .channels = terms * l.out});
    const View<T> b = data.zeros<T>({.batch = l.g.stride * l.in, .channels = terms * l.out});
    unfold(ctx, t.y.data, a.data, u);
    phases(ctx, t.weight.data, b.data, l.out, l.taps, l.in, l.g.stride, terms);
    result = data.zeros<T>({.batch = l.batch * rows, .channels = l.g.stride * l.in});
    product.m = l.batch * rows, product.n = l.g.stride * l.in, product.k = terms * l.out;
    product.a = a.data, product.b = b.data, product.c = result.data;
    product.b_transposed = true, product.c_is_bf16 = is_bf16;
    first = l.g.left * l.in, pitch = rows * l.g.stride * l.in, pieces = l.batch, length = l.time * l.in;
  } else {
    const Unfold u{l.batch, l.time, l.in, l.y().time, l.taps, l.g.stride, l.g.dilation, -l.g.left};
    const View<T> a = data.zeros<T>({.batch = l.y().rows(), .channels = l.taps * l.in});
    unfold(ctx, t.x.data, a.data, u);
    if (direction == Conv1dDirection::forward) {
      result = data.zeros<T>(l.y());
      product.m = l.y().rows(), product.n = l.out, product.k = l.taps * l.in;
      product.a = a.data, product.b = t.weight.data, product.c = result.data;
      product.b_transposed = true, product.c_is_bf16 = is_bf16;
      length = result.elements();
    } else {
      weight_result = data.zeros(l.weight());
      product.m = l.out, product.n = l.taps * l.in, product.k = l.y().rows();
      product.a = t.y.data, product.b = a.data, product.c = weight_result.data;
      product.a_transposed = true;
      length = weight_result.elements();
    }
    pitch = length;
  }
  auto cublas = std::make_shared<Cublas>(ctx);
  const Run run = [cublas, product, arithmetic](Context&) {
    Cublas::Product p = product;
    p.arithmetic = arithmetic;
    cublas->multiply(p);
  };
  run(ctx);
  const double difference =
      direction == Conv1dDirection::weight_gradient
          ? relative_difference(ctx, weight_result.data, pitch, t.ours_weight.data, length, pieces, length)
          : relative_difference(ctx, result.data + first, pitch, t.ours.data, length, pieces, length);
  expect_same("cuBLAS", difference, arithmetic, l, direction);
  data.figure("difference", difference);
  return run;
}
#endif

template <class T>
void add_layer(Suite& suite, const Layer& l, const std::string& arithmetic, bool channels_first) {
  [[maybe_unused]] const bool small = suite.small();
  for (const Conv1dDirection direction : directions) {
    const std::string ours = l.case_name(std::string("conv1d_") + name_of(direction), arithmetic);
    const auto info = [&](const char* baseline) {
      return CaseInfo{.name = ours + "/" + baseline,
                      .bytes = l.bytes(sizeof(T), direction == Conv1dDirection::weight_gradient ? 8 : sizeof(T)),
                      .flops = l.flops(),
                      .arithmetic = arithmetic,
                      .parameters = {{"op", "baseline"}, {"library", baseline}, {"of", ours}}};
    };
#if defined(NACRE_BENCH_CUDNN)
    suite.add(info("cudnn_nhwc"), [=](Data& data) { return cudnn<T>(data, direction, l, arithmetic, true, small); });
    if (channels_first)
      suite.add(info("cudnn_nchw"), [=](Data& data) { return cudnn<T>(data, direction, l, arithmetic, false, small); });
#endif
#if defined(NACRE_BENCH_CUBLAS)
    suite.add(info("gemm"), [=](Data& data) { return gemm<T>(data, direction, l, arithmetic); });
#endif
  }
}

const Cases cases([](Suite& suite) {
  if (!suite.cuda()) return;
  for (const auto& layers : {cuda_wide_layers(), cuda_narrow_layers(), cuda_strided_layers(), cuda_end_layers()})
    for (const Layer& l : layers) {
      const bool plain = l.g.dilation == 1 && l.batch == 72;
      add_layer<bf16>(suite, fit(suite, l), "bf16", l.batch == 72);
      if (plain) add_layer<float>(suite, fit(suite, l), "tf32", plain);
    }
  for (const Layer& l : {unit(72, 2112, 256, 7), unit(72, 16896, 64, 7), down(72, 8448, 128, 256, 4)})
    add_layer<float>(suite, fit(suite, l), "fp32", true);
});

}  // namespace
}  // namespace nacre::bench
