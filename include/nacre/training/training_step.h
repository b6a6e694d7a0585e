#pragma once
// One training step of a codec: forward, losses, hand-derived backward, clip, AdamW, codebook update. All memory is
// planned in the constructor; run() allocates nothing, waits for nothing, and can be captured.
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/codec/codec.h"
#include "nacre/nn/loss.h"
#include "nacre/training/optimizer.h"

namespace nacre {

/// What one step measured; read back on demand.
struct StepMetrics {
  float waveform = 0, stft = 0, mel = 0, commitment = 0, codebook = 0;
  float share_waveform = 0, share_stft = 0, share_mel = 0;
  float gradient_norm = 0;
  int32_t updates = 0, skipped = 0;
  /// The plain 1:1:1:1 sum, whatever the weights in training.
  float loss() const { return waveform + stft + mel + commitment; }
};

class TrainingStep {
 public:
  /// storage: of activations, their gradients and the effective weights between the waveform and the latent. Parameters,
  /// sums, losses, quantizer and optimizer are floats in any case. communicator: see Optimizer.
  TrainingStep(Context&, const CodecConfig&, const LossConfig&, const OptimizerConfig&, int64_t batch, int64_t samples,
               uint64_t seed, Storage storage = Storage::float32, Communicator* communicator = nullptr);
  ~TrainingStep();
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;

  /// Samples per item: the segment rounded up to a whole number of frames.
  int64_t samples() const noexcept;
  int64_t batch() const noexcept;

  /// Puts a batch on the device: [batch * samples()] samples, valid samples per item, codebooks used per item (empty:
  /// all).
  void load(std::span<const float> audio, std::span<const int32_t> lengths, std::span<const int32_t> stages = {});
  /// Codebooks that start from data: k-means over the latents of batches that `next_batch` loads, until there are `rows`
  /// frames; then moving averages over about `average_rows` further ones (padding of short clips included), batch by
  /// batch. Runs once, eagerly, before the first step.
  void start_codebooks(const std::function<void()>& next_batch, int64_t rows, int64_t average_rows = 0,
                       const StartProgress& = {});
  void set_learning_rate(double);
  /// The whole step. On CUDA the first runs kernel by kernel, the second is captured as a graph, and all others replay it:
  /// the same bits with one launch.
  void run();
  /// As run(), but on the CPU `give_up` is asked before every layer's pass, so that a long step can be stopped in between.
  /// False if it was given up: then the state is that before the step. On CUDA it is asked once, before the step.
  bool run(const std::function<bool()>& give_up);
  /// false: always kernel by kernel; true (the default on CUDA): the next step is captured anew.
  void set_capture(bool);
  /// Forward and losses only: nothing is trained, no state changes.
  void measure();
  StepMetrics metrics();

  Context& context() noexcept;
  /// Whoever changes their values calls refresh() on them.
  Parameters& parameters() noexcept;
  /// What evaluation should use: averaged weights where there are some, else the trained ones.
  View<const float> averaged() const noexcept;
  /// The average starts over from the values as they are: after they were set from outside.
  void reset_average();
  /// Gradients, without an update: forward and backward only. For tests.
  void gradients();
  View<const int32_t> codes() const noexcept;

  /// The rest of the state, by name: that of the optimizer, and of the balancer. Same names when restoring.
  std::vector<StateTensor> state();
  AdamWScalars scalars();
  void set_scalars(const AdamWScalars&);

  size_t planned_bytes() const noexcept;
  size_t unshared_bytes() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
