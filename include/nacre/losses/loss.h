#pragma once
// Losses on waveforms, and the balancing of their gradients. A loss is a step of one or more terms. Each term has a
// name, a weight, and a branch of the estimate that receives its gradient. The balancer joins the gradients of the
// branches. Logs, reports and checkpoints refer to terms by name.
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nacre/files/fields.h"
#include "nacre/nn/plan.h"
#include "nacre/ops/balancer.h"
#include "nacre/ops/spectral_loss.h"

namespace nacre {

struct LossConfig {
  double waveform = 1, stft = 1, mel = 1;
  double vq = 1;
  bool vq_mean = false;
  double adversarial = 0, feature = 1;
  bool feature_relative = false;
  int64_t adversarial_start = 0;
  bool orthogonal = false;
  bool balanced = true;
  double balancer_decay = 0.999;
  BalancerNorm balancer_norm = BalancerNorm::batch;
  std::vector<int64_t> windows{64, 256, 1024};
  std::vector<int64_t> mels{10, 40, 80};
  MelScale mel_scale = MelScale::slaney;
  MelKind mel_kind = MelKind::log;
  double mel_fmin = 0;
  double mel_excess = 1, mel_transient = 0, mel_transient_rise = 10;

  /// Throws Error(usage) that names the invalid key.
  void check(int64_t sample_rate) const;
  /// The scales of the spectral losses, with equal weights that sum to one. With MelKind::power, each term has its own
  /// scales, those of the STFT only if its weight is positive, and half of a mel scale's weight is for the logarithm.
  /// With MelKind::norms, mel_log is sqrt(window / 2) times mel_magnitude, as in L_rec of arXiv 2107.03312.
  SpectralConfig spectral(int64_t sample_rate) const;
};

template <class V>
void fields(V& v, LossConfig& c) {
  using namespace field;
  v("waveform", c.waveform, range(0, 1e6),
    "weight of the L1 distance of waveforms; with loss.balanced this weight, stft and mel are shares of the gradient "
    "at the waveform");
  v("stft", c.stft, range(0, 1e6), "weight of the distance of STFT magnitudes and their logarithms");
  v("mel", c.mel, range(0, 1e6), "weight of the distance of logarithmic mel spectra");
  v("vq", c.vq, range(0, 1e6), "weight of the commitment term at the latent, outside the balancer");
  v("vq_mean", c.vq_mean, flag(), "the commitment is the mean over the codebooks that a batch uses, not the sum");
  v("adversarial", c.adversarial, range(0, 1e6).zero("no discriminators"),
    "weight of the generator's loss against discriminators (section discriminator)");
  v("feature", c.feature, range(0, 1e6), "weight of feature matching; used with loss.adversarial only");
  v("feature_relative", c.feature_relative, flag(),
    "divide each distance of feature matching by the mean size of the recorded audio's activation");
  v("adversarial_start", c.adversarial_start, at_least(0),
    "steps before adversarial and feature act; the discriminators train from the first step");
  v("orthogonal", c.orthogonal, flag(),
    "remove the part along the quantisation error from the encoder's gradient (ops/rvq.h); codec.quantizer ema only");
  v("balanced", c.balanced, flag(), "EnCodec's balancer; false: plain weighted sum");
  v("balancer_decay", c.balancer_decay, range(0, below(1)), "decay of the moving averages of gradient norms");
  v("balancer_norm", c.balancer_norm, words({"batch", "item"}),
    "norm of a gradient in the balancer: over the batch, or the mean of the norms of its items");
  v("windows", c.windows, described("multiples of 4, each 8 to 65536"), "samples per STFT window; hop = window / 4");
  v("mels", c.mels,
    described("one per window, each 0 to half of it; loss.mel_kind power, norms: to 4 times it, at most 1024"),
    "mel bands per window; 0: no mel term there");
  v("mel_scale", c.mel_scale, words({"slaney", "htk"}), "frequency scale of the mel bands");
  v("mel_kind", c.mel_kind, words({"log", "power", "norms"}),
    "log: the logarithms of mel magnitudes; power: EnCodec's distance of mel powers and their logarithms; norms: "
    "SoundStream's L1 norm of mel magnitudes and L2 norm of their logarithms, over the bands of a frame");
  v("mel_fmin", c.mel_fmin, described("0 to below half the sample rate"), "lowest frequency of the mel bands in Hz");
  v("mel_excess", c.mel_excess, range(1, 1000),
    "weight of a mel band in which the decoded audio has more than the recorded; 1: none; loss.mel_kind log only");
  v("mel_transient", c.mel_transient, range(0, 1000),
    "added to the weight 1 of a mel frame whose recorded level rises by loss.mel_transient_rise or more over the frame "
    "before, in proportion for less; 0: none; loss.mel_kind log only");
  v("mel_transient_rise", c.mel_transient_rise, range(0.1, 100), "rise in dB; used with loss.mel_transient only");
}

/// The part of a term that is known before it is planned.
struct TermSpec {
  /// Key in logs and checkpoints: <name>/loss, valid/<name>, valid/share_<name>. It must not be a key of other figures
  /// (loss, vq, snr, mel_distance, ...; lib/training/trainer_report.cpp).
  std::string name;
  std::string title;  ///< name in text and charts
  double weight = 1;
  /// Part of the sum that is shown as the loss. Losses against a discriminator are not: they depend on its state.
  bool in_sum = true;
};
/// What a loss compares, and where it writes its values. Channels that are coded together are items of their own.
struct Signals {
  std::span<const Flow> estimates;  ///< [B, T, 1, 1]: one branch per term (Loss::joint: one), all with the same value
  View<const float> target;         ///< [B, T, 1, 1]
  View<const int32_t> lengths;      ///< [B]: valid samples per item; empty: all
  View<float> values;               ///< [terms] =, unweighted
};
/// A loss. `plan` records a step (or several, such as a frozen discriminator and a step behind it) that reads every
/// branch. The backward passes compute the values and the gradient of each term with respect to its branch, unweighted.
struct Loss {
  std::vector<TermSpec> terms;
  std::function<void(Plan&, const Signals&)> plan;
  /// All terms share one branch, and the loss applies their weights itself. The branch has the sum of their gradients.
  bool joint = false;
};

/// Declares that a loss reads a branch of the estimate. Ops of losses overwrite the gradient, so the loss must be the
/// last reader of its branch: the gradient of a later one would be lost, and the function throws Error(usage).
Input<float> read_branch(const Step&, Flow branch);

/// L1 distance of the samples: term "waveform".
Loss waveform_loss_of(const LossConfig&);
/// Distances of spectra over LossConfig::windows, computed together: terms "stft" and "mel".
Loss spectral_loss_of(const LossConfig&, int64_t sample_rate);
/// All losses of a configuration. The order of their terms is the order in logs and in the balancer. Throws
/// Error(usage) that names an invalid key.
std::vector<Loss> losses_of(const LossConfig&, int64_t sample_rate);
/// The title of a term of losses_of(); for other names, the name itself.
std::string term_title(const std::string& name);

/// Branches of one activation. Each has the activation's value and a gradient of its own.
struct Branches {
  int step = 0;  ///< its backward pass joins the gradients
  std::vector<Flow> flows{};
  View<const float> shares{};  ///< [branches]: share of each branch in the joint gradient, as applied
  View<float> state{};         ///< [2 * branches]: state of the op `balancer` (nacre/ops/balancer.h)
};
/// A fork whose backward pass joins the gradients of its branches by the op `balancer`.
class GradientBalancer {
 public:
  GradientBalancer(double decay, bool balanced, BalancerNorm norm = BalancerNorm::batch)
      : decay_(decay), balanced_(balanced), norm_(norm) {}
  /// One branch per weight, at most balancer_max. Steps that read x before may add to its gradient, outside of the
  /// balance. `gates` [branches], if given, are factors of the weights that may change between runs. `channels`: as
  /// many consecutive items are one in BalancerNorm::item. Throws Error(usage) if a later step passes a gradient to x,
  /// and if the number of items is not a multiple of `channels`.
  Branches plan(Plan&, Flow x, std::span<const double> weights, View<const float> gates = {},
                int64_t channels = 1) const;

