#pragma once
// Text that came from a file: is it valid, and how may it be shown.
#include <cstddef>
#include <string>
#include <string_view>

namespace nacre {

/// UTF-8 without overlong forms, surrogates or values past U+10FFFF.
bool is_utf8(std::string_view) noexcept;
/// In quotes, with control characters escaped (a terminal must not obey a file) and the middle of long text left out.
std::string in_quotes(std::string_view);

}  // namespace nacre
