#include "nacre/ops/balancer.h"

#include <cmath>

#include "harness.h"
#include "reference/balancer.h"
#include "reference/elementwise.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::vector<double> doubles(const std::vector<float>& b) { return {b.begin(), b.end()}; }

/// Gates of 0 and fractions; the first is not 0.
constexpr float gate_values[balancer_max] = {0.75f, 0, 1, 0.3f, 2, 0, 1, 0.1f};

void balancer_case(Device device, Shape s, int count, bool balanced, bool gated,
                   BalancerNorm norm = BalancerNorm::batch) {
  Case c("balancer", device, s);
  const Shape per_loss{.channels = count};
  auto &state = c.zeros("state", {.channels = 2 * count}), &shares = c.output("shares", per_loss);
  auto& gradient = c.output("gradient", s);
  Balancer a{.count = count,
             .state = state,
             .shares = shares,
             .gradient = gradient,
             .scratch = c.scratch(balancer_scratch(c.ctx, s, count, norm)),
             .decay = 0.9f,
             .total_norm = 2.5f,
             .balanced = balanced,
             .norm = norm};
  std::vector<double> weights;
  if (gated) a.gates = c.values("gates", per_loss, std::vector<float>(gate_values, gate_values + count));
  std::vector<Buffer<float>*> inputs;
  for (int i = 0; i < count; ++i) {
    const size_t k = static_cast<size_t>(i);
    a.weights[k] = static_cast<float>(i) + 0.5f;
    weights.push_back(a.weights[k] * (gated ? static_cast<double>(gate_values[k]) : 1));
    inputs.push_back(&c.output("gradient of a loss", s));
    a.gradients[k] = *inputs.back();
  }
  reference::Balancer exact{.decay = a.decay,
                            .total_norm = a.total_norm,
                            .eps = a.eps,
                            .balanced = balanced,
                            .sums = std::vector<double>(weights.size()),
                            .ones = std::vector<double>(weights.size()),
                            .items = norm == BalancerNorm::item ? static_cast<size_t>(s.batch) : 1};
  for (int step = 0; step < 3; ++step) {
    std::vector<std::vector<double>> gradients;
    for (int i = 0; i < count; ++i) {  // scales far apart
      const double scale = std::pow(10.0, i - 3) * (1 + step);
      const auto& drawn = c.random("drawn", s, -scale, scale);
      inputs[static_cast<size_t>(i)]->write(drawn.before());
      gradients.push_back(doubles(drawn.before()));
    }
    balancer(c.ctx, a);
    const auto r = exact.step(gradients, weights);
    // Norms and means: 2 u of their own, and 3 u per step for the state in float. Then the factor, a product and
    // `count` sums. The product of a weight and its gate is exact in double.
    const auto expected = [&](int64_t k) { return r.gradient[static_cast<size_t>(k)]; };
    const auto allowance = [&](int64_t k) {
      double size = 0;
      for (size_t i = 0; i < gradients.size(); ++i)
        size += std::fabs(r.factors[i] * gradients[i][static_cast<size_t>(k)]);
      return ulp * (12 + count) * size + 1e-37;
    };
    const auto share = [&](int64_t i) { return r.shares[static_cast<size_t>(i)]; };
    const auto share_allowed = [&](int64_t i) { return 26 * ulp * share(i) + 1e-37; };
    c.expect<float>(gradient, expected, allowance);
    c.expect<float>(shares, share, share_allowed);
    for (size_t i = 0; balanced && i < weights.size(); ++i) {
      CHECK(state.read()[i] == Approx(exact.sums[i]).epsilon(1e-6));
      CHECK(state.read()[i + weights.size()] == Approx(exact.ones[i]).epsilon(1e-6));
    }
    std::vector<double> planted = doubles(gradient.read());
    planted.back() += 10 * allowance(s.elements() - 1);
    CHECK(worst_ratio(planted, expected, allowance) > 1);
    planted = doubles(shares.read());
    planted.back() += 10 * share_allowed(count - 1);
    CHECK(worst_ratio(planted, share, share_allowed) > 1);
  }
  if (!balanced) c.expect_equal<float>(state, state.before());
}

}  // namespace

TEST_CASE("balancer", "[balancer]") {
  for (Device device : devices()) {
    int turn = 0;
    for (Shape s : elementwise_shapes) {
      for (bool gated : {false, true}) balancer_case(device, s, 1 + turn % balancer_max, turn % 3 != 0, gated);
      ++turn;
    }
    balancer_case(device, {2, 40000, 1, 1}, 3, true, true);  // the norms have several parts
    // Norms by item: of several parts, aligned and not; more items than a warp has lanes; one item; plain weights.
    for (const Shape items : {Shape{2, 40000}, Shape{3, 33001}, Shape{5, 4096}, Shape{70, 17}, Shape{33, 4100}})
      balancer_case(device, items, 3, true, items.batch % 2 != 0, BalancerNorm::item);
    balancer_case(device, {1, 9000, 1, 1}, 8, true, false, BalancerNorm::item);
    balancer_case(device, {4, 500, 1, 1}, 2, false, false, BalancerNorm::item);
  }
}

