#include "nacre/ops/group_norm.h"

#include "harness.h"
#include "reference/group_norm.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Sample {
  const char* why;
  Shape x;
  int64_t groups = 1;
  double mean = 0;  // of x, whose values spread by 1 around it
  float eps = 1e-5f;
};
const Sample samples[] = {
    {"one element: its deviation is 0", {1, 1, 1, 1}},
    {"one position of two channels", {1, 1, 1, 2}},
    {"two items of one position", {2, 1, 1, 64}},
    {"mono, longer than a part of the sums", {1, 40000, 1, 1}},
    {"stereo, as behind a decoder", {2, 4801, 1, 2}},
    {"odd in all extents: nothing is full", {3, 37, 1, 23}},
    {"as many elements as a warp's packs, several times", {2, 256, 1, 64}},
    {"a pack per position", {2, 100, 1, 8}},
    {"a codec's inner activation", {4, 250, 1, 96}},
    {"a part of the rows and one row more", {1, 513, 1, 32}},
    {"so many blocks that a thread has 32 rows, and a block of one row", {132, 33, 1, 129}},
    {"short and wide: several tiles of channels", {1, 3, 1, 4096}},
    {"wide and odd: the last tile has one channel", {1, 5, 1, 1025}},
    {"width in use, all odd", {2, 7, 11, 13}},
    {"width: frequency bins of a discriminator", {2, 9, 65, 4}},
    {"a batch of single frames", {16, 1, 1, 64}},
    {"groups of one pack", {2, 67, 1, 64}, 8},
    {"groups of odd width, which no pack fits", {2, 67, 1, 63}, 9},
    {"groups that end inside of a block's columns", {1, 9, 1, 2400}, 6},
    {"as many groups as channels: instance normalisation", {2, 300, 1, 12}, 12},
    {"groups, long", {1, 9001, 1, 16}, 2},
    {"a large mean costs the variance nothing", {2, 1200, 1, 24}, 2, 300},
    {"a large negative mean", {1, 700, 1, 64}, 1, -5000},
    {"an eps as large as the variance", {3, 50, 1, 16}, 2, 0, 0.5f},
    {"many short items: over a position their rows share blocks", {300, 2, 1, 32}},
};

std::vector<double> doubles(const Buffer<float>& b) {
  std::vector<double> v;
  for (int64_t i = 0; i < b.size(); ++i) v.push_back(b[i]);
  return v;
}
std::vector<double> doubles(const Buffer<bf16>& b) {
  std::vector<double> v;
  for (int64_t i = 0; i < b.size(); ++i) v.push_back(b[i]);
  return v;
}
std::vector<double> absolute(std::vector<double> v) {
  for (double& x : v) x = std::fabs(x);
  return v;
}
/// An allowance that is computed per element.
auto each(const std::vector<double>& v) {
  return [&v](int64_t i) { return v[static_cast<size_t>(i)]; };
}

