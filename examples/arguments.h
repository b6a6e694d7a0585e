#pragma once
// Checks the words of a command line against the existing verbs and options before CLI11 converts their values. An
// unknown word is reported first, by its name and with the nearest name that exists.
#include <CLI/CLI.hpp>
#include <limits>
#include <string>
#include <vector>

namespace nacre::program {

/// Rewrites the words into an unambiguous form: VERB --name=value ... -- inputs... (CLI11 would take an input named
/// like a verb for that verb.) A request for help in any form becomes VERB --help. Throws Error(usage).
std::vector<std::string> arranged(CLI::App& program, const std::vector<std::string>& typed);

/// A word as messages show it: quoted, control characters escaped, shortened if long.
std::string named(const std::string& word);
/// The text of an error that CLI11 reports, in the style of this program.
std::string reason(const CLI::ParseError&);

/// Validators of options. Their text states what is allowed, for --help, completion and the manual.
CLI::Validator one_of(std::vector<std::string> names);
CLI::Validator between(int64_t low, int64_t high);
CLI::Validator at_least(int64_t low);
/// Validators of numbers. They refuse NaN.
CLI::Validator above_zero();
CLI::Validator part();  ///< 0 to 1
CLI::Validator zero_or_more();
CLI::Validator finite_zero_or_more();

}  // namespace nacre::program
