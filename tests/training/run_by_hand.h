#pragma once
// A training run that follows the documentation of the trainer step by step, and readers for the files of a run.
// Everything that the trainer gives its steps (crops, lengths, learning rates, codebooks) affects the weights, which
// are compared bit for bit.
#include <map>

#include "nacre/codec/scaled_start.h"
#include "nacre/codec/transform_start.h"
#include "nacre/data/sampler.h"
#include "nacre/files/safetensors.h"
#include "nacre/training/training_step.h"
#include "training/trainer_runs.h"

namespace nacre::test {

using Weights = std::map<std::string, std::vector<float>>;

class RunByHand {
 public:
  RunByHand(const RunConfig& c, const std::string& data_dir)
      : config(c),
        ctx({.device = {}, .threads = 1}),
        data(data_dir, {.sample_rate = static_cast<int>(c.codec.sample_rate),
                        .min_samples = c.codec.hop(),
                        .valid_fraction = c.training.valid_fraction}),
        step(ctx, c.codec, c.loss, c.optimizer, c.training.batch_size, c.training.segment_length, c.training.seed),
        crops(data, step.samples(), c.training.batch_size, c.training.seed) {}

  /// Everything before the first step. The codebooks start from batches that no step uses: those numbered -1, -2, ...
  void begin() {
    if (config.training.start == Start::transform) {
      transform_start(ctx, step.parameters(), config.codec);
      step.reset_average();
    }
    if (config.training.start == Start::scaled) {
      scaled_start(ctx, step.parameters());
      step.reset_average();
    }
    if (config.training.codebook_start_rows == 0) return;
    int64_t before = 0;
    step.start_codebooks([&] { load(crops, --before); }, config.training.codebook_start_rows,
                         config.training.codebook_average_rows);
  }
  /// Loads the crops of one batch and their lengths. Crops shorter than a segment are padded with zeros.
  void load(const CropSampler& from, int64_t number, const std::vector<int32_t>& stages = {}) {
    const auto samples = static_cast<size_t>(step.samples());
    std::vector<float> audio;
    std::vector<int32_t> lengths;
    for (int64_t i = 0; i < step.batch(); ++i) {
      const Crop crop = from.at(number, i);
      const Dataset::Samples clip = data.load(crop.clip);
      const auto first = clip->begin() + crop.offset;
      lengths.push_back(
          static_cast<int32_t>(std::min<int64_t>(step.samples(), static_cast<int64_t>(clip->size()) - crop.offset)));
      short_crops += lengths.back() < step.samples();
      audio.insert(audio.end(), first, first + lengths.back());
      audio.resize(samples * static_cast<size_t>(i + 1), 0.0f);
    }
    step.load(audio, lengths, stages);
  }
  void next(double learning_rate, const std::vector<int32_t>& stages = {}) {
    load(crops, done++, stages);
    step.set_learning_rate(learning_rate);
    step.run();
  }
  Weights weights() {
    Weights all;
    step.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&,
                                           std::span<const float> v) { all[name].assign(v.begin(), v.end()); });
    return all;
  }

  RunConfig config;
  Context ctx;
  Dataset data;
  TrainingStep step;
  CropSampler crops;
  int64_t done = 0;
  int64_t short_crops = 0;  ///< loaded so far
};

/// The tensors of a file whose names begin with `prefix`, by the rest of their names.
inline Weights stored_weights(const fs::path& file, const std::string& prefix = "") {
  Weights all;
  const Safetensors stored = Safetensors::read(file);
  for (const StoredTensor& t : stored.tensors())
    if (t.name.starts_with(prefix)) all[t.name.substr(prefix.size())] = to_floats(t);
  return all;
}

/// The trained weights. If the run has averages, they are stored beside the averages.
inline Weights trained_weights(const fs::path& checkpoint) {
  Weights all = stored_weights(checkpoint / "optimizer.safetensors", "value.");
  return all.empty() ? stored_weights(checkpoint / "model.safetensors") : all;
}

}  // namespace nacre::test
