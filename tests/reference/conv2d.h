#pragma once
// Two-dimensional convolution in double, from the formula alone: seven loops, over items, frames, columns, taps of both
// axes and both kinds of channels.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace reference {

struct Conv2d {
  struct Axis {
    int64_t taps, stride, dilation, left, right;
    int64_t length(int64_t n) const {
      const int64_t room = n + left + right - (taps - 1) * dilation - 1;
      return room < 0 ? 0 : room / stride + 1;
    }
    int64_t at(int64_t t, int64_t k) const { return t * stride + k * dilation - left; }
  };
  int64_t batch, frames, width, in, out;  ///< x is [batch][frames][width][in]
  Axis time, columns;
  int64_t first, count;  ///< the columns that take part; all others count as zero

  int64_t y_frames() const { return time.length(frames); }
  int64_t y_width() const { return columns.length(count); }
  using Values = std::vector<double>;

 private:
  template <class F>  // f(index in x, index in weight, index in y); weight is [out][taps of width][taps of time][in]
  void each(F&& f) const {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < y_frames(); ++t)
        for (int64_t w = 0; w < y_width(); ++w)
          for (int64_t o = 0; o < out; ++o)
            for (int64_t j = 0; j < columns.taps; ++j)
              for (int64_t k = 0; k < time.taps; ++k) {
                const int64_t frame = time.at(t, k), column = columns.at(w, j);
                if (frame < 0 || frame >= frames || column < 0 || column >= count) continue;
                for (int64_t i = 0; i < in; ++i)
                  f(static_cast<size_t>(((b * frames + frame) * width + first + column) * in + i),
                    static_cast<size_t>(((o * columns.taps + j) * time.taps + k) * in + i),
                    static_cast<size_t>(((b * y_frames() + t) * y_width() + w) * out + o));
              }
  }

 public:
  Values forward(const Values& x, const Values& weight) const {
    Values y(static_cast<size_t>(batch * y_frames() * y_width() * out));
    each([&](size_t i, size_t k, size_t o) { y[o] += weight.at(k) * x.at(i); });
    return y;
  }
  Values input_gradient(const Values& dy, const Values& weight) const {
    Values dx(static_cast<size_t>(batch * frames * width * in));
    each([&](size_t i, size_t k, size_t o) { dx[i] += weight.at(k) * dy.at(o); });
    return dx;
  }
  Values weight_gradient(const Values& x, const Values& dy) const {
    Values dw(static_cast<size_t>(out * columns.taps * time.taps * in));
    each([&](size_t i, size_t k, size_t o) { dw[k] += dy.at(o) * x.at(i); });
    return dw;
  }
};

}  // namespace reference
