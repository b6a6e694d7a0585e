#include "model.h"

#include "arguments.h"
#include "commands.h"
#include "nacre/error.h"
#include "nacre/training/run_config.h"

namespace nacre::program {

void ModelOptions::add_to(CLI::App& app) {
  config_option =
      app.add_option("--config", config, "configuration of the model, for a model file without one in its metadata")
          ->type_name(config_type());
  app.add_option("--sample-rate,--sample_rate", sample_rate,
                 "Hz, for a model file of another program that does not tell it and is none of the published ones")
      ->check(between(1000, 768000));
}

Codec load_model(Context& ctx, const WeightsFile& file, const ModelOptions& o, Storage storage) {
  const std::string name = file.path().string();
  if (!o.config.empty()) {
    const CodecConfig wanted = training::RunConfig::named(o.config).codec;
    if (file.format() == WeightsFormat::nacre)
      throw Error(ErrorKind::usage,
                  "--config " + o.config + ": " + name + " contains its own configuration; omit --config");
    if (o.sample_rate)
      throw Error(ErrorKind::usage, "--sample-rate: --config " + o.config + " has the sample rate; omit --sample-rate");
    return Codec::load(ctx, file, wanted, storage);
  }
  if (o.sample_rate && file.tells_sample_rate())
    throw Error(ErrorKind::usage, "--sample-rate: " + name + " has its own sample rate; omit --sample-rate");
  return Codec::load(ctx, file, file.config(o.sample_rate.value_or(0)), storage);
}

Codec load_model(Context& ctx, const std::filesystem::path& path, const ModelOptions& o, Storage storage) {
  return load_model(ctx, WeightsFile::read(path), o, storage);
}

}  // namespace nacre::program
