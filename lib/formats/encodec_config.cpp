// The configuration of EnCodec's weights: keys of transformers' EncodecConfig, arguments of the package encodec, and
// shapes of tensors.
#include <algorithm>
#include <cmath>

#include "formats/encodec_exchange.h"
#include "formats/told_config.h"
#include "nacre/error.h"
#include "nacre/formats/weights_file.h"

namespace nacre {
namespace {

/// Models that were published. Shapes tell neither whether a model is causal, nor its segments.
struct Published {
  int64_t audio_channels;
  Norm norm;
  std::vector<int64_t> strides;
  int64_t n_codebooks, sample_rate;
  bool causal;
  std::vector<int64_t> codebooks_drawn = {};
  int64_t segment = 0, segment_stride = 0;
};
const std::vector<Published>& published() {
  static const std::vector<Published> all{
      {1, Norm::weight, {2, 4, 5, 8}, 32, 24000, true, {2, 4, 8, 16, 32}},
      {1, Norm::weight, {4, 4, 5, 8}, 4, 32000, false},
      {2, Norm::group, {2, 4, 5, 8}, 16, 48000, false, {2, 4, 8, 16}, 48000, 47520}};
  return all;
}

/// The keys of one program.
struct Keys {
  const char *channels, *filters, *ratios, *latent, *units, *dilation_base, *causal, *norm, *segment, *lstm, *size,
      *rate;
};
constexpr Keys of_transformers{"audio_channels",      "num_filters",          "upsampling_ratios", "hidden_size",
                               "num_residual_layers", "dilation_growth_rate", "use_causal_conv",   "norm_type",
                               "chunk_length_s",      "num_lstm_layers",      "codebook_size",     "sampling_rate"};
constexpr Keys of_package{"channels",          "n_filters",     "ratios", "dimension",
                          "n_residual_layers", "dilation_base", "causal", "norm",
                          "segment",           "lstm",          "bins",   "sample_rate"};

/// The segments of a model, whose hop is known.
void set_segments(CodecConfig& c, const ToldConfig& all, const Keys& key, bool hf) {
  all.take("normalize", c.segment_scale);
  double seconds = 0, overlap = 0.01;  // the default of the package; transformers has none
  if (!all.take(key.segment, seconds)) {
    if (c.segment_scale) all.refuse("normalize", "false without " + std::string(key.segment));
    return;
  }
  c.segment = segment_of(seconds, c.sample_rate);
  if (c.segment < c.hop())
    all.refuse(key.segment, "at least one frame of " + std::to_string(c.hop()) + " samples, or null");
  if (!all.take("overlap", overlap) && hf) all.refuse("overlap", "a number beside " + std::string(key.segment));
  c.segment_stride = stride_of(overlap, c.segment);
  if (c.segment_stride > c.segment || c.segment_stride < (c.segment + 1) / 2)
    all.refuse("overlap", "0 to 0.5, at most half of the segment's " + std::to_string(c.segment) + " samples");
}

/// Growing by a factor from 1. At most 1024^7, which int64_t cannot hold, so growth stops far above what a codec has.
std::vector<int64_t> dilations(int64_t units, int64_t base) {
  std::vector<int64_t> all(static_cast<size_t>(units), 1);
  for (size_t i = 1; i < all.size(); ++i) all[i] = std::min<int64_t>(all[i - 1] * base, 1 << 20);
  return all;
}

bool within(const std::vector<int64_t>& all, int64_t least, int64_t most) {
  return std::all_of(all.begin(), all.end(), [&](int64_t x) { return x >= least && x <= most; });
}

/// The numbers of codebooks within the bitrates, as transformers counts them: the last one is that of the model.
void set_codebooks(CodecConfig& c, const ToldConfig& all, const std::vector<double>& kilobits) {
  if (kilobits.empty()) all.refuse("target_bandwidths", "at least one number");
  const auto frames = static_cast<double>((c.sample_rate + c.hop() - 1) / c.hop());  // per second
  const auto count = [&](double bandwidth, double bits) {
    return static_cast<int64_t>(std::clamp(std::floor(1000 * bandwidth / (frames * bits)), 0.0, 1e6));
  };
  if (!all.take("n_q", c.n_codebooks)) c.n_codebooks = count(kilobits.back(), static_cast<double>(c.code_bits()));
  if (c.n_codebooks < 1 && all.has("n_q")) all.refuse("n_q", "at least 1");
  if (c.n_codebooks < 1) all.refuse("target_bandwidths", "the bitrate of a codebook at the end");
  c.codebooks_drawn.clear();
  for (const double b : kilobits)
    c.codebooks_drawn.push_back(std::clamp<int64_t>(count(b, std::log2(c.codebook_size)), 1, c.n_codebooks));
  std::sort(c.codebooks_drawn.begin(), c.codebooks_drawn.end());
  c.codebooks_drawn.erase(std::unique(c.codebooks_drawn.begin(), c.codebooks_drawn.end()), c.codebooks_drawn.end());
  if (c.codebooks_drawn == std::vector{c.n_codebooks}) c.codebooks_drawn.clear();
}

}  // namespace

CodecConfig WeightsFile::encodec_by_keys(const std::string& source) const {
  const ToldConfig all(source, told_);
  const bool hf = format_ == WeightsFormat::hugging_face_encodec;
  const Keys& key = hf ? of_transformers : of_package;
  if (hf && all.has("model_type") && all.at("model_type") != "encodec") all.refuse("model_type", "\"encodec\"");
  // The defaults of both programs, for keys that are absent, are those of the model for 24 kHz.
  CodecConfig c = CodecConfig::named("encodec-24k");
  all.take(key.rate, c.sample_rate);
  all.take(key.channels, c.audio_channels);
  all.take(key.filters, c.encoder_dim);
  all.take(key.ratios, c.decoder_rates);
  all.take(key.latent, c.latent_dim);
  all.take("kernel_size", c.kernel_size);
  all.take("residual_kernel_size", c.residual_kernel_size);
  all.take(key.lstm, c.lstm_layers);
  all.take(key.size, c.codebook_size);
  all.take(key.causal, c.causal);
  // transformers says whether there is a convolution, the package whether there is none.
  bool identity = false;
  if (hf) {
    bool convolution = true;
    all.take("use_conv_shortcut", convolution);
    identity = !convolution;
  } else {
    all.take("true_skip", identity);
  }
  c.shortcut = identity ? Shortcut::identity : Shortcut::convolution;
  int64_t units = 1, base = 2;
  all.take(key.units, units), all.take(key.dilation_base, base);
  if (units < 1 || units > 8) all.refuse(key.units, "1 to 8");
  if (base < 1 || base > 1024) all.refuse(key.dilation_base, "1 to 1024");
  c.dilations = dilations(units, base);
  std::string padding = "reflect", norm = "weight_norm";
  all.take("pad_mode", padding), all.take(key.norm, norm);
  if (padding != "reflect" && padding != "constant") all.refuse("pad_mode", "\"reflect\" or \"constant\"");
  c.padding = padding == "reflect" ? Padding::reflect : Padding::zero;
  if (norm != "weight_norm" && norm != "time_group_norm" && (hf || norm != "none"))
    all.refuse(key.norm, "\"weight_norm\" or \"time_group_norm\"");
  c.norm = norm == "weight_norm" ? Norm::weight : norm == "none" ? Norm::none : Norm::group;

  // What this library's network does not have.
  int64_t compress = 2, last = c.kernel_size, width = c.latent_dim;
  double trim = 1;
  all.take("compress", compress), all.take("last_kernel_size", last), all.take("trim_right_ratio", trim);
  if (hf) all.take("codebook_dim", width);
  if (c.audio_channels < 1 || c.audio_channels > 2) all.refuse(key.channels, "1 or 2");
  if (compress != 2) all.refuse("compress", "2");
  if (last != c.kernel_size) all.refuse("last_kernel_size", "kernel_size, " + std::to_string(c.kernel_size));
  if (trim != 1 && c.causal) all.refuse("trim_right_ratio", "1");
  if (width != c.latent_dim) all.refuse("codebook_dim", key.latent + std::string(", ") + std::to_string(c.latent_dim));

  // Computed below; values that CodecConfig::check() refuses anyway would overflow.
  if (c.sample_rate < 1 || c.sample_rate > 768000 || c.decoder_rates.empty() || c.decoder_rates.size() > 8 ||
      !within(c.decoder_rates, 1, 64) || c.encoder_dim < 1 || c.encoder_dim > 4096 || c.codebook_size < 2)
    return c;
  c.encoder_rates.assign(c.decoder_rates.rbegin(), c.decoder_rates.rend());
  c.decoder_dim = c.encoder_dim << c.encoder_rates.size();
  std::vector<double> kilobits{1.5, 3, 6, 12, 24};
  all.take("target_bandwidths", kilobits);
  set_codebooks(c, all, kilobits);
  set_segments(c, all, key, hf);
  return c;
}

CodecConfig WeightsFile::encodec_by_shapes() const {
  const auto layer = [](const char* half, size_t number) {
    return half + std::string(".layers.") + std::to_string(number);
  };
  const std::string conv = ".conv.weight_v", unit = ".block.1.conv.weight_v", lstm = ".lstm.weight_ih_l";
  const auto has = [&](const std::string& name) { return find(name).tensor != nullptr; };
  CodecConfig c = CodecConfig::named("encodec-24k");
  const std::vector<int64_t> first = shape_of(layer("encoder", 0) + conv);
  if (first[1] < 1 || first[1] > 2)
    throw Error(ErrorKind::input, find(layer("encoder", 0) + conv).tensor->name + " has " + std::to_string(first[1]) +
                                      " audio channels, expected 1 or 2");
  c.audio_channels = first[1];
  c.encoder_dim = first[0], c.kernel_size = first[2];
  c.norm = has(layer("encoder", 0) + ".norm.weight") ? Norm::group : Norm::weight;
  c.shortcut = has(layer("encoder", 1) + ".shortcut" + conv) ? Shortcut::convolution : Shortcut::identity;
  c.residual_kernel_size = shape_of(layer("encoder", 1) + unit)[2];
  // Residual units, an activation and a strided convolution; then the LSTM, if any, an activation and a convolution.
  size_t units = 0, at = 1;
  while (units < 8 && has(layer("encoder", 1 + units) + unit)) ++units;
  std::vector<std::string> strided;
  for (; has(layer("encoder", at) + unit); at += units + 2) strided.push_back(layer("encoder", at + units + 1) + conv);
  c.encoder_rates = strides_of(strided);
  c.dilations = dilations(static_cast<int64_t>(units), 2);
  c.lstm_layers = 0;
  while (c.lstm_layers < 8 && has(layer("encoder", at) + lstm + std::to_string(c.lstm_layers))) ++c.lstm_layers;
  const size_t behind = c.lstm_layers > 0 ? 1 : 0;
  c.latent_dim = shape_of(layer("encoder", at + behind + 1) + conv)[0];
  // A convolution and the LSTM, if any; then activations, transposed convolutions and residual units.
  c.decoder_dim = shape_of(layer("decoder", 0) + conv)[0];
  strided.clear();
  for (at = 1 + behind; has(layer("decoder", at + 2) + unit); at += units + 2)
    strided.push_back(layer("decoder", at + 1) + conv);
  c.decoder_rates = strides_of(strided);
  c.codebook_size = shape_of("quantizer.quantizers.0.codebook.embed")[0];
  c.n_codebooks = codebooks();
  const auto known = std::find_if(published().begin(), published().end(), [&](const Published& p) {
    return p.audio_channels == c.audio_channels && p.norm == c.norm && p.strides == c.encoder_rates &&
           p.n_codebooks == c.n_codebooks;
  });
  if (c.n_codebooks != CodecConfig::named("encodec-24k").n_codebooks) c.codebooks_drawn.clear();
  c.sample_rate = 0;  // unknown; causal, as in the configuration that this began with
  if (known == published().end()) return c;
  c.sample_rate = known->sample_rate, c.causal = known->causal, c.codebooks_drawn = known->codebooks_drawn;
  c.segment = known->segment, c.segment_stride = known->segment_stride, c.segment_scale = c.segment > 0;
  return c;
}

}  // namespace nacre
