#include "nacre/ops/weight_norm.h"

#include "harness.h"
#include "reference/weight_norm.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Sample {
  const char* why;
  std::vector<int64_t> lengths;
  int64_t gap = 0;  // elements between rows that belong to no row
};
/// So many rows that a CUDA block takes eight.
std::vector<int64_t> many_rows() {
  std::vector<int64_t> lengths(8 * 264 + 3, 4);
  for (const size_t i : {0, 7, 8, 100, 101, 8 * 264, 8 * 264 + 2}) lengths[i] = 1000;
  return lengths;
}
const std::vector<Sample>& samples() {
  static const std::vector<Sample> all{
      {"one row of one weight: w = g times a sign", {1}},
      {"one row of two", {2}},
      {"one row of seven: the first layer of a codec", {7}},
      {"no rows at all", {}},
      {"rows of no length", {0, 3, 0}},
      {"sixteen rows of the first layer", std::vector<int64_t>(16, 7)},
      {"a lane short of the partial sums", {63}},
      {"exactly the partial sums", {64}},
      {"one past the partial sums", {65}},
      {"two rounds and some", {131}},
      {"a residual unit of 16 channels", std::vector<int64_t>(16, 112)},
      {"a residual unit of 32 channels", std::vector<int64_t>(32, 224)},
      {"a pointwise layer", std::vector<int64_t>(24, 24)},
      {"one long row: the last layer", {1792}},
      {"a very long row", {65537}},
      {"layers of different width in one call", {7, 7, 112, 112, 64, 128, 448, 3, 1}},
      {"rows apart from each other: biases lie between them", {7, 7, 112, 33, 64}, 5},
      {"as many rows as one part of the loop", std::vector<int64_t>(8, 10)},
      {"one row more than a part", std::vector<int64_t>(9, 10)},
      {"many short rows", std::vector<int64_t>(257, 3)},
      {"few long rows", std::vector<int64_t>(3, 5000)},
      {"the longest that is short, and the next", {896, 897, 900, 892}},
      {"so many rows that several are a block's, long ones among them", many_rows()},
  };
  return all;
}

/// Which rows have a gain. mixed: two of three, so that every place of a block sees both kinds.
enum class Gains : uint8_t { all, mixed, none };

struct Layout {
  explicit Layout(const Sample& s, Gains which = Gains::all) {
    const auto has_gain = [&](size_t i) { return which == Gains::all || (which == Gains::mixed && i % 3 != 1); };
    for (size_t i = 0; i < s.lengths.size(); ++i) gain_count += has_gain(i);
    int64_t gain = gain_count;
    for (size_t i = 0; i < s.lengths.size(); ++i) {
      const int64_t n = s.lengths[i];
      // Gains in reverse order, so that a row number cannot pass for a gain.
      rows.push_back({elements + s.gap, n, has_gain(i) ? --gain : WeightRow::no_gain});
      elements += s.gap + n;
    }
    elements += s.gap;
  }
  Shape flat() const { return {.channels = elements}; }
  Shape gains() const { return {.channels = gain_count}; }
  std::vector<WeightRow> rows;
  int64_t elements = 0, gain_count = 0;
};

template <class B>
std::vector<double> part(const B& b, const WeightRow& row) {
  std::vector<double> v;
  for (int64_t i = 0; i < row.length; ++i) v.push_back(b[row.offset + i]);
  return v;
}

/// The table of rows, on the device like all other data.
struct Rows {
  Rows(Context& ctx, const Layout& l)
      : memory(ctx, std::max<size_t>(l.rows.size(), 1) * sizeof(WeightRow)),
        n{.channels = static_cast<int64_t>(l.rows.size())} {
    ctx.write<WeightRow>(l.rows, View<WeightRow>(reinterpret_cast<WeightRow*>(memory.data()), n));
  }
  operator View<const WeightRow>() const { return {reinterpret_cast<const WeightRow*>(memory.data()), n}; }
  Memory memory;
  Shape n;
};

}  // namespace

