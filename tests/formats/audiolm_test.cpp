// SoundStream's weights by audiolm-pytorch: what the class computes, names, configurations, errors, and the way back.
#include <algorithm>

#include "file_tools.h"
#include "formats/weights_tools.h"
#include "golden_file.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/formats/save_weights.h"
#include "nacre/formats/weights_file.h"
#include "nacre/systems/system.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// What golden/make_audiolm.py writes, in the words of this library.
CodecConfig expected(const std::string& model) {
  CodecConfig c = CodecConfig::named("soundstream-16k");
  c.encoder_dim = 2;
  c.latent_dim = 8, c.n_codebooks = 3, c.codebook_size = 16;
  if (model == "audiolm_plain") {
    c.encoder_rates = {2, 5}, c.decoder_rates = {5, 2}, c.decoder_dim = 8;
  } else {
    c.sample_rate = 24000, c.ema_decay = 0.9;
    c.encoder_rates = {4, 3}, c.decoder_rates = {3, 4}, c.decoder_dim = 8;
    c.encoder_channels = {2, 6, 8}, c.decoder_channels = {8, 6, 2};
    c.dilations = {1, 2, 1};
  }
  return c;
}

std::map<std::string, std::string> metadata_of(const fs::path& path) { return Safetensors::read(path).metadata(); }

/// Metadata whose arguments of the class are changed.
std::map<std::string, std::string> told(const fs::path& path, const std::function<void(json&)>& change) {
  std::map<std::string, std::string> all = metadata_of(path);
  json kwargs = json::parse(all.at(kwargs_metadata_key));
  change(kwargs);
  all[kwargs_metadata_key] = kwargs.dump();
  return all;
}

}  // namespace

TEST_CASE("formats: SoundStream's latents, codes and audio by audiolm-pytorch (golden)") {
  const std::string model = GENERATE("audiolm_plain", "audiolm_widths");
  INFO(model);
  Context ctx({.threads = 1});
  const WeightsFile file = WeightsFile::read(golden(model, "model.safetensors"));
  CHECK(file.format() == WeightsFormat::audiolm);
  CHECK(file.tells_sample_rate());
  Codec codec = Codec::load(ctx, golden(model, "model.safetensors"));
  const CodecConfig& c = codec.config();
  CHECK(c.to_json() == expected(model).to_json());

  // At most 16 layers of sums of up to 56 products in float: each layer adds roundings of about 2^-24 * sqrt(56), which
  // add up to 2^-24 * sqrt(16 * 56) = 1.8e-6 of the values. The bound is five times that. The second clip is the
  // shortest one that the class takes.
  for (const int64_t frames : {32, model == "audiolm_plain" ? 11 : 7})
    check_golden_clip(ctx, codec, model, frames, 9e-6);
}

TEST_CASE("formats: audiolm-pytorch to nacre and back, bit for bit") {
  const std::string model = GENERATE("audiolm_plain", "audiolm_widths");
  INFO(model);
  const Folder folder;
  Context ctx({.threads = 1});
  const fs::path from = golden(model, "model.safetensors"), to = folder / "back.safetensors";
  Codec codec = Codec::load(ctx, from);
  save_audiolm(ctx, codec.parameters(), codec.config(), to);
  Codec back = Codec::load(ctx, to);
  CHECK(back.identity() == codec.identity());
  CHECK(back.config().to_json() == codec.config().to_json());
  CHECK(metadata_of(to).at("format") == "pt");

  // Under the same names, with the same shapes: all but the conditioning, which the class has for denoising only.
  const Safetensors first = Safetensors::read(from), second = Safetensors::read(to);
  size_t compared = 0;
  for (const StoredTensor& t : first.tensors()) {
    if (t.name.find("_film.") != std::string::npos) continue;
    INFO(t.name);
    const StoredTensor* other = second.find(t.name);
    REQUIRE(other != nullptr);
    // The flag has a dimension, which PyTorch removes for versions that expect none.
    CHECK(other->shape == (t.name.ends_with("initted") ? std::vector<int64_t>{1} : t.shape));
    CHECK(to_floats(*other) == to_floats(t));
    ++compared;
  }
  CHECK(second.size() == compared);
  CHECK(compared > 60);
  // Every argument that is written is one of the class, with the value that the file had.
  const json theirs = json::parse(first.metadata().at(kwargs_metadata_key)),
             ours = json::parse(second.metadata().at(kwargs_metadata_key));
  for (const auto& [key, value] : ours.items()) {
    INFO(key);
    REQUIRE(theirs.contains(key));
    if (key.ends_with("cycle_dilations") && model == "audiolm_widths")
      CHECK(value == json({1, 2, 1}));
    else
      CHECK(value == theirs.at(key));
  }
}

