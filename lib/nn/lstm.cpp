// The layer Lstm: one step per LSTM layer, and the sum with the input of the stack. Streaming plans carry h and c from
// block to block, so a stream has the values of the whole signal.
#include "nacre/ops/lstm.h"

#include <algorithm>

#include "nacre/nn/layers.h"
#include "nn/convolution.h"
#include "nn/layer_costs.h"
#include "nn/streaming.h"
#include "nn/sum.h"

namespace nacre {
namespace {

/// One product per weight and row; the nonlinearities, four gates and the cell, have some 20 operations each. A kernel
/// per time step reads the recurrent weight, the rows of its time, and those of the time before. The other products are
/// convolutions of one tap in float, from float copies of what is stored in bf16, whose sums are not those of other
/// steps.
template <class T>
Costs lstm_costs(Shape x, Shape weight) {
  const auto n = static_cast<double>(x.elements()), one = static_cast<double>(weight.elements()),
             time = static_cast<double>(x.time), products = 2 * static_cast<double>(x.rows()) * one;
  constexpr double bytes = sizeof(T), floats = sizeof(float);
  Shape gates = x, h = x;
  gates.channels = weight.batch, h.channels = weight.batch / 4;
  const Costs of_x = convolution_costs<float>(x, gates, weight, {}, false, false);
  Costs of_h = convolution_costs<float>(h, gates, {.batch = weight.batch, .channels = h.channels}, {}, false, false);
  Costs c{.forward = of_x.forward,
          .input_gradient = of_x.input_gradient,
          .weight_gradient = of_x.weight_gradient,
          .sums_alone = of_x.sums};
  c.weight_gradient += of_h.weight_gradient, c.sums_alone += of_h.sums;
  if (sizeof(T) == 2) {
    c.forward += {.bytes = (bytes + floats) * (n + one), .launches = 2};
    c.weight_gradient += {.bytes = (bytes + floats) * n, .launches = 1};
    c.input_gradient += {.bytes = (bytes + floats) * (n + one), .launches = 2};
  }
  // Forward: per time step sums (4), h and c before, c, y, and the saved gates and cells. The first time step reads no
  // h, the last one passes no gradient back: one reading of the weight less.
  c.forward += {.products = products,
                .floats = 100 * n,
                .bytes = (time - 1) * bytes * one + n * (floats * (4 + 2 + 5) + 2 * bytes),
                .launches = time};
  // Backward: the transposed weight; per time step dy, y, gates, two cells, da of the time after, dc twice, da and h
  // before.
  c.backward = {.products = products,
                .floats = 50 * n,
                .bytes = (time + 1) * bytes * one + n * (floats * (4 + 2 + 4 + 2 + 4 + 1) + 2 * bytes),
                .launches = time + 1};
  return c;
}

/// The recurrence over a block, whose first row is row `first` of the signal. `carried` holds the state from block to
/// block; it is zero before the signal's start. `of_item`: memory for the state of one item.
template <class T>
void forward_in_block(Context& c, LstmForward<T> a, View<float> carried, View<float> of_item, int64_t first) {
  // `before`: rows of this block that lie in front of the signal, because x is late.
  const int64_t batch = a.x.shape.batch, time = a.x.shape.time, before = std::clamp<int64_t>(-first, 0, time);
  if (before == 0) {
    // The state is read before the op writes it; it may be in place.
    a.state = carried, a.state_after = carried;
    return lstm_forward<T>(c, a);
  }
  // Nobody uses the values in front of the signal, but they are defined.
  c.zero(a.y);
  // The state stays zero, as at the start of the stream.
  if (before == time) return;
  const View<const T> x = a.x;
  const View<T> y = a.y;
  a.state_after = of_item;
  for (int64_t b = 0; b < batch; ++b) {
    // Item by item, because the rows of an item are contiguous and those of all items then are not. a.state is empty:
    // the signal starts here with zeros.
    a.x = rows(x, b, before, time - before), a.y = rows(y, b, before, time - before);
    lstm_forward<T>(c, a);
    // The state is h of all items, then c of all items.
    for (int64_t part = 0; part < 2; ++part) c.copy<float>(rows(of_item, part, 0, 1), rows(carried, part, b, 1));
  }
}

}  // namespace

Lstm::Lstm(Parameters& parameters, const std::string& name, int64_t channels, int64_t layers) : name_(name) {
  if (channels < 1 || layers < 1)
    throw Error(ErrorKind::usage,
                name + ": " + std::to_string(layers) + " LSTM layers of " + std::to_string(channels) + " channels");
  const Init init = uniform_by_fan_in(channels);
  // Four gates in the order i, f, g, o.
  const int64_t n = 4 * channels;
  for (int64_t k = 0; k < layers; ++k) {
    const std::string end = "_l" + std::to_string(k);
    const auto weight = [&](const char* which) {
      return &parameters.add_named_weight(name + which + end, {n, channels}, {.batch = n, .channels = channels}, init);
    };
    const auto bias = [&](const char* which) {
      return &parameters.add(name + which + end, {n}, {.channels = n}, init);
    };
    layers_.push_back({weight(".weight_ih"), weight(".weight_hh"), bias(".bias_ih"), bias(".bias_hh")});
  }
}

Flow Lstm::plan(Plan& p, Flow x) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    Flow y = x;
    for (size_t k = 0; k < layers_.size(); ++k) y = plan_layer<T>(p, y, k);
    return sum_of(p, name_ + ".skip", y, x);
  });
}

