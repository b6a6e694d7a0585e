#pragma once
// AdamW over one set of parameters: moments, averaged weights and a step counter. Several optimizers may coexist, one
// for each set of parameters that is updated separately (a generator, its discriminators).
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/files/fields.h"
#include "nacre/nn/parameters.h"
#include "nacre/ops/adamw.h"

namespace nacre {

struct OptimizerConfig {
  double learning_rate = 3e-4;
  double beta1 = 0.5, beta2 = 0.9, eps = 1e-8, weight_decay = 0.01;
  double clip = 1.0;
  double ema_decay = 0.99;
  void check() const;  ///< throws Error(usage) that names the invalid key
};

template <class V>
void fields(V& v, OptimizerConfig& c) {
  using namespace field;
  v("learning_rate", c.learning_rate, range(above(0), 10), "learning rate of AdamW");
  v("beta1", c.beta1, range(0, below(1)), "decay per step of the gradient's average");
  v("beta2", c.beta2, range(0, below(1)), "decay per step of the squared gradient's average");
  v("eps", c.eps, range(above(0), below(1)), "added to the root of the squared gradient's average");
  v("weight_decay", c.weight_decay, at_least(0, below(100)),
    "decoupled: a step scales weights by 1 - rate * weight_decay");
  v("clip", c.clip, at_least(0, below(1e9)).zero("none"), "gradients are scaled down to this global norm");
  v("ema_decay", c.ema_decay, range(0, below(1)).zero("none"),
    "decay per step of the averaged weights, which evaluation and the saved model use");
}

/// Processes that train one model on different data. No implementation exists yet; without one, a process trains alone.
class Communicator {
 public:
  virtual ~Communicator() = default;
  /// Replaces the values by their mean over all processes, in stream order. Every process gets the same bits.
  virtual void average(Context&, View<float>) = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
};

/// A named part of the state that a checkpoint holds in addition to the parameters.
struct StateTensor {
  std::string name;
  View<float> values;
};

class Optimizer {
 public:
  /// `parameters` must be allocated with gradients. `parameters` and `communicator` must outlive the optimizer. `name`
  /// is the prefix of the names in state(). The averaged weights start as the current values. Throws Error(usage) that
  /// names an invalid key of the configuration.
  Optimizer(Context&, Parameters& parameters, const OptimizerConfig&, std::string name = "adamw",
            Communicator* communicator = nullptr);
  Optimizer(const Optimizer&) = delete;  // plans hold its address
  Optimizer& operator=(const Optimizer&) = delete;

  /// Records the end of a walk that trains the parameters: gradients are cleared before the first backward pass, and
  /// parameters are updated after the last one. Must be the last call of its walk.
  void plan(Plan&);

  void set_learning_rate(double);
  /// Restarts the averaged weights from the current values, after these were set from outside.
  void reset_average();
  /// The weights for evaluation: the averaged weights if there are any, otherwise the trained ones.
  View<const float> averaged() const noexcept;
  /// Device scalar: number of updates so far.
  View<int32_t> step() const noexcept { return {&scalars_.data->step, {}}; }
  AdamWScalars scalars() const;
  void set_scalars(const AdamWScalars&);
  /// First and second moments and, if there are any, averaged weights, laid out as Parameters::values(). To restore a
  /// run, write to these views.
  std::vector<StateTensor> state() const;

 private:
  void update(Context&);
  Context ctx_;
  Parameters& parameters_;
  OptimizerConfig config_;
  std::string name_;
  Communicator* communicator_;
  Memory moments_memory_, scalars_memory_, scratch_memory_;
  View<float> m_, v_, average_, scratch_;
  View<AdamWScalars> scalars_;
};

}  // namespace nacre
