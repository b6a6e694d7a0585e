// The trainer as a library: the content of a run, stops that change nothing, and errors. tests/cli/train_test.sh tests
// the program (signals, exit codes).
#include "nacre/training/trainer.h"

#include <climits>
#include <limits>

#include "files/faults.h"
#include "nacre/files/checkpoint_store.h"
#include "nacre/files/safetensors.h"
#include "training/trainer_runs.h"

using namespace nacre;
using namespace nacre::test;

TEST_CASE("trainer: a run that is stopped and resumed ends with the bits of one that is not") {
  RunConfig config;
  SECTION("codebooks that follow moving averages, dead codes replaced, gradients of the losses balanced") {
    config = tiny();
    config.codec.dead_below = 0.3;
  }
  SECTION("factorised codes, a random number of codebooks, averaged weights, warm-up") {
    config = tiny(QuantizerKind::factorised);
    config.codec.quantizer_dropout = 0.5;
    config.optimizer.ema_decay = 0.9;
    config.training.warmup_steps = 15;
  }
  SECTION("moving averages of everything at once") {
    config = tiny();
    config.codec.quantizer_dropout = 0.5;
    config.optimizer.ema_decay = 0.99;
    config.loss.balanced = false;
  }
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer whole(folder, "whole", config);
  const TrainResult end = whole.run().result;
  REQUIRE(end.finished);
  REQUIRE(end.steps >= 30);
  const auto losses = logged_losses(whole.options.run);

  const Philox draw{static_cast<uint64_t>(end.steps), 11};
  for (uint64_t i = 0; i < 5; ++i) {
    const int64_t split = 1 + static_cast<int64_t>(draw.below(i, static_cast<uint64_t>(end.steps - 1)));
    INFO("split at " << split << " of " << end.steps);
    Trainer parts(folder, "split" + std::to_string(i), config);
    CHECK(parts.run_to(split).result.step == split);
    if (i == 0) {  // a signal before the first step after a start changes nothing
      const std::atomic<int> term{15};
      parts.options.stop = &term;
      const TrainResult r = parts.run_to(0).result;
      CHECK(r.signal == 15);
      CHECK(list_checkpoints(parts.options.run).back() == split);
      parts.options.stop = nullptr;
    }
    const Outcome rest = parts.run_to(0);
    CHECK(contains(rest.text, "resumed from"));
    CHECK(!contains(rest.text, "may differ"));
    CHECK(rest.result.step == end.step);
    check_same_state(end.checkpoint, rest.result.checkpoint);
    CHECK(logged_losses(parts.options.run) == losses);
  }
}

TEST_CASE("trainer: with another number of threads a run goes on as if nothing had happened") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer whole(folder, "whole", tiny()), parts(folder, "parts", tiny());
  const auto end = whole.run_to(5);
  parts.run_to(3);
  parts.options.context.threads = 2;
  const auto rest = parts.run_to(5);
  CHECK_FALSE(contains(rest.text, "may differ"));
  check_same_state(end.result.checkpoint, rest.result.checkpoint);
  CHECK(logged_losses(parts.options.run) == logged_losses(whole.options.run));
}

TEST_CASE("trainer: a start with another storage of activations is refused by name") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  t.options.storage = Storage::bfloat16;
  t.run_to(2);
  CHECK_FALSE(contains(t.run_to(3).text, "activations: stored"));
  t.options.storage = Storage::float32;
  t.options.config.training.max_steps = 4;
  std::string text;
  CHECK(t.error_of_run(text) == ErrorKind::usage);
  CHECK(contains(text, "activations: stored in bf16, now fp32"));
  t.options.allow_change = true;
  CHECK(contains(t.run_to(4).text, "activations: stored in bf16, now fp32"));
}

