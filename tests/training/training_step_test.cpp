// The training step: no allocation, reproducible bits, a batch with NaN.
#include "nacre/training/training_step.h"

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "harness.h"

using namespace nacre;

namespace {

struct Setup {
  CodecConfig codec;
  LossConfig loss;
  OptimizerConfig optimizer;
  int64_t batch = 3, samples = 120;

  explicit Setup(QuantizerKind kind = QuantizerKind::ema) {
    codec.sample_rate = 8000;
    codec.encoder_dim = 6, codec.encoder_rates = {2, 3};
    codec.decoder_dim = 24, codec.decoder_rates = {3, 2};
    codec.latent_dim = 10, codec.dilations = {1, 3};
    codec.quantizer = kind, codec.n_codebooks = 3, codec.codebook_size = 12, codec.codebook_dim = 4;
    codec.metric = kind == QuantizerKind::ema ? VqMetric::euclidean : VqMetric::cosine;
    codec.dead_below = 0.5;  // so that dead codes are replaced within a few steps
    loss.windows = {16, 64}, loss.mels = {3, 8};
    loss.orthogonal = true;
    optimizer.learning_rate = 1e-3;
    optimizer.ema_decay = 0.9;
  }
};

/// A training run on made-up batches.
struct Run {
  Setup setup;
  Context ctx;
  TrainingStep step;
  std::mt19937_64 rng;
  std::vector<float> audio;
  std::vector<int32_t> lengths, stages;

  Run(const Setup& s, Device device, int threads = 2, uint64_t seed = 3)
      : setup(s),
        ctx({.device = device, .threads = threads}),
        step(ctx, s.codec, s.loss, s.optimizer, s.batch, s.samples, seed),
        rng(seed) {
    audio.resize(static_cast<size_t>(s.batch * step.samples()));
    lengths.resize(static_cast<size_t>(s.batch)), stages.resize(lengths.size());
  }
  void draw() {
    std::normal_distribution<float> noise(0, 0.3f);
    for (float& x : audio) x = std::clamp(noise(rng), -1.0f, 1.0f);
    for (int32_t& n : lengths) n = static_cast<int32_t>(step.samples() - static_cast<int64_t>(rng() % 50));
    for (int32_t& n : stages) n = 1 + static_cast<int32_t>(rng() % static_cast<uint64_t>(setup.codec.n_codebooks));
  }
  void load() { step.load(audio, lengths, stages); }
  void next() { draw(), load(); }
  /// The whole state that the next step depends on.
  std::vector<float> state() {
    std::vector<float> all = everything(step.parameters());
    for (const auto& t : step.state()) {
      std::vector<float> v(static_cast<size_t>(t.values.elements()));
      ctx.read<float>(t.values, v);
      all.insert(all.end(), v.begin(), v.end());
    }
    const AdamWScalars s = step.scalars();
    all.push_back(static_cast<float>(s.step));
    return all;
  }
  std::vector<float> everything(const Parameters& p, const std::string& part = "") {
    std::vector<float> all;
    p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
      if (name.find(part) != std::string::npos) all.insert(all.end(), v.begin(), v.end());
    });
    return all;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
bool finite(const std::vector<float>& v) {
  return std::all_of(v.begin(), v.end(), [](float x) { return std::isfinite(x); });
}

constexpr QuantizerKind kinds[] = {QuantizerKind::ema, QuantizerKind::factorised};

}  // namespace

TEST_CASE("a training step allocates nothing", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds)
    for (const int threads : {1, 2}) {
      CAPTURE(static_cast<int>(kind), threads);
      Run run(Setup(kind), device, threads);
      run.next();
      run.step.run();
      run.step.run();  // on CUDA, the second run is captured
      {
        const test::AllocationCounter counter;
        run.load();
        run.step.run();
        CHECK(counter.count() == 0);
      }
      run.step.set_learning_rate(1e-4);
      run.step.measure();
      {
        const test::AllocationCounter counter;
        run.step.set_learning_rate(1e-3);
        run.step.measure();
        (void)run.step.metrics();
        CHECK(counter.count() == 0);
      }
    }
}

TEST_CASE("a hundred steps leave the heap as it was", "[step]") {
  for (const QuantizerKind kind : kinds) {
    Run run(Setup(kind), {}, 1);
    run.draw();
    const auto steps = [&](int n) {
      for (int i = 0; i < n; ++i) run.load(), run.step.run();
    };
    steps(5);
    const auto live = [] {
      const struct mallinfo2 m = mallinfo2();
      return m.uordblks + m.hblkhd;
    };
    const auto before = live();
    steps(100);
    // Freed blocks move between free lists, and some lists count as in use. A leak of 48 bytes per step would be more.
    CHECK(static_cast<double>(live()) < static_cast<double>(before) + 4096);
  }
}

