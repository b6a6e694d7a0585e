// Which engine computes which convolution (choose.h, choose_cuda.h), as tables: a row is a layer, its engines and the
// reason. A change of a rule must change a row. The rows do not depend on instruction set or threads. The engines'
// rows do not depend on limits of a device. The last table shows how CUDA's tiles divide a layer: where shared memory
// or the number of multiprocessors decides, a row names the device.
#include <algorithm>
#include <cmath>

#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "harness.h"
#include "nacre/ops/conv1d.h"
#include "nacre/ops/cuda_parts.h"
#include "nacre/ops/gradient_sums.h"
#include "nacre/ops/snake.h"
#include "nacre/ops/snake_conv1d.h"
#include "runtime/host.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

Conv1dGeometry same(int64_t taps, int64_t dilation = 1) {
  const int64_t halo = (taps - 1) * dilation;
  return {.dilation = dilation, .left = halo / 2, .right = halo - halo / 2};
}
Conv1dGeometry strided(int64_t stride) { return {.stride = stride, .left = stride / 2, .right = stride - stride / 2}; }
Conv1dGeometry reflected(Conv1dGeometry g) {
  g.padding = Padding::reflect;
  return g;
}

struct Layer {
  const char* why;
  int64_t batch, time, in, out, taps;
  Conv1dGeometry g;
  Shape x() const { return {batch, time, 1, in}; }
  Shape weight() const { return {out, taps, 1, in / g.groups}; }
  Shape y() const { return {batch, conv1d_length(time, taps, g), 1, out}; }
};

/// The engines of all ops.
template <class Engine>
struct Engines {
  Engine forward, input_gradient, weight_gradient, snake_forward, snake_input_gradient, snake_weight_gradient;
  bool operator==(const Engines&) const = default;
};
/// The same in words, for messages.
template <class Engine>
std::string text(const Engines<Engine>& e, const std::vector<const char*>& names) {
  std::string all;
  for (const Engine engine : {e.forward, e.input_gradient, e.weight_gradient, e.snake_forward, e.snake_input_gradient,
                              e.snake_weight_gradient})
    all += std::string(all.empty() ? "" : ", ") + names[static_cast<size_t>(engine)];
  return all;
}

// ---- the CPU

using Cpu = conv::Engine;
namespace cpu {
constexpr Cpu nothing = Cpu::nothing, direct = Cpu::direct, pointwise = Cpu::pointwise, karatsuba = Cpu::karatsuba,
              windows = Cpu::windows, blocks = Cpu::blocks, groups = Cpu::groups, separate = Cpu::separate;
}

