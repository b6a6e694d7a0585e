#pragma once
// Elementary functions for vectorised loops: plain arithmetic and selects, without calls, tables or branches.
// Bounds are in units in the last place of the exact result, measured and asserted over all regimes by
// tests/runtime/vector_math_test.cpp, on every instruction set the machine has. Polynomials are minimax (Remez) for the
// interval stated, each coefficient rounded to float before the next was fitted. NaN gives NaN everywhere.
#include <cmath>
#include <cstdint>

#include "runtime/inline.h"

namespace nacre::vec {

/// NaN stays NaN.
NACRE_INLINE float at_most(float x, float bound) { return x > bound ? bound : x; }
NACRE_INLINE float at_least(float x, float bound) { return x < bound ? bound : x; }

namespace detail {

/// Adding and subtracting this value rounds to the nearest integer; the low bits of the sum hold that integer.
inline constexpr float rounder = 0x1.8p23f;

/// frequency * x minus the nearest integer: in [-1/2, 1/2] while the product is below 2^22. Far beyond, where a float
/// does not determine a phase any more, it may be larger. The product is written twice, so that each sum may become one
/// fused multiply-add and the product is not rounded.
NACRE_INLINE float phase(float frequency, float x) {
  const float k = (frequency * x + rounder) - rounder;
  return frequency * x - k;
}
/// sin(pi r) for |r| <= 1/2, u = r^2: relative error 2^-25.
NACRE_INLINE float sin_pi_reduced(float r, float u) {
  return r * ((((0.0798270851f * u - 0.599434376f) * u + 2.5502696f) * u - 5.16772079f) * u + 3.14159274f);
}
/// cos(pi r): error 5.4e-8.
NACRE_INLINE float cos_pi_reduced(float u) {
  return (((0.22000809f * u - 1.33206248f) * u + 4.05844736f) * u - 4.93479538f) * u + 1.0f;
}
/// sin^2(pi r): relative error 2^-24.9.
NACRE_INLINE float sin_squared_pi_reduced(float u) {
  const float p = ((-3.25524116f * u + 12.9865704f) * u - 30.0874939f) * u + 42.7259369f;
  return u * ((p * u - 32.4696312f) * u + 9.86960411f);
}
/// a / b for b in [1, 2], within 0.6 ulp unless the quotient is denormal. On a device an ordinary division would add a
/// branch for other b.
NACRE_INLINE float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  const float q = a * inverse;
  return fmaf(fmaf(-q, b, a), inverse, q);
#else
  return a / b;
#endif
}
NACRE_INLINE float flip(float x, uint32_t sign) {
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) ^ sign);
}
/// 2^n for -126 <= n <= 127.
NACRE_INLINE float power_of_two(int32_t n) { return __builtin_bit_cast(float, static_cast<uint32_t>(n + 127) << 23); }

/// x = n ln 2 + r with |r| <= ln(2) / 2.
struct Powers {
  float r;
  int32_t n;
};
NACRE_INLINE Powers powers(float x) {
  // x / ln 2 to the nearest integer. ln 2 is subtracted in two parts. The first has so few bits that its product with k
  // is exact; the second brings the sum to more than the precision of a float.
  const float shifted = x * 1.44269504f + rounder;
  const float k = shifted - rounder;
  return {(x - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f,
          static_cast<int32_t>(__builtin_bit_cast(uint32_t, shifted) - __builtin_bit_cast(uint32_t, rounder))};
}
/// exp(r) - 1 on [-ln(2)/2, ln(2)/2]: error 2^-28.2 of exp(r).
NACRE_INLINE float exp_minus_one_reduced(float r) {
  const float p = (((0.0013838684f * r + 0.00836918224f) * r + 0.0416681021f) * r + 0.166665167f) * r + 0.49999994f;
  return r + (r * r) * p;
}

/// x = 2^exponent (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for positive finite x; log(1 + f) = f + tail.
struct Logarithm {
  float exponent, f, tail;
};
NACRE_INLINE Logarithm logarithm(float x) {
  // 0x3f3504f3 is sqrt(1/2): subtracting it from the bits moves the boundary between exponents there, so that f is
  // small on both sides of 1. Denormal numbers are scaled first.
  const bool tiny = x < 0x1p-126f;
  const uint32_t bits = __builtin_bit_cast(uint32_t, tiny ? x * 0x1p23f : x);
  const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float f = __builtin_bit_cast(float, bits - (static_cast<uint32_t>(e) << 23)) - 1.0f;
  float p = -0.0766285062f * f + 0.127782315f;
  p = p * f - 0.131622329f;
  p = p * f + 0.142011583f;
  p = p * f - 0.166232094f;
  p = p * f + 0.20001255f;
  p = p * f - 0.250008225f;
  p = p * f + 0.333333313f;
  const float u = f * f;
  return {static_cast<float>(e) - (tiny ? 23.0f : 0.0f), f, (f * u) * p - 0.5f * u};
}
/// `value`, the logarithm of x, or the special result if x is not positive and finite.
NACRE_INLINE float logarithm_or_special(float x, float value) {
  const float infinity = __builtin_inff();
  value = x == 0.0f ? -infinity : value;
  value = x == infinity ? infinity : value;
  return x >= 0.0f ? value : __builtin_nanf("");
}

}  // namespace detail

