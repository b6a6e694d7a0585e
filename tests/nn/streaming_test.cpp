// Single layers in streaming plans: blocks give what the whole signal gives, bit for bit, because all sums are exact.
#include <algorithm>
#include <random>

#include "harness.h"
#include "nacre/nn/layers.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t channels = 3;

struct Drawn {
  std::mt19937_64 random{seed()};
  std::vector<float> operator()(int64_t n, int low = -3, int high = 3) {
    std::uniform_int_distribution<int> draw(low, high);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) v = static_cast<float>(draw(random));
    return x;
  }
};

/// Sets every tensor to small whole numbers.
void draw_parameters(Context& ctx, Parameters& p, Drawn& drawn) {
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    int64_t size;
  };
  std::vector<Tensor> tensors;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
    tensors.push_back({name, shape, static_cast<int64_t>(v.size())});
  });
  for (const Tensor& t : tensors) REQUIRE(p.set_tensor(ctx, t.name, t.shape, drawn(t.size)));
  p.refresh(ctx);
}

std::vector<float> whole(Context& ctx, const Net& net, const std::vector<float>& x) {
  Plan plan(ctx, Purpose::inference);
  View<float> in;
  View<const float> out;
  plan.reserve([&](Plan& p) {
    const auto source = p.source<float>({.time = static_cast<int64_t>(x.size()) / channels, .channels = channels});
    in = source.value, out = p.result<float>(net(p, source.flow));
  });
  ctx.write<float>(x, in);
  plan.run();
  std::vector<float> y(static_cast<size_t>(out.elements()));
  ctx.read<float>(out, y);
  return y;
}

struct Result {
  std::vector<float> y{};
  int64_t lag = 0;
};
/// Blocks of `frames` frames. The input is `late` rows late. Blocks continue until the last row of the result has come.
Result streamed(Context& ctx, const Net& net, const std::vector<float>& x, int64_t per_frame, int64_t frames,
                int64_t late, Drawn& drawn) {
  struct Planned {
    Plan plan;
    View<float> in{};
    View<const float> out{};
    int64_t lag = 0;
    Planned(Context& c, const Net& n, int64_t rows_per_frame, int64_t length, int64_t late_rows)
        : plan(c, Purpose::streaming, length) {
      plan.reserve([&](Plan& p) {
        const auto source = p.source<float>({.time = length * rows_per_frame, .channels = channels});
        p.set_lag(source.flow, late_rows);
        const Flow result = n(p, source.flow);
        in = source.value, out = p.result<float>(result), lag = p.lag(result);
      });
    }
  };
  const int64_t total = static_cast<int64_t>(x.size()) / channels / per_frame;
  Planned block(ctx, net, per_frame, frames, late);
  Planned first(ctx, net, per_frame, std::max(frames, block.plan.start_frames()), late);
  CHECK(first.plan.state_bytes() == block.plan.state_bytes());
  CHECK(first.lag == block.lag);
  const int64_t out_per_frame = block.out.shape.time / frames, row = block.out.shape.channels;
  Result r{.lag = block.lag};
  for (int64_t at = 0; at * out_per_frame - block.lag < total * out_per_frame;) {
    Planned& p = at == 0 ? first : block;
    const int64_t length = p.plan.block_frames();
    // In front of the signal and behind it there may be anything.
    std::vector<float> in = drawn(length * per_frame * channels, 50, 99);
    for (int64_t i = 0; i < length * per_frame; ++i)
      if (const int64_t from = at * per_frame - late + i; from >= 0 && from < total * per_frame)
        std::copy_n(x.begin() + from * channels, channels, in.begin() + i * channels);
    ctx.write<float>(in, p.in);
    p.plan.block() = {.first = at, .total = at + length >= total ? total : -1};
    p.plan.run();
    if (at == 0) block.plan.continue_from(first.plan);
    std::vector<float> out(static_cast<size_t>(p.out.elements()));
    ctx.read<float>(p.out, out);
    for (int64_t i = 0; i < length * out_per_frame; ++i)
      if (const int64_t to = at * out_per_frame - p.lag + i; to >= 0 && to < total * out_per_frame)
        r.y.insert(r.y.end(), out.begin() + i * row, out.begin() + (i + 1) * row);
    at += length;
  }
  return r;
}

