// Scores of decoded audio; the header defines the figures. From the inside out:
//
//   score_whole()   all figures of one channel of a clip or piece
//   PieceScores     a clip that arrives in pieces: sums that are exact for the whole clip, and means over the pieces
//   Scores          means over clips
//   ClipJudge       pushes a clip through encoder and decoder second by second, and scores pieces as they are complete
#include "nacre/training/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "nacre/codec/windowed.h"
#include "nacre/data/audio.h"
#include "nacre/ops/spectral_loss.h"
#include "nacre/training/intelligibility.h"

namespace nacre::training {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr double most_decibels = 120;
/// In seconds. Pieces of length cut_piece are cut off while more than longest_piece is left.
constexpr int64_t longest_piece = 30, cut_piece = 20;

/// Of two powers. Infinite without noise, also without signal; minus infinity for noise alone.
double decibels(double signal, double noise) {
  if (noise <= 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}
/// Keeps means finite. NaN stays NaN, so that a failing decoder is noticed.
double limited(double decibels) { return std::clamp(decibels, -most_decibels, most_decibels); }
/// If the output contains nothing of the original, the score is the minimum, whatever else the output contains.
double scale_invariant(double target, double rest) {
  return target == 0 ? -most_decibels : limited(decibels(target, rest));
}
/// Whether removing the mean leaves nothing but rounding errors.
bool is_constant(double standard_deviation) { return standard_deviation < static_cast<double>(silence_peak); }

/// SNR, SI-SDR and levels of an original x and a decoded y of the same length, at least one sample.
void score_waveform(std::span<const float> x, std::span<const float> y, ClipScore& s) {
  const auto n = static_cast<double>(x.size());
  // Sums in double: a clip has millions of samples.
  double sx = 0, sy = 0, sxx = 0, syy = 0, noise = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i], b = y[i];
    sx += a, sy += b, sxx += a * a, syy += b * b, noise += (a - b) * (a - b);
  }
  s.input_mean = sx / n, s.output_mean = sy / n;
  s.input_std = std::sqrt(std::max(0.0, sxx / n - s.input_mean * s.input_mean));
  s.output_std = std::sqrt(std::max(0.0, syy / n - s.output_mean * s.output_mean));
  s.snr = limited(decibels(sxx, noise));
  // A second pass with the means removed. The formula from the sums above would cancel for a clip with an offset.
  double dot = 0, energy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i] - s.input_mean, b = y[i] - s.output_mean;
    dot += a * b, energy += a * a;
  }
  // The projection of y on x would divide by rounding errors. The clip then has no SI-SDR.
  if (is_constant(std::sqrt(energy / n))) return;
  // The target is the part of y that is a multiple of x: scale = <x, y> / <x, x>. The rest is the distortion.
  const double scale = dot / energy;
  double target = 0, rest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = scale * (x[i] - s.input_mean), b = y[i] - s.output_mean;
    target += a * a, rest += (b - a) * (b - a);
  }
  s.si_sdr = scale_invariant(target, rest);
}

