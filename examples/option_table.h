#pragma once
// The verbs and options that --help shows, as a table for completion and the manual page.
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace nacre::program {

struct OptionRow {
  std::vector<std::string> longs;    ///< "--data-dir"; spellings with '_' last
  std::vector<std::string> shorts;   ///< "-m"
  std::string description, value;    ///< name of its value, "" for flags: "MODEL"
  std::vector<std::string> choices;  ///< words that it accepts
  std::string default_value;
  bool positional = false, required = false, files = false;  ///< files: the value is a path

  bool flag() const { return value.empty(); }
};
struct VerbRow {
  std::string name, description, footer;
  std::vector<OptionRow> options;
};

/// The rows in the order of --help. `program` is the root command.
std::vector<VerbRow> table_of(const CLI::App& program);

}  // namespace nacre::program
