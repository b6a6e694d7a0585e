#pragma once
// One training step of a codec: forward pass, losses, hand-derived backward pass, clipping, AdamW, codebook update.
// With LossConfig::adversarial above 0, discriminators are trained in between: forward pass of the codec, a whole step
// of the discriminators on its output, losses against the discriminators after that step, backward pass of the codec.
// The constructor plans all memory. run() allocates nothing, waits for nothing, and can be captured.
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/codec/codec.h"
#include "nacre/losses/adversarial.h"
#include "nacre/training/optimizer.h"

namespace nacre {

/// A term of the loss in one step.
struct TermMetrics {
  std::string name, title;  ///< as in TermSpec
  float value = 0;          ///< unweighted
  float share = 0;          ///< of the gradient at the waveform, as applied; NaN if it is part of the previous term's
  bool in_sum = true;       ///< as in TermSpec
};
/// A discriminator in one step.
struct DiscriminatorMetrics {
  std::string name;          ///< as in Discriminators::names()
  float loss = 0;            ///< of real and fake audio together
  float real = 0, fake = 0;  ///< fractions of the logits of real and of fake audio that are judged right
};
/// Measurements of one step, read back on demand.
struct StepMetrics {
  std::vector<TermMetrics> terms;  ///< of losses_of(), in its order
  float commitment = 0, codebook = 0;
  float gradient_norm = 0;
  int32_t updates = 0, skipped = 0;
  /// Empty without adversarial training, and after a run that did not train the discriminators.
  std::vector<DiscriminatorMetrics> discriminators;
  float discriminator_norm = 0;                      ///< of their gradients together
  int32_t discriminator_skipped = 0;                 ///< updates of theirs that were not finite
  /// The unweighted sum of the commitment and the terms that are part of it (TermSpec::in_sum), independent of the
  /// weights used in training.
  float loss() const;
  /// Throws Error(usage) for an unknown name.
  const TermMetrics& term(const std::string& name) const;
};

class TrainingStep {
 public:
  /// `storage` applies to activations, their gradients and the effective weights between the waveform and the latent.
  /// Parameters, sums, losses, quantizer and optimizer always use float. For `communicator`, see Optimizer. With
  /// `own_target` the output is compared with audio of its own, which load() gives, and not with the input: losses and
  /// discriminators see the target alone. Otherwise input and target are one buffer.
  TrainingStep(Context&, const CodecConfig&, const LossConfig&, const OptimizerConfig&, int64_t batch, int64_t samples,
               uint64_t seed, Storage storage = Storage::float32, Communicator* communicator = nullptr,
               const DiscriminatorConfig& discriminator = {}, bool own_target = false);
  ~TrainingStep();
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;

  /// Samples per item and channel: the segment length rounded up to a whole number of frames.
  int64_t samples() const noexcept;
  int64_t batch() const noexcept;

  /// Copies a batch to the device: [batch, samples(), audio_channels] samples, the number of valid samples of each item
  /// per channel, and the number of codebooks used per item (empty: all). `target` has the form of `audio`; empty: the
  /// output is compared with `audio`. Throws Error(usage) for a target unless the step has one of its own.
  void load(std::span<const float> audio, std::span<const int32_t> lengths, std::span<const int32_t> stages = {},
            std::span<const float> target = {});
  /// Sets the label of each item from now on: 1 if its target is clean speech (CodecConfig::denoise), else 0. All are 0
  /// at first. A codec that does not denoise ignores them. Throws Error(usage) for other values and for another number
  /// of labels than batch().
  void set_labels(std::span<const int32_t> labels);
  /// Initialises the codebooks from data: k-means over the latents of batches that `next_batch` loads, until `rows`
  /// positions of the latent are gathered; then moving-average updates, batch by batch, over about `average_rows`
  /// further positions (padding of short clips included). With one rate, a position is a frame. Called once, before the
  /// first step. Not captured.
  void start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows = 0,
                       const StartProgress& = {});
  void set_learning_rate(double);
  void set_discriminator_learning_rate(double);
  /// Whether losses against discriminators take part in the gradient of the codec; true at first. The discriminators
  /// train in any case.
  void set_adversarial(bool);
  /// Whether the next runs train the discriminators; true at first. Without, a run costs less, and it has no metrics of
  /// the discriminators.
  void set_discriminators(bool);
  /// Runs the whole step. On CUDA, the first call launches kernel by kernel, the second one captures a graph, and all
  /// later ones replay it. The bits are the same, and a replay is one launch. Runs with and without training of the
  /// discriminators have a graph each.
  void run();
  /// As run(), but on the CPU it calls `give_up` before every layer's pass, so that a long step can be stopped. Returns
  /// false if the step was abandoned; the state is then as before the step. On CUDA, `give_up` is called once, before
  /// the step.
  bool run(const std::function<bool()>& give_up);
  /// false: always launch kernel by kernel. true (the default on CUDA): capture the next step again.
  void set_capture(bool);
  /// Computes forward pass and losses only. Trains nothing and changes no state.
  void measure();
  /// Waits for the device. The result is overwritten by the next call.
  const StepMetrics& metrics();

  Context& context() noexcept;
  /// A caller that changes the values must call refresh() on the parameters.
  Parameters& parameters() noexcept;
  /// The weights for evaluation: the averaged weights if there are any, otherwise the trained ones.
  View<const float> averaged() const noexcept;
  /// Restarts the averaged weights from the current values, after these were set from outside.
  void reset_average();
  /// The discriminators' parameters; null without adversarial training.
  Parameters* discriminators() noexcept;
  /// Computes gradients without an update: forward and backward passes only. For tests.
  void gradients();
  View<const int32_t> codes() const noexcept;

  /// The remaining state by name: of the optimizer and of the balancer. The names are the same when restoring.
  std::vector<StateTensor> state();
  AdamWScalars scalars();
  void set_scalars(const AdamWScalars&);
  /// The same of the discriminators' optimizer. Throw Error(usage) without adversarial training.
  std::vector<StateTensor> discriminator_state();
  AdamWScalars discriminator_scalars();
  void set_discriminator_scalars(const AdamWScalars&);

  size_t planned_bytes() const noexcept;
  size_t unshared_bytes() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
