// The configuration of audiolm-pytorch's SoundStream: shapes of tensors, and arguments of the class for what shapes do
// not tell.
#include <algorithm>
#include <array>

#include "files/text.h"
#include "formats/audiolm_exchange.h"
#include "formats/told_config.h"
#include "nacre/error.h"
#include "nacre/formats/weights_file.h"

namespace nacre {
namespace {

/// Whether each width is twice (or half) of the one before.
bool doubles(const std::vector<int64_t>& widths) {
  for (size_t i = 1; i < widths.size(); ++i)
    if (widths[i] != 2 * widths[i - 1]) return false;
  return true;
}

/// The dilations of a block's units: the class goes through its argument again and again.
std::vector<int64_t> cycled(const ToldConfig& all, const char* key, const std::vector<int64_t>& otherwise) {
  std::vector<int64_t> cycle = otherwise, dilations;
  all.take(key, cycle);
  if (cycle.empty()) all.refuse(key, "at least one number");
  for (size_t i = 0; i < audiolm_units; ++i) dilations.push_back(cycle[i % cycle.size()]);
  return dilations;
}

/// Arguments of the quantizer that change its training alone. Any other could change codes.
bool of_training(const std::string& key) {
  static constexpr std::array keys{"kmeans_init",
                                   "kmeans_iters",
                                   "sync_kmeans",
                                   "sync_codebook",
                                   "sync_affine_param",
                                   "threshold_ema_dead_code",
                                   "decay",
                                   "eps",
                                   "commitment_weight",
                                   "commitment_use_cross_entropy_loss",
                                   "orthogonal_reg_weight",
                                   "orthogonal_reg_active_codes_only",
                                   "orthogonal_reg_max_codes",
                                   "codebook_diversity_loss_weight",
                                   "codebook_diversity_temperature",
                                   "stochastic_sample_codes",
                                   "sample_codebook_temp",
                                   "straight_through",
                                   "rotation_trick",
                                   "quantize_dropout",
                                   "quantize_dropout_cutoff_index",
                                   "quantize_dropout_multiple_of"};
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

}  // namespace

/// What the class can be told and this library's topology does not have, by the tensors that it adds.
void WeightsFile::refuse_parts_of_audiolm() const {
  const auto refuse = [&](const std::string& argument, const std::string& because) {
    throw Error(ErrorKind::input, path_.string() + ": of audiolm-pytorch's SoundStream, with " + argument +
                                      ", which this library does not have: " + because);
  };
  for (const auto& [name, tensor] : named_) {
    if (name.starts_with("encoder_attn.") || name.starts_with("decoder_attn."))
      refuse("use_local_attn=True", "it has a tensor " + name);
    if (name.find(".fn.4.net.") != std::string::npos) refuse("squeeze_excite=True", "it has a tensor " + name);
    // A block's own module: in units, a number stands in front of ".fn.".
    const size_t module = name.find(".fn.");
    if ((name.starts_with("encoder.") || name.starts_with("decoder.")) && module != std::string::npos &&
        module == name.find('.', std::string_view("encoder.").size()))
      refuse("use_gate_loop_layers=True", "it has a tensor " + name);
    if (name.starts_with("rq.rvqs.") && !name.starts_with("rq.rvqs.0."))
      refuse("rq_groups greater than 1", "it has a tensor " + name);
  }
  const std::string first = std::string(audiolm_stages) + "0._codebook.embed";
  if (!named_.contains(first))
    refuse("use_lookup_free_quantizer=True or use_finite_scalar_quantizer=True", "it has no tensor " + first);
}

CodecConfig WeightsFile::audiolm_by_shapes() const {
  const auto conv = [](const char* half, size_t layer) {
    return half + std::string(".layers.") + std::to_string(layer) + ".conv.weight";
  };
  constexpr size_t length = audiolm_units + 1;  // layers of a block
  CodecConfig c = CodecConfig::named("soundstream-16k");
  const std::vector<int64_t> first = shape_of(conv("encoder", 0));
  if (first[1] != 1)
    throw Error(ErrorKind::input, find(conv("encoder", 0)).tensor->name + " has " + std::to_string(first[1]) +
                                      " channels, expected 1 (input_channels)");
  c.kernel_size = first[2];
  // Widths of the encoder behind each layer that changes them, and those of the decoder.
  std::vector<int64_t> coded{first[0]}, decoded{shape_of(conv("decoder", 0))[0]};
  std::vector<std::string> strided, transposed;
  for (size_t i = 0; i < encoder_strides_; ++i) {
    strided.push_back(conv("encoder", (i + 1) * length));
    coded.push_back(shape_of(strided.back())[0]);
  }
  for (size_t i = 0; i < decoder_strides_; ++i) {
    transposed.push_back(conv("decoder", 1 + i * length));
    decoded.push_back(shape_of(transposed.back())[1]);
  }
  c.encoder_rates = strides_of(strided), c.decoder_rates = strides_of(transposed);
  c.encoder_dim = coded[0], c.decoder_dim = decoded[0];
  // Lists are needed where widths do not double only.
  const bool doubling = doubles(coded) && doubles({decoded.rbegin(), decoded.rend()});
  if (!doubling) c.encoder_channels = coded, c.decoder_channels = decoded;
  c.latent_dim = shape_of(conv("encoder", 1 + encoder_strides_ * length))[0];
  c.codebook_size = shape_of("quantizer.quantizers.0.codebook.embed")[0];
  c.n_codebooks = codebooks();
  c.sample_rate = 0;  // unknown, as dilations and padding, which stay those of the class's defaults
  return c;
}

CodecConfig WeightsFile::audiolm_by_keys(const std::string& source) const {
  const ToldConfig all(source, told_);
  CodecConfig c = config_by_shapes();
  c.sample_rate = 16000;
  all.take("target_sample_hz", c.sample_rate);
  all.take("rq_ema_decay", c.ema_decay);
  c.dilations = cycled(all, "enc_cycle_dilations", c.dilations);
  if (cycled(all, "dec_cycle_dilations", {1, 3, 9}) != c.dilations)
    all.refuse("dec_cycle_dilations", "those of enc_cycle_dilations");
  // The class passes its argument to some convolutions only: strided ones always reflect.
  if (std::string padding; all.take("pad_mode", padding) && padding != "reflect") all.refuse("pad_mode", "\"reflect\"");
  if (all.has("rq_kwargs"))
    for (const auto& [key, value] : all.at("rq_kwargs").items())
      if (!of_training(key)) all.refuse("rq_kwargs", "no " + in_quotes(key) + ", which can change codes");
  return c;
}

}  // namespace nacre
