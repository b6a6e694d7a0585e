// Parts of streams, damaged streams and streams without an end. The codec's sums are exact and its samples depend on
// both ends of their receptive field, so a part has the samples of the whole if and only if nothing of it is missing.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

#include "codec/exact_codec.h"
#include "coding/conceal.h"
#include "data/files.h"
#include "nacre/coding/codec_files.h"
#include "nacre/files/ecdc.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

struct Made {
  StreamHeader header;
  std::vector<std::vector<int32_t>> codes;  // per channel
};

/// A stream of random codes. Its length ends within the last frame.
Made made(Codec& codec, uint32_t channels, int64_t frames, int rate, bool known, uint32_t packet_frames) {
  const CodecConfig& c = codec.config();
  Made m{stream_header(c, codec.identity(), rate, static_cast<int>(channels)), {}};
  m.header.packet_frames = packet_frames;
  const int64_t samples = (frames * c.hop() - 1) * rate / c.sample_rate;
  if (known) m.header.samples = static_cast<uint64_t>(samples);
  for (uint32_t i = 0; i < channels; ++i)
    m.codes.push_back(whole_numbers<int32_t>(frames * c.n_codebooks, 1, 3, 5 + i));
  return m;
}
std::string bytes_of_stream(const Made& m) {
  std::string out;
  StreamWriter writer(
      m.header, [&](std::span<const std::byte> d) { out.append(reinterpret_cast<const char*>(d.data()), d.size()); });
  for (uint32_t c = 0; c < m.header.channels; ++c) writer.write(c, m.codes[c]);
  const uint64_t frames = m.codes[0].size() / m.header.codebooks;
  const uint64_t whole = frames == 0 ? 0 : (frames * m.header.hop - 1) * m.header.original_rate / m.header.model_rate;
  writer.finish(m.header.samples == StreamHeader::unknown ? whole : m.header.samples);
  return out;
}

struct Fixture {
  explicit Fixture(const Topology& net = exact_nets[0]) : codec(looking_both_ways(ctx, net)), files(codec) {}
  Context ctx{{.threads = 1}};
  Codec codec;
  FileCodec files;
  TemporaryFolder folder;

  std::vector<float> decoded(DecodeOptions options = {}, FileReport* report = nullptr,
                             const std::string& name = "s.nacre") {
    options.format = WavFormat::float32;
    const FileReport r = files.decode(folder / name, folder / "out.wav", options);
    if (report != nullptr) *report = r;
    if (r.samples == 0) return {};  // read_audio() refuses a file without audio
    return read_audio(folder / "out.wav").samples;
  }
  void write(const std::string& bytes, const std::string& name = "s.nacre") {
    std::ofstream(folder / name, std::ios::binary) << bytes;
  }
  std::string error(const DecodeOptions& options) {
    try {
      decoded(options);
      return "none";
    } catch (const Error& e) {
      return std::to_string(e.exit_code()) + " " + e.what();
    }
  }
};

double worst(std::span<const float> x, std::span<const float> y) {
  REQUIRE(x.size() == y.size());
  double most = 0;
  for (size_t i = 0; i < x.size(); ++i) most = std::max(most, static_cast<double>(std::fabs(x[i] - y[i])));
  return most;
}

/// Expects the part of the whole that the times say. Outputs of a resampler that began elsewhere differ in the last
/// bits of their sums (docs/decisions/resampling-from-the-middle.md).
void expect_parts(Fixture& f, int rate, size_t channels, double tolerance) {
  const std::vector<float> whole = f.decoded();
  const auto total = static_cast<int64_t>(whole.size() / channels);
  const double end = static_cast<double>(total) / rate;
  for (const auto& [from, to] : std::vector<std::pair<double, std::optional<double>>>{{0, 0.1},
                                                                                      {0, end},
                                                                                      {0.5 * end, 0.5 * end + 0.01},
                                                                                      {0.3, {}},
                                                                                      {0.27, 0.53},
                                                                                      {end - 0.001, {}},
                                                                                      {0.0004, 0.0011},
                                                                                      {end - 0.05, end}}) {
    INFO("from " << from << " to " << (to ? *to : -1));
    FileReport report;
    const std::vector<float> part = f.decoded({.from = from, .to = to}, &report);
    const int64_t first = std::llround(from * rate), last = to ? std::llround(*to * rate) : total;
    REQUIRE(static_cast<int64_t>(part.size() / channels) == last - first);
    CHECK(report.samples == last - first);
    const auto expected = std::span(whole).subspan(static_cast<size_t>(first) * channels, part.size());
    CHECK(worst(part, expected) <= tolerance * std::max(1.0f, peak_of(whole)));
  }
}

}  // namespace

