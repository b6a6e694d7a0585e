#pragma once
// The steps in front of a discriminator, in double, on a tape.
#include "nacre/ops/average_pool.h"
#include "nacre/ops/stft.h"
#include "reference/average_pool.h"
#include "reference/fold.h"
#include "reference/level.h"
#include "reference/spectral.h"
#include "reference/tape.h"

namespace nacre::test {

/// Removes the mean of every item and scales it to a peak of 0.8.
inline Node* level(Tape& t, Node* x) {
  const double peak = static_cast<double>(0.8f), eps = static_cast<double>(1e-9f);
  const auto time = static_cast<size_t>(x->shape.time);
  Values v;
  for (size_t first = 0; first < x->value.size(); first += time) {
    const nacre::reference::Level item(x->value.data() + first, time, peak, eps);
    v.insert(v.end(), item.y.begin(), item.y.end());
  }
  Node* y = t.make(x->shape, std::move(v), {x});
  t.back(y, [=, &t] {
    Values dx;
    for (size_t first = 0; first < x->value.size(); first += time) {
      const nacre::reference::Level item(x->value.data() + first, time, peak, eps);
      const Values d = item.gradient(y->gradient.data() + first, peak, eps, item.position).dx;
      dx.insert(dx.end(), d.begin(), d.end());
    }
    t.add(x, std::move(dx));
  });
  return y;
}

/// The interleaved signals of a period, with reflection at the end.
inline Node* fold(Tape& t, Node* x, int64_t period) {
  const Shape s = x->shape;
  const std::vector<size_t> sources = nacre::reference::fold_sources(
      static_cast<size_t>(s.batch), static_cast<size_t>(s.time), static_cast<size_t>(period));
  Values v;
  for (const size_t i : sources) v.push_back(x->value[i]);
  Node* y = t.make({.batch = s.batch * period, .time = s.time / period + 1}, std::move(v), {x});
  t.back(y, [=, &t] { t.add(x, nacre::reference::fold_adjoint(sources, y->gradient, x->value.size())); });
  return y;
}

/// Means of windows along time.
inline Node* pooled(Tape& t, Node* x, const AveragePoolGeometry& g = {}) {
  const Shape s = x->shape;
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const nacre::reference::AveragePool op{size(s.batch),  size(s.time),   size(s.width * s.channels),
                                         size(g.taps),   size(g.stride), size(g.padding),
                                         g.count_padding};
  Shape shape = s;
  shape.time = static_cast<int64_t>(op.length());
  Node* y = t.make(shape, op.forward(x->value), {x});
  t.back(y, [=, &t] { t.add(x, op.adjoint(y->gradient)); });
  return y;
}

/// The short-time Fourier transform, [batch, frames, bins, 2].
inline Node* spectrum(Tape& t, Node* x, const StftGeometry& g) {
  const Shape s = x->shape;
  const int64_t frames = stft_frames(s.time, g), bins = g.window / 2 + 1;
  Values v;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t f = 0; f < frames; ++f) {
      const auto X = reference::dft(reference::frame(&x->value[reference::at(b * s.time)], s.time, g, f));
      for (size_t k = 0; k < reference::at(bins); ++k) v.push_back(X[k].real()), v.push_back(X[k].imag());
    }
  Node* y = t.make({s.batch, frames, bins, 2}, std::move(v), {x});
  t.back(y, [=, &t] {
    Values dx(x->value.size());
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t f = 0; f < frames; ++f) {
        std::vector<reference::Complex> D;
        const double* const dy = &y->gradient[reference::at((b * frames + f) * bins * 2)];
        for (int64_t k = 0; k < bins; ++k) D.emplace_back(dy[2 * k], dy[2 * k + 1]);
        reference::add_adjoint(D, {}, s.time, g, f, &dx[reference::at(b * s.time)], nullptr);
      }
    t.add(x, std::move(dx));
  });
  return y;
}

/// Real items, then generated ones.
inline Node* pair(Tape& t, const Values& real, Node* fake) {
  Shape s = fake->shape;
  s.batch *= 2;
  Values v = real;
  v.insert(v.end(), fake->value.begin(), fake->value.end());
  Node* y = t.make(s, std::move(v), {fake});
  t.back(y, [=, &t] {
    t.pass(fake, Values(y->gradient.begin() + static_cast<int64_t>(fake->value.size()), y->gradient.end()));
  });
  return y;
}

}  // namespace nacre::test
