// Weights of other programs: recognition, configuration, the three forms of weight normalisation, errors, and the way
// back.
#include "nacre/formats/weights_file.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "file_tools.h"
#include "formats/weights_tools.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/formats/save_weights.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

#include "golden/dac_model.inc"

CodecConfig tiny() {
  CodecConfig c;
  c.sample_rate = 22050;
  c.encoder_dim = 2, c.encoder_rates = {2, 3}, c.decoder_dim = 8, c.decoder_rates = {3, 2};
  c.n_codebooks = 3, c.codebook_size = 8, c.codebook_dim = 2;
  c.quantizer_dropout = 0.5;
  return c;
}

Codec drawn(Context& ctx, const CodecConfig& c) {
  Codec codec(ctx, c);
  codec.parameters().initialise(ctx, 5);
  // Gains that are not the norms of their directions, and different alphas.
  for (Parameter& p : codec.parameters().all()) {
    const bool gain = p.names[0].ends_with(".weight_g"), alpha = p.names[0].ends_with(".alpha");
    if (!gain && !alpha) continue;
    std::vector<float> v(static_cast<size_t>(p.shape.elements()));
    ctx.read<float>(p.value, v);
    for (size_t i = 0; i < v.size(); ++i) v[i] *= 1 + 0.125f * static_cast<float>(i % 5);
    ctx.write<float>(v, p.value);
  }
  codec.parameters().refresh(ctx);
  return codec;
}

using Values = std::map<std::string, std::vector<float>>;

/// All tensors, with w = g v / |v| as "NAME.weight" in place of gains and directions.
Values effective(Context& ctx, Codec& codec) {
  Values all;
  codec.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&,
                                          std::span<const float> v) { all[name].assign(v.begin(), v.end()); });
  Values out;
  for (const auto& [name, v] : all) {
    if (name.ends_with(".weight_g")) continue;
    if (!name.ends_with(".weight_v")) {
      out[name] = v;
      continue;
    }
    const std::string layer = name.substr(0, name.size() - 2);
    const std::vector<float>& g = all.at(layer + "_g");
    const size_t length = v.size() / g.size();
    for (size_t r = 0; r < g.size(); ++r) {
      double sum = 0;
      for (size_t i = 0; i < length; ++i) sum += static_cast<double>(v[r * length + i]) * v[r * length + i];
      for (size_t i = 0; i < length; ++i)
        out[layer].push_back(static_cast<float>(g[r] / std::sqrt(sum) * v[r * length + i]));
    }
  }
  return out;
}

/// Effective weights may differ by roundings: of w to float, of its norm to float, and of the product of both. Each is
/// half a unit in the last place, 2^-24; the comparison's own rounding is one more.
void check_equal_weights(Context& ctx, Codec& a, Codec& b) {
  const Values first = effective(ctx, a), second = effective(ctx, b);
  REQUIRE(first.size() == second.size());
  for (const auto& [name, v] : first) {
    INFO(name);
    REQUIRE(second.count(name) == 1);
    const std::vector<float>& w = second.at(name);
    REQUIRE(v.size() == w.size());
    const float most = name.ends_with(".weight") && !name.ends_with(".codebook.weight") ? 4 * 0x1p-24f : 0.0f;
    bool equal = true;
    for (size_t i = 0; i < v.size(); ++i) equal = equal && std::fabs(v[i] - w[i]) <= most * std::fabs(v[i]);
    CHECK(equal);
  }
}

void to_parametrizations(std::vector<Tensor>& all) {
  for (Tensor& t : all)
    t.name = replaced(replaced(t.name, ".weight_g", ".parametrizations.weight.original0"), ".weight_v",
                      ".parametrizations.weight.original1");
}

}  // namespace

