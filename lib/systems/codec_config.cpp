// CodecConfig: quantities that follow from the keys (rates, codes per frame, receptive fields, work), the check of keys
// against each other, and JSON. Limits of single keys are in fields() of the header; limits of a topology are in its
// file.
#include "nacre/systems/codec_config.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "files/fields.h"
#include "files/spelling.h"
#include "files/text.h"
#include "nacre/systems/system.h"
#include "systems/list.h"

namespace nacre {
namespace {

int64_t product(const std::vector<int64_t>& v) {
  int64_t p = 1;
  for (const int64_t x : v) p *= x;
  return p;
}

/// An encoder or decoder, surveyed for the CPU without allocating its memory.
struct Surveyed {
  Context ctx{{.threads = 1}};
  Plan plan{ctx, Purpose::inference};
  Flow x{}, y{};

  Surveyed(Net (*build)(Parameters&, const CodecConfig&), const CodecConfig& c, Shape input) {
    Parameters parameters;
    const Net net = build(parameters, c);
    plan.survey([&](Plan& p) { y = net(p, x = p.source<float>(input).flow); });
  }
  /// `zeros`: with those that transposed convolutions have between their inputs.
  int64_t multiply_adds(bool zeros = false) const {
    // Costs count a product and its sum as two operations.
    double operations = 0;
    for (const CostRow& r : plan.costs()) operations += r.forward.products + (zeros ? r.forward.zeros : 0);
    return static_cast<int64_t>(operations / 2);
  }
};
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t decoder_multiply_adds(const CodecConfig& c, int64_t frames, bool zeros) {
  const int64_t positions = frames * c.long_frames;
  const Surveyed surveyed(synthesis_of, c, {.time = positions, .channels = c.latent()});
  // A transposed convolution in front of what is surveyed expands the long-term part: long_frames taps, stride
  // long_frames.
  const int64_t expanded = c.two_rates() ? positions * c.latent() * c.latent() * (zeros ? c.long_frames : 1) : 0;
  return surveyed.multiply_adds(zeros) + expanded;
}

}  // namespace

int64_t CodecConfig::hop() const { return product(encoder_rates) * long_frames; }
int64_t CodecConfig::codes_per_frame(int64_t codebooks) const {
  // A long-term codebook has one code per frame, any other one per position.
  return std::min(codebooks, long_codebooks) + std::max<int64_t>(0, codebooks - long_codebooks) * long_frames;
}
int64_t CodecConfig::codebooks_of(int64_t codes) const {
  // The inverse of codes_per_frame(). The division rounds down, so the result is checked by the way back.
  const int64_t books = codes <= long_codebooks ? codes : long_codebooks + (codes - long_codebooks) / long_frames;
  return books >= 1 && books <= n_codebooks && codes_per_frame(books) == codes ? books : 0;
}
int64_t CodecConfig::codebook_of(int64_t column, int64_t codebooks) const {
  // Behind the long-term codes, each position has one code of every other codebook.
  return column < long_codebooks ? column : long_codebooks + (column - long_codebooks) % (codebooks - long_codebooks);
}
double CodecConfig::ema_decay_of(int64_t rows) const {
  // Averages span ema_rows frames, whatever the batch. The decay is at least ema_decay.
  if (ema_rows == 0) return ema_decay;
  return std::max(ema_decay, 1 - static_cast<double>(rows) / static_cast<double>(ema_rows));
}
double CodecConfig::dead_below_of(int64_t rows) const {
  return std::min(dead_below, 0.5 * static_cast<double>(rows) / static_cast<double>(codebook_size));
}
int64_t CodecConfig::latent() const { return latent_dim > 0 ? latent_dim : encoder_dim << encoder_rates.size(); }
int64_t CodecConfig::code_bits() const {
  return static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(codebook_size - 1)));
}
int64_t CodecConfig::codebooks_within(double bits_per_second) const {
  // Whole numbers on both sides where the bitrate is one. 2^-50 covers five roundings of at most 2^-53: of a
  // decimal number in kbit/s, of its product with 1000, and three here.
  const double codes =
      bits_per_second * static_cast<double>(hop()) * (1 + 0x1p-50) / static_cast<double>(sample_rate * code_bits());
  int64_t books = n_codebooks;
  while (books > 0 && static_cast<double>(codes_per_frame(books)) > codes) --books;
  return books;
}
int64_t CodecConfig::codebooks_used(const char* call, int64_t codebooks) const {
  if (codebooks < 0 || codebooks > n_codebooks)
    throw Error(ErrorKind::usage, std::string(call) + ": codebooks is " + std::to_string(codebooks) +
                                      ", expected 1 to " + std::to_string(n_codebooks) + ", or 0 for all");
  return codebooks == 0 ? n_codebooks : codebooks;
}

int64_t CodecConfig::encoder_macs(int64_t frames) const {
  return Surveyed(coder_of, *this, {.time = frames * hop(), .channels = audio_channels}).multiply_adds();
}
int64_t CodecConfig::decoder_macs(int64_t frames) const { return decoder_multiply_adds(*this, frames, false); }
int64_t CodecConfig::decoder_macs_profiled(int64_t frames) const { return decoder_multiply_adds(*this, frames, true); }

int64_t CodecConfig::encoder_context() const {
  const Surveyed s(coder_of, *this, {.time = hop(), .channels = audio_channels});
  // The samples that frame 0 depends on, as if the signal went on at both sides. Its own are 0 ... hop - 1.
  const Span samples = s.plan.reach(s.y, {0, 0}, s.x);
  return std::max<int64_t>(1, ceil_div(std::max(-samples.first, samples.last - (hop() - 1)), hop()));
}
int64_t CodecConfig::decoder_context() const {
  const Surveyed s(synthesis_of, *this, {.time = long_frames, .channels = latent()});
  // The same in the other direction: the latent positions that the samples of frame 0 depend on.
  const Span positions = s.plan.reach(s.y, {0, hop() - 1}, s.x);
  const int64_t farthest = std::max(-positions.first, positions.last - (long_frames - 1));
  return std::max<int64_t>(1, ceil_div(farthest, long_frames));
}

