// Limits of configuration keys, and reading, writing and checking of the values that Field points to. The keys
// themselves stand in the fields() functions of the configuration structs (nacre/files/fields.h).
#include "files/fields.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>

#include "files/spelling.h"
#include "files/text.h"
#include "nacre/error.h"

namespace nacre {

using nlohmann::json;

namespace field {
namespace {

/// Examples: "0.5", "1e6".
std::string limit_text(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  std::string short_text = text;
  // "1e+06" becomes "1e6".
  if (const size_t at = short_text.find("e+0"); at != std::string::npos) short_text.erase(at + 1, 2);
  return short_text;
}
constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

End::End(int x) : End(int64_t{x}) {}
End::End(int64_t x) : value(static_cast<double>(x)), text(std::to_string(x)) {}
End::End(double x) : value(x), text(limit_text(x)) {}

End above(End e) {
  e.open = true;
  return e;
}
End below(End e) { return above(std::move(e)); }

bool Limits::holds(double x) const {
  return (low.open ? x > low.value : x >= low.value) && (high.open ? x < high.value : x <= high.value);
}
Limits Limits::zero(const std::string& meaning) const {
  Limits l = *this;
  // Behind the 0 of "0 to ..." or "0 or more".
  l.text.insert(l.text.find('0') + 1, " (" + meaning + ")");
  return l;
}

Limits range(End low, End high) {
  const std::string text = low.open ? "above " + low.text + (high.open ? ", below " : ", at most ") + high.text
                                    : low.text + (high.open ? " to below " : " to ") + high.text;
  return {std::move(low), std::move(high), text};
}
Limits at_least(End low, End cap) {
  const std::string text = low.open ? "above " + low.text : low.text + " or more";
  return {std::move(low), std::move(cap), text};
}
Limits at_least(End low) { return at_least(std::move(low), infinity); }
Limits described(std::string text) { return {-infinity, infinity, std::move(text)}; }
Limits flag() { return described("true or false"); }
Limits words(std::vector<std::string> all) {
  Limits l = described(listed(all));
  l.words = std::move(all);
  return l;
}
Limits list(Limits entry, size_t fewest, size_t most, std::string entries) {
  entry.fewest = fewest, entry.most = most, entry.entries = std::move(entries);
  return entry;
}

}  // namespace field

namespace {

// In the order of the alternatives of Field::Value.
constexpr const char* types[] = {"integer", "integer", "number", "boolean", "list of integers", "word", "word"};
constexpr const char* expected_types[] = {"an integer of 64 bits",
                                          "an integer of 64 bits",
                                          "a number",
                                          "true or false",
                                          "a list of integers",
                                          "a string",
                                          "a string"};

/// "1 to 8 strides": how many entries a list may have.
std::string count_text(const field::Limits& l) {
  return std::to_string(l.fewest) + " to " + std::to_string(l.most) + (l.entries.empty() ? "" : " " + l.entries);
}

/// The value as text of limited length.
std::string shown(const json& v) {
  // `replace`, because the value may hold text that is not UTF-8; the default would throw.
  const std::string text = v.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 120 ? text : text.substr(0, 60) + "...";
}
bool fits_int64(const json& v) {
  // nlohmann's get<int64_t>() would wrap a larger number without an error.
  return v.is_number_integer() && (!v.is_number_unsigned() || v.get<uint64_t>() <= INT64_MAX);
}

/// The position of a word among those that the key may have.
size_t index_of(const std::string& word, const Field& f, const std::string& place) {
  const std::vector<std::string>& words = f.limits.words;
  const auto found = std::find(words.begin(), words.end(), word);
  if (found == words.end()) refuse(place + f.key, in_quotes(word), f.limits.text + did_you_mean(word, words));
  return static_cast<size_t>(found - words.begin());
}

/// Stores a value if it has the key's type, and returns whether it has.
struct Store {
  const json& v;
  const Field& f;
  const std::string& place;