template <class T>
void sample_case(Device device, const Sample& s, NormOver over) {
  INFO(s.why << (over == NormOver::item ? ", over an item" : ", over a position"));
  Case c(std::string("group_norm, ") + s.why, device, s.x);
  const Shape per_channel{.channels = s.x.channels}, statistics = group_norm_statistics(s.x, s.groups, over);
  auto &x = c.random<T>("x", s.x, s.mean - 1, s.mean + 1), &dy = c.random<T>("dy", s.x, -1, 1),
       &residual = c.random<T>("residual", s.x, -2, 2);
  auto &gain = c.random("gain", per_channel, -2, 2), &bias = c.random("bias", per_channel, -1, 1);
  auto &y = c.output<T>("y", s.x), &y_residual = c.output<T>("y with a residual", s.x);
  auto &mean = c.output("mean", statistics), &inverse = c.output("inverse deviation", statistics);
  const View<float> scratch = c.scratch(group_norm_forward_scratch<T>(c.ctx, s.x, s.groups, over));
  GroupNormForward<T> forward{.x = x,
                              .gain = gain,
                              .bias = bias,
                              .y = y,
                              .mean = mean,
                              .inverse_deviation = inverse,
                              .scratch = scratch,
                              .groups = s.groups,
                              .over = over,
                              .eps = s.eps};
  group_norm_forward<T>(c.ctx, forward);
  forward.residual = residual, forward.y = y_residual;
  group_norm_forward<T>(c.ctx, forward);

  const reference::GroupNorm op{static_cast<size_t>(s.x.batch),    static_cast<size_t>(s.x.time * s.x.width),
                                static_cast<size_t>(s.x.channels), static_cast<size_t>(s.groups),
                                over == NormOver::position,        static_cast<double>(s.eps)};
  const std::vector<double> x_ref = doubles(x), gain_ref = doubles(gain), bias_ref = doubles(bias),
                            dy_ref = doubles(dy);
  const auto stats = op.statistics(x_ref);
  const std::vector<double> h = op.normalised(x_ref, stats), y_ref = op.forward(x_ref, gain_ref, bias_ref);
  // One rounding to float each; the sums are in double.
  c.expect<float>(mean, each(stats.mean),
                  [&](int64_t i) { return 1.01 * ulp * std::fabs(stats.mean[static_cast<size_t>(i)]) + 1e-15; });
  c.expect<float>(inverse, each(stats.inverse_deviation),
                  [&](int64_t i) { return 1.01 * ulp * stats.inverse_deviation[static_cast<size_t>(i)]; });

  // As the contract derives it: mean, x - mean, deviation, its product with the gain, the product and the sums are
  // rounded once each.
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const size_t channels = op.channels, n = x_ref.size();
  std::vector<double> q(n), y_allowed(n), sum_ref(n), sum_allowed(n);
  for (size_t i = 0; i < n; ++i) {
    const size_t set = op.set_of(i), k = i % channels;
    q[i] = std::fabs(stats.mean[set]) * stats.inverse_deviation[set];
    const double own = std::fabs(gain_ref[k]) * (6 * std::fabs(h[i]) + q[i]),
                 terms = std::fabs(gain_ref[k] * h[i]) + std::fabs(bias_ref[k]),
                 other = residual[static_cast<int64_t>(i)];
    sum_ref[i] = y_ref[i] + other;
    y_allowed[i] = ulp * (own + 3 * terms) + storage * std::fabs(y_ref[i]) + 1e-37;
    sum_allowed[i] = ulp * (own + 3 * (terms + std::fabs(other))) + storage * std::fabs(sum_ref[i]) + 1e-37;
  }
  c.expect<T>(y, each(y_ref), each(y_allowed));
  c.expect<T>(y_residual, each(sum_ref), each(sum_allowed));

  // The backward pass starts from statistics that are exact but for the rounding to float.
  auto &dx = c.output<T>("dx", s.x), &dx_sum = c.random<T>("dx +=", s.x, -1, 1), &dx_only = c.output<T>("dx only", s.x);
  auto &dgain = c.random("dgain", per_channel, -1, 1), &dbias = c.random("dbias", per_channel, -1, 1);
  GroupNormBackward<T> back{.x = x,
                            .gain = gain,
                            .mean = mean,
                            .inverse_deviation = inverse,
                            .dy = dy,
                            .dx = dx_only,
                            .scratch = c.scratch(group_norm_backward_scratch<T>(c.ctx, s.x, s.groups, over)),
                            .groups = s.groups,
                            .over = over};
  group_norm_backward<T>(c.ctx, back);
  back.dx = dx, back.dgain = dgain, back.dbias = dbias;
  group_norm_backward<T>(c.ctx, back);
  back.dx = dx_sum, back.add_dx = true;  // the parameters' gradients are accumulated a second time
  group_norm_backward<T>(c.ctx, back);
  back.dx = {};  // a third time, without dx
  group_norm_backward<T>(c.ctx, back);
  c.expect_equal<T>(dx_only, dx.read());

  const auto exact = op.backward(x_ref, gain_ref, dy_ref);
  std::vector<double> d(n), dh(n), dh_error(n);
  for (size_t i = 0; i < n; ++i) {
    d[i] = dy_ref[i] * gain_ref[i % channels];
    dh[i] = d[i] * h[i];
    dh_error[i] = std::fabs(d[i]) * (48 * std::fabs(h[i]) + q[i]);
  }
  const auto mean_d = op.means(absolute(d)), mean_dh = op.means(dh), mean_dh_error = op.means(dh_error);
  std::vector<double> dx_allowed(n), add_ref(n), add_allowed(n), gain_ref_sum(channels), bias_ref_sum(channels),
      gain_allowed(channels), bias_allowed(channels);
  for (size_t i = 0; i < n; ++i) {
    const size_t set = op.set_of(i), k = i % channels;
    const double float_error = ulp * stats.inverse_deviation[set] *
                               (6 * std::fabs(d[i]) + 48 * mean_d[set] + std::fabs(h[i]) * mean_dh_error[set] +
                                std::fabs(mean_dh[set]) * (8 * std::fabs(h[i]) + q[i]));
    add_ref[i] = dx_sum[static_cast<int64_t>(i)] + exact.x[i];
    dx_allowed[i] = float_error + storage * std::fabs(exact.x[i]) + 1e-37;
    add_allowed[i] = float_error + (ulp + storage) * std::fabs(add_ref[i]) + 1e-37;
    gain_allowed[k] += 3 * ulp * std::fabs(dy_ref[i]) * (48 * std::fabs(h[i]) + q[i]);
    bias_allowed[k] += 3 * 48 * ulp * std::fabs(dy_ref[i]);
  }
  for (size_t k = 0; k < channels; ++k) {
    const auto at = static_cast<int64_t>(k);
    gain_ref_sum[k] = dgain[at] + 3 * exact.gain[k], bias_ref_sum[k] = dbias[at] + 3 * exact.bias[k];
    // Three calls make six final roundings.
    gain_allowed[k] += 6 * ulp * (std::fabs(dgain[at]) + 3 * std::fabs(exact.gain[k]));
    bias_allowed[k] += 6 * ulp * (std::fabs(dbias[at]) + 3 * std::fabs(exact.bias[k]));
  }
  c.expect<T>(dx, each(exact.x), each(dx_allowed));
  c.expect<T>(dx_sum, each(add_ref), each(add_allowed));
  c.expect<float>(dgain, each(gain_ref_sum), each(gain_allowed));
  c.expect<float>(dbias, each(bias_ref_sum), each(bias_allowed));

  const auto notices = [](const auto& buffer, const auto& expected, const auto& allowance) {
    std::vector<double> planted;
    for (auto v : buffer.read()) planted.push_back(to_float(v));
    planted.back() += 10 * allowance.back();
    CHECK(worst_ratio(planted, each(expected), each(allowance)) > 1);
  };
  notices(y, y_ref, y_allowed);
  notices(dx, exact.x, dx_allowed);
  notices(dgain, gain_ref_sum, gain_allowed);
}

}  // namespace

