#include "nacre/ops/lstm.h"

#include "harness.h"
#include "nacre/ops/conv1d.h"
#include "reference/lstm.h"

using namespace nacre;
using namespace nacre::test;

namespace {

using reference::Lstm;
using Values = std::vector<double>;

struct Sample {
  const char* why;
  int64_t batch, time, in, hidden;
};
const Sample samples[] = {
    {"one of everything", 1, 1, 1, 1},
    {"one unit over time", 1, 17, 1, 1},
    {"one unit, several inputs and items", 3, 5, 7, 1},
    {"odd: nothing fills a pack", 1, 17, 5, 7},
    {"odd, a batch", 3, 17, 9, 23},
    {"a group of units", 1, 17, 16, 16},
    {"one row", 3, 1, 16, 16},
    {"two rows", 1, 2, 16, 16},
    {"a group and one unit more", 3, 9, 16, 17},
    {"a group less one unit", 2, 4, 15, 15},
    {"two groups and a half", 1, 17, 24, 40},
    {"two groups and a half, a batch", 3, 17, 40, 40},
    {"a panel of the backward pass and one unit more", 2, 7, 12, 33},
    {"many inputs, few units", 2, 3, 200, 4},
    {"few inputs, many units", 1, 3, 1, 130},
    {"packs of floats, but not of bf16", 2, 6, 12, 20},
    {"as many items as a block takes", 8, 3, 8, 8},
    {"one item more", 9, 3, 8, 8},
    {"more items than a chunk has rows", 257, 2, 3, 2},
    {"a chunk of rows and one row more", 1, 257, 4, 3},
    {"a chunk of rows of two items and more", 2, 131, 4, 3},
    {"EnCodec's units, a batch", 3, 2, 8, 512},
    {"more units than are staged at once", 1, 3, 16, 516},
};

template <class T>
Values doubles(const Buffer<T>& b) {
  Values v;
  for (int64_t i = 0; i < b.size(); ++i) v.push_back(b[i]);
  return v;
}
template <class T>
Values found(const Buffer<T>& b) {
  Values v;
  for (const T x : b.read()) v.push_back(static_cast<double>(to_float(x)));
  return v;
}
/// A value per element.
auto each(const Values& v) {
  return [&v](int64_t i) { return v[static_cast<size_t>(i)]; };
}

/// The shapes and buffers of a sample.
template <class T>
struct Setting {
  Case c;
  Shape x_shape, y_shape, gates_shape, state_shape, of_x, of_h, per_gate;
  Buffer<T>&x, &weight_x, &weight_h, &dy;
  Buffer<float>&bias_x, &bias_h, &state;

