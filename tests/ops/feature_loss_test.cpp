#include "nacre/ops/feature_loss.h"

#include <cmath>

#include "harness.h"
#include "reference/elementwise.h"
#include "reference/feature_loss.h"

using namespace nacre;
using namespace nacre::test;

namespace {

template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
  std::vector<double> r;
  for (T v : values) r.push_back(static_cast<double>(to_float(v)));
  return r;
}
int64_t elements(const std::vector<Shape>& shapes) {
  int64_t n = 0;
  for (Shape s : shapes) n += s.elements();
  return n;
}

/// Every third pair has no gradient.
template <class T>
void feature_case(Device device, const std::vector<Shape>& shapes, bool relative) {
  Case c("feature_loss", device, shapes.front());
  const int count = static_cast<int>(shapes.size());
  auto &loss = c.output("loss", {}), &alone = c.output("loss alone", {}), &third = c.output("loss in place", {});
  FeatureLoss<T> a{.count = count,
                   .loss = loss,
                   .scratch = c.scratch(feature_loss_scratch(c.ctx, elements(shapes), count, relative)),
                   .weight = 1.7f,
                   .relative = relative};
  FeatureLoss<T> plain = a, same = a;  // without gradients; with gradients in place of the fake activations
  std::vector<Buffer<T>*> gradients, in_place;
  std::vector<std::vector<double>> real, fake;
  for (size_t i = 0; i < shapes.size(); ++i) {
    auto &r = c.random<T>("real", shapes[i], -1, 1), &f = c.random<T>("fake", shapes[i], -1, 1);
    gradients.push_back(i % 3 == 2 ? nullptr : &c.output<T>("gradient", shapes[i]));
    in_place.push_back(&c.values<T>("in place", shapes[i], f.before()));
    a.pairs[i] = {.real = r, .fake = f, .gradient = gradients[i] != nullptr ? View<T>(*gradients[i]) : View<T>()};
    plain.pairs[i] = {.real = r, .fake = f};
    same.pairs[i] = {.real = r, .fake = *in_place[i], .gradient = *in_place[i]};
    real.push_back(doubles(r.before())), fake.push_back(doubles(f.before()));
  }
  feature_loss<T>(c.ctx, a);
  plain.loss = alone;
  feature_loss<T>(c.ctx, plain);
  auto& twice = c.output("loss twice", {});
  plain.loss = twice;
  feature_loss<T>(c.ctx, plain);
  plain.add_loss = true;
  feature_loss<T>(c.ctx, plain);
  same.loss = third;
  feature_loss<T>(c.ctx, same);

  const auto exact = reference::feature_loss(real, fake, relative);
  // The difference is rounded once, and the loss once; sums, means and divisors are in double.
  const auto expected_loss = [&](int64_t) { return exact.loss; };
  const auto loss_allowed = [&](int64_t) { return 4 * ulp * exact.loss + 1e-30; };
  c.expect<float>(loss, expected_loss, loss_allowed);
  c.expect_equal<float>(alone, loss.read());
  c.expect_equal<float>(third, loss.read());
  c.expect_equal<float>(twice, {2 * loss.read()[0]});
  CHECK(worst_ratio({static_cast<double>(loss.read()[0]) + 10 * loss_allowed(0)}, expected_loss, loss_allowed) > 1);
  for (size_t i = 0; i < shapes.size(); ++i) {
    // weight / elements / divisor is rounded once; then comes the rounding of storage, relative to a value that is at
    // most 1.01 times the exact one.
    const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
    const auto slope = [&](int64_t k) {
      return static_cast<double>(a.weight) * exact.gradients[i][static_cast<size_t>(k)];
    };
    const auto slope_allowed = [&](int64_t k) { return (2 * ulp + storage) * std::fabs(slope(k)); };
    c.expect<T>(*in_place[i], slope, slope_allowed);
    if (gradients[i] != nullptr) c.expect_equal<T>(*gradients[i], in_place[i]->read());
    if (shapes[i].elements() == 0) continue;
    std::vector<double> planted = doubles(in_place[i]->read());
    planted.back() += 10 * slope_allowed(shapes[i].elements() - 1) + 1e-30;
    CHECK(worst_ratio(planted, slope, slope_allowed) > 1);
  }
}
template <class T>
void feature_cases(Device device, bool relative) {
  for (Shape s : elementwise_shapes) feature_case<T>(device, {s}, relative);
  for (int64_t time : {4095, 4096, 4097, 32767, 32768, 32769, 70001})  // around parts of the sums
    feature_case<T>(device, {{1, time, 1, 1}}, relative);
  const std::vector<Shape> all(std::begin(elementwise_shapes), std::end(elementwise_shapes));
  feature_case<T>(device, all, relative);
  // As many as fit, each around one part of CUDA's sums; and pairs without elements, also first and last.
  std::vector<Shape> most;
  for (int i = 0; i < feature_loss_max; ++i) most.push_back({1, 4080 + i, 1, 1});
  feature_case<T>(device, most, relative);
  feature_case<T>(device, {{0, 3, 1, 1}, {1, 5000, 1, 2}, {2, 0, 1, 1}, {1, 1, 1, 0}, {1, 33, 1, 1}, {1, 0, 1, 1}},
                  relative);
  feature_case<T>(device, {{1, 0, 1, 1}}, relative);
  feature_case<T>(device, {{2, 101, 1, 32}, {2, 33, 1, 128}, {2, 11, 1, 512}, {2, 3, 1, 1024}, {2, 3, 1, 1024}},
                  relative);
}

}  // namespace

