#pragma once
// Validation and safe display of text from files; durations in words.
#include <cstddef>
#include <string>
#include <string_view>

namespace nacre {

/// True for valid UTF-8, without overlong forms, surrogates or values past U+10FFFF.
bool is_utf8(std::string_view) noexcept;
/// The text in quotes. Control characters are escaped, so that a file cannot control the terminal. The middle of a long
/// text is omitted.
std::string in_quotes(std::string_view);
/// The text in a form that is safe for a terminal. Control characters (U+0000 to U+001F, U+007F to U+009F) and bytes
/// that are not UTF-8 become escapes such as \x1b. Everything else is kept.
std::string printable(std::string_view);
/// The same for several lines; line ends are kept.
std::string printable_lines(std::string_view);
/// One word of a command line for a POSIX shell, quoted where necessary. Control characters take the form $'\x1b',
/// which bash, ksh and zsh read.
std::string shell_word(std::string_view);
/// "4.2 s", "3 min 20 s", "2 h 05 min", "3 d 4 h"; "?" if not finite.
std::string describe_duration(double seconds);

}  // namespace nacre