void CodecConfig::check() const {
  CodecConfig c = *this;
  // Keys by themselves come first, so what follows computes with values within their limits.
  check_limits("codec", fields_of(c), shortest);
  if (product(encoder_rates) != product(decoder_rates))
    refuse("codec.decoder_rates", "a product of " + std::to_string(product(decoder_rates)),
           "the product of encoder_rates, " + std::to_string(product(encoder_rates)));
  if (hop() > 65536) refuse("codec.hop (product of encoder_rates)", std::to_string(hop()), "1 to 65536");
  if (decoder_dim % (int64_t{1} << decoder_rates.size()) != 0)
    refuse("codec.decoder_dim", std::to_string(decoder_dim),
           "a multiple of " + std::to_string(int64_t{1} << decoder_rates.size()));
  if (latent() > 65536) refuse("codec.latent_dim", std::to_string(latent()), "1 to 65536");
  if (kernel_size % 2 == 0) refuse("codec.kernel_size", std::to_string(kernel_size), "an odd number");
  if (segmented() && segment < hop())
    refuse("codec.segment", std::to_string(segment), "at least one hop, " + std::to_string(hop()) + ", or 0");
  // Every sample must lie in one or two segments: a stride below half of the segment would give three.
  if (segmented() && (segment_stride > segment || segment_stride < (segment + 1) / 2))
    refuse("codec.segment_stride", std::to_string(segment_stride),
           std::to_string((segment + 1) / 2) + " to " + std::to_string(segment) + " with this codec.segment");
  if (!segmented() && segment_stride > 0)
    refuse("codec.segment_stride", std::to_string(segment_stride), "0 without codec.segment");
  if (!segmented() && segment_scale) refuse("codec.segment_scale", "true", "false without codec.segment");
  if (two_rates() != (long_frames > 1))
    refuse("codec.long_frames", std::to_string(long_frames),
           two_rates() ? "2 or more with codec.long_codebooks" : "1 without codec.long_codebooks");
  if (long_codebooks >= n_codebooks)
    refuse("codec.long_codebooks", std::to_string(long_codebooks),
           "less than codec.n_codebooks, " + std::to_string(n_codebooks));
  if (two_rates() && quantizer != QuantizerKind::ema)
    refuse("codec.long_codebooks", std::to_string(long_codebooks), "0, unless quantizer is \"ema\"");
  constexpr int64_t most_codes = 256;
  if (codes_per_frame() > most_codes)
    refuse("codec.n_codebooks", std::to_string(n_codebooks),
           "at most " + std::to_string(most_codes) + " codes per frame, and there are " +
               std::to_string(codes_per_frame()));
  if (synthesiser_kernel_size > 0 && (!two_rates() || synthesiser_kernel_size % 2 == 0))
    refuse("codec.synthesiser_kernel_size", std::to_string(synthesiser_kernel_size),
           two_rates() ? "0 or an odd number" : "0 without codec.long_codebooks");
  for (const int64_t n : codebooks_drawn)
    if (n > n_codebooks)
      refuse("codec.codebooks_drawn", std::to_string(n), "at most n_codebooks, " + std::to_string(n_codebooks));
  if (!codebooks_drawn.empty() && quantizer_dropout > 0)
    refuse("codec.quantizer_dropout", shortest(quantizer_dropout), "0 where codebooks_drawn is given");
  for (const Network& known : networks())
    if (known.name == network && known.check != nullptr) known.check(*this);
  if (beam > 1 && (quantizer != QuantizerKind::ema || metric != VqMetric::euclidean))
    refuse("codec.beam", std::to_string(beam), "1, unless quantizer is \"ema\" and metric is \"euclidean\"");
}

void expect_defaults(const CodecConfig& config, std::initializer_list<const char*> keys) {
  // fields_of() needs objects that it may change.
  CodecConfig c = config, defaults;
  const Fields all = fields_of(c), of_defaults = fields_of(defaults);
  const auto text = [](const nlohmann::json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); };
  for (const char* key : keys) {
    const nlohmann::json found = written(*find(all, key)), expected = written(*find(of_defaults, key));
    if (found != expected)
      refuse(std::string("codec.") + key, text(found), text(expected) + " with network \"" + c.network + "\"");
  }
}

std::string CodecConfig::to_json() const {
  CodecConfig c = *this;
  // Files state the number of channels, not the 0 that stands for it.
  c.latent_dim = latent();
  return written(fields_of(c)).dump(2);
}

CodecConfig CodecConfig::from_json(const std::string& text) {
  if (text.size() > (1u << 20)) throw Error(ErrorKind::usage, "codec config: larger than 1 MiB");
  const nlohmann::json j = nlohmann::json::parse(text, nullptr, false);
  if (!j.is_object()) throw Error(ErrorKind::usage, "codec config: not a JSON object");
  CodecConfig c;
  const Fields all = fields_of(c);
  for (const auto& [key, value] : j.items()) {
    if (const Field* f = find(all, key)) {
      read(*f, value, "codec.");
      continue;
    }
    const std::string near = did_you_mean(key, keys_of(all));
    throw Error(ErrorKind::usage, "codec." + key + " is not a known key" +
                                      (near.empty() ? "; the keys are " + listed(keys_of(all), "and") : near));
  }
  c.check();
  return c;
}

}  // namespace nacre
