#pragma once
// The verbs of the program. Each adds its options to `app` and returns what to run when the verb is chosen: a function that
// returns the exit code or throws nacre::Error.
#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json_fwd.hpp>
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
Command add_completion(CLI::App& app);
Command add_man(CLI::App& app);

/// One object, on standard output; what is not ASCII is escaped, so that a terminal may see it.
void print_json(const nlohmann::ordered_json&);
/// What --config takes, for --help and completion.
std::string config_type();

/// One line on standard error, with control characters escaped.
void complain(const std::string& text);
/// That a file is used although something is wrong with it: said even when quiet.
void warn(const std::string& path, const std::string& warning);

inline constexpr const char* salvage_help =
    "take what is whole of files that are cut short or damaged, with a warning each";

/// --device, --precision and --threads, the same everywhere.
struct DeviceOptions {
  std::string device = "auto", precision = "fp32";
  bool stores_bf16 = false;  ///< of the verb: whether it can keep activations in bf16
  int threads = 0;
  CLI::Option *device_option = nullptr, *precision_option = nullptr, *threads_option = nullptr;
  /// `group`: their heading in --help.
  void add_to(CLI::App& app, const std::string& group = "Options");
  /// "auto" takes CUDA where this build and this machine have it; a CUDA build that falls back to the CPU says on stderr
  /// why.
  ContextOptions context() const;
  /// Of activations: bf16 if --precision says so.
  Storage storage() const { return precision == "bf16" ? Storage::bfloat16 : Storage::float32; }
};

}  // namespace nacre::program
