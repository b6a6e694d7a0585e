// nacre eval and info through the built program. eval prints the trainer's own score, and the bitrate of the real
// stream.
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "nacre/training/baseline.h"
#include "nacre/training/evaluation.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// Makes a folder of short voices, and a run of two steps on it.
std::string tiny_run(const Folder& folder) {
  fs::create_directories(folder / "data");
  for (int i = 0; i < 8; ++i)
    write_voice(folder / ("data/" + std::to_string(i) + ".wav"), 6000 + 777 * i, i % 2 == 0 ? 16000 : 22050, 1 + i % 2,
                10 + i);
  json config;
  config["codec"] = json::parse(tiny_config().to_json());
  config["loss"] = {{"windows", {64, 256}}, {"mels", {8, 16}}};
  config["training"] = {{"batch_size", 2}, {"segment_length", 2048}, {"valid_fraction", 0.4}, {"valid_seconds", 0.5}};
  spill(folder / "config.json", config.dump());
  const Outcome o = run(folder, {"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--config",
                                 folder / "config.json", "--max-steps", "2", "-t", "1"});
  INFO(o.err << o.out);
  REQUIRE(o.code == 0);
  return folder / "run";
}

}  // namespace

TEST_CASE("eval prints what the trainer printed", "[cli]") {
  const Folder folder;
  const std::string trained = tiny_run(folder);
  double snr = std::nan(""), mel = std::nan("");
  std::istringstream log(slurp(fs::path(trained) / "log.jsonl"));
  for (std::string line; std::getline(log, line);)
    if (const json row = json::parse(line); row.contains("valid/snr"))
      snr = row["valid/snr"], mel = row["valid/mel_distance"];
  REQUIRE(std::isfinite(snr));
  Outcome o = run(folder, {"eval", folder / "data", "-m", trained, "--held-out", "--json", "-t", "1"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  const json all = json::parse(o.out);
  CHECK(all["mean"]["snr"].get<double>() == snr);
  CHECK(all["mean"]["mel_distance"].get<double>() == mel);
  for (const char* key : {"segmental_snr", "stoi", "estoi"}) {
    // Means are over the files that have a value, so each lies between the least and the largest value.
    double least = std::numeric_limits<double>::infinity(), most = -least;
    for (const json& file : all["files"])
      if (file.contains(key))
        least = std::min(least, file[key].get<double>()), most = std::max(most, file[key].get<double>());
    INFO(key);
    CHECK(all["mean"][key].get<double>() >= least);
    CHECK(all["mean"][key].get<double>() <= most);
  }
  CHECK(all["files"].size() >= 2);
  // Without the limit, all held-out audio is scored. The same files given by name have the same scores.
  o = run(folder, {"eval", folder / "data", "-m", trained, "--held-out", "--valid_seconds", "0", "--json"});
  REQUIRE(o.code == 0);
  CHECK(json::parse(o.out)["files"].size() > all["files"].size());
  o = run(folder,
          {"eval", folder / "data" / all["files"][0]["path"].get<std::string>(), "-m", trained, "--json", "-t", "1"});
  REQUIRE(o.code == 0);
  CHECK(json::parse(o.out)["files"][0]["snr"] == all["files"][0]["snr"]);

  o = run(folder, {"info", trained, trained + "/step-00000002"});
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK(o.out.find("step-00000002: verified") != std::string::npos);
  o = run(folder, {"info", trained, "--memory"});
  CHECK(o.out.find("the whole process: nacre encode ") != std::string::npos);
  CHECK(o.code == 0);
  CHECK(o.out.find("training step, 2 x 2048") != std::string::npos);
}

TEST_CASE("eval's bitrate is that of the stream", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 37123);
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model}).code == 0);
  Outcome o = run(folder, {"eval", in, "-m", model, "--json"});
  REQUIRE(o.code == 0);
  const json all = json::parse(o.out);
  CHECK(all["files"][0]["bitrate"].get<double>() ==
        Approx(8.0 * double(fs::file_size(folder / "s.nacre")) * 16000 / 37123));
  CHECK(all["nominal_bitrate"].get<double>() == 16000.0 / 8 * 2 * 4);
  CHECK(all["files"][0]["encode_speed"].get<double>() > 0);

  // The table for a silent file and a bad one.
  training::write_wav(folder / "silent.wav",
                      {.samples = std::vector<float>(9000, 0.0f), .sample_rate = 16000, .channels = 1});
  spill(folder / "bad.wav", "text");
  o = run(folder, {"eval", in, folder / "silent.wav", folder / "bad.wav", "-m", model});
  CHECK(o.code == 3);
  CHECK(o.lines() == 1);
  CHECK(o.out.find("silent: no SNR") != std::string::npos);
  CHECK(o.out.find("mean of 2") != std::string::npos);
  const auto words = [&](const std::string& ending) {
    std::istringstream table(o.out);
    std::vector<std::string> found;
    for (std::string line, word; std::getline(table, line);)
      if (line.find(ending) != std::string::npos)
        for (std::istringstream row(line); row >> word;) found.push_back(word);
    return found;
  };
  // The columns: seconds, SNR, SI-SDR, segmental SNR, STOI, ESTOI, mel, ...
  const std::vector<std::string> head = words("kbit/s"), silent = words("silent.wav"), mean = words("mean of 2");
  CHECK(std::find(head.begin(), head.end(), "ESTOI") != head.end());
  REQUIRE(silent.size() > 6);
  REQUIRE(mean.size() > 6);
  for (size_t column = 1; column <= 5; ++column) {
    CHECK(silent[column] == "-");
    CHECK(mean[column] != "-");
  }
  CHECK(silent[6] != "-");

  // A clip of 0.3 s has a segmental SNR and no STOI, in JSON as well.
  o = run(folder, {"eval", write_voice(folder / "short.wav", 4800), folder / "silent.wav", "-m", model, "--json"});
  REQUIRE(o.code == 0);
  const json two = json::parse(o.out);
  CHECK(two["files"][0]["segmental_snr"].is_number());
  for (const char* key : {"stoi", "estoi"}) {
    CHECK_FALSE(two["files"][0].contains(key));
    CHECK_FALSE(two["mean"].contains(key));
  }
  for (const char* key : {"snr", "si_sdr", "segmental_snr", "stoi", "estoi"})
    CHECK_FALSE(two["files"][1].contains(key));
  CHECK(two["mean"]["segmental_snr"] == two["files"][0]["segmental_snr"]);
}

