// The LSTM layer: its parameters, and a sequence that arrives in blocks.
#include <array>
#include <cstring>

#include "harness.h"
#include "nacre/nn/layers.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t channels = 12, layers = 2;

/// A plan of the layer over `time` rows: of a whole sequence, or of a block of `frames` frames whose input is `lag`
/// rows late.
template <class T>
struct Runner {
  Plan plan;
  Output<T> source;
  View<const T> y;

  Runner(Context& ctx, const Lstm& lstm, Shape shape, int64_t frames = 0, int64_t lag = 0)
      : plan(ctx, frames > 0 ? Purpose::streaming : Purpose::inference, frames) {
    plan.reserve([&](Plan& p) {
      source = p.source<T>(shape);
      p.set_lag(source.flow, lag);
      y = p.result<T>(lstm.plan(p, source.flow));
    });
  }
  std::vector<T> operator()(const std::vector<T>& x) {
    Context& ctx = plan.context();
    ctx.write<T>(x, source.value);
    plan.run();
    std::vector<T> result(x.size());
    ctx.read<T>(y, result);
    return result;
  }
};

/// A layer with drawn parameters.
struct Model {
  Context ctx;
  Parameters parameters;
  Lstm lstm;
  Model(Device device, Storage storage)
      : ctx({.device = device, .threads = 2}), lstm(parameters, "lstm", channels, layers) {
    parameters.allocate(ctx, false, storage);
    parameters.initialise(ctx, 3);
  }
};

template <class T>
std::vector<T> drawn(int64_t n) {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<float> draw(-1, 1);
  std::vector<T> v(static_cast<size_t>(n));
  for (T& x : v) x = store<T>(draw(rng));
  return v;
}
template <class T>
std::vector<T> part(const std::vector<T>& v, int64_t first, int64_t count) {
  return {v.begin() + first * channels, v.begin() + (first + count) * channels};
}
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// A batch of two items in blocks of `frames` frames of `per_frame` rows, which are `lag` rows late.
template <class T>
void blocks_case(Device device, int64_t total, int64_t frames, int64_t per_frame, int64_t lag) {
  CAPTURE(str(device), total, frames, per_frame, lag);
  Model m(device, storage_of<T>);
  const int64_t length = frames * per_frame;
  const std::vector<T> signals = drawn<T>(2 * total * channels);
  const std::vector<T> whole = Runner<T>(m.ctx, m.lstm, {2, total, 1, channels})(signals);
  // In front of the signal and behind it there may be anything.
  std::vector<T> items[2], found[2];
  for (int64_t b = 0; b < 2; ++b) {
    items[b] = drawn<T>((lag + total + length + lag) * channels);
    std::copy_n(signals.begin() + b * total * channels, total * channels, items[b].begin() + lag * channels);
  }
  Runner<T> block(m.ctx, m.lstm, {2, length, 1, channels}, frames, lag);
  CHECK(block.plan.lag(block.source.flow) == lag);
  for (int pass = 0; pass < 2; ++pass) {  // the second after a reset
    for (auto& of_item : found) of_item.clear();
    for (int64_t done = 0; done < total + lag; done += length) {
      block.plan.block() = {.first = done / per_frame};
      std::vector<T> x = part(items[0], done, length);
      const std::vector<T> second = part(items[1], done, length);
      x.insert(x.end(), second.begin(), second.end());
      const std::vector<T> y = block(x);
      for (int64_t b = 0; b < 2; ++b) {
        const std::vector<T> of_item = part(y, b * length, length);
        found[b].insert(found[b].end(), of_item.begin(), of_item.end());
      }
    }
    for (int64_t b = 0; b < 2; ++b) CHECK(same(part(found[b], lag, total), part(whole, b * total, total)));
    block.plan.reset();
  }
}

}  // namespace

TEST_CASE("an LSTM layer has PyTorch's names", "[lstm]") {
  Context ctx({.threads = 1});
  Parameters p;
  const Lstm lstm(p, "encoder.layers.13.lstm", 4, 2);
  p.allocate(ctx, false);
  p.initialise(ctx, 1);
  std::vector<std::string> names;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
    names.push_back(name.substr(std::string("encoder.layers.13.lstm.").size()));
    CHECK(shape == (names.back().starts_with("weight") ? std::vector<int64_t>{16, 4} : std::vector<int64_t>{16}));
    // Uniform in +-1/2: all inside, and the largest of 16 or 64 values is above 1/4.
    float largest = 0;
    for (const float x : v) largest = std::max(largest, std::fabs(x));
    CHECK(largest <= 0.5f);
    CHECK(largest > 0.25f);
  });
  CHECK(names == std::vector<std::string>{"bias_hh_l0", "bias_hh_l1", "bias_ih_l0", "bias_ih_l1", "weight_hh_l0",
                                          "weight_hh_l1", "weight_ih_l0", "weight_ih_l1"});
  CHECK_THROWS_AS(Lstm(p, "none", 4, 0), Error);
  CHECK_THROWS_AS(Lstm(p, "none", 0, 1), Error);
}