struct CpuRow {
  Layer layer;
  Engines<Cpu> of_float;  // the weight gradient with Snake is always separate
};
const CpuRow cpu_rows[] = {
    {{"residual unit of 7 taps: fewer products", 1, 8192, 64, 64, 7, same(7, 3)},
     {cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::separate}},
    {{"7 taps on few tiles: the factors of a wide weight cost more than they save, but not for its gradient", 1, 510,
      256, 256, 7, same(7, 3)},
     {cpu::windows, cpu::windows, cpu::karatsuba, cpu::separate, cpu::separate, cpu::separate}},
    {{"7 taps on narrow rows: sums cost more than they save", 2, 2741, 16, 16, 7, same(7)},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"7 taps, reflected: Snake would be copied with the padding", 2, 205, 32, 96, 7, reflected(same(7, 3))},
     {cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::separate, cpu::separate, cpu::separate}},
    {{"tiles of the output gradient suffice, those of the input do not",
      16,
      64,
      128,
      512,
      8,
      {.stride = 4, .left = 5, .right = 1}},
     {cpu::windows, cpu::karatsuba, cpu::karatsuba, cpu::separate, cpu::separate, cpu::separate}},
    {{"two strides of 8: fewer products", 1, 8192, 64, 128, 16, strided(8)},
     {cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::separate}},
    {{"two strides, reflected", 1, 8192, 64, 128, 16, reflected(strided(8))},
     {cpu::karatsuba, cpu::karatsuba, cpu::karatsuba, cpu::separate, cpu::separate, cpu::separate}},
    {{"9 taps of stride 8 are not two strides", 1, 8192, 64, 128, 9, strided(8)},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"one tap", 1, 8192, 64, 64, 1, {}},
     {cpu::pointwise, cpu::pointwise, cpu::blocks, cpu::pointwise, cpu::pointwise, cpu::separate}},
    {{"one tap, too narrow for blocks", 1, 8192, 48, 64, 1, {}},
     {cpu::pointwise, cpu::pointwise, cpu::direct, cpu::pointwise, cpu::pointwise, cpu::separate}},
    {{"one tap, 64 rows in all items", 2, 32, 16, 16, 1, {}},
     {cpu::pointwise, cpu::pointwise, cpu::direct, cpu::pointwise, cpu::pointwise, cpu::separate}},
    {{"one tap, 63 rows do not pay for laying out the weight", 3, 21, 16, 16, 1, {}},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"one tap, channels that fill no vectors", 1, 8192, 72, 64, 1, {}},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"one tap beside padding", 1, 8192, 64, 64, 1, {.left = 1}},
     {cpu::windows, cpu::windows, cpu::blocks, cpu::separate, cpu::separate, cpu::separate}},
    {{"one tap, reflected padding of no samples", 1, 8192, 64, 64, 1, reflected({})},
     {cpu::pointwise, cpu::pointwise, cpu::blocks, cpu::separate, cpu::separate, cpu::separate}},
    {{"items of 63 rows, processed together", 16, 63, 48, 144, 3, same(3)},
     {cpu::windows, cpu::windows, cpu::blocks, cpu::separate, cpu::separate, cpu::separate}},
    {{"items of 64 rows", 16, 64, 48, 144, 3, same(3)},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"first layer", 1, 8192, 1, 64, 7, same(7)},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"last layer: one output", 1, 8192, 64, 1, 7, same(7)},
     {cpu::direct, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"three outputs fill no vector", 1, 500, 32, 3, 5, same(5)},
     {cpu::direct, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"four outputs", 1, 500, 32, 4, 5, same(5)},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"narrow groups", 2, 190, 24, 48, 3, {.groups = 3, .left = 1, .right = 1}},
     {cpu::windows, cpu::windows, cpu::groups, cpu::separate, cpu::separate, cpu::separate}},
    {{"narrow groups with one output each", 2, 190, 48, 3, 3, {.groups = 3, .left = 1, .right = 1}},
     {cpu::windows, cpu::windows, cpu::groups, cpu::separate, cpu::separate, cpu::separate}},
    {{"wide groups", 2, 190, 192, 96, 3, {.groups = 3, .left = 1, .right = 1}},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"no items", 0, 8192, 64, 64, 7, same(7)},
     {cpu::nothing, cpu::nothing, cpu::nothing, cpu::nothing, cpu::nothing, cpu::nothing}},
};

template <class T>
Engines<Cpu> engines_of_cpu(Context& ctx, const Layer& l) {
  const Shape x = l.x(), w = l.weight(), y = l.y();
  const conv::ForwardChoice forward = conv::choose_forward<T>(ctx, x, w, l.g);
  const conv::InputGradientChoice input_gradient = conv::choose_input_gradient<T>(ctx, x, w, l.g);
  const conv::WeightGradientChoice weight_gradient = conv::choose_weight_gradient<T>(ctx, x, w, l.g);
  const conv::SnakeChoice snake_forward = conv::choose_snake_forward<T>(ctx, x, w, l.g),
                          snake_input_gradient = conv::choose_snake_input_gradient<T>(ctx, x, w, l.g),
                          snake_weight_gradient = conv::choose_snake_weight_gradient<T>(ctx, x, w, l.g);
  CHECK(conv1d_forward_scratch<T>(ctx, x, w, l.g).elements() == forward.scratch());
  CHECK(conv1d_input_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == input_gradient.scratch());
  CHECK(conv1d_weight_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == weight_gradient.scratch());
  CHECK(snake_conv1d_forward_scratch<T>(ctx, x, w, l.g).elements() == snake_forward.scratch());
  CHECK(snake_conv1d_input_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == snake_input_gradient.scratch());
  CHECK(snake_conv1d_weight_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == snake_weight_gradient.scratch());
  return {forward.engine,       input_gradient.engine,       weight_gradient.engine,
          snake_forward.engine, snake_input_gradient.engine, snake_weight_gradient.engine};
}

}  // namespace

