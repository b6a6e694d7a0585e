#include "nacre/ops/rms_scale.h"

#include "harness.h"
#include "reference/rms_scale.h"

using namespace nacre;
using namespace nacre::test;

namespace {

const Shape shapes[] = {
    {1, 1, 1, 1},       // the smallest
    {1, 15, 1, 1},      // one short of the running sums
    {1, 16, 1, 1},      // exactly one of each
    {1, 17, 1, 2},      // one more, stereo
    {7, 1, 1, 2},       // a batch of single samples
    {2, 31, 1, 2},      // odd, stereo
    {3, 33, 1, 3},      // odd everything
    {2, 100, 1, 64},    // the most channels
    {3, 65, 1, 64},     // the same, one more than a part on CUDA
    {64, 10, 1, 1},     // wide batch, short signals
    {1, 1023, 1, 2},    // around a pack of all threads
    {1, 2047, 1, 2},    // one short of a part on CUDA
    {1, 2048, 1, 2},    // exactly one
    {2, 2049, 1, 2},    // one more, and odd items
    {2, 4097, 1, 1},    // the same of one channel
    {1, 32767, 1, 1},   // one short of a part on the CPU
    {2, 32769, 1, 2},   // one more
    {1, 65536, 1, 2},   // two parts
    {2, 48000, 1, 2},   // EnCodec's segment
    {1, 100003, 1, 1},  // long, odd
};

std::vector<double> item_of(const Buffer<float>& x, int64_t b) {
  const int64_t n = x.size() / x.shape().batch;
  return {x.before().begin() + b * n, x.before().begin() + (b + 1) * n};
}

void scale_case(Device device, Shape s, bool with_lengths, double eps) {
  Case c("rms_scale", device, s);
  auto& x = c.random("x", s, -1, 1);
  const Shape per_item{.channels = s.batch};
  auto& lengths = c.integers<int32_t>("lengths", per_item, 0, static_cast<int>(s.time));
  std::vector<double> exact;
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t n = with_lengths ? lengths.before()[static_cast<size_t>(b)] : s.time;
    exact.push_back(reference::rms_scale(item_of(x, b), static_cast<size_t>(s.channels), static_cast<size_t>(n), eps));
  }
  if (with_lengths) {  // samples behind a length are never read
    auto poisoned = x.before();
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t i = lengths.before()[static_cast<size_t>(b)] * s.channels; i < s.time * s.channels; ++i)
        poisoned[static_cast<size_t>(b * s.time * s.channels + i)] = NAN;
    x.write(poisoned);
  }
  auto& scale = c.output("scale", per_item);
  rms_scale(c.ctx, {.x = x,
                    .lengths = with_lengths ? View<const int32_t>(lengths) : View<const int32_t>(),
                    .scale = scale,
                    .scratch = c.scratch(rms_scale_scratch(c.ctx, s)),
                    .eps = static_cast<float>(eps)});
  // One rounding to float. eps is rounded as well, and all else is in double.
  const auto expected = [&](int64_t b) { return exact[static_cast<size_t>(b)]; };
  const auto allowed = [&](int64_t b) { return 2 * ulp * expected(b); };
  c.expect(scale, expected, allowed);
  CHECK(worst_ratio({static_cast<double>(scale.read()[0]) + 10 * allowed(0)}, expected, allowed) > 1);
}

void items_case(Device device, Shape s, bool divide) {
  Case c("scale_items", device, s);
  auto &x = c.random("x", s, -1, 1), &y = c.output("y", s), &sum = c.random("y +=", s, -1, 1);
  auto& in_place = c.values("x in place", s, x.before());
  auto& scale = c.random("scale", {.channels = s.batch}, 0.1, 3);
  ScaleItems a{.x = x, .scale = scale, .y = y, .divide = divide};
  scale_items(c.ctx, a);
  a.y = sum, a.add = true;
  scale_items(c.ctx, a);
  scale_items(c.ctx, {.x = in_place, .scale = scale, .y = in_place, .divide = divide});

  const int64_t per_item = s.elements() / s.batch;
  const auto expected = [&](int64_t i) {
    const double by = scale[i / per_item];
    return divide ? x[i] / by : x[i] * by;
  };
  const auto allowed = [&](int64_t i) { return ulp * std::fabs(expected(i)) + 0x1p-149; };
  c.expect(y, expected, allowed);
  c.expect(
      sum, [&](int64_t i) { return sum[i] + expected(i); },
      [&](int64_t i) { return allowed(i) + ulp * (std::fabs(sum[i] + expected(i)) + allowed(i)); });
  c.expect_equal(in_place, y.read());
  std::vector<double> planted;
  for (const float v : y.read()) planted.push_back(static_cast<double>(v));
  planted.back() += 10 * allowed(s.elements() - 1);
  CHECK(worst_ratio(planted, expected, allowed) > 1);
}

}  // namespace

