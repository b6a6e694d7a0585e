// CUDA's kernels for several groups: what they move by count, in the layers of published discriminators. Values of
// small layers, in all directions and both storages, are rows of conv1d_test.cpp.
#include "conv/choose.h"
#include "conv/choose_cuda.h"
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

}  // namespace

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
