#pragma once
// A step of a quantizer with two rates.
#include "nacre/nn/plan.h"

namespace nacre {

/// z - p, both float. Items whose number of `stages` is 0 pass no gradient. Without training, `stages` is not read.
Flow plan_rest(Plan&, Flow z, Flow p, View<const int32_t> stages);

}  // namespace nacre