TEST_CASE("the reference of feature_loss agrees with finite differences", "[feature_loss]") {
  const std::vector<std::vector<double>> real{{0.3, -0.2, 0.9}, {0.1}, {0.4, -0.8}};
  const std::vector<std::vector<double>> fake{{0.1, 0.2, -0.5}, {0.6}, {0.2, 0.7}};
  for (bool relative : {false, true}) {
    const auto exact = reference::feature_loss(real, fake, relative);
    for (size_t i = 0; i < fake.size(); ++i)
      for (size_t k = 0; k < fake[i].size(); ++k) {
        const double h = 1e-6;
        auto up = fake, down = fake;
        up[i][k] += h, down[i][k] -= h;
        const double difference =
            (reference::feature_loss(real, up, relative).loss - reference::feature_loss(real, down, relative).loss) /
            (2 * h);
        CHECK(std::fabs(difference - exact.gradients[i][k]) < 1e-8);
      }
  }
  // By hand: the sum of |fake - real| over the sum of |real|, for each pair.
  CHECK(reference::feature_loss(real, fake, true).loss == Approx(2.0 / 1.4 + 0.5 / 0.1 + 1.7 / 1.2));
}

TEST_CASE("feature_loss", "[feature_loss]") {
  for (Device device : devices())
    for (bool relative : {false, true}) {
      feature_cases<float>(device, relative);
      feature_cases<bf16>(device, relative);
    }
}

TEST_CASE("feature_loss at its limits", "[feature_loss]") {
  for (Device device : devices()) {
    const Shape s{1, 8, 1, 1};
    Case c("feature_loss limits", device, s);
    const float quiet = std::numeric_limits<float>::quiet_NaN(), least = std::numeric_limits<float>::denorm_min();
    auto& real = c.values("real", s, {0, 1, 2, 0, -0.0f, 1, 2, 3});
    auto& fake = c.values("fake", s, {0, 1, 1, least, 0, 2, -2, 3});
    auto &loss = c.output("loss", {}), &gradient = c.output("gradient", s);
    FeatureLoss<float> a{
        .count = 1, .loss = loss, .scratch = c.scratch(feature_loss_scratch(c.ctx, 2 * s.elements(), 2)), .weight = 4};
    a.pairs[0] = {.real = real, .fake = fake, .gradient = gradient};
    feature_loss(c.ctx, a);
    const std::vector<float> signs{0, 0, -0.5f, 0.5f, 0, 0.5f, -0.5f, 0};
    for (size_t i = 0; i < signs.size(); ++i) CHECK(gradient.read()[i] == signs[i]);
    CHECK(loss.read()[0] == 0.75f);
    fake.write({0, 1, 1, quiet, 0, 2, -2, 3});
    feature_loss(c.ctx, a);
    CHECK(std::isnan(loss.read()[0]));
    for (size_t i = 0; i < signs.size(); ++i)
      CHECK((i == 3 ? std::isnan(gradient.read()[i]) : gradient.read()[i] == signs[i]));
    // The weight is that of the gradient alone; NaN in one pair leaves the gradient of another as it is.
    auto& good = c.values("good", s, {0, 1, 1, 5, 0, 2, -2, 3});
    auto& other = c.output("other", s);
    a.count = 2, a.weight = 8;
    a.pairs[1] = {.real = real, .fake = good, .gradient = other};
    feature_loss(c.ctx, a);
    c.expect_equal<float>(other, {0, 0, -1, 1, 0, 1, -1, 0});
    CHECK(std::isnan(loss.read()[0]));
  }
}

