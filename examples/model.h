#pragma once
// The model that a verb works with.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "nacre/codec/codec.h"

namespace nacre::program {

inline constexpr const char* model_help =
    "a run's folder (its best checkpoint), a checkpoint's folder or a safetensors file";

/// --config of a verb that loads a model.
CLI::Option* add_model_config(CLI::App& app, std::string& config);

/// Codec::load, and for a file without a configuration in its metadata the one that `config` names; "": there must be one
/// in the file. Throws Error(usage) where both are given.
Codec load_model(Context&, const std::filesystem::path& safetensors, const std::string& config,
                 Storage storage = Storage::float32);

}  // namespace nacre::program
