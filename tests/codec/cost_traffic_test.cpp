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

/// A step. `judged`: what discriminators add to it is compared, and not the step.
struct Case {
  CodecConfig codec;
  LossConfig loss{};
  DiscriminatorConfig discriminator{};
  Storage storage = Storage::float32;
  Precision precision = Precision::fp32;
  int64_t batch = 1, samples = 1600;
  bool judged = false;
  Arithmetic arithmetic() const {
    return storage == Storage::bfloat16   ? Arithmetic::bf16
           : precision == Precision::tf32 ? Arithmetic::tf32
                                          : Arithmetic::fp32;
  }
};

bool begins(const std::string& name, std::initializer_list<const char*> with) {
  return std::any_of(with.begin(), with.end(), [&](const char* w) { return name.rfind(w, 0) == 0; });
}

/// Zeroing counts as that of layers, some of which zero as well. Rows of parts of activations are copies and zeroing in
/// both directions, all of which count as backward.
Amounts of_table(const Case& c) {
  Amounts all{};
  for (const CostRow& r : step_cost(c.codec, c.loss, c.batch, c.samples, c.arithmetic(), c.discriminator)) {
    const Group g = r.name == "sums"                                                               ? sums
                    : r.name == "batch"                                                            ? batch_copy
                    : begins(r.name, {"optimizer."}) && r.name.find(".zeros") == std::string::npos ? optimizer
                    : begins(r.name, {"loss."})                                                    ? losses
                    : begins(r.name, {"quantizer.long.reduce", "quantizer.long.expand", "quantizer.synth",
                                      "quantizer.sum", "quantizer.copies"})
                        ? layers_backward
                    : begins(r.name, {"quantizer"}) ? quantizer
                                                    : layers_backward;
    all[g] += of(r.backward);
    all[g == layers_backward && !c.judged && r.name != "rows" ? layers_forward : g] += of(r.forward);
  }
  return all;
}

/// By the names of kernels. Those of layers count as backward. The kernels of spectra are those of losses, unless the
/// difference to a step without discriminators is compared: then they are those of discriminators. `with_moves`: copies
/// and zeroing count.
Amounts of_device(bool judged, bool with_moves = true) {
  Amounts all{};
  for (const auto& [name, t] : emulation::traffic()) {
    const bool moves = name == "memset" || name == "copy" || begins(name, {"copy to "});
    if (moves && !with_moves) continue;
    const Group g = begins(name, {"weight_norm_adamw"})                                     ? optimizer
                    : name == "gradient_sums"                                               ? sums
                    : begins(name, {"rvq", "vq", "rest", "split_stages", "copy_columns"})   ? quantizer
                    : begins(name, {"balancer", "waveform_loss", "adversarial", "feature"}) ? losses
                    : begins(name, {"spectral", "overlap_add"}) && !judged                  ? losses
                                                                                            : layers_backward;
    all[g] += {static_cast<double>(t.read + t.written), moves ? 0.0 : static_cast<double>(t.launches)};
  }
  return all;
}

struct Compared {
  Amounts table{}, device{};
};
Compared compare(const Case& c) {
  Context ctx({.device = {Device::cuda, 0}, .precision = c.precision});
  emulation::count_traffic(true);
  TrainingStep step(ctx, c.codec, c.loss, {.learning_rate = 1e-3}, c.batch, c.samples, 3, c.storage, nullptr,
                    c.discriminator);
  std::mt19937_64 rng(17);
  std::normal_distribution<float> noise(0, 0.1f);
  std::vector<float> audio(static_cast<size_t>(c.batch * step.samples() * c.codec.audio_channels));
  for (float& x : audio) x = noise(rng);
  const std::vector<int32_t> lengths(static_cast<size_t>(c.batch), static_cast<int32_t>(step.samples()));
  const auto counted = [&](const auto& run, bool with_moves = true) {
    ctx.synchronize();
    emulation::reset_traffic();
    run();
    ctx.synchronize();
    return of_device(c.judged, with_moves);
  };
  const Amount loaded = counted([&] { step.load(audio, lengths); })[layers_backward];
  // Forward passes and losses alone: which bytes of the layers are those of their forward passes. What measure() copies
  // is the state that it restores. Losses against discriminators run these backward, too, so their layers are compared
  // as a whole.
  const Amount forward = c.judged ? Amount{} : counted([&] { step.measure(); }, false)[layers_backward];
  Compared found{.table = of_table(c), .device = counted([&] { step.run(); })};
  emulation::count_traffic(false);
  found.device[batch_copy] = loaded;
  found.device[layers_forward] = forward;
  found.device[layers_backward] += {-forward.bytes, -forward.launches};
  return found;
}