/// Scores a clip or a piece as a whole. Figures that it does not have stay NaN, as in a new ClipScore.
ClipScore score_whole(Context& ctx, std::span<const float> original, std::span<const float> decoded,
                      int64_t sample_rate) {
  ClipScore s;
  s.seconds = static_cast<double>(original.size()) / static_cast<double>(sample_rate);
  s.silent = is_silence(original);
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

/// Moves the first n values out of a buffer.
std::vector<float> taken(std::vector<float>& from, int64_t n) {
  std::vector<float> out(from.begin(), from.begin() + n);
  from.erase(from.begin(), from.begin() + n);
  return out;
}

// sounding: all clips that are not silent; a NaN among them is an error and stays visible. scored: all values but NaN.
enum class Over : uint8_t { sounding, scored };

double mean_of(const std::vector<ClipScore>& clips, double ClipScore::* value, Over over) {
  double sum = 0;
  int64_t n = 0;
  for (const ClipScore& c : clips) {
    if (over == Over::sounding ? c.silent : std::isnan(c.*value)) continue;
    sum += c.*value;
    ++n;
  }
  return n > 0 ? sum / static_cast<double>(n) : std::numeric_limits<double>::quiet_NaN();
}

/// One channel of an interleaved signal.
std::vector<float> channel_of(std::span<const float> interleaved, size_t channel, size_t channels) {
  std::vector<float> out(interleaved.size() / channels);
  for (size_t t = 0; t < out.size(); ++t) out[t] = interleaved[t * channels + channel];
  return out;
}

/// The standard deviation over the samples of all channels: the mean of their variances and the variance of their
/// means. That of equal channels has the bits of one of them.
double joint_deviation(const std::vector<ClipScore>& channels, double ClipScore::*mean, double ClipScore::*deviation) {
  const auto n = static_cast<double>(channels.size());
  double of_means = 0, within = 0, between = 0;
  for (const ClipScore& c : channels) of_means += c.*mean / n;
  for (const ClipScore& c : channels) {
    within += c.*deviation * (c.*deviation);
    between += (c.*mean - of_means) * (c.*mean - of_means);
  }
  return std::sqrt(within / n + between / n);
}

}  // namespace

SpectralDistance spectral_distance(Context& ctx, std::span<const float> decoded, std::span<const float> original,
                                   int64_t sample_rate) {
  if (decoded.size() != original.size() || original.size() < 2)
    throw Error(ErrorKind::usage, "spectral_distance: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples, expected two or more and as many");
  const auto n = static_cast<int64_t>(original.size());
  const Shape shape{.time = n};
  // A clip shorter than half of the longest window cannot be reflected that far, so it is padded with zeros.
  const StftPadding padding = n > 1024 ? StftPadding::reflect : StftPadding::zero;
  // DAC's settings: windows 32, 64, ... 2048 with 5, 10, ... 320 bands; see evaluation.h.
  SpectralConfig mel{.sample_rate = sample_rate, .scales = {}, .padding = padding};
  for (int64_t window = 32, bands = 5; window <= 2048; window *= 2, bands *= 2)
    mel.scales.push_back({.window = window, .hop = window / 4, .mels = bands, .mel_log = 1});
  SpectralConfig stft{.sample_rate = sample_rate, .scales = {}, .log_power = 2, .padding = padding};
  for (const int64_t window : {2048, 512})
    stft.scales.push_back({.window = window, .hop = window / 4, .magnitude = 1, .log_magnitude = 1});
  // Two losses, two floats of padding, then both signals.
  Memory memory(ctx, (2 * original.size() + 4) * sizeof(float));
  auto* at = reinterpret_cast<float*>(memory.data());
  const View<float> losses(at, {.channels = 2}), x(at + 4, shape), y(at + 4 + n, shape);
  ctx.write<float>(original, x);
  ctx.write<float>(decoded, y);
  std::vector<float> host(2);
  SpectralDistance d;
  // One plan at a time, since each holds the memory of its transforms.
  {
    const SpectralPlan plan(ctx, shape, mel);
    spectral_loss(ctx, {.plan = plan, .estimate = y, .target = x, .losses = losses});
    ctx.read<float>(losses, host);
    // Losses are in the order STFT, mel. Without a scale of its kind, a loss is 0.
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
    // A Hann window of length + 2 points without its zeros at both ends. The definition weights samples; powers are
    // weighted by the square.
    const double w =
        0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(n + 1) / static_cast<double>(length + 1));
    weights[n] = w * w;
  }
  double sum = 0;
  int64_t frames = 0;
  // Only whole frames. decibels() is infinite or below -10 for frames without error or without signal; the clamp makes
  // both finite.
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

