#pragma once
// The residual vector quantizer between encoder and decoder.
#include <cstdint>
#include <functional>

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
};
/// A planned quantizer. Except for `codes`, the views are empty if nothing is trained.
struct Quantized {
  Flow flow{};             ///< the quantised latent; its gradient is passed straight through
  View<int32_t> codes{};   ///< [batch, frames, 1, stages]
  View<float> losses{};    ///< [2]: commitment, codebook
  View<int32_t> stages{};  ///< [batch], input: codebooks per item
  View<int32_t> frames{};  ///< [batch], input: valid frames per item
  /// Moving-average update of the codebooks from the frames of the last run, with a decay other than training's. Used
  /// at the start of training. Empty for factorised codes.
  std::function<void(Context&, double decay)> update{};
};

/// Residual vector quantizer of either kind, with straight-through gradient and codebook training. It computes in
/// float.
class Quantizer {
 public:
  Quantizer(Parameters&, const CodecConfig&);
  Quantized plan(Plan&, Flow latent, const QuantizerUse& = {}) const;
  /// Converts codes [batch, frames, 1, stages] to the latent: the sum over the first `stages` stages, at most all.
  Flow plan_decode(Plan&, View<const int32_t> codes) const;
  /// Initialises codebooks from data: k-means over the rows of `latents`, stage by stage. Called once, before the first
  /// step. Allocates.
  void start(Context&, View<const float> latents, uint64_t seed, const StartProgress& = {}) const;

 private:
  bool factorised() const { return config_.quantizer == QuantizerKind::factorised; }
  CodecConfig config_;
  const Parameter* codebooks_ = nullptr;
  const Parameter* counts_ = nullptr;
  const Parameter* sums_ = nullptr;
  const Weight* in_weight_ = nullptr;
  const Weight* out_weight_ = nullptr;
  const Parameter* in_bias_ = nullptr;
  const Parameter* out_bias_ = nullptr;
};

}  // namespace nacre
