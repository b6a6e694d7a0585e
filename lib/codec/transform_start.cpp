// Initial values that make a codec a lapped-transform codec. The header describes the method. The layers' names are
// those of network dac (lib/systems/dac.cpp):
//
//   encoder.block.0                    audio -> pair      decoder.model.0              latent -> pairs
//   encoder.block.i.block.0 ...        residual units     decoder.model.i.block.1      strided layer, transposed
//   encoder.block.i.block.<units + 1>  strided layer      decoder.model.i.block.2 ...  residual units
//   encoder.block.<n + 2>              pairs -> latent    decoder.model.<n + 2>        pair -> audio
//
// for i = 1 ... n and n strides. All values are computed in double and rounded once, when Model stores them.
#include "nacre/codec/transform_start.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "files/text.h"
#include "nacre/ops/leaky_relu.h"

namespace nacre {
namespace {

constexpr double pi = std::numbers::pi;
// Chosen for training; the start computes the same with any: see `scale` in the header.
constexpr double trunk_gain = 8;
constexpr double direction_length = 16;
/// Used with ELU and tanh, which are linear only for small signals.
constexpr double small_gain = 1.0 / 64;

/// The term c (2u - sin(2 a u) / a) of a step from u towards atanh(u).
struct OddTerm {
  double c, a;
};
using OddStep = std::vector<OddTerm>;
/// One to three steps, one per residual unit, with one or two terms each. A term is the difference of two channels,
/// each about 2 c u. Noise that training adds to the channels does not cancel, so |c| is at most 0.6 / steps. Under
/// that bound, c and a minimise the error of tanh(steps(u)) - u over amplitudes distributed as in speech (a mixture of
/// Laplacians of scale 0.05, 0.12 and 0.3). The error for 1, 2 and 3 steps is -31.8, -34.8, -41.8 dB with one term and
/// -38.1, -47.0, -55.6 dB with two (tests/golden/fit_atanh.py).
std::vector<OddStep> towards_atanh(int64_t steps, bool two_terms) {
  if (!two_terms) {
    if (steps == 1) return {{{0.6, 0.8194}}};
    if (steps == 2) return {{{0.3, 1.7613}}, {{-0.0599, 2.8058}}};
    return {{{0.2, 1.5323}}, {{-0.072, 2.6366}}, {{0.2, 1.3878}}};
  }
  if (steps == 1) return {{{0.6, 1.3825}, {-0.1594, 2.5463}}};
  if (steps == 2) return {{{0.3, 0.9291}, {0.3, 0.9291}}, {{-0.1492, 1.7718}, {0.3, 0.9347}}};
  return {{{-0.0884, 2.9634}, {0.2, 1.5236}}, {{0.2, 1.3814}, {0.2, 1.3796}}, {{-0.1746, 1.2291}, {0.2, 0.6532}}};
}

/// Positions in front of the first sample that a strided layer of the codec reads: its padding on the left.
int64_t strided_padding(int64_t stride) { return (stride + 1) / 2; }

/// A weight in file layout: [first, second, taps]. That is [out, in, taps] for a convolution and [in, out, taps] for a
/// transposed one.
struct Taps {
  int64_t first = 0, second = 0, taps = 0;
  std::vector<double> values;