ClipScore score_clip(Context& ctx, std::span<const float> original, std::span<const float> decoded, int64_t sample_rate,
                     int64_t channels) {
  if (decoded.size() != original.size())
    throw Error(ErrorKind::usage, "score_clip: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples, expected as many");
  PieceScores scores(ctx, sample_rate, channels);
  const auto width = static_cast<size_t>(channels);
  size_t at = 0;  // in values of all channels
  // At least one piece, so that an empty clip has a score, too.
  do {
    const size_t left = original.size() - at;
    // A part of a sample at the end goes along with the last piece, which refuses it.
    size_t n = width * static_cast<size_t>(PieceScores::next_piece(static_cast<int64_t>(left / width), sample_rate));
    if (n + width > left) n = left;
    scores.add(original.subspan(at, n), decoded.subspan(at, n));
    at += n;
  } while (at < original.size());
  return scores.total();
}

PieceScores::PieceScores(Context& ctx, int64_t sample_rate, int64_t channels) : ctx_(ctx), rate_(sample_rate) {
  if (channels < 1)
    throw Error(ErrorKind::usage, "scores: " + std::to_string(channels) + " channels, expected 1 or more");
  channels_.resize(static_cast<size_t>(channels));
}

/// Samples of the next piece if so many are left. Depends on that number alone, so a clip is cut in the same way
/// whether it is there as a whole or arrives in parts: each cut needs to know only that more than 30 s are left.
int64_t PieceScores::next_piece(int64_t samples, int64_t sample_rate) {
  return samples > longest_piece * sample_rate ? cut_piece * sample_rate : samples;
}

/// The mean over the pieces that have a value, weighted by their durations.
void PieceScores::Mean::add(double value, double of_seconds) {
  if (std::isnan(value)) return;
  sum += of_seconds * value;
  seconds += of_seconds;
}
double PieceScores::Mean::value() const { return seconds > 0 ? sum / seconds : none; }

void PieceScores::Channel::add(Context& ctx, int64_t rate, std::span<const float> original,
                               std::span<const float> decoded) {
  const ClipScore s = score_whole(ctx, original, decoded, rate);
  if (pieces++ == 0) {
    first = s;
    if (!original.empty()) from_x = original[0], from_y = decoded[0];
  }
  for (size_t i = 0; i < original.size(); ++i) {
    const double u = original[i], v = decoded[i], a = u - from_x, b = v - from_y;
    // Exact for the whole clip, however it is cut. Differences from the first sample keep the sums small if the clip
    // has an offset, and the variance can be computed from them in one pass.
    power += u * u, noise += (u - v) * (u - v);
    x += a, y += b, xx += a * a, yy += b * b, xy += a * b;
  }
  n += static_cast<double>(original.size());
  silent = silent && s.silent;  // a clip is silent if all of its pieces are
  // A silent piece of a clip that is not silent counts as its silent frames would.
  segmental.add(s.silent ? segmental_snr(decoded, original, rate) : s.segmental_snr, s.seconds);
  stoi.add(s.stoi, s.seconds), estoi.add(s.estoi, s.seconds);
  mel.add(s.mel, s.seconds), stft.add(s.stft, s.seconds);
}

ClipScore PieceScores::Channel::total(int64_t rate) const {
  // A clip of one piece was scored as a whole, with two passes.
  if (pieces < 2) return first;
  ClipScore s;
  s.seconds = n / static_cast<double>(rate);
  s.silent = silent;
  // x, y, xx, yy and xy are sums of differences from the first sample. Moments about the mean do not depend on that.
  const double mx = x / n, my = y / n;
  s.input_mean = from_x + mx, s.output_mean = from_y + my;
  const double energy = std::max(0.0, xx - n * mx * mx), output = std::max(0.0, yy - n * my * my),
               dot = xy - n * mx * my;
  s.input_std = std::sqrt(energy / n), s.output_std = std::sqrt(output / n);
  s.snr = limited(decibels(power, noise));
  if (!is_constant(s.input_std)) {
    // |scale x|^2 with scale = dot / energy. The rest is orthogonal to it, so its power is the difference.
    const double target = dot * dot / energy;
    s.si_sdr = scale_invariant(target, output - target);
  }
  if (!s.silent) s.segmental_snr = segmental.value();
  s.stoi = stoi.value(), s.estoi = estoi.value();
  s.mel = mel.value(), s.stft = stft.value();
  return s;
}

