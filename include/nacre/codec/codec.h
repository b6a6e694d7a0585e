#pragma once
// The codec: encoder, residual quantizer, decoder, in the topology of DAC (Kumar et al. 2023, arXiv 2306.06546, section
// 3), and a Codec that owns parameters and runs inference.
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

/// conv k7 -> blocks of (residual units, activation, strided conv) -> activation -> conv k3.  [B, T, 1, 1] -> [B, T /
/// hop, 1, latent]
class Encoder {
 public:
  Encoder(Parameters&, const CodecConfig&);
  Flow plan(Plan& p, Flow audio) const { return layers_.plan(p, audio); }

 private:
  Chain layers_;
};

/// conv k7 -> blocks of (activation, transposed conv, residual units) -> activation -> conv k7 -> tanh.  The encoder's
/// mirror image.
class Decoder {
 public:
  Decoder(Parameters&, const CodecConfig&);
  Flow plan(Plan& p, Flow latent) const { return layers_.plan(p, latent); }

 private:
  Chain layers_;
};

/// Called with 0 first, then after each part that is done.
using StartProgress = std::function<void(int64_t done, int64_t total)>;

/// How a quantizer is planned. The defaults are those of inference.
struct QuantizerUse {
  int64_t beam = 0;  ///< code sequences kept per frame, 0: the configuration's; training takes the nearest codes
  float commitment_weight = 1;
  float codebook_weight = 1;  ///< of codebooks that get gradients
  /// The quantisation error is kept out of the latent's gradient (RvqBackward); without effect on factorised codes.
  bool orthogonal = false;
  /// A device scalar that feeds the choice of replacements for dead codes. Where it is given, the codebooks follow their
  /// moving averages in every run (nothing to do for factorised codes).
  View<const int32_t> step{};
  uint64_t seed = 0;
};
/// What a quantizer is in one place of a plan. The views are empty where nothing is trained, except the codes.
struct Quantized {
  Flow flow{};              ///< the quantised latent; its gradient passes straight through
  View<int32_t> codes{};    ///< [batch, frames, 1, stages]
  View<float> losses{};     ///< [2]: commitment, codebook
  View<int32_t> stages{};   ///< [batch], input: codebooks per item
  View<int32_t> frames{};   ///< [batch], input: valid frames per item
  /// Moving-average update of the codebooks from the frames of the last run, by another decay than training's: for the
  /// start of training. Empty for factorised codes.
  std::function<void(Context&, double decay)> update{};
};

/// Residual vector quantizer of either kind, with straight-through gradient and codebook training. It works on floats.
class Quantizer {
 public:
  Quantizer(Parameters&, const CodecConfig&);
  Quantized plan(Plan&, Flow latent, const QuantizerUse& = {}) const;
  /// Codes [batch, frames, 1, stages] back to the latent.
  Flow plan_decode(Plan&, View<const int32_t> codes) const;
  /// Codebooks from data: k-means over the rows of `latents`, stage by stage. Runs once, before the first step;
  /// allocates.
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

/// A model for inference: parameters, and one planned encoder and decoder per window shape. One call at a time: a thread
/// that plans, encodes or decodes while another does gets Error(usage). Codecs of several threads may share a Context.
class Codec {
 public:
  /// Parameters are allocated and zero; Parameters::initialise() or load() fills them. storage: of activations and
  /// effective weights between the waveform and the latent, as in TrainingStep; the quantizer works on floats in either
  /// case.
  Codec(Context&, CodecConfig, Storage storage = Storage::float32);
  /// Loads model.safetensors whose metadata holds the config. Throws Error(input) listing every missing, surplus or
  /// misshapen tensor.
  static Codec load(Context&, const std::filesystem::path& safetensors, Storage storage = Storage::float32);
  void save(const std::filesystem::path& safetensors, const std::map<std::string, std::string>& metadata = {}) const;
  Codec(Codec&&) noexcept;
  Codec& operator=(Codec&&) noexcept;
  ~Codec();

  Context& context() const noexcept;
  const CodecConfig& config() const noexcept;
  Parameters& parameters() noexcept;
  /// Code sequences that encode() keeps per frame, in place of the configuration's; decoding does not know of it. What
  /// was planned for encoding is dropped. A beam that the configuration cannot have throws Error(usage).
  void set_beam(int64_t beam);
  /// First 8 bytes of a hash over all tensors: which model made a stream.
  uint64_t identity() const;

  /// Plans for [batch, samples] of audio; samples must be a multiple of the hop. What was planned before in that
  /// direction is dropped, unless it is the same shape. Planning only what is used halves its time and memory.
  enum class Use : uint8_t { encode, decode, both };
  void reserve_inference(int64_t batch, int64_t samples, Use = Use::both);
  /// audio [batch, samples, 1, 1] -> codes [batch, samples / hop, 1, n_codebooks]. The shape must be reserved. Samples
  /// that are not finite, or an argument without data, throw Error(usage); on CUDA the values are not looked at.
  void encode(View<const float> audio, View<int32_t> codes);
  /// codes -> audio of the same shapes. Codes outside of [0, codebook_size) throw Error(usage); on CUDA they are not
  /// looked at, and the nearest that exist are taken.
  void decode(View<const int32_t> codes, View<float> audio);
  /// Bytes of the plan's block.
  size_t reserved_bytes() const;
  size_t unshared_bytes() const;

 private:
  struct Impl;
  explicit Codec(std::unique_ptr<Impl>);
  std::unique_ptr<Impl> impl_;
};

/// Metadata key of model.safetensors that holds the codec's configuration as JSON.
inline constexpr const char* config_metadata_key = "nacre.codec";
/// Sets parameters from a safetensors file; what matched and what did not. strict: any difference throws Error(input).
struct LoadReport {
  int64_t matched = 0;
  std::vector<std::string> missing, surplus, misshapen;
};
LoadReport load_parameters(Context&, Parameters&, const std::filesystem::path&, bool strict);

}  // namespace nacre
