// nacre encode, decode and export through the built program. The output has the rate, channels, length and level of the
// input. Names, folders, pipes and existing files are treated as documented.
#include <sndfile.h>

#include "cli/program.h"
#include "nacre/coding/codec_files.h"
#include "nacre/files/safetensors.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;

TEST_CASE("rate, channels and length come back exactly", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  struct Case {
    int rate, channels;
    int64_t frames;
  };
  // The hop is 8. Cases: one sample, lengths around one hop and around a window's step, other rates up and down, an odd
  // length.
  for (const Case& c : {Case{16000, 1, 1}, Case{16000, 1, 7}, Case{16000, 2, 8}, Case{16000, 1, 9},
                        Case{16000, 2, 50001}, Case{8000, 1, 4001}, Case{44100, 1, 1}, Case{44100, 3, 22051}}) {
    INFO(c.rate << " Hz, " << c.channels << " channels, " << c.frames << " frames");
    write_voice(folder / "in.wav", c.frames, c.rate, c.channels);
    Outcome o = run(folder, {"encode", folder / "in.wav", "-o", folder / "s.nacre", "--model", model, "-f", "-q"});
    INFO(o.err);
    REQUIRE(o.code == 0);
    CHECK(o.err.empty());
    const training::StreamFacts facts = training::check_stream(folder / "s.nacre");
    CHECK(facts.samples == static_cast<uint64_t>(c.frames));
    CHECK(facts.bytes == fs::file_size(folder / "s.nacre"));
    CHECK(training::stream_bytes(facts.header, facts.frames) == facts.bytes);
    o = run(folder, {"decode", folder / "s.nacre", "-o", folder / "out.wav", "--model", model, "-f", "--float"});
    INFO(o.err);
    REQUIRE(o.code == 0);
    const training::Audio out = training::read_audio(folder / "out.wav");
    CHECK(out.sample_rate == c.rate);
    CHECK(out.channels == c.channels);
    CHECK(out.frames() == c.frames);
    if (c.rate == 16000) continue;
    o = run(folder, {"decode", folder / "s.nacre", "-o", folder / "low.wav", "--model", model, "-f", "--model_rate"});
    REQUIRE(o.code == 0);
    const training::Audio low = training::read_audio(folder / "low.wav");
    CHECK(low.sample_rate == 16000);
    CHECK(low.frames() == training::resampled_frames(c.frames, c.rate, 16000));
  }
}

TEST_CASE("other formats are read", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  const auto x = voice(9001, 44100, 2);
  SF_INFO info{};
  info.samplerate = 44100, info.channels = 2, info.format = SF_FORMAT_FLAC | SF_FORMAT_PCM_16;
  SNDFILE* f = sf_open((folder / "in.flac").c_str(), SFM_WRITE, &info);
  REQUIRE(f != nullptr);
  REQUIRE(sf_writef_float(f, x.data(), 9001) == 9001);
  sf_close(f);
  training::write_wav(folder / "in.wav", {.samples = x, .sample_rate = 44100, .channels = 2});
  REQUIRE(run(folder, {"encode", folder / "in.flac", "-o", folder / "flac.nacre", "-m", model}).code == 0);
  REQUIRE(run(folder, {"encode", folder / "in.wav", "-o", folder / "wav.nacre", "-m", model}).code == 0);
  REQUIRE(run(folder, {"decode", folder / "flac.nacre", "-o", folder / "flac.out.wav", "-m", model}).code == 0);
  CHECK(training::read_audio(folder / "flac.out.wav").frames() == 9001);
}

