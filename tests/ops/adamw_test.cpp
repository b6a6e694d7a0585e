#include "nacre/ops/adamw.h"

#include "harness.h"
#include "reference/adamw.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// The scalars of one optimizer on the device.
struct Scalars {
  explicit Scalars(Context& c, AdamWScalars start) : ctx(c), memory(c, sizeof(AdamWScalars)) { write(start); }
  View<AdamWScalars> view() const { return {reinterpret_cast<AdamWScalars*>(memory.data()), {}}; }
  AdamWScalars read() const {
    AdamWScalars s;
    ctx.read<AdamWScalars>(view(), std::span<AdamWScalars>(&s, 1));
    return s;
  }
  void write(AdamWScalars s) const { ctx.write<AdamWScalars>(std::span<const AdamWScalars>(&s, 1), view()); }
  Context& ctx;
  Memory memory;
};

const int64_t lengths[] = {
    1,              // the smallest
    2,      3,      // less than any vector
    15,     16,     // one short of a vector of 512 bits, exactly one
    17,     31,     // odd tails
    33,     64,     // whole vectors and one more
    255,    1023,   // one short of a chunk of the loop
    1024,   1025,   // exactly one chunk, one more
    8191,   8193,   // around the grain of a thread
    32767,  32768,  // one short of a part of the norm, exactly one
    32769,          // a second part of one element
    65536,          // two parts
    100003,         // odd, several parts
};

void adamw_case(Device device, int64_t n, bool with_ema, double max_norm, int steps_before) {
  const Shape s{.channels = n};
  Case c("adamw", device, s);
  auto &value = c.random("value", s, -2, 2), &grad = c.random("grad", s, -0.1, 0.1), &m = c.random("m", s, -0.1, 0.1);
  auto &v = c.random("v", s, 1e-5, 0.01), &ema = c.random("ema", s, -2, 2);
  const Scalars scalars(c.ctx, {.lr = 0.01f, .step = steps_before, .skipped = 3});
  const AdamW a{.value = value,
                .grad = grad,
                .m = m,
                .v = v,
                .ema = with_ema ? View<float>(ema) : View<float>(),
                .scalars = scalars.view(),
                .scratch = c.scratch(adamw_scratch(c.ctx, s)),
                .beta1 = 0.8f,
                .beta2 = 0.95f,
                .weight_decay = 0.1f,
                .max_norm = static_cast<float>(max_norm)};
  adamw(c.ctx, a);

  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += grad[i] * grad[i];
  const double norm = std::sqrt(squares);
  const AdamWScalars after = scalars.read();
  CHECK(std::fabs(after.norm - norm) <= 2 * ulp * norm);
  CHECK(after.step == steps_before + 1);
  CHECK(after.skipped == 3);

  const reference::AdamWOptions o{.lr = 0.01f,
                                  .beta1 = a.beta1,
                                  .beta2 = a.beta2,
                                  .eps = a.eps,
                                  .weight_decay = a.weight_decay,
                                  .max_norm = a.max_norm,
                                  .step = steps_before + 1};
  const auto exact = [&](int64_t i) { return reference::adamw({value[i], m[i], v[i]}, grad[i], norm, o); };
  // The clip, its product, 1 - beta, two products and one sum make four roundings, plus a margin for terms that may
  // cancel.
  const double clip = reference::adamw_clip(norm, max_norm);
  const auto m_size = [&](int64_t i) { return o.beta1 * std::fabs(m[i]) + (1 - o.beta1) * clip * std::fabs(grad[i]); };
  const auto m_allowed = [&](int64_t i) { return 5 * ulp * m_size(i) + 1e-38; };
  const auto v_allowed = [&](int64_t i) { return 8 * ulp * exact(i).v + 1e-38; };
  const auto value_allowed = [&](int64_t i) {
    const double root = std::sqrt(exact(i).v / (1 - std::pow(o.beta2, o.step))) + o.eps;
    const double change = o.weight_decay * std::fabs(value[i]) + m_size(i) / (1 - std::pow(o.beta1, o.step)) / root;
    return 16 * ulp * o.lr * change + ulp * (std::fabs(exact(i).value) + 1e-30);
  };
  const auto new_m = [&](int64_t i) { return exact(i).m; };
  const auto new_v = [&](int64_t i) { return exact(i).v; };
  const auto new_value = [&](int64_t i) { return exact(i).value; };
  c.expect<float>(m, new_m, m_allowed);
  c.expect<float>(v, new_v, v_allowed);
  c.expect<float>(value, new_value, value_allowed);
  c.expect_equal<float>(grad, grad.before());
  if (with_ema) {
    const double rate = 1 - static_cast<double>(a.ema_decay);
    c.expect<float>(
        ema, [&](int64_t i) { return ema[i] + rate * (new_value(i) - ema[i]); },
        [&](int64_t i) { return value_allowed(i) + ulp * (std::fabs(ema[i]) + 4 * rate * 4); });
  } else {
    c.expect_equal<float>(ema, ema.before());
  }

  const auto notices = [](const Buffer<float>& buffer, const auto& expected, const auto& allowance) {
    std::vector<double> planted;
    for (float x : buffer.read()) planted.push_back(static_cast<double>(x));
    planted.back() += 10 * allowance(buffer.size() - 1);
    CHECK(worst_ratio(planted, expected, allowance) > 1);
  };
  notices(m, new_m, m_allowed);
  notices(v, new_v, v_allowed);
  notices(value, new_value, value_allowed);
}

}  // namespace

