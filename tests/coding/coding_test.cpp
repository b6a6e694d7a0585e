// FileCodec compared with the codec itself: each channel is coded from its own samples, at the model's rate, with one
// gain for all channels, and is restored to its place.
#include "nacre/coding/codec_files.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "data/files.h"
#include "harness.h"
#include "nacre/codec/windowed.h"
#include "nacre/random.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

CodecConfig small() {
  CodecConfig c;
  c.encoder_dim = 4, c.decoder_dim = 8, c.dilations = {1};
  c.encoder_rates = {8}, c.decoder_rates = {8};
  c.n_codebooks = 2, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

/// Channels with different sounds. The first has its peak, `peak`, at one sample; the others are below it.
std::vector<std::vector<float>> channels_of(size_t channels, int64_t frames, float peak) {
  std::vector<std::vector<float>> all;
  for (size_t c = 0; c < channels; ++c) {
    const Philox draw{31, c};
    std::vector<float> x = sine(frames, 200 + 370 * static_cast<double>(c), 16000, 0.2 / static_cast<double>(c + 1));
    for (size_t t = 0; t < x.size(); ++t) x[t] += static_cast<float>(0.05 * (draw.uniform(t) - 0.5));
    all.push_back(x);
  }
  all[0][static_cast<size_t>(frames / 2)] = peak;
  return all;
}

std::vector<float> interleaved(const std::vector<std::vector<float>>& channels) {
  std::vector<float> out;
  for (size_t t = 0; t < channels[0].size(); ++t)
    for (const std::vector<float>& c : channels) out.push_back(c[t]);
  return out;
}

std::vector<float> channel(const Audio& audio, int of) {
  std::vector<float> out;
  for (size_t t = static_cast<size_t>(of); t < audio.samples.size(); t += static_cast<size_t>(audio.channels))
    out.push_back(audio.samples[t]);
  return out;
}

/// Codes of one channel, and their audio: a whole number of frames.
struct Coded {
  std::vector<int32_t> codes;
  std::vector<float> samples;
};
Coded coded(Codec& codec, const std::vector<float>& x) {
  Coded out;
  WindowedEncoder encoder(codec,
                          [&](View<const int32_t> c, float) { out.codes.insert(out.codes.end(), c.begin(), c.end()); });
  encoder.push(x);
  encoder.finish();
  WindowedDecoder decoder(codec,
                          [&](std::span<const float> y) { out.samples.insert(out.samples.end(), y.begin(), y.end()); });
  decoder.push(out.codes);
  decoder.finish();
  return out;
}

}  // namespace

TEST_CASE("coding: every channel of a file is coded from its own samples", "[training][codec_files]") {
  Context ctx({.threads = 1});
  Codec codec(ctx, small());
  codec.parameters().initialise(ctx, 1);
  FileCodec files(codec);
  const TemporaryFolder folder;
  // 40000 frames are more than one piece of a file and more than one packet of a stream.
  for (const auto& [count, frames] : {std::pair<size_t, int64_t>{1, 900}, {2, 1001}, {3, 40000}, {5, 333}}) {
    INFO(count << " channels, " << frames << " frames");
    const std::vector<std::vector<float>> x = channels_of(count, frames, 0.475f);
    write_wav(folder / "in.wav", {.samples = interleaved(x), .sample_rate = 16000, .channels = static_cast<int>(count)},
              WavFormat::float32);
    files.encode(folder / "in.wav", folder / "in.nacre");
    files.decode(folder / "in.nacre", folder / "out.wav", {.format = WavFormat::float32});
    const Audio out = read_audio(folder / "out.wav");
    REQUIRE(out.channels == static_cast<int>(count));
    REQUIRE(out.frames() == frames);

    std::ifstream stream(folder / "in.nacre", std::ios::binary);
    StreamReader reader(
        [&](std::span<std::byte> to) {
          stream.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
          return static_cast<size_t>(stream.gcount());
        },
        "in.nacre");
    std::vector<std::vector<int32_t>> codes(count);
    while (const std::optional<StreamPacket> packet = reader.next())
      codes[packet->group].insert(codes[packet->group].end(), packet->codes.begin(), packet->codes.end());

    // The largest sample of all channels is scaled to 0.95. The factor is exactly two.
    CHECK(reader.header().gain == 0.5f);
    for (size_t c = 0; c < count; ++c) {
      INFO("channel " << c);
      std::vector<float> loud = x[c];
      for (float& v : loud) v *= 2;
      Coded expected = coded(codec, loud);
      CHECK((codes[c] == expected.codes));
      expected.samples.resize(x[c].size());
      for (float& v : expected.samples) v *= 0.5f;
      CHECK((channel(out, static_cast<int>(c)) == expected.samples));
      for (size_t other = 0; other < c; ++other) CHECK((codes[c] != codes[other]));
    }
  }
}

