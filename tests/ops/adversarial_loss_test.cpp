#include "nacre/ops/adversarial_loss.h"

#include <cmath>

#include "harness.h"
#include "reference/adversarial_loss.h"
#include "reference/elementwise.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr AdversarialKind kinds[] = {AdversarialKind::least_squares, AdversarialKind::hinge,
                                     AdversarialKind::hinge_linear};

template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
  std::vector<double> r;
  for (T v : values) r.push_back(static_cast<double>(to_float(v)));
  return r;
}

/// The loss of a discriminator (two halves) or of a generator (one).
template <class T>
void run(Context& ctx, int halves, View<const T> logits, View<float> loss, View<float> right, View<T> gradient,
         View<float> scratch, AdversarialKind kind, float weight, bool add_loss = false) {
  if (halves == 2)
    discriminator_loss<T>(ctx, {.logits = logits,
                                .loss = loss,
                                .right = right,
                                .gradient = gradient,
                                .scratch = scratch,
                                .kind = kind,
                                .weight = weight,
                                .add_loss = add_loss});
  else
    generator_loss<T>(ctx, {.logits = logits,
                            .loss = loss,
                            .gradient = gradient,
                            .scratch = scratch,
                            .kind = kind,
                            .weight = weight,
                            .add_loss = add_loss});
}

/// `s` is the shape of one half.
template <class T>
void adversarial_case(Device device, Shape s, int halves, AdversarialKind kind) {
  s.batch *= halves;
  Case c("adversarial_loss", device, s);
  auto &logits = c.random<T>("logits", s, -2, 3), &in_place = c.values<T>("in place", s, logits.before());
  auto &loss = c.output("loss", {}), &alone = c.output("loss alone", {}), &third = c.output("loss in place", {});
  auto& right = c.output("right", {.channels = 2});
  auto& gradient = c.output<T>("gradient", s);
  const View<float> scratch = c.scratch(adversarial_loss_scratch(c.ctx, s));
  const float weight = 1.7f;
  run<T>(c.ctx, halves, logits, loss, right, gradient, scratch, kind, weight);
  run<T>(c.ctx, halves, logits, alone, {}, {}, scratch, kind, weight);
  run<T>(c.ctx, halves, in_place, third, {}, in_place, scratch, kind, weight);
  auto& twice = c.output("loss twice", {});
  for (const bool add : {false, true}) run<T>(c.ctx, halves, logits, twice, {}, {}, scratch, kind, weight, add);

  const auto exact = reference::adversarial_loss(doubles(logits.before()), static_cast<size_t>(halves), kind);
  // The difference is rounded once, which the square doubles; the sum is in double and is rounded once.
  const auto expected_loss = [&](int64_t) { return exact.loss; };
  const auto loss_allowed = [&](int64_t) { return 4 * ulp * exact.size + 1e-30; };
  // Roundings of the difference, of weight / count and of their product; then that of storage, relative to a value that
  // is at most 1.01 times the exact one.
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const auto slope = [&](int64_t i) { return static_cast<double>(weight) * exact.gradient[static_cast<size_t>(i)]; };
  const auto slope_allowed = [&](int64_t i) { return (4 * ulp + storage) * std::fabs(slope(i)); };
  c.expect<float>(loss, expected_loss, loss_allowed);
  c.expect<T>(gradient, slope, slope_allowed);
  c.expect_equal<float>(alone, loss.read());
  c.expect_equal<float>(third, loss.read());
  c.expect_equal<float>(twice, {2 * loss.read()[0]});
  c.expect_equal<T>(in_place, gradient.read());
  if (halves == 2)
    c.expect_equal<float>(right, {static_cast<float>(exact.right[0]), static_cast<float>(exact.right[1])});
  CHECK(worst_ratio({static_cast<double>(loss.read()[0]) + 10 * loss_allowed(0)}, expected_loss, loss_allowed) > 1);
  std::vector<double> planted = doubles(gradient.read());
  planted.back() += 10 * slope_allowed(s.elements() - 1) + 1e-30;
  CHECK(worst_ratio(planted, slope, slope_allowed) > 1);
}

}  // namespace

TEST_CASE("the reference of adversarial_loss agrees with finite differences", "[adversarial_loss]") {
  for (AdversarialKind kind : kinds)
    for (size_t halves : {1u, 2u}) {
      const std::vector<double> logits{0.3, -1.7, 0.9, 1.1, 0.4, 1.8, -0.8, -1.3};
      const auto exact = reference::adversarial_loss(logits, halves, kind);
      for (size_t i = 0; i < logits.size(); ++i) {
        const double h = 1e-6;
        auto up = logits, down = logits;
        up[i] += h, down[i] -= h;
        const double difference = (reference::adversarial_loss(up, halves, kind).loss -
                                   reference::adversarial_loss(down, halves, kind).loss) /
                                  (2 * h);
        CHECK(std::fabs(difference - exact.gradient[i]) < 1e-9);
      }
    }
}