void PieceScores::add(std::span<const float> original, std::span<const float> decoded) {
  const size_t width = channels_.size();
  if (decoded.size() != original.size() || original.size() % width != 0)
    throw Error(ErrorKind::usage, "score of a piece: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples, expected as many" +
                                      (width > 1 ? ", whole ones of " + std::to_string(width) + " channels" : ""));
  if (width == 1) return channels_[0].add(ctx_, rate_, original, decoded);
  for (size_t c = 0; c < width; ++c)
    channels_[c].add(ctx_, rate_, channel_of(original, c, width), channel_of(decoded, c, width));
}

ClipScore PieceScores::total() const {
  std::vector<ClipScore> scores;
  for (const Channel& c : channels_) scores.push_back(c.total(rate_));
  if (scores.size() == 1) return scores[0];
  ClipScore s;
  s.seconds = scores[0].seconds;
  s.silent = std::all_of(scores.begin(), scores.end(), [](const ClipScore& c) { return c.silent; });
  // The SNR of a silent clip is not used, but it has one.
  s.snr = mean_of(scores, &ClipScore::snr, s.silent ? Over::scored : Over::sounding);
  s.si_sdr = mean_of(scores, &ClipScore::si_sdr, Over::scored);
  s.segmental_snr = mean_of(scores, &ClipScore::segmental_snr, Over::scored);
  s.stoi = mean_of(scores, &ClipScore::stoi, Over::scored), s.estoi = mean_of(scores, &ClipScore::estoi, Over::scored);
  s.mel = mean_of(scores, &ClipScore::mel, Over::scored), s.stft = mean_of(scores, &ClipScore::stft, Over::scored);
  s.input_mean = mean_of(scores, &ClipScore::input_mean, Over::scored);
  s.output_mean = mean_of(scores, &ClipScore::output_mean, Over::scored);
  s.input_std = joint_deviation(scores, &ClipScore::input_mean, &ClipScore::input_std);
  s.output_std = joint_deviation(scores, &ClipScore::output_mean, &ClipScore::output_std);
  return s;
}

const ClipScore& Scores::add(ClipScore s) {
  clips_.push_back(std::move(s));
  return clips_.back();
}
double Scores::snr() const { return mean_of(clips_, &ClipScore::snr, Over::sounding); }
double Scores::si_sdr() const { return mean_of(clips_, &ClipScore::si_sdr, Over::scored); }
double Scores::segmental_snr() const { return mean_of(clips_, &ClipScore::segmental_snr, Over::scored); }
double Scores::stoi() const { return mean_of(clips_, &ClipScore::stoi, Over::scored); }
double Scores::estoi() const { return mean_of(clips_, &ClipScore::estoi, Over::scored); }
double Scores::mel() const { return mean_of(clips_, &ClipScore::mel, Over::scored); }
double Scores::stft() const { return mean_of(clips_, &ClipScore::stft, Over::scored); }
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

Evaluation::Evaluation(Codec& codec, int64_t codebooks)
    : codec_(codec),
      counts_(static_cast<size_t>(codec.config().codebooks_used("Evaluation", codebooks)),
              std::vector<int64_t>(static_cast<size_t>(codec.config().codebook_size), 0)),
      sums_(static_cast<size_t>(codec.config().audio_channels)) {}

const ClipScore& Evaluation::add(const std::string& name, std::span<const float> samples, std::vector<float>* decoded,
                                 const JudgeHooks& hooks) {
  JudgeHooks all = hooks;
  if (decoded != nullptr) {
    decoded->clear();
    all.piece = [&](std::span<const float> x, std::span<const float> y) {
      decoded->insert(decoded->end(), y.begin(), y.end());
      if (hooks.piece) hooks.piece(x, y);
    };
  }
  ClipJudge judge(*this, name, std::move(all));
  judge.push(samples);
  return judge.finish();
}

