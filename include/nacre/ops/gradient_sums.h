#pragma once
#include "nacre/context.h"
// The last stage of the gradients of parameters. On CUDA a kernel that sums over the rows of a batch leaves one part
// per block, and a second kernel adds the parts. Each of these second kernels takes a few microseconds and reads
// little. An op that is given memory for its parts (the field `parts`, of the shape *_parts) only notes what is to be
// added; finish_gradient_sums() then adds the parts of all such calls at once.
//
//   parts      belongs to one call: it must keep its address and content until finish_gradient_sums()
//   writes     the gradients of the noted calls, in the order of the calls where they are the same gradient
//   order      the parts of one sum are added in double, in an order fixed by their number. The bits are those of the
//              same ops without `parts`
//   CPU        *_parts is empty and no op notes anything: gradients are complete when the op returns
//   cost       4 bytes per part and element; one launch per 60 sums
namespace nacre {
/// Queues the sums that ops of this context have noted. Does nothing if there are none.
void finish_gradient_sums(Context&);
/// Drops them: after an error between the ops and finish_gradient_sums(), before the parts are freed.
void forget_gradient_sums(Context&) noexcept;
}  // namespace nacre