TEST_CASE("adversarial_loss", "[adversarial_loss]") {
  for (Device device : devices())
    for (int halves : {1, 2})
      for (AdversarialKind kind : kinds) {
        for (Shape s : elementwise_shapes) {
          adversarial_case<float>(device, s, halves, kind);
          adversarial_case<bf16>(device, s, halves, kind);
        }
        for (int64_t time : {4095, 4096, 4097, 32767, 32769, 70001}) {  // around parts of the sums
          adversarial_case<float>(device, {1, time, 1, 1}, halves, kind);
          adversarial_case<bf16>(device, {1, time, 1, 1}, halves, kind);
        }
      }
}

TEST_CASE("adversarial_loss at its limits", "[adversarial_loss]") {
  for (Device device : devices()) {
    const Shape s{2, 6, 1, 1};
    Case c("adversarial_loss limits", device, s);
    const float below = std::nextafter(1.0f, 0.0f), above = std::nextafter(1.0f, 2.0f);
    const float quiet = std::numeric_limits<float>::quiet_NaN();
    // Real and fake logits at the kinks of the hinge, at its threshold and at that of least squares.
    auto& logits = c.values("logits", s, {1, below, above, 0, -0.0f, 0.5f, -1, -below, -above, 0, 0.25f, quiet});
    auto &loss = c.output("loss", {}), &right = c.output("right", {.channels = 2}), &gradient = c.output("gradient", s);
    DiscriminatorLoss<float> a{.logits = logits,
                               .loss = loss,
                               .right = right,
                               .gradient = gradient,
                               .scratch = c.scratch(adversarial_loss_scratch(c.ctx, s)),
                               .kind = AdversarialKind::hinge,
                               .weight = 12};
    discriminator_loss(c.ctx, a);
    const std::vector<float> kinks{0, -2, 0, -2, -2, -2, 0, 2, 0, 2, 2};
    const std::vector<float> found = gradient.read();
    for (size_t i = 0; i < kinks.size(); ++i) CHECK(found[i] == kinks[i]);
    CHECK(std::isnan(found[11]));
    CHECK(std::isnan(loss.read()[0]));
    c.expect_equal<float>(right, {static_cast<float>(4 / 6.0), static_cast<float>(4 / 6.0)});
    a.kind = AdversarialKind::hinge_linear;  // the discriminator's loss is that of the hinge
    discriminator_loss(c.ctx, a);
    for (size_t i = 0; i < kinks.size(); ++i) CHECK(gradient.read()[i] == kinks[i]);
    c.expect_equal<float>(right, {static_cast<float>(4 / 6.0), static_cast<float>(4 / 6.0)});
    a.kind = AdversarialKind::least_squares;
    discriminator_loss(c.ctx, a);
    CHECK(gradient.read()[0] == 0);
    CHECK(gradient.read()[10] == 1);
    CHECK(std::isnan(gradient.read()[11]));
    CHECK(std::isnan(loss.read()[0]));
    c.expect_equal<float>(right, {static_cast<float>(3 / 6.0), static_cast<float>(5 / 6.0)});

    // A generator's logit that is NaN or infinite.
    auto& extreme = c.values("extreme", {.channels = 3}, {INFINITY, 1e10f, quiet});
    auto& slopes = c.output("slopes", {.channels = 3});
    GeneratorLoss<float> g{.logits = extreme,
                           .loss = loss,
                           .gradient = slopes,
                           .scratch = c.scratch(adversarial_loss_scratch(c.ctx, extreme.shape())),
                           .kind = AdversarialKind::hinge};
    generator_loss(c.ctx, g);
    CHECK(slopes.read()[0] == 0);
    CHECK(slopes.read()[1] == 0);
    CHECK(std::isnan(slopes.read()[2]));
    CHECK(std::isnan(loss.read()[0]));
    extreme.write({INFINITY, 1e10f, -INFINITY});
    generator_loss(c.ctx, g);
    CHECK(slopes.read()[2] < 0);
    CHECK(loss.read()[0] == INFINITY);
    // A linear generator has the same slope everywhere.
    g.kind = AdversarialKind::hinge_linear, g.weight = 6;
    extreme.write({3, 1, -2});
    generator_loss(c.ctx, g);
    CHECK(loss.read()[0] == Approx(-2 / 3.0));
    c.expect_equal<float>(slopes, {-2, -2, -2});
    extreme.write({1e10f, quiet, -INFINITY});
    generator_loss(c.ctx, g);
    CHECK(slopes.read()[0] == -2);
    CHECK(std::isnan(slopes.read()[1]));
    CHECK(slopes.read()[2] == -2);
    CHECK(std::isnan(loss.read()[0]));

    const Shape none{0, 6, 1, 1};  // no items
    a.logits = View<const float>(nullptr, none), a.gradient = {};
    discriminator_loss(c.ctx, a);
    CHECK(loss.read()[0] == 0);
    c.expect_equal<float>(right, {0, 0});
  }
}

