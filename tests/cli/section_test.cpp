// nacre decode --from, --to and --conceal through the built program: messages, exit codes, pipes and --json.
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "cli/shell.h"
#include "nacre/coding/codec_files.h"
#include "nacre/files/ecdc.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

struct Program {
  Folder folder;
  std::string model = tiny_model(folder), stream = folder / "s.nacre", out = folder / "out.wav";

  Outcome decode(Words more, const std::string& input = "/dev/null", const std::string& from = "") {
    Words words{"decode", from.empty() ? stream : from, "-o", out, "-m", model, "-f", "-q", "--float"};
    words.insert(words.end(), more.begin(), more.end());
    return run(folder, words, input);
  }
  std::vector<float> samples(Words more, const std::string& input = "/dev/null", const std::string& from = "") {
    const Outcome o = decode(std::move(more), input, from);
    INFO(o.err);
    REQUIRE(o.code == 0);
    return training::read_audio(out).samples;
  }
  void refused(Words more, int code, const std::string& text) {
    fs::remove(out);
    const Outcome o = decode(std::move(more));
    INFO(o.err);
    CHECK(o.code == code);
    CHECK(o.lines() == 1);
    CHECK_THAT(o.err, Catch::Contains(text));
    CHECK_FALSE(fs::exists(out));
  }
};

/// Of the same rate: sums in other windows differ by less than this.
void expect_near(const std::vector<float>& part, const std::vector<float>& whole, size_t first) {
  REQUIRE(first + part.size() <= whole.size());
  float most = 0;
  for (size_t i = 0; i < part.size(); ++i) most = std::max(most, std::fabs(part[i] - whole[first + i]));
  CHECK(most <= 1e-5f * training::peak_of(whole));
}

}  // namespace

TEST_CASE("a part of a stream by --from and --to", "[cli][section]") {
  Program p;
  write_voice(p.folder / "in.wav", 40000, 16000, 2);  // 2.5 s
  REQUIRE(run(p.folder, {"encode", p.folder / "in.wav", "-o", p.stream, "-m", p.model}).code == 0);
  const std::vector<float> whole = p.samples({});
  const std::vector<float> part = p.samples({"--from", "1.25", "--to", "1.75"});
  CHECK(part.size() == 2 * 8000);
  expect_near(part, whole, 2 * 20000);
  CHECK(p.samples({"--from=2.4"}).size() == 2 * 1600);
  CHECK(p.samples({"--to", "0.1"}).size() == 2 * 1600);
  CHECK((p.samples({"--from", "0", "--to", "2.5"}) == whole));
  // By a pipe, and from standard input that is a file.
  CHECK((p.samples({"--from", "1.25", "--to", "1.75"}, p.stream, "-") == part));
  REQUIRE(in_shell(p.folder, "cat s.nacre | " + std::string(NACRE_PROGRAM) +
                                 " decode - -o piped.wav --float -m model.safetensors -t 1 -q --from 1.25 --to 1.75") ==
          0);
  CHECK((training::read_audio(p.folder / "piped.wav").samples == part));
  // Standard input that is not at its beginning.
  spill(p.folder / "two", "12345" + slurp(p.stream));
  REQUIRE(in_shell(p.folder,
                   "{ head -c 5 >/dev/null; " + std::string(NACRE_PROGRAM) +
                       " decode - -o later.wav --float -m model.safetensors -t 1 -q --from 1.25 --to 1.75; } <two") ==
          0);
  CHECK((training::read_audio(p.folder / "later.wav").samples == part));
  // From pipe to pipe nothing is live, so that what is refused has no output.
  const auto piped = [&](const std::string& options) {
    return in_shell(p.folder, "cat s.nacre | " + std::string(NACRE_PROGRAM) +
                                  " decode - -o - --float -m model.safetensors -t 1 -q " + options +
                                  " 2>err | cat >pipe.wav; exit ${PIPESTATUS[1]}");
  };
  REQUIRE(piped("--from 1.25 --to 1.75") == 0);
  CHECK((training::read_audio(p.folder / "pipe.wav").samples == part));
  REQUIRE(piped("--to 1") == 0);
  CHECK(training::read_audio(p.folder / "pipe.wav").frames() == 16000);
  CHECK(piped("--to 2.6") == 2);
  CHECK(slurp(p.folder / "pipe.wav").empty());

  p.refused({"--from", "2", "--to", "1"}, 2, "--to is 1, expected more than --from, which is 2");
  p.refused({"--to", "0"}, 2, "--to is 0, expected more than --from, which is 0");
  p.refused({"--from", "2.5"}, 2, "s.nacre: --from 2.5 is behind the end: the audio has 2.5 s");
  p.refused({"--from", "1", "--to", "2.6"}, 2, "s.nacre: --to 2.6 is behind the end: the audio has 2.5 s");
  for (const char* bad : {"-1", "nan", "inf"}) p.refused({std::string("--from=") + bad}, 2, "expected 0 or more");
  p.refused({"--from", "1s"}, 2, "--from is '1s', expected a number");
  // Several inputs: each of them has its part, or a line.
  write_voice(p.folder / "short.wav", 16000);
  REQUIRE(run(p.folder, {"encode", p.folder / "short.wav", "-o", p.folder / "t.nacre", "-m", p.model}).code == 0);
  const Outcome o = run(p.folder, {"decode", p.stream, p.folder / "t.nacre", "-o", p.folder / "parts/", "-m", p.model,
                                   "-q", "--from", "1.5", "--json"});
  CHECK(o.code == 3);
  CHECK(o.lines() == 1);
  CHECK_THAT(o.err, Catch::Contains("t.nacre: --from 1.5 is behind the end: the audio has 1 s"));
  const json told = json::parse(o.out);
  REQUIRE(told["files"].size() == 1);
  CHECK(told["files"][0]["seconds"] == 1.0);
  CHECK(told["files"][0]["samples"] == 16000);
  CHECK_FALSE(told["files"][0].contains("lost"));
  CHECK(told["failed"] == 1);
}

