#include "nacre/ops/conv2d.h"

#include <algorithm>

#include "harness.h"
#include "reference/conv2d.h"

#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

struct Sample {
  const char* why;
  int64_t batch, time;
  std::vector<int64_t> widths;  ///< of the parts
  int64_t in, out, taps_time, taps_width;
  Conv2dGeometry g{};
};

Conv2dAxis same(int64_t taps, int64_t stride = 1, int64_t dilation = 1) {
  return {
      .stride = stride, .dilation = dilation, .left = (taps - 1) / 2 * dilation, .right = (taps - 1) / 2 * dilation};
}
Conv2dGeometry columns(Conv2dGeometry g, int64_t first, int64_t count) {
  g.first_column = first, g.columns = count;
  return g;
}

const std::vector<Sample>& samples() {
  const Conv2dGeometry three_nine{same(3), same(9)};
  static const std::vector<Sample> all{
      {"the smallest", 1, 1, {1}, 1, 1, 1, 1},
      {"one tap: a product", 2, 5, {7}, 6, 8, 1, 1},
      {"first layer of a band", 2, 6, {33}, 2, 32, 3, 9, three_nine},
      {"layer of a band, stride 2 of the width", 2, 5, {20}, 32, 32, 3, 9, {same(3), same(9, 2)}},
      {"last layer of a band", 1, 5, {9}, 32, 32, 3, 3, {same(3), same(3)}},
      {"bands side by side", 2, 4, {3, 5, 4, 6, 7}, 32, 1, 3, 3, {same(3), same(3)}},
      {"columns of a spectrum", 2, 5, {40}, 2, 8, 3, 9, columns(three_nine, 10, 13)},
      {"columns from one on", 1, 4, {21}, 4, 5, 3, 3, columns({same(3), same(3)}, 8, 0)},
      {"the last column", 1, 4, {6}, 4, 5, 3, 3, columns({same(3), same(3)}, 5, 1)},
      {"columns over parts, two of them cut", 2, 4, {4, 3, 5}, 3, 4, 3, 3, columns({same(3), same(3)}, 2, 8)},
      {"columns beside the first and the last part", 1, 4, {4, 3, 5, 2}, 8, 8, 3, 2, columns({same(3), {}}, 5, 5)},
      {"one tap over parts", 2, 3, {2, 3}, 8, 4, 1, 1},
      {"one tap of some columns", 2, 3, {9}, 8, 4, 1, 1, columns({}, 2, 4)},
      {"eight parts of a column", 1, 3, {1, 1, 1, 1, 1, 1, 1, 1}, 5, 3, 2, 3},
      {"dilation 2 of the time", 2, 9, {12}, 8, 16, 3, 9, {same(3, 1, 2), same(9, 2)}},
      {"dilation 4 of the time", 1, 11, {10}, 16, 8, 3, 9, {same(3, 1, 4), same(9, 2)}},
      {"dilation wider than the frames", 1, 3, {5}, 4, 4, 3, 3, {same(3, 1, 4), same(3)}},
      {"an even kernel", 2, 5, {13}, 8, 8, 3, 8, {same(3), {.left = 3, .right = 4}}},
      {"one tap in time", 2, 5, {17}, 8, 16, 1, 9, {{}, same(9)}},
      {"one tap in time, stride 2 of the width", 1, 4, {16}, 1, 16, 1, 9, {{}, same(9, 2)}},
      {"one tap in time, stride 2 of the time", 2, 5, {7}, 4, 8, 1, 3, {{.stride = 2}, same(3)}},
      {"one tap in time, frames of padding", 1, 2, {5}, 4, 4, 1, 3, {{.left = 1, .right = 2}, same(3)}},
      {"taps of time alone: a folded waveform", 2, 31, {3}, 16, 8, 5, 1, {{.stride = 3, .left = 2, .right = 2}, {}}},
      {"taps of time alone, one channel", 2, 17, {5}, 1, 8, 5, 1, {{.stride = 3, .left = 2, .right = 2}, {}}},
      {"square, one channel both ways", 1, 10, {11}, 1, 1, 7, 7, {same(7), same(7)}},
      {"square, odd channels", 1, 8, {9}, 3, 5, 7, 7, {same(7), same(7)}},
      {"stride 2 of the time, odd sizes", 2, 7, {9}, 5, 3, 3, 3, {same(3, 2), same(3)}},
      {"stride of both, dilation of both, uneven padding",
       2,
       12,
       {15},
       4,
       6,
       3,
       4,
       {{.stride = 2, .dilation = 2, .left = 3, .right = 1}, {.stride = 2, .dilation = 3, .left = 1, .right = 4}}},
      {"stride wider than the taps: frames that meet nothing", 2, 11, {6}, 8, 4, 2, 3, {{.stride = 4}, same(3)}},
      {"padding wider than the kernel", 1, 2, {3}, 8, 4, 2, 2, {{.left = 4, .right = 5}, {.left = 3, .right = 2}}},
      {"one frame", 3, 1, {12}, 8, 8, 3, 3, {same(3), same(3)}},
      {"one column", 3, 7, {1}, 8, 8, 3, 3, {same(3), same(3)}},
      {"no padding", 2, 6, {10}, 4, 4, 4, 3},
      {"a row longer than a block of threads", 1, 3, {700}, 2, 1, 2, 3},
      {"more channels of a column than a sum takes", 1, 3, {2}, 1032, 1, 2, 1},
      {"channels that fill packs of float alone", 2, 4, {6, 5}, 4, 8, 3, 3, {same(3), same(3)}},
  };
  return all;
}

