// The JSON of a safetensors header, parsed by hand: a general parser would accept duplicate keys, other nesting and
// numbers beyond 64 bits. The sizes of strings and lists are bounded by the header, whose length the caller has limited
// (max_safetensors_header).
#include "files/safetensors_header.h"

#include <algorithm>
#include <charconv>

#include "files/text.h"
#include "nacre/error.h"

namespace nacre {
namespace {

/// A parser by recursive descent of fixed depth. at_ is the next byte; every function skips the spaces in front of its
/// construct and leaves at_ behind it.
class Parser {
 public:
  Parser(std::string_view json, const std::string& file) : json_(json), file_(file) {}

  // The whole header. Entries are sorted by name at the end; no name appears twice.
  SafetensorsHeader header() {
    SafetensorsHeader out;
    bool has_metadata = false;
    // The format demands it, although JSON would allow spaces in front.
    if (json_.empty() || json_[0] != '{') fail("the header does not begin with '{'");
    object([&](std::string name) {
      if (name == "__metadata__") {
        if (has_metadata) fail("\"__metadata__\" appears twice");
        has_metadata = true;
        object([&](const std::string& key) {
          if (!out.metadata.emplace(key, string()).second) fail("metadata " + in_quotes(key) + " appears twice");
        });
      } else {
        if (name.find('\0') != std::string::npos) fail("tensor name " + in_quotes(name) + " contains a zero byte");
        out.entries.push_back(entry(std::move(name)));
      }
    });
    skip_space();
    if (at_ != json_.size()) fail("unexpected data after the JSON object");
    // In order of name, duplicates are neighbours, and Safetensors::find() can search by halves.
    std::sort(out.entries.begin(), out.entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    for (size_t i = 1; i < out.entries.size(); ++i)
      if (out.entries[i].name == out.entries[i - 1].name)
        fail("tensor " + in_quotes(out.entries[i].name) + " appears twice");
    return out;
  }

 private:
  // The position is that in the file, whose first 8 bytes are the header's length.
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::input, file_ + ": safetensors header, byte " + std::to_string(8 + at_) + ": " + what);
  }
  void skip_space() {
    while (at_ < json_.size() && std::string_view(" \t\n\r").find(json_[at_]) != std::string_view::npos) ++at_;
  }
  // Passes a character if it is the next one behind spaces.
  bool take_if(char c) {
    skip_space();
    if (at_ >= json_.size() || json_[at_] != c) return false;
    ++at_;
    return true;
  }
  void take(char c) {
    if (!take_if(c)) fail(std::string("expected '") + c + "'");
  }

  // "{" then members, each `key: value`, then "}". member(key) must pass the value.
  template <class F>
  void object(F&& member) {
    take('{');
    if (take_if('}')) return;
    do {
      std::string key = string();
      take(':');
      member(std::move(key));
    } while (take_if(','));
    take('}');
  }
  // element() must pass one element.
  template <class F>
  void array(F&& element) {
    take('[');
    if (take_if(']')) return;
    do element();
    while (take_if(','));
    take(']');
  }

  // The object of one tensor: dtype, shape and data_offsets, each once and in any order. Whether they fit one another
  // is checked by Safetensors::parse().
  SafetensorsEntry entry(std::string name) {
    SafetensorsEntry e;
    bool has_dtype = false, has_shape = false, has_offsets = false;
    object([&](const std::string& key) {
      // The flag of this key; null for any other key.
      bool* has = key == "dtype"          ? &has_dtype
                  : key == "shape"        ? &has_shape
                  : key == "data_offsets" ? &has_offsets
                                          : nullptr;
      if (has == nullptr) fail("tensor " + in_quotes(name) + " has an unknown key " + in_quotes(key));
      if (*has) fail("tensor " + in_quotes(name) + " has " + in_quotes(key) + " twice");
      *has = true;
      if (has == &has_dtype) {
        const std::string dtype = string();
        if (!dtype_from(dtype, e.dtype))
          fail("tensor " + in_quotes(name) + " has type " + in_quotes(dtype) + ", which is not supported");
      } else if (has == &has_shape) {
        array([&] {
          const uint64_t n = number();
          if (n > max_safetensors_elements)
            fail("tensor " + in_quotes(name) + " has a dimension of " + std::to_string(n));
          // Limits memory: an array of a hundred megabytes of dimensions is refused at its ninth entry.
          if (e.shape.size() == max_safetensors_rank)
            fail("tensor " + in_quotes(name) + " has more than " + std::to_string(max_safetensors_rank) +
                 " dimensions");
          e.shape.push_back(static_cast<int64_t>(n));
        });
      } else {
        uint64_t offsets[2] = {0, 0};
        size_t count = 0;
        array([&] {
          const uint64_t n = number();
          // Further numbers are counted, not stored.
          if (count < 2) offsets[count] = n;
          ++count;
        });
        if (count != 2) fail("tensor " + in_quotes(name) + " needs two data_offsets");
        e.begin = offsets[0];
        e.end = offsets[1];
      }
    });
    if (!has_dtype || !has_shape || !has_offsets)
      fail("tensor " + in_quotes(name) + " lacks " + (!has_dtype ? "dtype" : !has_shape ? "shape" : "data_offsets"));
    e.name = std::move(name);
    return e;
  }

