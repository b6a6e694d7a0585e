// Discriminators of complex spectra: SoundStream's residual units, and bands with a stage over all of them.
#include "judged.h"
#include "reference/signals.h"

using namespace nacre;
using namespace nacre::test;

namespace {

double rounded(double v) { return static_cast<double>(static_cast<float>(v)); }

/// SoundStream's discriminator from its description. Units are (N, m, stride of time); strides of bins are 2.
Judge residual_judge(const ResidualDiscriminatorConfig& config) {
  return [=](Tape& t, Node* audio) {
    const int64_t window = config.window;
    const bool normalised = config.norm == Norm::group || config.norm == Norm::layer;
    const WeightForm form = config.norm == Norm::weight ? WeightForm::normalised : WeightForm::plain;
    const test::Layer bent = leaky_relu(rounded(config.slope));
    const auto conv = [=, &t](const std::string& name, int64_t time, int64_t width, const Conv2dGeometry& g, Node* x) {
      x = conv2d("critic." + name, time, width, g, form)(t, x);
      return normalised ? group_norm("critic." + name + ".norm", 1, config.norm == Norm::layer)(t, x) : x;
    };
    const auto plain = [=, &t](const std::string& name, int64_t width, const Conv2dGeometry& g, Node* x) {
      return conv2d("critic." + name, 1, width, g, form)(t, x);
    };
    Node* x = spectrum(t, audio, {.window = window, .hop = window / 4, .inside = true, .normalised = true});
    Conv2dGeometry seven{.time = {.left = 3, .right = 3}, .width = {.left = 3, .right = 3}};
    seven.columns = window / 2;
    Judgement v;
    v.features.push_back(x = bent(t, conv("first", 7, 7, seven, x)));
    for (int64_t i = 0; i < 6; ++i) {
      const std::string at = "units." + std::to_string(i) + ".";
      const int64_t stride = 1 + i % 2;
      Node* inner =
          bent(t, conv(at + "convs.0", 3, 3, {.time = {.left = 1, .right = 1}, .width = {.left = 1, .right = 1}}, x));
      Node* branch =
          conv(at + "convs.1", stride + 2, 4,
               {.time = {.stride = stride, .left = 1, .right = stride}, .width = {.stride = 2, .left = 1, .right = 2}},
               inner);
      Node* skip = plain(at + "skip", 1, {.time = {.stride = stride}, .width = {.stride = 2}}, x);
      v.features.push_back(inner);
      v.features.push_back(x = bent(t, sum(t, {{1, branch}, {1, skip}})));
    }
    v.logits = plain("conv_post", window / 128, {}, x);
    return v;
  };
}

Judge band_judge(const BandDiscriminatorConfig& config) {
  return [=](Tape& t, Node* audio) {
    const int64_t bins = config.window / 2 + 1;
    const Conv2dAxis one{.left = 1, .right = 1};
    Node* spectra = spectrum(t, audio, {.window = config.window, .hop = config.window / 4, .aligned = true});
    Judgement v;
    std::vector<Node*> ends;
    int64_t begin = 0;
    for (size_t band = 0; band < config.bands.size(); ++band) {
      const auto end = static_cast<int64_t>(config.bands[band] * static_cast<double>(bins));
      Node* x = spectra;
      for (int i = 0; i < 5; ++i) {
        const int64_t taps = i == 4 ? 3 : 9;
        Conv2dGeometry g{.time = one,
                         .width = {.stride = i == 0 || i == 4 ? 1 : 2, .left = taps / 2, .right = taps / 2}};
        if (i == 0) g.first_column = begin, g.columns = end - begin;
        x = conv2d("critic.band_convs." + std::to_string(band) + "." + std::to_string(i) + ".0", 3, taps, g)(t, x);
        v.features.push_back(x = leaky_relu(rounded(0.1))(t, x));
      }
      ends.push_back(x), begin = end;
    }
    Node* x = beside(t, ends);
    for (int64_t i = 0; i < config.full_layers; ++i) {
      x = conv2d("critic.full_convs." + std::to_string(i) + ".0", 3, 3, {.time = one, .width = one})(t, x);
      v.features.push_back(x = leaky_relu(rounded(0.1))(t, x));
    }
    v.logits = conv2d("critic.conv_post", 3, 3, {.time = one, .width = one})(t, x);
    return v;
  };
}

}  // namespace

TEST_CASE("residual discriminator: gradients of both roles") {
  struct Row {
    ResidualDiscriminatorConfig config;
    int64_t time;
  };
  for (const auto& [config, time] : {Row{{.window = 128, .channels = 2}, 265},  // 5 frames
                                     Row{{.window = 128, .channels = 4, .slope = 0.3, .norm = Norm::layer}, 224},  // 4
                                     Row{{.window = 256, .channels = 1, .norm = Norm::none}, 256},      // one frame
                                     Row{{.window = 128, .channels = 2, .norm = Norm::group}, 210}}) {  // 3 frames
    CAPTURE(static_cast<int>(config.norm));
    check_judge([&c = config](Parameters& p) { return residual_discriminator(p, "critic", c); }, residual_judge(config),
                {.batch = 2, .time = time}, 13);
  }
}

