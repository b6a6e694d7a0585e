// Runs that train a codec of two channels: resumed with equal bits, judged on both channels, logged in stereo.
#include <cmath>

#include "nacre/files/checkpoint_store.h"
#include "training/trainer_runs.h"

using namespace nacre;
using namespace nacre::test;

namespace {

RunConfig tiny_stereo(QuantizerKind quantizer = QuantizerKind::ema) {
  RunConfig config = tiny(quantizer);
  config.codec.audio_channels = 2;
  return config;
}

/// Stereo files whose channels differ, a mono one and one that is shorter than a segment.
void write_stereo(const TemporaryFolder& folder) {
  const int64_t lengths[] = {2400, 1600, 3000, 250, 2000, 1200};
  for (size_t i = 0; i < std::size(lengths); ++i) {
    const int channels = i == 1 ? 1 : 2;
    const Philox noise{7, i};
    std::vector<float> x;
    for (int64_t t = 0; t < lengths[i]; ++t)
      for (int c = 0; c < channels; ++c) {
        const double turn = 2 * M_PI * (200.0 + 170.0 * static_cast<double>(i) + 90 * c) / 16000;
        x.push_back(static_cast<float>(0.4 / (1 + c) * std::sin(turn * static_cast<double>(t)) +
                                       0.05 * (noise.uniform(x.size()) - 0.5)));
      }
    write_wav(folder / ("data/" + std::to_string(i) + ".wav"),
              {.samples = x, .sample_rate = 16000, .channels = channels});
  }
}

std::string event_bytes(const fs::path& run) {
  std::string all;
  for (const auto& entry : fs::directory_iterator(run))
    if (contains(entry.path().filename().string(), "tfevents")) all += read_bytes(entry.path().string());
  return all;
}

}  // namespace

TEST_CASE("stereo: a run that is stopped and resumed ends with the bits of one that is not", "[stereo]") {
  const QuantizerKind kind = GENERATE(QuantizerKind::ema, QuantizerKind::factorised);
  const TemporaryFolder folder;
  write_stereo(folder);
  const RunConfig config = tiny_stereo(kind);
  Trainer whole(folder, "whole", config), parts(folder, "parts", config);
  const Outcome end = whole.run_to(12);
  CHECK_FALSE(contains(end.text, "both channels are always equal"));
  CHECK(parts.run_to(5).result.step == 5);
  const Outcome rest = parts.run_to(12);
  CHECK(contains(rest.text, "resumed from"));
  check_same_state(end.result.checkpoint, rest.result.checkpoint);
  CHECK(logged_losses(parts.options.run) == logged_losses(whole.options.run));

  // The header of 16-bit WAV (format 1) with 2 channels at 16 kHz, 64000 bytes/s and 4 bytes per sample.
  const std::string stereo("\1\0\2\0\x80\x3e\0\0\0\xfa\0\0\4\0", 14);
  CHECK(contains(event_bytes(whole.options.run), stereo));

  // The logged scores are those of the saved model on the excerpts that training judges.
  Context ctx({.threads = 1});
  Codec codec = Codec::load(ctx, end.result.checkpoint / "model.safetensors");
  CHECK(codec.config().audio_channels == 2);
  const Dataset data(folder / "data", dataset_options(config));
  CHECK(data.channels() == 2);
  Evaluation e(codec);
  for (const int64_t clip : data.held_out()) e.add("", *data.load(clip));
  CHECK(e.snr() == end.result.snr);
  for (const nlohmann::json& line : log_lines(whole.options.run))
    if (line.contains("valid/snr") && line["step"] == 12) {
      CHECK(line["valid/snr"] == e.snr());
      CHECK(line["valid/output_std"] == e.output_std());
    }

  // A model of one channel is another model.
  std::string text;
  parts.options.config = tiny(kind);
  CHECK(parts.error_of_run(text) == ErrorKind::usage);
  CHECK(contains(text, "audio_channels"));
}

TEST_CASE("stereo: a codec of two channels on mono files is warned about", "[stereo]") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny_stereo());
  const Outcome o = t.run_to(2);
  CHECK(o.result.step == 2);
  CHECK(contains(o.text, "warning: codec.audio_channels is 2 and no file to train on is stereo"));
}

TEST_CASE("stereo: training on other lengths than those of the codec's segments is warned about", "[stereo]") {
  const TemporaryFolder folder;
  write_stereo(folder);
  RunConfig config = tiny_stereo();
  config.codec.network = "encodec", config.codec.norm = Norm::group;
  for (const int64_t more : {int64_t{0}, config.codec.hop()}) {
    config.codec.segment = config.codec.segment_stride = config.training.segment_length + more;
    Trainer t(folder, "run" + std::to_string(more), config);
    const Outcome o = t.run_to(1);
    CHECK(o.result.step == 1);
    CHECK(contains(o.text, "warning: training.segment_length is") == (more > 0));
  }
}
