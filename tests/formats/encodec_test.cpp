// EnCodec's weights by transformers and by the package encodec: what both programs compute, names, configurations,
// errors, and the way back.
#include <algorithm>
#include <cmath>

#include "file_tools.h"
#include "formats/encodec_exchange.h"
#include "formats/weights_tools.h"
#include "golden_file.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/codec/windowed.h"
#include "nacre/formats/save_weights.h"
#include "nacre/formats/weights_file.h"
#include "nacre/systems/system.h"
#include "nn/segment_scale.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t lengths[] = {32, 1, 2, 5};      // frames
constexpr int64_t clips[] = {1097, 477, 480, 7};  // samples, of the model with segments

std::span<const float> part(const std::vector<float>& all, int64_t from, int64_t count) {
  return std::span(all).subspan(static_cast<size_t>(from), static_cast<size_t>(count));
}

/// What golden/make_encodec.py writes, in the words of this library.
CodecConfig expected(const std::string& model) {
  CodecConfig c = CodecConfig::named("encodec-24k");
  c.latent_dim = 8;
  c.n_codebooks = 3, c.codebook_size = 16, c.codebooks_drawn = {1, 3};
  c.encoder_dim = 2;
  if (model == "encodec_24k") {
    c.encoder_rates = {2, 4}, c.decoder_rates = {4, 2}, c.decoder_dim = 8;
  } else if (model == "encodec_32k") {
    c.sample_rate = 32000, c.encoder_rates = {2, 3}, c.decoder_rates = {3, 2}, c.decoder_dim = 8;
    c.causal = false, c.shortcut = Shortcut::identity, c.dilations = {1, 2};
  } else if (model == "encodec_48k") {
    c.sample_rate = 48000, c.audio_channels = 2;
    c.segment = 480, c.segment_stride = 475, c.segment_scale = true;
    c.encoder_rates = {2, 5}, c.decoder_rates = {5, 2}, c.decoder_dim = 8;
    c.causal = false, c.norm = Norm::group;
  } else {
    c.sample_rate = 48000, c.encoder_rates = {3}, c.decoder_rates = {3}, c.decoder_dim = 4;
    c.causal = false, c.norm = Norm::group;
  }
  return c;
}

/// As expected(), with random weights whose gains are not the norms of their directions.
Codec drawn(Context& ctx, const CodecConfig& c) {
  Codec codec(ctx, c);
  codec.parameters().initialise(ctx, 5);
  for (Parameter& p : codec.parameters().all()) {
    if (!p.names[0].ends_with(".weight_g") && !p.names[0].ends_with(".cluster_size")) continue;
    std::vector<float> v(static_cast<size_t>(p.shape.elements()));
    ctx.read<float>(p.value, v);
    for (size_t i = 0; i < v.size(); ++i) v[i] *= 1 + 0.125f * static_cast<float>(i % 5);
    ctx.write<float>(v, p.value);
  }
  codec.parameters().refresh(ctx);
  return codec;
}

/// Every tensor of one file is in the other, with the same bytes.
void check_equal_files(const fs::path& a, const fs::path& b, const std::function<std::string(std::string)>& named) {
  const Safetensors first = Safetensors::read(a), second = Safetensors::read(b);
  CHECK(first.size() == second.size());
  for (const StoredTensor& t : first.tensors()) {
    INFO(t.name);
    const StoredTensor* other = second.find(named(t.name));
    REQUIRE(other != nullptr);
    CHECK(other->shape == t.shape);
    CHECK(to_floats(*other) == to_floats(t));
  }
}

std::string short_form(std::string name) {
  return replaced(replaced(std::move(name), "parametrizations.weight.original0", "weight_g"),
                  "parametrizations.weight.original1", "weight_v");
}

}  // namespace

