#pragma once
// Convolution in double, from the formula alone: a list of triples (row of y, tap, row of x) says who meets whom, and
// the three directions walk the same list with the roles exchanged.
#include <cstdint>
#include <vector>

namespace reference {

struct Conv1d {
  int64_t batch, time, in, out, taps, stride, dilation, groups, left, right;
  bool reflect;

  int64_t length() const {
    const int64_t room = time + left + right - (taps - 1) * dilation - 1;
    return room < 0 ? 0 : room / stride + 1;
  }
  /// The row of x under tap k of output row t, or -1.
  int64_t row(int64_t t, int64_t k) const {
    const int64_t s = t * stride + k * dilation - left;
    if (s >= 0 && s < time) return s;
    if (!reflect) return -1;
    return s < 0 ? -s : 2 * time - 2 - s;
  }
  template <class F>  // f(index in x, index in weight, index in y)
  void each(F&& f) const {
    const int64_t inner = in / groups, outer = out / groups;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < length(); ++t)
        for (int64_t k = 0; k < taps; ++k) {
          const int64_t s = row(t, k);
          if (s < 0) continue;
          for (int64_t o = 0; o < out; ++o)
            for (int64_t i = 0; i < inner; ++i)
              f((b * time + s) * in + o / outer * inner + i, (o * taps + k) * inner + i, (b * length() + t) * out + o);
        }
  }
  using Values = std::vector<double>;
  Values forward(const Values& x, const Values& w) const {
    Values y(static_cast<size_t>(batch * length() * out));
    each([&](int64_t i, int64_t k, int64_t o) { y[size_t(o)] += x[size_t(i)] * w[size_t(k)]; });
    return y;
  }
  Values input_gradient(const Values& dy, const Values& w) const {
    Values dx(static_cast<size_t>(batch * time * in));
    each([&](int64_t i, int64_t k, int64_t o) { dx[size_t(i)] += dy[size_t(o)] * w[size_t(k)]; });
    return dx;
  }
  Values weight_gradient(const Values& x, const Values& dy) const {
    Values dw(static_cast<size_t>(out * taps * (in / groups)));
    each([&](int64_t i, int64_t k, int64_t o) { dw[size_t(k)] += dy[size_t(o)] * x[size_t(i)]; });
    return dw;
  }
};

}  // namespace reference
