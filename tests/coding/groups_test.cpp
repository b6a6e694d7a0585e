// Files through codecs of two channels, with segments and without: FileCodec compared with the codec itself, group by
// group. Parts, lost packets and what is short at the end of a signal.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numbers>

#include "coding/groups.h"
#include "data/files.h"
#include "harness.h"
#include "nacre/codec/windowed.h"
#include "nacre/coding/codec_files.h"
#include "nacre/files/crc32c.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// Segments of 0.1 s of 100 frames, and the next one after 99.
constexpr int64_t segment = 1600, stride = 1584;

CodecConfig stereo(bool segments, bool scale = true, int64_t distance = stride) {
  CodecConfig c;
  c.network = "encodec", c.sample_rate = 16000, c.audio_channels = 2;
  c.encoder_dim = 2, c.encoder_rates = {4, 4}, c.decoder_dim = 8, c.decoder_rates = {4, 4}, c.dilations = {1};
  c.latent_dim = 8, c.kernel_size = 3, c.activation = ActivationKind::elu, c.output_tanh = false;
  c.padding = Padding::reflect;
  c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean, c.n_codebooks = 2, c.codebook_size = 16;
  if (segments) {
    c.norm = Norm::group, c.lstm_layers = 1;
    c.segment = segment, c.segment_stride = distance, c.segment_scale = scale;
  }
  return c;
}

struct Fixture {
  explicit Fixture(const CodecConfig& c) : codec(made(ctx, c)), files(codec) {}
  static Codec made(Context& ctx, const CodecConfig& c) {
    Codec codec(ctx, c);
    codec.parameters().initialise(ctx, 3);
    return codec;
  }
  Context ctx{{.threads = 1}};
  Codec codec;
  FileCodec files;
  TemporaryFolder folder;

