#pragma once
// An external program: encodes and decodes noise with a fresh model.
#include <cstdio>
#include <vector>

#include "nacre/codec/codec.h"

/// Prints the first code and sample. Returns the exit code of the program.
inline int code_noise() try {
  nacre::Context ctx({.threads = 2});
  nacre::Codec codec(ctx, nacre::CodecConfig::from_json(
                              R"({"encoder_dim": 4, "encoder_rates": [2, 3], "decoder_dim": 16, "decoder_rates": [3, 2],
                                  "latent_dim": 8, "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2,
                                  "codebook_size": 16})"));
  codec.parameters().initialise(ctx, 1);
  codec.reserve_inference(1, 60);
  std::vector<float> audio(60);
  std::vector<int32_t> codes(10 * 2);
  for (size_t i = 0; i < audio.size(); ++i) audio[i] = static_cast<float>(i % 7) / 7;
  const nacre::View<float> x(audio.data(), {.time = 60});
  const nacre::View<int32_t> c(codes.data(), {.time = 10, .channels = 2});
  codec.encode(x, c);
  codec.decode(c, x);
  std::printf("%d %.3f\n", codes[0], static_cast<double>(audio[0]));
  return 0;
} catch (const nacre::Error& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return e.exit_code();
}
