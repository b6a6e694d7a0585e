#include "nacre/ops/waveform_loss.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  const Shape s = suite.cuda() ? Shape{.batch = suite.least(72, 2), .time = suite.least(16896, 300)}
                               : Shape{.batch = suite.least(16, 2), .time = suite.least(16000, 300)};
  for (WaveformNorm norm : {WaveformNorm::l1, WaveformNorm::l2})
    suite.add({.name = std::string("waveform_loss/") + (norm == WaveformNorm::l1 ? "l1/" : "l2/") + label(s),
               .bytes = 12 * s.elements(),
               .flops = 4 * s.elements(),
               .parameters = {{"op", "waveform_loss"},
                              {"direction", norm == WaveformNorm::l1 ? "l1" : "l2"},
                              {"type", "fp32"},
                              {"batch", s.batch},
                              {"time", s.time}}},
              [=](Data& data) -> Run {
                const View<float> estimate = data.random(s), target = data.random(s), gradient = data.random(s);
                const View<float> loss = data.random({}), scratch = data.random(waveform_loss_scratch(data.ctx, s));
                return [=](Context& ctx) {
                  waveform_loss(ctx, {.estimate = estimate,
                                      .target = target,
                                      .loss = loss,
                                      .gradient = gradient,
                                      .scratch = scratch,
                                      .norm = norm});
                };
              });
});

}  // namespace
}  // namespace nacre::bench
