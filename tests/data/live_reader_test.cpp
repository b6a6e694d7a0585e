// LiveReader through pipes whose every write is read by a call of its own: every format as the file, with every value
// that programs leave for an unknown length; and no wait for more than a frame.
#include <fcntl.h>
#include <sndfile.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "data/files.h"

using namespace nacre;
using namespace nacre::training;
using namespace nacre::test;

namespace {

/// A pipe in packet mode (pipe(2), O_DIRECT).
struct Packets {
  Packets() {
    int fds[2];
    REQUIRE(::pipe2(fds, O_CLOEXEC | O_DIRECT) == 0);
    from = fds[0], to = fds[1];
  }
  Packets(const Packets&) = delete;
  Packets& operator=(const Packets&) = delete;
  ~Packets() {
    ::close(from);
    end();
  }
  std::string name() const { return "/proc/self/fd/" + std::to_string(from); }
  void write(std::string_view bytes) const {
    REQUIRE(::write(to, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  void end() {
    if (to >= 0) ::close(to);
    to = -1;
  }
  int from = -1, to = -1;
};

/// What LiveReader makes of the bytes, cut into pieces.
struct Heard {
  AudioInfo info;
  std::vector<float> samples;
  std::vector<std::string> warnings;
};
Heard heard(const std::string& bytes, size_t piece, AudioOptions options = {}) {
  Packets pipe;
  std::thread writer([&] {
    // The reader drains the pipe unless it throws; then the write ends with the pipe.
    for (size_t at = 0; at < bytes.size(); at += piece)
      if (::write(pipe.to, bytes.data() + at, std::min(piece, bytes.size() - at)) < 0) break;
    pipe.end();
  });
  const auto join = [&] {
    char rest[4096];
    while (::read(pipe.from, rest, sizeof rest) > 0) {
    }
    writer.join();
  };
  Heard h;
  try {
    LiveReader reader(pipe.name(), options);
    h.info = reader.info();
    std::vector<float> some;
    while (reader.read(100, some) > 0) h.samples.insert(h.samples.end(), some.begin(), some.end());
    reader.drain();
    h.warnings = reader.warnings();
  } catch (...) {
    join();
    throw;
  }
  join();
  return h;
}

std::string sound_file(const std::string& path, int format, int channels, const std::vector<float>& x) {
  SF_INFO info{};
  info.samplerate = 22050, info.channels = channels, info.format = format;
  SNDFILE* f = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(f != nullptr);
  sf_command(f, SFC_SET_ADD_PEAK_CHUNK, nullptr, SF_FALSE);
  const auto frames = static_cast<sf_count_t>(x.size()) / channels;
  REQUIRE(sf_writef_float(f, x.data(), frames) == frames);
  sf_close(f);
  return read_bytes(path);
}

void put(std::string& bytes, size_t at, uint64_t value, size_t width, bool big) {
  REQUIRE(at + width <= bytes.size());
  for (size_t i = 0; i < width; ++i) bytes[at + (big ? width - 1 - i : i)] = static_cast<char>(value >> (8 * i));
}

std::string refusal(const std::string& bytes, AudioOptions options = {}) {
  try {
    heard(bytes, 1000, options);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::input);
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a file that arrives is read as the file", "[data][live]") {
  const TemporaryFolder folder;
  struct Case {
    int format, channels;
  };
  for (const Case& c : std::vector<Case>{{SF_FORMAT_WAV | SF_FORMAT_PCM_16, 1},
                                         {SF_FORMAT_WAV | SF_FORMAT_PCM_U8, 1},
                                         {SF_FORMAT_WAV | SF_FORMAT_PCM_24, 3},
                                         {SF_FORMAT_WAV | SF_FORMAT_PCM_32, 2},
                                         {SF_FORMAT_WAV | SF_FORMAT_FLOAT, 2},
                                         {SF_FORMAT_WAV | SF_FORMAT_DOUBLE, 1},
                                         {SF_FORMAT_WAV | SF_FORMAT_ULAW, 1},
                                         {SF_FORMAT_WAV | SF_FORMAT_ALAW, 2},
                                         {SF_FORMAT_WAVEX | SF_FORMAT_PCM_24, 2},
                                         {SF_FORMAT_WAV | SF_ENDIAN_BIG | SF_FORMAT_PCM_16, 2},
                                         {SF_FORMAT_RF64 | SF_FORMAT_PCM_16, 2},
                                         {SF_FORMAT_W64 | SF_FORMAT_PCM_16, 2},
                                         {SF_FORMAT_AIFF | SF_FORMAT_PCM_16, 2},
                                         {SF_FORMAT_AIFF | SF_FORMAT_FLOAT, 1},
                                         {SF_FORMAT_AU | SF_FORMAT_PCM_16, 2},
                                         {SF_FORMAT_AU | SF_ENDIAN_LITTLE | SF_FORMAT_FLOAT, 1},
                                         {SF_FORMAT_CAF | SF_FORMAT_PCM_16, 2}}) {
    CAPTURE(c.format, c.channels);
    const std::string path = folder / "x",
                      bytes = sound_file(path, c.format, c.channels, sine(5000 * c.channels, 440, 22050));
    const std::vector<float> expected = read_audio(path).samples;
    for (const size_t piece : {size_t{1}, size_t{7}, size_t{4096}}) {
      const Heard h = heard(bytes, piece);
      CHECK(h.info.sample_rate == 22050);
      CHECK(h.info.channels == c.channels);
      CHECK(h.info.frames_known);
      CHECK(h.info.frames == 5000);
      CHECK((h.samples == expected));
    }
    // The last frames are missing.
    CHECK_THAT(refusal(bytes.substr(0, bytes.size() - 40)),
               Catch::Contains("truncated: the header declares 5000 frames"));
    CHECK(heard(bytes.substr(0, bytes.size() - 40), 512, {.salvage = true}).warnings.size() == 1);
  }
}

TEST_CASE("a header without a length is read up to the end", "[data][live]") {
  const TemporaryFolder folder;
  struct Case {
    int format;
    std::string before;  ///< the text in front of the size, at this distance
    size_t distance, width;
    bool big;
    std::vector<uint64_t> sizes;
  };
  const std::vector<uint64_t> all{0, 0xFFFFFFFF, 0xFFFFF000, 0x7FFFFFFF, 0x7FFFF000, 0x80000000};
  const std::vector<uint64_t> long_ones{0, ~uint64_t{0}, ~uint64_t{0} >> 1};
  for (const Case& c :
       std::vector<Case>{{SF_FORMAT_WAV | SF_FORMAT_PCM_16, "data", 4, 4, false, all},
                         {SF_FORMAT_WAV | SF_FORMAT_FLOAT, "data", 4, 4, false, all},
                         {SF_FORMAT_WAVEX | SF_FORMAT_PCM_24, "data", 4, 4, false, all},
                         {SF_FORMAT_WAV | SF_ENDIAN_BIG | SF_FORMAT_PCM_16, "data", 4, 4, true, all},
                         {SF_FORMAT_RF64 | SF_FORMAT_PCM_16, "ds64", 16, 8, false, long_ones},
                         {SF_FORMAT_W64 | SF_FORMAT_PCM_16, "data", 16, 8, false, long_ones},
                         {SF_FORMAT_AIFF | SF_FORMAT_PCM_16, "SSND", 4, 4, true, {0, 0xFFFFFFFF, 0x7F000008}},
                         {SF_FORMAT_AU | SF_FORMAT_PCM_16, ".snd", 8, 4, true, {0xFFFFFFFF, 0}},
                         {SF_FORMAT_CAF | SF_FORMAT_PCM_16, "data", 4, 8, true, {~uint64_t{0}}}})
    for (const uint64_t size : c.sizes) {
      CAPTURE(c.format, size);
      const std::string path = folder / "x";
      std::string bytes = sound_file(path, c.format, 2, sine(10000, 440, 22050));
      const std::vector<float> expected = read_audio(path).samples;
      put(bytes, bytes.find(c.before) + c.distance, size, c.width, c.big);
      if (c.before == "SSND") put(bytes, bytes.find("COMM") + 10, size == 0 ? 0 : 0x3F800000, 4, true);
      const Heard h = heard(bytes, 1000);
      CHECK_FALSE(h.info.frames_known);
      CHECK(h.warnings.empty());
      CHECK((h.samples == expected));
      // Half a frame at the end is not a frame.
      CHECK(heard(bytes + "x", 1000).samples.size() == expected.size());
    }
}

TEST_CASE("a live reader gives what is there, and waits for one frame only", "[data][live]") {
  Packets pipe;
  int waits = 0;
  pipe.write(wav_header(16000, 2, WavFormat::pcm16));
  LiveReader reader(pipe.name(), {}, [&] { ++waits; });
  std::vector<float> x;
  const auto frames = [](int n) { return std::string(static_cast<size_t>(4 * n), '\1'); };
  pipe.write(frames(3));
  CHECK(reader.read(100, x) == 3);
  pipe.write(frames(2) + "\1");
  pipe.write("\1\1\1");
  CHECK(reader.read(100, x) == 2);
  CHECK(reader.read(100, x) == 1);
  pipe.write(frames(5));
  CHECK(reader.read(2, x) == 2);
  CHECK(x.size() == 4);
  CHECK(reader.read(2, x) == 2);
  CHECK(reader.read(2, x) == 1);
  CHECK(waits > 0);
  // What it throws while nothing comes ends the call.
  LiveReader stopped(
      [&] {
        pipe.write(wav_header(16000, 2, WavFormat::pcm16));
        return pipe.name();
      }(),
      {},
      [n = 0]() mutable {
        if (++n > 3) throw 17;
      });
  CHECK_THROWS_AS(stopped.read(1, x), int);
}

TEST_CASE("a WAV header is one that readers know", "[data]") {
  const TemporaryFolder folder;
  for (const WavFormat format : {WavFormat::pcm16, WavFormat::float32})
    for (const int channels : {1, 2, 6}) {
      const std::string header = wav_header(44100, channels, format, 600 / channels);
      write_bytes(folder / "x.wav", header + std::string(format == WavFormat::pcm16 ? 1200 : 2400, '\0'));
      const Audio audio = read_audio(folder / "x.wav");
      CHECK(audio.sample_rate == 44100);
      CHECK(audio.channels == channels);
      CHECK(audio.frames() == 600 / channels);
      if (format == WavFormat::float32) continue;
      // The writer's float files have an empty chunk in front of the samples.
      write_wav(folder / "x.wav",
                {.samples = std::vector<float>(600, 0.25f), .sample_rate = 44100, .channels = channels});
      CHECK(read_bytes(folder / "x.wav").substr(0, header.size()) == header);
    }
  CHECK(fits_wav(int64_t{1} << 30, 1, WavFormat::pcm16));
  CHECK_FALSE(fits_wav(int64_t{1} << 30, 1, WavFormat::float32));
  CHECK_THROWS_AS(wav_header(44100, 2, WavFormat::pcm16, int64_t{1} << 30), Error);
}
