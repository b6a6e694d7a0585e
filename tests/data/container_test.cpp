// Files that differ from their headers. They give all of their audio, a refusal or a warning, and never silently less.
#include <unistd.h>

#include <filesystem>
#include <random>

#include "data/encoded.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

struct Reading {
  std::string refused;  ///< text of the error
  int64_t frames = 0;
  std::vector<std::string> warnings;
  std::vector<float> samples;
};

Reading read(const std::string& path, AudioOptions options = {}) {
  Reading r;
  try {
    const Audio audio = read_audio(path, options, &r.warnings);
    r.frames = audio.frames(), r.samples = audio.samples;
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::input);
    r.refused = e.what();
  }
  return r;
}

int64_t open_descriptors() {
  int64_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

}  // namespace

TEST_CASE("FLAC without a length, and behind a tag, is read to its end, twice", "[training][audio]") {
  const TemporaryFolder folder;
  const std::vector<float> x = sine(20000, 300, 16000);
  write_encoded(folder / "a.flac", flac_format, x, 16000);
  const std::string flac = read_bytes(folder / "a.flac");
  const std::vector<float> expected = read_audio(folder / "a.flac").samples;
  REQUIRE(expected.size() == 20000);
  const std::string path = folder / "b.flac";
  for (const std::string& bytes :
       {without_length(flac), behind_tag(flac), behind_tag(without_length(flac)), behind_tag(behind_tag(flac))}) {
    write_bytes(path, bytes);
    AudioReader reader(path);
    std::vector<float> piece, all;
    for (int time = 0; time < 2; ++time) {
      all.clear();
      while (reader.read(777, piece) > 0) all.insert(all.end(), piece.begin(), piece.end());
      CHECK(all == expected);
      reader.rewind();
    }
    reader.seek(12345);
    REQUIRE(reader.read(100, piece) == 100);
    CHECK(std::equal(piece.begin(), piece.end(), expected.begin() + 12345));
    CHECK(reader.warnings().empty());
  }
  write_bytes(path, without_length(flac));
  CHECK_FALSE(AudioReader(path).info().frames_known);
  write_wav(folder / "w.wav", {.samples = x, .sample_rate = 16000, .channels = 1});
  write_bytes(folder / "w.wav", behind_tag(read_bytes(folder / "w.wav")));
  CHECK(read(folder / "w.wav").frames == 20000);
}

TEST_CASE("MP3 is read whole, whatever its index says", "[training][audio]") {
  const TemporaryFolder folder;
  // A quiet half and a loud half: with a variable bitrate, the frames of the first half are small.
  std::vector<float> x = sine(88200, 440, 44100, 0.001), loud = sine(88200, 3000, 44100, 0.5);
  for (size_t i = 0; i < loud.size(); ++i)
    loud[i] += 0.2f * static_cast<float>(std::sin(1e-3 * static_cast<double>(i * i % 100000)));
  x.insert(x.end(), loud.begin(), loud.end());
  const std::string path = folder / "a.mp3";
  write_encoded(path, mp3_format, x, 44100);
  const std::string mp3 = read_bytes(path);
  const int64_t whole = read(path).frames;
  CHECK(whole == 176400);  // the index has the encoder's delay and padding
  // Without the index, all frames are audio, including delay and padding (at most 1105 + 1152 samples, and 1152 of the
  // index itself).
  const size_t second = second_frame(mp3);
  REQUIRE(second > 0);
  write_bytes(folder / "b.mp3", mp3.substr(second));
  const Reading bare = read(folder / "b.mp3");
  CHECK(bare.frames >= whole);
  CHECK(bare.frames <= whole + 3 * 1152);
  CHECK_FALSE(AudioReader(folder / "b.mp3").info().frames_known);
  // Two joined files give the audio of both.
  write_bytes(folder / "c.mp3", mp3 + mp3);
  const Reading joined = read(folder / "c.mp3");
  CHECK(joined.frames >= 2 * whole);
  CHECK(joined.frames <= 2 * whole + 4 * 1152);
  // A cut file is noticed by its index.
  write_bytes(folder / "d.mp3", mp3.substr(0, mp3.size() / 2));
  CHECK_THAT(read(folder / "d.mp3").refused,
             Catch::Contains("truncated: the header declares 176400 frames") && Catch::Contains("--salvage"));
  const Reading cut = read(folder / "d.mp3", {.salvage = true});
  CHECK(cut.frames > 0);
  REQUIRE(cut.warnings.size() == 1);
  CHECK_THAT(cut.warnings[0], Catch::Contains("truncated"));
  // The tag is replaced by zeros. The reader searches for the format that the name says.
  write_bytes(folder / "e.mp3", std::string(5000, '\0') + mp3);
  CHECK(read(folder / "e.mp3").frames >= whole);
}

