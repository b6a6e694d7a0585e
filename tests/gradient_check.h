#pragma once
// Compares the library's gradients of a model with those of a tape (reference/tape.h) and with finite differences:
//
//   Tape tape;
//   tape.parameters = values_of(ctx, parameters);
//   const Comparison comparison(tape, model);
//   comparison.check(gradients_of(ctx, parameters));  // behind the library's backward pass
//   check_differences(tape, model, rng, 40);
#include <optional>
#include <span>

#include "harness.h"
#include "nacre/nn/parameters.h"
#include "reference/tape.h"

namespace nacre::test {

/// The library's parameters, and below their gradients, in the layout of files.
inline Tensors values_of(Context& ctx, const Parameters& p) {
  Tensors found;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
    found[name].assign(v.begin(), v.end());
  });
  return found;
}
inline Tensors gradients_of(Context& ctx, const Parameters& p) {
  Tensors found;
  p.each_tensor(ctx, p.gradients(),
                [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
                  found[name].assign(v.begin(), v.end());
                });
  return found;
}

inline double largest(const Values& v) {
  double most = 0;
  for (const double x : v) most = std::max(most, std::fabs(x));
  return most;
}

/// The exact gradients, and per tensor the allowance for rounding. A layer's sums have a few dozen terms whose rounding
/// errors have random signs. The error of a result is therefore about an ulp of its own size and of its tensor's. The
/// reference runs eight times with such random errors in all values. An element may be off by four times the largest
/// change of any element of its tensor in these runs. (Eight runs are needed for tensors of one element: the
/// probability that all eight changes are below a quarter of an equally distributed error is 0.2^8.)
struct Comparison {
  double loss = 0;
  Tensors exact;
  std::map<std::string, double> allowed;

  Comparison(Tape& tape, const Model& model) {
    tape.noise = ulp;
    std::vector<Tensors> disturbed;
    for (int draw = 0; draw < 8; ++draw) {
      tape.run(model), tape.backward();
      disturbed.push_back(tape.gradients);
    }
    tape.noise = 0;
    loss = tape.run(model);
    tape.backward();
    exact = tape.gradients;
    for (const auto& [name, g] : exact)
      for (const Tensors& other : disturbed)
        for (size_t i = 0; i < g.size(); ++i)
          allowed[name] = std::max(allowed[name], 4 * std::fabs(other.at(name)[i] - g[i]));
  }
  /// Names tensors whose allowance is so large that a comparison would say little, for example because rounding changes
  /// the sign of some |a - b|. Such a seed must be replaced.
  std::string blunt() const {
    std::string names;
    for (const auto& [name, g] : exact)
      if (!(allowed.at(name) <= 1e-2 * largest(g)))
        names += " " + name + " " + std::to_string(allowed.at(name) / largest(g));
    return names;
  }
  /// Checks names, sizes and values. Also checks that an error of ten allowances would be noticed in every tensor.
  void check(const Tensors& found) const {
    REQUIRE(found.size() == exact.size());
    for (const auto& [name, g] : exact) {
      CAPTURE(name);
      REQUIRE(found.count(name) == 1);
      REQUIRE(found.at(name).size() == g.size());
      const double allowance = allowed.at(name);
      const auto expected = [&exact_g = g](int64_t i) { return exact_g[static_cast<size_t>(i)]; };
      const auto same = [&](int64_t) { return allowance; };
      const double worst = worst_ratio(found.at(name), expected, same);
      INFO("worst error is " << worst << " of the allowance " << allowance << ", largest gradient " << largest(g));
      CHECK(worst <= 1);
      Values planted = found.at(name);
      planted[planted.size() / 2] += 10 * std::max(allowance, 1e-30);  // allowance 0: no item uses a codebook
      CHECK(worst_ratio(planted, expected, same) > 1);
    }
  }
};

/// Central differences. Returns nothing if two step widths disagree: then a kink (|a - b| at 0, the floor of a
/// logarithm) lies within the steps.
inline std::optional<double> slope(const std::function<double(double)>& f, double scale) {
  const double h = 1e-6, near = (f(h) - f(-h)) / (2 * h), far = (f(2 * h) - f(-2 * h)) / (4 * h);
  if (std::fabs(near - far) > 1e-5 * (std::fabs(near) + scale)) return std::nullopt;
  return near;
}

/// The finite difference with the largest error.
struct Difference {
  double error = 0;  ///< in units of the allowance
  std::string where;
};
/// Takes finite differences of at least `wanted` elements from all kinds of parameters, and along three directions
/// through all parameters.
inline Difference worst_difference(Tape& tape, const Model& model, const Tensors& gradients, std::mt19937_64& rng,
                                   int wanted) {
  tape.run(model);
  tape.hold();
  // The kind of a parameter is its network and the part of its name after the last point. Every kind is tested in turn.
  std::map<std::string, std::vector<std::string>> kinds;
  double scale = 0;
  Difference worst;
  for (const auto& [name, g] : gradients) {
    const size_t last = name.rfind('.');
    kinds[name.substr(0, name.find('.')) + (last == std::string::npos ? "" : name.substr(last))].push_back(name);
    scale = std::max(scale, 0.05 * largest(g));
  }
  const auto compare = [&](const std::string& what, double found, double expected) {
    const double error = std::fabs(found - expected) / (1e-5 * (std::fabs(found) + scale));
    if (!(worst.error <= 1) || error <= worst.error) return;  // keeps the first failure, NaN included
    worst = {error, what + ": " + std::to_string(found) + ", by differentiation " + std::to_string(expected)};
  };
  int redrawn = 0;
  for (int checked = 0; checked < wanted;)
    for (const auto& [kind, members] : kinds) {
      const std::string& name = members[rng() % members.size()];
      Values& p = tape.parameters.at(name);
      const size_t i = rng() % p.size();
      const double before = p[i];
      const auto found = slope([&](double h) { return p[i] = before + h, tape.run(model); }, scale);
      p[i] = before;
      if (!found) {
        REQUIRE(++redrawn < 2 * wanted);
        continue;
      }
      ++checked;
      compare(name + "[" + std::to_string(i) + "]", *found, gradients.at(name)[i]);
    }
  const Tensors at = tape.parameters;
  for (int direction = 0, tries = 0; direction < 3; ++tries) {
    REQUIRE(tries < 20);
    std::normal_distribution<double> draw(0, 0.01);
    Tensors d;
    double expected = 0;
    for (const auto& [name, g] : gradients)
      for (const double x : g) d[name].push_back(draw(rng)), expected += d[name].back() * x;
    const auto moved = [&](double h) {
      for (const auto& [name, v] : d)
        for (size_t i = 0; i < v.size(); ++i) tape.parameters.at(name)[i] = at.at(name)[i] + h * v[i];
      return tape.run(model);
    };
    const auto found = slope(moved, scale);
    tape.parameters = at;
    if (!found) continue;
    ++direction;
    compare("direction through all parameters", *found, expected);
  }
  tape.release();
  return worst;
}
inline void check_differences(Tape& tape, const Model& model, std::mt19937_64& rng, int wanted) {
  tape.run(model), tape.backward();
  const Tensors exact = tape.gradients;
  const Difference worst = worst_difference(tape, model, exact, rng, wanted);
  INFO(worst.where);
  CHECK(worst.error <= 1);
}

}  // namespace nacre::test