TEST_CASE("weight_norm against the reference", "[weight_norm]") {
  const Gains which = GENERATE(Gains::all, Gains::mixed, Gains::none);
  for (const Device device : devices())
    for (const Sample& s : samples()) {
      INFO(s.why << (which == Gains::all ? "" : which == Gains::mixed ? ", a third without gains" : ", no gains"));
      const Layout layout(s, which);
      std::vector<std::vector<float>> same;
      for (const int threads : {1, 2, 3}) {
        if (device.kind == Device::cuda && threads > 1) continue;  // threads only matter on the CPU
        Case c(std::string("weight_norm, ") + s.why, device, layout.flat(), threads);
        const Rows rows(c.ctx, layout);
        auto &v = c.random("v", layout.flat(), -1, 1), &g = c.random("g", layout.gains(), 0.2, 2),
             &dw = c.random("dw", layout.flat(), -1, 1);
        auto &w = c.output("w", layout.flat()), &dv = c.random("dv", layout.flat(), -1, 1),
             &dg = c.random("dg", layout.gains(), -1, 1);
        auto& w16 = c.output<bf16>("w in bf16", layout.flat());
        const AllocationCounter allocations;
        weight_norm_forward(c.ctx, {.v = v, .g = g, .rows = rows, .w = w});
        weight_norm_forward<bf16>(c.ctx, {.v = v, .g = g, .rows = rows, .w = w16});
        weight_norm_backward(c.ctx, {.v = v, .g = g, .rows = rows, .dw = dw, .dv = dv, .dg = dg});
        CHECK(allocations.count() == 0);

        std::vector<double> w_ref(static_cast<size_t>(layout.elements), NAN), dv_ref(w_ref.size()),
            dv_size(w_ref.size()), dg_ref(static_cast<size_t>(layout.gain_count)), dg_size(dg_ref.size());
        for (size_t i = 0; i < dv_ref.size(); ++i) dv_ref[i] = dv.before()[i];
        for (const WeightRow& row : layout.rows) {
          const auto one_v = part(v, row), one_dw = part(dw, row);
          if (row.gain == WeightRow::no_gain) {
            for (int64_t i = 0; i < row.length; ++i) {
              const auto at = static_cast<size_t>(row.offset + i), k = static_cast<size_t>(i);
              w_ref[at] = one_v[k];
              dv_ref[at] += one_dw[k];
              dv_size[at] = std::fabs(dv_ref[at]) / 16;  // one rounding, of the sum
            }
            continue;
          }
          const auto one_w = reference::weight_norm(one_v, g[row.gain]);
          const auto gradient = reference::weight_norm_gradient(one_v, g[row.gain], one_dw);
          const double norm = reference::norm(one_v), norm_dw = reference::norm(one_dw);
          dg_ref[static_cast<size_t>(row.gain)] = dg[row.gain] + gradient.dg;
          dg_size[static_cast<size_t>(row.gain)] = std::fabs(dg[row.gain]) + norm_dw;
          for (int64_t i = 0; i < row.length; ++i) {
            const auto at = static_cast<size_t>(row.offset + i), k = static_cast<size_t>(i);
            w_ref[at] = one_w[k];
            dv_ref[at] += gradient.dv[k];
            // The projection is off by a few ulp of |dw|. Its share in dv is |v_i| / |v|.
            dv_size[at] = std::fabs(dv[row.offset + i]) +
                          g[row.gain] / norm * (std::fabs(one_dw[k]) + norm_dw * std::fabs(one_v[k]) / norm);
          }
        }
        // The norm has 64 partial sums of at most 1024 squares each, and the root halves their error. The factor and
        // the product add one rounding each.
        const auto w_allowed = [&](int64_t i) { return 8 * ulp * std::fabs(w_ref[static_cast<size_t>(i)]); };
        const auto found = w.read();
        double worst = 0;
        for (const WeightRow& row : layout.rows)
          for (int64_t i = row.offset; i < row.offset + row.length; ++i) {
            const auto at = static_cast<size_t>(i);
            worst = std::max(worst, std::fabs(found[at] - w_ref[at]) / w_allowed(i));
            CHECK(to_float(w16.read()[at]) == to_float(to_bf16(found[at])));
            if (row.gain == WeightRow::no_gain) CHECK(found[at] == static_cast<float>(w_ref[at]));
            if (i - row.offset > 200) break;
          }
        CHECK(worst <= 1);
        for (size_t i = 0; i < found.size(); ++i)
          if (std::isnan(w_ref[i])) CHECK(std::isnan(found[i]));  // belongs to no row
        c.expect<float>(
            dv, [&](int64_t i) { return dv_ref[static_cast<size_t>(i)]; },
            [&](int64_t i) { return 16 * ulp * dv_size[static_cast<size_t>(i)]; });
        c.expect<float>(
            dg, [&](int64_t i) { return dg_ref[static_cast<size_t>(i)]; },
            [&](int64_t i) { return 16 * ulp * dg_size[static_cast<size_t>(i)]; });

        auto all = found;
        for (float& x : all)
          if (std::isnan(x)) x = 0;
        for (const float x : dv.read()) all.push_back(x);
        for (const float x : dg.read()) all.push_back(x);
        same.push_back(all);
        CHECK(same.front() == same.back());
      }
    }
}

