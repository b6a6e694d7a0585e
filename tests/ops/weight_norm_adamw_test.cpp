#include "nacre/ops/weight_norm_adamw.h"

#include <cstring>

#include "harness.h"
#include "reference/adamw.h"
#include "reference/weight_norm.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Sample {
  const char* why;
  std::vector<int64_t> lengths;
  int64_t rest;
  int64_t align = 16;  // rows start at multiples of this many floats
};
/// So many rows that a CUDA block takes eight.
std::vector<int64_t> many_rows() {
  std::vector<int64_t> lengths(8 * 264 + 3, 4);
  for (const size_t i : {0, 7, 8, 100, 101, 8 * 264, 8 * 264 + 2}) lengths[i] = 1000;
  return lengths;
}
const Sample samples[] = {
    {"one weight, nothing else", {1}, 0},
    {"the first layer of a codec: rows of seven", std::vector<int64_t>(16, 7), 40},
    {"rows that begin anywhere", {7, 33, 112, 4, 1, 64}, 5, 1},
    {"no rows", {}, 100},
    {"layers of different width", {112, 112, 448, 8, 1024}, 333},
    {"a row that just fits the registers, and one that does not", {7168, 7172, 9000}, 3},
    {"odd rows that just fit the registers, and longer", {1791, 1793, 4001}, 1},
    {"several blocks of the rest", {12, 12}, 70001},
    {"the longest row that is short, and the next", {896, 897, 900, 892}, 7},
    {"so many rows that several are a block's, long ones among them", many_rows(), 9},
};

/// Which rows have a gain. mixed: two of three, so that every place of a block sees both kinds.
enum class Gains : uint8_t { all, mixed, none };

struct Layout {
  Layout(const Sample& s, Gains which) : rest(s.rest) {
    const auto has_gain = [&](size_t i) { return which == Gains::all || (which == Gains::mixed && i % 3 != 1); };
    for (size_t i = 0; i < s.lengths.size(); ++i) gains += has_gain(i);
    int64_t gain = gains;
    for (size_t i = 0; i < s.lengths.size(); ++i) {
      const int64_t n = s.lengths[i];
      // Gains in reverse order, so that a row number cannot pass for a gain.
      rows.push_back({directions, n, has_gain(i) ? --gain : WeightRow::no_gain});
      directions += (n + s.align - 1) / s.align * s.align;
    }
  }
  int64_t elements() const { return directions + gains + rest; }
  std::vector<WeightRow> rows;
  int64_t directions = 0, gains = 0, rest = 0;
};

