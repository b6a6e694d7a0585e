#include "nacre/training/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "nacre/ops/spectral_loss.h"
#include "nacre/training/audio.h"
#include "nacre/training/intelligibility.h"
#include "nacre/windowed.h"

namespace nacre::training {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

double decibels(double signal, double noise) {
  if (noise <= 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}

void score_waveform(std::span<const float> x, std::span<const float> y, ClipScore& s) {
  const auto n = static_cast<double>(x.size());
  double sx = 0, sy = 0, sxx = 0, syy = 0, noise = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i], b = y[i];
    sx += a, sy += b, sxx += a * a, syy += b * b, noise += (a - b) * (a - b);
  }
  s.input_mean = sx / n, s.output_mean = sy / n;
  s.input_std = std::sqrt(std::max(0.0, sxx / n - s.input_mean * s.input_mean));
  s.output_std = std::sqrt(std::max(0.0, syy / n - s.output_mean * s.output_mean));
  s.snr = decibels(sxx, noise);
  double dot = 0, energy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i] - s.input_mean, b = y[i] - s.output_mean;
    dot += a * b, energy += a * a;
  }
  const double scale = energy > 0 ? dot / energy : 0;
  double target = 0, rest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = scale * (x[i] - s.input_mean), b = y[i] - s.output_mean;
    target += a * a, rest += (b - a) * (b - a);
  }
  s.si_sdr = target > 0 ? decibels(target, rest) : -std::numeric_limits<double>::infinity();
}

enum class Over : uint8_t { all, sounding, scored };  // scored: what is not NaN; elsewhere a NaN is an error to be seen

double mean_of(const std::vector<ClipScore>& clips, double ClipScore::* value, Over over) {
  double sum = 0;
  int64_t n = 0;
  for (const ClipScore& c : clips) {
    if ((over == Over::sounding && c.silent) || (over == Over::scored && std::isnan(c.*value))) continue;
    sum += c.*value;
    ++n;
  }
  return n > 0 ? sum / static_cast<double>(n) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

SpectralDistance spectral_distance(Context& ctx, std::span<const float> decoded, std::span<const float> original,
                                   int64_t sample_rate) {
  if (decoded.size() != original.size() || original.size() < 2)
    throw Error(ErrorKind::usage, "spectral_distance: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples, expected two or more and as many");
  const auto n = static_cast<int64_t>(original.size());
  const Shape shape{.time = n};
  // A clip shorter than half of the longest window cannot be reflected that far; zeros stand in.
  const StftPadding padding = n > 1024 ? StftPadding::reflect : StftPadding::zero;
  SpectralConfig mel{.sample_rate = sample_rate, .scales = {}, .padding = padding};
  for (int64_t window = 32, bands = 5; window <= 2048; window *= 2, bands *= 2)
    mel.scales.push_back({.window = window, .hop = window / 4, .mels = bands, .mel_log = 1});
  SpectralConfig stft{.sample_rate = sample_rate, .scales = {}, .log_power = 2, .padding = padding};
  for (const int64_t window : {2048, 512})
    stft.scales.push_back({.window = window, .hop = window / 4, .magnitude = 1, .log_magnitude = 1});
  Memory memory(ctx, (2 * original.size() + 4) * sizeof(float));
  auto* at = reinterpret_cast<float*>(memory.data());
  const View<float> losses(at, {.channels = 2}), x(at + 4, shape), y(at + 4 + n, shape);
  ctx.write<float>(original, x);
  ctx.write<float>(decoded, y);
  std::vector<float> host(2);
  SpectralDistance d;
  {
    const SpectralPlan plan(ctx, shape, mel);
    spectral_loss(ctx, {.plan = plan, .estimate = y, .target = x, .losses = losses});
    ctx.read<float>(losses, host);
    d.mel = host[1];
  }
  {
    const SpectralPlan plan(ctx, shape, stft);
    spectral_loss(ctx, {.plan = plan, .estimate = y, .target = x, .losses = losses});
    ctx.read<float>(losses, host);
    d.stft = host[0];
  }
  return d;
}

double segmental_snr(std::span<const float> decoded, std::span<const float> original, int64_t sample_rate) {
  constexpr double seconds = 0.03, least = -10, most = 35;
  const auto length = static_cast<size_t>(std::lround(seconds * static_cast<double>(sample_rate))), hop = length / 4;
  if (sample_rate < min_sample_rate || decoded.size() != original.size())
    throw Error(ErrorKind::usage, "segmental_snr: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples at " + std::to_string(sample_rate) +
                                      " Hz, expected as many, at " + std::to_string(min_sample_rate) + " Hz or more");
  std::vector<double> weights(length);
  for (size_t n = 0; n < length; ++n) {
    const double w = 0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(n + 1) / static_cast<double>(length + 1));
    weights[n] = w * w;
  }
  double sum = 0;
  int64_t frames = 0;
  for (size_t first = 0; first + length <= original.size(); first += hop, ++frames) {
    double signal = 0, noise = 0;
    for (size_t n = 0; n < length; ++n) {
      const double x = original[first + n], e = x - static_cast<double>(decoded[first + n]);
      signal += weights[n] * x * x, noise += weights[n] * e * e;
    }
    sum += std::clamp(decibels(signal, noise), least, most);
  }
  return frames > 0 ? sum / static_cast<double>(frames) : std::numeric_limits<double>::quiet_NaN();
}