TEST_CASE("coding: a part of a stream has the samples of the whole", "[training][codec_files][section]") {
  for (const Topology& net : exact_nets)
    for (const bool known : {true, false})
      for (const uint32_t channels : {1u, 2u}) {
        Fixture f(net);
        const int64_t frames = 16000 / f.codec.config().hop() + 3;
        f.write(bytes_of_stream(made(f.codec, channels, frames, 16000, known, 150)));
        INFO("hop " << f.codec.config().hop() << ", " << channels << " channels, length in the header: " << known);
        expect_parts(f, 16000, channels, 0);
      }
}

TEST_CASE("coding: a part at another rate has the samples of the whole", "[training][codec_files][section]") {
  for (const int rate : {8000, 24000, 44100}) {
    INFO(rate << " Hz");
    Fixture f;
    f.write(bytes_of_stream(made(f.codec, 2, 5003, rate, rate != 24000, 150)));
    expect_parts(f, rate, 2, 1e-6);
    const std::vector<float> low = f.decoded({.model_rate = true});
    const std::vector<float> part = f.decoded({.model_rate = true, .from = 0.4, .to = 0.6});
    CHECK((part == std::vector<float>(low.begin() + 2 * 6400, low.begin() + 2 * 9600)));
  }
}

TEST_CASE("coding: a part of what depends on all frames before, or on all", "[training][codec_files][section]") {
  for (const bool recurrent : {true, false}) {
    INFO("recurrent: " << recurrent);
    CodecConfig c;
    c.network = "encodec", c.sample_rate = 16000;
    c.encoder_dim = 2, c.encoder_rates = {4, 4}, c.decoder_dim = 8, c.decoder_rates = {4, 4}, c.dilations = {1};
    c.latent_dim = 8, c.kernel_size = 3, c.activation = ActivationKind::elu, c.output_tanh = false;
    c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean, c.n_codebooks = 2, c.codebook_size = 16;
    if (recurrent)
      c.causal = true, c.lstm_layers = 2;
    else
      c.norm = Norm::group;
    Fixture f;
    Codec codec(f.ctx, c);
    codec.parameters().initialise(f.ctx, 1);
    FileCodec files(codec);
    f.write(bytes_of_stream(made(codec, 1, 2003, 16000, true, 150)));
    const auto decode = [&](DecodeOptions options) {
      options.format = WavFormat::float32;
      files.decode(f.folder / "s.nacre", f.folder / "out.wav", options);
      return read_audio(f.folder / "out.wav").samples;
    };
    const std::vector<float> whole = decode({});
    REQUIRE(peak_of(whole) > 0);
    for (const auto& [from, to] : std::vector<std::pair<double, double>>{{0, 0.2}, {0.9, 1.1}, {1.5, 2}}) {
      const std::vector<float> part = decode({.from = from, .to = to});
      // Windows end elsewhere, so sums are taken in another order.
      CHECK(worst(part, std::span(whole).subspan(static_cast<size_t>(from * 16000), part.size())) <=
            1e-5f * peak_of(whole));
    }
  }
}