template <class T>
void sample_case(Device device, const Sample& s, Gains which, bool with_ema, float max_norm) {
  INFO(s.why << (which == Gains::all ? "" : which == Gains::mixed ? ", a third without gains" : ", no gains"));
  const Layout l(s, which);
  const Shape flat{.channels = l.elements()}, weights{.channels = l.directions};
  Case c(std::string("weight_norm_adamw, ") + s.why, device, flat);
  std::vector<bool> padding(static_cast<size_t>(l.directions), true);
  for (const WeightRow& row : l.rows) std::fill_n(padding.begin() + row.offset, row.length, false);
  const auto without_padding = [&](std::vector<float> v) {
    for (size_t i = 0; i < padding.size(); ++i)
      if (padding[i]) v[i] = 0;
    return v;
  };
  auto& value = c.values<float>("value", flat, without_padding(c.random("drawn value", flat, 0.1, 2).before()));
  auto& m = c.values<float>("m", flat, without_padding(c.random("drawn m", flat, -0.1, 0.1).before()));
  auto& v = c.values<float>("v", flat, without_padding(c.random("drawn v", flat, 1e-3, 0.01).before()));
  auto& ema = c.values<float>("ema", flat, without_padding(c.random("drawn ema", flat, -2, 2).before()));
  auto& grad = c.random("grad", flat, -0.1, 0.1);
  auto& dw = c.random("dw", weights, -0.1, 0.1);
  auto& w = c.output<T>("w", weights);
  Memory rows(c.ctx, std::max<size_t>(l.rows.size(), 1) * sizeof(WeightRow)), scalars(c.ctx, sizeof(AdamWScalars));
  const auto row_count = static_cast<int64_t>(l.rows.size());
  const View<WeightRow> rows_view(reinterpret_cast<WeightRow*>(rows.data()), {.channels = row_count});
  const View<AdamWScalars> scalars_view(reinterpret_cast<AdamWScalars*>(scalars.data()), {});
  c.ctx.write<WeightRow>(l.rows, rows_view);
  const AdamWScalars start{.lr = 0.01f, .step = 4};
  c.ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&start, 1), scalars_view);
  const WeightNormAdamW<T> a{
      .adamw = {.value = value,
                .grad = grad,
                .m = m,
                .v = v,
                .ema = with_ema ? View<float>(ema) : View<float>(),
                .scalars = scalars_view,
                .scratch = c.scratch(weight_norm_adamw_scratch(c.ctx, flat, l.directions, l.gains, row_count)),
                .beta1 = 0.8f,
                .beta2 = 0.95f,
                .weight_decay = 0.1f,
                .max_norm = max_norm},
      .directions = l.directions,
      .gains = l.gains,
      .rows = rows_view,
      .dw = dw,
      .w = w};
  weight_norm_adamw<T>(c.ctx, a);

  // The three ops in double.
  std::vector<double> gradient(static_cast<size_t>(l.elements()), 0), size(gradient.size(), 0);
  for (const WeightRow& row : l.rows) {
    std::vector<double> one_v, one_dw;
    for (int64_t i = 0; i < row.length; ++i)
      one_v.push_back(value[row.offset + i]), one_dw.push_back(dw[row.offset + i]);
    if (row.gain == WeightRow::no_gain) {
      for (int64_t i = 0; i < row.length; ++i) {
        const auto at = static_cast<size_t>(row.offset + i);
        gradient[at] = dw[row.offset + i], size[at] = std::fabs(dw[row.offset + i]);
      }
      continue;
    }
    const double g = value[l.directions + row.gain], norm = reference::norm(one_v), norm_dw = reference::norm(one_dw);
    const auto exact = reference::weight_norm_gradient(one_v, g, one_dw);
    gradient[static_cast<size_t>(l.directions + row.gain)] = exact.dg;
    size[static_cast<size_t>(l.directions + row.gain)] = norm_dw;
    for (int64_t i = 0; i < row.length; ++i) {
      const auto k = static_cast<size_t>(i);
      gradient[static_cast<size_t>(row.offset + i)] = exact.dv[k];
      size[static_cast<size_t>(row.offset + i)] =
          g / norm * (std::fabs(one_dw[k]) + norm_dw * std::fabs(one_v[k]) / norm);
    }
  }
  for (int64_t i = l.directions + l.gains; i < l.elements(); ++i)
    gradient[static_cast<size_t>(i)] = grad[i], size[static_cast<size_t>(i)] = std::fabs(grad[i]);
  double squares = 0, square_error = 0;
  for (size_t i = 0; i < gradient.size(); ++i) {
    squares += gradient[i] * gradient[i];
    square_error += std::pow(16 * ulp * size[i], 2);
  }
  const double norm = std::sqrt(squares);
  AdamWScalars after;
  c.ctx.read<AdamWScalars>(scalars_view, std::span<AdamWScalars>(&after, 1));
  // The CPU first rounds the gradients to float and then takes their norm. Each gradient may be off by 16 u of its
  // terms.
  CHECK(std::fabs(after.norm - norm) <= 2 * ulp * norm + std::sqrt(square_error));
  CHECK(after.step == 5);
  CHECK(after.skipped == 0);

  const reference::AdamWOptions o{.lr = 0.01f,
                                  .beta1 = 0.8f,
                                  .beta2 = 0.95f,
                                  .eps = a.adamw.eps,
                                  .weight_decay = 0.1f,
                                  .max_norm = max_norm,
                                  .step = 5};
  std::vector<reference::AdamWState> exact;
  for (int64_t i = 0; i < l.elements(); ++i)
    exact.push_back(reference::adamw({value[i], m[i], v[i]}, gradient[static_cast<size_t>(i)], norm, o));
  // The error of the gradient is 16 u of its terms, as in weight_norm_backward, plus 8 u of the clip. It changes m by 1
  // - beta1 times as much, and the update by rate / sqrt(v / unbias) times that. The roundings of adamw are added.
  const double clip = reference::adamw_clip(norm, max_norm), rate = 0.01 / (1 - std::pow(0.8, 5)),
               unbias = 1 - std::pow(0.95, 5);
  const auto gradient_error = [&](int64_t i) { return 24 * ulp * clip * size[static_cast<size_t>(i)]; };
  const auto m_allowed = [&](int64_t i) {
    return 5 * ulp * (0.8 * std::fabs(m[i]) + 0.2 * clip * size[static_cast<size_t>(i)]) + 0.2 * gradient_error(i) +
           1e-38;
  };
  const auto v_allowed = [&](int64_t i) {
    const double g = clip * size[static_cast<size_t>(i)];
    return 8 * ulp * exact[static_cast<size_t>(i)].v + 0.05 * 2 * g * gradient_error(i) + 1e-38;
  };
  const auto value_allowed = [&](int64_t i) {
    const reference::AdamWState& e = exact[static_cast<size_t>(i)];
    const double root = std::sqrt(e.v / unbias) + 1e-8, step = rate * std::fabs(e.m) / root;
    return ulp * std::fabs(e.value) + 16 * ulp * (step + 0.001 * std::fabs(value[i])) + rate * m_allowed(i) / root +
           step * v_allowed(i) / (e.v + 1e-30) + 1e-37;
  };
  c.expect<float>(
      value, [&](int64_t i) { return exact[static_cast<size_t>(i)].value; }, value_allowed);
  c.expect<float>(
      m, [&](int64_t i) { return exact[static_cast<size_t>(i)].m; }, m_allowed);
  c.expect<float>(
      v, [&](int64_t i) { return exact[static_cast<size_t>(i)].v; }, v_allowed);
  if (with_ema)
    c.expect<float>(
        ema,
        [&](int64_t i) {
          return ema[i] + (1.0 - static_cast<double>(0.999f)) * (exact[static_cast<size_t>(i)].value - ema[i]);
        },
        [&](int64_t i) { return 0.0011 * value_allowed(i) + 4 * ulp * (std::fabs(ema[i]) + 0.01); });
  else
    c.expect_equal(ema, ema.before());

  // The new weight is computed from the new values as stored.
  const std::vector<float> now = value.read();
  const std::vector<T> found = w.read();
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  for (const WeightRow& row : l.rows) {
    std::vector<double> one_v;
    for (int64_t i = 0; i < row.length; ++i) one_v.push_back(now[static_cast<size_t>(row.offset + i)]);
    const bool has_gain = row.gain != WeightRow::no_gain;
    const auto wanted =
        has_gain ? reference::weight_norm(one_v, now[static_cast<size_t>(l.directions + row.gain)]) : one_v;
    double worst = 0;
    for (int64_t i = 0; i < row.length; ++i) {
      const double e = std::fabs(to_float(found[static_cast<size_t>(row.offset + i)]) - wanted[static_cast<size_t>(i)]);
      worst = std::max(worst, e / (std::fabs(wanted[static_cast<size_t>(i)]) + 1e-30));
    }
    CHECK(worst <= (has_gain ? 8 * ulp : 0) + storage);
  }
  // weight_norm gives the same bits for these directions. A resumed run starts with its result.
  auto& again = c.output<T>("w again", weights);
  weight_norm_forward<T>(c.ctx, {.v = View<const float>(value.data(), weights),
                                 .g = View<const float>(value.data() + l.directions, {.channels = l.gains}),
                                 .rows = rows_view,
                                 .w = again});
  const std::vector<T> wanted = again.read();
  for (const WeightRow& row : l.rows)
    CHECK(std::memcmp(found.data() + row.offset, wanted.data() + row.offset,
                      static_cast<size_t>(row.length) * sizeof(T)) == 0);
}

}  // namespace

