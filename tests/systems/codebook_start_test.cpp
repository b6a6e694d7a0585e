// Initial codebooks. Each stage starts from the residuals that earlier stages leave of the audio frames, without
// padding. Averaged weights start with the same codebooks.
#include <algorithm>
#include <cstring>

#include "harness.h"
#include "nacre/random.h"
#include "nacre/training/training_step.h"

using namespace nacre;

namespace {

CodecConfig small(QuantizerKind kind) {
  CodecConfig c;
  c.sample_rate = 8000;
  c.encoder_dim = 6, c.encoder_rates = {2, 3};
  c.decoder_dim = 24, c.decoder_rates = {3, 2};
  c.latent_dim = 10, c.dilations = {1, 3};
  c.quantizer = kind, c.n_codebooks = 3, c.codebook_size = 12, c.codebook_dim = 4;
  c.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
  return c;
}

/// A quantizer of three stages with `codes` codes in four dimensions. If factorised, its projections are identities, so
/// that a latent equals its projection.
struct Alone {
  CodecConfig config;
  Context ctx;
  Parameters parameters;
  Quantizer quantizer;

  static CodecConfig of(QuantizerKind kind, int64_t codes) {
    CodecConfig c = small(kind);
    c.latent_dim = 4, c.codebook_size = codes;
    return c;
  }
  Alone(QuantizerKind kind, int64_t codes, Device device)
      : config(of(kind, codes)), ctx({.device = device, .threads = 1}), quantizer(parameters, config) {
    parameters.allocate(ctx, false);
    if (kind == QuantizerKind::ema) return;
    std::vector<float> one(16, 0.0f);
    for (size_t i = 0; i < 4; ++i) one[5 * i] = 1;
    for (int stage = 0; stage < 3; ++stage)
      for (const char* name : {".in_proj", ".out_proj"}) {
        const std::string at = "quantizer.quantizers." + std::to_string(stage) + name;
        REQUIRE(parameters.set_tensor(ctx, at + ".weight_v", {4, 4, 1}, one));
        REQUIRE(parameters.set_tensor(ctx, at + ".weight_g", {4, 1, 1}, std::vector<float>(4, 1.0f)));
      }
    parameters.refresh(ctx);
  }
  void start(const std::vector<float>& rows) {
    const Shape shape{.time = static_cast<int64_t>(rows.size()) / 4, .channels = 4};
    Memory memory(ctx, rows.size() * sizeof(float));
    const View<float> latents(reinterpret_cast<float*>(memory.data()), shape);
    ctx.write<float>(rows, latents);
    quantizer.start(ctx, View<const float>(latents), 5);
  }
  std::vector<float> tensor(int stage, const std::string& name) {
    std::vector<float> out;
    const std::string wanted = "quantizer.quantizers." + std::to_string(stage) + ".codebook." + name;
    parameters.each_tensor(ctx, [&](const std::string& found, const std::vector<int64_t>&, std::span<const float> v) {
      if (found == wanted) out.assign(v.begin(), v.end());
    });
    REQUIRE(!out.empty());
    return out;
  }
  std::string codes_name() const { return config.quantizer == QuantizerKind::ema ? "embed" : "weight"; }
};

std::vector<std::vector<float>> sorted_rows(const std::vector<float>& v) {
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < v.size(); i += 4)
    rows.emplace_back(v.begin() + static_cast<std::ptrdiff_t>(i), v.begin() + static_cast<std::ptrdiff_t>(i) + 4);
  std::sort(rows.begin(), rows.end());
  return rows;
}

/// Rows of integers in different directions. In both metrics, the nearest row to each is itself.
const std::vector<float> six_rows{8, 0, 0, 0, 0, 8, 0, 0, 0, 0, 8, 0, 0, 0, 0, 8, -8, -8, 0, 0, 0, -8, 0, 8};

struct Begun {
  CodecConfig codec;
  LossConfig loss;
  OptimizerConfig optimizer;
  Context ctx;
  TrainingStep step;
  std::vector<float> loaded = {};

