// Two steps around the codec: division of the audio by its level, and multiplication of the result by it. Both are
// linear in x for a given scale, so the backward pass applies the same scale to the gradient.
#include "nn/segment_scale.h"

#include "nacre/ops/rms_scale.h"

namespace nacre {

Normalised normalised(Plan& p, Flow audio, View<const int32_t> lengths) {
  const Step s = p.step("audio.normalised");
  const Shape x = audio.shape;
  const auto in = s.reads<float>(audio);
  const auto out = s.makes<float>(x);
  // Persistent: the decoder's side reads the scales in a later step, and callers read them after the run.
  const View<float> scales = p.persistent<float>({.channels = x.batch});
  const View<float> scratch = s.scratch(rms_scale_scratch(p.context(), x), Until::forward);
  const auto n = static_cast<double>(x.elements());
  s.costs({.forward = {.floats = 4 * n, .bytes = 12 * n, .launches = 3},
           .input_gradient = {.floats = n, .bytes = 8 * n, .launches = 1}});
  // The scale of an item depends on all of its positions.
  s.reaches(audio, {.count = 2 * x.time - 1, .left = x.time - 1});
  s.forward([=](Context& c) {
    rms_scale(c, {.x = in.value, .lengths = lengths, .scale = scales, .scratch = scratch});
    scale_items(c, {.x = in.value, .scale = scales, .y = out.value, .divide = true});
  });
  s.backward([=](Context& c) {
    if (in.grad) scale_items(c, {.x = out.grad, .scale = scales, .y = in.grad, .divide = true, .add = in.add});
  });
  return {.flow = out.flow, .scales = scales};
}

Flow scaled(Plan& p, Flow x, View<const float> scales) {
  const Step s = p.step("audio.scaled");
  const auto in = s.reads<float>(x);
  const auto out = s.makes<float>(x.shape);
  const auto n = static_cast<double>(x.shape.elements());
  const Work work{.floats = n, .bytes = 8 * n, .launches = 1};
  s.costs({.forward = work, .input_gradient = work});
  s.forward([=](Context& c) { scale_items(c, {.x = in.value, .scale = scales, .y = out.value}); });
  s.backward([=](Context& c) {
    if (in.grad) scale_items(c, {.x = out.grad, .scale = scales, .y = in.grad, .add = in.add});
  });
  return out.flow;
}

}  // namespace nacre
