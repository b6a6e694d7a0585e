// DAC's weights in the forms of transformers (DacModel) and of descript-audio-codec. save_hugging_face() also writes
// EncodecModel, with the texts and tensors of save_encodec.cpp. Each not_for_ function names the first key of a
// configuration that the other program lacks, and nothing is written then.
#include "nacre/formats/save_weights.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "files/owned_tensors.h"
#include "formats/encodec_exchange.h"
#include "nacre/error.h"
#include "nacre/files/atomic_file.h"
#include "nacre/files/safetensors.h"
#include "nacre/formats/weights_file.h"

namespace nacre {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
// For transformers, which refuses files without it.
const std::pair<const std::string, std::string> pytorch_metadata{"format", "pt"};

/// What both programs have in common.
std::string not_for_dac(const CodecConfig& c, const std::string& program) {
  const auto differs = [&](const std::string& key, const std::string& value) {
    return "codec." + key + " is " + value + ", which " + program + " does not have";
  };
  if (c.network != "dac") return differs("network", c.network);
  if (c.audio_channels != 1) return differs("audio_channels", std::to_string(c.audio_channels));
  if (c.quantizer != QuantizerKind::factorised) return differs("quantizer", "ema");
  if (c.metric != VqMetric::cosine) return differs("metric", "euclidean");
  if (c.activation != ActivationKind::snake) return differs("activation", str(c.activation));
  if (c.kernel_size != 7) return differs("kernel_size", std::to_string(c.kernel_size));
  if (c.dilations != std::vector<int64_t>{1, 3, 9}) return differs("dilations", ordered_json(c.dilations).dump());
  if (!c.output_tanh) return differs("output_tanh", "false");
  return "";
}

void refuse(const std::string& why) {
  if (!why.empty()) throw Error(ErrorKind::usage, "the codec cannot be exported: " + why);
}

/// w = g v / |v|, row by row. A row of zeros stays zero, as in weight_norm.h.
std::vector<float> effective(std::span<const float> v, std::span<const float> g) {
  std::vector<float> w(v.size());
  const size_t length = v.size() / g.size();
  for (size_t row = 0; row < g.size(); ++row) {
    const std::span<const float> from = v.subspan(row * length, length);
    double sum = 0;
    for (const double x : from) sum += x * x;
    const double scale = sum > 0 ? g[row] / std::sqrt(sum) : 0;
    for (size_t i = 0; i < length; ++i) w[row * length + i] = static_cast<float>(scale * from[i]);
  }
  return w;
}

/// The tensors of DacModel: weights without weight normalisation, under its names.
OwnedTensors effective_tensors(Context& ctx, const Parameters& parameters, const CodecConfig& c) {
  OwnedTensors all;
  std::vector<float> gain;
  // In order of name, so weight_g of a layer comes just before its weight_v.
  parameters.each_tensor(
      ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
        if (name.ends_with(".weight_g")) {
          gain.assign(values.begin(), values.end());
          return;
        }
        std::string theirs = hugging_face_name(name, c.encoder_rates.size(), c.decoder_rates.size());
        if (!name.ends_with(".weight_v")) return all.add(theirs, shape, {values.begin(), values.end()});
        // "weight_v" becomes "weight".
        theirs.resize(theirs.size() - std::string_view("_v").size());
        all.add(theirs, shape, effective(values, gain));
      });
  return all;
}

std::string dac_model_json(const CodecConfig& c) {
  const ordered_json all = {{"architectures", {"DacModel"}},
                            {"model_type", "dac"},
                            {"encoder_hidden_size", c.encoder_dim},
                            {"downsampling_ratios", c.encoder_rates},
                            {"decoder_hidden_size", c.decoder_dim},
                            {"upsampling_ratios", c.decoder_rates},
                            {"hidden_size", c.latent()},
                            {"hop_length", c.hop()},
                            {"n_codebooks", c.n_codebooks},
                            {"codebook_size", c.codebook_size},
                            {"codebook_dim", c.codebook_dim},
                            {"quantizer_dropout", c.quantizer_dropout},
                            {"commitment_loss_weight", 0.25},
                            {"codebook_loss_weight", 1.0},
                            {"sampling_rate", c.sample_rate},
                            {"dtype", "float32"}};
  return all.dump(2) + "\n";
}

std::string dac_preprocessor_json(const CodecConfig& c) {
  const ordered_json all = {{"feature_extractor_type", "DacFeatureExtractor"},
                            {"feature_size", 1},
                            {"hop_length", c.hop()},
                            {"padding_side", "right"},
                            {"padding_value", 0.0},
                            {"return_attention_mask", true},
                            {"sampling_rate", c.sample_rate}};
  return all.dump(2) + "\n";
}

}  // namespace

std::string not_for_hugging_face(const CodecConfig& c) {
  if (c.network == "encodec") return not_for_encodec_model(c);
  if (std::string why = not_for_dac(c, "DacModel"); !why.empty()) return why;
  if (!std::equal(c.encoder_rates.begin(), c.encoder_rates.end(), c.decoder_rates.rbegin(), c.decoder_rates.rend()))
    return "codec.decoder_rates are not the reverse of encoder_rates, which DacModel needs";
  return "";
}

std::string not_for_descript(const CodecConfig& c) { return not_for_dac(c, "descript-audio-codec"); }

void save_hugging_face(Context& ctx, const Parameters& parameters, const CodecConfig& c, const fs::path& folder) {
  refuse(not_for_hugging_face(c));
  const bool encodec = c.network == "encodec";
  const OwnedTensors all = encodec ? encodec_model_tensors(ctx, parameters) : effective_tensors(ctx, parameters, c);
  const std::string config = encodec ? encodec_model_json(c) : dac_model_json(c);
  const std::string preprocessor = encodec ? encodec_preprocessor_json(c) : dac_preprocessor_json(c);
  const auto text = [](const std::string& content) {
    return [&content](const ByteSink& sink) { sink(std::as_bytes(std::span(content.data(), content.size()))); };
  };
  // A folder that exists gets the three files one by one, the model last. A new folder appears with all of them at
  // once.
  if (std::error_code failed; fs::is_directory(folder, failed)) {
    write_file_atomically(folder / "config.json", config);
    write_file_atomically(folder / "preprocessor_config.json", preprocessor);
    write_safetensors(folder / "model.safetensors", all.list, {pytorch_metadata});
    return;
  }
  AtomicDirectory out(folder);
  out.write("config.json", text(config));
  out.write("preprocessor_config.json", text(preprocessor));
  out.write("model.safetensors", [&](const ByteSink& sink) { write_safetensors(sink, all.list, {pytorch_metadata}); });
  out.commit();
}

void save_descript(Context& ctx, const Parameters& parameters, const CodecConfig& c, const fs::path& path) {
  refuse(not_for_descript(c));
  OwnedTensors all;
  parameters.each_tensor(
      ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
        all.add(name, shape, {values.begin(), values.end()});
      });
  const ordered_json kwargs = {{"encoder_dim", c.encoder_dim},
                               {"encoder_rates", c.encoder_rates},
                               {"latent_dim", c.latent()},
                               {"decoder_dim", c.decoder_dim},
                               {"decoder_rates", c.decoder_rates},
                               {"n_codebooks", c.n_codebooks},
                               {"codebook_size", c.codebook_size},
                               {"codebook_dim", c.codebook_dim},
                               {"quantizer_dropout", c.quantizer_dropout},
                               {"sample_rate", c.sample_rate}};
  write_safetensors(path, all.list, {pytorch_metadata, {kwargs_metadata_key, kwargs.dump()}});
}

}  // namespace nacre
