// The list of systems, and what is built from a configuration.
#include "systems/list.h"

#include <algorithm>

#include "files/fields.h"
#include "files/spelling.h"
#include "files/text.h"

// One word per file of this folder that holds a system: "dac" is nacre::systems::dac() in dac.cpp. Names are listed in
// this order.
#define NACRE_SYSTEMS(SYSTEM) \
  SYSTEM(speech) SYSTEM(dac) SYSTEM(encodec) SYSTEM(soundstream) SYSTEM(lrac) SYSTEM(ldcodec)

namespace nacre {
namespace systems {

#define NACRE_DECLARED(name) SystemFile name();
NACRE_SYSTEMS(NACRE_DECLARED)
#undef NACRE_DECLARED

}  // namespace systems
namespace {

/// All files as one.
const SystemFile& all() {
  static const SystemFile joined = [] {
    SystemFile of_all;
    const auto add = [&](const SystemFile& one) {
      of_all.networks.insert(of_all.networks.end(), one.networks.begin(), one.networks.end());
      of_all.presets.insert(of_all.presets.end(), one.presets.begin(), one.presets.end());
    };
#define NACRE_ADDED(name) add(systems::name());
    NACRE_SYSTEMS(NACRE_ADDED)
#undef NACRE_ADDED
    return of_all;
  }();
  return joined;
}

template <class Named>
std::vector<std::string> names_of(const std::vector<Named>& all_of_them) {
  std::vector<std::string> names;
  for (const Named& one : all_of_them) names.push_back(one.name);
  return names;
}

const Network& network_of(const CodecConfig& c) {
  for (const Network& n : networks())
    if (n.name == c.network) return n;
  const std::vector<std::string> names = network_names();
  refuse("codec.network", in_quotes(c.network), listed(names) + did_you_mean(c.network, names));
}

}  // namespace

const std::vector<Network>& networks() { return all().networks; }
const std::vector<Preset>& presets() { return all().presets; }
std::vector<std::string> network_names() { return names_of(networks()); }

const Preset& preset(const std::string& name) {
  for (const Preset& p : presets())
    if (p.name == name) return p;
  const std::vector<std::string> names = CodecConfig::names();
  throw Error(ErrorKind::usage, "config " + in_quotes(name) + " is neither a file nor one of " + listed(names) +
                                    did_you_mean(name, names));
}

std::vector<std::string> CodecConfig::names() { return names_of(presets()); }
CodecConfig CodecConfig::named(const std::string& name) { return preset(name).codec; }

Net encoder_of(Parameters& p, const CodecConfig& c) { return network_of(c).encoder(p, c); }
Net decoder_of(Parameters& p, const CodecConfig& c) { return network_of(c).decoder(p, c); }

Net coder_of(Parameters& p, const CodecConfig& c) {
  const Net encoder = encoder_of(p, c);
  if (!c.two_rates()) return encoder;
  return [encoder, quantizer = Quantizer(p, c)](Plan& plan, Flow x) {
    return quantizer.plan(plan, encoder(plan, x), {.codes_only = true}).late;
  };
}
Net synthesis_of(Parameters& p, const CodecConfig& c) {
  const Net decoder = decoder_of(p, c);
  if (!c.two_rates()) return decoder;
  return [decoder, quantizer = Quantizer(p, c)](Plan& plan, Flow x) {
    return decoder(plan, quantizer.plan_synthesis(plan, x));
  };
}

System::System(Parameters& p, const CodecConfig& c)
    : encoder(encoder_of(p, c)), quantizer(p, c), decoder(decoder_of(p, c)) {}

}  // namespace nacre