TEST_CASE("trainer: what a killed run wrote after its last checkpoint is dropped from the log") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer whole(folder, "whole", tiny());
  const TrainResult end = whole.run_to(30).result;

  Trainer t(folder, "run", tiny());
  t.run_to(10);
  const TrainResult lost = t.run_to(20).result;
  fs::remove_all(lost.checkpoint);
  std::ofstream(t.options.run / "log.jsonl", std::ios::app) << "{\"step\": 29, \"lo";  // cut off by a kill
  const TrainResult r = t.run_to(30).result;
  check_same_state(end.checkpoint, r.checkpoint);
  CHECK(logged_losses(t.options.run) == logged_losses(whole.options.run));

  SECTION("and everything, when there was no checkpoint yet") {
    for (const int64_t step : list_checkpoints(t.options.run)) {
      char name[32];
      std::snprintf(name, sizeof name, "step-%08d", static_cast<int>(step));
      fs::remove_all(t.options.run / name);
    }
    check_same_state(end.checkpoint, t.run_to(30).result.checkpoint);
    CHECK(logged_losses(t.options.run) == logged_losses(whole.options.run));
  }
}

TEST_CASE("trainer: going back to an older checkpoint sets the newer ones aside") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  const fs::path older = t.run_to(10).result.checkpoint;
  const fs::path newer = t.run_to(20).result.checkpoint;
  const std::string model = read_bytes(newer / "model.safetensors");
  t.options.resume = older;
  const Outcome o = t.run_to(20);
  CHECK(contains(o.text, "unused-step-00000020"));
  CHECK(read_bytes(t.options.run / "unused-step-00000020/model.safetensors") == model);
  CHECK(read_bytes(o.result.checkpoint / "model.safetensors") == model);

  SECTION("another run's checkpoint begins a run in an empty folder, and only there") {
    Trainer other(folder, "other", tiny());
    other.options.resume = t.options.run;  // its newest checkpoint
    CHECK(other.run_to(25).result.step == 25);
    std::string text;
    CHECK(other.error_of_run(text) == ErrorKind::usage);
    CHECK(contains(text, "checkpoints of its own"));
  }
  SECTION("a folder that is no checkpoint") {
    std::string text;
    t.options.resume = folder / "data";
    CHECK(t.error_of_run(text) == ErrorKind::input);
    t.options.resume = folder / "nothing";
    CHECK(t.error_of_run(text) == ErrorKind::io);
    CHECK(contains(text, "no such folder"));
  }
}

TEST_CASE("trainer: a changed configuration, seed or list of files is refused by name") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  t.run_to(5);
  std::string key;
  SECTION("configuration") {
    t.options.config.loss.mel = 2;
    t.options.config.optimizer.beta1 = 0.9;
    key = "optimizer.beta1";
  }
  SECTION("seed") {
    t.options.config.training.seed = 2;
    key = "training.seed";
  }
  SECTION("files") {
    write_sine(folder / "data/new.wav", 1700);
    key = "list of audio files";
  }
  std::string text;
  CHECK(t.error_of_run(text) == ErrorKind::usage);
  INFO(text);
  CHECK(contains(text, key));
  CHECK(contains(text, "--allow-change"));
  t.options.allow_change = true;
  const Outcome o = t.run_to(8);
  CHECK(o.result.step == 8);
  CHECK(contains(o.text, key));
}

TEST_CASE("trainer: a finished run says so, and more epochs go on") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 1;
  Trainer t(folder, "run", config);
  const TrainResult first = t.run().result;
  CHECK(first.finished);
  const Outcome again = t.run();
  CHECK(contains(again.text, "this run is finished"));
  CHECK(again.result.finished);
  CHECK(again.result.checkpoint == first.checkpoint);
  t.options.config.training.num_epochs = 2;
  const Outcome more = t.run();
  CHECK(more.result.step == 2 * first.step);

  config.training.num_epochs = 2;
  Trainer whole(folder, "whole", config);
  check_same_state(whole.run().result.checkpoint, more.result.checkpoint);
}

TEST_CASE("trainer: one run in a folder at a time") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  const CheckpointStore other(folder / "run");
  std::string text;
  CHECK(t.error_of_run(text) == ErrorKind::usage);
  CHECK(contains(text, "another run is using this folder"));
}

