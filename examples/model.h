#pragma once
// Loads the model that a verb uses.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>

#include "nacre/codec/codec.h"
#include "nacre/formats/weights_file.h"

namespace nacre::program {

inline constexpr const char* model_help =
    "a run's folder (its best checkpoint), a checkpoint's folder or a safetensors file; also of DacModel or "
    "EncodecModel (transformers), descript-audio-codec or encodec";

/// What a model file of another program may lack.
struct ModelOptions {
  std::string config;
  std::optional<int64_t> sample_rate;
  CLI::Option* config_option = nullptr;

  /// Adds --config and --sample-rate to a verb that loads a model.
  void add_to(CLI::App& app);
};

/// As Codec::load. For a file without a configuration in its metadata, the options name one or the sample rate. Throws
/// Error(usage) if the file has what an option gives, or if both are given.
Codec load_model(Context&, const WeightsFile&, const ModelOptions&, Storage storage = Storage::float32);
Codec load_model(Context&, const std::filesystem::path& safetensors, const ModelOptions&,
                 Storage storage = Storage::float32);

}  // namespace nacre::program
