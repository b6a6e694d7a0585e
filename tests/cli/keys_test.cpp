// nacre info --keys: every key of a configuration, as a table and as JSON.
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/program.h"
#include "nacre/training/run_config.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("info: --keys lists every key in aligned columns, and --json has the same", "[cli]") {
  const Folder folder;
  const Outcome table = run(folder, {"info", "--keys"}), object = run(folder, {"info", "--keys", "--json"});
  CHECK(table.code == 0);
  CHECK(table.err.empty());
  REQUIRE(object.code == 0);
  const json keys = json::parse(object.out)["keys"];
  const std::vector<std::string> lines = lines_of(table.out);
  REQUIRE(lines.size() == keys.size() + 1);

  // Every column begins where its heading does, two spaces after the one before.
  std::vector<size_t> columns;
  for (const char* heading : {"key", "type", "default", "range", "meaning"}) {
    columns.push_back(lines[0].find(heading));
    REQUIRE(columns.back() != std::string::npos);
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    INFO(lines[i + 1]);
    const json& k = keys[i];
    const std::string cells[] = {k["name"], k["type"], k["default"].dump(), k["range"], k["help"]};
    for (size_t c = 0; c < columns.size(); ++c) {
      CHECK(lines[i + 1].compare(columns[c], cells[c].size(), cells[c]) == 0);
      if (c > 0) CHECK(lines[i + 1].substr(columns[c] - 2, 2) == "  ");
    }
    CHECK(lines[i + 1].size() == columns.back() + cells[4].size());
  }

  // Every section has every key.
  json all = json::parse(training::RunConfig{}.to_json());
  std::vector<std::string> sections;
  for (const json& k : keys) {
    const std::string name = k["name"], section = name.substr(0, name.find('.'));
    if (sections.empty() || sections.back() != section) sections.push_back(section);
    INFO(name);
    CHECK(all[section].erase(name.substr(section.size() + 1)) == 1);
  }
  CHECK(sections == std::vector<std::string>{"codec", "discriminator", "loss", "optimizer", "training"});
  for (const auto& [section, left] : all.items()) CHECK(left.empty());
}

TEST_CASE("train: an option for a key has the key's meaning and takes its values", "[cli]") {
  const Folder folder;
  const json keys = json::parse(run(folder, {"info", "--keys", "--json"}).out)["keys"];
  const std::string help = run(folder, {"train", "--help"}).out;
  for (const std::string name :
       {"training.batch_size", "training.num_epochs", "training.segment_length", "training.max_steps", "training.seed",
        "training.valid_fraction", "optimizer.learning_rate", "codec.sample_rate"}) {
    INFO(name);
    const auto key = std::find_if(keys.begin(), keys.end(), [&](const json& k) { return k["name"] == name; });
    REQUIRE(key != keys.end());
    const std::string word = name.substr(name.find('.') + 1), meaning = (*key)["help"];
    std::string option = "--" + word;
    std::replace(option.begin(), option.end(), '_', '-');
    const size_t at = help.find(option);
    REQUIRE(at != std::string::npos);
    CHECK(help.substr(at).find(meaning.substr(0, 20)) < 200);
    // The message for a negative value names the option and, except for the seed, the key.
    for (const std::string& spelling : {option, "--" + word}) {
      const Outcome o =
          run(folder, {"train", "--data-dir", folder / "none", "--checkpoint-dir", folder / "run", spelling + "=-1"});
      CHECK(o.code == 2);
      CHECK_THAT(o.err, Catch::Contains(option));
      if (word != "seed") CHECK_THAT(o.err, Catch::Contains(name + " is -1"));
    }
  }
}
