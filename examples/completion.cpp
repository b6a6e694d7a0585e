// nacre completion: scripts for bash, zsh and fish, made from the table that --help prints.
#include <memory>

#include "arguments.h"
#include "commands.h"
#include "files/text.h"
#include "option_table.h"

namespace nacre::program {
namespace {

using Words = std::vector<std::string>;

std::string joined(const Words& words, const char* between) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : between) + w;
  return out;
}
Words names_of(const OptionRow& o) {
  Words names = o.longs;
  names.insert(names.end(), o.shorts.begin(), o.shorts.end());
  return names;
}
/// The names to offer: long names spelled with '-'. Spellings with '_' are accepted but not offered.
Words offered(const OptionRow& o) {
  Words names;
  for (const std::string& n : o.longs)
    if (n.find('_') == std::string::npos) names.push_back(n);
  return names;
}

/// Text in single quotes, valid in each of the shells.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}
std::string quoted_for_fish(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' || c == '\\' ? std::string{'\\', c} : std::string(1, c);
  return out + "'";
}

std::string bash(const std::vector<VerbRow>& verbs) {
  Words names;
  for (const VerbRow& v : verbs) names.push_back(v.name);
  std::string s =
      "# bash completion for nacre, made by `nacre completion bash`\n"
      "_nacre() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev= verb= words= files=\n"
      "  COMPREPLY=()\n"
      "  [ \"$COMP_CWORD\" -gt 1 ] && verb=${COMP_WORDS[1]} prev=${COMP_WORDS[COMP_CWORD - 1]}\n"
      "  # --name=value comes as three words.\n"
      "  [ \"$prev\" = = ] && prev=${COMP_WORDS[COMP_CWORD - 2]}\n"
      "  [ \"$cur\" = = ] && cur= \n"
      "  case $verb in\n"
      "    '') words='" +
      joined(names, " ") +
      " help --help --version' ;;\n"
      "    help) words='" +
      joined(names, " ") + "' ;;\n";
  for (const VerbRow& v : verbs) {
    s += "    " + v.name + ")\n      case $prev in\n";
    Words options;
    std::string choices;
    bool takes_files = false;
    for (const OptionRow& o : v.options) {
      const Words mine = offered(o);
      options.insert(options.end(), mine.begin(), mine.end());
      if (o.positional) takes_files = o.files, choices = joined(o.choices, " ");
      if (o.flag() || names_of(o).empty()) continue;
      s += "        " + joined(names_of(o), "|") + ") words='" + joined(o.choices, " ") +
           "' files=" + (o.files ? "1" : "") + " ;;\n";
    }
    s += "        *)\n          case $cur in\n            -*) words='" + joined(options, " ") +
         "' ;;\n            *) words='" + choices + "' files=" + (takes_files ? "1" : "") +
         " ;;\n          esac ;;\n      esac ;;\n";
  }
  s += "  esac\n"
       "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
       "  if [ -n \"$files\" ]; then\n"
       "    local IFS=$'\\n'\n"
       "    COMPREPLY+=($(compgen -f -- \"$cur\"))\n"
       "    compopt -o filenames 2>/dev/null\n"
       "  fi\n"
       "  return 0\n"
       "}\n"
       "complete -F _nacre nacre\n";
  return s;
}

std::string zsh(const std::vector<VerbRow>& verbs) {
  // In a specification for _arguments, brackets and colons are separators.
  const auto escaped = [](const std::string& text) {
    std::string out;
    for (const char c : text)
      out += c == '[' || c == ']' || c == ':' || c == '\\' ? std::string{'\\', c} : std::string(1, c);
    return out;
  };
  std::string s =
      "#compdef nacre\n# zsh completion for nacre, made by `nacre completion zsh`\n_nacre() {\n  local -a verbs\n  "
      "verbs=(\n";
  for (const VerbRow& v : verbs) s += "    " + quoted(escaped(v.name) + ":" + v.description) + "\n";
  s += "  )\n  if (( CURRENT == 2 )); then\n    _describe verb verbs\n    return\n  fi\n"
       "  local verb=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $verb in\n";
  for (const VerbRow& v : verbs) {
    s += "    " + v.name + ")\n      _arguments -s \\\n";
    for (const OptionRow& o : v.options) {
      std::string action;
      if (!o.flag()) {
        action = ":" + o.value + ":";
        if (!o.choices.empty() && o.files)
          action += "{compadd " + joined(o.choices, " ") + "; _files}";
        else if (!o.choices.empty())
          action += "(" + joined(o.choices, " ") + ")";
        else if (o.files)
          action += o.value == "DIR" ? "_files -/" : "_files";
      }
      const bool repeats = o.value == "KEY=VALUE" || o.positional;
      for (const std::string& name : names_of(o))
        if (name.find('_') == std::string::npos)
          s += "        " + quoted((repeats ? "*" : "") + name + "[" + escaped(o.description) + "]" + action) + " \\\n";
      if (o.positional) s += "        " + quoted((o.choices.empty() ? "*" : "1") + action) + " \\\n";
    }
    s += "        && return\n      ;;\n";
  }
  return s +
         "  esac\n}\n"
         "# Read by compinit from a folder of fpath, or sourced.\n"
         "if [ \"$funcstack[1]\" = _nacre ]; then\n  _nacre \"$@\"\nelse\n  compdef _nacre nacre\nfi\n";
}

std::string fish(const std::vector<VerbRow>& verbs) {
  std::string s =
      "# fish completion for nacre, made by `nacre completion fish`\n"
      "complete -c nacre -n __fish_use_subcommand -f\n"
      "complete -c nacre -n __fish_use_subcommand -l help -s h -d 'Print help'\n"
      "complete -c nacre -n __fish_use_subcommand -l version -d 'Print the version'\n";
  for (const VerbRow& v : verbs)
    s += "complete -c nacre -n __fish_use_subcommand -f -a " + v.name + " -d " + quoted_for_fish(v.description) + "\n";
  for (const VerbRow& v : verbs) {
    const std::string here = "complete -c nacre -n '__fish_seen_subcommand_from " + v.name + "'";
    for (const OptionRow& o : v.options) {
      std::string line = here;
      for (const std::string& name : offered(o)) line += " -l " + name.substr(2);
      for (const std::string& name : o.shorts) line += " -s " + name.substr(1);
      if (!o.flag()) line += o.files ? " -r -F" : " -x";
      if (!o.choices.empty()) line += " -a " + quoted_for_fish(joined(o.choices, " "));
      if (o.positional && names_of(o).empty()) {
        if (!o.choices.empty()) s += here + " -f -a " + quoted_for_fish(joined(o.choices, " ")) + "\n";
        continue;  // fish completes files by default
      }
      s += line + " -d " + quoted_for_fish(o.description) + "\n";
    }
  }
  return s;
}

}  // namespace

Command add_completion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  app.add_option("shell", *shell, "shell that the script is for")
      ->type_name("SHELL")
      ->check(one_of({"bash", "zsh", "fish"}))
      ->required();
  app.footer(
      "The script is printed to standard output. In bash: source <(nacre completion bash). cmake --install installs\n"
      "all three (share/bash-completion/completions, share/zsh/site-functions, share/fish/vendor_completions.d).");
  return [shell, &app] {
    const std::vector<VerbRow> verbs = table_of(*app.get_parent());
    const std::string script = *shell == "bash" ? bash(verbs) : *shell == "zsh" ? zsh(verbs) : fish(verbs);
    std::fputs(script.c_str(), stdout);
    return 0;
  };
}

}  // namespace nacre::program