TEST_CASE("formats: nacre to DacModel and back") {
  const Folder folder;
  Context ctx({.threads = 1});
  CodecConfig config = tiny();
  if (GENERATE(false, true)) config.latent_dim = 5;  // not encoder_dim * 2^strides
  Codec codec = drawn(ctx, config);
  save_hugging_face(ctx, codec.parameters(), codec.config(), folder / "hf");
  const fs::path model = fs::path(folder / "hf") / "model.safetensors";
  const WeightsFile file = WeightsFile::read(model);
  CHECK(file.format() == WeightsFormat::hugging_face);
  CHECK(file.tells_sample_rate());
  CHECK(file.metadata().at("format") == "pt");
  Codec back = Codec::load(ctx, model);
  CHECK(back.config().to_json() == codec.config().to_json());
  check_equal_weights(ctx, codec, back);
  // Into an existing folder; without config.json, and with a wrong hop in it.
  save_hugging_face(ctx, back.parameters(), back.config(), folder / "hf");
  change_json(folder / "hf/config.json", [](json& j) { j["hop_length"] = 512; });
  CHECK(Codec::load(ctx, model).config().hop() == 6);
  fs::remove(folder / "hf/config.json");
  CHECK_HAS(refusal([&] { Codec::load(ctx, model); }), "--sample-rate");
  CodecConfig found = WeightsFile::read(model).config(22050);
  found.quantizer_dropout = 0.5;  // tensors do not tell it
  CHECK(found.to_json() == codec.config().to_json());
}

TEST_CASE("formats: nacre to descript-audio-codec and back, bit for bit") {
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = drawn(ctx, tiny());
  save_descript(ctx, codec.parameters(), codec.config(), folder / "dac.safetensors");
  CHECK(WeightsFile::read(folder / "dac.safetensors").format() == WeightsFormat::descript);
  Codec back = Codec::load(ctx, folder / "dac.safetensors");
  CHECK(back.identity() == codec.identity());
  CHECK(back.config().to_json() == codec.config().to_json());
}

TEST_CASE("formats: three forms of weight normalisation, prefixes, and the shapes of alpha") {
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = drawn(ctx, tiny());
  codec.save(folder / "ours.safetensors");
  save_hugging_face(ctx, codec.parameters(), codec.config(), folder / "hf");
  const fs::path to = folder / "changed.safetensors";
  const auto check = [&](bool same_bits) {
    const WeightsFile file = WeightsFile::read(to);
    Codec back = Codec::load(ctx, file, file.config(22050));
    CHECK(back.config().hop() == 6);
    if (same_bits) CHECK(back.identity() == codec.identity());
    check_equal_weights(ctx, codec, back);
    // The same into the parameters of a codec that exists, as nacre train --init does.
    Codec other(ctx, tiny());
    const LoadReport r = load_parameters(ctx, other.parameters(), to, false);
    CHECK(r.missing.empty());
    CHECK(r.surplus.empty());
    CHECK(r.misshapen.empty());
    CHECK(other.identity() == back.identity());
  };
  SECTION("gains and directions") {
    rewrite(folder / "ours.safetensors", to, [](auto&) {});
    check(true);
  }
  SECTION("parametrizations") {
    rewrite(folder / "ours.safetensors", to, to_parametrizations);
    check(true);
  }
  SECTION("effective weights under the names of descript-audio-codec") {
    const Values weights = effective(ctx, codec);
    rewrite(folder / "ours.safetensors", to, [&](std::vector<Tensor>& all) {
      std::erase_if(all, [](const Tensor& t) { return t.name.ends_with(".weight_g"); });
      for (Tensor& t : all) t.name = replaced(t.name, ".weight_v", ".weight"), t.values = weights.at(t.name);
    });
    check(false);
  }
  SECTION("prefixes") {
    const std::string prefix = GENERATE("module.", "generator.", "model.", "module.generator.");
    rewrite(folder / "ours.safetensors", to, [&](std::vector<Tensor>& all) {
      for (Tensor& t : all) t.name = prefix + t.name;
    });
    check(true);
  }
  SECTION("alpha as a vector") {
    rewrite(folder / "ours.safetensors", to, [&](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name.ends_with(".alpha")) t.shape = {t.shape[1]};
    });
    check(true);
  }
  SECTION("DacModel with prefixes, and one layer that is trained with weight normalisation") {
    const Values weights = effective(ctx, codec);
    rewrite(fs::path(folder / "hf") / "model.safetensors", to, [&](std::vector<Tensor>& all) {
      for (Tensor& t : all) t.name = "model." + t.name;
      for (size_t i = 0; i < all.size(); ++i)
        if (all[i].name == "model.decoder.block.0.conv_t1.weight") {
          all[i].name = "model.decoder.block.0.conv_t1.weight_v";
          const auto rows = static_cast<size_t>(all[i].shape[0]), length = all[i].values.size() / rows;
          Tensor g{"model.decoder.block.0.conv_t1.weight_g", {all[i].shape[0], 1, 1}, {}};
          for (size_t r = 0; r < rows; ++r) {
            double sum = 0;
            for (size_t k = 0; k < length; ++k) sum += std::pow(static_cast<double>(all[i].values[r * length + k]), 2);
            g.values.push_back(static_cast<float>(std::sqrt(sum)));
            for (size_t k = 0; k < length; ++k) all[i].values[r * length + k] *= 4;  // a power of two: no rounding
          }
          all.push_back(g);
          break;
        }
    });
    check(false);
  }
}