Shape x_shape(const Sample& s) {
  Shape x{s.batch, s.time, 0, s.in};
  for (const int64_t w : s.widths) x.width += w;
  return x;
}
Shape weight_shape(const Sample& s) { return {s.out, s.taps_width, s.taps_time, s.in}; }
Shape y_shape(const Sample& s) { return conv2d_output(x_shape(s), weight_shape(s), s.g); }
int parts_of(const Sample& s) { return static_cast<int>(s.widths.size()); }
reference::Conv2d reference_of(const Sample& s) {
  const Shape x = x_shape(s);
  const auto axis = [](int64_t taps, const Conv2dAxis& a) {
    return reference::Conv2d::Axis{taps, a.stride, a.dilation, a.left, a.right};
  };
  return {x.batch,
          x.time,
          x.width,
          s.in,
          s.out,
          axis(s.taps_time, s.g.time),
          axis(s.taps_width, s.g.width),
          s.g.first_column,
          s.g.columns > 0 ? s.g.columns : x.width - s.g.first_column};
}
/// Whether the input of conv1d is x itself. Then dx in bf16 is rounded once, else once more per tap of time.
bool is_direct(const Sample& s) {
  return s.taps_time == 1 && s.g.time == Conv2dAxis{} && s.widths.size() == 1 && s.g.first_column == 0 &&
         (s.g.columns == 0 || s.g.columns == s.widths[0]);
}

/// The parts of an activation, and where their elements are in the whole.
template <class T>
struct Parts {
  const Sample& s;
  std::vector<Buffer<T>*> buffers{};
  template <class U>
  Conv2dParts<U> view() const {
    Conv2dParts<U> v;
    v.count = static_cast<int>(buffers.size());
    for (size_t p = 0; p < buffers.size(); ++p) v.part[p] = *buffers[p];
    return v;
  }
  /// The index in the whole of element i of part p.
  size_t index(size_t p, int64_t i) const {
    const int64_t row = s.widths[p] * s.in;
    int64_t before = 0;
    for (size_t q = 0; q < p; ++q) before += s.widths[q] * s.in;
    return static_cast<size_t>(i / row * x_shape(s).width * s.in + before + i % row);
  }
  std::vector<double> whole() const {
    std::vector<double> v(static_cast<size_t>(x_shape(s).elements()));
    for (size_t p = 0; p < buffers.size(); ++p)
      for (int64_t i = 0; i < buffers[p]->size(); ++i) v[index(p, i)] = (*buffers[p])[i];
    return v;
  }
};
/// make(name, shape) of every part.
template <class T, class F>
Parts<T> parts(const Sample& s, const std::string& name, F&& make) {
  Parts<T> all{s};
  for (size_t p = 0; p < s.widths.size(); ++p)
    all.buffers.push_back(&make(name + " " + std::to_string(p), Shape{s.batch, s.time, s.widths[p], s.in}));
  return all;
}

