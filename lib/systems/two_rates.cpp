// The quantizer with two rates (nacre/systems/quantizer.h): what lies between its cascades.
#include "systems/two_rates.h"

#include <algorithm>
#include <vector>

#include "nacre/ops/add.h"
#include "nacre/ops/two_rates.h"
#include "nacre/systems/quantizer.h"
#include "nn/streaming.h"
#include "nn/sum.h"

namespace nacre {
Flow plan_rest(Plan& p, Flow z, Flow predicted, View<const int32_t> stages) {
  const Step s = p.step("quantizer.rest");
  const auto whole = s.reads<float>(z), part = s.reads<float>(predicted);
  const auto out = s.makes<float>(z.shape);
  const Work work{.bytes = 12 * static_cast<double>(z.shape.elements()), .launches = 1};
  s.costs({.forward = work, .input_gradient = work});
  s.forward([=](Context& c) { rest(c, {.z = whole.value, .p = part.value, .y = out.value}); });
  s.backward([=](Context& c) {
    rest_backward(
        c,
        {.dy = out.grad, .stages = stages, .dz = whole.grad, .dp = part.grad, .add_dz = whole.add, .add_dp = part.add});
  });
  return out.flow;
}

/// That of their weights, once these have memory.
Storage Quantizer::storage_of_layers() const { return reduce_->weight().value16 ? Storage::bfloat16 : surveyed_; }
Flow Quantizer::plan_reduced(Plan& p, Flow z) const {
  return stored_as(p, reduce_->plan(p, stored_as(p, z, storage_of_layers())), Storage::float32);
}
Flow Quantizer::plan_expanded(Plan& p, Flow quantised) const {
  return stored_as(p, expand_->plan(p, stored_as(p, quantised, storage_of_layers())), Storage::float32);
}
Flow Quantizer::plan_synthesis(Plan& p, Flow sum) const {
  return synthesiser_ ? synthesiser_->plan(p, stored_as(p, sum, storage_of_layers())) : sum;
}

Quantized Quantizer::plan_two_rates(Plan& p, Flow z, const QuantizerUse& use) const {
  const int64_t positions = config_.positions_per_frame(), batch = z.shape.batch, frames = z.shape.time / positions;
  if (frames * positions != z.shape.time)
    throw Error(ErrorKind::usage, "quantizer: " + std::to_string(z.shape.time) + " positions, expected a multiple of " +
                                      std::to_string(positions));
  const bool training = p.training();
  // Codebooks are used from the first on, so the long-term ones come first: of_short is 0 until all of them are used.
  const int64_t books = training || use.codebooks == 0 ? config_.n_codebooks : use.codebooks,
                of_long = std::min(books, long_.stages), of_short = books - of_long;
  // Frames of a stream begin at whole frames, so what is late must be late by whole frames.
  if (p.streaming()) z = delayed(p, "quantizer.latent", z, (p.lag(z) + positions - 1) / positions * positions);

  Quantized q;
  Numbers at_long, at_short;
  if (training) {
    const Shape per_item{.channels = batch};
    q.stages = p.persistent<int32_t>(per_item), q.frames = p.persistent<int32_t>(per_item);
    // The caller sets q.stages and q.frames once per batch. The numbers of each cascade follow from them on the device,
    // so a captured graph can be replayed with others.
    at_long = {.stages = p.persistent<int32_t>(per_item), .frames = q.frames};
    at_short = {.stages = p.persistent<int32_t>(per_item), .frames = p.persistent<int32_t>(per_item)};
    const Step s = p.step("quantizer.stages");
    s.costs({.forward = {.launches = 1}});
    s.forward([=, most = long_.stages](Context& c) {
      split_stages(c, {.stages = q.stages,
                       .frames = q.frames,
                       .long_stages = at_long.stages,
                       .short_stages = at_short.stages,
                       .short_frames = at_short.frames,
                       .long_codebooks = most,
                       .positions = positions});
    });
  }
  // A beam searches the short cascade alone: only there is the error that it makes smaller that of the latent.
  QuantizerUse greedy = use, other_codes = use;
  greedy.beam = 1, greedy.codes_only = false;  // the short cascade takes what the long one leaves
  other_codes.seed = use.seed ^ 0x9E3779B97F4A7C15ull;
  const Quantized long_term = plan_cascade(p, "quantizer.long", long_, plan_reduced(p, z), of_long, greedy, &at_long);
  q.late = long_term.flow;
  if (of_short == 0) {
    q.codes = long_term.codes;
    q.flow = use.codes_only ? q.late : plan_synthesis(p, plan_expanded(p, long_term.flow));
    return q;
  }
  // `predicted` is the long-term part of the latent. plan_rest() does not detach it, so it learns from the short
  // cascade.
  const Flow predicted = plan_expanded(p, long_term.flow);
  const Quantized short_term =
      plan_cascade(p, "quantizer", all_, plan_rest(p, z, predicted, at_short.stages), of_short, other_codes, &at_short);
  {
    const int64_t columns = of_short * positions;
    q.codes = p.persistent<int32_t>({.batch = batch, .time = frames, .channels = of_long + columns});
    // The sum of both cascades' losses.
    if (training) q.losses = p.persistent<float>({.channels = 2});
    const Step s = p.step("quantizer.codes");
    // Codes of the positions of a frame lie behind one another.
    const View<const int32_t> by_frame(short_term.codes.data, {.batch = batch, .time = frames, .channels = columns});
    s.costs(
        {.forward = {.bytes = 8 * static_cast<double>(q.codes.shape.elements()), .launches = training ? 3.0 : 2.0}});
    s.forward([=](Context& c) {
      copy_columns(c, {.x = long_term.codes, .y = q.codes, .columns = of_long});
      copy_columns(c, {.x = by_frame, .y = q.codes, .to = of_long, .columns = columns});
      if (training) add<float>(c, {.a = long_term.losses, .b = short_term.losses, .y = q.losses});
    });
  }
  q.flow = use.codes_only ? q.late : plan_synthesis(p, sum_of(p, "quantizer.sum", predicted, short_term.flow));
  // The order of the backward passes: behind a pass, the memory of later steps may have other contents.
  if (short_term.update)
    q.update = [of_short_codes = short_term.update, of_long_codes = long_term.update](Context& c, double decay) {
      of_short_codes(c, decay);
      of_long_codes(c, decay);
    };
  return q;
}

}  // namespace nacre
