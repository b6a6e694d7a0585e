// Models of two channels and of segments through the built program: .nacre and .ecdc files, live coding, and info.
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

using Words = std::vector<std::string>;

/// The layout of codes of EnCodec's 48 kHz model, with small layers.
CodecConfig small_encodec_48() {
  CodecConfig c;
  c.network = "encodec", c.sample_rate = 48000, c.audio_channels = 2;
  c.segment = 48000, c.segment_stride = 47520, c.segment_scale = true;
  c.encoder_dim = 2, c.encoder_rates = {16, 20}, c.decoder_dim = 8, c.decoder_rates = {20, 16};
  c.dilations = {1}, c.latent_dim = 8, c.kernel_size = 3;
  c.activation = ActivationKind::elu, c.output_tanh = false, c.norm = Norm::group, c.padding = Padding::reflect;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean, c.n_codebooks = 4, c.codebook_size = 1024;
  return c;
}

/// Two channels that are coded together, frame by frame.
CodecConfig streaming_stereo() {
  CodecConfig c = tiny_config();
  c.audio_channels = 2;
  return c;
}

struct Coded {
  std::vector<std::vector<int32_t>> codes;
  std::vector<float> scales, audio;
};
/// Segments of the first `codebooks` codebooks, and their audio, by the library.
Coded coded(const std::string& model, std::span<const float> x, int64_t codebooks) {
  Context ctx({.device = {}, .threads = 1});
  Codec codec = Codec::load(ctx, model);
  Coded out;
  WindowedEncoder encoder(
      codec,
      [&](View<const int32_t> c, float scale) {
        out.codes.emplace_back(c.begin(), c.end());
        out.scales.push_back(scale);
      },
      0, codebooks);
  encoder.push(x);
  encoder.finish();
  WindowedDecoder decoder(
      codec, [&](std::span<const float> y) { out.audio.insert(out.audio.end(), y.begin(), y.end()); }, 0, codebooks);
  for (size_t i = 0; i < out.codes.size(); ++i) decoder.push(out.codes[i], out.scales[i]);
  decoder.finish();
  return out;
}

std::string ecdc_bytes(uint64_t samples, uint32_t codebooks, const Coded& coded) {
  std::string out;
  EcdcWriter w({.model = &ecdc_models[1], .samples = samples, .codebooks = codebooks},
               [&](std::span<const std::byte> d) { out.append(reinterpret_cast<const char*>(d.data()), d.size()); });
  for (size_t i = 0; i < coded.codes.size(); ++i) w.write(coded.codes[i], coded.scales[i]);
  w.finish();
  return out;
}

void write_float(const std::string& path, const std::vector<float>& x, int channels, int rate) {
  training::write_wav(path, {.samples = x, .sample_rate = rate, .channels = channels}, training::WavFormat::float32);
}

Outcome run_well(const Folder& folder, const Words& arguments, const std::string& input = "/dev/null") {
  const Outcome o = run(folder, arguments, input);
  INFO(o.err);
  REQUIRE(o.code == 0);
  return o;
}

/// 16-bit samples of a WAV file, whatever its header says of their number.
std::vector<int> samples_of(const std::string& wav) {
  std::vector<int> out;
  for (size_t i = 44; i + 1 < wav.size(); i += 2)
    out.push_back(static_cast<int16_t>(static_cast<uint8_t>(wav[i]) | static_cast<uint8_t>(wav[i + 1]) << 8));
  return out;
}

}  // namespace

