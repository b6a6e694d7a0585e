// Checkpoints survive failures of programs and disks: kill -9 at any moment, a flipped bit, a full disk, two runs at
// once.
#include "nacre/files/checkpoint_store.h"

#include <sys/wait.h>
#include <unistd.h>

#include <limits>

#include "file_tools.h"
#include "files/faults.h"
#include "harness.h"
#include "nacre/error.h"
#include "nacre/files/safetensors.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::string content_of(int64_t step, const std::string& name) {
  std::string text = name + std::to_string(step);
  std::mt19937_64 rng(static_cast<uint64_t>(step));
  for (int i = 0; i < 200; ++i) text += std::to_string(rng());
  return text;
}

CheckpointContent content(int64_t step, std::optional<double> metric = {}) {
  CheckpointContent c;
  for (const char* name : {"model.safetensors", "optimizer.safetensors"})
    c.files.push_back({name, [step, name](const ByteSink& sink) { sink(bytes_of(content_of(step, name))); }});
  c.manifest = "{\"config\": {\"channels\": 64}, \"seed\": 18446744073709551615}";
  c.metric = metric;
  return c;
}

void expect_content(const Checkpoint& c) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors"})
    REQUIRE(slurp(c.file(name)) == content_of(c.step, name));
}

}  // namespace

TEST_CASE("checkpoints are saved, listed and found again", "[checkpoint_store]") {
  Folder folder;
  CheckpointStore store(folder / "run/deep");
  CHECK(store.locked());
  CHECK_FALSE(store.resume().found);
  const auto saved = store.save(80, content(80));
  CHECK(saved.path == folder / "run/deep/step-00000080");
  CHECK(saved.warning.empty());
  CHECK(list_checkpoints(store.run()) == std::vector<int64_t>{80});
  const auto search = newest_checkpoint(store.run());
  REQUIRE(search.found);
  CHECK(search.damaged.empty());
  CHECK(search.found->step == 80);
  CHECK(search.found->manifest == "{\"config\":{\"channels\":64},\"seed\":18446744073709551615}");
  expect_content(*search.found);
  CHECK_THAT(slurp(saved.path / "manifest.json"),
             Catch::StartsWith("{\"crc32c\": \"") && Catch::Contains("\"format\": 1"));
  CHECK(verify_checkpoint(saved.path / "").step == 80);
  store.save(123456789012, content(123456789012));  // more than eight digits
  CHECK(newest_checkpoint(store.run()).found->step == 123456789012);
  CHECK_THROWS_WITH(store.save(80, content(80)), Catch::Contains("cannot add step 80"));
  CHECK_THROWS_AS(store.save(-1, content(1)), Error);
}

TEST_CASE("the last three checkpoints and the best are kept", "[checkpoint_store]") {
  for (bool higher : {false, true}) {
    Folder folder;
    CheckpointStore store(folder.path(), {.higher_is_better = higher});
    const double sign = higher ? -1 : 1;
    const std::vector<double> metrics{5, 2, 7, 2, std::numeric_limits<double>::quiet_NaN(), 8, 9, 10};
    for (size_t i = 0; i < metrics.size(); ++i) store.save(static_cast<int64_t>(i + 1), content(1, sign * metrics[i]));
    CHECK(list_checkpoints(folder.path()) == std::vector<int64_t>{4, 6, 7, 8});  // the newer of equal ones
    CHECK(best_checkpoint(folder.path()).found->step == 4);
    CHECK(best_checkpoint(folder.path()).found->metric == sign * 2);
    // If the best checkpoint is damaged, the next one is used.
    spill(folder.path() / "step-00000004/model.safetensors", "cut");
    const auto search = best_checkpoint(folder.path());
    CHECK(search.found->step == 6);
    REQUIRE(search.damaged.size() == 1);
    CHECK_THAT(search.damaged[0].reason, Catch::Contains("has 3 bytes"));
  }
  Folder folder;
  CHECK_THROWS_AS(CheckpointStore(folder.path(), {.keep_last = 1}), Error);
}

