#pragma once
// Reverse-mode differentiation in double, for the references of whole models. Layers and losses (reference/layers.h,
// losses.h, quantizer.h) append their results to a tape, each with its own backward pass. The tape runs the backward
// passes in reverse.
//
//   Tape tape;
//   tape.parameters["decoder.weight_v"] = ...;   // and weight_g, bias: by the library's checkpoint names
//   const Layer decoder = conv1d("decoder", 7, {.left = 3, .right = 3});
//   const Model model = [&](Tape& t) { return mean(t, decoder(t, t.constant(shape, audio))); };
//   tape.run(model);                             // the loss
//   tape.backward();                             // tape.gradients, by name
//
// tests/gradient_check.h compares these with the library's gradients and with finite differences.
#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "nacre/view.h"

namespace nacre::test {

using Values = std::vector<double>;
using Tensors = std::map<std::string, Values>;

/// A value, and the gradient of the loss with respect to it. It may be read any number of times; the gradients add up.
struct Node {
  Shape shape;
  Values value;
  Values gradient;       ///< the size of value; empty where tracked is false
  bool tracked = false;  ///< a gradient is needed: for parameters, and for all that depends on them
};

class Tape;
/// A part of a model. It holds no state of a run, so the same layer may be used in several places.
using Layer = std::function<Node*(Tape&, Node*)>;
/// A whole model. It builds everything up to the loss, which is a node of one value.
using Model = std::function<Node*(Tape&)>;

class Tape {
 public:
  Tensors parameters;  ///< in the layout of files
  Tensors gradients;   ///< of the parameters that the model read, except frozen ones; filled by backward()
  /// Every computed value and gradient is changed randomly by this fraction of itself and of its tensor's root mean
  /// square. This simulates a computation with that rounding error.
  double noise = 0;
  std::mt19937_64 rng;  ///< generates the noise

  Tape() = default;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// Clears the last run, runs the model and returns its loss.
  double run(const Model& model) {
    nodes_.clear(), steps_.clear(), leaves_.clear(), gradients.clear(), frozen_.clear();
    if (!holding_) held_.clear();
    next_held_ = 0;
    loss_ = model(*this);
    if (loss_->value.size() != 1) throw std::logic_error("a loss has one value");
    return loss_->value[0];
  }
  /// Computes the gradients of the last run's loss. May be called once per run.
  void backward() {
    if (!loss_->tracked) throw std::logic_error("the loss depends on no parameter");
    loss_->gradient[0] = 1;
    for (; !steps_.empty(); steps_.pop_back()) steps_.back()();
    for (const auto& [name, node] : leaves_) gradients[name] = node->gradient;
  }

  // --- Building blocks of models

  Node* constant(Shape shape, Values value) { return node(shape, std::move(value), false); }
  /// There is one node per name and run, so a layer that is used several times adds up its gradients here. An input
  /// whose gradient is to be checked is passed as a parameter with a shape.
  Node* parameter(const std::string& name) {
    return parameter(name, {.channels = static_cast<int64_t>(parameters.at(name).size())});
  }
  Node* parameter(const std::string& name, Shape shape) {
    const auto freezes = [&](const std::string& prefix) { return name.compare(0, prefix.size(), prefix) == 0; };
    if (std::any_of(frozen_.begin(), frozen_.end(), freezes)) return constant(shape, held(parameters.at(name)));
    Node*& leaf = leaves_[name];
    if (leaf == nullptr) leaf = node(shape, parameters.at(name), true);
    return leaf;
  }
  /// The value of x as a constant.
  Node* detach(const Node* x) { return constant(x->shape, held(x->value)); }

  /// While one of these lives, parameters whose names begin with `prefix` get no gradient. The inputs of their
  /// layers still do.
  class [[nodiscard]] Frozen {
   public:
    Frozen(Tape& tape, std::string prefix) : tape_(tape) { tape_.frozen_.push_back(std::move(prefix)); }
    ~Frozen() { tape_.frozen_.pop_back(); }
    Frozen(const Frozen&) = delete;
    Frozen& operator=(const Frozen&) = delete;

   private:
    Tape& tape_;
  };

  // --- Building blocks of layers

  /// A computed value. It is tracked if one of its inputs is. Absent inputs are null.
  Node* make(Shape shape, Values value, const std::vector<Node*>& inputs) {
    disturb(value);
    return node(shape, std::move(value),
                std::any_of(inputs.begin(), inputs.end(), [](const Node* i) { return i != nullptr && i->tracked; }));
  }
  /// The value of x in another place or shape, without noise.
  Node* copy(const Node* x, Shape shape) { return node(shape, x->value, x->tracked); }
  /// Adds a backward step, which runs once y->gradient is complete.
  void back(const Node* y, std::function<void()> step) {
    if (y->tracked) steps_.push_back(std::move(step));
  }
  /// x->gradient += a computed gradient. Does nothing if x is not tracked.
  void add(Node* x, Values gradient) {
    if (x == nullptr || !x->tracked) return;
    disturb(gradient);
    pass(x, gradient);
  }
  /// The same without noise, for gradients that are copied and not computed.
  void pass(Node* x, const Values& gradient, double scale = 1) {
    if (!x->tracked) return;
    for (size_t i = 0; i < x->gradient.size(); ++i) x->gradient[i] += scale * gradient.at(i);
  }

  /// For layers: values that the library stores between its passes, with their rounding.
  Values stored(Values value) {
    disturb(value);
    return value;
  }

  // --- Finite differences of a loss with stop-gradients

  /// From now on, all constants of the last run (detached values, frozen parameters, the codes of quantizers) keep
  /// their values. run() is then a function whose ordinary derivative is the gradient of backward().
  void hold() { holding_ = true; }
  void release() { holding_ = false; }
  /// For layers: a value without a gradient. The order of calls is the same in every run.
  Values held(Values value) {
    if (holding_) return held_.at(next_held_++);
    held_.push_back(value);
    return value;
  }

 private:
  std::deque<Node> nodes_;
  std::vector<std::function<void()>> steps_;
  std::map<std::string, Node*> leaves_;
  std::vector<std::string> frozen_;
  std::vector<Values> held_;
  size_t next_held_ = 0;
  bool holding_ = false;
  Node* loss_ = nullptr;

  Node* node(Shape shape, Values value, bool tracked) {
    if (static_cast<int64_t>(value.size()) != shape.elements())
      throw std::logic_error("a value's shape is another one");
    Values gradient(tracked ? value.size() : 0);
    nodes_.push_back({shape, std::move(value), std::move(gradient), tracked});
    return &nodes_.back();
  }
  void disturb(Values& v) {
    if (noise == 0) return;
    double squares = 0;
    for (const double x : v) squares += x * x;
    const double size = std::sqrt(squares / static_cast<double>(std::max<size_t>(v.size(), 1)));
    std::uniform_real_distribution<double> draw(-1, 1);
    for (double& x : v) x += noise * draw(rng) * (std::fabs(x) + size);
  }
};

}  // namespace nacre::test
