#pragma once
// Convolutions of 7 taps and stride 1 with 26 products for 8 outputs where the formula has 56: sums and differences of
// rows and of taps, nested three times (Karatsuba's scheme). All coefficients are 1 and -1. The products of a block of
// tiles are matrix products that stay in the second-level cache. Blocks and parts are cut by shape alone, so that bits
// do not depend on the number of threads.
#include "nacre/ops/conv1d.h"

namespace nacre::karatsuba {

/// y = x * weight + bias + add, or with the weight turned round (its taps backwards, in and out exchanged) an input
/// gradient. left: zeros, or mirrored rows, before the first.
struct Product {
  View<const float> x, weight, bias{}, add{};
  View<float> y;
  int64_t dilation = 1, left = 0;
  Padding padding = Padding::zero;
  bool turned = false;
};
/// Of a gradient, too; of an input gradient x is dy, and y is dx.
bool takes(Shape x, Shape y, Shape weight, const Conv1dGeometry&);
int64_t product_scratch(const Context&, Shape x, Shape y, int64_t dilation);
void product(Context&, const Product&, float* scratch);

int64_t weight_gradient_scratch(const Context&, Shape x, Shape y, int64_t dilation);
/// a.dweight += ...; biases are not looked at.
void weight_gradient(Context&, const Conv1dWeightGradient<float>& a, float* scratch);

}  // namespace nacre::karatsuba