TEST_CASE("encoding and decoding allocate nothing", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    Context ctx({.device = device, .threads = 2});
    Codec codec(ctx, Setup(kind).codec);
    codec.parameters().initialise(ctx, 1);
    codec.reserve_inference(2, 120);
    Memory audio(ctx, 240 * sizeof(float)), codes(ctx, 2 * 20 * 3 * sizeof(int32_t));
    const View<float> wave(reinterpret_cast<float*>(audio.data()), {.batch = 2, .time = 120});
    const View<int32_t> frames(reinterpret_cast<int32_t*>(codes.data()), {.batch = 2, .time = 20, .channels = 3});
    ctx.write<float>(std::vector<float>(240, 0.1f), wave);
    const auto both = [&] {
      codec.encode(View<const float>(wave), frames);
      codec.decode(View<const int32_t>(frames), wave);
    };
    both();
    const test::AllocationCounter counter;
    both();
    codec.reserve_inference(2, 120);
    CHECK(counter.count() == 0);
  }
}

TEST_CASE("training is a function of seed and batches: bit for bit", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    CAPTURE(static_cast<int>(kind));
    const auto train = [&](int threads, int steps) {
      Run run(Setup(kind), device, threads);
      run.step.start_codebooks([&] { run.next(); }, 100);
      for (int i = 0; i < steps; ++i) run.next(), run.step.run();
      return run.state();
    };
    const std::vector<float> first = train(2, 20);
    CHECK(finite(first));
    CHECK(same_bits(first, train(2, 20)));
    CHECK(!same_bits(first, train(2, 19)));
  }
}

TEST_CASE("codebooks learn from batches before the first step, and nothing else changes", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Setup setup(QuantizerKind::ema);
  setup.codec.dead_below = 0;
  const auto start = [&](Run& run, int64_t rows) {
    const auto network = [&] {
      std::vector<float> all = run.everything(run.step.parameters(), "encoder");
      const std::vector<float> decoder = run.everything(run.step.parameters(), "decoder");
      all.insert(all.end(), decoder.begin(), decoder.end());
      return all;
    };
    const std::vector<float> drawn = network();
    std::vector<int64_t> told;
    int64_t all = 0;
    run.step.start_codebooks([&] { run.next(); }, 40, rows,
                             [&](int64_t done, int64_t total) {
                               told.push_back(done);
                               all = total;
                             });
    CHECK(told.front() == 0);
    CHECK(std::is_sorted(told.begin(), told.end()));
    CHECK(told.back() == all);
    CHECK(run.step.scalars().step == 0);
    CHECK(same_bits(network(), drawn));
    // A new random sequence, so that every run is measured on the same batches.
    run.rng.seed(99);
    double loss = 0;
    for (int i = 0; i < 20; ++i)
      run.next(), run.step.measure(), loss += static_cast<double>(run.step.metrics().commitment);
    return loss;
  };
  Run few(setup, device), many(setup, device), again(setup, device);
  const double before = start(few, 0), after = start(many, 3600);
  CHECK(after < before);
  start(again, 3600);
  CHECK(same_bits(many.state(), again.state()));

  // Averages over more frames give other codebooks, at the start and in a step.
  setup.codec.ema_decay = 0.9;
  Setup spanning = setup;
  spanning.codec.ema_rows = 3600;
  REQUIRE(spanning.codec.ema_decay_of(setup.batch * setup.samples / setup.codec.hop()) > 0.95);
  Run quick(setup, device), slow(spanning, device);
  CHECK(start(quick, 3600) < before);
  CHECK(start(slow, 3600) < before);
  CHECK(!same_bits(quick.state(), slow.state()));
  Run quick_step(setup, device), slow_step(spanning, device);
  for (Run* run : {&quick_step, &slow_step}) run->next(), run->step.run();
  CHECK(!same_bits(quick_step.state(), slow_step.state()));
}

TEST_CASE("a captured step, replayed, does what running it does", "[step][rtx3090]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    Run eager(Setup(kind), device), replayed(Setup(kind), device);
    eager.step.set_capture(false), replayed.step.set_capture(true);
    for (int i = 0; i < 5; ++i) {
      const double rate = 1e-3 / (1 + i);  // values that change from step to step are on the device
      eager.step.set_learning_rate(rate), replayed.step.set_learning_rate(rate);
      eager.next(), eager.step.run();
      replayed.next(), replayed.step.run();
      CHECK(eager.step.scalars().step == i + 1);
      CHECK(replayed.step.scalars().step == i + 1);
    }
    CHECK(same_bits(eager.state(), replayed.state()));
    // A graph captured here, outside of the step.
    eager.next(), replayed.next();
    eager.step.set_capture(false), replayed.step.set_capture(false);
    Graph graph = replayed.ctx.capture([&] { replayed.step.run(); });
    eager.step.run(), graph.replay();
    CHECK(same_bits(eager.state(), replayed.state()));
  }
}

