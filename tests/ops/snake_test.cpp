#include "nacre/ops/snake.h"

#include "harness.h"
#include "reference/snake.h"

using namespace nacre;
using namespace nacre::test;
using reference::SnakeParameters;
using reference::SnakeSlopes;

namespace {

const Shape shapes[] = {
    {1, 1, 1, 1},      // the smallest
    {1, 5, 1, 1},      // mono, shorter than a vector
    {1, 511, 1, 1},    // mono, one short of the rows that are merged into one
    {1, 513, 1, 1},    // one more
    {2, 37, 1, 24},    // odd rows and channels: nothing is full
    {3, 1, 1, 1536},   // one frame of three tiles: the streaming case
    {1, 4099, 1, 7},   // long, odd, narrower than a vector
    {1, 40, 1, 511},   // one row nearly fills a tile
    {1, 40, 1, 512},   // one row is a tile
    {1, 40, 1, 513},   // a second tile of one channel
    {1, 2, 1, 4096},   // short and wide
    {5, 7, 11, 13},    // width in use, all odd
    {2, 3, 257, 2},    // width: frequency bins
    {1, 8192, 1, 4},   // exactly one part of the sums
    {1, 8193, 1, 4},   // a second part of one row
    {2, 2048, 1, 32},  // several whole parts
    {4, 250, 1, 96},   // a codec's inner activation, five rows per step
    {1, 700, 1, 192},  // two rows per step
    {16, 1, 1, 64},    // a batch of single frames
    {1, 99, 1, 255},   // odd channels, two rows merged, a tail of one
};

template <class T>
void snake_case(Device device, Shape s, bool with_beta, bool log_scale) {
  Case c("snake", device, s);
  const int64_t channels = s.channels;
  const Shape per_channel{.channels = channels};
  const double low = log_scale ? -2 : 0.05, high = log_scale ? 1.4 : 4;
  auto &x = c.random<T>("x", s, -8, 8), &dy = c.random<T>("dy", s, -1, 1);
  auto &alpha = c.random("alpha", per_channel, low, high), &beta = c.random("beta", per_channel, low, high);
  auto &y = c.output<T>("y", s), &dx = c.output<T>("dx", s), &dx_sum = c.random<T>("dx +=", s, -1, 1);
  auto& dx_only = c.output<T>("dx only", s);
  auto &dalpha = c.random("dalpha", per_channel, -1, 1), &dbeta = c.random("dbeta", per_channel, -1, 1);
  auto &x_in_place = c.values<T>("x in place", s, x.before()),
       &dy_in_place = c.values<T>("dy in place", s, dy.before());
  const View<const float> no_beta, b = with_beta ? View<const float>(beta) : no_beta;
  const View<float> db = with_beta ? View<float>(dbeta) : View<float>();
  const View<float> scratch = c.scratch(snake_backward_scratch(c.ctx, s, with_beta));
  snake_forward<T>(c.ctx, {.x = x, .alpha = alpha, .beta = b, .y = y, .log_scale = log_scale});
  snake_forward<T>(c.ctx, {.x = x_in_place, .alpha = alpha, .beta = b, .y = x_in_place, .log_scale = log_scale});
  SnakeBackward<T> back{.x = x, .alpha = alpha, .beta = b, .dy = dy, .log_scale = log_scale};
  back.dx = dx_only;  // the parameters' gradients are not requested
  snake_backward<T>(c.ctx, back);
  back.dalpha = dalpha, back.dbeta = db, back.scratch = scratch;
  back.dx = dx;
  snake_backward<T>(c.ctx, back);
  back.dx = dx_sum, back.add_dx = true;  // the parameters' gradients are accumulated a second time
  snake_backward<T>(c.ctx, back);
  back.dx = {};  // a third time, without dx
  snake_backward<T>(c.ctx, back);
  back = {.x = x, .alpha = alpha, .beta = b, .dy = dy_in_place, .dx = dy_in_place, .log_scale = log_scale};
  snake_backward<T>(c.ctx, back);

  const auto parameters = [&](int64_t i) {
    return SnakeParameters{alpha[i % channels], beta[i % channels], with_beta, log_scale};
  };
  // With u = ulp: the phase a x is rounded once. a itself is off by up to 3 u if it is an exponential (2 u for most of
  // its range). sin^2 is off by 4 u, and 1 / (b + eps) by 2 u, or 4 u in log scale. There are two more roundings.
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const auto ratio = [&](int64_t i) { return parameters(i).a() / parameters(i).b(); };
  const auto phase = [&](int64_t i) { return std::fabs(parameters(i).a() * x[i]); };
  const auto value = [&](int64_t i) { return reference::snake(x[i], parameters(i)); };
  const auto value_allowed = [&](int64_t i) {
    return 12 * ulp * (std::fabs(x[i]) * (1 + ratio(i)) + 1 / parameters(i).b()) + storage * std::fabs(value(i));
  };
  // sin(2 a x) doubles the phase's error and the 2 u of sine and cosine.
  const auto slopes = [&](int64_t i) { return reference::snake_slopes(x[i], parameters(i)); };
  const auto slope = [&](int64_t i) { return dy[i] * slopes(i).x; };
  const auto slope_allowed = [&](int64_t i) {
    return std::fabs(dy[i]) * ulp * (16 * (1 + ratio(i)) + 8 * phase(i) * ratio(i)) + storage * std::fabs(slope(i));
  };
  const auto sum = [&](int64_t i) { return dx_sum[i] + slope(i); };
  const auto sum_allowed = [&](int64_t i) { return slope_allowed(i) + (ulp + storage) * std::fabs(sum(i)); };
  c.expect<T>(y, value, value_allowed);
  c.expect<T>(dx, slope, slope_allowed);
  c.expect<T>(dx_sum, sum, sum_allowed);
  c.expect_equal<T>(dx_only, dx.read());
  c.expect_equal<T>(x_in_place, y.read());
  c.expect_equal<T>(dy_in_place, dx.read());

  // A block adds at most 64 terms in float, each off by 16 u and its phase. Three calls make three final roundings.
  std::vector<double> by_alpha(alpha.before().size()), by_beta(by_alpha), alpha_size(by_alpha), beta_size(by_alpha);
  for (int64_t i = 0; i < s.elements(); ++i) {
    const size_t k = static_cast<size_t>(i % channels);
    const SnakeParameters p = parameters(i);
    const SnakeSlopes d = slopes(i);
    by_alpha[k] += 3 * dy[i] * d.alpha, by_beta[k] += 3 * dy[i] * d.beta;
    const double scale_a = log_scale ? p.a() : 1, scale_b = log_scale ? p.b() : 1;
    const double error = 3 * std::fabs(dy[i]) * ulp * (64 + 16 + 8 * phase(i)), size_b = error / (p.b() * p.b());
    alpha_size[k] += scale_a * (error * std::fabs(x[i]) / p.b() + (with_beta ? 0 : size_b));
    beta_size[k] += scale_b * size_b;
  }
  const auto gradient = [&](const Buffer<float>& before, const std::vector<double>& change) {
    return [&](int64_t i) { return before[i] + change[static_cast<size_t>(i)]; };
  };
  const auto gradient_allowed = [&](const Buffer<float>& before, const std::vector<double>& change,
                                    const std::vector<double>& size) {
    return [&](int64_t i) {
      const size_t k = static_cast<size_t>(i);
      return size[k] + 6 * ulp * (std::fabs(before[i]) + std::fabs(change[k]));
    };
  };
  const auto dalpha_allowed = gradient_allowed(dalpha, by_alpha, alpha_size);
  c.expect<float>(dalpha, gradient(dalpha, by_alpha), dalpha_allowed);
  if (with_beta)
    c.expect<float>(dbeta, gradient(dbeta, by_beta), gradient_allowed(dbeta, by_beta, beta_size));
  else
    c.expect_equal<float>(dbeta, dbeta.before());

  const auto notices = [](const auto& buffer, const auto& expected, const auto& allowance) {
    std::vector<double> planted;
    for (auto v : buffer.read()) planted.push_back(to_float(v));
    planted.back() += 10 * allowance(buffer.size() - 1);
    CHECK(worst_ratio(planted, expected, allowance) > 1);
  };
  notices(y, value, value_allowed);
  notices(dx, slope, slope_allowed);
  notices(dalpha, gradient(dalpha, by_alpha), dalpha_allowed);
}

}  // namespace