  Setting(const char* why, Device device, const Sample& s, int threads = 2)
      : c(std::string("lstm, ") + why, device, {s.batch, s.time, 1, s.hidden}, threads),
        x_shape{s.batch, s.time, 1, s.in},
        y_shape{s.batch, s.time, 1, s.hidden},
        gates_shape{s.batch, s.time, 1, 4 * s.hidden},
        state_shape(lstm_state(s.batch, s.hidden)),
        of_x{4 * s.hidden, 1, 1, s.in},
        of_h{4 * s.hidden, 1, 1, s.hidden},
        per_gate{.channels = 4 * s.hidden},
        x(c.random<T>("x", x_shape, -1, 1)),
        weight_x(c.random<T>("weight_x", of_x, -width(s.in), width(s.in))),
        weight_h(c.random<T>("weight_h", of_h, -width(s.hidden), width(s.hidden))),
        dy(c.random<T>("dy", y_shape, -1, 1)),
        bias_x(c.random("bias_x", per_gate, -1, 1)),
        bias_h(c.random("bias_h", per_gate, -1, 1)),
        // h of a state is a value of y's storage.
        state(c.values<float>("state", state_shape, rounded(c.random("drawn", state_shape, -1, 1).before()))) {}
  /// Arguments of about 1 in size, so that gates are neither 0 nor 1.
  static double width(int64_t n) { return 2 / std::sqrt(static_cast<double>(n)); }
  static std::vector<float> rounded(std::vector<float> v) {
    for (float& f : v) f = to_float(store<T>(f));
    return v;
  }
  Lstm reference() const {
    return {static_cast<size_t>(x_shape.batch), static_cast<size_t>(x_shape.time),
            static_cast<size_t>(x_shape.channels), static_cast<size_t>(y_shape.channels)};
  }
  Lstm::Parameters parameters() const {
    return {doubles(weight_x), doubles(weight_h), doubles(bias_x), doubles(bias_h)};
  }
  LstmForward<T> forward(View<T> y) {
    return {.x = x,
            .weight_x = weight_x,
            .weight_h = weight_h,
            .bias_x = bias_x,
            .bias_h = bias_h,
            .y = y,
            .scratch = c.scratch(lstm_forward_scratch<T>(c.ctx, x_shape, y_shape.channels))};
  }
};

template <class T>
constexpr double storage = std::is_same_v<T, float> ? 0 : 1.01 * bf16_ulp;

template <class B>
void notices(const B& buffer, const Values& expected, const Values& allowance) {
  Values planted = found(buffer);
  planted.back() += 10 * allowance.back();
  CHECK(worst_ratio(planted, each(expected), each(allowance)) > 1);
}

/// Checks every row from what the op itself has stored before it, so that errors do not add up over time.
template <class T>
void check_forward(Setting<T>& s, const Buffer<T>& y, const Buffer<float>& gates, const Buffer<float>& cells,
                   bool with_state) {
  const Lstm op = s.reference();
  const Lstm::Parameters p = s.parameters();
  const size_t H = op.hidden, rows = op.batch * op.time;
  const Values x = doubles(s.x), state = doubles(s.state), y_found = found(y), gates_found = found(gates),
               cells_found = found(cells);
  Lstm::Parameters sizes = p;
  for (Values* v : {&sizes.weight_x, &sizes.weight_h, &sizes.bias_x, &sizes.bias_h})
    for (double& e : *v) e = std::fabs(e);
  const auto absolute = [](const double* from, size_t n) {
    Values v(from, from + n);
    for (double& e : v) e = std::fabs(e);
    return v;
  };
  Values gates_exact(rows * 4 * H), gates_allowed(rows * 4 * H), cells_exact(rows * H), cells_allowed(rows * H),
      y_exact(rows * H), y_allowed(rows * H);
  const double terms = 4 * std::sqrt(static_cast<double>(op.in + H + 2)) + 4;
  for (size_t row = 0; row < rows; ++row) {
    const size_t t = row % op.time, b = row / op.time;
    const double* const h = t > 0 ? &y_found[(row - 1) * H] : with_state ? &state[b * H] : nullptr;
    const Values x_size = absolute(&x[row * op.in], op.in), h_size = h != nullptr ? absolute(h, H) : Values(H);
    for (size_t n = 0; n < 4 * H; ++n) {
      const size_t at = row * 4 * H + n;
      const bool is_tanh = n / H == 2;
      const double a = op.argument(p, n, &x[row * op.in], h), m = op.argument(sizes, n, x_size.data(), h_size.data());
      gates_exact[at] = is_tanh ? std::tanh(a) : Lstm::sigmoid(a);
      // The steepest slopes are 1 and 1/4. Both functions are within 3 ulp, at most 6 half ulp.
      gates_allowed[at] = ulp * (terms * m * (is_tanh ? 1 : 0.25) + 6 * std::fabs(gates_exact[at]));
    }
    const double* const g = &gates_found[row * 4 * H];
    for (size_t j = 0; j < H; ++j) {
      const size_t at = row * H + j;
      const double before = t > 0 ? cells_found[at - H] : with_state ? state[(op.batch + b) * H + j] : 0;
      const double kept = g[H + j] * before, added = g[j] * g[2 * H + j];
      cells_exact[at] = kept + added;
      cells_allowed[at] = 2 * ulp * (std::fabs(kept) + std::fabs(added)) + 1e-37;
      y_exact[at] = g[3 * H + j] * std::tanh(cells_found[at]);
      y_allowed[at] = (8 * ulp + storage<T>)*std::fabs(y_exact[at]) + 1e-37;
    }
  }
  s.c.template expect<float>(gates, each(gates_exact), each(gates_allowed));
  s.c.template expect<float>(cells, each(cells_exact), each(cells_allowed));
  s.c.template expect<T>(y, each(y_exact), each(y_allowed));
  notices(gates, gates_exact, gates_allowed);
  notices(cells, cells_exact, cells_allowed);
  notices(y, y_exact, y_allowed);
}

/// Bounds of the errors of da, given gates and cells: as the contract says, carried back in time.
Values gate_gradient_bounds(const Lstm& op, const Lstm::Parameters& p, const Lstm::Result& r, const Values& dy,
                            const Values& da) {
  const size_t H = op.hidden, width = 4 * H;
  Values bounds(da.size());
  const double terms = 4 * std::sqrt(static_cast<double>(width));
  for (size_t b = 0; b < op.batch; ++b) {
    Values dh(H), dh_error(H), dc(H), dc_error(H);  // what the next row passes back
    for (size_t t = op.time; t-- > 0;) {
      const size_t row = b * op.time + t;
      const double *const gates = &r.gates[row * width], *const exact = &da[row * width];
      double* const to = &bounds[row * width];
      for (size_t j = 0; j < H; ++j) {
        const double i = gates[j], f = gates[H + j], g = gates[2 * H + j], o = gates[3 * H + j],
                     tanh_c = std::tanh(r.cells[row * H + j]), slope = 1 - tanh_c * tanh_c,
                     before = t > 0 ? r.cells[(row - 1) * H + j] : 0, of_h = dy[row * H + j] + dh[j];
        const double h_error = dh_error[j] + ulp * std::fabs(of_h);
        // tanh is off by at most 6 half ulp; (1 - tanh)(1 + tanh) then by at most 16. Two products and a sum follow.
        const double into = of_h * o * slope;
        const double c_error = h_error * o * slope + std::fabs(of_h * o) * 16 * ulp + dc_error[j] +
                               ulp * (3 * std::fabs(into) + std::fabs(dc[j]));
        dc[j] += into;
        // At most six roundings of each product, and the error of tanh in the last.
        to[j] = c_error * std::fabs(g) * i * (1 - i) + 6 * ulp * std::fabs(exact[j]);
        to[H + j] = c_error * std::fabs(before) * f * (1 - f) + 6 * ulp * std::fabs(exact[H + j]);
        to[2 * H + j] = c_error * i * (1 - g * g) + 6 * ulp * std::fabs(exact[2 * H + j]);
        to[3 * H + j] = h_error * std::fabs(tanh_c) * o * (1 - o) + 12 * ulp * std::fabs(exact[3 * H + j]);
        dc[j] *= f;
        dc_error[j] = c_error * f + ulp * std::fabs(dc[j]);
      }
      dh.assign(H, 0), dh_error.assign(H, 0);
      for (size_t n = 0; n < width; ++n)
        for (size_t k = 0; k < H; ++k) {
          const double w = p.weight_h[n * H + k];
          dh[k] += exact[n] * w;
          dh_error[k] += std::fabs(w) * (to[n] + terms * ulp * std::fabs(exact[n]));
        }
    }
  }
  return bounds;
}

template <class T>
void check_backward(Setting<T>& s, const Buffer<T>& y, const Buffer<float>& gates, const Buffer<float>& cells) {
  Case& c = s.c;
  auto &dx = c.output<T>("dx", s.x_shape), &dx_sum = c.random<T>("dx +=", s.x_shape, -1, 1);
  auto &dweight_x = c.output("dweight_x", s.of_x), &dweight_h = c.output("dweight_h", s.of_h);
  auto &dweight_x_sum = c.random("dweight_x +=", s.of_x, -1, 1),
       &dweight_h_sum = c.random("dweight_h +=", s.of_h, -1, 1);
  auto &dbias_x = c.random("dbias_x", s.per_gate, -1, 1), &dbias_h = c.random("dbias_h", s.per_gate, -1, 1);
  LstmBackward<T> back{.x = s.x,
                       .weight_x = s.weight_x,
                       .weight_h = s.weight_h,
                       .y = y,
                       .gates = gates,
                       .cells = cells,
                       .dy = s.dy,
                       .dx = dx,
                       .scratch = c.scratch(lstm_backward_scratch<T>(c.ctx, s.x_shape, s.y_shape.channels)),
                       .add_dweight_x = false,
                       .add_dweight_h = false};
  lstm_backward<T>(c.ctx, back);  // dx alone
  const std::vector<T> dx_alone = dx.read();
  back.dx = dx_sum, back.add_dx = true;
  back.dweight_x = dweight_x, back.dbias_x = dbias_x;
  lstm_backward<T>(c.ctx, back);  // without weight_h
  back.dx = {}, back.dweight_x = dweight_x_sum, back.add_dweight_x = true, back.dbias_x = {};
  back.dweight_h = dweight_h, back.dbias_h = dbias_h;
  lstm_backward<T>(c.ctx, back);
  back.dx = dx, back.add_dx = false, back.dweight_x = {}, back.dweight_h = dweight_h_sum, back.add_dweight_h = true;
  back.dbias_h = {};
  lstm_backward<T>(c.ctx, back);
  c.template expect_equal<T>(dx, dx_alone);

  const Lstm op = s.reference();
  const Lstm::Parameters p = s.parameters();
  const Lstm::Result r{found(y), found(gates), found(cells)};
  const Values x = doubles(s.x), dy = doubles(s.dy);
  const Lstm::Gradients exact = op.backward(p, x, r, dy);
  const Values bounds = gate_gradient_bounds(op, p, r, dy, exact.gates);
  // Products as conv1d.h bounds them, in float, then a rounding to storage.
  const size_t H = op.hidden, width = 4 * H, rows = op.batch * op.time;
  const double over_gates = 4 * std::sqrt(static_cast<double>(width)),
               over_rows = 4 * std::sqrt(static_cast<double>(rows));
  Values dx_allowed(x.size()), dweight_x_allowed(exact.weight_x.size()), dweight_h_allowed(exact.weight_h.size()),
      dbias_allowed(width);
  for (size_t row = 0; row < rows; ++row)
    for (size_t n = 0; n < width; ++n) {
      const double error = bounds[row * width + n], size = std::fabs(exact.gates[row * width + n]);
      dbias_allowed[n] += error + ulp * over_rows * size;
      for (size_t k = 0; k < op.in; ++k) {
        dx_allowed[row * op.in + k] += std::fabs(p.weight_x[n * op.in + k]) * (error + ulp * over_gates * size);
        dweight_x_allowed[n * op.in + k] += std::fabs(x[row * op.in + k]) * (error + ulp * over_rows * size);
      }
      for (size_t k = 0; k < H && row % op.time > 0; ++k)
        dweight_h_allowed[n * H + k] += std::fabs(r.y[(row - 1) * H + k]) * (error + ulp * over_rows * size);
    }
  // What += adds to: `roundings` of the sum in float, and one to storage.
  const auto added = [&](const auto& to, const Values& value, const Values& allowed, double of_storage) {
    std::pair<Values, Values> sum;
    for (size_t i = 0; i < value.size(); ++i) {
      const double whole = to[static_cast<int64_t>(i)] + value[i];
      sum.first.push_back(whole);
      sum.second.push_back(allowed[i] + (2 * ulp + of_storage) * std::fabs(whole) + 1e-37);
    }
    return sum;
  };
  for (size_t i = 0; i < dx_allowed.size(); ++i) dx_allowed[i] += (ulp + storage<T>)*std::fabs(exact.x[i]) + 1e-37;
  c.template expect<T>(dx, each(exact.x), each(dx_allowed));
  notices(dx, exact.x, dx_allowed);
  const auto dx_with = added(dx_sum, exact.x, dx_allowed, storage<T>);
  c.template expect<T>(dx_sum, each(dx_with.first), each(dx_with.second));
  const auto check = [&](const Buffer<float>& is, const Buffer<float>& sum, const Values& value, Values allowed) {
    for (size_t i = 0; i < value.size(); ++i) allowed[i] += ulp * std::fabs(value[i]) + 1e-37;
    c.expect<float>(is, each(value), each(allowed));
    notices(is, value, allowed);
    const auto with = added(sum, value, allowed, 0);
    c.expect<float>(sum, each(with.first), each(with.second));
  };
  check(dweight_x, dweight_x_sum, exact.weight_x, dweight_x_allowed);
  check(dweight_h, dweight_h_sum, exact.weight_h, dweight_h_allowed);
  for (const auto* bias : {&dbias_x, &dbias_h}) {
    const auto with = added(*bias, exact.bias, dbias_allowed, 0);
    c.expect<float>(*bias, each(with.first), each(with.second));
    notices(*bias, with.first, with.second);
  }
}

template <class T>
void sample_case(Device device, const Sample& sample) {
  INFO(sample.why);
  Setting<T> s(sample.why, device, sample);
  Case& c = s.c;
  auto &y = c.output<T>("y", s.y_shape), &y_state = c.output<T>("y from a state", s.y_shape),
       &y_bare = c.output<T>("y alone", s.y_shape);
  auto &gates = c.output("gates", s.gates_shape), &gates_state = c.output("gates from a state", s.gates_shape);
  auto &cells = c.output("cells", s.y_shape), &cells_state = c.output("cells from a state", s.y_shape);
  auto &after = c.output("state after", s.state_shape),
       &in_place = c.values<float>("state in place", s.state_shape, s.state.before());
  LstmForward<T> a = s.forward(y_bare);
  lstm_forward<T>(c.ctx, a);
  a.y = y, a.gates = gates, a.cells = cells;
  lstm_forward<T>(c.ctx, a);
  c.template expect_equal<T>(y_bare, y.read());
  check_forward(s, y, gates, cells, false);

  a.y = y_state, a.gates = gates_state, a.cells = cells_state, a.state = s.state, a.state_after = after;
  lstm_forward<T>(c.ctx, a);
  check_forward(s, y_state, gates_state, cells_state, true);
  a.y = y_bare, a.gates = {}, a.cells = {}, a.state = in_place, a.state_after = in_place;
  lstm_forward<T>(c.ctx, a);
  c.template expect_equal<T>(y_bare, y_state.read());
  c.expect_equal(in_place, after.read());
  // The state is the last row, exactly.
  const std::vector<float> state = after.read(), of_cells = cells_state.read();
  const std::vector<T> rows = y_state.read();
  bool same = true;
  for (int64_t b = 0; b < sample.batch; ++b)
    for (int64_t j = 0; j < sample.hidden; ++j) {
      const auto last = static_cast<size_t>(((b + 1) * sample.time - 1) * sample.hidden + j),
                 at = static_cast<size_t>(b * sample.hidden + j);
      same = same && state[at] == to_float(rows[last]) &&
             state[at + static_cast<size_t>(sample.batch * sample.hidden)] == of_cells[last];
    }
  CHECK(same);

  check_backward(s, y, gates, cells);
}

}  // namespace

