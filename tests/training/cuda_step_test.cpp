// The whole training step on both back ends. The allowed difference between CUDA and the CPU is derived from the effect
// of rounding on the CPU alone.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <random>

#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/training/training_step.h"

using namespace nacre;

namespace {

constexpr int64_t batch = 3, samples = 240;

CodecConfig tiny(QuantizerKind kind) {
  CodecConfig c;
  c.sample_rate = 8000;
  c.encoder_dim = 8, c.encoder_rates = {2, 3};
  c.decoder_dim = 32, c.decoder_rates = {3, 2};
  c.latent_dim = 16, c.dilations = {1, 3};
  c.quantizer = kind, c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 4;
  c.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
  return c;
}
LossConfig losses() {
  LossConfig l;
  l.windows = {16, 64}, l.mels = {3, 8};
  return l;
}

struct Start {
  double relative = 0;  ///< every value changes by up to this fraction of itself
  uint64_t seed = 0;
};

/// The losses of `steps` steps. The batches are the same on every device.
std::vector<double> train(QuantizerKind kind, Device device, Precision precision, Start start, int steps,
                          Storage storage = Storage::float32) {
  Context ctx({.device = device, .threads = 2, .precision = precision});
  TrainingStep step(ctx, tiny(kind), losses(), {.learning_rate = 1e-3}, batch, samples, 3, storage);
  if (start.relative > 0) {
    std::mt19937_64 rng(start.seed);
    std::uniform_real_distribution<double> draw(-start.relative, start.relative);
    struct Tensor {
      std::string name;
      std::vector<int64_t> shape;
      std::vector<float> values;
    };
    std::vector<Tensor> all;
    step.parameters().each_tensor(
        ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
          all.push_back({name, shape, {v.begin(), v.end()}});
        });
    for (Tensor& t : all) {
      for (float& v : t.values) v = static_cast<float>(v * (1 + draw(rng)));
      step.parameters().set_tensor(ctx, t.name, t.shape, t.values);
    }
    step.parameters().refresh(ctx);
  }
  std::mt19937_64 rng(17);
  std::normal_distribution<double> noise(0, 0.1);
  std::vector<float> audio(static_cast<size_t>(batch * samples));
  const std::vector<int32_t> lengths{samples, samples - 37, samples};
  std::vector<double> found;
  for (int i = 0; i < steps; ++i) {
    for (size_t k = 0; k < audio.size(); ++k)
      audio[k] =
          static_cast<float>(0.5 * std::sin(0.07 * static_cast<double>(k % samples) * (1 + 0.2 * i)) + noise(rng));
    step.load(audio, lengths);
    step.run();
    const StepMetrics m = step.metrics();
    found.push_back(static_cast<double>(m.loss()));
  }
  return found;
}

/// Per step, the largest change of the CPU's loss over eight perturbed starts.
std::vector<double> spread(QuantizerKind kind, const std::vector<double>& exact, double relative) {
  std::vector<double> most(exact.size(), 0);
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    const std::vector<double> moved =
        train(kind, {}, Precision::fp32, {relative, seed}, static_cast<int>(exact.size()));
    for (size_t i = 0; i < exact.size(); ++i) most[i] = std::max(most[i], std::fabs(moved[i] - exact[i]));
  }
  return most;
}

std::vector<Device> cuda_devices() {
  std::vector<Device> found;
  for (const Device d : test::devices())
    if (d.kind == Device::cuda) found.push_back(d);
  return found;
}

constexpr QuantizerKind kinds[] = {QuantizerKind::ema, QuantizerKind::factorised};

/// The input of a step, the same on every device.
struct Batch {
  std::vector<float> audio;
  std::vector<int32_t> lengths{samples, samples - 37, samples};
  explicit Batch(int i) : audio(static_cast<size_t>(batch * samples)) {
    std::mt19937_64 rng(17 + static_cast<uint64_t>(i));
    std::normal_distribution<double> noise(0, 0.1);
    for (size_t k = 0; k < audio.size(); ++k)
      audio[k] =
          static_cast<float>(0.5 * std::sin(0.07 * static_cast<double>(k % samples) * (1 + 0.2 * i)) + noise(rng));
  }
};

/// The figures of a step, and the losses of the updated parameters on the same batch.
struct Outcome {
  static constexpr size_t figures = 9, forward = 4;  ///< forward: the first ones, which need no gradient
  static constexpr std::array<const char*, figures> names{"waveform",   "stft",          "mel",
                                                          "commitment", "gradient norm", "waveform after",
                                                          "stft after", "mel after",     "commitment after"};
  std::array<double, figures> values{};
  std::array<std::vector<int32_t>, 2> codes;  ///< before and after
};

/// The whole state of a step, by name.
struct State {
  struct Tensor {
    std::string block, name;  ///< block: "" for the parameter itself, otherwise a name of TrainingStep::state()
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::vector<Tensor> tensors;
  AdamWScalars scalars;
};

/// A training step that can be set to the state of another one.
class Follower {
 public:
  Follower(QuantizerKind kind, Device device)
      : ctx_({.device = device, .threads = 2}),
        step_(ctx_, tiny(kind), losses(), {.learning_rate = 1e-3}, batch, samples, 3) {}

