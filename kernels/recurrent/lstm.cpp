#include "recurrent/lstm.h"

#include <algorithm>
#include <cstring>

#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/elementwise.h"
#include "runtime/host.h"
#include "runtime/vector_math.h"

// One LSTM layer on the CPU (the equations are in nacre/ops/lstm.h; the twin on the device is lstm.cu).
// Forward: the rows are processed in chunks. multiply_inputs() computes weight_x x + biases for all rows of a chunk,
// which is one large product. step() then adds weight_h h_{t-1} row by row and computes the cells, because a row needs
// all of h of the row before.
// Backward: recurrence_backward() goes from the last row to the first and stores da and h_{t-1}; the products over all
// rows follow in gradients_from_gates() (lstm.h).
// The weights are laid out once per call, so that a step reads them front to back. For few rows, as in a stream, that
// would take longer than the products, and the weights are read in place; the bits are the same. 16 hidden units form a
// group: the 64 columns of its four gates are one panel of the matrix products, and the thread that computes them
// computes the cells, too. A step is one parallel loop over the groups. The pool gives a thread the same groups in
// every step, so that its part of the weights stays in its cache.
namespace nacre {
namespace cuda {
template <class T>
Shape lstm_forward_scratch(Context&, Shape x, int64_t hidden);
template <class T>
Shape lstm_backward_scratch(Context&, Shape x, int64_t hidden);
template <class T>
void lstm_forward(Context&, const LstmForward<T>&);
template <class T>
void lstm_backward(Context&, const LstmBackward<T>&);
}  // namespace cuda
namespace {

using karatsuba::matrices;
using lstm::gates;

constexpr int64_t group = 16;                // hidden units
constexpr int64_t columns = gates * group;   // of a group: i, f, g, o of 16 units each
constexpr int64_t panel = 32;                // columns of weight_h that the backward pass stores together
constexpr int64_t few_rows = 8;              // of all items, for which weights are read in place
constexpr int64_t rows_of_chunk = 256;       // rows whose products with weight_x are kept
constexpr int64_t least_products = 1 << 14;  // of a thread: fewer are not worth waking it

// Numbers of groups and panels. The last of them may have fewer units than the others; its columns beyond `hidden` have
// weights of zero.
int64_t groups_of(int64_t hidden) { return (hidden + group - 1) / group; }
int64_t panels_of(int64_t hidden) { return (hidden + panel - 1) / panel; }
/// Whether the weights are read where they are. It depends on the shape alone, so that scratch and loops agree. bf16
/// has to be converted in any case.
template <class T>
bool in_place(Shape x) {
  return std::is_same_v<T, float> && x.rows() <= few_rows;
}
/// Rows per item whose sums are kept: at most 256 over all items, but at least one per item.
int64_t chunk_of(Shape x) { return std::min(x.time, std::max<int64_t>(1, rows_of_chunk / x.batch)); }

// ---- forward

/// Pieces of the scratch. Arrays of units have whole groups, [groups][group] = [row_] floats, of which those from
/// hidden on stay zero: their weights and biases are zero, so that i, f, o = 1/2 and g = 0, and c and h keep the 0 with
/// which they begin.
template <class T>
struct ForwardPieces {
  float *weight_x, *weight_h;  // [groups][depth][columns], unless they are read in place
  float* bias;                 // [groups][columns]
  float* sums;                 // [batch][chunk][groups][columns]: weight_x x + biases, later the gates
  float *h, *c;                // [2][batch][groups][group]: h before and after; [batch][groups][group]
  float* x;                    // [batch][chunk][in], a copy of bf16
  Shape size;
  ForwardPieces(Shape of, int64_t hidden, float* scratch) {
    const int64_t groups = groups_of(hidden), chunk = of.batch * chunk_of(of);
    lstm::Pieces p(scratch);
    const int64_t laid_out = in_place<T>(of) ? 0 : groups * columns;
    weight_x = p.take(laid_out * of.channels);
    weight_h = p.take(laid_out * hidden);
    bias = p.take(groups * columns);
    sums = p.take(chunk * groups * columns);
    h = p.take(2 * of.batch * groups * group);
    c = p.take(of.batch * groups * group);
    x = p.take(std::is_same_v<T, float> ? 0 : chunk * of.channels);
    size = p.taken();
  }
};

/// Lays out the rows of one group of a weight [4 hidden][depth] as [depth][columns], with zeros for units beyond
/// hidden.
template <class T>
void lay_out_group(const T* weight, int64_t hidden, int64_t depth, int64_t g, float* to) {
  const auto& matrix = matrices();
  const int64_t units = std::min(group, hidden - g * group);
  for (int64_t gate = 0; gate < gates; ++gate)
    for (int64_t k = 0; k < depth; k += 16) {
      const T* const from = weight + (gate * hidden + g * group) * depth + k;
      float* const column = to + k * columns + gate * group;
      const int64_t n = std::min<int64_t>(16, depth - k);
      // A full block of floats needs no copy: it is transposed from the weight directly.
      if constexpr (std::is_same_v<T, float>)
        if (units == 16 && n == 16) {
          matrix.transpose(from, depth, column, columns);
          continue;
        }
      // bf16, the last units and the end of the depth go through a 16 by 16 block of floats with zeros.
      float block[256] = {}, turned[256];
      for (int64_t u = 0; u < units; ++u)
        for (int64_t i = 0; i < n; ++i) block[u * 16 + i] = to_float(from[u * depth + i]);
      matrix.transpose(block, 16, turned, 16);
      for (int64_t i = 0; i < n; ++i) std::memcpy(column + i * columns, turned + i * 16, 16 * sizeof(float));
    }
}
/// to [groups][depth][columns] = all groups of a weight, in parallel.
template <class T>
void lay_out(Context& ctx, const T* weight, int64_t hidden, int64_t depth, float* to) {
  parallel_ranges(ctx, groups_of(hidden), 1 + least_products / (columns * depth), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) lay_out_group(weight, hidden, depth, g, to + g * columns * depth);
  });
}

