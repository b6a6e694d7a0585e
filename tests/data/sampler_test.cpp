// Crops are a pure function of (seed, step, index). Batches do not depend on the threads that fetch them.
#include "nacre/data/sampler.h"

#include <map>

#include "data/files.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

TEST_CASE("crops are in proportion to duration, uniform in offset, and repeatable", "[training][sampler]") {
  const std::vector<int64_t> lengths{50, 1000, 3000, 150};
  const CropSampler sampler({7, 3, 5, 1}, lengths, 100, 8, seed());
  CHECK(sampler.steps_per_epoch() == 6);  // 4200 / 800, rounded up
  std::map<int64_t, double> count, offset;
  const int steps = 5000;
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t i = 0; i < 8; ++i) {
      const Crop crop = sampler.at(step, i);
      ++count[crop.clip];
      offset[crop.clip] += static_cast<double>(crop.offset);
      const int64_t length = crop.clip == 7 ? 50 : crop.clip == 3 ? 1000 : crop.clip == 5 ? 3000 : 150;
      REQUIRE(crop.length == std::min<int64_t>(length, 100));
      REQUIRE(crop.offset >= 0);
      REQUIRE(crop.offset + crop.length <= length);
    }
  const double n = steps * 8;
  for (const auto& [clip, length] : std::map<int64_t, double>{{7, 50}, {3, 1000}, {5, 3000}, {1, 150}}) {
    const double p = length / 4200;
    CHECK(std::fabs(count[clip] - n * p) < 6 * std::sqrt(n * p * (1 - p)));  // six standard deviations
    const double span = std::max(0.0, length - 100);
    CHECK(std::fabs(offset[clip] / count[clip] - span / 2) <= 6 * (span + 1) / std::sqrt(12 * count[clip]));
  }
  const CropSampler again({7, 3, 5, 1}, lengths, 100, 8, seed()), other({7, 3, 5, 1}, lengths, 100, 8, seed() + 1);
  CHECK(again.at(4321, 5) == sampler.at(4321, 5));
  int same = 0;
  for (int64_t i = 0; i < 100; ++i) same += other.at(i, 0) == sampler.at(i, 0);
  CHECK(same < 20);
  CHECK(CropSampler({0}, std::vector<int64_t>{10}, 100, 8, 1).steps_per_epoch() == 1);
  CHECK_THROWS_AS(CropSampler({}, {}, 100, 8, 1), Error);
  CHECK_THROWS_WITH(CropSampler({0}, std::vector<int64_t>{10}, 0, 8, 1), Catch::Contains("segment is 0"));
}

TEST_CASE("batches are the same for any number of loader threads, from any step", "[training][sampler]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 7; ++i) write_sine(folder / (std::to_string(i) + ".wav"), 100 + 700 * i, 200 + 10 * i);
  const Dataset data(folder.path(), {});
  // Files are decoded again and again, so that the timing of the threads really differs.
  const Dataset uncached(folder.path(), {.cache_bytes = 3000});
  const CropSampler sampler(data, 640, 3, seed());
  const int steps = 60;
  std::vector<Batch> expected(steps);
  for (int64_t s = 0; s < steps; ++s) fill_batch(data, sampler, s, expected[static_cast<size_t>(s)]);
  bool padded = false;
  for (const Batch& b : expected)
    for (size_t i = 0; i < 3; ++i)
      for (int64_t t = b.crops[i].length; t < 640; ++t) {
        padded = true;
        REQUIRE(b.samples[i * 640 + static_cast<size_t>(t)] == 0.0f);
      }
  CHECK((padded || seed() != 1));
  for (const int threads : {1, 2, 7})
    for (const int64_t first : {int64_t{0}, int64_t{41}}) {
      Prefetcher fetch(uncached, sampler, {.first_step = first, .threads = threads, .depth = 3});
      for (int64_t s = first; s < steps; ++s) {
        const Batch& b = fetch.next();
        REQUIRE(b.step == s);
        REQUIRE(b.samples == expected[static_cast<size_t>(s)].samples);
        REQUIRE(b.crops == expected[static_cast<size_t>(s)].crops);
      }
    }
}

TEST_CASE("a file that cannot be read any more is drawn again", "[training][sampler]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 8; ++i) write_sine(folder / (std::to_string(i) + ".wav"), 2000, 200 + 10 * i);
  const Dataset data(folder.path(), {.valid_fraction = 0, .cache_bytes = 0});
  const CropSampler sampler(data, 500, 1, seed());
  std::filesystem::remove(folder / "5.wav");
  const auto is_lost = [&](const Crop& crop) { return data.clips()[static_cast<size_t>(crop.clip)].path == "5.wav"; };
  int64_t failures = 0;
  std::vector<Crop> drawn;
  for (const int threads : {1, 2, 7}) {
    Prefetcher fetch(data, sampler, {.threads = threads});
    for (int64_t s = 0; s < 100; ++s) {
      const Batch& b = fetch.next();
      REQUIRE(b.step == s);
      REQUIRE_FALSE(is_lost(b.crops[0]));
      // Each draw of the lost file is reported. The first other draw is used.
      REQUIRE(b.crops[0] == sampler.at(s, 0, static_cast<int64_t>(b.lost.size())));
      for (size_t attempt = 0; attempt < b.lost.size(); ++attempt) {
        REQUIRE(is_lost(sampler.at(s, 0, static_cast<int64_t>(attempt))));
        REQUIRE(b.lost[attempt].path == "5.wav");
        REQUIRE_THAT(b.lost[attempt].reason, Catch::Contains("5.wav"));
      }
      failures += static_cast<int64_t>(b.lost.size());
      // The crops are the same for any number of threads.
      if (threads == 1) drawn.push_back(b.crops[0]);
      REQUIRE(b.crops[0] == drawn[static_cast<size_t>(s)]);
    }
  }
  CHECK(failures > 0);
  // If no file is left to draw, the reader of batches gets an error, now and later.
  std::filesystem::remove_all(folder.path());
  Prefetcher fetch(data, sampler, {});
  CHECK_THROWS_WITH(fetch.next(), Catch::Contains("files in a row") && Catch::Contains(".wav"));
  CHECK_THROWS_WITH(fetch.next(), Catch::Contains("files in a row"));
}

TEST_CASE("a prefetcher can go away at any time", "[training][sampler]") {
  const TemporaryFolder folder;
  for (int i = 0; i < 3; ++i) write_sine(folder / (std::to_string(i) + ".wav"), 2000, 200 + 10 * i);
  const Dataset data(folder.path(), {});
  const CropSampler sampler(data, 500, 2, seed());
  for (int taken = 0; taken < 30; ++taken) {
    Prefetcher fetch(data, sampler, {.threads = 1 + taken % 3, .depth = 1 + taken % 4});
    for (int i = 0; i < taken % 6; ++i) fetch.next();
  }
  CHECK_THROWS_AS(Prefetcher(data, sampler, {.threads = 0}), Error);
}