  State state() {
    State s;
    const auto add = [&](const std::string& block) {
      return [&s, block](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
        s.tensors.push_back({block, name, shape, {v.begin(), v.end()}});
      };
    };
    step_.parameters().each_tensor(ctx_, add(""));
    for (const StateTensor& t : step_.state())
      if (t.values.elements() == step_.parameters().trained_elements()) {
        step_.parameters().each_tensor(ctx_, t.values, add(t.name));
      } else {
        std::vector<float> v(static_cast<size_t>(t.values.elements()));
        ctx_.read<float>(t.values, v);
        s.tensors.push_back({t.name, "", {}, std::move(v)});
      }
    s.scalars = step_.scalars();
    return s;
  }

  void restore(const State& s) {
    std::map<std::string, View<float>> blocks;
    for (const StateTensor& t : step_.state()) blocks.emplace(t.name, t.values);
    for (const State::Tensor& t : s.tensors) {
      if (t.block.empty()) {
        REQUIRE(step_.parameters().set_tensor(ctx_, t.name, t.shape, t.values));
      } else if (t.name.empty()) {
        ctx_.write<float>(t.values, blocks.at(t.block));
      } else {
        step_.parameters().set_tensor(ctx_, t.name, t.shape, t.values, blocks.at(t.block));
      }
    }
    step_.set_scalars(s.scalars);
    step_.parameters().refresh(ctx_);
  }

  Outcome step(const Batch& b) {
    Outcome o;
    step_.load(b.audio, b.lengths);
    step_.run();
    const StepMetrics now = step_.metrics();
    o.codes[0] = codes();
    step_.measure();
    const StepMetrics after = step_.metrics();
    o.codes[1] = codes();
    const auto value = [](const StepMetrics& m, const char* term) { return static_cast<double>(m.term(term).value); };
    o.values = {value(now, "waveform"),   value(now, "stft"),   value(now, "mel"),   now.commitment,  now.gradient_norm,
                value(after, "waveform"), value(after, "stft"), value(after, "mel"), after.commitment};
    return o;
  }

 private:
  std::vector<int32_t> codes() {
    const View<const int32_t> c = step_.codes();
    std::vector<int32_t> v(static_cast<size_t>(c.elements()));
    ctx_.read<int32_t>(c, v);
    return v;
  }
  Context ctx_;
  TrainingStep step_;
};

}  // namespace

TEST_CASE("twenty steps on CUDA are the CPU's, each from where the CPU stands", "[step]") {
  // Two independent runs diverge at the first frame that is equally near to two codes, even if both are right. So each
  // step starts from the CPU's state, and only rounding remains: twenty layers of sums of up to a hundred products, at
  // most 1e-5 in figures that need no gradient. Gradients of L1 and of logarithms jump where a bin is exact or silent,
  // so an occasional step differs a thousand times as much as most. For figures that depend on gradients, the median
  // must be within 1e-5. (A learning rate that is wrong by a thousandth gives 4e-5.)
  for (const Device device : cuda_devices())
    for (const QuantizerKind kind : kinds) {
      CAPTURE(static_cast<int>(kind));
      Follower cpu(kind, {}), cuda(kind, device);
      constexpr int steps = 20;
      double first = 0, last = 0;
      std::array<std::vector<double>, Outcome::figures> distances;
      for (int i = 0; i < steps; ++i) {
        const State state = cpu.state();
        const Batch b(i);
        const Outcome exact = cpu.step(b);
        (i == 0 ? first : last) = exact.values[0];
        cuda.restore(state);
        const Outcome found = cuda.step(b);
        for (size_t k = 0; k < Outcome::figures && found.codes == exact.codes; ++k) {
          const double distance = std::fabs(found.values[k] - exact.values[k]) / std::fabs(exact.values[k]);
          INFO("step " << i + 1 << ", " << Outcome::names[k] << ": " << found.values[k] << ", on the CPU "
                       << exact.values[k]);
          CHECK(distance <= (k < Outcome::forward ? 1e-5 : 5e-2));
          distances[k].push_back(distance);
        }
      }
      // Of 14400 codes, rounding moves one in 10^6 past a margin.
      CHECK(distances[0].size() >= steps - 1);
      for (size_t k = Outcome::forward; k < Outcome::figures; ++k) {
        std::vector<double>& d = distances[k];
        std::sort(d.begin(), d.end());
        INFO(Outcome::names[k] << " differs by " << d.front() << " to " << d.back());
        CHECK(d[d.size() / 2] <= 1e-5);
      }
      CHECK(last < first);
    }
}

