// Codes one second of audio: the library in twenty lines. Usage: nacre_minimal [MODEL.safetensors]
#include <cmath>
#include <cstdio>
#include <vector>

#include "nacre/codec/codec.h"

int main(int argc, char** argv) try {
  nacre::Context ctx;
  nacre::Codec codec =
      argc > 1 ? nacre::Codec::load(ctx, argv[1]) : nacre::Codec(ctx, nacre::CodecConfig::named("speech-16k-small"));
  const nacre::CodecConfig& config = codec.config();
  if (argc < 2) codec.parameters().initialise(ctx, 1);  // random weights give codes, but not speech

  const int64_t frames = config.sample_rate / config.hop(), samples = frames * config.hop();
  std::vector<float> audio(samples), decoded(samples);
  std::vector<int32_t> codes(frames * config.codes_per_frame());
  for (int64_t i = 0; i < samples; ++i) audio[i] = 0.5f * std::sin(0.1f * float(i));

  codec.reserve_inference(1, samples);  // allocates all memory once
  codec.encode({audio.data(), {.time = samples}},
               {codes.data(), {.time = frames, .channels = config.codes_per_frame()}});
  codec.decode({codes.data(), {.time = frames, .channels = config.codes_per_frame()}},
               {decoded.data(), {.time = samples}});
  std::printf("%zu samples -> %zu codes (%.1f kbit/s) -> %zu samples\n", audio.size(), codes.size(),
              config.nominal_bitrate() / 1000, decoded.size());
} catch (const nacre::Error& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return e.exit_code();
}