TEST_CASE("the level comes back, and channels are coded alike", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  const auto decoded = [&](const std::vector<float>& x, int channels) {
    training::write_wav(folder / "in.wav", {.samples = x, .sample_rate = 16000, .channels = channels},
                        training::WavFormat::float32);
    REQUIRE(run(folder, {"encode", folder / "in.wav", "-o", folder / "s.nacre", "-m", model, "-f"}).code == 0);
    const Outcome o =
        run(folder, {"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", model, "-f", "--float"});
    REQUIRE(o.code == 0);
    return training::read_audio(folder / "out.wav").samples;
  };
  const auto x = voice(30000, 16000);
  const auto y = decoded(x, 1);
  REQUIRE(training::peak_of(y) > 0);

  // Scaling by a power of two gives the same codes, and output that is scaled by exactly the same factor.
  std::vector<float> quiet = x, expected = y;
  for (float& v : quiet) v *= 0x1p-6f;
  for (float& v : expected) v *= 0x1p-6f;
  CHECK(decoded(quiet, 1) == expected);

  // The left channel is x and the right one a quarter of it. Both have one gain, so the right one is coded as a quiet
  // signal and the left one as x alone.
  std::vector<float> stereo(2 * x.size());
  for (size_t t = 0; t < x.size(); ++t) stereo[2 * t] = stereo[2 * t + 1] = x[t];
  const auto both = decoded(stereo, 2);
  bool same = true;
  for (size_t t = 0; t < x.size(); ++t) same = same && both[2 * t] == y[t] && both[2 * t + 1] == y[t];
  CHECK(same);
  for (size_t t = 0; t < x.size(); ++t) stereo[2 * t + 1] = 0.25f * x[t];
  const auto uneven = decoded(stereo, 2);
  same = true;
  for (size_t t = 0; t < x.size(); ++t) same = same && uneven[2 * t] == y[t];
  CHECK(same);

  // Silence stays silent, whatever an untrained model computes.
  const std::vector<float> nothing(5000, 0.0f);
  CHECK(training::peak_of(decoded(nothing, 1)) < 1e-9f);
}

TEST_CASE("clipped samples are counted", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  // Float audio far above full scale: 16 bits cannot hold it, float can.
  std::vector<float> x = voice(4000, 16000);
  for (float& v : x) v *= 1e6f;
  training::write_wav(folder / "in.wav", {.samples = x, .sample_rate = 16000, .channels = 1},
                      training::WavFormat::float32);
  REQUIRE(run(folder, {"encode", folder / "in.wav", "-o", folder / "s.nacre", "-m", model}).code == 0);
  Outcome o = run(folder, {"decode", folder / "s.nacre", "-o", folder / "a.wav", "-m", model, "-q"});
  CHECK(o.code == 0);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("clipped") != std::string::npos);
  o = run(folder, {"decode", folder / "s.nacre", "-o", folder / "b.wav", "-m", model, "-q", "--float"});
  CHECK(o.err.empty());
  CHECK(training::peak_of(training::read_audio(folder / "b.wav").samples) > 1.0f);
}

TEST_CASE("pipes give the same bytes as files", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 20000, 22050, 2);
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model}).code == 0);
  Outcome o = run(folder, {"encode", "-", "-o", "-", "-m", model, "-q"}, in);
  REQUIRE(o.code == 0);
  CHECK(o.out == slurp(folder / "s.nacre"));
  REQUIRE(run(folder, {"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", model}).code == 0);
  o = run(folder, {"decode", "-", "-o", "-", "-m", model}, folder / "s.nacre");
  REQUIRE(o.code == 0);
  // From pipe to pipe the sums have another order (tests/cli/live_test.cpp), so only the sizes and the header are
  // equal.
  CHECK(o.out.size() == fs::file_size(folder / "out.wav"));
  CHECK(o.out.substr(0, 44) == slurp(folder / "out.wav").substr(0, 44));
  REQUIRE(run(folder, {"decode", "-", "-o", folder / "piped.wav", "-m", model}, folder / "s.nacre").code == 0);
  CHECK(slurp(folder / "piped.wav") == slurp(folder / "out.wav"));
  CHECK(run(folder, {"decode", "-", "-o", folder / "new/", "-m", model}, folder / "s.nacre").code == 2);
}

