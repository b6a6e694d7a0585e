#include "nacre/ops/level.h"

#include <bit>

#include "harness.h"
#include "reference/level.h"

using namespace nacre;
using namespace nacre::test;

namespace {

const Shape shapes[] = {
    {1, 1, 1, 1},       // one sample: its mean
    {1, 2, 1, 1},       // a tie: both samples are as far from the mean
    {2, 15, 1, 1},      // one short of a vector
    {1, 16, 1, 1},      // exactly one
    {3, 17, 1, 1},      // one more
    {5, 33, 1, 1},      // odd
    {64, 10, 1, 1},     // wide batch, short signals
    {2, 1023, 1, 1},    // around the step of a block
    {1, 4095, 1, 1},    // around a part on the device
    {2, 4096, 1, 1},    // exactly one
    {2, 4097, 1, 1},    // a second of one sample
    {3, 8192, 1, 1},    // packs
    {3, 16896, 1, 1},   // audio
    {1, 32767, 1, 1},   // around a part on the CPU
    {1, 32768, 1, 1},   // exactly one
    {2, 32769, 1, 1},   // a second of one sample
    {1, 100003, 1, 1},  // long, odd
};

int64_t position_of(float statistic) { return std::bit_cast<int32_t>(statistic); }

void level_case(Device device, Shape s, double offset) {
  Case c("level", device, s);
  const float peak = 0.8f, eps = 1e-9f;
  auto& x = c.random("x", s, -1 + offset, 1 + offset);
  auto &y = c.output("y", s), &statistics = c.output("statistics", level_statistics(s));
  auto &dy = c.random("dy", s, -1, 1), &dx = c.output("dx", s), &sum = c.random("dx added to", s, -1, 1);
  const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
  level_forward(c.ctx, {.x = x, .y = y, .statistics = statistics, .scratch = scratch});
  LevelBackward back{.x = x, .statistics = statistics, .dy = dy, .dx = dx, .scratch = scratch};
  level_backward(c.ctx, back);
  back.dx = sum, back.add_dx = true;
  level_backward(c.ctx, back);

  const auto found = statistics.read();
  std::vector<double> values, allowed, gradients, sizes;
  for (int64_t b = 0; b < s.batch; ++b) {
    const auto item = [&](const Buffer<float>& of) {
      return std::vector<double>(of.before().begin() + b * s.time, of.before().begin() + (b + 1) * s.time);
    };
    const std::vector<double> in = item(x), slope = item(dy);
    const reference::Level exact(in.data(), static_cast<size_t>(s.time), static_cast<double>(peak),
                                 static_cast<double>(eps));
    double size = 0;
    for (const double v : in) size = std::max(size, std::fabs(v));
    const float* const of = found.data() + 4 * b;
    // Half an ulp of the mean is in `rest`. The peak: two roundings of u and those of the mean's sum.
    CHECK(std::fabs(static_cast<double>(of[0]) + static_cast<double>(of[3]) - exact.mean) <= 0x1p-40 * size);
    CHECK(std::fabs(static_cast<double>(of[0]) - exact.mean) <= (ulp + 0x1p-40) * size);
    CHECK(std::fabs(static_cast<double>(of[1]) - exact.largest) <= 2 * ulp * exact.largest + 0x1p-40 * size);
    // Two samples that differ by less than rounding may be exchanged.
    const int64_t at = position_of(of[2]);
    REQUIRE(at >= 0);
    REQUIRE(at < s.time);
    CHECK(std::fabs(exact.u[static_cast<size_t>(at)]) >= (1 - 4 * ulp) * exact.largest - 0x1p-39 * size);
    const auto g =
        exact.gradient(slope.data(), static_cast<double>(peak), static_cast<double>(eps), static_cast<size_t>(at));
    for (size_t t = 0; t < in.size(); ++t) {
      values.push_back(exact.y[t]);
      allowed.push_back(6 * ulp * std::fabs(exact.y[t]) +
                        0x1p-39 * static_cast<double>(peak) * size / (exact.largest + static_cast<double>(eps)));
      gradients.push_back(g.dx[t]), sizes.push_back(g.size[t]);
    }
  }
  // By the contract; 2^-149 for denormal results.
  const auto value = [&](int64_t i) { return values[static_cast<size_t>(i)]; };
  const auto value_allowed = [&](int64_t i) { return allowed[static_cast<size_t>(i)] + 0x1p-149; };
  const auto slope = [&](int64_t i) { return gradients[static_cast<size_t>(i)]; };
  const auto slope_allowed = [&](int64_t i) { return 8 * ulp * sizes[static_cast<size_t>(i)] + 0x1p-149; };
  c.expect(y, value, value_allowed);
  c.expect(dx, slope, slope_allowed);
  c.expect(
      sum, [&](int64_t i) { return slope(i) + sum[i]; },
      [&](int64_t i) { return slope_allowed(i) + ulp * (std::fabs(slope(i)) + 1); });
  std::vector<double> planted;
  for (const float v : dx.read()) planted.push_back(static_cast<double>(v));
  planted.back() += 10 * slope_allowed(s.elements() - 1);
  CHECK(worst_ratio(planted, slope, slope_allowed) > 1);
}

}  // namespace

