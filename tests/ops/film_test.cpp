#include "nacre/ops/film.h"

#include "harness.h"
#include "reference/film.h"

using namespace nacre;
using namespace nacre::test;

namespace {

const Shape shapes[] = {
    {1, 1, 1, 1},      // the smallest
    {1, 63, 1, 3},     // one row short of a part of the sums on the CPU
    {1, 64, 1, 3},     // exactly one part
    {1, 65, 1, 3},     // a second part of one row
    {4, 65, 1, 5},     // the same in several items
    {2, 37, 1, 24},    // odd rows, packs of both storages
    {2, 37, 1, 20},    // packs of float only
    {2, 37, 1, 23},    // no packs
    {3, 1, 1, 1536},   // one frame per item, three tiles: the streaming case
    {7, 1, 1, 1},      // one value per item
    {1, 40, 1, 511},   // one row nearly fills a tile
    {1, 40, 1, 512},   // one row is a tile
    {1, 40, 1, 513},   // a second tile of one channel
    {1, 2, 1, 4096},   // short and wide
    {5, 7, 11, 13},    // width in use, all odd
    {2, 3, 257, 2},    // width: frequency bins
    {1, 4099, 1, 7},   // long, odd, narrower than a vector
    {16, 50, 1, 256},  // a bottleneck: several blocks of CUDA per item
    {40, 3, 1, 33},    // more items than labels, few rows
    {2, 2049, 1, 1},   // mono: a second block of one row
};

template <class T>
std::vector<double> doubles(const Buffer<T>& b) {
  std::vector<double> v;
  for (const T x : b.before()) v.push_back(to_float(x));
  return v;
}

template <class T>
void film_case(Device device, Shape s, int labels_count) {
  Case c("film", device, s);
  const Shape table{.batch = labels_count, .channels = s.channels};
  auto &x = c.random<T>("x", s, -3, 3), &dy = c.random<T>("dy", s, -1, 1);
  auto& labels = c.integers<int32_t>("labels", {.channels = s.batch}, 0, labels_count - 1);
  auto &gamma = c.random("gamma", table, -2, 2), &beta = c.random("beta", table, -2, 2);
  auto &y = c.output<T>("y", s), &dx = c.output<T>("dx", s), &dx_sum = c.random<T>("dx +=", s, -1, 1);
  auto& dx_only = c.output<T>("dx only", s);
  auto &dgamma = c.random("dgamma", table, -1, 1), &dbeta = c.random("dbeta", table, -1, 1);
  auto &x_in_place = c.values<T>("x in place", s, x.before()),
       &dy_in_place = c.values<T>("dy in place", s, dy.before());
  const View<float> scratch = c.scratch(film_backward_scratch(c.ctx, s));
  film_forward<T>(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = beta, .y = y});
  film_forward<T>(c.ctx, {.x = x_in_place, .labels = labels, .gamma = gamma, .beta = beta, .y = x_in_place});
  FilmBackward<T> back{.x = x, .labels = labels, .gamma = gamma, .dy = dy, .dx = dx_only};
  film_backward<T>(c.ctx, back);  // the parameters' gradients are not requested
  back.dgamma = dgamma, back.dbeta = dbeta, back.scratch = scratch;
  back.dx = dx;
  film_backward<T>(c.ctx, back);
  back.dx = dx_sum, back.add_dx = true;  // the parameters' gradients are accumulated a second time
  film_backward<T>(c.ctx, back);
  back.dx = {};  // a third time, without dx
  film_backward<T>(c.ctx, back);
  film_backward<T>(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .dy = dy_in_place, .dx = dy_in_place});

  const reference::Film f{labels.before(), static_cast<size_t>(s.channels), doubles(gamma), doubles(beta)};
  const std::vector<double> exact = reference::film(f, doubles(x));
  const reference::FilmGradients g = reference::film_gradients(f, doubles(x), doubles(dy));
  const auto of = [](const std::vector<double>& v) { return [&v](int64_t i) { return v[static_cast<size_t>(i)]; }; };
  // A product and a sum, each rounded once, then storage. 1.01: what one rounding adds to the size of the next.
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const auto value_allowed = [&](int64_t i) {
    const auto k = static_cast<size_t>(i);
    const double product = exact[k] - f.beta[reference::film_place(f, exact.size(), k)];
    return 1.01 * ulp * (std::fabs(product) + std::fabs(exact[k])) + storage * std::fabs(exact[k]);
  };
  const auto slope_allowed = [&](int64_t i) { return (1.01 * ulp + storage) * std::fabs(of(g.dx)(i)); };
  const auto sum = [&](int64_t i) { return dx_sum[i] + of(g.dx)(i); };
  const auto sum_allowed = [&](int64_t i) {
    return 1.01 * ulp * std::fabs(of(g.dx)(i)) + (1.01 * ulp + storage) * std::fabs(sum(i));
  };
  c.expect<T>(y, of(exact), value_allowed);
  c.expect<T>(dx, of(g.dx), slope_allowed);
  c.expect<T>(dx_sum, sum, sum_allowed);
  c.expect_equal<T>(dx_only, dx.read());
  c.expect_equal<T>(x_in_place, y.read());
  c.expect_equal<T>(dy_in_place, dx.read());

  // A block adds at most 64 terms in float; a term of dgamma has a rounding of its own, and the sum of a block is
  // rounded once. Each of three calls rounds its sum to float, and what it is added to.
  const auto gradient = [&](const Buffer<float>& before, const std::vector<double>& change) {
    return [&](int64_t i) { return before[i] + 3 * change[static_cast<size_t>(i)]; };
  };
  const auto gradient_allowed = [&](const Buffer<float>& before, const std::vector<double>& sizes) {
    return [&](int64_t i) {
      const double size = 3 * sizes[static_cast<size_t>(i)];
      return 66 * ulp * size + 1.01 * ulp * (size + 3 * (std::fabs(before[i]) + size));
    };
  };
  c.expect<float>(dgamma, gradient(dgamma, g.dgamma), gradient_allowed(dgamma, g.gamma_sizes));
  c.expect<float>(dbeta, gradient(dbeta, g.dbeta), gradient_allowed(dbeta, g.beta_sizes));

  const auto notices = [](const auto& buffer, const std::function<double(int64_t)>& expected,
                          const std::function<double(int64_t)>& allowance) {
    std::vector<double> planted;
    for (auto v : buffer.read()) planted.push_back(to_float(v));
    planted.back() += 10 * allowance(buffer.size() - 1);
    CHECK(worst_ratio(planted, expected, allowance) > 1);
  };
  notices(y, of(exact), value_allowed);
  notices(dx, of(g.dx), slope_allowed);
  notices(dgamma, gradient(dgamma, g.dgamma), gradient_allowed(dgamma, g.gamma_sizes));
  notices(dbeta, gradient(dbeta, g.dbeta), gradient_allowed(dbeta, g.beta_sizes));
}

}  // namespace

