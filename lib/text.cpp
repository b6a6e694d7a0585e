#include "text.h"

#include <cstdint>

namespace nacre {

bool is_utf8(std::string_view text) noexcept {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    size_t more = 0;
    uint32_t value = 0, smallest = 0;
    if (lead < 0x80) {
      ++i;
      continue;
    } else if (lead >= 0xc2 && lead < 0xe0) {
      more = 1, value = lead & 0x1fu, smallest = 0x80;
    } else if (lead >= 0xe0 && lead < 0xf0) {
      more = 2, value = lead & 0x0fu, smallest = 0x800;
    } else if (lead >= 0xf0 && lead < 0xf5) {
      more = 3, value = lead & 0x07u, smallest = 0x10000;
    } else {
      return false;
    }
    if (text.size() - i <= more) return false;
    for (size_t k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      value = value << 6 | (next & 0x3fu);
    }
    if (value < smallest || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return false;
    i += more + 1;
  }
  return true;
}

std::string in_quotes(std::string_view text) {
  constexpr size_t longest = 120;
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "\"";
  const bool valid = is_utf8(text);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (i == longest / 2 && text.size() > longest) {
      i = text.size() - longest / 2;
      while (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) ++i;
      out += "...";
      --i;
      continue;
    }
    // U+0080 to U+009F are control characters as well.
    const bool second_control = c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (c < 0x20 || c == 0x7f || (c >= 0x80 && !valid) || second_control) {
      out += "\\x";
      out += digits[c >> 4];
      out += digits[c & 15];
      if (second_control && valid) {
        const auto d = static_cast<unsigned char>(text[++i]);
        out += "\\x";
        out += digits[d >> 4];
        out += digits[d & 15];
      }
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

}  // namespace nacre
