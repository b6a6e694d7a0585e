#include "nacre/codec/codec_config.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "files/spelling.h"
#include "files/text.h"
#include "nacre/ops/rvq.h"

namespace nacre {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const std::string& key, const std::string& found, const std::string& expected) {
  throw Error(ErrorKind::usage, "codec." + key + " is " + found + ", expected " + expected);
}
/// As short as it can be written: 0.5, not 0.500000.
std::string text_of(double value) { return json(value).dump(); }
void in_range(const std::string& key, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    refuse(key, std::to_string(value), std::to_string(low) + " to " + std::to_string(high));
}

int64_t product(const std::vector<int64_t>& v) {
  int64_t p = 1;
  for (const int64_t x : v) p *= x;
  return p;
}

/// The span of a layer's input that a span of its output depends on.
struct Span {
  int64_t low, high;
  void through_conv(int64_t taps, int64_t stride, int64_t dilation, int64_t left) {
    low = low * stride - left;
    high = high * stride - left + dilation * (taps - 1);
  }
  void through_transposed(int64_t taps, int64_t stride, int64_t padding) {
    // output t is fed by input i when 0 <= t + padding - i stride < taps
    const auto floor_div = [](int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); };
    low = floor_div(low + padding - (taps - 1) + stride - 1, stride);
    high = floor_div(high + padding, stride);
  }
  void through_units(const CodecConfig& c) {
    for (const int64_t d : c.dilations) through_conv(c.kernel_size, 1, d, (c.kernel_size - 1) / 2 * d);
  }
};
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* kind_name(QuantizerKind k) { return k == QuantizerKind::ema ? "ema" : "factorised"; }
const char* metric_name(VqMetric m) { return m == VqMetric::euclidean ? "euclidean" : "cosine"; }

json as_json(const CodecConfig& c) {
  return {{"sample_rate", c.sample_rate},
          {"encoder_dim", c.encoder_dim},
          {"encoder_rates", c.encoder_rates},
          {"decoder_dim", c.decoder_dim},
          {"decoder_rates", c.decoder_rates},
          {"latent_dim", c.latent()},
          {"kernel_size", c.kernel_size},
          {"dilations", c.dilations},
          {"activation", str(c.activation)},
          {"output_tanh", c.output_tanh},
          {"quantizer", kind_name(c.quantizer)},
          {"n_codebooks", c.n_codebooks},
          {"codebook_size", c.codebook_size},
          {"codebook_dim", c.codebook_dim},
          {"metric", metric_name(c.metric)},
          {"quantizer_dropout", c.quantizer_dropout},
          {"ema_decay", c.ema_decay},
          {"ema_rows", c.ema_rows},
          {"dead_below", c.dead_below},
          {"beam", c.beam}};
}

bool fits_int64(const json& value) {
  return value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
}
void read(const json& value, int64_t& to) {
  if (!fits_int64(value)) throw std::invalid_argument("an integer of 64 bits");
  to = value.get<int64_t>();
}
void read(const json& value, double& to) {
  if (!value.is_number()) throw std::invalid_argument("a number");
  to = value.get<double>();
}
void read(const json& value, bool& to) {
  if (!value.is_boolean()) throw std::invalid_argument("true or false");
  to = value.get<bool>();
}
void read(const json& value, std::string& to) {
  if (!value.is_string()) throw std::invalid_argument("a string");
  to = value.get<std::string>();
}
/// One of the words that there are.
std::string one_of(const std::string& key, const json& value, const std::vector<std::string>& words) {
  std::string found;
  read(value, found);
  if (std::find(words.begin(), words.end(), found) == words.end())
    refuse(key, in_quotes(found), listed(words) + did_you_mean(found, words));
  return found;
}
void read(const json& value, std::vector<int64_t>& to) {
  if (!value.is_array()) throw std::invalid_argument("a list of integers");
  to.clear();
  for (const json& v : value) {
    if (!fits_int64(v)) throw std::invalid_argument("a list of integers");
    to.push_back(v.get<int64_t>());
  }
}

[[noreturn]] void unknown(const std::string& key) {
  std::vector<std::string> known;
  const json all = as_json(CodecConfig{});
  for (const auto& [name, value] : all.items()) known.push_back(name);
  const std::string near = did_you_mean(key, known);
  throw Error(ErrorKind::usage,
              "codec." + key + " is no known key" + (near.empty() ? "; there are " + listed(known, "and") : near));
}

}  // namespace

