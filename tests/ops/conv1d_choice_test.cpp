// Which engine computes which convolution (choose.h, choose_cuda.h), as tables: a row is a layer, its engines and the
// reason. A change of a rule must change a row. The rows do not depend on instruction set, threads or limits of a
// device.
#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "harness.h"
#include "nacre/ops/conv1d.h"
#include "nacre/ops/snake_conv1d.h"
#include "runtime/host.h"

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
              windows = Cpu::windows, blocks = Cpu::blocks, separate = Cpu::separate;
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
    {{"7 taps, reflected: no adjoint of the padding, and Snake would be copied with it", 2, 205, 32, 96, 7,
      reflected(same(7, 3))},
     {cpu::karatsuba, cpu::windows, cpu::karatsuba, cpu::separate, cpu::separate, cpu::separate}},
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
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
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
    {{"groups", 2, 190, 48, 96, 3, {.groups = 3, .left = 1, .right = 1}},
     {cpu::windows, cpu::windows, cpu::direct, cpu::separate, cpu::separate, cpu::separate}},
    {{"groups with one output each", 2, 190, 48, 3, 3, {.groups = 3, .left = 1, .right = 1}},
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
  const std::vector<const char*> names{"nothing", "direct", "pointwise", "karatsuba", "windows", "blocks", "separate"};
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
                           cpu::direct,
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
               windows = Cuda::windows, separate = Cuda::separate;
}

struct CudaRow {
  Layer layer;
  Engines<Cuda> of_float;  // without tensor cores
  Engines<Cuda> of_bf16 = of_float;
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
    {{"as many columns, but three taps", 1, 20, 16, 264, 3, same(3)},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps}},
    {{"12 channels fill packs of floats, not of bf16", 1, 90, 12, 12, 7, same(7)},
     {gpu::tiles, gpu::tiles, gpu::taps, gpu::tiles, gpu::tiles, gpu::taps},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"7 and 9 channels fill no pack", 1, 20, 7, 9, 7, same(7)},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"groups", 1, 90, 64, 64, 7, {.groups = 2, .left = 3, .right = 3}},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
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
     {gpu::ends, gpu::plain, gpu::ends, gpu::separate, gpu::separate, gpu::separate}},
    {{"first layer of 5 taps", 1, 90, 1, 32, 5, same(5)},
     {gpu::plain, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
    {{"last layer", 1, 90, 32, 1, 7, same(7)}, {gpu::ends, gpu::ends, gpu::ends, gpu::ends, gpu::ends, gpu::ends}},
    {{"last layer, reflected", 1, 90, 32, 1, 7, reflected(same(7))},
     {gpu::ends, gpu::plain, gpu::plain, gpu::separate, gpu::separate, gpu::separate}},
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

}  // namespace

TEST_CASE("conv1d's engines on CUDA", "[conv1d][snake_conv1d][a100][rtx3090][rtx4090]") {
  const std::vector<const char*> names{"nothing", "plain", "ends", "tiles", "taps", "windows", "separate"};
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    Context ctx({.device = device});
    for (const CudaRow& row : cuda_rows) {
      INFO(row.layer.why);
      CHECK(text(engines_of_cuda<float>(ctx, row.layer, true), names) == text(row.of_float, names));
      CHECK(text(engines_of_cuda<bf16>(ctx, row.layer, true), names) == text(row.of_bf16, names));
      CHECK(text(engines_of_cuda<float>(ctx, row.layer, false), names) == text(unaligned(row.of_float), names));
      CHECK(text(engines_of_cuda<bf16>(ctx, row.layer, false), names) == text(unaligned(row.of_bf16), names));
    }
  }
}
#endif
