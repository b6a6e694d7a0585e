#include "nacre/ops/snake_conv1d.h"

#include <cstring>

#include "harness.h"
#include "nacre/ops/snake.h"
#include "reference/conv1d.h"
#include "reference/snake.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;
using nacre::reference::SnakeParameters;
using nacre::reference::SnakeSlopes;

namespace {

struct Sample {
  const char* why;
  int64_t batch, time, in, out, taps;
  Conv1dGeometry g;
};
Conv1dGeometry same(int64_t taps, int64_t dilation = 1) {
  return {.dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = taps / 2 * dilation};
}
Conv1dGeometry strided(int64_t s) { return {.stride = s, .left = (s + 1) / 2, .right = (s + 1) / 2}; }

const std::vector<Sample>& samples() {
  static const std::vector<Sample> all{
      {"the smallest", 1, 1, 1, 1, 1, {}},
      {"a pointwise layer, odd everything", 2, 37, 19, 23, 1, {}},
      {"a pointwise layer", 2, 70, 32, 32, 1, {}},
      {"last layer of a codec", 2, 203, 16, 1, 7, same(7)},
      {"last layer, causal", 2, 90, 32, 1, 7, {.left = 6}},
      {"last layer, reflected edges", 2, 45, 32, 1, 7, {.left = 3, .right = 3, .padding = Padding::reflect}},
      {"last layer of 96 channels, more rows than a block takes", 2, 701, 96, 1, 7, same(7)},
      {"last layer of a single row", 3, 1, 64, 1, 7, same(7)},
      {"last layer, odd width", 1, 50, 11, 1, 7, same(7)},
      {"residual unit, dilation 1", 2, 150, 16, 16, 7, same(7)},
      {"residual unit, dilation 3", 2, 61, 32, 32, 7, same(7, 3)},
      {"residual unit, dilation 9: edges reach over the middle", 2, 61, 32, 32, 7, same(7, 9)},
      {"residual unit, several tiles of both", 1, 300, 96, 96, 7, same(7, 3)},
      {"residual unit, rows for several parts of the sums", 2, 700, 16, 24, 7, same(7, 9)},
      {"a pointwise layer, rows for several parts of the sums", 3, 400, 16, 8, 1, {}},
      {"a pointwise layer of more than 64 outputs", 2, 40, 80, 72, 1, {}},
      {"three taps, short items: a tile spans many", 40, 9, 16, 16, 3, same(3)},
      {"six taps, padding wider than the kernel", 2, 40, 40, 16, 6, {.left = 11, .right = 9}},
      {"eight taps", 1, 70, 16, 16, 8, same(8)},
      {"a halo too long for the weight gradient of all taps", 1, 150, 16, 16, 7, same(7, 11)},
      {"reflected edges, dilated",
       2,
       60,
       32,
       16,
       7,
       {.dilation = 3, .left = 9, .right = 9, .padding = Padding::reflect}},
      {"fewer samples than taps", 1, 3, 16, 32, 7, same(7)},
      {"causal, dilated", 2, 40, 16, 24, 3, {.dilation = 4, .left = 8}},
      {"no padding", 2, 64, 12, 20, 5, {}},
      {"rate change by 2", 2, 64, 16, 32, 4, strided(2)},
      {"rate change by 4", 2, 64, 32, 64, 8, strided(4)},
      {"odd rate change by 5", 2, 60, 64, 72, 10, strided(5)},
      {"rate change by 3, sides of different width", 3, 32, 7, 9, 6, {.stride = 3, .left = 1, .right = 2}},
      {"rate change by 2, whole warps", 2, 256, 16, 32, 4, strided(2)},
      {"reflected edges, whole warps", 2, 64, 16, 16, 7, {.left = 3, .right = 3, .padding = Padding::reflect}},
      {"groups", 2, 30, 32, 64, 5, {.groups = 4, .left = 2, .right = 2}},
      {"reflected edges", 2, 30, 16, 16, 7, {.left = 3, .right = 3, .padding = Padding::reflect}},
      {"wide and short, widths that fill no vector", 1, 5, 130, 70, 3, same(3)},
  };
  return all;
}

/// Cases that the CPU fuses and that are too large for the emulator: blocks that end within an item, blocks of whole
/// items, and rows that extend over the ends.
const std::vector<Sample>& samples_of_cpu() {
  static const std::vector<Sample> all{
      {"fewer products, blocks end within an item", 1, 1600, 32, 32, 7, same(7)},
      {"fewer products, dilation 3", 2, 501, 64, 32, 7, same(7, 3)},
      {"fewer products, dilation 9: blocks of whole sheets", 3, 430, 64, 64, 7, same(7, 9)},
      {"fewer products, several items in a block", 30, 32, 32, 48, 7, same(7)},
      {"fewer products, causal", 2, 400, 32, 32, 7, {.dilation = 3, .left = 18}},
      {"fewer products, 128 channels", 2, 300, 128, 128, 7, same(7)},
      {"two strides of 4", 3, 500, 32, 64, 8, strided(4)},
      {"two strides of 5", 2, 605, 64, 128, 10, strided(5)},
      {"one tap, rows for several parts", 2, 900, 64, 96, 1, {}},
      {"one tap, 128 channels, a last row alone", 1, 1537, 128, 64, 1, {}},
  };
  return all;
}

using Values = std::vector<double>;
double& at(Values& v, int64_t i) { return v[static_cast<size_t>(i)]; }
double at(const Values& v, int64_t i) { return v[static_cast<size_t>(i)]; }
template <class T>
Values doubles(const Buffer<T>& b) {
  Values v(static_cast<size_t>(b.size()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = b[static_cast<int64_t>(i)];
  return v;
}
Values absolute(Values v) {
  for (double& x : v) x = std::fabs(x);
  return v;
}

template <class T>
void sample_case(Device device, const Sample& s, bool with_beta, bool log_scale,
                 Precision precision = Precision::fp32) {
  INFO(s.why);
  const Shape xs{s.batch, s.time, 1, s.in}, ws{s.out, s.taps, 1, s.in / s.g.groups};
  const Shape ys{s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out};
  const Shape per_channel{.channels = s.in}, per_output{.channels = s.out};
  Case c(std::string("snake_conv1d, ") + s.why, device, xs, 2, precision);
  const double low = log_scale ? -1.5 : 0.2, high = log_scale ? 1.1 : 3;
  auto &x = c.random<T>("x", xs, -4, 4), &w = c.random<T>("weight", ws, -1, 1), &dy = c.random<T>("dy", ys, -1, 1);
  auto &alpha = c.random("alpha", per_channel, low, high), &beta = c.random("beta", per_channel, low, high);
  auto& bias = c.random("bias", per_output, -1, 1);
  auto& residual = c.random<T>("residual", ys, -1, 1);
  auto &y = c.output<T>("y", ys), &y_plain = c.output<T>("y alone", ys);
  auto& y_place = c.values<T>("y over residual", ys, residual.before());
  auto &dx = c.output<T>("dx", xs), &dx_add = c.random<T>("dx +=", xs, -1, 1), &dx_only = c.output<T>("dx only", xs);
  auto &dalpha = c.random("dalpha", per_channel, -1, 1), &dbeta = c.random("dbeta", per_channel, -1, 1);
  auto &dw = c.random("dweight", ws, -1, 1), &dw_only = c.output("dweight =", ws);
  auto& db = c.random("dbias", per_output, -1, 1);
  const View<const float> b = with_beta ? View<const float>(beta) : View<const float>();
  const View<float> dbeta_view = with_beta ? View<float>(dbeta) : View<float>();

  SnakeConv1dForward<T> f{.x = x, .alpha = alpha, .beta = b, .weight = w, .y = y_plain, .geometry = s.g};
  f.scratch = c.scratch(snake_conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g));
  f.log_scale = log_scale;
  SnakeConv1dInputGradient<T> i{.x = x, .alpha = alpha, .beta = b, .dy = dy, .weight = w, .dx = dx_only};
  i.scratch = c.scratch(snake_conv1d_input_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g));
  i.geometry = s.g, i.log_scale = log_scale;
  SnakeConv1dWeightGradient<T> g{.x = x, .alpha = alpha, .beta = b, .dy = dy, .dweight = dw_only, .geometry = s.g};
  g.add_dweight = false;
  g.scratch = c.scratch(snake_conv1d_weight_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g));
  g.log_scale = log_scale;

