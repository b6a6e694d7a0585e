// Distance of samples (ops/waveform_loss.h).
#include "nacre/ops/waveform_loss.h"

#include "nacre/losses/loss.h"

namespace nacre {

Loss waveform_loss_of(const LossConfig& config) {
  const auto plan = [](Plan& p, const Signals& signals) {
    const Step s = p.step("loss.waveform");
    const Input<float> in = read_branch(s, signals.estimates[0]);
    const Shape shape = signals.estimates[0].shape;
    // Value and gradient come from one pass over the samples. So the step has no forward pass, and its cost is counted
    // as forward.
    const View<float> scratch = s.scratch(waveform_loss_scratch(p.context(), shape), Until::backward);
    const auto samples = static_cast<double>(shape.elements());
    s.costs({.forward = {.floats = 3 * samples, .bytes = 12 * samples, .launches = 2}});
    s.backward([=, target = signals.target, lengths = signals.lengths, value = signals.values](Context& c) {
      waveform_loss(c, {.estimate = in.value,
                        .target = target,
                        .lengths = lengths,
                        .loss = View<float>(value.data, {}),
                        .gradient = in.grad,
                        .scratch = scratch});
    });
  };
  return {.terms = {{"waveform", "waveform", config.waveform}}, .plan = plan};
}

}  // namespace nacre