 private:
  double decay_;
  bool balanced_;
  BalancerNorm norm_;
};

/// The losses of a configuration, planned on one estimate.
struct PlannedLosses {
  int step = 0;  ///< after its backward pass, values and shares are known
  std::vector<TermSpec> terms{};
  std::vector<size_t> branch{};  ///< [terms]: the term's branch; terms of a joint loss have the same one
  std::vector<size_t> leader{};  ///< [branches]: the first term of each branch, by which its state is named
  View<const float> values{};    ///< [terms]: unweighted
  View<const float> shares{};    ///< [branches]: share of each branch in the gradient, as applied
  View<float> balancer_state{};  ///< [2 * branches]: saved in checkpoints
  View<float> gates{};           ///< [branches]: factors of the weights; empty without `more`
};
/// Plans losses_of(config), and `more` after them, on branches of `estimate` [B, T, 1, 1]. With `more`, the caller sets
/// the gates before the first run. `channels`: as many consecutive items are the channels of one (channels_apart() in
/// nacre/discriminators/signals.h). Losses compare channel by channel, and the balancer takes their gradients together.
PlannedLosses plan_losses(Plan&, Flow estimate, View<const float> target, View<const int32_t> lengths,
                          const LossConfig&, int64_t sample_rate, std::span<const Loss> more = {},
                          int64_t channels = 1);

}  // namespace nacre
