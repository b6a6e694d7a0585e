#pragma once
// Writing of a codec's weights in the forms of other programs. docs/exchange.md describes them.
#include <filesystem>
#include <string>

#include "nacre/nn/parameters.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Why a model of transformers (DacModel for network "dac", EncodecModel for "encodec"), class DAC of
/// descript-audio-codec, the package encodec, or class SoundStream of audiolm-pytorch cannot hold a codec:
/// "codec.activation is elu, which DacModel does not have". Empty if it can.
std::string not_for_hugging_face(const CodecConfig&);
std::string not_for_descript(const CodecConfig&);
std::string not_for_encodec(const CodecConfig&);
std::string not_for_audiolm(const CodecConfig&);

/// Writes a folder that from_pretrained() of DacModel or EncodecModel of transformers loads: model.safetensors,
/// config.json and preprocessor_config.json. The weights of DacModel are effective ones; those of EncodecModel are
/// directions and gains. A new folder appears atomically. In an existing folder, each file is replaced atomically, the
/// weights last. Throws Error(usage) for a codec that the model cannot hold.
void save_hugging_face(Context&, const Parameters&, const CodecConfig&, const std::filesystem::path& folder);

/// Writes the state dict of descript-audio-codec's class DAC as safetensors, with the arguments of the class in the
/// metadata. Throws Error(usage) for a codec that DAC cannot hold.
void save_descript(Context&, const Parameters&, const CodecConfig&, const std::filesystem::path& safetensors);

/// Writes the state dict of the package encodec as safetensors, with the arguments of its classes in the metadata.
/// Throws Error(usage) for a codec that the package cannot hold.
void save_encodec(Context&, const Parameters&, const CodecConfig&, const std::filesystem::path& safetensors);

/// Writes the tensors of audiolm-pytorch's class SoundStream that a codec has as safetensors, with the arguments of the
/// class in the metadata. Throws Error(usage) for a codec that the class cannot hold.
void save_audiolm(Context&, const Parameters&, const CodecConfig&, const std::filesystem::path& safetensors);

}  // namespace nacre
