#pragma once
// Verbs and options as --help has them, for what is made from the same table: completion and the manual.
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace nacre::program {

struct OptionRow {
  std::vector<std::string> longs;    ///< "--data-dir"; spellings with '_' last
  std::vector<std::string> shorts;   ///< "-m"
  std::string description, value;    ///< what follows it, "" for flags: "MODEL"
  std::vector<std::string> choices;  ///< words that it takes
  std::string default_value;
  bool positional = false, required = false, files = false;  ///< files: the value is a path

  bool flag() const { return value.empty(); }
};
struct VerbRow {
  std::string name, description, footer;
  std::vector<OptionRow> options;
};

/// In the order of --help; `program` is the root.
std::vector<VerbRow> table_of(const CLI::App& program);

}  // namespace nacre::program