  template <class T>
  bool operator()(T* to) const {
    // The type of the JSON value decides, before any conversion: get() would turn a fraction into a whole number.
    if constexpr (std::is_same_v<T, int64_t>) {
      if (!fits_int64(v)) return false;
    } else if constexpr (std::is_same_v<T, uint64_t>) {
      if (!v.is_number_integer()) return false;
      // Negative: an integer, but not one of the values.
      if (!v.is_number_unsigned()) refuse(place + f.key, v.dump(), f.limits.text);
    } else if constexpr (std::is_same_v<T, double>) {
      if (!v.is_number()) return false;
    } else if constexpr (std::is_same_v<T, bool>) {
      if (!v.is_boolean()) return false;
    } else {
      if (!v.is_array() || !std::all_of(v.begin(), v.end(), fits_int64)) return false;
    }
    *to = v.get<T>();
    return true;
  }
  /// An enumeration of one byte. Its number is the index in Limits::words.
  bool operator()(unsigned char* to) const {
    if (!v.is_string()) return false;
    *to = static_cast<unsigned char>(index_of(v.get<std::string>(), f, place));
    return true;
  }
  bool operator()(std::string* to) const {
    if (!v.is_string()) return false;
    *to = f.limits.words[index_of(v.get<std::string>(), f, place)];
    return true;
  }
};

}  // namespace

const char* Field::type() const { return types[value.index()]; }
std::string Field::range() const {
  return limits.most == SIZE_MAX ? limits.text : count_text(limits) + ", each " + limits.text;
}

const Field* find(const Fields& all, const std::string& key) {
  const auto found = std::find_if(all.begin(), all.end(), [&](const Field& f) { return f.key == key; });
  return found == all.end() ? nullptr : &*found;
}
std::vector<std::string> keys_of(const Fields& all) {
  std::vector<std::string> keys;
  for (const Field& f : all) keys.push_back(f.key);
  std::sort(keys.begin(), keys.end());
  return keys;
}

json written(const Field& f) {
  // An enumerator is written as its word.
  if (const auto* index = std::get_if<unsigned char*>(&f.value)) return f.limits.words.at(**index);
  return std::visit([](const auto* value) { return json(*value); }, f.value);
}
json written(const Fields& all) {
  json j = json::object();
  for (const Field& f : all) j[f.key] = written(f);
  return j;
}

void read(const Field& f, const json& value, const std::string& place) {
  if (!std::visit(Store{value, f, place}, f.value))
    refuse(place + f.key, shown(value), expected_types[f.value.index()]);
}

void check_limits(const std::string& section, const Fields& all, std::string (*text)(double)) {
  for (const Field& f : all) {
    const std::string key = section + "." + f.key;
    // The other types need no check: read() has refused unknown words, and every unsigned number is allowed.
    if (const auto* list = std::get_if<std::vector<int64_t>*>(&f.value)) {
      const std::vector<int64_t>& v = **list;
      // A list has two limits: that of its length and that of each entry.
      if (v.size() < f.limits.fewest || v.size() > f.limits.most)
        refuse(key, std::to_string(v.size()) + " " + (f.limits.entries.empty() ? "entries" : f.limits.entries),
               count_text(f.limits));
      for (const int64_t x : v)
        if (!f.limits.holds(static_cast<double>(x))) refuse(key, std::to_string(x), f.limits.text);
    } else if (const auto* number = std::get_if<double*>(&f.value); number != nullptr && !f.limits.holds(**number)) {
      refuse(key, text(**number), f.limits.text);
    } else if (const auto* integer = std::get_if<int64_t*>(&f.value);
               integer != nullptr && !f.limits.holds(static_cast<double>(**integer))) {
      refuse(key, std::to_string(**integer), f.limits.text);
    } else if (const auto* word = std::get_if<std::string*>(&f.value)) {
      index_of(**word, f, section + ".");
    }
  }
}

std::string shortest(double x) { return json(x).dump(); }
std::string twelve_digits(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.12g", x);
  return text;
}

void refuse(const std::string& key, const std::string& found, const std::string& expected) {
  throw Error(ErrorKind::usage, key + " is " + found + ", expected " + expected);
}

}  // namespace nacre
