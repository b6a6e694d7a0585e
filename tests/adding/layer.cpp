// A layer with a parameter, and its test.
#include "adding/op.h"
#include "adding/reference.h"
#include "adding/steps.h"
#include "gradient_check.h"
#include "nacre/nn/layers.h"
#include "reference/layers.h"
#include "reference/losses.h"

using namespace nacre;

// [layer]
/// y = factor x. Registers <name>.factor of shape (channels), initialised to one.
class ChannelScale {
 public:
  ChannelScale(Parameters& p, const std::string& name, int64_t channels)
      : name_(name), factor_(&p.add(name + ".factor", {channels}, {.channels = channels}, {Init::one})) {}
  Flow plan(Plan&, Flow x) const;

 private:
  std::string name_;
  const Parameter* factor_;
};

Flow ChannelScale::plan(Plan& p, Flow x) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    const Step s = p.step(name_);
    const auto in = s.reads<T>(x, Until::backward);  // the backward pass reads x again
    const auto out = s.makes<T>(x.shape);
    const View<float> dfactor = s.gradient(*factor_);  // empty where nothing is trained
    const auto n = static_cast<double>(x.shape.elements());
    s.costs({.forward = {.floats = n, .bytes = 2 * sizeof(T) * n},
             .input_gradient = {.floats = n, .bytes = 2 * sizeof(T) * n},
             .weight_gradient = {.floats = 2 * n, .bytes = 2 * sizeof(T) * n}});
    s.forward([=, factor = factor_](Context& c) {
      scale_forward<T>(c, {.x = in.value, .factor = factor->value, .y = out.value});
    });
    s.backward([=, factor = factor_](Context& c) {
      scale_backward<T>(c, {.x = in.value,
                            .factor = factor->value,
                            .dy = out.grad,
                            .dx = in.grad,  // empty where x has no gradient
                            .dfactor = dfactor,
                            .add_dx = in.add});
    });
    return out.flow;
  });
}
// [/layer]

static_assert(nacre::Layer<ChannelScale>);

using namespace nacre::test;

// [layer reference]
/// The same layer in double, on a tape.
test::Layer channel_scale(const std::string& name) {
  return [=](Tape& t, Node* x) {
    Node* factor = t.parameter(name + ".factor");
    Node* y = t.make(x->shape, nacre::reference::scale(x->value, factor->value), {x, factor});
    t.back(y, [=, &t] {
      auto [dx, dfactor] = nacre::reference::scale_gradients(x->value, factor->value, y->gradient);
      t.add(x, std::move(dx)), t.add(factor, std::move(dfactor));
    });
    return y;
  };
}
// [/layer reference]

// [layer test]
TEST_CASE("layer: gradients, in several places of one plan") {
  const Shape shape{.batch = 2, .time = 11, .channels = 3};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const Conv1d first(parameters, "first", 3, 4, 1);
    const ChannelScale scaled(parameters, "scaled", 4);
    const Activation bent(parameters, "bent", 4, ActivationKind::tanh);
    std::mt19937_64 rng(seed());
    draw_parameters(ctx, parameters, rng);
    const std::vector<float> batch = drawn(rng, shape.elements());
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>(shape);
      if (source.value) ctx.write<float>(batch, source.value);
      const Flow x = first.plan(p, source.flow);
      sum_loss(p, bent.plan(p, scaled.plan(p, x)), 0.5f);
      sum_loss(p, scaled.plan(p, scaled.plan(p, x)), -0.25f);
      parameters.clear_gradients(p);
    });
    plan.run_gradients();
    parameters.finish_gradients(ctx);

    const test::Layer conv = conv1d("first", 1), scale = channel_scale("scaled");
    const auto model = [&](Tape& t) {
      Node* x = conv(t, t.constant(shape, {batch.begin(), batch.end()}));
      Node *a = tanh(t, scale(t, x)), *b = scale(t, scale(t, x));
      const auto n = static_cast<double>(a->value.size());
      return sum(t, {{0.5 * n, mean(t, a)}, {-0.25 * n, mean(t, b)}});
    };
    Tape tape;
    tape.parameters = values_of(ctx, parameters);
    const Comparison comparison(tape, model);
    CHECK(comparison.blunt() == "");
    comparison.check(gradients_of(ctx, parameters));  // against the tape
    check_differences(tape, model, rng, 20);          // the tape against finite differences
  }
}
// [/layer test]

TEST_CASE("layer: initial values and storage") {
  Context ctx({.threads = 1});
  Parameters parameters;
  const ChannelScale scaled(parameters, "scaled", 3);
  CHECK_THROWS_AS(ChannelScale(parameters, "scaled", 4), Error);
  Plan plan(ctx, Purpose::inference);
  plan.survey([&](Plan& p) {
    const Flow y = scaled.plan(p, p.source<bf16>({.time = 5, .channels = 3}).flow);
    CHECK(y.storage == Storage::bfloat16);
    CHECK(y.shape == Shape{.time = 5, .channels = 3});
  });
  parameters.allocate(ctx, false);
  parameters.initialise(ctx, 1);
  CHECK(values_of(ctx, parameters) == Tensors{{"scaled.factor", {1, 1, 1}}});
}