TEST_CASE("a named weight is stored as it is, in either storage", "[lstm]") {
  const Device device = GENERATE(from_range(devices()));
  Context ctx({.device = device, .threads = 1});
  for (const Storage storage : {Storage::float32, Storage::bfloat16}) {
    Parameters p;
    Weight& w = p.add_named_weight("a.weight_ih_l0", {2, 3}, {.batch = 2, .channels = 3}, {Init::uniform, 1});
    CHECK(&p.add_named_weight("a.weight_ih_l0", {2, 3}, {.batch = 2, .channels = 3}, {Init::zero}) == &w);
    p.allocate(ctx, true, storage);
    const std::vector<float> values{1, 2, 3, 4, 5, 6.5f};
    REQUIRE(p.set_tensor(ctx, "a.weight_ih_l0", {2, 3}, values));
    p.refresh(ctx);
    std::vector<float> found(6);
    if (storage == Storage::float32) {
      ctx.read<float>(w.value<float>(), found);
    } else {
      std::vector<bf16> rounded(6);
      ctx.read<bf16>(w.value<bf16>(), rounded);
      for (size_t i = 0; i < 6; ++i) found[i] = to_float(rounded[i]);
    }
    CHECK(found == values);
    CHECK(w.grad.shape == Shape{.batch = 2, .channels = 3});
  }
}

TEST_CASE("an LSTM over blocks has the bits of the whole", "[lstm][streaming][step]") {
  for (const Device device : devices())
    for (const auto& [total, frames, per_frame, lag] : {std::array<int64_t, 4>{97, 10, 3, 0},
                                                        {40, 1, 1, 0},
                                                        {31, 1, 7, 3},
                                                        {60, 2, 4, 8},
                                                        {60, 1, 4, 21},
                                                        {5, 3, 4, 2}}) {
      blocks_case<float>(device, total, frames, per_frame, lag);
      blocks_case<bf16>(device, total, frames, per_frame, lag);
    }
}

TEST_CASE("an LSTM without blocks starts anew in every run", "[lstm]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Model m(device, Storage::float32);
    Runner<float> run(m.ctx, m.lstm, {1, 9, 1, channels});
    const std::vector<float> x = drawn<float>(9 * channels), first = run(x);
    CHECK(same(run(x), first));
  }
}

TEST_CASE("items of an LSTM know nothing of each other", "[lstm]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Model m(device, Storage::float32);
    const std::vector<float> x = drawn<float>(3 * 9 * channels);
    Runner<float> together(m.ctx, m.lstm, {3, 9, 1, channels}), alone(m.ctx, m.lstm, {1, 9, 1, channels});
    const std::vector<float> y = together(x);
    for (int64_t b = 0; b < 3; ++b) {
      const std::vector<float> found = alone(part(x, 9 * b, 9)), wanted = part(y, 9 * b, 9);
      double worst = 0;
      for (size_t i = 0; i < found.size(); ++i)
        worst = std::max(worst, static_cast<double>(std::fabs(found[i] - wanted[i])));
      // Values of about 1 from sums of 24 terms below 1; the order of sums may differ with the batch.
      CHECK(worst <= 9 * 24 * ulp);
    }
  }
}

TEST_CASE("an LSTM declares its own position", "[lstm]") {
  Context ctx({.threads = 1});
  Parameters p;
  const Lstm lstm(p, "lstm", 4, 2);
  Plan plan(ctx, Purpose::inference);
  Flow from, to;
  plan.survey([&](Plan& w) {
    from = w.source<float>({.time = 20, .channels = 4}).flow;
    to = lstm.plan(w, from);
  });
  const Span span = plan.reach(to, {7, 8}, from);
  CHECK(span.first == 7);
  CHECK(span.last == 8);
  double products = 0;
  for (const CostRow& row : plan.costs()) products += row.forward.products;
  CHECK(products == 2.0 * 20 * 2 * 2 * 16 * 4);  // rows, layers, weights of a layer
}
