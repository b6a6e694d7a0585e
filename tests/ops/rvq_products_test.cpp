// Factorised codes from products of the projections: the products, equal results where all sums are exact, and codes
// that differ from those of exact arithmetic only where rounding decides. rvq_test.cpp runs its cases with products,
// too.
#include <limits>
#include <numeric>

#include "ops/rvq_problem.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::test::rvq;

namespace {

/// Row 0 and rows 1 + j dim + d of rvq_products, in double; `size` receives the sums of |terms|.
std::vector<double> exact_products(const RvqReference& r, std::vector<double>& size) {
  const int64_t all = r.stages * r.dim;
  std::vector<double> out(static_cast<size_t>((1 + all) * all), 0.0);
  size.assign(out.size(), 0.0);
  const auto add = [&](int64_t row, int64_t column, double sign, double v) {
    out[static_cast<size_t>(row * all + column)] += sign * v;
    size[static_cast<size_t>(row * all + column)] += std::fabs(v);
  };
  for (int64_t i = 0; i < all; ++i) {
    add(0, i, 1, r.in_bias[static_cast<size_t>(i)]);
    for (int64_t j = 0; j < i / r.dim; ++j)
      for (int64_t c = 0; c < r.latent; ++c) {
        const double w = r.in_weight[static_cast<size_t>(i * r.latent + c)];
        add(0, i, -1, w * r.out_bias[static_cast<size_t>(j * r.latent + c)]);
        for (int64_t d = 0; d < r.dim; ++d)
          add(1 + j * r.dim + d, i, 1, w * r.out_weight[static_cast<size_t>((j * r.latent + c) * r.dim + d)]);
      }
  }
  return out;
}

/// Half distances of one stage in double: the exact one of each code, and the bound of its error in float.
struct Distances {
  std::vector<double> h, bound;
  std::vector<double> errors_of_e;  // t of the contract

  Distances(const double* e, std::vector<double> t, const double* codebook, int64_t codes, int64_t dim, VqMetric metric)
      : errors_of_e(std::move(t)) {
    const bool cosine = metric == VqMetric::cosine;
    const auto norm = [&](const double* x) { return std::sqrt(std::inner_product(x, x + dim, x, 0.0)); };
    const double scale = cosine ? 1 / norm(e) : 1;
    for (int64_t k = 0; k < codes; ++k) {
      const double* code = codebook + k * dim;
      const double scale_of_code = cosine ? 1 / norm(code) : 1;
      double sum = 0, size = 0, from_e = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double c = code[d] * scale_of_code, x = e[d] * scale;
        sum += c * c / 2 - x * c;
        size += c * c / 2 + std::fabs(x * c);
        from_e += std::fabs(c) * errors_of_e[static_cast<size_t>(d)];
      }
      if (cosine) from_e = 2 * norm(errors_of_e.data()) * scale;
      h.push_back(sum);
      bound.push_back(from_e + static_cast<double>(cosine ? 3 * dim + 9 : 2 * dim + 2) * ulp * size);
    }
  }
};

/// Stages whose code is not that of exact arithmetic, and those where rounding may decide, of all.
struct Differences {
  int64_t found = 0, possible = 0, all = 0;
};

/// Every code of every row is the nearest one but for rounding, given the row's codes before.
Differences expect_nearest(Problem& p, VqMetric metric) {
  RvqReference r = p.reference(), size = r;
  r.forward();
  size.absolute();
  size.forward();
  const Size n = p.n;
  const auto roundings = static_cast<double>(p.products != nullptr ? 2 * n.latent + n.stages * p.dim + 4
                                                                   : 2 * n.stages * (n.latent + p.dim + 6));
  Differences out;
  for (int64_t i = 0; i < n.stages; ++i)
    for (int64_t row = 0; row < p.rows; ++row) {
      const int64_t at = (i * p.rows + row) * p.dim;
      std::vector<double> t(size.e.begin() + at, size.e.begin() + at + p.dim);
      for (double& v : t) v *= roundings * ulp;
      const Distances of(r.e.data() + at, t, r.codebooks.data() + i * n.codes * p.dim, n.codes, p.dim, metric);
      const auto best = std::min_element(of.h.begin(), of.h.end()) - of.h.begin();
      const int64_t chosen = r.chosen[static_cast<size_t>(row * n.stages + i)];
      const auto within = [&](int64_t k) {
        return of.h[size_t(k)] - of.h[size_t(best)] <= of.bound[size_t(k)] + of.bound[size_t(best)];
      };
      CHECK(within(chosen));
      bool possible = false;
      for (int64_t k = 0; k < n.codes; ++k) possible = possible || (k != best && within(k));
      ++out.all, out.found += chosen != best, out.possible += possible;
    }
  return out;
}

}  // namespace