namespace {

/// The codes of a stream, channel by channel.
struct StreamCodes {
  StreamHeader header;
  std::vector<std::vector<int32_t>> channels;
};
StreamCodes read_codes(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  StreamReader reader(
      [&](std::span<std::byte> to) {
        stream.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
        return static_cast<size_t>(stream.gcount());
      },
      path);
  StreamCodes out{reader.header(), std::vector<std::vector<int32_t>>(reader.header().channels)};
  while (const std::optional<StreamPacket> packet = reader.next()) {
    std::vector<int32_t>& of = out.channels[packet->group];
    of.insert(of.end(), packet->codes.begin(), packet->codes.end());
  }
  return out;
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return std::to_string(e.exit_code()) + " " + e.what();
  }
  return "none";
}

}  // namespace

TEST_CASE("coding: streams of the model's first codebooks", "[training][codec_files][codebooks]") {
  Context ctx({.threads = 1});
  CodecConfig config = small();
  config.n_codebooks = 4;
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, 1);
  FileCodec files(codec);
  const TemporaryFolder folder;
  // More than one packet of each channel.
  const std::vector<std::vector<float>> x = channels_of(2, 40000, 0.475f);
  write_wav(folder / "in.wav", {.samples = interleaved(x), .sample_rate = 16000, .channels = 2}, WavFormat::float32);
  CHECK(files.encode(folder / "in.wav", folder / "all.nacre").codebooks == 4);
  const StreamCodes all = read_codes(folder / "all.nacre");
  REQUIRE(all.header.codebooks == 4);
  const auto decoded = [&](const std::string& stream, DecodeOptions options, int64_t used) {
    options.format = WavFormat::float32;
    const FileReport report = files.decode(folder / stream, folder / "out.wav", options);
    CHECK(report.codebooks == used);
    return read_audio(folder / "out.wav").samples;
  };
  std::vector<float> before;
  for (int64_t n = 1; n <= 4; ++n) {
    INFO(n << " codebooks");
    const std::string name = std::to_string(n) + ".nacre";
    const FileReport report = files.encode(folder / "in.wav", folder / name, {}, {.codebooks = n});
    CHECK(report.codebooks == n);
    const StreamCodes few = read_codes(folder / name);
    CHECK(few.header.codebooks == static_cast<uint32_t>(n));
    CHECK(report.bytes == stream_bytes(few.header, 5000));
    StreamHeader header = stream_header(config, codec.identity(), 16000, 2, n);
    header.gain = few.header.gain, header.samples = few.header.samples, header.packet_frames = few.header.packet_frames;
    CHECK(header == few.header);
    for (size_t c = 0; c < 2; ++c) {
      std::vector<int32_t> first;
      for (size_t i = 0; i < all.channels[c].size(); ++i)
        if (i % 4 < static_cast<size_t>(n)) first.push_back(all.channels[c][i]);
      CHECK((few.channels[c] == first));
    }
    // The same samples from a stream of n codebooks and from the first n of a stream that has more.
    const std::vector<float> y = decoded(name, {}, n);
    CHECK((decoded("all.nacre", {.codebooks = n}, n) == y));
    CHECK((decoded("all.nacre", {.max_codebooks = n}, n) == y));
    CHECK((decoded(name, {.max_codebooks = 4}, n) == y));
    CHECK((decoded(name, {.codebooks = n}, n) == y));
    CHECK((y != before));
    before = y;
  }
  CHECK((decoded("all.nacre", {}, 4) == before));

  std::filesystem::remove(folder / "out.wav");
  const auto refused = [&](const std::string& stream, const DecodeOptions& options) {
    const std::string said = error_of([&] { files.decode(folder / stream, folder / "out.wav", options); });
    CHECK_FALSE(std::filesystem::exists(folder / "out.wav"));
    return said;
  };
  CHECK(refused("2.nacre", {.codebooks = 3}) ==
        "2 " + (folder / "2.nacre") + ": has 2 codebooks, 3 are to be decoded; expected 1 to 2");
  CHECK(refused("1.nacre", {.codebooks = 2}) ==
        "2 " + (folder / "1.nacre") + ": has 1 codebook, 2 are to be decoded; expected 1");
  CHECK(error_of([&] { files.encode(folder / "in.wav", folder / "5.nacre", {}, {.codebooks = 5}); }) ==
        "2 encode: codebooks is 5, expected 1 to 4, or 0 for all");
  CHECK_FALSE(std::filesystem::exists(folder / "5.nacre"));

  // A stream of more codebooks than the model has, in the model's name.
  StreamHeader header = stream_header(config, codec.identity(), 16000, 1);
  header.codebooks = 5;
  std::ofstream made(folder / "five.nacre", std::ios::binary);
  StreamWriter writer(header, [&](std::span<const std::byte> bytes) {
    made.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  });
  writer.write(0, std::vector<int32_t>(5 * 10, 3));
  writer.finish(80);
  made.close();
  CHECK(refused("five.nacre", {}) ==
        "3 " + (folder / "five.nacre") + ": the number of codebooks is 5, expected 1 to 4, the model's");
}

