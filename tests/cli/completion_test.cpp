// Completion scripts and the manual page have all that --help has.
#include "cli/program.h"
#include "cli/shell.h"

using namespace nacre;
using namespace nacre::test;

namespace {

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("keyboard: completion offers verbs, options and values", "[cli]") {
  const Folder folder;
  const std::string nacre = NACRE_PROGRAM;
  const auto offered = [&](const Words& typed) {
    std::string words;
    for (const std::string& w : typed) words += " \"" + w + "\"";
    spill(folder / "ask.sh", "source <(" + nacre + " completion bash) || exit 9\nCOMP_WORDS=(nacre" + words +
                                 ")\nCOMP_CWORD=" + std::to_string(typed.size()) +
                                 "\n_nacre\nprintf \"%s\\n\" \"${COMPREPLY[@]}\" >got\n");
    REQUIRE(in_shell(folder, "bash -u ask.sh") == 0);
    CHECK(slurp(folder / "shell.err").empty());
    return "\n" + slurp(folder / "got");
  };
  const auto has = [](const std::string& list, const std::string& word) {
    return list.find("\n" + word + "\n") != std::string::npos;
  };
  std::string list = offered({""});
  for (const char* verb : {"train", "encode", "decode", "eval", "report", "info", "export", "completion", "man"})
    CHECK(has(list, verb));
  CHECK(offered({"enc"}) == "\nencode\n");
  list = offered({"encode", "--"});
  for (const char* option :
       {"--model", "--output", "--beam", "--bitrate", "--n-codebooks", "--device", "--json", "--help"})
    CHECK(has(list, option));
  CHECK_FALSE(has(list, "--epochs"));
  CHECK(offered({"encode", "x", "--mod"}) == "\n--model\n");
  CHECK(has(offered({"encode", "--device", ""}), "cuda"));
  CHECK(offered({"encode", "--device", "cp"}) == "\ncpu\n");
  CHECK(offered({"encode", "--device", "=", "cp"}) == "\ncpu\n");
  CHECK(has(offered({"train", "--config", ""}), "speech-16k-small"));
  spill(folder / "a file.wav", "");
  CHECK(has(offered({"encode", "a"}), "a file.wav"));
  CHECK(has(offered({"train", "--config", "a"}), "a file.wav"));
  CHECK(offered({"completion", "z"}) == "\nzsh\n");
  // Every option of --help is in the script of every shell.
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string script = run(folder, {"completion", shell}).out;
    for (const char* verb : {"train", "encode", "decode", "eval", "report", "info", "export"}) {
      const std::string help = run(folder, {verb, "--help"}).out;
      CHECK_THAT(script, Catch::Contains(verb));
      for (size_t at = help.find("--"); at != std::string::npos; at = help.find("--", at + 2)) {
        const size_t end = help.find_first_not_of("abcdefghijklmnopqrstuvwxyz-_", at + 2);
        const std::string option = help.substr(at, end - at);
        if (option.size() < 4 || option.find('_') != std::string::npos) continue;
        INFO(shell << " " << verb << " " << option);
        CHECK_THAT(script, Catch::Contains(shell == std::string("fish") ? "-l " + option.substr(2) : option));
      }
    }
  }
  for (const char* shell : {"zsh", "fish"})
    if (in_shell(folder, std::string("command -v ") + shell + " >found") == 0) {
      spill(folder / "script", run(folder, {"completion", shell}).out);
      CHECK(in_shell(folder, std::string(shell) + " -n script") == 0);
    }
}

TEST_CASE("keyboard: the manual lists every verb and option", "[cli]") {
  const Folder folder;
  const Outcome o = run(folder, {"man"});
  REQUIRE(o.code == 0);
  CHECK(o.out.find("\n.TH NACRE 1 ") != std::string::npos);
  for (const char* section : {"NAME", "SYNOPSIS", "DESCRIPTION", "VERBS", "EXIT STATUS"})
    CHECK_THAT(o.out, Catch::Contains(std::string("\n.SH ") + section + "\n"));
  std::string plain = o.out;  // roff writes "-" as "\-"
  for (size_t at = plain.find("\\-"); at != std::string::npos; at = plain.find("\\-", at)) plain.erase(at, 1);
  for (const char* verb : {"train", "encode", "decode", "eval", "report", "info", "export", "completion", "man"}) {
    const size_t begin = plain.find(std::string("\n.SS ") + verb + "\n");
    REQUIRE(begin != std::string::npos);
    const std::string part = plain.substr(begin, plain.find("\n.S", begin + 1) - begin);
    const std::string help = run(folder, {verb, "--help"}).out;
    for (size_t at = help.find("\n  -"); at != std::string::npos; at = help.find("\n  -", at + 1)) {
      const std::string names = help.substr(at + 3, help.find_first_of(" \n", at + 3) - at - 3);
      std::stringstream words(names);
      for (std::string name; std::getline(words, name, ',');) {
        INFO(verb << " " << name);
        if (name.find('_') == std::string::npos) CHECK_THAT(part, Catch::Contains("\\fB" + name + "\\fR"));
      }
    }
  }
  spill(folder / "nacre.1", o.out);
  // If mandoc is installed, it must find nothing to report.
  if (in_shell(folder, "command -v mandoc >found") == 0)
    CHECK(in_shell(folder, "mandoc -T lint -W error nacre.1 >found") == 0);
  if (in_shell(folder, "command -v groff >found") == 0) {
    CHECK(in_shell(folder, "groff -man -Tascii -ww nacre.1 >found") == 0);
    CHECK(slurp(folder / "shell.err").empty());
  }
}
