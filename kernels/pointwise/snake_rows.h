#pragma once
// Snake and its gradient on rows that a convolution has in cache: the loops of snake.cpp without an extra pass over
// memory. An object has the parameters of all channels; threads may share it, because its functions only read them.
// Each thread has sums of its own: clear(), backward() for its rows, add_up().
#include "nacre/ops/snake.h"

namespace nacre {

class SnakeRows {
 public:
  /// Floats of the constructor's `storage`, and of `sums`.
  static int64_t table(int64_t channels);
  static int64_t sums(int64_t channels);
  /// Writes the parameters of all channels to `storage`, repeated over the rows that the loops treat as one.
  SnakeRows(View<const float> alpha, View<const float> beta, bool log_scale, float* storage);

  int64_t channels() const { return channels_; }
  /// y = snake(x); y may be x.
  void forward(const float* x, float* y, int64_t rows) const;
  /// dx = (+= with `add`) dy snake'(x), unless dx is null. Adds to `sums`, of sums(channels) floats, unless it is null:
  /// sums for dalpha and dbeta, to be cleared by clear().
  void backward(const float* x, const float* dy, float* dx, bool add, int64_t rows, float* sums) const;
  void clear(float* sums) const;
  /// partial [2][channels] = the sums of each channel.
  void add_up(const float* sums, float* partial) const;

 private:
  int64_t stride() const { return fold_ * channels_; }
  int64_t channels_, fold_;
  float* table_;
};

/// dx = g snake'(x), where g is the input gradient of a convolution, which is never stored.
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
/// Adds partials [parts][2][channels] in order, in double.
void add_snake_parameter_gradients(const SnakeParameterGradients&, const float* partials, int64_t parts);

}  // namespace nacre
