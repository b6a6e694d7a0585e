// The data folder: every bad file is named once, the parts do not change, and the cache has no visible effect.
#include "nacre/data/dataset.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "data/encoded.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

std::string thrown(const std::string& folder, const DatasetOptions& options, ErrorKind kind = ErrorKind::input) {
  try {
    Dataset(folder, options);
  } catch (const Error& e) {
    CHECK(e.kind() == kind);
    return e.what();
  }
  return "";
}

std::set<std::string> paths(const Dataset& d, const std::vector<int64_t>& part) {
  std::set<std::string> out;
  for (const int64_t i : part) out.insert(d.clips()[static_cast<size_t>(i)].path);
  return out;
}

}  // namespace

TEST_CASE("every bad file is named once with its reason", "[training][dataset]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 4; ++i) write_sine(folder / ("good/" + std::to_string(i) + ".wav"), 20000 + 1000 * i);
  write_encoded(folder / "good/a.FLAC", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, sine(48000, 440, 48000), 48000);
  write_encoded(folder / "good/b.ogg", SF_FORMAT_OGG | SF_FORMAT_VORBIS, sine(48000, 440, 48000), 48000);
  write_encoded(folder / "good/c.opus", SF_FORMAT_OGG | SF_FORMAT_OPUS, sine(48000, 440, 48000), 48000);
  write_encoded(folder / "good/d.mp3", SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III, sine(48000, 440, 48000), 48000);
  write_encoded(folder / "good/e.aiff", SF_FORMAT_AIFF | SF_FORMAT_PCM_24, sine(48000, 440, 48000), 48000);
  write_encoded(folder / "good/f.au", SF_FORMAT_AU | SF_FORMAT_PCM_16, sine(48000, 440, 48000), 48000);
  const std::string wav = read_bytes(folder / "good/0.wav");

  std::map<std::string, std::string> expected;
  const auto bad = [&](const std::string& name, const std::string& reason) {
    expected[name] = reason;
    return folder / name;
  };
  write_bytes(bad("bad/empty.wav", "empty: 0 bytes"), "");
  write_bytes(bad("bad/no_audio.wav", "empty"), wav_bytes({}, 16000));
  write_bytes(bad("bad/cut.wav", "truncated"), wav.substr(0, wav.size() / 2));
  write_bytes(bad("bad/cut.flac", ""), read_bytes(folder / "good/a.FLAC").substr(0, 9000));
  const std::string ogg = read_bytes(folder / "good/b.ogg");
  write_bytes(bad("bad/cut.ogg", "truncated"), ogg.substr(0, ogg.size() - 100));
  const std::string aiff = read_bytes(folder / "good/e.aiff"), au = read_bytes(folder / "good/f.au");
  write_bytes(bad("bad/cut.aiff", "truncated"), aiff.substr(0, aiff.size() - 10));
  write_bytes(bad("bad/cut.au", "truncated"), au.substr(0, au.size() - 10));
  write_bytes(bad("bad/text.mp3", "not readable as audio"), std::string(300, 'a'));
  write_bytes(bad("bad/phone.m4a", "not readable as audio"), std::string("\0\0\0\x20"
                                                                         "ftypM4A ",
                                                                         12) +
                                                                 std::string(99, 'x'));
  write_bytes(bad("bad/silent.wav", "silent"), wav_bytes(std::vector<float>(20000), 16000));
  write_sine(bad("bad/short.wav", "too short: 319 samples"), 319);
  write_wav(bad("bad/nan.wav", "not a finite number at frame 7"),
            {.samples = sine(9000, 100, 16000), .sample_rate = 16000, .channels = 1}, WavFormat::float32);
  {
    std::string b = read_bytes(folder / "bad/nan.wav");
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const size_t data = b.find("data") + 8;
    b.replace(data + 28, 4, std::string(reinterpret_cast<const char*>(&nan), 4));
    write_bytes(folder / "bad/nan.wav", b);
  }
  REQUIRE(::mkfifo(bad("bad/pipe.wav", "a pipe").c_str(), 0600) == 0);
  write_bytes(bad("bad/offset.wav", "silent: it stays within"),
              wav_bytes(std::vector<float>(20000, -1.0f / 32768), 16000));
  std::filesystem::create_symlink("nowhere", bad("bad/dangling.wav", "No such file"));
  std::filesystem::create_directory(folder / "bad/not_a_file.wav");  // an empty folder, searched
  if (::geteuid() != 0) {
    write_sine(bad("bad/locked.wav", "Permission denied"), 20000);
    std::filesystem::permissions(folder / "bad/locked.wav", std::filesystem::perms::none);
  }
  write_bytes(folder / "README.txt", "text");
  write_bytes(folder / "good/0.txt", "a transcript");
  write_bytes(folder / ".hidden.wav", "x");
  // Links that form a loop.
  std::filesystem::create_directory_symlink(folder.path(), folder / "good/loop");
  std::filesystem::create_directory_symlink("loop2", folder / "loop2");

  DatasetOptions options{.min_samples = 320, .max_bad_files = 100};
  int64_t calls = 0, last = 0;
  options.progress = [&](int64_t done, int64_t) {
    ++calls;
    CHECK(done > last);
    last = done;
  };
  const Dataset data(folder.path(), options);
  CHECK(calls == last);
  std::map<std::string, std::string> found;
  for (const BadFile& b : data.bad()) {
    CHECK(found.count(b.path) == 0);
    found[b.path] = b.reason;
    CHECK(b.reason.find(folder.path()) == std::string::npos);
  }
  for (const auto& [path, reason] : expected) {
    INFO(path << ": " << found[path]);
    REQUIRE(found.count(path) == 1);
    CHECK(found[path].find(reason) != std::string::npos);
    CHECK_FALSE(found[path].empty());
  }
  for (const auto& [path, reason] : found)
    if (expected.count(path) == 0) FAIL_CHECK(path << " is named as bad: " << reason);
  CHECK(data.clips().size() == 10);
  CHECK(data.ignored_files() == 4);  // two texts, one hidden, one link to itself
  for (const Clip& c : data.clips()) {
    INFO(c.path);
    CHECK(c.path.starts_with("good/"));
    if (c.sample_rate == 48000 && c.path != "good/d.mp3") CHECK(c.samples == 16000);
  }
  CHECK_THAT(describe_bad(data.bad(), 23, 2), Catch::Contains("of 23 files skipped:") && Catch::Contains("more"));

  // More than max(10 files, 1 %) bad files stop the scan.
  const std::string text = thrown(folder.path(), {.min_samples = 320});
  CHECK_THAT(text,
             Catch::Contains("too many bad files") && Catch::Contains(folder.path()) && Catch::Contains("--max-bad"));
  CHECK(thrown(folder.path(), {.min_samples = 320, .max_bad_fraction = 0.9}).empty());
}