  Taps(int64_t f, int64_t s, int64_t t) : first(f), second(s), taps(t), values(static_cast<size_t>(f * s * t), 0.0) {}
  double& at(int64_t f, int64_t s, int64_t t) { return values[static_cast<size_t>((f * second + s) * taps + t)]; }
  double at(int64_t f, int64_t s, int64_t t) const { return values[static_cast<size_t>((f * second + s) * taps + t)]; }
};

/// Converts a layer between signals to a layer between their pairs: [2 first, 2 second, taps].
Taps paired(const Taps& w, double gain) {
  Taps p(2 * w.first, 2 * w.second, w.taps);
  for (int64_t f = 0; f < p.first; ++f)
    for (int64_t s = 0; s < p.second; ++s)
      for (int64_t t = 0; t < w.taps; ++t)
        // Half of the difference of a pair is its signal u; the outputs are +w u and -w u.
        p.at(f, s, t) = ((f + s) % 2 == 0 ? 0.5 : -0.5) * gain * w.at(f / 2, s / 2, t);
  return p;
}

/// The strided layer that applies the transform to `phases` signals: [bands, phases, 2 rate taps].
Taps lapped_transform(int64_t bands, int64_t phases, int64_t rate) {
  const auto n = static_cast<double>(phases * rate);
  Taps w(bands, phases, 2 * rate);
  for (int64_t k = 0; k < bands; ++k)
    for (int64_t j = 0; j < phases; ++j)
      for (int64_t t = 0; t < 2 * rate; ++t) {
        // Tap t of phase j is sample t * phases + j of the window of 2n samples.
        const double m = static_cast<double>(t * phases + j) + 0.5;
        w.at(k, j, t) = std::sqrt(2 / n) * std::sin(pi * m / (2 * n)) *
                        std::cos(pi / n * (m + n / 2) * (static_cast<double>(k) + 0.5));
      }
  return w;
}
/// The strided layer that distributes samples: sample rate t + q of signal j becomes signal q phases + j at time t.
Taps polyphase(int64_t phases, int64_t rate) {
  Taps w(phases * rate, phases, 2 * rate);
  for (int64_t q = 0; q < rate; ++q)
    for (int64_t j = 0; j < phases; ++j) w.at(q * phases + j, j, strided_padding(rate) + q) = 1;
  return w;
}

/// The strided layers, from the one next to the waveform to the one next to the latent. A layer of stride r turns
/// `phases` signals (the product of the strides before it) into phases * r signals at a rate r times lower; the last
/// one turns them into bands.
std::vector<Taps> strided(const std::vector<int64_t>& rates, int64_t bands) {
  std::vector<Taps> layers;
  int64_t phases = 1;
  for (size_t i = 0; i < rates.size(); ++i) {
    // All but the last one only distribute samples, so that the transform layer reads every sample of its window.
    layers.push_back(i + 1 < rates.size() ? polyphase(phases, rates[i]) : lapped_transform(bands, phases, rates[i]));
    phases *= rates[i];
  }
  return layers;
}

bool ends_in_snake(const CodecConfig& c) {
  return c.activation == ActivationKind::snake || c.activation == ActivationKind::snake_beta;
}

/// The factor by which an activation scales a pair's signal (half of the difference of its channels).
double left_by(ActivationKind kind) {
  return kind == ActivationKind::leaky_relu ? (1 + static_cast<double>(LeakyReluForward<float>{}.slope)) / 2 : 1.0;
}

/// The model's tensors while they are rewritten.
class Model {
 public:
  Model(Context& ctx, Parameters& parameters) : ctx_(ctx), parameters_(parameters) {
    parameters.each_tensor(ctx,
                           [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
                             tensors_[name] = {shape, {v.begin(), v.end()}};
                           });
  }
  Taps weight(const std::string& layer) const {
    const Tensor &v = tensors_.at(layer + ".weight_v"), &g = tensors_.at(layer + ".weight_g");
    Taps w(v.shape[0], v.shape[1], v.shape[2]);
    const size_t length = w.values.size() / static_cast<size_t>(w.first);
    for (size_t r = 0; r < static_cast<size_t>(w.first); ++r) {
      // Weight normalisation: w = g v / |v|, row by row. In double, because the layers are combined.
      const double scale = static_cast<double>(g.values[r]) / norm(v.values, r, length);
      for (size_t i = 0; i < length; ++i)
        w.values[r * length + i] = scale * static_cast<double>(v.values[r * length + i]);
    }
    return w;
  }
  /// Sets weight_v and weight_g. A row of zeros keeps its direction and gets gain 0. `direction` is the length of the
  /// directions; 0 keeps a row's own norm, or for a row of zeros its previous length.
  void set_weight(const std::string& layer, const Taps& w, double direction) {
    Tensor &v = tensors_.at(layer + ".weight_v"), &g = tensors_.at(layer + ".weight_g");
    const size_t length = w.values.size() / static_cast<size_t>(w.first);
    for (size_t r = 0; r < static_cast<size_t>(w.first); ++r) {
      const double gain = norm(w.values, r, length), old = norm(v.values, r, length);
      g.values[r] = static_cast<float>(gain);
      for (size_t i = r * length; i < (r + 1) * length; ++i)
        v.values[i] =
            static_cast<float>(gain > 0 ? w.values[i] / gain * (direction > 0 ? direction : gain)
                                        : static_cast<double>(v.values[i]) / old * (direction > 0 ? direction : old));
    }
  }
  std::vector<float>& bias(const std::string& layer) { return tensors_.at(layer + ".bias").values; }
  std::vector<float>& tensor(const std::string& name) { return tensors_.at(name).values; }
  void write() {
    for (const auto& [name, t] : tensors_) parameters_.set_tensor(ctx_, name, t.shape, t.values);
    parameters_.refresh(ctx_);
  }

