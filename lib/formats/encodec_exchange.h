#pragma once
// What the two programs with EnCodec have in common.
#include <cstdint>
#include <set>
#include <string>

#include "files/owned_tensors.h"
#include "nacre/nn/parameters.h"
#include "nacre/systems/codec_config.h"

namespace nacre {

/// Both programs are told segments in seconds, and their overlap as a part of them. These count samples of both in
/// double as the programs do, rounding down; what double cannot hold is limited.
int64_t segment_of(double seconds, int64_t sample_rate);
int64_t stride_of(double overlap, int64_t segment);
/// Numbers of which those make the given samples again: of the segment, at least 1; of the stride, half a segment to a
/// whole one.
double seconds_of(int64_t segment, int64_t sample_rate);
double overlap_of(int64_t stride, int64_t segment);

/// Why EncodecModel of transformers cannot hold a codec of network "encodec"; "" if it can.
std::string not_for_encodec_model(const CodecConfig&);
/// All tensors of EncodecModel, and its files.
OwnedTensors encodec_model_tensors(Context&, const Parameters&);
std::string encodec_model_json(const CodecConfig&);
std::string encodec_preprocessor_json(const CodecConfig&);

}  // namespace nacre