  const AllocationCounter allocations;
  snake_conv1d_forward<T>(c.ctx, f);
  f.bias = bias, f.residual = residual, f.y = y;
  snake_conv1d_forward<T>(c.ctx, f);
  f.residual = y_place, f.y = y_place;
  snake_conv1d_forward<T>(c.ctx, f);
  snake_conv1d_input_gradient<T>(c.ctx, i);
  i.dx = dx, i.dalpha = dalpha, i.dbeta = dbeta_view;
  snake_conv1d_input_gradient<T>(c.ctx, i);
  i.dx = dx_add, i.add_dx = true;
  snake_conv1d_input_gradient<T>(c.ctx, i);
  i.dx = {};
  snake_conv1d_input_gradient<T>(c.ctx, i);
  snake_conv1d_weight_gradient<T>(c.ctx, g);
  g.dweight = dw, g.dbias = db, g.add_dweight = true;
  snake_conv1d_weight_gradient<T>(c.ctx, g);
  CHECK(allocations.count() == 0);

  const ::reference::Conv1d conv{s.batch,
                                 s.time,
                                 s.in,
                                 s.out,
                                 s.taps,
                                 s.g.stride,
                                 s.g.dilation,
                                 s.g.groups,
                                 s.g.left,
                                 s.g.right,
                                 s.g.padding == Padding::reflect};
  const auto parameters = [&](int64_t k) {
    return SnakeParameters{alpha[k % s.in], beta[k % s.in], with_beta, log_scale};
  };
  const double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;
  const Values wa = absolute(doubles(w)), dya = absolute(doubles(dy));
  // Both factors of a product may be rounded to 10 bits.
  const double factors = precision == Precision::tf32 && device.kind == Device::cuda ? 2.01 * 0x1p-11 : 0;
  const auto root = [](int64_t terms) { return 4 * std::sqrt(static_cast<double>(terms)) * ulp; };

