#pragma once
#include <memory>
#include <vector>

#include "nacre/context.h"
#include "nacre/ops/stft.h"
// Multi-resolution STFT loss (Yamamoto et al. 2020, arXiv 1910.11480) and multi-scale mel loss (Kumar et al. 2023,
// arXiv 2306.06546): one pass over both signals gives both losses and both gradients with respect to the estimate.
//
// For every scale, with M = |X| of the estimate and N = |X| of the target (floor = 1e-5):
//   stft += magnitude * mean |M - N| + log_magnitude * mean |log10 max(M, floor)^p - log10 max(N, floor)^p|,   p =
//   log_power mel  += mel_magnitude * mean |F M - F N| + mel_log * mean |log10 max(F M, floor) - log10 max(F N,
//   floor)|,  F = mel filter bank
// Means run over valid frames and bins (bands). Samples at or beyond lengths[b] count as zero in both signals and get
// no gradient; frames centred at or beyond lengths[b] are not counted. The gradient of |X| is X / |X|, and 0 at X = 0.
namespace nacre {
enum class MelScale : uint8_t { slaney, htk };
struct SpectralScale {
  int64_t window = 1024, hop = 256;
  int64_t mels = 0;  ///< bands of the filter bank; 0: no mel term
  float magnitude = 0, log_magnitude = 0;
  float mel_magnitude = 0, mel_log = 0;
};
struct SpectralConfig {
  int64_t sample_rate = 16000;
  std::vector<SpectralScale> scales;
  MelScale mel_scale = MelScale::slaney;
  bool area_normalised = true;  ///< Slaney: each triangle times 2 / (f_hi - f_lo)
  double fmin = 0, fmax = 0;    ///< Hz; fmax 0: half the sample rate
  float floor = 1e-5f, log_power = 1.0f;
  StftPadding padding = StftPadding::reflect;
};
/// The dense filter bank [bands][window / 2 + 1] the loss uses (sparsely), as librosa and torchaudio define it.
std::vector<std::vector<double>> mel_filter_bank(int64_t sample_rate, int64_t window, int64_t bands, double fmin,
                                                 double fmax, MelScale, bool area_normalised);

class SpectralPlan {
 public:
  SpectralPlan(Context&, Shape signal, SpectralConfig);
  SpectralPlan(SpectralPlan&&) noexcept;
  SpectralPlan& operator=(SpectralPlan&&) noexcept;
  ~SpectralPlan();
  Shape signal() const noexcept;
  const SpectralConfig& config() const noexcept;
  struct Impl;
  Impl& impl() const noexcept { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};
struct SpectralLoss {
  const SpectralPlan& plan;
  View<const float> estimate, target;  ///< [batch, time, 1, 1]
  View<const int32_t> lengths{};       ///< [batch]: valid samples; empty: all
  View<float> losses;                  ///< [2] = stft, mel
  View<float> dstft{}, dmel{};         ///< = gradients with respect to the estimate; empty: skipped
};
void spectral_loss(Context&, const SpectralLoss&);
}  // namespace nacre
