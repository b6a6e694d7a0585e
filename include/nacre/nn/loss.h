#pragma once
// The reconstruction loss on waveforms: L1, multi-resolution STFT and multi-scale mel, and the balancing of their
// gradients.
#include <vector>

#include "nacre/files/fields.h"
#include "nacre/nn/plan.h"
#include "nacre/ops/balancer.h"
#include "nacre/ops/spectral_loss.h"

namespace nacre {

struct LossConfig {
  double waveform = 1, stft = 1, mel = 1;
  double vq = 1;
  bool orthogonal = false;
  bool balanced = true;
  double balancer_decay = 0.999;
  std::vector<int64_t> windows{64, 256, 1024};
  std::vector<int64_t> mels{10, 40, 80};
  MelScale mel_scale = MelScale::slaney;

  /// Throws Error(usage) that names the invalid key.
  void check(int64_t sample_rate) const;
  /// The scales of the spectral losses, with equal weights that sum to one.
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
  v("orthogonal", c.orthogonal, flag(),
    "remove the part along the quantisation error from the encoder's gradient (ops/rvq.h); codec.quantizer ema only");
  v("balanced", c.balanced, flag(), "EnCodec's balancer; false: plain weighted sum");
  v("balancer_decay", c.balancer_decay, range(0, below(1)), "decay of the moving averages of gradient norms");
  v("windows", c.windows, described("multiples of 4, each 8 to 65536"), "samples per STFT window; hop = window / 4");
  v("mels", c.mels, described("one per window, each 0 to half of it"), "mel bands per window; 0: no mel term there");
  v("mel_scale", c.mel_scale, words({"slaney", "htk"}), "frequency scale of the mel bands");
}

/// The three loss terms as one step. Values and gradients are computed together in the backward pass.
class ReconstructionLoss {
 public:
  struct Planned {
    int step = 0;
    View<const float> values{};        ///< [3]: waveform L1, STFT, mel, unweighted
    View<const float> shares{};        ///< [3]: each term's share of the gradient, as applied
    View<float> balancer_state{};      ///< [6]: saved in checkpoints
  };
  ReconstructionLoss(LossConfig, int64_t sample_rate);
  /// The step must be the last reader of `estimate`.
  Planned plan(Plan&, Flow estimate, View<const float> target, View<const int32_t> lengths) const;

 private:
  LossConfig config_;
  int64_t sample_rate_;
};

}  // namespace nacre
