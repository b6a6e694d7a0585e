#pragma once
// What the two programs with EnCodec have in common.
#include <set>
#include <string>

#include "files/owned_tensors.h"
#include "nacre/nn/parameters.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Why EncodecModel of transformers cannot hold a codec of network "encodec"; "" if it can.
std::string not_for_encodec_model(const CodecConfig&);
/// All tensors of EncodecModel, and its files.
OwnedTensors encodec_model_tensors(Context&, const Parameters&);
std::string encodec_model_json(const CodecConfig&);
std::string encodec_preprocessor_json(const CodecConfig&);

}  // namespace nacre