TEST_CASE("balanced losses have the shares of their weights from the first step", "[balancer]") {
  for (Device device : devices()) {
    const Shape s{2, 1000, 1, 1};
    Case c("balancer shares", device, s);
    auto &small = c.random("small", s, -1e-6, 1e-6), &large = c.random("large", s, -1e6, 1e6);
    auto &state = c.zeros("state", {.channels = 4}), &shares = c.output("shares", {.channels = 2});
    auto& gradient = c.output("gradient", s);
    balancer(c.ctx, {.gradients = {small, large},
                     .weights = {3, 1},
                     .count = 2,
                     .state = state,
                     .shares = shares,
                     .gradient = gradient,
                     .scratch = c.scratch(balancer_scratch(c.ctx, s, 2))});
    CHECK(shares.read()[0] == Approx(0.75).epsilon(1e-6));
    CHECK(shares.read()[1] == Approx(0.25).epsilon(1e-6));
  }
}

TEST_CASE("balancer: the norm by item is the mean over the items, that of the batch is not", "[balancer]") {
  for (Device device : devices()) {
    const Shape s{3, 4, 1, 1};
    Case c("balancer items", device, s);
    // Norms of the items: 5, 0 and 13.
    auto& g = c.values("g", s, {3, 0, 0, -4, 0, 0, 0, 0, 0, 12, 5, 0});
    auto &state = c.zeros("state", {.channels = 2}), &shares = c.output("shares", {.channels = 1});
    auto& gradient = c.output("gradient", s);
    for (BalancerNorm norm : {BalancerNorm::item, BalancerNorm::batch}) {
      state.write({0, 0});
      balancer(c.ctx, {.gradients = {g},
                       .weights = {1},
                       .count = 1,
                       .state = state,
                       .shares = shares,
                       .gradient = gradient,
                       .scratch = c.scratch(balancer_scratch(c.ctx, s, 1, norm)),
                       .norm = norm});
      CHECK(state.read()[0] == Approx(norm == BalancerNorm::item ? 6 : std::sqrt(194.0)));
      CHECK(gradient.read()[10] == Approx(5 / (norm == BalancerNorm::item ? 6 : std::sqrt(194.0))));
    }
  }
}

TEST_CASE("balancer: a gate switches a loss on and off in a captured step", "[balancer]") {
  for (Device device : devices())
    for (bool balanced : {false, true}) {
      const Shape s{1, 2000, 1, 1};
      Case c("balancer gates", device, s);
      auto &x = c.random("x", s, -1, 1), &y = c.random("y", s, -9, 9);
      auto& gates = c.values("gates", {.channels = 2}, {1.0f, 1.0f});
      auto &gradient = c.output("gradient", s), &other = c.output("other", s);
      auto &state = c.zeros("state", {.channels = 4}), &other_state = c.zeros("other state", {.channels = 4});
      auto &shares = c.output("shares", {.channels = 2}), &other_shares = c.output("other shares", {.channels = 2});
      Balancer gated{.gradients = {x, y},
                     .weights = {3, 0.7f},
                     .count = 2,
                     .gates = gates,
                     .state = state,
                     .shares = shares,
                     .gradient = gradient,
                     .scratch = c.scratch(balancer_scratch(c.ctx, s, 2)),
                     .balanced = balanced};
      Balancer plain = gated;  // the weights follow the gates
      plain.gates = {}, plain.state = other_state, plain.shares = other_shares, plain.gradient = other;
      balancer(c.ctx, gated);
      Graph step = c.ctx.capture([&] { balancer(c.ctx, gated); });
      balancer(c.ctx, plain);
      const auto same = [&] {
        c.expect_equal(gradient, other.read());
        c.expect_equal(state, other_state.read());
        c.expect_equal(shares, other_shares.read());
      };
      same();
      for (float gate : {0.0f, 1.0f, 0.0f}) {
        gates.write({1, gate});
        step.replay();
        plain.weights[1] = gate * 0.7f;
        balancer(c.ctx, plain);
        same();
      }
      if (balanced) CHECK(state.read()[1] > 0);
      // A loss behind a gate of 0 may be NaN.
      auto broken = y.before();
      broken[1234] = NAN;
      y.write(broken);
      step.replay();
      CHECK(std::isfinite(gradient.read()[1234]));
      CHECK(shares.read()[0] == 1);
      gates.write({0, 0});  // none is left
      step.replay();
      c.expect_equal<float>(gradient, std::vector<float>(2000, 0.0f));
      CHECK(shares.read()[0] == 0);
    }
}