TEST_CASE("formats: SoundStream's tensors alone, prefixes, and what is left out") {
  const Folder folder;
  Context ctx({.threads = 1});
  const fs::path from = golden("audiolm_plain", "model.safetensors"), to = folder / "changed.safetensors";
  Codec codec = Codec::load(ctx, from);
  SECTION("tensors tell all but the rate, with the class's default dilations") {
    rewrite(from, to, [](auto&) {});
    const WeightsFile file = WeightsFile::read(to);
    CHECK_FALSE(file.tells_sample_rate());
    CHECK(file.config(16000).to_json() == codec.config().to_json());
    CHECK_HAS(refusal([&] { (void)file.config(); }), "--sample-rate gives it");
    // Neither is it that of a published model of DAC with the same strides and codebooks.
    CodecConfig c = expected("audiolm_plain");
    c.encoder_rates = {2, 4, 5, 8}, c.decoder_rates = {8, 5, 4, 2}, c.decoder_dim = 32, c.n_codebooks = 12;
    Codec other(ctx, c);
    save_audiolm(ctx, other.parameters(), c, to);
    CHECK(WeightsFile::read(to).config().to_json() == c.to_json());
    rewrite(to, folder / "bare.safetensors", [](auto&) {});
    CHECK_HAS(refusal([&] { (void)WeightsFile::read(folder / "bare.safetensors").config(); }),
              "--sample-rate gives it");
  }
  SECTION("prefixes, and tensors that nothing is coded with") {
    rewrite(from, to, [](std::vector<Tensor>& all) {
      for (const char* name : {"discriminators.0.init_conv.weight", "stft_discriminator.layers.0.1.bias",
                               "mel_spec_transforms.5.spectrogram.window"})
        all.push_back({name, {1}, {0}});
      for (Tensor& t : all) t.name = "module." + t.name;
    });
    const WeightsFile file = WeightsFile::read(to);
    CHECK(Codec::load(ctx, file, file.config(16000)).identity() == codec.identity());
  }
  SECTION("a flag without a dimension, as older and newer versions of the quantizer write it") {
    for (const bool scalar : {true, false}) {
      const auto reshape = [&](std::vector<Tensor>& all) {
        for (Tensor& t : all)
          if (t.name.ends_with("initted")) t.shape = scalar ? std::vector<int64_t>{} : std::vector<int64_t>{1};
      };
      rewrite(from, to, reshape, metadata_of(from));
      CHECK(Codec::load(ctx, to).identity() == codec.identity());
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

TEST_CASE("formats: what is wrong in a file of audiolm-pytorch is named") {
  const Folder folder;
  Context ctx({.threads = 1});
  const fs::path from = golden("audiolm_plain", "model.safetensors"), to = folder / "changed.safetensors";
  const auto load = [&] { return refusal([&] { Codec::load(ctx, to); }); };
  const auto with = [&](const std::function<void(std::vector<Tensor>&)>& change) {
    rewrite(from, to, change, metadata_of(from));
    return load();
  };
  SECTION("parts that this library lacks, by their argument") {
    const auto adding = [&](const char* name, const char* argument) {
      const std::string what = with([&](std::vector<Tensor>& all) { all.push_back({name, {1}, {0}}); });
      INFO(what);
      CHECK_HAS(what, std::string("with ") + argument + ", which this library does not have: it has a tensor " + name);
    };
    adding("encoder_attn.layers.0.0.to_qkv.weight", "use_local_attn=True");
    adding("decoder_attn.layers.0.1.0.bias", "use_local_attn=True");
    adding("encoder.1.0.fn.4.net.0.weight", "squeeze_excite=True");
    adding("encoder.2.fn.fn.norm.gamma", "use_gate_loop_layers=True");
    adding("rq.rvqs.1.layers.0._codebook.embed", "rq_groups greater than 1");
    const std::string what = with([](std::vector<Tensor>& all) {
      std::erase_if(all, [](const Tensor& t) { return t.name.starts_with("rq."); });
      all.push_back({"rq.rvqs.0.layers.0.mask", {4}, {1, 2, 4, 8}});
    });
    CHECK_HAS(what, "use_lookup_free_quantizer=True or use_finite_scalar_quantizer=True, which this library does not");
    CHECK_HAS(what, "it has no tensor rq.rvqs.0.layers.0._codebook.embed");
  }
  SECTION("arguments") {
    const auto say = [&](const char* key, const json& value, const char* part) {
      rewrite(
          from, to, [](auto&) {}, told(from, [&](json& kwargs) { kwargs[key] = value; }));
      const std::string what = load();
      INFO(what);
      CHECK_HAS(what, part);
    };
    say("pad_mode", "constant", "metadata \"kwargs\": pad_mode is \"constant\", expected \"reflect\"");
    say("dec_cycle_dilations", {1, 3}, "dec_cycle_dilations is [1,3], expected those of enc_cycle_dilations");
    say("enc_cycle_dilations", json::array(), "enc_cycle_dilations is [], expected at least one number");
    say("rq_kwargs", {{"use_cosine_sim", true}}, "expected no \"use_cosine_sim\", which can change codes");
    say("target_sample_hz", "16k", "target_sample_hz is \"16k\", expected an integer");
    say("target_sample_hz", 1, "codec.sample_rate");
    say("rq_ema_decay", 2, "codec.ema_decay");
  }
  SECTION("arguments that change training alone, and longer cycles, whose start is used") {
    rewrite(
        from, to, [](auto&) {}, told(from, [](json& kwargs) {
          kwargs["rq_kwargs"] = {{"kmeans_iters", 20}};
          kwargs["enc_cycle_dilations"] = {1, 3, 9, 27}, kwargs["dec_cycle_dilations"] = {1, 3, 9};
        }));
    CHECK(Codec::load(ctx, to).config().to_json() == expected("audiolm_plain").to_json());
  }
  SECTION("tensors, in the file's names") {
    std::string what = with([](std::vector<Tensor>& all) {
      drop(all, "decoder.2.3.fn.2.conv.bias");
      drop(all, "decoder.3.conv.weight");
      drop(all, "rq.rvqs.0.layers.1._codebook.embed_avg");
      all.push_back({"rq.rvqs.0.project_in.weight", {1}, {0}});
    });
    CHECK_HAS(what,
              "missing (3): decoder.2.3.fn.2.conv.bias, decoder.3.conv.weight, "
              "rq.rvqs.0.layers.1._codebook.embed_avg; unexpected (1): rq.rvqs.0.project_in.weight");
    what = with([](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "rq.rvqs.0.layers.1._codebook.embed_avg") t.shape = {2, 8, 8};
    });
    CHECK_HAS(what,
              "of another shape (1): rq.rvqs.0.layers.1._codebook.embed_avg is F32 [2, 8, 8], expected F32 [16, 8]");
    what = with([](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "encoder.0.conv.weight") t.shape = {2, 2, 7}, t.values.resize(28);
    });
    CHECK_HAS(what, "encoder.0.conv.weight has 2 channels, expected 1 (input_channels)");
    what = with([](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "encoder.1.3.conv.weight") t.shape = {4, 2, 3}, t.values.resize(24);
    });
    CHECK_HAS(what, "encoder.1.3.conv.weight has 3 taps, expected an even number, twice the stride");
  }
}

