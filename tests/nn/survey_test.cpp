// A survey of a plan, without memory: it has the layout of the real plan, the costs of its steps, and their reach.
#include "harness.h"
#include "nacre/nn/layers.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Shapes [3, 16, 1, 4] -> [3, 8, 1, 8] -> [3, 16, 1, 4].
struct SmallNet {
  Parameters parameters;
  Conv1d down{parameters, "down", 4, 8, 5, {.stride = 2, .dilation = 2, .left = 4, .right = 4}};
  Activation snake{parameters, "snake", 8, ActivationKind::snake};
  ConvTranspose1d up{parameters, "up", 8, 4, 4, 2, 1, 0};
  Flow x{}, y{};

  void walk(Plan& p, bool x_with_gradient = false) {
    x = p.source<float>({.batch = 3, .time = 16, .channels = 4}, x_with_gradient).flow;
    y = up.plan(p, snake.plan(p, down.plan(p, x)));
    if (!p.training()) return;
    p.step("end").reads<float>(y);
    parameters.clear_gradients(p);
  }
};

/// A step that reads x as described. y has as many time steps.
Flow plan_step(Plan& p, std::initializer_list<Flow> inputs, Flow reached = {}, const Footprint& footprint = {}) {
  const Step s = p.step("step");
  for (const Flow& x : inputs) s.reads<float>(x);
  if (reached) s.reaches(reached, footprint);
  return s.makes<float>(inputs.begin()->shape).flow;
}
void check_span(Span span, int64_t first, int64_t last) {
  CHECK(span.first == first);
  CHECK(span.last == last);
}

}  // namespace

TEST_CASE("survey: the layout of the real plan, without memory", "[plan]") {
  Context ctx({.threads = 1});
  for (const Purpose purpose : {Purpose::inference, Purpose::training}) {
    CAPTURE(purpose == Purpose::training);
    SmallNet net;
    Plan surveyed(ctx, purpose), reserved(ctx, purpose);
    const size_t before = memory_use({}).now;
    reset_memory_peak({});
    surveyed.survey([&](Plan& p) { net.walk(p); });
    CHECK(memory_use({}).peak == before);
    CHECK_FALSE(surveyed.recording());

    net.parameters.allocate(ctx, true);
    reserved.reserve([&](Plan& p) { net.walk(p); });
    CHECK(surveyed.steps() == reserved.steps());
    CHECK(surveyed.bytes() > 0);
    CHECK(surveyed.bytes() == reserved.bytes());
    CHECK(surveyed.peak_live_bytes() == reserved.peak_live_bytes());
    CHECK(surveyed.unshared_bytes() == reserved.unshared_bytes());
    // In training, the sums of the gradients' parts have a row.
    const size_t rows = purpose == Purpose::training ? 3 : 2;
    REQUIRE(surveyed.costs().size() == rows);
    REQUIRE(reserved.costs().size() == rows);
    for (size_t i = 0; i < rows; ++i) {
      CHECK(surveyed.costs()[i].name == reserved.costs()[i].name);
      CHECK(surveyed.costs()[i].backward.bytes == reserved.costs()[i].backward.bytes);
    }
  }
}

