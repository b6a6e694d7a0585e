// Whole models: a training step, encoding and decoding, on the shapes of the trainer and the command line. The peers
// are bench/peers/codec_step.py (CPU) and bench/peers/op_peers.py.
#include <memory>

#include "harness.h"
#include "nacre/codec/cost.h"
#include "nacre/codec/streaming.h"
#include "nacre/training/training_step.h"

namespace nacre::bench {
namespace {

std::vector<float> noise(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  uint32_t state = 1;
  for (float& v : x) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-32f;
  }
  return x;
}

struct Model {
  std::string name;
  CodecConfig config;
};
/// The model of that name. With --small, its widths are divided by ten and it has two strides.
Model model(const Suite& suite, const std::string& name) {
  Model m{name, CodecConfig::named(name)};
  if (!suite.small()) return m;
  m.config.encoder_dim = 4, m.config.decoder_dim = 16, m.config.latent_dim = 8;
  m.config.encoder_rates = {2, 4}, m.config.decoder_rates = {4, 2};
  m.config.n_codebooks = 2, m.config.codebook_size = 16, m.config.codebooks_drawn = {};
  return m;
}
LossConfig losses(const Suite& suite) {
  LossConfig c;
  if (suite.small()) c.windows = {64}, c.mels = {10};
  return c;
}
std::vector<Parameter> parameters(const char* direction, const std::string& type, const std::string& name,
                                  int64_t batch, int64_t samples, bool captured) {
  return {{"op", "codec"},      {"direction", direction},       {"type", type}, {"config", name}, {"batch", batch},
          {"samples", samples}, {"captured", int64_t{captured}}};
}
/// Bytes that the layers of a step must read and write, each tensor counted once per layer (nacre/codec/cost.h).
int64_t step_bytes(const CodecConfig& c, const LossConfig& losses, int64_t batch, int64_t samples,
                   const std::string& type) {
  double bytes = 0;
  for (const CostRow& row : step_cost(c, losses, batch, samples, arithmetic(type)))
    bytes += row.forward.bytes + row.backward.bytes;
  return static_cast<int64_t>(bytes);
}

void add_step(Suite& suite, const std::string& name, const std::string& type, int64_t batch, int64_t samples,
              bool captured) {
  const Model m = model(suite, name);
  batch = suite.least(batch, 2), samples = suite.least(samples, 160);
  const int64_t frames = batch * samples / m.config.hop();
  // The backward pass costs twice the products of the forward pass.
  const int64_t flops = 3 * 2 * (m.config.encoder_macs(frames) + m.config.decoder_macs(frames));
  const std::string how = !suite.cuda() ? "" : captured ? "/captured" : "/eager";
  suite.add(
      {.name = "codec_step/" + name + "/" + type + "/" + std::to_string(batch) + "x" + std::to_string(samples) + how,
       .bytes = step_bytes(m.config, losses(suite), batch, samples, type),
       .flops = flops,
       .arithmetic = type,
       .parameters = parameters("step", type, suite.small() ? "small" : name, batch, samples, captured),
       .audio_seconds = static_cast<double>(batch * samples) / static_cast<double>(m.config.sample_rate),
       .eager = true},  // the step holds its own graph
      [=, losses = losses(suite), rows = suite.least(2000, 60)](Data& data) -> Run {
        const Storage storage = type == "bf16" ? Storage::bfloat16 : Storage::float32;
        auto step =
            std::make_shared<TrainingStep>(data.ctx, m.config, losses, OptimizerConfig{}, batch, samples, 1, storage);
        const std::vector<int32_t> lengths(static_cast<size_t>(batch), static_cast<int32_t>(samples));
        step->start_codebooks([&] { step->load(noise(batch * samples), lengths); }, rows);
        step->set_capture(captured);
        step->run(), step->run();  // the second run is captured
        return [=](Context&) { step->run(); };
      });
}

/// The published training of a DAC configuration: discriminators, both optimizers. quarter: all widths divided by four.
void add_adversarial_step(Suite& suite, const std::string& name, bool quarter, const std::string& type, int64_t batch,
                          int64_t samples) {
  Model m = model(suite, name);
  DiscriminatorConfig discriminator;
  if (quarter && !suite.small()) {
    m.config.encoder_dim /= 4, m.config.decoder_dim = m.config.decoder_dim / 8;
    for (int64_t& channels : discriminator.period_channels) channels /= 4;
    discriminator.window_channels /= 4;
  }
  LossConfig loss;
  loss.windows = {32, 64, 128, 256, 512, 1024, 2048}, loss.mels = {5, 10, 20, 40, 80, 160, 320};
  loss.balanced = false, loss.waveform = loss.stft = 0, loss.mel = 105, loss.vq = 0.25;
  loss.adversarial = 1, loss.feature = 2;
  if (suite.small()) {
    loss.windows = {64}, loss.mels = {10};
    discriminator = {.periods = {2, 3}, .period_channels = {4, 8}, .windows = {64}, .window_channels = 4};
  }
  const OptimizerConfig optimizer{.learning_rate = 1e-4, .beta1 = 0.8, .beta2 = 0.99, .clip = 1000, .ema_decay = 0};
  batch = suite.least(batch, 2), samples = suite.least(samples, 160);
  Work work;
  for (const CostRow& row : step_cost(m.config, loss, batch, samples, arithmetic(type), discriminator))
    work += row.forward, work += row.backward;
  suite.add(
      {.name = "adversarial_step/" + name + (quarter ? "-quarter/" : "/") + type + "/" + std::to_string(batch) + "x" +
               std::to_string(samples) + (suite.cuda() ? "/captured" : ""),
       .bytes = static_cast<int64_t>(work.bytes),
       .flops = static_cast<int64_t>(work.products),
       .arithmetic = type,
       .parameters = parameters("adversarial_step", type, suite.small() ? "small" : name, batch, samples, suite.cuda()),
       .audio_seconds = static_cast<double>(batch * samples) / static_cast<double>(m.config.sample_rate),
       .eager = true},  // the step holds its own graph
      [=](Data& data) -> Run {
        const Storage storage = type == "bf16" ? Storage::bfloat16 : Storage::float32;
        auto step = std::make_shared<TrainingStep>(data.ctx, m.config, loss, optimizer, batch, samples, 1, storage,
                                                   nullptr, discriminator);
        step->load(noise(batch * step->samples()),
                   std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(samples)));
        step->run(), step->run();  // on CUDA the second run is captured
        return [=](Context&) { step->run(); };
      });
}