TEST_CASE("the reference of film agrees with finite differences", "[film]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  const auto drawn = [&](size_t n) {
    std::vector<double> v(n);
    for (double& x : v) x = draw(rng);
    return v;
  };
  const size_t channels = 3;
  reference::Film f{{1, 0, 1, 1}, channels, drawn(2 * channels), drawn(2 * channels)};
  std::vector<double> x = drawn(4 * 5 * channels);
  const std::vector<double> dy = drawn(x.size());
  const auto objective = [&] {
    double sum = 0;
    const std::vector<double> y = reference::film(f, x);
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  const reference::FilmGradients g = reference::film_gradients(f, x, dy);
  const auto agree = [&](std::vector<double>& values, const std::vector<double>& gradient) {
    for (size_t i = 0; i < values.size(); ++i) {
      const double kept = values[i], h = 1e-3;
      values[i] = kept + h;
      const double above = objective();
      values[i] = kept - h;
      const double below = objective();
      values[i] = kept;
      // The objective is linear in each value. Its 60 terms are at most 2, each rounded a few times: 60 * 2 * 4 * 2^-53
      // at each end, over 2 h.
      CHECK(std::fabs((above - below) / (2 * h) - gradient[i]) < 60 * 2 * 4 * 0x1p-53 / h);
    }
  };
  agree(x, g.dx);
  agree(f.gamma, g.dgamma);
  agree(f.beta, g.dbeta);
}

