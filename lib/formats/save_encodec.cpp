// EnCodec's weights in the forms of transformers and of the package encodec.
#include <cmath>
#include <nlohmann/json.hpp>

#include "formats/encodec_exchange.h"
#include "nacre/error.h"
#include "nacre/files/safetensors.h"
#include "nacre/formats/save_weights.h"
#include "nacre/formats/weights_file.h"

namespace nacre {
namespace {

using nlohmann::ordered_json;

int64_t dilation_base(const CodecConfig& c) { return c.dilations.size() > 1 ? c.dilations[1] : 2; }

/// What both programs lack; "" if nothing.
std::string not_for(const CodecConfig& c, const std::string& program) {
  const auto differs = [&](const std::string& key, const std::string& value) {
    return "codec." + key + " is " + value + ", which " + program + " does not have";
  };
  if (c.network != "encodec") return differs("network", c.network);
  if (c.quantizer != QuantizerKind::ema) return differs("quantizer", "factorised");
  if (c.metric != VqMetric::euclidean) return differs("metric", "cosine");
  if (c.activation != ActivationKind::elu) return differs("activation", str(c.activation));
  if (c.output_tanh) return differs("output_tanh", "true");
  if (c.norm == Norm::layer) return differs("norm", "layer");
  // Both programs compute dilations as powers of one base.
  int64_t expected = 1;
  for (const int64_t d : c.dilations) {
    if (d != expected) return differs("dilations", ordered_json(c.dilations).dump());
    expected *= dilation_base(c);
  }
  if (!std::equal(c.encoder_rates.begin(), c.encoder_rates.end(), c.decoder_rates.rbegin(), c.decoder_rates.rend()))
    return "codec.decoder_rates are not the reverse of encoder_rates, which " + program + " needs";
  if (const int64_t width = c.encoder_dim << c.encoder_rates.size(); c.decoder_dim != width)
    return "codec.decoder_dim is " + std::to_string(c.decoder_dim) + ", where " + program + " has " +
           std::to_string(width);
  return "";
}

/// The bitrates in kbit/s of the numbers of codebooks that are drawn, with that of all codebooks at the end. Both
/// programs compute the numbers from them and round down: a bitrate is raised until they find the same number. They
/// count whole bits per code for the last one, and log2 of the number of codes for the others.
std::vector<double> bandwidths(const CodecConfig& c) {
  const auto frames = static_cast<double>((c.sample_rate + c.hop() - 1) / c.hop());
  const auto of = [&](int64_t codebooks, double bits) {
    const double least = static_cast<double>(codebooks) * (bits * frames);
    double kilobits = least / 1000;
    while (std::floor(1000 * kilobits / (bits * frames)) < static_cast<double>(codebooks) || 1000 * kilobits < least)
      kilobits = std::nextafter(kilobits, HUGE_VAL);
    return kilobits;
  };
  std::vector<double> all;
  for (const int64_t n : c.codebooks_drawn)
    if (n != c.n_codebooks) all.push_back(of(n, std::log2(static_cast<double>(c.codebook_size))));
  all.push_back(of(c.n_codebooks, static_cast<double>(c.code_bits())));
  return all;
}

const char* norm_of(const CodecConfig& c) {
  return c.norm == Norm::weight ? "weight_norm" : c.norm == Norm::group ? "time_group_norm" : "none";
}
const char* padding_of(const CodecConfig& c) { return c.padding == Padding::reflect ? "reflect" : "constant"; }
int64_t residual_taps(const CodecConfig& c) {
  return c.residual_kernel_size > 0 ? c.residual_kernel_size : c.kernel_size;
}

/// Length of a segment in seconds, and the part of it that overlaps with the next one; null without segments.
ordered_json segment_seconds(const CodecConfig& c) {
  return c.segmented() ? ordered_json(seconds_of(c.segment, c.sample_rate)) : ordered_json();
}
ordered_json segment_overlap(const CodecConfig& c) {
  return c.segmented() ? ordered_json(overlap_of(c.segment_stride, c.segment)) : ordered_json();
}

/// All tensors, under the names that `theirs` gives to ours.
template <class F>
OwnedTensors tensors(Context& ctx, const Parameters& parameters, F&& theirs) {
  OwnedTensors all;
  parameters.each_tensor(
      ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
        all.add_copy(theirs(name), shape, values);
        // A flag that both programs expect: the codebook does not wait for its first batch.
        if (const std::string_view book = ".codebook.embed"; name.ends_with(book))
          all.add(theirs(name.substr(0, name.size() - std::string_view("embed").size()) + "inited"), {1}, {1.0f});
      });
  return all;
}

/// The numbers of the decoder's layers that are transposed convolutions.
std::set<size_t> transposed_layers(const CodecConfig& c) {
  std::set<size_t> all;
  // Layer 0 is a convolution. An LSTM, if any, and an activation stand in front of the first transposed convolution.
  // Each further one follows after the residual units and an activation.
  size_t at = c.lstm_layers > 0 ? 3 : 2;
  for (size_t i = 0; i < c.decoder_rates.size(); ++i, at += c.dilations.size() + 2) all.insert(at);
  return all;
}

}  // namespace