TEST_CASE("a folder without usable audio says so", "[training][dataset]") {
  const TemporaryFolder folder;
  CHECK_THAT(thrown(folder.path(), {}), Catch::Contains("no audio files") && Catch::Contains(folder.path()));
  CHECK_THAT(thrown(folder / "none", {}, ErrorKind::io), Catch::Contains("no such folder"));
  write_bytes(folder / "note.txt", "x");
  CHECK_THAT(thrown(folder / "note.txt", {}, ErrorKind::io), Catch::Contains("expected a folder"));
  CHECK_THAT(thrown(folder.path(), {}), Catch::Contains("1 other files"));
  write_bytes(folder / "a.wav", "x");
  CHECK_THAT(thrown(folder.path(), {}), Catch::Contains("no usable audio") && Catch::Contains("a.wav: "));
  std::filesystem::remove(folder / "a.wav");
  write_sine(folder / "valid/a.wav", 1000);
  CHECK_THAT(thrown(folder.path(), {}),
             Catch::Contains("none is left to train on") && Catch::Contains("training.held_out_folders=false"));
  CHECK_THAT(thrown(folder.path(), {.sample_rate = 5}, ErrorKind::usage), Catch::Contains("sample_rate is 5"));
}

TEST_CASE("the held-out part", "[training][dataset]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 20; ++i) write_sine(folder / ("s" + std::to_string(i) + "/a.wav"), 800 + i, 300 + 10 * i);
  const Dataset by_hash(folder.path(), {.valid_fraction = 0.1});
  CHECK(by_hash.held_out().size() == 2);
  CHECK(by_hash.training().size() == 18);
  CHECK(by_hash.training_seconds() + by_hash.held_out_seconds() == Approx((20 * 800 + 190) / 16000.0));
  CHECK(Dataset(folder.path(), {.valid_fraction = 0.001}).held_out().size() == 1);
  CHECK(Dataset(folder.path(), {.valid_fraction = 0.999}).training().size() == 1);
  CHECK(Dataset(folder.path(), {.valid_fraction = 0}).held_out().empty());

  // The same files in another folder have the same parts and the same fingerprint. One more file moves at most one
  // file.
  const TemporaryFolder copy;
  std::filesystem::copy(folder.path(), copy.path(), std::filesystem::copy_options::recursive);
  const Dataset copied(copy.path() + "/", {.valid_fraction = 0.1});
  CHECK(paths(copied, copied.held_out()) == paths(by_hash, by_hash.held_out()));
  CHECK(copied.fingerprint() == by_hash.fingerprint());
  write_sine(copy / "s0/a.wav", 801);
  CHECK(Dataset(copy.path(), {.valid_fraction = 0.1}).fingerprint() != by_hash.fingerprint());

  const Dataset listed(folder.path(), {.held_out = {"s1", "s12/a.wav", "s3/"}});
  CHECK(paths(listed, listed.held_out()) == std::set<std::string>{"s1/a.wav", "s12/a.wav", "s3/a.wav"});
  CHECK_THAT(thrown(folder.path(), {.held_out = {"s99"}}, ErrorKind::usage), Catch::Contains("'s99'"));

  write_sine(folder / "valid/x/b.wav", 900);
  write_sine(folder / "hindi/valid/c.wav", 900);
  write_sine(folder / "invalid/d.wav", 900);
  const Dataset foldered(folder.path(), {.valid_fraction = 0.1});
  CHECK(paths(foldered, foldered.held_out()) == std::set<std::string>{"valid/x/b.wav", "hindi/valid/c.wav"});
  CHECK(foldered.held_out_folders() == std::vector<std::string>{"hindi/valid", "valid"});
  CHECK_THAT(describe_parts(foldered),
             Catch::Contains("21 files") && Catch::Contains("held out (hindi/valid/, valid/)"));
  const Dataset everything(folder.path(), {.valid_fraction = 0.1, .held_out_folders = false});
  CHECK(everything.training().size() + everything.held_out().size() == 23);
  CHECK(everything.held_out().size() == 2);
  CHECK(everything.held_out_folders().empty());
  const TemporaryFolder one;
  write_sine(one / "a.wav", 1000);
  CHECK(Dataset(one.path(), {}).held_out().empty());
}