/// One row of 16 units: a [4][16] becomes the gates i, f, g, o; c [16] becomes f c + i g; h [16] = o tanh(c), before it
/// is rounded to T.
NACRE_INLINE void cells(float* a, float* c, float* h) {
  NACRE_INDEPENDENT
  for (int64_t u = 0; u < group; ++u) {
    const float i = vec::sigmoid(a[u]), f = vec::sigmoid(a[group + u]), g = vec::tanh(a[2 * group + u]),
                o = vec::sigmoid(a[3 * group + u]);
    const float cell = f * c[u] + i * g;
    a[u] = i, a[group + u] = f, a[2 * group + u] = g, a[3 * group + u] = o;
    c[u] = cell, h[u] = o * vec::tanh(cell);
  }
}
NACRE_CLONES void cells_loop(float* a, int64_t a_row, float* c, float* h, int64_t row, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) cells(a + r * a_row, c + r * row, h + r * row);
}

/// One call of lstm_forward. The scratch has two rows of h per item, which take turns: during a step, all groups read
/// all of h_{t-1}, so that h_t must go elsewhere. One row of c suffices, because a group reads only its own units.
template <class T>
class Forward {
 public:
  Forward(Context& ctx, const LstmForward<T>& a)
      : ctx_(ctx),
        a_(a),
        p_(a.x.shape, a.y.shape.channels, a.scratch.data),
        hidden_(a.y.shape.channels),
        groups_(groups_of(hidden_)),
        row_(groups_ * group),
        chunk_(chunk_of(a.x.shape)) {}

  void run() {
    const Shape x = a_.x.shape;
    if (!in_place<T>(x)) {
      lay_out(ctx_, a_.weight_x.data, hidden_, x.channels, p_.weight_x);
      lay_out(ctx_, a_.weight_h.data, hidden_, hidden_, p_.weight_h);
    }
    start();
    for (int64_t first = 0; first < x.time; first += chunk_) {
      const int64_t n = std::min(chunk_, x.time - first);
      multiply_inputs(first, n);
      for (int64_t t = 0; t < n; ++t) step(first, t);
    }
    if (a_.state_after) finish();
  }