void add_codec(Suite& suite, const std::string& name, int64_t batch, double seconds) {
  const Model m = model(suite, name);
  batch = suite.least(batch, 2);
  const CodecConfig& config = m.config;
  const int64_t wanted = static_cast<int64_t>(seconds * config.frame_rate());
  const int64_t frames = std::max<int64_t>(1, suite.least(wanted, 20)), samples = frames * config.hop();
  const std::string shape =
      "/" + name + "/" + std::to_string(batch) + "x" + (wanted < 1 ? "1frame" : std::to_string(samples));
  const auto setup = [=](Data& data) {
    auto codec = std::make_shared<Codec>(data.ctx, m.config);
    codec->parameters().initialise(data.ctx, 1);
    codec->reserve_inference(batch, samples);
    return codec;
  };
  const double audio_seconds = static_cast<double>(batch * samples) / static_cast<double>(config.sample_rate);
  const Shape audio{.batch = batch, .time = samples, .channels = config.audio_channels},
      codes{.batch = batch, .time = frames, .channels = config.codes_per_frame()};
  const auto scales_of = [batch, scaled = config.segment_scale](Data& data) {
    return scaled ? data.random({.channels = batch}, 0.5, 1.5) : View<float>();
  };
  for (const std::string type : {"fp32", "tf32"}) {
    if (type == "tf32" && !suite.cuda()) continue;
    suite.add({.name = "codec_encode" + shape + (suite.cuda() ? "/" + type : ""),
               .flops = 2 * batch * config.encoder_macs(frames),
               .arithmetic = type,
               .parameters = parameters("encode", type, suite.small() ? "small" : name, batch, samples, suite.cuda()),
               .audio_seconds = audio_seconds},
              [=](Data& data) -> Run {
                const auto codec = setup(data);
                const View<float> x = data.random(audio);
                const View<int32_t> c = data.indices(codes, 2);
                const View<float> scales = scales_of(data);
                return [=](Context&) { codec->encode(x, c, {}, scales); };
              });
    suite.add({.name = "codec_decode" + shape + (suite.cuda() ? "/" + type : ""),
               .flops = 2 * batch * config.decoder_macs(frames),
               .arithmetic = type,
               .parameters = parameters("decode", type, suite.small() ? "small" : name, batch, samples, suite.cuda()),
               .audio_seconds = audio_seconds},
              [=](Data& data) -> Run {
                const auto codec = setup(data);
                const View<float> x = data.random(audio);
                const View<int32_t> c = data.indices(codes, static_cast<int32_t>(config.codebook_size));
                const View<float> scales = scales_of(data);
                return [=](Context&) { codec->decode(c, x, {}, scales); };
              });
  }
}