TEST_CASE("coding: what is read for a part, and what is refused", "[training][codec_files][section]") {
  Fixture f;
  for (const bool known : {true, false}) {
    INFO("length in the header: " << known);
    const std::string good = bytes_of_stream(made(f.codec, 1, 40000, 16000, known, 100));  // 159999 samples
    f.write(good);
    FileReport report;
    const std::vector<float> part = f.decoded({.from = 5, .to = 5.1}, &report);
    // 400 frames of the part, 2 x 2 frames of context and 5 for a length that is not known: 6 packets at most, and a
    // search for none.
    CHECK(report.bytes <= 60 + 6 * (16 + 225));
    // Damage elsewhere is not seen.
    std::string bad = good;
    bad[1000] = static_cast<char>(bad[1000] ^ 1),
    bad[bad.size() - 1000] = static_cast<char>(bad[bad.size() - 1000] ^ 1);
    f.write(bad);
    CHECK((f.decoded({.from = 5, .to = 5.1}) == part));
    CHECK_THAT(f.error({.to = 1}), Catch::Contains("byte 1024: the CRC of packet 3 does not match; --conceal"));
    CHECK_THAT(f.error({.from = 9}), Catch::Contains("does not match; --conceal decodes the rest"));
    f.write(good);
    const std::string name = "2 " + (f.folder / "s.nacre") + ": ";
    CHECK(f.error({.from = 9.9999375}) == name + "--from 9.9999375 is behind the end: the audio has 9.9999375 s");
    CHECK(f.error({.from = 1e300}) == name + "--from 1e+300 is behind the end: the audio has 9.9999375 s");
    CHECK(f.error({.from = 1, .to = 10}) == name + "--to 10 is behind the end: the audio has 9.9999375 s");
    CHECK(f.error({.to = 1e18}) == name + "--to 1e+18 is behind the end: the audio has 9.9999375 s");
    CHECK(f.error({.from = 9.99987, .to = 9.9999375}) == "none");
    CHECK_FALSE(std::filesystem::exists(f.folder / "s.wav"));
  }
  CHECK(f.error({.from = 2, .to = 2}) == "2 decode: from 2 to 2 s there is no sample at 16000 Hz");
  CHECK_THAT(f.error({.from = -1}), Catch::StartsWith("2 decode: from and to"));
  CHECK_THAT(f.error({.to = std::nan("")}), Catch::StartsWith("2 decode: from and to"));
}

namespace {

constexpr int64_t packet_frames = 400, packet_samples = 1600;  // 100 ms

/// The sizes of a packet of `codec` in bytes.
size_t bytes_per_packet(const Made& m) {
  return 16 + (packet_frames * m.header.codebooks * static_cast<size_t>(code_bits(m.header)) + 7) / 8;
}
void damage(std::string& bytes, const Made& m, size_t packet) {
  char& at = bytes[60 + packet * bytes_per_packet(m) + 20];
  at = static_cast<char>(at ^ 4);
}

/// The definition of docs/format.md: codes of lost frames are those of the last frame, and the gain around them.
std::vector<float> reference(Fixture& f, const Made& m, size_t channel, const std::vector<bool>& lost) {
  Made repeated = m;
  repeated.header.channels = 1;
  repeated.codes = {m.codes[channel]};
  std::vector<int32_t>& codes = repeated.codes[0];
  std::vector<double> gain(codes.size() / 2 * 4);
  double now = 1, from = 1;
  int64_t since = 0;
  bool before = false;
  std::vector<int32_t> last{0, 0};
  for (size_t t = 0; t < codes.size() / 2; ++t) {
    const bool gone = lost[t / packet_frames];
    for (size_t k = 0; k < 2; ++k)
      if (gone)
        codes[2 * t + k] = last[k];
      else
        last[k] = codes[2 * t + k];
    if (t == 0 && gone) now = 0;
    if (gone != before) from = now, since = 0;
    before = gone;
    for (size_t i = 0; i < 4; ++i) {
      ++since;
      const double length = gone ? 960 : 320, part = std::min(1.0, static_cast<double>(since) / length);
      now = from + ((gone ? 0.0 : 1.0) - from) * (0.5 - 0.5 * std::cos(std::numbers::pi * part));
      gain[4 * t + i] = now;
    }
  }
  f.write(bytes_of_stream(repeated), "reference.nacre");
  std::vector<float> y = f.decoded({}, nullptr, "reference.nacre");
  for (size_t t = 0; t < y.size(); ++t) y[t] = static_cast<float>(gain[t] * static_cast<double>(y[t]));
  return y;
}

}  // namespace