TEST_CASE("the reference of group_norm agrees with finite differences", "[group_norm]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  const auto drawn = [&](size_t n) {
    std::vector<double> v(n);
    for (double& x : v) x = draw(rng);
    return v;
  };
  for (const bool per_position : {false, true})
    for (const size_t groups : {1, 3}) {
      const reference::GroupNorm op{2, 4, 6, groups, per_position};
      std::vector<double> x = drawn(48), gain = drawn(6), bias = drawn(6);
      const std::vector<double> dy = drawn(48);
      const auto loss = [&] {
        const std::vector<double> y = op.forward(x, gain, bias);
        double sum = 0;
        for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
        return sum;
      };
      const auto exact = op.backward(x, gain, dy);
      const auto check = [&](std::vector<double>& at, const std::vector<double>& gradient) {
        for (size_t i = 0; i < at.size(); ++i) {
          const double before = at[i], h = 1e-5;
          at[i] = before + h;
          const double up = loss();
          at[i] = before - h;
          const double down = loss();
          at[i] = before;
          // The third derivative grows with the inverse deviation: sets of two channels may be narrow.
          CHECK((up - down) / (2 * h) == Approx(gradient[i]).epsilon(1e-5).margin(1e-5));
        }
      };
      check(x, exact.x), check(gain, exact.gain), check(bias, exact.bias);
    }
}

TEST_CASE("group_norm", "[group_norm][a100][rtx3090][rtx4090]") {
  for (const Device device : devices())
    for (const Sample& s : samples)
      for (const NormOver over : {NormOver::item, NormOver::position}) {
        sample_case<float>(device, s, over);
        if (s.mean == 0) sample_case<bf16>(device, s, over);  // around a large mean, bf16 has too few steps
      }
}