TEST_CASE("folders with the usual names are held out, and a test's is left alone", "[training][dataset]") {
  const auto parts = [](const std::vector<std::string>& files) {
    const TemporaryFolder folder;
    int64_t n = 1000;
    for (const std::string& file : files) write_sine(folder / file, n += 100);
    const Dataset d(folder.path(), {.valid_fraction = 0.2});
    std::string text;
    for (const Clip& c : d.clips()) text += c.held_out ? 'h' : c.left_out ? 'l' : 't';
    CHECK(d.training().size() + d.held_out().size() ==
          static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return c != 'l'; })));
    return text + " " + describe_parts(d);
  };
  // In order of path.
  for (const char* name : {"val", "VALID", "validation", "dev", "dev-clean", "Dev_other", "eval", "heldout", "held_out",
                           "held-out", "test", "test-clean"}) {
    INFO(name);
    const std::string where = std::string(name) + "/";
    const std::string text = parts({"audio/a.wav", where + "b.wav", "zz/c.wav"});
    CHECK(text.substr(0, text.find(' ')) == (where < "audio/" ? "htt" : "tht"));
    CHECK_THAT(text, Catch::Contains("1 file, ") && Catch::Contains("held out (" + where + ")"));
  }
  for (const char* name : {"developers", "tests", "evaluate", "values", "train", "contest", "a-test"}) {
    INFO(name);
    // No folder has such a name: two files of ten are held out by their hash.
    std::vector<std::string> files;
    for (int i = 0; i < 10; ++i) files.push_back(std::string(name) + "/" + std::to_string(i) + ".wav");
    const std::string text = parts(files);
    CHECK(std::count(text.begin(), text.begin() + 10, 'h') == 2);
    CHECK_THAT(text, !Catch::Contains("held out ("));
  }
  // A file with such a name is no folder.
  CHECK_THAT(parts({"dev.wav", "x.wav", "y.wav"}), !Catch::Contains("("));
  // If there is a folder for validation, the test folder belongs to neither part. A test folder alone is used for
  // validation.
  const std::string both = parts({"dev/a.wav", "test/b.wav", "test/deep/c.wav", "train/d.wav"});
  CHECK(both.substr(0, 5) == "hllt ");
  CHECK_THAT(both, Catch::Contains("held out (dev/)") && Catch::Contains("2 files left out (test/)"));
  CHECK(parts({"test/b.wav", "train/d.wav"}).substr(0, 3) == "ht ");
  // The outermost name counts.
  CHECK_THAT(parts({"test/dev/a.wav", "train/d.wav"}), Catch::Contains("held out (test/)"));
}

