#pragma once
// Visitors for the fields() functions of configuration structs (nacre/files/fields.h).
#include <nlohmann/json_fwd.hpp>
#include <type_traits>
#include <variant>

#include "nacre/files/fields.h"

namespace nacre {

/// A key and the location of its value.
struct Field {
  /// The last two alternatives are words: an enumerator, which is an index into limits.words, or the word itself.
  using Value = std::variant<int64_t*, uint64_t*, double*, bool*, std::vector<int64_t>*, unsigned char*, std::string*>;
  std::string key;
  Value value;
  field::Limits limits;
  std::string help;

  const char* type() const;   ///< "integer", "number", "boolean", "word", "list of integers"
  std::string range() const;  ///< "1 to 8 strides, each 2 to 64"
};
using Fields = std::vector<Field>;

/// The fields point into `config` and are valid as long as it exists.
template <class Config>
Fields fields_of(Config& config) {
  Fields all;
  const auto add = [&]<class T>(const char* key, T& value, const field::Limits& limits, const char* help) {
    if constexpr (std::is_enum_v<T>) {
      static_assert(std::is_same_v<std::underlying_type_t<T>, unsigned char>);
      all.push_back({key, reinterpret_cast<unsigned char*>(&value), limits, help});
    } else {
      all.push_back({key, &value, limits, help});
    }
  };
  fields(add, config);
  return all;
}

const Field* find(const Fields&, const std::string& key);  ///< null if there is none
std::vector<std::string> keys_of(const Fields&);           ///< sorted
nlohmann::json written(const Fields&);
nlohmann::json written(const Field&);
/// Throws Error(usage) "<place><key> is ..., expected ..." for a value of another type, an unknown word, or a negative
/// value of an unsigned key. check_limits() checks the limits, so that keys can be set one after another.
void read(const Field&, const nlohmann::json&, const std::string& place);
/// Throws Error(usage) "<section>.<key> is ..., expected ..."; `text` formats numbers.
void check_limits(const std::string& section, const Fields&, std::string (*text)(double));
std::string shortest(double);       ///< "1.0", "1e-05": the JSON form
std::string twelve_digits(double);  ///< "1", "1e-05"
[[noreturn]] void refuse(const std::string& key, const std::string& found, const std::string& expected);

}  // namespace nacre
