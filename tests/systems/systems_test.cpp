// The list of systems: every preset can be built by name, and what is in no list is refused with what is.
#include "nacre/systems/system.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "file_tools.h"
#include "files/spelling.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/files/safetensors.h"

using namespace nacre;

namespace {

template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "accepted";
}

template <class Named>
std::vector<std::string> names_of(const std::vector<Named>& all) {
  std::vector<std::string> names;
  for (const Named& one : all) names.push_back(one.name);
  return names;
}

std::vector<std::string> parameter_names(const Parameters& p) {
  std::vector<std::string> names;
  for (const Parameter& x : p.all()) names.insert(names.end(), x.names.begin(), x.names.end());
  return names;
}

CodecConfig tiny() {
  CodecConfig c;
  c.encoder_dim = 4, c.encoder_rates = {2, 3};
  c.decoder_dim = 16, c.decoder_rates = {3, 2};
  c.latent_dim = 6, c.dilations = {1, 3};
  c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

}  // namespace

TEST_CASE("systems: names are listed in order, once each", "[systems]") {
  // Names that users know stay, in this order. Further systems may come between them.
  std::vector<std::string> known{"speech-16k", "speech-16k-small", "dac-16k", "dac-24k", "dac-44k", "ldcodec-16k"};
  for (const std::string& name : CodecConfig::names())
    if (!known.empty() && name == known.front()) known.erase(known.begin());
  CHECK(known.empty());
  CHECK(CodecConfig::names() == names_of(presets()));
  CHECK(network_names() == names_of(networks()));
  for (const std::vector<std::string>& names : {CodecConfig::names(), network_names()})
    CHECK(std::set<std::string>(names.begin(), names.end()).size() == names.size());
  CHECK(refusal([] { preset("dac-48k"); }) == "config \"dac-48k\" is neither a file nor one of " +
                                                  listed(CodecConfig::names()) + "; did you mean 'dac-44k'?");
}

TEST_CASE("systems: every preset is built by its name", "[systems]") {
  for (const Preset& one : presets()) {
    CAPTURE(one.name);
    CHECK(preset(one.name).name == one.name);
    const CodecConfig c = CodecConfig::named(one.name);
    c.check();
    CHECK(c.to_json() == one.codec.to_json());
    const std::vector<std::string> topologies = network_names();
    CHECK(std::count(topologies.begin(), topologies.end(), c.network) == 1);

    Parameters all, halves;
    const System system(all, c);
    Context ctx({.threads = 1});
    Plan plan(ctx, Purpose::inference);
    Flow latent, audio;
    plan.survey([&](Plan& p) {
      latent = system.encoder(p, p.source<float>({.batch = 2, .time = 3 * c.hop(), .channels = c.audio_channels}).flow);
      audio = system.decoder(p, system.quantizer.plan(p, latent).flow);
    });
    CHECK(latent.shape == Shape{.batch = 2, .time = 3 * c.positions_per_frame(), .channels = c.latent()});
    CHECK(audio.shape == Shape{.batch = 2, .time = 3 * c.hop(), .channels = c.audio_channels});

    // Encoder, quantizer, decoder: the layout of the parameters, and so of a training run's bits.
    encoder_of(halves, c);
    const size_t encoder = halves.all().size();
    const Quantizer quantizer(halves, c);
    const size_t quantizer_end = halves.all().size();
    decoder_of(halves, c);
    const std::vector<std::string> names = parameter_names(all);
    CHECK(names == parameter_names(halves));
    size_t at = 0;
    for (const Parameter& x : all.all()) {
      const char* part = at < encoder ? "encoder." : at < quantizer_end ? "quantizer." : "decoder.";
      CHECK(x.names.front().rfind(part, 0) == 0);
      ++at;
    }
    CHECK(std::set<std::string>(names.begin(), names.end()).size() == names.size());
  }
}

TEST_CASE("systems: an unknown topology is refused with the list of topologies", "[systems]") {
  CodecConfig c = tiny();
  c.network = "dax";
  const std::string wanted = "codec.network is \"dax\", expected " + listed(network_names()) + "; did you mean 'dac'?";
  Parameters p;
  CHECK(refusal([&] { c.check(); }) == wanted);
  CHECK(refusal([&] { encoder_of(p, c); }) == wanted);
  CHECK(refusal([&] { decoder_of(p, c); }) == wanted);
  CHECK(refusal([&] { System(p, c); }) == wanted);
  CHECK(refusal([] { CodecConfig::from_json(R"({"network": "dax"})"); }) == wanted);
  CHECK(refusal([] { CodecConfig::from_json(R"({"network": 3})"); }) == "codec.network is 3, expected a string");
  CHECK(refusal([] { CodecConfig::from_json(R"({"network": "dac"})"); }) == "accepted");
}

TEST_CASE("systems: a model without codec.network is one of DAC's topology", "[systems]") {
  const test::Folder folder;
  Context ctx({.threads = 1});
  Codec codec(ctx, tiny());
  codec.parameters().initialise(ctx, 5);
  codec.save(folder / "model.safetensors");
  const Safetensors file = Safetensors::read(folder / "model.safetensors");
  std::map<std::string, std::string> metadata = file.metadata();
  nlohmann::json config = nlohmann::json::parse(metadata.at(config_metadata_key));
  REQUIRE(config.erase("network") == 1);
  metadata[config_metadata_key] = config.dump();
  write_safetensors(folder / "older.safetensors",
                    std::vector<StoredTensor>(file.tensors().begin(), file.tensors().end()), metadata);
  const Codec older = Codec::load(ctx, folder / "older.safetensors");
  CHECK(older.config().network == "dac");
  CHECK(older.config().to_json() == codec.config().to_json());
  CHECK(older.identity() == codec.identity());
}