TEST_CASE("adversarial_loss does not allocate and does not depend on threads", "[adversarial_loss]") {
  for (Device device : devices())
    for (AdversarialKind kind : kinds) {
      const Shape s{2, 70001, 1, 1};
      std::vector<float> first_loss, first_gradient, first_right;
      for (int threads : {1, 2, 3}) {
        Case c("adversarial_loss threads", device, s, threads);
        auto &logits = c.random("logits", s, -2, 2), &loss = c.output("loss", {}), &gradient = c.output("gradient", s);
        auto& right = c.output("right", {.channels = 2});
        const DiscriminatorLoss<float> a{.logits = logits,
                                         .loss = loss,
                                         .right = right,
                                         .gradient = gradient,
                                         .scratch = c.scratch(adversarial_loss_scratch(c.ctx, s)),
                                         .kind = kind};
        discriminator_loss(c.ctx, a);  // starts the thread pool
        AllocationCounter counter;
        discriminator_loss(c.ctx, a);
        CHECK(counter.count() == 0);
        if (threads == 1) first_loss = loss.read(), first_gradient = gradient.read(), first_right = right.read();
        c.expect_equal(loss, first_loss);
        c.expect_equal(gradient, first_gradient);
        c.expect_equal(right, first_right);
      }
    }
}

TEST_CASE("adversarial_loss: the same bits at any address", "[adversarial_loss]") {
  for (Device device : devices())
    for (int64_t time : {4, 7, 4096, 4100, 9000}) {
      const Shape s{2, time, 1, 1};
      Case c("adversarial_loss addresses", device, s);
      auto& logits = c.random("logits", s, -2, 2);
      std::vector<float> later{0};
      later.insert(later.end(), logits.before().begin(), logits.before().end());
      auto& moved = c.values("moved", {.channels = s.elements() + 1}, later);
      auto &loss = c.output("loss", {}), &other_loss = c.output("other loss", {});
      auto &gradient = c.output("gradient", s), &other = c.output("other gradient", s);
      DiscriminatorLoss<float> a{.logits = logits,
                                 .loss = loss,
                                 .gradient = gradient,
                                 .scratch = c.scratch(adversarial_loss_scratch(c.ctx, s)),
                                 .kind = AdversarialKind::least_squares};
      discriminator_loss(c.ctx, a);
      a.logits = View<const float>(moved.data() + 1, s), a.loss = other_loss, a.gradient = other;
      discriminator_loss(c.ctx, a);
      c.expect_equal(other_loss, loss.read());
      c.expect_equal(other, gradient.read());
    }
}

TEST_CASE("adversarial_loss names what does not fit", "[adversarial_loss]") {
  Case c("adversarial_loss shapes", devices().front(), {});
  const Shape s{2, 20, 1, 1};
  auto &x = c.random("x", s, -1, 1), &odd = c.random("odd", {3, 20, 1, 1}, -1, 1), &loss = c.output("loss", {});
  const View<float> scratch = c.scratch(adversarial_loss_scratch(c.ctx, odd.shape()));
  DiscriminatorLoss<float> a{.logits = odd, .loss = loss, .scratch = scratch};
  CHECK_THROWS_WITH(discriminator_loss(c.ctx, a), Catch::Contains("discriminator_loss: logits have 3 items"));
  try {
    discriminator_loss(c.ctx, a);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
  }
  a.logits = x, a.right = View<float>(odd);
  CHECK_THROWS_WITH(discriminator_loss(c.ctx, a), Catch::Contains("discriminator_loss: right"));
  a.right = {}, a.gradient = odd;
  CHECK_THROWS_WITH(discriminator_loss(c.ctx, a), Catch::Contains("discriminator_loss: gradient is [3, 20, 1, 1]"));
  a.gradient = {}, a.scratch = {};
  CHECK_THROWS_WITH(discriminator_loss(c.ctx, a), Catch::Contains("discriminator_loss: scratch"));
  a.scratch = scratch, a.loss = {};
  CHECK_THROWS_WITH(discriminator_loss(c.ctx, a), Catch::Contains("discriminator_loss: loss"));
  GeneratorLoss<float> g{.logits = odd, .loss = loss, .gradient = x, .scratch = scratch};
  CHECK_THROWS_WITH(generator_loss(c.ctx, g), Catch::Contains("generator_loss: gradient is [2, 20, 1, 1]"));
  g.gradient = {}, g.scratch = {};
  CHECK_THROWS_WITH(generator_loss(c.ctx, g), Catch::Contains("generator_loss: scratch"));
  g.scratch = scratch, g.loss = {};
  CHECK_THROWS_WITH(generator_loss(c.ctx, g), Catch::Contains("generator_loss: loss"));
  g.loss = loss, g.logits = View<const float>(nullptr, s);
  CHECK_THROWS_WITH(generator_loss(c.ctx, g), Catch::Contains("generator_loss: logits is required"));
}