TEST_CASE("content that cannot be saved changes nothing", "[checkpoint_store]") {
  Folder folder;
  CheckpointStore store(folder.path());
  store.save(1, content(1));
  const auto refuse = [&](const CheckpointContent& c, ErrorKind kind, const std::string& text) {
    try {
      store.save(2, c);
      FAIL("was saved");
    } catch (const Error& e) {
      CHECK(e.kind() == kind);
      CHECK_THAT(e.what(), Catch::Contains(text));
    }
    CHECK(folder.count() == 2);  // the lock and step 1
  };
  auto c = content(2);
  c.manifest = "{";
  refuse(c, ErrorKind::usage, "not valid JSON");
  c.manifest = "[]";
  refuse(c, ErrorKind::usage, "not a JSON object");
  c.manifest = "{\"step\": 3}";
  refuse(c, ErrorKind::usage, "\"step\" is reserved for the store");
  c = content(2);
  c.files.push_back(c.files[0]);
  refuse(c, ErrorKind::usage, "two files named \"model.safetensors\"");
  c = content(2);
  c.files[0].name = "manifest.json";
  refuse(c, ErrorKind::usage, "two files named");
  c.files[0].name = "../model";
  refuse(c, ErrorKind::usage, "not a plain file name");
  // NaN in the weights: the earlier checkpoint stays the newest.
  c = content(2);
  const std::vector<float> weights{1, 2, std::numeric_limits<float>::quiet_NaN()};
  c.files[0].write = [&](const ByteSink& sink) {
    write_safetensors(sink,
                      std::vector<StoredTensor>{{"conv.weight", Dtype::f32, {3}, std::as_bytes(std::span(weights))}});
  };
  refuse(c, ErrorKind::diverged, "\"conv.weight\" has a value that is not finite, the first at element 2");
  CHECK(newest_checkpoint(folder.path()).found->step == 1);
}

TEST_CASE("every flipped bit of a checkpoint is noticed, and the next older one is used", "[checkpoint_store]") {
  Folder folder;
  CheckpointStore store(folder.path());
  store.save(1, content(1));
  const auto newest = store.save(2, content(2)).path;
  std::vector<std::filesystem::path> files;
  std::vector<std::string> contents;
  size_t total = 0;
  for (const char* name : {"manifest.json", "model.safetensors", "optimizer.safetensors"}) {
    files.push_back(newest / name);
    contents.push_back(slurp(files.back()));
    total += contents.back().size();
  }
  std::mt19937_64 rng(seed());
  for (int i = 0; i < 1000; ++i) {
    // Every third flip hits the manifest, which is small.
    size_t bit = rng() % (i % 3 == 0 ? 8 * contents[0].size() : 8 * total), file = 0;
    while (bit >= 8 * contents[file].size()) bit -= 8 * contents[file++].size();
    std::string bad = contents[file];
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    spill(files[file], bad);
    const auto search = newest_checkpoint(folder.path());
    INFO("bit " << bit << " of " << files[file]);
    REQUIRE(search.found);
    REQUIRE(search.found->step == 1);
    REQUIRE(search.damaged.size() == 1);
    REQUIRE(search.damaged[0].path == newest);
    spill(files[file], contents[file]);
  }
  CHECK(newest_checkpoint(folder.path()).found->step == 2);
}

TEST_CASE("a damaged checkpoint is set aside when a run resumes, and its step can be saved again",
          "[checkpoint_store]") {
  Folder folder;
  CheckpointStore store(folder.path());
  store.save(1, content(1));
  for (int i = 0; i < 2; ++i) {
    store.save(2, content(2));
    if (i == 0)
      std::filesystem::remove(folder / "step-00000002/optimizer.safetensors");
    else
      std::filesystem::remove(folder / "step-00000002/manifest.json");
    const auto search = store.resume();
    CHECK(search.found->step == 1);
    REQUIRE(search.damaged.size() == 1);
    CHECK(search.damaged[0].path == folder / (i == 0 ? "damaged-step-00000002" : "damaged-step-00000002-2"));
    CHECK_THAT(search.damaged[0].reason, Catch::Contains("could not open"));
  }
  store.save(2, content(2));
  CHECK(newest_checkpoint(folder.path()).found->step == 2);
  // A folder under the name of another step.
  std::filesystem::rename(folder / "step-00000002", folder / "step-00000009");
  CHECK_THAT(newest_checkpoint(folder.path()).damaged[0].reason, Catch::Contains("manifest is of step 2"));
  // Folders with names of another form are not touched.
  for (const char* name : {"step-1", "step-", "step-0000000x", "step-00000001.bak"}) spill(folder / name, "");
  CHECK(list_checkpoints(folder.path()) == std::vector<int64_t>{1, 9});
}