TEST_CASE("the reference of lstm agrees with finite differences", "[lstm]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  const auto drawn = [&](size_t n) {
    Values v(n);
    for (double& x : v) x = draw(rng);
    return v;
  };
  const Lstm op{2, 4, 3, 5};
  Lstm::Parameters p{drawn(20 * 3), drawn(20 * 5), drawn(20), drawn(20)};
  Values x = drawn(2 * 4 * 3);
  const Values dy = drawn(2 * 4 * 5);
  const auto loss = [&] {
    const Values y = op.forward(p, x).y;
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  const Lstm::Gradients exact = op.backward(p, x, op.forward(p, x), dy);
  const auto check = [&](Values& at, const Values& gradient) {
    REQUIRE(at.size() == gradient.size());
    for (size_t i = 0; i < at.size(); ++i) {
      const double before = at[i], h = 1e-5;
      at[i] = before + h;
      const double up = loss();
      at[i] = before - h;
      const double down = loss();
      at[i] = before;
      CHECK((up - down) / (2 * h) == Approx(gradient[i]).epsilon(1e-6).margin(1e-7));
    }
  };
  check(x, exact.x), check(p.weight_x, exact.weight_x), check(p.weight_h, exact.weight_h);
  check(p.bias_x, exact.bias), check(p.bias_h, exact.bias);
}