TEST_CASE("damaged streams by --conceal", "[cli][conceal]") {
  Program p;
  write_voice(p.folder / "in.wav", 80000);  // 5 s, a packet each
  REQUIRE(run(p.folder, {"encode", p.folder / "in.wav", "-o", p.stream, "-m", p.model}).code == 0);
  const std::string good = slurp(p.stream);
  const std::vector<float> whole = p.samples({});
  const std::string bytes = slurp(p.out);
  Outcome o = p.decode({"--conceal"});
  CHECK(o.err.empty());
  CHECK(slurp(p.out) == bytes);

  // Codes of 2000 frames x 2 x 4 bits.
  constexpr size_t packet = 2016;
  REQUIRE(good.size() == 60 + 5 * packet + 32);
  std::string bad = good;
  bad[60 + packet + 100] = static_cast<char>(bad[60 + packet + 100] ^ 1);
  bad.erase(60 + 3 * packet, packet);
  spill(p.stream, bad);
  p.refused({}, 3, "s.nacre: byte 4092: the CRC of packet 1 does not match; --conceal decodes the rest");
  o = p.decode({"--conceal"});
  CHECK(o.code == 0);
  CHECK(o.lines() == 1);  // although quiet
  CHECK_THAT(o.err,
             Catch::Contains("s.nacre: ") &&
                 Catch::Contains("4000 frames are lost or damaged, and concealed: 1.000 to 2.000 s, 3.000 to 4.000 s"));
  const std::vector<float> y = training::read_audio(p.out).samples;
  REQUIRE(y.size() == whole.size());
  for (const size_t second : {0, 2, 4}) {
    // Less the receptive field in front of a gap, and the 20 ms and the field behind it.
    const auto part = std::vector<float>(y.begin() + static_cast<std::ptrdiff_t>(second * 16000 + 400),
                                         y.begin() + static_cast<std::ptrdiff_t>(second * 16000 + 15900));
    expect_near(part, whole, second * 16000 + 400);
  }
  for (const size_t second : {1, 3}) CHECK(training::peak_of(std::span(y).subspan(second * 16000 + 960, 15040)) == 0);
  o = p.decode({"--conceal", "--json", "--from", "1.5", "--to", "4.5"});
  const json told = json::parse(o.out)["files"][0];
  CHECK(told["lost"] == json::parse("[[1.5, 2.0], [3.0, 4.0]]"));
  CHECK(told["lost_frames"] == 3000);
  CHECK(told["samples"] == 48000);
  o = p.decode({"--conceal", "--json", "--from", "4.1"});
  CHECK(json::parse(o.out)["files"][0]["lost"] == json::array());
  CHECK(o.err.empty());

  // Without an end, by a file and by a pipe.
  spill(p.stream, good.substr(0, 60 + 3 * packet + 77));
  p.refused({}, 3, "the stream is cut off after 3 whole packets (3.00 s); --conceal decodes the rest");
  for (const bool piped : {false, true}) {
    o = piped ? p.decode({"--conceal"}, p.stream, "-") : p.decode({"--conceal"});
    CHECK(o.code == 0);
    CHECK(o.lines() == 1);
    CHECK_THAT(o.err,
               Catch::Contains("has no closing packet, and ends with its last whole packet, at 3.000 of 5.000 s"));
    CHECK(training::read_audio(p.out).frames() == 48000);
  }
  REQUIRE(in_shell(p.folder, "cat s.nacre | " + std::string(NACRE_PROGRAM) +
                                 " decode - -o - --conceal -m model.safetensors -t 1 -q 2>err | cat >pipe.wav") == 0);
  CHECK(training::read_audio(p.folder / "pipe.wav").frames() == 48000);
  CHECK_THAT(slurp(p.folder / "err"), Catch::Contains("has no closing packet"));
  p.refused({"--conceal", "--to", "4"}, 2, "--to 4 is behind the end: the audio has 3 s");
  o = run(p.folder, {"info", p.stream});
  CHECK(o.code == 3);
  CHECK_THAT(o.err,
             Catch::Contains("the stream is cut off after 3 whole packets (3.00 s)") && !Catch::Contains("--conceal"));
  spill(p.stream, good + "more");
  o = p.decode({"--conceal"});
  CHECK(o.code == 0);
  CHECK_THAT(o.err, Catch::Contains("goes on behind its closing packet"));
  CHECK(slurp(p.out) == bytes);
  // The header is not guessed.
  bad = good;
  bad[20] = 2;
  spill(p.stream, bad);
  p.refused({"--conceal"}, 3, "the CRC of the header does not match");
}