/// a / pi, the frequency of sin^2(a x), within 0.5001 ulp. The functions below take the frequency, so that the phase
/// costs two fused multiply-adds and a subtraction. 1 / pi is in two parts.
NACRE_INLINE float frequency_of(float a) { return fmaf(a, 0x1.45f306p-2f, a * 0x1.b9391p-27f); }

/// sin^2(pi frequency x): within 5 ulp for |frequency x| < 1/2, within 3e-7 up to 3200, plus what rounding the product
/// to a float costs where there are no fused multiply-adds; in [0, 1] for any finite x.
NACRE_INLINE float sin_squared_pi(float frequency, float x) {
  const float r = detail::phase(frequency, x);
  return detail::sin_squared_pi_reduced(at_most(r * r, 0.25f));
}

struct SinCos {
  float sin, cos;
};
/// sin and cos of pi frequency x up to one common sign, so that sin^2, cos^2 and sin cos = sin(2 pi frequency x) / 2
/// are right: within 1.8e-7 where sin_squared_pi is within 3e-7, at most 1 in size for any finite x.
NACRE_INLINE SinCos sin_cos_pi_unsigned(float frequency, float x) {
  const float r = at_least(at_most(detail::phase(frequency, x), 0.5f), -0.5f), u = r * r;
  return {detail::sin_pi_reduced(r, u), detail::cos_pi_reduced(u)};
}

/// Within 2 ulp, denormal results included; overflows to infinity and underflows to 0 where expf does.
NACRE_INLINE float exp(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const detail::Powers q = detail::powers(x);
  const float m = 1.0f + detail::exp_minus_one_reduced(q.r);
  const int32_t half = q.n >> 1;  // two factors, since 2^n alone may be out of range
  return (m * detail::power_of_two(half)) * detail::power_of_two(q.n - half);
}

/// exp(x) - 1 for x <= 88, within 3 ulp also near 0.
NACRE_INLINE float exp_minus_one(float x) {
  x = x < -30.0f ? -30.0f : x;
  const detail::Powers q = detail::powers(x);
  const float scale = detail::power_of_two(q.n);
  return scale * detail::exp_minus_one_reduced(q.r) + (scale - 1.0f);
}

/// Within 3 ulp; odd.
NACRE_INLINE float tanh(float x) {
  // tanh |x| = -e / (e + 2) with e = exp(-2 |x|) - 1 in [-1, 0]: no overflow and no cancellation. The sign of x
  // replaces that of the quotient, so -0 stays -0.
  const uint32_t sign = __builtin_bit_cast(uint32_t, x) & 0x80000000u;
  const float e = exp_minus_one(-2.0f * detail::flip(x, sign));
  return __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, detail::quotient(e, e + 2.0f)) & 0x7fffffffu) | sign);
}

/// 1 / (1 + exp(-x)), within 3 ulp, denormal results included.
NACRE_INLINE float sigmoid(float x) {
  // With e = exp(-|x|) in [0, 1], 1 / (1 + e) for x >= 0 and e / (1 + e) below: neither overflows.
  const float e = exp(x < 0.0f ? x : -x);
  return detail::quotient(x < 0.0f ? e : 1.0f, 1.0f + e);
}

/// Within 2 ulp; log(0) is -infinity, negative numbers give NaN.
NACRE_INLINE float log(float x) {
  const detail::Logarithm l = detail::logarithm(x);
  const float low = l.exponent * 0x1.7f7d1cp-20f + l.tail;
  return detail::logarithm_or_special(x, l.exponent * 0x1.62e4p-1f + (low + l.f));
}

/// Within 2.5 ulp; as log.
NACRE_INLINE float log10(float x) {
  const detail::Logarithm l = detail::logarithm(x);
  const float low = l.exponent * 0x1.3509f8p-18f + (l.tail * 0x1.bcb7b2p-2f + l.f * -0x1.5b235ep-27f);
  return detail::logarithm_or_special(x, l.exponent * 0x1.344p-2f + (low + l.f * 0x1.bcb7b2p-2f));
}

}  // namespace nacre::vec
