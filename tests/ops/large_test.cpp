// Tensors of more than 2^31 elements. The emulator runs the first and the last blocks of the real grid. The memory
// between them is reserved address space: untouched pages cost nothing.
#if defined(NACRE_EMULATED)
#include <cmath>

#include "harness.h"
#include "nacre/ops/add.h"
#include "nacre/ops/conv1d.h"
#include "nacre/ops/snake.h"
#include "nacre/ops/tanh.h"
#include "nacre/ops/vq.h"
#include "runtime/emulated/scheduler.h"

using namespace nacre;

namespace {

struct Edges {
  explicit Edges(unsigned n) { emulation::edge_blocks = n; }
  ~Edges() { emulation::edge_blocks = 0; }
};

constexpr int64_t channels = 96, rows = (int64_t{1} << 31) / channels + 1000;
const Shape large{.time = rows, .channels = channels};

template <class T>
struct Large {
  explicit Large(Context& ctx) : memory(ctx, static_cast<size_t>(large.elements()) * sizeof(T)) {}
  operator View<T>() const { return {reinterpret_cast<T*>(memory.data()), large}; }
  operator View<const T>() const { return {reinterpret_cast<const T*>(memory.data()), large}; }
  View<T> row(int64_t r) const { return {reinterpret_cast<T*>(memory.data()) + r * channels, {.channels = channels}}; }
  Memory memory;
};

}  // namespace

TEST_CASE("more than 2^31 elements: the first and the last rows come out right", "[large]") {
  for (const Device device : test::devices()) {
    if (device.kind == Device::cpu) continue;
    Context ctx({.device = device});
    const Large<bf16> x(ctx), y(ctx);
    Memory alphas(ctx, channels * sizeof(float));
    const View<float> alpha(reinterpret_cast<float*>(alphas.data()), {.channels = channels});
    ctx.write<float>(std::vector<float>(channels, 1.5f), alpha);
    std::vector<bf16> in(channels), out(channels);
    for (size_t i = 0; i < in.size(); ++i) in[i] = to_bf16(0.01f * static_cast<float>(i) - 0.4f);
    for (const int64_t r : {int64_t{0}, rows - 1}) ctx.write<bf16>(in, x.row(r));
    const Edges edges(4);
    const auto expect = [&](const char* what, const auto& value) {
      for (const int64_t r : {int64_t{0}, rows - 1}) {
        ctx.read<bf16>(y.row(r), out);
        INFO(what << ", row " << r);
        for (size_t i = 0; i < in.size(); ++i) {
          const double wanted = value(static_cast<double>(to_float(in[i])));
          REQUIRE(std::fabs(to_float(out[i]) - wanted) <= 1.01 * test::bf16_ulp * std::fabs(wanted) + 1e-6);
        }
        ctx.zero(y.row(r));
      }
    };
    snake_forward<bf16>(ctx, {.x = x, .alpha = alpha, .y = y});
    expect("snake", [](double v) { return v + std::pow(std::sin(1.5 * v), 2) / 1.5; });
    snake_backward<bf16>(ctx, {.x = x, .alpha = alpha, .dy = x, .dx = y});
    expect("snake backward", [](double v) { return v * (1 + std::sin(2 * 1.5 * v)); });
    tanh_forward<bf16>(ctx, {.x = x, .y = y});
    expect("tanh", [](double v) { return std::tanh(v); });
    add<bf16>(ctx, {.a = x, .b = x, .y = y});
    expect("add", [](double v) { return 2 * v; });
  }
}