TEST_CASE("the reference of rms_scale has the values of its definition", "[rms_scale]") {
  // Channels that cancel give eps. Equal ones give their root mean square.
  CHECK(reference::rms_scale({3, 4}, 1, 2, 0) == std::sqrt(12.5));
  CHECK(reference::rms_scale({1, -1, 2, -2}, 2, 2, 0.25) == 0.25);
  CHECK(std::fabs(reference::rms_scale({3, 3, 4, 4, 9, 9}, 2, 2, 0) - std::sqrt(12.5)) < 1e-15);
  CHECK(reference::rms_scale({3, 3}, 2, 0, 0.5) == 0.5);
}

TEST_CASE("rms_scale", "[rms_scale]") {
  for (const Device device : devices())
    for (const Shape s : shapes)
      for (const bool with_lengths : {false, true})
        for (const double eps : {1e-8, 0.5}) scale_case(device, s, with_lengths, eps);
}

TEST_CASE("scale_items", "[rms_scale]") {
  for (const Device device : devices())
    for (const Shape s : shapes)
      for (const bool divide : {false, true}) items_case(device, s, divide);
}

TEST_CASE("rms_scale at its limits", "[rms_scale]") {
  for (const Device device : devices()) {
    const Shape s{4, 40, 1, 2};
    Case c("rms_scale limits", device, s);
    auto& x = c.random("x", s, -1, 1);
    auto content = x.before();
    for (size_t i = 0; i < 80; i += 2) content[i + 1] = -content[i];  // item 0: channels that cancel
    for (size_t i = 160; i < 240; ++i) content[i] = 3e38f;            // item 2: squares beyond float
    x.write(content);
    auto &scale = c.output("scale", {.channels = 4}), &whole = c.output("whole", {.channels = 4});
    auto& lengths = c.values<int32_t>("lengths", {.channels = 4}, {40, 0, 99, -3});
    const View<float> scratch = c.scratch(rms_scale_scratch(c.ctx, s));
    RmsScale a{.x = x, .lengths = lengths, .scale = scale, .scratch = scratch};
    rms_scale(c.ctx, a);
    // Without samples, and of silence, eps; a length is clamped.
    CHECK(scale.read() == std::vector<float>{1e-8f, 1e-8f, 3e38f, 1e-8f});
    for (const float broken : {NAN, INFINITY}) {
      content[85] = broken;  // item 1
      x.write(content);
      a.lengths = {}, a.scale = whole;
      rms_scale(c.ctx, a);
      const auto found = whole.read();
      CHECK(!std::isfinite(found[1]));
      CHECK(found[0] == 1e-8f);
      CHECK(found[2] == 3e38f);
      CHECK(std::isfinite(found[3]));
    }
  }
}

TEST_CASE("rms_scale does not allocate and does not depend on threads", "[rms_scale]") {
  for (const Device device : devices())
    for (const int64_t channels : {1, 2, 5}) {
      const Shape s{3, 70001, 1, channels};
      std::vector<float> first_scale, first_y, first_sum;
      for (const int threads : {1, 2, 3}) {
        Case c("rms_scale threads", device, s, threads);
        auto &x = c.random("x", s, -1, 1), &scale = c.output("scale", {.channels = 3}), &y = c.output("y", s);
        auto& sum = c.random("y +=", s, -1, 1);
        const RmsScale a{.x = x, .scale = scale, .scratch = c.scratch(rms_scale_scratch(c.ctx, s))};
        rms_scale(c.ctx, a);  // starts the thread pool
        AllocationCounter counter;
        rms_scale(c.ctx, a);
        scale_items(c.ctx, {.x = x, .scale = scale, .y = y, .divide = true});
        scale_items(c.ctx, {.x = x, .scale = scale, .y = sum, .add = true});
        CHECK(counter.count() == 0);
        if (threads == 1) first_scale = scale.read(), first_y = y.read(), first_sum = sum.read();
        c.expect_equal(scale, first_scale);
        c.expect_equal(y, first_y);
        c.expect_equal(sum, first_sum);
      }
    }
}