TEST_CASE("residual discriminator: names, sizes and shapes of the published one") {
  const DiscriminatorConfig config{.periods = {}, .windows = {}, .residual_windows = {1024, 256}};
  Parameters parameters;
  const Discriminators judges(parameters, config);
  CHECK(judges.names() == std::vector<std::string>{"residual_1024", "residual_256"});
  // Weights and biases of one unit: channels in, within and out; taps of the strided convolution; the skip.
  const auto unit = [](int64_t in, int64_t within, int64_t out, int64_t taps) {
    return (9 * in + 1) * within + (taps * within + 1) * out + (in + 1) * out;
  };
  const int64_t first = (2 * 49 + 1) * 32, units = unit(32, 32, 64, 12) + unit(64, 64, 128, 16) +
                                                   unit(128, 128, 128, 12) + unit(128, 128, 256, 16) +
                                                   unit(256, 256, 256, 12) + unit(256, 256, 512, 16);
  CHECK(parameters.effective_elements() == 2 * (first + units) + (512 * 8 + 1) + (512 * 2 + 1));
  // Frames lie inside: (16384 - 1024) / 256 + 1 = 61, halved and rounded up three times.
  const std::vector<Verdict> verdicts = surveyed(judges, 16384);
  REQUIRE(verdicts.size() == 2);
  REQUIRE(verdicts[0].features.size() == 13);
  const Shape expected[]{{2, 61, 512, 32},  {2, 61, 512, 32}, {2, 61, 256, 64}, {2, 61, 256, 64}, {2, 31, 128, 128},
                         {2, 31, 128, 128}, {2, 31, 64, 128}, {2, 31, 64, 128}, {2, 16, 32, 256}, {2, 16, 32, 256},
                         {2, 16, 16, 256},  {2, 16, 16, 256}, {2, 8, 8, 512}};
  for (size_t i = 0; i < 13; ++i) CHECK(verdicts[0].features[i].shape == expected[i]);
  CHECK(verdicts[0].logits.shape == Shape{.batch = 2, .time = 8});
  CHECK(verdicts[1].logits.shape == Shape{.batch = 2, .time = 32});  // (16384 - 256) / 64 + 1 = 253
}

TEST_CASE("residual discriminator: what cannot be is refused") {
  using Catch::Contains;
  const auto refused = [](const ResidualDiscriminatorConfig& wrong, const char* what) {
    Parameters p;
    CHECK_THROWS_WITH(residual_discriminator(p, "critic", wrong),
                      Contains("discriminator critic: ") && Contains(what) && Contains("a multiple of 128"));
  };
  refused({.window = 192}, "a window of 192 samples");
  refused({.window = 0}, "a window of 0 samples");
  refused({.channels = 0}, "0 channels");
  refused({.slope = 0}, "slope of 0");
  refused({.slope = 1}, "slope of 1");
  Parameters parameters;
  const Discriminators judges(parameters, {.periods = {}, .windows = {}, .residual_windows = {256}});
  CHECK(surveyed(judges, 256)[0].logits.shape == Shape{.batch = 2, .time = 1});
  CHECK_THROWS_WITH(surveyed(judges, 255), Contains("discriminators.0: audio of 255 samples") &&
                                               Contains("one window of 256") && Contains("residual_windows"));
}

TEST_CASE("band discriminator: gradients of both roles, with and without layers over all bands") {
  for (const BandDiscriminatorConfig& config :
       {BandDiscriminatorConfig{.window = 64, .channels = 2, .full_layers = 2, .full_channels = 3},
        BandDiscriminatorConfig{.window = 64, .channels = 2, .bands = {0.5, 1.0}}}) {
    CAPTURE(config.full_layers);
    check_judge([&](Parameters& p) { return band_discriminator(p, "critic", config); }, band_judge(config),
                {.batch = 2, .time = 70}, 5 * config.bands.size() + static_cast<size_t>(config.full_layers));
  }
}

TEST_CASE("band discriminator: layers over all bands, sizes and refusals") {
  using Catch::Contains;
  Parameters with, without;
  const Discriminators judges(with, {.periods = {}, .windows = {1024}, .window_full_layers = 3}),
      plain(without, {.periods = {}, .windows = {1024}});
  CHECK(without.effective_elements() == 470529);
  CHECK(with.effective_elements() == 470529 + 3 * (9 * 32 + 1) * 32);
  CHECK(judges.names() == std::vector<std::string>{"window_1024"});
  const Verdict full = surveyed(judges, 8192)[0], bands = surveyed(plain, 8192)[0];
  CHECK(full.logits.shape == bands.logits.shape);
  REQUIRE(full.features.size() == bands.features.size() + 3);
  for (size_t i = 25; i < 28; ++i)
    CHECK(full.features[i].shape == Shape{2, full.logits.shape.time, full.logits.shape.width, 32});
  const auto refused = [](const BandDiscriminatorConfig& wrong, const char* what) {
    Parameters p;
    CHECK_THROWS_WITH(band_discriminator(p, "critic", wrong), Contains("discriminator critic: ") && Contains(what));
  };
  refused({.full_layers = -1}, "-1 layers of all bands");
  refused({.full_channels = -1}, "0 layers of all bands of -1 channels");
}