  // The error of u is the bound in snake_test.cpp, plus a rounding if u is stored. The convolution propagates it and
  // adds its own.
  Values u(static_cast<size_t>(x.size())), u_error(u);
  for (int64_t k = 0; k < x.size(); ++k) {
    const SnakeParameters p = parameters(k);
    at(u, k) = nacre::reference::snake(x[k], p);
    at(u_error, k) = 12 * ulp * (std::fabs(x[k]) * (1 + p.a() / p.b()) + 1 / p.b()) + storage * std::fabs(at(u, k));
  }
  const Values y_ref = conv.forward(u, doubles(w)), y_size = conv.forward(absolute(u), wa),
               y_carried = conv.forward(u_error, wa);
  const auto y_alone = [&](int64_t k) { return at(y_ref, k); };
  const auto y_alone_allowed = [&](int64_t k) {
    return 1.01 * (at(y_carried, k) + (factors + root(s.taps * ws.channels)) * at(y_size, k)) +
           storage * std::fabs(y_alone(k));
  };
  const auto y_full = [&](int64_t k) { return at(y_ref, k) + bias[k % s.out] + residual[k]; };
  const auto y_full_allowed = [&](int64_t k) {
    return 1.01 * (at(y_carried, k) + root(s.taps * ws.channels + 2) * (at(y_size, k) + 2) + factors * at(y_size, k)) +
           storage * std::fabs(y_full(k));
  };
  c.expect<T>(y_plain, y_alone, y_alone_allowed);
  c.expect<T>(y, y_full, y_full_allowed);
  c.expect_equal<T>(y_place, y.read());

  // The error of g is the bound in conv1d_test.cpp, plus a rounding if g is stored. The error of Snake's slopes is that
  // in snake_test.cpp.
  const Values grad = conv.input_gradient(doubles(dy), doubles(w)), grad_size = conv.input_gradient(dya, wa);
  const auto grad_error = [&](int64_t k) {
    return (factors + root(s.taps * s.out / s.g.groups)) * at(grad_size, k) + storage * std::fabs(at(grad, k));
  };
  const auto slope = [&](int64_t k) { return at(grad, k) * nacre::reference::snake_slopes(x[k], parameters(k)).x; };
  const auto slope_allowed = [&](int64_t k) {
    const SnakeParameters p = parameters(k);
    const double ratio = p.a() / p.b(), phase = std::fabs(p.a() * x[k]);
    return 1.01 * (grad_error(k) * std::fabs(nacre::reference::snake_slopes(x[k], p).x) +
                   std::fabs(at(grad, k)) * ulp * (16 * (1 + ratio) + 8 * phase * ratio)) +
           1e-3 * grad_error(k) + storage * std::fabs(slope(k));
  };
  c.expect<T>(dx, slope, slope_allowed);
  c.expect_equal<T>(dx_only, dx.read());
  c.expect<T>(
      dx_add, [&](int64_t k) { return dx_add[k] + slope(k); },
      [&](int64_t k) { return slope_allowed(k) + (ulp + storage) * std::fabs(dx_add[k] + slope(k)); });

  Values by_alpha(static_cast<size_t>(s.in)), by_beta(by_alpha), alpha_allowed(by_alpha), beta_allowed(by_alpha);
  for (int64_t k = 0; k < x.size(); ++k) {
    const int64_t channel = k % s.in;
    const SnakeParameters p = parameters(k);
    const SnakeSlopes d = nacre::reference::snake_slopes(x[k], p);
    at(by_alpha, channel) += 3 * at(grad, k) * d.alpha, at(by_beta, channel) += 3 * at(grad, k) * d.beta;
    const double scale_a = log_scale ? p.a() : 1, scale_b = log_scale ? p.b() : 1;
    const double error =
        3 * (1.01 * grad_error(k) + std::fabs(at(grad, k)) * ulp * (64 + 16 + 8 * std::fabs(p.a() * x[k])));
    const double size_b = error / (p.b() * p.b());
    at(alpha_allowed, channel) += scale_a * (error * std::fabs(x[k]) / p.b() + (with_beta ? 0 : size_b));
    at(beta_allowed, channel) += scale_b * size_b;
  }
  const auto sums = [&](const Buffer<float>& found, const Values& change, const Values& allowed) {
    c.expect<float>(
        found, [&](int64_t k) { return found[k] + at(change, k); },
        [&](int64_t k) { return at(allowed, k) + 6 * ulp * (std::fabs(found[k]) + std::fabs(at(change, k))); });
  };
  sums(dalpha, by_alpha, alpha_allowed);
  if (with_beta)
    sums(dbeta, by_beta, beta_allowed);
  else
    c.expect_equal<float>(dbeta, dbeta.before());

  const Values dw_ref = conv.weight_gradient(u, doubles(dy)), dw_size = conv.weight_gradient(absolute(u), dya),
               dw_carried = conv.weight_gradient(u_error, dya);
  const auto dw_expected = [&](int64_t k) { return dw[k] + at(dw_ref, k); };
  const auto dw_allowed = [&](int64_t k) {
    return 1.01 * (at(dw_carried, k) + root(ys.rows() + 1) * (at(dw_size, k) + 1) + factors * at(dw_size, k));
  };
  c.expect<float>(dw, dw_expected, dw_allowed);
  c.expect<float>(
      dw_only, [&](int64_t k) { return at(dw_ref, k); }, dw_allowed);
  Values bias_ref(static_cast<size_t>(s.out)), bias_size(bias_ref);
  for (int64_t k = 0; k < dy.size(); ++k)
    at(bias_ref, k % s.out) += dy[k], at(bias_size, k % s.out) += std::fabs(dy[k]);
  c.expect<float>(
      db, [&](int64_t k) { return db[k] + at(bias_ref, k); },
      [&](int64_t k) { return root(ys.rows() + 1) * (at(bias_size, k) + 1); });

  const auto notices = [](const auto& buffer, const auto& expected, const auto& allowance) {
    Values planted;
    for (auto v : buffer.read()) planted.push_back(static_cast<double>(to_float(v)));
    planted.back() += 10 * allowance(buffer.size() - 1);
    CHECK(worst_ratio(planted, expected, allowance) > 1);
  };
  notices(y, y_full, y_full_allowed);
  notices(dx, slope, slope_allowed);
  notices(dw, dw_expected, dw_allowed);
}