 private:
  // The biases of both products are added here once, in the layout [groups][columns]. h and c begin with the state, or
  // with zeros; their padding must be zero (see ForwardPieces).
  void start() {
    const int64_t batch = a_.x.shape.batch;
    std::fill_n(p_.bias, groups_ * columns, 0.0f);
    for (int64_t gate = 0; gate < gates; ++gate)
      for (int64_t first = 0; first < hidden_; first += group) {
        float* const to = p_.bias + first * gates + gate * group;
        for (int64_t u = 0, n = gate * hidden_ + first; u < std::min(group, hidden_ - first); ++u, ++n)
          to[u] = a_.bias_x[n] + a_.bias_h[n];
      }
    std::fill_n(p_.h, batch * row_, 0.0f);
    std::fill_n(p_.c, batch * row_, 0.0f);
    if (!a_.state) return;
    for (int64_t b = 0; b < batch; ++b) {
      std::copy_n(a_.state.data + b * hidden_, hidden_, p_.h + b * row_);
      std::copy_n(a_.state.data + (batch + b) * hidden_, hidden_, p_.c + b * row_);
    }
  }
  // After the last step, h_before() is h of the last row.
  void finish() {
    const int64_t batch = a_.x.shape.batch;
    for (int64_t b = 0; b < batch; ++b) {
      std::copy_n(h_before() + b * row_, hidden_, a_.state_after.data + b * hidden_);
      std::copy_n(p_.c + b * row_, hidden_, a_.state_after.data + (batch + b) * hidden_);
    }
  }
  /// h of the newest step, and the place for the next one.
  float* h_before() const { return p_.h + (steps_ % 2) * a_.x.shape.batch * row_; }
  float* h_after() const { return p_.h + (1 - steps_ % 2) * a_.x.shape.batch * row_; }

