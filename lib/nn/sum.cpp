// a + b. Both gradients are dy. At most one of a and b can share dy's memory (Step::passes); the other one gets a copy,
// or dy is added to what it has.
#include "nn/sum.h"

#include <algorithm>

#include "nacre/nn/layers.h"
#include "nacre/ops/add.h"
#include "nn/streaming.h"

namespace nacre {
namespace {

template <class T>
Flow plan_sum(Plan& p, const std::string& name, Flow a, Flow b) {
  const Step s = p.step(name);
  const auto out = s.makes<T>(a.shape);
  const auto left = s.passes<T>(a, out.flow), right = s.passes<T>(b, out.flow);
  s.costs({.forward = {.bytes = 3.0 * sizeof(T) * static_cast<double>(a.shape.elements()), .launches = 1}});
  s.forward([=](Context& c) { add<T>(c, {.a = left.value, .b = right.value, .y = out.value}); });
  s.backward([=](Context& c) {
    // If a and b are one activation, its last reading overwrites the gradient and comes first.
    for (const Input<T>& to : {right, left})
      if (to.grad) accumulate<T>(c, {.x = out.grad, .y = to.grad, .add = to.add});
  });
  return out.flow;
}

}  // namespace

Flow sum_of(Plan& p, const std::string& name, Flow a, Flow b) {
  if (p.streaming()) {
    // The earlier one waits; delayed() returns the later one unchanged.
    const int64_t lag = std::max(p.lag(a), p.lag(b));
    a = delayed(p, name, a, lag), b = delayed(p, name, b, lag);
  }
  return visit(a.storage, [&]<class T>(Type<T>) { return plan_sum<T>(p, name, a, b); });
}

}  // namespace nacre
