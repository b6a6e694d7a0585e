#pragma once
// What somebody may have meant who wrote a name that nobody has.
#include <string>
#include <string_view>
#include <vector>

namespace nacre {

/// The one of `names` that `word` is most probably a misspelling of, or "" if none is close: letters left out, added,
/// changed or swapped (case, '-' and '_' count as the same), at most one in three of the word's; or the only name that
/// begins with the word.
std::string nearest(std::string_view word, const std::vector<std::string>& names);
/// "; did you mean 'encode'?", or "" if no name is close.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& names);
/// "a", "a or b", "a, b or c"; `last` is the word before the last one.
std::string listed(const std::vector<std::string>& names, std::string_view last = "or");

}  // namespace nacre
