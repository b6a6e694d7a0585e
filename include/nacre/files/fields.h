#pragma once
// Keys of a configuration and their limits. Beside every configuration struct there is a function
//   template <class V> void fields(V& v, Config& c);
// that calls v(key, member, limits, help) for each key. It is the only place that spells the key, its limits and its
// meaning. Reading, writing, checking and listing are visitors (lib/files/fields.h).
#include <cstdint>
#include <string>
#include <vector>

#include "nacre/cxx20.h"

namespace nacre::field {

/// A bound of a range, with its text in messages.
struct End {
  End(int);
  End(int64_t);
  End(double);
  double value;
  std::string text;
  bool open = false;  ///< the bound itself is excluded
};
End above(End);
End below(End);

struct Limits {
  Limits(End low_end, End high_end, std::string range_text)
      : low(std::move(low_end)), high(std::move(high_end)), text(std::move(range_text)) {}
  /// False for NaN.
  bool holds(double) const;
  /// Adds the meaning of 0 to the text: "0 (none) or more".
  Limits zero(const std::string& meaning) const;

  End low, high;                   ///< of a number, or of each entry of a list
  std::string text;                ///< "1 to 4096"
  std::vector<std::string> words;  ///< that a word can be; of an enumeration, in the order of its enumerators
  size_t fewest = 0, most = SIZE_MAX;
  std::string entries;  ///< name of a list's entries in messages; may be empty
};

Limits range(End low, End high);  ///< "1 to 4096", "0 to below 1", "above 0, at most 10"
Limits at_least(End low);         ///< "0 or more", "above 0"
/// `cap` is beyond all values of practical use, so messages do not show it.
Limits at_least(End low, End cap);
Limits words(std::vector<std::string>);
Limits flag();
Limits list(Limits entry, size_t fewest, size_t most, std::string entries = "");
/// Limits that depend on other keys or follow a rule. The struct's check() enforces them.
Limits described(std::string text);

}  // namespace nacre::field
