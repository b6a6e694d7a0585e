// Files of a codec with two rates, whose frames have other numbers of codes than the model has codebooks.
#include <algorithm>
#include <cmath>
#include <fstream>

#include "data/files.h"
#include "harness.h"
#include "nacre/codec/windowed.h"
#include "nacre/coding/codec_files.h"
#include "nacre/random.h"
#include "nacre/training/evaluation.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

/// Two codes of the long cascade per frame, and two more codebooks at each of its three positions.
CodecConfig small() {
  CodecConfig c = CodecConfig::named("ldcodec-16k");
  c.encoder_dim = 4, c.encoder_rates = {8}, c.decoder_rates = {8}, c.latent_dim = 6;
  c.decoder_channels = {8, 4}, c.groups = 2, c.dilations = {1}, c.beam = 1;
  c.n_codebooks = 4, c.long_codebooks = 2, c.long_frames = 3, c.codebook_size = 16;
  return c;
}

struct Fixture {
  Context ctx{{.threads = 1}};
  Codec codec{ctx, small()};
  TemporaryFolder folder;

  Fixture() {
    codec.parameters().initialise(ctx, 1);
    // Codes of the latent's size, so that every codebook is heard.
    std::vector<std::pair<std::string, std::vector<int64_t>>> books;
    codec.parameters().each_tensor(
        ctx, [&](const std::string& name, const std::vector<int64_t>& stored, std::span<const float>) {
          if (name.ends_with(".codebook.embed")) books.emplace_back(name, stored);
        });
    REQUIRE(books.size() == 4);
    for (size_t b = 0; b < books.size(); ++b) {
      const Philox draw{17, b};
      std::vector<float> v(16 * 6);
      for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(0.1 * (draw.uniform(i) - 0.5));
      REQUIRE(codec.parameters().set_tensor(ctx, books[b].first, books[b].second, v));
    }
    codec.parameters().refresh(ctx);
    std::vector<float> x = sine(samples, 300, 16000, 0.4);
    const Philox draw{31, 0};
    for (size_t t = 0; t < x.size(); ++t) x[t] += static_cast<float>(0.05 * (draw.uniform(t) - 0.5));
    write_wav(folder / "in.wav", {.samples = x, .sample_rate = 16000, .channels = 1}, WavFormat::float32);
  }
  static constexpr int64_t samples = 40007;  // the last frame of 24 samples is not full

  std::vector<float> decoded(FileCodec& files, const std::string& stream, DecodeOptions options, int64_t used) {
    options.format = WavFormat::float32;
    CHECK(files.decode(folder / stream, folder / "out.wav", options).codebooks == used);
    return read_audio(folder / "out.wav").samples;
  }
};

struct StreamCodes {
  StreamHeader header;
  std::vector<int32_t> codes;
};
StreamCodes read_codes(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  StreamReader reader(
      [&](std::span<std::byte> to) {
        stream.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
        return static_cast<size_t>(stream.gcount());
      },
      path);
  StreamCodes out{reader.header(), {}};
  while (const std::optional<StreamPacket> packet = reader.next())
    out.codes.insert(out.codes.end(), packet->codes.begin(), packet->codes.end());
  return out;
}

}  // namespace

