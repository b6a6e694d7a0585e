#pragma once
#include <cmath>
#include "nacre/nn/layers.h"
namespace nacre {
/// Stand-in until the op exists: CPU forward only.
class Lstm {
 public:
  Lstm(Parameters& p, const std::string& name, int64_t channels, int64_t layers) : channels_(channels) {
    const int64_t n = channels;
    for (int64_t k = 0; k < layers; ++k) {
      const std::string l = "_l" + std::to_string(k);
      const Init i = uniform_by_fan_in(n);
      parts_.push_back({&p.add(name + ".weight_ih" + l, {4 * n, n}, {.batch = 4 * n, .channels = n}, i),
                        &p.add(name + ".weight_hh" + l, {4 * n, n}, {.batch = 4 * n, .channels = n}, i),
                        &p.add(name + ".bias_ih" + l, {4 * n}, {.channels = 4 * n}, i),
                        &p.add(name + ".bias_hh" + l, {4 * n}, {.channels = 4 * n}, i)});
    }
  }
  Flow plan(Plan& p, Flow x) const {
    const Step s = p.step("lstm");
    const auto in = s.reads<float>(x);
    const auto out = s.makes<float>(x.shape);
    s.forward([=, parts = parts_, n = channels_](Context&) {
      for (int64_t b = 0; b < x.shape.batch; ++b) {
        std::vector<float> h0(in.value.data + b * x.shape.time * n, in.value.data + (b + 1) * x.shape.time * n);
        for (const Part& q : parts) {
          std::vector<float> h(static_cast<size_t>(n)), c(static_cast<size_t>(n)), a(static_cast<size_t>(4 * n));
          for (int64_t t = 0; t < x.shape.time; ++t) {
            for (int64_t r = 0; r < 4 * n; ++r) {
              float v = q.bi->value.data[r] + q.bh->value.data[r];
              for (int64_t i = 0; i < n; ++i)
                v += q.wi->value.data[r * n + i] * h0[static_cast<size_t>(t * n + i)] +
                     q.wh->value.data[r * n + i] * h[static_cast<size_t>(i)];
              a[static_cast<size_t>(r)] = v;
            }
            const auto sg = [](float v) { return 1 / (1 + std::exp(-v)); };
            for (int64_t i = 0; i < n; ++i) {
              const auto at = [&](int64_t g) { return a[static_cast<size_t>(g * n + i)]; };
              float& cc = c[static_cast<size_t>(i)];
              cc = sg(at(1)) * cc + sg(at(0)) * std::tanh(at(2));
              h0[static_cast<size_t>(t * n + i)] = h[static_cast<size_t>(i)] = sg(at(3)) * std::tanh(cc);
            }
            // h0 of this row is not read again by this layer
          }
        }
        for (int64_t i = 0; i < x.shape.time * n; ++i)
          out.value.data[b * x.shape.time * n + i] =
              h0[static_cast<size_t>(i)] + in.value.data[b * x.shape.time * n + i];
      }
    });
    return out.flow;
  }

 private:
  struct Part {
    const Parameter *wi, *wh, *bi, *bh;
  };
  int64_t channels_;
  std::vector<Part> parts_;
};
}  // namespace nacre
