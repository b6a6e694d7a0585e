#include "nacre/ops/waveform_loss.h"

#include "harness.h"
#include "reference/waveform_loss.h"

using namespace nacre;
using namespace nacre::test;

namespace {

const Shape shapes[] = {
    {1, 1, 1, 1},       // the smallest
    {1, 15, 1, 1},      // one short of a vector
    {1, 16, 1, 1},      // exactly one
    {1, 17, 1, 1},      // one more
    {7, 1, 1, 1},       // a batch of single samples
    {2, 31, 1, 1},      // odd
    {3, 33, 1, 1},      // odd
    {1, 100, 1, 2},     // stereo
    {5, 99, 1, 3},      // three channels, odd everything
    {1, 1023, 1, 1},    // around a chunk
    {1, 1025, 1, 1},    // around a chunk
    {64, 10, 1, 1},     // wide batch, short signals
    {1, 32767, 1, 1},   // one short of a part of the sum
    {1, 32768, 1, 1},   // exactly one part
    {1, 32769, 1, 1},   // a second part of one sample
    {2, 32769, 1, 1},   // the same, twice
    {1, 65536, 1, 1},   // two parts
    {3, 16000, 1, 1},   // seconds of audio
    {2, 44100, 1, 1},   // at another rate
    {1, 100003, 1, 1},  // long, odd
};

std::vector<double> doubles(const Buffer<float>& b) { return {b.before().begin(), b.before().end()}; }

void loss_case(Device device, Shape s, WaveformNorm norm, bool with_lengths) {
  Case c("waveform_loss", device, s);
  auto &estimate = c.random("estimate", s, -1, 1), &target = c.random("target", s, -1, 1);
  const Shape per_batch{.channels = s.batch};
  auto& lengths = c.integers<int32_t>("lengths", per_batch, 0, static_cast<int>(s.time));
  const int64_t frame = s.width * s.channels, per_item = s.time * frame;
  std::vector<int64_t> valid;
  for (int64_t b = 0; b < s.batch; ++b)
    valid.push_back(with_lengths ? lengths.before()[static_cast<size_t>(b)] * frame : per_item);
  const bool squared = norm == WaveformNorm::l2;
  const auto exact = reference::waveform_loss(doubles(estimate), doubles(target), valid, per_item, squared);
  if (with_lengths) {  // samples behind a length are never read
    auto poisoned = estimate.before();
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t i = valid[static_cast<size_t>(b)]; i < per_item; ++i)
        poisoned[static_cast<size_t>(b * per_item + i)] = NAN;
    estimate.write(poisoned);
  }
  auto &loss = c.output("loss", {}), &alone = c.output("loss without gradient", {}),
       &gradient = c.output("gradient", s);
  WaveformLoss a{.estimate = estimate,
                 .target = target,
                 .lengths = with_lengths ? View<const int32_t>(lengths) : View<const int32_t>(),
                 .loss = loss,
                 .gradient = gradient,
                 .scratch = c.scratch(waveform_loss_scratch(c.ctx, s)),
                 .norm = norm};
  waveform_loss(c.ctx, a);
  a.loss = alone, a.gradient = {};
  waveform_loss(c.ctx, a);

  // The difference is rounded once (the square doubles that), and the mean once more. The weight and its product add
  // two roundings.
  const auto loss_allowed = [&](int64_t) { return 4 * ulp * exact.loss + 1e-30; };
  const auto expected_loss = [&](int64_t) { return exact.loss; };
  const auto slope = [&](int64_t i) { return exact.gradient[static_cast<size_t>(i)]; };
  const auto slope_allowed = [&](int64_t i) { return 4 * ulp * std::fabs(slope(i)); };
  c.expect<float>(loss, expected_loss, loss_allowed);
  c.expect<float>(gradient, slope, slope_allowed);
  c.expect_equal<float>(alone, loss.read());
  CHECK(worst_ratio({static_cast<double>(loss.read()[0]) + 10 * loss_allowed(0)}, expected_loss, loss_allowed) > 1);
  std::vector<double> planted;
  for (float g : gradient.read()) planted.push_back(static_cast<double>(g));
  planted[0] += 10 * slope_allowed(0) + 1e-30;
  CHECK(worst_ratio(planted, slope, slope_allowed) > 1);
}

}  // namespace

