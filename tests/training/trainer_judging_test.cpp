// Evaluations in training: saves before them, stops in them, failures, on held-out or on training audio.
#include <map>

#include "allocations.h"
#include "log/event_reader.h"
#include "nacre/files/checkpoint_store.h"
#include "training/trainer_points.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::vector<nlohmann::json> evaluations(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  for (const nlohmann::json& line : log_lines(run))
    if (line.contains("valid/loss")) lines.push_back(line);
  return lines;
}
std::string checkpoint_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%08d", static_cast<int>(step));
  return name;
}

}  // namespace

TEST_CASE("trainer: a checkpoint is there before the evaluation, and gets its score after") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 1;
  Trainer t(folder, "run", config);
  bool start = false;
  run_until_said(t, "start  step 0", [&] { start = fs::exists(t.options.run / checkpoint_name(0) / "manifest.json"); });
  CHECK(start);
  const int64_t end = list_checkpoints(t.options.run).back();
  const Checkpoint last = verify_checkpoint(t.options.run / checkpoint_name(end));
  REQUIRE(last.metric);
  CHECK(*last.metric == evaluations(t.options.run).back()["valid/snr"].get<double>());
  CHECK(nlohmann::json::parse(last.manifest)["metrics"]["snr"] == *last.metric);
  // The start has no score: it is kept in start/, and is never the best checkpoint.
  CHECK(!verify_checkpoint(t.options.run / checkpoint_name(0)).metric);
  CHECK(find_model(t.options.run).parent_path() == last.path);

  Trainer again(folder, "again", config);
  bool epoch = false;
  run_until_said(again, "epoch 1  step",
                 [&] { epoch = fs::exists(again.options.run / checkpoint_name(end) / "manifest.json"); });
  CHECK(epoch);
}

TEST_CASE("trainer: a signal is obeyed wherever it comes, and the run goes on as if nothing had happened") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 2;
  Trainer whole(folder, "whole", config);
  const TrainResult end = whole.run().result;
  const auto scores = evaluations(whole.options.run);
  REQUIRE(scores.size() == 3);

  Trainer t(folder, "run", config);
  std::atomic<int> signal{0};
  std::atomic<bool> may_leave{false};
  t.options.stop = &signal;
  t.options.may_leave = &may_leave;
  const auto stop = [&] { signal = 1; };
  int64_t saved = -1;
  TrainResult r;
  SECTION("while the data is read") {
    signal = 1;
    r = t.run().result;
    CHECK(contains(t.said, "stopped before the first step, while the data was read"));
  }
  SECTION("while the codebooks start") {
    r = run_until_said(t, "model:", stop);
    CHECK(contains(t.said, "stopped before the first step; nothing is saved yet"));
  }
  SECTION("in the first evaluation") {
    const AfterRename point(checkpoint_name(0), stop);
    r = t.run().result;
    CHECK(contains(t.said, "a signal stopped the evaluation at step 0"));
    saved = 0;
  }
  SECTION("after it") {
    r = run_until_said(t, "start  step 0", stop);
    saved = 0;
  }
  SECTION("in the evaluation of an epoch") {
    t.options.config.training.checkpoint_minutes =
        1e-9;  // after each step, so that the last one has a file to wait for
    const AfterRename point(checkpoint_name(end.step / 2 - 1), stop);
    r = t.run().result;
    saved = end.step / 2 - 1;
  }
  SECTION("before the last evaluation, when all steps are done") {
    const AfterRename point(checkpoint_name(end.step), stop);
    r = t.run().result;
    saved = end.step;
  }
  SECTION("after the evaluation of an epoch") {
    r = run_until_said(t, "epoch 1  step", stop);
    saved = end.step / 2;
  }
  CHECK(r.signal == 1);
  CHECK(!r.finished);
  CHECK(!may_leave);
  const std::vector<int64_t> left = list_checkpoints(t.options.run);
  CHECK((left.empty() ? -1 : left.back()) == saved);
  if (saved >= 0) {
    CHECK(r.checkpoint == t.options.run / checkpoint_name(saved));
    CHECK_NOTHROW(verify_checkpoint(r.checkpoint));
    CHECK(contains(t.said, "stopped at step " + std::to_string(saved) + "; saved "));
  }

  signal = 0;
  t.options.config = config;
  const Outcome rest = t.run();
  CHECK(rest.result.finished);
  check_same_state(end.checkpoint, rest.result.checkpoint);
  CHECK(logged_losses(t.options.run) == logged_losses(whole.options.run));
  // Each evaluation appears once, the stopped one as well, with the same scores.
  const auto again = evaluations(t.options.run);
  REQUIRE(again.size() == scores.size());
  for (size_t i = 0; i < scores.size(); ++i)
    for (const char* key : {"step", "valid/snr", "valid/loss", "valid/mel_distance"})
      CHECK(again[i][key] == scores[i][key]);
  CHECK(fs::exists(t.options.run / "start/model.safetensors"));
}

