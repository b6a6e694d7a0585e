// The test of the example op, as it would be in tests/ops/scale_test.cpp.
#include <algorithm>

#include "adding/op.h"
#include "adding/reference.h"
#include "harness.h"
#include "reference/elementwise.h"

using namespace nacre;
using namespace nacre::test;

namespace {

template <class T>
std::vector<double> doubles(const Buffer<T>& b) {
  std::vector<double> v;
  for (int64_t i = 0; i < b.size(); ++i) v.push_back(b[i]);
  return v;
}

/// The result is within its allowance, and an error of ten allowances in its last element would be noticed.
template <class T>
void check(Case& c, const Buffer<T>& found, const std::function<double(int64_t)>& expected,
           const std::function<double(int64_t)>& allowance) {
  c.expect<T>(found, expected, allowance);
  std::vector<double> planted;
  for (const T v : found.read()) planted.push_back(to_float(v));
  planted.back() += 10 * allowance(found.size() - 1);
  CHECK(worst_ratio(planted, expected, allowance) > 1);
}

}  // namespace

// [op test]
template <class T>
void scale_case(Device device, Shape s) {
  Case c("scale", device, s);
  const Shape per_channel{.channels = s.channels};
  auto &x = c.random<T>("x", s, -1, 1), &dy = c.random<T>("dy", s, -1, 1);
  auto &factor = c.random("factor", per_channel, -2, 2), &dfactor = c.random("dfactor +=", per_channel, -1, 1);
  auto &y = c.output<T>("y", s), &dx = c.output<T>("dx", s), &dx_sum = c.random<T>("dx +=", s, -1, 1);
  auto &x_in_place = c.values<T>("x in place", s, x.before()),
       &dy_in_place = c.values<T>("dy in place", s, dy.before());
  auto& dfactor_again = c.values("dfactor again", per_channel, dfactor.before());
  scale_forward<T>(c.ctx, {.x = x, .factor = factor, .y = y});
  scale_forward<T>(c.ctx, {.x = x_in_place, .factor = factor, .y = x_in_place});
  scale_backward<T>(c.ctx, {.x = x, .factor = factor, .dy = dy, .dx = dx, .dfactor = dfactor});
  scale_backward<T>(c.ctx, {.x = x, .factor = factor, .dy = dy, .dx = dx_sum, .add_dx = true});
  scale_backward<T>(c.ctx, {.x = x, .factor = factor, .dy = dy_in_place, .dx = dy_in_place, .dfactor = dfactor_again});

  // A product is rounded once to float and once to storage, a sum likewise. The smallest normal float is 1.2e-38.
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const auto exact_y = nacre::reference::scale(doubles(x), doubles(factor));
  const auto exact = nacre::reference::scale_gradients(doubles(x), doubles(factor), doubles(dy));
  const auto at = [](const std::vector<double>& v) { return [&v](int64_t i) { return v[static_cast<size_t>(i)]; }; };
  const auto rounded = [=](const std::vector<double>& v) {
    return [&v, storage](int64_t i) { return (ulp + storage) * std::fabs(v[static_cast<size_t>(i)]) + 1.2e-38; };
  };
  check<T>(c, y, at(exact_y), rounded(exact_y));
  check<T>(c, dx, at(exact.dx), rounded(exact.dx));
  std::vector<double> sums = exact.dx, factor_sums = exact.dfactor;
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += dx_sum[static_cast<int64_t>(i)];
  for (size_t i = 0; i < factor_sums.size(); ++i) factor_sums[i] += dfactor[static_cast<int64_t>(i)];
  check<T>(c, dx_sum, at(sums), [&](int64_t i) { return rounded(exact.dx)(i) + rounded(sums)(i); });
  // The sum itself is in double: `rows` additions of terms of at most 1.
  const auto rows = static_cast<double>(s.rows());
  check<float>(c, dfactor, at(factor_sums),
               [&](int64_t i) { return ulp * std::fabs(at(factor_sums)(i)) + 0x1p-53 * rows * rows; });
  c.expect_equal<T>(x_in_place, y.read());
  c.expect_equal<T>(dy_in_place, dx.read());
  c.expect_equal(dfactor_again, dfactor.read());
}

TEST_CASE("op: values and gradients of twenty shapes") {
  for (const Device device : devices())
    for (const Shape s : elementwise_shapes) scale_case<float>(device, s), scale_case<bf16>(device, s);
}
// [/op test]

