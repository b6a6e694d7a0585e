// Audio files: written files are read back, damage is reported, and signal functions follow their headers.
#include "nacre/data/audio.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "data/encoded.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// The error of reading the file, preceded by its kind. "" if there is none.
std::string complaint(const std::string& path) {
  try {
    read_audio(path);
  } catch (const Error& e) {
    return std::to_string(e.exit_code()) + " " + e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("WAV files read back as they were written", "[training][audio]") {
  const TemporaryFolder folder;
  for (const int channels : {1, 2, 3, 64})
    for (const size_t frames : {size_t{1}, size_t{7}, size_t{70000}}) {
      const auto x = noise(frames * static_cast<size_t>(channels), frames);
      const std::string path = folder / "a.wav";
      write_wav(path, {.samples = x, .sample_rate = 22050, .channels = channels}, WavFormat::float32);
      const Audio exact = read_audio(path);
      CHECK(exact.samples == x);
      CHECK(exact.sample_rate == 22050);
      CHECK(exact.channels == channels);
      CHECK(write_wav(path, {.samples = x, .sample_rate = 22050, .channels = channels}) == 0);
      const Audio coarse = read_audio(path);
      REQUIRE(coarse.samples.size() == x.size());
      double worst = 0;
      for (size_t i = 0; i < x.size(); ++i)
        worst = std::max(worst, std::fabs(double(coarse.samples[i]) - double(x[i])));
      CHECK(worst <= 0.5 / 32768);  // the nearest step; both values and their difference are exact in double
      // 16-bit audio is read and written without change.
      write_wav(folder / "b.wav", coarse);
      CHECK(read_bytes(folder / "b.wav") == read_bytes(path));
    }
}

TEST_CASE("16-bit rounding is to nearest and counts what it clips", "[training][audio]") {
  int64_t clipped = 0;
  CHECK(to_pcm16(0.0f, clipped) == 0);
  CHECK(to_pcm16(-1.0f, clipped) == -32768);
  CHECK(to_pcm16(1.49f / 32768, clipped) == 1);
  CHECK(to_pcm16(-1.51f / 32768, clipped) == -2);
  CHECK(to_pcm16(32767.0f / 32768, clipped) == 32767);
  CHECK(clipped == 0);
  CHECK(to_pcm16(1.0f, clipped) == 32767);
  CHECK(to_pcm16(-1.1f, clipped) == -32768);
  CHECK(clipped == 2);
  const TemporaryFolder folder;
  CHECK(write_wav(folder / "a.wav", {.samples = {0.5f, 2.0f, -3.0f}, .sample_rate = 16000, .channels = 1}) == 2);
  // libsndfile reads the files of the small writer in memory.
  const auto x = noise(1001, 5);
  write_bytes(folder / "m.wav", wav_bytes(x, 16000));
  write_wav(folder / "f.wav", {.samples = x, .sample_rate = 16000, .channels = 1});
  CHECK(read_audio(folder / "m.wav").samples == read_audio(folder / "f.wav").samples);
}

TEST_CASE("a WAV file of known length is one that small readers know", "[training][audio]") {
  const TemporaryFolder folder;
  const auto x = noise(2000, 7);
  const auto number = [](const std::string& bytes, size_t at, size_t n) {
    uint64_t value = 0;
    for (size_t i = n; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
    return value;
  };
  for (const int channels : {1, 2}) {
    write_wav(folder / "a.wav", {.samples = x, .sample_rate = 16000, .channels = channels});
    // RIFF, a format chunk of 16 bytes with the tag of PCM, and the samples after 44 bytes. The bytes equal those of
    // the small writer.
    CHECK(read_bytes(folder / "a.wav") == wav_bytes(x, 16000, channels));
    write_wav(folder / "f.wav", {.samples = x, .sample_rate = 16000, .channels = channels}, WavFormat::float32);
    const std::string f = read_bytes(folder / "f.wav");
    CHECK(f.substr(0, 4) == "RIFF");
    CHECK(f.substr(12, 4) == "fmt ");
    CHECK(number(f, 20, 2) == 3);
  }
  // The writer leaves room for RF64 if the length is unknown, or known to need it. Both files can be read.
  for (const std::optional<int64_t> frames : {std::optional<int64_t>(), std::optional<int64_t>(int64_t{1} << 31)}) {
    WavWriter writer(folder / "b.wav", 16000, 1, WavFormat::pcm16, frames);
    writer.write(x);
    writer.commit();
    CHECK(read_audio(folder / "b.wav").frames() == 2000);
    CHECK(read_bytes(folder / "b.wav").size() > 44 + 4000);
  }
}

TEST_CASE("a WAV file appears whole or not at all", "[training][audio]") {
  const TemporaryFolder folder;
  const auto entries = [&] {
    return std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator());
  };
  const std::string path = folder / "a.wav";
  {
    WavWriter writer(path, 16000);
    writer.write(noise(100, 1));
    CHECK_FALSE(std::filesystem::exists(path));
  }
  CHECK(entries() == 0);
  write_sine(path, 100);
  const std::string before = read_bytes(path);
  {
    WavWriter writer(path, 16000);
    const std::vector<float> nan{std::numeric_limits<float>::quiet_NaN()};
    CHECK_THROWS_WITH(writer.write(nan), Catch::Contains("not finite"));
  }
  CHECK(read_bytes(path) == before);
  CHECK(entries() == 1);
  CHECK_THROWS_WITH(WavWriter(folder.path() + "/none/a.wav", 16000), Catch::Contains("cannot create"));
  CHECK_THROWS_WITH(WavWriter(folder.path(), 16000), Catch::Contains("is a folder"));
  if (std::filesystem::exists("/dev/full")) {
    WavWriter full("/dev/full", 16000);
    full.write(noise(10, 2));
    try {
      full.commit();
      FAIL("a full disk went unnoticed");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::io);
    }
  }
  // Writing through a link replaces the target of the link.
  std::filesystem::create_symlink(path, folder / "link.wav");
  write_sine(folder / "link.wav", 200);
  CHECK(std::filesystem::is_symlink(folder.path() + "/link.wav"));
  CHECK(read_audio(path).frames() == 200);
}

TEST_CASE("damaged audio is named with its reason", "[training][audio]") {
  const TemporaryFolder folder;
  const std::string good = folder / "good.wav", path = folder / "bad.wav";
  write_sine(good, 1000);
  const std::string bytes = read_bytes(good);
  REQUIRE(complaint(good).empty());
  const auto with = [&](const std::string& content) {
    write_bytes(path, content);
    const std::string text = complaint(path);
    INFO(text);
    CHECK((text.empty() || text.find(path) != std::string::npos));
    return text;
  };
  const auto patched = [&](size_t at, const std::string& with_bytes) {
    std::string b = bytes;
    b.replace(at, with_bytes.size(), with_bytes);
    return b;
  };
  const auto header = [&](const std::string& name) { return bytes.find(name); };
  CHECK(with("").substr(0, 2) == "3 ");
  CHECK_THAT(with(""), Catch::Contains("empty: 0 bytes"));
  // A file that is cut at any place is never read as if it were complete.
  for (size_t cut = 1; cut < bytes.size(); cut += cut < 90 ? 1 : 61) {
    INFO("cut at " << cut);
    CHECK(with(bytes.substr(0, cut)).substr(0, 2) == "3 ");
  }
  CHECK_THAT(with(bytes.substr(0, bytes.size() - 2)), Catch::Contains("truncated"));
  CHECK_THAT(with("This is a text, whatever its name says.\n"), Catch::Contains("not readable as audio"));
  CHECK_THAT(with(std::string("PK\3\4") + std::string(500, 'x')), Catch::Contains("not readable as audio"));
  const size_t fmt = header("fmt ");
  CHECK_THAT(with(patched(fmt + 12, std::string("\x01\0\0\0", 4))),
             Catch::Contains("the sample rate is 1, expected 1000 to"));
  CHECK(with(patched(fmt + 12, std::string("\xff\xff\xff\x7f", 4))).substr(0, 2) == "3 ");
  CHECK(with(patched(fmt + 12, std::string(4, '\0'))).substr(0, 2) == "3 ");
  CHECK(with(patched(fmt + 10, std::string("\0\0", 2))).substr(0, 2) == "3 ");
  CHECK(with(patched(fmt + 10, std::string("\xff\xff", 2))).substr(0, 2) == "3 ");
  // A length that the writer did not know is no error.
  CHECK(with(patched(header("data") + 4, "\xff\xff\xff\xff")).empty());
  CHECK(read_audio(path).frames() == 1000);
  // Header only.
  CHECK_THAT(with(wav_bytes({}, 16000)), Catch::Contains("empty"));
  // 65 channels.
  write_bytes(path, wav_bytes(std::vector<float>(650, 0.5f), 16000, 65));
  CHECK_THAT(complaint(path), Catch::Contains("65 channels"));

  // Samples that are not finite, or too large for audio. libsndfile's float files store such values.
  for (const float x : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity(), 1e29f}) {
    write_wav(path, {.samples = std::vector<float>(100, 0.25f), .sample_rate = 16000, .channels = 2},
              WavFormat::float32);
    std::string b = read_bytes(path);
    std::memcpy(b.data() + b.size() - 4 * 13, &x, 4);
    CHECK_THAT(with(b), Catch::Contains("frame 43"));
    CHECK(with(b).substr(0, 2) == "3 ");
  }
  CHECK_THAT(complaint(folder.path()), Catch::Contains("is a folder") && Catch::StartsWith("4 "));
  CHECK_THAT(complaint(folder / "none.wav"), Catch::Contains("No such file") && Catch::StartsWith("4 "));
  CHECK_THAT(complaint("/dev/zero"), Catch::Contains("is a device"));
}

