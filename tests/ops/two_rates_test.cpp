#include "nacre/ops/two_rates.h"

#include "harness.h"
#include "reference/two_rates.h"

using namespace nacre;
using namespace nacre::test;

namespace {

const Shape shapes[] = {
    {1, 1, 1, 1},      // the smallest
    {3, 1, 1, 1},      // one element per item
    {2, 1, 1, 2},      // a single position
    {1, 2, 1, 3},      // one item
    {2, 3, 1, 5},      // less than a vector per row
    {5, 7, 1, 3},      // odd everything
    {1, 1, 1, 255},    // one short of a block
    {1, 1, 1, 256},    // exactly a block
    {1, 1, 1, 257},    // one more
    {2, 1, 1, 255},    // items that share a block
    {3, 85, 1, 1},     // the same, many rows
    {2, 16, 1, 16},    // exactly a block per item
    {4, 4, 1, 256},    // a latent of the preset
    {16, 24, 1, 256},  // a batch of it
    {1, 1000, 1, 64},  // long
    {64, 3, 1, 4},     // wide batch
    {2, 31, 1, 33},    // nothing divides anything
    {1, 4097, 1, 3},   // more than the CPU's parts
    {3, 8193, 1, 3},   // the same, odd
    {7, 64, 1, 128},   // an EnCodec latent
};

std::vector<double> doubles(const Buffer<float>& b) { return {b.before().begin(), b.before().end()}; }

void rest_case(Device device, Shape s) {
  Case c("rest", device, s);
  auto &z = c.random("z", s, -3, 3), &p = c.random("p", s, -3, 3), &dy = c.random("dy", s, -1, 1);
  auto& stages = c.integers<int32_t>("stages", {.channels = s.batch}, 0, 2);
  auto &y = c.output("y", s), &dz = c.output("dz", s), &dp = c.output("dp", s);
  auto &more_z = c.random("dz +=", s, -1, 1), &more_p = c.random("dp +=", s, -1, 1);
  rest(c.ctx, {.z = z, .p = p, .y = y});
  rest_backward(c.ctx, {.dy = dy, .stages = stages, .dz = dz, .dp = dp});
  rest_backward(c.ctx, {.dy = dy, .stages = stages, .dz = more_z, .dp = more_p, .add_dz = true, .add_dp = true});

  const std::vector<double> difference = reference::rest(doubles(z), doubles(p));
  const std::vector<double> gradient =
      reference::rest_gradient(doubles(dy), stages.before(), static_cast<size_t>(s.elements() / s.batch));
  const auto of = [](const std::vector<double>& v) { return [&v](int64_t i) { return v[static_cast<size_t>(i)]; }; };
  // One rounding of the difference.
  const auto allowed = [&](int64_t i) { return 1.01 * ulp * std::fabs(difference[static_cast<size_t>(i)]); };
  c.expect<float>(y, of(difference), allowed);
  c.expect<float>(dz, of(gradient), [](int64_t) { return 0; });  // a copy, or zero
  c.expect<float>(
      dp, [&](int64_t i) { return -gradient[static_cast<size_t>(i)]; }, [](int64_t) { return 0; });
  const auto sum = [&](const Buffer<float>& before, double sign) {
    return [&, sign](int64_t i) { return before[i] + sign * gradient[static_cast<size_t>(i)]; };
  };
  const auto rounded = [](auto exact) { return [=](int64_t i) { return 1.01 * ulp * std::fabs(exact(i)); }; };
  c.expect<float>(more_z, sum(more_z, 1), rounded(sum(more_z, 1)));
  c.expect<float>(more_p, sum(more_p, -1), rounded(sum(more_p, -1)));
  rest(c.ctx, {.z = z, .p = p, .y = View<float>(z)});  // y may be z
  c.expect_equal<float>(z, y.read());

  std::vector<double> planted(difference);
  planted.back() += 10 * allowed(s.elements() - 1) + 1e-30;
  CHECK(worst_ratio(planted, of(difference), [&](int64_t i) { return allowed(i) + 1e-31; }) > 1);
}

}  // namespace

TEST_CASE("rest: values and gradients", "[two_rates]") {
  for (Device device : devices())
    for (Shape s : shapes) rest_case(device, s);
}

TEST_CASE("rest: a gradient that is not wanted is skipped", "[two_rates]") {
  for (Device device : devices()) {
    const Shape s{2, 3, 1, 4};
    Case c("rest", device, s);
    auto& dy = c.random("dy", s, -1, 1);
    auto& stages = c.values<int32_t>("stages", {.channels = 2}, {0, 1});
    auto &dz = c.output("dz", s), &dp = c.output("dp", s);
    rest_backward(c.ctx, {.dy = dy, .stages = stages, .dz = dz});
    rest_backward(c.ctx, {.dy = dy, .stages = stages, .dp = dp});
    std::vector<float> expected = dy.before();
    std::fill(expected.begin(), expected.begin() + 12, 0.0f);
    c.expect_equal<float>(dz, expected);
    const std::vector<float> found = dp.read();
    for (size_t i = 0; i < found.size(); ++i) CHECK(found[i] == -expected[i]);
  }
}

