#pragma once
// What a key of a configuration may be. Beside every configuration struct stands
//   template <class V> void fields(V& v, Config& c);
// which calls v(key, member, limits, help) for each key: the one place that spells the key, its limits and its meaning.
// Reading, writing, checking and listing are visitors (lib/files/fields.h).
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/cxx20.h"

namespace nacre::field {

/// An end of a range, with the text that messages show.
struct End {
  End(int);
  End(int64_t);
  End(double);
  double value;
  std::string text;
  bool open = false;  ///< the end itself is excluded
};
End above(End);
End below(End);

struct Limits {
  Limits(End low_end, End high_end, std::string range_text)
      : low(std::move(low_end)), high(std::move(high_end)), text(std::move(range_text)) {}
  /// NaN is in no range.
  bool holds(double) const;
  /// Says what 0 stands for: "0 (none) or more".
  Limits zero(const std::string& meaning) const;

  End low, high;                   ///< of a number, or of each entry of a list
  std::string text;                ///< "1 to 4096"
  std::vector<std::string> words;  ///< of an enumeration, in the order of its enumerators
  size_t fewest = 0, most = SIZE_MAX;
  std::string entries;  ///< what a list's entries are called in messages; may be empty
};

Limits range(End low, End high);  ///< "1 to 4096", "0 to below 1", "above 0, at most 10"
Limits at_least(End low);         ///< "0 or more", "above 0"
/// Messages do not show `cap`: it is beyond all values of practical use.
Limits at_least(End low, End cap);
Limits words(std::vector<std::string>);
Limits flag();
Limits list(Limits entry, size_t fewest, size_t most, std::string entries = "");
/// Limits that depend on other keys or take a rule: the struct's check() holds them.
Limits described(std::string text);

}  // namespace nacre::field