TEST_CASE("coding: lost packets are concealed", "[training][codec_files][conceal]") {
  Fixture f;
  const Made m = made(f.codec, 2, 10 * packet_frames, 16000, true, packet_frames);
  const std::string good = bytes_of_stream(m);
  f.write(good);
  FileReport report;
  const std::vector<float> whole = f.decoded();
  CHECK((f.decoded({.conceal = true}, &report) == whole));
  CHECK(report.warnings.empty());
  CHECK(report.lost.empty());
  CHECK(report.lost_frames == 0);
  struct Case {
    std::vector<size_t> packets;  // of both channels
    std::vector<std::pair<double, double>> times;
    const char* text;
  };
  for (const Case& c :
       {Case{{6}, {{0.3, 0.4}}, "400 frames are lost or damaged, and concealed: 0.300 to 0.400 s"},
        Case{{7, 8, 9, 14}, {{0.3, 0.5}, {0.7, 0.8}}, "0.300 to 0.500 s, 0.700 to 0.800 s"},
        Case{{0, 1, 3}, {{0, 0.2}}, "800 frames"}, Case{{18, 19}, {{0.9, 15999.0 / 16000}}, "0.900 to 1.000 s"}}) {
    INFO("packet " << c.packets[0]);
    std::string bad = good;
    std::vector<std::vector<bool>> lost(2, std::vector<bool>(10));
    for (const size_t n : c.packets) damage(bad, m, n), lost[n % 2][n / 2] = true;
    f.write(bad);
    CHECK_THAT(f.error({}), Catch::Contains("does not match; --conceal decodes the rest"));
    const std::vector<float> y = f.decoded({.conceal = true}, &report);
    REQUIRE(y.size() == whole.size());
    REQUIRE(report.lost.size() == c.times.size());
    for (size_t i = 0; i < c.times.size(); ++i) {
      CHECK(report.lost[i].first == Approx(c.times[i].first));
      CHECK(report.lost[i].second == Approx(c.times[i].second));
    }
    int64_t frames = 0;
    for (size_t i = 0; i < 10; ++i) frames += lost[0][i] || lost[1][i] ? packet_frames : 0;
    CHECK(report.lost_frames == frames);
    REQUIRE(report.warnings.size() == 1);
    CHECK_THAT(report.warnings[0], Catch::Contains(c.text));
    for (size_t channel = 0; channel < 2; ++channel) {
      const std::vector<float> expected = reference(f, m, channel, lost[channel]);
      std::vector<float> of(expected.size());
      for (size_t t = 0; t < of.size(); ++t) of[t] = y[2 * t + channel];
      // The gain is rounded to a float, and its product with the sample as well.
      CHECK(worst(of, expected) <= 4 * ulp * static_cast<double>(peak_of(whole)));
      for (size_t i = 0; i < 10; ++i)  // silence behind 60 ms
        if (lost[channel][i])
          CHECK(peak_of(std::span(of).subspan(i * packet_samples + 960, packet_samples - 960 - 1)) == 0);
      if (std::count(lost[channel].begin(), lost[channel].end(), true) > 0) continue;
      for (size_t t = 0; t < of.size(); ++t) of[t] -= whole[2 * t + channel];
      CHECK(peak_of(of) == 0);
    }
    // Parts have the samples of the whole, wherever they begin.
    for (const auto& [from, to] : std::vector<std::pair<double, double>>{
             {0.31, 0.36}, {0.35, 0.6}, {0.05, 0.25}, {0.4, 0.42}, {0.95, 0.99}, {0.5, 0.51}}) {
      const std::vector<float> part = f.decoded({.from = from, .to = to, .conceal = true}, &report);
      const auto first = static_cast<std::ptrdiff_t>(2 * std::llround(from * 16000));
      CHECK((part ==
             std::vector<float>(y.begin() + first, y.begin() + first + static_cast<std::ptrdiff_t>(part.size()))));
      for (const auto& [begin, end] : report.lost) CHECK((begin >= from && end <= to + 1e-9 && begin < end));
    }
  }
}