TEST_CASE("trainer: a batch that is not finite changes nothing and is counted") {
  for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
    const RunConfig config = tiny(kind);
    Context ctx({.device = {}, .threads = 2});
    TrainingStep step(ctx, config.codec, config.loss, config.optimizer, 2, 400, 1);
    std::vector<float> audio = sine(800, 300, 16000);
    const std::vector<int32_t> lengths{400, 333};
    const auto everything = [&] {
      std::map<std::string, std::vector<float>> all;
      step.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&,
                                             std::span<const float> v) { all[name].assign(v.begin(), v.end()); });
      for (const StateTensor& s : step.state()) {
        all[s.name].resize(static_cast<size_t>(s.values.elements()));
        ctx.read<float>(s.values, all[s.name]);
      }
      return all;
    };
    step.load(audio, lengths);
    step.run();
    const auto before = everything();
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> broken = audio;
      broken[100] = bad;
      step.load(broken, lengths);
      step.run();
      for (const auto& [name, values] : everything()) {
        INFO(name);
        if (!name.starts_with("balancer."))
          CHECK((values == before.at(name)));  // the balancer counts every finite gradient
      }
    }
    CHECK(step.metrics().skipped == 2);
    CHECK(step.metrics().updates == 1);
    step.load(audio, lengths);
    step.run();
    CHECK(step.metrics().skipped == 2);
    for (const auto& [name, values] : everything()) {
      INFO(name);
      CHECK(std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }));
    }
    CHECK((everything() != before));
  }
}

TEST_CASE("trainer: weights to begin with, and weights that cannot be trained") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  const TrainResult first = t.run_to(20).result;
  const double loss = logged_losses(t.options.run).back().second;

  SECTION("a run begins where another ended, with a new optimizer") {
    Trainer next(folder, "next", tiny());
    next.options.init = t.options.run;
    const Outcome o = next.run_to(1);
    CHECK(contains(o.text, " tensors taken from "));
    CHECK(contains(o.text, ", 0 missing, 0 not used"));
    CHECK(logged_losses(next.options.run).front().second < 1.5 * loss);
  }
  SECTION("overflow stops the run, with the last checkpoint named and only finite tensors saved") {
    const Safetensors good = Safetensors::read(first.checkpoint / "model.safetensors");
    std::vector<StoredTensor> tensors(good.tensors().begin(), good.tensors().end());
    std::vector<std::vector<float>> huge;
    for (StoredTensor& s : tensors) {
      huge.push_back(to_floats(s));
      if (s.name.find("weight_g") != std::string::npos)
        for (float& v : huge.back()) v = 1e30f;
      s.data = std::as_bytes(std::span<const float>(huge.back()));
    }
    const std::string path = folder / "huge.safetensors";
    write_safetensors(fs::path(path), tensors, good.metadata());
    RunConfig config = tiny();
    config.training.checkpoint_minutes = 1e-9;
    Trainer bad(folder, "bad", config);
    bad.options.init = path;
    std::string text;
    CHECK(bad.error_of_run(text) == ErrorKind::diverged);
    INFO(text << "\n" << bad.said);
    CHECK(contains(text, "20 updates in a row"));
    CHECK(contains(text, "step-000000"));
    CHECK(contains(bad.said, "the gradient is not finite; this update was skipped. The batch was: "));
    CHECK(contains(bad.said, ".wav@"));
    for (const int64_t step : list_checkpoints(bad.options.run)) CHECK(step < 20);
    const CheckpointSearch found = newest_checkpoint(bad.options.run);
    REQUIRE(found.found);
    for (const char* name : {"model.safetensors", "optimizer.safetensors"})
      CHECK_NOTHROW(Safetensors::read(found.found->file(name), {.allow_nonfinite = false}));
    // A resumed run knows the number of skipped steps before it.
    const Outcome rest = bad.run_to(21);
    CHECK(contains(rest.text, "warning: step 20: the gradient"));
    CHECK(log_lines(bad.options.run).back()["step"] == 21);
  }
}

