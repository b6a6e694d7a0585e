// Whole models: a training step, encoding and decoding, on the shapes the trainer and the command line run. The peer is
// bench/peers/codec_step.py.
#include <memory>

#include "harness.h"
#include "nacre/training_step.h"

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

void add_step(Suite& suite, const std::string& name, int64_t batch, int64_t samples) {
  const CodecConfig config = CodecConfig::named(name);
  const int64_t frames = batch * samples / config.hop();
  // Backward costs two products for each of forward's.
  const int64_t flops = 3 * 2 * (config.encoder_macs(frames) + config.decoder_macs(frames));
  suite.add(
      {.name = "codec_step/" + name + "/" + std::to_string(batch) + "x" + std::to_string(samples), .flops = flops},
      [=](Data& data) -> Run {
        auto step =
            std::make_shared<TrainingStep>(data.ctx, config, LossConfig{}, OptimizerConfig{}, batch, samples, 1);
        const std::vector<int32_t> lengths(static_cast<size_t>(batch), static_cast<int32_t>(samples));
        step->start_codebooks([&] { step->load(noise(batch * samples), lengths); }, 2000);
        return [=](Context&) { step->run(); };
      });
}

void add_codec(Suite& suite, const std::string& name, int64_t batch, int64_t seconds) {
  const CodecConfig config = CodecConfig::named(name);
  const int64_t frames = seconds * config.sample_rate / config.hop(), samples = frames * config.hop();
  const std::string shape = "/" + name + "/" + std::to_string(batch) + "x" + std::to_string(seconds) + "s";
  const auto setup = [=](Data& data) {
    auto codec = std::make_shared<Codec>(data.ctx, config);
    initialise(data.ctx, codec->parameters(), config, 1);
    codec->reserve_inference(batch, samples);
    return codec;
  };
  const Shape audio{.batch = batch, .time = samples},
      codes{.batch = batch, .time = frames, .channels = config.n_codebooks};
  suite.add({.name = "codec_encode" + shape, .flops = 2 * batch * config.encoder_macs(frames)}, [=](Data& data) -> Run {
    const auto codec = setup(data);
    const View<float> x = data.random(audio);
    const View<int32_t> c = data.indices(codes, 2);
    return [=](Context&) { codec->encode(x, c); };
  });
  suite.add({.name = "codec_decode" + shape, .flops = 2 * batch * config.decoder_macs(frames)}, [=](Data& data) -> Run {
    const auto codec = setup(data);
    const View<float> x = data.random(audio);
    const View<int32_t> c = data.indices(codes, static_cast<int32_t>(config.codebook_size));
    return [=](Context&) { codec->decode(c, x); };
  });
}

const Cases cases([](Suite& suite) {
  add_step(suite, "speech-16k-small", 8, 4000);  // as the quickstart trains
  add_codec(suite, "speech-16k-small", 1, 2);    // the command line's window
  add_codec(suite, "speech-16k", 1, 2);
});

}  // namespace
}  // namespace nacre::bench
