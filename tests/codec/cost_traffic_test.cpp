// The bytes and launches that step_cost() prints, against those of a step on the emulated device, which counts every
// access of every kernel (kernels/runtime/emulated/traffic.h). Lane "emulated": other builds do not watch accesses.
#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "harness.h"
#include "nacre/codec/cost.h"
#include "nacre/training/training_step.h"
#include "runtime/emulated/traffic.h"

using namespace nacre;

namespace {

struct Amount {
  double bytes = 0, launches = 0;
  Amount& operator+=(const Amount& a) {
    bytes += a.bytes, launches += a.launches;
    return *this;
  }
};
Amount of(const Work& w) { return {w.bytes, w.launches}; }

enum Group : uint8_t { layers_forward, layers_backward, sums, losses, quantizer, optimizer, batch_copy, groups };
constexpr std::array<const char*, groups> names{"layers, forward", "layers, backward", "sums",     "losses",
                                                "quantizer",       "optimizer",        "the batch"};
using Amounts = std::array<Amount, groups>;

bool begins(const std::string& name, std::initializer_list<const char*> with) {
  return std::any_of(with.begin(), with.end(), [&](const char* w) { return name.rfind(w, 0) == 0; });
}

Amounts of_table(const std::vector<CostRow>& rows) {
  Amounts all{};
  for (const CostRow& r : rows) {
    const Group g = r.name == "sums"                 ? sums
                    : r.name == "batch"              ? batch_copy
                    : begins(r.name, {"optimizer."}) ? optimizer
                    : begins(r.name, {"loss."})      ? losses
                    : begins(r.name, {"quantizer"})  ? quantizer
                                                     : layers_backward;
    all[g] += of(r.backward);
    all[g == layers_backward ? layers_forward : g] += of(r.forward);
  }
  return all;
}

/// By the names of kernels. Those of layers count as backward.
Amounts of_device() {
  Amounts all{};
  for (const auto& [name, t] : emulation::traffic()) {
    const bool copies = begins(name, {"copy"}), zeroes = name == "memset";
    const Group g = copies                                                                   ? batch_copy
                    : zeroes || begins(name, {"weight_norm_adamw"})                          ? optimizer
                    : name == "gradient_sums"                                                ? sums
                    : begins(name, {"rvq", "vq"})                                            ? quantizer
                    : begins(name, {"balancer", "spectral", "overlap_add", "waveform_loss"}) ? losses
                                                                                             : layers_backward;
    all[g] += {static_cast<double>(t.read + t.written), copies || zeroes ? 0.0 : static_cast<double>(t.launches)};
  }
  return all;
}

struct Compared {
  Amounts table{}, device{};
};
Compared compare(const CodecConfig& c, Storage storage, int64_t batch, int64_t samples) {
  const LossConfig loss;
  Context ctx({.device = {Device::cuda, 0}});
  emulation::count_traffic(true);
  TrainingStep step(ctx, c, loss, {.learning_rate = 1e-3}, batch, samples, 3, storage);
  std::mt19937_64 rng(17);
  std::normal_distribution<float> noise(0, 0.1f);
  std::vector<float> audio(static_cast<size_t>(batch * step.samples() * c.audio_channels));
  for (float& x : audio) x = noise(rng);
  const std::vector<int32_t> lengths(static_cast<size_t>(batch), static_cast<int32_t>(step.samples()));
  step.load(audio, lengths);
  // Forward passes and losses alone: which bytes of the layers are those of their forward passes.
  ctx.synchronize();
  emulation::reset_traffic();
  step.measure();
  ctx.synchronize();
  const Amount forward = of_device()[layers_backward];
  emulation::reset_traffic();
  step.load(audio, lengths);
  step.run();
  ctx.synchronize();
  Compared found{.table = of_table(step_cost(c, loss, batch, samples,
                                             storage == Storage::bfloat16 ? Arithmetic::bf16 : Arithmetic::fp32)),
                 .device = of_device()};
  emulation::count_traffic(false);
  found.device[layers_forward] = forward;
  found.device[layers_backward] += {-forward.bytes, -forward.launches};
  return found;
}

/// The table counts tensors. It leaves out numbers per item, window or block: tables of windows and bands, codes that are
/// sorted, sums before they are results. These are less than a thousandth of a step, but can be more than 2 % of a group
/// that is small itself.
void check(const Compared& c) {
  Amount table, device;
  std::string lines;
  for (size_t i = 0; i < groups; ++i) {
    table += c.table[i], device += c.device[i];
    char line[200];
    std::snprintf(line, sizeof line, "%-18s %12.0f bytes, device %12.0f (%+.1f %%); %4.0f launches, device %4.0f\n",
                  names[i], c.table[i].bytes, c.device[i].bytes, 100 * (c.table[i].bytes / c.device[i].bytes - 1),
                  c.table[i].launches, c.device[i].launches);
    lines += line;
  }
  INFO(lines);
  CHECK(std::fabs(table.bytes - device.bytes) <= 0.02 * device.bytes);
  CHECK(std::fabs(table.launches - device.launches) <= 0.02 * device.launches);
  for (size_t i = 0; i < groups; ++i) {
    INFO(names[i]);
    CHECK(std::fabs(c.table[i].bytes - c.device[i].bytes) <= std::max(0.02 * c.device[i].bytes, 0.001 * device.bytes));
  }
}

}  // namespace

// Sizes: the channels of the presets divided by four and fewer samples, so that a step takes seconds. Both make what the
// table leaves out larger beside the rest: the tables of windows and bands, edges, and numbers per row or item.
TEST_CASE("bytes and launches of a step of speech-16k-small are those of its table", "[cost][step]") {
  check(compare(CodecConfig::named("speech-16k-small"), Storage::float32, 1, 2000));
}

TEST_CASE("bytes and launches of a step of DAC are those of its table", "[cost][step]") {
  CodecConfig c = CodecConfig::named("dac-16k");
  c.encoder_dim = 16, c.decoder_dim = 256, c.latent_dim = 256;
  check(compare(c, Storage::float32, 1, 3200));
}

TEST_CASE("bytes and launches of a step of DAC in bf16 are those of its table", "[cost][step]") {
  CodecConfig c = CodecConfig::named("dac-16k");
  c.encoder_dim = 16, c.decoder_dim = 256, c.latent_dim = 256;
  check(compare(c, Storage::bfloat16, 1, 3200));
}

TEST_CASE("bytes and launches of a step of EnCodec are those of its table", "[cost][step]") {
  CodecConfig c = CodecConfig::named("encodec-24k");
  c.encoder_dim = 8, c.latent_dim = 32, c.codebook_size = 256, c.n_codebooks = 8;
  check(compare(c, Storage::float32, 1, 3200));
}