TEST_CASE("a training step lowers the loss of a batch it sees again and again", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    Setup setup(kind);
    setup.optimizer.learning_rate = 3e-3;
    Run run(setup, device);
    run.next();
    std::fill(run.stages.begin(), run.stages.end(), 3);
    run.load();
    run.step.measure();
    const float before = run.step.metrics().loss();
    for (int i = 0; i < 60; ++i) run.step.run();
    run.step.measure();
    CHECK(run.step.metrics().loss() < 0.95f * before);
  }
}

TEST_CASE("measuring changes no state", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    Run run(Setup(kind), device);
    for (int i = 0; i < 3; ++i) run.next(), run.step.run();
    const std::vector<float> before = run.state();
    for (int i = 0; i < 3; ++i) run.next(), run.step.measure();
    CHECK(same_bits(before, run.state()));
    const StepMetrics m = run.step.metrics();
    for (const char* term : {"waveform", "stft", "mel"}) CHECK(m.term(term).value > 0);
    CHECK_THROWS_WITH(m.term("pitch"), Catch::Contains("\"pitch\", expected one of waveform, stft, mel"));
    CHECK(m.commitment > 0);
    CHECK(m.updates == 3);
  }
}

TEST_CASE("a step that is given up leaves the state as it was", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    Run run(Setup(kind), device), straight(Setup(kind), device);
    int questions = 0;
    for (Run* r : {&run, &straight}) {
      r->next();
      CHECK(r->step.run([&] { return ++questions, false; }));
      r->next();
    }
    const int in_all = questions / 2;
    CHECK(in_all >= (device.kind == Device::cpu ? 40 : 1));  // on CUDA there is one question, before the step
    const std::vector<float> before = run.state();
    for (const int last : {1, 1 + in_all / 4, 1 + in_all / 2, 1 + 3 * in_all / 4, in_all}) {
      CAPTURE(last, in_all);
      questions = 0;
      CHECK_FALSE(run.step.run([&] { return ++questions == std::min(last, in_all); }));
      CHECK(same_bits(before, run.state()));
    }
    run.step.run(), straight.step.run();
    CHECK(same_bits(straight.state(), run.state()));
    CHECK(!same_bits(before, run.state()));
  }
}

TEST_CASE("a batch with NaN is skipped, counted, and leaves nothing behind", "[step]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds)
    for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      CAPTURE(static_cast<int>(kind), poison);
      Run run(Setup(kind), device);
      for (int i = 0; i < 3; ++i) run.next(), run.step.run();
      const std::vector<float> before = run.everything(run.step.parameters(), ".w");
      run.draw();
      std::fill(run.stages.begin(), run.stages.end(), 3);
      std::fill(run.lengths.begin(), run.lengths.end(), static_cast<int32_t>(run.step.samples()));
      const std::vector<float> good = run.audio;
      run.audio[static_cast<size_t>(run.step.samples()) + 57] = poison;  // in the second item
      run.load();
      for (int i = 0; i < 3; ++i) run.step.run();
      StepMetrics m = run.step.metrics();
      CHECK(m.updates == 3);
      CHECK(m.skipped == 3);
      CHECK(same_bits(before, run.everything(run.step.parameters(), ".w")));
      CHECK(finite(run.state()));

      // A whole batch of such values.
      std::fill(run.audio.begin(), run.audio.end(), poison);
      const std::vector<float> codebooks = run.everything(run.step.parameters(), ".codebook.");
      run.load();
      run.step.run();
      CHECK(run.step.metrics().skipped == 4);
      CHECK(finite(run.state()));
      CHECK(same_bits(codebooks, run.everything(run.step.parameters(), ".codebook.")));

      // The next good batch is a normal step.
      run.audio = good;
      run.load();
      for (int i = 0; i < 20; ++i) run.step.run();
      m = run.step.metrics();
      CHECK(m.updates == 23);
      CHECK(m.skipped == 4);
      CHECK(std::isfinite(m.loss()));
      CHECK(finite(run.state()));
      CHECK(!same_bits(before, run.everything(run.step.parameters(), ".w")));
    }
}