/// Streaming encoders and decoders, one push of 20 ms per run. The number of frames that a push completes differs from
/// push to push.
void add_streaming(Suite& suite, const std::string& name, int64_t codebooks, int64_t block = 1) {
  const Model m = model(suite, name);
  const CodecConfig& config = m.config;
  codebooks = suite.least(codebooks, codebooks / 32 + 1);
  const int64_t push = config.sample_rate / 50, hop = config.hop();
  CodecConfig used = config;  // for the operations
  used.n_codebooks = codebooks;
  const double audio_seconds = static_cast<double>(push) / static_cast<double>(config.sample_rate);
  const std::string rest = "/" + name + "/" + std::to_string(push) + "/" + std::to_string(codebooks) + "_codebooks" +
                           (block > 1 ? "/blocks_of_" + std::to_string(block) : "");
  const auto codec_of = [config](Data& data) {
    auto codec = std::make_shared<Codec>(data.ctx, config);
    codec->parameters().initialise(data.ctx, 1);
    return codec;
  };
  const int64_t first = config.sample_rate;  // samples before the first run: the start of a stream costs more
  suite.add({.name = "streaming_encode" + rest,
             .flops = 2 * used.encoder_macs(1) * push / hop,
             .audio_seconds = audio_seconds,
             .eager = true,
             .uneven = true},
            [=](Data& data) -> Run {
              const auto codec = codec_of(data);
              auto encoder = std::make_shared<StreamingEncoder>(
                  *codec, [](View<const int32_t>) {}, StreamingOptions{.block_frames = block, .codebooks = codebooks});
              const std::vector<float> samples = noise(push);
              encoder->push(noise(first));
              return [codec, encoder, samples](Context&) { encoder->push(samples); };
            });
  suite.add({.name = "streaming_decode" + rest,
             .flops = 2 * used.decoder_macs(1) * push / hop,
             .audio_seconds = audio_seconds,
             .eager = true,
             .uneven = true},
            [=](Data& data) -> Run {
              const auto codec = codec_of(data);
              auto decoder = std::make_shared<StreamingDecoder>(
                  *codec, [](std::span<const float>) {},
                  StreamingOptions{.block_frames = block, .codebooks = codebooks});
              const int64_t frames = first / hop + 1;
              const View<int32_t> drawn =
                  data.indices({.time = frames, .channels = codebooks}, static_cast<int32_t>(config.codebook_size));
              const std::span<const int32_t> codes(drawn.data, static_cast<size_t>(drawn.elements()));
              decoder->push(codes);
              // As many frames as 20 ms of samples complete.
              return [codec, decoder, codes, codebooks, push, hop, samples = int64_t{0}](Context&) mutable {
                const int64_t n = (samples + push) / hop - samples / hop;
                samples += push;
                decoder->push(codes.first(static_cast<size_t>(n * codebooks)));
              };
            });
}

const Cases cases([](Suite& suite) {
  if (!suite.cuda()) {
    add_step(suite, "speech-16k-small", "fp32", 8, 4000, false);  // the quickstart's training step
    add_adversarial_step(suite, "dac-16k", true, "fp32", 4, 6080);
    add_codec(suite, "speech-16k-small", 1, 2);                   // the command line's window
    add_codec(suite, "speech-16k-small", 1, 0);
    add_codec(suite, "speech-16k", 1, 2);
    add_codec(suite, "speech-16k-small", 16, 2);
    add_codec(suite, "dac-16k", 1, 1);
    add_codec(suite, "dac-44k", 1, 1);
    add_codec(suite, "encodec-24k", 1, 10);
    add_codec(suite, "encodec-48k", 1, 1);  // one segment
    for (const int64_t codebooks : {8, 32}) add_streaming(suite, "encodec-24k", codebooks);
    add_streaming(suite, "encodec-24k", 32, 2);  // the weights are read once for two frames
    return;
  }
  for (const std::string type : {"bf16", "tf32", "fp32"}) {
    add_step(suite, "dac-16k", type, 16, 16000, true);
    add_step(suite, "speech-16k", type, 16, 16000, true);
    if (type == "tf32") add_step(suite, "dac-44k", type, 16, 16896, true);
    if (type == "bf16") {
      add_step(suite, "dac-16k", type, 16, 16000, false);
      add_step(suite, "speech-16k", type, 16, 16000, false);
      add_step(suite, "dac-44k", type, 16, 16896, false);
      add_step(suite, "dac-44k", type, 72, 16896, true);
      add_step(suite, "dac-44k", type, 16, 16896, true);
      add_step(suite, "dac-44k", type, 12, 16896, true);
      add_step(suite, "speech-16k-small", type, 8, 4000, true);
    }
  }
  // The published batch, on one device and on six.
  for (const std::string type : {"bf16", "tf32"})
    for (const int64_t batch : {12, 72}) add_adversarial_step(suite, "dac-44k", false, type, batch, 16896);
  for (const char* name : {"speech-16k", "dac-16k", "dac-44k"}) {
    add_codec(suite, name, 1, 10);
    add_codec(suite, name, 16, 10);
    add_codec(suite, name, 1, 0);  // latency of one frame
  }
});

}  // namespace
}  // namespace nacre::bench