TEST_CASE("the reference of waveform_loss agrees with finite differences", "[waveform_loss]") {
  for (bool squared : {false, true}) {
    std::vector<double> estimate{0.3, -0.2, 0.9, 0.1, 0.4, -0.8}, target{0.1, 0.2, -0.5, 0.6, 0.2, 0.7};
    const std::vector<int64_t> lengths{3, 2};
    const auto exact = reference::waveform_loss(estimate, target, lengths, 3, squared);
    for (size_t i = 0; i < estimate.size(); ++i) {
      const double h = 1e-6;
      auto up = estimate, down = estimate;
      up[i] += h, down[i] -= h;
      const double difference = (reference::waveform_loss(up, target, lengths, 3, squared).loss -
                                 reference::waveform_loss(down, target, lengths, 3, squared).loss) /
                                (2 * h);
      CHECK(std::fabs(difference - exact.gradient[i]) < 1e-9);
    }
  }
}

TEST_CASE("waveform_loss", "[waveform_loss]") {
  for (Device device : devices())
    for (Shape s : shapes)
      for (WaveformNorm norm : {WaveformNorm::l1, WaveformNorm::l2})
        for (bool with_lengths : {false, true}) loss_case(device, s, norm, with_lengths);
}

TEST_CASE("waveform_loss at its limits", "[waveform_loss]") {
  for (Device device : devices()) {
    const Shape s{2, 20, 1, 1};
    Case c("waveform_loss limits", device, s);
    auto &estimate = c.random("estimate", s, -1, 1), &loss = c.output("loss", {}), &gradient = c.output("gradient", s);
    auto &none = c.values<int32_t>("none", {.channels = 2}, {0, -3}),
         &long_one = c.values<int32_t>("long", {.channels = 2}, {99, 20});
    const View<float> scratch = c.scratch(waveform_loss_scratch(c.ctx, s));
    WaveformLoss a{.estimate = estimate,
                   .target = estimate,
                   .lengths = none,
                   .loss = loss,
                   .gradient = gradient,
                   .scratch = scratch};
    waveform_loss(c.ctx, a);  // no valid samples
    CHECK(loss.read()[0] == 0);
    c.expect_equal<float>(gradient, std::vector<float>(40, 0.0f));
    a.lengths = long_one;  // equal signals; the length is clamped
    waveform_loss(c.ctx, a);
    CHECK(loss.read()[0] == 0);
    c.expect_equal<float>(gradient, std::vector<float>(40, 0.0f));
    auto broken = estimate.before();
    broken[7] = NAN;
    auto& with_nan = c.values("with NaN", s, broken);
    a.target = with_nan;
    waveform_loss(c.ctx, a);
    CHECK(std::isnan(loss.read()[0]));
    CHECK(std::isnan(gradient.read()[7]));
  }
}

TEST_CASE("waveform_loss does not allocate and does not depend on threads", "[waveform_loss]") {
  for (Device device : devices()) {
    const Shape s{3, 70001, 1, 1};
    std::vector<float> first_loss, first_gradient;
    for (int threads : {1, 2, 3}) {
      Case c("waveform_loss threads", device, s, threads);
      auto &estimate = c.random("estimate", s, -1, 1), &target = c.random("target", s, -1, 1);
      auto &loss = c.output("loss", {}), &gradient = c.output("gradient", s);
      const WaveformLoss a{.estimate = estimate,
                           .target = target,
                           .loss = loss,
                           .gradient = gradient,
                           .scratch = c.scratch(waveform_loss_scratch(c.ctx, s))};
      waveform_loss(c.ctx, a);  // starts the thread pool
      AllocationCounter counter;
      waveform_loss(c.ctx, a);
      CHECK(counter.count() == 0);
      if (threads == 1) first_loss = loss.read(), first_gradient = gradient.read();
      c.expect_equal(loss, first_loss);
      c.expect_equal(gradient, first_gradient);
    }
  }
}