  // A whole number from 0 to 2^64 - 1. JSON numbers with a sign, a fraction or an exponent are refused.
  uint64_t number() {
    skip_space();
    const char* first = json_.data() + at_;
    const char* last = json_.data() + json_.size();
    uint64_t value = 0;
    const auto [end, problem] = std::from_chars(first, last, value);
    if (problem == std::errc::result_out_of_range) fail("a number does not fit in 64 bits");
    if (problem != std::errc()) fail("expected a whole number that is not negative");
    // from_chars takes leading zeros, which JSON forbids, and stops in front of a fraction or an exponent.
    if (*first == '0' && end != first + 1) fail("a number begins with 0");
    at_ += static_cast<size_t>(end - first);
    if (at_ < json_.size() && (json_[at_] == '.' || json_[at_] == 'e' || json_[at_] == 'E'))
      fail("expected a whole number");
    return value;
  }

  // The four digits of an escape. from_chars would accept fewer, so its end is compared. It takes no sign for an
  // unsigned number.
  uint32_t hex4() {
    if (json_.size() - at_ < 4) fail("an escape is cut off");
    uint32_t value = 0;
    const char* first = json_.data() + at_;
    const auto [end, problem] = std::from_chars(first, first + 4, value, 16);
    if (problem != std::errc() || end != first + 4) fail("expected four hexadecimal digits");
    at_ += 4;
    return value;
  }
  // c is at most 0x10ffff and no surrogate: string() has refused those.
  void append_utf8(std::string& out, uint32_t c) {
    if (c < 0x80) {
      out += static_cast<char>(c);
      return;
    }
    // The number of bytes behind the first. Each holds 6 bits, the first byte the rest below its marker.
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    constexpr uint32_t leads[] = {0, 0xc0, 0xe0, 0xf0};
    out += static_cast<char>(leads[more] | c >> (6 * more));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (c >> (6 * i) & 0x3f));
  }
  // A string with its escapes resolved, as UTF-8.
  std::string string() {
    take('"');
    std::string out;
    while (true) {
      if (at_ >= json_.size()) fail("a string is cut off");
      const char c = json_[at_++];
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ >= json_.size()) fail("an escape is cut off");
      const char kind = json_[at_++];
      constexpr std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      if (const size_t i = from.find(kind); i != std::string_view::npos) {
        out += to[i];
      } else if (kind == 'u') {
        uint32_t code = hex4();
        // Characters above U+FFFF are written as two escapes, a high and a low surrogate.
        if (code >= 0xd800 && code < 0xdc00) {
          if (json_.substr(at_, 2) != "\\u") fail("an unpaired surrogate");
          at_ += 2;
          const uint32_t low = hex4();
          if (low < 0xdc00 || low >= 0xe000) fail("an unpaired surrogate");
          code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
        } else if (code >= 0xdc00 && code < 0xe000) {
          fail("an unpaired surrogate");
        }
        append_utf8(out, code);
      } else {
        fail("an unknown escape");
      }
    }
    // At the end, because raw bytes and escapes may only together be invalid.
    if (!is_utf8(out)) fail("a string is not valid UTF-8");
    return out;
  }

  std::string_view json_;
  const std::string& file_;
  size_t at_ = 0;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file) {
  return Parser(json, file).header();
}

}  // namespace nacre
