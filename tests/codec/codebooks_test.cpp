// A codec with the first codebooks only. It is the codec that has no others: codes, a beam's codes and samples.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>

#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/codec/windowed.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t all = 4;  ///< codebooks of the whole model

CodecConfig small(QuantizerKind kind, int64_t codebooks = all) {
  CodecConfig c;
  c.encoder_dim = 4, c.encoder_rates = {2, 3};
  c.decoder_dim = 16, c.decoder_rates = {3, 2};
  c.latent_dim = 6, c.dilations = {1};
  c.quantizer = kind, c.n_codebooks = codebooks, c.codebook_size = 9, c.codebook_dim = 4;
  c.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
  return c;
}

std::string stage_of(int64_t i) { return "quantizer.quantizers." + std::to_string(i) + "."; }

/// Makes every code and bias count: those of a fresh model are small or zero.
void spread_codes(Context& ctx, Parameters& p, const CodecConfig& config) {
  std::mt19937_64 random(seed());
  std::uniform_real_distribution<float> uniform(-0.9f, 0.9f);
  const auto draw = [&](const std::string& name, std::vector<int64_t> shape, float scale) {
    int64_t n = 1;
    for (const int64_t s : shape) n *= s;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = scale * uniform(random);
    REQUIRE(p.set_tensor(ctx, name, shape, values));
  };
  for (int64_t i = 0; i < config.n_codebooks; ++i) {
    const bool ema = config.quantizer == QuantizerKind::ema;
    draw(stage_of(i) + (ema ? "codebook.embed" : "codebook.weight"), {config.codebook_size, config.code_dim()}, 1);
    if (ema) continue;
    draw(stage_of(i) + "in_proj.bias", {config.code_dim()}, 0.3f);
    draw(stage_of(i) + "out_proj.bias", {config.latent()}, 0.3f);
  }
  p.refresh(ctx);
}

/// The model with `codebooks` of the codebooks of `whole`.
Codec with_first(Context& ctx, Codec& whole, int64_t codebooks, Storage storage) {
  CodecConfig config = whole.config();
  config.n_codebooks = codebooks;
  Codec codec(ctx, config, storage);
  whole.parameters().each_tensor(
      ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
        const bool there = codec.parameters().set_tensor(ctx, name, shape, values);
        CHECK(there == (!name.starts_with("quantizer.") || name < stage_of(codebooks)));
      });
  codec.parameters().refresh(ctx);
  return codec;
}

template <class T>
struct OnDevice {
  OnDevice(Context& ctx, Shape s)
      : memory(ctx, static_cast<size_t>(s.elements()) * sizeof(T)), view(reinterpret_cast<T*>(memory.data()), s) {}
  std::vector<T> read(Context& ctx) const {
    std::vector<T> host(static_cast<size_t>(view.elements()));
    ctx.read<T>(view, host);
    return host;
  }
  Memory memory;
  View<T> view;
};

constexpr int64_t batch = 2, frames = 41;

std::vector<float> noise(int64_t n) {
  std::mt19937_64 random(seed() + 1);
  std::uniform_real_distribution<float> uniform(-0.9f, 0.9f);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = uniform(random);
  return x;
}

std::vector<int32_t> encoded(Codec& codec, std::span<const float> x, int64_t codebooks) {
  const int64_t samples = frames * codec.config().hop(),
                stages = codebooks > 0 ? codebooks : codec.config().n_codebooks;
  codec.reserve_inference(batch, samples, Codec::Use::encode, codebooks);
  const OnDevice<float> audio(codec.context(), {.batch = batch, .time = samples});
  const OnDevice<int32_t> codes(codec.context(), {.batch = batch, .time = frames, .channels = stages});
  codec.context().write<float>(x, audio.view);
  codec.encode(audio.view, codes.view);
  return codes.read(codec.context());
}
std::vector<float> decoded(Codec& codec, std::span<const int32_t> c, int64_t codebooks) {
  const int64_t samples = frames * codec.config().hop(),
                stages = codebooks > 0 ? codebooks : codec.config().n_codebooks;
  codec.reserve_inference(batch, samples, Codec::Use::decode, codebooks);
  const OnDevice<float> audio(codec.context(), {.batch = batch, .time = samples});
  const OnDevice<int32_t> codes(codec.context(), {.batch = batch, .time = frames, .channels = stages});
  codec.context().write<int32_t>(c, codes.view);
  codec.decode(codes.view, audio.view);
  return audio.read(codec.context());
}

