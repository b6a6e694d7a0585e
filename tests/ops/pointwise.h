#pragma once
// The test of an activation whose backward pass needs only its output. An Op has
//   name, low, high                              the range of x
//   forward<T>(ctx, x, y), backward<T>(ctx, y, dy, dx, add_dx)
//   value(x), slope(y)                           in double; slope as a function of the output
//   forward_ulp, backward_ulp                    errors of the float arithmetic, in ulp of the result
#include "harness.h"
#include "reference/elementwise.h"

namespace nacre::test {

template <class T, class Op>
void pointwise_case(Device device, Shape s) {
  Case c(Op::name, device, s);
  auto &x = c.random<T>("x", s, Op::low, Op::high), &dy = c.random<T>("dy", s, -1, 1);
  auto &y = c.output<T>("y", s), &dx = c.output<T>("dx", s), &dx_sum = c.random<T>("dx +=", s, -1, 1);
  auto &x_in_place = c.values<T>("x in place", s, x.before()),
       &dy_in_place = c.values<T>("dy in place", s, dy.before());
  Op::template forward<T>(c.ctx, x, y);
  Op::template forward<T>(c.ctx, x_in_place, x_in_place);
  auto& kept = c.values<T>("kept", s, y.read());
  Op::template backward<T>(c.ctx, kept, dy, dx, false);
  Op::template backward<T>(c.ctx, kept, dy, dx_sum, true);
  Op::template backward<T>(c.ctx, kept, dy_in_place, dy_in_place, false);

  // The op's own error in float, and one rounding to the storage type. The sum adds one more rounding.
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const auto value = [&](int64_t i) { return Op::value(x[i]); };
  const auto value_allowed = [&](int64_t i) {
    return (2 * ulp * Op::forward_ulp + storage) * std::fabs(value(i)) + 1e-37;
  };
  const auto slope = [&](int64_t i) { return dy[i] * Op::slope(kept[i]); };
  const auto slope_allowed = [&](int64_t i) {
    return (2 * ulp * Op::backward_ulp + storage) * std::fabs(slope(i)) + 1e-37;
  };
  const auto sum = [&](int64_t i) { return dx_sum[i] + slope(i); };
  const auto sum_allowed = [&](int64_t i) { return slope_allowed(i) + (ulp + storage) * std::fabs(sum(i)); };
  c.expect<T>(y, value, value_allowed);
  c.expect<T>(dx, slope, slope_allowed);
  c.expect<T>(dx_sum, sum, sum_allowed);
  c.expect_equal<T>(x_in_place, y.read());
  c.expect_equal<T>(dy_in_place, dx.read());

  const auto notices = [](const Buffer<T>& buffer, const auto& expected, const auto& allowance) {
    std::vector<double> planted;
    for (T v : buffer.read()) planted.push_back(to_float(v));
    planted.back() += 10 * allowance(buffer.size() - 1);
    CHECK(worst_ratio(planted, expected, allowance) > 1);
  };
  notices(y, value, value_allowed);
  notices(dx, slope, slope_allowed);
  notices(dx_sum, sum, sum_allowed);
}

/// Tests shapes, both storage types, in-place calls, threads and allocations, and the reference against finite
/// differences.
template <class Op>
void pointwise_test() {
  for (double x = Op::low; x < Op::high; x += 0.0137 * (Op::high - Op::low)) {
    const double h = 1e-6, difference = (Op::value(x + h) - Op::value(x - h)) / (2 * h);
    CHECK(std::fabs(Op::slope(Op::value(x)) - difference) < 1e-8);
  }
  for (Device device : devices()) {
    for (Shape s : elementwise_shapes) {
      pointwise_case<float, Op>(device, s);
      pointwise_case<bf16, Op>(device, s);
    }
    const Shape s{3, 8193, 1, 3};
    std::vector<float> first_y, first_dx;
    for (int threads : {1, 2, 3}) {
      Case c(std::string(Op::name) + " threads", device, s, threads);
      auto &x = c.random("x", s, Op::low, Op::high), &dy = c.random("dy", s, -1, 1);
      auto &y = c.output("y", s), &dx = c.output("dx", s);
      const auto run = [&] {
        Op::template forward<float>(c.ctx, x, y);
        Op::template backward<float>(c.ctx, y, dy, dx, false);
      };
      run();  // starts the thread pool
      AllocationCounter counter;
      run();
      CHECK(counter.count() == 0);
      if (threads == 1) first_y = y.read(), first_dx = dx.read();
      c.expect_equal(y, first_y);
      c.expect_equal(dx, first_dx);
    }
  }
  Case c(std::string(Op::name) + " shapes", devices().front(), {});
  auto &x = c.random("x", {2, 3, 1, 4}, -1, 1), &y = c.output("y", {2, 3, 1, 5});
  const std::string name = Op::name;
  CHECK_THROWS_WITH(Op::template forward<float>(c.ctx, x, y), Catch::Contains(name + "_forward: y is [2, 3, 1, 5]"));
  CHECK_THROWS_WITH(Op::template forward<float>(c.ctx, View<const float>(), View<float>()),
                    Catch::Contains(name + "_forward: x is required"));
  CHECK_THROWS_WITH(Op::template backward<float>(c.ctx, x, y, x, false),
                    Catch::Contains(name + "_backward: dy is [2, 3, 1, 5]"));
  CHECK_THROWS_WITH(Op::template backward<float>(c.ctx, x, x, y, false),
                    Catch::Contains(name + "_backward: dx is [2, 3, 1, 5]"));
}

}  // namespace nacre::test