TEST_CASE("feature_loss: relative terms of silence, and of large and broken activations", "[feature_loss]") {
  for (Device device : devices()) {
    const Shape s{1, 4, 1, 1};
    Case c("feature_loss relative", device, s);
    const float quiet = std::numeric_limits<float>::quiet_NaN();
    auto &zero = c.zeros("zero", s), &one = c.values("one", s, {1, -1, 1, -1});
    auto &tiny = c.values("tiny", s, {1e-13f, 1e-13f, 1e-13f, 1e-13f}), &real = c.values("real", s, {4, -4, 4, -4});
    auto &loss = c.output("loss", {}), &gradient = c.output("gradient", s), &other = c.output("other", s);
    FeatureLoss<float> a{.count = 1,
                         .loss = loss,
                         .scratch = c.scratch(feature_loss_scratch(c.ctx, 2 * s.elements(), 2, true)),
                         .weight = 8,
                         .relative = true};
    a.pairs[0] = {.real = real, .fake = one, .gradient = gradient};
    feature_loss(c.ctx, a);
    CHECK(loss.read()[0] == 0.75f);
    c.expect_equal<float>(gradient, {-0.5f, 0.5f, -0.5f, 0.5f});
    a.pairs[0].real = zero;  // divided by 1e-12
    feature_loss(c.ctx, a);
    CHECK(loss.read()[0] == Approx(1e12f).epsilon(1e-6));
    CHECK(gradient.read()[0] == Approx(2e12f).epsilon(1e-6));
    CHECK(gradient.read()[1] == -gradient.read()[0]);
    a.pairs[0] = {.real = zero, .fake = zero, .gradient = gradient};
    feature_loss(c.ctx, a);
    CHECK(loss.read()[0] == 0);
    c.expect_equal<float>(gradient, {0, 0, 0, 0});
    a.pairs[0] = {.real = tiny, .fake = zero, .gradient = gradient};  // a mean below 1e-12
    feature_loss(c.ctx, a);
    CHECK(loss.read()[0] == Approx(0.1f).epsilon(1e-6));
    // NaN in one pair leaves the gradient of another as it is.
    real.write({4, quiet, 4, -4});
    auto& good = c.values("good", s, {2, 2, -2, -2});
    a.pairs[0] = {.real = real, .fake = one, .gradient = gradient};
    a.pairs[1] = {.real = good, .fake = one, .gradient = other};
    a.count = 2;
    feature_loss(c.ctx, a);
    CHECK(std::isnan(loss.read()[0]));
    for (float v : gradient.read()) CHECK(std::isnan(v));
    c.expect_equal<float>(other, {-1, -1, 1, 1});
  }
}

