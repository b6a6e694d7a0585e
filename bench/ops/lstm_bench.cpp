#include "nacre/ops/lstm.h"

#include <cmath>

#include "harness.h"

namespace nacre::bench {
namespace {

/// `s` is the shape of x and y.
template <class T>
void add_lstm(Suite& suite, Shape s) {
  const int64_t hidden = s.channels, rows = s.rows();
  const Shape weight{4 * hidden, 1, 1, hidden}, gates{s.batch, s.time, 1, 4 * hidden}, per_gate{.channels = 4 * hidden};
  const double width = 1 / std::sqrt(static_cast<double>(hidden));
  const std::string type = type_name<T>(), shape = "/" + type + "/" + label(s);
  constexpr int64_t size = sizeof(T);
  // weight_h is read in every step.
  const int64_t weights = (s.time + 1) * weight.elements() * size;
  suite.add({.name = "lstm_forward" + shape,
             .bytes = weights + rows * hidden * (2 * size + 5 * 4),
             .flops = 2 * rows * 2 * weight.elements(),
             .parameters = tensor_parameters("lstm", "forward", type, s)},
            [=](Data& data) -> Run {
              const LstmForward<T> a{.x = data.random<T>(s),
                                     .weight_x = data.random<T>(weight, -width, width),
                                     .weight_h = data.random<T>(weight, -width, width),
                                     .bias_x = data.random(per_gate, -width, width),
                                     .bias_h = data.random(per_gate, -width, width),
                                     .y = data.random<T>(s),
                                     .gates = data.random(gates),
                                     .cells = data.random(s),
                                     .scratch = data.random(lstm_forward_scratch<T>(data.ctx, s, hidden))};
              return [=](Context& ctx) { lstm_forward<T>(ctx, a); };
            });
  suite.add({.name = "lstm_backward" + shape,
             .bytes = weights + rows * hidden * (4 * size + 5 * 4) + 3 * weight.elements() * 4,
             .flops = 4 * rows * 2 * weight.elements(),
             .parameters = tensor_parameters("lstm", "backward", type, s)},
            [=](Data& data) -> Run {
              const LstmBackward<T> a{.x = data.random<T>(s),
                                      .weight_x = data.random<T>(weight, -width, width),
                                      .weight_h = data.random<T>(weight, -width, width),
                                      .y = data.random<T>(s),
                                      .gates = data.random(gates, 0, 1),
                                      .cells = data.random(s),
                                      .dy = data.random<T>(s),
                                      .dx = data.random<T>(s),
                                      .dweight_x = data.random(weight),
                                      .dweight_h = data.random(weight),
                                      .dbias_x = data.random(per_gate),
                                      .dbias_h = data.random(per_gate),
                                      .scratch = data.random(lstm_backward_scratch<T>(data.ctx, s, hidden)),
                                      .add_dweight_x = false,
                                      .add_dweight_h = false};
              return [=](Context& ctx) { lstm_backward<T>(ctx, a); };
            });
}

// A second of EnCodec's latent at 24 kHz: inference, and a batch of training.
const Cases cases([](Suite& suite) {
  for (const Shape s :
       suite.shapes({{.batch = 1, .time = 75, .channels = 512}, {.batch = 16, .time = 75, .channels = 512}})) {
    add_lstm<float>(suite, s);
    if (suite.cuda()) add_lstm<bf16>(suite, s);
  }
});

}  // namespace
}  // namespace nacre::bench
