#pragma once
// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A number is a pure function
// of (seed, stream, counter), so it does not depend on threads, devices or the order of calls.
#include <array>
#include <cstdint>

#include "nacre/bf16.h"

namespace nacre {

struct Philox {
  uint64_t seed = 0, stream = 0;

  NACRE_HD std::array<uint32_t, 4> operator()(uint64_t counter) const {
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
    uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(b);
      c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(a);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
  }
  /// Uniform in [0, 1), with 53 random bits.
  NACRE_HD double uniform(uint64_t counter) const {
    const auto r = (*this)(counter);
    return static_cast<double>(((uint64_t{r[0]} << 32) | r[1]) >> 11) * 0x1p-53;
  }
  /// Uniform in [0, n), n > 0; the bias is below n / 2^64.
  NACRE_HD uint64_t below(uint64_t counter, uint64_t n) const {
    const auto r = (*this)(counter);
    const uint64_t x = (uint64_t{r[0]} << 32) | r[1];
#if defined(__CUDA_ARCH__)
    return __umul64hi(x, n);
#else
    return static_cast<uint64_t>((static_cast<unsigned __int128>(x) * n) >> 64);
#endif
  }
};

}  // namespace nacre