/// The first `kept` codes of every frame of `of` codes.
std::vector<int32_t> first_of(std::span<const int32_t> codes, int64_t of, int64_t kept) {
  std::vector<int32_t> out;
  for (size_t f = 0; f < codes.size(); f += static_cast<size_t>(of))
    out.insert(out.end(), codes.begin() + static_cast<int64_t>(f), codes.begin() + static_cast<int64_t>(f) + kept);
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

TEST_CASE("the first codebooks of a codec are the codec that has no others", "[codec][codebooks][step]") {
  for (const Device device : devices())
    for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised})
      for (const Storage storage : {Storage::float32, Storage::bfloat16})
        for (const int threads : {1, 3}) {
          Context ctx({.device = device, .threads = threads});
          Codec whole(ctx, small(kind), storage);
          whole.parameters().initialise(ctx, 5);
          spread_codes(ctx, whole.parameters(), whole.config());
          const std::vector<float> x = noise(batch * frames * whole.config().hop());
          const std::vector<int32_t> codes = encoded(whole, x, 0);
          CHECK(encoded(whole, x, all) == codes);
          std::vector<float> before;
          for (int64_t n = 1; n <= all; ++n) {
            CAPTURE(str(device), static_cast<int>(kind), static_cast<int>(storage), threads, n);
            Codec less = with_first(ctx, whole, n, storage);
            const std::vector<int32_t> found = encoded(whole, x, n);
            CHECK(found == first_of(codes, all, n));
            CHECK(found == encoded(less, x, 0));
            const std::vector<float> y = decoded(whole, found, n);
            CHECK(y == decoded(less, found, 0));
            CHECK(y != before);
            before = y;
            if (kind != QuantizerKind::ema) continue;
            // The search ends with stage n: a beam chooses earlier codes for the sake of the codes up to there.
            whole.set_beam(6), less.set_beam(6);
            const std::vector<int32_t> best = encoded(whole, x, n);
            CHECK(best == encoded(less, x, 0));
            if (n == 2) CHECK(best != first_of(encoded(whole, x, 0), all, n));
            whole.set_beam(1);
          }
          CHECK(decoded(whole, codes, 0) == before);
        }
}

TEST_CASE("windows of a codec with its first codebooks", "[windowed][codebooks][step]") {
  for (const Device device : devices())
    for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
      Context ctx({.device = device, .threads = 2});
      Codec codec(ctx, small(kind));
      codec.parameters().initialise(ctx, 5);
      spread_codes(ctx, codec.parameters(), codec.config());
      const int64_t context = std::max(codec.config().encoder_context(), codec.config().decoder_context());
      const int64_t window = 3 * context;
      // Several windows, and a last frame that is padded.
      const std::vector<float> x = noise(5 * window * codec.config().hop() - 1);
      const auto windowed = [&](int64_t codebooks) {
        std::vector<int32_t> codes;
        WindowedEncoder encoder(
            codec, [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); }, window,
            codebooks);
        encoder.push(x);
        CHECK(encoder.finish() == static_cast<int64_t>(x.size()));
        return codes;
      };
      const auto heard = [&](Codec& by, const std::vector<int32_t>& codes, int64_t codebooks, size_t piece) {
        std::vector<float> y;
        WindowedDecoder decoder(
            by, [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); }, window, codebooks);
        for (size_t at = 0; at < codes.size(); at += piece)
          decoder.push(std::span(codes).subspan(at, std::min(piece, codes.size() - at)));
        decoder.finish();
        return y;
      };
      const std::vector<int32_t> codes = windowed(0);
      REQUIRE(codes.size() == static_cast<size_t>(5 * window * all));
      for (int64_t n = 1; n <= all; ++n) {
        CAPTURE(str(device), static_cast<int>(kind), n);
        const std::vector<int32_t> found = windowed(n);
        CHECK(found == first_of(codes, all, n));
        Codec less = with_first(ctx, codec, n, Storage::float32);
        const std::vector<float> y = heard(less, found, 0, found.size());
        CHECK(heard(codec, found, n, found.size()) == y);
        CHECK(heard(codec, found, n, static_cast<size_t>(7 * n)) == y);
      }
    }
}

