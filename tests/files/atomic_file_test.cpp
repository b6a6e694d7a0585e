// A file or folder is either complete or unchanged, whichever call of the operating system fails.
#include "nacre/files/atomic_file.h"

#include <sys/stat.h>
#include <sys/wait.h>

#include "file_tools.h"
#include "files/faults.h"
#include "harness.h"
#include "nacre/error.h"
#include "nacre/files/crc32c.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Runs `save` with fault number 0, 1, 2, ... until a run reaches none. `check(failed)` inspects the disk after each
/// run.
template <class Save, class Check>
int for_every_fault(int error, bool for_ever, Save&& save, Check&& check) {
  for (int n = 0; n < 10000; ++n) {
    INFO("call " << n << " gives errno " << error << (for_ever ? " for ever" : ""));
    bool failed = false, happened = false;
    {
      Faults faults({n, error, for_ever});
      try {
        save();
      } catch (const Error& e) {
        failed = true;
        REQUIRE(e.kind() == ErrorKind::io);
      }
      happened = faults.happened();
    }
    if (error == 0 || error == EINTR) {
      if (!for_ever && error == 0) REQUIRE_FALSE(failed);  // short writes are continued
    }
    check(failed);
    if (!happened) {
      REQUIRE_FALSE(failed);
      return n;
    }
  }
  FAIL("never ran through");
  return 0;
}

}  // namespace

