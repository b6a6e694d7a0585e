#pragma once
// Elementary functions for loops that become vectors: plain arithmetic and selects, no calls, no tables, no branches.
// Bounds are in units in the last place of the exact result, measured and asserted over all regimes by
// tests/vector_math_test.cpp, on every instruction set the machine has. Polynomials are minimax (Remez) for the
// interval stated, each coefficient rounded to float before the next was fitted. NaN gives NaN everywhere.
#include <cstdint>

#include "inline.h"

namespace nacre::vec {
namespace detail {

/// Adding and subtracting it rounds to the nearest integer; the low bits of the sum hold that integer.
inline constexpr float rounder = 0x1.8p23f;

/// t - k pi in [-pi/2, pi/2], up to the rounding of k. Two short constants make k * constant exact for |t| < 2.5e4
/// also without fused multiply-adds. Far beyond, where a float no longer knows its phase, the result is only clamped.
struct HalfTurn {
  float r;
  uint32_t k;
};
NACRE_INLINE HalfTurn half_turn(float t) {
  const float shifted = t * 0.318309886f + rounder;
  const float k = shifted - rounder;
  float r = ((t - k * 3.140625f) - k * 0x1.fb4p-11f) - k * 0x1.4442d2p-23f;
  r = r > 1.62f ? 1.62f : r;
  r = r < -1.62f ? -1.62f : r;
  return {r, __builtin_bit_cast(uint32_t, shifted)};
}
/// On [-1.62, 1.62]: relative error 2^-26.8, and 5.9e-10.
NACRE_INLINE float sin_reduced(float r) {
  const float u = r * r;
  const float p = ((2.5976924e-06f * u - 0.000198061927f) * u + 0.00833302457f) * u - 0.166666582f;
  return r + (r * u) * p;
}
NACRE_INLINE float cos_reduced(float r) {
  const float u = r * r;
  const float p = ((-2.61113684e-07f * u + 2.47652933e-05f) * u - 0.00138885085f) * u + 0.041666653f;
  return (1.0f - 0.5f * u) + (u * u) * p;
}
NACRE_INLINE float flip(float x, uint32_t sign) { return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) ^ sign); }
/// 2^n for -126 <= n <= 127.
NACRE_INLINE float power_of_two(int32_t n) { return __builtin_bit_cast(float, static_cast<uint32_t>(n + 127) << 23); }

/// x = n ln 2 + r with |r| <= ln(2) / 2.
struct Powers {
  float r;
  int32_t n;
};
NACRE_INLINE Powers powers(float x) {
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
/// The logarithm `value` of x, or what becomes of x when it is not positive and finite.
NACRE_INLINE float logarithm_or_special(float x, float value) {
  const float infinity = __builtin_inff();
  value = x == 0.0f ? -infinity : value;
  value = x == infinity ? infinity : value;
  return x >= 0.0f ? value : __builtin_nanf("");
}

}  // namespace detail

/// sin^2(t): within 5 ulp for |t| < 1.6, within 3e-7 for |t| <= 1e4; in [0, 1] for any finite t.
NACRE_INLINE float sin_squared(float t) {
  const float s = detail::sin_reduced(detail::half_turn(t).r);
  return s * s;
}

struct SinCos {
  float sin, cos;
};
/// Both up to one common sign: sin^2, cos^2 and sin cos = sin(2t) / 2 are right.
NACRE_INLINE SinCos sin_cos_unsigned(float t) {
  const detail::HalfTurn h = detail::half_turn(t);
  return {detail::sin_reduced(h.r), detail::cos_reduced(h.r)};
}
/// Within 1.5e-7 for |t| <= 1e4; for any finite t both are at most 1 in size.
NACRE_INLINE SinCos sin_cos(float t) {
  const detail::HalfTurn h = detail::half_turn(t);
  const uint32_t sign = h.k << 31;
  return {detail::flip(detail::sin_reduced(h.r), sign), detail::flip(detail::cos_reduced(h.r), sign)};
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
  const uint32_t sign = __builtin_bit_cast(uint32_t, x) & 0x80000000u;
  const float e = exp_minus_one(-2.0f * detail::flip(x, sign));
  return __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, e / (e + 2.0f)) & 0x7fffffffu) | sign);
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