TEST_CASE("film", "[film][a100][rtx3090][rtx4090]") {
  for (Device device : devices())
    for (Shape s : shapes) {
      film_case<float>(device, s, 3);
      film_case<bf16>(device, s, 2);
    }
  film_case<float>(devices().front(), {2, 37, 1, 24}, 1);
}

TEST_CASE("film: each item by its own label, and one gradient alone", "[film]") {
  for (Device device : devices()) {
    const Shape s{.batch = 5, .time = 2, .channels = 2}, table{.batch = 3, .channels = 2};
    Case c("film labels", device, s);
    // Below and above the range: the nearest label. Nothing has label 1.
    auto& labels = c.values<int32_t>("labels", {.channels = 5}, {0, 2, -1, 3, 2147483647});
    auto& x = c.values("x", s, {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4});
    auto& gamma = c.values("gamma", table, {1, 10, NAN, NAN, 100, 1000});
    auto& beta = c.values("beta", table, {0.5f, 0.25f, NAN, NAN, -1, -2});
    auto& y = c.output("y", s);
    film_forward(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = beta, .y = y});
    const std::vector<float> low{1.5f, 20.25f, 3.5f, 40.25f}, high{99, 1998, 299, 3998};
    std::vector<float> expected;
    for (const auto& item : {low, high, low, high, high}) expected.insert(expected.end(), item.begin(), item.end());
    c.expect_equal<float>(y, expected);
    // Twice the sums: 2 items of label 0 and 3 of label 2, whose x is 1 + 3 and 2 + 4, with dy = 1. Label 1 keeps what
    // it has.
    auto& ones = c.values("dy", s, std::vector<float>(20, 1.0f));
    auto &dgamma = c.values("dgamma", table, {1, 1, 7, 7, 0, 0}), &dbeta = c.values("dbeta", table, {0, 0, 8, 8, 1, 1});
    const View<float> scratch = c.scratch(film_backward_scratch(c.ctx, s));
    FilmBackward<float> back{.x = x, .labels = labels, .gamma = gamma, .dy = ones, .scratch = scratch};
    back.dgamma = dgamma;
    film_backward(c.ctx, back);
    back.dgamma = {}, back.dbeta = dbeta;
    film_backward(c.ctx, back);
    c.expect_equal<float>(dgamma, {9, 13, 7, 7, 12, 18});
    c.expect_equal<float>(dbeta, {4, 4, 8, 8, 7, 7});
  }
}

TEST_CASE("film with factors of one and no offsets is the identity", "[film]") {
  for (Device device : devices()) {
    const Shape s{.batch = 3, .time = 50, .channels = 17}, table{.batch = 2, .channels = 17};
    Case c("film identity", device, s);
    auto &x = c.random("x", s, -3, 3), &y = c.output("y", s), &dx = c.output("dx", s);
    auto& labels = c.values<int32_t>("labels", {.channels = 3}, {1, 0, 1});
    auto &gamma = c.values("gamma", table, std::vector<float>(34, 1.0f)), &beta = c.zeros("beta", table);
    film_forward(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = beta, .y = y});
    film_backward(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .dy = x, .dx = dx});
    c.expect_equal<float>(y, x.before());
    c.expect_equal<float>(dx, x.before());
  }
}

