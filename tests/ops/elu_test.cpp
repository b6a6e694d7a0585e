#include "nacre/ops/elu.h"

#include "ops/pointwise.h"
#include "reference/elu.h"

using namespace nacre;
using namespace nacre::test;

namespace {
constexpr float alpha = 0.8f;
struct Elu {
  static constexpr const char* name = "elu";
  static constexpr double low = -4.5, high = 4.7;
  // The forward error is the bound of vector_math.h and one product. Backward has one sum and one product.
  static constexpr double forward_ulp = 4, backward_ulp = 2;
  template <class T>
  static void forward(Context& ctx, View<const T> x, View<T> y) {
    elu_forward<T>(ctx, {.x = x, .y = y, .alpha = alpha});
  }
  template <class T>
  static void backward(Context& ctx, View<const T> y, View<const T> dy, View<T> dx, bool add_dx) {
    elu_backward<T>(ctx, {.y = y, .dy = dy, .dx = dx, .alpha = alpha, .add_dx = add_dx});
  }
  static double value(double x) { return reference::elu_value(x, static_cast<double>(alpha)); }
  static double slope(double y) { return reference::elu_slope(y, static_cast<double>(alpha)); }
};
}  // namespace

TEST_CASE("elu", "[elu]") { pointwise_test<Elu>(); }

TEST_CASE("elu at its limits", "[elu]") {
  for (Device device : devices()) {
    const Shape s{.channels = 5};
    Case c("elu limits", device, s);
    auto &x = c.values("x", s, {NAN, INFINITY, 0.0f, 1e30f, -1e-30f}), &y = c.output("y", s);
    elu_forward(c.ctx, {.x = x, .y = y, .alpha = alpha});
    CHECK(std::isnan(y.read()[0]));
    CHECK(y.read()[1] == INFINITY);
    CHECK(y.read()[2] == 0);
    CHECK(y.read()[3] == 1e30f);
    CHECK(y.read()[4] == Approx(alpha * -1e-30f));
    CHECK_THROWS_WITH(elu_forward(c.ctx, {.x = x, .y = y, .alpha = 0}), Catch::Contains("elu_forward: alpha"));
    CHECK_THROWS_WITH(elu_backward(c.ctx, {.y = x, .dy = x, .dx = y, .alpha = -1}),
                      Catch::Contains("elu_backward: alpha"));
  }
}
