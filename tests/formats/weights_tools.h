#pragma once
// Files of weights, changed and read.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "file_tools.h"
#include "golden_file.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/error.h"
#include "nacre/files/safetensors.h"
#include "nacre/systems/system.h"

namespace nacre::test {

inline std::filesystem::path golden(const std::string& model, const std::string& file) {
  return std::filesystem::path(NACRE_GOLDEN) / model / file;
}

/// Relative L2 distance of `a` from `b`.
inline double distance(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, power = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    power += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / power);
}

/// Codes a clip of a golden model: the codes are those of the other program, and the relative distances of latents and
/// audio are below `bound`.
inline void check_golden_clip(Context& ctx, Codec& codec, const std::string& model, int64_t frames, double bound) {
  INFO(frames << " frames");
  const CodecConfig& c = codec.config();
  const System system(codec.parameters(), c);
  const Safetensors results = golden_file(model + "/results.safetensors");
  const auto of = [&](const char* name) {
    return golden_tensor(results, name + ("." + std::to_string(frames))).values;
  };
  std::vector<float> audio = of("audio"), output(audio.size());
  const Shape wave{.time = frames * c.hop()}, coded{.time = frames, .channels = c.n_codebooks};
  REQUIRE(static_cast<int64_t>(audio.size()) == wave.elements());
  Plan plan(ctx, Purpose::inference);
  View<float> in;
  View<const float> latents;
  plan.reserve([&](Plan& p) {
    const Output<float> x = p.source<float>(wave);
    in = x.value;
    latents = p.result<float>(system.encoder(p, x.flow));
  });
  ctx.write<float>(audio, in);
  plan.run();
  std::vector<float> found(static_cast<size_t>(latents.elements()));
  ctx.read<float>(latents, found);
  CHECK(distance(found, of("latents")) < bound);

  std::vector<int32_t> codes(static_cast<size_t>(coded.elements()));
  codec.reserve_inference(1, wave.time);
  codec.encode(View<const float>(audio.data(), wave), View<int32_t>(codes.data(), coded));
  const StoredTensor& stored = results.at("codes." + std::to_string(frames));
  REQUIRE(stored.data.size() == codes.size() * sizeof(int32_t));
  CHECK(std::equal(stored.data.begin(), stored.data.end(), std::as_bytes(std::span(codes)).begin()));
  codec.decode(View<const int32_t>(codes.data(), coded), View<float>(output.data(), wave));
  CHECK(distance(output, of("output")) < bound);
}

struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

/// Reads a file, changes its tensors and writes another.
inline void rewrite(const std::filesystem::path& from, const std::filesystem::path& to,
                    const std::function<void(std::vector<Tensor>&)>& change,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  const Safetensors file = Safetensors::read(from);
  std::vector<Tensor> all;
  for (const StoredTensor& t : file.tensors()) all.push_back({t.name, t.shape, to_floats(t)});
  change(all);
  std::vector<StoredTensor> stored;
  stored.reserve(all.size());
  for (const Tensor& t : all)
    stored.push_back({t.name, Dtype::f32, t.shape, std::as_bytes(std::span<const float>(t.values))});
  write_safetensors(to, stored, metadata);
}

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  if (const size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

inline void drop(std::vector<Tensor>& all, const std::string& name) {
  std::erase_if(all, [&](const Tensor& t) { return t.name == name; });
}

inline std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::input);
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
  return "";
}

inline void change_json(const std::filesystem::path& path, const std::function<void(nlohmann::json&)>& change) {
  nlohmann::json j = nlohmann::json::parse(slurp(path));
  change(j);
  spill(path, j.dump());
}

}  // namespace nacre::test

#define CHECK_HAS(text, part) CHECK((text).find(part) != std::string::npos)