TEST_CASE("op: the reference against finite differences") {
  const std::vector<double> x{0.3, -0.7, 1.1, 0.2, -0.4, 0.9}, dy{0.5, 0.1, -0.6, 0.8, -0.2, 0.7};
  const std::vector<double> factor{1.5, -0.4, 0.8};
  const auto loss = [&](const std::vector<double>& at, const std::vector<double>& by) {
    const std::vector<double> y = nacre::reference::scale(at, by);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += dy[i] * y[i];
    return sum;
  };
  const auto slope = [](std::vector<double> v, size_t i, const std::function<double(const std::vector<double>&)>& f) {
    const double h = 1e-6;
    v[i] += h;
    const double above = f(v);
    v[i] -= 2 * h;
    return (above - f(v)) / (2 * h);
  };
  // The loss is linear in every value, so the quotient has only the rounding of two sums below 8, some 20 times 2^-53
  // each, over 2e-6: below 1e-8.
  const nacre::reference::ScaleGradients found = nacre::reference::scale_gradients(x, factor, dy);
  for (size_t i = 0; i < x.size(); ++i)
    CHECK(std::fabs(slope(x, i, [&](const auto& v) { return loss(v, factor); }) - found.dx[i]) < 1e-8);
  for (size_t i = 0; i < factor.size(); ++i)
    CHECK(std::fabs(slope(factor, i, [&](const auto& v) { return loss(x, v); }) - found.dfactor[i]) < 1e-8);
}

TEST_CASE("op: the bits do not depend on threads, and nothing is allocated") {
  for (const Device device : devices()) {
    const Shape s{3, 2731, 1, 19}, per_channel{.channels = 19};
    std::vector<float> first_y, first_dx, first_dfactor;
    for (const int threads : {1, 2, 3}) {
      Case c("scale threads", device, s, threads);
      auto &x = c.random("x", s, -1, 1), &dy = c.random("dy", s, -1, 1),
           &factor = c.random("factor", per_channel, -2, 2);
      auto &y = c.output("y", s), &dx = c.output("dx", s), &dfactor = c.zeros("dfactor", per_channel);
      scale_forward<float>(c.ctx, {.x = x, .factor = factor, .y = y});  // starts the thread pool
      AllocationCounter counter;
      scale_forward<float>(c.ctx, {.x = x, .factor = factor, .y = y});
      scale_backward<float>(c.ctx, {.x = x, .factor = factor, .dy = dy, .dx = dx, .dfactor = dfactor});
      CHECK(counter.count() == 0);
      if (threads == 1) first_y = y.read(), first_dx = dx.read(), first_dfactor = dfactor.read();
      c.expect_equal(y, first_y), c.expect_equal(dx, first_dx), c.expect_equal(dfactor, first_dfactor);
    }
  }
}

TEST_CASE("op: an error names the argument") {
  Case c("scale shapes", devices().front(), {});
  auto &x = c.random("x", {2, 3, 1, 4}, -1, 1), &other = c.random("other", {2, 3, 1, 5}, -1, 1);
  auto &factor = c.random("factor", {.channels = 4}, -1, 1), &y = c.output("y", {2, 3, 1, 4});
  CHECK_THROWS_WITH(scale_forward<float>(c.ctx, {.x = x, .factor = other, .y = y}),
                    Catch::Contains("scale_forward: factor is [2, 3, 1, 5], expected [1, 1, 1, 4]"));
  CHECK_THROWS_WITH(scale_forward<float>(c.ctx, {.x = x, .factor = factor, .y = other}),
                    Catch::Contains("scale_forward: y is [2, 3, 1, 5]"));
  CHECK_THROWS_WITH(scale_backward<float>(c.ctx, {.x = x, .factor = factor, .dy = other, .dx = y}),
                    Catch::Contains("scale_backward: dy is [2, 3, 1, 5]"));
  CHECK_THROWS_WITH(scale_backward<float>(c.ctx, {.x = x, .factor = factor, .dy = x, .dx = other}),
                    Catch::Contains("scale_backward: dx is [2, 3, 1, 5]"));
  CHECK_THROWS_WITH(scale_backward<float>(c.ctx, {.x = x, .factor = factor, .dy = x, .dfactor = other}),
                    Catch::Contains("scale_backward: dfactor is [2, 3, 1, 5]"));
}