TEST_CASE("survey: the costs of a small chain, counted by hand", "[plan]") {
  Context ctx({.threads = 1});
  SmallNet net;
  Plan plan(ctx, Purpose::training);
  plan.survey([&](Plan& p) { net.walk(p); });
  CHECK(plan.steps() == std::vector<std::string>{"down", "snake", "up", "end", "clear gradients"});
  REQUIRE(plan.costs().size() == 3);
  const CostRow &down = plan.costs()[0], &up = plan.costs()[1], &sums = plan.costs()[2];
  const double down_products = 2 * 3 * 8 * (8 * 5 * 4), up_products = 2 * 3 * 8 * (8 * 4 * 4);
  const double x = 4 * 3 * 16 * 4, middle = 4 * 3 * 8 * 8, y = x, down_weight = 4 * 8 * 5 * 4,
               up_weight = 4 * 8 * 4 * 4, down_bias = 4 * 8, up_bias = 4 * 4, alpha = 4 * 8;
  CHECK(down.name == "down");
  CHECK(down.forward.products == down_products);
  CHECK(down.forward.floats == 0);
  CHECK(down.forward.bytes == x + middle + down_weight + down_bias);
  CHECK(down.forward.launches == 1);
  // No step needs the gradient of x.
  CHECK(down.backward.products == down_products);
  // One part each of the weight and bias gradients.
  CHECK(down.backward.bytes == x + middle + down_weight + down_bias);
  CHECK(down.backward.launches == 1);
  // Snake is counted in the convolution behind it.
  CHECK(up.name == "up");
  CHECK(up.forward.products == up_products);
  CHECK(up.forward.floats == 20 * 3 * 8 * 8);
  CHECK(up.forward.bytes == 2 * middle + (middle + y + up_weight + up_bias));
  CHECK(up.forward.launches == 2);
  CHECK(up.backward.products == 2 * up_products);
  CHECK(up.backward.floats == 60 * 3 * 8 * 8);
  // The bias of a transposed convolution has a part for each of the two samples of a window that no other one holds.
  // Snake leaves one part of two sums per channel.
  CHECK(up.backward.bytes ==
        (middle + y + up_weight + 2 * up_bias) + (y + up_weight + middle) + (middle + middle + middle) + 2 * alpha);
  CHECK(up.backward.launches == 3);
  // The parts of gradients are read, and what they are added to is read and written. Alpha is read, too. All sums share
  // a launch.
  CHECK(sums.name == "sums");
  CHECK(sums.backward.bytes == (1 + 2) * down_bias + (2 + 2) * up_bias + (2 + 3) * alpha);
  CHECK(sums.backward.launches == 1);

  // With frozen weights, only the gradient of the input is left.
  plan.survey([&](Plan& p) {
    const Frozen frozen = p.freeze(net.parameters);
    net.walk(p, true);
  });
  REQUIRE(plan.costs().size() == 2);
  CHECK(plan.costs()[0].backward.products == down_products);
  CHECK(plan.costs()[0].backward.bytes == middle + down_weight + x);
  CHECK(plan.costs()[1].backward.products == up_products);

  Plan inference(ctx, Purpose::inference);
  inference.survey([&](Plan& p) { net.walk(p); });
  REQUIRE(inference.costs().size() == 2);
  CHECK(inference.costs()[1].forward.floats == 20 * 3 * 8 * 8);
  CHECK(inference.costs()[1].backward.bytes == 0);
}

TEST_CASE("survey: the costs of a layer that no tiles fit, counted by hand", "[plan]") {
  Context ctx({.threads = 1});
  Parameters parameters;
  const Conv1d first = Conv1d(parameters, "first", 1, 8, 5, {.left = 2, .right = 2}).leaky(0.1f);
  Plan plan(ctx, Purpose::training);
  const auto walk = [&](Plan& p) {
    const Flow y = first.plan(p, p.source<float>({.batch = 3, .time = 512}).flow);
    p.step("end").reads<float>(y);
  };
  plan.survey([&](Plan& p) {
    p.inner(walk);
    walk(p);
  });
  REQUIRE(plan.costs().size() == 3);
  const double x = 4 * 3 * 512, y = 8 * x, weight = 4 * 8 * 5, bias = 4 * 8;
  for (size_t i = 0; i < 2; ++i) {
    const CostRow& row = plan.costs()[i];
    CHECK(row.name == "first");
    CHECK(row.forward.bytes == x + y + weight + bias + 2 * y);
    CHECK(row.forward.launches == 2);
    // No step needs the gradient of x, but that of the convolution's result. The plain kernel leaves a part of the
    // weight's gradient for 256 rows, and another kernel one of the bias's for 512.
    CHECK(row.backward.bytes == 3 * y + (x + y + 6 * weight) + (y + 3 * bias));
    CHECK(row.backward.launches == 3);
  }
  // Parts are read, sums written, and that of the bias is also read. Each walk ends with a launch.
  CHECK(plan.costs()[2].name == "sums");
  CHECK(plan.costs()[2].backward.bytes == 2 * ((6 + 1) * weight + (3 + 2) * bias));
  CHECK(plan.costs()[2].backward.launches == 2);
}