TEST_CASE("the latent of a codec with its first codebooks is the sum over these", "[codec][codebooks]") {
  for (const Device device : devices())
    for (const QuantizerKind kind : {QuantizerKind::ema, QuantizerKind::factorised}) {
      Context ctx({.device = device, .threads = 2});
      const CodecConfig config = small(kind);
      Parameters p;
      const Quantizer quantizer(p, config);
      p.allocate(ctx, false);
      p.initialise(ctx, 5);
      spread_codes(ctx, p, config);
      std::map<std::string, std::vector<float>> tensors;
      p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
        tensors[name] = {v.begin(), v.end()};
      });
      std::mt19937_64 random(seed() + 2);
      for (int64_t n = 1; n <= all; ++n) {
        CAPTURE(str(device), static_cast<int>(kind), n);
        std::vector<int32_t> codes;
        for (int64_t i = 0; i < batch * frames * n; ++i) codes.push_back(static_cast<int32_t>(random() % 9));
        Plan plan(ctx, Purpose::inference);
        View<int32_t> given;
        View<const float> latent;
        plan.reserve([&](Plan& w) {
          given = w.persistent<int32_t>({.batch = batch, .time = frames, .channels = n});
          latent = w.result<float>(quantizer.plan_decode(w, given));
        });
        ctx.write<int32_t>(codes, given);
        plan.run();
        std::vector<float> found(static_cast<size_t>(latent.elements()));
        ctx.read<float>(latent, found);

        const auto width = static_cast<size_t>(config.latent()), dim = static_cast<size_t>(config.code_dim());
        size_t wrong = 0;
        for (size_t row = 0; row < static_cast<size_t>(batch * frames); ++row)
          for (size_t c = 0; c < width; ++c) {
            double sum = 0, size = 0;
            for (int64_t i = 0; i < n; ++i) {
              const auto k = static_cast<size_t>(codes[row * static_cast<size_t>(n) + static_cast<size_t>(i)]);
              const auto tensor = [&](const char* name) {
                return std::span<const float>(tensors.at(stage_of(i) + name));
              };
              const auto add = [&](double term) { sum += term, size += std::fabs(term); };
              if (kind == QuantizerKind::ema) {
                add(tensor("codebook.embed")[k * dim + c]);
                continue;
              }
              // The gain of a row times the row's direction, as weight normalisation has it.
              const std::span<const float> row_of = tensor("out_proj.weight_v").subspan(c * dim, dim);
              double norm = 0;
              for (const float v : row_of) norm += static_cast<double>(v) * static_cast<double>(v);
              const double gain = static_cast<double>(tensor("out_proj.weight_g")[c]) / std::sqrt(norm);
              for (size_t d = 0; d < dim; ++d)
                add(gain * static_cast<double>(row_of[d]) *
                    static_cast<double>(tensor("codebook.weight")[k * dim + d]));
              add(static_cast<double>(tensor("out_proj.bias")[c]));
            }
            // A term passes through at most n (dim + 1) sums and one product. Its weight has the rounding of a norm of
            // dim squares (half of dim + 1 roundings), of a root, a quotient and a product.
            const double roundings =
                static_cast<double>(n) * static_cast<double>(dim + 1) + 1 + static_cast<double>(dim + 1) / 2 + 3;
            if (!(std::fabs(static_cast<double>(found[row * width + c]) - sum) <= roundings * ulp * size)) ++wrong;
          }
        CHECK(wrong == 0);
      }
    }
}

TEST_CASE("numbers of codebooks that a codec does not have are named", "[codec][codebooks]") {
  Context ctx({.threads = 1});
  Codec codec(ctx, small(QuantizerKind::factorised));
  codec.parameters().initialise(ctx, 5);
  for (const int64_t n : {all + 1, int64_t{-1}}) {
    const std::string wrong = ": codebooks is " + std::to_string(n) + ", expected 1 to 4, or 0 for all";
    CHECK(error_of([&] { codec.reserve_inference(1, 60, Codec::Use::both, n); }) == "2 reserve_inference" + wrong);
    CHECK(error_of([&] {
            WindowedEncoder(
                codec, [](View<const int32_t>, float) {}, 0, n);
          }) == "2 WindowedEncoder" + wrong);
    CHECK(error_of([&] {
            WindowedDecoder(
                codec, [](std::span<const float>) {}, 0, n);
          }) == "2 WindowedDecoder" + wrong);
  }
  // The shape of the codes is that of the reserved number.
  codec.reserve_inference(1, 60, Codec::Use::both, 2);
  std::vector<float> audio(60);
  std::vector<int32_t> codes(30);
  const View<float> wave(audio.data(), {.time = 60});
  const View<int32_t> three(codes.data(), {.time = 10, .channels = 3}), two(codes.data(), {.time = 10, .channels = 2});
  CHECK(error_of([&] { codec.encode(wave, three); }).starts_with("2 encode: codes is "));
  CHECK(error_of([&] { codec.decode(three, wave); }).starts_with("2 decode: codes is "));
  CHECK(error_of([&] { codec.encode(wave, two); }) == "none");
  CHECK(error_of([&] { codec.decode(two, wave); }) == "none");
  WindowedDecoder decoder(
      codec, [](std::span<const float>) {}, 0, 3);
  CHECK(error_of([&] { decoder.push(codes); }) == "none");
  CHECK(error_of([&] { decoder.push(std::span(codes).first(4)); }) ==
        "2 decoder: 4 codes are not a whole number of frames of 3");
}
