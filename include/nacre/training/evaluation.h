#pragma once
// Quality of a codec on given audio. The trainer, `nacre eval` and baselines use the same functions, so they report the
// same numbers.
//
// All figures are at the model's rate, on peak-normalised audio, after hard quantisation. No gain or delay is fitted.
//   SNR      10 log10(sum x^2 / sum (x - y)^2)
//   SI-SDR   Le Roux et al. 2019 (arXiv 1811.02508), means removed
//   seg SNR  segmental SNR as in Hansen and Pellom (ICSLP 1998): frames of L = round(0.03 rate) samples (30 ms), hop
//            floor(L / 4), only frames that lie completely in the clip, weighted by
//            1/2 - 1/2 cos(2 pi (n + 1) / (L + 1)). The figure is the mean of the frames' SNR in dB (Quackenbush et al.
//            1988, equation 2.12), each clamped to -10 .. 35 (Papamichalis 1987). A frame without error counts 35. A
//            frame of zeros with an error counts -10, so silent frames are included
//   STOI, ESTOI   intelligibility.h
//   mel      DAC's multi-scale mel distance (arXiv 2306.06546): windows 32 .. 2048, 5 .. 320 bands, sum over scales
//   STFT     DAC's multi-scale STFT distance: windows 2048 and 512
// SNR and SI-SDR are limited to -120 .. 120 dB. A copy without any error has 120 dB.
//
// A clip of up to 30 s is scored as a whole. For a longer clip, SNR, SI-SDR and the levels are still those of the whole
// clip. For the other figures, pieces of 20 s are cut off as long as more than 30 s remain. Each piece is scored
// separately, and the clip gets the mean of the pieces that have a value, weighted by their duration. Memory therefore
// does not grow with the length of a clip.
//
// Of a clip with two channels, every channel is scored by itself, and a figure is the mean over the channels that have
// it. A clip is silent if all of its channels are. The levels are those of all samples. A clip with two equal channels
// therefore has the figures of one of them.
//
// Means are over the files that have a value, and NaN if none has one:
//   silent files (within -80 dB of their mean: audio.h) have no SNR of any kind and no STOI
//   constant files (standard deviation below that of silence, 1e-5) have no SI-SDR
//   files with less than 0.42 s of speech have no STOI; files shorter than 30 ms have no segmental SNR
//   files of one sample have no mel distance and no STFT distance
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
  double snr = 0;  ///< means leave out the value of a silent clip
  /// NaN if the clip has no such figure.
  double si_sdr = std::numeric_limits<double>::quiet_NaN();
  double mel = std::numeric_limits<double>::quiet_NaN(), stft = std::numeric_limits<double>::quiet_NaN();
  double segmental_snr = std::numeric_limits<double>::quiet_NaN();
  double stoi = std::numeric_limits<double>::quiet_NaN(), estoi = std::numeric_limits<double>::quiet_NaN();
  double input_mean = 0, input_std = 0, output_mean = 0, output_std = 0;
  double encode_seconds = 0, decode_seconds = 0;  ///< in wall time
  /// Frames of codes and scales of segments that a Codec made of the clip; 0 for other decoders. Segments overlap, so
  /// their frames may be more than those of the duration.
  int64_t frames = 0, scales = 0;
};

/// Scores decoded audio from any decoder, channels interleaved. The caller fills in the name and the times. Throws
/// Error(usage) if the lengths differ, and for a part of a sample.
ClipScore score_clip(Context&, std::span<const float> original, std::span<const float> decoded, int64_t sample_rate,
                     int64_t channels = 1);

/// The score of a clip that arrives in pieces. It equals score_clip() if the pieces are those that score_clip() cuts.
class PieceScores {
 public:
  /// Throws Error(usage) for less than one channel.
  PieceScores(Context&, int64_t sample_rate, int64_t channels = 1);
  /// Length of the next piece per channel, if `samples` samples of each channel are left up to the end of the clip.
  static int64_t next_piece(int64_t samples, int64_t sample_rate);
  /// Channels are interleaved. Throws Error(usage) if the lengths differ, and for a part of a sample.
  void add(std::span<const float> original, std::span<const float> decoded);
  ClipScore total() const;

