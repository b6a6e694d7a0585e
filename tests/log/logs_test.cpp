// Logs survive kills and full disks: JSON lines, event files, the progress line.
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

#include "data/files.h"
#include "harness.h"
#include "log/event_reader.h"
#include "nacre/log/json_log.h"
#include "nacre/log/progress.h"
#include "nacre/log/tensorboard.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// While the object lives, files cannot grow beyond this size, as on a full disk.
class SmallDisk {
 public:
  explicit SmallDisk(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    rlimit small = before_;
    small.rlim_cur = bytes;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  }
  ~SmallDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_{};
};

std::string printed(const std::function<void(std::FILE*)>& print) {
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  print(file);
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  CHECK(std::fread(text.data(), 1, text.size(), file) == text.size());
  std::fclose(file);
  return text;
}

}  // namespace

TEST_CASE("JSON lines survive a torn end and a full disk", "[training][logs]") {
  const TemporaryFolder folder;
  const std::string path = folder / "log.jsonl";
  {
    JsonLog log(path);
    log.write({{"step", 1}, {"loss", 2.5}, {"bad", std::numeric_limits<double>::quiet_NaN()}});
    log.write({{"text", "one\ntwo"}, {"not utf-8", "\xff"}});
    CHECK(read_bytes(path).find("{\"step\":1,\"loss\":2.5,\"bad\":null}\n") == 0);  // written before the log is closed
  }
  const std::string whole = read_bytes(path);
  CHECK(std::count(whole.begin(), whole.end(), '\n') == 2);
  JsonLog(path).write({{"step", 3}});
  CHECK(read_bytes(path) == whole + "{\"step\":3}\n");
  write_bytes(path, whole + "{\"step\":3,\"lo");
  JsonLog(path).write({{"step", 3}});
  CHECK(read_bytes(path) == whole + "{\"step\":3,\"lo\n{\"step\":3}\n");

  std::vector<std::string> told;
  const auto tell = [&](const std::string& text) { told.push_back(text); };
  JsonLog log(folder / "full.jsonl", tell);
  {
    const SmallDisk disk(20);
    log.write({{"step", 1}});
    log.write({{"step", 2}, {"text", "long"}});
    log.write({{"step", 3}});
  }
  log.write({{"step", 4}});
  CHECK(log.lost() == 2);
  REQUIRE(told.size() == 1);
  CHECK_THAT(told[0], Catch::Contains("full.jsonl") && Catch::Contains("training goes on"));
  CHECK(read_bytes(folder / "full.jsonl") == "{\"step\":1}\n{\"step\":2\n{\"step\":4}\n");
  CHECK_THROWS_AS(JsonLog(folder.path()), Error);
}

TEST_CASE("event files hold what was logged", "[training][logs]") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/a/b";
  std::string first;
  const auto tone = sine(2000, 440, 16000);
  {
    EventWriter events(run);
    first = events.path();
    CHECK(first.find("/events.out.tfevents.") != std::string::npos);
    events.scalar("loss/total", 7, 1.25);
    events.scalar("loss/total", 8, std::numeric_limits<double>::quiet_NaN());
    events.image("picture", 9, spectrogram(tone));
    events.audio("sound/0", int64_t{1} << 40, tone, 16000);
    events.text("configuration", 0, "**bold**");
    events.audio("sound/1", 3, tone, 16000, 2);
  }
  const EventFile file = parse_events(read_bytes(first));
  CHECK_FALSE(file.torn);
  REQUIRE(file.events.size() == 7);
  CHECK(get(file.events[0], 3).bytes == "brain.Event:2");
  CHECK(get(file.events[0], 1).real() > 1.6e9);
  const auto value = [&](size_t i) { return inside(inside(file.events[i], 5), 1); };
  CHECK(get(file.events[1], 2).value == 7);
  CHECK(get(value(1), 1).bytes == "loss/total");
  CHECK(get(value(1), 2).single() == 1.25f);
  CHECK(std::isnan(get(value(2), 2).single()));
  const Fields image = inside(value(3), 4);
  CHECK(get(image, 1).value == 256);
  CHECK(get(image, 2).value == 8);  // 2000 samples, a frame every 256
  CHECK(get(image, 4).bytes.substr(1, 3) == "PNG");
  const Fields audio = inside(value(4), 6);
  CHECK(get(file.events[4], 2).value == uint64_t{1} << 40);
  CHECK(get(audio, 1).single() == 16000.0f);
  CHECK(get(audio, 2).value == 1);
  CHECK(get(audio, 3).value == 2000);
  CHECK(get(audio, 4).bytes == wav_bytes(tone, 16000));
  const Fields stereo = inside(value(6), 6);  // the same samples as pairs
  CHECK(get(stereo, 2).value == 2);
  CHECK(get(stereo, 3).value == 1000);
  CHECK(get(stereo, 4).bytes == wav_bytes(tone, 16000, 2));
  const Fields tensor = inside(value(5), 8);
  CHECK(get(tensor, 1).value == 7);
  CHECK(get(inside(inside(tensor, 2), 2), 1).value == 1);
  CHECK(get(tensor, 8).bytes == "**bold**");
  CHECK(get(inside(inside(value(5), 9), 1), 1).bytes == "text");

  // The next start writes a file that sorts behind, with a restart mark.
  EventWriter again(run, {.resume_step = 100});
  CHECK(again.path() > first);
  const EventFile second = parse_events(read_bytes(again.path()));
  REQUIRE(second.events.size() == 2);
  CHECK(get(second.events[1], 2).value == 100);
  CHECK(get(inside(second.events[1], 7), 1).value == 1);

  write_bytes(folder / "file", "x");
  CHECK_THROWS_AS(EventWriter(folder / "file"), Error);
}