TEST_CASE("feature_loss does not allocate and does not depend on threads", "[feature_loss]") {
  for (Device device : devices()) {
    const Shape s{3, 30001, 1, 1}, small{2, 11, 1, 7};
    std::vector<float> first_loss, first_gradient;
    for (int threads : {-1, -2, -3, 1, 2, 3}) {  // negative: relative
      const bool relative = threads < 0;
      Case c("feature_loss threads", device, s, std::abs(threads));
      c.rng.seed(seed());
      auto &real = c.random("real", s, -1, 1), &fake = c.random("fake", s, -1, 1);
      auto &small_real = c.random("small real", small, -1, 1), &small_fake = c.random("small fake", small, -1, 1);
      auto &loss = c.output("loss", {}), &gradient = c.output("gradient", s);
      FeatureLoss<float> a{
          .count = 2,
          .loss = loss,
          .scratch = c.scratch(feature_loss_scratch(c.ctx, s.elements() + small.elements(), 2, relative)),
          .relative = relative};
      a.pairs[0] = {.real = real, .fake = fake, .gradient = gradient};
      a.pairs[1] = {.real = small_real, .fake = small_fake};
      feature_loss(c.ctx, a);  // starts the thread pool
      AllocationCounter counter;
      feature_loss(c.ctx, a);
      CHECK(counter.count() == 0);
      if (std::abs(threads) == 1) first_loss = loss.read(), first_gradient = gradient.read();
      c.expect_equal(loss, first_loss);
      c.expect_equal(gradient, first_gradient);
    }
  }
}

TEST_CASE("feature_loss: the same bits at any address, and gradients are those of the CPU", "[feature_loss]") {
  for (Device device : devices())
    for (int64_t time : {4, 7, 4095, 4096, 4100, 9000, -7, -4100, -9000}) {  // negative: relative
      const bool relative = time < 0;
      time = std::abs(time);
      const Shape s{1, time, 1, 1};
      Case c("feature_loss addresses", device, s);
      auto &real = c.random("real", s, -1, 1), &fake = c.random("fake", s, -1, 1);
      std::vector<float> later{0};
      later.insert(later.end(), real.before().begin(), real.before().end());
      auto& moved = c.values("moved", {.channels = time + 1}, later);
      auto &loss = c.output("loss", {}), &other_loss = c.output("other loss", {});
      auto &gradient = c.output("gradient", s), &other = c.output("other gradient", s);
      FeatureLoss<float> a{.count = 1,
                           .loss = loss,
                           .scratch = c.scratch(feature_loss_scratch(c.ctx, time, 1, relative)),
                           .weight = 3,
                           .relative = relative};
      a.pairs[0] = {.real = real, .fake = fake, .gradient = gradient};
      feature_loss(c.ctx, a);
      a.pairs[0] = {.real = View<const float>(moved.data() + 1, s), .fake = fake, .gradient = other};
      a.loss = other_loss;
      feature_loss(c.ctx, a);
      c.expect_equal(other_loss, loss.read());
      c.expect_equal(other, gradient.read());
      if (relative) continue;
      const float size = static_cast<float>(3 / static_cast<double>(time));
      std::vector<float> expected;
      for (int64_t i = 0; i < time; ++i) expected.push_back(fake[i] > real[i] ? size : fake[i] < real[i] ? -size : 0);
      c.expect_equal(gradient, expected);
    }
}

TEST_CASE("feature_loss names what does not fit", "[feature_loss]") {
  Case c("feature_loss shapes", devices().front(), {});
  const Shape s{2, 20, 1, 1};
  auto &x = c.random("x", s, -1, 1), &other = c.random("other", {2, 21, 1, 1}, -1, 1), &loss = c.output("loss", {});
  const View<float> scratch = c.scratch(feature_loss_scratch(c.ctx, s.elements(), 1));
  FeatureLoss<float> a{.loss = loss, .scratch = scratch};
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: count is 0, expected 1 to 32"));
  a.count = 33;
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: count is 33"));
  a.count = 1, a.pairs[0] = {.real = x, .fake = other};
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: fake is [2, 21, 1, 1]"));
  a.pairs[0] = {.real = View<const float>(nullptr, s), .fake = x};
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: real is required"));
  a.pairs[0] = {.real = x, .fake = x, .gradient = other};
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: gradient is [2, 21, 1, 1]"));
  a.pairs[0].gradient = {}, a.scratch = {};
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: scratch"));
  a.scratch = scratch, a.loss = {};
  CHECK_THROWS_WITH(feature_loss(c.ctx, a), Catch::Contains("feature_loss: loss"));
}
