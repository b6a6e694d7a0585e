#pragma once
// The reconstruction loss at the waveform: L1, multi-resolution STFT, multi-scale mel, and how their gradients are put
// together.
#include <memory>
#include <optional>
#include <vector>

#include "nacre/nn/plan.h"
#include "nacre/ops/balancer.h"
#include "nacre/ops/spectral_loss.h"

namespace nacre {

struct LossConfig {
  double waveform = 1, stft = 1, mel = 1;  ///< weights; with `balanced` they are shares of the gradient at the waveform
  double vq = 1;                           ///< commitment weight at the latent, outside the balancer
  /// The quantisation error takes no part in the encoder's gradient (rvq.h); codes of the latent only.
  bool orthogonal = false;
  bool balanced = true;                         ///< EnCodec's balancer; false: plain weighted sum
  double balancer_decay = 0.999;                ///< of the moving averages of gradient norms
  std::vector<int64_t> windows{64, 256, 1024};  ///< samples; hop = window / 4
  std::vector<int64_t> mels{10, 40, 80};        ///< bands per window; 0: no mel term at this window
  MelScale mel_scale = MelScale::slaney;

  /// Throws Error(usage) naming the key.
  void check(int64_t sample_rate) const;
  /// Scales with equal weights whose sum is one.
  SpectralConfig spectral(int64_t sample_rate) const;
};

/// Values and gradient are computed together, in backward.
class ReconstructionLoss {
 public:
  ReconstructionLoss(LossConfig, int64_t sample_rate);
  void plan(Plan&, Flow<float> estimate, View<const float> target, View<const int32_t> lengths);
  void backward(Context&);

  View<const float> values() const { return losses_; }   ///< [3]: waveform L1, STFT, mel, unweighted
  View<const float> shares() const { return shares_; }   ///< [3]: of the gradient, as applied
  View<float> balancer_state() const { return state_; }  ///< part of a checkpoint

 private:
  LossConfig config_;
  int64_t sample_rate_;
  std::optional<SpectralPlan> spectral_;
  Read<float> estimate_;
  View<const float> target_;
  View<const int32_t> lengths_;
  View<float> losses_, shares_, state_, dwaveform_, dstft_, dmel_, waveform_scratch_, balancer_scratch_;
};

}  // namespace nacre