/// With a frequency of zero, Snake is the identity. On small integers the op then equals the convolution exactly.
template <class T>
void exact(Device device, Precision precision, const Sample& s) {
  INFO(s.why);
  const Shape xs{s.batch, s.time, 1, s.in}, ws{s.out, s.taps, 1, s.in / s.g.groups};
  const Shape ys{s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out}, per_channel{.channels = s.in};
  Case c(std::string("snake_conv1d exact, ") + s.why, device, xs, 2, precision);
  auto &x = c.integers<T>("x", xs, -3, 3), &w = c.integers<T>("weight", ws, -3, 3),
       &dy = c.integers<T>("dy", ys, -3, 3);
  auto &alpha = c.zeros("alpha", per_channel), &bias = c.integers("bias", {.channels = s.out}, -3, 3);
  auto &residual = c.integers<T>("residual", ys, -3, 3), &y = c.output<T>("y", ys);
  auto &dx = c.integers<T>("dx", xs, -3, 3), &dx_alone = c.output<T>("dx =", xs);
  auto &dw = c.integers("dweight", ws, -3, 3), &db = c.integers("dbias", {.channels = s.out}, -3, 3);
  const View<float> scratch = c.scratch(snake_conv1d_input_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g));
  snake_conv1d_forward<T>(c.ctx, {.x = x,
                                  .alpha = alpha,
                                  .weight = w,
                                  .bias = bias,
                                  .residual = residual,
                                  .y = y,
                                  .scratch = c.scratch(snake_conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                                  .geometry = s.g});
  SnakeConv1dInputGradient<T> i{.x = x, .alpha = alpha, .dy = dy, .weight = w, .dx = dx_alone, .scratch = scratch};
  i.geometry = s.g;
  snake_conv1d_input_gradient<T>(c.ctx, i);
  i.dx = dx, i.add_dx = true;
  snake_conv1d_input_gradient<T>(c.ctx, i);
  snake_conv1d_weight_gradient<T>(
      c.ctx, {.x = x,
              .alpha = alpha,
              .dy = dy,
              .dweight = dw,
              .dbias = db,
              .scratch = c.scratch(snake_conv1d_weight_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g)),
              .geometry = s.g});
  const ::reference::Conv1d conv{s.batch,
                                 s.time,
                                 s.in,
                                 s.out,
                                 s.taps,
                                 s.g.stride,
                                 s.g.dilation,
                                 s.g.groups,
                                 s.g.left,
                                 s.g.right,
                                 s.g.padding == Padding::reflect};
  const Values y_ref = conv.forward(doubles(x), doubles(w)), grad = conv.input_gradient(doubles(dy), doubles(w)),
               dw_ref = conv.weight_gradient(doubles(x), doubles(dy));
  Values bias_ref(static_cast<size_t>(s.out));
  for (int64_t k = 0; k < dy.size(); ++k) at(bias_ref, k % s.out) += dy[k];
  const auto stored = [](double v) { return static_cast<double>(to_float(store<T>(static_cast<float>(v)))); };
  const auto nothing = [](int64_t) { return 0.0; };
  // The composed ops also store the gradient between them. In that case the found and the expected sum are both
  // rounded.
  const auto twice = [&](int64_t k) {
    return bf16_ulp * std::fabs(at(grad, k)) + 2.02 * bf16_ulp * std::fabs(at(grad, k) + dx[k]);
  };
  const auto allowed = [&](int64_t k) { return std::is_same_v<T, float> ? 0 : twice(k); };
  c.expect<T>(
      y, [&](int64_t k) { return stored(at(y_ref, k) + bias[k % s.out] + residual[k]); }, nothing);
  c.expect<T>(
      dx_alone, [&](int64_t k) { return stored(at(grad, k)); }, nothing);
  c.expect<T>(
      dx, [&](int64_t k) { return stored(at(grad, k) + dx[k]); }, allowed);
  c.expect<float>(
      dw, [&](int64_t k) { return at(dw_ref, k) + dw[k]; }, nothing);
  c.expect<float>(
      db, [&](int64_t k) { return at(bias_ref, k) + db[k]; }, nothing);
}

}  // namespace

