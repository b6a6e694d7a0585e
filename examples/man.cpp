// nacre man: the manual page, made from the table that --help prints.
#include <cstdio>

#include "commands.h"
#include "option_table.h"

namespace nacre::program {
namespace {

/// Escapes text for a roff document: no character starts a request or an escape, and "-" stays an ASCII hyphen.
std::string roff(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool line_begins = out.empty() || out.back() == '\n';
    if (line_begins && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else
      out += c;
  }
  return out;
}
std::string bold(const std::string& text) { return "\\fB" + roff(text) + "\\fR"; }
std::string italic(const std::string& text) { return "\\fI" + roff(text) + "\\fR"; }

std::string option(const OptionRow& o) {
  std::string head;
  for (const auto* names : {&o.shorts, &o.longs})
    for (const std::string& n : *names)
      if (n.find('_') == std::string::npos) head += (head.empty() ? "" : ", ") + bold(n);
  if (o.positional) head = italic(o.value) + (o.choices.empty() ? "..." : "") + (head.empty() ? "" : ", " + head);
  if (!o.positional && !o.flag()) head += " " + italic(o.value);
  std::string text = roff(o.description);
  std::string choices;
  for (const std::string& c : o.choices) choices += (choices.empty() ? "" : ", ") + c;
  if (!choices.empty() && o.description.find(o.choices.front()) == std::string::npos) text += ": " + roff(choices);
  if (!o.default_value.empty()) text += " (default: " + roff(o.default_value) + ")";
  if (o.required) text += " (required)";
  return ".TP\n" + head + "\n" + text + "\n";
}

std::string synopsis(const VerbRow& v) {
  std::string line = ".br\n\\fBnacre " + roff(v.name) + "\\fR [\\fIOPTIONS\\fR]";
  for (const OptionRow& o : v.options)
    if (o.required && !o.positional) line += " " + bold(o.longs.front()) + " " + italic(o.value);
  for (const OptionRow& o : v.options)
    if (o.positional) {
      const std::string words = italic(o.value) + (o.choices.empty() ? "..." : "");
      line += o.required ? " " + words : " [" + words + "]";
    }
  return line + "\n";
}

std::string page(const CLI::App& program) {
  const std::vector<VerbRow> verbs = table_of(program);
  std::string s = ".\\\" Made by `nacre man`.\n.TH NACRE 1 \"\" \"nacre " NACRE_VERSION "\" \"User Commands\"\n";
  s += ".SH NAME\nnacre \\- train, run and evaluate neural audio codecs\n.SH SYNOPSIS\n";
  for (const VerbRow& v : verbs) s += synopsis(v);
  s += ".br\n\\fBnacre help\\fR [\\fIVERB\\fR]\n.br\n\\fBnacre \\-\\-version\\fR\n";
  s += ".SH DESCRIPTION\nA neural audio codec is an encoder, a residual vector quantizer and a decoder. \\fBnacre\\fR "
       "trains one on a folder of audio, encodes audio files as \\fI.nacre\\fR streams, decodes them, and measures the "
       "quality of the decoded audio.\n.PP\n"
       "Options come after the verb, before or after its other arguments. \\fB\\-\\-name=value\\fR and "
       "\\fB\\-\\-name value\\fR are the same, and names may be spelt with \\- or _. Arguments after "
       "\\fB\\-\\-\\fR are not options. Results and data go to standard output, progress and errors to standard "
       "error.\n.SH VERBS\n";
  for (const VerbRow& v : verbs) {
    s += ".SS " + roff(v.name) + "\n" + roff(v.description) + ".\n";
    for (const OptionRow& o : v.options) s += option(o);
    if (!v.footer.empty()) s += ".PP\n" + roff(v.footer) + "\n";
  }
  s += ".SH EXIT STATUS\n";
  struct Code {
    const char *code, *text;
  };
  for (const Code& c :
       {Code{"0", "success"},
        {"2", "usage error: an invalid option or configuration, or an output that already exists"},
        {"3",
         "invalid input: a file that is damaged or of another kind than expected, or some of several inputs failed"},
        {"4", "input/output error: a file cannot be opened, read or written"},
        {"5", "not enough memory"},
        {"6", "the device failed or is not available"},
        {"7", "training diverged"},
        {"129, 130, 143", "stopped by SIGHUP, SIGINT, SIGTERM"}})
    s += std::string(".TP\n.B ") + c.code + "\n" + roff(c.text) + "\n";
  return s;
}

}  // namespace

Command add_man(CLI::App& app) {
  app.footer("The page is printed to standard output, in roff format. To read it: nacre man | man -l -");
  return [&app] {
    std::fputs(page(*app.get_parent()).c_str(), stdout);
    return 0;
  };
}

}  // namespace nacre::program