TEST_CASE("conv1d's engines on the CPU", "[conv1d][snake_conv1d]") {
  const std::vector<const char*> names{"nothing", "direct", "pointwise", "karatsuba",
                                       "windows", "blocks", "groups",    "separate"};
  for (const int threads : {1, 2, 7}) {
    Context ctx({.threads = threads});
    for (const CpuRow& row : cpu_rows) {
      INFO(row.layer.why);
      CHECK(text(engines_of_cpu<float>(ctx, row.layer), names) == text(row.of_float, names));
      CHECK(
          snake_conv1d_fuses<float>(ctx, row.layer.x(), row.layer.weight(), row.layer.g) ==
          (row.of_float.snake_input_gradient == cpu::pointwise || row.of_float.snake_input_gradient == cpu::karatsuba));
      // In bf16 only the engines that convert what they read.
      Engines<Cpu> of_bf16{row.of_float.forward == cpu::direct ? cpu::direct : cpu::windows,
                           cpu::windows,
                           row.of_float.weight_gradient == cpu::groups ? cpu::groups : cpu::direct,
                           cpu::separate,
                           cpu::separate,
                           cpu::separate};
      if (row.layer.batch == 0) of_bf16 = row.of_float;
      CHECK(text(engines_of_cpu<bf16>(ctx, row.layer), names) == text(of_bf16, names));
    }
  }
}

// ---- CUDA