TEST_CASE("weight_norm notices errors of ten times its tolerance", "[weight_norm]") {
  Case c("weight_norm", Device{}, {.channels = 112});
  const Layout layout({"", {112}});
  const Rows rows(c.ctx, layout);
  auto &v = c.random("v", layout.flat(), -1, 1), &g = c.random("g", layout.gains(), 0.2, 2),
       &w = c.output("w", layout.flat());
  weight_norm_forward(c.ctx, {.v = v, .g = g, .rows = rows, .w = w});
  const auto expected = reference::weight_norm(part(v, layout.rows[0]), g[0]);
  const auto allowed = [&](int64_t i) { return 8 * ulp * std::fabs(expected[static_cast<size_t>(i)]); };
  auto found = part(v, layout.rows[0]);
  for (size_t i = 0; i < found.size(); ++i) found[i] = w.read()[i];
  const auto value = [&](int64_t i) { return expected[static_cast<size_t>(i)]; };
  CHECK(worst_ratio(found, value, allowed) <= 1);
  found[50] = expected[50] * (1 + 80 * ulp);
  CHECK(worst_ratio(found, value, allowed) > 9);
}

TEST_CASE("weight_norm's reference gradient is that of its reference forward", "[weight_norm]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  for (const size_t n : {1, 2, 7, 112}) {
    std::vector<double> v(n), dw(n);
    for (double& x : v) x = draw(rng);
    for (double& x : dw) x = draw(rng);
    const double g = 1.3, h = 1e-5;
    const auto loss = [&](const std::vector<double>& at, double gain) {
      const auto w = reference::weight_norm(at, gain);
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += w[i] * dw[i];
      return sum;
    };
    const auto gradient = reference::weight_norm_gradient(v, g, dw);
    CHECK((loss(v, g + h) - loss(v, g - h)) / (2 * h) == Approx(gradient.dg).epsilon(1e-6).margin(1e-8));
    for (size_t i = 0; i < n; ++i) {
      auto up = v, down = v;
      up[i] += h, down[i] -= h;
      CHECK((loss(up, g) - loss(down, g)) / (2 * h) == Approx(gradient.dv[i]).epsilon(1e-6).margin(1e-6));
    }
  }
}