TEST_CASE("all links of a chained Ogg are read", "[training][audio]") {
  const TemporaryFolder folder;
  for (const int format : {vorbis_format, opus_format}) {
    write_encoded(folder / "a.ogg", format, noise(48000), 48000);
    write_encoded(folder / "b.ogg", format, noise(48000), 48000);
    const std::string a = read_bytes(folder / "a.ogg"), b = read_bytes(folder / "b.ogg");
    std::vector<float> expected = read_audio(folder / "a.ogg").samples;
    const std::vector<float> second = read_audio(folder / "b.ogg").samples;
    expected.insert(expected.end(), second.begin(), second.end());
    REQUIRE(expected.size() == 96000);
    write_bytes(folder / "c.ogg", a + b);
    AudioReader reader(folder / "c.ogg");
    CHECK(reader.info().frames == 96000);
    CHECK(read(folder / "c.ogg").samples == expected);
    // Seek into the second link, and back into the first.
    std::vector<float> piece;
    for (const int64_t at : {60000, 1000, 48000, 47999}) {
      reader.seek(at);
      REQUIRE(reader.read(4800, piece) == 4800);
      double worst = 0;
      for (size_t i = 0; i < piece.size(); ++i)
        worst = std::max(worst, std::fabs(double(piece[i]) - double(expected[static_cast<size_t>(at) + i])));
      CHECK(worst < 1e-3);  // Opus converges within the 80 ms that are decoded before
    }
    write_encoded(folder / "d.ogg", format, sine(24000, 500, 24000), 24000);
    write_bytes(folder / "e.ogg", a + read_bytes(folder / "d.ogg"));
    const Reading differing = read(folder / "e.ogg");
    CHECK_THAT(differing.refused, Catch::Contains("48000 Hz") && Catch::Contains("24000 Hz"));
    // A chain whose last link is cut.
    write_bytes(folder / "f.ogg", a + without_last_page(b));
    CHECK_THAT(read(folder / "f.ogg").refused, Catch::Contains("truncated"));
    const Reading salvaged = read(folder / "f.ogg", {.salvage = true});
    CHECK(salvaged.frames > 48000);
    CHECK(salvaged.frames < 96000);
    CHECK(salvaged.warnings.size() == 1);
  }
}

TEST_CASE("a recorder that died leaves audio", "[training][audio]") {
  const TemporaryFolder folder;
  const std::vector<float> x = sine(16000, 300, 16000);
  write_wav(folder / "a.wav", {.samples = x, .sample_rate = 16000, .channels = 1});
  write_encoded(folder / "a.aiff", aiff_format, x, 16000);
  std::string padded = read_bytes(folder / "a.wav");  // room before the data, as some recorders leave it
  padded.insert(padded.find("data"), std::string("FLLR\x10\0\0\0", 8) + std::string(16, '\0'));
  struct Kind {
    std::string whole, data_name;
  };
  for (const Kind& kind : {Kind{read_bytes(folder / "a.wav"), "data"}, Kind{padded, "data"},
                           Kind{read_bytes(folder / "a.aiff"), "SSND"}}) {
    write_bytes(folder / "b", kind.whole);
    const std::vector<float> expected = read_audio(folder / "b").samples;
    write_bytes(folder / "b", unfinished(kind.whole, kind.data_name));
    const Reading r = read(folder / "b");
    INFO(r.refused);
    CHECK(r.samples == expected);
    REQUIRE(r.warnings.size() == 1);
    CHECK_THAT(r.warnings[0], Catch::Contains("the recording was not finished"));
  }
  // No audio at all, with and without a chunk behind the data.
  write_bytes(folder / "c.wav", wav_bytes({}, 16000));
  CHECK_THAT(read(folder / "c.wav").refused, Catch::Contains("empty"));
  write_bytes(folder / "c.wav", wav_bytes({}, 16000) + std::string("LIST\4\0\0\0abcd", 12));
  CHECK_THAT(read(folder / "c.wav").refused, Catch::Contains("empty"));
}

