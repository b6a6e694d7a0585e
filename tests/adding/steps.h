#pragma once
// What the examples of layers and discriminators share.
#include <vector>

#include "harness.h"
#include "nacre/nn/parameters.h"
#include "nacre/nn/plan.h"

namespace nacre::test {

/// A loss in a plan: slope * (sum of x). It computes on the host, so that any device can run it.
inline void sum_loss(Plan& p, Flow x, float slope) {
  const Step s = p.step("sum");
  const auto in = s.reads<float>(x);
  s.backward([=](Context& c) {
    std::vector<float> dx(static_cast<size_t>(in.grad.elements()), 0.0f);
    if (in.add) c.read<float>(View<const float>(in.grad), dx);
    for (float& d : dx) d += slope;
    c.write<float>(dx, in.grad);
  });
}

/// Values in (-0.8, 0.8) for all trained parameters and for a batch.
inline std::vector<float> drawn(std::mt19937_64& rng, int64_t n) {
  std::uniform_real_distribution<float> draw(-0.8f, 0.8f);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = draw(rng);
  return v;
}
inline void draw_parameters(Context& c, Parameters& p, std::mt19937_64& rng) {
  p.allocate(c, true);
  c.write<float>(drawn(rng, p.trained_elements()), p.values());
  p.refresh(c);
}

}  // namespace nacre::test
