#pragma once
// The projections of factorised codes as floats, even if the model stores its weights in bf16, and their products.
#include "nacre/ops/convert.h"
#include "nacre/ops/rvq.h"
#include "nacre/nn/parameters.h"

namespace nacre {

/// The pointers are null for codes of the latent space, which have no projections.
struct Projections {
  const Weight* in_weight = nullptr;
  const Weight* out_weight = nullptr;
  const Parameter* in_bias = nullptr;
  const Parameter* out_bias = nullptr;
  const Derived* derived = nullptr;  ///< products, then what they need: see derived_shape()

  /// Products of the projections; then the scratch of rvq_products; then float copies of weights stored in bf16.
  static Shape derived_shape(int64_t stages, int64_t dim, int64_t latent) {
    return {.channels = rvq_products_shape(stages, dim).elements() +
                        rvq_products_scratch(stages, dim, latent).elements() + 2 * stages * dim * latent};
  }
  /// Views of one walk of refresh(): `memory` has derived_shape().
  RvqProjections views_in(View<float> memory) const {
    if (in_weight == nullptr) return {};
    // A model in bf16 has no float weights to point to; refresh() keeps copies.
    const bool copied = !in_weight->value32;
    return {
        .in_weight = copied ? View<const float>(copies(memory), in_weight->shape) : in_weight->value<float>(),
        .in_bias = in_bias->value,
        .out_weight = copied ? View<const float>(copies(memory) + in_weight->shape.elements(), out_weight->shape)
                             : out_weight->value<float>(),
        .out_bias = out_bias->value,
        .products = View<const float>(memory.data, rvq_products_shape(in_weight->shape.batch, in_weight->shape.time))};
  }
  RvqProjections views() const { return derived != nullptr ? views_in(derived->value) : RvqProjections{}; }
  /// Computes what derived memory holds.
  void refresh(Context& c, View<float> memory) const {
    const Shape in = in_weight->shape, products = rvq_products_shape(in.batch, in.time);
    if (!in_weight->value32) {
      convert<bf16, float>(c, {.x = in_weight->value<bf16>(), .y = View<float>(copies(memory), in)});
      convert<bf16, float>(
          c, {.x = out_weight->value<bf16>(), .y = View<float>(copies(memory) + in.elements(), out_weight->shape)});
    }
    // After the copies, which the products are made from.
    rvq_products(c, {.projections = views_in(memory),
                     .y = View<float>(memory.data, products),
                     .scratch = View<float>(memory.data + products.elements(),
                                            rvq_products_scratch(in.batch, in.time, in.channels))});
  }

 private:
  float* copies(View<float> memory) const {
    const Shape in = in_weight->shape;
    return memory.data + rvq_products_shape(in.batch, in.time).elements() +
           rvq_products_scratch(in.batch, in.time, in.channels).elements();
  }
};

}  // namespace nacre