TEST_CASE("a pipe is read like a file", "[training][audio]") {
  const TemporaryFolder folder;
  write_sine(folder / "a.wav", 5000);
  const std::string bytes = read_bytes(folder / "a.wav"), pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::jthread writer([&] { write_bytes(pipe, bytes); });
  AudioReader reader(pipe);
  std::vector<float> piece, first, second;
  while (reader.read(777, piece) > 0) first.insert(first.end(), piece.begin(), piece.end());
  reader.rewind();
  while (reader.read(100, piece) > 0) second.insert(second.end(), piece.begin(), piece.end());
  CHECK(first == read_audio(folder / "a.wav").samples);
  CHECK(first == second);
}

TEST_CASE("resampling does not depend on the pieces, and keeps tones", "[training][audio]") {
  struct Rates {
    int from, to;
  };
  // Down, up, by ratios of small and of large integers, and equal.
  for (const auto [from, to] : {Rates{48000, 16000}, Rates{8000, 16000}, Rates{44100, 16000}, Rates{22050, 16000},
                                Rates{16000, 16000}, Rates{16000, 44101}}) {
    INFO(from << " to " << to);
    for (const int channels : {1, 2}) {
      const auto x = noise(static_cast<size_t>(10007 * channels), 3);
      const auto whole = resample(x, channels, from, to);
      CHECK(static_cast<int64_t>(whole.size()) == resampled_frames(10007, from, to) * channels);
      for (const size_t piece : {size_t{1}, size_t{320}, size_t{4099}}) {
        Resampler resampler(from, to, channels);
        std::vector<float> out;
        const size_t step = piece * static_cast<size_t>(channels);
        for (size_t i = 0; i < x.size(); i += step)
          resampler.process(std::span(x).subspan(i, std::min(step, x.size() - i)), out);
        resampler.finish(out);
        CHECK(out == whole);
      }
    }
    const int n = from;
    const auto tone = resample(sine(n, 1000, from), 1, from, to), expected = sine(to, 1000, to);
    double worst = 0;
    for (size_t i = 2000; i + 2000 < tone.size(); ++i)
      worst = std::max(worst, std::fabs(double(tone[i]) - double(expected[i])));
    CHECK(worst < 1e-5);  // 24 bits of a half-scale tone, away from the ends
  }
  CHECK(resample(std::vector<float>(1, 0.5f), 1, 48000, 1000).size() == 1);
  CHECK(resample({}, 1, 48000, 16000).empty());
  CHECK_THROWS_WITH(Resampler(0, 16000), Catch::Contains("the rate is 0, expected 1000 to"));
}