TEST_CASE(".ecdc files of the 48 kHz model: stereo, and mono as two equal channels", "[cli][ecdc][groups]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, small_encodec_48());
  // Within a segment, in the part of two, and behind it.
  for (const auto& [samples, channels] : {std::pair<int64_t, int>{700, 2}, {47620, 2}, {47700, 2}, {100000, 1}}) {
    INFO(samples << " samples, " << channels << " channels");
    std::vector<float> x = voice(samples, 48000, channels);
    write_float(folder / "in.wav", x, channels, 48000);
    run_well(folder, {"encode", folder / "in.wav", "-o", folder / "s.ecdc", "-m", model, "-f"});
    if (channels == 1) {
      std::vector<float> both;
      for (const float v : x) both.insert(both.end(), {v, v});
      x = both;
    }
    Coded expected = coded(model, x, 4);
    const std::string bytes = ecdc_bytes(static_cast<uint64_t>(samples), 4, expected);
    CHECK(slurp(folder / "s.ecdc") == bytes);
    run_well(folder, {"decode", folder / "s.ecdc", "-o", folder / "out.wav", "-m", model, "-f", "--float"});
    const training::Audio out = training::read_audio(folder / "out.wav");
    CHECK(out.sample_rate == 48000);
    CHECK(out.channels == 2);
    REQUIRE(out.frames() == samples);
    expected.audio.resize(out.samples.size());
    CHECK((out.samples == expected.audio));
    const training::StreamFacts facts = training::check_stream(folder / "s.ecdc");
    CHECK(facts.samples == static_cast<uint64_t>(samples));
    CHECK(facts.bytes == bytes.size());
  }
  // The last file, 100000 samples: two codebooks, a part, and what info says.
  write_float(folder / "in.wav", voice(100000, 48000, 2), 2, 48000);
  run_well(folder, {"encode", folder / "in.wav", "-o", folder / "2.ecdc", "-m", model, "--bitrate", "3"});
  CHECK(slurp(folder / "2.ecdc") == ecdc_bytes(100000, 2, coded(model, voice(100000, 48000, 2), 2)));
  run_well(folder, {"decode", folder / "2.ecdc", "-o", folder / "all.wav", "-m", model});
  run_well(folder, {"decode", folder / "2.ecdc", "-o", folder / "part.wav", "-m", model, "--from", "1.9", "--to", "2"});
  const std::vector<int> all = samples_of(slurp(folder / "all.wav")), part = samples_of(slurp(folder / "part.wav"));
  CHECK((part == std::vector<int>(all.begin() + 2 * 91200, all.begin() + 2 * 96000)));
  const std::string text = run_well(folder, {"info", folder / "2.ecdc"}).out;
  for (const char* words :
       {"48000 Hz, 2 channels, 100000 samples",
        "encodec_48khz: 3 segments of up to 150 frames of 320 samples, with a scale each, 2 codebooks of 1024",
        "(nominal 3.00)"}) {
    INFO(text);
    CHECK(text.find(words) != std::string::npos);
  }
  const json one = json::parse(run_well(folder, {"info", folder / "2.ecdc", "--json"}).out)["inputs"][0];
  CHECK(one["channels"] == 2);
  CHECK(one["audio_channels"] == 2);
  CHECK(one["segment"] == 48000);
  CHECK(one["segment_stride"] == 47520);
  CHECK(one["segment_scale"] == true);

  write_float(folder / "three.wav", voice(1000, 48000, 3), 3, 48000);
  Outcome o = run(folder, {"encode", folder / "three.wav", "-o", folder / "3.ecdc", "-m", model});
  CHECK(o.code == 3);
  CHECK(o.err.find("three.wav: has 3 channels, an .ecdc file of EnCodec's 48 kHz model has two") != std::string::npos);
  const auto why = [](auto&& change) {
    CodecConfig c = small_encodec_48();
    change(c);
    return training::not_for_ecdc(c);
  };
  CHECK(why([](CodecConfig&) {}).empty());
  CHECK(training::not_for_ecdc(CodecConfig::named("encodec-48k")).empty());
  CHECK(why([](CodecConfig& c) { c.audio_channels = 1; }) == "codec.audio_channels is 1, EnCodec's 48 kHz model has 2");
  CHECK(why([](CodecConfig& c) { c.segment = 0; }) == "codec.segment is 0, EnCodec's 48 kHz model has 48000");
  CHECK(why([](CodecConfig& c) { c.segment_stride = 48000; }) ==
        "codec.segment_stride is 48000, EnCodec's 48 kHz model has 47520");
  CHECK(why([](CodecConfig& c) { c.segment_scale = false; }) ==
        "codec.segment_scale is false, EnCodec's 48 kHz model has true");
  CHECK(why([](CodecConfig& c) { c.n_codebooks = 17; }) == "codec.n_codebooks is 17, EnCodec's 48 kHz model has 16");
}

