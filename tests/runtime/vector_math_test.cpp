// Tests the bounds of runtime/vector_math.h against the double library, with random arguments of every regime. The
// compiled loops use vectors of this machine's best instruction set.
#include "runtime/vector_math.h"
#include "runtime/elementwise.h"

#include <functional>
#include <limits>
#include <numbers>

#include "harness.h"

using namespace nacre;
using namespace nacre::test;

namespace {

#define NACRE_LOOP(name, expression)                               \
  NACRE_CLONES void name(const float* in, float* out, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) out[i] = vec::expression;      \
  }
NACRE_LOOP(sin_squared_loop, sin_squared_pi(1.0f, in[i]))
NACRE_LOOP(sin_loop, sin_cos_pi_unsigned(1.0f, in[i]).sin)
NACRE_LOOP(cos_loop, sin_cos_pi_unsigned(1.0f, in[i]).cos)
NACRE_LOOP(exp_loop, exp(in[i]))
NACRE_LOOP(exp_minus_one_loop, exp_minus_one(in[i]))
NACRE_LOOP(tanh_loop, tanh(in[i]))
NACRE_LOOP(sigmoid_loop, sigmoid(in[i]))
NACRE_LOOP(log_loop, log(in[i]))
NACRE_LOOP(log10_loop, log10(in[i]))
#undef NACRE_LOOP

using Loop = void (*)(const float*, float*, int64_t);
using Exact = double (*)(double);
/// Reduces pi t. Sign and phase are those of the float functions, which subtract the nearest integer for sine and
/// cosine.
double reduced(double t) { return std::numbers::pi * (t - std::nearbyint(t)); }
double sin_exact(double t) { return std::sin(reduced(t)); }
double cos_exact(double t) { return std::cos(reduced(t)); }
double sin_squared_exact(double t) { return sin_exact(t) * sin_exact(t); }

double sigmoid_exact(double x) { return 1 / (1 + std::exp(-x)); }

constexpr int64_t count = 1 << 19;  // per regime: a million per function, with the regimes below
enum Draw { uniform, logarithmic, both_signs };

/// A unit in the last place of a float near `exact`.
double unit(double exact) {
  const double size = std::fabs(exact);
  if (size < 0x1p-126) return 0x1p-149;
  return std::ldexp(1.0, std::ilogb(size) - 23);
}

/// The largest error in ulp of the result, or in units of `absolute` if given.
double worst_error(Loop loop, Exact exact, Draw draw, double low, double high, double absolute = 0) {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> position(draw == uniform ? low : std::log(low),
                                                  draw == uniform ? high : std::log(high));
  std::vector<float> in(count), out(count);
  for (float& x : in) {
    const double p = position(rng);
    x = static_cast<float>(draw == uniform ? p : std::exp(p) * (draw == both_signs && rng() % 2 ? -1 : 1));
  }
  loop(in.data(), out.data(), count);
  double worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double wanted = exact(in[static_cast<size_t>(i)]), found = out[static_cast<size_t>(i)];
    const double error = std::fabs(found - wanted) / (absolute > 0 ? absolute : unit(wanted));
    if (std::isnan(error)) return HUGE_VAL;
    worst = std::max(worst, error);
  }
  return worst;
}

float at(Loop loop, float x) {
  float y = 0;
  loop(&x, &y, 1);
  return y;
}

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float largest = std::numeric_limits<float>::max();

}  // namespace

TEST_CASE("sine and cosine keep their bounds", "[vector_math]") {
  CHECK(worst_error(sin_squared_loop, sin_squared_exact, uniform, -0.5, 0.5) <= 5);
  CHECK(worst_error(sin_squared_loop, sin_squared_exact, both_signs, 1e-18, 0.5) <= 5);
  for (double range : {3.0, 100.0, 3200.0}) {
    CHECK(worst_error(sin_squared_loop, sin_squared_exact, uniform, -range, range, 3e-7) <= 1);
    CHECK(worst_error(sin_loop, sin_exact, uniform, -range, range, 1.8e-7) <= 1);
    CHECK(worst_error(cos_loop, cos_exact, uniform, -range, range, 1.8e-7) <= 1);
  }
}

