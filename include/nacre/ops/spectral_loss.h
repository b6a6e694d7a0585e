#pragma once
#include <memory>
#include <vector>

#include "nacre/context.h"
#include "nacre/ops/stft.h"
// Multi-resolution STFT loss (Yamamoto et al. 2020, arXiv 1910.11480) and multi-scale mel loss (Kumar et al. 2023,
// arXiv 2306.06546): one pass over both signals gives both losses and both gradients with respect to the estimate.
//
//   forward    for every scale, with M = |X| of the estimate, N = |X| of the target (stft.h) and F the mel filter bank:
//                stft += magnitude     mean |M - N|
//                      + log_magnitude mean |log10 max(M, floor)^log_power - log10 max(N, floor)^log_power|
//                mel  += mel_magnitude mean |F M - F N|
//                      + mel_log       mean |log10 max(F M, floor) - log10 max(F N, floor)|
//              Means run over the counted frames of the batch and the bins (bands)
//   lengths    samples from lengths[b] on count as zero in both signals and get no gradient. An item with all its
//              samples counts all its frames, a shorter one those centred before lengths[b]: ceil(lengths[b] / hop).
//              Values are brought into [0, time]. No counted frame at all: losses and gradients are 0
//   gradient   |X| has gradient X / |X|, and 0 where X = 0 (or |X|^2 underflows); |a - b| has 0 at a = b; max(a, floor)
//              has 1 from a = floor on. Everything is finite wherever the signals are; NaN and infinity give NaN losses
//   keeps      nothing
//   writes     losses, dstft and dmel are =; an empty gradient is skipped, with its transform
//   aliasing   none; lengths and losses may have any shape of that many elements
//   order      fixed by shape and lengths: cells of a block of sixteen frames (on CUDA of as many as window and device
//              decide), blocks in double, in a fixed order; frames of a sample in ascending order, scales in order.
//              Reflections are added last (on CUDA last of each scale). Bits do not depend on threads or addresses
//   accuracy   losses as the float transform has them: (1 + log2 window) 2^-23 |h x|_2 over max(M, floor) in the logs.
//              A gradient's sign may be the other one where M and N are nearer than that
//   cost       2 forward and one adjoint transform per gradient, frame and scale; no transform for weights of 0. On
//              CUDA two launches per scale for windows of a power of two, five for others, around cuFFT
//   plan       as in stft.h: windows with prime factors 2, 3, 5; one call at a time per plan, on its device
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
  std::vector<SpectralScale> scales{};
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