  /// to = products of `rows` rows of x with the weights of group g + bias + add, the last two if they are given.
  void multiply(int64_t g, const float* x, int64_t x_row, const T* weight, const float* laid_out, int64_t depth,
                const float* bias, const float* add, float* to, int64_t to_row, int64_t rows) const {
    // The bias (or `add`) is added after the chain over the depth. multiply_all() has the same order, so that both ways
    // give the same bits. In place, `rows` is at most few_rows.
    if constexpr (std::is_same_v<T, float>) {
      if (in_place<T>(a_.x.shape)) {
        float sums[few_rows * columns] = {};
        for (int64_t gate = 0; gate < gates; ++gate)
          matrices().add_by_outputs(x, x_row, rows, weight + (gate * hidden_ + g * group) * depth, depth,
                                    std::min(group, hidden_ - g * group), depth, sums + gate * group, columns);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t j = 0; j < columns; ++j)
            to[r * to_row + j] = sums[r * columns + j] + (bias != nullptr ? bias[j] : add[r * to_row + j]);
        return;
      }
    }
    matrices().multiply_all({.a = x, .row = x_row}, laid_out + g * columns * depth, columns, depth, bias, add, to,
                            to_row, rows);
  }
  /// sums = weight_x x + biases for n rows of every item. multiply_all() gives a row the same bits whatever rows it is
  /// called with.
  void multiply_inputs(int64_t first, int64_t n) {
    const Shape x = a_.x.shape;
    const int64_t in = x.channels;
    const auto from = [&](int64_t b) { return a_.x.data + (b * x.time + first) * in; };
    if constexpr (!std::is_same_v<T, float>)
      parallel_ranges(ctx_, x.batch, 1 + least_products / (n * in), [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
          for (int64_t i = 0; i < n * in; ++i) p_.x[b * chunk_ * in + i] = to_float(from(b)[i]);
      });
    parallel_ranges(ctx_, groups_, 1 + least_products / (x.batch * n * columns * in), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g)
        for (int64_t b = 0; b < x.batch; ++b) {
          const float* rows;
          if constexpr (std::is_same_v<T, float>)
            rows = from(b);
          else
            rows = p_.x + b * chunk_ * in;
          multiply(g, rows, in, a_.weight_x.data, p_.weight_x, in, p_.bias + g * columns, nullptr,
                   p_.sums + (b * chunk_ * groups_ + g) * columns, groups_ * columns, n);
        }
    });
  }

  /// Row first + t of every item; t is its place in the chunk. A range has whole groups: products, cells and stores of
  /// a group are done by one thread. The end of the parallel loop is the barrier after which the next step may read all
  /// of `after`.
  void step(int64_t first, int64_t t) {
    const int64_t batch = a_.x.shape.batch, sums_row = chunk_ * groups_ * columns;
    const float* const before = h_before();
    float* const after = h_after();
    parallel_ranges(ctx_, groups_, 1 + least_products / (batch * columns * hidden_), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        float* const sums = p_.sums + (t * groups_ + g) * columns;
        multiply(g, before, row_, a_.weight_h.data, p_.weight_h, hidden_, nullptr, sums, sums, sums_row, batch);
        cells_loop(sums, sums_row, p_.c + g * group, after + g * group, row_, batch);
        for (int64_t b = 0; b < batch; ++b)
          store_units(b * a_.x.shape.time + first + t, g, sums + b * sums_row, p_.c + b * row_ + g * group,
                      after + b * row_ + g * group);
      }
    });
    ++steps_;
  }
  // Stores the units of group g that exist: y rounded to T, and gates and cells if they are wanted. h becomes the
  // rounded y, because the next step must read what a later call would read from the state or from y.
  void store_units(int64_t row, int64_t g, const float* of_gates, const float* c, float* h) const {
    const int64_t begin = g * group, units = std::min(group, hidden_ - begin);
    T* const y = a_.y.data + row * hidden_ + begin;
    for (int64_t u = 0; u < units; ++u) {
      y[u] = store<T>(h[u]);
      h[u] = to_float(y[u]);
    }
    if (a_.gates)
      for (int64_t gate = 0; gate < gates; ++gate)
        std::copy_n(of_gates + gate * group, units, a_.gates.data + (row * gates + gate) * hidden_ + begin);
    if (a_.cells) std::copy_n(c, units, a_.cells.data + row * hidden_ + begin);
  }

  Context& ctx_;
  const LstmForward<T>& a_;
  const ForwardPieces<T> p_;
  const int64_t hidden_, groups_, row_, chunk_;
  int64_t steps_ = 0;
};

// ---- backward

/// Floats that the steps of the backward pass need: weight_h in panels [panels][4 hidden][32], then dh and dc,
/// [batch][width] each, where width is hidden rounded up to whole panels.
int64_t backward_own(Shape x, int64_t hidden) {
  const int64_t width = panels_of(hidden) * panel;
  return width * gates * hidden + 2 * x.batch * width;
}

/// n units of one row: da from dy, the gates and what the next row adds (nacre/ops/lstm.h). dh_after = weight_h^T
/// da_{t+1}. dc is dc_{t+1} f_{t+1}, and becomes dc_t f_t. c_before is c_{t-1}, zeros in the first row. The four gates
/// of a unit are `hidden` elements apart.
/// 1 - t^2 is computed as (1 - t)(1 + t): where |t| is near 1, the square would lose the digits of the difference.
template <class T>
NACRE_INLINE void cell_gradients(const float* of_gates, int64_t hidden, const float* c, const float* c_before,
                                 const T* dy, const float* dh_after, float* dc, float* da, int64_t n) {
  NACRE_INDEPENDENT
  for (int64_t u = 0; u < n; ++u) {
    const float i = of_gates[u], f = of_gates[hidden + u], g = of_gates[2 * hidden + u], o = of_gates[3 * hidden + u];
    const float dh = to_float(dy[u]) + dh_after[u], t = vec::tanh(c[u]);
    const float d = dh * o * ((1.0f - t) * (1.0f + t)) + dc[u];
    da[u] = d * g * (i * (1.0f - i));
    da[hidden + u] = d * c_before[u] * (f * (1.0f - f));
    da[2 * hidden + u] = d * i * ((1.0f - g) * (1.0f + g));
    da[3 * hidden + u] = dh * t * (o * (1.0f - o));
    dc[u] = d * f;
  }
}
NACRE_CLONES void gradients_loop(const float* of_gates, int64_t hidden, const float* c, const float* c_before,
                                 const float* dy, const float* dh_after, float* dc, float* da, int64_t n) {
  cell_gradients(of_gates, hidden, c, c_before, dy, dh_after, dc, da, n);
}
NACRE_CLONES void gradients_loop(const float* of_gates, int64_t hidden, const float* c, const float* c_before,
                                 const bf16* dy, const float* dh_after, float* dc, float* da, int64_t n) {
  cell_gradients(of_gates, hidden, c, c_before, dy, dh_after, dc, da, n);
}