/// The table counts tensors. It leaves out numbers per item, window or block: tables of windows and bands, codes that
/// are sorted, sums before they are results. These are less than a thousandth of a step, but can be more than 2 % of a
/// group that is small itself.
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

/// Compares what the discriminators of a step add to it: their layers, losses, sums and updates.
void check_judged(Case c) {
  c.judged = true, c.loss.adversarial = 1;
  Compared all = compare(c);
  c.loss.adversarial = 0;
  const Compared alone = compare(c);
  for (size_t i = 0; i < groups; ++i) {
    all.table[i] += {-alone.table[i].bytes, -alone.table[i].launches};
    all.device[i] += {-alone.device[i].bytes, -alone.device[i].launches};
  }
  check(all);
}

CodecConfig dac() {
  CodecConfig c = CodecConfig::named("dac-16k");
  c.encoder_dim = 16, c.decoder_dim = 256, c.latent_dim = 256;
  return c;
}
CodecConfig encodec() {
  CodecConfig c = CodecConfig::named("encodec-24k");
  c.encoder_dim = 8, c.latent_dim = 32, c.codebook_size = 256, c.n_codebooks = 8;
  return c;
}
/// Narrow layers and few codes.
CodecConfig small(const char* preset) {
  CodecConfig c = CodecConfig::named(preset);
  c.encoder_dim = 8, c.decoder_dim = 64, c.latent_dim = 16, c.codebook_size = 128, c.n_codebooks = 4;
  return c;
}
/// What discriminators judge: little beside them.
CodecConfig least() {
  CodecConfig c = small("speech-16k-small");
  c.encoder_dim = 4, c.decoder_dim = 32, c.n_codebooks = 2;
  return c;
}
/// Losses with windows that are short beside these signals, because the table leaves out the windows' own tables.
LossConfig short_windows(MelKind kind = MelKind::log) {
  return {.windows = {64, 128}, .mels = {8, 16}, .mel_kind = kind};
}
CodecConfig two_rates() {
  CodecConfig c = small("ldcodec-16k");
  c.latent_dim = 32, c.long_codebooks = 2;
  return c;
}
DiscriminatorConfig bands_and_periods() {
  return {.periods = {2, 3},
          .period_channels = {8, 16, 32, 64, 64},
          .windows = {256},
          .window_channels = 8,
          .window_full_layers = 2};
}
/// Only these: the defaults have periods and windows.
DiscriminatorConfig none() { return {.periods = {}, .windows = {}, .level = false, .loss = AdversarialKind::hinge}; }

}  // namespace

// Sizes: the channels of the presets divided by four or more and fewer samples, so that a step takes seconds. Both make
// what the table leaves out larger beside the rest: the tables of windows and bands, edges, and numbers per row or
// item.
TEST_CASE("bytes and launches of a step of speech-16k-small are those of its table", "[cost][step]") {
  check(compare({.codec = CodecConfig::named("speech-16k-small"), .samples = 2000}));
}

TEST_CASE("bytes and launches of a step of DAC are those of its table", "[cost][step]") {
  check(compare({.codec = dac(), .samples = 3200}));
}

TEST_CASE("bytes and launches of a step of DAC in bf16 are those of its table", "[cost][step]") {
  check(compare({.codec = dac(), .storage = Storage::bfloat16, .samples = 3200}));
}

