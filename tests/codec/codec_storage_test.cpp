// A codec that stores activations and weights in bf16 beside one in floats, of the same parameters.
#include <cmath>

#include "harness.h"
#include "nacre/codec/codec.h"

using namespace nacre;

namespace {

constexpr int64_t frames = 12;

CodecConfig tiny(QuantizerKind kind) {
  CodecConfig c;
  c.encoder_dim = 6, c.encoder_rates = {2, 3};
  c.decoder_dim = 24, c.decoder_rates = {3, 2};
  c.latent_dim = 10, c.dilations = {1, 3};
  c.quantizer = kind, c.n_codebooks = 1, c.codebook_size = 4, c.codebook_dim = 4;
  c.metric = VqMetric::euclidean;
  return c;
}

/// Roundings of one network: as in layers_test.cpp, thirty in a row with random signs, three standard deviations.
const double allowed = 3 * test::bf16_ulp / std::sqrt(3.0) * std::sqrt(30.0);

double norm(std::span<const float> v) {
  double sum = 0;
  for (const float x : v) sum += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(sum);
}

struct Coder {
  Context ctx;
  Codec codec;
  Memory audio_memory, codes_memory;
  View<float> audio;
  View<int32_t> codes;

  Coder(Device device, const CodecConfig& c, Storage storage)
      : ctx({.device = device, .threads = 2}), codec(ctx, c, storage) {
    codec.parameters().initialise(ctx, 4);
    codec.reserve_inference(1, frames * c.hop());
    audio_memory = Memory(ctx, static_cast<size_t>(frames * c.hop()) * sizeof(float));
    codes_memory = Memory(ctx, static_cast<size_t>(frames * c.n_codebooks) * sizeof(int32_t));
    audio = {reinterpret_cast<float*>(audio_memory.data()), {.time = frames * c.hop()}};
    codes = {reinterpret_cast<int32_t*>(codes_memory.data()), {.time = frames, .channels = c.n_codebooks}};
  }
  std::vector<int32_t> encode(const std::vector<float>& x) {
    ctx.write<float>(x, audio);
    codec.encode(audio, codes);
    std::vector<int32_t> found(static_cast<size_t>(codes.elements()));
    ctx.read<int32_t>(codes, found);
    return found;
  }
  std::vector<float> decode(const std::vector<int32_t>& c) {
    ctx.write<int32_t>(c, codes);
    codec.decode(codes, audio);
    std::vector<float> found(static_cast<size_t>(audio.elements()));
    ctx.read<float>(audio, found);
    return found;
  }
};

/// The encoder's output in floats.
std::vector<float> latents(Coder& coder, const std::vector<float>& x) {
  Parameters p;
  const System system(p, coder.codec.config());
  p.allocate(coder.ctx, false);
  p.assign(coder.ctx, coder.codec.parameters());
  Plan plan(coder.ctx, Purpose::inference);
  View<float> in;
  View<const float> out;
  plan.reserve([&](Plan& w) {
    const auto source = w.source<float>(coder.audio.shape);
    in = source.value;
    out = w.result<float>(system.encoder(w, source.flow));
  });
  coder.ctx.write<float>(x, in);
  plan.run();
  std::vector<float> z(static_cast<size_t>(out.elements()));
  coder.ctx.read<float>(out, z);
  return z;
}

}  // namespace

TEST_CASE("codec in bf16: audio is decoded within its roundings", "[codec]") {
  for (const Device device : test::devices())
    for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
      CAPTURE(str(device), static_cast<int>(kind));
      Coder exact(device, tiny(kind), Storage::float32), found(device, tiny(kind), Storage::bfloat16);
      CHECK(exact.codec.identity() == found.codec.identity());  // parameters are floats in either case
      std::vector<int32_t> codes;
      std::mt19937_64 rng(test::seed());
      for (int64_t i = 0; i < frames; ++i) codes.push_back(static_cast<int32_t>(rng() % 4));
      const std::vector<float> wanted = exact.decode(codes), heard = found.decode(codes);
      std::vector<float> difference;
      for (size_t i = 0; i < wanted.size(); ++i) difference.push_back(heard[i] - wanted[i]);
      const double error = norm(difference) / norm(wanted);
      INFO(error << " of " << allowed);
      CHECK(error <= allowed);
      CHECK(error > 0);  // it was bf16
    }
}

TEST_CASE("codec in bf16: codes agree where the nearest is nearer than the roundings reach", "[codec]") {
  for (const Device device : test::devices()) {
    CAPTURE(str(device));
    const CodecConfig config = tiny(QuantizerKind::ema);
    Coder exact(device, config, Storage::float32), found(device, config, Storage::bfloat16);
    std::mt19937_64 rng(test::seed());
    std::uniform_real_distribution<float> draw(-0.9f, 0.9f);
    std::vector<float> x(static_cast<size_t>(exact.audio.elements()));
    for (float& v : x) v = draw(rng);
    const std::vector<float> z = latents(exact, x);
    const auto dim = static_cast<size_t>(config.latent());
    const double size = norm(z) / std::sqrt(static_cast<double>(z.size()));
    std::normal_distribution<double> spread(0, size);
    int decided = 0, differ = 0;
    for (int books = 0; books < 6; ++books) {
      std::vector<float> book(4 * dim);
      for (float& v : book) v = static_cast<float>(spread(rng));
      for (Coder* c : {&exact, &found})
        REQUIRE(c->codec.parameters().set_tensor(c->ctx, "quantizer.quantizers.0.codebook.embed",
                                                 {4, static_cast<int64_t>(dim)}, book));
      const std::vector<int32_t> a = exact.encode(x), b = found.encode(x);
      for (size_t f = 0; f < static_cast<size_t>(frames); ++f) {
        // |z - c|^2 - |z - best|^2 moves by at most 2 |dz| |c - best|, and |dz| is at most that of all latents.
        const auto code = [&](size_t k) { return std::span<const float>(book).subspan(k * dim, dim); };
        const auto distance = [&](size_t k) {
          std::vector<float> d;
          for (size_t i = 0; i < dim; ++i) d.push_back(z[f * dim + i] - code(k)[i]);
          return norm(d) * norm(d);
        };
        const auto best = static_cast<size_t>(a[f]);
        bool sure = true;
        for (size_t k = 0; k < 4; ++k) {
          if (k == best) continue;
          std::vector<float> apart;
          for (size_t i = 0; i < dim; ++i) apart.push_back(code(k)[i] - code(best)[i]);
          sure = sure && distance(k) - distance(best) > 2 * allowed * norm(z) * norm(apart);
        }
        decided += sure;
        differ += sure && a[f] != b[f];
      }
    }
    CHECK(decided >= frames);  // of six times as many
    CHECK(differ == 0);
  }
}
