#pragma once
// Layers and losses in double, on a tape. Each calls the reference of its op for the values and for the gradients; names
// of parameters and layouts are those of checkpoints. A new layer is made like `conv1d`, a new network like `codec.h`.
#include <memory>
#include <numeric>

#include "nacre/ops/conv1d.h"
#include "reference/balancer.h"
#include "reference/conv1d.h"
#include "reference/elu.h"
#include "reference/leaky_relu.h"
#include "reference/rvq.h"
#include "reference/snake.h"
#include "reference/spectral.h"
#include "reference/tanh.h"
#include "reference/tape.h"
#include "reference/waveform_loss.h"
#include "reference/weight_norm.h"

namespace nacre::test {

// --- Joining layers

/// Layers one after the other.
struct Chain {
  std::vector<Layer> layers;

  Chain& operator<<(Layer layer) { return layers.push_back(std::move(layer)), *this; }
  Node* operator()(Tape& t, Node* x) const {
    for (const Layer& layer : layers) x = layer(t, x);
    return x;
  }
};

/// sum_i factor_i x_i of values of one shape.
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

// --- Activations

/// y = f(x) elementwise; slope(x, y) is its derivative.
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
/// <name>.alpha, one per channel; with_beta: <name>.beta as well, and both are logarithms.
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

// --- Convolutions

/// Whether a layer's weight is <name>.weight, or made of <name>.weight_v and one gain <name>.weight_g per row.
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

/// [rows][a][b] as [rows][b][a]: files hold taps innermost, the reference of the op has channels there.
inline Values swapped(const Values& v, int64_t a, int64_t b) {
  Values out(v.size());
  const size_t na = static_cast<size_t>(a), nb = static_cast<size_t>(b);
  for (size_t i = 0; i < v.size(); ++i) {
    const size_t row = i / (na * nb), at = i % (na * nb);
    out[row * na * nb + at % nb * na + at / nb] = v[i];
  }
  return out;
}
/// A bias of one value per channel is added to v where there is one.
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

/// Weight [out][in / groups][taps]; <name>.bias where there is one.
inline Layer conv1d(std::string name, int64_t taps, Conv1dGeometry g = {}, WeightForm form = WeightForm::normalised) {
  return [=](Tape& t, Node* x) {
    Node *w = weight(t, name, form), *bias = bias_of(t, name);
    const int64_t in = x->shape.channels, inner = in / g.groups;
    const int64_t out = static_cast<int64_t>(w->value.size()) / (taps * inner);
    const ::reference::Conv1d c{x->shape.batch,
                                x->shape.time,
                                in,
                                out,
                                taps,
                                g.stride,
                                g.dilation,
                                g.groups,
                                g.left,
                                g.right,
                                g.padding == Padding::reflect};
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

/// The input gradient of the convolution from y to x with geometry g. Weight [in][out / groups][taps].
inline Layer conv_transpose1d(std::string name, int64_t taps, Conv1dGeometry g, int64_t output_padding = 0,
                              WeightForm form = WeightForm::normalised) {
  return [=](Tape& t, Node* x) {
    Node *w = weight(t, name, form), *bias = bias_of(t, name);
    const int64_t in = x->shape.channels, inner = static_cast<int64_t>(w->value.size()) / (taps * in);
    const int64_t time =
        (x->shape.time - 1) * g.stride + g.dilation * (taps - 1) + 1 - g.left - g.right + output_padding;
    const ::reference::Conv1d c{x->shape.batch, time,     inner * g.groups, in,      taps, g.stride,
                                g.dilation,     g.groups, g.left,           g.right, false};
    if (c.length() != x->shape.time) throw std::logic_error(name + ": not the mirror image of a convolution");
    const Values taps_first = swapped(w->value, inner, taps);
    Values v = c.input_gradient(x->value, taps_first);
    add_bias(v, bias);
    Node* y = t.make({.batch = c.batch, .time = time, .channels = c.in}, std::move(v), {x, w, bias});
    t.back(y, [=, &t] {
      t.add(w, swapped(c.weight_gradient(y->gradient, x->value), taps, inner));
      add_bias_gradient(t, bias, y->gradient);
      t.add(x, c.forward(y->gradient, taps_first));
    });
    return y;
  };
}

// --- Residual vector quantisation with given codes

struct Quantised {
  Node *y, *commitment, *codebook;             ///< the two losses have no weights yet
  std::shared_ptr<const RvqReference> stages;  ///< what went in and came out of every stage
};
/// `given` says stages, codes, dim, factorised, orthogonal, and per row chosen, used and valid; the rest comes from z and
/// from the parameters of <name>.0, <name>.1, ... y has the value of the codes; its gradient goes straight through to z.
inline Quantised quantise(Tape& t, Node* z, const std::string& name, const RvqReference& given) {
  using Rvq = RvqReference;
  struct Part {
    std::string name;
    Values Rvq::*value, Rvq::*gradient;
    bool normalised = false;
  };
  static const std::vector<Part> parts{{".codebook.weight", &Rvq::codebooks, &Rvq::dcodebooks},
                                       {".in_proj", &Rvq::in_weight, &Rvq::din_weight, true},
                                       {".in_proj.bias", &Rvq::in_bias, &Rvq::din_bias},
                                       {".out_proj", &Rvq::out_weight, &Rvq::dout_weight, true},
                                       {".out_proj.bias", &Rvq::out_bias, &Rvq::dout_bias}};
  const auto q = std::make_shared<Rvq>(given);
  q->rows = z->shape.rows(), q->latent = z->shape.channels, q->z = z->value;
  std::vector<Node*> inputs{z};
  std::vector<std::pair<Node*, Values Rvq::*>> pieces;  // where each piece of a stacked gradient belongs
  const auto append = [](Values& all, const Values& one) { all.insert(all.end(), one.begin(), one.end()); };
  for (int64_t i = 0; i < q->stages; ++i) {
    const std::string stage = name + "." + std::to_string(i);
    if (!q->factorised) append(q->codebooks, t.parameters.at(stage + ".codebook.embed"));  // moving averages: constant
    for (const Part& part : parts) {
      if (!q->factorised) break;
      Node* p = part.normalised ? weight(t, stage + part.name, WeightForm::normalised) : t.parameter(stage + part.name);
      append((*q).*part.value, p->value);
      inputs.push_back(p), pieces.emplace_back(p, part.gradient);
    }
  }
  q->freeze();
  q->frozen_e = t.held(q->frozen_e), q->frozen_codes = t.held(q->frozen_codes);
  q->forward();
  Values y = q->y;
  if (!q->factorised) {  // z plus a constant: the codes depend on no parameter
    for (size_t i = 0; i < y.size(); ++i) y[i] -= q->z[i];
    y = t.held(y);
    for (size_t i = 0; i < y.size(); ++i) y[i] += q->z[i];
  }
  const Quantised out{t.make(z->shape, std::move(y), inputs), t.make({}, {q->commitment}, inputs),
                      t.make({}, {q->codebook_loss}, inputs), q};
  t.back(out.y, [=, &t] {
    q->dy = out.y->gradient;
    q->commitment_weight = out.commitment->gradient[0], q->codebook_weight = out.codebook->gradient[0];
    q->backward();
    t.add(z, q->dz);
    const size_t per_stage = pieces.size() / static_cast<size_t>(q->stages);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto& [node, gradient] = pieces[i];
      const auto from = ((*q).*gradient).begin() + static_cast<long>(i / per_stage * node->value.size());
      t.add(node, Values(from, from + static_cast<long>(node->value.size())));
    }
  });
  return out;
}

// --- Losses: nodes of one value. Lengths are valid samples per item; a target gets no gradient.

/// A weighted total is sum(t, {{weight, loss}, ...}).
inline Node* mean(Tape& t, Node* x) {
  const double count = static_cast<double>(x->value.size());
  Node* y = t.make({}, {std::accumulate(x->value.begin(), x->value.end(), 0.0) / count}, {x});
  t.back(y, [=, &t] { t.add(x, Values(x->value.size(), y->gradient[0] / count)); });
  return y;
}

inline Node* waveform_loss(Tape& t, Node* estimate, const Values& target, const std::vector<int32_t>& lengths,
                           bool squared = false) {
  const auto loss = nacre::reference::waveform_loss(estimate->value, target, {lengths.begin(), lengths.end()},
                                                    estimate->shape.time, squared);
  Node* y = t.make({}, {loss.loss}, {estimate});
  t.back(y, [=, &t] {
    Values dx = loss.gradient;
    for (double& d : dx) d *= y->gradient[0];
    t.add(estimate, std::move(dx));
  });
  return y;
}

struct SpectralNodes {
  Node *stft, *mel;
};
inline SpectralNodes spectral_loss(Tape& t, const SpectralConfig& config, Node* estimate, const Values& target,
                                   const std::vector<int32_t>& lengths) {
  const auto loss = [=](bool gradients) {
    return reference::spectral_loss(config, estimate->shape.batch, estimate->shape.time, estimate->value, target,
                                    lengths, gradients);
  };
  const reference::Spectral found = loss(false);  // gradients take longest and are not needed for finite differences
  const SpectralNodes y{t.make({}, {found.losses[0]}, {estimate}), t.make({}, {found.losses[1]}, {estimate})};
  t.back(y.stft, [=, &t] {
    const reference::Spectral again = loss(true);
    Values dx(estimate->value.size());
    std::normal_distribution<double> draw;
    for (int which = 0; which < 2; ++which) {
      const double dy = (which == 0 ? y.stft : y.mel)->gradient[0];
      for (size_t i = 0; i < dx.size(); ++i) {
        dx[i] += dy * again.gradients[which][i];
        // Bins that nearly cancel are off by more than a part of their gradient: the reference knows by how much.
        if (t.noise > 0) dx[i] += dy * t.noise / reference::unit * std::sqrt(again.variances[which][i]) * draw(t.rng);
      }
    }
    t.add(estimate, std::move(dx));
  });
  return y;
}

/// One reader of x per loss. Backward, their gradients come together as the balancer weights them; what it remembers of
/// earlier steps is `before`. This is no derivative of a loss: finite differences do not apply.
inline std::vector<Node*> balance(Tape& t, Node* x, const nacre::reference::Balancer& before,
                                  const std::vector<double>& weights) {
  std::vector<Node*> branches;
  for (size_t i = 0; i < weights.size(); ++i) branches.push_back(t.copy(x, x->shape));
  t.back(branches.at(0), [=, &t, balancer = before]() mutable {
    std::vector<Values> gradients;
    for (const Node* b : branches) gradients.push_back(b->gradient);
    t.add(x, balancer.step(gradients, weights).gradient);
  });
  return branches;
}

}  // namespace nacre::test
