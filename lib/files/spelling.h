#pragma once
// Suggestions for misspelt names.
#include <string>
#include <string_view>
#include <vector>

namespace nacre {

/// The entry of `names` that `word` most probably misspells, or "" if none is close. Letters may be omitted, added,
/// changed or swapped, in at most one of three letters of the word; case is ignored, and '-' equals '_'. A word that is
/// the beginning of only one name gives that name.
std::string nearest(std::string_view word, const std::vector<std::string>& names);
/// "; did you mean 'encode'?", or "" if no name is close.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& names);
/// "a", "a or b", "a, b or c". `last` is the conjunction before the last name.
std::string listed(const std::vector<std::string>& names, std::string_view last = "or");

}  // namespace nacre
