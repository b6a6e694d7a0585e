// Steps between audio and the layers of a discriminator.
#include "nacre/discriminators/signals.h"

#include <cmath>
#include <memory>

#include "nacre/ops/add.h"
#include "nacre/ops/fold.h"
#include "nacre/ops/level.h"

namespace nacre {

Flow level(Plan& p, const std::string& name, Flow audio) {
  const Step s = p.step(name);
  const Shape x = audio.shape, statistics_shape = level_statistics(x);
  const auto in = s.reads<float>(audio, Until::backward);
  const auto out = s.makes<float>(x);
  // Nothing is saved where nothing is trained, but the forward pass needs the statistics in any case.
  const View<float> statistics =
      p.training() ? s.saved<float>(statistics_shape) : s.scratch(statistics_shape, Until::forward);
  const View<float> scratch = s.scratch(level_scratch(p.context(), x), Until::forward);
  const View<float> backward_scratch = s.scratch(level_scratch(p.context(), x), Until::backward);
  const auto n = static_cast<double>(x.elements());
  s.costs({.forward = {.floats = 6 * n, .bytes = 16 * n, .launches = 3},
           .input_gradient = {.floats = 6 * n, .bytes = 16 * n, .launches = 2}});
  // Mean and peak of an item depend on all of its positions.
  s.reaches(audio, {.count = 2 * x.time - 1, .left = x.time - 1});
  s.forward([=](Context& c) {
    level_forward(c, {.x = in.value, .y = out.value, .statistics = statistics, .scratch = scratch});
  });
  s.backward([=](Context& c) {
    if (in.grad)
      level_backward(c, {.x = in.value,
                         .statistics = statistics,
                         .dy = out.grad,
                         .dx = in.grad,
                         .scratch = backward_scratch,
                         .add_dx = in.add});
  });
  return out.flow;
}

Flow fold(Plan& p, const std::string& name, Flow audio, int64_t period) {
  const Step s = p.step(name);
  const Shape y = fold_output(audio.shape, period);
  const auto in = s.reads<float>(audio);
  const auto out = s.makes<float>(y);
  const Work work{.bytes = 4 * static_cast<double>(audio.shape.elements() + y.elements()), .launches = 1};
  s.costs({.forward = work, .input_gradient = work});
  // Row l of every signal reads within samples l period ... l period + period - 1. The reflection that completes the
  // last row is not counted.
  s.reaches(audio, {.count = period, .stride = period});
  s.forward([=](Context& c) { fold_forward(c, {.x = in.value, .y = out.value, .period = period}); });
  s.backward([=](Context& c) {
    if (in.grad) fold_backward(c, {.dy = out.grad, .dx = in.grad, .period = period, .add_dx = in.add});
  });
  return out.flow;
}

Flow pooled(Plan& p, const std::string& name, Flow audio, const AveragePoolGeometry& geometry) {
  const Step s = p.step(name);
  const Shape y = average_pool_output(audio.shape, geometry);
  const auto in = s.reads<float>(audio);
  const auto out = s.makes<float>(y);
  const double sums = static_cast<double>(geometry.taps) * static_cast<double>(y.elements());
  const Work work{
      .floats = sums, .bytes = 4 * static_cast<double>(audio.shape.elements() + y.elements()), .launches = 1};
  s.costs({.forward = work, .input_gradient = work});
  s.reaches(audio, {.count = geometry.taps, .stride = geometry.stride, .left = geometry.padding});
  s.forward([=](Context& c) { average_pool_forward(c, {.x = in.value, .y = out.value, .geometry = geometry}); });
  s.backward([=](Context& c) {
    if (in.grad) average_pool_backward(c, {.dy = out.grad, .dx = in.grad, .geometry = geometry, .add_dx = in.add});
  });
  return out.flow;
}

Flow channels_apart(Plan& p, const std::string& name, Flow audio) {
  const Shape x = audio.shape;
  if (x.width == 1 && x.channels == 1) return audio;
  // Interleaved channels are the signals of a period of as many samples.
  // Memory [T, C] of an item read as one signal of T C samples: sample t C + c is row t of signal c.
  const Shape interleaved{.batch = x.batch, .time = x.time * x.channels, .width = x.width};
  const Step s = p.step(name);
  const auto in = s.reads<float>(audio);
  const auto out = s.makes<float>(fold_output(interleaved, x.channels, false));
  const Work work{.bytes = 8 * static_cast<double>(x.elements()), .launches = 1};
  s.costs({.forward = work, .input_gradient = work});
  s.forward([=, period = x.channels](Context& c) {
    fold_forward(c, {.x = {in.value.data, interleaved}, .y = out.value, .period = period, .extend = false});
  });
  s.backward([=, period = x.channels](Context& c) {
    if (in.grad)
      fold_backward(
          c, {.dy = out.grad, .dx = {in.grad.data, interleaved}, .period = period, .add_dx = in.add, .extend = false});
  });
  return out.flow;
}

Flow spectrum(Plan& p, const std::string& name, Flow audio, StftGeometry geometry) {
  const Step s = p.step(name);
  const Shape x = audio.shape;
  const int64_t frames = stft_frames(x.time, geometry);
  const Shape y{.batch = x.batch, .time = frames, .width = geometry.window / 2 + 1, .channels = 2};
  const auto in = s.reads<float>(audio);
  const auto out = s.makes<float>(y);
  const auto length = static_cast<double>(geometry.window), count = static_cast<double>(x.batch * frames);
  // Frames are written and read, the spectrum once. Backward, a halved copy of the spectrum comes first.
  // A real transform of n points counts 2.5 n log2(n) operations.
  const Work work{.floats = 2.5 * length * std::log2(length) * count,
                  .bytes = 8 * count * length + 4 * static_cast<double>(x.elements() + y.elements()),
                  .launches = 2};
  Work adjoint = work;
  adjoint += {.bytes = 8 * static_cast<double>(y.elements()), .launches = 1};
  s.costs({.forward = work, .input_gradient = adjoint});
  // Frame t begins at sample t hop - left. `inside`: frames lie within the audio; `aligned`: frame t is centred on
  // samples t hop ... t hop + hop - 1; else on sample t hop.
  s.reaches(audio, {.count = geometry.window,
                    .stride = geometry.hop,
                    .left = geometry.inside    ? 0
                            : geometry.aligned ? (geometry.window - geometry.hop) / 2
                                               : geometry.window / 2});
  // Closures are copied, but tables and work areas are shared. They are built only when steps are recorded.
  std::shared_ptr<const StftPlan> tables;
  if (p.recording()) tables = std::make_shared<StftPlan>(p.context(), x, geometry);
  s.forward([=](Context& c) { stft_forward(c, {.plan = *tables, .x = in.value, .spectrum = out.value}); });
  s.backward([=](Context& c) {
    if (in.grad) stft_adjoint(c, {.plan = *tables, .dspectrum = out.grad, .dx = in.grad, .add_dx = in.add});
  });
  return out.flow;
}

Flow pair(Plan& p, const std::string& name, View<const float> real, Flow fake) {
  const Shape x = fake.shape;
  if (real.shape != x)
    throw Error(ErrorKind::usage, name + ": real audio is " + str(real.shape) + ", generated audio " + str(x));
  const Step s = p.step(name);
  const auto in = s.reads<float>(fake);
  const auto out = s.makes<float>({2 * x.batch, x.time, x.width, x.channels});
  const auto n = static_cast<double>(x.elements());
  // Two copies forward; backward the gradient of the second half is copied or added.
  s.costs({.forward = {.bytes = 16 * n}, .input_gradient = {.bytes = 8 * n, .launches = 1}});
  s.forward([=](Context& c) {
    c.copy<float>(real, View<float>(out.value.data, x));
    c.copy<float>(in.value, View<float>(out.value.data + x.elements(), x));
  });
  s.backward([=](Context& c) {
    if (!in.grad) return;
    // The gradient at the real items goes nowhere.
    accumulate<float>(c, {.x = View<const float>(out.grad.data + x.elements(), x), .y = in.grad, .add = in.add});
  });
  return out.flow;
}

}  // namespace nacre