TEST_CASE("streams of segments: files, pipes and info", "[cli][groups]") {
  const Folder folder;
  CodecConfig config = small_encodec_48();
  config.sample_rate = 16000, config.segment = 16000, config.segment_stride = 15840;
  const std::string model = tiny_model(folder, "model.safetensors", 1, config);
  for (const auto& [rate, channels] : {std::pair{16000, 2}, {44100, 1}, {16000, 3}}) {
    INFO(rate << " Hz, " << channels << " channels");
    const std::string in = write_voice(folder / "in.wav", 2 * rate + 77, rate, channels);
    run_well(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-f", "--no-normalise"});
    const std::string stream = slurp(folder / "s.nacre");
    // The header of the audio has its length, so the stream that is coded while it arrives has the same bytes.
    CHECK(run_well(folder, {"encode", "-", "-o", "-", "-m", model, "--no-normalise"}, in).out == stream);
    run_well(folder, {"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", model, "-f"});
    const std::vector<int> whole = samples_of(slurp(folder / "out.wav"));
    REQUIRE(whole.size() == static_cast<size_t>((2 * rate + 77) * channels));
    const std::vector<float> audio = training::read_audio(folder / "out.wav").samples;
    const std::string live = run_well(folder, {"decode", "-", "-o", "-", "-m", model}, folder / "s.nacre").out;
    CHECK((samples_of(live) == whole));
    // A header without a length: sizes of 0xFFFFFFFF.
    std::string endless = slurp(in);
    for (const size_t at : {4, 5, 6, 7, 40, 41, 42, 43}) endless[at] = '\xff';
    spill(folder / "endless.wav", endless);
    const std::string open =
        run_well(folder, {"encode", "-", "-o", "-", "-m", model, "--no-normalise"}, folder / "endless.wav").out;
    spill(folder / "open.nacre", open);
    CHECK(open.size() == stream.size());
    CHECK(training::check_stream(folder / "open.nacre").header.samples == StreamHeader::unknown);
    CHECK((samples_of(run_well(folder, {"decode", "-", "-o", "-", "-m", model}, folder / "open.nacre").out) == whole));
    run_well(folder, {"decode", folder / "open.nacre", "-o", folder / "out.wav", "-m", model, "-f"});
    // Its header has room for the sizes of RF64.
    CHECK((training::read_audio(folder / "out.wav").samples == audio));
  }
  const Outcome o =
      run(folder, {"encode", "-", "-o", "-", "-m", model, "--no-normalise", "--block", "2"}, folder / "in.wav");
  CHECK(o.code == 2);
  CHECK(o.err.find("--block has no effect for this model: its packets are segments of 16000 samples") !=
        std::string::npos);
  const std::string text = run_well(folder, {"info", folder / "s.nacre"}).out;
  INFO(text);
  CHECK(text.find("3 segments of up to 50 frames of 320 samples, with a scale each, 4 codebooks") != std::string::npos);
  CHECK(text.find("channels are coded 2 by 2") != std::string::npos);
}

TEST_CASE("two channels are coded live, frame by frame", "[cli][live][groups]") {
  const Folder folder;
  const std::string model = tiny_model(folder, "model.safetensors", 1, streaming_stereo());
  for (const int channels : {1, 2, 3}) {
    INFO(channels << " channels");
    const std::string in = write_voice(folder / "in.wav", 5003, 16000, channels);
    spill(folder / "s.nacre",
          run_well(folder, {"encode", "-", "-o", "-", "-m", model, "--no-normalise", "--block", "3"}, in).out);
    const training::StreamFacts facts = training::check_stream(folder / "s.nacre");
    CHECK(facts.header.joint == 2);
    CHECK(facts.header.packet_frames == 3);
    CHECK(facts.samples == 5003);
    run_well(folder, {"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", model, "-f"});
    const std::vector<int> file = samples_of(slurp(folder / "out.wav"));
    const std::vector<int> live =
        samples_of(run_well(folder, {"decode", "-", "-o", "-", "-m", model}, folder / "s.nacre").out);
    REQUIRE(file.size() == static_cast<size_t>(5003 * channels));
    REQUIRE(live.size() == file.size());
    // Rounding in sums of another order moves a sample by at most one step.
    int most = 0;
    for (size_t i = 0; i < file.size(); ++i) most = std::max(most, std::abs(live[i] - file[i]));
    CHECK(most <= 1);
  }
}
