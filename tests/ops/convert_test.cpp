#include "nacre/ops/convert.h"

#include "harness.h"
#include "reference/elementwise.h"

using namespace nacre;
using namespace nacre::test;

namespace {

template <class From, class To>
void convert_case(Device device, Shape s) {
  Case c("convert", device, s);
  auto& x = c.random<From>("x", s, -3, 3);
  auto &y = c.output<To>("y", s), &sum = c.random<To>("y +=", s, -3, 3);
  convert<From, To>(c.ctx, {.x = x, .y = y});
  convert<From, To>(c.ctx, {.x = x, .y = sum, .add = true});
  // The conversion to float is exact. To bf16, there is one rounding.
  const double step = std::is_same_v<To, float> ? 0 : bf16_ulp, sum_step = std::is_same_v<To, float> ? ulp : bf16_ulp;
  const auto copied = [&](int64_t i) { return x[i]; };
  const auto added = [&](int64_t i) { return sum[i] + x[i]; };
  const auto copied_allowance = [&](int64_t i) { return step * std::fabs(x[i]); };
  const auto added_allowance = [&](int64_t i) { return 1.01 * sum_step * std::fabs(added(i)) + 1e-30; };
  c.expect<To>(y, copied, copied_allowance);
  c.expect<To>(sum, added, added_allowance);
  std::vector<double> planted;
  for (To v : sum.read()) planted.push_back(to_float(v));
  planted.back() += 10 * added_allowance(s.elements() - 1);
  CHECK(worst_ratio(planted, added, added_allowance) > 1);
}

}  // namespace

TEST_CASE("convert", "[convert]") {
  for (Device device : devices())
    for (Shape s : elementwise_shapes) {
      convert_case<float, bf16>(device, s);
      convert_case<bf16, float>(device, s);
    }
}

TEST_CASE("convert: ties, infinities, NaN, and back again", "[convert]") {
  for (Device device : devices()) {
    const std::vector<float> in{1.00390625f,  // half a step above 1: ties to even, 1
                                1.01171875f,  // half a step above 1 + 2^-7: ties to even, 1 + 2^-6
                                -0.0f, INFINITY, -INFINITY, 3.4e38f, 1e-40f, 8.0f};
    const Shape s{.channels = static_cast<int64_t>(in.size())};
    Case c("convert special", device, s);
    auto &x = c.values<float>("x", s, in), &back = c.output<float>("back", s);
    auto& y = c.output<bf16>("y", s);
    convert<float, bf16>(c.ctx, {.x = x, .y = y});
    convert<bf16, float>(c.ctx, {.x = y, .y = back});
    std::vector<bf16> wanted;
    std::vector<float> wanted_back;
    for (const float v : in) wanted.push_back(to_bf16(v)), wanted_back.push_back(to_float(to_bf16(v)));
    CHECK(wanted_back[0] == 1.0f);
    CHECK(wanted_back[1] == 1.015625f);
    c.expect_equal<bf16>(y, wanted);
    c.expect_equal<float>(back, wanted_back);
    auto& nan = c.values<float>("nan", {.channels = 1}, {NAN});
    auto& nan16 = c.values<bf16>("nan in bf16", {.channels = 1}, {bf16{0}});
    convert<float, bf16>(c.ctx, {.x = nan, .y = nan16});
    CHECK(std::isnan(to_float(nan16.read()[0])));
  }
}

TEST_CASE("convert does not allocate, and names what does not fit", "[convert]") {
  for (Device device : devices()) {
    const Shape s{3, 8193, 1, 3};
    Case c("convert allocations", device, s);
    auto& x = c.random("x", s, -3, 3);
    auto& y = c.output<bf16>("y", s);
    convert<float, bf16>(c.ctx, {.x = x, .y = y});
    AllocationCounter counter;
    convert<float, bf16>(c.ctx, {.x = x, .y = y});
    CHECK(counter.count() == 0);
    auto& other = c.output<bf16>("other", {3, 2, 1, 3});
    CHECK_THROWS_WITH((convert<float, bf16>(c.ctx, {.x = x, .y = other})),
                      Catch::Contains("convert: y is [3, 2, 1, 3]"));
  }
}
