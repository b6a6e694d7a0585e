#pragma once
// The projections of factorised codes as floats, even if the model stores its weights in bf16.
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
  View<float> in_copy{}, out_copy{};  ///< float copies of weights stored in bf16

  bool need_copies() const { return in_weight != nullptr && !in_weight->value32; }
  void refresh(Context& c) const {
    if (!need_copies()) return;
    convert<bf16, float>(c, {.x = in_weight->value<bf16>(), .y = in_copy});
    convert<bf16, float>(c, {.x = out_weight->value<bf16>(), .y = out_copy});
  }
  RvqProjections views() const {
    if (in_weight == nullptr) return {};
    return {.in_weight = need_copies() ? View<const float>(in_copy) : in_weight->value<float>(),
            .in_bias = in_bias->value,
            .out_weight = need_copies() ? View<const float>(out_copy) : out_weight->value<float>(),
            .out_bias = out_bias->value};
  }
};

}  // namespace nacre