TEST_CASE("rvq_products follows its double reference", "[rvq]") {
  for (Device device : devices())
    for (Size n : sizes) {
      if (n.dim == 0) continue;
      Problem p(device, n, none);
      p.compute_products();
      std::vector<double> size;
      const std::vector<double> exact = exact_products(p.reference(), size);
      // A product has `latent` roundings; row 0 adds one per stage before. Places of no stage are zeros exactly.
      const auto allowed = [&](int64_t i) {
        return static_cast<double>(n.latent + n.stages) * ulp * size[static_cast<size_t>(i)];
      };
      p.c.expect<float>(
          *p.products, [&](int64_t i) { return exact[static_cast<size_t>(i)]; }, allowed);
    }
}

TEST_CASE("rvq_forward gives the same with products as without where sums are exact", "[rvq]") {
  for (Device device : devices())
    for (const VqMetric metric : {VqMetric::euclidean, VqMetric::cosine})
      for (Size n : {Size{3, 17, 40, 8, 70, 4}, Size{1, 9, 300, 8, 40, 3}, Size{2, 7, 21, 5, 33, 4}}) {
        Problem p(device, n, some);
        // Small integers. |z| <= 3 and |q| <= 3 + 3 dim, so |r| <= 3 + (stages - 1) 27 < 128, |e| <= 2 + 128 latent,
        // and every partial sum of e and of P_ij E[c] is an integer below 2^24.
        const auto integers = [&](Buffer<float>& b, double most) {
          std::vector<float> v = p.c.random("integers", b.shape(), -most - 0.5, most + 0.5).before();
          for (float& x : v) x = std::round(x);
          b.write(v);
        };
        integers(p.z, 3), integers(p.codebooks, 3), integers(p.in_weight, 1), integers(p.in_bias, 2);
        integers(p.out_weight, 1), integers(p.out_bias, 3);
        RvqForward a = p.arguments();
        a.metric = metric;
        rvq_forward(p.c.ctx, a);
        const std::vector<int32_t> codes = p.codes.read();
        const std::vector<float> y = p.y.read(), quantised = p.quantised.read();
        p.compute_products();
        auto& y2 = p.c.output("y from products", p.zs);
        auto& quantised2 = p.c.output("e from products", p.quantised.shape());
        auto& codes2 = p.c.output<int32_t>("codes from products", p.codes.shape());
        a = p.arguments();
        a.metric = metric, a.y = y2, a.quantised = quantised2, a.codes = codes2;
        rvq_forward(p.c.ctx, a);
        p.c.expect_equal<int32_t>(codes2, codes);
        p.c.expect_equal<float>(y2, y);
        p.c.expect_equal<float>(quantised2, quantised);

        // The first stages of more.
        if (metric == VqMetric::cosine) continue;
        std::vector<int32_t> two;
        for (size_t i = 0; i < codes.size(); ++i)
          if (static_cast<int64_t>(i) % n.stages < 2) two.push_back(codes[i]);
        const auto first = [](auto view) {
          view.shape.batch = 2;
          return view;
        };
        auto& codes_of_two = p.c.output<int32_t>("codes of two stages", {n.batch, n.frames, 1, 2});
        const RvqProjections all = p.projections();
        Shape books = p.books;
        books.batch = 2;
        rvq_forward(p.c.ctx, {.z = p.z,
                              .codebooks = first(View<const float>(p.codebooks)),
                              .projections = {.in_weight = first(all.in_weight),
                                              .in_bias = first(all.in_bias),
                                              .out_weight = first(all.out_weight),
                                              .out_bias = first(all.out_bias),
                                              .products = all.products},
                              .y = {},
                              .codes = codes_of_two,
                              .scratch = p.c.scratch(rvq_forward_scratch(p.c.ctx, p.zs, books, true, 1, true))});
        p.c.expect_equal<int32_t>(codes_of_two, two);
      }
}

