#pragma once
// The verbs of the program. Each function adds its options to `app` and returns the function that runs when the verb is
// chosen. That function returns the exit code or throws nacre::Error.
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

/// Prints one object to standard output. Non-ASCII characters are escaped, so that any terminal can show it.
void print_json(const nlohmann::ordered_json&);
/// The values that --config takes, for --help and completion.
std::string config_type();

/// Prints one line to standard error, with control characters escaped.
void complain(const std::string& text);
/// Reports a defect of a file that is used nevertheless. Printed even when quiet.
void warn(const std::string& path, const std::string& warning);

inline constexpr const char* salvage_help =
    "use the intact part of truncated or damaged files, with a warning for each";

/// --device, --precision and --threads, shared by all verbs.
struct DeviceOptions {
  std::string device = "auto", precision = "fp32";
  bool stores_bf16 = false;  ///< whether the verb can store activations in bf16
  int threads = 0;
  CLI::Option *device_option = nullptr, *precision_option = nullptr, *threads_option = nullptr;
  /// `group` is the heading of the options in --help.
  void add_to(CLI::App& app, const std::string& group = "Options");
  /// "auto" selects CUDA if this build and this machine have it. A CUDA build that falls back to the CPU prints the
  /// reason to stderr.
  ContextOptions context() const;
  /// Of activations: bf16 if --precision says so.
  Storage storage() const { return precision == "bf16" ? Storage::bfloat16 : Storage::float32; }
};

}  // namespace nacre::program
