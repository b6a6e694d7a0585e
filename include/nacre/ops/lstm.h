#pragma once
#include "nacre/context.h"
// One layer of a long short-term memory over a sequence (Hochreiter and Schmidhuber 1997; the form with a forget gate),
// channels last. The gates are in PyTorch's order i, f, g, o: row n of a weight belongs to gate n / hidden.
//
//   x [batch, time, 1, in]   weight_x [4 hidden, 1, 1, in]   weight_h [4 hidden, 1, 1, hidden]   biases [4 hidden]
//   forward    a_t = weight_x x_t + bias_x + weight_h h_{t-1} + bias_h
//              i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
//              c_t = f c_{t-1} + i g;  h_t = o tanh(c_t);  y_t = h_t.  h and c before the first row are `state`
//   backward   with dh_t = dy_t + weight_h^T da_{t+1} and dc_t = dh_t o (1 - tanh(c_t)^2) + dc_{t+1} f_{t+1}:
//              da_i = dc g i (1 - i);  da_f = dc c_{t-1} f (1 - f);  da_g = dc i (1 - g^2)
//              da_o = dh tanh(c) o (1 - o)
//              dx_t = weight_x^T da_t;  dweight_x = sum of da_t x_t^T;  dweight_h = sum of da_t h_{t-1}^T
//              dbias_x += sum of da_t;  dbias_h likewise. The state before the first row is zero
//   storage    x, y, dx and the weights are T. The recurrence reads h as y stores it, rounded to T. All else is float,
//              also inside
//   saved      x, y, gates and cells
//   writes     y, gates, cells and state_after are =; dx is = unless add_dx; dweight_x and dweight_h are = unless
//              add_dweight_x, add_dweight_h; dbias_x and dbias_h are +=. An empty gates, cells, state_after or output
//              of the backward pass is skipped; a bias gradient needs the weight gradient of its name.
//              Without rows, state_after is the state; all else is not written
//   aliasing   state_after may be state; no other output overlaps an input or another output
//   order      bits depend on shape, alignment and device only, not on the number of threads. Those of a row do not
//              depend on how many rows of its item follow or precede it: a sequence that is cut into several calls,
//              with state_after of one as the state of the next, has the bits of one call (all of its x and scratch
//              aligned to 16 bytes, or none).
//              A sum over `in` or `hidden` is one chain of additions, on CUDA for weight_h 32 chains and their sum
//   accuracy   with u = 2^-24: a_t from the stored h within u (4 sqrt(n) + 4) times the sum of the magnitudes of its
//              n = in + hidden + 2 terms, with Precision::tf32 2^-10 times those of weight_x x_t more; i, f, o and g
//              within 6 u of themselves, and c_t and y_t from them within 2 u of their terms and 8 u of y_t. Results in
//              bf16 are rounded once. Each row of da within 12 u of its terms. The products of the backward pass are
//              convolutions of one tap: see conv1d.h
//   cost       forward 2 rows 4 hidden (in + hidden) flops, backward twice that. A step reads all of weight_h, 4
//              hidden^2 elements: at batch 1 it is bound by the cache that holds them, on CUDA also by a launch per
//              step. docs/decisions/lstm.md
//   batch 0    does nothing and needs no scratch
namespace nacre {

template <class T>
struct LstmForward {
  View<const T> x, weight_x, weight_h;
  View<const float> bias_x, bias_h;
  View<const float> state{};  ///< [2, batch, 1, hidden]: h and c before the first row; empty: zeros
  View<T> y;                  ///< [batch, time, 1, hidden]
  View<float> state_after{};  ///< as state: h and c of the last row
  View<float> gates{};        ///< [batch, time, 1, 4 hidden]: i, f, g, o
  View<float> cells{};        ///< [batch, time, 1, hidden]: c
  View<float> scratch{};      ///< lstm_forward_scratch
};
template <class T>
struct LstmBackward {
  View<const T> x, weight_x, weight_h, y;
  View<const float> gates, cells;
  View<const T> dy;
  View<T> dx{};                          ///< = unless add_dx; empty: skipped
  View<float> dweight_x{}, dweight_h{};  ///< = unless added; empty: skipped
  View<float> dbias_x{}, dbias_h{};      ///< += ; empty: skipped
  View<float> scratch{};                 ///< lstm_backward_scratch
  bool add_dx = false;
  bool add_dweight_x = true, add_dweight_h = true;
};
/// Shape of state and state_after.
inline Shape lstm_state(int64_t batch, int64_t hidden) { return {2, batch, 1, hidden}; }
/// Suffices for calls with fewer rows per item, too.
template <class T = float>
Shape lstm_forward_scratch(Context&, Shape x, int64_t hidden);
template <class T = float>
Shape lstm_backward_scratch(Context&, Shape x, int64_t hidden);
template <class T = float>
void lstm_forward(Context&, const LstmForward<T>&);
template <class T = float>
void lstm_backward(Context&, const LstmBackward<T>&);

}  // namespace nacre
