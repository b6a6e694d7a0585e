#pragma once
// Encoders and decoders by themselves, for the tests of topologies.
#include <algorithm>
#include <cmath>

#include "harness.h"
#include "nacre/systems/system.h"

namespace nacre::test {

struct Size {
  int64_t effective = 0, stored = 0;
};
inline Size size_of(Net (*build)(Parameters&, const CodecConfig&), const CodecConfig& c) {
  Parameters p;
  build(p, c);
  Size s{.effective = p.effective_elements()};
  for (const Parameter& x : p.all())
    for (size_t i = 0; i < x.names.size(); ++i) s.stored += x.piece_elements();
  return s;
}

/// One half of a codec on a signal of `time` positions.
struct Half {
  Context ctx{{.threads = 1}};
  Parameters parameters;
  Net net;
  Plan plan;
  View<float> input;
  View<const float> output;

  Half(Net (*build)(Parameters&, const CodecConfig&), const CodecConfig& c, Shape shape)
      : net(build(parameters, c)), plan(ctx, Purpose::inference) {
    parameters.allocate(ctx, false);
    parameters.initialise(ctx, 1);
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>(shape);
      input = source.value;
      output = p.result<float>(net(p, source.flow));
    });
  }
  std::vector<float> operator()(const std::vector<float>& x) {
    ctx.write<float>(x, input);
    plan.run();
    std::vector<float> y(static_cast<size_t>(output.elements()));
    ctx.read<float>(output, y);
    return y;
  }
};

inline std::vector<float> noise(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::sin(1.7 * static_cast<double>(i * i + 1)));
  return x;
}

/// What is changed from a frame on changes nothing before it, and something at once, in both halves.
inline void check_no_lookahead(const CodecConfig& c) {
  const int64_t frames = 24, changed = 15, latent = c.latent(), hop = c.hop();
  Half encoder(encoder_of, c, {.time = frames * hop});
  std::vector<float> x = noise(frames * hop);
  const std::vector<float> z = encoder(x);
  for (int64_t i = changed * hop; i < frames * hop; ++i) x[static_cast<size_t>(i)] += 1;
  const std::vector<float> z_changed = encoder(x);
  const auto before = static_cast<std::ptrdiff_t>(changed * latent);
  CHECK(std::equal(z.begin(), z.begin() + before, z_changed.begin()));
  CHECK_FALSE(std::equal(z.begin() + before, z.begin() + before + latent, z_changed.begin() + before));

  Half decoder(decoder_of, c, {.time = frames, .channels = latent});
  std::vector<float> codes = noise(frames * latent);
  const std::vector<float> y = decoder(codes);
  for (auto i = static_cast<size_t>(before); i < codes.size(); ++i) codes[i] += 1;
  const std::vector<float> y_changed = decoder(codes);
  const auto at = static_cast<std::ptrdiff_t>(changed * hop);
  CHECK(std::equal(y.begin(), y.begin() + at, y_changed.begin()));
  CHECK_FALSE(std::equal(y.begin() + at, y.begin() + at + hop, y_changed.begin() + at));
}

/// What from_json() says of a configuration.
inline std::string refusal(const std::string& json) {
  try {
    CodecConfig::from_json(json);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "accepted";
}

}  // namespace nacre::test
