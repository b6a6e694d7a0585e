#include "nacre/ops/leaky_relu.h"

#include "ops/pointwise.h"
#include "reference/leaky_relu.h"

using namespace nacre;
using namespace nacre::test;

namespace {
constexpr float steepness = 0.2f;
struct LeakyRelu {
  static constexpr const char* name = "leaky_relu";
  static constexpr double low = -4.5, high = 4.7;
  // One product in each direction.
  static constexpr double forward_ulp = 0.5, backward_ulp = 0.5;
  template <class T>
  static void forward(Context& ctx, View<const T> x, View<T> y) {
    leaky_relu_forward<T>(ctx, {.x = x, .y = y, .slope = steepness});
  }
  template <class T>
  static void backward(Context& ctx, View<const T> y, View<const T> dy, View<T> dx, bool add_dx) {
    leaky_relu_backward<T>(ctx, {.y = y, .dy = dy, .dx = dx, .slope = steepness, .add_dx = add_dx});
  }
  static double value(double x) { return reference::leaky_relu_value(x, static_cast<double>(steepness)); }
  static double slope(double y) { return reference::leaky_relu_slope(y, static_cast<double>(steepness)); }
};
}  // namespace

TEST_CASE("leaky_relu", "[leaky_relu]") { pointwise_test<LeakyRelu>(); }

TEST_CASE("leaky_relu at its limits", "[leaky_relu]") {
  for (Device device : devices()) {
    const Shape s{.channels = 5};
    Case c("leaky_relu limits", device, s);
    auto &x = c.values("x", s, {NAN, INFINITY, 0.0f, 1e30f, -1e-30f}), &y = c.output("y", s);
    leaky_relu_forward(c.ctx, {.x = x, .y = y, .slope = steepness});
    CHECK(std::isnan(y.read()[0]));
    CHECK(y.read()[1] == INFINITY);
    CHECK(y.read()[2] == 0);
    CHECK(y.read()[3] == 1e30f);
    CHECK(y.read()[4] == Approx(steepness * -1e-30f));
    CHECK_THROWS_WITH(leaky_relu_forward(c.ctx, {.x = x, .y = y, .slope = 0}),
                      Catch::Contains("leaky_relu_forward: slope"));
    CHECK_THROWS_WITH(leaky_relu_backward(c.ctx, {.y = x, .dy = x, .dx = y, .slope = -1}),
                      Catch::Contains("leaky_relu_backward: slope"));
  }
}