TEST_CASE("coding: a stream that is cut at any byte is decoded to its last whole packet",
          "[training][codec_files][conceal]") {
  Fixture f;
  for (const bool known : {true, false})
    for (const uint32_t channels : {1u, 2u}) {
      const Made m = made(f.codec, channels, 23, 16000, known, 5);
      const std::string good = bytes_of_stream(m);
      // What whole packets decode to, as a stream of their own.
      std::vector<std::vector<float>> expected;
      std::vector<size_t> ends{60};  // of the stretches, in bytes
      for (int64_t n = 0; n <= 23; n = n < 20 ? n + 5 : n + 3) {
        Made part = m;
        part.header.samples = static_cast<uint64_t>(n < 23 || !known ? 4 * n : 4 * n - 1);
        for (std::vector<int32_t>& codes : part.codes) codes.resize(static_cast<size_t>(2 * n));
        f.write(bytes_of_stream(part), "part.nacre");
        expected.push_back(f.decoded({}, nullptr, "part.nacre"));
        if (n > 0) ends.push_back(std::filesystem::file_size(f.folder / "part.nacre") - 32);
      }
      for (size_t n = 0; n < good.size(); n += known && channels == 1 ? 1 : 7) {
        INFO(n << " of " << good.size() << " bytes, " << channels << " channels, length in the header: " << known);
        f.write(good.substr(0, n));
        CHECK_THAT(f.error({}), Catch::StartsWith("3 ") && Catch::Contains(n < 8 ? "" : "cut off"));
        if (n < 60) {
          CHECK_THAT(f.error({.conceal = true}), Catch::StartsWith("3 "));
          continue;
        }
        size_t stretches = 0;
        while (stretches + 1 < ends.size() && ends[stretches + 1] <= n) ++stretches;
        FileReport report;
        const std::vector<float> y = f.decoded({.conceal = true}, &report);
        // Channel 0 may be a packet ahead, which then is context of its last samples.
        const bool ahead = channels == 2 && stretches + 1 < ends.size() &&
                           2 * (n - ends[stretches]) >= ends[stretches + 1] - ends[stretches];
        REQUIRE(y.size() == expected[stretches].size());
        for (size_t i = ahead ? 1 : 0; i < y.size(); i += ahead ? 2 : 1)
          if (y[i] != expected[stretches][i]) FAIL_CHECK("sample " << i);
        CHECK(report.lost.empty());
        REQUIRE(report.warnings.size() == 1);
        CHECK_THAT(report.warnings[0], Catch::StartsWith("has no closing packet, and ends with its last whole packet"));
      }
    }
}

TEST_CASE("coding: the gain around lost frames has no step", "[training][conceal]") {
  LossEnvelope envelope(1000);  // falls within 60 samples, rises within 20
  std::vector<float> x(400, 1.0f);
  for (const auto& [n, lost] : std::vector<std::pair<int64_t, bool>>{
           {30, true}, {50, false}, {40, true}, {5, false}, {100, true}, {175, false}})
    envelope.add(n, lost);
  envelope.apply(std::span(x).first(70));
  envelope.apply(std::span(x).subspan(70));
  for (size_t t = 0; t < 30; ++t) CHECK(x[t] == 0);
  for (size_t t = 49; t < 80; ++t) CHECK(x[t] == 1);
  for (size_t t = 125 + 59; t < 225; ++t) CHECK(x[t] == 0);
  for (size_t t = 225 + 19; t < 400; ++t) CHECK(x[t] == 1);
  // Half a period of a cosine over 20 samples is nowhere steeper than pi / 2 / 20 per sample.
  for (size_t t = 1; t < x.size(); ++t) CHECK(std::fabs(x[t] - x[t - 1]) <= std::numbers::pi / 40 + ulp);
  // Passing without samples gives the same gain.
  LossEnvelope skipped(1000);
  skipped.add(30, true), skipped.add(50, false), skipped.add(40, true), skipped.add(280, false);
  skipped.skip(86);
  std::vector<float> y(4, 1.0f);
  skipped.apply(y);
  CHECK((y == std::vector<float>(x.begin() + 86, x.begin() + 90)));
}