TEST_CASE("formats: EnCodec's latents, codes and audio by both programs (golden)") {
  const std::string model = GENERATE("encodec_24k", "encodec_32k", "encodec_group");
  INFO(model);
  Context ctx({.threads = 1});
  Codec codec = Codec::load(ctx, golden(model, "model.safetensors"));
  const CodecConfig& c = codec.config();
  CHECK(c.to_json() == expected(model).to_json());

  // The state dict has no configuration. Its tensors tell all of it but the sample rate, and whether it is causal.
  const WeightsFile file = WeightsFile::read(golden(model, "encodec.safetensors"));
  CHECK(file.format() == WeightsFormat::encodec);
  CHECK_FALSE(file.tells_sample_rate());
  CodecConfig told = file.config(c.sample_rate);
  CHECK(told.causal);
  told.causal = c.causal, told.codebooks_drawn = c.codebooks_drawn;
  CHECK(told.to_json() == c.to_json());
  CHECK(Codec::load(ctx, file, told).identity() == codec.identity());

  // At most 20 layers of sums of up to 56 products in float: each layer adds roundings of about 2^-24 * sqrt(56), which
  // add up to 2^-24 * sqrt(20 * 56) = 2e-6 of the values. The bound is five times that.
  for (const int64_t frames : lengths) check_golden_clip(ctx, codec, model, frames, 1e-5);
}

TEST_CASE("formats: EnCodec's segments, with their scales and overlap, by both programs (golden)") {
  const std::string model = "encodec_48k";
  Context ctx({.threads = 1});
  Codec codec = Codec::load(ctx, golden(model, "model.safetensors"));
  const CodecConfig& c = codec.config();
  CHECK(c.to_json() == expected(model).to_json());

  // The tensors tell neither segments nor whether it is causal.
  const WeightsFile file = WeightsFile::read(golden(model, "encodec.safetensors"));
  CHECK(file.format() == WeightsFormat::encodec);
  CodecConfig told = file.config(c.sample_rate);
  CHECK_FALSE(told.segmented());
  told.causal = c.causal, told.codebooks_drawn = c.codebooks_drawn;
  told.segment = c.segment, told.segment_stride = c.segment_stride, told.segment_scale = c.segment_scale;
  CHECK(told.to_json() == c.to_json());
  CHECK(Codec::load(ctx, file, told).identity() == codec.identity());

  const System system(codec.parameters(), c);
  const Safetensors results = golden_file(model + "/results.safetensors");
  for (const int64_t samples : clips) {
    INFO(samples << " samples");
    const auto of = [&](const char* name) {
      return golden_tensor(results, name + ("." + std::to_string(samples))).values;
    };
    const std::vector<float> audio = of("audio"), latents = of("latents"), scales = of("scales");
    REQUIRE(static_cast<int64_t>(audio.size()) == samples * c.audio_channels);
    int64_t frames = 0;
    for (int64_t from = 0; from < samples; from += c.segment_stride) {
      INFO("segment from " << from);
      const Shape wave{.time = std::min(c.segment, samples - from), .channels = c.audio_channels};
      Plan plan(ctx, Purpose::inference);
      View<float> in;
      View<const float> out;
      plan.reserve([&](Plan& p) {
        const Output<float> x = p.source<float>(wave);
        in = x.value;
        out = p.result<float>(system.encoder(p, normalised(p, x.flow).flow));
      });
      ctx.write<float>(part(audio, from * c.audio_channels, wave.elements()), in);
      plan.run();
      REQUIRE(out.shape == Shape{.time = c.frames_of(wave.time), .channels = c.latent()});
      std::vector<float> found(static_cast<size_t>(out.elements()));
      ctx.read<float>(out, found);
      // At most 25 layers and as many normalisations, with sums of up to 56 products; as above.
      CHECK(distance(found, part(latents, frames * c.latent(), out.elements())) < 1e-5);
      frames += out.shape.time;
    }
    REQUIRE(frames * c.latent() == static_cast<int64_t>(latents.size()));

    std::vector<int32_t> codes;
    std::vector<float> found_scales, output;
    std::vector<int64_t> counts;
    WindowedEncoder encoder(codec, [&](View<const int32_t> segment, float scale) {
      codes.insert(codes.end(), segment.data, segment.data + segment.elements());
      counts.push_back(segment.elements());
      found_scales.push_back(scale);
    });
    for (int64_t at = 0; at < samples; at += 100)
      encoder.push(part(audio, at * c.audio_channels, std::min<int64_t>(100, samples - at) * c.audio_channels));
    CHECK(encoder.finish() == samples);
    const StoredTensor& stored = results.at("codes." + std::to_string(samples));
    REQUIRE(stored.data.size() == codes.size() * sizeof(int32_t));
    CHECK(std::equal(stored.data.begin(), stored.data.end(), std::as_bytes(std::span(codes)).begin()));
    REQUIRE(found_scales.size() == scales.size());
    // Within two units of itself (nacre/ops/rms_scale.h), and the file rounds once.
    for (size_t i = 0; i < scales.size(); ++i) CHECK(std::fabs(found_scales[i] - scales[i]) <= 3 * 0x1p-24 * scales[i]);

    WindowedDecoder decoder(codec, [&](std::span<const float> x) { output.insert(output.end(), x.begin(), x.end()); });
    int64_t at = 0;
    for (size_t i = 0; i < counts.size(); at += counts[i++])
      decoder.push(std::span<const int32_t>(codes).subspan(static_cast<size_t>(at), static_cast<size_t>(counts[i])),
                   scales[i]);
    decoder.finish();
    CHECK(distance(output, of("output")) < 1e-5);
  }
}

