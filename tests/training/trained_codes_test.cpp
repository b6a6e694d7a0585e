// Codes of a trained model on real audio, on the CPU and on every CUDA device. They are equal, except for frames where
// rounding alone decides. The test is hidden, because it needs a model and takes minutes on the emulator:
//
//   NACRE_TEST_MODEL=model.safetensors NACRE_TEST_AUDIO=speech.wav [NACRE_TEST_SECONDS=1] nacre_tests "[trained]"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/data/audio.h"

using namespace nacre;

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == 0) FAIL(name << " is not set; see tests/training/trained_codes_test.cpp");
  return value;
}

struct Codes {
  int64_t stages = 0, rows = 0, dim = 0;
  std::vector<int32_t> chosen{};   // [rows, stages]
  std::vector<float> quantised{};  // [stages, rows, dim]: the input of each stage
  std::vector<float> codebooks{};  // [stages, codes, dim]
  int64_t codes = 0;
  const float* residual(int64_t stage, int64_t row) const {
    return quantised.data() + static_cast<size_t>((stage * rows + row) * dim);
  }
  const float* code(int64_t stage, int32_t index) const {
    return codebooks.data() + static_cast<size_t>((stage * codes + index) * dim);
  }
};

/// Encoder and quantizer of a model. Weights are changed by up to `moved` relative to themselves.
Codes encode(Device device, const std::string& model, std::span<const float> audio, double moved, uint64_t seed) {
  Context ctx({.device = device, .threads = 2});
  CodecConfig config;
  {
    Context cpu;
    config = Codec::load(cpu, model).config();
  }
  Parameters p;
  const Net encoder = encoder_of(p, config);
  Quantizer quantizer(p, config);
  p.allocate(ctx, false);
  load_parameters(ctx, p, model, false);
  if (moved > 0) {
    std::mt19937_64 rng(seed);
    std::uniform_real_distribution<double> draw(-moved, moved);
    struct Tensor {
      std::string name;
      std::vector<int64_t> shape;
      std::vector<float> values;
    };
    std::vector<Tensor> all;
    p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
      if (name.rfind("encoder", 0) == 0) all.push_back({name, shape, {v.begin(), v.end()}});
    });
    for (Tensor& t : all) {
      for (float& v : t.values) v = static_cast<float>(v * (1 + draw(rng)));
      p.set_tensor(ctx, t.name, t.shape, t.values);
    }
  }
  p.refresh(ctx);
  Plan plan(ctx, Purpose::inference);
  Output<float> source;
  View<const float> z;
  const int64_t frames = static_cast<int64_t>(audio.size()) / config.hop();
  plan.reserve([&](Plan& w) {
    source = w.source<float>({.time = frames * config.hop()});
    z = w.result<float>(encoder(w, source.flow));
  });
  ctx.write<float>(audio.first(static_cast<size_t>(frames * config.hop())), source.value);
  plan.run();

  // The quantizer is called directly, because the residuals are needed as well.
  Codes found{.stages = config.n_codebooks, .rows = frames, .dim = config.code_dim(), .codes = config.codebook_size};
  REQUIRE(config.quantizer == QuantizerKind::ema);  // the margin of factorised codes is measured in the projection
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
    if (name.find(".codebook.embed") != std::string::npos && name.find("embed_avg") == std::string::npos)
      found.codebooks.insert(found.codebooks.end(), v.begin(), v.end());
  });
  const Shape books{.batch = found.stages, .time = found.codes, .channels = found.dim};
  REQUIRE(static_cast<int64_t>(found.codebooks.size()) == books.elements());
  std::vector<Memory> memory;
  const auto room = [&](Shape s) {
    memory.emplace_back(ctx, static_cast<size_t>(s.elements()) * sizeof(float));
    return View<float>(reinterpret_cast<float*>(memory.back().data()), s);
  };
  const View<float> codebooks = room(books), y = room(z.shape), losses = room({.channels = 2});
  const View<float> quantised = room({.batch = found.stages, .time = frames, .channels = found.dim});
  const View<float> scratch = room(rvq_forward_scratch(ctx, z.shape, books, false));
  const Shape chosen{.time = frames, .channels = found.stages};
  const View<int32_t> codes(reinterpret_cast<int32_t*>(room(chosen).data), chosen);
  ctx.write<float>(found.codebooks, codebooks);
  rvq_forward(ctx, {.z = z,
                    .codebooks = codebooks,
                    .y = y,
                    .codes = codes,
                    .quantised = quantised,
                    .losses = losses,
                    .scratch = scratch,
                    .metric = config.metric});
  found.chosen.resize(static_cast<size_t>(chosen.elements()));
  found.quantised.resize(static_cast<size_t>(quantised.elements()));
  ctx.read<int32_t>(codes, found.chosen);
  ctx.read<float>(quantised, found.quantised);
  return found;
}