TEST_CASE("the reference of level agrees with finite differences", "[level]") {
  std::vector<double> x{0.3, -0.2, 0.9, 0.1, 0.4, -0.8, -0.7}, dy{0.1, 0.2, -0.5, 0.6, 0.2, 0.7, -0.1};
  for (const double sign : {1.0, -1.0}) {
    for (double& v : x) v *= sign;
    const reference::Level exact(x.data(), x.size(), 0.8, 1e-2);
    const auto g = exact.gradient(dy.data(), 0.8, 1e-2, exact.position);
    for (size_t i = 0; i < x.size(); ++i) {
      const double h = 1e-6;
      const auto loss = [&](double by) {
        auto moved = x;
        moved[i] += by;
        const reference::Level there(moved.data(), moved.size(), 0.8, 1e-2);
        double total = 0;
        for (size_t t = 0; t < x.size(); ++t) total += dy[t] * there.y[t];
        return total;
      };
      CHECK(std::fabs((loss(h) - loss(-h)) / (2 * h) - g.dx[i]) < 1e-9);
    }
  }
}

TEST_CASE("level", "[level]") {
  for (const Device device : devices())
    for (const Shape s : shapes)
      for (const double offset : {0.0, 100.0})
        if (offset == 0 || s.time > 2) level_case(device, s, offset);
}

TEST_CASE("level: constant items are zeros and pass gradients without their mean", "[level]") {
  for (const Device device : devices())
    for (const int64_t time : {1, 7, 5000}) {
      const Shape s{.batch = 3, .time = time};
      Case c("level constant", device, s);
      std::vector<float> content(static_cast<size_t>(s.elements()), 0.1f);
      for (size_t i = 0; i < static_cast<size_t>(time); ++i) content[i] = 0, content[i + content.size() / 3] = -3e7f;
      auto &x = c.values("x", s, content), &y = c.output("y", s), &dy = c.random("dy", s, -1, 1);
      auto &dx = c.output("dx", s), &statistics = c.output("statistics", level_statistics(s));
      const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
      // With eps 1 the factor is the peak.
      level_forward(c.ctx, {.x = x, .y = y, .statistics = statistics, .scratch = scratch});
      level_backward(c.ctx,
                     {.x = x, .statistics = statistics, .dy = dy, .dx = dx, .scratch = scratch, .peak = 1, .eps = 1});
      for (const float v : y.read()) CHECK(v == 0);
      const auto found = statistics.read();
      for (size_t b = 0; b < 3; ++b) {
        CHECK(found[4 * b] == content[b * static_cast<size_t>(time)]);
        CHECK(found[4 * b + 1] == 0);
        CHECK(position_of(found[4 * b + 2]) == 0);
        CHECK(found[4 * b + 3] == 0);
      }
      std::vector<double> expected;
      for (int64_t b = 0; b < 3; ++b) {
        double mean = 0;
        for (int64_t t = 0; t < time; ++t) mean += dy[b * time + t] / static_cast<double>(time);
        for (int64_t t = 0; t < time; ++t) expected.push_back(dy[b * time + t] - mean);
      }
      c.expect(
          dx, [&](int64_t i) { return expected[static_cast<size_t>(i)]; }, [](int64_t) { return 4 * ulp; });
    }
}

