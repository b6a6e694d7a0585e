#include "nacre/ops/stft.h"

#include "harness.h"
#include "reference/spectral.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Trial {
  int64_t batch, time;
  StftGeometry geometry;
};
constexpr StftPadding zero = StftPadding::zero;
constexpr StftGeometry aligned(int64_t window, int64_t hop, StftPadding padding = StftPadding::reflect) {
  return {window, hop, padding, true};
}
/// Frames within the signal, under a normalised window: those of EnCodec's discriminators.
constexpr StftGeometry inside(int64_t window, int64_t hop, StftPadding padding = StftPadding::reflect) {
  return {window, hop, padding, false, true, true};
}

const Trial trials[] = {
    {1, 1, {4, 1}},            // the smallest window, one sample
    {1, 2, {4, 1}},            // reflection with two samples
    {2, 3, {16, 4}},           // the reflection bounces several times
    {1, 1, {8, 2, zero}},      // one sample, zeros around it
    {3, 50, {8, 3}},           // the hop does not divide the window; one block of lanes has frames of two items
    {1, 15, {4, 1}},           // 16 frames: exactly one block
    {1, 16, {4, 1}},           // one more
    {1, 14, {4, 1}},           // one less
    {2, 100, {6, 2}},          // factor 3, odd half
    {1, 100, {10, 5}},         // factor 5
    {1, 333, {30, 7}},         // factors 2, 3, 5
    {1, 400, {50, 12}},        // factor 5 twice
    {1, 400, {54, 13, zero}},  // factor 3 three times
    {2, 257, {64, 16}},        // a power of two
    {1, 300, {64, 100}},       // hop > window: samples in no frame
    {1, 1000, {120, 31}},      // hop and window are coprime
    {2, 2000, {1024, 256}},    // the usual long window
    {1, 6000, {32, 8}},        // short window, long signal: chunks of the overlap-add
    {1, 500, {2048, 512}},     // signal shorter than half the window
    {1, 4000, {2000, 500}},    // 125 ms at 16 kHz
    {8, 64, {64, 64, zero}},   // hop = window
    {17, 5, {8, 8}},           // one frame per item
    // Frames that divide the signal.
    {1, 1, aligned(4, 2)},             // one sample
    {1, 2, aligned(4, 2)},             // one hop
    {3, 7, aligned(8, 4)},             // the last frame reaches furthest: one sample of the last hop is in the signal
    {2, 3, aligned(16, 4)},            // the reflection bounces several times
    {2, 50, aligned(16, 6)},           // the hop does not divide the signal; an odd number of samples before it
    {1, 333, aligned(30, 10)},         // factors 2, 3, 5
    {1, 100, aligned(10, 6)},          // hop > half of the window
    {3, 64, aligned(16, 16)},          // no overlap, and no padding on the left
    {2, 61, aligned(16, 16)},          // padding on the right only
    {1, 257, aligned(64, 16)},         // a power of two
    {2, 96, aligned(32, 8, zero)},     // packs, zeros around
    {2, 200, aligned(64, 16)},         // packs, reflection
    {1, 200, aligned(64, 24)},         // packs, a lead that is no multiple of 8
    {1, 6000, aligned(32, 8)},         // chunks of the overlap-add
    {2, 2000, aligned(2048, 512)},     // the windows of DAC's discriminators
    {1, 2001, aligned(1024, 256)},     //
    {1, 1999, aligned(512, 128)},      //
    {1, 300, aligned(2048, 512)},      // shorter than half the window
    {1, 5, aligned(2048, 512, zero)},  // one frame
    // Frames within the signal.
    {1, 4, inside(4, 1)},                                          // one frame, the whole signal
    {3, 7, inside(4, 4)},                                          // one frame, and samples behind it
    {2, 8, inside(4, 4)},                                          // no overlap, no rest
    {1, 9, inside(4, 6)},                                          // hop > window: samples between frames
    {2, 50, inside(16, 6, zero)},                                  // the hop does not divide the signal
    {1, 333, inside(30, 7)},                                       // factors 2, 3, 5
    {2, 96, inside(32, 8)},                                        // packs
    {2, 100, inside(32, 8, zero)},                                 // packs, and a rest of 4 samples
    {3, 6000, inside(32, 8)},                                      // chunks of the overlap-add
    {2, 2304, inside(1024, 256)},                                  // the windows of EnCodec's discriminators
    {1, 2048, inside(2048, 512)},                                  //
    {1, 1999, inside(512, 128)},                                   //
    {1, 777, {64, 16, zero, false, true}},                         // not normalised
    {1, 777, {64, 16, StftPadding::reflect, false, false, true}},  // normalised, centred
    {1, 777, {64, 16, StftPadding::reflect, true, false, true}},   // normalised, aligned
};

