#include "conv1d_pointwise.h"

#include <cstring>

#include "conv1d_karatsuba_tiles.h"
#include "host.h"

namespace nacre::pointwise {
namespace {

using karatsuba::matrices;
using karatsuba::panel;

constexpr int64_t block = 96;  // rows

/// y = x * weight + bias + add. The weight is [out][in], or (turned) [in][out].
void product(Context& ctx, const float* x, int64_t rows, int64_t in, int64_t out, const float* weight, bool turned,
             const float* bias, const float* add, float* y, float* scratch) {
  const auto& matrix = matrices();
  // [panel of outputs][in][outputs of the panel]
  parallel_ranges(ctx, out / 16, 1 + (1 << 14) / (16 * in), [&](int64_t from, int64_t to) {
    for (int64_t o = from * 16; o < to * 16; o += 16) {
      const int64_t column = o / panel * panel, width = std::min(panel, out - column);
      float* const of_column = scratch + column * in + (o - column);
      for (int64_t i = 0; i < in; i += turned ? 1 : 16) {
        if (turned)
          std::memcpy(of_column + i * width, weight + i * out + o, 16 * sizeof(float));
        else
          matrix.transpose(weight + o * in + i, in, of_column + i * width, width);
      }
    }
  });
  parallel_ranges(
      ctx, (rows + block - 1) / block, 1 + (1 << 16) / (block * in * out), [&](int64_t first, int64_t last) {
        for (int64_t r = first * block; r < std::min(last * block, rows); r += block)
          for (int64_t j = 0; j < out; j += panel)
            matrix.multiply_all(x + r * in, in, scratch + j * in, std::min(panel, out - j), in,
                                bias != nullptr ? bias + j : nullptr, add != nullptr ? add + r * out + j : nullptr,
                                y + r * out + j, out, std::min(block, rows - r));
      });
}

}  // namespace

bool takes(Shape x, Shape weight, Shape y, const Conv1dGeometry& g) {
  return g.stride == 1 && g.groups == 1 && g.left == 0 && g.right == 0 && weight.time == 1 && x.channels % 16 == 0 &&
         y.channels % 16 == 0 && x.rows() >= 64;
}

int64_t scratch(Shape weight) { return weight.elements(); }
void forward(Context& ctx, const Conv1dForward<float>& a, float* scratch) {
  product(ctx, a.x.data, a.x.shape.rows(), a.x.shape.channels, a.y.shape.channels, a.weight.data, false, a.bias.data,
          a.residual.data, a.y.data, scratch);
}
void input_gradient(Context& ctx, const Conv1dInputGradient<float>& a, float* scratch) {
  product(ctx, a.dy.data, a.dy.shape.rows(), a.dy.shape.channels, a.dx.shape.channels, a.weight.data, true, a.bias.data,
          a.add_dx ? a.dx.data : nullptr, a.dx.data, scratch);
}

}  // namespace nacre::pointwise