TEST_CASE("formats: the sample rate of published models is known by strides and codebooks") {
  const Folder folder;
  Context ctx({.threads = 1});
  struct Case {
    std::vector<int64_t> strides;
    int64_t codebooks, rate;
  };
  for (const Case& p : {Case{{2, 4, 8, 8}, 9, 44100}, Case{{2, 4, 8, 8}, 18, 44100}, Case{{2, 4, 5, 8}, 32, 24000},
                        Case{{2, 4, 5, 8}, 12, 16000}, Case{{2, 4, 5, 8}, 9, 0}, Case{{2, 4, 8, 5}, 12, 0}}) {
    INFO(p.codebooks << " codebooks");
    CodecConfig c = tiny();
    c.encoder_dim = 1, c.decoder_dim = 16, c.n_codebooks = p.codebooks;
    c.encoder_rates = p.strides, c.decoder_rates.assign(p.strides.rbegin(), p.strides.rend());
    Codec(ctx, c).save(folder / "ours.safetensors");
    rewrite(folder / "ours.safetensors", folder / "bare.safetensors", [](auto&) {});
    const WeightsFile file = WeightsFile::read(folder / "bare.safetensors");
    CHECK_FALSE(file.tells_sample_rate());
    CHECK(file.config(8000).sample_rate == 8000);
    if (p.rate > 0) {
      CHECK(file.config().sample_rate == p.rate);
      CHECK(file.config().hop() == c.hop());
      continue;
    }
    const std::string what = refusal([&] { (void)file.config(); });
    CHECK_HAS(what, "bare.safetensors");
    CHECK_HAS(what, std::to_string(p.codebooks));
    CHECK_HAS(what, "--sample-rate");
  }
}