ClipScore score_clip(Context& ctx, std::span<const float> original, std::span<const float> decoded, int64_t sample_rate) {
  if (decoded.size() != original.size())
    throw Error(ErrorKind::usage, "score_clip: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples, expected as many");
  ClipScore s;
  s.seconds = static_cast<double>(original.size()) / static_cast<double>(sample_rate);
  s.silent = peak_of(original) < silence_peak;
  if (!original.empty()) score_waveform(original, decoded, s);
  if (!s.silent) {
    s.segmental_snr = segmental_snr(decoded, original, sample_rate);
    const Intelligibility i = intelligibility(ctx, decoded, original, sample_rate);
    s.stoi = i.stoi, s.estoi = i.estoi;
  }
  if (original.size() >= 2) {
    const SpectralDistance d = spectral_distance(ctx, decoded, original, sample_rate);
    s.mel = d.mel, s.stft = d.stft;
  }
  return s;
}

const ClipScore& Scores::add(ClipScore s) {
  clips_.push_back(std::move(s));
  return clips_.back();
}
double Scores::snr() const { return mean_of(clips_, &ClipScore::snr, Over::sounding); }
double Scores::si_sdr() const { return mean_of(clips_, &ClipScore::si_sdr, Over::sounding); }
double Scores::segmental_snr() const { return mean_of(clips_, &ClipScore::segmental_snr, Over::scored); }
double Scores::stoi() const { return mean_of(clips_, &ClipScore::stoi, Over::scored); }
double Scores::estoi() const { return mean_of(clips_, &ClipScore::estoi, Over::scored); }
double Scores::mel() const { return mean_of(clips_, &ClipScore::mel, Over::all); }
double Scores::stft() const { return mean_of(clips_, &ClipScore::stft, Over::all); }
double Scores::seconds() const {
  double sum = 0;
  for (const ClipScore& c : clips_) sum += c.seconds;
  return sum;
}
double Scores::encode_speed() const {
  double sum = 0;
  for (const ClipScore& c : clips_) sum += c.encode_seconds;
  return sum > 0 ? seconds() / sum : 0;
}
double Scores::decode_speed() const {
  double sum = 0;
  for (const ClipScore& c : clips_) sum += c.decode_seconds;
  return sum > 0 ? seconds() / sum : 0;
}

Evaluation::Evaluation(Codec& codec)
    : codec_(codec),
      counts_(static_cast<size_t>(codec.config().n_codebooks),
              std::vector<int64_t>(static_cast<size_t>(codec.config().codebook_size), 0)) {}

const ClipScore& Evaluation::add(const std::string& name, std::span<const float> samples, std::vector<float>* decoded) {
  std::vector<int32_t> codes;
  auto start = Clock::now();
  WindowedEncoder encoder(codec_, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); });
  encoder.push(samples);
  encoder.finish();
  const double encode_seconds = since(start);
  for (size_t i = 0; i < codes.size(); ++i)
    ++counts_[i % counts_.size()][static_cast<size_t>(codes[i])];
  std::vector<float> out;
  start = Clock::now();
  WindowedDecoder decoder(codec_, [&](std::span<const float> y) { out.insert(out.end(), y.begin(), y.end()); });
  decoder.push(codes);
  decoder.finish();
  const double decode_seconds = since(start);
  out.resize(samples.size());
  ClipScore s = score_clip(codec_.context(), samples, out, codec_.config().sample_rate);
  s.name = name;
  s.encode_seconds = encode_seconds, s.decode_seconds = decode_seconds;
  for (size_t i = 0; i < samples.size(); ++i) {
    const double x = samples[i], y = out[i];
    sums_.n += 1, sums_.x += x, sums_.xx += x * x, sums_.y += y, sums_.yy += y * y;
  }
  if (decoded != nullptr) *decoded = std::move(out);
  return Scores::add(std::move(s));
}

double Evaluation::input_mean() const { return sums_.n > 0 ? sums_.x / sums_.n : 0; }
double Evaluation::output_mean() const { return sums_.n > 0 ? sums_.y / sums_.n : 0; }
double Evaluation::input_std() const {
  return sums_.n > 0 ? std::sqrt(std::max(0.0, sums_.xx / sums_.n - input_mean() * input_mean())) : 0;
}
double Evaluation::output_std() const {
  return sums_.n > 0 ? std::sqrt(std::max(0.0, sums_.yy / sums_.n - output_mean() * output_mean())) : 0;
}

std::vector<double> Evaluation::usage() const {
  std::vector<double> out;
  for (const auto& book : counts_)
    out.push_back(static_cast<double>(std::count_if(book.begin(), book.end(), [](int64_t c) { return c > 0; })) /
                  static_cast<double>(book.size()));
  return out;
}
std::vector<double> Evaluation::perplexity() const {
  std::vector<double> out;
  for (const auto& book : counts_) {
    double total = 0, entropy = 0;
    for (const int64_t c : book) total += static_cast<double>(c);
    for (const int64_t c : book)
      if (c > 0) {
        const double p = static_cast<double>(c) / total;
        entropy -= p * std::log(p);
      }
    out.push_back(total > 0 ? std::exp(entropy) : 0);
  }
  return out;
}

}  // namespace nacre::training