TEST_CASE("two rates: streams of the first codebooks", "[training][codec_files][ldcodec]") {
  Fixture f;
  FileCodec files(f.codec);
  const CodecConfig c = small();
  CHECK(files.encode(f.folder / "in.wav", f.folder / "all.nacre").codebooks == 4);
  const StreamCodes all = read_codes(f.folder / "all.nacre");
  CHECK(all.header.hop == 24);
  CHECK(all.header.codebooks == 8);
  CHECK(all.codes.size() == 8 * 1667);
  std::vector<float> before;
  for (int64_t n = 1; n <= 4; ++n) {
    CAPTURE(n);
    const std::string name = std::to_string(n) + ".nacre";
    CHECK(files.encode(f.folder / "in.wav", f.folder / name, {}, {.codebooks = n}).codebooks == n);
    const StreamCodes few = read_codes(f.folder / name);
    CHECK(few.header.codebooks == std::vector<uint32_t>{1, 2, 5, 8}[static_cast<size_t>(n - 1)]);
    std::vector<int32_t> first;
    for (size_t i = 0; i < all.codes.size(); ++i) {
      const size_t column = i % 8;
      const bool of_these =
          column < 2 ? column < static_cast<size_t>(n) : column % 2 < static_cast<size_t>(n) - 2 && n > 2;
      if (of_these) first.push_back(all.codes[i]);
    }
    CHECK((few.codes == first));
    const std::vector<float> y = f.decoded(files, name, {}, n);
    CHECK(y.size() == static_cast<size_t>(Fixture::samples));
    CHECK((f.decoded(files, "all.nacre", {.codebooks = n}, n) == y));
    CHECK((f.decoded(files, "all.nacre", {.max_codebooks = n}, n) == y));
    CHECK((y != before));
    before = y;
    // A part has the samples of the whole, up to sums in another order.
    const std::vector<float> part = f.decoded(files, "all.nacre", {.codebooks = n, .from = 0.5, .to = 0.75}, n);
    REQUIRE(part.size() == 4000);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < part.size(); ++i)
      worst = std::max(worst, std::fabs(static_cast<double>(part[i]) - static_cast<double>(y[8000 + i]))),
      largest = std::max(largest, std::fabs(static_cast<double>(y[i])));
    // About 15 layers of sums of at most 60 products, with errors of random signs and a tenth of the terms left.
    CHECK(worst <= 10 * ulp * std::sqrt(15.0 * 60) * largest);
  }

  // A stream whose number of codes belongs to no number of codebooks.
  StreamHeader header = stream_header(c, f.codec.identity(), 16000, 1);
  header.codebooks = 6;
  std::ofstream made(f.folder / "six.nacre", std::ios::binary);
  StreamWriter writer(header, [&](std::span<const std::byte> bytes) {
    made.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  });
  writer.write(0, std::vector<int32_t>(6 * 10, 3));
  writer.finish(240);
  made.close();
  CHECK_THROWS_WITH(files.decode(f.folder / "six.nacre", f.folder / "no.wav"),
                    Catch::Contains("has 6 codes per frame, the model 8 or those of fewer codebooks"));
}

TEST_CASE("two rates: the use of a codebook counts all of its columns", "[training][evaluation][ldcodec]") {
  Fixture f;
  const Audio audio = read_audio(f.folder / "in.wav");
  Evaluation evaluation(f.codec);
  evaluation.add("clip", audio.samples);
  std::vector<int32_t> codes;
  WindowedEncoder encoder(f.codec,
                          [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); });
  encoder.push(audio.samples);
  encoder.finish();
  std::vector<std::vector<double>> counts(4, std::vector<double>(16));
  for (size_t i = 0; i < codes.size(); ++i) {
    const size_t column = i % 8;
    counts[column < 2 ? column : 2 + column % 2][static_cast<size_t>(codes[i])] += 1;
  }
  const std::vector<double> usage = evaluation.usage(), perplexity = evaluation.perplexity();
  REQUIRE(usage.size() == 4);
  REQUIRE(perplexity.size() == 4);
  double all_used = 0;
  for (size_t b = 0; b < 4; ++b) {
    CAPTURE(b);
    double sum = 0, used = 0, entropy = 0;
    for (const double n : counts[b]) sum += n, used += n > 0;
    for (const double n : counts[b])
      if (n > 0) entropy -= n / sum * std::log(n / sum);
    CHECK(usage[b] == Approx(used / 16).epsilon(1e-12));
    CHECK(perplexity[b] == Approx(std::exp(entropy)).epsilon(1e-9));
    all_used += used;
  }
  CHECK(all_used > 6);  // with one code per codebook, columns could be exchanged unnoticed
}