TEST_CASE("a frequency loses no more than the rounding of a product", "[vector_math]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<float> size(-4, 4);
  std::uniform_real_distribution<float> sample(-2, 2);
  for (int i = 0; i < 200000; ++i) {
    const float a = std::exp(size(rng)), x = sample(rng), frequency = vec::frequency_of(a);
    const double exact = static_cast<double>(a) / std::numbers::pi;
    REQUIRE(std::fabs(static_cast<double>(frequency) - exact) <= 0.5001 * unit(exact));
    const double t = static_cast<double>(frequency) * static_cast<double>(x),
                 phase = 0x1p-24 * std::numbers::pi * std::fabs(t);
    const vec::SinCos found = vec::sin_cos_pi_unsigned(frequency, x);
    REQUIRE(std::fabs(static_cast<double>(vec::sin_squared_pi(frequency, x)) - sin_squared_exact(t)) <= 3e-7 + phase);
    REQUIRE(std::fabs(static_cast<double>(found.sin) * static_cast<double>(found.cos) - sin_exact(t) * cos_exact(t)) <=
            2e-7 + phase);
  }
}

TEST_CASE("sine and cosine stay in their range where a float has no phase", "[vector_math]") {
  for (Loop loop : {sin_loop, cos_loop, sin_squared_loop}) {
    for (float x = 1; x < infinity; x *= 1.0123f) {
      for (float signed_x : {x, -x}) {
        const float y = at(loop, signed_x);
        if (!(std::fabs(y) <= 1)) FAIL_CHECK("at " << signed_x << ": " << y);
      }
    }
    CHECK(std::fabs(at(loop, largest)) <= 1);
    CHECK(std::isnan(at(loop, infinity)));
    CHECK(std::isnan(at(loop, -infinity)));
    CHECK(std::isnan(at(loop, NAN)));
  }
}

TEST_CASE("exponentials keep their bounds", "[vector_math]") {
  CHECK(worst_error(exp_loop, std::exp, uniform, -103, 88.7) <= 2);
  CHECK(worst_error(exp_loop, std::exp, uniform, -1, 1) <= 2);
  CHECK(worst_error(exp_minus_one_loop, std::expm1, uniform, -40, 88) <= 3);
  CHECK(worst_error(exp_minus_one_loop, std::expm1, both_signs, 1e-30, 1) <= 3);
  CHECK(worst_error(tanh_loop, std::tanh, uniform, -10, 10) <= 3);
  CHECK(worst_error(tanh_loop, std::tanh, both_signs, 1e-30, 1e30) <= 3);
  CHECK(worst_error(sigmoid_loop, sigmoid_exact, uniform, -100, 100) <= 3);
  CHECK(worst_error(sigmoid_loop, sigmoid_exact, uniform, -10, 10) <= 3);
  CHECK(at(exp_loop, 0) == 1);
  CHECK(at(exp_loop, 89) == infinity);
  CHECK(at(exp_loop, infinity) == infinity);
  CHECK(at(exp_loop, -infinity) == 0);
  CHECK(at(exp_minus_one_loop, -infinity) == -1);
  CHECK(at(tanh_loop, infinity) == 1);
  CHECK(at(tanh_loop, -infinity) == -1);
  CHECK(at(sigmoid_loop, 0) == 0.5f);
  CHECK(at(sigmoid_loop, infinity) == 1);
  CHECK(at(sigmoid_loop, -infinity) == 0);
  CHECK(std::signbit(at(tanh_loop, -0.0f)));
  CHECK(!std::signbit(at(tanh_loop, 0.0f)));
  for (Loop loop : {exp_loop, exp_minus_one_loop, tanh_loop, sigmoid_loop}) CHECK(std::isnan(at(loop, NAN)));
}

TEST_CASE("logarithms keep their bounds", "[vector_math]") {
  const double smallest = std::numeric_limits<float>::denorm_min();
  CHECK(worst_error(log_loop, std::log, logarithmic, smallest, largest) <= 2);
  CHECK(worst_error(log_loop, std::log, uniform, 0.5, 2) <= 2);
  CHECK(worst_error(log10_loop, std::log10, logarithmic, smallest, largest) <= 2.5);
  CHECK(worst_error(log10_loop, std::log10, uniform, 0.5, 2) <= 2.5);
  for (Loop loop : {log_loop, log10_loop}) {
    CHECK(at(loop, 1) == 0);
    CHECK(at(loop, 0) == -infinity);
    CHECK(at(loop, infinity) == infinity);
    CHECK(std::isnan(at(loop, -1)));
    CHECK(std::isnan(at(loop, -infinity)));
    CHECK(std::isnan(at(loop, NAN)));
  }
}