double distance(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return sum;
}
/// The largest |a - b| of a latent, relative to the mean size of latents.
double moved_by(const Codes& a, const Codes& b) {
  double worst = 0, size = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    worst = std::max(worst, distance(a.residual(0, r), b.residual(0, r), a.dim));
    for (int64_t i = 0; i < a.dim; ++i) size += std::pow(double(a.residual(0, r)[i]), 2);
  }
  return std::sqrt(worst / (size / static_cast<double>(a.rows)));
}

}  // namespace

TEST_CASE("a trained model gives the same codes on both back ends, but where rounding decides", "[.][trained]") {
  const std::string model = environment("NACRE_TEST_MODEL"), file = environment("NACRE_TEST_AUDIO");
  const char* seconds = std::getenv("NACRE_TEST_SECONDS");
  training::Audio audio = training::read_audio(file);
  std::vector<float> mono = training::to_mono(audio.samples, audio.channels);
  const size_t most = static_cast<size_t>((seconds != nullptr ? std::atof(seconds) : 1) * audio.sample_rate);
  if (mono.size() > most) mono.resize(most);
  training::normalise_peak(mono);

  const Codes cpu = encode({}, model, mono, 0, 0);
  // One rounding of every weight has the size of another order of sums, so its effect is the allowed difference.
  double allowed = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed)
    allowed = std::max(allowed, moved_by(cpu, encode({}, model, mono, 0x1p-24, seed)));
  for (const Device device : test::devices()) {
    if (device.kind != Device::cuda) continue;
    CAPTURE(str(device));
    const Codes cuda = encode(device, model, mono, 0, 0);
    const double moved = moved_by(cpu, cuda);
    INFO("latents differ by " << moved << " of their size, moved weights by " << allowed);
    CHECK(moved <= 3 * allowed);
    int64_t frames = 0;
    for (int64_t row = 0; row < cpu.rows; ++row)
      for (int64_t s = 0; s < cpu.stages; ++s) {
        const int32_t a = cpu.chosen[static_cast<size_t>(row * cpu.stages + s)],
                      b = cuda.chosen[static_cast<size_t>(row * cpu.stages + s)];
        if (a == b) continue;
        // Moving r by d changes the difference of two squared distances by 2 d (c_b - c_a). Codes within this margin
        // are equally near. If distances are computed as |c|^2 - 2 r c in float, sums of `dim` terms add their
        // rounding.
        const float* r = cpu.residual(s, row);
        const double near = distance(r, cpu.code(s, a), cpu.dim), other = distance(r, cpu.code(s, b), cpu.dim);
        const double shift = std::sqrt(distance(r, cuda.residual(s, row), cpu.dim)),
                     apart = std::sqrt(distance(cpu.code(s, a), cpu.code(s, b), cpu.dim));
        const std::vector<float> zero(static_cast<size_t>(cpu.dim), 0.0f);
        const double sizes =
            std::max(distance(cpu.code(s, a), zero.data(), cpu.dim), distance(cpu.code(s, b), zero.data(), cpu.dim)) +
            distance(r, zero.data(), cpu.dim);
        const double bound = 2 * shift * apart + 4 * std::sqrt(static_cast<double>(cpu.dim)) * 0x1p-24 * sizes;
        std::printf("frame %lld stage %lld: codes %d and %d, squared distances %.9g and %.9g, rounding %.3g\n",
                    static_cast<long long>(row), static_cast<long long>(s), a, b, near, other, bound);
        CHECK(std::fabs(near - other) <= bound);
        ++frames;
        break;  // later stages of this frame quantise another residual
      }
    std::printf("%s: %lld of %lld frames differ; latents by %.3g of their size (moved weights: %.3g)\n",
                str(device).c_str(), static_cast<long long>(frames), static_cast<long long>(cpu.rows), moved, allowed);
  }
}
