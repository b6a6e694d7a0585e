#include "arguments.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "files/spelling.h"
#include "files/text.h"
#include "nacre/error.h"

namespace nacre::program {
namespace {

using Words = std::vector<std::string>;

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::usage, what); }

Words verb_names(CLI::App& program) {
  Words names;
  for (const CLI::App* verb : program.get_subcommands([](CLI::App*) { return true; }))
    names.push_back(verb->get_name());
  return names;
}

bool is_help(const std::string& word) { return word == "-h" || word == "--help"; }
bool is_flag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }
/// Spelled with '-' only. '_' is accepted as well but not advertised.
Words long_names(const CLI::App& app) {
  Words names;
  for (const CLI::Option* o : app.get_options())
    for (const std::string& name : o->get_lnames())
      if (name.find('_') == std::string::npos) names.push_back("--" + name);
  return names;
}

CLI::Option* find_long(CLI::App& app, const std::string& name) {
  for (CLI::Option* o : app.get_options())
    if (o->check_lname(name)) return o;
  return nullptr;
}
CLI::Option* find_short(CLI::App& app, char name) {
  for (CLI::Option* o : app.get_options())
    if (o->check_sname(std::string(1, name))) return o;
  return nullptr;
}
CLI::Option* positional_of(CLI::App& app) {
  for (CLI::Option* o : app.get_options())
    if (o->get_positional()) return o;
  return nullptr;
}

/// Parses the words that follow a verb.
class Behind {
 public:
  Behind(CLI::App& verb, const Words& words) : verb_(verb), words_(words), inputs_(positional_of(verb)) {}

  Words arranged() {
    while (at_ < words_.size()) {
      const std::string word = words_[at_++];
      if (word == "--") {
        while (at_ < words_.size()) input(words_[at_++]);
      } else if (word.starts_with("--")) {
        long_option(word);
      } else if (word.size() > 1 && word[0] == '-') {
        short_options(word);
      } else {
        input(word);
      }
    }
    expect_required();
    Words out{verb_.get_name()};
    out.insert(out.end(), options_.begin(), options_.end());
    if (!given_.empty()) out.emplace_back("--");
    out.insert(out.end(), given_.begin(), given_.end());
    return out;
  }

 private:
  std::string verb() const { return verb_.get_name(); }

  void input(const std::string& word) {
    if (inputs_ == nullptr) {
      std::string hint = did_you_mean("--" + word, long_names(verb_));
      refuse(verb() + ": unexpected argument " + named(word) + "; " + verb() + " takes only options" + hint);
    }
    if (word.empty()) refuse(verb() + ": an input is an empty string");
    // CLI11 would parse "[a,b]" as a list of two.
    given_.push_back(word.front() == '[' && word.back() == ']' ? "./" + word : word);
    if (const int most = inputs_->get_items_expected_max(); static_cast<int>(given_.size()) > most)
      refuse(verb() + ": unexpected argument " + named(word) + " after " + named(given_.front()));
  }

  void long_option(const std::string& word) {
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    CLI::Option* option = find_long(verb_, name.substr(2));
    if (option == nullptr) unknown(name);
    if (is_flag(*option)) {
      if (equals != std::string::npos)
        refuse(name + " takes no value, but was given " + named(word.substr(equals + 1)));
      flag(*option, name);
    } else if (equals != std::string::npos) {
      value(*option, name, word.substr(equals + 1));
    } else {
      value(*option, name, next_word(*option, name));
    }
  }

  void short_options(const std::string& word) {
    if (word.size() > 2 && find_long(verb_, word.substr(1, word.find('=') - 1)) != nullptr)
      refuse(named(word) + ": long options begin with two dashes: -" + word.substr(0, word.find('=')));
    for (size_t i = 1; i < word.size(); ++i) {
      const std::string name{'-', word[i]};
      CLI::Option* option = find_short(verb_, word[i]);
      if (option == nullptr) unknown(i == 1 ? word : name);
      if (is_flag(*option)) {
        flag(*option, name);
        continue;
      }
      const std::string rest = word.substr(i + 1);
      value(*option, name, rest.empty() ? next_word(*option, name) : rest);
      return;
    }
  }

