#pragma once
// log10 that the compiler turns into vectors when it is called in a simple loop.
#include <bit>
#include <cstdint>

namespace nacre {

/// log10 of a positive normal number within 3e-7 max(0.1, |log10 x|) of the true value, exact at 1; NaN stays NaN.
[[gnu::always_inline]] inline float log10_normal(float x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh s, s = (m - 1) / (m + 1), |s| < 0.172: the first term
  // left out is below 2e-9 of the sum.
  constexpr int32_t one = 0x3f800000, root_half = 0x3f3504f3;
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t e = (bits - root_half) >> 23;
  const float m = std::bit_cast<float>(bits - e * (one - 0x3f000000));
  const float f = m - 1.0f, s = f / (2.0f + f), z = s * s;
  const float series = 1.0f + z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9))));
  const float nothing = x - x;  // NaN for NaN and infinities
  return static_cast<float>(e) * 0.30102999566f + (0.86858896381f * s * series + nothing);
}

}  // namespace nacre