TEST_CASE("an atomic file is wholly there or not at all, whichever call fails", "[atomic_file]") {
  Folder folder;
  const auto target = folder / "model";
  const std::string before = "the old content", big(700'000, 'x');  // more than the buffer
  for (bool exists : {true, false})
    for (bool for_ever : {false, true})
      for (int error : fault_errors) {
        if (for_ever && error == EINTR) continue;  // a call that is always interrupted is repeated forever
        const int calls = for_every_fault(
            error, for_ever,
            [&] {
              std::filesystem::remove(target);
              if (exists) spill(target, before);
              AtomicFile file(target);
              for (int i = 0; i < 3; ++i) file.write("small ");
              file.write(big);
              file.commit();
            },
            [&](bool failed) {
              const std::string now = slurp(target);
              const std::string after = "small small small " + big;
              // A failure after the rename (the folder could not be synchronised) leaves the complete new file.
              const bool old = exists ? now == before : !std::filesystem::exists(target);
              REQUIRE((now == after || (failed && old)));
              // The temporary file can stay only if its removal failed as well.
              if (!for_ever) REQUIRE(folder.count() <= 1);
              remove_leftovers(folder.path());
              REQUIRE(folder.count() <= 1);
            });
        CHECK(calls >= 7);  // create, writes, fsync, close, rename, open the folder, fsync, close
      }
}

TEST_CASE("an atomic folder is wholly there or not at all, whichever call fails", "[atomic_file]") {
  Folder folder;
  const auto target = folder / "step";
  for (bool for_ever : {false, true})
    for (int error : fault_errors) {
      if (for_ever && error == EINTR) continue;
      const int calls = for_every_fault(
          error, for_ever,
          [&] {
            std::filesystem::remove_all(target);
            AtomicDirectory d(target);
            const FileRecord a = d.write("a", [](const ByteSink& sink) { sink(bytes_of("content of a")); });
            REQUIRE(a.bytes == 12);
            d.write("b", [](const ByteSink& sink) {
              for (int i = 0; i < 3; ++i) sink(bytes_of("part"));
            });
            d.commit();
          },
          [&](bool failed) {
            if (std::filesystem::exists(target)) {
              REQUIRE(slurp(target / "a") == "content of a");
              REQUIRE(slurp(target / "b") == "partpartpart");
            } else {
              REQUIRE(failed);
            }
            if (!for_ever) REQUIRE(folder.count() == (std::filesystem::exists(target) ? 1 : 0));
            remove_leftovers(folder.path());
            REQUIRE(folder.count() == (std::filesystem::exists(target) ? 1 : 0));
          });
      CHECK(calls >= 14);
    }
}

TEST_CASE("an atomic file that is not committed leaves nothing", "[atomic_file]") {
  Folder folder;
  {
    AtomicFile file(folder / "a");
    file.write("text");
    CHECK(folder.count() == 1);  // the temporary file
    CHECK_FALSE(std::filesystem::exists(folder / "a"));
  }
  CHECK(folder.count() == 0);
  {
    AtomicDirectory d(folder / "d");
    CHECK_THROWS_WITH(d.write("f", [](const ByteSink&) { throw std::runtime_error("planted"); }), "planted");
  }
  CHECK(folder.count() == 0);
}

TEST_CASE("an atomic file takes its permissions from the umask and reports size and CRC", "[atomic_file]") {
  Folder folder;
  const mode_t before = ::umask(027);
  FileRecord record;
  {
    AtomicFile file(folder / "a");
    file.write("123456789");
    record = file.commit();
  }
  ::umask(before);
  CHECK(record.name == "a");
  CHECK(record.bytes == 9);
  CHECK(record.crc == 0xE3069283u);
  struct stat status {};
  REQUIRE(::stat((folder / "a").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
  const FileRecord measured = measure_file(folder / "a");
  CHECK(measured.bytes == 9);
  CHECK(measured.crc == record.crc);
}

TEST_CASE("what cannot be a target is refused before anything is written", "[atomic_file]") {
  Folder folder;
  std::filesystem::create_directory(folder / "d");
  CHECK_THROWS_WITH(AtomicFile(folder / "d"), Catch::Contains("not a regular file"));
  CHECK_THROWS_WITH(AtomicDirectory(folder / "d"), Catch::Contains("already exists"));
  CHECK_THROWS_WITH(AtomicFile(folder / "none/x"), Catch::Contains("No such file"));
  CHECK_THROWS_WITH(AtomicDirectory(folder / "none/x"), Catch::Contains("No such file"));
  AtomicDirectory d(folder / "e");
  for (const char* name : {"", ".", "..", "a/b", "../x"})
    CHECK_THROWS_WITH(d.write(name, [](const ByteSink&) {}), Catch::Contains("not a plain file name"));
}

TEST_CASE("reading: whichever call fails is an error, and only regular files are read", "[atomic_file]") {
  Folder folder;
  const std::string text(300'000, 'y');
  spill(folder / "a", text);
  for (int error : fault_errors) {
    for (int n = 0; n < 100; ++n) {
      Faults faults({n, error, false});
      try {
        const auto content = read_file(folder / "a", 1 << 20);
        const FileRecord measured = measure_file(folder / "a");
        REQUIRE(content.size() == text.size());
        REQUIRE(measured.crc == crc32c(bytes_of(text)));
      } catch (const Error& e) {
        REQUIRE(e.kind() == ErrorKind::io);
        REQUIRE((error != 0 && error != EINTR));
      }
      if (!faults.happened()) break;
    }
  }
  CHECK_THROWS_WITH(read_file(folder / "a", 1000), Catch::Contains("expected at most 1000"));
  CHECK_THROWS_WITH(read_file(folder.path(), 1000), Catch::Contains("not a regular file"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(read_file(folder / "pipe", 1000), Catch::Contains("not a regular file"));  // must not wait
  CHECK_THROWS_WITH(read_file("/dev/zero", 1000), Catch::Contains("not a regular file"));
}

TEST_CASE("leftovers of a killed process are removed, and nothing else", "[atomic_file]") {
  Folder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(folder / "a");
    AtomicDirectory d(folder / "d");
    d.write("f", [](const ByteSink& sink) { sink(bytes_of("text")); });
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  CHECK(folder.count() == 2);
  for (const char* name : {".nacre-tmp", "nacre-tmp-1", ".hidden", "step-00000001"}) spill(folder / name, "mine");
  CHECK(remove_leftovers(folder.path()) == 2);
  CHECK(folder.count() == 4);
  CHECK_THROWS_AS(remove_leftovers(folder / "none"), Error);
}
