// The schedule is part of the run. The step at which a run stops, and the size of its steps, do not change it.
#include <cmath>

#include "nacre/files/checkpoint_store.h"
#include "training/trainer_points.h"

using namespace nacre;
using namespace nacre::test;

namespace {

RunConfig falling(int64_t epochs) {
  RunConfig c = tiny();
  c.training.num_epochs = epochs;
  c.training.schedule = Schedule::cosine;
  c.training.final_rate = 0.1;
  return c;
}
/// Maps the step to the learning rate, for the lines of training steps (the first of a run, and every tenth).
std::map<int64_t, double> rates(const fs::path& run) {
  std::map<int64_t, double> found;
  for (const nlohmann::json& line : log_lines(run))
    if (line.contains("loss")) found[line["step"]] = line["other/learning_rate"];
  return found;
}
/// The fraction of the configured rate at a part of the schedule.
double cosine(double part) { return 0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * part)); }

}  // namespace

TEST_CASE("trainer: a run made in slices of --max_steps is the run that is made at once") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer whole(folder, "whole", falling(3)), slices(folder, "slices", falling(3));
  const TrainResult end = whole.run().result;
  REQUIRE(end.step == 30);
  for (const int64_t step : {7, 10, 25}) {
    const Outcome o = slices.run_to(step);
    CHECK(o.result.step == step);
    CHECK(o.result.finished);
    CHECK(contains(o.text, "10 steps per epoch, 30 in all, limited by --max_steps to " + std::to_string(step)));
    CHECK(!contains(o.text, "learning rate"));
  }
  const Outcome again = slices.run_to(25);
  CHECK(contains(again.text, "this run is finished: 25 of 30 steps are done; raise --max_steps to go on"));
  const Outcome rest = slices.run_to(0);
  CHECK(rest.result.step == 30);
  CHECK(!contains(rest.text, "learning rate"));
  check_same_state(end.checkpoint, rest.result.checkpoint);
  CHECK(rates(slices.options.run) == rates(whole.options.run));
}

TEST_CASE("trainer: a run that is extended says what its learning rate will do") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", falling(1));
  CHECK(t.run().result.step == 10);
  t.options.config.training.num_epochs = 2;
  const Outcome o = t.run();
  CHECK(o.result.step == 20);
  // Half of the new schedule: 1e-3 (0.1 + 0.9 / 2). It ends at a tenth of the rate.
  CHECK(contains(o.text,
                 "note: learning rate: 0.00055 at the next step (with the previous settings: 0.0001); it falls to "
                 "0.0001 at step 20, where the schedule ends now (before: at step 10)"));
  CHECK(rates(t.options.run).at(20) == Approx(1e-3 * cosine(19.0 / 20)).epsilon(1e-6));  // stored as float

  // A constant rate does not change, so there is no note.
  Trainer constant(folder, "constant", tiny());
  constant.options.config.training.num_epochs = 1;
  constant.run();
  constant.options.config.training.num_epochs = 2;
  CHECK(!contains(constant.run().text, "learning rate"));
}

TEST_CASE("trainer: with other batches a run keeps the part of its epochs that is done") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", falling(4));
  CHECK(t.run_to(30).result.step == 30);  // 3 of 4 epochs
  t.options.allow_change = true;
  t.options.config.training.batch_size = 8;
  const Outcome o = t.run_to(0);
  // Batches are four times as large: 3 steps in an epoch (2.5, rounded up), and one of 12 is left.
  CHECK(contains(o.text, "note: an epoch has 3 steps now, it had 10; the 30 steps done are 3.00 of 4 epochs"));
  CHECK(!contains(o.text, "this run is finished: 30"));
  CHECK(!contains(o.text, "note: learning rate"));  // 9 of 12 is 30 of 40
  CHECK(o.result.step == 33);
  CHECK(o.result.finished);
  CHECK(contains(o.text, "epoch 4  step 33"));
  CHECK(contains(t.run().text, "this run is finished: 33 of 33 steps are done; raise --num_epochs"));

  SECTION("and once more with small ones") {
    t.options.config.training.num_epochs = 5;
    t.options.config.training.batch_size = 2;
    const Outcome more = t.run();
    CHECK(contains(more.text, "the 33 steps done are 4.00 of 5 epochs"));
    CHECK(more.result.step == 43);
    CHECK(contains(more.text, "epoch 5  step 43"));
    CHECK(rates(t.options.run).at(40) == Approx(1e-3 * cosine(46.0 / 50)).epsilon(1e-6));
  }
  SECTION("in the middle of an epoch the rate does not move either") {
    Trainer middle(folder, "middle", falling(4));
    middle.run_to(25);
    middle.options.allow_change = true;
    middle.options.config.training.batch_size = 4;  // 5 steps in an epoch: 12.5 of 20 are rounded to 13
    const Outcome rest = middle.run_to(0);
    CHECK(contains(rest.text, "the 25 steps done are 2.50 of 4 epochs"));
    CHECK(rest.result.step == 25 + 7);
    CHECK(contains(rest.text, "epoch 3  step 27"));
    CHECK(contains(rest.text, "epoch 4  step 32"));
    CHECK(rates(middle.options.run).at(30) == Approx(1e-3 * cosine(17.0 / 20)).epsilon(1e-6));
  }
}

TEST_CASE("trainer: fewer epochs than are done") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", falling(2));
  t.run();
  t.options.config.training.num_epochs = 1;
  const Outcome o = t.run();
  CHECK(contains(o.text, "this run is finished: 20 steps are done, 10 are requested; raise --num_epochs to go on"));
  CHECK(!contains(o.text, " of 10"));
  CHECK(list_checkpoints(t.options.run).back() == 20);
}

TEST_CASE("trainer: a schedule of its own length") {
  const TemporaryFolder folder;
  write_sounds(folder);
  RunConfig config = falling(100);
  config.training.schedule_steps = 20;
  Trainer t(folder, "run", config);
  t.run_to(10);
  const Outcome o = t.run_to(30);
  CHECK(!contains(o.text, "learning rate"));
  const auto found = rates(t.options.run);
  CHECK(found.at(10) == Approx(1e-3 * cosine(9.0 / 20)).epsilon(1e-6));
  CHECK(found.at(20) == Approx(1e-3 * cosine(19.0 / 20)).epsilon(1e-6));
  CHECK(found.at(30) == Approx(1e-4).epsilon(1e-6));  // constant after the end
  config.training.schedule_steps = -1;
  CHECK_THROWS_AS(config.check(), Error);
}

TEST_CASE("trainer: a checkpoint that does not know its schedule goes on, and says what changes") {
  const TemporaryFolder folder;
  write_sounds(folder);
  Trainer t(folder, "run", falling(3));
  const Checkpoint c = verify_checkpoint(t.run_to(10).result.checkpoint);
  auto manifest = nlohmann::json::parse(c.manifest);
  manifest.erase("schedule");
  manifest["config"]["training"].erase("schedule_steps");
  CheckpointStore(t.options.run).judge(10, manifest.dump(), c.metric);
  // The schedule then ends where the run was to stop, at step 10, with a tenth of the rate.
  const Outcome o = t.run_to(0);
  CHECK(o.result.step == 30);
  CHECK(contains(
      o.text,
      "(with the previous settings: 0.0001); it falls to 0.0001 at step 30, where the schedule ends now (before: "
      "at step 10)"));
  Trainer whole(folder, "whole", falling(3));
  check_same_state(whole.run().result.checkpoint, o.result.checkpoint);
}