std::vector<double> doubles(const Buffer<float>& b) { return {b.before().begin(), b.before().end()}; }

}  // namespace

TEST_CASE("stft: forward, adjoint and their identity") {
  for (const Device device : devices())
    for (const Trial& t : trials) {
      const Shape s{.batch = t.batch, .time = t.time};
      Case c("stft window " + std::to_string(t.geometry.window), device, s);
      const StftPlan plan(c.ctx, s, t.geometry);
      const int64_t frames = stft_frames(t.time, t.geometry), bins = t.geometry.window / 2 + 1;
      REQUIRE(plan.spectrum() == Shape{t.batch, frames, bins, 2});
      auto &x = c.random("x", s, -1, 1), &spectrum = c.output("spectrum", plan.spectrum());
      auto &dspectrum = c.random("dspectrum", plan.spectrum(), -1, 1), &dx = c.output("dx", s);
      auto& sum = c.random("dx added to", s, -1, 1);
      AllocationCounter allocations;
      stft_forward(c.ctx, {.plan = plan, .x = x, .spectrum = spectrum});
      stft_adjoint(c.ctx, {.plan = plan, .dspectrum = dspectrum, .dx = dx});
      stft_adjoint(c.ctx, {.plan = plan, .dspectrum = dspectrum, .dx = sum, .add_dx = true});
      CHECK(allocations.count() == 0);

      std::vector<double> expected, allowed, adjoint(static_cast<size_t>(s.elements())), variance(adjoint.size());
      const std::vector<double> signal = doubles(x), dy = doubles(dspectrum);
      for (int64_t b = 0; b < t.batch; ++b)
        for (int64_t f = 0; f < frames; ++f) {
          const auto windowed = reference::frame(&signal[reference::at(b * t.time)], t.time, t.geometry, f);
          const auto X = reference::dft(windowed);
          std::vector<reference::Complex> D;
          for (int64_t k = 0; k < bins; ++k) {
            for (const double v : {X[reference::at(k)].real(), X[reference::at(k)].imag()}) {
              expected.push_back(v);
              allowed.push_back(reference::bin_error(t.geometry.window, reference::norm(windowed)));
            }
            const size_t i = reference::at(((b * frames + f) * bins + k) * 2);
            D.emplace_back(dy[i], dy[i + 1]);
          }
          reference::add_adjoint(D, {}, t.time, t.geometry, f, &adjoint[reference::at(b * t.time)],
                                 &variance[reference::at(b * t.time)]);
        }
      const auto value = [&](int64_t i) { return expected[reference::at(i)]; };
      const auto error = [&](int64_t i) { return allowed[reference::at(i)]; };
      c.expect(spectrum, value, error);
      // Overlapping frames have independent errors. The overlap-add rounds once per frame.
      const auto dvalue = [&](int64_t i) { return adjoint[reference::at(i)]; };
      const auto derror = [&](int64_t i) {
        return 4 * std::sqrt(variance[reference::at(i)]) + 4 * ulp * std::fabs(dvalue(i));
      };
      c.expect(dx, dvalue, derror);
      c.expect(
          sum, [&](int64_t i) { return dvalue(i) + sum[i]; },
          [&](int64_t i) { return derror(i) + 2 * ulp * (std::fabs(dvalue(i)) + 1); });

      // <X, D> = <x, dx>, from the library's own results. Both sides have the errors above, added over all elements as
      // independent ones.
      double left = 0, right = 0, square = 0;
      const auto found = spectrum.read(), back = dx.read();
      for (size_t i = 0; i < found.size(); ++i)
        left += static_cast<double>(found[i]) * dy[i], square += std::pow(allowed[i] * dy[i], 2);
      for (size_t i = 0; i < back.size(); ++i)
        right += static_cast<double>(back[i]) * signal[i],
            square += std::pow(derror(static_cast<int64_t>(i)) * signal[i], 2);
      CHECK(std::fabs(left - right) <= 4 * std::sqrt(square));
      CHECK(std::fabs(left + 40 * std::sqrt(square) - right) > 4 * std::sqrt(square));

      std::vector<double> planted(found.begin(), found.end());
      planted.back() += 10 * allowed.back() + 1e-30;
      CHECK(worst_ratio(planted, value, error) > 1);
      planted.assign(back.begin(), back.end());
      planted[0] += 10 * derror(0) + 1e-30;
      CHECK(worst_ratio(planted, dvalue, derror) > 1);
    }
}

