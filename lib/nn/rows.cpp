// rows_of(): a part of an activation along its time axis.
#include <algorithm>

#include "nacre/nn/layers.h"
#include "nacre/ops/add.h"

namespace nacre {
namespace {

template <class T>
Flow plan_rows(Plan& p, Flow x, int64_t first, int64_t time) {
  const Step s = p.step("rows");
  Shape shape = x.shape;
  shape.time = time;
  // Row t of y is row first + t of x. y is `before` rows of zeros, `kept` rows of x that begin at `from`, and zeros.
  const int64_t row = x.shape.width * x.shape.channels, before = std::clamp<int64_t>(-first, 0, time),
                from = std::max<int64_t>(0, first), kept = std::clamp(x.shape.time - from, int64_t{0}, time - before);
  const auto in = s.reads<T>(x);
  const auto out = s.makes<T>(shape);
  const auto bytes = [](Shape of) { return static_cast<double>(of.elements()) * sizeof(T); };
  const double copied = bytes({x.shape.batch, kept, x.shape.width, x.shape.channels});
  // Zeros, then a copy. Where the gradient is added to, a kernel per item reads the rows that are kept once more, and
  // nothing is cleared.
  s.costs({.forward = {.bytes = bytes(shape) + 2 * copied}, .input_gradient = {.bytes = bytes(x.shape) + 2 * copied}});
  s.costs_adding(x, {.bytes = copied - bytes(x.shape), .launches = static_cast<double>(x.shape.batch)});
  s.reaches(x, {.left = -first});
  // Rows of one item, empty if none are kept.
  const auto part = [=](auto view, int64_t item, int64_t start, int64_t count) {
    view.data += (item * view.shape.time + start) * row;
    view.shape.batch = 1, view.shape.time = count;
    return view;
  };
  s.forward([=](Context& c) {
    c.zero(out.value);
    if (kept > 0)
      for (int64_t b = 0; b < shape.batch; ++b)
        c.copy<T>(part(in.value, b, from, kept), part(out.value, b, before, kept));
  });
  s.backward([=](Context& c) {
    if (!in.grad) return;
    // Rows of x that y leaves out get a zero gradient. accumulate() below then writes or adds the rest.
    if (!in.add) c.zero(in.grad);
    if (kept > 0)
      for (int64_t b = 0; b < shape.batch; ++b)
        accumulate<T>(c, {.x = part(out.grad, b, before, kept), .y = part(in.grad, b, from, kept), .add = in.add});
  });
  return out.flow;
}

}  // namespace

Flow rows_of(Plan& p, Flow x, int64_t first, int64_t time) {
  if (first == 0 && time == x.shape.time) return x;
  if (p.streaming()) {
    if (time != x.shape.time || first < 0)
      throw Error(ErrorKind::usage, "rows: cannot be streamed: " + std::to_string(time) + " rows from " +
                                        std::to_string(first) + " of " + std::to_string(x.shape.time));
    // Nothing is copied: the same memory holds the rows of y, with a larger lag. What y has behind the end of x is then
    // undefined, like all rows outside of a signal (StreamBlock). A streaming plan has no gradient that detach() could
    // stop.
    const Flow y = p.detach(x);
    p.set_lag(y, p.lag(x) + first);
    return y;
  }
  return visit(x.storage, [&]<class T>(Type<T>) { return plan_rows<T>(p, x, first, time); });
}

}  // namespace nacre