TEST_CASE("formats: what is wrong in a file is named") {
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = drawn(ctx, tiny());
  save_descript(ctx, codec.parameters(), codec.config(), folder / "dac.safetensors");
  save_hugging_face(ctx, codec.parameters(), codec.config(), folder / "hf");
  const fs::path dac = folder / "dac.safetensors", hf = fs::path(folder / "hf") / "model.safetensors";
  const std::map<std::string, std::string> kept = WeightsFile::read(dac).metadata();
  const auto load = [&](const fs::path& path) { return refusal([&] { Codec::load(ctx, path); }); };
  const auto with = [&](const fs::path& from, const std::function<void(std::vector<Tensor>&)>& change) {
    const fs::path to = from.parent_path() / "changed.safetensors";
    rewrite(from, to, change, from == dac ? kept : std::map<std::string, std::string>{});
    return load(to);
  };

  SECTION("forms of weight normalisation that are mixed in a layer") {
    std::string what = with(dac, [](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "decoder.model.0.weight_g") t.name = "decoder.model.0.parametrizations.weight.original0";
    });
    for (const char* part : {"decoder.model.0 mixes", "weight_v", "original0"}) CHECK_HAS(what, part);
    what = with(dac, [](std::vector<Tensor>& all) { all.push_back({"decoder.model.0.weight", {1}, {0}}); });
    CHECK_HAS(what, "decoder.model.0 mixes");
    // Two layers may differ.
    what = with(dac, [](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name.starts_with("decoder.model.0.")) {
          std::vector<Tensor> one{t};
          to_parametrizations(one);
          t = one[0];
        }
    });
    CHECK(what.empty());
  }
  SECTION("missing and surplus tensors, in the names of the file, ten at most") {
    std::string what = with(hf, [](std::vector<Tensor>& all) {
      drop(all, "encoder.block.1.res_unit3.conv2.weight");
      drop(all, "decoder.snake1.alpha");
      all.push_back({"decoder.conv3.bias", {1}, {0}});
    });
    for (const char* part : {"missing (2): decoder.snake1.alpha, encoder.block.1.res_unit3.conv2.weight;",
                             "unexpected (1): decoder.conv3.bias"})
      CHECK_HAS(what, part);
    what = with(dac, [](std::vector<Tensor>& all) {
      for (int i = 0; i < 13; ++i) all.push_back({"extra." + std::to_string(10 + i), {1}, {0}});
    });
    CHECK_HAS(what, "unexpected (13): extra.10, ");
    CHECK_HAS(what, "extra.19 and 3 more");
    what = with(dac, [](std::vector<Tensor>& all) { drop(all, "encoder.block.0.weight_g"); });
    CHECK_HAS(what, "missing (1): encoder.block.0.weight_g");
  }
  SECTION("another shape: tensor, found, expected") {
    std::string what = with(hf, [](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "decoder.block.0.conv_t1.weight") std::swap(t.shape[1], t.shape[2]);
    });
    CHECK_HAS(what, "of another shape (1): decoder.block.0.conv_t1.weight is F32 [8, 6, 4], expected F32 [8, 4, 6]");
    what = with(dac, [](std::vector<Tensor>& all) {
      for (Tensor& t : all)
        if (t.name == "encoder.block.0.weight_g") t.shape = {1, 2, 1};
    });
    CHECK_HAS(what, "encoder.block.0.weight_g is F32 [1, 2, 1], expected F32 [2, 1, 1]");
  }
  SECTION("two tensors that differ in a prefix only") {
    CHECK_HAS(with(dac,
                   [](std::vector<Tensor>& all) {
                     all.push_back({"module.encoder.block.0.bias", {1}, {0}});
                   }),
              "two tensors are \"encoder.block.0.bias\"");
  }
  SECTION("configurations") {
    const fs::path config = folder / "hf/config.json";
    const std::string good = slurp(config);
    const auto say = [&](const char* key, const json& value) {
      spill(config, good);
      change_json(config, [&](json& j) { j[key] = value; });
      return load(hf);
    };
    CHECK_HAS(say("model_type", "encodec"), "config.json: model_type is \"encodec\", expected \"dac\"");
    CHECK_HAS(say("n_codebooks", "three"), "config.json: n_codebooks is \"three\", expected an integer");
    CHECK_HAS(say("downsampling_ratios", 6), "expected a list of integers");
    CHECK_HAS(say("n_codebooks", 4), "missing (5): quantizer.quantizers.3.codebook.weight");
    CHECK_HAS(say("encoder_hidden_size", 3), "expected F32 [3, 1, 7]");
    CHECK_HAS(say("sampling_rate", 1), "codec.sample_rate");
    CHECK_HAS(say("quantizer_dropout", "half"), "expected a number");
    spill(config, "[]");
    CHECK_HAS(load(hf), "config.json: is not a JSON object");
    // The default of upsampling_ratios is the reverse of downsampling_ratios.
    spill(config, good);
    change_json(config, [](json& j) { j.erase("upsampling_ratios"), j.erase("hidden_size"); });
    CHECK(Codec::load(ctx, hf).config().decoder_rates == std::vector<int64_t>{3, 2});
  }
  SECTION("files of PyTorch") {
    for (const std::string_view head :
         {std::string_view("PK\x03\x04\x14\0\0\0\0\0\0\0", 12), std::string_view("\x80\x02}q\0(X\x05\0\0\0abc", 14)}) {
      spill(folder / "weights.pth", head);
      const std::string what = load(folder / "weights.pth");
      CHECK_HAS(what, "weights.pth");
      CHECK_HAS(what, "scripts/convert_pth.py");
    }
  }
  SECTION("weights that are not those of DAC") {
    rewrite(dac, folder / "other.safetensors", [](std::vector<Tensor>& all) { all.resize(3); });
    CHECK_HAS(load(folder / "other.safetensors"), "are not those of DAC");
  }
}

