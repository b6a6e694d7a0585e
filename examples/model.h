#pragma once
// Loads the model that a verb uses.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "nacre/codec/codec.h"

namespace nacre::program {

inline constexpr const char* model_help =
    "a run's folder (its best checkpoint), a checkpoint's folder or a safetensors file";

/// Adds --config to a verb that loads a model.
CLI::Option* add_model_config(CLI::App& app, std::string& config);

/// As Codec::load. For a file without a configuration in its metadata, `config` names one; if it is "", the file must
/// have one. Throws Error(usage) if both are given.
Codec load_model(Context&, const std::filesystem::path& safetensors, const std::string& config,
                 Storage storage = Storage::float32);

}  // namespace nacre::program