#if defined(NACRE_WITH_CUDA)
namespace {

using Cuda = cuda::conv::Engine;
namespace gpu {
constexpr Cuda nothing = Cuda::nothing, plain = Cuda::plain, ends = Cuda::ends, tiles = Cuda::tiles, taps = Cuda::taps,
               windows = Cuda::windows, groups = Cuda::groups, separate = Cuda::separate;
}

struct CudaRow {
  Layer layer;
  Engines<Cuda> of_float;            // without tensor cores
  Engines<Cuda> of_tf32 = of_float;  // floats on tensor cores
  Engines<Cuda> of_bf16 = of_tf32;
};
const CudaRow cuda_rows[] = {
    {{"residual unit", 1, 90, 32, 32, 7, same(7, 3)},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps}},
    {{"one tap", 1, 90, 32, 32, 1, {}}, {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows}},
    {{"two strides", 1, 64, 16, 32, 8, strided(4)},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows}},
    {{"9 taps are more than a block takes; tensor cores would apply Snake nine times", 1, 90, 32, 32, 9, same(9)},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::separate}},
    {{"a halo of 66 rows is longer than a block keeps", 1, 90, 32, 32, 7, same(7, 11)},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::separate}},
    {{"few taps, many columns of tiles: tensor cores would apply Snake to each", 1, 20, 16, 264, 1, {}},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::separate, gpu::tiles, gpu::separate}},
    {{"two taps in as many columns are still few", 1, 20, 16, 264, 2, {.left = 1}},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::separate, gpu::tiles, gpu::taps}},
    {{"as many columns, but three taps", 1, 20, 16, 264, 3, same(3)},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps}},
    {{"256 columns: Snake is applied at most twice", 1, 20, 16, 256, 1, {}},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows}},
    {{"two strides, two columns of tiles: tensor cores would apply Snake four times", 1, 64, 16, 136, 8, strided(4)},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::windows},
     {gpu::tiles, gpu::tiles, gpu::windows, gpu::tiles, gpu::tiles, gpu::separate}},
    {{"12 channels fill packs of floats, not of bf16", 1, 90, 12, 12, 7, same(7)},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"7 and 9 channels fill no pack", 1, 20, 7, 9, 7, same(7)},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"groups", 1, 90, 64, 64, 7, {.groups = 2, .left = 3, .right = 3}},
     {gpu::groups, gpu::groups, gpu::groups, gpu::separate, gpu::separate, gpu::separate}},
    {{"one channel per group", 1, 90, 64, 64, 7, {.groups = 64, .left = 3, .right = 3}},
     {gpu::groups, gpu::groups, gpu::groups, gpu::separate, gpu::separate, gpu::separate}},
    {{"12 channels in groups fill packs of floats, not of bf16", 1, 90, 12, 12, 7, {.groups = 3, .left = 6}},
     {gpu::groups, gpu::groups, gpu::groups, gpu::separate, gpu::separate, gpu::separate},
     {gpu::groups, gpu::groups, gpu::groups, gpu::separate, gpu::separate, gpu::separate},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"groups, reflected, and each sample receives a reflection", 1, 7, 32, 32, 7,
      reflected({.groups = 2, .left = 3, .right = 3})},
     {gpu::groups, gpu::plain, gpu::groups, gpu::separate, gpu::separate, gpu::separate}},
    {{"stride together with dilation", 1, 90, 32, 32, 4, {.stride = 2, .dilation = 3}},
     {gpu::plain, gpu::plain, gpu::windows, gpu::separate, gpu::separate, gpu::windows}},
    {{"rows further apart than the kernel counts", 1, 9000, 32, 32, 7, same(7, 700)},
     {gpu::plain, gpu::plain, gpu::windows, gpu::separate, gpu::separate, gpu::windows},
     {gpu::plain, gpu::plain, gpu::windows, gpu::separate, gpu::separate, gpu::separate}},
    {{"reflected: the plain kernel computes the gradient of what is reflected", 1, 90, 32, 32, 7, reflected(same(7))},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::separate, gpu::taps}},
    {{"reflected, and each sample receives a reflection", 1, 7, 32, 32, 7, reflected(same(7))},
     {gpu::tiles, gpu::plain, gpu::taps, gpu::tiles, gpu::separate, gpu::taps}},
    {{"first layer", 1, 90, 1, 32, 7, same(7)},
     {gpu::ends, gpu::ends, gpu::ends, gpu::separate, gpu::separate, gpu::separate}},
    {{"first layer, reflected", 1, 90, 1, 32, 7, reflected(same(7))},
     {gpu::ends, gpu::ends, gpu::ends, gpu::separate, gpu::separate, gpu::separate}},
    {{"first layer, reflected, and each sample receives a reflection", 1, 7, 1, 32, 7, reflected(same(7))},
     {gpu::ends, gpu::plain, gpu::ends, gpu::separate, gpu::separate, gpu::separate}},
    {{"first layer of 5 taps", 1, 90, 1, 32, 5, same(5)},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"last layer", 1, 90, 32, 1, 7, same(7)}, {gpu::ends, gpu::ends, gpu::ends, gpu::ends, gpu::ends, gpu::ends}},
    {{"last layer, reflected", 1, 90, 32, 1, 7, reflected(same(7))},
     {gpu::ends, gpu::ends, gpu::ends, gpu::separate, gpu::separate, gpu::separate}},
    {{"516 channels are more packs of floats than a block has threads", 1, 90, 516, 1, 7, same(7)},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"no items", 0, 90, 32, 32, 7, same(7)},
     {gpu::nothing, gpu::nothing, gpu::nothing, gpu::nothing, gpu::nothing, gpu::nothing}},
};

template <class T>
Engines<Cuda> engines_of_cuda(Context& ctx, const Layer& l, bool aligned) {
  namespace choice = cuda::conv;
  const Shape x = l.x(), w = l.weight(), y = l.y();
  const choice::ProductChoice forward = choice::choose_forward<T>(ctx, x, w, l.g, aligned),
                              input_gradient = choice::choose_input_gradient<T>(ctx, x, w, l.g, aligned),
                              snake_forward = choice::choose_snake_forward<T>(ctx, x, w, l.g, aligned),
                              snake_input_gradient = choice::choose_snake_input_gradient<T>(ctx, x, w, l.g, aligned);
  const choice::WeightGradientChoice weight_gradient = choice::choose_weight_gradient<T>(ctx, x, w, l.g, aligned),
                                     snake_weight_gradient =
                                         choice::choose_snake_weight_gradient<T>(ctx, x, w, l.g, aligned);
  CHECK(conv1d_forward_scratch<T>(ctx, x, w, l.g).elements() == forward.scratch);
  CHECK(conv1d_input_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == input_gradient.scratch);
  CHECK(conv1d_weight_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == weight_gradient.scratch);
  CHECK(snake_conv1d_forward_scratch<T>(ctx, x, w, l.g).elements() == snake_forward.scratch);
  CHECK(snake_conv1d_input_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == snake_input_gradient.scratch);
  CHECK(snake_conv1d_weight_gradient_scratch<T>(ctx, x, w, y, l.g).elements() == snake_weight_gradient.scratch);
  return {forward.engine,       input_gradient.engine,       weight_gradient.engine,
          snake_forward.engine, snake_input_gradient.engine, snake_weight_gradient.engine};
}

