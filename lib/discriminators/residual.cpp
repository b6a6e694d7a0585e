// SoundStream's discriminator of complex spectra: one stack of residual units over frames and bins.
#include <array>

#include "nacre/discriminators/discriminator.h"
#include "nacre/discriminators/signals.h"
#include "nacre/ops/add.h"
#include "nacre/ops/leaky_relu.h"

namespace nacre {
namespace {

/// Units: channels behind each of the two convolutions, in multiples of the first layer's. All halve the number of
/// bins.
struct UnitShape {
  int64_t inner, outer, stride_time;
};
constexpr std::array<UnitShape, 6> unit_shapes{{{1, 2, 1}, {2, 4, 2}, {4, 4, 1}, {4, 8, 2}, {8, 8, 1}, {8, 16, 2}}};
constexpr int64_t halved = int64_t{1} << unit_shapes.size();  // bins per bin of the last layer

/// y = leaky_relu(a + b). b may be absent.
/// The backward pass needs y alone: the sign of y is that of a + b, because the slope is positive.
template <class T>
Flow plan_leaky(Plan& p, const std::string& name, Flow a, Flow b, float slope) {
  const Step s = p.step(name);
  const auto left = s.reads<T>(a), right = b ? s.reads<T>(b) : Input<T>{};
  const auto out = s.makes<T>(a.shape, Until::backward);
  const auto n = static_cast<double>(a.shape.elements()), inputs = b ? 2.0 : 1.0;
  s.costs({.forward = {.floats = (1 + inputs) * n, .bytes = sizeof(T) * (b ? 5 : 2) * n, .launches = inputs},
           .input_gradient = {.floats = 2 * inputs * n, .bytes = sizeof(T) * 3 * inputs * n, .launches = inputs}});
  s.forward([=, both = static_cast<bool>(b)](Context& c) {
    // The sum is written to y, and the leaky ReLU then works in place.
    if (both) add<T>(c, {.a = left.value, .b = right.value, .y = out.value});
    leaky_relu_forward<T>(c, {.x = both ? View<const T>(out.value) : left.value, .y = out.value, .slope = slope});
  });
  s.backward([=](Context& c) {
    // If a and b are one activation, its last reading overwrites the gradient and comes first.
    for (const Input<T>& to : {right, left})
      if (to.grad)
        leaky_relu_backward<T>(c, {.y = out.value, .dy = out.grad, .dx = to.grad, .slope = slope, .add_dx = to.add});
  });
  return out.flow;
}
Flow leaky(Plan& p, const std::string& name, Flow a, Flow b, float slope) {
  return visit(a.storage, [&]<class T>(Type<T>) { return plan_leaky<T>(p, name, a, b, slope); });
}

/// A convolution and its leaky ReLU: one step, unless the output is normalised between them.
class LeakyConv {
 public:
  LeakyConv(const Conv2d& conv, Norm norm, float slope)
      : apart_(norm == Norm::group || norm == Norm::layer), conv_(apart_ ? conv : conv.leaky(slope)), slope_(slope) {}
  Flow plan(Plan& p, Flow x) const {
    const Flow y = conv_.plan(p, x);
    return apart_ ? leaky(p, conv_.name() + ".leaky", y, {}, slope_) : y;
  }

 private:
  bool apart_;
  Conv2d conv_;
  float slope_;
};

// y = leaky_relu(outer(leaky_relu(inner(x))) + skip(x)). `skip` is a convolution of one tap with the strides of
// `outer`.
struct Unit {
  std::string name;
  LeakyConv inner;
  Conv2d outer, skip;
};

}  // namespace

Discriminator residual_discriminator(Parameters& p, const std::string& name, const ResidualDiscriminatorConfig& config,
                                     Storage storage) {
  const int64_t window = config.window, channels = config.channels;
  if (window < 1 || window % (2 * halved) != 0 || channels < 1 || !(config.slope > 0 && config.slope < 1))
    throw Error(ErrorKind::usage, "discriminator " + name + ": a window of " + std::to_string(window) + " samples, " +
                                      std::to_string(channels) + " channels and a slope of " +
                                      std::to_string(config.slope) + ", expected a multiple of " +
                                      std::to_string(2 * halved) + ", at least 1 channel and a slope between 0 and 1");
  const auto slope = static_cast<float>(config.slope);
  // One channel has no mean and variance over its channels, and a skip passes values on as they are: the norms of
  // outputs are for the branches.
  const Norm plain = config.norm == Norm::weight ? Norm::weight : Norm::none;
  const LeakyConv first(
      Conv2d(p, name + ".first", 2, channels, 7, 7,
             {.time = {.left = 3, .right = 3}, .width = {.left = 3, .right = 3}, .columns = window / 2}, config.norm,
             BiasStart::uniform),
      config.norm, slope);
  std::vector<Unit> units;
  int64_t in = channels;
  for (const auto& [inner, outer, stride] : unit_shapes) {
    const std::string at = name + ".units." + std::to_string(units.size());
    const int64_t between = inner * channels, out = outer * channels;
    // Taps are stride + 2. With this padding an odd number of frames is halved as by the skip: rounded up.
    const Conv2dGeometry strided{.time = {.stride = stride, .left = 1, .right = stride},
                                 .width = {.stride = 2, .left = 1, .right = 2}};
    const Conv2dGeometry chosen{.time = {.stride = stride}, .width = {.stride = 2}};
    units.push_back(
        {.name = at,
         .inner = LeakyConv(Conv2d(p, at + ".convs.0", in, between, 3, 3,
                                   {.time = {.left = 1, .right = 1}, .width = {.left = 1, .right = 1}}, config.norm,
                                   BiasStart::uniform),
                            config.norm, slope),
         .outer = Conv2d(p, at + ".convs.1", between, out, stride + 2, 4, strided, config.norm, BiasStart::uniform),
         .skip = Conv2d(p, at + ".skip", in, out, 1, 1, chosen, plain, BiasStart::uniform)});
    in = out;
  }
  // One tap over time and as many over the width as bins are left: one logit per frame.
  const Conv2d post(p, name + ".conv_post", in, 1, 1, window / 2 / halved, {}, plain, BiasStart::uniform);
  const StftGeometry geometry{.window = window, .hop = window / 4, .inside = true, .normalised = true};
  return [=](Plan& plan, Flow audio) {
    if (audio.shape.time < geometry.window)
      throw Error(ErrorKind::usage, "discriminator " + name + ": audio of " + std::to_string(audio.shape.time) +
                                        " samples, expected at least one window of " + std::to_string(geometry.window) +
                                        "; use longer segments or shorter windows (discriminator.residual_windows)");
    Verdict v;
    Flow x = first.plan(plan, stored_as(plan, spectrum(plan, name + ".spectrum", audio, geometry), storage));
    v.features.push_back(x);
    for (const Unit& unit : units) {
      const Flow inner = unit.inner.plan(plan, x), branch = unit.outer.plan(plan, inner);
      v.features.push_back(inner);
      v.features.push_back(x = leaky(plan, unit.name + ".sum", branch, unit.skip.plan(plan, x), slope));
    }
    v.logits = post.plan(plan, x);
    return v;
  };
}

}  // namespace nacre