TEST_CASE("training steps refuse what they cannot do, by name", "[step]") {
  Context ctx({.threads = 1});
  const auto error_of = [&](const Setup& s, int64_t batch, int64_t samples) -> std::string {
    try {
      TrainingStep step(ctx, s.codec, s.loss, s.optimizer, batch, samples, 1);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.what();
    }
    return "";
  };
  const auto names = [](const std::string& what, const char* key) { return what.find(key) != std::string::npos; };
  CHECK(names(error_of(Setup(), 0, 120), "batch_size"));
  CHECK(names(error_of(Setup(), 1, 5), "segment_length"));
  Setup s;
  s.optimizer.beta2 = 1;
  CHECK(names(error_of(s, 1, 120), "optimizer.beta2"));
  s = Setup();
  s.optimizer.learning_rate = std::numeric_limits<double>::quiet_NaN();
  CHECK(names(error_of(s, 1, 120), "optimizer.learning_rate"));
  s = Setup();
  s.loss.mels = {1};
  CHECK(names(error_of(s, 1, 120), "loss.mels"));
  s = Setup();
  s.loss.waveform = s.loss.stft = s.loss.mel = 0;
  CHECK(names(error_of(s, 1, 120), "loss.waveform"));
  s = Setup();
  s.loss.windows = {16, 66};
  CHECK(names(error_of(s, 1, 120), "loss.windows"));
  // A segment is rounded up to whole frames.
  Setup t;
  TrainingStep step(ctx, t.codec, t.loss, t.optimizer, 1, 121, 1);
  CHECK(step.samples() == 126);
  CHECK_THROWS_AS(step.load(std::vector<float>(125), std::vector<int32_t>(1)), Error);
}

TEST_CASE("fewer codebooks per item: losses are means over the whole batch, and unused stages get no gradient",
          "[step][codebooks]") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  for (const QuantizerKind kind : kinds) {
    CAPTURE(static_cast<int>(kind));
    Run run(Setup(kind), device);
    run.draw();
    std::fill(run.lengths.begin(), run.lengths.end(), static_cast<int32_t>(run.step.samples()));
    struct Result {
      double commitment = 0, codebook = 0;
      std::vector<int32_t> codes;
    };
    const auto with = [&](std::vector<int32_t> stages) {
      run.stages = std::move(stages);
      run.load();
      run.step.gradients();
      const StepMetrics m = run.step.metrics();
      Result r{static_cast<double>(m.commitment), static_cast<double>(m.codebook),
               std::vector<int32_t>(static_cast<size_t>(run.step.codes().elements()))};
      run.ctx.read<int32_t>(run.step.codes(), r.codes);
      return r;
    };
    const Result all = with({3, 3, 3});
    CHECK(with({0, 0, 0}).commitment == 0);
    CHECK(all.commitment > 0);
    // An item with n codebooks adds n terms, divided by the frames of all items. Items are independent, so the loss of
    // a batch is the sum of what each item gives alone. Every result is rounded to float once; the sums are in double.
    for (const std::vector<int32_t>& stages : std::vector<std::vector<int32_t>>{{3, 3, 3}, {1, 3, 2}, {2, 0, 3}}) {
      CAPTURE(stages);
      const Result together = with(stages);
      double sum = 0;
      for (size_t item = 0; item < 3; ++item) {
        std::vector<int32_t> one(3, 0);
        one[item] = stages[item];
        const Result alone = with(one);
        CHECK((alone.commitment > 0) == (stages[item] > 0));
        CHECK(alone.codebook == alone.commitment);
        // Residuals and codes go on behind the used stages.
        CHECK(alone.codes == all.codes);
        sum += alone.commitment;
      }
      CHECK(std::fabs(together.commitment - sum) <= test::ulp * (together.commitment + sum) * (1 + 0x1p-20));
      CHECK(together.codebook == together.commitment);
      CHECK(together.codes == all.codes);
    }
    // Stages that no item uses have no gradient at all; every other stage has one.
    if (kind != QuantizerKind::factorised) continue;
    for (int32_t most = 1; most <= 3; ++most) {
      with({most, 1, 0});
      int64_t tensors = 0;
      const Parameters& p = run.step.parameters();
      p.each_tensor(run.ctx, p.gradients(),
                    [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> gradient) {
                      const std::string before = "quantizer.quantizers.";
                      if (!name.starts_with(before)) return;
                      CAPTURE(most, name);
                      const bool zero = std::all_of(gradient.begin(), gradient.end(), [](float g) { return g == 0; });
                      CHECK(zero == (name[before.size()] - '0' >= most));
                      ++tensors;
                    });
      CHECK(tensors == 3 * 7);  // codebooks, and per projection a direction, a gain and a bias
    }
  }
}
