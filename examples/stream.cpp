// Codes a signal while it arrives, as a telephone does: 16-bit samples at the model's rate, channels interleaved, from
// standard input to standard output. Usage: nacre_stream [MODEL.safetensors] < in.raw > out.raw
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "nacre/codec/streaming.h"

int main(int argc, char** argv) try {
  nacre::Context ctx;
  nacre::Codec codec =
      argc > 1 ? nacre::Codec::load(ctx, argv[1]) : nacre::Codec(ctx, nacre::CodecConfig::named("speech-16k-small"));
  if (argc < 2) codec.parameters().initialise(ctx, 1);  // random weights give codes, but not speech
  const int64_t rate = codec.config().sample_rate;

  std::vector<int16_t> out;
  nacre::StreamingDecoder decoder(codec, [&](std::span<const float> samples) {
    out.clear();
    for (const float x : samples) out.push_back(int16_t(std::lrint(32767 * std::clamp(x, -1.0f, 1.0f))));
    if (std::fwrite(out.data(), sizeof(int16_t), out.size(), stdout) < out.size() || std::fflush(stdout) != 0)
      throw nacre::Error(nacre::ErrorKind::io, "standard output cannot be written");
  });
  std::vector<int32_t> packet;  // the codes of one frame; a telephone sends them, a few bits each
  nacre::StreamingEncoder encoder(codec, [&](nacre::View<const int32_t> codes) {
    packet.assign(codes.begin(), codes.end());
    decoder.push(packet);
  });
  const nacre::StreamingLatency e = encoder.latency(), d = decoder.latency();
  const auto ms = [&](int64_t samples) { return 1000 * double(samples) / double(rate); };
  std::fprintf(stderr, "latency: %.1f ms (frame %.1f, lookahead of the encoder %.1f, of the decoder %.1f)\n",
               ms(e.block + e.lookahead + d.lookahead), ms(e.block), ms(e.lookahead), ms(d.lookahead));

  std::vector<int16_t> in(rate / 50 * codec.config().audio_channels);  // 20 ms
  std::vector<float> samples;
  while (const size_t n = std::fread(in.data(), sizeof(int16_t), in.size(), stdin)) {
    samples.assign(in.begin(), in.begin() + n);
    for (float& x : samples) x /= 32768;
    encoder.push(samples);
  }
  if (std::ferror(stdin)) throw nacre::Error(nacre::ErrorKind::io, "standard input cannot be read");
  encoder.finish();  // completes the last frame by zeros
  decoder.finish();
} catch (const nacre::Error& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return e.exit_code();
}