TEST_CASE("level: of several largest samples the first has the gradient", "[level]") {
  for (const Device device : devices())
    for (const int64_t time : {8, 9000, 70000}) {
      const Shape s{.batch = 2, .time = time};
      Case c("level ties", device, s);
      // Ties within a part and in other parts, of both signs. The sums are exact: the mean is 0.
      std::vector<float> content(static_cast<size_t>(s.elements()), 0.0f);
      const auto n = static_cast<size_t>(time);
      content[3] = -2, content[5] = 2, content[n - 2] = 2, content[n - 1] = -2;
      content[n + 1] = 1, content[n + 2] = -1, content[2 * n - 3] = 4, content[2 * n - 2] = -4;
      auto &x = c.values("x", s, content), &y = c.output("y", s), &dx = c.output("dx", s);
      auto& statistics = c.output("statistics", level_statistics(s));
      std::vector<float> slopes(content.size(), 0.0f);
      slopes[5] = 1, slopes[n + 1] = 1;
      auto& dy = c.values("dy", s, slopes);
      const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
      level_forward(c.ctx, {.x = x, .y = y, .statistics = statistics, .scratch = scratch, .peak = 4, .eps = 0});
      level_backward(c.ctx,
                     {.x = x, .statistics = statistics, .dy = dy, .dx = dx, .scratch = scratch, .peak = 4, .eps = 0});
      const auto found = statistics.read();
      CHECK(position_of(found[2]) == 3);
      CHECK(position_of(found[6]) == time - 3);
      CHECK(found[1] == 2);
      CHECK(found[5] == 4);
      // Item 0: s = 2, sum dy u = 2, taken = -1 * 2 / 2 * 2 = -2. Item 1: s = 1, taken = 1 / 4.
      std::vector<double> expected(content.size(), 0.0);
      expected[5] = 2, expected[3] = 2;
      expected[n + 1] = 1, expected[2 * n - 3] = -0.25;
      for (size_t i = 0; i < content.size(); ++i) expected[i] -= (i < n ? 4 : 0.75) / static_cast<double>(time);
      c.expect(
          dx, [&](int64_t i) { return expected[static_cast<size_t>(i)]; }, [](int64_t) { return 4 * ulp; });
    }
}

TEST_CASE("level: what is not finite stays in its item", "[level]") {
  for (const Device device : devices())
    for (const float broken : {NAN, INFINITY}) {
      const Shape s{.batch = 2, .time = 5000};
      Case c("level NaN", device, s);
      auto& x = c.random("x", s, -1, 1);
      auto content = x.before();
      content[1234] = broken;
      x.write(content);
      auto &y = c.output("y", s), &dy = c.random("dy", s, -1, 1), &dx = c.output("dx", s);
      auto& statistics = c.output("statistics", level_statistics(s));
      const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
      level_forward(c.ctx, {.x = x, .y = y, .statistics = statistics, .scratch = scratch});
      level_backward(c.ctx, {.x = x, .statistics = statistics, .dy = dy, .dx = dx, .scratch = scratch});
      const auto found = y.read(), back = dx.read();
      for (size_t i = 0; i < found.size(); ++i)
        if (std::isnan(found[i]) != (i < 5000) || std::isnan(back[i]) != (i < 5000)) {
          CAPTURE(i);
          CHECK(false);
          break;
        }
    }
}

TEST_CASE("level does not allocate and does not depend on threads", "[level]") {
  for (const Device device : devices()) {
    const Shape s{.batch = 3, .time = 70001};
    std::vector<float> first_y, first_dx, first_statistics;
    for (const int threads : {1, 2, 3}) {
      Case c("level threads", device, s, threads);
      auto &x = c.random("x", s, -1, 1), &y = c.output("y", s), &dy = c.random("dy", s, -1, 1);
      auto &dx = c.output("dx", s), &statistics = c.output("statistics", level_statistics(s));
      const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
      const LevelForward forward{.x = x, .y = y, .statistics = statistics, .scratch = scratch};
      level_forward(c.ctx, forward);  // starts the thread pool
      AllocationCounter counter;
      level_forward(c.ctx, forward);
      level_backward(c.ctx, {.x = x, .statistics = statistics, .dy = dy, .dx = dx, .scratch = scratch});
      CHECK(counter.count() == 0);
      if (threads == 1) first_y = y.read(), first_dx = dx.read(), first_statistics = statistics.read();
      c.expect_equal(y, first_y);
      c.expect_equal(dx, first_dx);
      c.expect_equal(statistics, first_statistics);
    }
  }
}

