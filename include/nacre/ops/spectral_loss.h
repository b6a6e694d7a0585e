#pragma once
#include <memory>
#include <vector>

#include "nacre/context.h"
#include "nacre/ops/stft.h"
// Multi-resolution STFT loss (Yamamoto et al. 2020, arXiv 1910.11480) and multi-scale mel loss (Kumar et al. 2023,
// arXiv 2306.06546; MelKind::power: Defossez et al. 2022, arXiv 2210.13438; MelKind::norms: Zeghidour et al. 2021,
// arXiv 2107.03312, L_rec): one pass over both signals gives both losses and both gradients with respect to the
// estimate.
//
//   forward    for every scale, with M = |X| of the estimate, N = |X| of the target (stft.h) and F the mel filter bank:
//                stft += magnitude     mean |M - N|
//                      + log_magnitude mean |log10 max(M, floor)^log_power - log10 max(N, floor)^log_power|
//                mel  += mel_magnitude mean |F M - F N|
//                      + mel_log       mean |log10 max(F M, floor) - log10 max(F N, floor)|
//              or, for MelKind::power, with S = F |X|^2 / sum h^2 of the estimate, T of the target, h the Hann window:
//                mel  += mel_magnitude mean |S - T|
//                      + mel_log       mean (log10(floor + S) - log10(floor + T))^2
//              Means run over the counted frames of the batch and the bins (bands). A band without a bin adds zero.
//              For MelKind::norms, with norms over the bands of a frame and means over the counted frames alone:
//                mel  += mel_magnitude mean |F M - F N|_1
//                      + mel_log       mean |ln(floor + F M) - ln(floor + F N)|_2
//              Of the paper's sum over frames a mean is taken, so that the term does not grow with the signal
//   weights    MelKind::log only: the cells of mel_log may be weighted, w_f a |log10 ...|, still divided by their
//              number. a = mel_excess where the estimate's clamped band exceeds the target's, else 1. Of the target
//              alone:
//                w_f = 1 + mel_transient min(1, max(0, level_f - level_(f-1)) / transient_rise); w_0 = 1
//                level_f = 10 log10(1e-6 + sum (h y)^2 / (3/8 window)) in dB, y the samples of frame f
//              1e-6 (-60 dB of a full-scale square wave) keeps noise after digital silence from being a transient
//   frames     1 + floor(time / hop), centred, as in stft.h. With `aligned`: ceil(time / hop); frame f starts at sample
//              f hop - p, p = (window - hop) / 2. Up to p samples past each end are padding; what the last frame
//              reaches beyond is zero, also with StftPadding::reflect (stft.h reflects there)
//   lengths    samples from lengths[b] on count as zero in both signals and get no gradient. An item with all its
//              samples counts all its frames, a shorter one those centred before lengths[b] (aligned: those whose hop,
//              samples f hop to f hop + hop - 1, begins before it): ceil(lengths[b] / hop) either way.
//              Lengths are clamped to [0, time]. Without a counted frame, losses and gradients are 0
//   gradient   |X| has gradient X / |X|, and 0 where X = 0 (or |X|^2 underflows); |X|^2 has 2 X; |a - b| has 0 at
//              a = b; max(a, floor) has 1 from a = floor on; |v|_2 has 0 at v = 0. Signals whose |X|^2 is finite give
//              finite results; NaN and infinity give NaN losses
//   saved      nothing
//   writes     losses, dstft and dmel are =; an empty gradient and its transform are skipped
//   aliasing   none; lengths and losses may have any shape of that many elements
//   order      fixed by shape and lengths. Losses: cells within a block of sixteen frames (CUDA: a number fixed by
//              window and device), then blocks in double. Gradients: the frames of a sample in ascending order, scale
//              after scale, reflections last (CUDA: last within each scale). Bits do not depend on threads or addresses
//   accuracy   magnitudes within (1 + log2 window) 2^-23 |h x|_2, the error of the float transform; logarithms within
//              that over max(M, floor). Where M and N differ by less, the sign of a gradient is undetermined. Powers:
//              within 2 |X| times the error of a magnitude. The direction of the gradient of |v|_2 is undetermined
//              where |v|_2 is less than its error. Energies of frames within (window / 16 + 8) 2^-23
//   cost       2 forward transforms, and one adjoint per gradient, for each frame and scale; none for weights of 0.
//              CUDA: two launches per scale for windows of a power of two; five for others, cuFFT's among them; one
//              more with mel_transient
//   plan       as in stft.h: windows with prime factors 2, 3, 5; one call at a time per plan, on its device
namespace nacre {
enum class MelScale : uint8_t { slaney, htk };
/// What the mel term compares: bands of |X|, of |X|^2, or of |X| by norms over the bands of a frame.
enum class MelKind : uint8_t { log, power, norms };
struct SpectralScale {
  int64_t window = 1024, hop = 256;
  int64_t mels = 0;  ///< bands of the filter bank; 0: no mel term
  float magnitude = 0, log_magnitude = 0;
  float mel_magnitude = 0, mel_log = 0;
  MelKind mel_kind = MelKind::log;
  bool aligned = false;  ///< window - hop must be even and not negative
};
struct SpectralConfig {
  int64_t sample_rate = 16000;
  std::vector<SpectralScale> scales{};
  MelScale mel_scale = MelScale::slaney;
  bool area_normalised = true;  ///< Slaney: each triangle times 2 / (f_hi - f_lo)
  double fmin = 0, fmax = 0;    ///< Hz; fmax 0: half the sample rate
  float floor = 1e-5f, log_power = 1.0f;
  float mel_excess = 1, mel_transient = 0;  ///< weights, see above: at least 1, and not negative; 1 and 0 are off
  float transient_rise = 10;                ///< dB over the frame before at which mel_transient counts fully
  StftPadding padding = StftPadding::reflect;
};
/// The dense filter bank [bands][window / 2 + 1] as librosa and torchaudio define it; the loss stores its non-zeros.
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