TEST_CASE("what is cut is refused, and salvaged when asked for", "[training][audio]") {
  const TemporaryFolder folder;
  const std::vector<float> x = noise(16000);
  const auto cut = [&](int format, size_t bytes) {
    write_encoded(folder / "whole", format, x, 16000);
    const std::string all = read_bytes(folder / "whole");
    write_bytes(folder / "cut", all.substr(0, all.size() - bytes));
    const Reading refused = read(folder / "cut"), salvaged = read(folder / "cut", {.salvage = true});
    INFO(format << ": " << refused.refused);
    CHECK_THAT(refused.refused, Catch::Contains("--salvage"));
    CHECK(salvaged.refused.empty());
    CHECK(salvaged.warnings.size() == 1);
    const std::vector<float> expected = read_audio(folder / "whole").samples;
    REQUIRE(salvaged.frames > 0);
    CHECK(salvaged.frames < 16000);
    // The samples that are read equal the original.
    double worst = 0;
    for (size_t i = 0; i + 1 < salvaged.samples.size() && format != vorbis_format; ++i)
      worst = std::max(worst, std::fabs(double(salvaged.samples[i]) - double(expected[i])));
    CHECK(worst == 0);
    return salvaged.frames;
  };
  CHECK(cut(SF_FORMAT_WAV | SF_FORMAT_PCM_16, 1001) == 16000 - 501);
  CHECK(cut(aiff_format, 1001) == 16000 - 501);
  CHECK(cut(au_format, 1001) == 16000 - 501);
  CHECK(cut(SF_FORMAT_W64 | SF_FORMAT_PCM_16, 1001) == 16000 - 501);
  CHECK(cut(SF_FORMAT_RF64 | SF_FORMAT_PCM_16, 1001) == 16000 - 501);
  CHECK(cut(SF_FORMAT_CAF | SF_FORMAT_PCM_16, 1001) == 16000 - 501);
  CHECK(cut(SF_FORMAT_NIST | SF_FORMAT_PCM_16, 1001) == 16000 - 501);
  cut(flac_format, 5000);
  cut(vorbis_format, 100);
  // Damage in the middle of FLAC: the audio before it is read.
  write_encoded(folder / "whole", flac_format, x, 16000);
  std::string damaged = read_bytes(folder / "whole");
  std::fill_n(damaged.begin() + static_cast<std::ptrdiff_t>(damaged.size() * 3 / 4), 300, '\x55');
  write_bytes(folder / "damaged", damaged);
  CHECK_FALSE(read(folder / "damaged").refused.empty());
  const Reading front = read(folder / "damaged", {.salvage = true});
  CHECK(front.refused.empty());
  CHECK(front.warnings.size() == 1);
  CHECK(front.frames > 0);
}

TEST_CASE("a reader that came to the end can go back", "[training][audio]") {
  const TemporaryFolder folder;
  const std::vector<float> x = noise(48000);
  for (const int format :
       {SF_FORMAT_WAV | SF_FORMAT_PCM_16, aiff_format, flac_format, vorbis_format, opus_format, mp3_format}) {
    write_encoded(folder / "a", format, x, 48000);
    const std::vector<float> whole = read_audio(folder / "a").samples;
    AudioReader reader(folder / "a");
    std::vector<float> piece;
    while (reader.read(1000, piece) > 0) {
    }
    for (const int64_t at : {40000, 20, 0}) {
      INFO(format << " at " << at);
      reader.seek(at);
      REQUIRE(reader.read(500, piece) == 500);
      double worst = 0;
      for (size_t i = 0; i < piece.size(); ++i)
        worst = std::max(worst, std::fabs(double(piece[i]) - double(whole[static_cast<size_t>(at) + i])));
      CHECK(worst < 1e-3);  // Opus is near, the others are equal or nearly so
    }
    reader.rewind();
    REQUIRE(reader.read(500, piece) == 500);
    CHECK(std::equal(piece.begin(), piece.end(), whole.begin()));
  }
}

