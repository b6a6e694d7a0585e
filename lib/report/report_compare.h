#pragma once
// The baselines that a report compares with the trained codec on the same audio: the codec before training, and Opus at
// the same bitrate.
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/codec/codec.h"
#include "nacre/training/evaluation.h"

namespace nacre::training {

struct Baseline {
  std::string name;    ///< "Before training", "Opus"
  Scores scores = {};  ///< in the order of the calls of add()
  double bits = 0;     ///< for all clips added
  double kilobits() const { return bits / 1000 / scores.seconds(); }
};

class Baselines {
 public:
  /// The codec before training is RUN/start/model.safetensors. It is used if it exists and has the codec's
  /// configuration.
  Baselines(Context&, const std::filesystem::path& run, const CodecConfig&);
  Baselines(const Baselines&) = delete;
  Baselines& operator=(const Baselines&) = delete;

  /// Codes one clip (the codec's channels interleaved, its rate, normalised) with each baseline and scores it. Returns
  /// the decoded audio in the order of all().
  std::vector<std::vector<float>> add(const std::string& name, std::span<const float> samples);

  const std::vector<Baseline>& all() const { return all_; }
  /// Sentences on missing baselines, with the reason, and remarks on those that are present.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  Context& ctx_;
  CodecConfig config_;
  std::optional<Codec> start_;
  std::optional<Evaluation> judged_;
  bool opus_ = false;
  std::vector<Baseline> all_;
  std::vector<std::string> notes_;
};

/// The number of bits of the codes that a codec made of a clip, with the scales of segments and without a container.
double code_bits(const CodecConfig&, const ClipScore&);

/// A section with the table of means, followed by the notes.
std::string comparison_html(const Baseline& codec, const std::vector<Baseline>&, const std::vector<std::string>& notes);

}  // namespace nacre::training