TEST_CASE("folders are mirrored and several inputs all get their turn", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  fs::create_directories(folder / "in/deep/er");
  fs::create_directories(folder / "more");
  write_voice(folder / "in/a.wav", 3000);
  write_voice(folder / "in/deep/er/b.c.wav", 2000, 8000);
  write_voice(folder / "more/d.wav", 1000);
  spill(folder / "in/notes.txt", "no audio");
  Outcome o = run(folder, {"encode", folder / "in", "-o", folder / "codes", "-m", model, "-q"});
  INFO(o.err);
  REQUIRE(o.code == 0);
  CHECK(fs::exists(folder / "codes/a.nacre"));
  CHECK(fs::exists(folder / "codes/deep/er/b.c.nacre"));
  o = run(folder, {"decode", folder / "codes", "-o", folder / "back/", "-m", model, "-q"});
  REQUIRE(o.code == 0);
  CHECK(training::read_audio(folder / "back/deep/er/b.c.wav").frames() == 2000);

  // Several inputs. The output of a folder goes below the folder's name. Failed inputs are named, and the others are
  // done.
  spill(folder / "bad.wav", "this is no audio at all, but some text");
  o = run(folder, {"encode", folder / "in", folder / "bad.wav", folder / "missing.wav", folder / "more",
                   folder / "in/a.wav", "-o", folder / "all", "-m", model, "-q"});
  CHECK(o.code == 3);
  CHECK(o.lines() == 2);
  CHECK(o.err.find("bad.wav") != std::string::npos);
  CHECK(o.err.find("missing.wav") != std::string::npos);
  for (const char* name : {"all/in/a.nacre", "all/in/deep/er/b.c.nacre", "all/more/d.nacre", "all/a.nacre"})
    CHECK(fs::exists(folder / name));

  // A file that is named twice is done once.
  o = run(folder,
          {"encode", folder / "in/a.wav", folder / "in/deep/../a.wav", "-o", folder / "twice/", "-m", model, "-q"});
  CHECK(o.code == 0);
  CHECK(o.err.empty());
  CHECK(fs::exists(folder / "twice/a.nacre"));

  // Two inputs with the same output name are both refused before any coding, unless their endings are kept.
  training::write_wav(folder / "in/a.flac", training::read_audio(folder / "in/a.wav"));
  o = run(folder, {"encode", folder / "in", "-o", folder / "alike", "-m", model, "-q"});
  INFO(o.err);
  CHECK(o.code == 3);
  CHECK(o.lines() == 2);
  CHECK(o.err.find("a.wav: would be written to") != std::string::npos);
  CHECK(o.err.find("a.flac: would be written to") != std::string::npos);
  CHECK(o.err.find("--keep-ending") != std::string::npos);
  CHECK_FALSE(fs::exists(folder / "alike/a.nacre"));
  CHECK(fs::exists(folder / "alike/deep/er/b.c.nacre"));
  REQUIRE(run(folder, {"encode", folder / "in", "-o", folder / "kept", "-m", model, "-q", "--keep-ending"}).code == 0);
  CHECK(fs::exists(folder / "kept/a.wav.nacre"));
  CHECK(fs::exists(folder / "kept/a.flac.nacre"));
  REQUIRE(run(folder, {"decode", folder / "kept", "-o", folder / "heard", "-m", model, "-q"}).code == 0);
  CHECK(fs::exists(folder / "heard/a.wav"));
  CHECK(fs::exists(folder / "heard/a.flac.wav"));
  fs::remove(folder / "in/a.flac");
  // A pipe in a folder is reported and not read. A name of the greatest length works.
  REQUIRE(::mkfifo((folder / "in/p.wav").c_str(), 0600) == 0);
  const std::string longest(245, 'n');
  fs::copy(folder / "in/a.wav", folder / ("in/" + longest + ".wav"));
  o = run(folder, {"encode", folder / "in", "-o", folder / "piped", "-m", model, "-q"});
  CHECK(o.code == 3);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("p.wav: a pipe") != std::string::npos);
  CHECK(fs::exists(folder / ("piped/" + longest + ".nacre")));
  fs::remove(folder / "in/p.wav");
  CHECK(run(folder, {"encode", folder / "in", "-o", "-", "-m", model}).code == 2);
  CHECK(run(folder, {"encode", folder / "in", "-o", folder / "in/a.wav", "-m", model}).code == 2);
}