TEST_CASE("formats: nacre to EncodecModel and to encodec and back, bit for bit") {
  const std::string model = GENERATE("encodec_24k", "encodec_32k", "encodec_group", "encodec_48k");
  INFO(model);
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = Codec::load(ctx, golden(model, "model.safetensors"));
  save_hugging_face(ctx, codec.parameters(), codec.config(), folder / "hf");
  save_encodec(ctx, codec.parameters(), codec.config(), folder / "encodec.safetensors");
  check_equal_files(golden(model, "model.safetensors"), folder / "hf/model.safetensors", short_form);
  check_equal_files(golden(model, "encodec.safetensors"), folder / "encodec.safetensors",
                    [](std::string name) { return name; });
  for (const char* back : {"hf/model.safetensors", "encodec.safetensors"}) {
    INFO(back);
    const WeightsFile file = WeightsFile::read(folder / back);
    CHECK(file.tells_sample_rate());
    CHECK(file.config().to_json() == codec.config().to_json());
    CHECK(Codec::load(ctx, folder / back).identity() == codec.identity());
  }
  // Every key that transformers writes has its value here, too.
  const json theirs = json::parse(slurp(golden(model, "config.json")));
  json ours = json::parse(slurp(folder / "hf/config.json"));
  CHECK(ours.at("target_bandwidths").size() == theirs.at("target_bandwidths").size());
  for (const auto& [key, value] : theirs.items())
    if (key != "target_bandwidths" && key != "transformers_version") {
      INFO(key);
      CHECK(ours[key] == value);
    }
}