TEST_CASE("split_stages: the stages and frames of both cascades", "[two_rates]") {
  for (Device device : devices())
    for (const int64_t batch : {1, 7, 300}) {
      Case c("split_stages", device, {.channels = batch});
      const Shape s{.channels = batch};
      auto &stages = c.integers<int32_t>("stages", s, 0, 9), &frames = c.integers<int32_t>("frames", s, 0, 50);
      auto &ls = c.output<int32_t>("long", s), &ss = c.output<int32_t>("short", s),
           &sf = c.output<int32_t>("frames", s);
      split_stages(c.ctx, {.stages = stages,
                           .frames = frames,
                           .long_stages = ls,
                           .short_stages = ss,
                           .short_frames = sf,
                           .long_codebooks = 4,
                           .positions = 3});
      std::vector<int32_t> expected_long, expected_short, expected_frames;
      for (const int32_t n : stages.before()) {
        int32_t first = 0, second = 0;
        for (int32_t i = 0; i < n; ++i) (i < 4 ? first : second) += 1;
        expected_long.push_back(first), expected_short.push_back(second);
      }
      for (const int32_t n : frames.before()) expected_frames.push_back(n + n + n);
      c.expect_equal<int32_t>(ls, expected_long);
      c.expect_equal<int32_t>(ss, expected_short);
      c.expect_equal<int32_t>(sf, expected_frames);
    }
}

TEST_CASE("copy_columns: some columns, the others are kept", "[two_rates]") {
  struct Columns {
    int64_t rows, in, out, from, to, columns;
  };
  for (Device device : devices())
    for (const Columns n : {Columns{1, 1, 1, 0, 0, 1}, Columns{5, 3, 7, 0, 4, 3}, Columns{5, 7, 4, 3, 0, 4},
                            Columns{33, 48, 8, 0, 0, 8}, Columns{300, 2, 5, 1, 3, 1}, Columns{4, 6, 6, 2, 2, 0}}) {
      Case c("copy_columns", device, {1, n.rows, 1, n.in});
      auto& x = c.integers<int32_t>("x", {1, n.rows, 1, n.in}, 0, 1000);
      auto& y = c.integers<int32_t>("y", {1, n.rows, 1, n.out}, 2000, 3000);
      copy_columns(c.ctx, {.x = x, .y = y, .from = n.from, .to = n.to, .columns = n.columns});
      std::vector<int32_t> expected = y.before();
      for (int64_t row = 0; row < n.rows; ++row)
        for (int64_t i = 0; i < n.columns; ++i)
          expected[static_cast<size_t>(row * n.out + n.to + i)] =
              x.before()[static_cast<size_t>(row * n.in + n.from + i)];
      c.expect_equal<int32_t>(y, expected);
    }
}

TEST_CASE("two rates: do not allocate and do not depend on threads", "[two_rates]") {
  for (Device device : devices()) {
    const Shape s{3, 8193, 1, 3};
    std::vector<float> first, first_gradient;
    for (int threads : {1, 2, 3}) {
      Case c("rest threads", device, s, threads);
      auto &z = c.random("z", s, -3, 3), &p = c.random("p", s, -3, 3), &y = c.output("y", s), &dp = c.output("dp", s);
      auto& stages = c.values<int32_t>("stages", {.channels = 3}, {1, 0, 2});
      rest(c.ctx, {.z = z, .p = p, .y = y});  // starts the thread pool
      AllocationCounter counter;
      rest(c.ctx, {.z = z, .p = p, .y = y});
      rest_backward(c.ctx, {.dy = z, .stages = stages, .dp = dp});
      CHECK(counter.count() == 0);
      if (threads == 1) first = y.read(), first_gradient = dp.read();
      c.expect_equal(y, first);
      c.expect_equal(dp, first_gradient);
    }
  }
}

TEST_CASE("two rates of no items", "[two_rates]") {
  const Shape none{.batch = 0, .time = 5, .channels = 3};
  for (Device device : devices()) {
    Case c("two rates of no items", device, none);
    const View<float> empty(nullptr, none);
    const View<int32_t> nothing(nullptr, {.batch = 0, .time = 5, .channels = 4});
    rest(c.ctx, {.z = empty, .p = empty, .y = empty});
    rest_backward(
        c.ctx, {.dy = empty, .stages = View<int32_t>(nullptr, {.batch = 1, .channels = 0}), .dz = empty, .dp = empty});
    copy_columns(c.ctx, {.x = nothing, .y = nothing, .columns = 4});
    CHECK_NOTHROW(c.ctx.synchronize());
  }
}

TEST_CASE("two rates: names what does not fit", "[two_rates]") {
  Case c("two_rates shapes", devices().front(), {});
  auto &a = c.random("a", {2, 3, 1, 4}, -1, 1), &b = c.random("b", {2, 3, 1, 5}, -1, 1);
  auto& y = c.output("y", {2, 3, 1, 4});
  auto& one = c.integers<int32_t>("one", {1, 1, 1, 1}, 1, 1);
  auto &x = c.integers<int32_t>("x", {1, 3, 1, 4}, 0, 9), &wide = c.integers<int32_t>("y", {1, 3, 1, 6}, 0, 9);
  CHECK_THROWS_WITH(rest(c.ctx, {.z = a, .p = b, .y = y}),
                    Catch::Contains("rest: p is [2, 3, 1, 5], expected [2, 3, 1, 4]"));
  CHECK_THROWS_WITH(rest_backward(c.ctx, {.dy = a, .stages = one, .dz = y}),
                    Catch::Contains("rest_backward: stages is [1, 1, 1, 1], expected [1, 1, 1, 2]"));
  CHECK_THROWS_WITH(copy_columns(c.ctx, {.x = x, .y = wide, .from = 2, .columns = 3}),
                    Catch::Contains("columns 2 to 4 of x, expected 0 to 3"));
  CHECK_THROWS_WITH(copy_columns(c.ctx, {.x = x, .y = wide, .to = 5, .columns = 2}),
                    Catch::Contains("columns 5 to 6 of y, expected 0 to 5"));
}
