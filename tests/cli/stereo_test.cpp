// A codec of two channels through the program: trained, resumed with equal bits, evaluated and reported.
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "nacre/training/baseline.h"
#include "nacre/training/evaluation.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// The command that trains on a folder of short voices, most of them stereo.
std::vector<std::string> train(const Folder& folder, const std::string& name, int steps) {
  return {"train",    "--data_dir",    folder / "data",         "--checkpoint_dir",
          folder / name, "--config",   folder / "config.json",  "--set",
          "codec.audio_channels=2", "--max-steps", std::to_string(steps), "-t", "1"};
}

void write_data(const Folder& folder) {
  fs::create_directories(folder / "data");
  for (int i = 0; i < 8; ++i)
    write_voice(folder / ("data/" + std::to_string(i) + ".wav"), 6000 + 777 * i, i % 3 == 0 ? 22050 : 16000,
                i == 3 ? 1 : 2, 10 + i);
  json config;
  config["codec"] = json::parse(tiny_config().to_json());
  config["loss"] = {{"windows", {64, 256}}, {"mels", {8, 16}}};
  config["training"] = {{"batch_size", 2}, {"segment_length", 2048}, {"valid_fraction", 0.4}, {"valid_seconds", 0}};
  spill(folder / "config.json", config.dump());
}

}  // namespace

TEST_CASE("a codec of two channels is trained, resumed and evaluated", "[cli][stereo]") {
  const Folder folder;
  write_data(folder);
  for (const auto& [name, steps] : {std::pair<const char*, int>{"whole", 4}, {"parts", 2}, {"parts", 4}}) {
    const Outcome o = run(folder, train(folder, name, steps));
    INFO(o.err << o.out);
    REQUIRE(o.code == 0);
  }
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    const std::string whole = slurp(folder / "whole" / "step-00000004" / file);
    CHECK(whole.size() > 1000);
    CHECK((whole == slurp(folder / "parts" / "step-00000004" / file)));
  }

  // The same scores as in training.
  double snr = std::nan("");
  std::istringstream log(slurp(folder / "whole" / "log.jsonl"));
  for (std::string line; std::getline(log, line);)
    if (const json row = json::parse(line); row.contains("valid/snr")) snr = row["valid/snr"];
  const std::string trained = folder / "whole";
  Outcome o = run(folder, {"eval", folder / "data", "-m", trained, "--held-out", "--json"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  CHECK(json::parse(o.out)["mean"]["snr"].get<double>() == snr);
  CHECK(o.err.find("differs from the data") == std::string::npos);

  // A file is scored as the library scores its two channels. A mono file has the figures of a stereo file with two
  // equal channels, and three channels are mixed, with a warning.
  const std::string stereo = write_voice(folder / "stereo.wav", 12345, 16000, 2, 3),
                    mono = write_voice(folder / "mono.wav", 9000, 16000, 1, 4),
                    three = write_voice(folder / "three.wav", 9000, 16000, 3, 5), equal = folder / "equal.wav";
  training::Audio twice = training::read_audio(mono);
  std::vector<float> wide;
  for (const float v : twice.samples) wide.insert(wide.end(), {v, v});
  training::write_wav(equal, {.samples = wide, .sample_rate = 16000, .channels = 2});
  std::vector<std::string> arguments{"eval", stereo, mono, equal, three, "-m", trained, "--json"};
  const bool opus = !training::opus_unavailable();
  if (opus) arguments.insert(arguments.end(), {"--baseline", "opus"});
  o = run(folder, arguments);
  INFO(o.err);
  REQUIRE(o.code == 0);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("three.wav") != std::string::npos);
  CHECK(o.err.find("3 channels") != std::string::npos);
  const json all = json::parse(o.out);
  Context ctx({.device = {}, .threads = 1});
  Codec codec = Codec::load(ctx, folder / "whole" / "step-00000004" / "model.safetensors");
  training::Evaluation e(codec);
  training::Audio audio = training::read_audio(stereo);
  training::normalise_peak(audio.samples);
  const training::ClipScore& score = e.add("", audio.samples);
  const json& first = all["files"][0];
  CHECK(first["seconds"] == 12345 / 16000.0);
  CHECK(first["snr"] == score.snr);
  CHECK(first["si_sdr"] == score.si_sdr);
  CHECK(first["mel_distance"] == score.mel);
  CHECK(first["output_std"] == score.output_std);
  for (const char* key : {"seconds", "snr", "si_sdr", "segmental_snr", "mel_distance", "stft_distance", "input_mean",
                          "input_std", "output_mean", "output_std", "bitrate"})
    CHECK(all["files"][1].value(key, json()) == all["files"][2].value(key, json()));
  // One stream of codes for both channels: 1544 frames of two codes of 4 bits, and the container.
  const double bits = first["bitrate"].get<double>() * 12345 / 16000;
  CHECK(bits >= 1544 * 8);
  CHECK(bits < 1544 * 8 + 8 * 400);
  if (opus) {
    const training::OpusCoded coded = training::code_opus(audio.samples, 16000, all["nominal_bitrate"], 2);
    const training::ClipScore of_opus = training::score_clip(ctx, audio.samples, coded.samples, 16000, 2);
    CHECK(all["baseline"]["files"][0]["snr"] == of_opus.snr);
    CHECK(all["baseline"]["files"][0]["bitrate"].get<double>() == Approx(8.0 * double(coded.bytes) * 16000 / 12345));
  }

  o = run(folder, {"report", trained, "--data_dir", folder / "data", "-o", folder / "page.html"});
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK(slurp(folder / "page.html").find("codes stereo audio") != std::string::npos);
}