namespace {

/// One element before each activation (or, with `of_gain`, before the gain alone), so that 16-byte accesses would be
/// misaligned.
template <class T>
void unaligned_case(Device device, NormOver over, int64_t groups, bool of_gain) {
  const Shape s{2, 33, 1, 32}, per_channel{.channels = 32}, statistics = group_norm_statistics(s, groups, over);
  const int64_t shift = of_gain ? 0 : 1, gain_shift = of_gain ? 1 : 0;
  const Shape wide{.channels = s.elements() + shift}, wide_gain{.channels = 32 + gain_shift};
  Case c("group_norm, not aligned", device, s);
  auto &x = c.random<T>("x", wide, -1, 1), &dy = c.random<T>("dy", wide, -1, 1), &y = c.output<T>("y", wide),
       &dx = c.output<T>("dx", wide);
  auto& aligned_x = c.values<T>("aligned x", s, {x.before().begin() + shift, x.before().end()});
  auto& aligned_dy = c.values<T>("aligned dy", s, {dy.before().begin() + shift, dy.before().end()});
  auto &aligned_y = c.output<T>("aligned y", s), &aligned_dx = c.output<T>("aligned dx", s);
  auto &gain = c.random("gain", wide_gain, -2, 2), &bias = c.random("bias", per_channel, -1, 1);
  auto& aligned_gain =
      c.values<float>("aligned gain", per_channel, {gain.before().begin() + gain_shift, gain.before().end()});
  auto &dgain = c.zeros("dgain", per_channel), &dbias = c.zeros("dbias", per_channel);
  auto &aligned_dgain = c.zeros("aligned dgain", per_channel), &aligned_dbias = c.zeros("aligned dbias", per_channel);
  auto& alone = c.zeros("dgain alone", per_channel);
  auto &mean = c.output("mean", statistics), &inverse = c.output("inverse", statistics);
  const View<float> scratch = c.scratch(group_norm_forward_scratch<T>(c.ctx, s, groups, over)),
                    back = c.scratch(group_norm_backward_scratch<T>(c.ctx, s, groups, over));
  const auto run = [&](View<const T> of_x, View<const T> of_dy, View<const float> by, View<T> to_y, View<T> to_dx,
                       View<float> to_dgain, View<float> to_dbias) {
    group_norm_forward<T>(c.ctx, {.x = of_x,
                                  .gain = by,
                                  .bias = bias,
                                  .y = to_y,
                                  .mean = mean,
                                  .inverse_deviation = inverse,
                                  .scratch = scratch,
                                  .groups = groups,
                                  .over = over});
    group_norm_backward<T>(c.ctx, {.x = of_x,
                                   .gain = by,
                                   .mean = mean,
                                   .inverse_deviation = inverse,
                                   .dy = of_dy,
                                   .dx = to_dx,
                                   .dgain = to_dgain,
                                   .dbias = to_dbias,
                                   .scratch = back,
                                   .groups = groups,
                                   .over = over});
  };
  run(aligned_x, aligned_dy, aligned_gain, aligned_y, aligned_dx, alone, {});
  run({x.data() + shift, s}, {dy.data() + shift, s}, {gain.data() + gain_shift, per_channel}, {y.data() + shift, s},
      {dx.data() + shift, s}, dgain, dbias);
  run(aligned_x, aligned_dy, aligned_gain, aligned_y, aligned_dx, aligned_dgain, aligned_dbias);
  const auto found_y = y.read(), found_dx = dx.read(), wanted_y = aligned_y.read(), wanted_dx = aligned_dx.read();
  // Both are within the contract; |h| < 6 here, gains and |dy| are below 2 and 1, and the deviation is above 1/4. A
  // generous bound shows a shift.
  const double storage = std::is_same_v<T, float> ? 0 : 2 * 1.01 * bf16_ulp;
  const auto shifted = static_cast<size_t>(shift);
  for (size_t i = 0; i < wanted_y.size(); ++i) {
    const auto wanted = static_cast<double>(to_float(wanted_y[i])),
               gradient = static_cast<double>(to_float(wanted_dx[i]));
    CHECK(std::fabs(to_float(found_y[i + shifted]) - wanted) <=
          2 * ulp * (2 * (6 * 6 + 4) + 3 * (12 + 1)) + storage * std::fabs(wanted));
    CHECK(std::fabs(to_float(found_dx[i + shifted]) - gradient) <=
          2 * ulp * 4 * (6 * 2 + 48 * 2 + 6 * 2 * (48 * 6 + 4) + 2 * 6 * (8 * 6 + 4)) + storage * std::fabs(gradient));
  }
  const std::vector<float> found_dgain = dgain.read(), wanted_dgain = aligned_dgain.read(), found_dbias = dbias.read(),
                           wanted_dbias = aligned_dbias.read();
  for (size_t k = 0; k < 32; ++k) {  // sums of 66 terms
    CHECK(std::fabs(found_dgain[k] - wanted_dgain[k]) <= 2 * ulp * 66 * (48 * 6 + 4));
    CHECK(std::fabs(found_dbias[k] - wanted_dbias[k]) <= 2 * ulp * 66 * 48);
    CHECK(wanted_dbias[k] != 0);
  }
  c.expect_equal(alone, wanted_dgain);
  if (shift > 0) CHECK(std::isnan(to_float(found_y[0])));
  if (shift > 0) CHECK(std::isnan(to_float(found_dx[0])));
}

}  // namespace