TEST_CASE("the reference of lstm carries its state", "[lstm]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  Lstm::Parameters p;
  for (auto [v, n] : {std::pair(&p.weight_x, 24), {&p.weight_h, 36}, {&p.bias_x, 12}, {&p.bias_h, 12}})
    for (int i = 0; i < n; ++i) v->push_back(draw(rng));
  Values x(10);
  for (double& v : x) v = draw(rng);
  const Lstm::Result whole = Lstm{1, 5, 2, 3}.forward(p, x),
                     first = Lstm{1, 2, 2, 3}.forward(p, {x.begin(), x.begin() + 4}),
                     rest = Lstm{1, 3, 2, 3}.forward(
                         p, {x.begin() + 4, x.end()},
                         {{first.y.end() - 3, first.y.end()}, {first.cells.end() - 3, first.cells.end()}});
  CHECK(Values(whole.y.begin() + 6, whole.y.end()) == rest.y);
}

TEST_CASE("lstm", "[lstm]") {
  for (const Device device : devices())
    for (const Sample& s : samples) {
      sample_case<float>(device, s);
      sample_case<bf16>(device, s);
    }
}

namespace {

/// The sequence in calls of `piece` rows has the bits of one call. Each item's rows of a piece are copied together.
template <class T>
void cut_case(Device device, const Sample& sample, int64_t piece) {
  CAPTURE(sample.why, piece);
  Setting<T> s(sample.why, device, sample);
  Case& c = s.c;
  auto& y = c.output<T>("y", s.y_shape);
  auto &gates = c.output("gates", s.gates_shape), &cells = c.output("cells", s.y_shape);
  auto& after = c.output("state after", s.state_shape);
  LstmForward<T> a = s.forward(y);
  a.gates = gates, a.cells = cells, a.state_after = after;
  lstm_forward<T>(c.ctx, a);
  const std::vector<T> whole_y = y.read();
  const std::vector<float> whole_gates = gates.read(), whole_cells = cells.read();

  auto& state = c.output("carried state", s.state_shape);
  const int64_t batch = sample.batch, time = sample.time;
  /// Rows first ... first + n - 1 of every item.
  const auto rows_of = [&](const auto& whole, int64_t width, int64_t first, int64_t n) {
    std::remove_cvref_t<decltype(whole)> part;
    for (int64_t b = 0; b < batch; ++b)
      part.insert(part.end(), whole.begin() + (b * time + first) * width,
                  whole.begin() + (b * time + first + n) * width);
    return part;
  };
  for (int64_t first = 0; first < time; first += piece) {
    const int64_t n = std::min(piece, time - first), H = sample.hidden;
    auto& part_x = c.values<T>("x part", {batch, n, 1, sample.in}, rows_of(s.x.before(), sample.in, first, n));
    auto& part_y = c.output<T>("y part", {batch, n, 1, H});
    auto &part_gates = c.output("gates part", {batch, n, 1, 4 * H}),
         &part_cells = c.output("cells part", {batch, n, 1, H});
    a.x = part_x, a.y = part_y, a.gates = part_gates, a.cells = part_cells;
    a.state = first > 0 ? View<const float>(state) : View<const float>{}, a.state_after = state;
    lstm_forward<T>(c.ctx, a);  // with the scratch of the whole
    c.template expect_equal<T>(part_y, rows_of(whole_y, H, first, n));
    c.expect_equal(part_gates, rows_of(whole_gates, 4 * H, first, n));
    c.expect_equal(part_cells, rows_of(whole_cells, H, first, n));
  }
  c.expect_equal(state, after.read());
}

}  // namespace