TEST_CASE("the reference of snake agrees with finite differences", "[snake]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(0, 1);
  for (int i = 0; i < 200; ++i) {
    const double x = 16 * draw(rng) - 8, h = 1e-6;
    const SnakeParameters p{0.3 + draw(rng), 0.3 + draw(rng), i % 2 == 0, i % 4 < 2};
    const SnakeSlopes slopes = reference::snake_slopes(x, p);
    const auto difference = [&](auto f) { return (f(h) - f(-h)) / (2 * h); };
    const auto with = [&](double da, double db) {
      return SnakeParameters{p.alpha + da, p.beta + db, p.with_beta, p.log_scale};
    };
    CHECK(std::fabs(difference([&](double d) { return reference::snake(x + d, p); }) - slopes.x) < 1e-7);
    CHECK(std::fabs(difference([&](double d) { return reference::snake(x, with(d, 0)); }) - slopes.alpha) < 1e-6);
    CHECK(std::fabs(difference([&](double d) { return reference::snake(x, with(0, d)); }) - slopes.beta) < 1e-6);
  }
}

TEST_CASE("snake", "[snake][a100][rtx3090][rtx4090]") {
  for (Device device : devices())
    for (Shape s : shapes) {
      snake_case<float>(device, s, false, false);
      snake_case<float>(device, s, true, true);
      snake_case<bf16>(device, s, true, false);
    }
  // The remaining ones of the four forms.
  snake_case<float>(devices().front(), {2, 37, 1, 24}, true, false);
  snake_case<float>(devices().front(), {2, 37, 1, 24}, false, true);
  snake_case<bf16>(devices().front(), {2, 37, 1, 24}, false, false);
}