TEST_CASE("snake_conv1d of frequency zero is conv1d, exact on integers", "[snake_conv1d]") {
  for (const Device device : devices())
    for (const Sample& s : samples()) {
      exact<float>(device, Precision::fp32, s);
      exact<float>(device, Precision::tf32, s);
      exact<bf16>(device, Precision::fp32, s);
    }
}
TEST_CASE("snake_conv1d", "[snake_conv1d]") {
  for (const Device device : devices()) {
    int k = 0;
    for (const Sample& s : samples()) {
      sample_case<float>(device, s, k % 2 == 1, k % 3 == 0);
      ++k;
    }
  }
}
TEST_CASE("snake_conv1d fused on the CPU", "[snake_conv1d]") {
  int k = 0;
  for (const Sample& s : samples_of_cpu()) {
    INFO(s.why);
    Context ctx;
    CHECK(snake_conv1d_fuses(ctx, {s.batch, s.time, 1, s.in}, {s.out, s.taps, 1, s.in}, s.g));
    exact<float>(Device{}, Precision::fp32, s);
    sample_case<float>(Device{}, s, k % 2 == 1, k % 3 == 0);
    ++k;
  }
}
TEST_CASE("snake_conv1d fused is its two ops, bit for bit, for any number of threads", "[snake_conv1d]") {
  for (const Sample& s : samples_of_cpu()) {
    INFO(s.why);
    const Shape xs{s.batch, s.time, 1, s.in}, ws{s.out, s.taps, 1, s.in};
    const Shape ys{s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out}, per_channel{.channels = s.in};
    std::vector<float> y, dx, dalpha;
    for (const int threads : {1, 2, 3}) {
      Case c(std::string("snake_conv1d threads, ") + s.why, Device{}, xs, threads);
      auto &x = c.random("x", xs, -4, 4), &w = c.random("weight", ws, -1, 1), &dy = c.random("dy", ys, -1, 1);
      auto &alpha = c.random("alpha", per_channel, 0.2, 3), &u = c.output("u", xs), &g = c.output("g", xs);
      auto &y_two = c.output("y of two", ys), &y_one = c.output("y", ys);
      auto &dx_two = c.output("dx of two", xs), &dx_one = c.output("dx", xs), &da = c.zeros("dalpha", per_channel);
      snake_forward(c.ctx, {.x = x, .alpha = alpha, .y = u});
      conv1d_forward(c.ctx, {.x = u,
                             .weight = w,
                             .y = y_two,
                             .scratch = c.scratch(conv1d_forward_scratch(c.ctx, xs, ws, s.g)),
                             .geometry = s.g});
      snake_conv1d_forward(c.ctx, {.x = x,
                                   .alpha = alpha,
                                   .weight = w,
                                   .y = y_one,
                                   .scratch = c.scratch(snake_conv1d_forward_scratch(c.ctx, xs, ws, s.g)),
                                   .geometry = s.g});
      conv1d_input_gradient(c.ctx, {.dy = dy,
                                    .weight = w,
                                    .dx = g,
                                    .scratch = c.scratch(conv1d_input_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                    .geometry = s.g});
      snake_backward(c.ctx, {.x = x, .alpha = alpha, .dy = g, .dx = dx_two});
      snake_conv1d_input_gradient(c.ctx,
                                  {.x = x,
                                   .alpha = alpha,
                                   .dy = dy,
                                   .weight = w,
                                   .dx = dx_one,
                                   .dalpha = da,
                                   .scratch = c.scratch(snake_conv1d_input_gradient_scratch(c.ctx, xs, ws, ys, s.g)),
                                   .geometry = s.g});
      c.expect_equal<float>(y_one, y_two.read());
      c.expect_equal<float>(dx_one, dx_two.read());
      if (threads == 1)
        y = y_one.read(), dx = dx_one.read(), dalpha = da.read();
      else
        CHECK((y == y_one.read() && dx == dx_one.read() && dalpha == da.read()));
    }
  }
}
TEST_CASE("snake_conv1d on tensor cores in tf32", "[snake_conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    int k = 2;
    for (const Sample& s : samples()) {
      sample_case<float>(device, s, k % 2 == 1, k % 3 == 0, Precision::tf32);
      ++k;
    }
  }
}
TEST_CASE("snake_conv1d in bf16", "[snake_conv1d][a100][rtx3090]") {
  for (const Device device : devices()) {
    int k = 1;
    for (const Sample& s : samples()) {
      sample_case<bf16>(device, s, k % 2 == 1, k % 3 == 0);
      ++k;
    }
  }
}
TEST_CASE("snake_conv1d in wide tiles where rows for the halo would cost a round of blocks", "[snake_conv1d]") {
  for (const Device device : devices())
    if (device.kind == Device::cuda)
      sample_case<bf16>(device, {"132 blocks instead of 133", 129, 260, 128, 8, 3, same(3)}, true, false);
}
TEST_CASE("snake_conv1d in tiles of 96 columns", "[snake_conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;  // the input gradient has 134 tiles
    sample_case<bf16>(device, {"one tap", 3, 5700, 96, 8, 1, {}}, true, false);
    sample_case<float>(device, {"one tap, the last columns empty", 3, 5700, 88, 8, 1, {}}, true, true, Precision::tf32);
  }
}
TEST_CASE("snake_conv1d in wide tiles with a halo longer than they", "[snake_conv1d][a100][rtx3090]") {
  for (const Device device : devices())
    if (device.kind == Device::cuda)  // 128 x 64 in 99 KiB of shared memory, 128 x 128 in more
      sample_case<bf16>(device, {"two taps, far apart", 5, 2000, 128, 8, 2, same(2, 200)}, true, false);
}