TEST_CASE("lstm in pieces has the bits of lstm in one", "[lstm]") {
  for (const Device device : devices()) {
    for (const Sample& s : {Sample{"odd", 1, 29, 5, 7}, Sample{"full", 1, 29, 16, 32}, Sample{"a batch", 3, 29, 16, 24},
                            Sample{"a long batch", 4, 131, 8, 6}})
      for (const int64_t piece : {int64_t{1}, int64_t{7}, int64_t{13}, s.time}) {
        cut_case<float>(device, s, piece);
        cut_case<bf16>(device, s, piece);
      }
    cut_case<float>(device, {"long", 1, 331, 16, 16}, 101);
    cut_case<bf16>(device, {"long", 1, 331, 16, 16}, 101);
    cut_case<float>(device, {"EnCodec's units", 1, 3, 16, 512}, 2);
  }
}

TEST_CASE("a row of a product of one tap has the same bits in blocks of every size on CUDA", "[lstm]") {
  // On which lstm relies. The tiles are 64 by 64 for 70 rows and up to 256 by 128 for 8500.
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (const Precision precision : {Precision::fp32, Precision::tf32}) {
      const Shape weight{512, 1, 1, 8}, most{1, 8500, 1, 8};
      Case c("rows of a product", device, most, 2, precision);
      auto &x = c.random("x", most, -1, 1), &w = c.random("weight", weight, -1, 1);
      auto &bias = c.random("bias", {.channels = 512}, -1, 1), &y = c.output("y", {1, 8500, 1, 512});
      conv1d_forward(c.ctx, {.x = x, .weight = w, .bias = bias, .y = y});
      std::vector<float> whole = y.read();
      for (const int64_t rows : {4300, 70}) {
        auto& part = c.output("y part", {1, rows, 1, 512});
        conv1d_forward(c.ctx,
                       {.x = View<const float>(x.data(), {1, rows, 1, 8}), .weight = w, .bias = bias, .y = part});
        whole.resize(static_cast<size_t>(rows * 512));
        c.expect_equal(part, whole);
      }
    }
  }
}