TEST_CASE("factorised codes are those of exact arithmetic, but where rounding decides", "[rvq]") {
  for (Device device : devices())
    for (const VqMetric metric : {VqMetric::euclidean, VqMetric::cosine})
      for (Size n : {Size{1, 150, 64, 8, 128, 9}, Size{1, 90, 128, 8, 256, 4}, Size{1, 60, 30, 5, 100, 6}}) {
        Problem p(device, n, none);
        Differences of[2];
        std::vector<int32_t> codes[2];
        for (const bool products : {false, true}) {
          if (products) p.compute_products();
          RvqForward a = p.arguments();
          a.metric = metric;
          rvq_forward(p.c.ctx, a);
          of[products] = expect_nearest(p, metric);
          codes[products] = p.codes.read();
        }
        int64_t frames = 0;
        for (int64_t row = 0; row < p.rows; ++row)
          frames += !std::equal(codes[0].begin() + row * n.stages, codes[0].begin() + (row + 1) * n.stages,
                                codes[1].begin() + row * n.stages);
        INFO("frames that differ " << frames << ", not exact " << of[0].found << " and " << of[1].found << ", possible "
                                   << of[0].possible << " and " << of[1].possible << " of " << of[1].all);
        // The bound is tight enough to tell the nearest code from the second.
        CHECK(of[1].possible * 10 < of[1].all);
        // The bound adds the largest errors of at least 37 roundings. Their signs are independent, so their sum is
        // about a sixth of it, and of the stages where rounding may decide few are decided wrongly.
        for (const Differences& d : of) CHECK(d.found <= 1 + d.possible / 4);
        // A frame differs only if one of its codes is not the exact one in one of the two.
        CHECK(frames <= of[0].found + of[1].found);
      }
}

TEST_CASE("rvq_forward with products gives code 0 to a row that is not a number", "[rvq]") {
  for (Device device : devices())
    for (Size n : {Size{1, 12, 40, 8, 70, 3}, Size{1, 12, 40, 5, 70, 3}}) {
      Problem p(device, n, none);
      p.compute_products();
      rvq_forward(p.c.ctx, p.arguments());
      std::vector<int32_t> codes = p.codes.read();
      std::vector<float> z = p.z.before();
      z[static_cast<size_t>(4 * n.latent + 7)] = std::nanf("");
      z[static_cast<size_t>(5 * n.latent)] = std::numeric_limits<float>::infinity();
      p.z.write(z);
      rvq_forward(p.c.ctx, p.arguments());
      std::fill(codes.begin() + 4 * n.stages, codes.begin() + 5 * n.stages, 0);
      const std::vector<int32_t> found = p.codes.read();
      std::copy_n(found.begin() + 5 * n.stages, n.stages, codes.begin() + 5 * n.stages);  // checked below
      p.c.expect_equal<int32_t>(p.codes, codes);
      // Whatever an infinite row takes, it is a code.
      for (int64_t i = 0; i < n.stages; ++i) {
        CHECK(found[static_cast<size_t>(5 * n.stages + i)] >= 0);
        CHECK(found[static_cast<size_t>(5 * n.stages + i)] < n.codes);
      }
    }
}

TEST_CASE("rvq_forward names products that do not fit", "[rvq]") {
  Problem p(devices().front(), {2, 3, 8, 4, 16, 2}, none);
  p.compute_products();
  RvqForward a = p.arguments();
  a.projections.products.shape.channels = 4;
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a),
                    Catch::Contains("rvq_forward: projections.products is [1, 9, 1, 4], expected [1, 9, 1, 8]"));
  a = p.arguments();
  a.projections.products = {};
  a.y = {};
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("rvq_forward: y "));
  Problem latent(devices().front(), {2, 3, 8, 0, 16, 2}, none);
  a = latent.arguments();
  a.projections.products = *p.products;
  CHECK_THROWS_WITH(rvq_forward(latent.c.ctx, a), Catch::Contains("projections.products is given, expected none"));
  RvqProducts products{.projections = p.projections(), .y = *p.products};
  CHECK_THROWS_WITH(rvq_products(p.c.ctx, products), Catch::Contains("rvq_products: scratch"));
  products.projections.out_bias = {};
  CHECK_THROWS_WITH(rvq_products(p.c.ctx, products), Catch::Contains("rvq_products: projections.out_bias"));
}