TEST_CASE("nothing is overwritten unless asked", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 3000);
  spill(folder / "s.nacre", "mine");
  Outcome o = run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model});
  CHECK(o.code == 2);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("-f") != std::string::npos);
  CHECK(slurp(folder / "s.nacre") == "mine");
  CHECK(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "--force"}).code == 0);
  CHECK(slurp(folder / "s.nacre") != "mine");
  const std::string before = slurp(in);
  CHECK(run(folder, {"encode", in, "-o", in, "-m", model, "-f"}).code == 2);
  CHECK(slurp(in) == before);
  CHECK(run(folder, {"decode", folder / "s.nacre", "-o", in, "-m", model}).code == 2);
  CHECK(slurp(in) == before);
}

TEST_CASE("an exported model is the same model", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 3000);
  CHECK(run(folder, {"export", "-m", model, "-o", folder / "out.safetensors", "-q"}).code == 0);
  CHECK(run(folder, {"export", "-m", model, "-o", folder / "out.safetensors"}).code == 2);
  CHECK(run(folder, {"export", "-m", model, "-o", folder / "out.safetensors", "-f"}).code == 0);
  CHECK(run(folder, {"export", "-m", model, "-o", model, "-f"}).code == 2);
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model}).code == 0);
  CHECK(run(folder, {"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", folder / "out.safetensors"}).code ==
        0);
}

TEST_CASE("a model goes to the formats of other programs, and every verb reads them there", "[cli]") {
  const Folder folder;
  CodecConfig config;
  config.sample_rate = 8000;
  config.encoder_dim = 2, config.decoder_dim = 8, config.encoder_rates = {2, 3}, config.decoder_rates = {3, 2};
  config.n_codebooks = 2, config.codebook_size = 16, config.codebook_dim = 4;
  const std::string model = tiny_model(folder, "ours.safetensors", 1, config);
  const std::string in = write_voice(folder / "in.wav", 3000, 8000);
  const std::string hf = folder / "hf", dac = folder / "dac.safetensors", bare = folder / "bare.safetensors";
  const auto expect = [&](int code, const std::vector<std::string>& words, const std::string& part) {
    const Outcome o = run(folder, words);
    INFO(o.err);
    CHECK(o.code == code);
    CHECK((o.err + o.out).find(part) != std::string::npos);
    CHECK(o.lines() <= 1);
  };
  expect(0, {"export", "-m", model, "-o", hf + "/", "--format", "hf"}, "values");
  expect(2, {"export", "-m", model, "-o", hf, "--format", "hf"}, "-f overwrites it");
  expect(0, {"export", "-m", model, "-o", hf, "--format", "hf", "-f", "-q"}, "");
  expect(2, {"export", "-m", hf, "-o", hf, "--format", "hf", "-f"}, "is the model that is exported");
  expect(2, {"export", "-m", model, "-o", model, "--format", "hf", "-f"}, "is a file, expected a folder");
  expect(2, {"export", "-m", model, "-o", hf, "--format", "descript", "-f"}, "is a folder, expected a file name");
  expect(4, {"export", "-m", model, "-o", folder / "no/hf", "--format", "hf"}, "there is no folder");
  expect(2, {"export", "-m", model, "-o", folder.path().string(), "--format", "hf", "-f"},
         "is no folder of such files");
  CHECK(std::distance(fs::directory_iterator(hf), fs::directory_iterator()) == 3);
  expect(0, {"export", "-m", hf, "-o", dac, "--format", "descript", "--json"}, "\"descript\"");

  // The state dict alone, whose strides are none of the published ones.
  {
    const Safetensors file = Safetensors::read(dac);
    write_safetensors(fs::path(bare), file.tensors(), {});
  }
  expect(3, {"info", bare}, "--sample-rate gives it");
  expect(2, {"info", dac, "--sample-rate", "8000"}, "has its own sample rate");
  expect(2, {"info", bare, "--sample-rate", "8000", "--config", "dac-16k"}, "omit --sample-rate");
  expect(0, {"info", hf}, "transformers (DacModel)");
  expect(0, {"info", dac}, "descript-audio-codec");

  // The weights of hf are rounded once more than ours. All others are copies of it, so their streams are equal.
  expect(0, {"export", "-m", hf, "-o", folder / "back.safetensors"}, "values");
  std::string first;
  for (const std::string& from :
       std::vector<std::string>{hf, hf + "/model.safetensors", dac, bare, folder / "back.safetensors"}) {
    INFO(from);
    const auto with = [&](std::vector<std::string> words) {
      words.insert(words.end(), {"-m", from});
      if (from == bare) words.insert(words.end(), {"--sample-rate", "8000"});
      return words;
    };
    expect(0, with({"encode", in, "-o", folder / "s.nacre", "-f"}), "kbit/s");
    expect(0, with({"decode", folder / "s.nacre", "-o", folder / "s.wav", "-f"}), "s.wav");
    expect(0, with({"eval", in}), "SNR");
    const std::string stream = slurp(folder / "s.nacre");
    if (first.empty()) first = stream;
    CHECK(stream == first);
  }
  // A run that continues from it.
  fs::create_directories(folder / "data");
  for (int i = 0; i < 3; ++i) write_voice(folder / ("data/" + std::to_string(i) + ".wav"), 8000, 8000);
  spill(folder / "c.json",
        R"({"codec": )" + config.to_json() + R"(, "training": {"batch_size": 2, "segment_length": 600}})");
  const Outcome o = run(folder, {"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--config",
                                 folder / "c.json", "--init", hf, "--max-steps", "1"});
  INFO(o.err);
  INFO(o.out);
  CHECK(o.code == 0);
  CHECK(o.out.find(" 0 missing, 0 not used, 0 of another shape") != std::string::npos);
}

