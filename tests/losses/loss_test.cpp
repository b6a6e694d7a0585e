// The reconstruction loss of training: its windows, hops, bands and weights, and its three values.
#include "nacre/losses/loss.h"

#include <algorithm>
#include <cmath>

#include "harness.h"
#include "nacre/random.h"
#include "reference/balancer.h"
#include "reference/spectral.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// A scale of the loss as loss.h defines it. The hop is a quarter of the window. Weights are equal and sum to one, over
/// all windows for the STFT (magnitudes and logarithms alike), and over the windows with bands for mel.
SpectralScale scale(int64_t window, int64_t mels, float of_stft, float of_mel) {
  return {.window = window,
          .hop = window / 4,
          .mels = mels,
          .magnitude = of_stft,
          .log_magnitude = of_stft,
          .mel_log = of_mel};
}

}  // namespace

TEST_CASE("loss: scales of a configuration", "[loss]") {
  struct Known {
    std::vector<int64_t> windows, mels;
    std::vector<SpectralScale> scales;
  };
  const float third = 1.0f / 3;
  for (const Known& k :
       {Known{{64, 256, 1024},
              {10, 40, 80},
              {scale(64, 10, third, third), scale(256, 40, third, third), scale(1024, 80, third, third)}},
        Known{{16, 32, 64, 128},
              {0, 8, 16, 0},
              {scale(16, 0, 0.25f, 0), scale(32, 8, 0.25f, 0.5f), scale(64, 16, 0.25f, 0.5f), scale(128, 0, 0.25f, 0)}},
        Known{{20}, {0}, {scale(20, 0, 1, 0)}}}) {
    LossConfig config;
    config.windows = k.windows, config.mels = k.mels;
    config.mel_scale = MelScale::htk;
    const SpectralConfig made = config.spectral(24000);
    CHECK(made.sample_rate == 24000);
    CHECK(made.mel_scale == MelScale::htk);
    REQUIRE(made.scales.size() == k.scales.size());
    for (size_t i = 0; i < k.scales.size(); ++i) {
      const SpectralScale &found = made.scales[i], &expected = k.scales[i];
      INFO("window " << expected.window);
      CHECK(found.window == expected.window);
      CHECK(found.hop == expected.hop);
      CHECK(found.mels == expected.mels);
      CHECK(found.magnitude == expected.magnitude);
      CHECK(found.log_magnitude == expected.log_magnitude);
      CHECK(found.mel_magnitude == 0);
      CHECK(found.mel_log == expected.mel_log);
    }
  }
}

TEST_CASE("loss: scales of a configuration that compares mel powers", "[loss]") {
  LossConfig config;
  config.windows = {64, 120, 256}, config.mels = {64, 0, 20};
  config.mel_scale = MelScale::htk, config.mel_kind = MelKind::power, config.mel_fmin = 64;
  for (const double stft : {0.0, 1.0}) {
    config.stft = stft;
    const SpectralConfig made = config.spectral(24000);
    CHECK(made.fmin == 64);
    CHECK_FALSE(made.area_normalised);
    // The mel term is half a mean over two windows for each of its parts. The STFT has scales only if it has a weight.
    std::vector<int64_t> mel, spectra;
    for (const SpectralScale& s : made.scales) {
      INFO("window " << s.window);
      CHECK(s.hop == s.window / 4);
      const bool power = s.mels > 0;
      CHECK(s.aligned == power);
      CHECK((s.mel_kind == MelKind::power) == power);
      CHECK(s.mel_magnitude == (power ? 0.25f : 0.0f));
      CHECK(s.mel_log == (power ? 0.25f : 0.0f));
      CHECK(s.magnitude == (power ? 0.0f : 1.0f / 3));
      CHECK(s.log_magnitude == (power ? 0.0f : 1.0f / 3));
      (power ? mel : spectra).push_back(s.window);
    }
    CHECK(mel == std::vector<int64_t>{64, 256});
    CHECK(spectra == (stft > 0 ? config.windows : std::vector<int64_t>{}));
  }
}