TEST_CASE("bytes and launches of a step of DAC in tf32 are those of its table", "[cost][step]") {
  CodecConfig c = dac();
  c.encoder_dim = 8, c.decoder_dim = 128, c.n_codebooks = 4;
  check(compare({.codec = c, .precision = Precision::tf32}));
}

TEST_CASE("bytes and launches of a step of EnCodec are those of its table", "[cost][step]") {
  check(compare({.codec = encodec(), .samples = 3200}));
}

TEST_CASE("bytes and launches of a step of EnCodec in bf16 are those of its table", "[cost][step]") {
  check(compare({.codec = small("encodec-24k"), .loss = short_windows(), .storage = Storage::bfloat16}));
}

// Two channels, each item at its own level, outputs normalised over the item.
TEST_CASE("bytes and launches of a step of EnCodec at 48 kHz are those of its table", "[cost][step]") {
  CodecConfig c = small("encodec-48k");
  c.segment = c.segment_stride = 1600;
  check(compare({.codec = c, .loss = short_windows(MelKind::power)}));
}

TEST_CASE("bytes and launches of a step of SoundStream are those of its table", "[cost][step]") {
  check(compare({.codec = small("soundstream-24k"), .loss = short_windows(MelKind::norms)}));
}

// Activations behind the units' convolutions, reflected padding, and a label that conditions the bottleneck.
TEST_CASE("bytes and launches of a step of a SoundStream that denoises are those of its table", "[cost][step]") {
  CodecConfig c = small("soundstream-16k");
  c.denoise = Denoise::encoder;
  check(compare({.codec = c, .loss = short_windows(MelKind::norms)}));
  c.denoise = Denoise::decoder;
  check(compare({.codec = c, .loss = short_windows(), .storage = Storage::bfloat16}));
}

TEST_CASE("bytes and launches of a step of LRAC's baseline are those of its table", "[cost][step]") {
  CodecConfig c = CodecConfig::named("lrac-24k");
  c.codebook_size = 128;
  check(compare({.codec = c, .loss = short_windows(), .samples = 2400}));
}

// Two rates, groups, and a loss that weighs transients.
TEST_CASE("bytes and launches of a step of LDCodec are those of its table", "[cost][step]") {
  LossConfig loss = short_windows();
  loss.mel_excess = 1.5, loss.mel_transient = 1;
  check(compare({.codec = two_rates(), .loss = loss, .samples = 2560}));
}

TEST_CASE("bytes and launches of a step of LDCodec in bf16 are those of its table", "[cost][step]") {
  check(compare({.codec = two_rates(), .loss = short_windows(), .storage = Storage::bfloat16, .samples = 2560}));
}

TEST_CASE("bytes and launches of discriminators of periods and bands are those of their table", "[cost][step]") {
  for (const Storage storage : {Storage::float32, Storage::bfloat16})
    check_judged({.codec = least(),
                  .loss = short_windows(),
                  .discriminator = bands_and_periods(),
                  .storage = storage,
                  .samples = 1200});
}

TEST_CASE("bytes and launches of discriminators of spectra are those of their table", "[cost][step]") {
  LossConfig loss = short_windows();
  loss.feature_relative = true;
  DiscriminatorConfig judges = none();
  judges.stft_windows = {256}, judges.stft_channels = 8;
  for (const Storage storage : {Storage::float32, Storage::bfloat16})
    check_judged({.codec = least(), .loss = loss, .discriminator = judges, .storage = storage, .samples = 1200});
}

TEST_CASE("bytes and launches of SoundStream's discriminators are those of their table", "[cost][step]") {
  LossConfig loss = short_windows();
  loss.balanced = false;
  DiscriminatorConfig judges = none();
  judges.residual_windows = {128}, judges.residual_channels = 8;
  for (const Storage storage : {Storage::float32, Storage::bfloat16})
    check_judged({.codec = least(), .loss = loss, .discriminator = judges, .storage = storage, .samples = 1200});
  judges = none();
  judges.scales = {4};
  check_judged({.codec = least(), .loss = loss, .discriminator = judges, .samples = 400});
}