 private:
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  template <class T>
  static double norm(const std::vector<T>& v, size_t row, size_t length) {
    double sum = 0;
    for (size_t i = row * length; i < (row + 1) * length; ++i)
      sum += static_cast<double>(v[i]) * static_cast<double>(v[i]);
    return std::sqrt(sum);
  }
  Context& ctx_;
  Parameters& parameters_;
  std::map<std::string, Tensor> tensors_;
};

/// Sets the first output channels of a convolution to the trunk, which reads no channels besides its own. `trunk` is a
/// part of the layer's weight, with as many taps: [trunk.first of out, trunk.second of in, taps].
void set_rows(Model& m, const std::string& layer, const Taps& trunk) {
  Taps w = m.weight(layer);
  for (int64_t f = 0; f < trunk.first; ++f)
    for (int64_t s = 0; s < w.second; ++s)
      for (int64_t t = 0; t < w.taps; ++t) w.at(f, s, t) = s < trunk.second ? trunk.at(f, s, t) : 0.0;
  m.set_weight(layer, w, direction_length);
  // The trunk carries the signal without an offset. The biases of the other channels stay as drawn.
  std::fill_n(m.bias(layer).begin(), trunk.first, 0.0f);
}
/// The same for a transposed convolution, which is stored as [in, out, taps]. The trunk's outputs read only the trunk's
/// inputs.
void set_columns(Model& m, const std::string& layer, const Taps& trunk) {
  Taps w = m.weight(layer);
  for (int64_t f = 0; f < w.first; ++f)
    for (int64_t s = 0; s < trunk.second; ++s)
      for (int64_t t = 0; t < w.taps; ++t) w.at(f, s, t) = f < trunk.first ? trunk.at(f, s, t) : 0.0;
  m.set_weight(layer, w, direction_length);
  std::fill_n(m.bias(layer).begin(), trunk.second, 0.0f);
}

/// Makes a residual unit the identity. Its second convolution gets gain 0 and keeps its directions, so that training
/// can open it again.
void close_unit(Model& m, const std::string& unit) {
  Taps w = m.weight(unit + ".block.3");
  std::fill(w.values.begin(), w.values.end(), 0.0);
  m.set_weight(unit + ".block.3", w, 0);
}

/// Makes a residual unit add the step's terms to the pair (0, 1), which carries `gain` times x. A term uses a pair of
/// the unit's inner channels: Snake of (a x - pi/4) / a and Snake of (-a x - pi/4) / a differ by 2x - sin(2 a x) / a.
void open_unit(Model& m, const std::string& unit, const OddStep& step, double gain, double left, bool log_scale) {
  Taps wide = m.weight(unit + ".block.1"), narrow = m.weight(unit + ".block.3");
  std::fill(narrow.values.begin(), narrow.values.end(), 0.0);
  for (int64_t c = 0; c < 2 * static_cast<int64_t>(step.size()); ++c) {
    const OddTerm& term = step[static_cast<size_t>(c / 2)];
    const double sign = c % 2 == 0 ? 1 : -1;
    for (int64_t s = 0; s < wide.second; ++s)
      for (int64_t t = 0; t < wide.taps; ++t) wide.at(c, s, t) = 0;
    // The middle tap alone: the term works sample by sample.
    wide.at(c, 0, wide.taps / 2) = sign / (2 * gain * left);
    wide.at(c, 1, wide.taps / 2) = -sign / (2 * gain * left);
    const auto i = static_cast<size_t>(c);
    m.bias(unit + ".block.1")[i] = static_cast<float>(-pi / (4 * term.a));
    // SnakeBeta stores the logarithms of its two parameters; alpha = beta makes it Snake.
    const double alpha = log_scale ? std::log(term.a) : term.a;
    m.tensor(unit + ".block.2.alpha")[i] = static_cast<float>(alpha);
    if (log_scale) m.tensor(unit + ".block.2.beta")[i] = static_cast<float>(alpha);
    narrow.at(0, c, 0) = sign * term.c * gain;
    narrow.at(1, c, 0) = -sign * term.c * gain;
  }
  m.bias(unit + ".block.3")[0] = m.bias(unit + ".block.3")[1] = 0;
  m.set_weight(unit + ".block.1", wide, direction_length);
  m.set_weight(unit + ".block.3", narrow, direction_length);
}

}  // namespace

TransformStart transform_start_of(const CodecConfig& c) {
  const auto refused = [](std::string why) { return TransformStart{.bands = 0, .refused = std::move(why)}; };
  if (c.network != "dac") return refused("network is " + in_quotes(c.network) + ", expected \"dac\"");
  if (c.two_rates()) return refused("long_codebooks is " + std::to_string(c.long_codebooks) + ", expected 0");
  if (c.audio_channels != 1) return refused("audio_channels is " + std::to_string(c.audio_channels) + ", expected 1");
  // A layer of `width` channels in front of a strided one has to carry `phases` pairs.
  const auto narrow = [&](const char* half_of, int64_t layer, int64_t width, int64_t phases) {
    return refused(std::string(half_of) + " layer " + std::to_string(layer) + " has " + std::to_string(width) +
                   " channels, expected " + std::to_string(2 * phases) + " or more");
  };
  const int64_t e = c.encoder_rates.back(), d = c.decoder_rates.front();
  // The padding of the layers beside the latent is in units of their own phases. The windows of both transforms
  // coincide if both paddings are the same part of a stride.
  if (strided_padding(e) * d != strided_padding(d) * e)
    return refused(
        "the strides next to the latent are " + std::to_string(e) + " (encoder) and " + std::to_string(d) +
        " (decoder), expected equal or both even, because their padding sets the place of the transform's windows");
  // Layers that distribute samples must carry all of them. The transform layer may omit bands.
  int64_t phases = 1, width = c.encoder_dim, layer = 0;
  for (const int64_t rate : c.encoder_rates) {
    if (2 * phases > width) return narrow("encoder", layer, width, phases);
    phases *= rate, width *= 2, ++layer;
  }
  // A band takes one channel of the latent and a pair on each side of it.
  const int64_t bands = std::min({c.hop(), c.latent(), width / 2, c.decoder_dim / 2});
  width = c.decoder_dim, layer = 0;
  for (const int64_t rate : c.decoder_rates) {
    phases /= rate, width /= 2, ++layer;
    if (2 * phases > width) return narrow("decoder", layer, width, phases);
  }
  return {.bands = bands, .refused = ""};
}

TransformStart transform_start(Context& ctx, Parameters& parameters, const CodecConfig& c) {
  const TransformStart start = transform_start_of(c);
  if (!start.refused.empty()) throw Error(ErrorKind::usage, "transform start: " + start.refused);
  Model m(ctx, parameters);
  const double left = left_by(c.activation);
  const double gain =
      c.activation == ActivationKind::elu || c.activation == ActivationKind::tanh ? small_gain : trunk_gain;
  const auto units = static_cast<int64_t>(c.dilations.size());  // residual units of a block
  const int64_t bands = start.bands, centre = c.kernel_size / 2;
  const auto at = [](const std::string& before, int64_t i) { return before + std::to_string(i); };

  const std::string encoder = "encoder.block.", decoder = "decoder.model.";
  // Encoder: the first layer makes the pair (gain x, -gain x).
  Taps in(2, 1, c.kernel_size);
  in.at(0, 0, centre) = gain, in.at(1, 0, centre) = -gain;
  set_rows(m, at(encoder, 0), in);
  const std::vector<Taps> analysis = strided(c.encoder_rates, bands);
  const auto blocks = static_cast<int64_t>(analysis.size());
  for (int64_t i = 0; i < blocks; ++i) {
    const std::string block = at(encoder, i + 1) + ".block.";
    for (int64_t u = 0; u < units; ++u) close_unit(m, at(block, u));
    // An activation precedes each of these layers and scales a pair by `left`.
    set_rows(m, at(block, units + 1), paired(analysis[static_cast<size_t>(i)], 1 / left));
  }
  // The last layer joins each pair to one channel of the latent and takes the gain away.
  Taps out(c.latent(), m.weight(at(encoder, blocks + 2)).second, 3);
  for (int64_t i = 0; i < bands; ++i) {
    out.at(i, 2 * i, 1) = 1 / (2 * left * gain);
    out.at(i, 2 * i + 1, 1) = -1 / (2 * left * gain);
  }
  // Channels of the latent behind the bands keep their random weights.
  set_rows(m, at(encoder, blocks + 2), out);

  // Decoder: the same in reverse. Transposed layers with the same weights are the adjoint.
  Taps first(2 * bands, c.latent(), c.kernel_size);
  for (int64_t i = 0; i < bands; ++i) first.at(2 * i, i, centre) = gain, first.at(2 * i + 1, i, centre) = -gain;
  set_rows(m, at(decoder, 0), first);
  std::vector<int64_t> outward(c.decoder_rates.rbegin(), c.decoder_rates.rend());
  const std::vector<Taps> synthesis = strided(outward, bands);
  const auto layers = static_cast<int64_t>(synthesis.size());
  for (int64_t i = 0; i < layers; ++i) {
    const std::string block = at(decoder, i + 1) + ".block.";
    set_columns(m, block + "1", paired(synthesis[static_cast<size_t>(layers - 1 - i)], 1 / left));
    for (int64_t u = 0; u < units; ++u) close_unit(m, at(block, 2 + u));
  }
  // Channels of the last block, which halve with every block. Two terms need two pairs.
  const int64_t width = c.decoder_dim >> layers;
  // The units in front of the final tanh approximate its inverse (docs/decisions/tanh-inverse-at-start.md). Other
  // activations cannot make these terms, so the tanh then distorts loud samples.
  if (c.output_tanh && ends_in_snake(c)) {
    int64_t unit = 2;
    for (const OddStep& step : towards_atanh(units, width >= 4))
      open_unit(m, at(at(decoder, layers) + ".block.", unit++), step, gain, left,
                c.activation == ActivationKind::snake_beta);
  }
  const std::string last = at(decoder, layers + 2);
  // The last layer joins the pair to the waveform.
  Taps y(1, m.weight(last).second, c.kernel_size);
  y.at(0, 0, centre) = 1 / (2 * left * gain), y.at(0, 1, centre) = -1 / (2 * left * gain);
  set_rows(m, last, y);
  m.write();
  return start;
}

}  // namespace nacre
