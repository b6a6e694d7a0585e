#include "nacre/ops/fold.h"

#include "harness.h"
#include "reference/fold.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Trial {
  int64_t batch, time, period;
};
const Trial trials[] = {
    {1, 2, 1},       // the smallest: one sample is appended
    {1, 3, 2},       // time just above the period
    {2, 4, 2},       // a multiple: a whole period is appended
    {2, 4, 3},       // just above
    {3, 6, 3},       // a multiple
    {1, 6, 5},       // the reflection begins at the first samples
    {2, 10, 5},      // a multiple
    {5, 8, 7},       // just above
    {2, 12, 11},     // just above
    {2, 22, 11},     // a multiple
    {3, 100, 2},     // even, with its multiple
    {2, 101, 3},     // odd
    {7, 99, 7},      // odd
    {1, 257, 5},     // more than a block of samples
    {2, 2047, 2},    // around a chunk of positions
    {2, 2048, 2},    //
    {1, 11263, 11},  // around a chunk
    {1, 11264, 11},  //
    {1, 11275, 11},  // a second chunk of one position
    {3, 16896, 7},   // audio
    {1, 5, 1},       // period 1
    {1, 200, 199},   // as many signals as samples
};

}  // namespace

TEST_CASE("fold", "[fold]") {
  for (const Device device : devices())
    for (const Trial& t : trials) {
      const Shape s{.batch = t.batch, .time = t.time};
      Case c("fold period " + std::to_string(t.period), device, s);
      const Shape out = fold_output(s, t.period);
      REQUIRE(out == Shape{.batch = t.batch * t.period, .time = t.time / t.period + 1});
      auto &x = c.random("x", s, -1, 1), &y = c.output("y", out), &dy = c.random("dy", out, -1, 1);
      auto &dx = c.output("dx", s), &sum = c.random("dx added to", s, -1, 1);
      fold_forward(c.ctx, {.x = x, .y = y, .period = t.period});
      fold_backward(c.ctx, {.dy = dy, .dx = dx, .period = t.period});
      fold_backward(c.ctx, {.dy = dy, .dx = sum, .period = t.period, .add_dx = true});

      const auto sources = reference::fold_sources(static_cast<size_t>(t.batch), static_cast<size_t>(t.time),
                                                   static_cast<size_t>(t.period));
      REQUIRE(static_cast<int64_t>(sources.size()) == out.elements());
      std::vector<float> expected;
      for (const size_t i : sources) expected.push_back(x.before()[i]);
      c.expect_equal(y, expected);
      const std::vector<double> gradients(dy.before().begin(), dy.before().end());
      const auto exact = reference::fold_adjoint(sources, gradients, static_cast<size_t>(s.elements()));
      // At most two terms, so the sum is rounded once; += rounds once more, at a value of at most 2.
      const auto value = [&](int64_t i) { return exact[static_cast<size_t>(i)]; };
      c.expect(dx, value, [&](int64_t i) { return ulp * std::fabs(value(i)); });
      c.expect(
          sum, [&](int64_t i) { return value(i) + sum[i]; },
          [&](int64_t i) { return ulp * (std::fabs(value(i) + sum[i]) + 2); });

      // <F x, D> = <x, F* D>: sums of products in double; dx has one rounding.
      double left = 0, right = 0, allowed = 0;
      const auto found = y.read(), back = dx.read();
      for (size_t i = 0; i < found.size(); ++i) left += static_cast<double>(found[i]) * gradients[i];
      for (size_t i = 0; i < back.size(); ++i) {
        right += static_cast<double>(back[i]) * x[static_cast<int64_t>(i)];
        allowed += ulp * std::fabs(static_cast<double>(back[i]) * x[static_cast<int64_t>(i)]);
      }
      allowed += 0x1p-40 * static_cast<double>(found.size());
      CHECK(std::fabs(left - right) <= allowed);
    }
}

TEST_CASE("fold: the first and the last sample", "[fold]") {
  for (const Device device : devices()) {
    Case c("fold by hand", device, {});
    auto& x = c.values<float>("x", {.batch = 1, .time = 5}, {0, 1, 2, 3, 4});
    auto& y = c.output("y", fold_output(x.shape(), 3));
    fold_forward(c.ctx, {.x = x, .y = y, .period = 3});
    c.expect_equal<float>(y, {0, 3, 1, 4, 2, 3});  // 0 1 2 3 4 | 3
    auto& whole = c.values<float>("whole", {.batch = 1, .time = 6}, {0, 1, 2, 3, 4, 5});
    auto& z = c.output("z", fold_output(whole.shape(), 3));
    fold_forward(c.ctx, {.x = whole, .y = z, .period = 3});
    c.expect_equal<float>(z, {0, 3, 4, 1, 4, 3, 2, 5, 2});  // 0 1 2 3 4 5 | 4 3 2
  }
}