TEST_CASE("what is salvaged of a damaged file is right, and the same however it is read", "[training][audio]") {
  const TemporaryFolder folder;
  write_encoded(folder / "whole", flac_format, noise(100000), 16000);
  const std::vector<float> whole = read_audio(folder / "whole").samples;
  std::string bytes = read_bytes(folder / "whole");
  for (const double at : {0.3, 0.55, 0.9}) {
    std::string damaged = bytes;
    char& c = damaged[static_cast<size_t>(at * static_cast<double>(bytes.size()))];
    c = static_cast<char>(c ^ 0x10);
    write_bytes(folder / "damaged", damaged);
    std::vector<float> first;
    for (const int64_t step : {1, 777, 4096, 65536}) {
      AudioReader reader(folder / "damaged", {.salvage = true});
      std::vector<float> piece, all;
      while (reader.read(step, piece) > 0) all.insert(all.end(), piece.begin(), piece.end());
      REQUIRE(all.size() <= whole.size());
      CHECK(std::equal(all.begin(), all.end(), whole.begin()));
      if (step == 1) first = all;
      CHECK(all == first);
    }
    CHECK(first.size() > 0);
  }
}

TEST_CASE("damaged bytes are read or refused, whatever they are", "[training][audio]") {
  const TemporaryFolder folder;
  std::mt19937_64 rng(seed());
  const std::vector<float> x = noise(4000);
  const auto below = [&](size_t n) { return static_cast<size_t>(rng() % n); };
  for (const int format : {SF_FORMAT_WAV | SF_FORMAT_PCM_16, aiff_format, au_format, SF_FORMAT_CAF | SF_FORMAT_PCM_16,
                           SF_FORMAT_W64 | SF_FORMAT_PCM_16, SF_FORMAT_RF64 | SF_FORMAT_PCM_16,
                           SF_FORMAT_NIST | SF_FORMAT_PCM_16, flac_format, vorbis_format, opus_format, mp3_format}) {
    write_encoded(folder / "whole", format, x, 48000);
    const std::string whole = read_bytes(folder / "whole");
    for (int round = 0; round < 60; ++round) {
      std::string bytes = whole;
      for (size_t changes = 1 + below(4); changes-- > 0;) {
        const size_t head = std::min<size_t>(bytes.size(), 100);  // formats keep important fields there
        switch (below(5)) {
          case 0:
            bytes[below(bytes.size())] = static_cast<char>(rng());
            break;
          case 1:
            bytes[below(head)] = static_cast<char>(rng());
            break;
          case 2:
            bytes[below(head)] = rng() % 2 == 0 ? '\xff' : '\0';
            break;
          case 3:
            bytes.resize(1 + below(bytes.size()));
            break;
          case 4:
            bytes.insert(below(bytes.size()), whole, below(whole.size()), below(400));
            break;
        }
      }
      write_bytes(folder / "damaged", bytes);
      for (const bool salvage : {false, true}) try {
          AudioReader reader(folder / "damaged", {.salvage = salvage});
          std::vector<float> piece;
          // An upper limit for a few kilobytes. A decoder that exceeds it does not end.
          int64_t frames = 0;
          while (const int64_t n = reader.read(4096, piece)) REQUIRE((frames += n) < int64_t{1} << 24);
          reader.seek(frames / 2);
          reader.read(100, piece);
        } catch (const Error& e) {
          REQUIRE(e.kind() == ErrorKind::input);
        }
    }
  }
}

TEST_CASE("what only looks like audio says what it is", "[training][audio]") {
  const TemporaryFolder folder;
  write_bytes(folder / "a.wav",
              "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, '0') + "\nsize 64044\n");
  CHECK_THAT(read(folder / "a.wav").refused, Catch::Contains("git lfs pull"));
}

TEST_CASE("descriptors do not grow with files read or refused", "[training][audio]") {
  const TemporaryFolder folder;
  write_sine(folder / "good.wav", 400);
  write_encoded(folder / "good.mp3", mp3_format, sine(4000, 300, 16000), 16000);
  write_bytes(folder / "bad.wav", std::string(300, 'a'));
  write_bytes(folder / "bad.mp3", std::string(300, 'a'));
  write_bytes(folder / "cut.wav", read_bytes(folder / "good.wav").substr(0, 500));
  if (!std::filesystem::is_directory("/proc/self/fd")) {
    WARN("open descriptors cannot be counted here");
    return;
  }
  const int64_t before = open_descriptors();
  for (int i = 0; i < 100; ++i) {
    CHECK(read_audio(folder / "good.wav").frames() == 400);
    CHECK(read_audio(folder / "good.mp3").frames() > 0);
    for (const char* bad : {"bad.wav", "bad.mp3", "cut.wav"}) CHECK_THROWS_AS(AudioReader(folder / bad), Error);
  }
  CHECK(open_descriptors() == before);
}
