#pragma once
// The tiled rungs of conv1d. Each function says whether it took the work; it declines geometries and addresses that the
// tiles do not fit.
#include "nacre/ops/conv1d.h"

namespace nacre::cuda::tile {

template <class T>
bool forward(Context&, const Conv1dForward<T>&) { return false; }

}  // namespace nacre::cuda::tile