TEST_CASE("formats: a codec that audiolm-pytorch does not have is not written") {
  const Folder folder;
  Context ctx({.threads = 1});
  const auto refused = [&](const std::function<void(CodecConfig&)>& change, const char* part) {
    CodecConfig c = expected("audiolm_plain");
    change(c);
    c.check();
    Codec codec(ctx, c);
    INFO(part);
    CHECK_HAS(not_for_audiolm(c), part);
    CHECK_THROWS_AS(save_audiolm(ctx, codec.parameters(), c, folder / "a.safetensors"), Error);
  };
  CHECK(not_for_audiolm(CodecConfig::named("dac-16k")) == "codec.network is dac, which audiolm-pytorch does not have");
  CHECK(not_for_audiolm(CodecConfig::named("soundstream-16k")).empty());
  refused([](CodecConfig& c) { c.audio_channels = 2; }, "codec.audio_channels is 2");
  refused([](CodecConfig& c) { c.quantizer = QuantizerKind::factorised; }, "codec.quantizer is factorised");
  refused([](CodecConfig& c) { c.metric = VqMetric::cosine; }, "codec.metric is cosine");
  refused([](CodecConfig& c) { c.activation = ActivationKind::snake; }, "codec.activation is snake");
  refused([](CodecConfig& c) { c.activation_order = ActivationOrder::before; }, "codec.activation_order is before");
  refused([](CodecConfig& c) { c.output_tanh = true; }, "codec.output_tanh is true");
  refused([](CodecConfig& c) { c.causal = false; }, "codec.causal is false");
  refused([](CodecConfig& c) { c.padding = Padding::zero; }, "codec.padding is zero");
  refused([](CodecConfig& c) { c.norm = Norm::weight; }, "codec.norm is weight");
  refused([](CodecConfig& c) { c.shortcut = Shortcut::convolution; }, "codec.shortcut is convolution");
  refused([](CodecConfig& c) { c.denoise = Denoise::encoder; }, "codec.denoise is encoder");
  refused([](CodecConfig& c) { c.lstm_layers = 1; }, "codec.lstm_layers is 1");
  refused([](CodecConfig& c) { c.residual_width = 2; }, "codec.residual_width is not 1");
  refused([](CodecConfig& c) { c.kernel_size = 5; }, "codec.kernel_size is 5");
  refused([](CodecConfig& c) { c.residual_kernel_size = 5; }, "codec.residual_kernel_size is 5");
  refused([](CodecConfig& c) { c.residual_kernel_sizes = {7, 7, 5}; }, "codec.residual_kernel_sizes is [7,7,5]");
  refused([](CodecConfig& c) { c.dilations = {1, 3}; }, "codec.dilations is [1,3]");
  refused([](CodecConfig& c) { c.upsampling_strides = 1; }, "codec.upsampling_strides is 1");
  refused([](CodecConfig& c) { c.latent_convolutions = false; }, "codec.latent_convolutions is false");
  refused([](CodecConfig& c) { c.decoder_rates = {2, 5}; }, "codec.decoder_rates are not the reverse");
  refused([](CodecConfig& c) { c.decoder_dim = 16; }, "the decoder's widths are not the reverse");
  refused(
      [](CodecConfig& c) {
        c.encoder_channels = {2, 5, 8}, c.decoder_channels = {8, 5, 2};
      },
      "codec.encoder_channels are not multiples");
  CHECK(folder.count() == 0);
}
