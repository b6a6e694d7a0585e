#include "nacre/ops/average_pool.h"

#include "harness.h"
#include "reference/average_pool.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Trial {
  Shape x;
  AveragePoolGeometry g{};
};
constexpr AveragePoolGeometry melgan{}, counted{.padding = 2, .count_padding = true}, uncounted{.padding = 2};
const Trial trials[] = {
    {{.batch = 1, .time = 2}, melgan},                                   // one window, which has padding at both ends
    {{.batch = 1, .time = 3}, melgan},                                   // the last sample is in no window
    {{.batch = 2, .time = 4}, melgan},                                   // both windows at an edge
    {{.batch = 3, .time = 7}, melgan},                                   // one window inside
    {{.batch = 2, .time = 8}, melgan},                                   //
    {{.batch = 1, .time = 1}, counted},                                  // one sample, three positions of padding
    {{.batch = 1, .time = 1}, uncounted},                                //
    {{.batch = 2, .time = 9}, counted},                                  // odd
    {{.batch = 2, .time = 10}, uncounted},                               // even
    {{.batch = 2, .time = 2047}, melgan},                                // around a chunk of windows
    {{.batch = 2, .time = 2048}, melgan},                                //
    {{.batch = 2, .time = 2050}, melgan},                                // a second chunk of one window
    {{.batch = 3, .time = 16896}, melgan},                               // audio
    {{.batch = 3, .time = 16897}, counted},                              //
    {{.batch = 2, .time = 5}, {.taps = 1, .stride = 1, .padding = 0}},   // a copy
    {{.batch = 2, .time = 11}, {.taps = 1, .stride = 3, .padding = 0}},  // samples between the windows
    {{.batch = 2, .time = 30}, {.taps = 3, .stride = 7, .padding = 1}},  // the same, with padding
    {{.batch = 2, .time = 30}, {.taps = 3, .stride = 1, .padding = 1}},  // as long as x
    {{.batch = 1, .time = 40}, {.taps = 9, .stride = 2, .padding = 4}},  // a sample is in five windows
    {{.batch = 1, .time = 4}, {.taps = 12, .stride = 1, .padding = 6}},  // every window is longer than x
    {{.batch = 1, .time = 4}, {.taps = 12, .stride = 5, .padding = 4}},  // the only one as well
    {{.batch = 2, .time = 9, .width = 1, .channels = 3}, melgan},        // channels
    {{.batch = 2, .time = 9, .width = 5, .channels = 4}, counted},       // and columns
    {{.batch = 1, .time = 7, .width = 1, .channels = 1500}, melgan},     // a position is longer than a chunk
    {{.batch = 2, .time = 1030, .width = 1, .channels = 2}, {.padding = 0}},  // around a chunk, two channels
    {{.batch = 0, .time = 9}, melgan},                                        // nothing
};

nacre::reference::AveragePool reference_of(const Trial& t) {
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  return {size(t.x.batch),   size(t.x.time),   size(t.x.width * t.x.channels), size(t.g.taps), size(t.g.stride),
          size(t.g.padding), t.g.count_padding};
}

}  // namespace

TEST_CASE("average_pool", "[average_pool]") {
  for (const Device device : devices())
    for (const Trial& t : trials) {
      const nacre::reference::AveragePool op = reference_of(t);
      Case c("average_pool taps " + std::to_string(t.g.taps) + " stride " + std::to_string(t.g.stride) + " padding " +
                 std::to_string(t.g.padding),
             device, t.x);
      const Shape out = average_pool_output(t.x, t.g);
      REQUIRE(out == Shape{t.x.batch, static_cast<int64_t>(op.length()), t.x.width, t.x.channels});
      auto &x = c.random("x", t.x, -1, 1), &y = c.output("y", out), &dy = c.random("dy", out, -1, 1);
      auto &dx = c.output("dx", t.x), &sum = c.random("dx +=", t.x, -1, 1);
      average_pool_forward(c.ctx, {.x = x, .y = y, .geometry = t.g});
      average_pool_backward(c.ctx, {.dy = dy, .dx = dx, .geometry = t.g});
      average_pool_backward(c.ctx, {.dy = dy, .dx = sum, .geometry = t.g, .add_dx = true});
      const std::vector<double> xs(x.before().begin(), x.before().end()), dys(dy.before().begin(), dy.before().end());
      const std::vector<double> exact_y = op.forward(xs), exact_dx = op.adjoint(dys);
      const auto at = [](const std::vector<double>& v) {
        return [&v](int64_t i) { return v[static_cast<size_t>(i)]; };
      };
      // Values are at most 1. A sum of n of them has n - 1 additions, each rounded at a size of at most n; the division
      // by the count, at least n, leaves (n - 1) ulp, and rounds once at a size of at most 1.
      const auto taps = static_cast<double>(t.g.taps);
      const auto of_y = [=](int64_t) { return taps * ulp; };
      c.expect(y, at(exact_y), of_y);
      // At most taps / stride + 1 shares. Each is at most 1 and rounded once by its division, then each addition
      // rounds at a size of at most the number of shares, and one more with +=.
      const double shares = std::floor(taps / static_cast<double>(t.g.stride)) + 1;
      const auto of_dx = [=](int64_t) { return (shares + shares * shares) * ulp; };
      c.expect(dx, at(exact_dx), of_dx);
      c.expect(
          sum, [&](int64_t i) { return exact_dx[static_cast<size_t>(i)] + sum[i]; },
          [=](int64_t) { return (shares + shares * (shares + 1)) * ulp; });
      if (exact_y.empty()) continue;
      // An error of ten allowances would be noticed.
      std::vector<double> wrong = exact_y;
      wrong.back() += 10 * of_y(0);
      CHECK(worst_ratio(wrong, at(exact_y), of_y) > 9);
    }
}