TEST_CASE("level: the same bits at any address", "[level]") {
  for (const Device device : devices())
    for (const int64_t time : {4, 4096, 4100, 9000}) {
      const Shape s{.batch = 2, .time = time};
      Case c("level addresses", device, s);
      auto &x = c.random("x", s, -1, 1), &dy = c.random("dy", s, -1, 1);
      const auto later = [&](const char* name, const std::vector<float>& content) {
        std::vector<float> moved{0};
        moved.insert(moved.end(), content.begin(), content.end());
        return View<float>(c.values(name, {.channels = s.elements() + 1}, moved).data() + 1, s);
      };
      const View<float> moved_x = later("moved x", x.before()), moved_dy = later("moved dy", dy.before());
      std::vector<float> results[2][3];
      for (const bool moved : {false, true}) {
        auto &y = c.output("y", s), &dx = c.output("dx", s), &statistics = c.output("statistics", level_statistics(s));
        const View<const float> from = moved ? View<const float>(moved_x) : View<const float>(x);
        const View<const float> slope = moved ? View<const float>(moved_dy) : View<const float>(dy);
        const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
        level_forward(c.ctx, {.x = from, .y = y, .statistics = statistics, .scratch = scratch});
        level_backward(c.ctx, {.x = from, .statistics = statistics, .dy = slope, .dx = dx, .scratch = scratch});
        results[moved][0] = y.read(), results[moved][1] = dx.read(), results[moved][2] = statistics.read();
      }
      for (int i = 0; i < 3; ++i) CHECK(results[0][i] == results[1][i]);
    }
}

TEST_CASE("level names what does not fit", "[level]") {
  Case c("level shapes", devices().front(), {});
  const Shape s{.batch = 2, .time = 20};
  auto &x = c.zeros("x", s), &other = c.zeros("other", {.batch = 2, .time = 21}),
       &wide = c.zeros("wide", {2, 20, 1, 2});
  auto& statistics = c.zeros("statistics", level_statistics(s));
  const View<float> scratch = c.scratch(level_scratch(c.ctx, s));
  LevelForward a{.x = wide, .y = x, .statistics = statistics, .scratch = scratch};
  CHECK_THROWS_WITH(level_forward(c.ctx, a), Catch::Contains("level_forward: x is [2, 20, 1, 2]"));
  a.x = x, a.y = other;
  CHECK_THROWS_WITH(level_forward(c.ctx, a), Catch::Contains("level_forward: y is [2, 21, 1, 1]"));
  a.y = x, a.statistics = x;
  CHECK_THROWS_WITH(level_forward(c.ctx, a), Catch::Contains("level_forward: statistics"));
  a.statistics = statistics, a.scratch = {};
  CHECK_THROWS_WITH(level_forward(c.ctx, a), Catch::Contains("level_forward: scratch"));
  LevelBackward b{.x = x, .statistics = statistics, .dy = other, .dx = x, .scratch = scratch};
  CHECK_THROWS_WITH(level_backward(c.ctx, b), Catch::Contains("level_backward: dy is [2, 21, 1, 1]"));
  b.dy = x, b.dx = other;
  CHECK_THROWS_WITH(level_backward(c.ctx, b), Catch::Contains("level_backward: dx"));
  b.dx = x, b.statistics = x;
  CHECK_THROWS_WITH(level_backward(c.ctx, b), Catch::Contains("level_backward: statistics"));
  b.statistics = statistics, b.scratch = {};
  CHECK_THROWS_WITH(level_backward(c.ctx, b), Catch::Contains("level_backward: scratch"));
}