TEST_CASE("loss: scales of a configuration that compares norms", "[loss]") {
  LossConfig config;
  config.windows = {64, 120, 2048}, config.mels = {64, 0, 64};
  config.mel_kind = MelKind::norms;
  const SpectralConfig made = config.spectral(24000);
  CHECK_FALSE(made.area_normalised);
  // The STFT terms share the transforms. Per window with bands, magnitudes count half, and logarithms sqrt(s / 2) / 2.
  REQUIRE(made.scales.size() == 3);
  const float logarithms[] = {std::sqrt(32.0f) / 2, 0, 16};
  for (size_t i = 0; i < 3; ++i) {
    const SpectralScale& s = made.scales[i];
    INFO("window " << s.window);
    CHECK(s.window == config.windows[i]);
    CHECK(s.hop == s.window / 4);
    CHECK(s.mels == config.mels[i]);
    CHECK_FALSE(s.aligned);
    CHECK((s.mel_kind == MelKind::norms) == (i != 1));
    CHECK(s.magnitude == 1.0f / 3);
    CHECK(s.log_magnitude == 1.0f / 3);
    CHECK(s.mel_magnitude == (i == 1 ? 0.0f : 0.5f));
    // The root is rounded once, to a float.
    CHECK(std::fabs(s.mel_log - logarithms[i]) <= static_cast<float>(ulp) * logarithms[i]);
  }
}

TEST_CASE("loss: perceptual weights reach the op, and are refused without logarithms", "[loss]") {
  LossConfig config;
  const SpectralConfig plain = config.spectral(16000);
  CHECK(plain.mel_excess == 1);
  CHECK(plain.mel_transient == 0);
  config.mel_excess = 1.5, config.mel_transient = 2, config.mel_transient_rise = 6;
  CHECK_NOTHROW(config.check(16000));
  const SpectralConfig made = config.spectral(16000);
  CHECK(made.mel_excess == 1.5f);
  CHECK(made.mel_transient == 2);
  CHECK(made.transient_rise == 6);
  using Catch::Contains;
  for (const MelKind kind : {MelKind::power, MelKind::norms}) {
    config.mel_kind = kind, config.mel_excess = 1.5;
    CHECK_THROWS_WITH(config.check(16000), Contains("loss.mel_excess: 1.5, expected 1 unless loss.mel_kind is log"));
    config.mel_excess = 1;
    CHECK_THROWS_WITH(config.check(16000), Contains("loss.mel_transient: 2, expected 0 unless loss.mel_kind is log"));
  }
  config.mel_transient = 0;
  CHECK_NOTHROW(config.check(16000));
  const auto refused = [](auto set, const std::string& key) {
    LossConfig c;
    set(c);
    CHECK_THROWS_WITH(c.check(16000), Contains(key));
  };
  refused([](LossConfig& c) { c.mel_excess = 0.5; }, "loss.mel_excess");
  refused([](LossConfig& c) { c.mel_transient = -1; }, "loss.mel_transient");
  refused([](LossConfig& c) { c.mel_transient_rise = 0; }, "loss.mel_transient_rise");
}

TEST_CASE("loss: the three values, in their order, of what is audio", "[loss]") {
  std::vector<std::pair<Device, MelKind>> trials;
  for (const Device device : devices())
    for (const MelKind kind : {MelKind::log, MelKind::power, MelKind::norms}) trials.emplace_back(device, kind);
  for (const auto& [device, kind] : trials) {
    INFO(str(device));
    Context ctx({.device = device, .threads = 2});
    LossConfig config;
    config.windows = {16, 64}, config.mels = {3, 8};
    config.mel_kind = kind;
    if (kind == MelKind::log) config.mel_excess = 1.5, config.mel_transient = 2;
    PlannedLosses planned;
    const Shape shape{.batch = 2, .time = 300};
    const std::vector<int32_t> valid{300, 170};
    View<float> estimate, target;
    View<int32_t> lengths;
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      target = p.source<float>(shape).value;
      lengths = p.persistent<int32_t>({.channels = 2});
      const Output<float> source = p.source<float>(shape, true);
      estimate = source.value;
      planned = plan_losses(p, source.flow, target, lengths, config, 8000);
    });
    std::vector<float> x(600), y(600);
    const Philox draw{6, 1};
    double distance = 0;
    for (size_t t = 0; t < 600; ++t) {
      x[t] = static_cast<float>(draw.uniform(2 * t) - 0.5), y[t] = static_cast<float>(draw.uniform(2 * t + 1) - 0.5);
      if (t % 300 < static_cast<size_t>(valid[t / 300]))
        distance += std::fabs(static_cast<double>(x[t]) - static_cast<double>(y[t]));
    }
    ctx.write<float>(x, target);
    ctx.write<float>(y, estimate);
    ctx.write<int32_t>(valid, lengths);
    plan.run();
    std::vector<float> values(3);
    ctx.read<float>(planned.values, values);
    // Differences are rounded to float, and so is their mean: two units.
    CHECK(std::fabs(static_cast<double>(values[0]) - distance / 470) <= 2 * ulp * distance / 470);
    SpectralConfig by_hand{.sample_rate = 8000, .scales = {scale(16, 3, 0.5f, 0.5f), scale(64, 8, 0.5f, 0.5f)}};
    if (kind == MelKind::log) by_hand.mel_excess = 1.5f, by_hand.mel_transient = 2;
    if (kind == MelKind::norms) {
      by_hand.area_normalised = false;
      for (SpectralScale& s : by_hand.scales) {
        s.mel_kind = MelKind::norms, s.mel_magnitude = 0.5f;
        s.mel_log = 0.5f * std::sqrt(static_cast<float>(s.window) / 2);
      }
    }
    if (kind == MelKind::power) {
      by_hand.area_normalised = false;
      for (size_t i = 0; i < 2; ++i) {
        SpectralScale mel = scale(by_hand.scales[i].window, by_hand.scales[i].mels, 0, 0.25f);
        mel.mel_magnitude = 0.25f, mel.mel_kind = MelKind::power, mel.aligned = true;
        by_hand.scales[i].mels = 0, by_hand.scales[i].mel_log = 0;
        by_hand.scales.push_back(mel);
      }
    }
    const test::reference::Spectral e =
        test::reference::spectral_loss(by_hand, 2, 300, {y.begin(), y.end()}, {x.begin(), x.end()}, valid, false);
    for (size_t i = 0; i < 2; ++i)
      CHECK(std::fabs(static_cast<double>(values[i + 1]) - e.losses[i]) <= e.loss_errors[i]);
  }
}