TEST_CASE("fold without extension takes interleaved channels apart", "[fold]") {
  const Trial whole[] = {
      {1, 1, 1},      // the smallest
      {1, 2, 2},      // one sample of two channels
      {3, 7, 1},      // one channel: a copy
      {2, 12, 3},     // odd period
      {3, 200, 2},    // stereo
      {5, 64, 64},    // as many signals as samples
      {2, 514, 2},    // more than a block of positions
      {1, 2048, 2},   // a chunk of positions
      {2, 2050, 2},   // a second chunk of one position
      {2, 33792, 2},  // audio
  };
  for (const Device device : devices())
    for (const Trial& t : whole) {
      const Shape s{.batch = t.batch, .time = t.time};
      Case c("fold channels " + std::to_string(t.period), device, s);
      const Shape out = fold_output(s, t.period, false);
      const int64_t length = t.time / t.period;
      REQUIRE(out == Shape{.batch = t.batch * t.period, .time = length});
      auto &x = c.random("x", s, -1, 1), &y = c.output("y", out), &dy = c.random("dy", out, -1, 1);
      auto &dx = c.output("dx", s), &sum = c.random("dx added to", s, -1, 1);
      fold_forward(c.ctx, {.x = x, .y = y, .period = t.period, .extend = false});
      fold_backward(c.ctx, {.dy = dy, .dx = dx, .period = t.period, .extend = false});
      fold_backward(c.ctx, {.dy = dy, .dx = sum, .period = t.period, .add_dx = true, .extend = false});
      std::vector<float> expected, slopes(static_cast<size_t>(s.elements())), sums = sum.before();
      for (int64_t b = 0; b < t.batch; ++b)
        for (int64_t j = 0; j < t.period; ++j)
          for (int64_t l = 0; l < length; ++l) {
            const auto at = static_cast<size_t>(b * t.time + l * t.period + j);
            slopes[at] = dy.before()[expected.size()];
            sums[at] += slopes[at];
            expected.push_back(x.before()[at]);
          }
      c.expect_equal(y, expected);
      c.expect_equal(dx, slopes);
      c.expect_equal(sum, sums);
    }
}

TEST_CASE("fold does not allocate and does not depend on threads", "[fold]") {
  for (const Device device : devices()) {
    const Shape s{.batch = 3, .time = 20011};
    std::vector<float> first_y, first_dx;
    for (const int threads : {1, 2, 3}) {
      Case c("fold threads", device, s, threads);
      const Shape out = fold_output(s, 3);
      auto &x = c.random("x", s, -1, 1), &y = c.output("y", out), &dy = c.random("dy", out, -1, 1);
      auto& dx = c.random("dx", s, -1, 1);
      fold_forward(c.ctx, {.x = x, .y = y, .period = 3});  // starts the thread pool
      AllocationCounter counter;
      fold_forward(c.ctx, {.x = x, .y = y, .period = 3});
      fold_backward(c.ctx, {.dy = dy, .dx = dx, .period = 3, .add_dx = true});
      CHECK(counter.count() == 0);
      if (threads == 1) first_y = y.read(), first_dx = dx.read();
      c.expect_equal(y, first_y);
      c.expect_equal(dx, first_dx);
    }
  }
}

TEST_CASE("fold names what does not fit", "[fold]") {
  Case c("fold shapes", devices().front(), {});
  const Shape s{.batch = 2, .time = 6};
  auto &x = c.zeros("x", s), &y = c.zeros("y", fold_output(s, 3)), &wide = c.zeros("wide", {2, 6, 1, 2});
  for (const int64_t period : {-1, 0, 6, 7}) {
    const auto contains = Catch::Contains("time is 6 and period is " + std::to_string(period));
    CHECK_THROWS_WITH(fold_output(s, period), contains && Catch::Contains("fold_output"));
    CHECK_THROWS_WITH(fold_forward(c.ctx, {.x = x, .y = y, .period = period}), contains);
    CHECK_THROWS_WITH(fold_backward(c.ctx, {.dy = y, .dx = x, .period = period}), contains);
  }
  for (const int64_t period : {-2, 0, 4, 12})
    CHECK_THROWS_WITH(fold_output(s, period, false),
                      Catch::Contains("time is 6 and period is " + std::to_string(period) +
                                      ", expected a positive period that divides"));
  CHECK_THROWS_WITH(fold_forward(c.ctx, {.x = x, .y = y, .period = 3, .extend = false}),
                    Catch::Contains("fold_forward: y is [6, 3, 1, 1], expected [6, 2, 1, 1]"));
  CHECK_THROWS_WITH(fold_forward(c.ctx, {.x = wide, .y = y, .period = 3}),
                    Catch::Contains("fold_forward: x is [2, 6, 1, 2]"));
  CHECK_THROWS_WITH(fold_forward(c.ctx, {.x = x, .y = x, .period = 3}),
                    Catch::Contains("fold_forward: y is [2, 6, 1, 1], expected [6, 3, 1, 1]"));
  CHECK_THROWS_WITH(fold_backward(c.ctx, {.dy = x, .dx = x, .period = 3}), Catch::Contains("fold_backward: dy"));
  CHECK_THROWS_WITH(fold_backward(c.ctx, {.dy = y, .dx = wide, .period = 3}),
                    Catch::Contains("fold_backward: dx is [2, 6, 1, 2]"));
}
