// The excerpts of held-out audio that are scored: a documented rule. Their samples are those of the whole clip.
#include "nacre/data/excerpts.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "data/files.h"
#include "nacre/error.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

constexpr int rate = 1000;  // the least allowed rate, so that minutes are small files

/// A folder with `lengths` seconds of sound in valid/, and something to train on.
Dataset held_out(const TemporaryFolder& folder, const std::vector<double>& lengths,
                 uint64_t cache = uint64_t{1} << 30) {
  write_sine(folder / "data/train.wav", 5 * rate, 110, rate);
  for (size_t i = 0; i < lengths.size(); ++i)
    write_sine(folder / ("data/valid/" + std::string(1, static_cast<char>('a' + i)) + ".wav"),
               std::lround(lengths[i] * rate), 100 + 10 * static_cast<double>(i), rate);
  return {folder / "data", {.sample_rate = rate, .cache_bytes = cache}};
}

std::vector<std::string> names(const Dataset& data, double seconds) {
  std::vector<std::string> all;
  for (const Excerpt& e : judged_excerpts(data, seconds)) all.push_back(excerpt_name(data, e));
  return all;
}
using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("excerpts: short clips are judged whole, until the seconds are full", "[training][excerpts]") {
  const TemporaryFolder folder;
  const Dataset data = held_out(folder, {4, 30, 3, 8});
  CHECK(names(data, 36) == Names{"valid/a.wav", "valid/b.wav", "valid/c.wav"});  // 4 + 30 is less than 36
  CHECK(names(data, 34) == Names{"valid/a.wav", "valid/b.wav"});
  CHECK(names(data, 1e6) == Names{"valid/a.wav", "valid/b.wav", "valid/c.wav", "valid/d.wav"});
  CHECK(names(data, 0) == names(data, 1e6));
  CHECK(total_seconds(data, judged_excerpts(data, 36)) == Approx(37));
}

TEST_CASE("excerpts: a long clip is judged by excerpts that are spread over it", "[training][excerpts]") {
  const TemporaryFolder folder;
  // One file of 3 minutes: each excerpt lies in the middle of its sixth.
  const Dataset one = held_out(folder, {180});
  CHECK(names(one, 60) == Names{"valid/a.wav @ 10.0 s", "valid/a.wav @ 40.0 s", "valid/a.wav @ 70.0 s",
                                "valid/a.wav @ 100.0 s", "valid/a.wav @ 130.0 s", "valid/a.wav @ 160.0 s"});
  CHECK(names(one, 5) == Names{"valid/a.wav @ 85.0 s"});
  // More seconds than the file has: excerpts are adjacent, and each sample is used at most once.
  const std::vector<Excerpt> all = judged_excerpts(one, 1e6);
  CHECK(all.size() == 18);
  for (size_t i = 0; i < all.size(); ++i)
    CHECK(all[i] == Excerpt{all[0].clip, static_cast<int64_t>(i) * 10 * rate, 10 * rate});
  // Without a limit the whole file is scored.
  CHECK(names(one, 0) == Names{"valid/a.wav"});
}

TEST_CASE("excerpts: every clip is heard before a long one is heard twice", "[training][excerpts]") {
  const TemporaryFolder folder;
  const Dataset data = held_out(folder, {40, 5, 32, 95});
  CHECK(names(data, 35) ==
        Names{"valid/a.wav @ 15.0 s", "valid/b.wav", "valid/c.wav @ 11.0 s", "valid/d.wav @ 42.5 s"});
  CHECK(names(data, 50) == Names{"valid/a.wav @ 5.0 s", "valid/a.wav @ 25.0 s", "valid/b.wav", "valid/c.wav @ 3.0 s",
                                 "valid/c.wav @ 19.0 s", "valid/d.wav @ 42.5 s"});
  for (const double seconds : {1.0, 35.0, 50.0, 77.0, 100.0, 1000.0}) {
    const std::vector<Excerpt> parts = judged_excerpts(data, seconds);
    CHECK(parts == judged_excerpts(data, seconds));
    // At most the requested seconds and one clip that is scored as a whole.
    CHECK(total_seconds(data, parts) < seconds + longest_whole_clip);
    for (size_t i = 0; i < parts.size(); ++i) {
      CHECK(parts[i].offset >= 0);
      CHECK(parts[i].offset + parts[i].samples <= data.clips()[static_cast<size_t>(parts[i].clip)].samples);
      if (i > 0 && parts[i].clip == parts[i - 1].clip)
        CHECK(parts[i].offset >= parts[i - 1].offset + parts[i - 1].samples);
    }
  }
}

TEST_CASE("excerpts: what is read of a long file is what loading all of it gives", "[training][excerpts]") {
  const TemporaryFolder folder;
  // Two channels at another rate are mixed, resampled and scaled.
  std::vector<float> sound = sine(2 * 44 * 1600, 70, 3200, 0.3);
  for (size_t i = 0; i < sound.size(); ++i) sound[i] += 0.2f * static_cast<float>((i * 7919) % 1000) / 1000;
  write_wav(folder / "data/valid/z.wav", {.samples = sound, .sample_rate = 1600, .channels = 2});
  const Dataset cached = held_out(folder, {35, 4});
  const Dataset streamed({folder / "data", {.sample_rate = rate, .cache_bytes = 10 * rate}});
  REQUIRE(cached.in_memory());
  REQUIRE(!streamed.in_memory());
  std::vector<Excerpt> parts = judged_excerpts(cached, 60);
  parts.push_back({parts.back().clip, 7, 20000});  // overlapping excerpts, and the last sample
  parts.push_back({parts.back().clip, cached.clips()[static_cast<size_t>(parts.back().clip)].samples - 3, 3});
  int looks = 0;
  ExcerptReader reader(streamed, parts, [&] { ++looks; });
  for (int round = 0; round < 2; ++round)
    for (size_t i = 0; i < parts.size(); ++i) {
      INFO(excerpt_name(cached, parts[i]));
      const Dataset::Samples whole = cached.load(parts[i].clip);
      const auto from = whole->begin() + parts[i].offset;
      const std::vector<float> expected(from, from + parts[i].samples);
      // In an excerpt of a resampled file the filter starts elsewhere, so the sums round differently.
      const std::vector<float> found = reader.samples(i);
      REQUIRE(found.size() == expected.size());
      double worst = 0;
      for (size_t t = 0; t < found.size(); ++t)
        worst = std::max(worst, std::fabs(double(found[t]) - double(expected[t])));
      CHECK(worst <= (cached.clips()[static_cast<size_t>(parts[i].clip)].sample_rate == rate ? 0 : 1e-6));
    }
  CHECK(looks > 0);

  SECTION("what stops the reading leaves nothing half-read behind") {
    bool stop = true;
    ExcerptReader other(streamed, parts, [&] {
      if (stop) throw Error(ErrorKind::device, "stop");
    });
    CHECK_THROWS_AS(other.samples(0), Error);
    stop = false;
    CHECK((other.samples(0) == reader.samples(0)));
  }
  SECTION("a file that has changed is refused") {
    const std::string path = streamed.folder() + "/" + streamed.clips()[static_cast<size_t>(parts[0].clip)].path;
    write_sine(path, 50 * rate, 100, rate);
    ExcerptReader late(streamed, parts);
    CHECK_THROWS_AS(late.samples(0), Error);
  }
}