std::string not_for_encodec_model(const CodecConfig& c) {
  const std::string program = "EncodecModel";
  if (std::string why = not_for(c, program); !why.empty()) return why;
  if (c.norm == Norm::none) return "codec.norm is none, which " + program + " does not have";
  if (c.lstm_layers == 0) return "codec.lstm_layers is 0, which " + program + " does not have";
  return "";
}

std::string not_for_encodec(const CodecConfig& c) {
  if (std::string why = not_for(c, "encodec"); !why.empty()) return why;
  if ((c.codebook_size & (c.codebook_size - 1)) != 0)
    return "codec.codebook_size is " + std::to_string(c.codebook_size) + ", where encodec has a power of 2";
  return "";
}

OwnedTensors encodec_model_tensors(Context& ctx, const Parameters& parameters) {
  return tensors(ctx, parameters, hugging_face_encodec_name);
}

std::string encodec_model_json(const CodecConfig& c) {
  const ordered_json all = {{"architectures", {"EncodecModel"}},
                            {"model_type", "encodec"},
                            {"audio_channels", c.audio_channels},
                            {"sampling_rate", c.sample_rate},
                            {"num_filters", c.encoder_dim},
                            {"upsampling_ratios", c.decoder_rates},
                            {"hidden_size", c.latent()},
                            {"kernel_size", c.kernel_size},
                            {"last_kernel_size", c.kernel_size},
                            {"residual_kernel_size", residual_taps(c)},
                            {"num_residual_layers", c.dilations.size()},
                            {"dilation_growth_rate", dilation_base(c)},
                            {"compress", 2},
                            {"num_lstm_layers", c.lstm_layers},
                            {"use_causal_conv", c.causal},
                            {"use_conv_shortcut", c.shortcut == Shortcut::convolution},
                            {"pad_mode", padding_of(c)},
                            {"norm_type", norm_of(c)},
                            {"trim_right_ratio", 1.0},
                            {"normalize", c.segment_scale},
                            {"chunk_length_s", segment_seconds(c)},
                            {"overlap", segment_overlap(c)},
                            {"codebook_size", c.codebook_size},
                            {"codebook_dim", c.latent()},
                            {"target_bandwidths", bandwidths(c)},
                            {"dtype", "float32"}};
  return all.dump(2) + "\n";
}

std::string encodec_preprocessor_json(const CodecConfig& c) {
  const ordered_json all = {{"feature_extractor_type", "EncodecFeatureExtractor"},
                            {"feature_size", c.audio_channels},
                            {"chunk_length_s", segment_seconds(c)},
                            {"overlap", segment_overlap(c)},
                            {"padding_side", "right"},
                            {"padding_value", 0.0},
                            {"return_attention_mask", true},
                            {"sampling_rate", c.sample_rate}};
  return all.dump(2) + "\n";
}

void save_encodec(Context& ctx, const Parameters& parameters, const CodecConfig& c, const std::filesystem::path& path) {
  if (const std::string why = not_for_encodec(c); !why.empty())
    throw Error(ErrorKind::usage, "the codec cannot be exported: " + why);
  const std::set<size_t> transposed = transposed_layers(c);
  const OwnedTensors all =
      tensors(ctx, parameters, [&](const std::string& name) { return encodec_name(name, transposed); });
  const ordered_json kwargs = {{"sample_rate", c.sample_rate},
                               {"channels", c.audio_channels},
                               {"target_bandwidths", bandwidths(c)},
                               {"normalize", c.segment_scale},
                               {"segment", segment_seconds(c)},
                               {"overlap", segment_overlap(c)},
                               {"dimension", c.latent()},
                               {"n_filters", c.encoder_dim},
                               {"n_residual_layers", c.dilations.size()},
                               {"ratios", c.decoder_rates},
                               {"norm", norm_of(c)},
                               {"kernel_size", c.kernel_size},
                               {"last_kernel_size", c.kernel_size},
                               {"residual_kernel_size", residual_taps(c)},
                               {"dilation_base", dilation_base(c)},
                               {"causal", c.causal},
                               {"pad_mode", padding_of(c)},
                               {"true_skip", c.shortcut == Shortcut::identity},
                               {"compress", 2},
                               {"lstm", c.lstm_layers},
                               {"trim_right_ratio", 1.0},
                               {"n_q", c.n_codebooks},
                               {"bins", c.codebook_size}};
  write_safetensors(path, all.list, {{"format", "pt"}, {kwargs_metadata_key, kwargs.dump()}});
}

}  // namespace nacre