template <class T>
Flow Lstm::plan_layer(Plan& p, Flow x, size_t k) const {
  const int64_t lag = p.streaming() ? p.lag(x) : 0, per_frame = p.streaming() ? x.shape.time / p.block_frames() : 0;
  const Step s = p.step(name_ + ".l" + std::to_string(k));
  Context& context = p.context();
  const Part& part = layers_[k];
  const Shape shape = x.shape;
  const int64_t channels = shape.channels;
  const auto in = s.reads<T>(x, Until::backward);
  const auto out = s.makes<T>(shape, Until::backward);
  const View<float> gates = s.saved<float>({shape.batch, shape.time, 1, 4 * channels}),
                    cells = s.saved<float>({shape.batch, shape.time, 1, channels});
  const View<float> scratch = s.scratch(lstm_forward_scratch<T>(context, shape, channels), Until::forward),
                    backward_scratch = s.scratch(lstm_backward_scratch<T>(context, shape, channels), Until::backward);
  const WeightGrad dweight_x = s.gradient(*part.weight_x), dweight_h = s.gradient(*part.weight_h);
  const View<float> dbias_x = s.gradient(*part.bias_x), dbias_h = s.gradient(*part.bias_h);
  s.costs(lstm_costs<T>(shape, part.weight_x->shape));
  // The step declares no reach, so it is the own position. The state carries the rest.
  const bool streams = p.streaming();
  const View<float> carried = streams ? s.carries<float>(lstm_state(shape.batch, channels)) : View<float>{},
                    of_item = streams ? s.scratch(lstm_state(1, channels), Until::forward) : View<float>{};
  // The plan owns the block; its content is that of the run in progress.
  const StreamBlock* const block = streams ? &p.block() : nullptr;
  s.forward([=](Context& c) {
    const LstmForward<T> a{.x = in.value,
                           .weight_x = part.weight_x->value<T>(),
                           .weight_h = part.weight_h->value<T>(),
                           .bias_x = part.bias_x->value,
                           .bias_h = part.bias_h->value,
                           .y = out.value,
                           .gates = gates,
                           .cells = cells,
                           .scratch = scratch};
    if (block != nullptr)
      forward_in_block<T>(c, a, carried, of_item, first_row(*block, per_frame, lag));
    else
      lstm_forward<T>(c, a);
  });
  s.backward([=](Context& c) {
    lstm_backward<T>(c, {.x = in.value,
                         .weight_x = part.weight_x->value<T>(),
                         .weight_h = part.weight_h->value<T>(),
                         .y = out.value,
                         .gates = gates,
                         .cells = cells,
                         .dy = out.grad,
                         .dx = in.grad,
                         .dweight_x = dweight_x.grad,
                         .dweight_h = dweight_h.grad,
                         .dbias_x = dbias_x,
                         .dbias_h = dbias_h,
                         .scratch = backward_scratch,
                         .add_dx = in.add,
                         .add_dweight_x = dweight_x.add,
                         .add_dweight_h = dweight_h.add});
  });
  return out.flow;
}

}  // namespace nacre