TEST_CASE("group_norm at addresses that are not aligned", "[group_norm]") {
  for (const Device device : devices())
    for (const NormOver over : {NormOver::item, NormOver::position})
      for (const int64_t groups : {1, 4})
        for (const bool of_gain : {false, true}) {
          unaligned_case<float>(device, over, groups, of_gain);
          unaligned_case<bf16>(device, over, groups, of_gain);
        }
}

TEST_CASE("group_norm at its limits", "[group_norm]") {
  for (const Device device : devices())
    for (const NormOver over : {NormOver::item, NormOver::position}) {
      Case c("group_norm limits", device, {});
      // Per item one set over an item and four over its positions: a constant, then a set with a NaN or an infinity.
      const Shape s{.batch = 3, .time = 4, .channels = 4}, four{.channels = 4},
          statistics = group_norm_statistics(s, 1, over);
      std::vector<float> content(48, 7.25f), ones(4, 1.0f), halves(4, 0.5f);
      for (size_t i = 16; i < 48; ++i) content[i] = static_cast<float>(i);
      content[16 + 5] = NAN, content[32 + 6] = -INFINITY;
      auto &x = c.values<float>("x", s, content), &gain = c.values<float>("gain", four, ones),
           &bias = c.values<float>("bias", four, halves), &y = c.output("y", s);
      auto &mean = c.output("mean", statistics), &inverse = c.output("inverse deviation", statistics);
      group_norm_forward(c.ctx, {.x = x,
                                 .gain = gain,
                                 .bias = bias,
                                 .y = y,
                                 .mean = mean,
                                 .inverse_deviation = inverse,
                                 .scratch = c.scratch(group_norm_forward_scratch<float>(c.ctx, s, 1, over)),
                                 .over = over});
      const std::vector<float> found = y.read();
      for (size_t i = 0; i < 16; ++i) CHECK(found[i] == 0.5f);  // no deviation: the bias remains
      for (size_t i = 16; i < 48; ++i) {
        const bool in_set = over == NormOver::item || i / 4 == (16 + 5) / 4 || i / 4 == (32 + 6) / 4;
        CHECK(std::isnan(found[i]) == in_set);
      }
      CHECK(mean.read()[0] == 7.25f);
      CHECK(std::fabs(inverse.read()[0] - 1 / std::sqrt(static_cast<double>(1e-5f))) <= 1.01 * ulp * 317);
    }
}

TEST_CASE("group_norm of nothing writes nothing", "[group_norm]") {
  for (const Device device : devices()) {
    Case c("group_norm of nothing", device, {});
    const Shape none{.batch = 2, .time = 0, .channels = 4}, four{.channels = 4};
    auto &gain = c.random("gain", four, 1, 2), &bias = c.random("bias", four, 1, 2), &dgain = c.zeros("dgain", four);
    auto &mean = c.output("mean", {.batch = 2, .channels = 1}), &inverse = c.output("r", {.batch = 2, .channels = 1});
    const View<float> empty(nullptr, none);
    const View<float> scratch = c.scratch(group_norm_backward_scratch<float>(c.ctx, none, 1, NormOver::item));
    group_norm_forward(
        c.ctx, {.x = empty, .gain = gain, .bias = bias, .y = empty, .mean = mean, .inverse_deviation = inverse});
    group_norm_backward(c.ctx, {.x = empty,
                                .gain = gain,
                                .mean = mean,
                                .inverse_deviation = inverse,
                                .dy = empty,
                                .dx = empty,
                                .dgain = dgain,
                                .scratch = scratch});
    c.expect_equal(dgain, dgain.before());
    CHECK(std::isnan(mean.read()[0]));
  }
}

