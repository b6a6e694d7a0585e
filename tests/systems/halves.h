#pragma once
// Encoders and decoders by themselves, for the tests of topologies.
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