/// da and h_{t-1} of all rows, from the last row to the first. A range of panels computes dh_t = weight_h^T da_{t+1}
/// for its units and then da_t of the same units. da_{t+1} of all units is complete then, since the parallel loop over
/// row t + 1 has ended. In the last row dh and dc are the zeros with which they begin.
template <class T>
void recurrence_backward(Context& ctx, const LstmBackward<T>& a, const lstm::BackwardPieces<T>& p) {
  const int64_t batch = a.y.shape.batch, time = a.y.shape.time, hidden = a.y.shape.channels, depth = gates * hidden,
                panels = panels_of(hidden), width = panels * panel;
  float *const weight = p.of_steps, *const dh = weight + width * depth, *const dc = dh + batch * width;
  // [panel][4 hidden][columns of the panel], with zeros beyond hidden.
  parallel_ranges(ctx, panels, 1 + least_products / (panel * depth), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q)
      for (int64_t n = 0; n < depth; ++n)
        for (int64_t j = 0; j < panel; ++j)
          weight[(q * depth + n) * panel + j] =
              q * panel + j < hidden ? to_float(a.weight_h[n * hidden + q * panel + j]) : 0.0f;
  });
  std::fill_n(dh, 2 * batch * width, 0.0f);  // and dc, which follows
  // c before the first row: the backward pass has no state (nacre/ops/lstm.h).
  constexpr float zeros[panel] = {};
  for (int64_t t = time - 1; t >= 0; --t)
    parallel_ranges(ctx, panels, 1 + least_products / (batch * panel * depth), [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) {
        const int64_t first = q * panel, units = std::min(panel, hidden - first);
        if (t + 1 < time)
          matrices().multiply_all({.a = p.da + (t + 1) * depth, .row = time * depth}, weight + first * depth, panel,
                                  depth, nullptr, nullptr, dh + first, width, batch);
        for (int64_t b = 0; b < batch; ++b) {
          const int64_t row = b * time + t;
          const float* const c = a.cells.data + row * hidden + first;
          gradients_loop(a.gates.data + row * depth + first, hidden, c, t > 0 ? c - hidden : zeros,
                         a.dy.data + row * hidden + first, dh + b * width + first, dc + b * width + first,
                         p.da + row * depth + first, units);
          for (int64_t u = 0; u < units; ++u)
            p.h_before[row * hidden + first + u] = t > 0 ? to_float(a.y[(row - 1) * hidden + first + u]) : 0.0f;
        }
      }
    });
}

void expect_sizes(const char* op, Shape x, int64_t hidden) {
  if (x.width != 1 || hidden < 1 || x.channels < 1)
    throw_usage(op, "x is " + str(x) + " and hidden is " + std::to_string(hidden) +
                        ", expected width 1 and at least one channel and hidden unit");
}

}  // namespace

template <class T>
Shape lstm_forward_scratch(Context& ctx, Shape x, int64_t hidden) {
  expect_sizes("lstm_forward_scratch", x, hidden);
  if (x.rows() == 0) return {0, 0, 0, 0};
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::lstm_forward_scratch<T>(ctx, x, hidden);
  return ForwardPieces<T>(x, hidden, nullptr).size;
}
template <class T>
Shape lstm_backward_scratch(Context& ctx, Shape x, int64_t hidden) {
  expect_sizes("lstm_backward_scratch", x, hidden);
  if (x.rows() == 0) return {0, 0, 0, 0};
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::lstm_backward_scratch<T>(ctx, x, hidden);
  return lstm::BackwardPieces<T>(ctx, x, hidden, backward_own(x, hidden), nullptr).size;
}

