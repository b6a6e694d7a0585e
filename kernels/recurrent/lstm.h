#pragma once
// What the CPU and CUDA share of lstm: the pieces of the scratch, and the products of the backward pass that follow the
// recurrence. They are convolutions of one tap in float on both devices.
// The backward pass has two phases. The recurrence of the device (lstm.cpp, lstm.cu) goes through the rows from the
// last to the first and stores da_t and h_{t-1} of every row. With these, the gradients of x and of the parameters no
// longer depend on the order of the rows, and gradients_from_gates() computes each with one product over all rows.
#include <algorithm>
#include <type_traits>

#include "nacre/ops/conv1d.h"
#include "nacre/ops/convert.h"
#include "nacre/ops/lstm.h"

namespace nacre::lstm {

inline constexpr int64_t gates = 4;

/// Hands out consecutive pieces of the scratch. Each is a multiple of 64 bytes, so that all are aligned as the scratch
/// is. Without data it only counts: the functions that return the size of the scratch run the same constructor as the
/// operation, so that the two cannot disagree.
class Pieces {
 public:
  explicit Pieces(float* data) : data_(data) {}
  float* take(int64_t floats) {
    float* const piece = data_ == nullptr ? nullptr : data_ + taken_;
    taken_ += (floats + 15) / 16 * 16;
    return piece;
  }
  Shape taken() const { return {.channels = taken_}; }

 private:
  float* data_;
  int64_t taken_ = 0;
};

/// Pieces of the backward pass. `of_steps` has `step_floats` floats, which the device lays out: what its time steps
/// need. The products run one after the other and share `products`, which has the size of the largest.
template <class T>
struct BackwardPieces {
  static constexpr bool converts = !std::is_same_v<T, float>;
  float *da, *h_before;      ///< [rows, 4 hidden]; h_{t-1}, [rows, hidden]
  float *x, *weight_x, *dx;  ///< float copies of bf16
  float* products;           ///< scratch of the convolutions
  float* of_steps;
  Shape of_products, size;

  BackwardPieces(Context& ctx, Shape x_shape, int64_t hidden, int64_t step_floats, float* scratch) {
    const int64_t rows = x_shape.rows(), in = x_shape.channels;
    const Shape y{x_shape.batch, x_shape.time, 1, gates * hidden}, h{x_shape.batch, x_shape.time, 1, hidden},
        of_x{gates * hidden, 1, 1, in}, of_h{gates * hidden, 1, 1, hidden};
    Pieces p(scratch);
    da = p.take(rows * gates * hidden);
    h_before = p.take(rows * hidden);
    x = p.take(converts ? rows * in : 0);
    weight_x = p.take(converts ? gates * hidden * in : 0);
    dx = p.take(converts ? rows * in : 0);
    of_products = {.channels = std::max({conv1d_input_gradient_scratch(ctx, x_shape, of_x, y, {}).elements(),
                                         conv1d_weight_gradient_scratch(ctx, x_shape, of_x, y, {}).elements(),
                                         conv1d_weight_gradient_scratch(ctx, h, of_h, y, {}).elements()})};
    products = p.take(of_products.elements());
    of_steps = p.take(step_floats);
    size = p.taken();
  }
};

/// Gradients of x and of the parameters, from da and h_{t-1} of all rows. Each is a gradient of the convolution of one
/// tap a = weight x, whose output gradient is da:
///   dweight_h = sum of da_t h_{t-1}^T,  dweight_x = sum of da_t x_t^T,  dbias = sum of da_t,  dx_t = weight_x^T da_t
/// With bf16, x and weight_x are converted to float first, and dx is computed in float and rounded once at the end.
/// add_dx is applied by that last conversion.
template <class T>
void gradients_from_gates(Context& ctx, const LstmBackward<T>& a, const BackwardPieces<T>& p) {
  const Shape x = a.x.shape, h = a.y.shape;
  const View<const float> da(p.da, {x.batch, x.time, 1, gates * h.channels});
  const View<float> scratch(p.products, p.of_products);
  if (a.dweight_h)
    conv1d_weight_gradient(ctx, {.x = {p.h_before, h},
                                 .dy = da,
                                 .dweight = a.dweight_h,
                                 .dbias = a.dbias_h,
                                 .scratch = scratch,
                                 .add_dweight = a.add_dweight_h});
  const auto weight_gradient = [&](View<const float> of) {
    conv1d_weight_gradient(ctx, {.x = of,
                                 .dy = da,
                                 .dweight = a.dweight_x,
                                 .dbias = a.dbias_x,
                                 .scratch = scratch,
                                 .add_dweight = a.add_dweight_x});
  };
  const auto input_gradient = [&](View<const float> weight, View<float> dx, bool add) {
    conv1d_input_gradient(ctx, {.dy = da, .weight = weight, .dx = dx, .scratch = scratch, .add_dx = add});
  };
  if constexpr (std::is_same_v<T, float>) {
    if (a.dweight_x) weight_gradient(a.x);
    if (a.dx) input_gradient(a.weight_x, a.dx, a.add_dx);
  } else {
    if (a.dweight_x) {
      convert<T, float>(ctx, {.x = a.x, .y = {p.x, x}});
      weight_gradient(View<float>(p.x, x));
    }
    if (a.dx) {
      const View<float> weight(p.weight_x, a.weight_x.shape), dx(p.dx, x);
      convert<T, float>(ctx, {.x = a.weight_x, .y = weight});
      input_gradient(weight, dx, false);
      convert<float, T>(ctx, {.x = dx, .y = a.dx, .add = a.add_dx});
    }
  }
}

}  // namespace nacre::lstm