namespace {

/// A loss of the caller's own: terms with fixed gradients, whose values are their numbers.
Loss fixed_gradients(const std::vector<std::string>& names, const std::vector<std::vector<float>>& gradients) {
  Loss loss;
  for (const std::string& name : names) loss.terms.push_back({name, name});
  loss.plan = [gradients](Plan& p, const Signals& signals) {
    const Step s = p.step("fixed");
    std::vector<Input<float>> branches;
    for (const Flow& branch : signals.estimates) branches.push_back(s.reads<float>(branch));
    s.backward([=, values = signals.values](Context& c) {
      for (size_t i = 0; i < branches.size(); ++i) {
        c.write<float>(gradients[i], branches[i].grad);
        const auto number = static_cast<float>(i + 1);
        c.write<float>(std::span(&number, 1), View<float>(values.data + i, {}));
      }
    });
  };
  return loss;
}

}  // namespace

TEST_CASE("loss: the balancer joins the gradients of any losses, and counts every term for itself", "[loss]") {
  constexpr size_t n = 2 * 50;
  const Shape shape{.batch = 2, .time = 50};
  const std::vector<double> weights{1, 3, 0, 0.5};
  const Philox draw{3, 9};
  std::vector<std::vector<float>> gradients(4, std::vector<float>(n));
  for (size_t i = 0; i < gradients.size(); ++i)
    for (size_t k = 0; k < n; ++k)
      gradients[i][k] = static_cast<float>(std::pow(10.0, static_cast<double>(i)) * (draw.uniform(i * n + k) - 0.5));
  for (const Device device : devices())
    for (const bool balanced : {true, false}) {
      INFO(str(device) << ", balanced " << balanced);
      Context ctx({.device = device, .threads = 2});
      Plan plan(ctx, Purpose::training);
      Output<float> source;
      Branches branches;
      View<float> values;
      plan.reserve([&](Plan& p) {
        source = p.source<float>(shape, true);
        branches = GradientBalancer(0.5, balanced).plan(p, source.flow, weights);
        values = p.persistent<float>({.channels = 4});
        // Two losses: the first has one term, the second has three.
        size_t first = 0;
        for (const size_t terms : {size_t{1}, size_t{3}}) {
          const std::vector<std::string> names(terms, "own");
          const std::vector<std::vector<float>> own(gradients.begin() + static_cast<std::ptrdiff_t>(first),
                                                    gradients.begin() + static_cast<std::ptrdiff_t>(first + terms));
          const View<float> numbers(values ? values.data + first : nullptr, {.channels = static_cast<int64_t>(terms)});
          fixed_gradients(names, own)
              .plan(p, {.estimates = std::span(branches.flows).subspan(first, terms),
                        .target = {},
                        .lengths = {},
                        .values = numbers});
          first += terms;
        }
      });
      REQUIRE(branches.flows.size() == 4);
      nacre::reference::Balancer exact{.decay = 0.5,
                                       .total_norm = 1,
                                       .eps = 1e-12,
                                       .balanced = balanced,
                                       .sums = std::vector<double>(4),
                                       .ones = std::vector<double>(4)};
      std::vector<std::vector<double>> doubles;
      for (const std::vector<float>& g : gradients) doubles.emplace_back(g.begin(), g.end());
      for (int run = 0; run < 3; ++run) {
        plan.run();
        const nacre::reference::Balancer::Result expected = exact.step(doubles, weights);
        std::vector<float> joined(n), shares(4), state(8), found(4);
        ctx.read<float>(source.grad, joined);
        ctx.read<float>(branches.shares, shares);
        ctx.read<float>(branches.state, state);
        ctx.read<float>(values, found);
        CHECK(found == std::vector<float>{1, 1, 2, 3});
        for (size_t k = 0; k < n; ++k) {
          double size = 0;
          for (size_t i = 0; i < 4; ++i) size += std::fabs(expected.factors[i] * doubles[i][k]);
          // By the contract, (4 + count) units, norms included. Their averages are rounded twice in each of three runs.
          CHECK(std::fabs(static_cast<double>(joined[k]) - expected.gradient[k]) <= (4 + 4 + 6) * ulp * size);
        }
        for (size_t i = 0; i < 4; ++i) {
          CHECK(std::fabs(static_cast<double>(shares[i]) - expected.shares[i]) <= 16 * ulp);
          if (balanced) CHECK(std::fabs(static_cast<double>(state[i]) - exact.sums[i]) <= 8 * ulp * exact.sums[i]);
          if (balanced) CHECK(std::fabs(static_cast<double>(state[4 + i]) - exact.ones[i]) <= 8 * ulp * exact.ones[i]);
        }
      }
    }
}