/// The same layer where an address is not a multiple of 16 bytes: only the ends' kernels support that.
Engines<Cuda> unaligned(Engines<Cuda> e) {
  for (Cuda* const engine : {&e.forward, &e.input_gradient, &e.weight_gradient})
    if (*engine != Cuda::ends && *engine != Cuda::nothing) *engine = Cuda::plain;
  for (Cuda* const engine : {&e.snake_forward, &e.snake_input_gradient, &e.snake_weight_gradient})
    if (*engine != Cuda::ends && *engine != Cuda::nothing) *engine = Cuda::separate;
  return e;
}

// How the tiles divide a layer

/// A block of the result, and the rows of the halo that have no number between items. {}: not on tiles, or not fused.
struct Division {
  int rows, columns, gap = 0;
};
struct Divisions {
  Division forward, input_gradient, snake_forward, snake_input_gradient, snake_weight_gradient;
};
std::string text(const Divisions& all) {
  std::string s;
  for (const Division& d :
       {all.forward, all.input_gradient, all.snake_forward, all.snake_input_gradient, all.snake_weight_gradient}) {
    s += s.empty() ? "" : ", ";
    s += d.rows == 0 ? "none" : std::to_string(d.rows) + "x" + std::to_string(d.columns);
    if (d.gap != 0) s += " gap " + std::to_string(d.gap);
  }
  return s;
}

template <class T>
Divisions divisions(Context& ctx, const Layer& l) {
  namespace choice = cuda::conv;
  const Shape x = l.x(), w = l.weight();
  const auto of = [](const choice::ProductChoice& c) {
    return c.engine == Cuda::tiles ? Division{c.product.block.rows, c.product.block.columns, c.product.gap}
                                   : Division{};
  };
  const choice::WeightGradientChoice weights = choice::choose_snake_weight_gradient<T>(ctx, x, w, l.g);
  return {of(choice::choose_forward<T>(ctx, x, w, l.g)), of(choice::choose_input_gradient<T>(ctx, x, w, l.g)),
          of(choice::choose_snake_forward<T>(ctx, x, w, l.g)),
          of(choice::choose_snake_input_gradient<T>(ctx, x, w, l.g)),
          weights.engine == Cuda::windows ? Division{weights.block.rows, weights.block.columns} : Division{}};
}

/// Devices with the same rows, by the limits that the rows depend on.
enum class Limits { any, h200, a100, of_99_kib };
bool has(const cuda::DeviceLimits& d, Limits limits) {
  const size_t kib = d.shared_per_block >> 10;
  return limits == Limits::any || (limits == Limits::h200 && kib == 227 && d.multiprocessors == 132) ||
         (limits == Limits::a100 && kib == 163 && d.multiprocessors == 108) ||
         (limits == Limits::of_99_kib && kib == 99 && d.multiprocessors <= 128);
}

