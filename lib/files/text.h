#pragma once
// Text that came from a file: is it valid, and how may it be shown. Durations in words.
#include <cstddef>
#include <string>
#include <string_view>

namespace nacre {

/// UTF-8 without overlong forms, surrogates or values past U+10FFFF.
bool is_utf8(std::string_view) noexcept;
/// In quotes, with control characters escaped (a terminal must not obey a file) and the middle of long text left out.
std::string in_quotes(std::string_view);
/// As it may be shown on a terminal: control characters (U+0000 to U+001F, U+007F to U+009F) and bytes that are not UTF-8
/// become \x1b and the like, everything else is kept.
std::string printable(std::string_view);
/// The same for text of several lines, whose ends are kept.
std::string printable_lines(std::string_view);
/// One word of a command line for a POSIX shell: quoted where it must be. Control characters take the form $'\x1b',
/// which bash, ksh and zsh read.
std::string shell_word(std::string_view);
/// "4.2 s", "3 min 20 s", "2 h 05 min", "3 d 4 h"; "?" if not finite.
std::string describe_duration(double seconds);

}  // namespace nacre
