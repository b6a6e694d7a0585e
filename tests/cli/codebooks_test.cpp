// --n-codebooks and --bitrate of encode, decode and eval.
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "nacre/coding/codec_files.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

/// Four codebooks of 16000 / 8 * 4 bit/s = 8 kbit/s each.
CodecConfig four() {
  CodecConfig c = tiny_config();
  c.n_codebooks = 4;
  return c;
}

Outcome run_with(const Folder& folder, Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  const Outcome o = run(folder, words);
  INFO(o.err);
  REQUIRE(o.code == 0);
  return o;
}

}  // namespace

TEST_CASE("encode and decode with fewer codebooks", "[cli][codebooks]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, four()),
                    in = write_voice(folder / "in.wav", 20000, 16000, 2);
  const auto encoded = [&](const std::string& name, const Words& options) {
    run_with(folder, {"encode", in, "-o", folder / name, "-m", model, "-f", "-q"}, options);
    return slurp(folder / name);
  };
  const auto decoded = [&](const std::string& name, const Words& options) {
    run_with(folder, {"decode", folder / name, "-o", folder / "out.wav", "-m", model, "-f", "-q"}, options);
    return slurp(folder / "out.wav");
  };
  const std::string whole = encoded("4.nacre", {});
  CHECK(encoded("same.nacre", {"--n-codebooks", "4"}) == whole);
  for (int64_t n = 1; n <= 4; ++n) {
    INFO(n);
    const std::string name = std::to_string(n) + ".nacre", number = std::to_string(n);
    const std::string few = encoded(name, {"--n-codebooks", number});
    const training::StreamFacts facts = training::check_stream(folder / name);
    CHECK(facts.header.codebooks == static_cast<uint32_t>(n));
    CHECK(facts.samples == 20000);
    // A bitrate up to that of one codebook more.
    CHECK(encoded("same.nacre", {"--bitrate", std::to_string(8 * n)}) == few);
    CHECK(encoded("same.nacre", {"--bitrate=" + std::to_string(8 * n + 7) + ".9"}) == few);
    CHECK(encoded("same.nacre", {"--n_codebooks=" + number}) == few);
    const std::string y = decoded(name, {});
    CHECK(decoded("4.nacre", {"--n-codebooks", number}) == y);
    CHECK(decoded("4.nacre", {"--n_codebooks", number}) == y);
    CHECK(decoded("4.nacre", {"--bitrate", std::to_string(8 * n)}) == y);
    // A limit that the stream keeps.
    CHECK(decoded(name, {"--bitrate", "1000"}) == y);
  }
  CHECK(encoded("same.nacre", {"--bitrate", "1000"}) == whole);
  CHECK(decoded("1.nacre", {}) != decoded("2.nacre", {}));

  // What was chosen is told.
  Outcome o = run_with(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-f"}, {"--bitrate", "17"});
  CHECK(o.err.find(", 2 codebooks\n") != std::string::npos);
  o = run_with(folder, {"decode", folder / "s.nacre", "-o", folder / "s.wav", "-m", model, "-f"}, {"--bitrate", "9"});
  CHECK(o.err.find(", 1 codebook\n") != std::string::npos);
  o = run_with(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-f"}, {});
  CHECK(o.err.find("codebook") == std::string::npos);
  o = run_with(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-f", "--json"}, {"--bitrate", "31.9"});
  CHECK(json::parse(o.out)["files"][0]["n_codebooks"] == 3);
  o = run_with(folder, {"decode", folder / "s.nacre", "-o", folder / "s.wav", "-m", model, "-f", "--json"}, {});
  CHECK(json::parse(o.out)["files"][0]["n_codebooks"] == 3);
  o = run_with(folder, {"info", folder / "s.nacre", "--json"}, {});
  CHECK(json::parse(o.out)["inputs"][0]["n_codebooks"] == 3);

  // Several streams with different numbers, one after the other.
  fs::create_directory(folder / "several");
  for (const char* n : {"1", "3", "4"})
    fs::copy(folder / (std::string(n) + ".nacre"), folder / ("several/" + std::string(n) + ".nacre"));
  run_with(folder, {"decode", folder / "several", "-o", folder / "back", "-m", model, "-q"}, {});
  for (const char* n : {"1", "3", "4"}) {
    INFO(n);
    CHECK(slurp(folder / ("back/" + std::string(n) + ".wav")) == decoded(std::string(n) + ".nacre", {}));
  }
  o = run(folder, {"decode", folder / "several", "-o", folder / "few", "-m", model, "-q", "--n-codebooks", "3"});
  CHECK(o.code == 3);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("1.nacre: has 1 codebook, 3 are to be decoded; expected 1\n") != std::string::npos);
  CHECK_FALSE(fs::exists(folder / "few/1.wav"));
  CHECK(fs::exists(folder / "few/4.wav"));
}

TEST_CASE("a beam searches among the codebooks in use", "[cli][codebooks]") {
  const Folder folder;
  CodecConfig config = four();
  config.quantizer = QuantizerKind::ema, config.metric = VqMetric::euclidean;
  const std::string model = tiny_model(folder, "model.safetensors", 1, config),
                    in = write_voice(folder / "in.wav", 20000);
  const auto encoded = [&](const Words& options) {
    run_with(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-f", "-q"}, options);
    return slurp(folder / "s.nacre");
  };
  const std::string nearest = encoded({"--n-codebooks", "2"}), best = encoded({"--n-codebooks", "2", "--beam", "8"});
  CHECK(nearest != best);
  CHECK(nearest.size() == best.size());
  // A beam never searches with one codebook.
  CHECK(encoded({"--n-codebooks", "1"}) == encoded({"--n-codebooks", "1", "--beam", "8"}));
}

TEST_CASE("eval with fewer codebooks", "[cli][codebooks]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, four()),
                    in = write_voice(folder / "in.wav", 37123);
  const auto judged = [&](const Words& options) {
    return json::parse(run_with(folder, {"eval", in, "-m", model, "--json"}, options).out);
  };
  const json all = judged({});
  CHECK(all["n_codebooks"] == 4);
  CHECK(all["nominal_bitrate"] == 32000.0);
  CHECK(all["codebook_usage"].size() == 4);
  for (int64_t n = 1; n <= 4; ++n) {
    INFO(n);
    const json some = judged({"--n-codebooks", std::to_string(n)});
    CHECK(some["n_codebooks"] == n);
    CHECK(some["nominal_bitrate"] == 8000.0 * static_cast<double>(n));
    run_with(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-f", "-q"},
             {"--n-codebooks", std::to_string(n)});
    CHECK(some["files"][0]["bitrate"].get<double>() ==
          Approx(8.0 * static_cast<double>(fs::file_size(folder / "s.nacre")) * 16000 / 37123));
    // Nearest codes of a stage do not depend on the later stages.
    REQUIRE(some["codebook_usage"].size() == static_cast<size_t>(n));
    REQUIRE(some["codebook_perplexity"].size() == static_cast<size_t>(n));
    for (size_t i = 0; i < static_cast<size_t>(n); ++i)
      for (const char* key : {"codebook_usage", "codebook_perplexity"}) CHECK(some[key][i] == all[key][i]);
    CHECK((some["mean"]["snr"] == all["mean"]["snr"]) == (n == 4));
    const json limited = judged({"--bitrate", std::to_string(8 * n) + ".5"});
    CHECK(limited["n_codebooks"] == n);
    CHECK(limited["mean"]["snr"] == some["mean"]["snr"]);
  }
  const Outcome table = run_with(folder, {"eval", in, "-m", model}, {"--bitrate", "20"});
  CHECK(table.out.find("nominal 16.00 kbit/s") != std::string::npos);
  CHECK(judged({"--n-codebooks", "1"})["mean"]["bitrate"].get<double>() < 9000);
}

TEST_CASE("numbers of codebooks and bitrates that the model does not have", "[cli][codebooks]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, four()),
                    in = write_voice(folder / "in.wav", 3000);
  run_with(folder, {"encode", in, "-o", folder / "4.nacre", "-m", model, "-q"}, {});
  run_with(folder, {"encode", in, "-o", folder / "2.nacre", "-m", model, "-q"}, {"--n-codebooks", "2"});
  const auto refused = [&](Words words, const Words& options, const std::string& said) {
    words.insert(words.end(), options.begin(), options.end());
    const Outcome o = run(folder, words);
    CHECK(o.code == 2);
    CHECK(o.err == "nacre: " + said + "\n");
    CHECK(o.out.empty());
    CHECK_FALSE(fs::exists(folder / "out"));
  };
  const std::string rates = "; expected 8 kbit/s (1 codebook) to 32 kbit/s (4 codebooks)",
                    below = "', below the bitrate of one codebook" + rates;
  for (const Words& verb : {Words{"encode", in, "-o", folder / "out", "-m", model},
                            {"decode", folder / "4.nacre", "-o", folder / "out", "-m", model},
                            {"eval", in, "-m", model}}) {
    INFO(verb[0]);
    refused(verb, {"--n-codebooks", "5"}, "--n-codebooks is '5', expected 1 to 4, the codebooks of the model");
    refused(verb, {"--n-codebooks", "0"}, "--n-codebooks is '0', expected 1 to 64");
    refused(verb, {"--n_codebooks", "1.5"}, "--n_codebooks is '1.5', expected an integer");
    refused(verb, {"--bitrate", "7.99"}, "--bitrate is '7.99" + below);
    refused(verb, {"--bitrate", "0"}, "--bitrate is '0', expected a number above 0");
    refused(verb, {"--bitrate", "nan"}, "--bitrate is 'nan', expected a number above 0");
    refused(verb, {"--bitrate", "fast"}, "--bitrate is 'fast', expected a number");
    refused(verb, {"--bitrate", "16", "--n-codebooks", "2"},
            "--n-codebooks and --bitrate both choose the number of codebooks; expected one of them");
  }
  refused({"decode", folder / "2.nacre", "-o", folder / "out", "-m", model}, {"--n-codebooks", "3"},
          (folder / "2.nacre").string() + ": has 2 codebooks, 3 are to be decoded; expected 1 to 2");

  // The limits of a rate that is no whole number are rounded up, so that the printed one is accepted.
  CodecConfig uneven = four();
  uneven.encoder_rates = uneven.decoder_rates = {7};
  const std::string other = tiny_model(folder, "uneven.safetensors", 1, uneven);  // 64000 / 7 = 9142.86
  refused(
      {"encode", in, "-o", folder / "out", "-m", other}, {"--bitrate", "9.142"},
      "--bitrate is '9.142', below the bitrate of one codebook; expected 9.143 kbit/s (1 codebook) to 36.572 kbit/s "
      "(4 codebooks)");
  run_with(folder, {"encode", in, "-o", folder / "u.nacre", "-m", other, "-f", "-q"}, {"--bitrate", "9.143"});
  CHECK(training::check_stream(folder / "u.nacre").header.codebooks == 1);
  run_with(folder, {"encode", in, "-o", folder / "u.nacre", "-m", other, "-f", "-q"}, {"--bitrate", "36.572"});
  CHECK(training::check_stream(folder / "u.nacre").header.codebooks == 4);
  uneven.n_codebooks = 1;
  const std::string single = tiny_model(folder, "single.safetensors", 1, uneven);
  refused({"eval", in, "-m", single}, {"--bitrate", "1"},
          "--bitrate is '1', below the bitrate of one codebook; expected 9.143 kbit/s (1 codebook)");
  // Options of verbs that have them.
  for (const char* verb : {"encode", "decode", "eval"}) {
    const std::string help = run(folder, {verb, "--help"}).out;
    for (const char* option : {"--n-codebooks,", "--n_codebooks ", "--bitrate "}) {
      INFO(verb << " " << option);
      CHECK(help.find(option) != std::string::npos);
    }
  }
}