TEST_CASE("a model of EnCodec goes to the formats of other programs and back", "[cli]") {
  const Folder folder;
  CodecConfig config = CodecConfig::named("encodec-24k");
  config.sample_rate = 8000;
  config.encoder_dim = 2, config.decoder_dim = 8, config.encoder_rates = {2, 4}, config.decoder_rates = {4, 2};
  config.latent_dim = 8, config.n_codebooks = 2, config.codebook_size = 16, config.codebooks_drawn = {1, 2};
  const std::string model = tiny_model(folder, "ours.safetensors", 1, config);
  const std::string in = write_voice(folder / "in.wav", 3000, 8000);
  const std::string hf = folder / "hf", state = folder / "state.safetensors";
  const auto expect = [&](int code, const std::vector<std::string>& words, const std::string& part) {
    const Outcome o = run(folder, words);
    INFO(o.err);
    CHECK(o.code == code);
    CHECK((o.err + o.out).find(part) != std::string::npos);
  };
  expect(0, {"export", "-m", model, "-o", hf, "--format", "hf"}, "values");
  expect(0, {"export", "-m", hf, "-o", state, "--format", "encodec", "--json"}, "\"encodec\"");
  expect(2, {"export", "-m", model, "-o", folder / "d.safetensors", "--format", "descript"},
         "codec.network is encodec");
  expect(0, {"info", hf}, "transformers (EncodecModel)");
  expect(0, {"info", state}, "in the form of encodec");
  std::string first;
  for (const std::string& from : {model, hf, state}) {
    INFO(from);
    expect(0, {"encode", in, "-o", folder / "s.nacre", "-f", "-m", from}, "kbit/s");
    const std::string stream = slurp(folder / "s.nacre");
    if (first.empty()) first = stream;
    CHECK(stream == first);
  }
}

