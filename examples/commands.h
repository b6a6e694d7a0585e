#pragma once
// The verbs of the program. Each adds its options to `app` and returns what to run when the verb is chosen: a function that
// returns the exit code or throws nacre::Error.
#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "nacre/context.h"

namespace nacre::program {

using Command = std::function<int()>;
Command add_train(CLI::App& app);
Command add_encode(CLI::App& app);
Command add_decode(CLI::App& app);
Command add_eval(CLI::App& app);
Command add_info(CLI::App& app);
Command add_export(CLI::App& app);
Command add_report(CLI::App& app);

/// --device, --precision and --threads, the same everywhere.
struct DeviceOptions {
  std::string device = "auto", precision = "fp32";
  bool stores_bf16 = false;  ///< of the verb: whether it can keep activations in bf16
  int threads = 0;
  void add_to(CLI::App& app);
  /// "auto" takes CUDA where this build and this machine have it; a CUDA build that falls back to the CPU says on stderr
  /// why.
  ContextOptions context() const;
};

}  // namespace nacre::program
