// The start of a run: the model is scored once before the first step and kept, so that training can be compared with
// it.
#include "nacre/codec/codec.h"
#include "nacre/files/checkpoint_store.h"
#include "training/trainer_runs.h"

using namespace nacre;
using namespace nacre::test;

TEST_CASE("trainer: the start of a run is judged once, and kept") {
  const TemporaryFolder folder;
  write_sounds(folder);
  const auto starts = [](const fs::path& run) {
    std::vector<nlohmann::json> lines;
    for (const nlohmann::json& line : log_lines(run))
      if (line.contains("valid/loss") && line["epoch"] == 0) lines.push_back(line);
    return lines;
  };
  RunConfig config = tiny();
  config.training.num_epochs = 1;
  config.optimizer.ema_decay = 0.9;
  Trainer t(folder, "run", config);
  const Outcome first = t.run_to(2);
  CHECK(contains(first.text, "\nstart  step 0  loss "));
  REQUIRE(starts(t.options.run).size() == 1);
  const nlohmann::json line = starts(t.options.run)[0];
  CHECK(line["step"] == 0);
  CHECK(line["valid/loss"].is_number());
  CHECK(line["trained_seconds"] == 0);
  CHECK(!line.contains("valid/grad_norm"));
  CHECK(log_lines(t.options.run)[0] == line);

  // The kept model is the scored one, not the trained one.
  const std::string kept = read_bytes(t.options.run / "start/model.safetensors");
  Context ctx({.device = {}, .threads = 1});
  Codec codec = Codec::load(ctx, find_model(t.options.run / "start"));
  const Dataset data(t.options.data_dir, dataset_options(config));
  Evaluation e(codec);
  for (const Excerpt& part : judged_excerpts(data, config.training.valid_seconds)) e.add("", *data.load(part.clip));
  CHECK(e.snr() == line["valid/snr"].get<double>());
  CHECK(e.mel() == line["valid/mel_distance"].get<double>());
  CHECK(kept != read_bytes(first.result.checkpoint / "model.safetensors"));
  CHECK(find_model(t.options.run).parent_path() == first.result.checkpoint);

  SECTION("a run that goes on does not repeat it") {
    const Outcome rest = t.run_to(0);
    CHECK(contains(rest.text, "epoch 1  step "));
    CHECK(!contains(rest.text, "start  step 0"));
    CHECK(starts(t.options.run).size() == 1);
    CHECK(read_bytes(t.options.run / "start/model.safetensors") == kept);
  }
  SECTION("a run that lost its checkpoints begins anew, and has it once") {
    fs::remove_all(first.result.checkpoint);
    fs::remove_all(t.options.run / "step-00000000");
    write_bytes(t.options.run / "start/model.safetensors", "cut off");
    CHECK(contains(t.run_to(2).text, "start  step 0"));
    CHECK(starts(t.options.run).size() == 1);
    CHECK(read_bytes(t.options.run / "start/model.safetensors") == kept);
  }
  SECTION("a run with given weights has none") {
    Trainer next(folder, "next", config);
    next.options.init = t.options.run;
    CHECK(!contains(next.run_to(2).text, "start  step 0"));
    CHECK(starts(next.options.run).empty());
    CHECK(!fs::exists(next.options.run / "start"));
  }
  SECTION("a codec that is too narrow for a transform starts from random weights, and says so") {
    CHECK(contains(first.text, "start: a lapped transform of "));
    RunConfig narrow = config;
    narrow.codec.encoder_dim = 1;
    CHECK(contains(Trainer(folder, "narrow", narrow).run_to(1).text,
                   "start: random weights; a transform codec does not fit: "));
    RunConfig random = config;
    random.training.start = Start::random;
    CHECK(!contains(Trainer(folder, "random", random).run_to(1).text, "start: "));
    RunConfig scaled = config;
    scaled.training.start = Start::scaled;
    CHECK(contains(Trainer(folder, "scaled", scaled).run_to(1).text,
                   "start: random weights that keep the variance of the signal"));
  }
  SECTION("a run that is stopped while its codebooks start leaves no checkpoint, and begins anew") {
    Trainer stopped(folder, "stopped", config);
    const std::atomic<int> term{15};
    stopped.options.stop = &term;
    const Outcome none = stopped.run_to(2);
    CHECK(contains(none.text, "stopped before the first step"));
    CHECK(none.result.signal == 15);
    CHECK(!none.result.finished);
    CHECK(none.result.checkpoint.empty());
    CHECK(list_checkpoints(stopped.options.run).empty());
    stopped.options.stop = nullptr;
    CHECK(stopped.run_to(2).result.step == 2);
    CHECK(starts(stopped.options.run).size() == 1);
    CHECK(read_bytes(stopped.options.run / "start/model.safetensors") == kept);
  }
}