TEST_CASE("formats: EnCodec's segments survive as seconds and parts") {
  // As the programs count them: both round down, in double.
  CHECK(segment_of(1, 48000) == 48000);
  CHECK(stride_of(0.01, 48000) == 47520);
  CHECK(stride_of(0.01, 480) == 475);
  CHECK(stride_of(1, 480) == 1);
  CHECK(seconds_of(48000, 48000) == 1);
  CHECK(overlap_of(47520, 48000) == 0.01);
  CHECK(overlap_of(475, 480) == 0.01);
  CHECK(overlap_of(48000, 48000) == 0);
  CHECK(overlap_of(24000, 48000) == 0.5);
  // What JSON can hold, whatever its size.
  CHECK(segment_of(1e300, 768000) == int64_t{1} << 52);
  CHECK(segment_of(-1e300, 768000) == -(int64_t{1} << 52));
  CHECK(stride_of(1e300, 1 << 24) == 1);
  CHECK(stride_of(-1e300, 1 << 24) == int64_t{1} << 52);
  int wrong = 0, compared = 0;
  const auto compare = [&](int64_t segment, int64_t stride) {
    const double overlap = overlap_of(stride, segment);
    wrong += stride_of(overlap, segment) != stride || overlap < 0 || overlap > 0.5;
    ++compared;
  };
  for (int64_t segment = 1; segment <= 1000; ++segment)
    for (int64_t stride = (segment + 1) / 2; stride <= segment; ++stride) compare(segment, stride);
  for (const int64_t segment : {22050, 24000, 44100, 48000, 65537, (1 << 24) - 1, 1 << 24}) {
    const int64_t step = std::max<int64_t>(1, segment / 9973);
    for (int64_t stride = (segment + 1) / 2; stride <= segment; stride += step) compare(segment, stride);
    for (int64_t less = 0; less < 1000; ++less) compare(segment, segment - less);
  }
  CHECK(compared > 290000);
  CHECK(wrong == 0);
  for (const int64_t rate : {1000, 8000, 11025, 22050, 22051, 44100, 48000, 768000}) {
    for (int64_t segment = 1; segment <= 20000; ++segment)
      wrong += segment_of(seconds_of(segment, rate), rate) != segment;
    for (int64_t segment = 1 << 24; segment > (1 << 24) - 20000; --segment)
      wrong += segment_of(seconds_of(segment, rate), rate) != segment;
  }
  CHECK(wrong == 0);

  // In both programs' files.
  const Folder folder;
  Context ctx({.threads = 1});
  struct Case {
    int64_t sample_rate, segment, stride;
    bool scale;
  };
  for (const Case& one :
       {Case{48000, 48000, 47520, true}, Case{44100, 44100, 44100, true}, Case{22051, 7001, 3501, false},
        Case{768000, 1 << 24, (1 << 24) - 1, true}, Case{8000, 10, 7, false}}) {
    CodecConfig c = expected("encodec_48k");
    c.sample_rate = one.sample_rate, c.segment = one.segment, c.segment_stride = one.stride,
    c.segment_scale = one.scale;
    Codec codec(ctx, c);
    save_hugging_face(ctx, codec.parameters(), c, folder / "hf");
    CHECK(WeightsFile::read(folder / "hf/model.safetensors").config().to_json() == c.to_json());
    save_encodec(ctx, codec.parameters(), c, folder / "e.safetensors");
    CHECK(WeightsFile::read(folder / "e.safetensors").config().to_json() == c.to_json());
    const json preprocessor = json::parse(slurp(folder / "hf/preprocessor_config.json"));
    CHECK(preprocessor.at("feature_size") == 2);
    CHECK(segment_of(preprocessor.at("chunk_length_s"), one.sample_rate) == one.segment);
    CHECK(stride_of(preprocessor.at("overlap"), one.segment) == one.stride);
  }

  // Without an overlap, that of the package's classes holds.
  CodecConfig c = expected("encodec_48k");
  c.segment_stride = 400;
  Codec codec(ctx, c);
  save_encodec(ctx, codec.parameters(), c, folder / "e.safetensors");
  json kwargs = json::parse(Safetensors::read(folder / "e.safetensors").metadata().at(kwargs_metadata_key));
  kwargs.erase("overlap");
  rewrite(folder / "e.safetensors", folder / "default.safetensors", [](auto&) {},
          {{"format", "pt"}, {kwargs_metadata_key, kwargs.dump()}});
  CHECK(WeightsFile::read(folder / "default.safetensors").config().segment_stride == 475);
}

TEST_CASE("formats: EnCodec's numbers of codebooks survive as bitrates") {
  const Folder folder;
  Context ctx({.threads = 1});
  struct Case {
    int64_t sample_rate, size, books;
    std::vector<int64_t> drawn;
  };
  for (const Case& one :
       {Case{24000, 1024, 32, {2, 4, 8, 16, 32}}, Case{32000, 2048, 4, {}}, Case{44100, 8, 7, {1, 3, 5, 7}},
        Case{22051, 64, 13, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}}, Case{8000, 1000, 9, {2, 7, 9}}}) {
    CodecConfig c = expected("encodec_24k");
    c.sample_rate = one.sample_rate, c.codebook_size = one.size, c.n_codebooks = one.books;
    c.codebooks_drawn = one.drawn;
    Codec codec(ctx, c);
    save_hugging_face(ctx, codec.parameters(), c, folder / "hf");
    CHECK(WeightsFile::read(folder / "hf/model.safetensors").config().to_json() == c.to_json());
    if (one.size == 1000) {
      CHECK_HAS(not_for_encodec(c), "codec.codebook_size is 1000");
      continue;
    }
    save_encodec(ctx, codec.parameters(), c, folder / "e.safetensors");
    CHECK(WeightsFile::read(folder / "e.safetensors").config().to_json() == c.to_json());
  }
}