  static LossConfig losses() {
    LossConfig l;
    l.windows = {16, 64}, l.mels = {3, 8};
    return l;
  }
  static OptimizerConfig averaging() {
    OptimizerConfig o;
    o.ema_decay = 0.9;
    return o;
  }
  Begun(QuantizerKind kind, Device device, int64_t batch = 3, int64_t samples = 240)
      : codec(small(kind)),
        loss(losses()),
        optimizer(averaging()),
        ctx({.device = device, .threads = 2}),
        step(ctx, codec, loss, optimizer, batch, samples, 3) {}
  /// Loads noise that ends after `length` samples of each item, with zeros behind it.
  void load(const std::vector<int32_t>& lengths, uint64_t number) {
    std::vector<float> audio(lengths.size() * static_cast<size_t>(step.samples()), 0.0f);
    const Philox draw{8, number};
    for (size_t i = 0; i < lengths.size(); ++i)
      for (size_t t = 0; t < static_cast<size_t>(lengths[i]); ++t) {
        const size_t at = i * static_cast<size_t>(step.samples()) + t;
        audio[at] = static_cast<float>(1.8 * draw.uniform(at) - 0.9);
      }
    step.load(audio, lengths);
    loaded = audio;
  }
  /// The encoder's output for the first frames of each loaded item, computed by a new plan.
  std::vector<std::vector<float>> latents(const std::vector<int64_t>& frames) {
    const Net encoder = encoder_of(step.parameters(), codec);
    Plan plan(ctx, Purpose::inference);
    View<float> audio;
    View<const float> latent;
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>({.batch = step.batch(), .time = step.samples()});
      audio = source.value;
      latent = p.result<float>(encoder(p, source.flow));
    });
    ctx.write<float>(loaded, audio);
    plan.run();
    const std::vector<float> all = read(latent);
    std::vector<std::vector<float>> rows;
    for (size_t i = 0; i < frames.size(); ++i)
      for (int64_t f = 0; f < frames[i]; ++f) {
        const auto from = all.begin() + (static_cast<int64_t>(i) * latent.shape.time + f) * codec.latent();
        rows.emplace_back(from, from + codec.latent());
      }
    return rows;
  }
  std::vector<float> codebook(int stage) {
    std::vector<float> out;
    step.parameters().each_tensor(
        ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
          const std::string at = "quantizer.quantizers." + std::to_string(stage) + ".codebook.";
          if (name == at + "embed" || name == at + "weight") out.assign(v.begin(), v.end());
        });
    return out;
  }
  std::vector<float> read(View<const float> v) {
    std::vector<float> out(static_cast<size_t>(v.elements()));
    ctx.read<float>(v, out);
    return out;
  }
};

constexpr QuantizerKind kinds[] = {QuantizerKind::ema, QuantizerKind::factorised};

}  // namespace

TEST_CASE("codebook start: each stage begins at what the stages before it leave", "[codebook_start]") {
  for (const Device device : test::devices())
    for (const QuantizerKind kind : kinds) {
      INFO(str(device) << ", kind " << static_cast<int>(kind));
      // With as many codes as rows, every row is a code of the first stage. The residuals are zero, so all other stages
      // start at zero.
      Alone all(kind, 6, device);
      all.start(six_rows);
      CHECK((sorted_rows(all.tensor(0, all.codes_name())) == sorted_rows(six_rows)));
      for (const int stage : {1, 2}) CHECK((all.tensor(stage, all.codes_name()) == std::vector<float>(24, 0.0f)));

      // Two codes, and two groups of two rows on a line. k-means finds the groups from any two rows and places codes at
      // 8 and -8. The residuals are 1 and -1, the two codes of the second stage. The third stage has nothing left.
      Alone two(kind, 2, device);
      two.start({9, 0, 0, 0, 7, 0, 0, 0, -9, 0, 0, 0, -7, 0, 0, 0});
      CHECK((sorted_rows(two.tensor(0, two.codes_name())) ==
             std::vector<std::vector<float>>{{-8, 0, 0, 0}, {8, 0, 0, 0}}));
      CHECK((sorted_rows(two.tensor(1, two.codes_name())) ==
             std::vector<std::vector<float>>{{-1, 0, 0, 0}, {1, 0, 0, 0}}));
      CHECK((two.tensor(2, two.codes_name()) == std::vector<float>(8, 0.0f)));

      // Codes that follow averages start as if each had been chosen once.
      if (kind != QuantizerKind::ema) continue;
      for (int stage = 0; stage < 3; ++stage) {
        CHECK((two.tensor(stage, "embed_avg") == two.tensor(stage, "embed")));
        CHECK((two.tensor(stage, "cluster_size") == std::vector<float>(2, 1.0f)));
      }
    }
}

