#pragma once
// What a report sets beside the trained codec, on the same audio: the codec as it was before training, and Opus at the same
// bitrate.
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
  double bits = 0;     ///< spent on all of that
  double kilobits() const { return bits / 1000 / scores.seconds(); }
};

class Baselines {
 public:
  /// The start is RUN/start/model.safetensors, if it is there and has the codec's configuration.
  Baselines(Context&, const std::filesystem::path& run, const CodecConfig&);
  Baselines(const Baselines&) = delete;
  Baselines& operator=(const Baselines&) = delete;

  /// Codes one clip (mono, the codec's rate, normalised) by each baseline and scores it; returns the decoded audio, in the
  /// order of all().
  std::vector<std::vector<float>> add(const std::string& name, std::span<const float> samples);

  const std::vector<Baseline>& all() const { return all_; }
  /// Sentences: which baseline is not there, and why; what else must be known of those that are.
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

/// Bits of a codec's codes for so many samples, without a container.
double code_bits(const CodecConfig&, size_t samples);

/// A section: the table of means, and below it what there is to say of it.
std::string comparison_html(const Baseline& codec, const std::vector<Baseline>&, const std::vector<std::string>& notes);

}  // namespace nacre::training
