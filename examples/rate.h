#pragma once
// --n-codebooks and --bitrate: how many codebooks of a model a verb uses.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>

#include "nacre/systems/codec_config.h"

namespace nacre::program {

struct RateOptions {
  std::optional<int64_t> n_codebooks;
  std::optional<double> bitrate;  ///< kbit/s of the channels that are coded together

  /// `codebooks_help` describes --n-codebooks.
  void add_to(CLI::App& app, const char* codebooks_help);
  /// Throws Error(usage) if both are given.
  void check() const;
  bool given() const { return n_codebooks || bitrate; }
  /// The number of codebooks of this model that the options ask for, or 0 (all) without options. Throws Error(usage)
  /// with the range for what the model cannot have.
  int64_t codebooks(const CodecConfig&) const;
};

}  // namespace nacre::program
