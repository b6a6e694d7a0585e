// The LSTM layer: its parameters, and a long sequence in windows.
#include <array>
#include <cstring>

#include "harness.h"
#include "nacre/nn/layers.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t channels = 12, layers = 2;

/// An inference plan of the layer over `time` rows.
template <class T>
struct Runner {
  Plan plan;
  Output<T> source;
  View<const T> y;

  Runner(Context& ctx, const Lstm& lstm, Shape shape) : plan(ctx, Purpose::inference) {
    plan.reserve([&](Plan& p) {
      source = p.source<T>(shape);
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

/// Windows of `length` rows that begin `step` rows apart, the last at the end of the sequence. Each carries the state
/// before its row `next`.
template <class T>
void windows_case(Device device, int64_t total, int64_t length, int64_t step, int64_t next) {
  CAPTURE(str(device), total, length, step, next);
  Model m(device, storage_of<T>);
  const std::vector<T> x = drawn<T>(total * channels);
  const std::vector<T> whole = Runner<T>(m.ctx, m.lstm, {1, total, 1, channels})(x);
  Runner<T> window(m.ctx, m.lstm, {1, length, 1, channels});
  int64_t carried = 0;  // the row that the state stands before
  for (int64_t begin = 0;; begin = std::min(begin + step, total - length)) {
    const bool last = begin + length == total;
    window.plan.window() = {.first = carried - begin, .next = last ? -1 : next};
    const std::vector<T> found = window(part(x, begin, length));
    CAPTURE(begin);
    const int64_t first = carried - begin;
    CHECK(same(part(found, first, length - first), part(whole, carried, length - first)));
    CHECK(same(part(found, 0, first), part(x, begin, first)));
    if (last) break;
    carried = begin + next;
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

TEST_CASE("an LSTM over windows has the bits of the whole", "[lstm]") {
  for (const Device device : devices())
    for (const auto& [total, length, step, next] : {std::array<int64_t, 4>{97, 30, 18, 24},
                                                    {97, 30, 23, 24},
                                                    {60, 7, 3, 5},
                                                    {40, 30, 1, 2},
                                                    {12, 2, 1, 2},
                                                    {31, 10, 9, 10}}) {
      windows_case<float>(device, total, length, step, next);
      windows_case<bf16>(device, total, length, step, next);
    }
}

TEST_CASE("an LSTM starts anew where no window is set", "[lstm]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Model m(device, Storage::float32);
    Runner<float> run(m.ctx, m.lstm, {1, 9, 1, channels});
    const std::vector<float> x = drawn<float>(9 * channels), first = run(x);
    CHECK(same(run(x), first));
    run.plan.window().next = 4;
    CHECK(same(run(x), first));  // what is carried changes nothing here
    run.plan.window() = {.first = 2, .next = 2};
    CHECK_FALSE(same(part(run(x), 2, 7), part(first, 2, 7)));  // from another state
    // Nothing was computed before row 2, so the state is still that before row 4.
    run.plan.window() = {.first = 4, .next = -1};
    CHECK(same(part(run(x), 4, 5), part(first, 4, 5)));
    run.plan.window() = {.first = 0, .next = 0};
    run(x);
    run.plan.window() = {.first = 4, .next = -1};
    std::vector<float> from_zero(x.begin() + 4 * channels, x.end());
    from_zero.resize(x.size());
    CHECK(same(part(run(x), 4, 5), part(Runner<float>(m.ctx, m.lstm, {1, 9, 1, channels})(from_zero), 0, 5)));
    for (const Window& wrong : {Window{-1, -1}, Window{10, -1}, Window{3, 2}, Window{0, 10}}) {
      run.plan.window() = wrong;
      CHECK_THROWS_WITH(run(x), Catch::Contains("lstm: window from"));
    }
  }
}

TEST_CASE("items of an LSTM know nothing of each other and of windows", "[lstm]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Model m(device, Storage::float32);
    const std::vector<float> x = drawn<float>(3 * 9 * channels);
    Runner<float> together(m.ctx, m.lstm, {3, 9, 1, channels}), alone(m.ctx, m.lstm, {1, 9, 1, channels});
    together.plan.window() = {.first = 3, .next = 5};
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