int64_t CodecConfig::hop() const { return product(encoder_rates); }
double CodecConfig::ema_decay_of(int64_t rows) const {
  if (ema_rows == 0) return ema_decay;
  return std::max(ema_decay, 1 - static_cast<double>(rows) / static_cast<double>(ema_rows));
}
int64_t CodecConfig::latent() const { return latent_dim > 0 ? latent_dim : encoder_dim << encoder_rates.size(); }
int64_t CodecConfig::code_bits() const {
  return static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(codebook_size - 1)));
}

int64_t CodecConfig::encoder_macs(int64_t frames) const {
  int64_t time = frames * hop(), c = encoder_dim, macs = time * kernel_size * c;
  for (const int64_t rate : encoder_rates) {
    macs += time * static_cast<int64_t>(dilations.size()) * (kernel_size + 1) * c * c;
    time /= rate;
    macs += time * 2 * rate * c * 2 * c;
    c *= 2;
  }
  return macs + time * 3 * c * latent();
}
int64_t CodecConfig::decoder_macs(int64_t frames) const {
  int64_t time = frames, c = decoder_dim, macs = time * kernel_size * latent() * c;
  for (const int64_t rate : decoder_rates) {
    macs += time * 2 * rate * c * (c / 2);
    time *= rate;
    c /= 2;
    macs += time * static_cast<int64_t>(dilations.size()) * (kernel_size + 1) * c * c;
  }
  return macs + time * kernel_size * c;
}

int64_t CodecConfig::encoder_context() const {
  Span s{0, 0};
  s.through_conv(3, 1, 1, 1);
  for (size_t i = encoder_rates.size(); i-- > 0;) {
    const int64_t r = encoder_rates[i];
    s.through_conv(2 * r, r, 1, ceil_div(r, 2));
    s.through_units(*this);
  }
  s.through_conv(kernel_size, 1, 1, (kernel_size - 1) / 2);
  return std::max<int64_t>(1, ceil_div(std::max(-s.low, s.high - (hop() - 1)), hop()));
}
int64_t CodecConfig::decoder_context() const {
  Span s{0, hop() - 1};
  s.through_conv(kernel_size, 1, 1, (kernel_size - 1) / 2);
  for (size_t i = decoder_rates.size(); i-- > 0;) {
    const int64_t r = decoder_rates[i];
    s.through_units(*this);
    s.through_transposed(2 * r, r, ceil_div(r, 2));
  }
  s.through_conv(kernel_size, 1, 1, (kernel_size - 1) / 2);
  return std::max<int64_t>(1, std::max(-s.low, s.high));
}

void CodecConfig::check() const {
  in_range("sample_rate", sample_rate, 1000, 768000);
  in_range("encoder_dim", encoder_dim, 1, 4096);
  in_range("decoder_dim", decoder_dim, 1, 16384);
  for (const auto* rates : {&encoder_rates, &decoder_rates}) {
    const std::string key = rates == &encoder_rates ? "encoder_rates" : "decoder_rates";
    if (rates->empty() || rates->size() > 8) refuse(key, std::to_string(rates->size()) + " strides", "1 to 8 strides");
    for (const int64_t r : *rates) in_range(key, r, 2, 64);
  }
  if (product(encoder_rates) != product(decoder_rates))
    refuse("decoder_rates", "a product of " + std::to_string(product(decoder_rates)),
           "the product of encoder_rates, " + std::to_string(product(encoder_rates)));
  in_range("hop (product of encoder_rates)", hop(), 1, 65536);
  if (decoder_dim % (int64_t{1} << decoder_rates.size()) != 0)
    refuse("decoder_dim", std::to_string(decoder_dim),
           "a multiple of " + std::to_string(int64_t{1} << decoder_rates.size()));
  in_range("latent_dim", latent_dim, 0, 65536);
  in_range("latent_dim", latent(), 1, 65536);
  in_range("kernel_size", kernel_size, 1, 63);
  if (kernel_size % 2 == 0) refuse("kernel_size", std::to_string(kernel_size), "an odd number");
  if (dilations.empty() || dilations.size() > 8)
    refuse("dilations", std::to_string(dilations.size()) + " entries", "1 to 8");
  for (const int64_t d : dilations) in_range("dilations", d, 1, 1024);
  in_range("n_codebooks", n_codebooks, 1, 64);
  in_range("codebook_size", codebook_size, 2, 65536);
  in_range("codebook_dim", codebook_dim, 1, 4096);
  if (!(quantizer_dropout >= 0 && quantizer_dropout <= 1))
    refuse("quantizer_dropout", text_of(quantizer_dropout), "0 to 1");
  if (!(ema_decay >= 0 && ema_decay < 1)) refuse("ema_decay", text_of(ema_decay), "0 to below 1");
  in_range("ema_rows", ema_rows, 0, 10000000);
  if (!(dead_below >= 0 && dead_below < 1e6)) refuse("dead_below", text_of(dead_below), "0 or more");
  in_range("beam", beam, 1, max_rvq_beam);
  if (beam > 1 && (quantizer != QuantizerKind::ema || metric != VqMetric::euclidean))
    refuse("beam", std::to_string(beam), "1, unless quantizer is \"ema\" and metric is \"euclidean\"");
}