struct DivisionRow {
  Layer layer;
  Limits limits;
  Divisions of_float;         // without tensor cores
  Divisions on_tensor_cores;  // of tf32 and of bf16
};
const DivisionRow division_rows[] = {
    {{"the shared memory of Snake's parameters makes the blocks smaller", 1, 40000, 128, 128, 3, same(3, 170)},
     Limits::h200,
     {{256, 128}, {256, 128}, {128, 128}, {256, 128}, {128, 64}},
     {{256, 128}, {256, 128}, {}, {256, 128}, {}}},
    {{"a shorter halo leaves room for Snake's parameters", 1, 40000, 128, 128, 3, same(3, 165)},
     Limits::h200,
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {128, 64}},
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {}}},
    {{"Snake's parameters take the room for the gap between items, which saves a round", 64, 264, 256, 256, 7,
      same(7, 28)},
     Limits::h200,
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {128, 64}},
     {{256, 128, 168}, {256, 128, 168}, {}, {256, 128, 168}, {}}},
    {{"the gap would save no round", 70, 264, 256, 256, 7, same(7, 28)},
     Limits::h200,
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {128, 64}},
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {}}},
    {{"items of whole groups of 64 rows always get the gap, except where Snake's parameters take its room", 44, 384,
      256, 256, 7, same(7, 28)},
     Limits::h200,
     {{256, 128, 168}, {256, 128, 168}, {256, 128}, {256, 128, 168}, {128, 64}},
     {{256, 128, 168}, {256, 128, 168}, {}, {256, 128, 168}, {}}},
    {{"items of whole groups of 64 rows, where the gap saves no round", 60, 320, 256, 256, 7, same(7, 28)},
     Limits::h200,
     {{256, 128, 168}, {256, 128, 168}, {256, 128}, {256, 128, 168}, {128, 64}},
     {{256, 128, 168}, {256, 128, 168}, {256, 128}, {256, 128, 168}, {}}},
    {{"the shared memory of Snake's parameters makes the blocks smaller", 1, 40000, 128, 128, 7, same(7, 20)},
     Limits::a100,
     {{256, 128}, {256, 128}, {128, 128, 120}, {256, 128}, {128, 64}},
     {{256, 128}, {256, 128}, {}, {256, 128}, {}}},
    {{"a shorter halo leaves room for Snake's parameters", 1, 40000, 128, 128, 7, same(7, 19)},
     Limits::a100,
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {128, 64}},
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {}}},
    {{"Snake's parameters take the room for the gap between items, which saves a round", 24, 288, 512, 512, 7,
      same(7, 9)},
     Limits::a100,
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {}},
     {{256, 128, 54}, {256, 128, 54}, {}, {256, 128, 54}, {}}},
    {{"the gap would save no round", 30, 288, 512, 512, 7, same(7, 9)},
     Limits::a100,
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {}},
     {{256, 128}, {256, 128}, {256, 128}, {256, 128}, {}}},
    {{"items of whole groups of 64 rows always get the gap, except where Snake's parameters take its room", 21, 320,
      512, 512, 7, same(7, 9)},
     Limits::a100,
     {{256, 128, 54}, {256, 128, 54}, {256, 128}, {256, 128, 54}, {}},
     {{256, 128, 54}, {256, 128, 54}, {}, {256, 128, 54}, {}}},
    {{"items of whole groups of 64 rows, where the gap saves no round", 26, 320, 512, 512, 7, same(7, 9)},
     Limits::a100,
     {{256, 128, 54}, {256, 128, 54}, {256, 128}, {256, 128, 54}, {}},
     {{256, 128, 54}, {256, 128, 54}, {256, 128}, {256, 128, 54}, {}}},
    {{"the shared memory of Snake's parameters makes the blocks smaller", 1, 40000, 768, 768, 7, same(7, 2)},
     Limits::of_99_kib,
     {{128, 128, 12}, {128, 128, 12}, {128, 96, 12}, {128, 128, 12}, {}},
     {{128, 128, 12}, {128, 128, 12}, {}, {128, 128, 12}, {}}},
    {{"a shorter halo leaves room for Snake's parameters", 1, 40000, 768, 768, 7, same(7)},
     Limits::of_99_kib,
     {{128, 128, 6}, {128, 128, 6}, {128, 128}, {128, 128, 6}, {}},
     {{128, 128, 6}, {128, 128, 6}, {128, 128}, {128, 128, 6}, {}}},
    {{"256 outputs: float products with Snake have registers for small blocks only", 1, 20, 128, 256, 1, {}},
     Limits::h200,
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {128, 64}},
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {256, 128}}},
    {{"256 outputs: float products with Snake have registers for small blocks only", 1, 20, 128, 256, 1, {}},
     Limits::a100,
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {128, 64}},
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {256, 128}}},
    {{"256 outputs: shared memory has room for small blocks only", 1, 20, 128, 256, 1, {}},
     Limits::of_99_kib,
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {128, 64}},
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {128, 64}}},
    {{"64 outputs: float products with Snake have registers for small blocks only", 1, 20, 128, 64, 1, {}},
     Limits::any,
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {64, 64}},
     {{64, 64}, {64, 64}, {64, 64}, {64, 64}, {64, 128}}},
};

}  // namespace