TEST_CASE("formats: forms of EnCodec's weights, prefixes, and codebooks without averages") {
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = drawn(ctx, expected("encodec_24k"));
  save_encodec(ctx, codec.parameters(), codec.config(), folder / "e.safetensors");
  const fs::path from = folder / "e.safetensors", to = folder / "changed.safetensors";
  const auto load = [&] {
    const WeightsFile file = WeightsFile::read(to);
    CHECK(file.format() == WeightsFormat::encodec);
    return Codec::load(ctx, file, file.config(24000));
  };
  SECTION("prefixes") {
    const std::string prefix = GENERATE("module.", "generator.", "model.");
    rewrite(from, to, [&](std::vector<Tensor>& all) {
      for (Tensor& t : all) t.name = prefix + t.name;
    });
    CHECK(load().identity() == codec.identity());
  }
  SECTION("parametrizations") {
    rewrite(from, to, [](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        t.name = replaced(replaced(t.name, ".weight_g", ".parametrizations.weight.original0"), ".weight_v",
                          ".parametrizations.weight.original1");
    });
    CHECK(load().identity() == codec.identity());
  }
  SECTION("the direction as effective weight: its norm is the gain") {
    rewrite(from, to, [](std::vector<Tensor>& all) {
      std::erase_if(all, [](const Tensor& t) { return t.name.ends_with(".weight_g"); });
      for (Tensor& t : all) t.name = replaced(t.name, ".weight_v", ".weight");
    });
    Codec back = load();
    std::map<std::string, std::vector<float>> all;
    back.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&,
                                           std::span<const float> v) { all[name].assign(v.begin(), v.end()); });
    int compared = 0;
    for (const auto& [name, g] : all) {
      if (!name.ends_with(".weight_g")) continue;
      const std::vector<float>& v = all.at(name.substr(0, name.size() - 1) + "v");
      const size_t length = v.size() / g.size();
      for (size_t r = 0; r < g.size(); ++r, ++compared) {
        double sum = 0;
        for (size_t i = 0; i < length; ++i) sum += std::pow(static_cast<double>(v[r * length + i]), 2);
        CHECK(g[r] == static_cast<float>(std::sqrt(sum)));
      }
    }
    CHECK(compared > 20);
  }
  SECTION("codes alone: each counts once, and is the average of its vectors") {
    rewrite(from, to, [](std::vector<Tensor>& all) {
      std::erase_if(all, [](const Tensor& t) {
        return t.name.ends_with("inited") || t.name.ends_with("cluster_size") || t.name.ends_with("embed_avg");
      });
    });
    Codec back = load();
    std::map<std::string, std::vector<float>> all;
    back.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&,
                                           std::span<const float> v) { all[name].assign(v.begin(), v.end()); });
    for (int i = 0; i < 3; ++i) {
      const std::string book = "quantizer.quantizers." + std::to_string(i) + ".codebook.";
      CHECK(all.at(book + "cluster_size") == std::vector<float>(16, 1.0f));
      CHECK(all.at(book + "embed_avg") == all.at(book + "embed"));
    }
  }
  SECTION("into the parameters of a codec that exists, as nacre train --init does") {
    Codec other(ctx, codec.config());
    const LoadReport r = load_parameters(ctx, other.parameters(), from, false);
    CHECK(r.missing.empty());
    CHECK(r.surplus.empty());
    CHECK(r.misshapen.empty());
    CHECK(other.identity() == codec.identity());
  }
}

TEST_CASE("formats: published models of EnCodec are known by strides and codebooks") {
  const Folder folder;
  Context ctx({.threads = 1});
  for (const char* name : {"encodec-24k", "encodec-32k", "encodec-48k"}) {
    INFO(name);
    CodecConfig c = CodecConfig::named(name);
    c.encoder_dim = 2, c.decoder_dim = 32, c.latent_dim = 4, c.codebook_size = 8;
    Codec codec(ctx, c);
    save_encodec(ctx, codec.parameters(), c, folder / "e.safetensors");
    rewrite(folder / "e.safetensors", folder / "bare.safetensors", [](auto&) {});
    CHECK(WeightsFile::read(folder / "bare.safetensors").config().to_json() == c.to_json());
  }
  // As the model for 48 kHz, but with another normalisation, or with one channel.
  for (const bool mono : {false, true}) {
    CodecConfig c = CodecConfig::named("encodec-48k");
    c.encoder_dim = 2, c.decoder_dim = 32, c.latent_dim = 4, c.codebook_size = 8;
    if (mono)
      c.audio_channels = 1;
    else
      c.norm = Norm::weight;
    Codec codec(ctx, c);
    save_encodec(ctx, codec.parameters(), c, folder / "e.safetensors");
    rewrite(folder / "e.safetensors", folder / "bare.safetensors", [](auto&) {});
    CHECK_HAS(refusal([&] { (void)WeightsFile::read(folder / "bare.safetensors").config(); }), "--sample-rate");
  }
  rewrite(golden("encodec_24k", "encodec.safetensors"), folder / "bare.safetensors", [](auto&) {});
  const std::string what = refusal([&] { (void)WeightsFile::read(folder / "bare.safetensors").config(); });
  for (const char* part : {"no published model has its strides (2, 4)", "(3)", "--sample-rate"}) CHECK_HAS(what, part);
}