TEST_CASE("eval sets Opus beside the codec", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  const std::string first = write_voice(folder / "a.wav", 37123),
                    second = write_voice(folder / "b.wav", 21000, 22050, 2, 5);
  training::write_wav(folder / "silent.wav",
                      {.samples = std::vector<float>(9000, 0.0f), .sample_rate = 16000, .channels = 1});
  Outcome o = run(folder, {"eval", first, second, folder / "silent.wav", "-m", model, "--json", "--baseline", "opus"});
  if (training::opus_unavailable()) {
    CHECK(o.code == 2);
    CHECK(o.lines() == 1);
    CHECK(o.err.find("--baseline opus: ") != std::string::npos);
    CHECK(o.out.empty());
    return;
  }
  INFO(o.err);
  REQUIRE(o.code == 0);
  const json all = json::parse(o.out);
  o = run(folder, {"eval", first, second, folder / "silent.wav", "-m", model, "--json"});
  const json alone = json::parse(o.out);
  // Nothing else changes.
  CHECK_FALSE(alone.contains("baseline"));
  for (size_t i = 0; i < 3; ++i)
    for (const char* key : {"path", "snr", "segmental_snr", "stoi", "mel_distance", "bitrate"})
      CHECK(all["files"][i].value(key, json()) == alone["files"][i].value(key, json()));
  // The scored samples are those that the library computes from the same input.
  const json& opus = all["baseline"];
  REQUIRE(opus["files"].size() == 3);
  training::Audio audio = training::read_audio(first);
  training::normalise_peak(audio.samples);
  const training::OpusCoded coded = training::code_opus(audio.samples, 16000, all["nominal_bitrate"]);
  Context ctx({.device = {}, .threads = 1});
  const training::ClipScore score = training::score_clip(ctx, audio.samples, coded.samples, 16000);
  CHECK(opus["codec"] == "opus");
  CHECK(opus["files"][0]["path"] == first);
  CHECK(opus["files"][0]["snr"].get<double>() == score.snr);
  CHECK(opus["files"][0]["stoi"].get<double>() == score.stoi);
  CHECK(opus["files"][0]["segmental_snr"].get<double>() == score.segmental_snr);
  CHECK(opus["files"][0]["mel_distance"].get<double>() == score.mel);
  CHECK(opus["files"][0]["bitrate"].get<double>() == Approx(8.0 * double(coded.bytes) * 16000 / 37123));
  CHECK_FALSE(opus["files"][2].contains("snr"));
  // SNR is a mean over two files, since the third is silent. The bitrate is that of all bits over all seconds.
  const auto figure = [&](size_t i, const char* key) { return opus["files"][i][key].get<double>(); };
  CHECK(opus["mean"]["snr"].get<double>() == Approx((figure(0, "snr") + figure(1, "snr")) / 2));
  double bits = 0, seconds = 0;
  for (size_t i = 0; i < 3; ++i) bits += figure(i, "bitrate") * figure(i, "seconds"), seconds += figure(i, "seconds");
  CHECK(opus["mean"]["bitrate"].get<double>() == Approx(bits / seconds));

  o = run(folder, {"eval", first, second, "-m", model, "--baseline", "opus"});
  CHECK(o.code == 0);
  CHECK(o.out.find("Opus, mean of 2") != std::string::npos);
  CHECK(o.out.find("Opus, mean of 2") > o.out.find("  mean of 2"));
  // A baseline that does not exist.
  o = run(folder, {"eval", first, "-m", model, "--baseline", "mp3"});
  CHECK(o.code == 2);
  CHECK(o.out.empty());
}