TEST_CASE("a beam changes the stream of encode, and neither its size nor who decodes it", "[cli]") {
  const Folder folder;
  CodecConfig config = tiny_config();
  config.quantizer = QuantizerKind::ema, config.metric = VqMetric::euclidean, config.n_codebooks = 6;
  const std::string model = tiny_model(folder, "one.safetensors", 1, config);
  config.beam = 8;
  const std::string wide = tiny_model(folder, "eight.safetensors", 1, config),
                    in = write_voice(folder / "in.wav", 20000);
  const auto encoded = [&](const std::string& with, const std::vector<std::string>& options) {
    std::vector<std::string> all{"encode", in, "-o", folder / "s.nacre", "-m", with, "-f", "-q"};
    all.insert(all.end(), options.begin(), options.end());
    const Outcome o = run(folder, all);
    INFO(o.err);
    REQUIRE(o.code == 0);
    return slurp(folder / "s.nacre");
  };
  const std::string one = encoded(model, {}), eight = encoded(model, {"--beam", "8"});
  CHECK(one != eight);
  CHECK(one.size() == eight.size());
  CHECK(encoded(model, {"--beam", "1"}) == one);
  CHECK(encoded(wide, {}) == eight);
  CHECK(encoded(wide, {"--beam", "1"}) == one);
  // The weights are those of the model.
  spill(folder / "eight.nacre", eight);
  CHECK(run(folder, {"decode", folder / "eight.nacre", "-o", folder / "out.wav", "-m", model}).code == 0);
  const auto judged = [&](const std::string& beam) {
    return run(folder, {"eval", in, "-m", model, "--json", "--beam", beam}).out;
  };
  const auto snr = [](const std::string& report) { return report.substr(report.find("\"snr\""), 30); };
  CHECK(snr(judged("1")) != snr(judged("8")));
}

namespace {

/// A model whose label 1 is not the identity in one half, or one that does not denoise.
std::string denoising_model(const Folder& folder, Denoise half) {
  CodecConfig config = tiny_config();
  config.network = "soundstream", config.denoise = half, config.causal = true;
  config.quantizer = QuantizerKind::ema, config.metric = VqMetric::euclidean;
  Context ctx({.threads = 1});
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, 1);
  const std::string film = half == Denoise::encoder ? "encoder.film.beta" : "decoder.film.beta";
  std::vector<float> beta(16);  // 8 channels at the bottleneck
  std::fill(beta.begin() + 8, beta.end(), 0.5f);
  REQUIRE(codec.parameters().set_tensor(ctx, film, {2, 8}, beta) == (half != Denoise::none));
  const std::string path = folder / (half == Denoise::encoder ? "e" : half == Denoise::decoder ? "d" : "n");
  codec.save(path);
  return path;
}

}  // namespace

TEST_CASE("encode and decode with --denoise, each with the models that denoise there", "[cli]") {
  const Folder folder;
  const std::string in_encoder = denoising_model(folder, Denoise::encoder),
                    in_decoder = denoising_model(folder, Denoise::decoder),
                    nowhere = denoising_model(folder, Denoise::none), in = write_voice(folder / "in.wav", 3000);
  const auto made = [&](std::vector<std::string> arguments, const std::string& out, bool denoises) {
    arguments.insert(arguments.end(), {"-o", out, "-f", "-q"});
    if (denoises) arguments.push_back("--denoise");
    const Outcome o = run(folder, arguments);
    INFO(o.err);
    REQUIRE(o.code == 0);
    return slurp(out);
  };
  const std::string stream = folder / "s.nacre", wav = folder / "out.wav";
  for (const std::vector<std::string>& way : {std::vector<std::string>{}, {"--no-normalise"}}) {  // in blocks, if piped
    std::vector<std::string> encode{"encode", in, "-m", in_encoder};
    encode.insert(encode.end(), way.begin(), way.end());
    CHECK(made(encode, stream, true) != made(encode, stream, false));
    CHECK(made(encode, stream, true) == made(encode, stream, true));
  }
  made({"encode", in, "-m", in_decoder}, stream, false);
  const std::vector<std::string> decode{"decode", stream, "-m", in_decoder};
  CHECK(made(decode, wav, true) != made(decode, wav, false));
  // A stream that arrives.
  const auto live = [&](bool denoises) {
    std::vector<std::string> arguments{"encode", "-", "-o", "-", "-m", in_encoder, "--no-normalise", "-q"};
    if (denoises) arguments.push_back("--denoise");
    const Outcome o = run(folder, arguments, in);
    INFO(o.err);
    REQUIRE(o.code == 0);
    return o.out;
  };
  CHECK(live(true) != live(false));
  for (const std::string& model : {in_encoder, in_decoder}) {
    const auto judged = [&](bool denoises) {
      std::vector<std::string> arguments{"eval", in, "-m", model, "--json", "-q"};
      if (denoises) arguments.push_back("--denoise");
      const Outcome o = run(folder, arguments);
      INFO(o.err);
      REQUIRE(o.code == 0);
      return o.out.substr(o.out.find("\"snr\""), 30);
    };
    CHECK(judged(true) != judged(false));
  }
  made({"encode", in, "-m", in_encoder}, folder / "e.nacre", false);
  const std::string no_model =
      "--denoise: codec.denoise of the model is none, expected a model with encoder or decoder";
  for (const auto& [arguments, message] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"encode", in, "-o", folder / "x", "-m", nowhere}, no_model},
           {{"decode", stream, "-o", folder / "x", "-m", nowhere}, no_model},
           {{"eval", in, "-m", nowhere}, no_model},
           {{"encode", in, "-o", folder / "x", "-m", in_decoder},
            "--denoise: this model denoises in its decoder; give it to nacre decode"},
           {{"decode", folder / "e.nacre", "-o", folder / "x", "-m", in_encoder},
            "--denoise: this model denoises in its encoder; give it to nacre encode"}}) {
    std::vector<std::string> all = arguments;
    all.push_back("--denoise");
    const Outcome o = run(folder, all);
    CHECK(o.code == 2);
    CHECK(o.err == "nacre: " + message + "\n");
  }
}

