#include "files/text.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>

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
    // Refused: forms longer than necessary, which could hide characters, numbers beyond Unicode, and surrogates.
    if (value < smallest || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return false;
    i += more + 1;
  }
  return true;
}

namespace {

/// Two hexadecimal digits: \x1b.
void append_escaped(std::string& out, char c) {
  constexpr char digits[] = "0123456789abcdef";
  const auto u = static_cast<unsigned char>(c);
  out += "\\x";
  out += digits[u >> 4];
  out += digits[u & 15];
}

/// The number of bytes of the character at `i` if it must not reach a terminal, else 0. U+0080 to U+009F are control
/// characters, too.
size_t unprintable(std::string_view text, size_t i, bool valid) {
  const auto c = static_cast<unsigned char>(text[i]);
  if (c < 0x20 || c == 0x7f || (c >= 0x80 && !valid)) return 1;
  return c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0 ? 2 : 0;
}

/// The length of the valid UTF-8 character at `i`, or 1.
size_t character(std::string_view text, size_t i) {
  for (size_t n = 2; n <= 4 && i + n <= text.size(); ++n)
    if (is_utf8(text.substr(i, n))) return static_cast<unsigned char>(text[i]) < 0x80 ? 1 : n;
  return 1;
}

/// printable() and printable_lines().
std::string shown(std::string_view text, bool keep_lines) {
  std::string out;
  const bool valid = is_utf8(text);
  for (size_t i = 0; i < text.size();) {
    // In invalid text, valid characters are still shown as they are; only the other bytes are escaped.
    const size_t n = valid ? 1 : character(text, i);
    // File names come from outside. Control characters among them could move the cursor or change the title of a
    // terminal.
    const size_t bad = keep_lines && text[i] == '\n' ? 0 : unprintable(text, i, valid || n > 1);
    if (bad == 0) {
      out += text.substr(i, n);
      i += n;
    }
    for (size_t k = 0; k < bad; ++k) append_escaped(out, text[i++]);
  }
  return out;
}

}  // namespace

std::string printable(std::string_view text) { return shown(text, false); }
std::string printable_lines(std::string_view text) { return shown(text, true); }

std::string shell_word(std::string_view text) {
  // Three forms, the plainest that is safe: as it is, in single quotes, or with escapes in $'...' (bash, zsh, ksh).
  constexpr std::string_view plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%";
  if (!text.empty() && text.find_first_not_of(plain) == std::string_view::npos) return std::string(text);
  if (printable(text) == text) {
    std::string out = "'";
    for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
  }
  // In text that is not valid UTF-8, every byte from 0x80 on is escaped.
  const bool valid = is_utf8(text);
  std::string out = "$'";
  for (size_t i = 0; i < text.size();) {
    const size_t bad = unprintable(text, i, valid);
    for (size_t k = 0; k < bad; ++k) append_escaped(out, text[i++]);
    if (bad > 0) continue;
    if (text[i] == '\'' || text[i] == '\\') out += '\\';
    out += text[i++];
  }
  return out + "'";
}

std::string in_quotes(std::string_view text) {
  constexpr size_t longest = 120;
  const bool valid = is_utf8(text);
  // The middle of a long text, [head, tail), is left out. Both halves have whole characters.
  size_t head = text.size(), tail = text.size();
  if (text.size() > longest) {
    const auto inside = [&](size_t i) {
      return valid && i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80;
    };
    head = longest / 2, tail = text.size() - longest / 2;
    while (inside(head)) --head;
    while (inside(tail)) ++tail;
  }
  std::string out = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    if (i == head) {
      out += "...";
      i = tail;
    }
    if (const size_t bad = unprintable(text, i, valid); bad > 0) {
      for (size_t k = 0; k < bad; ++k) append_escaped(out, text[i + k]);
      i += bad - 1;
    } else {
      if (text[i] == '"' || text[i] == '\\') out += '\\';
      out += text[i];
    }
  }
  return out + "\"";
}

std::string describe_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e12) return "?";
  // From 9.95 on, one digit behind the point would round to 10.0.
  if (seconds < 9.95) {
    std::array<char, 16> text{};
    std::snprintf(text.data(), text.size(), "%.1f s", seconds);
    return text.data();
  }
  // Rounded once, so that the parts below are never 60.
  const auto s = static_cast<int64_t>(std::llround(seconds));
  const auto two = [](int64_t x) { return (x < 10 ? "0" : "") + std::to_string(x); };
  if (s < 60) return std::to_string(s) + " s";
  if (s < 3600) return std::to_string(s / 60) + " min " + two(s % 60) + " s";
  const int64_t m = s / 60;
  if (m < 24 * 60) return std::to_string(m / 60) + " h " + two(m % 60) + " min";
  return std::to_string(m / 60 / 24) + " d " + std::to_string(m / 60 % 24) + " h";
}

}  // namespace nacre
