#pragma once
// Pieces of all layers that convolve: parameters, costs, scratch, and the leaky ReLU of Conv1d and Conv2d.
#include "nacre/nn/layers.h"
#include "nacre/ops/leaky_relu.h"

namespace nacre {

/// The larger of two scratch shapes, for a block that two calls of one step use in turn.
inline Shape larger(Shape a, Shape b) { return a.elements() >= b.elements() ? a : b; }

/// Scratch of a weight gradient whose parts have memory of their own.
inline Shape beside_parts(Shape scratch, Shape parts) { return parts.elements() > 0 ? Shape{0, 0, 0, 0} : scratch; }

/// The weight of a convolution.
inline Weight* add_weight(Parameters& parameters, const std::string& name, Norm norm, std::vector<int64_t> stored,
                          Shape whole, Init init) {
  return norm == Norm::weight ? &parameters.add_weight({name}, std::move(stored), whole, init)
                              : &parameters.add_plain_weight({name}, std::move(stored), whole, init);
}
inline Parameter* add_bias(Parameters& parameters, const std::string& name, int64_t out, BiasStart start,
                           int64_t fan_in) {
  return &parameters.add(name + ".bias", {out}, {.channels = out},
                         start == BiasStart::zero ? Init{Init::zero} : uniform_by_fan_in(fan_in));
}
/// The normalisation of the output of a convolution, if it has one.
inline std::optional<GroupNorm> add_norm(Parameters& parameters, const std::string& name, Norm norm, int64_t channels) {
  if (norm != Norm::group && norm != Norm::layer) return std::nullopt;
  return GroupNorm(parameters, name + ".norm", channels, 1, norm == Norm::group ? NormOver::item : NormOver::position);
}

inline void expect_leaky(const std::string& name, bool normalised, float slope) {
  if (normalised) throw Error(ErrorKind::usage, name + ": leaky() of a convolution whose output is normalised");
  if (!(slope > 0))
    throw Error(ErrorKind::usage, name + ": leaky() with slope " + std::to_string(slope) + ", expected above 0");
}

/// The leaky ReLU at the end of a convolution's step. With slope 0 there is none, and the step is the convolution's
/// alone. Otherwise the step must keep its output until its backward pass.
template <class T>
class LeakyEnd {
 public:
  LeakyEnd(const Step& s, float slope, const Output<T>& y)
      : y_(y), slope_(slope), before_(slope > 0 ? s.scratch<T>(y.flow.shape, Until::backward) : View<T>{}) {}
  static Until keeps(float slope) { return slope > 0 ? Until::backward : Until::forward; }
  void forward(Context& c) const {
    if (slope_ > 0) leaky_relu_forward<T>(c, {.x = y_.value, .y = y_.value, .slope = slope_});
  }
  /// The gradient of the convolution's result.
  View<const T> backward(Context& c) const {
    if (!(slope_ > 0)) return y_.grad;
    leaky_relu_backward<T>(c, {.y = y_.value, .dy = y_.grad, .dx = before_, .slope = slope_});
    return before_;
  }

 private:
  Output<T> y_;
  float slope_;
  View<T> before_;  // gradient of the value before the activation
};

/// A comparison and a product in each direction. The forward pass is in place; the backward pass reads y and dy and
/// writes the gradient before the activation.
template <class T>
Costs leaky_costs(Shape y) {
  const double n = static_cast<double>(y.elements()), bytes = sizeof(T) * n;
  return {.forward = {.floats = 2 * n, .bytes = 2 * bytes, .launches = 1},
          .backward = {.floats = 2 * n, .bytes = 3 * bytes, .launches = 1}};
}

}  // namespace nacre
