#pragma once
// Losses in double, on a tape: nodes of one value. Lengths are valid samples per item. Targets get no gradient. sum(t,
// {{weight, loss}, ...}) gives a weighted total.
#include <numeric>

#include "reference/balancer.h"
#include "reference/layers.h"
#include "reference/spectral.h"
#include "reference/waveform_loss.h"

namespace nacre::test {

inline Node* mean(Tape& t, Node* x) {
  const double count = static_cast<double>(x->value.size());
  Node* y = t.make({}, {std::accumulate(x->value.begin(), x->value.end(), 0.0) / count}, {x});
  t.back(y, [=, &t] { t.add(x, Values(x->value.size(), y->gradient[0] / count)); });
  return y;
}

inline Node* waveform_loss(Tape& t, Node* estimate, const Values& target, const std::vector<int32_t>& lengths,
                           bool squared = false) {
  const auto loss = nacre::reference::waveform_loss(estimate->value, target, {lengths.begin(), lengths.end()},
                                                    estimate->shape.time, squared);
  Node* y = t.make({}, {loss.loss}, {estimate});
  t.back(y, [=, &t] {
    Values dx = loss.gradient;
    for (double& d : dx) d *= y->gradient[0];
    t.add(estimate, std::move(dx));
  });
  return y;
}

struct SpectralNodes {
  Node *stft, *mel;
};
inline SpectralNodes spectral_loss(Tape& t, const SpectralConfig& config, Node* estimate, const Values& target,
                                   const std::vector<int32_t>& lengths) {
  const auto loss = [=](bool gradients) {
    return reference::spectral_loss(config, estimate->shape.batch, estimate->shape.time, estimate->value, target,
                                    lengths, gradients);
  };
  const reference::Spectral found = loss(false);  // finite differences need no gradients, which take most of the time
  const SpectralNodes y{t.make({}, {found.losses[0]}, {estimate}), t.make({}, {found.losses[1]}, {estimate})};
  t.back(y.stft, [=, &t] {
    const reference::Spectral again = loss(true);
    Values dx(estimate->value.size());
    std::normal_distribution<double> draw;
    for (int which = 0; which < 2; ++which) {
      const double dy = (which == 0 ? y.stft : y.mel)->gradient[0];
      for (size_t i = 0; i < dx.size(); ++i) {
        dx[i] += dy * again.gradients[which][i];
        // The errors of bins that nearly cancel exceed a fraction of their gradient. The reference knows their size.
        if (t.noise > 0) dx[i] += dy * t.noise / reference::unit * std::sqrt(again.variances[which][i]) * draw(t.rng);
      }
    }
    t.add(estimate, std::move(dx));
  });
  return y;
}

/// Makes one reader of x per loss. In the backward pass, their gradients are combined with the weights of the balancer,
/// whose state from earlier steps is `before`. The result is not the derivative of a loss, so finite differences do not
/// apply.
inline std::vector<Node*> balance(Tape& t, Node* x, const nacre::reference::Balancer& before,
                                  const std::vector<double>& weights) {
  std::vector<Node*> branches;
  for (size_t i = 0; i < weights.size(); ++i) branches.push_back(t.copy(x, x->shape));
  t.back(branches.at(0), [=, &t, balancer = before]() mutable {
    std::vector<Values> gradients;
    for (const Node* b : branches) gradients.push_back(b->gradient);
    t.add(x, balancer.step(gradients, weights).gradient);
  });
  return branches;
}

}  // namespace nacre::test
