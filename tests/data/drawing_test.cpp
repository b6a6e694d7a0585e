// Random crops and held-out files. Seed, step and index each change every part of a crop. Crops reach both ends of a
// clip and keep the level of their file.
#include <algorithm>
#include <map>
#include <set>

#include "data/files.h"
#include "harness.h"
#include "nacre/data/sampler.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// A sampler of `count` clips with `samples` samples each. Clip i has number i.
CropSampler alike(int64_t count, int64_t samples, int64_t segment, int64_t batch, uint64_t sampler_seed) {
  std::vector<int64_t> clips;
  for (int64_t i = 0; i < count; ++i) clips.push_back(i);
  return {clips, std::vector<int64_t>(static_cast<size_t>(count), samples), segment, batch, sampler_seed};
}

/// Counts how many of n pairs agree. Independent pairs of k values agree n / k times, within six standard deviations.
void check_independent(const std::vector<int64_t>& a, const std::vector<int64_t>& b, double k) {
  REQUIRE(a.size() == b.size());
  const auto n = static_cast<double>(a.size());
  double same = 0;
  for (size_t i = 0; i < a.size(); ++i) same += a[i] == b[i];
  CHECK(std::fabs(same - n / k) <= 6 * std::sqrt(n / k * (1 - 1 / k)));
}

std::set<std::string> held_out_paths(const Dataset& d) {
  std::set<std::string> out;
  for (const int64_t i : d.held_out()) out.insert(d.clips()[static_cast<size_t>(i)].path);
  return out;
}

}  // namespace

TEST_CASE("drawing: seed, step and index each choose the clip anew, and each the offset", "[training][sampler]") {
  // Clips of the length of a segment have one crop, which identifies the clip. A single clip varies in the offset
  // alone. Both have 16 values.
  constexpr int64_t steps = 4000;
  for (const bool offsets : {false, true}) {
    INFO((offsets ? "offsets" : "clips"));
    const auto drawn = [&](uint64_t sampler_seed, int64_t first_step, int64_t index) {
      const CropSampler sampler = offsets ? alike(1, 115, 100, 4, sampler_seed) : alike(16, 100, 100, 4, sampler_seed);
      std::vector<int64_t> values;
      for (int64_t s = 0; s < steps; ++s) {
        const Crop crop = sampler.at(first_step + s, index);
        REQUIRE(crop.length == 100);
        values.push_back(offsets ? crop.offset : crop.clip);
      }
      return values;
    };
    const std::vector<int64_t> one = drawn(seed(), 0, 0);
    check_independent(one, drawn(seed() + 1, 0, 0), 16);
    check_independent(one, drawn(seed() + (uint64_t{1} << 32), 0, 0), 16);
    check_independent(one, drawn(seed(), 1, 0), 16);
    check_independent(one, drawn(seed(), -steps, 0), 16);  // the draws that codebooks start from
    for (const int64_t index : {1, 2, 3}) check_independent(one, drawn(seed(), 0, index), 16);
    // All values are equally likely.
    std::map<int64_t, double> counts;
    for (const int64_t v : one) counts[v] += 1;
    for (int64_t v = 0; v < 16; ++v)
      CHECK(std::fabs(counts[v] - steps / 16.0) <= 6 * std::sqrt(steps / 16.0 * 15 / 16));
  }
  // The clip and the offset are independent.
  const CropSampler both = alike(16, 115, 100, 1, seed());
  std::vector<int64_t> clips, places;
  for (int64_t s = 0; s < steps; ++s) clips.push_back(both.at(s, 0).clip), places.push_back(both.at(s, 0).offset);
  check_independent(clips, places, 16);
}

TEST_CASE("drawing: crops reach the first and the last sample of a clip", "[training][sampler]") {
  // Up to 250 draws of at most 4 offsets. The probability that one is missing is at most 4 (3/4)^250 = 10^-30.
  for (const int64_t more : {0, 1, 2, 3}) {
    INFO("a clip " << more << " samples longer than a segment");
    const CropSampler sampler = alike(1, 40 + more, 40, 1, seed());
    std::set<int64_t> offsets, expected;
    for (int64_t s = 0; s < 250; ++s) {
      const Crop crop = sampler.at(s, 0);
      CHECK(crop.length == 40);
      offsets.insert(crop.offset);
    }
    for (int64_t o = 0; o <= more; ++o) expected.insert(o);
    CHECK((offsets == expected));
  }
  // A shorter clip is taken as a whole, from its beginning.
  for (const int64_t samples : {1, 39}) {
    const CropSampler sampler = alike(3, samples, 40, 1, seed());
    for (int64_t s = 0; s < 50; ++s) {
      const Crop crop = sampler.at(s, 0);
      CHECK(crop.offset == 0);
      CHECK(crop.length == samples);
    }
  }
  // Clips of one sample are drawn as well. The probability that one is missing is 8 (7/8)^250 = 10^-13.
  std::set<int64_t> drawn;
  for (int64_t s = 0; s < 250; ++s) drawn.insert(alike(8, 1, 40, 1, seed()).at(s, 0).clip);
  CHECK(drawn.size() == 8);
  // The probability of a clip is proportional to its length. The first and the last clip of the list have their share,
  // 1 and 2 of 4.
  const CropSampler sampler({5, 6, 7}, std::vector<int64_t>{1000, 1000, 2000}, 1000, 1, seed());
  std::map<int64_t, double> counts;
  for (int64_t s = 0; s < 4000; ++s) counts[sampler.at(s, 0).clip] += 1;
  for (const auto& [clip, p] : std::map<int64_t, double>{{5, 0.25}, {6, 0.25}, {7, 0.5}})
    CHECK(std::fabs(counts[clip] - 4000 * p) <= 6 * std::sqrt(4000 * p * (1 - p)));
}

