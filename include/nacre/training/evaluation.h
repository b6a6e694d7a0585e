#pragma once
// How good a codec is on given audio. The trainer, `nacre eval` and baselines score by the same functions, so they print the same numbers.
//
// All at the model's rate, on peak-normalised audio, through the quantizer with hard codes; no gain or lag is fitted.
//   SNR      10 log10(sum x^2 / sum (x - y)^2)
//   SI-SDR   Le Roux et al. 2019 (arXiv 1811.02508), means removed
//   seg SNR  segmental SNR as Hansen and Pellom (ICSLP 1998) measure it: frames of 30 ms, round(0.03 rate) = L samples, hop
//            floor(L / 4), every frame that lies whole in the clip, weighted by 1/2 - 1/2 cos(2 pi (n + 1) / (L + 1)); the
//            mean of the frames' SNR (Quackenbush et al. 1988, equation 2.12) in dB, each clamped to -10 .. 35
//            (Papamichalis 1987). A frame without error counts 35, else a frame of zeros -10: silent frames are kept
//   STOI, ESTOI   intelligibility.h
//   mel      DAC's multi-scale mel distance (arXiv 2306.06546): windows 32 .. 2048, 5 .. 320 bands, sum over scales
//   STFT     DAC's multi-scale STFT distance: windows 2048 and 512
// SNR and SI-SDR are limited to -120 .. 120 dB: a copy without any error counts 120.
//
// A clip of up to 30 s is scored whole. Of a longer one, SNR, SI-SDR and the levels are those of the whole clip, too; for the
// other figures 20 s at a time are cut off as long as more than 30 s are left, each piece is scored by itself, and the clip has
// the mean of the pieces that have a value, weighted by their duration. So memory does not grow with a clip's length.
//
// Means are over the files that have a value, and NaN where none has one:
//   silent files (within -80 dB of their mean: audio.h) have no SNR of any kind and no STOI
//   files that are constant (standard deviation below that of silence, 1e-5) have no SI-SDR
//   files with less than 0.42 s of speech have no STOI, files of less than 30 ms no segmental SNR
//   files of one sample have no mel and no STFT distance
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/codec/codec.h"

namespace nacre::training {

struct ClipScore {
  std::string name;
  double seconds = 0;
  bool silent = false;
  double snr = 0;  ///< of a silent clip, one that means leave out
  /// NaN where there is none.
  double si_sdr = std::numeric_limits<double>::quiet_NaN();
  double mel = std::numeric_limits<double>::quiet_NaN(), stft = std::numeric_limits<double>::quiet_NaN();
  double segmental_snr = std::numeric_limits<double>::quiet_NaN();
  double stoi = std::numeric_limits<double>::quiet_NaN(), estoi = std::numeric_limits<double>::quiet_NaN();
  double input_mean = 0, input_std = 0, output_mean = 0, output_std = 0;
  double encode_seconds = 0, decode_seconds = 0;  ///< of wall time
};

/// Scores decoded audio, whoever decoded it; the name and the times are the caller's. Throws Error(usage) when the lengths
/// differ.
ClipScore score_clip(Context&, std::span<const float> original, std::span<const float> decoded, int64_t sample_rate);

/// The score of a clip that comes in pieces. What score_clip() gives, if the pieces are those that it would cut.
class PieceScores {
 public:
  PieceScores(Context& ctx, int64_t sample_rate) : ctx_(ctx), rate_(sample_rate) {}
  /// How much of `samples` that are left, the clip's last ones, is the next piece.
  static int64_t next_piece(int64_t samples, int64_t sample_rate);
  /// Throws Error(usage) when the lengths differ.
  void add(std::span<const float> original, std::span<const float> decoded);
  ClipScore total() const;

 private:
  struct Mean {
    double sum = 0, seconds = 0;
    void add(double value, double of_seconds);
    double value() const;
  };
  Context& ctx_;
  int64_t rate_, pieces_ = 0;
  ClipScore first_;
  bool silent_ = true;
  double n_ = 0, power_ = 0, noise_ = 0;
  double from_x_ = 0, from_y_ = 0;  // the first samples: the sums below are of what differs from them
  double x_ = 0, y_ = 0, xx_ = 0, yy_ = 0, xy_ = 0;
  Mean segmental_, stoi_, estoi_, mel_, stft_;
};

/// Scores of files, and their means: NaN where no file has a value.
class Scores {
 public:
  const std::vector<ClipScore>& clips() const { return clips_; }
  const ClipScore& add(ClipScore);
  double snr() const;
  double si_sdr() const;
  double segmental_snr() const;
  double stoi() const;
  double estoi() const;
  double mel() const;
  double stft() const;
  double seconds() const;
  double encode_speed() const;  ///< x real time
  double decode_speed() const;

 private:
  std::vector<ClipScore> clips_;
};

/// Called while a clip is judged. What they throw ends the judging of that clip, which then counts nowhere.
struct JudgeHooks {
  /// Seconds of the clip that have been encoded and decoded, after each second.
  std::function<void(double)> progress = {};
  /// Each piece that was scored: original and decoded.
  std::function<void(std::span<const float>, std::span<const float>)> piece = {};
};

/// A codec's scores.
class Evaluation : public Scores {
 public:
  explicit Evaluation(Codec&);
  /// Encodes, decodes and scores one clip (mono, model rate, normalised). Returns the score; `decoded`, if given, gets the audio.
  const ClipScore& add(const std::string& name, std::span<const float> samples, std::vector<float>* decoded = nullptr,
                       const JudgeHooks& hooks = {});

  /// Over all samples of all clips.
  double input_mean() const, input_std() const, output_mean() const, output_std() const;
  /// Per codebook: part of the codes that occur, and exp of the entropy of their use.
  std::vector<double> usage() const;
  std::vector<double> perplexity() const;

 private:
  friend class ClipJudge;
  Codec& codec_;
  std::vector<std::vector<int64_t>> counts_;  // [codebook][code]
  struct Sums {
    double n = 0, x = 0, xx = 0, y = 0, yy = 0;
  } sums_;
};

/// One clip of an evaluation that comes piece by piece: the bits of Evaluation::add, in memory that does not depend on the
/// clip's length. One at a time for an evaluation.
class ClipJudge {
 public:
  ClipJudge(Evaluation&, std::string name, JudgeHooks = {});
  ~ClipJudge();
  ClipJudge(const ClipJudge&) = delete;
  ClipJudge& operator=(const ClipJudge&) = delete;
  /// The clip's next samples (mono, model rate, normalised), any number of them.
  void push(std::span<const float> samples);
  /// The clip ends. Its score becomes part of the evaluation.
  const ClipScore& finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// DAC's settings; see above. Not for clips of less than two samples.
struct SpectralDistance {
  double mel = 0, stft = 0;
};
SpectralDistance spectral_distance(Context&, std::span<const float> decoded, std::span<const float> original, int64_t sample_rate);

/// In dB; see above. NaN for clips shorter than a frame.
double segmental_snr(std::span<const float> decoded, std::span<const float> original, int64_t sample_rate);

}  // namespace nacre::training
