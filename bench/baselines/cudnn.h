#pragma once
// Convolutions by cuDNN's graph API, one operation each. Time is the width of an image of height 1, as in frameworks.
#include <memory>
#include <string>
#include <string_view>

#include "nacre/ops/conv1d.h"

namespace nacre::bench {

enum class Conv1dDirection : uint8_t { forward, input_gradient, weight_gradient };

class CudnnConv1d {
 public:
  /// x, weight and y lie on the device: channels last as nacre's, else [batch, channels, time] and [out, in, taps].
  /// What the direction computes is written, without bias, the rest is read. "fp32" takes floats and no tensor cores,
  /// "tf32" floats, "bf16" bf16 for all three, with sums in float.
  struct Problem {
    Conv1dDirection direction;
    std::string_view arithmetic;
    bool channels_last;
    Shape x_shape, weight_shape, y_shape;  ///< as nacre's, whatever the layout
    Conv1dGeometry geometry;
    void *x, *weight, *y;
    bool first_plan = false;  ///< take the first that runs and measure nothing
  };
  /// Measures what cuDNN's heuristics propose and keeps the fastest. Throws Skip where the library is missing or has
  /// nothing for the problem.
  CudnnConv1d(Context&, const Problem&);
  ~CudnnConv1d();
  CudnnConv1d(const CudnnConv1d&) = delete;
  CudnnConv1d& operator=(const CudnnConv1d&) = delete;

  void run();
  /// How many plans were measured.
  int plans() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::bench