TEST_CASE("codebook start: frames of audio are clustered, all of them, and none behind the end of a clip", "[step]") {
  for (const Device device : test::devices()) {
    INFO(str(device));
    // Twelve codes and twelve frames of audio in items of 40 frames. Each code starts as the latent of one frame. A
    // frame that is cut off counts.
    for (const std::vector<int32_t>& lengths :
         {std::vector<int32_t>{24, 18, 30}, {1, 2, 60}, {72, 0, 0}, {0, 0, 67}, {6, 60, 6}}) {
      INFO(lengths[0] << " " << lengths[1] << " " << lengths[2]);
      Begun b(QuantizerKind::ema, device);
      REQUIRE(b.step.samples() == 240);
      int64_t batches = 0;
      b.step.start_codebooks([&] { b.load(lengths, static_cast<uint64_t>(batches++)); }, 12);
      CHECK(batches == 1);
      std::vector<int64_t> frames;
      for (const int32_t n : lengths) frames.push_back((n + 5) / 6);
      std::vector<std::vector<float>> expected = b.latents(frames);
      REQUIRE(expected.size() == 12);
      const std::vector<float> book = b.codebook(0);
      const auto d = static_cast<size_t>(b.codec.latent());
      for (size_t k = 0; k < 12; ++k) {
        // Another plan may add in another order. Sums have at most 84 products (12 channels, 7 taps). Each differs by
        // at most 85 x 2^-24 = 5e-6 of its terms. Latents of different frames differ by about their own size.
        const auto same = std::find_if(expected.begin(), expected.end(), [&](const std::vector<float>& row) {
          double distance = 0, size = 0;
          for (size_t i = 0; i < d; ++i) {
            distance += std::pow(static_cast<double>(row[i]) - static_cast<double>(book[k * d + i]), 2);
            size += std::pow(static_cast<double>(row[i]), 2);
          }
          return std::sqrt(distance) <= 1e-5 * std::sqrt(size);
        });
        CHECK(same != expected.end());
        if (same != expected.end()) expected.erase(same);
      }
    }
    // Batches are requested until there are enough frames of audio, 18 per batch.
    for (const QuantizerKind kind : kinds)
      for (const auto& [rows, expected] : {std::pair<int64_t, int64_t>{18, 1}, {19, 2}, {54, 3}, {55, 4}}) {
        Begun b(kind, device);
        int64_t batches = 0;
        b.step.start_codebooks([&] { b.load({42, 5, 60}, static_cast<uint64_t>(batches++)); }, rows);
        CHECK(batches == expected);
      }
  }
}

TEST_CASE("codebook start: the averaged weights begin with the codebooks that were started", "[step]") {
  for (const Device device : test::devices())
    for (const QuantizerKind kind : kinds) {
      INFO(str(device) << ", kind " << static_cast<int>(kind));
      Begun b(kind, device);
      const std::vector<float> drawn = b.codebook(0);
      uint64_t number = 0;
      const auto start = [&] { b.step.start_codebooks([&] { b.load({240, 240, 200}, number++); }, 200, 300); };
      start();
      CHECK((b.codebook(0) != drawn));
      CHECK((b.read(b.step.averaged()) == b.read(b.step.parameters().values())));
      // The result is the same if the step was elsewhere before.
      b.load({240, 240, 240}, 100);
      for (int i = 0; i < 3; ++i) b.step.run();
      CHECK((b.read(b.step.averaged()) != b.read(b.step.parameters().values())));
      start();
      CHECK((b.read(b.step.averaged()) == b.read(b.step.parameters().values())));
      // A batch without audio has no frames to start from, and requests for more would never end.
      CHECK_THROWS_AS(b.step.start_codebooks([&] { b.load({0, 0, 0}, 0); }, 10), Error);
    }
}
