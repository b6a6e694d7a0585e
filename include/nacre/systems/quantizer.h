#pragma once
// The residual vector quantizer between encoder and decoder.
//
// With one rate it is one cascade of stages over the positions of the latent. With two rates (CodecConfig::two_rates();
// LDCodec, arXiv 2510.15364) there are two, and a frame is R = long_frames positions:
//
//   g = reduce(z)            a convolution of R taps and stride R: one vector per frame
//   g^ = long cascade of g   long_codebooks stages
//   p = expand(g^)           a transposed convolution of R taps and stride R
//   r = z - p                r^ = short cascade of r, the other stages, at every position
//   s = synthesiser(p + r^)  a residual unit, or nothing
//
// Both cascades pass the gradient straight through, and r is not detached from p. Where all codebooks are used, the two
// gradients at p of the reconstruction cancel, and p follows the commitment of the short cascade, which asks for a
// small rest. An item that uses long-term codebooks alone has r^ = 0 and no gradient through r.
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "nacre/nn/layers.h"
#include "nacre/nn/parameters.h"
#include "nacre/nn/plan.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Progress callback of a codebook start: called first with 0, then after each completed part.
using StartProgress = std::function<void(int64_t done, int64_t total)>;

/// How a quantizer is planned. The defaults are the settings for inference.
struct QuantizerUse {
  int64_t codebooks = 0;  ///< stages used, the first ones; 0: all. Training always uses all
  int64_t beam = 0;       ///< beam width: code sequences kept per frame; 0: the configuration's. Training always uses 1
  float commitment_weight = 1;
  float codebook_weight = 1;  ///< weight of the codebook loss, for codebooks that get gradients
  bool mean = false;          ///< the two losses are means over the stages used, not sums
  /// Removes the quantisation error from the latent's gradient (RvqBackward). No effect on factorised codes.
  bool orthogonal = false;
  /// Device scalar that selects the replacements of dead codes. If it is given, every run updates the codebooks from
  /// their moving averages. Factorised codes have no such update.
  View<const int32_t> step{};
  uint64_t seed = 0;
  bool codes_only = false;  ///< for inference: the values of Quantized::flow are not wanted and may be undefined
};
/// A planned quantizer. Except for `codes`, the views are empty if nothing is trained.
struct Quantized {
  Flow flow{};             ///< the quantised latent; its gradient is passed straight through
  Flow late{};             ///< one row per frame, as late as the codes; with one rate `flow`
  View<int32_t> codes{};   ///< [batch, frames, 1, CodecConfig::codes_per_frame(stages)]
  View<float> losses{};    ///< [2]: commitment, codebook
  View<int32_t> stages{};  ///< [batch], input: codebooks per item
  View<int32_t> frames{};  ///< [batch], input: valid frames per item
  /// Moving-average update of the codebooks from the frames of the last run, with a decay other than training's. Used
  /// at the start of training. Empty for factorised codes.
  std::function<void(Context&, double decay)> update{};
};

/// Residual vector quantizer of either kind, with straight-through gradient and codebook training. It computes in
/// float, except for the convolutions of two rates, which use the storage of the parameters.
class Quantizer {
 public:
  /// `surveyed`: the storage of the layers between two rates in a survey, in which the parameters have no memory.
  Quantizer(Parameters&, const CodecConfig&, Storage surveyed = Storage::float32);
  /// Throws Error(usage) if the latent is not a whole number of frames.
  Quantized plan(Plan&, Flow latent, const QuantizerUse& = {}) const;
  /// Converts codes [batch, frames, 1, codes per frame] to the latent: the sum over the stages that the number of codes
  /// belongs to (CodecConfig::codebooks_of()), at most all. Throws Error(usage) if it belongs to none.
  Flow plan_decode(Plan&, View<const int32_t> codes) const;
  /// The end of plan_decode() for two rates: from the sum of both parts of the latent to the latent.
  Flow plan_synthesis(Plan&, Flow sum) const;
  /// Initialises codebooks from data: k-means over the rows of `latents`, stage by stage. Called once, before the first
  /// step. Allocates. Two rates: the rows are those of whole frames, [1, frames R, 1, latent]. The long cascade starts
  /// first, and the short one from what it leaves.
  void start(Context&, View<const float> latents, uint64_t seed, const StartProgress& = {}) const;

 private:
  struct Cascade {
    int64_t stages = 0;
    const Parameter* codebooks = nullptr;
    const Parameter* counts = nullptr;
    const Parameter* sums = nullptr;
    const Weight* in_weight = nullptr;
    const Weight* out_weight = nullptr;
    const Parameter* in_bias = nullptr;
    const Parameter* out_bias = nullptr;
    const Derived* derived = nullptr;  // of the projections
  };
  /// Inputs of a cascade in training.
  struct Numbers {
    View<int32_t> stages{}, frames{};
  };
  bool factorised() const { return config_.quantizer == QuantizerKind::factorised; }
  Cascade cascade(Parameters&, const std::string& name, int64_t stages) const;
  /// `given`: where a cascade's numbers come from; null: it has its own, which the caller sets.
  Quantized plan_cascade(Plan&, const std::string& name, const Cascade&, Flow latent, int64_t stages,
                         const QuantizerUse&, const Numbers* given = nullptr) const;
  /// Columns first ... first + columns - 1 of the codes, at `positions` per frame.
  Flow plan_decode_cascade(Plan&, const std::string& name, const Cascade&, View<const int32_t> codes, int64_t first,
                           int64_t columns, int64_t positions) const;
  Quantized plan_two_rates(Plan&, Flow latent, const QuantizerUse&) const;
  Storage storage_of_layers() const;
  Flow plan_reduced(Plan&, Flow z) const;
  Flow plan_expanded(Plan&, Flow quantised) const;
  void start_cascade(Context&, const Cascade&, View<const float> latents, uint64_t seed, int64_t stages_before,
                     const StartProgress&) const;
  void start_two_rates(Context&, View<const float> latents, uint64_t seed, const StartProgress&) const;

  CodecConfig config_;
  Storage surveyed_;
  Cascade all_{}, long_{};  // with two rates, all_ is the short cascade
  std::optional<Conv1d> reduce_;
  std::optional<ConvTranspose1d> expand_;
  std::optional<ResidualUnit> synthesiser_;
};

}  // namespace nacre