TEST_CASE("conv1d's engines on CUDA", "[conv1d][snake_conv1d][a100][rtx3090][rtx4090]") {
  const std::vector<const char*> names{"nothing", "plain", "ends", "tiles", "taps", "windows", "groups", "separate"};
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    Context ctx({.device = device}), of_tf32({.device = device, .precision = Precision::tf32});
    for (const CudaRow& row : cuda_rows) {
      INFO(row.layer.why);
      CHECK(text(engines_of_cuda<float>(ctx, row.layer, true), names) == text(row.of_float, names));
      CHECK(text(engines_of_cuda<float>(of_tf32, row.layer, true), names) == text(row.of_tf32, names));
      CHECK(text(engines_of_cuda<bf16>(ctx, row.layer, true), names) == text(row.of_bf16, names));
      CHECK(text(engines_of_cuda<float>(ctx, row.layer, false), names) == text(unaligned(row.of_float), names));
      CHECK(text(engines_of_cuda<float>(of_tf32, row.layer, false), names) == text(unaligned(row.of_tf32), names));
      CHECK(text(engines_of_cuda<bf16>(ctx, row.layer, false), names) == text(unaligned(row.of_bf16), names));
    }
  }
}

TEST_CASE("conv1d's tiles on CUDA, with Snake and without", "[conv1d][snake_conv1d][a100][rtx3090][rtx4090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    Context ctx({.device = device}), of_tf32({.device = device, .precision = Precision::tf32});
    for (const DivisionRow& row : division_rows) {
      if (!has(cuda::limits(ctx), row.limits)) continue;
      INFO(row.layer.why);
      CHECK(text(divisions<float>(ctx, row.layer)) == text(row.of_float));
      CHECK(text(divisions<float>(of_tf32, row.layer)) == text(row.on_tensor_cores));
      CHECK(text(divisions<bf16>(ctx, row.layer)) == text(row.on_tensor_cores));
    }
  }
}

// ---- the parts that costs count