std::string CodecConfig::to_json() const { return as_json(*this).dump(2); }

CodecConfig CodecConfig::from_json(const std::string& text) {
  if (text.size() > (1u << 20)) throw Error(ErrorKind::usage, "codec config: larger than 1 MiB");
  const json j = json::parse(text, nullptr, false);
  if (!j.is_object()) throw Error(ErrorKind::usage, "codec config: not a JSON object");
  CodecConfig c;
  for (const auto& [key, value] : j.items()) {
    try {
      if (key == "sample_rate")
        read(value, c.sample_rate);
      else if (key == "encoder_dim")
        read(value, c.encoder_dim);
      else if (key == "encoder_rates")
        read(value, c.encoder_rates);
      else if (key == "decoder_dim")
        read(value, c.decoder_dim);
      else if (key == "decoder_rates")
        read(value, c.decoder_rates);
      else if (key == "latent_dim")
        read(value, c.latent_dim);
      else if (key == "kernel_size")
        read(value, c.kernel_size);
      else if (key == "dilations")
        read(value, c.dilations);
      else if (key == "activation")
        c.activation = activation_kind(one_of(key, value, {"snake", "snake_beta", "elu", "leaky_relu", "tanh"}));
      else if (key == "output_tanh")
        read(value, c.output_tanh);
      else if (key == "quantizer")
        c.quantizer =
            one_of(key, value, {"ema", "factorised"}) == "ema" ? QuantizerKind::ema : QuantizerKind::factorised;
      else if (key == "n_codebooks")
        read(value, c.n_codebooks);
      else if (key == "codebook_size")
        read(value, c.codebook_size);
      else if (key == "codebook_dim")
        read(value, c.codebook_dim);
      else if (key == "metric")
        c.metric = one_of(key, value, {"euclidean", "cosine"}) == "euclidean" ? VqMetric::euclidean : VqMetric::cosine;
      else if (key == "quantizer_dropout")
        read(value, c.quantizer_dropout);
      else if (key == "ema_decay")
        read(value, c.ema_decay);
      else if (key == "ema_rows")
        read(value, c.ema_rows);
      else if (key == "dead_below")
        read(value, c.dead_below);
      else if (key == "beam")
        read(value, c.beam);
      else
        unknown(key);
    } catch (const std::invalid_argument& e) {
      refuse(key, value.dump(), e.what());
    }
  }
  c.check();
  return c;
}

std::vector<std::string> CodecConfig::names() {
  return {"speech-16k", "speech-16k-small", "dac-16k", "dac-24k", "dac-44k"};
}

CodecConfig CodecConfig::named(const std::string& name) {
  CodecConfig c;
  if (name == "dac-16k" || name == "dac-24k" || name == "dac-44k") {
    if (name == "dac-24k") c.sample_rate = 24000, c.n_codebooks = 32;
    if (name == "dac-44k") {
      c.sample_rate = 44100, c.n_codebooks = 9;
      c.encoder_rates = {2, 4, 8, 8}, c.decoder_rates = {8, 8, 4, 2};
    }
    c.quantizer_dropout = 0.5;
  } else if (name == "speech-16k") {
    // Short frames and many codes, because waveforms are to be matched (SNR), not only spectra: 16 x 10 bits at 400
    // frames per second, 64 kbit/s, four bits per sample.
    c.encoder_dim = 32, c.decoder_dim = 512;
    c.encoder_rates = {2, 4, 5}, c.decoder_rates = {5, 4, 2};
    c.latent_dim = 64;
    c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
    c.n_codebooks = 16, c.beam = 8;
    c.ema_rows = 320000;
  } else if (name == "speech-16k-small") {
    // Trains on two cores in minutes: 1.29 M parameters, 8 x 10 bits at 400 frames per second: 32 kbit/s.
    c.encoder_dim = 16, c.decoder_dim = 256;
    c.encoder_rates = {2, 4, 5}, c.decoder_rates = {5, 4, 2};
    c.latent_dim = 64;
    c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
    c.n_codebooks = 8, c.beam = 8;
    c.ema_rows = 320000;
  } else {
    throw Error(ErrorKind::usage, "config " + in_quotes(name) + " is neither a file nor one of " + listed(names()) +
                                      did_you_mean(name, names()));
  }
  return c;
}

}  // namespace nacre
