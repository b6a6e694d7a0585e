// Initial weights that do not fit the whole model are refused, unless a part is requested. Also: an error that ends a
// run is preceded by a save.
#include "nacre/files/checkpoint_store.h"
#include "nacre/files/safetensors.h"
#include "training/trainer_points.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// The model's tensors with new names. An empty new name removes the tensor.
std::string renamed(const TemporaryFolder& folder, const fs::path& model, const std::string& name,
                    const std::function<std::string(const std::string&)>& rename) {
  const Safetensors file = Safetensors::read(model);
  std::vector<StoredTensor> tensors;
  for (StoredTensor t : file.tensors()) {
    t.name = rename(t.name);
    if (!t.name.empty()) tensors.push_back(t);
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  const std::string path = folder / (name + ".safetensors");
  write_safetensors(fs::path(path), tensors, file.metadata());
  return path;
}
std::string replaced(std::string text, const std::string& from, const std::string& to) {
  if (const size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

}  // namespace

TEST_CASE("trainer: weights under other names are refused, with what matches and what does not") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  const fs::path model = t.run_to(2).result.checkpoint / "model.safetensors";
  REQUIRE(contains(read_bytes(model), "weight_g"));
  const std::string modern = renamed(folder, model, "modern", [](const std::string& n) {
    return replaced(replaced(n, "weight_g", "parametrizations.weight.original0"), "weight_v",
                    "parametrizations.weight.original1");
  });
  const std::string plain = renamed(folder, model, "plain", [](const std::string& n) {
    return contains(n, "weight_g") ? std::string() : replaced(n, "weight_v", "weight");
  });
  for (const std::string& path : {modern, plain}) {
    INFO(path);
    Trainer next(folder, "next", tiny());
    next.options.init = path;
    std::string text;
    CHECK(next.error_of_run(text) == ErrorKind::input);
    INFO(text);
    for (const char* part : {" tensors taken from ", " missing, ", " not used, ", "; missing: ", "weight_g",
                             "; not used: ", " more", "--init-partial"})
      CHECK(contains(text, part));
    CHECK(std::count(text.begin(), text.end(), '\n') == 0);
    // Up to five names of each kind.
    const size_t from = text.find("; missing: "), to = text.find(" and ", from);
    CHECK(std::count(text.begin() + static_cast<std::ptrdiff_t>(from), text.begin() + static_cast<std::ptrdiff_t>(to),
                     ',') == 4);
    CHECK(!fs::exists(next.options.run / "config.json"));
    CHECK(list_checkpoints(next.options.run).empty());
    next.options.init_partial = true;
    const Outcome o = next.run_to(1);
    CHECK(o.result.finished);
    CHECK(contains(o.text, "; missing: "));
    fs::remove_all(next.options.run);
  }
  SECTION("another shape is refused by name") {
    RunConfig wider = tiny();
    wider.codec.codebook_size = 32;
    Trainer next(folder, "wider", wider);
    next.options.init = model;
    std::string text;
    CHECK(next.error_of_run(text) == ErrorKind::input);
    CHECK(contains(text, "; of another shape: "));
    next.options.init_partial = true;
    CHECK(next.run_to(1).result.finished);
  }
  SECTION("more than the model's is no reason") {
    const Safetensors file = Safetensors::read(model);
    std::vector<StoredTensor> tensors(file.tensors().begin(), file.tensors().end());
    tensors.push_back(tensors.back());
    tensors.back().name += ".of_a_discriminator";
    const std::string path = folder / "more.safetensors";
    write_safetensors(fs::path(path), tensors, file.metadata());
    Trainer next(folder, "more", tiny());
    next.options.init = path;
    CHECK(contains(next.run_to(1).text, "0 missing, 1 not used, 0 of another shape; not used: "));
  }
}

TEST_CASE("trainer: what ends a run is preceded by a save of what has been trained") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer whole(folder, "whole", tiny());
  const TrainResult end = whole.run().result;
  Trainer t(folder, "run", tiny());
  // Any exception between two steps; here the screen throws it. Short epochs are not saved one by one.
  const auto fail = [] { throw std::runtime_error("the screen broke"); };
  std::string text;
  try {
    run_until_said(t, "epoch 2  step", fail);
  } catch (const std::runtime_error& e) {
    text = e.what();
  }
  CHECK(text == "the screen broke");
  CHECK(contains(t.said, "an error ends the run; saved "));
  REQUIRE(list_checkpoints(t.options.run).back() == 20);
  check_same_state(end.checkpoint, t.run_to(0).result.checkpoint);
}

TEST_CASE("codebook start: gathering frames moves the bar") {
  const RunConfig config = tiny();
  Context ctx({.device = {}, .threads = 1});
  TrainingStep step(ctx, config.codec, config.loss, config.optimizer, 2, 400, 1);
  const std::vector<float> audio = sine(800, 300, 16000);
  int batches = 0;
  std::vector<std::pair<int64_t, int>> told;  // steps done, batches so far
  int64_t total = 0;
  step.start_codebooks(
      [&] {
        ++batches, step.load(audio, std::vector<int32_t>{400, 400});
      },
      1000, 0,
      [&](int64_t done, int64_t all) {
        told.emplace_back(done, batches);
        total = all;
      });
  // 200 frames a batch: 5 batches, and a report after each.
  CHECK(batches == 5);
  CHECK(total == 5 + config.codec.n_codebooks);
  for (int b = 1; b <= 5; ++b) CHECK(std::find(told.begin(), told.end(), std::pair<int64_t, int>(b, b)) != told.end());
  CHECK(told.back().first == total);
}