TEST_CASE("a part of an .ecdc file", "[cli][section]") {
  Program p;
  CodecConfig c;
  c.network = "encodec", c.sample_rate = 24000;
  c.encoder_dim = 2, c.encoder_rates = {16, 20}, c.decoder_dim = 8, c.decoder_rates = {20, 16};
  c.dilations = {1}, c.latent_dim = 8, c.kernel_size = 3;
  c.activation = ActivationKind::elu, c.output_tanh = false, c.causal = true, c.padding = Padding::reflect;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean, c.n_codebooks = 2, c.codebook_size = 1024;
  p.model = tiny_model(p.folder, "encodec.safetensors", 1, c);
  p.stream = p.folder / "s.ecdc";
  write_voice(p.folder / "in.wav", 72000, 24000);  // 3 s
  REQUIRE(run(p.folder, {"encode", p.folder / "in.wav", "-o", p.stream, "-m", p.model}).code == 0);
  const std::vector<float> whole = p.samples({});
  const std::vector<float> part = p.samples({"--from", "1.2", "--to", "2"});
  CHECK(part.size() == 19200);
  expect_near(part, whole, 28800);
  CHECK((p.samples({"--conceal"}) == whole));
  p.refused({"--to", "4"}, 2, "--to 4 is behind the end: the audio has 3 s");
  spill(p.stream, slurp(p.stream).substr(0, 300));
  p.refused({"--conceal"}, 3, "the file is cut off");
}