TEST_CASE("drawing: a crop has the level that its file gives it, and zeros behind a short clip",
          "[training][sampler]") {
  const TemporaryFolder folder;
  // Loud for a moment and quiet elsewhere: most crops of 200 samples have peaks far below 0.95.
  std::vector<std::vector<float>> files;
  for (int i = 0; i < 4; ++i) {
    std::vector<float> x = sine(i == 3 ? 120 : 3000, 300 + 100 * i, 16000, 0.05);
    x[static_cast<size_t>(i == 3 ? 50 : 1000 + 300 * i)] = i % 2 == 0 ? 0.8f : -0.4f;
    write_wav(folder / (std::to_string(i) + ".wav"), {.samples = x, .sample_rate = 16000, .channels = 1},
              WavFormat::float32);
    for (float& v : x) v *= static_cast<float>(0.95 / (i % 2 == 0 ? 0.8 : 0.4));
    files.push_back(x);
  }
  const Dataset data(folder.path(), {.valid_fraction = 0});
  REQUIRE(data.clips().size() == 4);
  const CropSampler sampler(data, 200, 3, seed());
  Batch batch;
  std::set<int64_t> seen;
  for (int64_t s = 0; s < 60; ++s) {
    fill_batch(data, sampler, s, batch);
    REQUIRE(batch.step == s);
    REQUIRE(batch.samples.size() == 600);
    REQUIRE(batch.crops.size() == 3);
    for (size_t i = 0; i < 3; ++i) {
      const Crop& crop = batch.crops[i];
      REQUIRE(crop == sampler.at(s, static_cast<int64_t>(i)));
      seen.insert(crop.clip);
      const std::vector<float>& file = files[static_cast<size_t>(crop.clip)];
      double worst = 0;
      for (int64_t t = 0; t < 200; ++t) {
        const float expected = t < crop.length ? file[static_cast<size_t>(crop.offset + t)] : 0.0f;
        worst =
            std::max(worst, static_cast<double>(std::fabs(batch.samples[i * 200 + static_cast<size_t>(t)] - expected)));
      }
      CHECK(worst <= 4 * 0x1p-24);  // two gains below 2.4, each rounded, and products
    }
  }
  CHECK(seen.size() == 4);
}

TEST_CASE("drawing: the held-out files are those whose paths have the lowest hashes", "[training][dataset]") {
  // FNV-1a (64 bits) over the path and a zero byte, then the finaliser of SplitMix64, computed with Python. The choice
  // must never change: a training file of one version must not be a held-out file of the next.
  const TemporaryFolder folder;
  for (char c = 'a'; c <= 't'; ++c) write_sine(folder / (std::string("speaker/") + c + ".wav"), 500 + c, 300);
  std::vector<std::string> by_hash;
  for (const char c : std::string("jbnfrahigldoqtekpcsm")) by_hash.push_back(std::string("speaker/") + c + ".wav");
  const auto lowest = [&](size_t n) {
    return std::set<std::string>(by_hash.begin(), by_hash.begin() + static_cast<std::ptrdiff_t>(n));
  };
  CHECK((held_out_paths(Dataset(folder.path(), {.valid_fraction = 0.05})) == lowest(1)));
  CHECK((held_out_paths(Dataset(folder.path(), {.valid_fraction = 0.2})) == lowest(4)));
  CHECK((held_out_paths(Dataset(folder.path(), {.valid_fraction = 0.5})) == lowest(10)));
  // Removing other files of the list moves no file.
  for (size_t i = 5; i < by_hash.size(); ++i) std::filesystem::remove(folder / by_hash[i]);
  CHECK((held_out_paths(Dataset(folder.path(), {.valid_fraction = 0.6})) == lowest(3)));
}