TEST_CASE("loss: the loss is the last reader of its branch, and the balancer that of its activation", "[loss]") {
  Context ctx({.threads = 1});
  const Shape shape{.batch = 1, .time = 300};
  LossConfig config;
  config.windows = {16}, config.mels = {3};
  const auto refused = [&](const std::function<void(Plan&, Flow)>& walk) -> std::string {
    Plan plan(ctx, Purpose::training);
    try {
      plan.reserve([&](Plan& p) { walk(p, p.source<float>(shape, true).flow); });
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.what();
    }
    return "";
  };
  const std::vector<double> one{1}, nine(9, 1.0);
  const auto waveform = [&](Plan& p, Flow branch) {
    const View<float> value = p.persistent<float>({.channels = 1});
    waveform_loss_of(config).plan(p,
                                  {.estimates = std::span(&branch, 1), .target = {}, .lengths = {}, .values = value});
  };
  CHECK(refused([&](Plan& p, Flow x) { waveform(p, GradientBalancer(0.9, true).plan(p, x, one).flows[0]); }).empty());
  CHECK_THAT(refused([&](Plan& p, Flow x) {
               const Flow branch = GradientBalancer(0.9, true).plan(p, x, one).flows[0];
               waveform(p, branch), waveform(p, branch);
             }),
             Catch::Contains("a later step reads the branch"));
  CHECK_THAT(refused([&](Plan& p, Flow x) {
               waveform(p, GradientBalancer(0.9, true).plan(p, x, one).flows[0]);
               waveform(p, x);
             }),
             Catch::Contains("balancer: a later step"));
  CHECK_THAT(refused([&](Plan& p, Flow x) { GradientBalancer(0.9, true).plan(p, x, nine); }),
             Catch::Contains("9 branches, expected 1 to 8"));
  CHECK_THAT(refused([&](Plan& p, Flow x) { GradientBalancer(0.9, true).plan(p, x, {}); }),
             Catch::Contains("0 branches"));
}

TEST_CASE("loss: names of terms differ, and each has a title", "[loss]") {
  std::vector<std::string> names;
  for (const Loss& loss : losses_of({}, 16000))
    for (const TermSpec& term : loss.terms) {
      CHECK(std::count(names.begin(), names.end(), term.name) == 0);
      CHECK(term_title(term.name) == term.title);
      names.push_back(term.name);
    }
  CHECK(names == std::vector<std::string>{"waveform", "stft", "mel"});
  // Keys "valid/..." of other figures.
  for (const char* taken :
       {"loss", "vq", "snr", "si_sdr", "segmental_snr", "stoi", "estoi", "mel_distance", "stft_distance", "output_mean",
        "output_std", "input_mean", "input_std", "grad_norm", "audio_seconds_per_second"})
    CHECK(std::count(names.begin(), names.end(), taken) == 0);
  for (const std::string& name : names) CHECK_FALSE(name.starts_with("share_"));
  CHECK(term_title("stft") == "STFT");
  CHECK(term_title("adversarial") == "adversarial");  // of a log that another version wrote
}
