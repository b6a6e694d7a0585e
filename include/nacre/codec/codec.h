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
template <class T>
class Encoder {
 public:
  Encoder(Parameters&, const CodecConfig&);
  Flow<T> plan(Plan&, Flow<T> audio);
  void forward(Context&);
  void backward(Context&);

 private:
  struct Block {
    std::vector<ResidualUnit<T>> units;
    ActivatedConv1d<T> down;
  };
  Conv1d<T> first_;
  std::vector<Block> blocks_;
  std::vector<ActivatedConv1d<T>> last_;  // one, made after the blocks
};

/// conv k7 -> blocks of (activation, transposed conv, residual units) -> activation -> conv k7 -> tanh.  The encoder's
/// mirror image.
template <class T>
class Decoder {
 public:
  Decoder(Parameters&, const CodecConfig&);
  Flow<T> plan(Plan&, Flow<T> latent);
  void forward(Context&);
  void backward(Context&);

 private:
  struct Block {
    Activation<T> activation;
    ConvTranspose1d<T> up;
    std::vector<ResidualUnit<T>> units;
  };
  Conv1d<T> first_;
  std::vector<Block> blocks_;
  std::vector<ActivatedConv1d<T>> last_;  // one, made after the blocks
  std::vector<Activation<T>> tanh_;       // one, or none
};

/// Called with 0 first, then after each part that is done.
using StartProgress = std::function<void(int64_t done, int64_t total)>;

/// Residual vector quantizer of either kind, with straight-through gradient and codebook training.
class Quantizer {
 public:
  Quantizer(Parameters&, const CodecConfig&);
  Flow<float> plan(Plan&, Flow<float> latent);
  void forward(Context&);
  void backward(Context&);
  /// Exponential-moving-average update of the codebooks from this step's frames (nothing to do for factorised codes).
  /// `step` is a device scalar that feeds the choice of replacements for dead codes, `decay` that of the averages.
  void update(Context&, View<const int32_t> step, uint64_t seed, double decay);
  /// Codebooks from data: k-means over the rows of `latents`, stage by stage. Runs once, before the first step;
  /// allocates.
  void start(Context&, View<const float> latents, uint64_t seed, const StartProgress& = {});
  /// Codes of frames [batch, frames, 1, stages] back to the latent.
  Flow<float> plan_decode(Plan&, View<const int32_t> codes);
  void decode(Context&);

  View<int32_t> codes() const { return codes_; }
  View<float> losses() const { return losses_; }    ///< [2]: commitment, codebook
  View<int32_t> stages() const { return stages_; }  ///< [batch], input: codebooks per item (training)
  View<int32_t> frames() const { return frames_; }  ///< [batch], input: valid frames per item (training)
  /// In place of the configuration's, from the next plan on.
  void set_beam(int64_t beam) { config_.beam = beam; }
  void set_weights(float commitment, float codebook) { commitment_ = commitment, codebook_ = codebook; }
  /// Whether the quantisation error is kept out of the latent's gradient (RvqBackward); factorised codes: without effect.
  void set_orthogonal(bool orthogonal) { orthogonal_ = orthogonal && !factorised(); }

 private:
  RvqProjections projections() const;
  void plan_projections(Plan&);
  void refresh_projections(Context&);
  bool factorised() const { return config_.quantizer == QuantizerKind::factorised; }
  CodecConfig config_;
  Parameter* codebooks_ = nullptr;
  Parameter* counts_ = nullptr;
  Parameter* sums_ = nullptr;
  Weight* in_weight_ = nullptr;
  Weight* out_weight_ = nullptr;
  Parameter* in_bias_ = nullptr;
  Parameter* out_bias_ = nullptr;
  float commitment_ = 1.0f, codebook_ = 1.0f;
  bool orthogonal_ = false;
  int64_t beam_ = 1;
  Read<float> z_;
  Made<float> y_;
  View<int32_t> codes_, stages_, frames_;
  View<const int32_t> decode_codes_;
  View<float> in_weight32_, out_weight32_;  ///< of a model that stores weights in bf16
  View<float> quantised_, losses_, forward_scratch_, backward_scratch_, update_scratch_;
};

/// Draws every parameter of the model, a pure function of (seed, name): convolutions uniform in +-1/sqrt(fan in), as
/// PyTorch's default, gains equal to the norm, biases zero (of transposed convolutions uniform as their weights), alpha
/// one, codebooks standard normal.
void initialise(Context&, Parameters&, const CodecConfig&, uint64_t seed);

/// A model for inference: parameters, and one planned encoder and decoder per window shape. One call at a time: a thread
/// that plans, encodes or decodes while another does gets Error(usage). Codecs of several threads may share a Context.
class Codec {
 public:
  /// Parameters are allocated and zero; initialise() or load() fills them.
  Codec(Context&, CodecConfig);
  /// Loads model.safetensors whose metadata holds the config. Throws Error(input) listing every missing, surplus or
  /// misshapen tensor.
  static Codec load(Context&, const std::filesystem::path& safetensors);
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