TEST_CASE("average_pool: the reference's gradient is that of its values", "[average_pool]") {
  // The op is linear, so <F x, D> = <x, F* D>. Sums of a few hundred products of at most 1, in double.
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  for (const Trial& t : trials) {
    const nacre::reference::AveragePool op = reference_of(t);
    std::vector<double> x(static_cast<size_t>(t.x.elements())),
        dy(static_cast<size_t>(t.x.batch) * op.length() * op.inner);
    for (double& v : x) v = draw(rng);
    for (double& v : dy) v = draw(rng);
    const std::vector<double> y = op.forward(x), dx = op.adjoint(dy);
    double left = 0, right = 0;
    for (size_t i = 0; i < y.size(); ++i) left += y[i] * dy[i];
    for (size_t i = 0; i < x.size(); ++i) right += x[i] * dx[i];
    CHECK(std::fabs(left - right) <= 0x1p-46 * static_cast<double>(x.size() + y.size()));
  }
}

TEST_CASE("average_pool: windows at the edges", "[average_pool]") {
  for (const Device device : devices()) {
    Case c("average_pool by hand", device, {});
    auto& x = c.values<float>("x", {.batch = 1, .time = 6}, {1, 2, 3, 4, 5, 6});
    auto &y = c.output("y", average_pool_output(x.shape(), melgan)), &dx = c.output("dx", x.shape());
    average_pool_forward(c.ctx, {.x = x, .y = y, .geometry = melgan});
    c.expect_equal<float>(y, {2, 3.5f, 5});  // | 1 2 3   2 3 4 5   4 5 6 |
    auto& dy = c.values<float>("dy", y.shape(), {3, 4, 6});
    average_pool_backward(c.ctx, {.dy = dy, .dx = dx, .geometry = melgan});
    c.expect_equal<float>(dx, {1, 2, 2, 3, 3, 2});
    auto& z = c.output("z", average_pool_output(x.shape(), counted));
    average_pool_forward(c.ctx, {.x = x, .y = z, .geometry = counted});
    c.expect_equal<float>(z, {0.75f, 2.5f, 4.5f, 2.75f});  // | | 1 2   1 2 3 4   3 4 5 6   5 6 | |
  }
}

TEST_CASE("average_pool does not allocate and does not depend on threads", "[average_pool]") {
  for (const Device device : devices()) {
    const Shape s{.batch = 3, .time = 20011};
    std::vector<float> first_y, first_dx;
    for (const int threads : {1, 2, 3}) {
      Case c("average_pool threads", device, s, threads);
      const AveragePoolGeometry g{.taps = 5, .stride = 2, .padding = 2};  // a fifth is not exact
      const Shape out = average_pool_output(s, g);
      auto &x = c.random("x", s, -1, 1), &y = c.output("y", out), &dy = c.random("dy", out, -1, 1);
      auto& dx = c.random("dx", s, -1, 1);
      average_pool_forward(c.ctx, {.x = x, .y = y, .geometry = g});  // starts the thread pool
      AllocationCounter counter;
      average_pool_forward(c.ctx, {.x = x, .y = y, .geometry = g});
      average_pool_backward(c.ctx, {.dy = dy, .dx = dx, .geometry = g, .add_dx = true});
      CHECK(counter.count() == 0);
      if (threads == 1) first_y = y.read(), first_dx = dx.read();
      c.expect_equal(y, first_y);
      c.expect_equal(dx, first_dx);
    }
  }
}

TEST_CASE("average_pool names what does not fit", "[average_pool]") {
  using Catch::Contains;
  Case c("average_pool shapes", devices().front(), {});
  const Shape s{.batch = 2, .time = 6};
  auto &x = c.zeros("x", s), &y = c.zeros("y", average_pool_output(s, melgan));
  for (const AveragePoolGeometry g : {AveragePoolGeometry{.taps = 0, .padding = 0}, AveragePoolGeometry{.stride = 0},
                                      AveragePoolGeometry{.padding = -1}, AveragePoolGeometry{.padding = 3}}) {
    const auto contains = Contains("taps are " + std::to_string(g.taps) + ", stride is " + std::to_string(g.stride) +
                                   " and padding is " + std::to_string(g.padding));
    CHECK_THROWS_WITH(average_pool_output(s, g), contains && Contains("average_pool_output"));
    CHECK_THROWS_WITH(average_pool_forward(c.ctx, {.x = x, .y = y, .geometry = g}), contains);
    CHECK_THROWS_WITH(average_pool_backward(c.ctx, {.dy = y, .dx = x, .geometry = g}), contains);
  }
  CHECK_THROWS_WITH(average_pool_output({.time = 1}, melgan),
                    Contains("x is [1, 1, 1, 1], expected a time of at least 2"));
  CHECK_THROWS_WITH(average_pool_forward(c.ctx, {.x = x, .y = x}),
                    Contains("average_pool_forward: y is [2, 6, 1, 1], expected [2, 3, 1, 1]"));
  CHECK_THROWS_WITH(average_pool_backward(c.ctx, {.dy = x, .dx = x}),
                    Contains("average_pool_backward: dy is [2, 6, 1, 1], expected [2, 3, 1, 1]"));
}