  [[noreturn]] void unknown(const std::string& name) {
    std::string hint = did_you_mean(name, long_names(verb_));
    if (hint.empty()) {
      hint = "; nacre " + verb() + " --help lists the options";
      if (inputs_ != nullptr && std::filesystem::exists(name))
        hint = "; for the file of this name write ./" + printable(name);
    }
    refuse(named(name) + " is not an option of " + verb() + hint);
  }

  std::string next_word(const CLI::Option& option, const std::string& name) {
    const std::string expected = name + " needs a value, " + option.get_type_name();
    if (at_ == words_.size()) refuse(expected);
    const std::string& word = words_[at_];
    // The name of an option is probably not meant as a value.
    const std::string head = word.substr(0, word.find('='));
    if (head == "--" || (head.starts_with("--") && find_long(verb_, head.substr(2)) != nullptr) ||
        (word.size() == 2 && word[0] == '-' && find_short(verb_, word[1]) != nullptr))
      refuse(expected + ", but the option " + named(word) + " follows; for a value that begins with a dash write " +
             name + "=VALUE");
    ++at_;
    return word;
  }

  void flag(CLI::Option& option, const std::string& name) {
    if (seen_[&option].empty()) options_.push_back(name);
    seen_[&option] = name;
  }

  void value(CLI::Option& option, const std::string& name, const std::string& text) {
    if (text.empty()) refuse(name + " was given an empty value");
    const bool many =
        option.get_items_expected_max() > 1 || option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
    if (!many && !seen_[&option].empty())
      refuse(name + " is given twice: " + named(seen_[&option]) + " and " + named(text));
    seen_[&option] = text;
    expect_number(option, name, text);
    if (option.get_positional())
      input(text);
    else
      options_.push_back("--" + option.get_lnames().front() + "=" + text);
  }

  static void expect_number(const CLI::Option& option, const std::string& name, const std::string& text) {
    const std::string type = option.get_type_name();
    if (type.starts_with("INT")) {
      int64_t number = 0;
      const char* first = text.data() + (text[0] == '+' ? 1 : 0);
      const auto [end, problem] = std::from_chars(first, text.data() + text.size(), number);
      if (problem == std::errc::result_out_of_range)
        refuse(name + " is " + named(text) + ", which does not fit in 64 bits");
      if (problem != std::errc() || end != text.data() + text.size())
        refuse(name + " is " + named(text) + ", expected an integer");
    } else if (type.starts_with("FLOAT")) {
      char* end = nullptr;
      (void)std::strtod(text.c_str(), &end);
      if (std::isspace(static_cast<unsigned char>(text[0])) != 0 || end != text.c_str() + text.size())
        refuse(name + " is " + named(text) + ", expected a number");
    }
  }

  void expect_required() {
    Words missing;
    for (CLI::Option* o : verb_.get_options()) {
      const bool there = o->get_positional() ? !given_.empty() : !seen_[o].empty();
      if (o->get_required() && !there)
        missing.push_back(o->get_positional() ? o->get_name(true) : "--" + o->get_lnames().front());
    }
    if (!missing.empty())
      refuse(verb() + " needs " + listed(missing, "and") + "; nacre " + verb() + " --help lists the options");
  }

  CLI::App& verb_;
  const Words& words_;
  CLI::Option* inputs_;
  size_t at_ = 0;
  Words options_, given_;
  std::map<const CLI::Option*, std::string> seen_;  // the last value given for each option
};

CLI::App& verb_of(CLI::App& program, const std::string& word) {
  for (CLI::App* verb : program.get_subcommands([](CLI::App*) { return true; }))
    if (verb->get_name() == word) return *verb;
  const Words names = verb_names(program);
  std::string hint = did_you_mean(word, names);
  if (hint.empty()) hint = "; expected " + listed(names);
  refuse(named(word) + " is not a verb" + hint);
}

