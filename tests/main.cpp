#if !__has_include(<catch2/catch_test_macros.hpp>)
#define CATCH_CONFIG_MAIN
#endif
#include "catch.h"
#if NACRE_CATCH == 3
#include <catch2/catch_session.hpp>
#include <cstring>
#include <string_view>
#include <vector>

// Scripts pass options of version 2. --list-test-names-only is now --list-tests --verbosity quiet. -w NoTests is the
// default now.
int main(int argc, char** argv) {
  std::vector<const char*> words;
  for (int i = 0; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--list-test-names-only")
      words.insert(words.end(), {"--list-tests", "--verbosity", "quiet"});
    else if (word == "-w" && i + 1 < argc && std::strcmp(argv[i + 1], "NoTests") == 0)
      ++i;
    else
      words.push_back(argv[i]);
  }
  return Catch::Session().run(static_cast<int>(words.size()), words.data());
}
#endif