TEST_CASE("info says what things are", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 37123, 44100, 2);
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model}).code == 0);
  Outcome o = run(folder, {"info", folder / "s.nacre", model, in});
  INFO(o.err);
  CHECK(o.code == 0);
  for (const char* text :
       {".nacre stream, verified", "44100 Hz, 2 channels, 37123 samples", "2 codebooks of 16", "identity"})
    CHECK(o.out.find(text) != std::string::npos);
  o = run(folder, {"info", "--configs"});
  CHECK(o.code == 0);
  for (const std::string& name : CodecConfig::names()) CHECK(o.out.find(name) != std::string::npos);
  o = run(folder, {"info", "--systems"});
  CHECK(o.code == 0);
  for (const std::string& name : CodecConfig::names()) CHECK(o.out.find("\n" + name + " ") != std::string::npos);
  spill(folder / "cut.nacre", slurp(folder / "s.nacre").substr(0, 500));
  o = run(folder, {"info", folder / "cut.nacre"});
  CHECK(o.code == 3);
  CHECK(o.lines() == 1);
  CHECK(run(folder, {"info", folder / "nothing-here"}).code == 4);
}

TEST_CASE("encode, decode and eval work with activations in bf16", "[cli]") {
  const Folder folder;
  const std::string trained = tiny_run(folder);
  const auto snr = [&](const char* precision) {
    const Outcome o =
        run(folder, {"eval", folder / "data", "-m", trained, "--json", "-t", "1", "--precision", precision});
    INFO(o.err);
    REQUIRE(o.code == 0);
    return json::parse(o.out)["mean"]["snr"].get<double>();
  };
  const double exact = snr("fp32"), rounded = snr("bf16");
  CHECK(exact != rounded);
  CHECK(std::abs(exact - rounded) < 1);  // of a model that is hardly trained, whose noise is as loud as the signal
  for (const char* precision : {"fp32", "bf16"}) {
    const std::string at = folder / precision;
    CHECK(run(folder, {"encode", folder / "data/0.wav", "-o", at + ".nacre", "-m", trained, "--precision", precision})
              .code == 0);
    CHECK(run(folder, {"decode", folder / "fp32.nacre", "-o", at + ".wav", "-m", trained, "--precision", precision})
              .code == 0);
  }
  CHECK(slurp(folder / "fp32.nacre").size() == slurp(folder / "bf16.nacre").size());
  CHECK(slurp(folder / "fp32.wav") != slurp(folder / "bf16.wav"));
}
