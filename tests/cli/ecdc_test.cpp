// .ecdc files of EnCodec through the built program: what encode writes, what decode makes of it, and what is refused.
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "nacre/codec/windowed.h"
#include "nacre/coding/codec_files.h"
#include "nacre/files/ecdc.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// The layout of codes of EnCodec's 24 kHz model, with small layers.
CodecConfig small_encodec() {
  CodecConfig c;
  c.network = "encodec", c.sample_rate = 24000;
  c.encoder_dim = 2, c.encoder_rates = {16, 20}, c.decoder_dim = 8, c.decoder_rates = {20, 16};
  c.dilations = {1}, c.latent_dim = 8, c.kernel_size = 3;
  c.activation = ActivationKind::elu, c.output_tanh = false, c.causal = true, c.padding = Padding::reflect;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean, c.n_codebooks = 4, c.codebook_size = 1024;
  return c;
}

struct Codes {
  std::vector<int32_t> codes;
  std::vector<float> audio;  ///< that these codes decode to: whole frames
};
/// Codes of the first `codebooks` codebooks, and their audio, by the library.
Codes coded(const std::string& model, std::span<const float> x, int64_t codebooks) {
  Context ctx({.device = {}, .threads = 1});
  Codec codec = Codec::load(ctx, model);
  Codes out;
  WindowedEncoder encoder(
      codec, [&](View<const int32_t> c, float) { out.codes.insert(out.codes.end(), c.begin(), c.end()); }, 0,
      codebooks);
  encoder.push(x);
  encoder.finish();
  WindowedDecoder decoder(
      codec, [&](std::span<const float> y) { out.audio.insert(out.audio.end(), y.begin(), y.end()); }, 0, codebooks);
  decoder.push(out.codes);
  decoder.finish();
  return out;
}

std::string ecdc_bytes(EcdcHeader h, std::span<const int32_t> codes) {
  std::string out;
  EcdcWriter w(h, [&](std::span<const std::byte> d) { out.append(reinterpret_cast<const char*>(d.data()), d.size()); });
  w.write(codes);
  w.finish();
  return out;
}

void write_mono(const std::string& path, std::span<const float> x, int rate = 24000) {
  training::write_wav(path, {.samples = {x.begin(), x.end()}, .sample_rate = rate}, training::WavFormat::float32);
}

Outcome run_well(const Folder& folder, const std::vector<std::string>& arguments,
                 const std::string& input = "/dev/null") {
  const Outcome o = run(folder, arguments, input);
  INFO(o.err);
  REQUIRE(o.code == 0);
  return o;
}

}  // namespace

TEST_CASE("encode writes the samples as they are to .ecdc, and decode cuts to their number", "[cli][ecdc]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, small_encodec());
  // Around one frame, and of several packets of the reader. Loud audio is not made softer, soft audio not louder.
  for (const int64_t samples : {1, 319, 320, 321, 40001}) {
    INFO(samples << " samples");
    std::vector<float> x = voice(samples, 24000);
    for (float& v : x) v *= samples % 2 == 0 ? 0.01f : 4;
    write_mono(folder / "in.wav", x);
    const Outcome o = run_well(folder, {"encode", folder / "in.wav", "-o", folder / "s.ecdc", "-m", model, "-f"});
    CHECK(o.err.find("24000 Hz, 1 channel") != std::string::npos);
    Codes expected = coded(model, x, 4);
    CHECK(slurp(folder / "s.ecdc") ==
          ecdc_bytes({.samples = static_cast<uint64_t>(samples), .codebooks = 4}, expected.codes));

    run_well(folder, {"decode", folder / "s.ecdc", "-o", folder / "out.wav", "-m", model, "-f", "--float"});
    const training::Audio out = training::read_audio(folder / "out.wav");
    CHECK(out.sample_rate == 24000);
    CHECK(out.channels == 1);
    expected.audio.resize(static_cast<size_t>(samples));
    CHECK((out.samples == expected.audio));
  }
  // Without samples there is no frame, and no payload.
  spill(folder / "none.ecdc", ecdc_bytes({.samples = 0, .codebooks = 4}, {}));
  run_well(folder, {"decode", folder / "none.ecdc", "-o", folder / "none.wav", "-m", model});
  CHECK(fs::file_size(folder / "none.wav") == 44);
}

TEST_CASE("an .ecdc file of audio of another rate has the length at the model's rate", "[cli][ecdc]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, small_encodec());
  write_voice(folder / "in.wav", 4410, 44100);
  run_well(folder, {"encode", folder / "in.wav", "-o", folder / "s.ecdc", "-m", model});
  const training::StreamFacts facts = training::check_stream(folder / "s.ecdc");
  CHECK(facts.format == training::StreamFormat::ecdc);
  CHECK(facts.samples == 2400);
  CHECK(facts.frames == 8);
  CHECK(facts.bytes == fs::file_size(folder / "s.ecdc"));
  run_well(folder, {"decode", folder / "s.ecdc", "-o", folder / "out.wav", "-m", model});
  CHECK(training::read_audio(folder / "out.wav").frames() == 2400);
}

