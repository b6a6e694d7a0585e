#pragma once
// One layer of a long short-term memory in double. Tensors are [batch][time][channels], gates i, f, g, o.
#include <cmath>
#include <cstddef>
#include <vector>

namespace nacre::reference {

struct Lstm {
  size_t batch, time, in, hidden;
  using Values = std::vector<double>;

  struct Parameters {
    Values weight_x, weight_h, bias_x, bias_h;  ///< [4 hidden][in], [4 hidden][hidden], [4 hidden]
  };
  struct State {
    Values h, c;  ///< [batch][hidden]
  };
  struct Result {
    Values y, gates, cells;
  };

  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  /// The argument of gate row n for an input x [in] and the h [hidden] before it; null: zeros.
  double argument(const Parameters& p, size_t n, const double* x, const double* h) const {
    double sum = p.bias_x[n] + p.bias_h[n];
    for (size_t k = 0; k < in; ++k) sum += p.weight_x[n * in + k] * x[k];
    for (size_t k = 0; k < hidden && h != nullptr; ++k) sum += p.weight_h[n * hidden + k] * h[k];
    return sum;
  }
  Result forward(const Parameters& p, const Values& x, const State& state = {}) const {
    const size_t rows = batch * time, H = hidden;
    Result r{Values(rows * H), Values(rows * 4 * H), Values(rows * H)};
    for (size_t b = 0; b < batch; ++b)
      for (size_t t = 0; t < time; ++t) {
        const size_t row = b * time + t;
        const double* h = t > 0 ? &r.y[(row - 1) * H] : state.h.empty() ? nullptr : &state.h[b * H];
        double* const gates = &r.gates[row * 4 * H];
        for (size_t n = 0; n < 4 * H; ++n) {
          const double a = argument(p, n, &x[row * in], h);
          gates[n] = n / H == 2 ? std::tanh(a) : sigmoid(a);
        }
        for (size_t j = 0; j < H; ++j) {
          const double before = t > 0 ? r.cells[(row - 1) * H + j] : state.c.empty() ? 0 : state.c[b * H + j];
          const double c = gates[H + j] * before + gates[j] * gates[2 * H + j];
          r.cells[row * H + j] = c;
          r.y[row * H + j] = gates[3 * H + j] * std::tanh(c);
        }
      }
    return r;
  }

  struct Gradients {
    Values x, weight_x, weight_h, bias;  ///< bias: of either
    Values gates;                        ///< of the arguments, [batch][time][4 hidden]
  };
  /// From a zero state. `r` is the result of forward(), or of another computation of it.
  Gradients backward(const Parameters& p, const Values& x, const Result& r, const Values& dy) const {
    const size_t rows = batch * time, H = hidden;
    Gradients g{Values(rows * in), Values(4 * H * in), Values(4 * H * H), Values(4 * H), Values(rows * 4 * H)};
    for (size_t b = 0; b < batch; ++b) {
      Values dh(H), dc(H);  // what the next row passes to h and c
      for (size_t t = time; t-- > 0;) {
        const size_t row = b * time + t;
        const double* const gates = &r.gates[row * 4 * H];
        double* const da = &g.gates[row * 4 * H];
        for (size_t j = 0; j < H; ++j) {
          const double i = gates[j], f = gates[H + j], u = gates[2 * H + j], o = gates[3 * H + j],
                       tanh_c = std::tanh(r.cells[row * H + j]), before = t > 0 ? r.cells[(row - 1) * H + j] : 0,
                       of_h = dy[row * H + j] + dh[j];
          dc[j] += of_h * o * (1 - tanh_c * tanh_c);
          da[j] = dc[j] * u * i * (1 - i);
          da[H + j] = dc[j] * before * f * (1 - f);
          da[2 * H + j] = dc[j] * i * (1 - u * u);
          da[3 * H + j] = of_h * tanh_c * o * (1 - o);
          dc[j] *= f;
        }
        dh.assign(H, 0);
        for (size_t n = 0; n < 4 * H; ++n) {
          g.bias[n] += da[n];
          for (size_t k = 0; k < in; ++k) {
            g.weight_x[n * in + k] += da[n] * x[row * in + k];
            g.x[row * in + k] += da[n] * p.weight_x[n * in + k];
          }
          for (size_t k = 0; k < H; ++k) {
            if (t > 0) g.weight_h[n * H + k] += da[n] * r.y[(row - 1) * H + k];
            dh[k] += da[n] * p.weight_h[n * H + k];
          }
        }
      }
    }
    return g;
  }
};

}  // namespace nacre::reference