TEST_CASE("stft: the reference's transform is the definition, and its adjoint the transpose") {
  for (const int64_t window : {4, 6, 16, 30, -16}) {
    const int64_t N = std::abs(window);
    std::vector<double> x;
    for (int64_t i = 0; i < 20; ++i) x.push_back(std::sin(1.7 * static_cast<double>(i * i)));
    const StftGeometry g = window < 0 ? aligned(N, 6) : StftGeometry{N, 3};  // negative: aligned frames
    const auto windowed = reference::frame(x.data(), 20, g, 2);
    const auto X = reference::dft(windowed);
    double left = 0, right = 0;
    std::vector<reference::Complex> D;
    for (int64_t k = 0; k < N; ++k) {
      reference::Complex sum = 0;
      for (int64_t n = 0; n < N; ++n)
        sum += windowed[reference::at(n)] *
               std::polar(1.0, -2 * reference::pi * static_cast<double>(k * n) / static_cast<double>(N));
      CHECK(std::abs(sum - X[reference::at(k)]) < 1e-12);
      if (k > N / 2) continue;
      D.emplace_back(std::cos(3.0 * static_cast<double>(k)), std::sin(5.0 * static_cast<double>(k + 1)));
      left += D.back().real() * sum.real() + D.back().imag() * sum.imag();
    }
    std::vector<double> dx(20);
    reference::add_adjoint(D, {}, 20, g, 2, dx.data(), nullptr);
    for (size_t i = 0; i < 20; ++i) right += dx[i] * x[i];
    CHECK(std::fabs(left - right) < 1e-12);
  }
}

TEST_CASE("stft: aligned frames are as many as hops, and are centred on them") {
  const StftGeometry g = aligned(2048, 512);
  CHECK(stft_frames(1, g) == 1);
  CHECK(stft_frames(512, g) == 1);
  CHECK(stft_frames(513, g) == 2);
  CHECK(stft_frames(16896, g) == 33);
  CHECK(stft_frames(16897, g) == 34);
  // An impulse in the middle of hop 2 has its largest spectrum in frame 2, where the window is 1.
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 40};
    Case c("stft impulse", device, s);
    const StftPlan plan(c.ctx, s, aligned(16, 8));
    REQUIRE(plan.spectrum() == Shape{1, 5, 9, 2});
    std::vector<float> impulse(40);
    impulse[20] = 1;
    auto &x = c.values("x", s, impulse), &spectrum = c.output("spectrum", plan.spectrum());
    stft_forward(c.ctx, {.plan = plan, .x = x, .spectrum = spectrum});
    const auto found = spectrum.read();
    for (size_t f = 0; f < 5; ++f)
      CHECK(std::fabs(found[f * 18] - (f == 2 ? 1.0f : 0.0f)) <= 20 * ulp);  // by the contract
  }
}

