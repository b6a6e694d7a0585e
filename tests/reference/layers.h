#pragma once
// Layers in double, on a tape. Each calls the reference of its op for the values and for the gradients. Names and
// layouts of parameters are those of checkpoints. `conv1d` is an example of a layer, and reference/codec.h has examples
// of networks.
#include "nacre/ops/conv1d.h"
#include "nacre/ops/conv2d.h"
#include "reference/conv1d.h"
#include "reference/conv2d.h"
#include "reference/elu.h"
#include "reference/film.h"
#include "reference/group_norm.h"
#include "reference/leaky_relu.h"
#include "reference/lstm.h"
#include "reference/snake.h"
#include "reference/tanh.h"
#include "reference/tape.h"
#include "reference/weight_norm.h"

namespace nacre::test {

// --- Joining layers

/// Layers in sequence.
struct Chain {
  std::vector<Layer> layers;

  Chain& operator<<(Layer layer) { return layers.push_back(std::move(layer)), *this; }
  Node* operator()(Tape& t, Node* x) const {
    for (const Layer& layer : layers) x = layer(t, x);
    return x;
  }
};

/// sum_i factor_i x_i. All x_i have one shape.
inline Node* sum(Tape& t, const std::vector<std::pair<double, Node*>>& terms) {
  Values v(terms.at(0).second->value.size());
  std::vector<Node*> inputs;
  for (const auto& [factor, x] : terms) {
    inputs.push_back(x);
    for (size_t i = 0; i < v.size(); ++i) v[i] += factor * x->value.at(i);
  }
  Node* y = t.make(inputs[0]->shape, std::move(v), inputs);
  t.back(y, [&t, terms, y] {
    for (const auto& [factor, x] : terms) t.pass(x, y->gradient, factor);
  });
  return y;
}

/// layer(x) + x.
inline Layer residual(Layer layer) {
  return [layer = std::move(layer)](Tape& t, Node* x) { return sum(t, {{1, layer(t, x)}, {1, x}}); };
}

/// Activations side by side along the width. All have one batch, time and channels.
inline Node* beside(Tape& t, const std::vector<Node*>& parts) {
  Shape shape = parts.at(0)->shape;
  shape.width = 0;
  for (const Node* part : parts) shape.width += part->shape.width;
  Values v(static_cast<size_t>(shape.elements()));
  const size_t channels = static_cast<size_t>(shape.channels), row = static_cast<size_t>(shape.width) * channels;
  // f(index in the whole, part, index in the part)
  const auto each = [=](auto&& f) {
    size_t begin = 0;
    for (Node* part : parts) {
      const size_t length = static_cast<size_t>(part->shape.width) * channels;
      for (size_t i = 0; i < part->value.size(); ++i) f(i / length * row + begin + i % length, part, i);
      begin += length;
    }
  };
  each([&](size_t whole, const Node* part, size_t i) { v[whole] = part->value[i]; });
  Node* y = t.make(shape, std::move(v), parts);
  t.back(y, [=] {
    each([&](size_t whole, Node* part, size_t i) {
      if (part->tracked) part->gradient[i] += y->gradient[whole];
    });
  });
  return y;
}

// --- Activations

/// y = f(x) elementwise. slope(x, y) is its derivative.
inline Node* pointwise(Tape& t, Node* x, const std::function<double(double)>& f,
                       const std::function<double(double, double)>& slope) {
  Values v;
  for (const double value : x->value) v.push_back(f(value));
  Node* y = t.make(x->shape, std::move(v), {x});
  t.back(y, [&t, x, y, slope] {
    Values dx = y->gradient;
    for (size_t i = 0; i < dx.size(); ++i) dx[i] *= slope(x->value[i], y->value[i]);
    t.add(x, std::move(dx));
  });
  return y;
}
inline Node* elu(Tape& t, Node* x) {
  return pointwise(
      t, x, [](double v) { return nacre::reference::elu_value(v, 1); },
      [](double, double y) { return nacre::reference::elu_slope(y, 1); });
}
inline Node* tanh(Tape& t, Node* x) {
  return pointwise(
      t, x, [](double v) { return nacre::reference::tanh_value(v); },
      [](double, double y) { return nacre::reference::tanh_slope(y); });
}
inline Layer leaky_relu(double negative_slope) {
  return [=](Tape& t, Node* x) {
    return pointwise(
        t, x, [=](double v) { return nacre::reference::leaky_relu_value(v, negative_slope); },
        [=](double, double y) { return nacre::reference::leaky_relu_slope(y, negative_slope); });
  };
}
/// The parameters are <name>.gamma and <name>.beta [labels][channels]; every item has a label.
inline Layer film(std::string name, std::vector<int32_t> labels) {
  return [=](Tape& t, Node* x) {
    Node *gamma = t.parameter(name + ".gamma"), *beta = t.parameter(name + ".beta");
    const auto parameters = [=] {
      return nacre::reference::Film{labels, static_cast<size_t>(x->shape.channels), gamma->value, beta->value};
    };
    Node* y = t.make(x->shape, nacre::reference::film(parameters(), x->value), {x, gamma, beta});
    t.back(y, [=, &t] {
      nacre::reference::FilmGradients g = nacre::reference::film_gradients(parameters(), x->value, y->gradient);
      t.add(x, std::move(g.dx)), t.add(gamma, std::move(g.dgamma)), t.add(beta, std::move(g.dbeta));
    });
    return y;
  };
}
/// The parameter is <name>.alpha, one value per channel. With with_beta there is <name>.beta as well, and both are
/// logarithms.
inline Layer snake(std::string name, bool with_beta) {
  return [=](Tape& t, Node* x) {
    Node *alpha = t.parameter(name + ".alpha"), *beta = with_beta ? t.parameter(name + ".beta") : nullptr;
    const auto at = [=](size_t i) {
      const size_t c = i % alpha->value.size();
      return nacre::reference::SnakeParameters{alpha->value[c], with_beta ? beta->value[c] : 0, with_beta, with_beta};
    };
    Values v;
    for (size_t i = 0; i < x->value.size(); ++i) v.push_back(nacre::reference::snake(x->value[i], at(i)));
    Node* y = t.make(x->shape, std::move(v), {x, alpha, beta});
    t.back(y, [=, &t] {
      Values dx = y->gradient, dalpha(alpha->value.size()), dbeta(dalpha.size());
      for (size_t i = 0; i < dx.size(); ++i) {
        const auto slopes = nacre::reference::snake_slopes(x->value[i], at(i));
        dalpha[i % dalpha.size()] += dx[i] * slopes.alpha, dbeta[i % dbeta.size()] += dx[i] * slopes.beta;
        dx[i] *= slopes.x;
      }
      t.add(x, std::move(dx)), t.add(alpha, std::move(dalpha)), t.add(beta, std::move(dbeta));
    });
    return y;
  };
}

// --- Normalisation

/// Mean and variance over each position, or over all positions of an item. The parameters are <name>.weight and
/// <name>.bias.
inline Layer group_norm(std::string name, int64_t groups, bool per_position) {
  return [=](Tape& t, Node* x) {
    Node *gain = t.parameter(name + ".weight"), *bias = t.parameter(name + ".bias");
    const nacre::reference::GroupNorm op{
        static_cast<size_t>(x->shape.batch), static_cast<size_t>(x->shape.time * x->shape.width),
        static_cast<size_t>(x->shape.channels), static_cast<size_t>(groups), per_position};
    Node* y = t.make(x->shape, op.forward(x->value, gain->value, bias->value), {x, gain, bias});
    t.back(y, [=, &t] {
      auto d = op.backward(x->value, gain->value, y->gradient);
      t.add(x, std::move(d.x)), t.add(gain, std::move(d.gain)), t.add(bias, std::move(d.bias));
    });
    return y;
  };
}

// --- Recurrence

/// Layer k of a stack, with the parameters <name>.weight_ih_l<k>, weight_hh_l<k>, bias_ih_l<k> and bias_hh_l<k>.
inline Node* lstm_layer(Tape& t, const std::string& name, int64_t k, Node* x) {
  const auto parameter = [&](const char* which) { return t.parameter(name + which + "_l" + std::to_string(k)); };
  Node *weight_x = parameter(".weight_ih"), *weight_h = parameter(".weight_hh"), *bias_x = parameter(".bias_ih"),
       *bias_h = parameter(".bias_hh");
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const nacre::reference::Lstm op{size(x->shape.batch), size(x->shape.time), size(x->shape.channels),
                                  bias_x->value.size() / 4};
  const nacre::reference::Lstm::Parameters p{weight_x->value, weight_h->value, bias_x->value, bias_h->value};
  auto result = op.forward(p, x->value);
  result.gates = t.stored(std::move(result.gates)), result.cells = t.stored(std::move(result.cells));
  Shape shape = x->shape;
  shape.channels = static_cast<int64_t>(op.hidden);
  Node* y = t.make(shape, result.y, {x, weight_x, weight_h, bias_x, bias_h});
  t.back(y, [=, &t] {
    auto d = op.backward(p, x->value, result, y->gradient);
    t.add(x, std::move(d.x)), t.add(weight_x, std::move(d.weight_x)), t.add(weight_h, std::move(d.weight_h));
    t.add(bias_x, d.bias), t.add(bias_h, std::move(d.bias));
  });
  return y;
}
/// A stack of layers, and the sum with its input.
inline Layer lstm(std::string name, int64_t layers) {
  return residual([=](Tape& t, Node* x) {
    for (int64_t k = 0; k < layers; ++k) x = lstm_layer(t, name, k, x);
    return x;
  });
}

// --- Convolutions

/// The form of a layer's weight: <name>.weight, or the product of <name>.weight_v and one gain <name>.weight_g per row.
enum class WeightForm : uint8_t { plain, normalised };

inline Node* weight(Tape& t, const std::string& name, WeightForm form) {
  if (form == WeightForm::plain) return t.parameter(name + ".weight");
  Node *v = t.parameter(name + ".weight_v"), *g = t.parameter(name + ".weight_g");
  const size_t rows = g->value.size(), length = v->value.size() / rows;
  const auto row = [length](const Values& all, size_t r) {
    return Values(all.begin() + static_cast<long>(r * length), all.begin() + static_cast<long>((r + 1) * length));
  };
  Values effective;
  for (size_t r = 0; r < rows; ++r) {
    const Values one = nacre::reference::weight_norm(row(v->value, r), g->value[r]);
    effective.insert(effective.end(), one.begin(), one.end());
  }
  Node* w = t.make(v->shape, std::move(effective), {v, g});
  t.back(w, [=, &t] {
    Values dv, dg;
    for (size_t r = 0; r < rows; ++r) {
      const auto d = nacre::reference::weight_norm_gradient(row(v->value, r), g->value[r], row(w->gradient, r));
      dv.insert(dv.end(), d.dv.begin(), d.dv.end());
      dg.push_back(d.dg);
    }
    t.add(v, std::move(dv)), t.add(g, std::move(dg));
  });
  return w;
}

/// Transposes [rows][a][b] to [rows][b][a]. Taps are innermost in files, channels in the reference of the op.
inline Values swapped(const Values& v, int64_t a, int64_t b) {
  Values out(v.size());
  const size_t na = static_cast<size_t>(a), nb = static_cast<size_t>(b);
  for (size_t i = 0; i < v.size(); ++i) {
    const size_t row = i / (na * nb), at = i % (na * nb);
    out[row * na * nb + at % nb * na + at / nb] = v[i];
  }
  return out;
}
/// Adds a bias of one value per channel to v, if there is one.
inline void add_bias(Values& v, const Node* bias) {
  for (size_t i = 0; bias != nullptr && i < v.size(); ++i) v[i] += bias->value[i % bias->value.size()];
}
inline void add_bias_gradient(Tape& t, Node* bias, const Values& dy) {
  if (bias == nullptr) return;
  Values sums(bias->value.size());
  for (size_t i = 0; i < dy.size(); ++i) sums[i % sums.size()] += dy[i];
  t.add(bias, std::move(sums));
}
inline Node* bias_of(Tape& t, const std::string& name) {
  return t.parameters.count(name + ".bias") > 0 ? t.parameter(name + ".bias") : nullptr;
}

inline ::reference::Conv1d op_of(Shape x, int64_t out, int64_t taps, const Conv1dGeometry& g) {
  return {x.batch,
          x.time,
          x.channels,
          out,
          taps,
          g.stride,
          g.dilation,
          g.groups,
          g.left,
          g.right,
          g.padding == Padding::reflect};
}
/// The weight is [out][in / groups][taps]. <name>.bias is optional.
inline Layer conv1d(std::string name, int64_t taps, Conv1dGeometry g = {}, WeightForm form = WeightForm::normalised) {
  return [=](Tape& t, Node* x) {
    Node *w = weight(t, name, form), *bias = bias_of(t, name);
    const int64_t inner = x->shape.channels / g.groups;
    const int64_t out = static_cast<int64_t>(w->value.size()) / (taps * inner);
    const ::reference::Conv1d c = op_of(x->shape, out, taps, g);
    const Values taps_first = swapped(w->value, inner, taps);
    Values v = c.forward(x->value, taps_first);
    add_bias(v, bias);
    Node* y = t.make({.batch = c.batch, .time = c.length(), .channels = out}, std::move(v), {x, w, bias});
    t.back(y, [=, &t] {
      t.add(w, swapped(c.weight_gradient(x->value, y->gradient), taps, inner));
      add_bias_gradient(t, bias, y->gradient);
      t.add(x, c.input_gradient(y->gradient, taps_first));
    });
    return y;
  };
}

/// Reverses the axes after the first: [rows][a][b][c] to [rows][c][b][a].
inline Values reversed(const Values& v, int64_t a, int64_t b, int64_t c) {
  Values out(v.size());
  const size_t na = static_cast<size_t>(a), nb = static_cast<size_t>(b), nc = static_cast<size_t>(c);
  for (size_t i = 0; i < v.size(); ++i) {
    const size_t at_c = i % nc, at_b = i / nc % nb, at_a = i / nc / nb % na, row = i / nc / nb / na;
    out[((row * nc + at_c) * nb + at_b) * na + at_a] = v[i];
  }
  return out;
}
/// The weight is [out][in][taps of time][taps of width]. <name>.bias is optional.
inline Layer conv2d(std::string name, int64_t taps_time, int64_t taps_width, Conv2dGeometry g = {},
                    WeightForm form = WeightForm::normalised) {
  return [=](Tape& t, Node* x) {
    Node *w = weight(t, name, form), *bias = bias_of(t, name);
    const int64_t in = x->shape.channels, out = static_cast<int64_t>(w->value.size()) / (taps_time * taps_width * in);
    const auto axis = [](int64_t taps, const Conv2dAxis& a) {
      return ::reference::Conv2d::Axis{taps, a.stride, a.dilation, a.left, a.right};
    };
    const ::reference::Conv2d c{x->shape.batch,
                                x->shape.time,
                                x->shape.width,
                                in,
                                out,
                                axis(taps_time, g.time),
                                axis(taps_width, g.width),
                                g.first_column,
                                g.columns > 0 ? g.columns : x->shape.width - g.first_column};
    const Values taps_first = reversed(w->value, in, taps_time, taps_width);
    Values v = c.forward(x->value, taps_first);
    add_bias(v, bias);
    Node* y = t.make({c.batch, c.y_frames(), c.y_width(), out}, std::move(v), {x, w, bias});
    t.back(y, [=, &t] {
      t.add(w, reversed(c.weight_gradient(x->value, y->gradient), taps_width, taps_time, in));
      add_bias_gradient(t, bias, y->gradient);
      t.add(x, c.input_gradient(y->gradient, taps_first));
    });
    return y;
  };
}

/// The input gradient of the convolution from y to x with geometry g. The weight is [in][out / groups][taps].
inline Layer conv_transpose1d(std::string name, int64_t taps, Conv1dGeometry g, int64_t output_padding = 0,
                              WeightForm form = WeightForm::normalised) {
  return [=](Tape& t, Node* x) {
    Node *w = weight(t, name, form), *bias = bias_of(t, name);
    const int64_t in = x->shape.channels, inner = static_cast<int64_t>(w->value.size()) / (taps * in);
    const int64_t time =
        (x->shape.time - 1) * g.stride + g.dilation * (taps - 1) + 1 - g.left - g.right + output_padding;
    const Shape shape{.batch = x->shape.batch, .time = time, .channels = inner * g.groups};
    const ::reference::Conv1d c = op_of(shape, in, taps, g);
    if (c.length() != x->shape.time) throw std::logic_error(name + ": not the mirror image of a convolution");
    const Values taps_first = swapped(w->value, inner, taps);
    Values v = c.input_gradient(x->value, taps_first);
    add_bias(v, bias);
    Node* y = t.make(shape, std::move(v), {x, w, bias});
    t.back(y, [=, &t] {
      t.add(w, swapped(c.weight_gradient(y->gradient, x->value), taps, inner));
      add_bias_gradient(t, bias, y->gradient);
      t.add(x, c.forward(y->gradient, taps_first));
    });
    return y;
  };
}

}  // namespace nacre::test
