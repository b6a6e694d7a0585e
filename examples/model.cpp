#include "model.h"

#include "commands.h"
#include "nacre/error.h"
#include "nacre/files/safetensors.h"
#include "nacre/training/run_config.h"

namespace nacre::program {

CLI::Option* add_model_config(CLI::App& app, std::string& config) {
  return app.add_option("--config", config, "configuration of the model, for a model file without one in its metadata")
      ->type_name(config_type());
}

Codec load_model(Context& ctx, const std::filesystem::path& path, const std::string& config, Storage storage) {
  if (config.empty()) return Codec::load(ctx, path, storage);
  const CodecConfig wanted = training::RunConfig::named(config).codec;
  if (Safetensors::read(path).metadata().contains(config_metadata_key))
    throw Error(ErrorKind::usage,
                "--config " + config + ": " + path.string() + " contains its own configuration; omit --config");
  Codec codec(ctx, wanted, storage);
  load_parameters(ctx, codec.parameters(), path, true);
  return codec;
}

}  // namespace nacre::program
