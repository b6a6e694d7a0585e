#include "nacre/ops/tanh.h"

#include "ops/pointwise.h"
#include "reference/tanh.h"

using namespace nacre;
using namespace nacre::test;

namespace {
struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr double low = -6, high = 6;
  // The forward error is the bound of vector_math.h. Backward has four roundings, of 1 - y, 1 + y and two products.
  static constexpr double forward_ulp = 3, backward_ulp = 2;
  template <class T>
  static void forward(Context& ctx, View<const T> x, View<T> y) {
    tanh_forward<T>(ctx, {.x = x, .y = y});
  }
  template <class T>
  static void backward(Context& ctx, View<const T> y, View<const T> dy, View<T> dx, bool add_dx) {
    tanh_backward<T>(ctx, {.y = y, .dy = dy, .dx = dx, .add_dx = add_dx});
  }
  static double value(double x) { return reference::tanh_value(x); }
  static double slope(double y) { return reference::tanh_slope(y); }
};
}  // namespace

TEST_CASE("tanh", "[tanh]") { pointwise_test<Tanh>(); }