TEST_CASE("lstm lays out no weights for few rows on the CPU", "[lstm]") {
  Context ctx({.threads = 1});
  constexpr int64_t hidden = 64;
  const auto scratch = [&](int64_t batch, int64_t time) {
    return lstm_forward_scratch(ctx, {batch, time, 1, hidden}, hidden).elements();
  };
  for (const auto& [batch, time] : {std::pair{1, 1}, {1, 8}, {4, 2}}) CHECK(scratch(batch, time) < 4 * hidden * hidden);
  CHECK(scratch(3, 3) > 2 * 4 * hidden * hidden);
}

TEST_CASE("lstm at addresses that are not aligned", "[lstm]") {
  const Sample sample{"not aligned", 2, 5, 16, 16};
  for (const Device device : devices()) {
    Setting<float> s(sample.why, device, sample);
    Case& c = s.c;
    // One element before each tensor.
    const auto shifted = [&](const char* name, const Buffer<float>& of) -> View<const float> {
      std::vector<float> v = of.before();
      v.insert(v.begin(), 0.0f);
      const auto n = static_cast<int64_t>(v.size());
      return {c.values<float>(name, {.channels = n}, std::move(v)).data() + 1, of.shape()};
    };
    auto &y = c.output("y", s.y_shape), &gates = c.output("gates", s.gates_shape),
         &cells = c.output("cells", s.y_shape);
    LstmForward<float> a = s.forward(y);
    a.gates = gates, a.cells = cells;
    a.x = shifted("x shifted", s.x), a.weight_x = shifted("weight_x shifted", s.weight_x);
    a.weight_h = shifted("weight_h shifted", s.weight_h);
    lstm_forward(c.ctx, a);
    check_forward(s, y, gates, cells, false);
  }
}