TEST_CASE("trainer: a disk that fails while saving costs a checkpoint, not the run") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.checkpoint_minutes = 1e-9;  // after every step
  config.training.max_steps = 5;
  Trainer clean(folder, "clean", config);
  TrainResult end;
  int calls = 0;
  {
    const Faults none({.at = INT_MAX});
    end = clean.run().result;
    calls = none.calls();
  }
  REQUIRE(calls > 100);
  const int stride = calls / 11;
  for (int at = calls / 50; at < calls; at += stride) {
    Trainer t(folder, "fault" + std::to_string(at), config);
    bool happened = false, failed = false;
    {
      const Faults faults({.at = at, .error = ENOSPC});
      try {
        t.run();
      } catch (const Error& e) {
        failed = true;  // a failure may only come before training
        CHECK(e.kind() == ErrorKind::io);
      }
      happened = faults.happened();
    }
    INFO("call " << at << " of " << calls << "\n" << t.said);
    CHECK(happened);
    CHECK(failed == !contains(t.said, "done: 5 steps"));
    if (failed) CHECK(!contains(t.said, "epoch 1"));
    bool left = false;
    for (const auto& entry : fs::directory_iterator(t.options.run)) {
      const std::string name = entry.path().filename();
      // The removal of an old checkpoint may fail. The next start removes it.
      if (name.rfind(".nacre-tmp", 0) == 0 && contains(t.said, "could not remove")) {
        left = true;
        continue;
      }
      INFO(name);
      CHECK((name == "run.lock" || name == "config.json" || name == "log.jsonl" || name == "start" ||
             name.rfind("step-0", 0) == 0 || name.rfind("events.out", 0) == 0));
    }
    if (failed) continue;
    if (left) {
      CHECK(contains(t.run().text, "this run is finished"));
      for (const auto& entry : fs::directory_iterator(t.options.run))
        CHECK(entry.path().filename().string().rfind(".nacre-tmp", 0) != 0);
    }
    if (const fs::path start = t.options.run / "start"; fs::exists(start)) {
      for (const auto& entry : fs::directory_iterator(start)) CHECK(entry.path().filename() == "model.safetensors");
      CHECK((fs::exists(start / "model.safetensors") || contains(t.said, "the model before training was not saved")));
    }
    const CheckpointSearch found = newest_checkpoint(t.options.run);
    REQUIRE(found.found);
    CHECK(found.damaged.empty());
    check_same_state(end.checkpoint, found.found->path);
  }
}

TEST_CASE("trainer: a disk that stays full ends the run with the newest good checkpoint named") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", tiny());
  t.run_to(3);
  t.options.config.training.max_steps = 6;
  std::string text;
  int calls = 0;
  {
    TemporaryFolder elsewhere;
    Trainer measured(elsewhere, "run", tiny());
    write_sounds(elsewhere);
    measured.run_to(3);
    const Faults none({.at = INT_MAX});
    measured.run_to(3);  // finished: only the work of a start
    calls = none.calls();
  }
  {
    const Faults faults({.at = calls + 5, .error = ENOSPC, .for_ever = true});
    CHECK(t.error_of_run(text) == ErrorKind::io);
  }
  CHECK(contains(text, "step-00000003"));
  CHECK(contains(t.said, "training goes on"));
  CHECK(t.run_to(6).result.step == 6);
}

TEST_CASE("trainer: little data") {
  const TemporaryFolder folder;
  RunConfig config = tiny();
  config.training.num_epochs = 4;
  int64_t samples = 0, steps = 1;
  SECTION("one file, longer than a segment: nothing is held out") { samples = 1000, steps = 2; }
  SECTION("one file, shorter than a batch") { samples = 401; }
  SECTION("one file, shorter than a segment: padded, and masked out of the losses") { samples = 123; }
  SECTION("one file, of one hop") { samples = 4; }
  write_sine(folder / "data/only.wav", samples);
  Trainer t(folder, "run", config);
  const Outcome o = t.run();
  CHECK(o.result.finished);
  CHECK(o.result.step == 4 * steps);  // ceil(samples / (2 * 400)), at least 1
  for (const auto& [step, loss] : logged_losses(t.options.run)) CHECK(std::isfinite(loss));
  for (const nlohmann::json& line : log_lines(t.options.run))
    if (line.contains("valid/snr")) CHECK(line["valid/loss"].is_number());
}