namespace {

/// The same integers at an address that is not aligned for packs. Other kernels or accesses run, but the result is the
/// same.
template <class T>
void unaligned(Device device, const Sample& s) {
  INFO(s.why);
  const Shape xs{s.batch, s.time, 1, s.in}, ws{s.out, s.taps, 1, s.in};
  const Shape ys{s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out}, per_channel{.channels = s.in};
  Case c(std::string("snake_conv1d unaligned, ") + s.why, device, xs);
  auto &x = c.integers<T>("x", xs, -3, 3), &w = c.integers<T>("weight", ws, -3, 3),
       &dy = c.integers<T>("dy", ys, -3, 3);
  auto &alpha = c.zeros("alpha", per_channel), &dalpha = c.zeros("dalpha", per_channel);
  const auto odd = [&](const char* name, Shape shape, const auto& values) {
    using U = std::remove_cvref_t<decltype(values[0])>;
    std::vector<U> more{U{}};
    more.insert(more.end(), values.begin(), values.end());
    auto& b = c.values<U>(name, {.channels = shape.elements() + 1}, more);
    return View<U>(b.data() + 1, shape);
  };
  const View<T> x_odd = odd("x, odd", xs, x.before()), dy_odd = odd("dy, odd", ys, dy.before()),
                dx_odd = odd("dx, odd", xs, std::vector<T>(static_cast<size_t>(x.size())));
  auto &y = c.output<T>("y", ys), &y_odd = c.output<T>("y from odd", ys), &dx = c.output<T>("dx", xs);
  auto &dw = c.zeros("dweight", ws), &dw_odd = c.zeros("dweight from odd", ws);
  const auto forward = [&](View<const T> from, View<T> to) {
    snake_conv1d_forward<T>(c.ctx, {.x = from,
                                    .alpha = alpha,
                                    .weight = w,
                                    .y = to,
                                    .scratch = c.scratch(snake_conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                                    .geometry = s.g});
  };
  const auto backward = [&](View<const T> from, View<const T> gradient, View<T> to, View<float> weights) {
    snake_conv1d_input_gradient<T>(
        c.ctx, {.x = from,
                .alpha = alpha,
                .dy = gradient,
                .weight = w,
                .dx = to,
                .dalpha = dalpha,
                .scratch = c.scratch(snake_conv1d_input_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g)),
                .geometry = s.g});
    snake_conv1d_weight_gradient<T>(
        c.ctx, {.x = from,
                .alpha = alpha,
                .dy = gradient,
                .dweight = weights,
                .scratch = c.scratch(snake_conv1d_weight_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g)),
                .geometry = s.g});
  };
  forward(x, y);
  forward(x_odd, y_odd);
  backward(x, dy, dx, dw);
  backward(x_odd, dy_odd, dx_odd, dw_odd);
  c.expect_equal(y_odd, y.read());
  c.expect_equal(dw_odd, dw.read());
  std::vector<T> found(static_cast<size_t>(x.size()));
  c.ctx.read<T>(dx_odd, found);
  CHECK(std::memcmp(found.data(), dx.read().data(), found.size() * sizeof(T)) == 0);
}

}  // namespace

TEST_CASE("snake_conv1d at any address", "[snake_conv1d]") {
  for (const Device device : devices())
    for (const Sample& s : {Sample{"last layer", 2, 90, 32, 1, 7, same(7)}, Sample{"unit", 1, 50, 16, 8, 3, same(3)}}) {
      unaligned<float>(device, s);
      unaligned<bf16>(device, s);
    }
}

#if defined(NACRE_WITH_CUDA)
namespace {

struct Launches {
  const char *forward, *input_gradient, *weight_gradient;
};
/// Calls each op once. It must launch the kernel of that name.
template <class T>
void launches_of(Precision precision, const Sample& s, const Launches& names) {
  INFO(s.why << ": " << names.forward);
  const Shape xs{s.batch, s.time, 1, s.in}, ws{s.out, s.taps, 1, s.in};
  const Shape ys{s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out}, per_channel{.channels = s.in};
  Case c("snake_conv1d", {Device::cuda}, xs, 2, precision);
  auto &x = c.random<T>("x", xs, -1, 1), &w = c.random<T>("weight", ws, -1, 1), &dy = c.random<T>("dy", ys, -1, 1);
  auto &y = c.output<T>("y", ys), &dx = c.output<T>("dx", xs);
  auto &alpha = c.random("alpha", per_channel, 1, 2), &dalpha = c.zeros("dalpha", per_channel), &dw = c.zeros("dw", ws),
       &db = c.zeros("db", {.channels = s.out});
  const auto once = [&](const char* name, const auto& run) {
    const int64_t before = cuda::runtime(c.ctx).launches(name);
    run();
    CHECK(cuda::runtime(c.ctx).launches(name) == before + 1);
  };
  once(names.forward, [&] {
    snake_conv1d_forward<T>(c.ctx, {.x = x,
                                    .alpha = alpha,
                                    .weight = w,
                                    .y = y,
                                    .scratch = c.scratch(snake_conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                                    .geometry = s.g});
  });
  once(names.input_gradient, [&] {
    snake_conv1d_input_gradient<T>(
        c.ctx, {.x = x,
                .alpha = alpha,
                .dy = dy,
                .weight = w,
                .dx = dx,
                .dalpha = dalpha,
                .scratch = c.scratch(snake_conv1d_input_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g)),
                .geometry = s.g});
  });
  once(names.weight_gradient, [&] {
    snake_conv1d_weight_gradient<T>(
        c.ctx, {.x = x,
                .alpha = alpha,
                .dy = dy,
                .dweight = dw,
                .dbias = db,
                .scratch = c.scratch(snake_conv1d_weight_gradient_scratch<T>(c.ctx, xs, ws, ys, s.g)),
                .geometry = s.g});
  });
  // Only channels that fill no packs need another pass over dy for the bias.
  CHECK(cuda::runtime(c.ctx).launches("conv1d_column_sums_packs") == 0);
  CHECK(cuda::runtime(c.ctx).launches("conv1d_column_sums") == (s.out % 8 == 0 || s.out == 1 ? 0 : 1));
}

}  // namespace