TEST_CASE("a second run in the same folder is refused, a killed one is no obstacle", "[checkpoint_store]") {
  Folder folder;
  {
    CheckpointStore first(folder.path());
    try {
      CheckpointStore second(folder.path());
      FAIL("two runs in one folder");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      CHECK_THAT(e.what(), Catch::Contains("another run") && Catch::Contains("pid " + std::to_string(::getpid())));
    }
  }
  CheckpointStore(folder.path()).save(1, content(1));
  const pid_t child = ::fork();
  if (child == 0) {
    CheckpointStore store(folder.path());
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  CHECK(CheckpointStore(folder.path()).resume().found->step == 1);
}

TEST_CASE("whichever call fails while saving, the checkpoints are whole and an older one stays", "[checkpoint_store]") {
  for (int error : fault_errors)
    for (bool for_ever : {false, true}) {
      if (for_ever && error == EINTR) continue;
      for (int n = 0; n < 1000; ++n) {
        INFO("call " << n << ", errno " << error << (for_ever ? " for ever" : ""));
        Folder folder;
        CheckpointStore store(folder.path(), {.keep_last = 2});
        for (int64_t step : {1, 2}) store.save(step, content(step));
        bool failed = false, happened = false;
        {
          Faults faults({n, error, for_ever});
          try {
            store.save(3, content(3));
          } catch (const Error& e) {
            failed = true;
            REQUIRE(e.kind() == ErrorKind::io);
          }
          happened = faults.happened();
        }
        const auto steps = list_checkpoints(folder.path());
        for (int64_t step : steps) {
          const auto checkpoint = verify_checkpoint(folder.path() / ("step-0000000" + std::to_string(step)));
          expect_content(checkpoint);
        }
        REQUIRE(steps.size() >= 2);
        if (!failed) REQUIRE(steps.back() == 3);
        if (steps.back() != 3) REQUIRE(steps == std::vector<int64_t>{1, 2});
        remove_leftovers(folder.path());
        REQUIRE(folder.count() == static_cast<int64_t>(steps.size()) + 1);  // the lock
        if (!happened) {
          REQUIRE(steps == std::vector<int64_t>{2, 3});
          break;
        }
      }
    }
}

TEST_CASE("kill -9 at a hundred moments loses no checkpoint", "[checkpoint_store]") {
  Folder folder(true);
  std::mt19937_64 rng(seed());
  int64_t saved = 0;
  int with_leftovers = 0;
  for (int i = 0; i < 100; ++i) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        CheckpointStore store(folder.path());
        const auto found = store.resume().found;
        for (int64_t step = found ? found->step + 1 : 1;; ++step) {
          store.save(step, content(step));
          if (::write(ends[1], &step, sizeof(step)) != sizeof(step)) ::_exit(3);
        }
      } catch (...) {
        ::_exit(2);
      }
    }
    ::close(ends[1]);
    // Three of four children are killed after one or more saves, however slow the machine is. From then on they do
    // nothing but save. The others may be killed while they start.
    for (uint64_t reports = rng() % 4; reports > 0; --reports) {
      int64_t step = 0;
      REQUIRE(::read(ends[0], &step, sizeof(step)) == sizeof(step));
      saved = step;
    }
    ::usleep(static_cast<useconds_t>(rng() % 10'000));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));  // it did not end by itself
    for (int64_t step; ::read(ends[0], &step, sizeof(step)) == sizeof(step);) saved = step;
    ::close(ends[0]);

    const auto search = newest_checkpoint(folder.path());
    REQUIRE(search.damaged.empty());
    if (saved > 0) REQUIRE(search.found);
    if (search.found) {
      REQUIRE(search.found->step >= saved);
      REQUIRE(search.found->step <= saved + 1);  // one more may be in place that was not reported yet
      expect_content(*search.found);
      saved = search.found->step;
    }
    for (int64_t step : list_checkpoints(folder.path()))
      REQUIRE_NOTHROW(verify_checkpoint(
          folder.path() / ("step-" + std::string(8 - std::to_string(step).size(), '0') + std::to_string(step))));
    int orphans = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      orphans += entry.path().filename().string().starts_with(".nacre-tmp-");
    REQUIRE(orphans <= 1);
    with_leftovers += orphans;
    if (i % 10 == 9) {
      CheckpointStore store(folder.path());
      REQUIRE(folder.count() == static_cast<int64_t>(list_checkpoints(folder.path()).size()) + 1);
    }
  }
  CHECK(saved > 0);
  CHECK(with_leftovers > 0);  // some kills did hit the middle of a save
}