TEST_CASE("weight_norm_adamw is its three parts", "[weight_norm_adamw]") {
  const Gains which = GENERATE(Gains::all, Gains::mixed, Gains::none);
  for (const Device device : devices())
    for (const Sample& s : samples) {
      sample_case<float>(device, s, which, false, 0);
      sample_case<float>(device, s, which, true, 0.5f);
      sample_case<bf16>(device, s, which, true, 0);
    }
}

TEST_CASE("weight_norm_adamw leaves all as it was when a gradient is not finite", "[weight_norm_adamw]") {
  const bool has_gain = GENERATE(true, false);
  for (const Device device : devices())
    for (const bool in_weight : {true, false}) {
      const int64_t gains = has_gain ? 1 : 0;
      const Shape flat{.channels = 16 + 1 + 3};
      Case c("weight_norm_adamw not finite", device, flat);
      std::vector<float> ones(20, 1.0f), bad_dw(16, 0.1f), bad_grad(20, 0.1f);
      (in_weight ? bad_dw[3] : bad_grad[18]) = in_weight ? NAN : INFINITY;
      auto &value = c.values<float>("value", flat, ones), &m = c.values<float>("m", flat, ones),
           &v = c.values<float>("v", flat, ones), &grad = c.values<float>("grad", flat, bad_grad);
      auto &dw = c.values<float>("dw", {.channels = 16}, bad_dw),
           &w = c.values<float>("w", {.channels = 16}, std::vector<float>(16, has_gain ? 0.25f : 1.0f));
      Memory rows(c.ctx, sizeof(WeightRow)), scalars(c.ctx, sizeof(AdamWScalars));
      const View<WeightRow> rows_view(reinterpret_cast<WeightRow*>(rows.data()), {.channels = 1});
      const View<AdamWScalars> scalars_view(reinterpret_cast<AdamWScalars*>(scalars.data()), {});
      const WeightRow row{0, 16, has_gain ? 0 : WeightRow::no_gain};
      c.ctx.write<WeightRow>(std::span<const WeightRow>(&row, 1), rows_view);
      const AdamWScalars start{.lr = 0.01f, .step = 4};
      c.ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&start, 1), scalars_view);
      weight_norm_adamw(c.ctx, {.adamw = {.value = value,
                                          .grad = grad,
                                          .m = m,
                                          .v = v,
                                          .scalars = scalars_view,
                                          .scratch = c.scratch(weight_norm_adamw_scratch(c.ctx, flat, 16, gains, 1))},
                                .directions = 16,
                                .gains = gains,
                                .rows = rows_view,
                                .dw = dw,
                                .w = w});
      c.expect_equal(value, ones);
      c.expect_equal(m, ones);
      c.expect_equal(v, ones);
      // w is unchanged: g v / |v| = 1 / 4, or v.
      c.expect_equal(w, w.before());
      AdamWScalars after;
      c.ctx.read<AdamWScalars>(scalars_view, std::span<AdamWScalars>(&after, 1));
      CHECK(after.skipped == 1);
      CHECK(after.step == 4);
      CHECK_FALSE(std::isfinite(after.norm));
    }
}
