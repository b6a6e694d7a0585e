#pragma once
// The codec: encoder, residual quantizer and decoder in the topology of DAC (Kumar et al. 2023, arXiv 2306.06546,
// section 3), and the class Codec, which owns parameters and runs inference.
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "nacre/codec/codec_config.h"
#include "nacre/nn/layers.h"
#include "nacre/ops/rvq.h"

namespace nacre {

/// [B, T, 1, 1] -> [B, T / hop, 1, latent]
/// conv k7 -> blocks of (residual units, activation, strided conv) -> activation -> conv k3
class Encoder {
 public:
  Encoder(Parameters&, const CodecConfig&);
  Flow plan(Plan& p, Flow audio) const { return layers_.plan(p, audio); }

 private:
  Chain layers_;
};

/// [B, T / hop, 1, latent] -> [B, T, 1, 1], the mirror image of the encoder:
/// conv k7 -> blocks of (activation, transposed conv, residual units) -> activation -> conv k7 -> tanh
class Decoder {
 public:
  Decoder(Parameters&, const CodecConfig&);
  Flow plan(Plan& p, Flow latent) const { return layers_.plan(p, latent); }

 private:
  Chain layers_;
};

/// Progress callback of a codebook start: called first with 0, then after each completed part.
using StartProgress = std::function<void(int64_t done, int64_t total)>;

/// How a quantizer is planned. The defaults are the settings for inference.
struct QuantizerUse {
  int64_t beam = 0;  ///< beam width: code sequences kept per frame; 0: the configuration's. Training always uses 1
  float commitment_weight = 1;
  float codebook_weight = 1;  ///< weight of the codebook loss, for codebooks that get gradients
  /// Removes the quantisation error from the latent's gradient (RvqBackward). No effect on factorised codes.
  bool orthogonal = false;
  /// Device scalar that selects the replacements of dead codes. If it is given, every run updates the codebooks from
  /// their moving averages. Factorised codes have no such update.
  View<const int32_t> step{};
  uint64_t seed = 0;
};
/// A planned quantizer. Except for `codes`, the views are empty if nothing is trained.
struct Quantized {
  Flow flow{};              ///< the quantised latent; its gradient is passed straight through
  View<int32_t> codes{};    ///< [batch, frames, 1, stages]
  View<float> losses{};     ///< [2]: commitment, codebook
  View<int32_t> stages{};   ///< [batch], input: codebooks per item
  View<int32_t> frames{};   ///< [batch], input: valid frames per item
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
  /// Converts codes [batch, frames, 1, stages] to the latent.
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

/// A model for inference: parameters, and one planned encoder and decoder per window shape. Only one call may run at a
/// time: a thread that plans, encodes or decodes while another one does gets Error(usage). Codecs of several threads
/// may share a Context.
class Codec {
 public:
  /// Parameters are allocated and zero; Parameters::initialise() or load() sets them. `storage` applies to activations
  /// and effective weights between the waveform and the latent, as in TrainingStep. The quantizer computes in float in
  /// both cases.
  Codec(Context&, CodecConfig, Storage storage = Storage::float32);
  /// Loads a safetensors file whose metadata holds the configuration. Throws Error(input) that lists every missing,
  /// surplus or misshapen tensor.
  static Codec load(Context&, const std::filesystem::path& safetensors, Storage storage = Storage::float32);
  void save(const std::filesystem::path& safetensors, const std::map<std::string, std::string>& metadata = {}) const;
  Codec(Codec&&) noexcept;
  Codec& operator=(Codec&&) noexcept;
  ~Codec();

  Context& context() const noexcept;
  const CodecConfig& config() const noexcept;
  Parameters& parameters() noexcept;
  /// Sets the beam width: code sequences that encode() keeps per frame, in place of the configuration's. Decoding is
  /// unaffected. Discards the plan for encoding. Throws Error(usage) for a beam that the configuration cannot have.
  void set_beam(int64_t beam);
  /// First 8 bytes of a hash over all tensors. It identifies the model that made a stream.
  uint64_t identity() const;

  /// Plans for audio of shape [batch, samples, 1, 1]; samples must be a multiple of the hop. An earlier plan for the
  /// same direction is discarded unless it has the same shape. Planning only one direction halves the time and the
  /// memory.
  enum class Use : uint8_t { encode, decode, both };
  void reserve_inference(int64_t batch, int64_t samples, Use = Use::both);
  /// audio [batch, samples, 1, 1] -> codes [batch, samples / hop, 1, n_codebooks]. The shape must be reserved. Throws
  /// Error(usage) for non-finite samples and for arguments without data. On CUDA, the sample values are not checked.
  void encode(View<const float> audio, View<int32_t> codes);
  /// codes -> audio, with the shapes of encode(). Throws Error(usage) for codes outside of [0, codebook_size). On CUDA,
  /// codes are not checked but clamped to the valid range.
  void decode(View<const int32_t> codes, View<float> audio);
  /// Size of the plans' block in bytes.
  size_t reserved_bytes() const;
  size_t unshared_bytes() const;

 private:
  struct Impl;
  explicit Codec(std::unique_ptr<Impl>);
  std::unique_ptr<Impl> impl_;
};

/// Metadata key of a safetensors file that holds the codec's configuration as JSON.
inline constexpr const char* config_metadata_key = "nacre.codec";
/// Sets parameters from a safetensors file and reports which tensors matched. strict: any difference throws
/// Error(input).
struct LoadReport {
  int64_t matched = 0;
  std::vector<std::string> missing, surplus, misshapen;
};
LoadReport load_parameters(Context&, Parameters&, const std::filesystem::path&, bool strict);

}  // namespace nacre
