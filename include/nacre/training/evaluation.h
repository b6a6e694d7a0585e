#pragma once
// How good a codec is on given audio. The trainer and `nacre eval` both call evaluate_clip, so they print the same numbers.
//
// All at the model's rate, on peak-normalised audio, through the quantizer with hard codes; no gain or lag is fitted.
//   SNR      10 log10(sum x^2 / sum (x - y)^2)
//   SI-SDR   Le Roux et al. 2019 (arXiv 1811.02508), means removed
//   mel      DAC's multi-scale mel distance (arXiv 2306.06546): windows 32 .. 2048, 5 .. 320 bands, sum over scales
//   STFT     DAC's multi-scale STFT distance: windows 2048 and 512
// Means over files; silent files are left out of SNR and SI-SDR.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nacre/codec.h"

namespace nacre::training {

struct ClipScore {
  std::string name;
  double seconds = 0;
  bool silent = false;
  double snr = 0, si_sdr = 0, mel = 0, stft = 0;
  double input_mean = 0, input_std = 0, output_mean = 0, output_std = 0;
  double encode_seconds = 0, decode_seconds = 0;  ///< of wall time
};

class Evaluation {
 public:
  explicit Evaluation(Codec&, bool distances = true);
  /// Encodes, decodes and scores one clip (mono, model rate, normalised). Returns the score; `decoded`, if given, gets the audio.
  const ClipScore& add(const std::string& name, std::span<const float> samples, std::vector<float>* decoded = nullptr);

  const std::vector<ClipScore>& clips() const { return clips_; }
  /// Mean over files; NaN when nothing could be scored.
  double snr() const;
  double si_sdr() const;
  double mel() const;
  double stft() const;
  double seconds() const;
  double encode_speed() const;  ///< x real time
  double decode_speed() const;
  /// Over all samples of all clips.
  double input_mean() const, input_std() const, output_mean() const, output_std() const;
  /// Per codebook: part of the codes that occur, and exp of the entropy of their use.
  std::vector<double> usage() const;
  std::vector<double> perplexity() const;

 private:
  Codec& codec_;
  bool distances_;
  std::vector<ClipScore> clips_;
  std::vector<std::vector<int64_t>> counts_;  // [codebook][code]
  struct Sums {
    double n = 0, x = 0, xx = 0, y = 0, yy = 0;
  } sums_;
};

/// DAC's settings; see above. Not for clips of less than two samples.
struct SpectralDistance {
  double mel = 0, stft = 0;
};
SpectralDistance spectral_distance(Context&, std::span<const float> decoded, std::span<const float> original, int64_t sample_rate);

}  // namespace nacre::training