TEST_CASE("waveform_loss: the same bits at any address, and L1 gradients are those of the CPU", "[waveform_loss]") {
  for (Device device : devices())
    for (int64_t time : {4, 4095, 4096, 4100, 9000}) {
      const Shape s{2, time, 1, 1};
      Case c("waveform_loss addresses", device, s);
      auto &estimate = c.random("estimate", s, -1, 1), &target = c.random("target", s, -1, 1);
      std::vector<float> later{0};
      later.insert(later.end(), estimate.before().begin(), estimate.before().end());
      auto& moved = c.values("moved", {.channels = s.elements() + 1}, later);
      auto &loss = c.output("loss", {}), &other_loss = c.output("other loss", {});
      auto &gradient = c.output("gradient", s), &other = c.output("other gradient", s);
      auto& lengths = c.values<int32_t>("lengths", {.channels = 2}, {static_cast<int32_t>(time) - 1, 3});
      WaveformLoss a{.estimate = estimate,
                     .target = target,
                     .lengths = lengths,
                     .loss = loss,
                     .gradient = gradient,
                     .scratch = c.scratch(waveform_loss_scratch(c.ctx, s))};
      waveform_loss(c.ctx, a);
      a.estimate = View<const float>(moved.data() + 1, s), a.loss = other_loss, a.gradient = other;
      waveform_loss(c.ctx, a);
      c.expect_equal(other_loss, loss.read());
      c.expect_equal(other, gradient.read());
      const float size = static_cast<float>(1 / static_cast<double>(time + 2));
      std::vector<float> expected(static_cast<size_t>(2 * time), 0.0f);
      for (int64_t i = 0; i < 2 * time; ++i)
        if (i % time < (i < time ? time - 1 : 3))
          expected[static_cast<size_t>(i)] = estimate[i] > target[i] ? size : estimate[i] < target[i] ? -size : 0.0f;
      c.expect_equal(gradient, expected);
    }
}

TEST_CASE("waveform_loss names what does not fit", "[waveform_loss]") {
  Case c("waveform_loss shapes", devices().front(), {});
  const Shape s{2, 20, 1, 1};
  auto &x = c.random("x", s, -1, 1), &other = c.random("other", {2, 21, 1, 1}, -1, 1), &loss = c.output("loss", {});
  auto& lengths = c.values<int32_t>("lengths", {.channels = 3}, {1, 2, 3});
  const View<float> scratch = c.scratch(waveform_loss_scratch(c.ctx, s));
  WaveformLoss a{.estimate = x, .target = other, .loss = loss, .scratch = scratch};
  CHECK_THROWS_WITH(waveform_loss(c.ctx, a), Catch::Contains("waveform_loss: target is [2, 21, 1, 1]"));
  a.target = x, a.lengths = lengths;
  CHECK_THROWS_WITH(waveform_loss(c.ctx, a), Catch::Contains("waveform_loss: lengths is [1, 1, 1, 3]"));
  a.lengths = {}, a.gradient = other;
  CHECK_THROWS_WITH(waveform_loss(c.ctx, a), Catch::Contains("waveform_loss: gradient"));
  a.gradient = {}, a.scratch = {};
  CHECK_THROWS_WITH(waveform_loss(c.ctx, a), Catch::Contains("waveform_loss: scratch"));
  a.scratch = scratch, a.loss = {};
  CHECK_THROWS_WITH(waveform_loss(c.ctx, a), Catch::Contains("waveform_loss: loss"));
}