TEST_CASE("snake_conv1d runs fused where it says so", "[snake_conv1d][a100][rtx3090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    const Launches ends{"snake_conv1d_ends_contract", "snake_conv1d_ends_expand", "snake_conv1d_ends_weights"};
    const Sample last{"last layer", 1, 90, 32, 1, 7, same(7)};
    launches_of<float>(Precision::fp32, last, ends);
    launches_of<bf16>(Precision::fp32, last, ends);
    const Sample odd{"odd channels: composed", 1, 20, 7, 9, 7, same(7)};
    launches_of<float>(Precision::fp32, odd, {"snake_forward", "snake_backward", "snake_forward"});
    const Sample unit{"residual unit", 1, 90, 32, 32, 7, same(7, 3)};
    launches_of<float>(
        Precision::fp32, unit,
        {"snake_conv1d_forward_fma", "snake_conv1d_input_gradient_fma", "snake_conv1d_weight_gradient_taps_fma"});
    launches_of<float>(
        Precision::tf32, unit,
        {"snake_conv1d_forward_tf32", "snake_conv1d_input_gradient_tf32", "snake_conv1d_weight_gradient_taps_tf32"});
    launches_of<bf16>(
        Precision::fp32, unit,
        {"snake_conv1d_forward_bf16", "snake_conv1d_input_gradient_bf16", "snake_conv1d_weight_gradient_taps_bf16"});
    const Sample pointwise{"pointwise", 1, 90, 32, 32, 1, {}},
        strided_by_2{"rate change", 1, 64, 16, 32, 4, strided(2)};
    for (const int64_t out : {32, 72})
      launches_of<float>(
          Precision::fp32, Sample{"pointwise", 1, 90, 32, out, 1, {}},
          {"snake_conv1d_forward_fma", "snake_conv1d_input_gradient_fma", "snake_conv1d_weight_gradient_fma"});
    for (const Sample& s : {pointwise, strided_by_2}) {
      launches_of<float>(
          Precision::tf32, s,
          {"snake_conv1d_forward_tf32", "snake_conv1d_input_gradient_tf32", "snake_conv1d_weight_gradient_tf32"});
      launches_of<bf16>(
          Precision::fp32, s,
          {"snake_conv1d_forward_bf16", "snake_conv1d_input_gradient_bf16", "snake_conv1d_weight_gradient_bf16"});
    }
    const Sample wide{"many columns of tiles: composed forward", 1, 20, 16, 264, 1, {}};
    launches_of<bf16>(Precision::fp32, wide,
                      {"snake_forward_packs", "snake_conv1d_input_gradient_bf16", "snake_forward_packs"});
    launches_of<bf16>(
        Precision::fp32, Sample{"as many, but three taps", 1, 20, 16, 264, 3, same(3)},
        {"snake_conv1d_forward_bf16", "snake_conv1d_input_gradient_bf16", "snake_conv1d_weight_gradient_taps_bf16"});
  }
}

namespace {

/// The fused forward must give the bits of snake_forward followed by conv1d_forward. Those run the same products on an
/// input that is not changed in place.
template <class T>
void as_composed(Precision precision, const Sample& s) {
  INFO(s.why);
  const Shape xs{s.batch, s.time, 1, s.in}, ws{s.out, s.taps, 1, s.in};
  const Shape ys{s.batch, conv1d_length(s.time, s.taps, s.g), 1, s.out}, per_channel{.channels = s.in};
  Case c("snake_conv1d", {Device::cuda}, xs, 2, precision);
  auto &x = c.random<T>("x", xs, -1, 1), &w = c.random<T>("weight", ws, -1, 1);
  auto &alpha = c.random("alpha", per_channel, 1, 2), &beta = c.random("beta", per_channel, 1, 2);
  auto &active = c.output<T>("active", xs), &composed = c.output<T>("composed", ys), &fused = c.output<T>("fused", ys);
  snake_forward<T>(c.ctx, {.x = x, .alpha = alpha, .beta = beta, .y = active});
  conv1d_forward<T>(c.ctx, {.x = active,
                            .weight = w,
                            .y = composed,
                            .scratch = c.scratch(conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                            .geometry = s.g});
  snake_conv1d_forward<T>(c.ctx, {.x = x,
                                  .alpha = alpha,
                                  .beta = beta,
                                  .weight = w,
                                  .y = fused,
                                  .scratch = c.scratch(snake_conv1d_forward_scratch<T>(c.ctx, xs, ws, s.g)),
                                  .geometry = s.g});
  CHECK(std::memcmp(fused.read().data(), composed.read().data(), static_cast<size_t>(ys.elements()) * sizeof(T)) == 0);
}

}  // namespace

TEST_CASE("snake_conv1d's forward in tiles gives the bits of its two halves", "[snake_conv1d][rtx3090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    // Numbers of taps that leave few or many steps for changing the next channels, with one to four turns of channels
    // and every tile.
    for (const Sample& s :
         {Sample{"one turn of channels", 2, 150, 40, 128, 7, same(7)},
          Sample{"two turns, one step to change in", 2, 150, 72, 128, 3, same(3)},
          Sample{"three turns, dilated", 1, 150, 136, 96, 7, same(7, 9)},
          Sample{"four turns, a step with nothing left to change", 2, 90, 200, 64, 8, same(8)},
          Sample{"two turns of two samples", 2, 150, 48, 64, 6, strided(2)},
          Sample{"whole warps", 3, 192, 72, 64, 7, same(7, 3)},
          Sample{"two taps of channels", 2, 150, 72, 64, 4, strided(2)},
          Sample{"one tap, one turn", 2, 150, 64, 64, 1, {}}, Sample{"one tap, four turns", 2, 150, 200, 128, 1, {}}}) {
      as_composed<bf16>(Precision::fp32, s);
      as_composed<float>(Precision::fp32, s);
      as_composed<float>(Precision::tf32, s);
    }
  }
}
TEST_CASE("snake_conv1d's forward in wide tiles gives the bits of its two halves", "[snake_conv1d]") {
  for (const Device device : devices())
    if (device.kind == Device::cuda)
      for (const Sample& s : {Sample{"two taps, tiles of 256 by 128", 3, 11300, 72, 128, 2, {.left = 1}},
                              Sample{"one tap, two blocks of 128 by 128", 3, 11300, 72, 128, 1, {}},
                              Sample{"tiles of 256 by 64, halves of warps apart", 3, 11300, 72, 64, 3, same(3, 2)},
                              Sample{"tiles of 256 by 128, several items in one", 129, 260, 72, 128, 3, same(3)}})
        as_composed<bf16>(Precision::fp32, s);
}
TEST_CASE("snake_conv1d's forward in tiles of 96 columns gives the bits of its two halves", "[snake_conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    const Sample s{"134 tiles, the last columns empty", 3, 5700, 40, 88, 3, same(3)};
    as_composed<bf16>(Precision::fp32, s);
    as_composed<float>(Precision::tf32, s);
  }
}
TEST_CASE("snake_conv1d's forward in wide tiles with a long halo gives the bits of its two halves",
          "[snake_conv1d][rtx3090]") {
  for (const Device device : devices())
    if (device.kind == Device::cuda)
      as_composed<bf16>(Precision::fp32, {"128 x 64 in 99 KiB of shared memory", 5, 2000, 8, 128, 2, same(2, 200)});
}
#endif