TEST_CASE("fewer codebooks of .ecdc files", "[cli][ecdc][codebooks]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, small_encodec());
  const std::vector<float> x = voice(5000, 24000);
  write_mono(folder / "in.wav", x);
  const Codes two = coded(model, x, 2);
  // A codebook has 75 frames/s of 10 bits.
  for (const std::vector<std::string>& option :
       {std::vector<std::string>{"--n-codebooks", "2"}, {"--bitrate", "1.5"}}) {
    std::vector<std::string> words = {"encode", folder / "in.wav", "-o", folder / "2.ecdc", "-m", model, "-f"};
    words.insert(words.end(), option.begin(), option.end());
    run_well(folder, words);
    CHECK(slurp(folder / "2.ecdc") == ecdc_bytes({.samples = 5000, .codebooks = 2}, two.codes));
  }
  run_well(folder, {"encode", folder / "in.wav", "-o", folder / "4.ecdc", "-m", model});
  const auto decoded = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "decode");
    words.insert(words.end(), {"-o", folder / "out.wav", "-m", model, "-f", "--float"});
    run_well(folder, words);
    return training::read_audio(folder / "out.wav").samples;
  };
  CHECK((decoded({folder / "4.ecdc", "--n-codebooks", "2"}) == decoded({folder / "2.ecdc"})));
  const Outcome o = run(folder, {"decode", folder / "2.ecdc", "-o", folder / "x.wav", "-m", model, "--n-codebooks=3"});
  CHECK(o.code == 2);
  CHECK(o.err.find("has 2 codebooks, 3 are to be decoded; expected 1 to 2") != std::string::npos);
}

TEST_CASE("names, folders and pipes of .ecdc files", "[cli][ecdc]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, small_encodec());
  fs::create_directories(folder / "in/below");
  write_voice(folder / "in/a.wav", 700, 24000);
  write_voice(folder / "in/below/b.wav", 800, 24000);
  run_well(folder, {"encode", folder / "in", "-o", folder / "codes", "-m", model, "--format", "ecdc"});
  const std::string a = slurp(folder / "codes/a.ecdc");
  CHECK(a.starts_with(std::string("ECDC\0", 5)));
  CHECK(fs::exists(folder / "codes/below/b.ecdc"));
  run_well(folder, {"decode", folder / "codes", "-o", folder / "back", "-m", model});
  CHECK(training::read_audio(folder / "back/a.wav").frames() == 700);
  CHECK(training::read_audio(folder / "back/below/b.wav").frames() == 800);

  // The option decides before the name, and the content decides what is decoded.
  CHECK(run_well(folder, {"encode", "-", "-o", "-", "-m", model, "--format=ecdc"}, folder / "in/a.wav").out == a);
  run_well(folder, {"encode", folder / "in/a.wav", "-o", folder / "named.nacre", "-m", model, "--format=ecdc"});
  CHECK(slurp(folder / "named.nacre") == a);
  run_well(folder, {"encode", folder / "in/a.wav", "-o", folder / "named.ecdc", "-m", model, "--format=nacre"});
  CHECK(training::check_stream(folder / "named.ecdc").format == training::StreamFormat::nacre);
  const std::string audio = slurp(folder / "back/a.wav");
  CHECK(run_well(folder, {"decode", "-", "-o", "-", "-m", model}, folder / "named.nacre").out == audio);
  const json report = json::parse(
      run_well(folder, {"encode", folder / "in/a.wav", "-o", folder / "j.ecdc", "-m", model, "--json"}).out);
  CHECK(report["files"][0]["stream_bytes"] == a.size());
  CHECK(report["files"][0]["n_codebooks"] == 4);
}

TEST_CASE("info describes .ecdc files", "[cli][ecdc]") {
  const Folder folder;
  const std::vector<int32_t> codes(12, 5);
  spill(folder / "s.ecdc", ecdc_bytes({.samples = 1200, .codebooks = 3}, codes));
  const std::string text = run_well(folder, {"info", folder / "s.ecdc"}).out;
  for (const char* part :
       {"s.ecdc: .ecdc file of EnCodec, complete\n", "24000 Hz, 1 channel, 1200 samples",
        "encodec_24khz: 4 frames of 320 samples, 3 codebooks of 1024", "80 bytes, 12.80 kbit/s (nominal 2.25)"}) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  }
  CHECK(run_well(folder, {"info", "-"}, folder / "s.ecdc").out.starts_with("standard input: .ecdc file of EnCodec"));
  const json one = json::parse(run_well(folder, {"info", folder / "s.ecdc", "--json"}).out)["inputs"][0];
  CHECK(one["kind"] == "ecdc");
  CHECK(one["frames"] == 4);
  CHECK(one["samples"] == 1200);
  CHECK(one["n_codebooks"] == 3);
  CHECK(one["nominal_bitrate"] == 2250);
  CHECK_FALSE(one.contains("identity"));
}

