#pragma once
// The table of `nacre info --systems`, and what a codec costs.
#include <nlohmann/json.hpp>
#include <string>

#include "nacre/systems/codec_config.h"

namespace nacre::program {

/// Parameters and multiply-adds per second of audio: "encoder_macs", "decoder_macs" and "decoder_macs_profiled".
nlohmann::ordered_json complexity(const CodecConfig&);
/// The same as one line of text.
std::string complexity_line(const nlohmann::ordered_json& complexity);

/// One object per built-in configuration, in their order.
nlohmann::ordered_json systems();
/// The same as lines of text with one row each.
std::string systems_table(const nlohmann::ordered_json& systems);

}  // namespace nacre::program
