#pragma once
// The class Codec, which owns the parameters of an encoder, a quantizer and a decoder, and runs inference.
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/systems/codec_config.h"
#include "nacre/systems/quantizer.h"
#include "nacre/systems/system.h"

namespace nacre {

class WeightsFile;

/// A model for inference: parameters, and one planned encoder and decoder per window shape. Only one call may run at a
/// time: a thread that plans, encodes or decodes while another one does gets Error(usage). Codecs of several threads
/// may share a Context.
class Codec {
 public:
  /// Parameters are allocated and zero; Parameters::initialise() or load() sets them. `storage` applies to activations
  /// and effective weights between the waveform and the latent, as in TrainingStep. The quantizer computes in float in
  /// both cases.
  Codec(Context&, CodecConfig, Storage storage = Storage::float32);
  /// Loads a safetensors file that Codec::save(), transformers (DacModel) or descript-audio-codec wrote, with the
  /// configuration that WeightsFile::config() finds (nacre/formats/weights_file.h). Throws Error(input) that names
  /// missing, surplus and misshapen tensors, up to ten of each kind.
  static Codec load(Context&, const std::filesystem::path& safetensors, Storage storage = Storage::float32);
  /// Loads the file with a given configuration.
  static Codec load(Context&, const WeightsFile&, CodecConfig, Storage storage = Storage::float32);
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
  /// Whether the half that CodecConfig::denoise names removes noise, for all items; false at first. It holds from the
  /// next encode() or decode() on. A StreamingEncoder or StreamingDecoder keeps what it was when it was made; no other
  /// thread may set it then. Throws Error(usage) for true if the configuration has Denoise::none.
  void set_denoise(bool);
  /// First 8 bytes of a hash over all tensors. It identifies the model that made a stream.
  uint64_t identity() const;

  /// Plans for audio of shape [batch, samples, 1, audio_channels]; samples must be a multiple of the hop, unless
  /// CodecConfig::takes_any_length(). An earlier plan for the same direction is discarded unless it has the same shape.
  /// Planning only one direction halves the time and the memory. `codebooks`: stages of the quantizer that are used,
  /// the first ones, up to n_codebooks; 0: all. Every code of the nearest-code search is the same for any number of
  /// them. A beam (CodecConfig::beam) looks for the best sequence of this many codes.
  enum class Use : uint8_t { encode, decode, both };
  /// Where the items of a batch end: all at the last sample, or each at a length of its own, which encode() and
  /// decode() are told. The latter takes more memory and copies, and throws Error(usage) for a network whose frames
  /// depend on the whole signal.
  enum class Ends : uint8_t { together, apart };
  void reserve_inference(int64_t batch, int64_t samples, Use = Use::both, int64_t codebooks = 0, Ends = Ends::together);
  /// audio [batch, samples, 1, audio_channels] -> codes [batch, frames, 1, codes per frame], where the frames are
  /// samples / hop rounded up. The shape must be reserved. Every item of a segmented codec is one segment. Throws
  /// Error(usage) for non-finite samples and for arguments without data. On CUDA, the sample values are not checked.
  /// `lengths`: samples of each item, 0 to all, for plans of Ends::apart; empty: all. The frames of an item are those
  /// that it has by itself, up to rounding. Its last frame is completed by zeros, and codes behind that are 0. `scales`
  /// [1, 1, 1, batch]: the scale of each item, for a codec with CodecConfig::segment_scale and for no other.
  void encode(View<const float> audio, View<int32_t> codes, std::span<const int64_t> lengths = {},
              View<float> scales = {});
  /// codes -> audio, with the shapes of encode(). Throws Error(usage) for codes outside of [0, codebook_size). On CUDA,
  /// codes are not checked but clamped to the valid range.
  /// `lengths`: frames of each item. Samples behind them are 0, and codes behind them are not read, but must be valid.
  /// `scales`: as encode() gave them, finite and positive (not checked on CUDA); the audio of each item is multiplied
  /// by its scale.
  void decode(View<const int32_t> codes, View<float> audio, std::span<const int64_t> lengths = {},
              View<const float> scales = {});
  /// Size of the plans' block in bytes.
  size_t reserved_bytes() const;
  size_t unshared_bytes() const;

 private:
  friend struct CodecBlocks;
  struct Impl;
  explicit Codec(std::unique_ptr<Impl>);
  std::unique_ptr<Impl> impl_;
};

/// Metadata key of a safetensors file that holds the codec's configuration as JSON.
inline constexpr const char* config_metadata_key = "nacre.codec";
/// Sets parameters from a safetensors file, in any form that WeightsFile reads, and reports which of the model's
/// tensors were found. Tensors that were not are reported under the file's names. strict: any difference throws
/// Error(input).
struct LoadReport {
  int64_t matched = 0;
  std::vector<std::string> missing, surplus, misshapen;
};
LoadReport load_parameters(Context&, Parameters&, const std::filesystem::path&, bool strict);

}  // namespace nacre