TEST_CASE("more than 2^31 elements: tiles of convolutions find the first and the last rows", "[large]") {
  for (const Device device : test::devices()) {
    if (device.kind == Device::cpu) continue;
    Context ctx({.device = device});
    const Large<bf16> x(ctx), y(ctx);
    // Three taps: the earlier row unchanged, the row itself times two, and the next channel of the later row.
    const Shape shape{.batch = channels, .time = 3, .channels = channels};
    Memory weights(ctx, static_cast<size_t>(shape.elements()) * sizeof(bf16));
    const View<bf16> weight(reinterpret_cast<bf16*>(weights.data()), shape);
    std::vector<bf16> w(static_cast<size_t>(shape.elements()), to_bf16(0));
    const auto at = [](int64_t out, int64_t tap, int64_t in) {
      return static_cast<size_t>((out * 3 + tap) * channels + in);
    };
    for (int64_t c = 0; c < channels; ++c)
      w[at(c, 0, c)] = to_bf16(1), w[at(c, 1, c)] = to_bf16(2), w[at(c, 2, (c + 1) % channels)] = to_bf16(1);
    ctx.write<bf16>(w, weight);
    // Integers that bf16 represents exactly, also when doubled. All other rows are zeros.
    std::vector<bf16> first(channels), last(channels), out(channels);
    for (size_t i = 0; i < first.size(); ++i)
      first[i] = to_bf16(static_cast<float>(i + 1)), last[i] = to_bf16(static_cast<float>(channels - i));
    ctx.write<bf16>(first, x.row(0)), ctx.write<bf16>(last, x.row(rows - 1));
    const Edges edges(4);
    const auto expect = [&](const char* what, int64_t row, const std::vector<bf16>& in, float factor, int64_t shift) {
      ctx.read<bf16>(y.row(row), out);
      INFO(what << ", row " << row);
      for (int64_t c = 0; c < channels; ++c)
        REQUIRE(to_float(out[static_cast<size_t>(c)]) ==
                factor * to_float(in[static_cast<size_t>((c + shift + channels) % channels)]));
      ctx.zero(y.row(row));
    };
    const Conv1dGeometry geometry{.left = 1, .right = 1};
    conv1d_forward<bf16>(ctx, {.x = x, .weight = weight, .y = y, .geometry = geometry});
    expect("forward", 0, first, 2, 0), expect("forward", 1, first, 1, 0);
    expect("forward", rows - 1, last, 2, 0), expect("forward", rows - 2, last, 1, 1);
    conv1d_input_gradient<bf16>(ctx, {.dy = x, .weight = weight, .dx = y, .geometry = geometry});
    expect("input gradient", 0, first, 2, 0), expect("input gradient", 1, first, 1, -1);
    expect("input gradient", rows - 1, last, 2, 0), expect("input gradient", rows - 2, last, 1, 0);
  }
}

TEST_CASE("more than 2^31 elements: a search finds the codes of the first and the last rows", "[large]") {
  for (const Device device : test::devices()) {
    if (device.kind == Device::cpu) continue;
    Context ctx({.device = device});
    constexpr int64_t dim = 1024, many = (int64_t{1} << 31) / dim + 100;
    const Shape xs{.time = many, .channels = dim}, books{.time = 3, .channels = dim};
    Memory x(ctx, static_cast<size_t>(xs.elements()) * sizeof(float)), found(ctx, many * sizeof(int32_t));
    Memory book(ctx, static_cast<size_t>(books.elements()) * sizeof(float));
    const View<const float> codebook(reinterpret_cast<float*>(book.data()), books);
    Memory scratch(ctx, static_cast<size_t>(vq_nearest_scratch(ctx, xs, books).elements()) * sizeof(float));
    const auto row = [](const Memory& m, int64_t r) {
      return View<float>(reinterpret_cast<float*>(m.data()) + r * dim, {.channels = dim});
    };
    const std::vector<float> ones(dim, 1.0f), twos(dim, 2.0f);  // code 0 is zero, as are all other rows
    ctx.write<float>(ones, row(book, 1)), ctx.write<float>(twos, row(book, 2));
    ctx.write<float>(ones, row(x, 0)), ctx.write<float>(twos, row(x, many - 1));
    const View<int32_t> codes(reinterpret_cast<int32_t*>(found.data()), {.time = many});
    const Edges edges(4);
    vq_nearest(ctx, {.x = View<const float>(reinterpret_cast<float*>(x.data()), xs),
                     .codebook = codebook,
                     .codes = codes,
                     .scratch = View<float>(reinterpret_cast<float*>(scratch.data()),
                                            {.channels = static_cast<int64_t>(scratch.size() / sizeof(float))})});
    const auto code = [&](int64_t r) {
      int32_t value = -1;
      ctx.read<int32_t>(View<const int32_t>(codes.data + r, {.channels = 1}), std::span<int32_t>(&value, 1));
      return value;
    };
    CHECK(code(0) == 1);
    CHECK(code(1) == 0);
    CHECK(code(many - 2) == 0);
    CHECK(code(many - 1) == 2);
  }
}
#endif