TEST_CASE("mono is the mean, the peak is 0.95, silence stays silence", "[training][audio]") {
  CHECK(to_mono(std::vector<float>{1, 0, 0.5f, -0.5f}, 2) == std::vector<float>{0.5f, 0});
  CHECK_THROWS_AS(to_mono(std::vector<float>(5), 2), Error);
  std::vector<float> x{0.1f, -0.25f, 0.2f};
  CHECK(normalise_peak(x) == Approx(3.8));
  CHECK(peak_of(x) == Approx(0.95));
  std::vector<float> step{1.0f / 32768, 0};  // one step of 16 bits is not silence
  CHECK(normalise_peak(step) == Approx(0.95 * 32768));
  std::vector<float> silence{0, 9e-6f, 0}, before = silence;
  CHECK(normalise_peak(silence) == 1.0f);
  CHECK(silence == before);
  std::vector<float> none;
  CHECK(normalise_peak(none) == 1.0f);
}

TEST_CASE("a file that is not audio closes no descriptor of another thread", "[training][audio]") {
  const TemporaryFolder folder;
  write_bytes(folder / "text.mp3", std::string(300, 'a'));
  std::atomic<bool> stop{false};
  std::atomic<int> lost{0};
  std::thread other([&] {
    while (!stop) {
      const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
      std::this_thread::yield();
      if (fd >= 0 && ::close(fd) != 0) ++lost;
    }
  });
  for (int i = 0; i < 2000; ++i) CHECK_THROWS_AS(AudioReader(folder / "text.mp3"), Error);
  stop = true;
  other.join();
  CHECK(lost == 0);
}