TEST_CASE("memory does not grow with the length", "[cli][peak]") {
  const Folder folder(true);  // on disk: a folder in memory would count
  const std::string model = tiny_model(folder);
  write_voice(folder / "short.wav", 16000 * 20);
  write_voice(folder / "long.wav", 16000 * 200);
  int64_t encode[2], decode[2];
  for (const bool is_long : {false, true}) {
    const std::string name = folder / (is_long ? "long" : "short");
    Outcome o = run(folder, {"encode", name + ".wav", "-o", name + ".nacre", "-m", model, "-q", "-t", "1"});
    REQUIRE(o.code == 0);
    encode[is_long] = o.peak_kib;
    o = run(folder, {"decode", name + ".nacre", "-o", name + ".out.wav", "-m", model, "-q", "-t", "1"});
    REQUIRE(o.code == 0);
    decode[is_long] = o.peak_kib;
    CHECK(training::read_audio(name + ".out.wav").frames() == (is_long ? 16000 * 200 : 16000 * 20));
  }
  // If all samples were kept in memory, 180 s more would take 11 MiB. The noise of the allocator is a fraction of a
  // MiB.
  INFO(encode[0] << " " << encode[1] << " " << decode[0] << " " << decode[1] << " KiB");
  CHECK(encode[1] - encode[0] < 4096);
  CHECK(decode[1] - decode[0] < 4096);
}

TEST_CASE("memory does not grow with the number of files, read or refused", "[cli][peak]") {
  const Folder folder(true);
  const std::string model = tiny_model(folder);
  int64_t peak[2];
  for (const bool many : {false, true}) {
    const std::string name = many ? "many" : "few";
    fs::create_directory(folder / name);
    for (int i = 0; i < (many ? 200 : 20); ++i)
      write_voice(folder / (name + "/good" + std::to_string(i) + ".wav"), 16000);
    for (int i = 0; i < (many ? 100 : 10); ++i)
      spill(folder / (name + "/bad" + std::to_string(i) + ".wav"), std::string(4000, 'a'));
    const Outcome o =
        run(folder, {"encode", folder / name, "-o", folder / (name + ".out"), "-m", model, "-q", "-t", "1"});
    CHECK(o.code == 3);
    CHECK(o.lines() == (many ? 100 : 10));
    peak[many] = o.peak_kib;
  }
  // If all files were kept, 180 more would take 11 MiB of samples, as above.
  INFO(peak[0] << " " << peak[1] << " KiB");
  CHECK(peak[1] - peak[0] < 4096);
}