TEST_CASE("rms_scale: the same bits at any address", "[rms_scale]") {
  for (const Device device : devices())
    for (const int64_t channels : {1, 2, 3})
      for (const int64_t time : {4, 2048, 4096, 4100, 9000}) {
        const Shape s{2, time, 1, channels};
        Case c("rms_scale addresses", device, s);
        auto& x = c.random("x", s, -1, 1);
        std::vector<float> later{0};
        later.insert(later.end(), x.before().begin(), x.before().end());
        auto& behind = c.values("moved", {.channels = s.elements() + 1}, later);
        const View<const float> moved(behind.data() + 1, s);
        auto &scale = c.output("scale", {.channels = 2}), &other = c.output("other scale", {.channels = 2});
        auto &y = c.output("y", s), &other_y = c.output("other y", s);
        auto& lengths = c.values<int32_t>("lengths", {.channels = 2}, {static_cast<int32_t>(time) - 1, 3});
        RmsScale a{.x = x, .lengths = lengths, .scale = scale, .scratch = c.scratch(rms_scale_scratch(c.ctx, s))};
        rms_scale(c.ctx, a);
        a.x = moved, a.scale = other;
        rms_scale(c.ctx, a);
        c.expect_equal(other, scale.read());
        scale_items(c.ctx, {.x = x, .scale = scale, .y = y});
        scale_items(c.ctx, {.x = moved, .scale = scale, .y = other_y});
        c.expect_equal(other_y, y.read());
      }
}

TEST_CASE("rms_scale names what does not fit", "[rms_scale]") {
  Case c("rms_scale shapes", devices().front(), {});
  const Shape s{2, 20, 1, 2};
  auto &x = c.zeros("x", s), &wide = c.zeros("wide", {2, 20, 2, 1}), &many = c.zeros("many", {2, 20, 1, 65});
  auto& scale = c.zeros("scale", {.channels = 2});
  auto& lengths = c.values<int32_t>("lengths", {.channels = 3}, {1, 2, 3});
  const View<float> scratch = c.scratch(rms_scale_scratch(c.ctx, s));
  RmsScale a{.x = wide, .scale = scale, .scratch = scratch};
  CHECK_THROWS_WITH(rms_scale(c.ctx, a), Catch::Contains("rms_scale: x is [2, 20, 2, 1]"));
  a.x = many;
  CHECK_THROWS_WITH(rms_scale(c.ctx, a), Catch::Contains("rms_scale: x is [2, 20, 1, 65]"));
  a.x = x, a.lengths = lengths;
  CHECK_THROWS_WITH(rms_scale(c.ctx, a), Catch::Contains("rms_scale: lengths is [1, 1, 1, 3]"));
  a.lengths = {}, a.scale = x;
  CHECK_THROWS_WITH(rms_scale(c.ctx, a), Catch::Contains("rms_scale: scale is [2, 20, 1, 2]"));
  a.scale = scale, a.scratch = {};
  CHECK_THROWS_WITH(rms_scale(c.ctx, a), Catch::Contains("rms_scale: scratch"));
  ScaleItems b{.x = x, .scale = x, .y = x};
  CHECK_THROWS_WITH(scale_items(c.ctx, b), Catch::Contains("scale_items: scale is [2, 20, 1, 2]"));
  b.scale = scale, b.y = wide;
  CHECK_THROWS_WITH(scale_items(c.ctx, b), Catch::Contains("scale_items: y is [2, 20, 2, 1]"));
  b.y = x, b.x = View<const float>(nullptr, s);
  CHECK_THROWS_WITH(scale_items(c.ctx, b), Catch::Contains("scale_items: x"));
}
