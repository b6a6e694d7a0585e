// CUDA's kernels for several groups: what they move by count, in the layers of published discriminators. Values of
// small layers, in all directions and both storages, are rows of conv1d_test.cpp.
#include "conv/choose.h"
#include "conv/choose_cuda.h"
#include "conv/conv1d_cuda.h"
#include "harness.h"
#include "nacre/ops/conv1d.h"
#include "reference/conv1d.h"
#include "runtime/host.h"

#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"

using namespace nacre;
using namespace nacre::test;

namespace {

using Cuda = cuda::conv::Engine;

struct Layer {
  const char* why;
  int64_t batch, time, in, out, taps;
  Conv1dGeometry g;
  Shape x() const { return {batch, time, 1, in}; }
  Shape weight() const { return {out, taps, 1, in / g.groups}; }
  Shape y() const { return {batch, conv1d_length(time, taps, g), 1, out}; }
};
Conv1dGeometry same(int64_t taps, int64_t groups, int64_t stride = 1, int64_t dilation = 1) {
  const int64_t halo = (taps - 1) * dilation;
  return {.stride = stride, .dilation = dilation, .groups = groups, .left = halo / 2, .right = halo - halo / 2};
}

/// Bytes that a copy of the activations of a layer moves: each read or written once.
template <class T>
double copy_bytes(const Layer& l) {
  return static_cast<double>((l.x().elements() + l.y().elements()) * static_cast<int64_t>(sizeof(T)));
}
/// Bytes of the gradients of weight and bias, read and written.
double sums_bytes(const Layer& l) { return static_cast<double>(2 * 4 * (l.weight().elements() + l.out)); }
/// Bytes of a slab's row, in whole sectors of 32 bytes, of which memory reads and writes no parts.
double row_bytes(int64_t channels, size_t element) {
  return static_cast<double>((channels * static_cast<int64_t>(element) + 31) / 32 * 32);
}
/// Samples of [0, time) in windows of `staged` samples that begin at -lead, -lead + step, ...
double staged_samples(int64_t time, int64_t tiles, int64_t step, int64_t lead, int64_t staged) {
  int64_t sum = 0;
  for (int64_t t = 0; t < tiles; ++t)
    sum += std::max<int64_t>(0, std::min(t * step - lead + staged, time) - std::max<int64_t>(t * step - lead, 0));
  return static_cast<double>(sum);
}
/// Bytes that the kernel reads from and writes to device memory, if caches keep the weights but no halo.
template <class T>
double product_bytes(const Layer& l, const cuda::groups::ProductPlan& p) {
  const auto slabs = static_cast<double>(p.items * p.slabs);
  return slabs * staged_samples(p.source_time, p.tiles, p.tile_rows * p.row_step, p.lead, p.staged) *
             row_bytes(int64_t{p.groups} * p.reduced, sizeof(T)) +
         slabs * static_cast<double>(p.result_time) * row_bytes(int64_t{4} * p.quads, sizeof(T)) +
         static_cast<double>(l.weight().elements() * static_cast<int64_t>(sizeof(T)));
}
/// The same of the weight gradient with that of the bias. Both are read and written; so are parts of their sums.
template <class T>
double weight_bytes(const Layer& l, const cuda::groups::WeightPlan& p) {
  const auto slabs = static_cast<double>(p.items * p.slabs);
  const int64_t staged = int64_t{p.tile_rows - 1} * p.stride + int64_t{p.taps - 1} * p.dilation + 1;
  return slabs * staged_samples(p.time, p.tiles, int64_t{p.tile_rows} * p.stride, p.left, staged) *
             row_bytes(int64_t{p.groups} * p.in, sizeof(T)) +
         slabs * static_cast<double>(p.length) * row_bytes(int64_t{p.groups} * p.out, sizeof(T)) +
         sums_bytes(l) * static_cast<double>(1 + (p.parts > 1 ? p.parts : 0));
}

// The grouped layers of the waveform discriminators at their usual segments, and grouped and depthwise residual units.
const Layer layers[] = {
    {"discriminator, first grouped layer", 16, 8192, 16, 64, 41, same(41, 4, 4)},
    {"discriminator, second", 16, 2048, 64, 256, 41, same(41, 16, 4)},
    {"discriminator, third", 16, 512, 256, 1024, 41, same(41, 64, 4)},
    {"discriminator, fourth", 16, 128, 1024, 1024, 41, same(41, 256, 4)},
    {"unit, widening", 16, 8192, 32, 64, 7, same(7, 4)},
    {"unit, widening, dilation 3", 16, 8192, 32, 64, 7, same(7, 4, 1, 3)},
    {"unit, widening, dilation 9", 16, 8192, 32, 64, 7, same(7, 4, 1, 9)},
    {"unit, narrowing", 16, 8192, 64, 32, 7, same(7, 4)},
    {"unit, narrowing, dilation 9", 16, 8192, 64, 32, 7, same(7, 4, 1, 9)},
    {"unit, one tap", 16, 8192, 64, 32, 1, same(1, 4)},
    {"depthwise", 16, 8192, 32, 32, 7, same(7, 32)},
    {"depthwise, dilation 9", 16, 8192, 32, 32, 7, same(7, 32, 1, 9)},
    {"pairs", 16, 8192, 64, 64, 7, same(7, 32)},
    {"depthwise, wide", 4, 2048, 512, 512, 7, same(7, 512)},
};

template <class T>
void moves_little_more_than_a_copy(Context& ctx, const Layer& l) {
  namespace choice = cuda::conv;
  const choice::ProductChoice forward = choice::choose_forward<T>(ctx, l.x(), l.weight(), l.g),
                              input_gradient = choice::choose_input_gradient<T>(ctx, l.x(), l.weight(), l.g);
  const choice::WeightGradientChoice weights = choice::choose_weight_gradient<T>(ctx, l.x(), l.weight(), l.g);
  REQUIRE(forward.engine == Cuda::groups);
  REQUIRE(input_gradient.engine == Cuda::groups);
  REQUIRE(weights.engine == Cuda::groups);
  const double copy = copy_bytes<T>(l), copy_of_weights = copy + sums_bytes(l),
               of_forward = product_bytes<T>(l, forward.groups), of_input = product_bytes<T>(l, input_gradient.groups),
               of_weights = weight_bytes<T>(l, weights.groups);
  CHECK(of_forward <= copy / 0.8);
  CHECK(of_input <= copy / 0.8);
  CHECK(of_weights <= copy_of_weights / 0.8);
  CHECK(of_forward >= copy);  // nothing can be left out
  CHECK(of_input >= copy);
  CHECK(of_weights >= copy_of_weights);
}

// Layers of at least three tiles per item. A block keeps its weights from tile to tile only where there are more tiles
// than blocks are wanted, which takes millions of results; here the plan is changed instead.
const Layer layers_of_tiles[] = {
    {"a slab's weights in shared memory at once", 1, 300, 64, 64, 3, same(3, 16)},
    {"weights by taps", 1, 600, 64, 64, 14, same(14, 2)},
    {"one channel per group, dilation 2", 1, 300, 64, 64, 3, same(3, 64, 1, 2)},
    {"mixed, stride 2", 1, 1100, 48, 16, 4, same(4, 8, 2)},
};

/// A block of several tiles, the last of which may be missing, stores the bits of blocks of one tile each.
template <class T>
void blocks_of_tiles_change_no_bit(Device device, const Layer& l, bool input_gradient) {
  Case c(l.why, device, l.x());
  const auto &source = c.random<T>("source", input_gradient ? l.y() : l.x(), -1, 1),
             &weight = c.random<T>("weight", l.weight(), -1, 1);
  const Shape result = input_gradient ? l.x() : l.y();
  cuda::groups::ProductPlan plan =
      cuda::groups::product_plan<T>(cuda::limits(c.ctx), l.x(), l.weight(), l.g, input_gradient);
  REQUIRE(plan.tile_rows > 0);
  REQUIRE(plan.tiles >= 3);
  REQUIRE((plan.chunk < plan.taps) == (std::string(l.why) == "weights by taps"));
  const auto run = [&](const std::string& name, int64_t tiles_each) -> const Buffer<T>& {
    auto& to = c.output<T>(name, result);
    plan.tiles_each = tiles_each, plan.blocks = (plan.tiles + tiles_each - 1) / tiles_each;
    if (input_gradient)
      cuda::groups::input_gradient<T>(c.ctx, {.dy = source, .weight = weight, .dx = to, .geometry = l.g}, plan);
    else
      cuda::groups::forward<T>(c.ctx, {.x = source, .weight = weight, .y = to, .geometry = l.g}, plan);
    return to;
  };
  const std::vector<T> by_tile = run("blocks of one tile", 1).read();
  for (const int64_t tiles : {int64_t{2}, plan.tiles}) {
    INFO("tiles of a block: " << tiles);
    c.expect_equal(run("blocks of " + std::to_string(tiles) + " tiles", tiles), by_tile);
  }
}

}  // namespace

TEST_CASE("conv1d of groups has the same bits for any number of tiles in a block", "[conv1d]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (const Layer& l : layers_of_tiles) {
      INFO(l.why);
      for (const bool input_gradient : {false, true}) {
        blocks_of_tiles_change_no_bit<float>(device, l, input_gradient);
        blocks_of_tiles_change_no_bit<bf16>(device, l, input_gradient);
      }
    }
  }
}

TEST_CASE("conv1d of groups moves little more than a copy by count", "[conv1d][a100][rtx3090][rtx4090]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    Context ctx({.device = device});
    for (const Layer& l : layers) {
      INFO(l.why);
      moves_little_more_than_a_copy<float>(ctx, l);
      moves_little_more_than_a_copy<bf16>(ctx, l);
    }
  }
}

#endif
