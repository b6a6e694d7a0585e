#include "nacre/codec/cost.h"

#include "harness.h"
#include "nacre/codec/codec.h"

using namespace nacre;

namespace {

CostRow total(const std::vector<CostRow>& rows, const std::string& prefix) {
  CostRow sum{.name = prefix};
  for (const CostRow& r : rows) {
    if (r.name.rfind(prefix, 0) != 0) continue;
    sum.forward.products += r.forward.products, sum.backward.products += r.backward.products;
    sum.forward.bytes += r.forward.bytes, sum.backward.bytes += r.backward.bytes;
  }
  return sum;
}

}  // namespace

TEST_CASE("the cost of DAC at 44.1 kHz is what its description says", "[cost]") {
  const CodecConfig c = CodecConfig::named("dac-44k");
  const double samples = 44032, batch = 1;  // 86 frames of 512
  const auto rows = step_cost(c, {}, 1, 44032, Arithmetic::bf16);
  // Published: 69.3 and 30.5 GMAC per second of audio for decoding and encoding.
  const double seconds = batch * samples / 44100;
  CHECK(total(rows, "decoder.").forward.products / 2e9 / seconds == Approx(69.3).epsilon(0.01));
  CHECK(total(rows, "encoder.").forward.products / 2e9 / seconds == Approx(30.5).epsilon(0.02));
  CHECK(total(rows, "encoder.").backward.products ==
        Approx(2 * total(rows, "encoder.").forward.products).epsilon(0.02));
}

TEST_CASE("every convolution of a model has its row", "[cost]") {
  const CodecConfig c = CodecConfig::named("speech-16k");
  Context ctx({.threads = 1});
  Codec codec(ctx, c);
  const auto rows = step_cost(c, {}, 2, 16000, Arithmetic::fp32);
  for (const Parameter& p : codec.parameters().all())
    for (const std::string& name : p.names) {
      const size_t end = name.rfind(".weight_v");
      if (end == std::string::npos || name.rfind("quantizer", 0) == 0) continue;
      const auto row =
          std::find_if(rows.begin(), rows.end(), [&](const CostRow& r) { return r.name == name.substr(0, end); });
      INFO(name);
      REQUIRE(row != rows.end());
      CHECK(row->forward.products > 0);
    }
}

TEST_CASE("the cost of two channels: judged and compared as two items", "[cost]") {
  CodecConfig stereo = CodecConfig::named("encodec-48k"), mono = stereo;
  mono.audio_channels = 1, mono.segment = 0, mono.segment_stride = 0, mono.segment_scale = false;
  LossConfig loss;
  loss.adversarial = 1;
  const DiscriminatorConfig judges{.periods = {2}, .period_channels = {4}, .windows = {1024}, .window_channels = 4};
  const auto two = step_cost(stereo, loss, 1, 48000, Arithmetic::fp32, judges),
             one = step_cost(mono, loss, 2, 48000, Arithmetic::fp32, judges);
  for (const char* rows : {"discriminators.", "loss."}) {
    INFO(rows);
    CHECK(total(two, rows).forward.products == total(one, rows).forward.products);
    CHECK(total(two, rows).backward.products == total(one, rows).backward.products);
    CHECK(total(two, rows).forward.bytes == total(one, rows).forward.bytes);
    CHECK(total(two, rows).backward.bytes == total(one, rows).backward.bytes);
    CHECK(total(two, rows).forward.bytes > 0);
  }
  // 8 bytes per sample and pass, but the recorded audio has no gradient.
  CHECK(total(two, "audio.channels").forward.bytes == 2 * 8 * 2 * 48000);
  CHECK(total(two, "audio.channels").backward.bytes == 8 * 2 * 48000);
  CHECK(total(two, "audio.normalised").forward.bytes == 12 * 2 * 48000);
  CHECK(total(two, "audio.normalised").backward.bytes == 0);
  CHECK(total(two, "audio.scaled").backward.bytes == 8 * 2 * 48000);
  CHECK(total(one, "audio.").forward.bytes == 0);
}

TEST_CASE("a floor is bound by memory or by arithmetic", "[cost]") {
  const DeviceCeilings& d = device_ceilings("h200");
  CHECK(floor_seconds({.bytes = 4.3e12}, d, Arithmetic::fp32) == Approx(1));
  CHECK(floor_seconds({.products = 790e12, .floats = 30e12, .bytes = 2e12}, d, Arithmetic::bf16) == Approx(1));
  CHECK(floor_seconds({.floats = 60e12}, d, Arithmetic::bf16) == Approx(1));
  CHECK(floor_seconds({.products = 30e12, .floats = 30e12}, d, Arithmetic::fp32) == Approx(1));
  CHECK_THROWS_WITH(device_ceilings("h300"), Catch::Contains("h200, h100"));
  CHECK_THROWS_WITH(arithmetic("int8"), Catch::Contains("fp32, tf32 or bf16"));
}

TEST_CASE("every pass of a step has its row", "[cost]") {
  CodecConfig c = CodecConfig::named("speech-16k-small");
  const int64_t samples = 3200, batch = 2;
  const auto rows = step_cost(c, {}, batch, samples, Arithmetic::fp32);
  const auto row = [&](const std::string& name) {
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const CostRow& r) { return r.name == name; });
    INFO(name);
    REQUIRE(found != rows.end());
    return *found;
  };
  // Samples as floats: written to the device, read there, written again.
  CHECK(row("batch").forward.bytes == 12 * 3200 * 2);
  CHECK(row("batch").forward.launches == 0);
  // A value, its moments and its average are read and written, the gradient is read; weights also have effective
  // values. A row of a weight has a description of 24 bytes, and sums of 24.
  double weights = 0, lines = 0, trained = 0;
  Context ctx({.threads = 1});
  Codec codec(ctx, c);
  for (const Weight& w : codec.parameters().weights()) {
    weights += static_cast<double>(w.shape.elements());
    lines += static_cast<double>(w.shape.batch);
  }
  for (const Parameter& p : codec.parameters().all())
    if (p.trained) trained += static_cast<double>(p.shape.elements());
  CHECK(row("optimizer.update").backward.bytes == 36 * trained + 4 * weights + (2 * 24 + 24) * lines);
  CHECK(row("optimizer.update").backward.launches == 3);
  CHECK(row("optimizer.norms").backward.bytes == 8 * weights + 4 * (trained - weights) + (24 + 2 * 24) * lines);
  CHECK(row("sums").backward.launches >= 1);
  // Without averages, an optimizer reads and writes one value less.
  const auto plain = step_cost(c, {}, batch, samples, Arithmetic::fp32, {}, false);
  CHECK(row("optimizer.update").backward.bytes - total(plain, "optimizer.update").backward.bytes == 8 * trained);
  // The tanh at the waveform reads and writes it. Its backward pass reads the output and two gradients pass.
  const auto end = std::find_if(rows.begin(), rows.end(), [](const CostRow& r) {
    return r.forward.products == 0 && r.name.rfind("decoder.", 0) == 0;
  });
  REQUIRE(end != rows.end());
  CHECK(end->forward.bytes == 8 * 3200 * 2);
  CHECK(end->backward.bytes == 12 * 3200 * 2);
}