template <class T>
std::vector<double> doubles(const Buffer<T>& b) {
  std::vector<double> v(static_cast<size_t>(b.size()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = b[static_cast<int64_t>(i)];
  return v;
}
std::vector<double> absolute(std::vector<double> v) {
  for (double& x : v) x = std::fabs(x);
  return v;
}
double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
double at(const std::vector<double>& v, int64_t i) { return v[static_cast<size_t>(i)]; }
/// The value of x after rounding to T.
template <class T>
double stored(double x) {
  return static_cast<double>(to_float(store<T>(static_cast<float>(x))));
}
double nothing(int64_t) { return 0; }

/// The input gradient through each tap of time alone.
std::vector<std::vector<double>> by_taps(const Sample& s, const std::vector<double>& dy, const std::vector<double>& w) {
  std::vector<std::vector<double>> all;
  for (int64_t k = 0; k < s.taps_time; ++k) {
    std::vector<double> tap = w;
    for (size_t i = 0; i < tap.size(); ++i)
      if (static_cast<int64_t>(i) / s.in % s.taps_time != k) tap[i] = 0;
    all.push_back(reference_of(s).input_gradient(dy, tap));
  }
  return all;
}

/// How often a kernel ran. 0 without CUDA.
int64_t launches(Context& ctx, const std::string& name) {
#if defined(NACRE_WITH_CUDA)
  if (ctx.device().kind == Device::cuda) return cuda::runtime(ctx).launches(name);
#endif
  static_cast<void>(ctx), static_cast<void>(name);
  return 0;
}

/// All three directions on small integers, which are exact in float in any order of summation.
template <class T>
void exact(Device device, const Sample& s, int threads) {
  INFO(s.why);
  const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
  const int count = parts_of(s);
  Case c(std::string("conv2d exact, ") + s.why, device, xs, threads);
  const auto integers = [&](const std::string& name, Shape shape) -> Buffer<T>& {
    return c.integers<T>(name, shape, -3, 3);
  };
  const auto outputs = [&](const std::string& name, Shape shape) -> Buffer<T>& { return c.output<T>(name, shape); };
  const auto x = parts<T>(s, "x", integers);
  auto &w = c.integers<T>("weight", ws, -3, 3), &dy = c.integers<T>("dy", ys, -3, 3);
  auto& bias = c.integers("bias", {.channels = s.out}, -3, 3);
  const reference::Conv2d ref = reference_of(s);
  const auto y_ref = ref.forward(x.whole(), doubles(w)), dw_ref = ref.weight_gradient(x.whole(), doubles(dy));
  const auto taps = by_taps(s, doubles(dy), doubles(w));

  const View<float> forward = c.scratch(conv2d_forward_scratch<T>(c.ctx, xs, count, ws, s.g)),
                    input = c.scratch(conv2d_input_gradient_scratch<T>(c.ctx, xs, count, ws, s.g)),
                    weight = c.scratch(conv2d_weight_gradient_scratch<T>(c.ctx, xs, count, ws, s.g));
  auto &y = c.output<T>("y", ys), &y_bias = c.output<T>("y with bias", ys);
  // dx of all parts; added to all; and added to every second part, the last part without an address.
  const auto dx = parts<T>(s, "dx", outputs), dx_add = parts<T>(s, "dx +=", integers),
             dx_some = parts<T>(s, "dx += of some", integers);
  std::array<bool, conv2d_max_parts> all{}, some{};
  all.fill(true);
  for (size_t p = 0; p < some.size(); p += 2) some[p] = true;
  auto without_last = dx_some.template view<T>();
  const size_t last = static_cast<size_t>(count - 1);
  without_last.part[last].data = nullptr;
  auto &dw = c.integers("dweight", ws, -3, 3), &db = c.integers("dbias", {.channels = s.out}, -3, 3),
       &dw_only = c.output("dweight =", ws);
  const Conv2dParts<const T> xv = x.template view<const T>();
  const AllocationCounter allocations;
  conv2d_forward<T>(c.ctx, {.x = xv, .weight = w, .y = y, .scratch = forward, .geometry = s.g});
  conv2d_forward<T>(c.ctx, {.x = xv, .weight = w, .bias = bias, .y = y_bias, .scratch = forward, .geometry = s.g});
  const auto back = [&](const Conv2dParts<T>& to, const std::array<bool, conv2d_max_parts>& add) {
    conv2d_input_gradient<T>(c.ctx,
                             {.dy = dy, .weight = w, .dx = to, .add_dx = add, .scratch = input, .geometry = s.g});
  };
  back(dx.template view<T>(), {});
  back(dx_add.template view<T>(), all);
  back(without_last, some);
  conv2d_weight_gradient<T>(c.ctx, {.x = xv, .dy = dy, .dweight = dw, .dbias = db, .scratch = weight, .geometry = s.g});
  conv2d_weight_gradient<T>(
      c.ctx, {.x = xv, .dy = dy, .dweight = dw_only, .scratch = weight, .geometry = s.g, .add_dweight = false});
  CHECK(allocations.count() == 0);
  if (device.kind == Device::cuda) {
    const bool packs = s.in * static_cast<int64_t>(sizeof(T)) % 16 == 0, stacks = !is_direct(s);
    // Channels that do not fill 16 bytes are padded for outputs that do. The copy of the weight is one more stack, and
    // the gradient of the weight one more unstack.
    constexpr int64_t pack = 16 / sizeof(T);
    const bool pads = stacks && s.in * s.taps_time % pack != 0 && s.out % pack == 0;
    const int backward = count == 1 ? 2 : 3;  // nothing to do without an address
    CHECK(launches(c.ctx, "conv2d_stack_packs") == (stacks && packs ? 4 : 0));
    CHECK(launches(c.ctx, "conv2d_stack") == (stacks && !packs ? 4 : 0) + (pads ? 2 + backward : 0));
    const bool weight_packs = s.in * s.taps_time % 4 == 0;  // its gradient is float
    CHECK(launches(c.ctx, "conv2d_unstack_packs") == (stacks && packs ? backward : 0) + (pads && weight_packs ? 2 : 0));
    CHECK(launches(c.ctx, "conv2d_unstack") == (stacks && !packs ? backward : 0) + (pads && !weight_packs ? 2 : 0));
  }

  c.expect<T>(
      y, [&](int64_t i) { return stored<T>(at(y_ref, i)); }, nothing);
  c.expect<T>(
      y_bias, [&](int64_t i) { return stored<T>(at(y_ref, i) + bias[i % s.out]); }, nothing);
  c.expect<float>(
      dw, [&](int64_t i) { return at(dw_ref, i) + dw[i]; }, nothing);
  c.expect<float>(
      dw_only, [&](int64_t i) { return at(dw_ref, i); }, nothing);
  std::vector<double> sums(static_cast<size_t>(s.out));
  for (int64_t i = 0; i < dy.size(); ++i) sums[static_cast<size_t>(i % s.out)] += dy[i];
  c.expect<float>(
      db, [&](int64_t i) { return at(sums, i) + db[i]; }, nothing);
  const auto expect_dx = [&](const Parts<T>& found, size_t p, bool add) {
    const Buffer<T>& b = *found.buffers[p];
    c.expect<T>(
        b,
        [&](int64_t i) {
          double sum = 0;
          for (const auto& tap : taps) sum += is_direct(s) ? tap[found.index(p, i)] : stored<T>(tap[found.index(p, i)]);
          return stored<T>(sum + (add ? b[i] : 0));
        },
        nothing);
  };
  for (size_t p = 0; p < dx.buffers.size(); ++p) {
    expect_dx(dx, p, false);
    expect_dx(dx_add, p, true);
    if (p != last) expect_dx(dx_some, p, some[p]);
  }
  c.expect_equal(*dx_some.buffers[last], dx_some.buffers[last]->before());
}

}  // namespace

TEST_CASE("conv2d is exact on integers", "[conv2d]") {
  for (const Device device : devices())
    for (const Sample& s : samples())
      for (const int threads : {1, 3})
        if (threads == 1 || device.kind == Device::cpu) exact<float>(device, s, threads);
}

TEST_CASE("conv2d in bf16 rounds once, and its input gradient once more per tap of time", "[conv2d]") {
  for (const Device device : devices())
    for (const Sample& s : samples()) exact<bf16>(device, s, 2);
}

TEST_CASE("conv2d of any numbers", "[conv2d]") {
  for (const Device device : devices())
    for (const Sample& s : samples()) {
      INFO(s.why);
      const Shape xs = x_shape(s), ws = weight_shape(s), ys = y_shape(s);
      const int count = parts_of(s);
      std::vector<float> first;
      for (const int threads : {1, 2, 5}) {
        if (threads > 1 && device.kind == Device::cuda) continue;
        Case c(std::string("conv2d, ") + s.why, device, xs, threads);
        const auto x = parts<float>(s, "x", [&](const std::string& name, Shape shape) -> Buffer<float>& {
          return c.random(name, shape, -1, 1);
        });
        const auto dx = parts<float>(
            s, "dx", [&](const std::string& name, Shape shape) -> Buffer<float>& { return c.output(name, shape); });
        auto &w = c.random("weight", ws, -1, 1), &dy = c.random("dy", ys, -1, 1);
        auto &bias = c.random("bias", {.channels = s.out}, -1, 1), &y = c.output("y", ys);
        auto &dw = c.random("dweight", ws, -1, 1), &db = c.random("dbias", {.channels = s.out}, -1, 1);
        conv2d_forward(c.ctx, {.x = x.view<const float>(),
                               .weight = w,
                               .bias = bias,
                               .y = y,
                               .scratch = c.scratch(conv2d_forward_scratch(c.ctx, xs, count, ws, s.g)),
                               .geometry = s.g});
        conv2d_input_gradient(c.ctx, {.dy = dy,
                                      .weight = w,
                                      .dx = dx.view<float>(),
                                      .scratch = c.scratch(conv2d_input_gradient_scratch(c.ctx, xs, count, ws, s.g)),
                                      .geometry = s.g});
        conv2d_weight_gradient(c.ctx, {.x = x.view<const float>(),
                                       .dy = dy,
                                       .dweight = dw,
                                       .dbias = db,
                                       .scratch = c.scratch(conv2d_weight_gradient_scratch(c.ctx, xs, count, ws, s.g)),
                                       .geometry = s.g});
        std::vector<float> bits = y.read();
        const auto append = [&](const std::vector<float>& more) { bits.insert(bits.end(), more.begin(), more.end()); };
        append(dw.read()), append(db.read());
        for (const Buffer<float>* b : dx.buffers) append(b->read());
        if (threads > 1) {
          CHECK(bits == first);
          continue;
        }
        first = bits;

        // As for conv1d: the rounding errors of a sum of n terms have random signs, so the error is about sqrt(n) ulp
        // of the sum of magnitudes, and 4 sqrt(n) is a safe limit.
        const reference::Conv2d ref = reference_of(s);
        const auto allowed = [](const std::vector<double>& magnitudes, int64_t terms, double extra) {
          return
              [=](int64_t i) { return 4 * std::sqrt(static_cast<double>(terms)) * ulp * (at(magnitudes, i) + extra); };
        };
        const auto xw = x.whole(), xa = absolute(xw), wa = absolute(doubles(w)), dya = absolute(doubles(dy));
        const auto y_ref = ref.forward(xw, doubles(w)), dx_ref = ref.input_gradient(doubles(dy), doubles(w)),
                   dw_ref = ref.weight_gradient(xw, doubles(dy));
        const int64_t taps = s.taps_time * s.taps_width;
        const auto y_expected = [&](int64_t i) { return at(y_ref, i) + bias[i % s.out]; };
        const auto y_allowed = allowed(ref.forward(xa, wa), taps * s.in + 1, 1);
        c.expect<float>(y, y_expected, y_allowed);
        const auto dx_size = ref.input_gradient(dya, wa);
        for (size_t p = 0; p < dx.buffers.size(); ++p) {
          const auto index = [&](int64_t i) { return static_cast<int64_t>(dx.index(p, i)); };
          const auto dx_allowed = allowed(dx_size, taps * s.out + 1, 0);
          c.expect<float>(
              *dx.buffers[p], [&](int64_t i) { return at(dx_ref, index(i)); },
              [&](int64_t i) { return dx_allowed(index(i)); });
        }
        c.expect<float>(
            dw, [&](int64_t i) { return at(dw_ref, i) + dw[i]; },
            allowed(ref.weight_gradient(xa, dya), ys.rows() + 1, 1));
        std::vector<double> sums(static_cast<size_t>(s.out)), size(sums.size(), 1.0);
        for (int64_t i = 0; i < dy.size(); ++i)
          sums[static_cast<size_t>(i % s.out)] += dy[i], size[static_cast<size_t>(i % s.out)] += std::fabs(dy[i]);
        c.expect<float>(
            db, [&](int64_t i) { return at(sums, i) + db[i]; }, allowed(size, ys.rows() + 1, 0));

        auto planted = doubles(y);
        const std::vector<float> found = y.read();
        std::copy(found.begin(), found.end(), planted.begin());
        const int64_t where = y.size() / 2;
        planted[static_cast<size_t>(where)] = y_expected(where) + 10 * y_allowed(where);
        CHECK(worst_ratio(planted, y_expected, y_allowed) > 9);
      }
    }
}

TEST_CASE("conv2d of parts whose addresses allow no packs", "[conv2d]") {
  for (const Device device : devices()) {
    const Conv2dGeometry g{same(3), same(3)};
    const Shape xs{2, 4, 7, 8}, ws{8, 3, 3, 8}, one{2, 4, 3, 8}, other{2, 4, 4, 8};
    Case c("conv2d addresses", device, xs);
    auto &a = c.integers("x 0", one, -3, 3), &b = c.integers("x 1", other, -3, 3), &w = c.integers("weight", ws, -3, 3),
         &dy = c.integers("dy", xs, -3, 3);
    std::vector<float> later{0};
    later.insert(later.end(), b.before().begin(), b.before().end());
    auto& moved = c.values("x 1 moved", {.channels = other.elements() + 1}, later);
    auto &y = c.output("y", xs), &y_moved = c.output("y of moved", xs), &dx = c.output("dx 0", one),
         &dx_b = c.output("dx 1", other), &dx_again = c.output("dx 0 again", one),
         &dx_moved = c.values("dx 1 moved", {.channels = other.elements() + 1}, later);
    const View<float> scratch = c.scratch(conv2d_forward_scratch(c.ctx, xs, 2, ws, g)),
                      back = c.scratch(conv2d_input_gradient_scratch(c.ctx, xs, 2, ws, g));
    const View<const float> x_moved(moved.data() + 1, other);
    conv2d_forward(c.ctx, {.x = {{a, b}, 2}, .weight = w, .y = y, .scratch = scratch, .geometry = g});
    conv2d_forward(c.ctx, {.x = {{a, x_moved}, 2}, .weight = w, .y = y_moved, .scratch = scratch, .geometry = g});
    c.expect_equal(y_moved, y.read());
    const View<float> to(dx_moved.data() + 1, other);
    conv2d_input_gradient(c.ctx, {.dy = dy, .weight = w, .dx = {{dx, dx_b}, 2}, .scratch = back, .geometry = g});
    conv2d_input_gradient(c.ctx, {.dy = dy, .weight = w, .dx = {{dx_again, to}, 2}, .scratch = back, .geometry = g});
    c.expect_equal(dx_again, dx.read());
    std::vector<float> expected = dx_b.read();
    expected.insert(expected.begin(), 0.0f);
    c.expect_equal(dx_moved, expected);
    if (device.kind == Device::cuda) {
      CHECK(launches(c.ctx, "conv2d_stack_packs") == 1);
      CHECK(launches(c.ctx, "conv2d_stack") == 1);
      CHECK(launches(c.ctx, "conv2d_unstack_packs") == 1);
      CHECK(launches(c.ctx, "conv2d_unstack") == 1);
    }
  }
}

TEST_CASE("conv2d's reference gradients are those of its reference forward", "[conv2d]") {
  std::mt19937_64 rng(seed());
  std::uniform_real_distribution<double> draw(-1, 1);
  const auto noise = [&](int64_t n) {
    std::vector<double> v(static_cast<size_t>(n));
    for (double& x : v) x = draw(rng);
    return v;
  };
  for (const Sample& s : samples()) {
    INFO(s.why);
    const reference::Conv2d ref = reference_of(s);
    CHECK(ref.y_frames() == y_shape(s).time);
    CHECK(ref.y_width() == y_shape(s).width);
    const auto x = noise(x_shape(s).elements()), w = noise(weight_shape(s).elements()),
               dy = noise(y_shape(s).elements());
    const auto direction_x = noise(static_cast<int64_t>(x.size())), direction_w = noise(static_cast<int64_t>(w.size()));
    const auto loss = [&](double hx, double hw) {
      auto xs = x, ws = w;
      for (size_t i = 0; i < xs.size(); ++i) xs[i] += hx * direction_x[i];
      for (size_t i = 0; i < ws.size(); ++i) ws[i] += hw * direction_w[i];
      return dot(ref.forward(xs, ws), dy);
    };
    const double h = 1e-3;  // the loss is linear in each parameter, so only rounding remains
    CHECK((loss(h, 0) - loss(-h, 0)) / (2 * h) ==
          Approx(dot(ref.input_gradient(dy, w), direction_x)).epsilon(1e-8).margin(1e-8));
    CHECK((loss(0, h) - loss(0, -h)) / (2 * h) ==
          Approx(dot(ref.weight_gradient(x, dy), direction_w)).epsilon(1e-8).margin(1e-8));
  }
}

TEST_CASE("conv2d of no items", "[conv2d]") {
  for (const Device device : devices()) {
    const Conv2dGeometry g{same(3), same(3)};
    const Shape xs{0, 4, 5, 8}, ws{8, 3, 3, 8};
    Case c("conv2d of nothing", device, xs);
    auto &w = c.integers("weight", ws, -3, 3), &dw = c.integers("dweight", ws, -3, 3);
    CHECK(conv2d_forward_scratch(c.ctx, xs, 1, ws, g).elements() == 0);
    CHECK(conv2d_input_gradient_scratch(c.ctx, xs, 1, ws, g).elements() == 0);
    CHECK(conv2d_weight_gradient_scratch(c.ctx, xs, 1, ws, g).elements() == 0);
    const View<float> none(nullptr, xs);
    conv2d_forward<float>(c.ctx, {.x = {{none}}, .weight = w, .y = none, .geometry = g});
    conv2d_input_gradient<float>(c.ctx, {.dy = none, .weight = w, .dx = {{none}}, .geometry = g});
    conv2d_weight_gradient<float>(c.ctx, {.x = {{none}}, .dy = none, .dweight = dw, .geometry = g});
    c.expect_equal(dw, dw.before());
    conv2d_weight_gradient<float>(c.ctx,
                                  {.x = {{none}}, .dy = none, .dweight = dw, .geometry = g, .add_dweight = false});
    c.expect_equal(dw, std::vector<float>(static_cast<size_t>(dw.size())));
  }
}

TEST_CASE("conv2d says what does not fit", "[conv2d]") {
  Context ctx;
  std::vector<float> data(8192);
  const auto view = [&](Shape s) { return View<float>(data.data(), s); };
  const View<float> scratch = view({.channels = 8192});
  const Shape x{1, 6, 8, 4}, w{4, 3, 3, 4}, y{1, 4, 6, 4};
  const auto forward = [&](const Conv2dParts<const float>& from, Shape weight, Shape to, View<float> working,
                           const Conv2dGeometry& g) {
    conv2d_forward<float>(ctx, {.x = from, .weight = view(weight), .y = view(to), .scratch = working, .geometry = g});
  };
  using Catch::Contains;
  CHECK(conv2d_output(x, w, {}) == y);
  CHECK_NOTHROW(forward({{view(x)}}, w, y, scratch, {}));
  CHECK_THROWS_WITH(forward({{view(x)}}, {4, 3, 3, 5}, y, scratch, {}),
                    Contains("conv2d_forward: weight is [4, 3, 3, 5], expected [4, 3, 3, 4]"));
  CHECK_THROWS_WITH(forward({{view(x)}}, w, x, scratch, {}),
                    Contains("conv2d_forward: y is [1, 6, 8, 4], expected [1, 4, 6, 4]"));
  CHECK_THROWS_WITH(forward({{view(x)}}, w, y, {}, {}), Contains("conv2d_forward: scratch"));
  CHECK_THROWS_WITH(forward({{view(x), view({1, 5, 8, 4})}, 2}, w, y, scratch, {}),
                    Contains("conv2d_forward: x is [1, 5, 8, 4], expected [1, 6, 8, 4]"));
  CHECK_THROWS_WITH(forward({{view(x), view({1, 6, 0, 4})}, 2}, w, y, scratch, {}),
                    Contains("conv2d_forward: x is [1, 6, 0, 4], expected [1, 6, 1, 4]"));
  CHECK_THROWS_WITH(forward({{View<float>(nullptr, x)}}, w, y, scratch, {}), Contains("x is required"));
  CHECK_THROWS_WITH(forward({{view(x)}, 0}, w, y, scratch, {}), Contains("0 parts of x, expected 1 to 8"));
  CHECK_THROWS_WITH(forward({{view(x)}, 9}, w, y, scratch, {}), Contains("9 parts of x, expected 1 to 8"));
  CHECK_THROWS_WITH(
      conv2d_forward<float>(
          ctx, {.x = {{view(x)}}, .weight = view(w), .bias = view({.channels = 3}), .y = view(y), .scratch = scratch}),
      Contains("conv2d_forward: bias is [1, 1, 1, 3]"));
  CHECK_THROWS_WITH(conv2d_output({1, 2, 8, 4}, w, {}), Contains("too few for 3 by 3 taps"));
  CHECK_THROWS_WITH(conv2d_output({1, 6, 2, 4}, w, {}), Contains("x has 6 frames and 2 columns"));
  CHECK_THROWS_WITH(conv2d_output(x, w, {.first_column = 6}), Contains("x has 6 frames and 2 columns"));
  CHECK_THROWS_WITH(conv2d_output(x, w, {.time = {.stride = 0}}), Contains("time has stride 0"));
  CHECK_THROWS_WITH(conv2d_output(x, w, {.width = {.left = -1}}), Contains("width has stride 1, dilation 1, left -1"));
  CHECK_THROWS_WITH(conv2d_output(x, w, {.first_column = 4, .columns = 5}),
                    Contains("columns 4 + 5 are not within the 8 columns of x"));
  CHECK_THROWS_WITH(conv2d_output(x, w, {.first_column = 8}), Contains("columns 8 + 0"));
  CHECK_THROWS_WITH(conv2d_output(x, w, {.first_column = -1}), Contains("columns -1 + 0"));
  CHECK_THROWS_WITH(conv2d_forward_scratch(ctx, x, 9, w, {}), Contains("conv2d_forward_scratch: 9 parts of x"));
  CHECK_THROWS_WITH(conv2d_input_gradient_scratch(ctx, {1, 6, 3, 4}, 4, w, {}), Contains("in 4 parts"));
  CHECK_THROWS_WITH(conv2d_weight_gradient_scratch(ctx, x, 1, {0, 3, 3, 4}, {}), Contains("weight is [0, 3, 3, 4]"));
  CHECK_THROWS_WITH(
      conv2d_input_gradient<float>(ctx, {.dy = view(x), .weight = view(w), .dx = {{view(x)}}, .scratch = scratch}),
      Contains("conv2d_input_gradient: dy is [1, 6, 8, 4], expected [1, 4, 6, 4]"));
  CHECK_THROWS_WITH(
      conv2d_weight_gradient<float>(
          ctx,
          {.x = {{view(x)}}, .dy = view(y), .dweight = view(w), .dbias = view({.channels = 5}), .scratch = scratch}),
      Contains("conv2d_weight_gradient: dbias is [1, 1, 1, 5]"));
}