TEST_CASE("balancer at its limits", "[balancer]") {
  for (Device device : devices()) {
    const Shape s{1, 2000, 1, 1};
    Case c("balancer limits", device, s);
    auto &good = c.random("good", s, -1, 1), &broken = c.random("broken", s, -1, 1), &zero = c.zeros("zero", s);
    auto &state = c.values("state", {.channels = 4}, {2.0f, 3.0f, 4.0f, 5.0f}),
         &shares = c.output("shares", {.channels = 2});
    auto& gradient = c.output("gradient", s);
    auto content = broken.before();
    content[1234] = NAN;
    broken.write(content);
    Balancer a{.gradients = {good, broken},
               .weights = {1, 1},
               .count = 2,
               .state = state,
               .shares = shares,
               .gradient = gradient,
               .scratch = c.scratch(balancer_scratch(c.ctx, s, 2))};
    balancer(c.ctx, a);  // NaN reaches the gradient, but not the state
    CHECK(std::isnan(gradient.read()[1234]));
    CHECK(state.read()[0] != 2.0f);
    CHECK(state.read()[1] == 3.0f);
    CHECK(state.read()[3] == 5.0f);
    a.weights = {1, 0};  // a loss of weight 0 is left out
    balancer(c.ctx, a);
    CHECK(std::isfinite(gradient.read()[1234]));
    CHECK(shares.read()[0] == 1);
    CHECK(shares.read()[1] == 0);
    a.gradients = {zero, zero}, a.weights = {1, 1};
    state.write({0, 0, 0, 0});
    balancer(c.ctx, a);  // all gradients are zero
    c.expect_equal<float>(gradient, zero.before());
    CHECK(shares.read()[0] == 0);
    // The result may overwrite one of the gradients.
    a.balanced = false, a.weights = {2, 1}, a.gradients = {zero, good}, a.gradient = View<float>(good);
    balancer(c.ctx, a);
    c.expect_equal<float>(good, good.before());
  }
}

TEST_CASE("balancer does not allocate and does not depend on threads", "[balancer]") {
  for (Device device : devices()) {
    const Shape s{3, 40001, 1, 1};
    std::vector<float> first;
    for (int threads : {1, 2, 3}) {
      Case c("balancer threads", device, s, threads);
      auto &x = c.random("x", s, -1, 1), &y = c.random("y", s, -9, 9), &gradient = c.output("gradient", s);
      auto &state = c.zeros("state", {.channels = 4}), &shares = c.output("shares", {.channels = 2});
      const Balancer a{.gradients = {x, y},
                       .weights = {1, 1},
                       .count = 2,
                       .state = state,
                       .shares = shares,
                       .gradient = gradient,
                       .scratch = c.scratch(balancer_scratch(c.ctx, s, 2))};
      balancer(c.ctx, a);  // starts the thread pool
      AllocationCounter counter;
      balancer(c.ctx, a);
      CHECK(counter.count() == 0);
      if (threads == 1) first = gradient.read();
      c.expect_equal(gradient, first);
    }
  }
}

TEST_CASE("balancer: the same bits at any address", "[balancer]") {
  for (Device device : devices())
    for (int64_t time : {3, 4096, 4099, 8200}) {
      const Shape s{1, time, 1, 1};
      Case c("balancer addresses", device, s);
      auto &x = c.random("x", s, -1, 1), &y = c.random("y", s, -9, 9);
      std::vector<float> later{0};
      later.insert(later.end(), x.before().begin(), x.before().end());
      auto& moved = c.values("moved", {.channels = time + 1}, later);
      auto &gradient = c.output("gradient", s), &other = c.output("other", s);
      auto &state = c.zeros("state", {.channels = 4}), &other_state = c.zeros("other state", {.channels = 4});
      auto &shares = c.output("shares", {.channels = 2}), &other_shares = c.output("other shares", {.channels = 2});
      Balancer a{.gradients = {x, y},
                 .weights = {1, 2},
                 .count = 2,
                 .state = state,
                 .shares = shares,
                 .gradient = gradient,
                 .scratch = c.scratch(balancer_scratch(c.ctx, s, 2))};
      balancer(c.ctx, a);
      a.gradients[0] = View<const float>(moved.data() + 1, s);
      a.state = other_state, a.shares = other_shares, a.gradient = other;
      balancer(c.ctx, a);
      c.expect_equal(other, gradient.read());
      c.expect_equal(other_state, state.read());
      c.expect_equal(other_shares, shares.read());
    }
}

TEST_CASE("balancer names what does not fit", "[balancer]") {
  Case c("balancer shapes", devices().front(), {});
  const Shape s{2, 20, 1, 1};
  auto &x = c.random("x", s, -1, 1), &other = c.random("other", {2, 21, 1, 1}, -1, 1), &y = c.output("y", s);
  auto &state = c.zeros("state", {.channels = 2}), &shares = c.output("shares", {.channels = 1});
  Balancer a{.gradients = {other}, .weights = {1}, .count = 1, .state = state, .shares = shares, .gradient = y};
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("balancer: gradients is [2, 21, 1, 1]"));
  a.gradients = {x};
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("balancer: scratch"));
  a.count = 9;
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("balancer: count is 9"));
  a.count = 1, a.weights = {-1};
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("weights[0]"));
  a.weights = {1}, a.gates = state;
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("balancer: gates is [1, 1, 1, 2], expected [1, 1, 1, 1]"));
  a.gates = {}, a.state = shares;
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("balancer: state"));
  a.state = state, a.shares = state;
  CHECK_THROWS_WITH(balancer(c.ctx, a), Catch::Contains("balancer: shares"));
}