TEST_CASE("trainer: steps per epoch, and what an evaluation says") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 2;
  Trainer t(folder, "run", config);
  const Outcome o = t.run();
  int64_t samples = 0;
  for (const auto& entry : fs::directory_iterator(folder / "data"))
    samples += static_cast<int64_t>(fs::file_size(entry.path()) - 44) / 2;
  const int64_t most = (samples + 799) / 800;
  CHECK(o.result.step <= 2 * most);
  CHECK(o.result.step >= 2 * (most - 4));  // one of the six files is held out
  for (const char* part : {"epoch 1  step ", "epoch 2  step ", "loss ", "waveform ", "STFT ", "mel ", "VQ ", " %]",
                           "SNR ", "SI-SDR ", "STOI ", "output mean ", " std ", "(input ", "codebooks: ", " used [",
                           "perplexity ", "gradient norm ", "x real time", "done: "})
    CHECK(contains(o.text, part));
  for (const nlohmann::json& line : log_lines(t.options.run)) {
    if (line.contains("loss")) {
      const double sum = line["waveform/loss"].get<double>() + line["stft/loss"].get<double>() +
                         line["mel/loss"].get<double>() + line["vq/commitment_loss"].get<double>();
      CHECK(line["loss"].get<double>() == Approx(sum).epsilon(1e-6));
    }
    if (!line.contains("valid/loss")) continue;
    CHECK(line["valid/loss"].get<double>() ==
          Approx(line["valid/waveform"].get<double>() + line["valid/stft"].get<double>() +
                 line["valid/mel"].get<double>() + line["valid/vq"].get<double>()));
    CHECK(line["valid/share_waveform"].get<double>() + line["valid/share_stft"].get<double>() +
              line["valid/share_mel"].get<double>() ==
          Approx(1.0));
    CHECK(line.contains("valid/segmental_snr"));
    for (const char* key : {"valid/stoi", "valid/estoi"}) CHECK_FALSE(line.contains(key));  // 0.2 s have none
    for (const auto& [key, value] : line.items()) CHECK_FALSE(value.is_null());
    CHECK(line["codebook_usage"].size() == 2);
    CHECK(line["codebook_perplexity"].size() == 2);
  }
}

TEST_CASE("trainer: warnings name what looks wrong, and nothing else") {
  const HealthFigures well{.snr = 12,
                           .input_mean = 0.001,
                           .input_std = 0.2,
                           .output_mean = 0.002,
                           .output_std = 0.19,
                           .usage = {0.9, 0.8},
                           .perplexity = {800, 700},
                           .codes_seen = 5000,
                           .codebook_size = 1024,
                           .step = 1000};
  CHECK(warnings(well).empty());
  const auto only = [&](HealthFigures f, const std::string& part) {
    const std::vector<std::string> w = warnings(f);
    REQUIRE(w.size() == 1);
    INFO(w[0]);
    CHECK(contains(w[0], part));
  };
  HealthFigures f = well;
  f.snr = -1;
  only(f, "SNR is negative");
  f = well, f.output_mean = 0.05;
  only(f, "DC offset");
  f = well, f.output_std = 0.05;
  only(f, "too quiet");
  f = well, f.output_std = 0.5;
  only(f, "too loud");
  f = well, f.usage = {0.9, 0.01};
  only(f, "codebook 1 ");
  f = well, f.output_std = std::nan("");
  only(f, "not a number");
  f = well, f.codes_seen = 20, f.usage = {0.015, 0.015};  // a short clip cannot use more codes than it has frames
  CHECK(warnings(f).empty());
}
