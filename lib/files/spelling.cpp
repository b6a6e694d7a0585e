#include "files/spelling.h"

#include <algorithm>

namespace nacre {
namespace {

/// Lower case of ASCII letters, and '-' for '_': what two spellings of a name have in common.
std::string folded(std::string_view word) {
  std::string out(word);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '_') c = '-';
  }
  return out;
}

/// The number of insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b` (optimal string
/// alignment).
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before, last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before = last;
    last = row;
  }
  return last[b.size()];
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& names) {
  constexpr size_t longest = 64;  // no name is longer; the cost is the product of both lengths
  if (word.empty() || word.size() > longest) return "";
  const std::string meant = folded(word);
  std::string best;
  size_t least = std::max<size_t>(1, meant.size() / 3) + 1;
  for (const std::string& name : names)
    if (const size_t d = distance(meant, folded(name)); d < least) least = d, best = name;
  if (!best.empty()) return best;
  for (const std::string& name : names) {
    if (!folded(name).starts_with(meant)) continue;
    if (!best.empty() && folded(best) != folded(name)) return "";
    if (best.empty()) best = name;
  }
  return best;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& names) {
  const std::string name = nearest(word, names);
  return name.empty() ? "" : "; did you mean '" + name + "'?";
}

std::string listed(const std::vector<std::string>& names, std::string_view last) {
  std::string out;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) out += i + 1 < names.size() ? ", " : " " + std::string(last) + " ";
    out += names[i];
  }
  return out;
}

}  // namespace nacre
