// Views, storage types, random numbers and contexts, which everything else uses.
#include "harness.h"
#include "nacre/random.h"
#include "nacre/version.h"

using namespace nacre;
using namespace nacre::test;

TEST_CASE("a build knows its commit and its compilers", "[core]") {
  const std::string made_of = commit();
  const bool shortened = made_of.size() >= 12 && made_of.find_first_not_of("0123456789abcdef") >= 12;
  CHECK((made_of == "unknown" || shortened));
  CHECK(std::string(compiler()).find(' ') != std::string::npos);
}

TEST_CASE("bf16 rounds to nearest even and keeps NaN", "[core]") {
  CHECK(to_float(to_bf16(1.0f)) == 1.0f);
  CHECK(to_float(to_bf16(1.0f + 0x1p-8f)) == 1.0f);  // ties to even mantissa
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
  if (!built_with_cuda()) {
    CHECK_THROWS_WITH(Context({.device = {Device::cuda, 0}}), Catch::Contains("no CUDA back end"));
  } else if (std::string why; !cuda_available(&why)) {
    // A build for CUDA runs on any machine, and says in one line what is missing.
    CHECK_THROWS_WITH(Context({.device = {Device::cuda, 0}}),
                      Catch::Contains(why) && Catch::Contains("use --device cpu"));
    CHECK(why.find('\n') == std::string::npos);
  } else {
    CHECK_THROWS_WITH(Context({.device = {Device::cuda, 4321}}), Catch::Contains("cuda:4321"));
  }
  CHECK_THROWS_WITH(Context({.threads = -1}), Catch::Contains("negative"));
  CHECK(Context({.threads = 3}).threads() == 3);
}

TEST_CASE("copies check their sizes", "[core]") {
  const Device device = GENERATE(from_range(test::devices()));
  Context ctx({.device = device});
  Memory memory(ctx, 16);
  const View<float> v(reinterpret_cast<float*>(memory.data()), {.channels = 4});
  const std::vector<float> three(3);
  CHECK_THROWS_AS(ctx.write<float>(three, v), Error);
  std::vector<float> four{1, 2, 3, 4}, back(4);
  ctx.write<float>(four, v);
  ctx.read<float>(v, back);
  CHECK(back == four);
}

TEST_CASE("more memory than there can be is refused", "[core]") {
  Context ctx;
  for (const size_t beyond : {size_t{1}, size_t{4}, size_t{300}, size_t{1} << 20}) {
    try {
      Memory memory(ctx, size_t{0} - beyond);
      FAIL("was given");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::memory);
    }
  }
}

TEST_CASE("memory in use is counted, and what it was at most since the count was reset", "[core]") {
  const Device device = GENERATE(from_range(nacre::test::devices()));
  Context ctx({.device = device});
  reset_memory_peak(device);
  const MemoryUse before = memory_use(device);
  CHECK(before.peak == before.now);
  {
    const Memory small(ctx, 1000), large(ctx, size_t{5} << 20);  // from both ways of allocating on the host
    CHECK(memory_use(device).now == before.now + small.size() + large.size());
  }
  CHECK(memory_use(device).now == before.now);
  CHECK(memory_use(device).peak == before.now + 1000 + (size_t{5} << 20));
  reset_memory_peak(device);
  CHECK(memory_use(device).peak == before.now);
}

TEST_CASE("copies, zeros and uploads, in order", "[core]") {
  const Device device = GENERATE(from_range(nacre::test::devices()));
  Context ctx({.device = device});
  Memory memory(ctx, 48);
  const View<float> a(reinterpret_cast<float*>(memory.data()), {.channels = 4}), b(a.data + 4, a.shape),
      c(b.data + 4, a.shape);
  const std::vector<float> first{1, 2, 3, 4}, second{5, 6, 7, 8};
  std::vector<float> back(4);
  ctx.write<float>(first, a);
  ctx.copy<float>(a, b);
  ctx.upload<float>(second, a);
  ctx.copy<float>(a, c);
  ctx.zero(a);
  ctx.upload<float>(first, a);
  ctx.synchronize();
  ctx.read<float>(a, back);
  CHECK(back == first);
  ctx.read<float>(b, back);
  CHECK(back == first);
  ctx.read<float>(c, back);
  CHECK(back == second);
}

TEST_CASE("a graph holds what a stream can do, and nothing else", "[core]") {
  const Device device = GENERATE(from_range(nacre::test::devices()));
  if (device.kind == Device::cpu) return;
  Context ctx({.device = device});
  Memory memory(ctx, 32);
  const View<float> a(reinterpret_cast<float*>(memory.data()), {.channels = 4}), b(a.data + 4, a.shape);
  const std::vector<float> some{1, 2, 3, 4};
  std::vector<float> back(4);
  CHECK_THROWS_WITH(ctx.capture([&] { ctx.write<float>(some, a); }), Catch::Contains("the step calls write"));
  CHECK_THROWS_WITH(ctx.capture([&] { ctx.read<float>(a, back); }), Catch::Contains("the step calls read"));
  CHECK_THROWS_WITH(ctx.capture([&] { ctx.synchronize(); }), Catch::Contains("the step calls synchronize"));
  CHECK_THROWS_WITH(ctx.capture([&] { ctx.upload<float>(some, a); }), Catch::Contains("the step calls upload"));
  CHECK_THROWS_WITH(ctx.capture([&] { Memory more(ctx, 16); }), Catch::Contains("the step calls Memory's constructor"));
  Memory released(ctx, 32);
  Graph graph = ctx.capture([&] {
    ctx.copy<float>(a, b);
    released = Memory();  // memory that the graph does not use may be freed
  });
  ctx.write<float>(some, a);
  ctx.read<float>(b, back);
  CHECK(back == std::vector<float>(4, 0.0f));  // recorded, not executed
  graph.replay();
  ctx.read<float>(b, back);
  CHECK(back == some);
}