TEST_CASE("trainer: an epoch whose evaluation was stopped is judged when the run goes on") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 2;
  Trainer whole(folder, "whole", config);
  const TrainResult end = whole.run().result;
  const int64_t epoch = end.step / 2;
  Trainer t(folder, "run", config);
  CHECK(t.run_to(epoch).result.step == epoch);  // scored
  const Checkpoint judged = verify_checkpoint(t.options.run / checkpoint_name(epoch));
  REQUIRE(judged.metric);
  {
    // The state that a signal in the evaluation leaves.
    auto manifest = nlohmann::json::parse(judged.manifest);
    manifest.erase("metrics");
    CheckpointStore(t.options.run).judge(epoch, manifest.dump(), {});
    CHECK(!verify_checkpoint(judged.path).metric);
    std::string log;
    for (const auto& line : log_lines(t.options.run))
      if (!line.contains("valid/loss") || line["step"] != epoch) log += line.dump() + "\n";
    write_bytes(t.options.run / "log.jsonl", log);
  }
  CHECK(t.run_to(0).result.finished);
  CHECK(*verify_checkpoint(judged.path).metric == *judged.metric);
  REQUIRE(evaluations(t.options.run).size() == 3);
  CHECK(evaluations(t.options.run)[1]["valid/snr"] == evaluations(whole.options.run)[1]["valid/snr"]);
  CHECK(logged_losses(t.options.run) == logged_losses(whole.options.run));
  check_same_state(end.checkpoint, t.options.run / checkpoint_name(end.step));
}

TEST_CASE("trainer: an evaluation that fails costs its scores, not the run") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 1;
  Trainer whole(folder, "whole", config);
  const TrainResult end = whole.run().result;
  // One allocation fails, some allocations after the first line of the evaluation.
  for (const int left : {0, 7, 60}) {
    Trainer t(folder, "short" + std::to_string(left), config);
    const TrainResult r = run_until_said(t, "epoch 1  step", [&] { allocations_left = left; });
    allocations_left = -1;
    INFO(left << " allocations\n" << t.said);
    CHECK(r.finished);
    check_same_state(end.checkpoint, r.checkpoint);
    CHECK(
        contains(t.said, "warning: the evaluation at step " + std::to_string(end.step) + " failed: not enough memory"));
    CHECK(contains(t.said, "valid_seconds"));
    CHECK(contains(t.said, "training goes on"));
    CHECK(!verify_checkpoint(r.checkpoint).metric);
    CHECK(contains(t.said, "done: "));
  }
  // The evaluation of the start fails. Training begins anyway, and there is no start to compare with.
  Trainer t(folder, "start", config);
  const TrainResult r = run_until_said(t, "start  step 0", [] { allocations_left = 0; });
  allocations_left = -1;
  CHECK(r.finished);
  CHECK(contains(t.said, "warning: the evaluation at step 0 failed"));
  CHECK(!fs::exists(t.options.run / "start"));
  check_same_state(end.checkpoint, r.checkpoint);
  CHECK(verify_checkpoint(r.checkpoint).metric);
}

