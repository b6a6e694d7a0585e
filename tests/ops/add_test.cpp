#include "nacre/ops/add.h"

#include "harness.h"
#include "reference/elementwise.h"

using namespace nacre;
using namespace nacre::test;

namespace {

template <class T>
void add_case(Device device, Shape s) {
  Case c("add", device, s);
  auto &a = c.random<T>("a", s, -3, 3), &b = c.random<T>("b", s, -3, 3);
  auto& y = c.output<T>("y", s);
  auto &in_place = c.values<T>("in place", s, a.before()), &copied = c.output<T>("copied", s);
  add<T>(c.ctx, {.a = a, .b = b, .y = y});
  accumulate<T>(c.ctx, {.x = b, .y = in_place});
  accumulate<T>(c.ctx, {.x = b, .y = copied, .add = false});
  // The sum, at most 6, is rounded once in the storage type.
  const double step = std::is_same_v<T, float> ? ulp : bf16_ulp;
  const auto expected = [&](int64_t i) { return a[i] + b[i]; };
  const auto allowance = [&](int64_t i) { return 1.01 * step * std::fabs(expected(i)) + 1e-30; };
  c.expect<T>(y, expected, allowance);
  c.expect_equal<T>(in_place, y.read());
  c.expect_equal<T>(copied, b.before());
  add<T>(c.ctx, {.a = a, .b = b, .y = View<T>(b)});  // y may be b
  c.expect_equal<T>(b, y.read());

  std::vector<double> planted;
  for (T v : y.read()) planted.push_back(to_float(v));
  planted.back() += 10 * allowance(s.elements() - 1);
  CHECK(worst_ratio(planted, expected, allowance) > 1);
}

}  // namespace

TEST_CASE("add", "[add]") {
  for (Device device : devices())
    for (Shape s : elementwise_shapes) {
      add_case<float>(device, s);
      add_case<bf16>(device, s);
    }
}

TEST_CASE("add does not allocate and does not depend on threads", "[add]") {
  for (Device device : devices()) {
    const Shape s{3, 8193, 1, 3};
    std::vector<float> first;
    for (int threads : {1, 2, 3}) {
      Case c("add threads", device, s, threads);
      auto &a = c.random("a", s, -3, 3), &b = c.random("b", s, -3, 3), &y = c.output("y", s);
      add(c.ctx, {.a = a, .b = b, .y = y});  // starts the thread pool
      AllocationCounter counter;
      add(c.ctx, {.a = a, .b = b, .y = y});
      accumulate(c.ctx, {.x = a, .y = y});
      CHECK(counter.count() == 0);
      if (threads == 1) first = y.read();
      c.expect_equal(y, first);
    }
  }
}

TEST_CASE("add names what does not fit", "[add]") {
  Case c("add shapes", devices().front(), {});
  auto &a = c.random("a", {2, 3, 1, 4}, -1, 1), &b = c.random("b", {2, 3, 1, 5}, -1, 1);
  auto& y = c.output("y", {2, 3, 1, 4});
  CHECK_THROWS_WITH(add(c.ctx, {.a = a, .b = b, .y = y}),
                    Catch::Contains("add: b is [2, 3, 1, 5], expected [2, 3, 1, 4]"));
  CHECK_THROWS_WITH(accumulate(c.ctx, {.x = b, .y = y}), Catch::Contains("accumulate: y is [2, 3, 1, 4]"));
  CHECK_THROWS_WITH(add(c.ctx, {.a = a, .b = {}, .y = y}), Catch::Contains("add: b"));
}
