#pragma once
// Snake and its slope on rows that a convolution has in the cache: the loops of snake.cpp, without their pass over
// memory.
#include "nacre/ops/snake.h"

namespace nacre {

class SnakeRows {
 public:
  /// Floats of `room`, and of `sums`.
  static int64_t table(int64_t channels);
  static int64_t sums(int64_t channels);
  /// Writes to `room` what the loops need of every channel, repeated over as many rows as they take as one.
  SnakeRows(View<const float> alpha, View<const float> beta, bool log_scale, float* room);

  int64_t channels() const { return channels_; }
  /// y = snake(x); y may be x.
  void forward(const float* x, float* y, int64_t rows) const;
  /// dx = (+= with `add`) dy snake'(x), unless it is null. sums += what dalpha and dbeta are made of, unless it is
  /// null: sums(channels) floats that clear() began.
  void backward(const float* x, const float* dy, float* dx, bool add, int64_t rows, float* sums) const;
  void clear(float* sums) const;
  /// partial = the sums per channel, [2][channels].
  void add_up(const float* sums, float* partial) const;

 private:
  int64_t stride() const { return fold_ * channels_; }
  int64_t channels_, fold_;
  float* table_;
};

/// g in dx = g snake'(x) comes from a convolution: its dx is never written.
struct SnakeSlope {
  const SnakeRows& rows;
  const float* x;
  float* dx;  ///< null: skipped
  bool add;
  float* partials;  ///< [part][2][channels]; null: skipped
};

struct SnakeParameterGradients {
  View<const float> alpha, beta;
  View<float> dalpha, dbeta;  ///< += ; empty: skipped
  bool log_scale;
};
/// From partials, [parts][2][channels], in their order.
void add_snake_parameter_gradients(const SnakeParameterGradients&, const float* partials, int64_t parts);

}  // namespace nacre