TEST_CASE("group_norm does not allocate and does not depend on threads", "[group_norm]") {
  for (const Device device : devices())
    for (const NormOver over : {NormOver::item, NormOver::position})
      for (const Shape s : {Shape{3, 9001, 1, 6}, Shape{1, 300, 1, 600}}) {
        std::vector<float> first_y, first_dx, first_dgain;
        for (const int threads : {1, 2, 3}) {
          Case c("group_norm threads", device, s, threads);
          const Shape per_channel{.channels = s.channels}, statistics = group_norm_statistics(s, 2, over);
          auto &x = c.random("x", s, -8, 8), &dy = c.random("dy", s, -1, 1), &y = c.output("y", s),
               &dx = c.output("dx", s);
          auto &gain = c.random("gain", per_channel, 0.1, 3), &bias = c.random("bias", per_channel, -1, 1);
          auto &mean = c.output("mean", statistics), &inverse = c.output("inverse deviation", statistics);
          auto &dgain = c.zeros("dgain", per_channel), &dbias = c.zeros("dbias", per_channel);
          const View<float> scratch = c.scratch(group_norm_forward_scratch<float>(c.ctx, s, 2, over)),
                            back = c.scratch(group_norm_backward_scratch<float>(c.ctx, s, 2, over));
          const auto run = [&] {
            group_norm_forward(c.ctx, {.x = x,
                                       .gain = gain,
                                       .bias = bias,
                                       .y = y,
                                       .mean = mean,
                                       .inverse_deviation = inverse,
                                       .scratch = scratch,
                                       .groups = 2,
                                       .over = over});
            group_norm_backward(c.ctx, {.x = x,
                                        .gain = gain,
                                        .mean = mean,
                                        .inverse_deviation = inverse,
                                        .dy = dy,
                                        .dx = dx,
                                        .dgain = dgain,
                                        .dbias = dbias,
                                        .scratch = back,
                                        .groups = 2,
                                        .over = over});
          };
          run();  // starts the thread pool
          const AllocationCounter counter;
          run();
          CHECK(counter.count() == 0);
          if (threads == 1) first_y = y.read(), first_dx = dx.read(), first_dgain = dgain.read();
          c.expect_equal(y, first_y);
          c.expect_equal(dx, first_dx);
          c.expect_equal(dgain, first_dgain);
        }
      }
}

TEST_CASE("group_norm names what does not fit", "[group_norm]") {
  Case c("group_norm shapes", devices().front(), {});
  const Shape s{2, 3, 1, 4}, four{.channels = 4}, sets{.batch = 2, .channels = 2};
  auto &x = c.random("x", s, -1, 1), &y = c.output("y", s), &other = c.output("other", {2, 3, 1, 5});
  auto &gain = c.random("gain", four, 1, 2), &wrong = c.random("wrong", {.channels = 5}, 1, 2);
  auto &mean = c.output("mean", sets), &inverse = c.output("inverse", sets);
  const View<float> scratch = c.scratch(group_norm_forward_scratch<float>(c.ctx, s, 2, NormOver::item));
  const GroupNormForward<float> good{.x = x,
                                     .gain = gain,
                                     .bias = gain,
                                     .y = y,
                                     .mean = mean,
                                     .inverse_deviation = inverse,
                                     .scratch = scratch,
                                     .groups = 2};
  const auto forward = [&](auto change) {
    GroupNormForward<float> a = good;
    change(a);
    group_norm_forward(c.ctx, a);
  };
  using Catch::Contains;
  forward([](auto&) {});
  CHECK_THROWS_WITH(forward([](auto& a) { a.groups = 3; }),
                    Contains("group_norm_forward: 4 channels do not form 3 groups"));
  CHECK_THROWS_WITH(forward([](auto& a) { a.groups = 0; }), Contains("0 groups"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.gain = wrong; }),
                    Contains("group_norm_forward: gain is [1, 1, 1, 5], expected [1, 1, 1, 4]"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.bias = wrong; }), Contains("group_norm_forward: bias"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.y = other; }), Contains("group_norm_forward: y"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.residual = other; }), Contains("group_norm_forward: residual"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.groups = 1; }), Contains("group_norm_forward: mean"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.over = NormOver::position; }), Contains("group_norm_forward: mean"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.scratch = {}; }), Contains("group_norm_forward: scratch"));
  const GroupNormBackward<float> back{
      .x = x, .gain = gain, .mean = mean, .inverse_deviation = inverse, .dy = x, .dx = y, .groups = 2};
  CHECK_THROWS_WITH(group_norm_backward(c.ctx, back), Contains("group_norm_backward: scratch"));
  const auto backward = [&](auto change) {
    GroupNormBackward<float> a = back;
    change(a);
    group_norm_backward(c.ctx, a);
  };
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dy = other; }), Contains("group_norm_backward: dy"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dx = other; }), Contains("group_norm_backward: dx"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dgain = wrong; }), Contains("group_norm_backward: dgain"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dbias = wrong; }), Contains("group_norm_backward: dbias"));
}
