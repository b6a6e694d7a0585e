// The number of launches of a captured training step. Each takes about a microsecond of the device, whatever it does.
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/training/training_step.h"
#if defined(NACRE_WITH_CUDA)
#include "runtime/runtime.h"

using namespace nacre;

namespace {

struct Launches {
  int64_t all, sums, column_sums;
};
/// Those of a step's graph. The graph is recorded but not run, so a whole model takes no time on the emulated device.
Launches launches(const Device device, const CodecConfig& config, Storage storage) {
  Context ctx({.device = device, .threads = 2});
  TrainingStep step(ctx, config, {}, {.learning_rate = 1e-3}, 2, 4000, 3, storage);
  step.set_capture(false);
  Launches n{};
  const Graph graph = ctx.capture([&] {
    step.run();
    const cuda::Runtime& runtime = cuda::runtime(ctx);
    n = {runtime.launches(), runtime.launches("gradient_sums"), runtime.launches("conv1d_column_sums_packs")};
  });
  return n;
}

}  // namespace

TEST_CASE("a step of DAC launches at most 300 kernels", "[launches][step]") {
  for (const Device device : test::devices()) {
    if (device.kind != Device::cuda) continue;
    const Launches n = launches(device, CodecConfig::named("dac-16k"), Storage::bfloat16);
    CHECK(n.all <= 300);
    CHECK(n.sums <= 8);         // of about 150 sums
    CHECK(n.column_sums == 0);  // weight gradients sum the biases
  }
}
#endif