/// A clip on its way. encode() pushes samples, take() receives the codes, decode() counts and decodes them, and score()
/// takes complete pieces from the front of both signals. The decoder lags behind the encoder, so `decoded` is never
/// longer than `original` until the clip ends; values in both begin at the same sample.
struct ClipJudge::Impl {
  /// Codes that are decoded by one call: those of a segment with its scale, or all that are there.
  struct Block {
    std::vector<int32_t> codes;
    float scale = 1;
  };

  Evaluation& to;
  std::string name;
  JudgeHooks hooks;
  size_t channels;
  PieceScores scores;
  std::vector<std::vector<int64_t>> counts;  // the evaluation's counts, with this clip added
  std::vector<Evaluation::Sums> sums;        // per channel
  std::vector<Block> blocks = {};
  std::vector<float> original = {}, decoded = {};  // not scored yet
  double encode_seconds = 0, decode_seconds = 0;
  int64_t samples = 0, frames = 0, scales = 0;  // samples per channel
  WindowedEncoder encoder;
  WindowedDecoder decoder;

  Impl(Evaluation& e, std::string n, JudgeHooks h)
      : to(e),
        name(std::move(n)),
        hooks(std::move(h)),
        channels(static_cast<size_t>(e.codec_.config().audio_channels)),
        scores(e.codec_.context(), e.codec_.config().sample_rate, e.codec_.config().audio_channels),
        // Copies. finish() moves them back, so a clip that an exception stops leaves no trace in the evaluation.
        counts(e.counts_),
        sums(e.sums_),
        encoder(
            e.codec_, [this](View<const int32_t> c, float scale) { take(c, scale); }, 0,
            static_cast<int64_t>(counts.size())),
        decoder(
            e.codec_, [this](std::span<const float> y) { decoded.insert(decoded.end(), y.begin(), y.end()); }, 0,
            static_cast<int64_t>(counts.size())) {}

  /// The encoder's sink. Codes are decoded later, so that encoding and decoding are timed apart.
  void take(View<const int32_t> codes, float scale) {
    if (blocks.empty() || to.codec_.config().segmented()) blocks.push_back({.codes = {}, .scale = scale});
    blocks.back().codes.insert(blocks.back().codes.end(), codes.begin(), codes.end());
    if (to.codec_.config().segment_scale) ++scales;
  }
  /// `last` ends the signal, here and in decode(): what the windows held back follows.
  void encode(std::span<const float> x, bool last) {
    const auto start = Clock::now();
    if (!x.empty()) encoder.push(x);
    if (last) encoder.finish();
    encode_seconds += since(start);
    original.insert(original.end(), x.begin(), x.end());
    samples += static_cast<int64_t>(x.size() / channels);
  }
  void decode(bool last) {
    const CodecConfig& c = to.codec_.config();
    const auto books = static_cast<int64_t>(counts.size());
    const auto columns = static_cast<size_t>(c.codes_per_frame(books));
    // Codes are ordered by frame, then by codebook, or with two rates by position before.
    for (const Block& b : blocks) {
      for (size_t i = 0; i < b.codes.size(); ++i)
        ++counts[static_cast<size_t>(c.codebook_of(static_cast<int64_t>(i % columns), books))]
                [static_cast<size_t>(b.codes[i])];
      frames += static_cast<int64_t>(b.codes.size() / columns);
    }
    const auto start = Clock::now();
    for (const Block& b : blocks)
      if (!b.codes.empty()) decoder.push(b.codes, b.scale);
    if (last) decoder.finish();
    decode_seconds += since(start);
    blocks.clear();
    if (last) decoded.resize(original.size());  // removes the padding of the last frame
  }
  /// Scores the first n samples per channel of what has not been scored, and drops them.
  void score(int64_t n) {
    const auto values = n * static_cast<int64_t>(channels);
    const std::vector<float> x = taken(original, values), y = taken(decoded, values);
    scores.add(x, y);
    for (size_t i = 0; i < x.size(); ++i) {
      const double a = x[i], b = y[i];
      Evaluation::Sums& s = sums[i % channels];
      s.n += 1, s.x += a, s.xx += a * a, s.y += b, s.yy += b * b;
    }
    if (hooks.piece) hooks.piece(x, y);
  }
  /// Samples per channel.
  int64_t waiting() const { return static_cast<int64_t>(original.size() / channels); }
  void done() const {
    if (hooks.progress)
      hooks.progress(static_cast<double>(samples) / static_cast<double>(to.codec_.config().sample_rate));
  }
};