 private:
  struct Mean {
    double sum = 0, seconds = 0;
    void add(double value, double of_seconds);
    double value() const;
  };
  /// The score of one channel.
  struct Channel {
    int64_t pieces = 0;
    ClipScore first;
    bool silent = true;
    double n = 0, power = 0, noise = 0;
    double from_x = 0, from_y = 0;  // the first samples; the sums below are over the differences from them
    double x = 0, y = 0, xx = 0, yy = 0, xy = 0;
    Mean segmental, stoi, estoi, mel, stft;
    void add(Context&, int64_t rate, std::span<const float> original, std::span<const float> decoded);
    ClipScore total(int64_t rate) const;
  };
  Context& ctx_;
  int64_t rate_;
  std::vector<Channel> channels_;
};

/// Scores of files and their means. A mean is NaN if no file has a value.
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
  double encode_speed() const;  ///< multiple of real time
  double decode_speed() const;

 private:
  std::vector<ClipScore> clips_;
};

/// Called while a clip is scored. An exception that they throw stops the clip, which is then not part of the
/// evaluation.
struct JudgeHooks {
  /// Called after each second of the clip with the number of seconds encoded and decoded so far.
  std::function<void(double)> progress = {};
  /// Called for each scored piece with the original and the decoded samples, channels interleaved.
  std::function<void(std::span<const float>, std::span<const float>)> piece = {};
};

/// Scores of one codec.
class Evaluation : public Scores {
 public:
  /// codebooks: as of Codec::reserve_inference(), for all clips.
  explicit Evaluation(Codec&, int64_t codebooks = 0);
  /// Encodes, decodes and scores one clip (the model's channels interleaved, model rate, normalised). `decoded`, if
  /// given, receives the audio.
  const ClipScore& add(const std::string& name, std::span<const float> samples, std::vector<float>* decoded = nullptr,
                       const JudgeHooks& hooks = {});

  /// Mean and standard deviation over all samples of all clips.
  double input_mean() const, input_std() const, output_mean() const, output_std() const;
  /// Per codebook: the fraction of its codes that occur, and the perplexity exp(entropy) of their distribution.
  std::vector<double> usage() const;
  std::vector<double> perplexity() const;

 private:
  friend class ClipJudge;
  Codec& codec_;
  std::vector<std::vector<int64_t>> counts_;  // [codebook in use][code]
  /// Sums of every channel. Their total over equal channels has the bits of the sum of one, times their number.
  struct Sums {
    double n = 0, x = 0, xx = 0, y = 0, yy = 0;
  };
  std::vector<Sums> sums_;
  double total(double Sums::*sum) const;
};

/// Adds one clip to an evaluation piece by piece. The result has the same bits as Evaluation::add, and the memory does
/// not depend on the clip's length. An evaluation can have one ClipJudge at a time.
class ClipJudge {
 public:
  ClipJudge(Evaluation&, std::string name, JudgeHooks = {});
  ~ClipJudge();
  ClipJudge(const ClipJudge&) = delete;
  ClipJudge& operator=(const ClipJudge&) = delete;
  /// The clip's next samples (the model's channels interleaved, model rate, normalised), any number of them.
  void push(std::span<const float> samples);
  /// Ends the clip and adds its score to the evaluation.
  const ClipScore& finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Distances with DAC's settings, as defined above. A clip needs at least two samples.
struct SpectralDistance {
  double mel = 0, stft = 0;
};
SpectralDistance spectral_distance(Context&, std::span<const float> decoded, std::span<const float> original,
                                   int64_t sample_rate);

/// In dB, as defined above. NaN for clips shorter than a frame.
double segmental_snr(std::span<const float> decoded, std::span<const float> original, int64_t sample_rate);

}  // namespace nacre::training