TEST_CASE("snake_conv1d of no batch, and what does not fit", "[snake_conv1d]") {
  for (const Device device : devices()) {
    const Conv1dGeometry g = same(7);
    const Shape none{0, 20, 1, 16}, ws{16, 7, 1, 16}, xs{2, 20, 1, 16}, per_channel{.channels = 16};
    Case c("snake_conv1d", device, none);
    auto &w = c.random("weight", ws, -1, 1), &alpha = c.random("alpha", per_channel, 1, 2);
    auto &dw = c.random("dweight", ws, -1, 1), &dalpha = c.random("dalpha", per_channel, -1, 1);
    CHECK(snake_conv1d_forward_scratch(c.ctx, none, ws, g).elements() == 0);
    CHECK(snake_conv1d_input_gradient_scratch(c.ctx, none, ws, none, g).elements() == 0);
    CHECK(snake_conv1d_weight_gradient_scratch(c.ctx, none, ws, none, g).elements() == 0);
    const View<float> empty{nullptr, none};
    snake_conv1d_forward<float>(c.ctx, {.x = empty, .alpha = alpha, .weight = w, .y = empty, .geometry = g});
    snake_conv1d_input_gradient<float>(
        c.ctx, {.x = empty, .alpha = alpha, .dy = empty, .weight = w, .dx = empty, .dalpha = dalpha, .geometry = g});
    snake_conv1d_weight_gradient<float>(c.ctx, {.x = empty, .alpha = alpha, .dy = empty, .dweight = dw, .geometry = g});
    c.expect_equal(dw, dw.before());
    c.expect_equal(dalpha, dalpha.before());

    using Catch::Contains;
    auto &x = c.random("x", xs, -1, 1), &y = c.output("y", xs), &other = c.output("other", {2, 19, 1, 16});
    auto& wrong = c.random("wrong", {.channels = 5}, 1, 2);
    const View<float> much = c.scratch({.channels = 1 << 20});
    CHECK_THROWS_WITH(snake_conv1d_forward<float>(
                          c.ctx, {.x = x, .alpha = wrong, .weight = w, .y = y, .scratch = much, .geometry = g}),
                      Contains("snake_conv1d_forward: alpha is [1, 1, 1, 5], expected [1, 1, 1, 16]"));
    CHECK_THROWS_WITH(
        snake_conv1d_forward<float>(
            c.ctx, {.x = x, .alpha = alpha, .beta = wrong, .weight = w, .y = y, .scratch = much, .geometry = g}),
        Contains("snake_conv1d_forward: beta"));
    CHECK_THROWS_WITH(snake_conv1d_forward<float>(
                          c.ctx, {.x = x, .alpha = alpha, .weight = w, .y = other, .scratch = much, .geometry = g}),
                      Contains("y is [2, 19, 1, 16], expected [2, 20, 1, 16]"));
    CHECK_THROWS_WITH(snake_conv1d_forward<float>(c.ctx, {.x = x, .alpha = alpha, .weight = w, .y = y, .geometry = g}),
                      Contains("snake_conv1d_forward: scratch"));
    CHECK_THROWS_WITH(
        snake_conv1d_input_gradient<float>(
            c.ctx, {.x = x, .alpha = alpha, .dy = y, .weight = w, .dx = other, .scratch = much, .geometry = g}),
        Contains("snake_conv1d_input_gradient: dx"));
    CHECK_THROWS_WITH(
        snake_conv1d_input_gradient<float>(
            c.ctx,
            {.x = x, .alpha = alpha, .dy = y, .weight = w, .dx = y, .dbeta = dalpha, .scratch = much, .geometry = g}),
        Contains("dbeta is given without beta"));
    CHECK_THROWS_WITH(snake_conv1d_weight_gradient<float>(
                          c.ctx, {.x = x, .alpha = alpha, .dy = other, .dweight = dw, .scratch = much, .geometry = g}),
                      Contains("dy is [2, 19, 1, 16], expected [2, 20, 1, 16]"));
  }
}