template <class T>
void lstm_forward(Context& ctx, const LstmForward<T>& a) {
  const char* const op = "lstm_forward";
  const Shape x = a.x.shape;
  const int64_t hidden = a.y.shape.channels;
  expect_sizes(op, x, hidden);
  const Shape y{x.batch, x.time, 1, hidden}, per_gate{.channels = gates * hidden}, state = lstm_state(x.batch, hidden);
  expect_shape(op, "x", a.x, x);
  expect_shape(op, "y", a.y, y);
  expect_shape(op, "weight_x", a.weight_x, {gates * hidden, 1, 1, x.channels});
  expect_shape(op, "weight_h", a.weight_h, {gates * hidden, 1, 1, hidden});
  expect_shape(op, "bias_x", a.bias_x, per_gate);
  expect_shape(op, "bias_h", a.bias_h, per_gate);
  expect_shape_or_empty(op, "state", a.state, state);
  expect_shape_or_empty(op, "state_after", a.state_after, state);
  expect_shape_or_empty(op, "gates", a.gates, {x.batch, x.time, 1, gates * hidden});
  expect_shape_or_empty(op, "cells", a.cells, y);
  if (x.rows() == 0) {
    // No rows: the state passes through.
    if (!a.state_after || a.state_after.data == a.state.data) return;
    if (a.state)
      ctx.copy<float>(a.state, a.state_after);
    else
      ctx.zero(a.state_after);
    return;
  }
  expect_scratch(op, a.scratch, lstm_forward_scratch<T>(ctx, x, hidden));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::lstm_forward(ctx, a);
  Forward<T>(ctx, a).run();
}

template <class T>
void lstm_backward(Context& ctx, const LstmBackward<T>& a) {
  const char* const op = "lstm_backward";
  const Shape x = a.x.shape;
  const int64_t hidden = a.y.shape.channels;
  expect_sizes(op, x, hidden);
  const Shape y{x.batch, x.time, 1, hidden}, per_gate{.channels = gates * hidden},
      of_x{gates * hidden, 1, 1, x.channels}, of_h{gates * hidden, 1, 1, hidden};
  expect_shape(op, "x", a.x, x);
  expect_shape(op, "y", a.y, y);
  expect_shape(op, "weight_x", a.weight_x, of_x);
  expect_shape(op, "weight_h", a.weight_h, of_h);
  expect_shape(op, "gates", a.gates, {x.batch, x.time, 1, gates * hidden});
  expect_shape(op, "cells", a.cells, y);
  expect_shape(op, "dy", a.dy, y);
  expect_shape_or_empty(op, "dx", a.dx, x);
  expect_shape_or_empty(op, "dweight_x", a.dweight_x, of_x);
  expect_shape_or_empty(op, "dweight_h", a.dweight_h, of_h);
  expect_shape_or_empty(op, "dbias_x", a.dbias_x, per_gate);
  expect_shape_or_empty(op, "dbias_h", a.dbias_h, per_gate);
  if ((a.dbias_x && !a.dweight_x) || (a.dbias_h && !a.dweight_h))
    throw_usage(op, "a bias gradient without the weight gradient of its name");
  if (x.rows() == 0) return;
  expect_scratch(op, a.scratch, lstm_backward_scratch<T>(ctx, x, hidden));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::lstm_backward(ctx, a);
  const lstm::BackwardPieces<T> pieces(ctx, x, hidden, backward_own(x, hidden), a.scratch.data);
  recurrence_backward(ctx, a, pieces);
  lstm::gradients_from_gates(ctx, a, pieces);
}

#define NACRE_INSTANTIATE(T)                                         \
  template Shape lstm_forward_scratch<T>(Context&, Shape, int64_t);  \
  template Shape lstm_backward_scratch<T>(Context&, Shape, int64_t); \
  template void lstm_forward<T>(Context&, const LstmForward<T>&);    \
  template void lstm_backward<T>(Context&, const LstmBackward<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