TEST_CASE("snake at its limits", "[snake]") {
  for (Device device : devices()) {
    Case c("snake limits", device, {});
    const Shape s{.time = 8, .channels = 1}, one{.channels = 1};
    auto& x = c.values("x", s, {1e5f, -3e6f, 1e12f, -3e38f, INFINITY, -INFINITY, NAN, 0});
    auto &alpha = c.values("alpha", one, {1.0f}), &y = c.output("y", s);
    snake_forward(c.ctx, {.x = x, .alpha = alpha, .y = y});
    const std::vector<float> found = y.read();
    for (size_t i = 0; i < 4; ++i) {
      const float before = x.before()[i];
      CHECK(found[i] >= before);
      CHECK(found[i] <= before + 1);
    }
    for (size_t i = 4; i < 7; ++i) CHECK(std::isnan(found[i]));
    CHECK(found[7] == 0);

    // With a frequency of zero, Snake is the identity and has finite gradients.
    const Shape three{.time = 3, .channels = 1};
    auto &in = c.values("in", three, {1.0f, -2.0f, 0.5f}), &dy = c.values("dy", three, {1.0f, 2.0f, 3.0f});
    auto &zero = c.zeros("zero", one), &out = c.output("out", three), &dx = c.output("dx", three);
    auto& dalpha = c.zeros("dalpha", one);
    const View<float> scratch = c.scratch(snake_backward_scratch(c.ctx, three, false));
    snake_forward(c.ctx, {.x = in, .alpha = zero, .y = out});
    snake_backward(c.ctx, {.x = in, .alpha = zero, .dy = dy, .dx = dx, .dalpha = dalpha, .scratch = scratch});
    c.expect_equal(out, in.before());
    c.expect_equal(dx, dy.before());
    CHECK(std::isfinite(dalpha.read()[0]));
  }
}

TEST_CASE("snake does not allocate and does not depend on threads", "[snake]") {
  for (Device device : devices())
    for (Shape s : {Shape{2, 9001, 1, 7}, Shape{1, 300, 1, 600}}) {
      std::vector<float> first_y, first_dx, first_dalpha;
      for (int threads : {1, 2, 3}) {
        Case c("snake threads", device, s, threads);
        const Shape per_channel{.channels = s.channels};
        auto &x = c.random("x", s, -8, 8), &dy = c.random("dy", s, -1, 1), &y = c.output("y", s);
        auto &dx = c.output("dx", s), &alpha = c.random("alpha", per_channel, 0.1, 3);
        auto& dalpha = c.zeros("dalpha", per_channel);
        const View<float> scratch = c.scratch(snake_backward_scratch(c.ctx, s, false));
        const auto run = [&] {
          snake_forward(c.ctx, {.x = x, .alpha = alpha, .y = y});
          snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = dy, .dx = dx, .dalpha = dalpha, .scratch = scratch});
        };
        run();  // starts the thread pool
        AllocationCounter counter;
        run();
        CHECK(counter.count() == 0);
        if (threads == 1) first_y = y.read(), first_dx = dx.read(), first_dalpha = dalpha.read();
        c.expect_equal(y, first_y);
        c.expect_equal(dx, first_dx);
        c.expect_equal(dalpha, first_dalpha);
      }
    }
}

TEST_CASE("snake names what does not fit", "[snake]") {
  Case c("snake shapes", devices().front(), {});
  const Shape s{2, 3, 1, 4};
  auto &x = c.random("x", s, -1, 1), &y = c.output("y", s), &other = c.output("other", {2, 3, 1, 5});
  auto &alpha = c.random("alpha", {.channels = 4}, 1, 2), &wrong = c.random("wrong", {.channels = 5}, 1, 2);
  CHECK_THROWS_WITH(snake_forward(c.ctx, {.x = x, .alpha = wrong, .y = y}),
                    Catch::Contains("snake_forward: alpha is [1, 1, 1, 5], expected [1, 1, 1, 4]"));
  CHECK_THROWS_WITH(snake_forward(c.ctx, {.x = x, .alpha = alpha, .beta = wrong, .y = y}),
                    Catch::Contains("snake_forward: beta"));
  CHECK_THROWS_WITH(snake_forward(c.ctx, {.x = x, .alpha = alpha, .y = other}), Catch::Contains("snake_forward: y"));
  CHECK_THROWS_WITH(snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = other}),
                    Catch::Contains("snake_backward: dy"));
  CHECK_THROWS_WITH(snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = x, .dx = other}),
                    Catch::Contains("snake_backward: dx"));
  CHECK_THROWS_WITH(snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = x, .dalpha = wrong}),
                    Catch::Contains("snake_backward: dalpha"));
  CHECK_THROWS_WITH(snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = x, .dalpha = alpha}),
                    Catch::Contains("snake_backward: scratch"));
  CHECK_THROWS_WITH(snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = x, .dbeta = alpha}),
                    Catch::Contains("dbeta is given without beta"));
}