namespace {

/// Layers of every kind of weight gradient, with one part and with several.
const Layer layers_with_parts[] = {
    {"several taps", 2, 1300, 64, 72, 7, same(7, 3)},
    {"several taps, a single part", 1, 300, 32, 64, 3, same(3)},
    {"one tap", 3, 700, 72, 128, 1, {}},
    {"a halo of 66 rows is longer than a block keeps", 1, 1600, 16, 32, 7, same(7, 11)},
    {"two strides, whose windows hold each sample once", 2, 4096, 16, 72, 8, strided(4)},
    {"a single part of windows", 1, 256, 16, 32, 4, strided(2)},
    {"stride and dilation", 2, 2400, 16, 16, 3, {.stride = 2, .dilation = 2, .left = 2, .right = 2}},
    {"channels that fill no pack", 2, 1400, 3, 5, 3, same(3)},
    {"groups", 2, 1500, 32, 32, 3, {.groups = 8, .left = 1, .right = 1}},
    {"groups, a single part", 1, 40, 32, 32, 3, {.groups = 8, .left = 1, .right = 1}},
    {"reflected padding", 1, 1500, 32, 32, 5, reflected(same(5))},
};

/// How many floats were written of memory that held NaN.
int64_t written(const Buffer<float>& memory) {
  const std::vector<float> all = memory.read();
  return std::count_if(all.begin(), all.end(), [](float v) { return !std::isnan(v); });
}

/// The floats that each gradient's kernels leave for finish_gradient_sums(), against the parts that costs count.
template <class T>
void check_weight_parts(Case& c, const Layer& l) {
  const Shape x = l.x(), w = l.weight(), y = l.y(), room = conv1d_weight_gradient_parts<T>(c.ctx, x, w, y, l.g);
  const Conv1dParts parts = conv1d_parts<T>(x, w, l.g);
  // A single part of the weight's gradient is the gradient, except by the plain kernel. With groups, so is the bias's.
  const bool single = parts.weight_parts == 1 && !parts.bias_apart,
             grouped = parts.weight_gradient == Conv1dKernels::groups;
  const int64_t of_weight = single ? 0 : parts.weight_parts * w.elements(),
                of_bias = single && grouped ? 0 : parts.bias_parts * y.channels,
                of_bias_of_x = parts.bias_of_x_parts * x.channels;
  auto &xs = c.random<T>("x", x, -1, 1), &dys = c.random<T>("dy", y, -1, 1);
  for (const bool of_x : {false, true}) {
    INFO((of_x ? "with the bias of x" : "with the bias"));
    auto& memory = c.output("parts", room);
    Conv1dWeightGradient<T> call{
        .x = xs, .dy = dys, .dweight = c.zeros("dweight", w), .parts = memory, .geometry = l.g};
    if (of_x)
      call.dbias_of_x = c.zeros("dbias of x", {.channels = x.channels});
    else
      call.dbias = c.zeros("dbias", {.channels = y.channels});
    conv1d_weight_gradient<T>(c.ctx, call);
    CHECK(written(memory) == of_weight + (of_x ? of_bias_of_x : of_bias));
    finish_gradient_sums(c.ctx);
  }
}
/// The same for Snake in front of the layer, and for Snake alone.
template <class T>
void check_snake_parts(Case& c, const Layer& l) {
  const Shape x = l.x(), w = l.weight(), y = l.y(), channels{.channels = x.channels};
  const SnakeConv1dParts inside = snake_conv1d_parts<T>(c.ctx.precision(), x, w, l.g);
  auto &xs = c.random<T>("x", x, -1, 1), &dys = c.random<T>("dy", y, -1, 1), &ws = c.random<T>("weight", w, -1, 1),
       &dx = c.output<T>("dx", x);
  auto &alpha = c.random("alpha", channels, 0.5, 2), &dalpha = c.zeros("dalpha", channels);
  auto &memory = c.output("parts", snake_conv1d_input_gradient_parts<T>(c.ctx, x, w, y, l.g)),
       &of_snake = c.output("parts of Snake", snake_backward_parts(c.ctx, x, false));
  snake_conv1d_input_gradient<T>(c.ctx,
                                 {.x = xs,
                                  .alpha = alpha,
                                  .dy = dys,
                                  .weight = ws,
                                  .dx = dx,
                                  .dalpha = dalpha,
                                  .scratch = c.scratch(snake_conv1d_input_gradient_scratch<T>(c.ctx, x, w, y, l.g)),
                                  .parts = memory,
                                  .geometry = l.g});
  CHECK(written(memory) == (inside.in_input_gradient ? inside.parts : snake_parts<T>(x)) * 2 * x.channels);
  snake_backward<T>(c.ctx, {.x = xs, .alpha = alpha, .dy = xs, .dx = dx, .dalpha = dalpha, .parts = of_snake});
  CHECK(written(of_snake) == snake_parts<T>(x) * 2 * x.channels);
  finish_gradient_sums(c.ctx);
}

}  // namespace

TEST_CASE("conv1d's and Snake's parts on CUDA are those that costs count", "[conv1d][snake_conv1d][cost]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (const Layer& l : layers_with_parts) {
      INFO(l.why);
      for (const Precision precision : {Precision::fp32, Precision::tf32}) {
        Case c(l.why, device, l.x(), 2, precision);
        if (!has(cuda::limits(c.ctx), Limits::h200)) continue;
        if (precision == Precision::fp32) check_weight_parts<float>(c, l), check_weight_parts<bf16>(c, l);
        if (l.g.groups > 1) continue;
        check_snake_parts<float>(c, l);
        if (precision == Precision::fp32) check_snake_parts<bf16>(c, l);
      }
    }
  }
}
#endif