TEST_CASE("trainer: what is judged is called what it is") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  Trainer t(folder, "run", config);
  std::string judged_on = "training audio";
  SECTION("a fraction of 0") { t.options.config.training.valid_fraction = 0; }
  SECTION("a single file") {
    for (int i = 1; i < 6; ++i) fs::remove(folder / ("data/" + std::to_string(i) + ".wav"));
  }
  SECTION("a folder valid/ with nothing usable, and a single file beside it") {
    for (int i = 1; i < 6; ++i) fs::remove(folder / ("data/" + std::to_string(i) + ".wav"));
    write_bytes(folder / "data/valid/bad.wav", "no sound");
  }
  SECTION("held-out files") { judged_on = "held out"; }
  const std::string said = t.run_to(1).text;
  INFO(said);
  CHECK(contains(said, "\n  " + judged_on + ": SNR "));
  CHECK(contains(said, "evaluations use the training audio") == (judged_on == "training audio"));
  if (judged_on == "training audio") CHECK(!contains(said, "held out: SNR"));
  for (const auto& line : evaluations(t.options.run)) CHECK(line["judged_on"] == judged_on);
  CHECK(evaluations(t.options.run).size() == 2);
}

TEST_CASE("trainer: leaving at once is allowed while nothing would be lost") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  struct Seen {
    std::atomic<bool> may_leave{false};
    int codebooks = 0, training = 0, wrong = 0;
  } seen;
  std::FILE* quiet = t.options.progress;
  t.options.may_leave = &seen.may_leave;
  t.options.progress = ::fopencookie(&seen, "w",
                                     {.read = nullptr,
                                      .write = [](void* cookie, const char* data, size_t n) -> ssize_t {
                                        Seen& s = *static_cast<Seen*>(cookie);
                                        // the bar of the scan, on a slow machine, or of the codebooks
                                        const std::string shown(data, n);
                                        const bool starting = contains(shown, "codebooks") || contains(shown, "read");
                                        ++(starting ? s.codebooks : s.training);
                                        if (s.may_leave != starting) ++s.wrong;
                                        return static_cast<ssize_t>(n);
                                      },
                                      .seek = nullptr,
                                      .close = nullptr});
  t.run_to(2);
  std::fclose(t.options.progress);
  t.options.progress = quiet;
  CHECK(seen.codebooks > 0);
  CHECK(seen.training > 0);
  CHECK(seen.wrong == 0);
}

TEST_CASE("trainer: clips in the event files have a stated length") {
  const TemporaryFolder folder;
  RunConfig config = tiny();
  config.codec.sample_rate = 1000;
  write_sine(folder / "data/a.wav", 4000, 100, 1000);
  write_sine(folder / "data/valid/long.wav", 200000, 100, 1000);
  write_sine(folder / "data/valid/middle.wav", 25000, 100, 1000);
  config.training.valid_seconds = 40;
  Trainer t(folder, "run", config);
  t.run_to(1);
  std::map<std::string, size_t>
      sounds;  // bytes by tag; in a value of a summary, 1 is its tag and 6 its audio, whose 4 is a WAV
  for (const auto& entry : fs::directory_iterator(t.options.run)) {
    if (entry.path().filename().string().rfind("events.out", 0) != 0) continue;
    for (const Fields& event : parse_events(read_bytes(entry.path())).events)
      for (const Field& summary : event) {
        if (summary.number != 5) continue;
        for (const Field& value : parse_message(summary.bytes)) {
          if (value.number != 1 || value.type != 2) continue;
          const Fields all = parse_message(value.bytes);
          for (const Field& f : all)
            if (f.number == 6) sounds[get(all, 1).bytes] = get(parse_message(f.bytes), 4).bytes.size();
        }
      }
  }
  // 40 s: a whole file of 25 s, and two excerpts of the long one. Each sound is a header of 44 bytes and 10 s of 16
  // bits.
  const size_t bytes = 44 + 2 * 10000;
  for (const char* kind : {"original/", "decoded/"})
    for (const char* name : {"0/valid/long.wav @ 45.0 s", "1/valid/long.wav @ 145.0 s", "2/valid/middle.wav"}) {
      INFO(kind << name);
      CHECK(sounds[std::string(kind) + name] == bytes);
    }
  CHECK(sounds.size() == 6);
}