TEST_CASE("after a failed write, events go on in a new file", "[training][logs]") {
  const TemporaryFolder folder;
  std::vector<std::string> told;
  EventWriter events(folder.path(), {.failed = [&](const std::string& text) { told.push_back(text); }});
  const std::string first = events.path();
  {
    const SmallDisk disk(200);
    events.scalar("a", 1, 1);
    for (int i = 0; i < 2; ++i) events.image("p", 2, spectrogram(sine(2000, 440, 16000)));
    events.scalar("a", 3, 3);
  }
  CHECK(events.lost() == 2);
  CHECK(told.size() == 1);
  const EventFile torn = parse_events(read_bytes(first)), last = parse_events(read_bytes(events.path()));
  CHECK(torn.torn);
  CHECK(torn.events.size() == 2);
  CHECK(events.path() > first);
  CHECK_FALSE(last.torn);
  REQUIRE(last.events.size() == 2);
  CHECK(get(last.events[1], 2).value == 3);
}

TEST_CASE("events for TensorBoard's own reader", "[training][logs]") {
  // tests/golden/check_tensorboard.py reads the files if the folder is kept.
  const TemporaryFolder folder;
  const char* kept = std::getenv("NACRE_KEEP_EVENTS");
  const std::string run = kept != nullptr ? kept : folder.path();
  const auto tone = sine(2000, 440, 16000);
  {
    EventWriter events(run);
    events.text("configuration", 0, "**bold**");
    events.scalar("loss/total", 7, 1.25);
    events.image("picture", 7, spectrogram(tone));
    events.audio("sound/0", 7, tone, 16000);
    for (int64_t step = 8; step < 12; ++step) events.scalar("loss/total", step, 99);
  }
  EventWriter events(run, {.resume_step = 8});
  events.scalar("loss/total", 8, 0.5);
  CHECK(parse_events(read_bytes(events.path())).events.size() == 3);
}

TEST_CASE("the progress line", "[training][logs]") {
  const auto run = [](bool terminal) {
    return printed([&](std::FILE* to) {
      Progress progress("train", 10, "steps",
                        {.to = to, .redraw_seconds = 0, .plain_seconds = 0, .terminal = terminal});
      ::usleep(60000);
      progress.update(5, "loss 1.5");
      progress.message("a warning");
      ::usleep(60000);
      progress.update(10, "loss 1.25");
    });
  };
  const std::string plain = run(false);
  INFO(plain);
  CHECK(plain.find_first_of("\r\033") == std::string::npos);
  CHECK(plain.starts_with("train  50 %  5/10 steps  "));
  CHECK_THAT(plain, Catch::Contains(" left  loss 1.5\na warning\ntrain  100 %  10/10 steps  ") &&
                        Catch::EndsWith("loss 1.25\n") && Catch::Contains("steps/s  in "));
  ::setenv("NO_COLOR", "1", 1);
  const std::string drawn = run(true);
  CHECK_THAT(drawn, Catch::StartsWith("train  [########--------]  50 %") &&
                        Catch::Contains("loss 1.5\r\033[Ka warning\ntrain") && Catch::EndsWith("loss 1.25\n"));
  CHECK(drawn.find("\033[1m") == std::string::npos);
  ::unsetenv("NO_COLOR");
  CHECK_THAT(run(true), Catch::StartsWith("\033[1mtrain\033[0m"));
  // A total of zero must not divide.
  CHECK_THAT(printed([](std::FILE* to) { Progress p("scan", 0, "files", {.to = to, .terminal = false}); }),
             Catch::StartsWith("scan  0 files"));
}