TEST_CASE("formats: what is wrong in a file of EnCodec is named") {
  const Folder folder;
  Context ctx({.threads = 1});
  for (const char* file : {"model.safetensors", "config.json"})
    fs::copy_file(golden("encodec_24k", file), folder / file);
  const fs::path model = folder / "model.safetensors", config = folder / "config.json";
  const std::string good = slurp(config);
  const auto load = [&](const fs::path& path) { return refusal([&] { Codec::load(ctx, path); }); };
  SECTION("keys") {
    const auto say = [&](const char* key, const json& value, const char* part) {
      spill(config, good);
      change_json(config, [&](json& j) { j[key] = value; });
      const std::string what = load(model);
      INFO(what);
      CHECK_HAS(what, part);
    };
    say("model_type", "dac", "config.json: model_type is \"dac\", expected \"encodec\"");
    say("audio_channels", 3, "config.json: audio_channels is 3, expected 1 or 2");
    say("audio_channels", 2, "decoder.layers.9.conv.bias");
    say("normalize", true, "config.json: normalize is true, expected false without chunk_length_s");
    say("chunk_length_s", 1.0, "config.json: overlap is null, expected a number beside chunk_length_s");
    say("chunk_length_s", 0.0003, "config.json: chunk_length_s is 0.0003, expected at least one frame of 8 samples");
    say("chunk_length_s", -1, "config.json: chunk_length_s is -1, expected at least one frame");
    say("compress", 4, "config.json: compress is 4, expected 2");
    say("last_kernel_size", 3, "config.json: last_kernel_size is 3, expected kernel_size, 7");
    say("trim_right_ratio", 0.5, "config.json: trim_right_ratio is 0.5, expected 1");
    say("codebook_dim", 4, "config.json: codebook_dim is 4, expected hidden_size, 8");
    say("pad_mode", "replicate", "config.json: pad_mode is \"replicate\", expected \"reflect\" or \"constant\"");
    say("norm_type", "none", "config.json: norm_type is \"none\", expected");
    say("num_residual_layers", 0, "config.json: num_residual_layers is 0, expected 1 to 8");
    say("dilation_growth_rate", 5000, "config.json: dilation_growth_rate is 5000, expected 1 to 1024");
    say("target_bandwidths", json::array(), "config.json: target_bandwidths is [], expected at least one number");
    say("target_bandwidths", {0.5}, "config.json: target_bandwidths is [0.5], expected the bitrate of a codebook");
    say("target_bandwidths", {48.0}, "missing (3): quantizer.layers.3.codebook.cluster_size");
    say("target_bandwidths", {1e300}, "codec.n_codebooks");
    say("upsampling_ratios", {4, 0}, "codec.");
    say("upsampling_ratios", json::array(), "codec.");
    say("sampling_rate", 0, "codec.sample_rate");
    say("num_filters", -1, "codec.encoder_dim");
    say("use_causal_conv", 1, "config.json: use_causal_conv is 1, expected true or false");
  }
  SECTION("keys of segments") {
    const auto say = [&](const char* key, const json& value, const char* part) {
      spill(config, good);
      change_json(config, [&](json& j) {
        j["chunk_length_s"] = 1.0, j["overlap"] = 0.01;
        j[key] = value;
      });
      const std::string what = load(model);
      INFO(what);
      CHECK_HAS(what, part);
    };
    say("overlap", 0.51,
        "config.json: overlap is 0.51, expected 0 to 0.5, at most half of the segment's 24000 samples");
    say("overlap", -0.01, "config.json: overlap is -0.01, expected 0 to 0.5");
    say("overlap", "1 %", "config.json: overlap is \"1 %\", expected a number");
    say("chunk_length_s", 1e300, "codec.segment");
  }
  SECTION("missing and surplus tensors in the names of the file") {
    const auto with = [&](const fs::path& from, const char* name) {
      const fs::path to = folder / "changed.safetensors";
      rewrite(from, to, [&](std::vector<Tensor>& all) {
        drop(all, name);
        all.push_back({"decoder.extra", {1}, {0}});
      });
      const WeightsFile file = WeightsFile::read(to);
      CodecConfig c = expected("encodec_24k");
      return refusal([&] { Codec::load(ctx, file, c); });
    };
    std::string what = with(model, "decoder.layers.3.conv.parametrizations.weight.original0");
    CHECK_HAS(what,
              "missing (1): decoder.layers.3.conv.parametrizations.weight.original0; unexpected (1): decoder.extra");
    what = with(golden("encodec_24k", "encodec.safetensors"), "decoder.model.3.convtr.convtr.weight_g");
    CHECK_HAS(what, "missing (1): decoder.model.3.convtr.convtr.weight_g; unexpected (1): decoder.extra");
    what = with(golden("encodec_24k", "encodec.safetensors"), "quantizer.vq.layers.1._codebook.embed");
    CHECK_HAS(what, "missing (1): quantizer.vq.layers.1._codebook.embed;");
  }
  SECTION("three audio channels without a configuration") {
    rewrite(golden("encodec_24k", "encodec.safetensors"), folder / "three.safetensors", [](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "encoder.model.0.conv.conv.weight_v") t.shape = {2, 3, 7}, t.values.resize(42);
    });
    CHECK_HAS(load(folder / "three.safetensors"),
              "encoder.model.0.conv.conv.weight_v has 3 audio channels, expected 1 or 2");
  }
}

