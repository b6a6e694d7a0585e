#pragma once
// The configuration that a file of weights tells: one JSON object with keys of another program.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nacre/error.h"

namespace nacre {

// A key of another type than expected is refused by Error(input), with the source's name and what was found.
class ToldConfig {
 public:
  /// `source` is the name of the text in messages. Throws Error(input) if the text is not a JSON object.
  ToldConfig(std::string source, const std::string& text)
      : source_(std::move(source)), all_(nlohmann::json::parse(text, nullptr, false)) {
    if (!all_.is_object()) throw Error(ErrorKind::input, source_ + ": is not a JSON object");
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    const std::string found = all_.contains(key) ? all_.at(key).dump() : "missing";
    throw Error(ErrorKind::input, source_ + ": " + key + " is " + found + ", expected " + expected);
  }
  /// Whether the key is there and not null.
  bool has(const std::string& key) const { return all_.contains(key) && !all_.at(key).is_null(); }
  const nlohmann::json& at(const std::string& key) const { return all_.at(key); }

  /// These set `value` where the key is there and not null; they return whether it is.
  bool take(const std::string& key, int64_t& value) const {
    return take(key, value, "an integer", [](const auto& x) { return x.is_number_integer(); });
  }
  bool take(const std::string& key, bool& value) const {
    return take(key, value, "true or false", [](const auto& x) { return x.is_boolean(); });
  }
  bool take(const std::string& key, double& value) const {
    return take(key, value, "a number", [](const auto& x) { return x.is_number(); });
  }
  bool take(const std::string& key, std::string& value) const {
    return take(key, value, "a string", [](const auto& x) { return x.is_string(); });
  }
  bool take(const std::string& key, std::vector<int64_t>& value) const {
    return take(key, value, "a list of integers",
                [](const auto& x) { return list_of(x, [](const auto& one) { return one.is_number_integer(); }); });
  }
  bool take(const std::string& key, std::vector<double>& value) const {
    return take(key, value, "a list of numbers",
                [](const auto& x) { return list_of(x, [](const auto& one) { return one.is_number(); }); });
  }

 private:
  template <class F>
  static bool list_of(const nlohmann::json& x, F&& good) {
    return x.is_array() && std::all_of(x.begin(), x.end(), good);
  }
  template <class T, class F>
  bool take(const std::string& key, T& value, const char* expected, F&& good) const {
    if (!has(key)) return false;
    if (!good(all_.at(key))) refuse(key, expected);
    value = all_.at(key).template get<T>();
    return true;
  }
  std::string source_;
  nlohmann::json all_;
};

}  // namespace nacre