TEST_CASE("stft: frames inside the signal, and the norm of the window") {
  const StftGeometry g = inside(64, 16);
  CHECK(stft_frames(64, g) == 1);
  CHECK(stft_frames(79, g) == 1);
  CHECK(stft_frames(80, g) == 2);
  CHECK(stft_frames(24000, inside(1024, 256)) == 90);
  for (const Device device : devices()) {
    const Shape s{.batch = 1, .time = 90};
    Case c("stft inside", device, s);
    const StftPlan plan(c.ctx, s, g), plain(c.ctx, s, {.window = 64, .hop = 16, .inside = true});
    REQUIRE(plan.spectrum() == Shape{1, 2, 33, 2});
    std::vector<float> impulse(90);
    impulse[48] = 1;  // the middle of frame 1, where the plain window is 1
    auto &x = c.values("x", s, impulse), &spectrum = c.output("spectrum", plan.spectrum()),
         &other = c.output("plain", plan.spectrum());
    stft_forward(c.ctx, {.plan = plan, .x = x, .spectrum = spectrum});
    stft_forward(c.ctx, {.plan = plain, .x = x, .spectrum = other});
    CHECK(std::fabs(other.read()[66] - 1) <= 28 * ulp);  // by the contract
    CHECK(std::fabs(spectrum.read()[66] - 1 / std::sqrt(24.0f)) <= 28 * ulp / std::sqrt(24.0f));
    // Samples behind the last frame have no gradient, and gradients are added to, not overwritten.
    auto &dx = c.output("dx", s), &sum = c.values("sum", s, std::vector<float>(90, 2.0f));
    stft_adjoint(c.ctx, {.plan = plan, .dspectrum = spectrum, .dx = dx});
    stft_adjoint(c.ctx, {.plan = plan, .dspectrum = spectrum, .dx = sum, .add_dx = true});
    for (size_t i = 80; i < 90; ++i) {
      CHECK(dx.read()[i] == 0);
      CHECK(sum.read()[i] == 2);
    }
    CHECK(dx.read()[48] > 0);
  }
}

TEST_CASE("stft: the same bits for every number of threads, and silence stays exactly zero") {
  for (const Device device : devices()) {
    std::vector<float> spectra[3], gradients[3];
    const Shape s{.batch = 3, .time = 1500};
    for (int threads = 1; threads <= 3; ++threads) {
      Case c("stft threads", device, s, threads);
      c.rng.seed(seed());
      const StftPlan plan(c.ctx, s, {.window = 64, .hop = 16});
      std::vector<float> content(static_cast<size_t>(s.elements()));
      for (size_t i = 1500; i < 3000; ++i) content[i] = std::uniform_real_distribution<float>(-1, 1)(c.rng);
      auto &x = c.values("x", s, content), &dx = c.output("dx", s), &spectrum = c.output("spectrum", plan.spectrum());
      stft_forward(c.ctx, {.plan = plan, .x = x, .spectrum = spectrum});
      stft_adjoint(c.ctx, {.plan = plan, .dspectrum = spectrum, .dx = dx});
      spectra[threads - 1] = spectrum.read(), gradients[threads - 1] = dx.read();
      const size_t item = spectra[0].size() / 3;
      CHECK(std::all_of(spectra[0].begin(), spectra[0].begin() + static_cast<int64_t>(item),
                        [](float v) { return v == 0; }));
    }
    for (int i = 1; i < 3; ++i) {
      CHECK(spectra[i] == spectra[0]);
      CHECK(gradients[i] == gradients[0]);
    }
  }
}

TEST_CASE("stft: the same bits at any address") {
  for (const StftGeometry& geometry : {StftGeometry{.window = 32, .hop = 8}, aligned(32, 8), inside(32, 8)})
    for (const Device device : devices()) {
      const Shape s{.batch = 2, .time = 256};
      Case c("stft addresses", device, s);
      const StftPlan plan(c.ctx, s, geometry);
      const int64_t samples = s.elements(), cells = plan.spectrum().elements();
      auto &x = c.random("x", s, -1, 1), &spectrum = c.output("spectrum", plan.spectrum()), &dx = c.output("dx", s);
      std::vector<float> moved_content{0};
      moved_content.insert(moved_content.end(), x.before().begin(), x.before().end());
      auto& moved_x = c.values("moved x", {.channels = samples + 1}, moved_content);
      auto &moved_spectrum = c.output("moved spectrum", {.channels = cells + 1}),
           &moved_dx = c.output("moved dx", {.channels = samples + 1});
      const View<float> x1(moved_x.data() + 1, s), spectrum1(moved_spectrum.data() + 1, plan.spectrum()),
          dx1(moved_dx.data() + 1, s);
      stft_forward(c.ctx, {.plan = plan, .x = x, .spectrum = spectrum});
      stft_adjoint(c.ctx, {.plan = plan, .dspectrum = spectrum, .dx = dx});
      stft_forward(c.ctx, {.plan = plan, .x = x1, .spectrum = spectrum1});
      stft_adjoint(c.ctx, {.plan = plan, .dspectrum = spectrum1, .dx = dx1});
      const auto rest = [](const std::vector<float>& v) { return std::vector<float>(v.begin() + 1, v.end()); };
      CHECK(rest(moved_spectrum.read()) == spectrum.read());
      CHECK(rest(moved_dx.read()) == dx.read());
    }
}