TEST_CASE("weight_norm of a row without direction is zero and stays finite", "[weight_norm]") {
  for (const float tiny : {0.0f, 1e-30f}) {
    Case c("weight_norm", Device{}, {.channels = 32});
    const Layout layout({"", {16, 16}});
    const Rows rows(c.ctx, layout);
    std::vector<float> content(32, 1.0f);
    std::fill_n(content.begin(), 16, tiny);
    auto &v = c.values<float>("v", layout.flat(), content), &g = c.random("g", layout.gains(), 0.2, 2),
         &dw = c.random("dw", layout.flat(), -1, 1);
    auto &w = c.output("w", layout.flat()), &dv = c.zeros("dv", layout.flat()), &dg = c.zeros("dg", layout.gains());
    weight_norm_forward(c.ctx, {.v = v, .g = g, .rows = rows, .w = w});
    weight_norm_backward(c.ctx, {.v = v, .g = g, .rows = rows, .dw = dw, .dv = dv, .dg = dg});
    for (size_t i = 0; i < 16; ++i) {
      CHECK(w.read()[i] == 0);
      CHECK(dv.read()[i] == 0);
    }
    CHECK(w.read()[16] != 0);
    CHECK(dg.read()[1] == 0);  // the gain of the first row
    CHECK(dg.read()[0] != 0);
  }
}

TEST_CASE("weight_norm keeps a tiny row without a gain", "[weight_norm]") {
  for (const Device device : devices()) {
    Case c("weight_norm without a gain", device, {.channels = 8});
    Layout layout({"", {4, 4}}, Gains::none);
    const Rows rows(c.ctx, layout);
    const std::vector<float> tiny{1e-30f, 0, -1e-30f, 0, 0, 0, 0, 0}, slope(8, 0.5f);
    auto &v = c.values<float>("v", layout.flat(), tiny), &dw = c.values<float>("dw", layout.flat(), slope);
    auto &w = c.output("w", layout.flat()), &dv = c.zeros("dv", layout.flat());
    const View<float> no_gains(nullptr, layout.gains());
    weight_norm_forward(c.ctx, {.v = v, .g = no_gains, .rows = rows, .w = w});
    weight_norm_backward(c.ctx, {.v = v, .g = no_gains, .rows = rows, .dw = dw, .dv = dv, .dg = no_gains});
    c.expect_equal(w, tiny);
    c.expect_equal(dv, slope);
  }
}

TEST_CASE("weight_norm says what does not fit", "[weight_norm]") {
  Context ctx;
  std::vector<float> data(64);
  const View<float> v(data.data(), {.channels = 64}), g(data.data(), {.channels = 2});
  const std::vector<WeightRow> past{{60, 5, 0}}, gain{{0, 4, 2}}, below{{0, 4, -2}};
  const View<const WeightRow> rows(past.data(), {.channels = 1}), wrong(gain.data(), {.channels = 1}),
      negative(below.data(), {.channels = 1});
  using Catch::Contains;
  CHECK_THROWS_WITH(weight_norm_forward<float>(ctx, {.v = v, .g = g, .rows = rows, .w = v}),
                    Contains("weight_norm_forward: rows has a row of 5 from 60"));
  CHECK_THROWS_WITH(weight_norm_forward<float>(ctx, {.v = v, .g = g, .rows = wrong, .w = v}),
                    Contains("gain 2; v has 64 elements, g 2"));
  CHECK_THROWS_WITH(weight_norm_forward<float>(ctx, {.v = v, .g = g, .rows = negative, .w = v}), Contains("gain -2"));
  CHECK_THROWS_WITH(weight_norm_forward<float>(ctx, {.v = v, .g = g, .rows = rows, .w = g}),
                    Contains("weight_norm_forward: w is [1, 1, 1, 2], expected [1, 1, 1, 64]"));
  CHECK_THROWS_WITH(weight_norm_backward(ctx, {.v = v, .g = g, .rows = rows, .dw = v, .dv = v, .dg = v}),
                    Contains("weight_norm_backward: dg is"));
}
