#include "option_table.h"

#include <algorithm>

namespace nacre::program {
namespace {

OptionRow row(const CLI::Option& o) {
  OptionRow r;
  r.description = o.get_description();
  r.default_value = o.get_default_str();
  for (const bool underscored : {false, true})
    for (const std::string& name : o.get_lnames())
      if ((name.find('_') != std::string::npos) == underscored) r.longs.push_back("--" + name);
  for (const std::string& name : o.get_snames()) r.shorts.push_back("-" + name);
  r.positional = o.get_positional();
  r.required = o.get_required();
  if (o.get_items_expected_max() == 0) return r;
  // Formats: "MODEL", "INT:0 to 1024", "FILE:{a,b}"
  const std::string type = o.get_type_name();
  r.value = type.substr(0, type.find(':'));
  for (const char* kind : {"FILE", "DIR", "PATH", "MODEL"}) r.files = r.files || r.value == kind;
  const size_t open = type.find('{'), close = type.find('}');
  if (open == std::string::npos || close == std::string::npos || close < open) return r;
  for (size_t at = open + 1; at < close;) {
    const size_t end = std::min(type.find(',', at), close);
    r.choices.push_back(type.substr(at, end - at));
    at = end + 1;
  }
  std::erase(r.choices, "cuda:N");  // a pattern, not a choice
  return r;
}

}  // namespace

std::vector<VerbRow> table_of(const CLI::App& program) {
  std::vector<VerbRow> verbs;
  for (const CLI::App* verb : program.get_subcommands([](const CLI::App*) { return true; })) {
    verbs.push_back({verb->get_name(), verb->get_description(), verb->get_footer(), {}});
    for (const CLI::Option* o : verb->get_options()) verbs.back().options.push_back(row(*o));
  }
  return verbs;
}

}  // namespace nacre::program
