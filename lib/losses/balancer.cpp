// The fork in front of the losses, whose backward pass is EnCodec's balancer (ops/balancer.h).
#include "nacre/ops/balancer.h"

#include "nacre/losses/loss.h"

namespace nacre {

Branches GradientBalancer::plan(Plan& p, Flow x, std::span<const double> weights, View<const float> gates,
                                int64_t channels) const {
  if (weights.empty() || weights.size() > static_cast<size_t>(balancer_max))
    throw Error(ErrorKind::usage, "balancer: " + std::to_string(weights.size()) + " branches, expected 1 to " +
                                      std::to_string(balancer_max));
  if (channels < 1 || x.shape.batch % channels != 0)
    throw Error(ErrorKind::usage, "balancer: " + std::to_string(x.shape.batch) + " items of " +
                                      std::to_string(channels) + " channels each, expected a multiple");
  const Step s = p.step("loss.balancer");
  const auto count = static_cast<int64_t>(weights.size());
  const auto in = s.reads<float>(x);
  // The op overwrites the gradient of x. The flag is known in the second walk.
  if (in.add) throw Error(ErrorKind::usage, "balancer: a later step passes a gradient to the activation");
  Branches made{.step = s.number()};
  // The channels of an item are next to each other, so they are one longer signal.
  Shape joined = x.shape;
  joined.batch /= channels, joined.time *= channels;
  // Null views in the first walk; the second walk fills in the addresses that the closure keeps.
  Balancer op{};
  op.count = static_cast<int>(count);
  op.decay = static_cast<float>(decay_), op.balanced = balanced_, op.norm = norm_;
  for (size_t i = 0; i < weights.size(); ++i) {
    // The value of x under a second name: no copy, but a gradient of its own.
    const Output<float> branch = s.shares<float>(x);
    made.flows.push_back(branch.flow);
    op.gradients[i] = {branch.grad.data, joined};
    op.weights[i] = static_cast<float>(weights[i]);
  }
  const View<float> shares = p.persistent<float>({.channels = count});
  made.shares = shares;
  // The averages of gradient norms outlive the run: checkpoints hold them, and a run that is given up restores them.
  // First come `count` decayed sums of norms, then as many decayed sums of ones.
  made.state = p.persistent<float>({.channels = 2 * count});
  op.state = made.state, op.shares = shares, op.gates = gates, op.gradient = {in.grad.data, joined};
  op.scratch = s.scratch(balancer_scratch(p.context(), joined, op.count, op.norm), Until::backward);
  s.changes(made.state);
  const auto samples = static_cast<double>(x.shape.elements());
  // Each branch is read twice, for its norm and for the sum; the sum is written once.
  s.costs({.input_gradient = {.floats = 4 * static_cast<double>(count) * samples,
                              .bytes = (8 * static_cast<double>(count) + 4) * samples,
                              .launches = 3}});
  s.backward([=](Context& c) { balancer(c, op); });
  return made;
}

}  // namespace nacre
