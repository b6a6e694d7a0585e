#pragma once
// Discriminators: networks that tell real audio from generated audio. A discriminator is a function that records its
// steps in a plan. One discriminator may be planned several times in one plan: on real and on generated audio for its
// own training (Plan::inner, Plan::detach), and once more, frozen, for the generator's (Plan::freeze).
#include <functional>
#include <string>
#include <vector>

#include "nacre/files/fields.h"
#include "nacre/nn/layers.h"
#include "nacre/ops/adversarial_loss.h"

namespace nacre {

/// What a discriminator computes from audio [B, T, 1, 1].
struct Verdict {
  Flow logits;                   ///< higher for real audio; one value per position
  std::vector<Flow> features{};  ///< activations of all layers but the last, for feature matching
};
using Discriminator = std::function<Verdict(Plan&, Flow audio)>;

/// Layers of a discriminator that looks at the waveform itself. The defaults are those of DAC's multi-scale
/// discriminator (Kumar et al. 2023, arXiv 2306.06546), which has the shape of MelGAN's (Kumar et al. 2019, arXiv
/// 1910.06711). MelGAN itself has a slope of 0.2, and reflects the audio at the ends of the first layer.
struct ScaleDiscriminatorConfig {
  struct Layer {
    int64_t channels, taps, stride = 1, groups = 1;
  };
  /// Convolutions, each followed by a leaky ReLU. Taps are odd, and the padding is (taps - 1) / 2.
  std::vector<Layer> layers{{16, 15},          {64, 41, 4, 4},     {256, 41, 4, 16},
                            {1024, 41, 4, 64}, {1024, 41, 4, 256}, {1024, 5}};
  int64_t last_taps = 3;     ///< of the convolution to one channel, the logits
  double slope = 0.1;        ///< of the leaky ReLUs
  Norm norm = Norm::weight;  ///< of all layers: weight or none
  bool reflect = false;      ///< the padding of the first layer is a reflection, not zero; the audio must be longer
  /// The audio is halved in rate so often, each time by means of 4 samples with a padding of 1 that does not count
  /// (nacre/ops/average_pool.h), as in MelGAN.
  int64_t halvings = 0;
};
/// Registers <name>.convs.<i>.0 and <name>.conv_post in `parameters`, which must outlive the result. The discriminator
/// computes in `storage`. Throws Error(usage) for a layer that no convolution can have, an invalid slope, a norm of the
/// output, and halvings below 0 or above 30. Planning throws Error(usage) for audio that is too short.
Discriminator scale_discriminator(Parameters&, const std::string& name, const ScaleDiscriminatorConfig& = {},
                                  Storage = Storage::float32);

/// Layers of a discriminator of one period (Kong et al. 2020, arXiv 2010.05646): the audio is split into `period`
/// interleaved signals (nacre/ops/fold.h), and each is convolved along time. The defaults are those of DAC.
struct PeriodDiscriminatorConfig {
  int64_t period = 2;
  std::vector<int64_t> channels{32, 128, 512, 1024, 1024};  ///< of 5 taps; all but the last have stride 3
};
/// Registers <name>.convs.<i>.0 and <name>.conv_post. The features are the activations of `convs`. The discriminator
/// computes in `storage`. Throws Error(usage) for a period or channels below 1.
Discriminator period_discriminator(Parameters&, const std::string& name, const PeriodDiscriminatorConfig&,
                                   Storage = Storage::float32);

/// Layers of a discriminator of complex spectra in bands (Kumar et al. 2023, arXiv 2306.06546, section 3.3). Each band
/// has convolutions of its own over frames and bins; the last convolution covers the joined bands. With `full_layers`,
/// further convolutions cover them in front of the last one: the full-band stage of LDCodec's discriminator (arXiv
/// 2510.15364).
struct BandDiscriminatorConfig {
  int64_t window = 1024;  ///< samples, a multiple of 8; the hop is a quarter of it
  int64_t channels = 32;
  /// Upper ends of the bands, as fractions of the window / 2 + 1 bins, rounded down. The last one is 1.
  std::vector<double> bands{0.1, 0.25, 0.5, 0.75, 1.0};
  /// Convolutions of 3 x 3 taps over the joined bands. Their number is not published, so none is the default.
  int64_t full_layers = 0;
  int64_t full_channels = 0;  ///< of these convolutions; 0: as those of the bands
};
/// Registers <name>.band_convs.<band>.<i>.0, <name>.full_convs.<i>.0 and <name>.conv_post. The features are the
/// activations of band 0 from the first to the last layer, then those of band 1, and so on, then those of all bands.
/// Throws Error(usage) for an invalid window, for channels below 1, for full layers or channels below 0 and for a band
/// without bins.
Discriminator band_discriminator(Parameters&, const std::string& name, const BandDiscriminatorConfig&,
                                 Storage = Storage::float32);

/// Layers of a discriminator of complex spectra over all bins (EnCodec, arXiv 2210.13438, section 3.4, and its
/// published code). Frames lie inside the audio, and the window has the L2 norm 1 (nacre/ops/stft.h).
struct StftDiscriminatorConfig {
  int64_t window = 1024;  ///< samples, a multiple of 8; the hop is a quarter of it
  int64_t channels = 32;
  double slope = 0.2;  ///< of the leaky ReLUs
};
/// Registers <name>.convs.<i>.conv for i = 0 to 4 and <name>.conv_post.conv. The features are the activations of
/// `convs`. Throws Error(usage) for an invalid window or slope and for channels below 1. Planning throws Error(usage)
/// for audio that is shorter than the window.
Discriminator stft_discriminator(Parameters&, const std::string& name, const StftDiscriminatorConfig&,
                                 Storage = Storage::float32);

/// Layers of SoundStream's discriminator of complex spectra (Zeghidour et al. 2021, arXiv 2107.03312): a convolution of
/// 7 x 7 taps, six residual units that halve the number of bins, every second one that of frames too, and a convolution
/// of all bins that are left to one value. The paper has window / 2 bins: the last one is left out here. Frames lie
/// inside the audio, and the window has the L2 norm 1, as in StftDiscriminatorConfig.
struct ResidualDiscriminatorConfig {
  int64_t window = 1024;  ///< samples, a multiple of 128; the hop is a quarter of it
  int64_t channels = 32;  ///< of the first layer; the units have up to 16 times as many
  double slope = 0.2;     ///< of the leaky ReLUs, which the paper does not give
  /// Of the first layer and of the branches of the units. With Norm::weight all layers have it. Norm::layer is what the
  /// authors of EnCodec needed to train this network (arXiv 2210.13438).
  Norm norm = Norm::weight;
};
/// Registers <name>.first, <name>.units.<i>.convs.0, <name>.units.<i>.convs.1 and <name>.units.<i>.skip for i = 0 to 5,
/// and <name>.conv_post. A unit is leaky(convs.1(leaky(convs.0(x))) + skip(x)). The features are the activation of the
/// first layer, then both of every unit. Throws Error(usage) for an invalid window or slope and for channels below 1.
/// Planning throws Error(usage) for audio that is shorter than the window.
Discriminator residual_discriminator(Parameters&, const std::string& name, const ResidualDiscriminatorConfig&,
                                     Storage = Storage::float32);

/// The discriminators of a run and their training: section "discriminator" of the configuration. The defaults are those
/// of DAC (Kumar et al. 2023, arXiv 2306.06546, and the published code).
struct DiscriminatorConfig {
  std::vector<int64_t> periods{2, 3, 5, 7, 11};
  std::vector<int64_t> period_channels{32, 128, 512, 1024, 1024};
  bool waveform = false;
  std::vector<int64_t> windows{2048, 1024, 512};
  int64_t window_channels = 32, window_full_layers = 0;
  std::vector<int64_t> stft_windows{};
  int64_t stft_channels = 32;
  double stft_slope = 0.2;
  std::vector<int64_t> scales{};
  double scale_slope = 0.2;
  Norm scale_norm = Norm::weight;
  std::vector<int64_t> residual_windows{};
  int64_t residual_channels = 32;
  double residual_slope = 0.2;
  Norm residual_norm = Norm::weight;
  bool level = true;
  AdversarialKind loss = AdversarialKind::least_squares;
  double learning_rate = 1e-4;
  double beta1 = 0.8, beta2 = 0.99, weight_decay = 0.01;
  double clip = 10;
  double update_fraction = 1;
  /// Throws Error(usage) that names the invalid key.
  void check() const;
  /// Whether both describe the same networks, however they are trained.
  bool same_networks(const DiscriminatorConfig&) const;
};

template <class V>
void fields(V& v, DiscriminatorConfig& c) {
  using namespace field;
  v("periods", c.periods, list(range(2, 1024), 0, 16, "periods"),
    "periods of the discriminators of interleaved samples; empty: none");
  v("period_channels", c.period_channels, list(range(1, 4096), 1, 8, "layers"),
    "channels of their layers, of 5 taps each; all but the last layer have stride 3");
  v("waveform", c.waveform, flag(), "a discriminator of the waveform with long, grouped convolutions");
  v("windows", c.windows, described("multiples of 8, each 32 to 65536; at most 16"),
    "samples per STFT window of the discriminators of complex spectra; hop = window / 4; empty: none");
  v("window_channels", c.window_channels, range(1, 4096), "channels of their layers");
  v("window_full_layers", c.window_full_layers, range(0, 16),
    "convolutions over all bands behind those of each band, in front of the last one; 0: as in DAC");
  v("stft_windows", c.stft_windows, described("multiples of 8, each 32 to 65536; at most 16"),
    "samples per STFT window of EnCodec's discriminators of complex spectra; hop = window / 4; empty: none");
  v("stft_channels", c.stft_channels, range(1, 4096), "channels of their layers");
  v("stft_slope", c.stft_slope, range(above(0), below(1)), "slope of their leaky ReLUs below 0");
  v("scales", c.scales, described("powers of two, each 1 to 64"),
    "factors by which the rate of the audio is lowered for MelGAN's discriminators of the waveform; empty: none");
  v("scale_slope", c.scale_slope, range(above(0), below(1)), "slope of their leaky ReLUs below 0");
  v("scale_norm", c.scale_norm, words({"none", "weight"}), "normalisation of their convolutions");
  v("residual_windows", c.residual_windows, described("multiples of 128, each 128 to 65536; at most 16"),
    "samples per STFT window of SoundStream's discriminators of complex spectra; hop = window / 4; empty: none");
  v("residual_channels", c.residual_channels, range(1, 256),
    "channels of their first layer; the last has 16 times those");
  v("residual_slope", c.residual_slope, range(above(0), below(1)), "slope of their leaky ReLUs below 0");
  v("residual_norm", c.residual_norm, words({"none", "weight", "group", "layer"}),
    "normalisation: of the weights, or of outputs over an item (group) or over the channels (layer)");
  v("level", c.level, flag(), "free the audio of its mean and scale it to one peak before it is judged");
  v("loss", c.loss, words({"least_squares", "hinge", "hinge_linear"}),
    "loss of discriminators and generator; hinge_linear: hinge, with -mean of the logits for the generator");
  v("learning_rate", c.learning_rate, range(above(0), 10), "learning rate of the discriminators' AdamW");
  v("beta1", c.beta1, range(0, below(1)), "decay per step of the gradient's average");
  v("beta2", c.beta2, range(0, below(1)), "decay per step of the squared gradient's average");
  v("weight_decay", c.weight_decay, at_least(0, below(100)),
    "decoupled: a step scales weights by 1 - rate * weight_decay");
  v("clip", c.clip, at_least(0, below(1e9)).zero("none"), "gradients are scaled down to this global norm");
  v("update_fraction", c.update_fraction, range(above(0), 1),
    "fraction of the steps, drawn at random, in which discriminators are trained");
}

/// The discriminators of a configuration, as one network: all judge the same audio. With DiscriminatorConfig::level, it
/// is first freed of its mean and scaled to one peak (nacre/ops/level.h). Weights are named discriminators.<number>...,
/// numbered as in DAC's checkpoints: periods, then the waveform, then windows. After these come stft_windows, scales
/// and residual_windows.
class Discriminators {
 public:
  /// The discriminators compute in `storage`. `parameters` must outlive the object. Throws Error(usage) that names an
  /// invalid key.
  Discriminators(Parameters& parameters, const DiscriminatorConfig&, Storage storage = Storage::float32);
  /// One verdict per discriminator, in the order of names().
  std::vector<Verdict> plan(Plan&, Flow audio) const;
  /// For logs: "period_2", "waveform", "window_2048", "stft_1024", "scale_4", "residual_1024".
  const std::vector<std::string>& names() const noexcept { return names_; }

 private:
  bool level_;
  std::vector<std::string> names_;
  std::vector<Discriminator> discriminators_;
};

}  // namespace nacre