TEST_CASE("stft: what cannot be is refused") {
  using Catch::Contains;
  Case c("stft errors", Device{}, {});
  const Shape s{.batch = 2, .time = 100};
  for (const int64_t window : {-8, 0, 2, 7, 14, 22, 62})
    CHECK_THROWS_WITH(StftPlan(c.ctx, s, {.window = window, .hop = 2}),
                      Contains("stft: window is " + std::to_string(window)));
  CHECK_THROWS_WITH(StftPlan(c.ctx, s, {.window = 8, .hop = 0}), Contains("hop is 0"));
  for (const int64_t hop : {3, 9, 10})
    CHECK_THROWS_WITH(StftPlan(c.ctx, s, aligned(8, hop)),
                      Contains("stft: window is 8 and hop is " + std::to_string(hop)));
  CHECK_THROWS_WITH(stft_frames(100, aligned(8, 1)), Contains("stft_frames: window is 8 and hop is 1"));
  CHECK_THROWS_WITH(stft_frames(63, inside(64, 16)), Contains("stft_frames: time is 63 and window is 64"));
  CHECK_THROWS_WITH(StftPlan(c.ctx, s, inside(128, 32)), Contains("stft: time is 100 and window is 128"));
  CHECK_THROWS_WITH(StftPlan(c.ctx, s, {.window = 8, .hop = 2, .aligned = true, .inside = true}),
                    Contains("stft: inside and aligned are both set"));
  CHECK_THROWS_WITH(StftPlan(c.ctx, {.batch = 2, .time = 0}, {.window = 8, .hop = 2}), Contains("time is 0"));
  CHECK_THROWS_WITH(StftPlan(c.ctx, {.batch = 2, .time = 9, .channels = 2}, {.window = 8, .hop = 2}),
                    Contains("signal is [2, 9, 1, 2]"));
  const StftPlan plan(c.ctx, s, {.window = 8, .hop = 2});
  auto &x = c.zeros("x", s), &spectrum = c.zeros("spectrum", plan.spectrum());
  auto& wrong = c.zeros("wrong", {.batch = 2, .time = 101});
  CHECK_THROWS_WITH(stft_forward(c.ctx, {.plan = plan, .x = wrong, .spectrum = spectrum}),
                    Contains("stft_forward: x is [2, 101, 1, 1], expected [2, 100, 1, 1]"));
  CHECK_THROWS_WITH(stft_forward(c.ctx, {.plan = plan, .x = x, .spectrum = x}), Contains("stft_forward: spectrum"));
  CHECK_THROWS_WITH(stft_adjoint(c.ctx, {.plan = plan, .dspectrum = x, .dx = x}), Contains("stft_adjoint: dspectrum"));
  CHECK_THROWS_WITH(stft_adjoint(c.ctx, {.plan = plan, .dspectrum = spectrum, .dx = wrong}),
                    Contains("stft_adjoint: dx"));
  for (const Device device : devices())
    if (device.kind == Device::cuda) {
      Context other({.device = device});
      CHECK_THROWS_WITH(stft_forward(other, {.plan = plan, .x = x, .spectrum = spectrum}),
                        Contains("made for another device"));
    }
  Context more({.threads = 3});
  CHECK_THROWS_WITH(stft_forward(more, {.plan = plan, .x = x, .spectrum = spectrum}), Contains("made for 2 threads"));
}