TEST_CASE("lstm saturates without an overflow", "[lstm]") {
  for (const Device device : devices()) {
    // Biases of +-1000 and infinity: gates of 0 and 1. c counts the rows.
    Case c("lstm limits", device, {});
    const Shape x{1, 5, 1, 1}, one{4, 1, 1, 1}, four{.channels = 4};
    auto &in = c.values<float>("x", x, {0, 0, 0, 0, 0}), &zero = c.values<float>("weight", one, {0, 0, 0, 0}),
         &none = c.values<float>("bias_h", four, {0, 0, 0, 0});
    auto &bias = c.values<float>("bias_x", four, {1000, INFINITY, 1000, -1000}), &y = c.output("y", x),
         &gates = c.output("gates", {1, 5, 1, 4}), &cells = c.output("cells", x);
    lstm_forward(c.ctx, {.x = in,
                         .weight_x = zero,
                         .weight_h = zero,
                         .bias_x = bias,
                         .bias_h = none,
                         .y = y,
                         .gates = gates,
                         .cells = cells,
                         .scratch = c.scratch(lstm_forward_scratch(c.ctx, x, 1))});
    c.expect_equal<float>(cells, {1, 2, 3, 4, 5});
    c.expect_equal<float>(y, {0, 0, 0, 0, 0});
    for (size_t t = 0; t < 5; ++t) CHECK(gates.read()[4 * t + 1] == 1);
  }
}

TEST_CASE("lstm of nothing hands its state on", "[lstm]") {
  for (const Device device : devices()) {
    Case c("lstm of nothing", device, {});
    const Shape x{2, 0, 1, 3}, weight{8, 1, 1, 3}, of_h{8, 1, 1, 2}, state = lstm_state(2, 2);
    auto &w = c.random("weight_x", weight, -1, 1), &h = c.random("weight_h", of_h, -1, 1);
    auto &bias = c.random("bias", {.channels = 8}, -1, 1), &before = c.random("state", state, -1, 1);
    auto &after = c.output("state after", state), &zero = c.output("no state after", state);
    CHECK(lstm_forward_scratch(c.ctx, x, 2).elements() == 0);
    CHECK(lstm_backward_scratch(c.ctx, x, 2).elements() == 0);
    LstmForward<float> a{.x = {nullptr, x},
                         .weight_x = w,
                         .weight_h = h,
                         .bias_x = bias,
                         .bias_h = bias,
                         .state = before,
                         .y = {nullptr, {2, 0, 1, 2}},
                         .state_after = after};
    lstm_forward(c.ctx, a);
    c.expect_equal(after, before.before());
    a.state = {}, a.state_after = zero;
    lstm_forward(c.ctx, a);
    c.expect_equal(zero, std::vector<float>(8));
  }
}

