#pragma once
// Which loops of the CPU compute a convolution, and the scratch that they need: one function per op. The op and its
// *_scratch function both call it, and nothing else decides, so the scratch that is sized is the scratch that is used.
// The engine depends on shapes, geometry and storage alone; the scratch also depends on the number of threads.
// choose_cuda.h is the same for CUDA.
#include <algorithm>
#include <array>

#include "conv/conv1d_windows.h"
#include "nacre/ops/conv1d.h"
#include "pointwise/snake_rows.h"

namespace nacre::conv {

enum class Engine : uint8_t {
  nothing,    ///< there is nothing to compute
  direct,     ///< conv1d_direct.h
  pointwise,  ///< conv1d_pointwise.h
  karatsuba,  ///< conv1d_karatsuba.h
  windows,    ///< conv1d_windows.h
  blocks,     ///< conv1d_blocks.h
  groups,     ///< conv1d_groups.h, of weight gradients. Elsewhere, windows computes narrow groups by it
  separate,   ///< of snake_conv1d: snake and conv1d one after the other, the latter with a choice of its own
};

// The sizes are floats of scratch. Scratch holds these pieces in this order. A copy of a tensor, converted to float or
// with its padding, has size 0 where the tensor is used in place.

struct ForwardChoice {
  Engine engine = Engine::nothing;
  int64_t x = 0, weight = 0, y = 0;  ///< copies
  int64_t own = 0;                   ///< of the engine
  windows::Problem problem{};        ///< of Engine::windows
  int64_t scratch() const { return x + weight + y + own; }
};

/// Engine::windows computes the input gradient as a convolution of dy. With stride s, a strided kernel is a dense one
/// on the view [time / s, s * channels] of x. Its weight is the same memory if the kernel's length is a multiple of the
/// stride and there is no dilation; else the weight is copied with zeros between and after the taps (`spread`).
///
/// With reflected padding a few samples of x also receive the gradient of the padding that reflects them. Where the
/// copy of dx has rows for the padding, these are added to their samples (`folds`). Elsewhere the engine computes dx as
/// with zero padding, and then the gradient of the padding is computed and added (reflected_strips).
struct InputGradientChoice {
  Engine engine = Engine::nothing;
  int64_t dx = 0, weight = 0, dy = 0;  ///< copies
  int64_t own = 0;                     ///< of the engine
  windows::Problem problem{};          ///< of Engine::windows
  int64_t rows = 0, left = 0;          ///< rows of the copy of dx per item; which of them is the first row of dx
  bool spread = false, folds = false;
  int64_t strips = 0;  ///< scratch of add_reflections, which needs it when the engine has finished
  int64_t scratch() const { return std::max(dx + weight + dy + own, strips); }
};
/// The padding of one side, as the x of a convolution with zero padding, which has the same weight. Its output is a run
/// of rows of dy. dx has no samples where no output reads padding.
struct ReflectedStrip {
  Shape dx{0, 0, 0, 0}, dy{0, 0, 0, 0};
  int64_t first = 0;     ///< position of the first sample, counted from the first sample of x
  int64_t dy_begin = 0;  ///< the first row of dy
  Conv1dGeometry geometry{};
  int64_t dy_floats() const { return (dy.elements() + 15) / 16 * 16; }
  int64_t dx_floats() const { return (dx.elements() + 15) / 16 * 16; }
};
std::array<ReflectedStrip, 2> reflected_strips(Shape x, Shape weight, const Conv1dGeometry&);

/// Engine::direct computes several groups one after the other, each on copies of its channels. The sums for dbias and
/// dbias_of_x follow when the engine has finished, and use its own scratch.
struct WeightGradientChoice {
  Engine engine = Engine::nothing;
  int64_t x = 0, dy = 0;              ///< copies
  int64_t group_x = 0, group_dy = 0;  ///< copies of one group's channels
  int64_t own = 0;                    ///< of the engine
  int64_t scratch() const { return x + dy + group_x + group_dy + own; }
};

/// A fused engine has a table of Snake's parameters and, in the input gradient, `parts` partial sums for their
/// gradients. Engine::separate has the tensor between the two ops.
struct SnakeChoice {
  Engine engine = Engine::nothing;
  int64_t table = 0, partials = 0;
  int64_t tensor = 0;
  int64_t own = 0;  ///< of the engine, or of the separate ops
  int64_t parts = 0;
  int64_t scratch() const { return table + partials + tensor + own; }
};

/// The shape of the convolution's output.
inline Shape output(Shape x, Shape weight, const Conv1dGeometry& g) {
  return {x.batch, conv1d_length(x.time, weight.time, g), 1, weight.batch};
}
/// Floats of Snake's output or gradient, a tensor like x, between two separate ops: whole cache lines.
template <class T>
int64_t tensor_floats(Shape x) {
  return (x.elements() * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
}

// T is the storage of activations and weight. x, in the input gradient, is the shape of dx.
template <class T>
ForwardChoice choose_forward(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
InputGradientChoice choose_input_gradient(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
WeightGradientChoice choose_weight_gradient(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
SnakeChoice choose_snake_forward(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
SnakeChoice choose_snake_input_gradient(Context&, Shape x, Shape weight, const Conv1dGeometry&);
template <class T>
SnakeChoice choose_snake_weight_gradient(Context&, Shape x, Shape weight, const Conv1dGeometry&);

/// Runs Engine::pointwise or Engine::karatsuba, which also compute Snake. `scratch`: the engine's own.
void run_forward(Context&, Engine, const Conv1dForward<float>&, float* scratch, const SnakeRows* = nullptr);
void run_input_gradient(Context&, Engine, const Conv1dInputGradient<float>&, float* scratch,
                        const SnakeSlope* = nullptr);

}  // namespace nacre::conv
