// SoundStream's weights in the form of audiolm-pytorch.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "files/owned_tensors.h"
#include "formats/audiolm_exchange.h"
#include "nacre/error.h"
#include "nacre/files/safetensors.h"
#include "nacre/formats/save_weights.h"
#include "nacre/formats/weights_file.h"
#include "systems/seanet.h"

namespace nacre {
namespace {

using nlohmann::ordered_json;
constexpr int64_t taps = 7;  // of all convolutions of stride 1 but the encoder's last one and those of one tap

bool is_reverse(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  return std::equal(a.begin(), a.end(), b.rbegin(), b.rend());
}

}  // namespace

std::string not_for_audiolm(const CodecConfig& c) {
  const auto differs = [](const std::string& key, const std::string& value) {
    return "codec." + key + " is " + value + ", which audiolm-pytorch does not have";
  };
  const auto other_taps = [](int64_t x) { return x != taps; };
  if (c.network != "soundstream") return differs("network", c.network);
  if (c.audio_channels != 1) return differs("audio_channels", std::to_string(c.audio_channels));
  if (c.quantizer != QuantizerKind::ema) return differs("quantizer", "factorised");
  if (c.metric != VqMetric::euclidean) return differs("metric", "cosine");
  if (c.activation != ActivationKind::elu) return differs("activation", str(c.activation));
  if (c.activation_order != ActivationOrder::after) return differs("activation_order", "before");
  if (c.output_tanh) return differs("output_tanh", "true");
  if (!c.causal) return differs("causal", "false");
  // Strided convolutions of the class reflect, whatever it is told.
  if (c.padding != Padding::reflect) return differs("padding", "zero");
  if (c.norm != Norm::none)
    return differs("norm", c.norm == Norm::weight ? "weight" : c.norm == Norm::group ? "group" : "layer");
  if (c.shortcut != Shortcut::identity) return differs("shortcut", "convolution");
  // The class conditions both halves, in other places.
  if (c.denoise != Denoise::none) return differs("denoise", c.denoise == Denoise::encoder ? "encoder" : "decoder");
  if (c.lstm_layers != 0) return differs("lstm_layers", std::to_string(c.lstm_layers));
  if (c.residual_width != 1)
    return "codec.residual_width is not 1, so units have a branch of another width, which audiolm-pytorch does not "
           "have";
  if (c.kernel_size != taps) return differs("kernel_size", std::to_string(c.kernel_size));
  if (c.residual_kernel_size != 0 && c.residual_kernel_size != taps)
    return differs("residual_kernel_size", std::to_string(c.residual_kernel_size));
  if (std::any_of(c.residual_kernel_sizes.begin(), c.residual_kernel_sizes.end(), other_taps))
    return differs("residual_kernel_sizes", ordered_json(c.residual_kernel_sizes).dump());
  if (c.dilations.size() != audiolm_units) return differs("dilations", ordered_json(c.dilations).dump());
  if (c.upsampling_strides != 2) return differs("upsampling_strides", std::to_string(c.upsampling_strides));
  if (!c.latent_convolutions) return differs("latent_convolutions", "false");
  if (!is_reverse(c.decoder_rates, c.encoder_rates))
    return "codec.decoder_rates are not the reverse of encoder_rates, which audiolm-pytorch needs";
  // The class is told multiples of its first width, for both halves at once.
  const std::vector<int64_t> widths = systems::encoder_widths(c);
  if (!is_reverse(systems::decoder_widths(c), widths))
    return "the decoder's widths are not the reverse of the encoder's, which audiolm-pytorch needs";
  if (std::any_of(widths.begin(), widths.end(), [&](int64_t x) { return x % widths[0] != 0; }))
    return "codec.encoder_channels are not multiples of the first one, which audiolm-pytorch needs";
  return "";
}

void save_audiolm(Context& ctx, const Parameters& parameters, const CodecConfig& c, const std::filesystem::path& path) {
  if (const std::string why = not_for_audiolm(c); !why.empty())
    throw Error(ErrorKind::usage, "the codec cannot be exported: " + why);
  const std::string_view embed = "._codebook.embed", embed_avg = "._codebook.embed_avg",
                         count = "._codebook.cluster_size";
  OwnedTensors all;
  parameters.each_tensor(
      ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
        const std::string theirs = audiolm_name(name, c.encoder_rates.size());
        std::vector<int64_t> shaped = shape;
        // One head, and a flag: the codebook does not wait for its first batch.
        if (theirs.ends_with(embed) || theirs.ends_with(embed_avg) || theirs.ends_with(count))
          shaped.insert(shaped.begin(), 1);
        all.add_copy(theirs, shaped, values);
        if (theirs.ends_with(embed))
          all.add(theirs.substr(0, theirs.size() - std::string_view("embed").size()) + "initted", {1}, {1.0f});
      });
  std::vector<int64_t> multiples;
  const std::vector<int64_t> widths = systems::encoder_widths(c);
  for (size_t i = 1; i < widths.size(); ++i) multiples.push_back(widths[i] / widths[0]);
  const ordered_json kwargs = {{"channels", widths[0]},
                               {"strides", c.encoder_rates},
                               {"channel_mults", multiples},
                               {"codebook_dim", c.latent()},
                               {"codebook_size", c.codebook_size},
                               {"rq_num_quantizers", c.n_codebooks},
                               {"rq_ema_decay", c.ema_decay},
                               {"enc_cycle_dilations", c.dilations},
                               {"dec_cycle_dilations", c.dilations},
                               {"target_sample_hz", c.sample_rate},
                               {"use_local_attn", false},
                               {"pad_mode", "reflect"}};
  write_safetensors(path, all.list, {{"format", "pt"}, {kwargs_metadata_key, kwargs.dump()}});
}

}  // namespace nacre
