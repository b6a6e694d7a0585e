#pragma once
// Steps that divide audio by its level and multiply by it again (ops/rms_scale.h): EnCodec's normalisation of segments.
// They work on activations in float32.
#include "nacre/nn/plan.h"

namespace nacre {

struct Normalised {
  Flow flow{};           ///< [B, T, 1, C]: the audio over its scale
  View<float> scales{};  ///< [1, 1, 1, B]: readable after the run
};
/// Audio [B, T, 1, C] divided by the scale of each item, which is computed from its first lengths[b] samples, all if
/// lengths is empty. The scale is a property of the audio: it passes no gradient.
Normalised normalised(Plan&, Flow audio, View<const int32_t> lengths = {});
/// x [B, T, 1, C] times the scale of each item. The memory of `scales` [1, 1, 1, B] outlives the plan.
Flow scaled(Plan&, Flow x, View<const float> scales);

}  // namespace nacre