void compare(Context& ctx, const Net& net, int64_t per_frame, int64_t expected_lag, Drawn& drawn) {
  for (const int64_t total : {1, 2, 3, 7, 12})
    for (const int64_t frames : {1, 2, 5}) {
      CAPTURE(total, frames);
      const std::vector<float> x = drawn(total * per_frame * channels), y = whole(ctx, net, x);
      const Result found = streamed(ctx, net, x, per_frame, frames, 0, drawn);
      CHECK(found.y == y);
      CHECK(found.lag == expected_lag);
      for (const int64_t late : {1, 4}) {
        CAPTURE(late);
        CHECK(streamed(ctx, net, x, per_frame, frames, late, drawn).y == y);
      }
    }
}

struct ConvCase {
  int64_t taps;
  Conv1dGeometry geometry;
  int64_t lag;  ///< of the result, for an input that is not late
};

}  // namespace

TEST_CASE("a convolution streams with the rows that its outputs need", "[streaming]") {
  const ConvCase convolutions[] = {{1, {}, 0},
                                   {3, {.left = 2}, 0},
                                   {3, {.left = 1, .right = 1}, 1},
                                   {7, {.dilation = 3, .left = 9, .right = 9}, 9},
                                   {7, {.dilation = 3, .left = 18}, 0},
                                   {4, {.stride = 2, .left = 2}, 0},
                                   {4, {.stride = 2, .left = 1, .right = 1}, 1},  // output t ends with row 2 t + 2
                                   {6, {.stride = 3, .left = 2, .right = 2}, 1},  // an odd stride as in DAC
                                   {6, {.stride = 3, .left = 3, .right = 0}, 0},
                                   {3, {.stride = 3, .left = 0, .right = 0}, 0},  // nothing is carried
                                   {5, {.groups = 3, .left = 1, .right = 3}, 3},  // farther ahead than back
                                   {3, {.left = 2, .padding = Padding::reflect}, 0},
                                   {3, {.left = 1, .right = 1, .padding = Padding::reflect}, 1},
                                   {7, {.dilation = 2, .left = 7, .right = 5, .padding = Padding::reflect}, 5},
                                   {4, {.stride = 2, .left = 1, .right = 1, .padding = Padding::reflect}, 1},
                                   {10, {.stride = 5, .left = 3, .right = 2, .padding = Padding::reflect}, 1},
                                   {10, {.stride = 5, .left = 5, .padding = Padding::reflect}, 0}};
  for (const Device device : devices())
    for (const ConvCase& c : convolutions) {
      const Conv1dGeometry& g = c.geometry;
      CAPTURE(str(device), c.taps, g.stride, g.dilation, g.left, g.right, g.padding == Padding::reflect);
      Context ctx({.device = device, .threads = 1});
      Parameters parameters;
      const Conv1d conv(parameters, "conv", channels, channels, c.taps, g, Norm::none);
      parameters.allocate(ctx, false);
      Drawn drawn;
      draw_parameters(ctx, parameters, drawn);
      // The whole signal of a reflected convolution must be long enough to be reflected.
      const int64_t least = g.padding == Padding::reflect ? std::max(g.left, g.right) + 1 : 1;
      const int64_t per_frame = (least + g.stride - 1) / g.stride * g.stride;
      compare(
          ctx, [&](Plan& p, Flow x) { return conv.plan(p, x); }, per_frame, c.lag, drawn);
    }
}