TEST_CASE("coding: channels of another rate are resampled one by one, there and back", "[training][codec_files]") {
  Context ctx({.threads = 1});
  Codec codec(ctx, small());
  codec.parameters().initialise(ctx, 1);
  FileCodec files(codec);
  const TemporaryFolder folder;
  for (const int rate : {8000, 44100}) {
    INFO(rate << " Hz");
    const std::vector<std::vector<float>> x = channels_of(2, 5000, 0.475f);
    write_wav(folder / "in.wav", {.samples = interleaved(x), .sample_rate = rate, .channels = 2}, WavFormat::float32);
    files.encode(folder / "in.wav", folder / "in.nacre");
    files.decode(folder / "in.nacre", folder / "out.wav", {.format = WavFormat::float32});
    files.decode(folder / "in.nacre", folder / "low.wav", {.format = WavFormat::float32, .model_rate = true});
    const Audio out = read_audio(folder / "out.wav"), low = read_audio(folder / "low.wav");
    REQUIRE(out.sample_rate == rate);
    REQUIRE(low.sample_rate == 16000);
    for (int c = 0; c < 2; ++c) {
      INFO("channel " << c);
      std::vector<float> loud = x[static_cast<size_t>(c)];
      for (float& v : loud) v *= 2;
      const std::vector<float> in = resample(loud, 1, rate, 16000);
      std::vector<float> at_model = coded(codec, in).samples, back = resample(at_model, 1, 16000, rate);
      REQUIRE(back.size() >= 5000);
      at_model.resize(in.size()), back.resize(5000);
      for (std::vector<float>* v : {&at_model, &back})
        for (float& y : *v) y *= 0.5f;
      CHECK((channel(low, c) == at_model));
      CHECK((channel(out, c) == back));
      CHECK((channel(out, 0) != channel(out, 1)));
    }
  }
}
