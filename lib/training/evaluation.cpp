#include "nacre/training/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "nacre/ops/spectral_loss.h"
#include "nacre/training/audio.h"
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

template <class F>
double mean_of(const std::vector<ClipScore>& clips, F&& value, bool skip_silent) {
  double sum = 0;
  int64_t n = 0;
  for (const ClipScore& c : clips) {
    if (skip_silent && c.silent) continue;
    sum += value(c);
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

Evaluation::Evaluation(Codec& codec, bool distances)
    : codec_(codec),
      distances_(distances),
      counts_(static_cast<size_t>(codec.config().n_codebooks),
              std::vector<int64_t>(static_cast<size_t>(codec.config().codebook_size), 0)) {}

const ClipScore& Evaluation::add(const std::string& name, std::span<const float> samples, std::vector<float>* decoded) {
  const CodecConfig& config = codec_.config();
  ClipScore s;
  s.name = name;
  s.seconds = static_cast<double>(samples.size()) / static_cast<double>(config.sample_rate);
  s.silent = peak_of(samples) < silence_peak;
  std::vector<int32_t> codes;
  auto start = Clock::now();
  WindowedEncoder encoder(codec_, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); });
  encoder.push(samples);
  encoder.finish();
  s.encode_seconds = since(start);
  for (size_t i = 0; i < codes.size(); ++i)
    ++counts_[i % counts_.size()][static_cast<size_t>(codes[i])];
  std::vector<float> out;
  start = Clock::now();
  WindowedDecoder decoder(codec_, [&](std::span<const float> y) { out.insert(out.end(), y.begin(), y.end()); });
  decoder.push(codes);
  decoder.finish();
  s.decode_seconds = since(start);
  out.resize(samples.size());
  if (!samples.empty()) score_waveform(samples, out, s);
  if (distances_ && samples.size() >= 2) {
    const SpectralDistance d = spectral_distance(codec_.context(), out, samples, config.sample_rate);
    s.mel = d.mel, s.stft = d.stft;
  }
  for (size_t i = 0; i < samples.size(); ++i) {
    const double x = samples[i], y = out[i];
    sums_.n += 1, sums_.x += x, sums_.xx += x * x, sums_.y += y, sums_.yy += y * y;
  }
  if (decoded != nullptr) *decoded = std::move(out);
  clips_.push_back(std::move(s));
  return clips_.back();
}

double Evaluation::snr() const { return mean_of(clips_, [](const ClipScore& c) { return c.snr; }, true); }
double Evaluation::si_sdr() const { return mean_of(clips_, [](const ClipScore& c) { return c.si_sdr; }, true); }
double Evaluation::mel() const { return mean_of(clips_, [](const ClipScore& c) { return c.mel; }, false); }
double Evaluation::stft() const { return mean_of(clips_, [](const ClipScore& c) { return c.stft; }, false); }
double Evaluation::seconds() const {
  double sum = 0;
  for (const ClipScore& c : clips_) sum += c.seconds;
  return sum;
}
double Evaluation::encode_speed() const {
  double sum = 0;
  for (const ClipScore& c : clips_) sum += c.encode_seconds;
  return sum > 0 ? seconds() / sum : 0;
}
double Evaluation::decode_speed() const {
  double sum = 0;
  for (const ClipScore& c : clips_) sum += c.decode_seconds;
  return sum > 0 ? seconds() / sum : 0;
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