TEST_CASE("what an .ecdc file cannot be is refused in one line", "[cli][ecdc]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, small_encodec()),
                    other = tiny_model(folder, "dac.safetensors"), out = folder / "out";
  const auto refused = [&](const std::vector<std::string>& arguments, int code, const std::string& says) {
    const Outcome o = run(folder, arguments);
    INFO(o.err);
    CHECK(o.code == code);
    CHECK(o.lines() == 1);
    CHECK(o.err.find(says) != std::string::npos);
    CHECK_FALSE(fs::exists(out));
  };
  fs::create_directory(folder / "in");
  write_voice(folder / "in/mono.wav", 1000, 24000);
  write_voice(folder / "in/more.wav", 1000, 24000);
  write_voice(folder / "stereo.wav", 1000, 24000, 2);
  refused({"encode", folder / "stereo.wav", "-o", out, "-m", model, "--format", "ecdc"}, 3,
          "stereo.wav: has 2 channels, an .ecdc file of EnCodec's 24 kHz model has one");
  // Two files, one line: the model is wrong for both.
  refused({"encode", folder / "in", "-o", out, "-m", other, "--format", "ecdc"}, 2,
          "the model cannot write .ecdc files: codec.network is dac, EnCodec's 24 kHz model has encodec");
  refused({"encode", folder / "in/mono.wav", "-o", out, "-m", model, "--format", "wav"}, 2, "--format");

  const std::vector<int32_t> codes(5, 1);
  spill(folder / "five.ecdc", ecdc_bytes({.samples = 320, .codebooks = 5}, codes));
  refused({"decode", folder / "five.ecdc", "-o", out, "-m", model}, 3, "number of codebooks is 5, expected 1 to 4");
  refused({"decode", folder / "five.ecdc", "-o", out, "-m", other}, 3,
          "five.ecdc: cannot be decoded by this model: codec.network is dac");
  const std::string good = ecdc_bytes({.samples = 320, .codebooks = 4}, std::span(codes).first(4));
  spill(folder / "cut.ecdc", std::string_view(good).substr(0, good.size() - 1));
  refused({"decode", folder / "cut.ecdc", "-o", out, "-m", model}, 3, "the file is cut off");
  spill(folder / "longer.ecdc", good + "x");
  refused({"decode", folder / "longer.ecdc", "-o", out, "-m", model}, 3, "unexpected data after the 1 frames");
  std::string lm = good;
  lm.replace(lm.find("false"), 5, "true ");
  spill(folder / "lm.ecdc", lm);
  refused({"decode", folder / "lm.ecdc", "-o", out, "-m", model}, 3, "without -l (use_lm=False)");
  refused({"info", folder / "lm.ecdc"}, 3, "EnCodec's language model");
  std::string stereo = good;
  stereo.replace(stereo.find("24khz"), 5, "48khz");
  spill(folder / "48.ecdc", stereo);
  refused({"decode", folder / "48.ecdc", "-o", out, "-m", model}, 3,
          "48.ecdc: the model's sample rate is 48000, the model's is 24000");
  refused({"encode", folder / "five.ecdc", "-o", out, "-m", model}, 3,
          "is an .ecdc file of EnCodec, expected audio; nacre decode reads it");
}

TEST_CASE("a model whose codes are laid out otherwise writes no .ecdc", "[cli][ecdc]") {
  CHECK(training::not_for_ecdc(small_encodec()).empty());
  CHECK(training::not_for_ecdc(CodecConfig::named("encodec-24k")).empty());
  const auto why = [](auto&& change) {
    CodecConfig c = small_encodec();
    change(c);
    return training::not_for_ecdc(c);
  };
  CHECK(why([](CodecConfig& c) { c.network = "dac"; }) == "codec.network is dac, EnCodec's 24 kHz model has encodec");
  CHECK(why([](CodecConfig& c) { c.sample_rate = 16000; }) ==
        "codec.sample_rate is 16000, EnCodec's 24 kHz model has 24000");
  CHECK(why([](CodecConfig& c) {
          c.encoder_rates = {20, 20};
        }) == "the hop is 400 samples, EnCodec's 24 kHz model has 320");
  CHECK(why([](CodecConfig& c) { c.codebook_size = 512; }) ==
        "codec.codebook_size is 512, EnCodec's 24 kHz model has 1024");
  CHECK(why([](CodecConfig& c) { c.n_codebooks = 33; }) == "codec.n_codebooks is 33, EnCodec's 24 kHz model has 32");
}
