#pragma once
// Convolutions by cuDNN's graph API, one operation each. As in frameworks, time is the width of an image of height 1.
#include <memory>
#include <string>
#include <string_view>

#include "nacre/ops/conv1d.h"

namespace nacre::bench {

enum class Conv1dDirection : uint8_t { forward, input_gradient, weight_gradient };

class CudnnConv1d {
 public:
  /// x, weight and y are on the device. With channels last they have nacre's layout, otherwise [batch, channels, time]
  /// and [out, in, taps]. The result of the direction is written and the other two are read. There is no bias. "fp32"
  /// takes float and uses no tensor cores; "tf32" takes float; "bf16" takes bf16 for all three and sums in float.
  struct Problem {
    Conv1dDirection direction;
    std::string_view arithmetic;
    bool channels_last;
    Shape x_shape, weight_shape, y_shape;  ///< nacre's shapes, in either layout
    Conv1dGeometry geometry;
    void *x, *weight, *y;
    bool first_plan = false;  ///< take the first plan that runs, without measuring
  };
  /// Measures the plans that cuDNN's heuristics propose and keeps the fastest. Throws Skip when the library is missing
  /// or has no plan for the problem.
  CudnnConv1d(Context&, const Problem&);
  ~CudnnConv1d();
  CudnnConv1d(const CudnnConv1d&) = delete;
  CudnnConv1d& operator=(const CudnnConv1d&) = delete;

  void run();
  /// The number of plans that were measured.
  int plans() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::bench