TEST_CASE("a transposed convolution streams with the rows that its outputs need", "[streaming]") {
  struct Case {
    int64_t taps, stride;
    Trim trim;
  };
  for (const Device device : devices())
    for (const Case& c :
         {Case{4, 2, {0, 2}}, {4, 2, {1, 1}}, {10, 5, {2, 3}}, {6, 3, {3, 0}}, {3, 3, {0, 0}}, {7, 2, {0, 5}}}) {
      CAPTURE(str(device), c.taps, c.stride, c.trim.left);
      Context ctx({.device = device, .threads = 1});
      Parameters parameters;
      const ConvTranspose1d conv(parameters, "conv", channels, 2, c.taps, c.stride, c.trim, Norm::none);
      parameters.allocate(ctx, false);
      Drawn drawn;
      draw_parameters(ctx, parameters, drawn);
      for (const int64_t per_frame : {1, 3})
        compare(
            ctx, [&](Plan& p, Flow x) { return conv.plan(p, x); }, per_frame, c.trim.left, drawn);
    }
}

TEST_CASE("what a residual unit adds waits for its branch", "[streaming]") {
  for (const Device device : devices())
    for (const int64_t dilation : {1, 3, 9})
      for (const int64_t per_frame : {1, 2, 40}) {
        CAPTURE(str(device), dilation, per_frame);
        Context ctx({.device = device, .threads = 1});
        Parameters parameters;
        // Branches of one and of two convolutions that look ahead, beside the input.
        const Conv1dGeometry both_ways{.dilation = dilation, .left = dilation, .right = dilation};
        const Conv1d wide(parameters, "wide", channels, channels, 3, both_ways, Norm::none),
            narrow(parameters, "narrow", channels, channels, 1, {}, Norm::none);
        parameters.allocate(ctx, false);
        Drawn drawn;
        draw_parameters(ctx, parameters, drawn);
        compare(
            ctx,
            [&](Plan& p, Flow x) {
              const Flow y = narrow.plan(p, wide.plan(p, x), x);
              return wide.plan(p, y, y);
            },
            per_frame, 2 * dilation, drawn);
      }
}

TEST_CASE("a streaming plan refuses what it cannot keep in step", "[streaming]") {
  Context ctx({.threads = 1});
  Parameters parameters;
  const Conv1d ahead(parameters, "ahead", channels, channels, 3, {.left = 1, .right = 1}, Norm::none),
      plain(parameters, "plain", channels, channels, 1, {}, Norm::none),
      sparse(parameters, "sparse", channels, channels, 1, {.stride = 2}, Norm::none),
      early(parameters, "early", channels, channels, 3, {.left = 4}, Norm::none),
      mirrored(parameters, "mirrored", channels, channels, 3, {.right = 2, .padding = Padding::reflect}, Norm::none),
      grouped(parameters, "grouped", channels, channels, 1, {}, Norm::group);
  const auto refusal = [&](const Net& net, int64_t frames = 2) {
    Plan plan(ctx, Purpose::streaming, frames);
    try {
      plan.survey([&](Plan& p) { net(p, p.source<float>({.time = 4, .channels = channels}).flow); });
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("nothing was refused");
  };
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return plain.plan(p, x, ahead.plan(p, x)); }),
             Catch::Contains("plain: cannot be streamed: what it adds is 1 rows late, its own result 0"));
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return sparse.plan(p, x); }),
             Catch::Contains("sparse: cannot be streamed: its stride is longer"));
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return early.plan(p, x); }),
             Catch::Contains("early: cannot be streamed: its padding at the start"));
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return mirrored.plan(p, x); }),
             Catch::Contains("mirrored: cannot be streamed: it reads farther ahead than back"));
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return grouped.plan(p, x); }),
             Catch::Contains("grouped.norm: cannot be streamed: it normalises over the whole signal"));
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return ahead.plan(p, x); }, 3),
             Catch::Contains("ahead: cannot be streamed: 4 rows in a block of 3 frames"));
  CHECK_THAT(refusal([&](Plan& p, Flow x) { return rows_of(p, x, 0, 3); }),
             Catch::Contains("rows: cannot be streamed"));
  // A step that reads two activations of its own accord.
  CHECK_THAT(refusal([&](Plan& p, Flow x) {
               const Flow late = ahead.plan(p, x);
               const Step s = p.step("sum");
               s.reads<float>(x), s.reads<float>(late);
               return ahead.plan(p, s.makes<float>(x.shape).flow);
             }),
             Catch::Contains("step \"sum\" reads activations that are 0 and 1 rows late"));
  CHECK_THROWS_WITH(Plan(ctx, Purpose::streaming), Catch::Contains("a block of 0 frames"));
  CHECK_THROWS_WITH(Plan(ctx, Purpose::inference, 1), Catch::Contains("this plan has no blocks"));
}