TEST_CASE("formats: a codec that the other program does not have is not written") {
  const Folder folder;
  Context ctx({.threads = 1});
  const auto refused = [&](const std::function<void(CodecConfig&)>& change, const char* part, bool by_descript = true) {
    CodecConfig c = tiny();
    change(c);
    Codec codec(ctx, c);
    INFO(part);
    CHECK_HAS(not_for_hugging_face(c), part);
    if (by_descript) CHECK_HAS(not_for_descript(c), part);
    CHECK(not_for_descript(c).empty() == !by_descript);
    CHECK_THROWS_AS(save_hugging_face(ctx, codec.parameters(), c, folder / "hf"), Error);
    if (by_descript) CHECK_THROWS_AS(save_descript(ctx, codec.parameters(), c, folder / "d.safetensors"), Error);
  };
  refused([](CodecConfig& c) { c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean; }, "codec.quantizer");
  refused([](CodecConfig& c) { c.metric = VqMetric::euclidean; }, "codec.metric");
  refused([](CodecConfig& c) { c.activation = ActivationKind::elu; }, "codec.activation is elu");
  refused([](CodecConfig& c) { c.kernel_size = 5; }, "codec.kernel_size is 5");
  refused([](CodecConfig& c) { c.audio_channels = 2; }, "codec.audio_channels is 2");
  refused([](CodecConfig& c) { c.dilations = {1, 3}; }, "codec.dilations");
  refused([](CodecConfig& c) { c.output_tanh = false; }, "codec.output_tanh");
  refused([](CodecConfig& c) { c.decoder_rates = {2, 3}; }, "codec.decoder_rates", false);
  CHECK(folder.count() == 0);
}

TEST_CASE("formats: codes and audio of DacModel (golden)") {
  // golden/make_dac_model.py ran transformers' DacModel on this model: strides 2 and 3, whose decoder is two samples
  // shorter, because transposed convolutions of odd stride have no output padding there.
  Context ctx({.threads = 1});
  Codec codec = Codec::load(ctx, fs::path(NACRE_GOLDEN) / "dac_model/model.safetensors");
  const CodecConfig& c = codec.config();
  const auto samples = static_cast<int64_t>(std::size(golden_input));
  const int64_t frames = samples / c.hop();
  REQUIRE(samples == frames * c.hop());
  REQUIRE(std::size(golden_codes) == static_cast<size_t>(frames * c.n_codebooks));
  // A stage of stride 3 makes 3 L - 1 samples of L, and the next one twice that.
  REQUIRE(static_cast<int64_t>(std::size(golden_output)) == samples - 2);
  std::vector<float> input(std::begin(golden_input), std::end(golden_input)), output(input.size());
  std::vector<int32_t> codes(std::size(golden_codes));
  const Shape wave{.time = samples}, coded{.time = frames, .channels = c.n_codebooks};
  codec.reserve_inference(1, samples);
  codec.encode(View<const float>(input.data(), wave), View<int32_t>(codes.data(), coded));
  CHECK(std::equal(codes.begin(), codes.end(), std::begin(golden_codes)));
  codec.decode(View<const int32_t>(codes.data(), coded), View<float>(output.data(), wave));
  // The output padding can change the samples of the last frames, as far as the decoder reaches.
  const auto compared = static_cast<size_t>(samples - codec.config().decoder_context() * c.hop());
  REQUIRE(compared > input.size() / 2);
  double difference = 0, power = 0;
  for (size_t i = 0; i < compared; ++i) {
    difference += std::pow(static_cast<double>(output[i]) - golden_output[i], 2);
    power += std::pow(static_cast<double>(golden_output[i]), 2);
  }
  // 30 layers of sums of up to 56 products in float: each layer adds roundings of about 2^-24 * sqrt(56), which add up
  // to 2^-24 * sqrt(30 * 56) = 2.4e-6 of the values. The bound is four times that.
  CHECK(std::sqrt(difference / power) < 1e-5);
}