[[noreturn]] void option_before_verb(CLI::App& program, const std::string& word) {
  const std::string name = word.substr(0, word.find('='));
  for (CLI::App* verb : program.get_subcommands([](CLI::App*) { return true; }))
    if (name.starts_with("--") ? find_long(*verb, name.substr(2)) != nullptr
                               : name.size() > 1 && find_short(*verb, name[1]) != nullptr)
      refuse(named(name) + " is before the verb; write options after the verb: nacre " + verb->get_name() + " " +
             printable(name) + " ...");
  refuse(named(name) + " is not an option of nacre" + did_you_mean(name, {"--help", "--version"}) +
         "; nacre --help lists the verbs");
}

}  // namespace

std::string named(const std::string& word) {
  const std::string quoted = in_quotes(word);
  return "'" + quoted.substr(1, quoted.size() - 2) + "'";
}

std::vector<std::string> arranged(CLI::App& program, const Words& typed) {
  const Words names = verb_names(program);
  if (typed.empty()) refuse("expected a verb: " + listed(names) + "; nacre --help describes them");
  const std::string& first = typed[0];
  if (is_help(first) || first == "help") {
    if (typed.size() == 1) return {"--help"};
    if (typed.size() > 2 && !is_help(typed[2]))
      refuse("unexpected argument " + named(typed[2]) + "; expected nacre help VERB");
    return is_help(typed[1]) ? Words{"--help"} : Words{verb_of(program, typed[1]).get_name(), "--help"};
  }
  if (first == "--version" || first == "-V") {
    if (typed.size() > 1) refuse("unexpected argument " + named(typed[1]) + " after --version");
    return {"--version"};
  }
  if (first == "--") refuse("expected a verb before '--': " + listed(names));
  if (first.starts_with("-")) option_before_verb(program, first);
  CLI::App& verb = verb_of(program, first);
  const Words rest(typed.begin() + 1, typed.end());
  for (const std::string& word : rest) {
    if (word == "--") break;
    if (is_help(word)) return {first, "--help"};
  }
  if (rest == Words{"help"} && !std::filesystem::exists("help")) return {first, "--help"};
  return Behind(verb, rest).arranged();
}

std::string reason(const CLI::ParseError& e) {
  std::string text = e.what();
  // Removes the colon of CLI11's "--threads: is -1, expected 0 to 1024".
  if (const size_t at = text.find(": is "); at != std::string::npos) text.erase(at, 1);
  return text;
}

CLI::Validator one_of(std::vector<std::string> names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "{" : ",") + name;
  return CLI::Validator(
      [names](std::string& word) {
        if (std::find(names.begin(), names.end(), word) != names.end()) return std::string();
        return "is " + named(word) + ", expected " + listed(names) + did_you_mean(word, names);
      },
      text + "}");
}

namespace {

CLI::Validator number(bool (*allowed)(double), const std::string& what) {
  return CLI::Validator(
      [allowed, what](std::string& word) {
        return allowed(std::strtod(word.c_str(), nullptr)) ? std::string() : "is " + named(word) + ", expected " + what;
      },
      "", what);
}

}  // namespace

CLI::Validator between(int64_t low, int64_t high) {
  const std::string what = std::to_string(low) + " to " + std::to_string(high);
  return CLI::Validator(
      [low, high, what](std::string& word) {
        const int64_t value = std::strtoll(word.c_str(), nullptr, 10);
        return value >= low && value <= high ? std::string() : "is " + named(word) + ", expected " + what;
      },
      what);
}
CLI::Validator at_least(int64_t low) {
  const std::string what = std::to_string(low) + " or more";
  return CLI::Validator(
      [low, what](std::string& word) {
        return std::strtoll(word.c_str(), nullptr, 10) >= low ? std::string()
                                                              : "is " + named(word) + ", expected " + what;
      },
      what);
}
CLI::Validator above_zero() {
  return number([](double x) { return x > 0; }, "a number above 0");
}
CLI::Validator part() {
  return number([](double x) { return x >= 0 && x <= 1; }, "0 to 1");
}
CLI::Validator zero_or_more() {
  return number([](double x) { return x >= 0; }, "0 or more");
}
CLI::Validator finite_zero_or_more() {
  return number([](double x) { return x >= 0 && std::isfinite(x); }, "0 or more");
}

}  // namespace nacre::program