TEST_CASE("the items of a batch end where they end", "[streaming]") {
  for (const Device device : devices())
    for (const Padding padding : {Padding::zero, Padding::reflect}) {
      CAPTURE(str(device), padding == Padding::reflect);
      Context ctx({.device = device, .threads = 1});
      Parameters parameters;
      const Conv1d wide(parameters, "wide", channels, channels, 3, {.left = 1, .right = 1, .padding = padding},
                        Norm::none);
      parameters.allocate(ctx, false);
      Drawn drawn;
      draw_parameters(ctx, parameters, drawn);
      const Net net = [&](Plan& p, Flow x) { return wide.plan(p, wide.plan(p, x), x); };
      constexpr int64_t most = 9, batch = 4, block = most + 2;
      const std::vector<int64_t> totals{most, 2, 0, 5};
      Plan plan(ctx, Purpose::streaming, block);
      View<float> in;
      View<const float> out;
      plan.reserve([&](Plan& p) {
        const auto source = p.source<float>({.batch = batch, .time = block, .channels = channels});
        in = source.value, out = p.result<float>(net(p, source.flow));
      });
      CHECK(plan.start_frames() <= block);
      const std::vector<float> x = drawn(batch * block * channels);  // behind the items, too
      ctx.write<float>(x, in);
      plan.block() = {.totals = totals};
      plan.run();
      std::vector<float> y(static_cast<size_t>(out.elements()));
      ctx.read<float>(out, y);
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t total = totals[static_cast<size_t>(b)];
        if (total == 0) continue;
        const auto at = x.cbegin() + b * block * channels, found = y.cbegin() + (b * block + 2) * channels;
        CHECK(std::vector<float>(found, found + total * channels) ==
              whole(ctx, net, std::vector<float>(at, at + total * channels)));
      }
    }
}

TEST_CASE("the state of a streaming plan goes to the host and back", "[streaming]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 1});
    Parameters parameters;
    const Conv1d conv(parameters, "conv", channels, channels, 3, {.left = 2}, Norm::none);
    parameters.allocate(ctx, false);
    Drawn drawn;
    draw_parameters(ctx, parameters, drawn);
    Plan plan(ctx, Purpose::streaming, 1);
    View<float> in;
    View<const float> out;
    plan.reserve([&](Plan& p) {
      const auto source = p.source<float>({.time = 4, .channels = channels});
      in = source.value, out = p.result<float>(conv.plan(p, source.flow));
    });
    int64_t frame = 0;
    const auto run = [&](const std::vector<float>& x) {
      plan.block().first = frame++;
      ctx.write<float>(x, in);
      plan.run();
      std::vector<float> y(static_cast<size_t>(out.elements()));
      ctx.read<float>(out, y);
      return y;
    };
    const std::vector<float> a = drawn(4 * channels), b = drawn(4 * channels);
    const std::vector<float> first = run(a);
    CHECK(plan.state_bytes() == 2 * channels * sizeof(float));
    std::vector<std::byte> kept(plan.state_bytes());
    plan.read_state(kept);
    const std::vector<float> second = run(b);
    run(a), run(a);
    plan.write_state(kept);
    CHECK(run(b) == second);
    plan.reset();
    frame = 0;
    CHECK(run(a) == first);
    CHECK(run(a) != first);
    kept.resize(5);
    CHECK_THROWS_WITH(plan.write_state(kept), Catch::Contains("a state of 5 bytes, expected 24"));
    CHECK_THROWS_WITH(plan.read_state(kept), Catch::Contains("a state of 5 bytes, expected 24"));
  }
}
