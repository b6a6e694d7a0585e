#pragma once
// The words of a command line against the verbs and options there are, before CLI11 converts their values: what nobody
// knows is told first and by its name, with the nearest name that exists.
#include <CLI/CLI.hpp>
#include <limits>
#include <string>
#include <vector>

namespace nacre::program {

/// The same request in words that cannot be read two ways: VERB --name=value ... -- inputs... (CLI11 would take an input
/// that is called like a verb for one.) A request for help, in any of its forms, becomes VERB --help. Throws Error(usage).
std::vector<std::string> arranged(CLI::App& program, const std::vector<std::string>& typed);

/// A word as messages name it: in quotes, control characters escaped, long ones cut.
std::string named(const std::string& word);
/// What CLI11 still found, in our words.
std::string reason(const CLI::ParseError&);

/// Checks for options; what is allowed is in their text, for --help, completion and the manual.
CLI::Validator one_of(std::vector<std::string> names);
CLI::Validator between(int64_t low, int64_t high);
CLI::Validator at_least(int64_t low);
/// Numbers; NaN never passes.
CLI::Validator above_zero();
CLI::Validator part();  ///< 0 to 1
CLI::Validator zero_or_more();

}  // namespace nacre::program