TEST_CASE("files that are used in spite of something are named", "[training][dataset]") {
  const TemporaryFolder folder;
  write_sine(folder / "a.wav", 4000);
  std::string unfinished = read_bytes(folder / "a.wav");
  std::fill_n(unfinished.begin() + static_cast<std::ptrdiff_t>(unfinished.find("data")) + 4, 4, '\0');
  write_bytes(folder / "b.wav", unfinished);
  const std::string whole = read_bytes(folder / "a.wav");
  write_bytes(folder / "c.wav", whole.substr(0, whole.size() - 1000));
  std::vector<float> opposite;
  for (const float v : sine(4000, 300, 16000)) opposite.insert(opposite.end(), {v, -v});
  write_wav(folder / "d.wav", {.samples = opposite, .sample_rate = 16000, .channels = 2});
  const Dataset strict(folder.path(), {});
  REQUIRE(strict.bad().size() == 1);
  CHECK(strict.bad()[0].path == "c.wav");
  CHECK_THAT(strict.bad()[0].reason, Catch::Contains("--salvage"));
  REQUIRE(strict.warned().size() == 2);
  CHECK(strict.warned()[0].path == "b.wav");
  CHECK_THAT(strict.warned()[0].reason, Catch::Contains("the recording was not finished"));
  CHECK(strict.warned()[1].path == "d.wav");
  CHECK_THAT(strict.warned()[1].reason, Catch::Contains("opposite phase"));
  const Dataset salvaged(folder.path(), {.salvage = true});
  CHECK(salvaged.bad().empty());
  CHECK(salvaged.warned().size() == 3);
  CHECK(salvaged.clips()[2].samples == 3500);
  CHECK(salvaged.fingerprint() != strict.fingerprint());
  // Loading and reading of parts accept the files that the scan accepted.
  for (const uint64_t cache : {uint64_t{0}, uint64_t{1} << 20}) {
    const Dataset again(folder.path(), {.salvage = true, .cache_bytes = cache});
    for (int64_t i = 0; i < 4; ++i) {
      std::vector<float> part(500);
      again.read(i, 3000, part);
      CHECK(std::equal(part.begin(), part.end(), salvaged.load(i)->begin() + 3000));
      CHECK(*again.load(i) == *salvaged.load(i));
    }
  }
}

TEST_CASE("loaded audio is mono, at the model's rate, with its peak at 0.95, cached or not", "[training][dataset]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 6; ++i) {
    const auto left = sine(30000, 200 + 50 * i, 48000, 0.3);
    std::vector<float> stereo;
    for (const float v : left) stereo.insert(stereo.end(), {v, v / 2});
    write_wav(folder / (std::to_string(i) + ".wav"), {.samples = stereo, .sample_rate = 48000, .channels = 2});
  }
  const Dataset cached(folder.path(), {.threads = 3});
  // The cache has room for two and a half clips of six.
  const Dataset tight(folder.path(), {.cache_bytes = 100000, .threads = 1});
  const Dataset none(folder.path(), {.cache_bytes = 0});
  CHECK(cached.in_memory());
  CHECK_FALSE(tight.in_memory());
  for (int round = 0; round < 2; ++round)
    for (int64_t i = 0; i < 6; ++i) {
      const auto x = cached.load(i);
      CHECK(x->size() == 10000);
      CHECK(peak_of(*x) == Approx(0.95));
      // Resampling rings at the abrupt ends of the tone, so its peak is slightly above 0.225.
      CHECK(cached.clips()[static_cast<size_t>(i)].gain == Approx(0.95 / 0.225).epsilon(0.1));
      CHECK(*tight.load(i) == *x);
      CHECK(*none.load(i) == *x);
    }
  CHECK(cached.load(0) == cached.load(0));
  CHECK_THROWS_AS(cached.load(6), Error);
  CHECK_THROWS_AS(cached.load(-1), Error);
  // A file that changes during the run is reported and not used.
  write_sine(folder / "3.wav", 5000);
  CHECK_THROWS_WITH(none.load(3), Catch::Contains("3.wav") && Catch::Contains("changed since"));
  CHECK_NOTHROW(cached.load(3));
  std::filesystem::remove(folder / "4.wav");
  CHECK_THROWS_WITH(none.load(4), Catch::Contains("4.wav"));
}