TEST_CASE("adamw", "[adamw]") {
  for (Device device : devices()) {
    int turn = 0;
    for (int64_t n : lengths) {
      // The first step and later ones, with and without ema, with the clip off, inactive and active in turn.
      const double max_norms[] = {0, 1e6, 0.05};
      adamw_case(device, n, turn % 2 == 0, max_norms[turn % 3], turn % 4 == 0 ? 0 : 17);
      ++turn;
    }
  }
}

TEST_CASE("adamw leaves everything alone when the norm is not finite", "[adamw]") {
  for (Device device : devices())
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      const Shape s{.channels = 40000};
      Case c("adamw skips", device, s);
      auto &value = c.random("value", s, -2, 2), &grad = c.random("grad", s, -1, 1), &m = c.random("m", s, -1, 1);
      auto &v = c.random("v", s, 0, 1), &ema = c.random("ema", s, -2, 2);
      auto broken = grad.before();
      broken[39999] = bad;
      grad.write(broken);
      const Scalars scalars(c.ctx, {.lr = 0.01f, .step = 5, .skipped = 1});
      adamw(c.ctx, {.value = value,
                    .grad = grad,
                    .m = m,
                    .v = v,
                    .ema = ema,
                    .scalars = scalars.view(),
                    .scratch = c.scratch(adamw_scratch(c.ctx, s)),
                    .max_norm = 1});
      for (auto* buffer : {&value, &m, &v, &ema}) c.expect_equal<float>(*buffer, buffer->before());
      CHECK(scalars.read().step == 5);
      CHECK(scalars.read().skipped == 2);
      CHECK(!std::isfinite(scalars.read().norm));
    }
}

TEST_CASE("the norm of large and of small gradients neither overflows nor vanishes", "[adamw]") {
  for (Device device : devices())
    for (float size : {1e25f, 1e-30f}) {
      const Shape s{.channels = 4};
      Case c("adamw norm", device, s);
      auto &value = c.zeros("value", s), &m = c.zeros("m", s), &v = c.zeros("v", s);
      auto& grad = c.values("grad", s, {size, size, -size, size});
      const Scalars scalars(c.ctx, {.lr = 0.01f});
      adamw(c.ctx, {.value = value,
                    .grad = grad,
                    .m = m,
                    .v = v,
                    .scalars = scalars.view(),
                    .scratch = c.scratch(adamw_scratch(c.ctx, s)),
                    .max_norm = 1});
      CHECK(scalars.read().norm == Approx(2 * size).epsilon(1e-6));
      CHECK(scalars.read().step == 1);
    }
}

TEST_CASE("adamw of nothing counts a step", "[adamw]") {
  for (Device device : devices()) {
    Case c("adamw empty", device, {});
    const Scalars scalars(c.ctx, {.lr = 0.01f});
    const View<float> none(nullptr, {.channels = 0});
    CHECK(adamw_scratch(c.ctx, none.shape).elements() == 0);
    adamw(c.ctx, {.value = none, .grad = none, .m = none, .v = none, .scalars = scalars.view()});
    CHECK(scalars.read().step == 1);
    CHECK(scalars.read().norm == 0);
  }
}

TEST_CASE("adamw does not allocate and does not depend on threads", "[adamw]") {
  for (Device device : devices()) {
    const Shape s{.channels = 100003};
    std::vector<float> first;
    for (int threads : {1, 2, 3}) {
      Case c("adamw threads", device, s, threads);
      auto &value = c.random("value", s, -2, 2), &grad = c.random("grad", s, -1, 1);
      auto &m = c.zeros("m", s), &v = c.zeros("v", s);
      const Scalars scalars(c.ctx, {.lr = 0.01f});
      const AdamW a{.value = value,
                    .grad = grad,
                    .m = m,
                    .v = v,
                    .scalars = scalars.view(),
                    .scratch = c.scratch(adamw_scratch(c.ctx, s)),
                    .max_norm = 1};
      adamw(c.ctx, a);  // starts the thread pool
      AllocationCounter counter;
      adamw(c.ctx, a);
      CHECK(counter.count() == 0);
      if (threads == 1) first = value.read();
      c.expect_equal(value, first);
    }
  }
}

TEST_CASE("adamw names what does not fit", "[adamw]") {
  Case c("adamw shapes", devices().front(), {});
  const Shape s{.channels = 4};
  auto &x = c.random("x", s, -1, 1), &other = c.random("other", {.channels = 5}, -1, 1);
  const Scalars scalars(c.ctx, {});
  AdamW a{.value = x, .grad = other, .m = x, .v = x, .scalars = scalars.view()};
  CHECK_THROWS_WITH(adamw(c.ctx, a), Catch::Contains("adamw: grad is [1, 1, 1, 5], expected [1, 1, 1, 4]"));
  a.grad = x, a.m = other;
  CHECK_THROWS_WITH(adamw(c.ctx, a), Catch::Contains("adamw: m"));
  a.m = x, a.v = other;
  CHECK_THROWS_WITH(adamw(c.ctx, a), Catch::Contains("adamw: v"));
  a.v = x, a.ema = other;
  CHECK_THROWS_WITH(adamw(c.ctx, a), Catch::Contains("adamw: ema"));
  a.ema = {};
  CHECK_THROWS_WITH(adamw(c.ctx, a), Catch::Contains("adamw: scratch"));
  a.scalars = {};
  CHECK_THROWS_WITH(adamw(c.ctx, a), Catch::Contains("adamw: scalars"));
}