  void write(std::span<const float> x, size_t channels, int rate = 16000) {
    write_wav(folder / "in.wav",
              {.samples = {x.begin(), x.end()}, .sample_rate = rate, .channels = static_cast<int>(channels)},
              WavFormat::float32);
  }
  FileReport encode() { return files.encode(folder / "in.wav", folder / "s.nacre", {}, {.gain = 1}); }
  std::vector<float> decoded(DecodeOptions options = {}, FileReport* report = nullptr) {
    options.format = WavFormat::float32;
    const FileReport r = files.decode(folder / "s.nacre", folder / "out.wav", options);
    if (report != nullptr) *report = r;
    if (r.samples == 0) return {};
    const Audio out = read_audio(folder / "out.wav");
    CHECK(out.frames() == r.samples);
    return out.samples;
  }
  std::string bytes() const {
    std::ifstream file(folder / "s.nacre", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void spill(const std::string& bytes) const { std::ofstream(folder / "s.nacre", std::ios::binary) << bytes; }
};

/// Channels of different sounds; every second segment is soft.
std::vector<float> sounds(int64_t frames, size_t channels, int rate = 16000) {
  std::vector<float> out(static_cast<size_t>(frames) * channels);
  for (size_t c = 0; c < channels; ++c) {
    const std::vector<float> x = sine(frames, 200 + 370 * static_cast<double>(c), rate, 0.3);
    for (size_t t = 0; t < x.size(); ++t) out[t * channels + c] = x[t] * (t / 1600 % 2 == 0 ? 1.0f : 0.02f);
  }
  return out;
}

/// Codes and scales of one signal of two channels, and the samples that they give.
struct Coded {
  std::vector<int32_t> codes;
  std::vector<float> scales, samples;
};
Coded coded(Codec& codec, std::span<const float> x) {
  Coded out;
  std::vector<std::vector<int32_t>> parts;
  WindowedEncoder encoder(codec, [&](View<const int32_t> c, float scale) {
    parts.emplace_back(c.begin(), c.end());
    out.codes.insert(out.codes.end(), c.begin(), c.end());
    if (codec.config().segmented()) out.scales.push_back(scale);
  });
  encoder.push(x);
  encoder.finish();
  WindowedDecoder decoder(codec,
                          [&](std::span<const float> y) { out.samples.insert(out.samples.end(), y.begin(), y.end()); });
  for (size_t i = 0; i < parts.size(); ++i) decoder.push(parts[i], out.scales.empty() ? 1 : out.scales[i]);
  decoder.finish();
  return out;
}

/// The two channels of a group: those of the file, or the last one twice.
std::vector<float> group_signals(std::span<const float> x, size_t channels, size_t group) {
  std::vector<float> out;
  for (size_t t = 0; t < x.size() / channels; ++t) {
    out.push_back(x[t * channels + 2 * group]);
    out.push_back(x[t * channels + std::min(2 * group + 1, channels - 1)]);
  }
  return out;
}

}  // namespace

TEST_CASE("coding: groups of two channels are coded as the codec codes them", "[training][codec_files][groups]") {
  for (const auto& [segments, scale] : {std::pair{true, true}, {true, false}, {false, false}}) {
    Fixture f(stereo(segments, scale));
    for (const size_t channels : {1, 2, 5})
      // Ends in the first segment, at its end, in the part of two segments, and behind several.
      for (const int64_t frames : {1, 40, 1584, 1585, 1590, 1600, 1601, 3 * 1584 + 9, 9000}) {
        if (channels == 5 && frames % 2 == 1) continue;
        INFO("segments " << segments << ", scale " << scale << ", " << channels << " channels, " << frames);
        const std::vector<float> x = sounds(frames, channels);
        f.write(x, channels);
        f.encode();
        const size_t groups = (channels + 1) / 2;
        const std::string bytes = f.bytes();
        StreamReader reader([&, at = size_t{0}](std::span<std::byte> to) mutable {
          const size_t n = std::min(to.size(), bytes.size() - at);
          std::memcpy(to.data(), bytes.data() + at, n);
          at += n;
          return n;
        });
        CHECK(reader.header().joint == 2);
        CHECK(reader.header().groups() == groups);
        CHECK(reader.header().segment == (segments ? segment : 0));
        CHECK(reader.header().scaled == scale);
        std::vector<Coded> found(groups);
        while (const std::optional<StreamPacket> p = reader.next()) {
          found[p->group].codes.insert(found[p->group].codes.end(), p->codes.begin(), p->codes.end());
          if (segments) found[p->group].scales.push_back(p->scale);
        }
        CHECK(stream_bytes(reader.header(), reader.frames()) == bytes.size());
        const std::vector<float> out = f.decoded();
        REQUIRE(out.size() == x.size());
        for (size_t g = 0; g < groups; ++g) {
          INFO("group " << g);
          const Coded expected = coded(f.codec, group_signals(x, channels, g));
          CHECK((found[g].codes == expected.codes));
          CHECK((found[g].scales == expected.scales));
          const bool both = 2 * g + 1 < channels;
          int64_t wrong = 0;
          for (size_t t = 0; t < static_cast<size_t>(frames); ++t) {
            const float left = expected.samples[2 * t], right = expected.samples[2 * t + 1];
            if (both)
              wrong += out[t * channels + 2 * g] != left || out[t * channels + 2 * g + 1] != right ? 1 : 0;
            else
              wrong += out[t * channels + 2 * g] != 0.5f * (left + right) ? 1 : 0;
          }
          CHECK(wrong == 0);
        }
      }
  }
}

TEST_CASE("coding: silence of a codec with scales", "[training][codec_files][groups]") {
  Fixture f(stereo(true));
  f.write(std::vector<float>(2 * 4000), 2);
  f.files.encode(f.folder / "in.wav", f.folder / "s.nacre");
  FileReport report;
  const std::vector<float> out = f.decoded({}, &report);
  REQUIRE(report.samples == 4000);
  CHECK(peak_of(out) < 0x1p-40f);
}

TEST_CASE("coding: a part of a stream of segments has the samples of the whole",
          "[training][codec_files][groups][section]") {
  for (const int rate : {16000, 44100})
    // Segments of 1600 samples; with the second distance, the last but one may have fewer frames.
    for (const int64_t distance : {stride, int64_t{1200}, int64_t{0}})
      for (const size_t channels : {1, 2, 3}) {
        const bool segments = distance > 0;
        Fixture f(stereo(segments, segments, distance));
        for (const int64_t length : {900, 1590, 2 * 1584 + 9, 3 * 1200 + 200, 20000}) {
          INFO(rate << " Hz, distance " << distance << ", " << channels << " channels, " << length << " samples");
          const int64_t frames = length * rate / 16000;
          f.write(sounds(frames, channels, rate), channels, rate);
          f.encode();
          const std::vector<float> whole = f.decoded();
          const double end = static_cast<double>(frames) / rate;
          for (const auto& [from, to] :
               std::vector<std::pair<double, std::optional<double>>>{{0, {}},
                                                                     {0, 0.3 * end},
                                                                     {0.3 * end, 0.31 * end},
                                                                     {0.5 * end, {}},
                                                                     {std::max(0.0, end - 0.01), {}},
                                                                     {0.099, 0.0995},
                                                                     {0.9 * end, end}}) {
            if (from >= end || (to && *to > end)) continue;
            INFO("from " << from << " to " << (to ? *to : -1));
            const std::vector<float> part = f.decoded({.from = from, .to = to});
            const auto first = static_cast<size_t>(std::llround(from * rate)),
                       last = to ? static_cast<size_t>(std::llround(*to * rate)) : static_cast<size_t>(frames);
            REQUIRE(part.size() == (last - first) * channels);
            float most = 0;
            for (size_t i = 0; i < part.size(); ++i)
              most = std::max(most, std::fabs(part[i] - whole[first * channels + i]));
            // A resampler that began elsewhere differs in the last bits of its sums, and windows of codecs without
            // segments may have another length.
            CHECK(most <= (segments && rate == 16000 ? 0 : 1e-5f) * std::max(1.0f, peak_of(whole)));
          }
        }
      }
}

TEST_CASE("coding: only the segments around a part are read", "[training][codec_files][groups][section]") {
  Fixture f(stereo(true));
  f.write(sounds(100 * 1584, 2), 2);
  f.encode();
  FileReport report;
  const std::vector<float> part = f.decoded({.from = 5.05, .to = 5.06}, &report);
  // Two segments before that of the part; a packet has 100 frames of two codes of four bits, a scale, head and CRC.
  CHECK(report.bytes <= 76 + 4 * 120);
  CHECK(peak_of(part) > 0);
}

TEST_CASE("coding: lost segments are concealed", "[training][codec_files][groups][conceal]") {
  for (const size_t channels : {2, 3}) {
    Fixture f(stereo(true));
    const int64_t frames = 8 * stride + 700;
    f.write(sounds(frames, channels), channels);
    f.encode();
    const std::string good = f.bytes();
    FileReport report;
    const std::vector<float> whole = f.decoded();
    CHECK((f.decoded({.conceal = true}, &report) == whole));
    CHECK(report.lost.empty());
    const size_t groups = (channels + 1) / 2, packet = 12 + 4 + 100 + 4;
    for (const size_t lost : {0, 3, 7, 8}) {  // of 9 segments; of the last group
      INFO(channels << " channels, segment " << lost);
      std::string bad = good;
      // The last one has 44 frames.
      char& at = bad[76 + lost * groups * packet + (groups - 1) * (lost == 8 ? packet - 56 : packet) + 20];
      at = static_cast<char>(at ^ 4);
      f.spill(bad);
      CHECK_THROWS_WITH(f.decoded(), Catch::Contains("does not match; --conceal decodes the rest"));
      const std::vector<float> y = f.decoded({.conceal = true}, &report);
      REQUIRE(y.size() == whole.size());
      const double begin = static_cast<double>(lost) * stride / 16000,
                   end = std::min(begin + stride / 16000.0, static_cast<double>(frames) / 16000);
      REQUIRE(report.lost.size() == 1);
      CHECK(report.lost[0].first == Approx(begin));
      CHECK(report.lost[0].second == Approx(end).margin(0.002));
      // Channels of other groups, and time that the segment has no part of, are as in the whole. The gain falls within
      // 960 samples, and rises within 320.
      const size_t first = lost * stride, last = std::min<size_t>(first + segment + 320, static_cast<size_t>(frames));
      int64_t changed = 0, loud = 0;
      for (size_t t = 0; t < static_cast<size_t>(frames); ++t)
        for (size_t c = 0; c < channels; ++c) {
          const float before = whole[t * channels + c], now = y[t * channels + c];
          const bool of_group = c / 2 == groups - 1;
          if ((!of_group || t < first || t >= last) && before != now) ++changed;
          if (of_group && t >= first + 960 && t < first + stride && now != 0) ++loud;
        }
      CHECK(changed == 0);
      CHECK(loud == 0);
      // The fall of what the last frame and the last scale in front of the loss sound like.
      if (channels == 2 && lost > 0) {
        const Coded all = coded(f.codec, sounds(frames, 2));
        std::vector<float> sound;
        WindowedDecoder decoder(f.codec,
                                [&](std::span<const float> x) { sound.insert(sound.end(), x.begin(), x.end()); });
        for (size_t i = 0; i <= lost; ++i) {
          const auto from = all.codes.begin() + static_cast<std::ptrdiff_t>(i * 200);
          std::vector<int32_t> codes(from, from + (i == 8 ? 2 * 44 : 200));
          if (i == lost)
            for (size_t k = 0; k < codes.size(); ++k) codes[k] = all.codes[i * 200 - 2 + k % 2];
          decoder.push(codes, all.scales[i == lost ? i - 1 : i]);
        }
        decoder.finish();
        double most = 0;
        for (size_t t = 0; t < 600; ++t) {
          const double gain = 0.5 + 0.5 * std::cos(std::numbers::pi * static_cast<double>(t + 1) / 960);
          for (size_t i = 2 * (first + t); i < 2 * (first + t) + 2; ++i)
            most = std::max(most, std::fabs(y[i] - gain * static_cast<double>(sound[i])));
        }
        // The gain is rounded to a float, and its product with the sample as well.
        CHECK(most <= 4 * ulp * static_cast<double>(peak_of(sound)));
      }
      for (const auto& [from, to] : std::vector<std::pair<double, double>>{{0.05, 0.12}, {0.31, 0.36}, {0.4, 0.83}}) {
        const std::vector<float> part = f.decoded({.from = from, .to = to, .conceal = true});
        const auto offset = static_cast<std::ptrdiff_t>(channels) * std::llround(from * 16000);
        CHECK((part ==
               std::vector<float>(y.begin() + offset, y.begin() + offset + static_cast<std::ptrdiff_t>(part.size()))));
      }
    }
    // Cut off within a packet: the whole segments are there.
    f.spill(good.substr(0, 76 + 5 * groups * packet + 10));
    const std::vector<float> cut = f.decoded({.conceal = true}, &report);
    CHECK(report.samples == 4 * stride + segment);
    CHECK((std::vector<float>(cut.begin(), cut.begin() + static_cast<std::ptrdiff_t>(5 * stride * channels)) ==
           std::vector<float>(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(5 * stride * channels))));
    REQUIRE(report.warnings.size() == 1);
  }
}

TEST_CASE("coding: a stream of other channels or segments than the model's is refused",
          "[training][codec_files][groups]") {
  Fixture f(stereo(true));
  f.write(sounds(2000, 2), 2);
  f.encode();
  const std::string good = f.bytes();
  const auto error = [&](auto&& change) -> std::string {
    std::string bad = good;
    change(bad);
    // The header alone is read: its CRC is corrected.
    const uint32_t crc = crc32c(std::as_bytes(std::span(bad).first(72)));
    for (size_t i = 0; i < 4; ++i) bad[72 + i] = static_cast<char>(crc >> (8 * i) & 0xff);
    f.spill(bad);
    try {
      f.decoded();
      return "none";
    } catch (const Error& e) {
      return std::to_string(e.exit_code()) + " " + e.what();
    }
  };
  const std::string name = "3 " + (f.folder / "s.nacre") + ": ";
  CHECK(error([](std::string& b) { b[56] = 1; }) ==
        name + "the number of channels coded together is 1, the model's is 2");
  CHECK(error([](std::string& b) { --b[60]; }) == name + "the length of a segment is 1599, the model's is 1600");
  CHECK(error([](std::string& b) { ++b[64]; }) == name + "the distance of segments is 1585, the model's is 1584");
  CHECK(error([](std::string& b) { b[58] = 0; }) == name + "has no scales of segments, the model has some");
}

TEST_CASE("coding: channels of a group that the file does not have", "[training][groups]") {
  const StreamHeader h{.channels = 5, .joint = 4, .gain = 2};
  CHECK(group_of(h, 0).count == 4);
  CHECK(group_of(h, 1).first == 4);
  CHECK(group_of(h, 1).count == 1);
  const std::vector<float> x{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  CHECK((signals_of(x, 5, group_of(h, 0), 4, 0.5f) == std::vector<float>{0.5f, 1, 1.5f, 2, 3, 3.5f, 4, 4.5f}));
  CHECK((signals_of(x, 5, group_of(h, 1), 4, 1) == std::vector<float>{5, 5, 5, 5, 10, 10, 10, 10}));
  std::vector<float> kept;
  const std::vector<float> y{1, 2, 3, 7, 5, 6, 8, 10};
  const std::span<const float> mixed = channels_of(y, 4, 2, kept);
  CHECK((std::vector<float>(mixed.begin(), mixed.end()) == std::vector<float>{1, 4, 5, 8}));
  CHECK(channels_of(y, 4, 4, kept).data() == y.data());
  Interleaver out(h);
  out.group(0) = {1, 2, 3, 4, 5, 6, 7, 8};
  out.group(1) = {9};
  const auto taken = [](std::span<const float> s) { return std::vector<float>(s.begin(), s.end()); };
  CHECK(taken(out.take(1, 9)).empty());
  CHECK((taken(out.take(0, 9)) == std::vector<float>{2, 4, 6, 8, 18}));
  CHECK((taken(out.finish(3)) == std::vector<float>{10, 12, 14, 16, 0, 0, 0, 0, 0, 0}));
  CHECK(out.taken() == 3);
}