TEST_CASE("codes are the same on both back ends, but where two codes are equally near", "[step]") {
  for (const Device device : cuda_devices())
    for (const QuantizerKind kind : kinds) {
      CAPTURE(static_cast<int>(kind));
      // The model is trained, so that codebooks are near the latents.
      Context cpu({.threads = 2}), cuda({.device = device});
      TrainingStep step(cpu, tiny(kind), losses(), {.learning_rate = 1e-3}, batch, samples, 3);
      std::mt19937_64 rng(5);
      std::normal_distribution<float> noise(0, 0.1f);
      std::vector<float> audio(static_cast<size_t>(batch * samples));
      const std::vector<int32_t> lengths(batch, samples);
      const auto next = [&] {
        for (size_t k = 0; k < audio.size(); ++k)
          audio[k] = 0.5f * std::sin(0.06f * static_cast<float>(k % samples)) + noise(rng);
        step.load(audio, lengths);
      };
      step.start_codebooks(next, 200);
      for (int i = 0; i < 20; ++i) next(), step.run();
      Codec on_cpu(cpu, tiny(kind)), on_cuda(cuda, tiny(kind));
      on_cpu.parameters().assign(cpu, step.parameters());
      step.parameters().each_tensor(
          cpu, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
            on_cuda.parameters().set_tensor(cuda, name, shape, v);
          });
      on_cuda.parameters().refresh(cuda);
      constexpr int64_t length = 6 * 500, frames = 500, stages = 3;
      std::vector<float> wave(length);
      for (size_t k = 0; k < wave.size(); ++k) wave[k] = 0.5f * std::sin(0.06f * static_cast<float>(k)) + noise(rng);
      const auto codes = [&](Codec& codec) {
        Context& ctx = codec.context();
        codec.reserve_inference(1, length);
        Memory in(ctx, length * sizeof(float)), out(ctx, frames * stages * sizeof(int32_t));
        const View<float> x(reinterpret_cast<float*>(in.data()), {.time = length});
        const View<int32_t> c(reinterpret_cast<int32_t*>(out.data()), {.time = frames, .channels = stages});
        ctx.write<float>(wave, x);
        codec.encode(x, c);
        std::vector<int32_t> found(frames * stages);
        ctx.read<int32_t>(c, found);
        return found;
      };
      const std::vector<int32_t> a = codes(on_cpu), b = codes(on_cuda);
      // The last bits of the encoders' results differ by rounding. If the two nearest codes of a frame are nearer to
      // each other than that, the other one may be chosen, and then all later stages differ. With evenly distributed
      // margins this happens in about one frame in 10^5. One frame of a thousand would be bad luck, and two are an
      // error.
      std::string differ;
      int64_t frames_that_differ = 0;
      for (size_t f = 0; f < frames; ++f)
        for (size_t i = f * stages; i < (f + 1) * stages; ++i)
          if (a[i] != b[i]) {
            ++frames_that_differ;
            differ += " " + std::to_string(f);
            break;
          }
      INFO("frames that differ:" << differ);
      CHECK(frames_that_differ <= 1);
      CHECK(std::count(a.begin(), a.end(), a[0]) < static_cast<int64_t>(a.size()) / 2);  // the codes are not constant
    }
}

TEST_CASE("the first step in tf32 is as near as its rounding lets it be", "[step]") {
  for (const Device device : cuda_devices())
    for (const QuantizerKind kind : kinds) {
      CAPTURE(static_cast<int>(kind));
      const double exact = train(kind, {}, Precision::fp32, {}, 1)[0],
                   found = train(kind, device, Precision::tf32, {}, 1)[0];
      // Both factors of a product are rounded to 2^-11 of themselves. The test perturbs the weights alone by twice as
      // much. This changes the loss more, because a weight has the same error at every sample and an activation does
      // not.
      const double most = spread(kind, {exact}, 2 * 0x1p-11)[0];
      INFO(found << ", on the CPU " << exact << ", eight moved starts within " << most);
      CHECK(std::fabs(found - exact) <= 3 * most);
    }
}

TEST_CASE("the first step in bf16 is as near as its rounding lets it be, and training goes on", "[step]") {
  for (const Device device : test::devices())
    for (const QuantizerKind kind : kinds) {
      CAPTURE(str(device), static_cast<int>(kind));
      const double exact = train(kind, {}, Precision::fp32, {}, 1)[0];
      const std::vector<double> found = train(kind, device, Precision::fp32, {}, 20, Storage::bfloat16);
      // Weights, and every input and output of a layer, are rounded to 2^-9 of themselves. The method is that of tf32.
      const double most = spread(kind, {exact}, 4 * 0x1p-9)[0];
      INFO(found[0] << ", in fp32 " << exact << ", eight moved starts within " << most);
      CHECK(std::fabs(found[0] - exact) <= 3 * most);
      CHECK(found[0] != exact);  // it was bf16
      CHECK(found.back() < found.front());
    }
}

TEST_CASE("a captured step waits for nothing and allocates nothing on the device", "[step]") {
  for (const Device device : cuda_devices()) {
    Context ctx({.device = device});
    TrainingStep step(ctx, tiny(QuantizerKind::ema), losses(), {}, batch, samples, 3);
    std::vector<float> audio(static_cast<size_t>(batch * samples), 0.25f);
    const std::vector<int32_t> lengths(batch, samples);
    step.load(audio, lengths);
    step.run();
    step.run();  // captured here: a wait or an allocation in a capture throws
    step.run();
    CHECK(step.scalars().step == 3);
  }
}
