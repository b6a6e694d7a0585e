// The fences around a buffer of the harness show every read and every write past an end.
#include <cmath>
#include <numeric>

#include "harness.h"
#include "nacre/ops/add.h"

using namespace nacre;
using namespace nacre::test;

namespace {

template <class T>
std::vector<T> around(Case& c, const Buffer<T>& b) {
  std::vector<T> found;
  for (const int64_t at : {int64_t{-64}, int64_t{-1}, b.size(), b.size() + 63}) {
    T value;
    c.ctx.template read<T>(View<const T>(b.data() + at, {.channels = 1}), std::span<T>(&value, 1));
    found.push_back(value);
  }
  return found;
}

}  // namespace

TEST_CASE("a buffer lies between values that no sum hides", "[harness]") {
  for (Device device : devices()) {
    Case c("fences", device, {.channels = 5});
    for (const float v : around(c, c.random("floats", {.channels = 5}, -1, 1))) CHECK(std::isnan(v));
    for (const bf16 v : around(c, c.random<bf16>("bf16", {.channels = 5}, -1, 1))) CHECK(std::isnan(to_float(v)));
    for (const int32_t v : around(c, c.integers<int32_t>("integers", {.channels = 5}, 0, 9))) CHECK(v < 0);
    CHECK(std::isnan(around(c, c.output("output", {.channels = 5})).back()));
  }
}

TEST_CASE("a read of one element more than an input has makes a NaN", "[harness]") {
  // The op is right, but its views reach one element into the fences.
  for (Device device : devices()) {
    Case c("fences", device, {.channels = 8});
    auto &a = c.random("a", {.channels = 8}, -1, 1), &b = c.random("b", {.channels = 8}, -1, 1);
    auto& y = c.output("y", {.channels = 9});
    const auto longer = [](const Buffer<float>& x) { return View<const float>(x.data(), {.channels = 9}); };
    add<float>(c.ctx, {.a = longer(a), .b = longer(b), .y = y});
    const std::vector<float> sum = y.read();
    CHECK(std::isfinite(std::accumulate(sum.begin(), sum.end() - 1, 0.0f)));
    CHECK(std::isnan(sum.back()));
  }
}