TEST_CASE("formats: a codec that EnCodec's programs do not have is not written") {
  const Folder folder;
  Context ctx({.threads = 1});
  const auto refused = [&](const std::function<void(CodecConfig&)>& change, const char* part, bool by_package = true) {
    CodecConfig c = expected("encodec_24k");
    change(c);
    c.check();
    Codec codec(ctx, c);
    INFO(part);
    CHECK_HAS(not_for_hugging_face(c), part);
    if (by_package) CHECK_HAS(not_for_encodec(c), part);
    CHECK(not_for_encodec(c).empty() == !by_package);
    CHECK_THROWS_AS(save_hugging_face(ctx, codec.parameters(), c, folder / "hf"), Error);
    if (by_package) CHECK_THROWS_AS(save_encodec(ctx, codec.parameters(), c, folder / "e.safetensors"), Error);
  };
  CHECK(not_for_encodec(CodecConfig::named("dac-16k")) == "codec.network is dac, which encodec does not have");
  CHECK(not_for_descript(expected("encodec_24k")) ==
        "codec.network is encodec, which descript-audio-codec does not have");
  CHECK(not_for_encodec(CodecConfig::named("speech-8k")).empty());
  CHECK(not_for_hugging_face(CodecConfig::named("speech-8k")).empty());
  refused([](CodecConfig& c) { c.quantizer = QuantizerKind::factorised; }, "codec.quantizer is factorised");
  refused([](CodecConfig& c) { c.metric = VqMetric::cosine; }, "codec.metric is cosine");
  refused([](CodecConfig& c) { c.activation = ActivationKind::snake; }, "codec.activation is snake");
  refused([](CodecConfig& c) { c.output_tanh = true; }, "codec.output_tanh is true");
  refused([](CodecConfig& c) { c.norm = Norm::layer; }, "codec.norm is layer");
  refused([](CodecConfig& c) { c.norm = Norm::none; }, "codec.norm is none", false);
  refused([](CodecConfig& c) { c.lstm_layers = 0; }, "codec.lstm_layers is 0", false);
  refused([](CodecConfig& c) { c.dilations = {1, 3, 5}; }, "codec.dilations is [1,3,5]");
  refused([](CodecConfig& c) { c.dilations = {2}; }, "codec.dilations is [2]");
  refused([](CodecConfig& c) { c.decoder_rates = {2, 4}; }, "codec.decoder_rates are not the reverse");
  refused([](CodecConfig& c) { c.decoder_dim = 16; }, "codec.decoder_dim is 16, where");
  CHECK(folder.count() == 0);
}