ClipJudge::ClipJudge(Evaluation& e, std::string name, JudgeHooks hooks)
    : impl_(std::make_unique<Impl>(e, std::move(name), std::move(hooks))) {}
ClipJudge::~ClipJudge() = default;

void ClipJudge::push(std::span<const float> samples) {
  Impl& m = *impl_;
  const int64_t rate = m.to.codec_.config().sample_rate;
  const size_t second = static_cast<size_t>(rate) * m.channels;
  if (samples.size() % m.channels != 0)
    throw Error(ErrorKind::usage, "ClipJudge: " + std::to_string(samples.size()) + " values are not whole samples of " +
                                      std::to_string(m.channels) + " channels");
  // One second at a time, whatever is pushed: memory stays bounded, and hooks are called at even intervals.
  for (size_t at = 0; at < samples.size(); at += second) {
    m.encode(samples.subspan(at, std::min(second, samples.size() - at)), false);
    m.decode(false);
    // The decoder lags behind. The clip is at least as long as what has been pushed.
    for (;;) {
      const int64_t left = m.waiting(), n = PieceScores::next_piece(left, rate);
      if (n == left || n * static_cast<int64_t>(m.channels) > static_cast<int64_t>(m.decoded.size())) break;
      m.score(n);
    }
    m.done();
  }
}

const ClipScore& ClipJudge::finish() {
  Impl& m = *impl_;
  const int64_t rate = m.to.codec_.config().sample_rate;
  m.encode({}, true);
  m.decode(true);
  // The pieces that are left, cut as in score_clip().
  do m.score(PieceScores::next_piece(m.waiting(), rate));
  while (!m.original.empty());
  m.done();
  ClipScore s = m.scores.total();
  s.name = m.name;
  // Times of both directions, without scoring.
  s.encode_seconds = m.encode_seconds, s.decode_seconds = m.decode_seconds;
  s.frames = m.frames, s.scales = m.scales;
  // The first change of the evaluation. Nothing behind it but add() can fail.
  m.to.counts_ = std::move(m.counts);
  m.to.sums_ = std::move(m.sums);
  return m.to.Scores::add(std::move(s));
}

/// A sum over all channels and clips.
double Evaluation::total(double Sums::*sum) const {
  double all = 0;
  for (const Sums& s : sums_) all += s.*sum;
  return all;
}
double Evaluation::input_mean() const {
  const double n = total(&Sums::n);
  return n > 0 ? total(&Sums::x) / n : 0;
}
double Evaluation::output_mean() const {
  const double n = total(&Sums::n);
  return n > 0 ? total(&Sums::y) / n : 0;
}
double Evaluation::input_std() const {
  const double n = total(&Sums::n);
  return n > 0 ? std::sqrt(std::max(0.0, total(&Sums::xx) / n - input_mean() * input_mean())) : 0;
}
double Evaluation::output_std() const {
  const double n = total(&Sums::n);
  return n > 0 ? std::sqrt(std::max(0.0, total(&Sums::yy) / n - output_mean() * output_mean())) : 0;
}

/// Per codebook, the share of its codes that occurred at least once.
std::vector<double> Evaluation::usage() const {
  std::vector<double> out;
  for (const auto& book : counts_)
    out.push_back(static_cast<double>(std::count_if(book.begin(), book.end(), [](int64_t c) { return c > 0; })) /
                  static_cast<double>(book.size()));
  return out;
}
/// Per codebook; 0 if no code was counted.
std::vector<double> Evaluation::perplexity() const {
  std::vector<double> out;
  for (const auto& book : counts_) {
    double total = 0, entropy = 0;
    // exp of the entropy of the code's frequencies: the number of codes that, equally used, would carry as much.
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
