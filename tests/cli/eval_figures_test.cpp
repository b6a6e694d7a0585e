// nacre eval prints the computed scores, each under its own name. JSON is compared with an evaluation in this process,
// and the table with JSON.
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "nacre/training/evaluation.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

TEST_CASE("eval figures: JSON has the scores, and the table has JSON's", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  const std::vector<std::string> inputs{write_voice(folder / "a.wav", 24000, 16000, 1, 5),
                                        write_voice(folder / "b.wav", 15000, 16000, 2, 6)};
  Context ctx({.threads = 1});
  Codec codec = Codec::load(ctx, model);
  training::Evaluation e(codec);
  for (const std::string& in : inputs) {
    training::Audio audio = training::read_audio(in);
    if (audio.channels > 1) audio.samples = training::to_mono(audio.samples, audio.channels);
    training::normalise_peak(audio.samples);
    e.add(in, audio.samples);
  }
  Outcome o = run(folder, {"eval", inputs[0], inputs[1], "-m", model, "--json"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  const json all = json::parse(o.out);
  REQUIRE(all["files"].size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    const json& file = all["files"][i];
    const training::ClipScore& s = e.clips()[i];
    CHECK(file["path"] == s.name);
    for (const auto& [key, value] : std::map<std::string, double>{{"seconds", s.seconds},
                                                                  {"snr", s.snr},
                                                                  {"si_sdr", s.si_sdr},
                                                                  {"segmental_snr", s.segmental_snr},
                                                                  {"stoi", s.stoi},
                                                                  {"estoi", s.estoi},
                                                                  {"mel_distance", s.mel},
                                                                  {"stft_distance", s.stft},
                                                                  {"input_mean", s.input_mean},
                                                                  {"input_std", s.input_std},
                                                                  {"output_mean", s.output_mean},
                                                                  {"output_std", s.output_std}}) {
      INFO(key);
      CHECK(file[key].get<double>() == value);
    }
  }
  for (const auto& [key, value] : std::map<std::string, double>{{"seconds", e.seconds()},
                                                                {"snr", e.snr()},
                                                                {"si_sdr", e.si_sdr()},
                                                                {"segmental_snr", e.segmental_snr()},
                                                                {"stoi", e.stoi()},
                                                                {"estoi", e.estoi()},
                                                                {"mel_distance", e.mel()},
                                                                {"stft_distance", e.stft()},
                                                                {"input_mean", e.input_mean()},
                                                                {"input_std", e.input_std()},
                                                                {"output_mean", e.output_mean()},
                                                                {"output_std", e.output_std()}}) {
    INFO(key);
    CHECK(all["mean"][key].get<double>() == value);
  }
  for (size_t i = 0; i < e.usage().size(); ++i) {
    CHECK(all["codebook_usage"][i].get<double>() == e.usage()[i]);
    CHECK(all["codebook_perplexity"][i].get<double>() == e.perplexity()[i]);
  }

  o = run(folder, {"eval", inputs[0], inputs[1], "-m", model, "-q"});
  REQUIRE(o.code == 0);
  std::istringstream table(o.out);
  std::vector<std::string> lines;
  for (std::string line; std::getline(table, line);) lines.push_back(line);
  REQUIRE(lines.size() == 5);  // head, two files, mean, and a line on all files
  const auto check_row = [&](const std::string& line, const json& row, const std::string& name) {
    std::istringstream in(line);
    for (const auto& [key, places] : std::vector<std::pair<std::string, int>>{{"seconds", 2},
                                                                              {"snr", 2},
                                                                              {"si_sdr", 2},
                                                                              {"segmental_snr", 2},
                                                                              {"stoi", 3},
                                                                              {"estoi", 3},
                                                                              {"mel_distance", 3},
                                                                              {"stft_distance", 3}}) {
      std::string word;
      in >> word;
      char expected[64];
      std::snprintf(expected, sizeof expected, "%.*f", places, row[key].get<double>());
      INFO(line << "\n" << key);
      CHECK(word == expected);
    }
    std::string bitrate, encode, decode, rest;
    in >> bitrate >> encode >> decode >> std::ws;
    std::getline(in, rest);
    CHECK(std::stod(bitrate) == Approx(row["bitrate"].get<double>() / 1000).margin(0.005));
    CHECK(rest == name);
  };
  check_row(lines[1], all["files"][0], inputs[0]);
  check_row(lines[2], all["files"][1], inputs[1]);
  check_row(lines[3], all["mean"], "mean of 2");
}
