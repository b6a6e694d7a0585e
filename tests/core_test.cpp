// Views, storage types, random numbers, contexts: what everything else stands on.
#include "harness.h"
#include "nacre/random.h"

using namespace nacre;
using namespace nacre::test;

TEST_CASE("bf16 rounds to nearest even and keeps NaN", "[core]") {
  CHECK(to_float(to_bf16(1.0f)) == 1.0f);
  CHECK(to_float(to_bf16(1.0f + 0x1p-8f)) == 1.0f);  // a tie goes to the even mantissa
  CHECK(to_float(to_bf16(1.0f + 3 * 0x1p-8f)) == 1.0f + 0x1p-6f);
  CHECK(std::isnan(to_float(to_bf16(std::nanf("")))));
  CHECK(std::isinf(to_float(to_bf16(3.4e38f))));
}

TEST_CASE("Philox matches the published vectors", "[core]") {
  // Random123 kat_vectors, philox4x32 10: zeros, and all ones.
  CHECK(Philox{0, 0}(0) == std::array<uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(Philox{~0ull, ~0ull}(~0ull) == std::array<uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
}

TEST_CASE("a context says what it cannot do", "[core]") {
  CHECK_THROWS_WITH(Context({.device = {Device::cuda, 0}}), Catch::Contains("no CUDA back end"));
  CHECK_THROWS_WITH(Context({.threads = -1}), Catch::Contains("negative"));
  CHECK(Context({.threads = 3}).threads() == 3);
}

TEST_CASE("copies check their sizes", "[core]") {
  Context ctx;
  Memory memory(ctx, 16);
  const View<float> v(reinterpret_cast<float*>(memory.data()), {.channels = 4});
  const std::vector<float> three(3);
  CHECK_THROWS_AS(ctx.write<float>(three, v), Error);
  std::vector<float> four{1, 2, 3, 4}, back(4);
  ctx.write<float>(four, v);
  ctx.read<float>(v, back);
  CHECK(back == four);
}