TEST_CASE("film does not allocate and does not depend on threads", "[film]") {
  for (Device device : devices())
    for (Shape s : {Shape{3, 3001, 1, 7}, Shape{2, 150, 1, 600}}) {
      std::vector<float> first_y, first_dx, first_dgamma, first_dbeta;
      for (int threads : {1, 2, 3}) {
        Case c("film threads", device, s, threads);
        const Shape table{.batch = 2, .channels = s.channels};
        auto &x = c.random("x", s, -3, 3), &dy = c.random("dy", s, -1, 1), &y = c.output("y", s);
        auto &dx = c.output("dx", s), &gamma = c.random("gamma", table, -2, 2), &beta = c.random("beta", table, -2, 2);
        auto &dgamma = c.zeros("dgamma", table), &dbeta = c.zeros("dbeta", table);
        auto& labels = c.integers<int32_t>("labels", {.channels = s.batch}, 0, 1);
        const View<float> scratch = c.scratch(film_backward_scratch(c.ctx, s));
        const auto run = [&] {
          film_forward(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = beta, .y = y});
          film_backward(c.ctx, {.x = x,
                                .labels = labels,
                                .gamma = gamma,
                                .dy = dy,
                                .dx = dx,
                                .dgamma = dgamma,
                                .dbeta = dbeta,
                                .scratch = scratch});
        };
        run();  // starts the thread pool
        AllocationCounter counter;
        run();
        CHECK(counter.count() == 0);
        if (threads == 1)
          first_y = y.read(), first_dx = dx.read(), first_dgamma = dgamma.read(), first_dbeta = dbeta.read();
        c.expect_equal(y, first_y);
        c.expect_equal(dx, first_dx);
        c.expect_equal(dgamma, first_dgamma);
        c.expect_equal(dbeta, first_dbeta);
      }
    }
}

TEST_CASE("film names what does not fit", "[film]") {
  using Catch::Contains;
  Case c("film shapes", devices().front(), {});
  const Shape s{2, 3, 1, 4}, table{.batch = 2, .channels = 4};
  auto &x = c.random("x", s, -1, 1), &y = c.output("y", s), &other = c.output("other", {2, 3, 1, 5});
  auto &gamma = c.random("gamma", table, 1, 2), &beta = c.random("beta", table, 1, 2),
       &wrong = c.random("wrong", {.batch = 2, .channels = 5}, 1, 2), &one = c.random("one", {.channels = 4}, 1, 2);
  auto& labels = c.values<int32_t>("labels", {.channels = 2}, {0, 1});
  auto& few = c.values<int32_t>("few", {.channels = 1}, {0});
  CHECK_THROWS_WITH(film_forward(c.ctx, {.x = x, .labels = few, .gamma = gamma, .beta = beta, .y = y}),
                    Contains("film_forward: labels is [1, 1, 1, 1], expected [1, 1, 1, 2]"));
  CHECK_THROWS_WITH(film_forward(c.ctx, {.x = x, .labels = labels, .gamma = wrong, .beta = beta, .y = y}),
                    Contains("film_forward: gamma is [2, 1, 1, 5], expected [2, 1, 1, 4]"));
  CHECK_THROWS_WITH(film_forward(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = one, .y = y}),
                    Contains("film_forward: beta is [1, 1, 1, 4], expected [2, 1, 1, 4]"));
  CHECK_THROWS_WITH(film_forward(c.ctx, {.x = x, .labels = labels, .gamma = gamma, .beta = beta, .y = other}),
                    Contains("film_forward: y"));
  FilmBackward<float> back{.x = x, .labels = labels, .gamma = gamma, .dy = x};
  const auto refused = [&](auto change, const char* what) {
    FilmBackward<float> bad = back;
    change(bad);
    CHECK_THROWS_WITH(film_backward(c.ctx, bad), Contains(what));
  };
  refused([&](auto& b) { b.labels = few; }, "film_backward: labels");
  refused([&](auto& b) { b.gamma = wrong; }, "film_backward: gamma");
  refused([&](auto& b) { b.dy = other; }, "film_backward: dy");
  refused([&](auto& b) { b.dx = other; }, "film_backward: dx");
  refused([&](auto& b) { b.dgamma = one; }, "film_backward: dgamma");
  refused([&](auto& b) { b.dbeta = one; }, "film_backward: dbeta");
  refused([&](auto& b) { b.dgamma = gamma; }, "film_backward: scratch");
}