TEST_CASE("lstm does not allocate and does not depend on threads", "[lstm]") {
  for (const Device device : devices())
    for (const Sample& sample : {Sample{"threads", 3, 9, 40, 100}, Sample{"threads, one item", 1, 20, 128, 128}}) {
      std::vector<float> first_y, first_dx, first_dweight;
      for (const int threads : {1, 2, 3}) {
        Setting<float> s(sample.why, device, sample, threads);
        Case& c = s.c;
        auto &y = c.output("y", s.y_shape), &gates = c.output("gates", s.gates_shape),
             &cells = c.output("cells", s.y_shape), &dx = c.output("dx", s.x_shape);
        auto &dweight_x = c.output("dweight_x", s.of_x), &dweight_h = c.output("dweight_h", s.of_h);
        LstmForward<float> a = s.forward(y);
        a.gates = gates, a.cells = cells;
        const LstmBackward<float> back{.x = s.x,
                                       .weight_x = s.weight_x,
                                       .weight_h = s.weight_h,
                                       .y = y,
                                       .gates = gates,
                                       .cells = cells,
                                       .dy = s.dy,
                                       .dx = dx,
                                       .dweight_x = dweight_x,
                                       .dweight_h = dweight_h,
                                       .scratch = c.scratch(lstm_backward_scratch(c.ctx, s.x_shape, sample.hidden)),
                                       .add_dweight_x = false,
                                       .add_dweight_h = false};
        const auto run = [&] { lstm_forward(c.ctx, a), lstm_backward(c.ctx, back); };
        run();  // starts the thread pool
        const AllocationCounter counter;
        run();
        CHECK(counter.count() == 0);
        if (threads == 1) first_y = y.read(), first_dx = dx.read(), first_dweight = dweight_h.read();
        c.expect_equal(y, first_y);
        c.expect_equal(dx, first_dx);
        c.expect_equal(dweight_h, first_dweight);
      }
    }
}

TEST_CASE("lstm names what does not fit", "[lstm]") {
  Setting<float> s("shapes", devices().front(), {"shapes", 2, 3, 4, 5});
  Case& c = s.c;
  auto &y = c.output("y", s.y_shape), &wrong = c.output("wrong", {2, 3, 1, 6});
  auto &gates = c.output("gates", s.gates_shape), &cells = c.output("cells", s.y_shape);
  LstmForward<float> good = s.forward(y);
  good.gates = gates, good.cells = cells;
  lstm_forward(c.ctx, good);
  const auto forward = [&](auto change) {
    LstmForward<float> a = good;
    change(a);
    lstm_forward(c.ctx, a);
  };
  using Catch::Contains;
  CHECK_THROWS_WITH(forward([&](auto& a) { a.y = wrong; }),
                    Contains("lstm_forward: weight_x is [20, 1, 1, 4], expected [24"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.weight_h = s.weight_x; }), Contains("lstm_forward: weight_h"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.bias_x = wrong; }), Contains("lstm_forward: bias_x"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.bias_h = {}; }), Contains("lstm_forward: bias_h"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.state = wrong; }), Contains("lstm_forward: state is"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.state_after = wrong; }), Contains("lstm_forward: state_after is"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.gates = wrong; }), Contains("lstm_forward: gates"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.cells = wrong; }), Contains("lstm_forward: cells"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.scratch = {}; }), Contains("lstm_forward: scratch"));
  CHECK_THROWS_WITH(forward([&](auto& a) { a.x.shape.width = 2; }), Contains("lstm_forward: x is [2, 3, 2, 4]"));
  auto& dx = c.output("dx", s.x_shape);
  auto& dbias = c.zeros("dbias", s.per_gate);
  const LstmBackward<float> back{.x = s.x,
                                 .weight_x = s.weight_x,
                                 .weight_h = s.weight_h,
                                 .y = y,
                                 .gates = gates,
                                 .cells = cells,
                                 .dy = s.dy,
                                 .dx = dx,
                                 .scratch = c.scratch(lstm_backward_scratch(c.ctx, s.x_shape, 5))};
  lstm_backward(c.ctx, back);
  const auto backward = [&](auto change) {
    LstmBackward<float> a = back;
    change(a);
    lstm_backward(c.ctx, a);
  };
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dy = wrong; }), Contains("lstm_backward: dy"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.gates = {}; }), Contains("lstm_backward: gates"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.cells = wrong; }), Contains("lstm_backward: cells"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dx = wrong; }), Contains("lstm_backward: dx"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dweight_x = wrong; }), Contains("lstm_backward: dweight_x"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.dbias_h = dbias; }), Contains("without the weight gradient"));
  CHECK_THROWS_WITH(backward([&](auto& a) { a.scratch = {}; }), Contains("lstm_backward: scratch"));
}
