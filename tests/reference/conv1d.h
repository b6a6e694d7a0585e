#pragma once
// Convolution in double, from the formula alone. A list of triples (row of y, tap, row of x) defines the products. The
// three directions use the same list with exchanged roles.
#include <cstddef>
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
  /// The row of x under tap k of output row t, or -1 if there is none.
  int64_t row(int64_t t, int64_t k) const {
    const int64_t s = t * stride + k * dilation - left;
    if (s >= 0 && s < time) return s;
    if (!reflect) return -1;
    return s < 0 ? -s : 2 * time - 2 - s;
  }
  using Values = std::vector<double>;

 private:
  template <class F>  // f(index of a row of x, index of a row of weight, index in y)
  void each(F&& f) const {
    const int64_t inner = in / groups, outer = out / groups;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < length(); ++t)
        for (int64_t k = 0; k < taps; ++k) {
          const int64_t s = row(t, k);
          if (s < 0) continue;
          for (int64_t o = 0; o < out; ++o)
            f((b * time + s) * in + o / outer * inner, (o * taps + k) * inner, (b * length() + t) * out + o);
        }
  }
  /// Checks the ends of a row, so that the inner loops need no checks. Under sanitizers, those checks would take most
  /// of the time of the convolution tests.
  template <class V>
  auto row_of(V& v, int64_t begin) const {
    return (void)v.at(size_t(begin + in / groups - 1)), &v.at(size_t(begin));
  }
  __attribute__((no_sanitize("address", "undefined"))) static double dot(const double* a, const double* b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
  }
  __attribute__((no_sanitize("address", "undefined"))) static void add(double* to, double scale, const double* from,
                                                                       int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] += scale * from[i];
  }

 public:
  Values forward(const Values& x, const Values& w) const {
    Values y(static_cast<size_t>(batch * length() * out));
    each([&](int64_t i, int64_t k, int64_t o) { y.at(size_t(o)) += dot(row_of(x, i), row_of(w, k), in / groups); });
    return y;
  }
  Values input_gradient(const Values& dy, const Values& w) const {
    Values dx(static_cast<size_t>(batch * time * in));
    each([&](int64_t i, int64_t k, int64_t o) { add(row_of(dx, i), dy.at(size_t(o)), row_of(w, k), in / groups); });
    return dx;
  }
  Values weight_gradient(const Values& x, const Values& dy) const {
    Values dw(static_cast<size_t>(out * taps * (in / groups)));
    each([&](int64_t i, int64_t k, int64_t o) { add(row_of(dw, k), dy.at(size_t(o)), row_of(x, i), in / groups); });
    return dw;
  }
};

}  // namespace reference