TEST_CASE("survey: the costs of adding to part of a gradient", "[plan]") {
  Context ctx({.threads = 1});
  Plan plan(ctx, Purpose::training);
  plan.survey([&](Plan& p) {
    const Flow x = p.source<float>({.batch = 2, .time = 10, .channels = 4}, true).flow;
    const Flow first = rows_of(p, x, 1, 3), second = rows_of(p, x, -1, 4);
    const Step s = p.step("end");
    s.reads<float>(first), s.reads<float>(second);
    s.backward([](Context&) {});
  });
  REQUIRE(plan.costs().size() == 2);
  const double row = 4 * 2 * 4;
  // Zeros, then a copy of the rows that x has.
  CHECK(plan.costs()[0].forward.bytes == (3 + 2 * 3) * row);
  CHECK(plan.costs()[1].forward.bytes == (4 + 2 * 3) * row);
  // The last reader of x runs first: it clears the gradient. The other one adds to three rows, item by item.
  CHECK(plan.costs()[1].backward.bytes == (10 + 2 * 3) * row);
  CHECK(plan.costs()[1].backward.launches == 0);
  CHECK(plan.costs()[0].backward.bytes == 3 * 3 * row);
  CHECK(plan.costs()[0].backward.launches == 2);
}

TEST_CASE("survey: receptive fields, counted by hand", "[plan]") {
  Context ctx({.threads = 1});
  Plan plan(ctx, Purpose::inference);
  SmallNet net;
  plan.survey([&](Plan& p) { net.walk(p); });
  // y[t] reads m[i] where 0 <= t + 1 - 2 i < 4; m[i] reads x[2 i - 4 ... 2 i + 4].
  check_span(plan.reach(net.y, {10, 10}, net.x), 2 * 4 - 4, 2 * 5 + 4);
  check_span(plan.reach(net.y, {11, 11}, net.x), 2 * 5 - 4, 2 * 6 + 4);
  check_span(plan.reach(net.y, {0, 1}, net.x), 2 * -1 - 4, 2 * 1 + 4);

  Flow x, other, past, joined, detached;
  plan.survey([&](Plan& p) {
    x = p.source<float>({.time = 9}).flow;
    other = p.source<float>({.time = 9}).flow;
    past = plan_step(p, {x}, x, {.left = 5});
    joined = plan_step(p, {past, x});
    detached = plan_step(p, {p.detach(joined)});
  });
  check_span(plan.reach(past, {7, 8}, x), 2, 3);
  check_span(plan.reach(joined, {7, 8}, x), 2, 8);
  check_span(plan.reach(detached, {7, 8}, x), 2, 8);
  CHECK_THROWS_WITH(plan.reach(joined, {7, 8}, other), Catch::Contains("does not depend on"));
}

TEST_CASE("survey: a gradient that is added to is also read", "[plan]") {
  Context ctx({.threads = 1});
  Parameters parameters;
  const Activation tanh(parameters, "tanh", 4, ActivationKind::tanh);
  Plan plan(ctx, Purpose::training);
  plan.survey([&](Plan& p) {
    const Flow x = p.source<float>({.batch = 2, .time = 5, .channels = 4}, true).flow;
    const Flow first = tanh.plan(p, x), second = tanh.plan(p, x);
    const Step s = p.step("end");
    s.reads<float>(first), s.reads<float>(second);
    s.backward([](Context&) {});
  });
  REQUIRE(plan.costs().size() == 2);
  const double bytes = 4 * 2 * 5 * 4;
  // Backward passes run in reverse order: that of the second reader of x comes first, and overwrites.
  CHECK(plan.costs()[0].backward.bytes == 4 * bytes);
  CHECK(plan.costs()[1].backward.bytes == 3 * bytes);
  for (const CostRow& row : plan.costs()) {
    CHECK(row.forward.bytes == 2 * bytes);
    CHECK(row.forward.launches == 1);
    CHECK(row.backward.launches == 1);
  }
}
