#pragma once
// Files of weights that this library or other programs wrote, read under the names and shapes of this library. What is
// accepted is described in docs/exchange.md.
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nacre/files/safetensors.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Which program's names a file of weights has. It is recognised by content, never by the file's name.
enum class WeightsFormat : uint8_t {
  nacre,                 ///< the metadata hold a configuration of this library
  descript,              ///< state dict of descript-audio-codec; its names are those of this library
  hugging_face,          ///< DacModel of transformers
  hugging_face_encodec,  ///< EncodecModel of transformers
  encodec,               ///< state dict of the package encodec
  audiolm,               ///< state dict of SoundStream in audiolm-pytorch
  other                  ///< none of these; tensors are looked up under this library's names
};
/// "nacre", "descript", "hf" (both models of transformers), "encodec", "audiolm", "other"
const char* str(WeightsFormat) noexcept;
/// The program for people: "descript-audio-codec", "transformers (DacModel)"; "" for nacre and other.
const char* program_of(WeightsFormat) noexcept;

/// Metadata key of a safetensors file that holds, as JSON, the arguments of descript-audio-codec's class DAC, of the
/// classes of the package encodec, or of audiolm-pytorch's class SoundStream.
inline constexpr const char* kwargs_metadata_key = "kwargs";

/// The name of a tensor of this library's "dac" network in DacModel, or "" if DacModel has no such tensor. The names
/// depend on the number of strides of the encoder and of the decoder.
std::string hugging_face_name(std::string_view name, size_t encoder_strides, size_t decoder_strides);

/// The name of a tensor of this library's "encodec" network in EncodecModel of transformers, or in the state dict of
/// the package encodec. The package names transposed convolutions differently; `transposed` has the numbers of the
/// decoder's layers that are transposed convolutions.
std::string hugging_face_encodec_name(std::string_view name);
std::string encodec_name(std::string_view name, const std::set<size_t>& transposed);

/// The name of a tensor of this library's "soundstream" network, of activation_order "after" and with three residual
/// units per stride, in audiolm-pytorch's SoundStream, or "" if it has no such tensor. `strides`: their number.
std::string audiolm_name(std::string_view name, size_t strides);

/// A safetensors file of a codec's weights. Tensors are found under the names of this library, whichever names and
/// whichever of three forms of weight normalisation the file has: weight_g and weight_v,
/// parametrizations.weight.original0 and original1, or the product of both as weight. From the product w, v = w and
/// g = |w| of each row of the first axis. Where EnCodec's codebooks come without their moving averages, each code
/// counts once.
class WeightsFile {
 public:
  /// Throws Error(input) for a file that is no safetensors file (a pickled one is named), that has values that are not
  /// finite, that mixes forms of weight normalisation in one layer, or that has parts of audiolm-pytorch's SoundStream
  /// which this library lacks.
  static WeightsFile read(const std::filesystem::path&);

  const std::filesystem::path& path() const noexcept { return path_; }
  WeightsFormat format() const noexcept { return format_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return file_.metadata(); }
  /// Whether the file, or config.json beside it, tells the sample rate.
  bool tells_sample_rate() const noexcept;
  /// The codec's configuration: from the metadata, from config.json beside a model of transformers, or else from the
  /// shapes of the tensors. Shapes do not tell the sample rate. It is `sample_rate` if that is positive, or else that
  /// of the published model with the same strides and number of codebooks. Throws Error(input) if there is no
  /// configuration, or none that a codec can have.
  CodecConfig config(int64_t sample_rate = 0) const;

  /// Where the values of one of the model's tensors are in the file.
  struct Place {
    enum Take : uint8_t {
      values,  ///< the tensor's values
      norms,   ///< the norms of the tensor's rows: a gain that only the effective weight tells
      ones,    ///< one per row of the tensor: counts of codes, which the file lacks
      copy     ///< the tensor's values, in place of another tensor that the file lacks: averages of codes
    };
    const StoredTensor* tensor = nullptr;  ///< null: the file does not have it
    Take take = values;
    bool headed = false;  ///< the file's tensor has one more axis, the first one, of length 1
  };
  Place find(const std::string& name) const;
  /// The name under which the file has or would have the model's tensor `name`.
  std::string name_of(const std::string& name) const;
  /// Whether a tensor has the model's shape. A vector fits alpha's [1, channels, 1].
  static bool fits(const Place&, const std::string& name, const std::vector<int64_t>& shape) noexcept;
  static std::vector<float> values(const Place&);
  /// Whether a tensor has nothing for this library: flags of EnCodec's codebooks; of audiolm-pytorch also
  /// discriminators, spectrograms and the conditioning by which it denoises.
  bool ignored(const StoredTensor&) const noexcept;
  /// All tensors of the file, under their own names.
  std::span<const StoredTensor> tensors() const& noexcept { return file_.tensors(); }

 private:
  WeightsFile(std::filesystem::path path, Safetensors file);
  void recognise();
  void refuse_mixtures() const;
  std::vector<int64_t> shape_of(const std::string& name) const;
  CodecConfig config_by_keys(const std::string& source) const;
  CodecConfig config_by_shapes() const;
  bool of_dac() const noexcept;
  bool of_encodec() const noexcept;
  std::string mapped(const std::string& name) const;
  std::vector<int64_t> strides_of(const std::vector<std::string>& convs) const;
  int64_t codebooks() const;
  CodecConfig encodec_by_keys(const std::string& source) const;
  CodecConfig encodec_by_shapes() const;
  void refuse_parts_of_audiolm() const;
  CodecConfig audiolm_by_keys(const std::string& source) const;
  CodecConfig audiolm_by_shapes() const;

  std::filesystem::path path_;
  Safetensors file_;
  WeightsFormat format_ = WeightsFormat::other;
  std::string told_;  ///< JSON beside or in the file: config.json, or arguments of classes
  std::map<std::string, const StoredTensor*, std::less<>> named_;  ///< by name without prefixes such as "module."
  size_t encoder_strides_ = 0, decoder_strides_ = 0;               ///< of DacModel and audiolm-pytorch
  std::set<size_t> transposed_;  ///< layers of EnCodec's decoder
  int form_ = 0;  ///< of the weight normalisation of most layers
};

}  // namespace nacre
