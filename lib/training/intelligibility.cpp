// STOI and ESTOI; the header has the definitions. The order of the steps: both signals to 10 kHz (at_10_khz), silent
// frames out of both (loud_frames, join), norms of third-octave bands (band_norms), then correlations per segment of 30
// frames (intelligibility). The transform runs in float on the context; all sums are in double on the host.
#include "nacre/training/intelligibility.h"

#include <soxr.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "data/soxr_memory.h"
#include "nacre/data/audio.h"
#include "nacre/ops/stft.h"

namespace nacre::training {
namespace {

// The constants of STOI (Taal et al. 2011) and ESTOI (Jensen and Taal 2016); see intelligibility.h.
constexpr int rate = 10000;
constexpr size_t frame = 256, hop = frame / 2, transform = 512, bins = transform / 2 + 1;
constexpr size_t bands = 15, segment = 30;
constexpr double lowest_band = 150, dynamic_range = 40, distortion_bound = -15;  // Hz, dB, dB
constexpr size_t block = 128;  // frames per transform call; bounds memory independently of the clip's length

using Frame = std::array<double, frame>;

const Frame& window() {
  static const Frame w = [] {
    Frame made{};
    for (size_t n = 0; n < frame; ++n)
      // A Hann window of 258 points without its zeros at both ends.
      made[n] = 0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(n + 1) / (frame + 1));
    return made;
  }();
  return w;
}

/// Resamples to 10 kHz. As in Octave's resample and pystoi, the lower Nyquist frequency is the middle and not the end
/// of the filter's transition band. soxr's default filters would remove frequencies that STOI uses (from 8 kHz: 3.65 to
/// 4 kHz). Frequencies aliased at 5 kHz reach down to 4.5 kHz, which is above all bands.
std::vector<float> at_10_khz(std::span<const float> x, int64_t from) {
  if (from == rate) return {x.begin(), x.end()};
  soxr_quality_spec_t quality = soxr_quality_spec(SOXR_VHQ, 0);
  quality.passband_end = 0.9, quality.stopband_begin = 1.1;
  const soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
  std::vector<float> out(
      static_cast<size_t>(resampled_frames(static_cast<int64_t>(x.size()), static_cast<int>(from), rate)));
  size_t made = 0;
  expect_memory_for_soxr("intelligibility", x.size() + out.size());
  if (soxr_error_t e = soxr_oneshot(static_cast<double>(from), rate, 1, x.data(), x.size(), nullptr, out.data(),
                                    out.size(), &made, nullptr, &quality, &runtime))
    throw Error(ErrorKind::memory, std::string("intelligibility: ") + e);
  return out;
}

/// The first bin of each band, followed by the bin after the last band.
std::array<size_t, bands + 1> band_edges() {
  std::array<size_t, bands + 1> edges{};
  for (size_t j = 0; j <= bands; ++j)
    edges[j] = static_cast<size_t>(
        // Third-octave bands around 150 Hz * 2^(j / 3): the edges lie a sixth of an octave below and above, at the
        // nearest bins.
        std::lround(lowest_band * std::exp2((2 * static_cast<double>(j) - 1) / 6) * transform / rate));
  return edges;
}

/// Number of frames that begin before size - 256. The frame that ends with the last sample is not counted.
size_t frames_of(size_t size) { return size > frame ? (size - frame - 1) / hop + 1 : 0; }

/// Indices of the frames of the original that are within 40 dB of its loudest frame.
std::vector<size_t> loud_frames(std::span<const float> x) {
  const Frame& w = window();
  std::vector<double> energies(frames_of(x.size()));
  for (size_t f = 0; f < energies.size(); ++f)
    for (size_t n = 0; n < frame; ++n) {
      const double v = w[n] * static_cast<double>(x[f * hop + n]);
      energies[f] += v * v;
    }
  std::vector<size_t> loud;
  if (energies.empty()) return loud;
  const double least = *std::max_element(energies.begin(), energies.end()) * std::pow(10.0, -dynamic_range / 10);
  for (size_t f = 0; f < energies.size(); ++f)
    if (energies[f] > least) loud.push_back(f);
  return loud;
}

/// Windows the chosen frames, at least one, and overlap-adds them as neighbours.
std::vector<double> join(std::span<const float> x, const std::vector<size_t>& chosen) {
  const Frame& w = window();
  std::vector<double> out((chosen.size() - 1) * hop + frame);
  for (size_t f = 0; f < chosen.size(); ++f)
    for (size_t n = 0; n < frame; ++n) out[f * hop + n] += w[n] * static_cast<double>(x[chosen[f] * hop + n]);
  return out;
}

/// Norm of each band in each frame, for two signals: [band][frame].
struct Bands {
  size_t frames = 0;
  std::vector<double> x, y;
};

/// Uses stft_forward, whose window is a periodic Hann window of 512. Each frame of 256 samples is placed in the middle
/// of that window, where the window is at least 1/2, and is divided by it there. The result is STOI's own window with
/// zeros around it; the position of a frame among the zeros does not change magnitudes. Frames are 512 samples apart,
/// so each window covers one frame.
Bands band_norms(Context& ctx, const std::vector<double>& x, const std::vector<double>& y) {
  constexpr size_t middle = (transform - frame) / 2, time = block * transform + frame / 2, spectra = block + 1;
  Frame weights = window();
  for (size_t n = 0; n < frame; ++n)
    weights[n] /= 0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(middle + n) / transform);
  const std::array<size_t, bands + 1> edges = band_edges();
  Bands out;
  out.frames = frames_of(x.size());
  out.x.resize(bands * out.frames);
  out.y.resize(bands * out.frames);

  const StftPlan plan(ctx, {.batch = 2, .time = static_cast<int64_t>(time)},
                      {.window = static_cast<int64_t>(transform),
                       .hop = static_cast<int64_t>(transform),
                       .padding = StftPadding::zero});
  const Memory signal_memory(ctx, 2 * time * sizeof(float)),
      spectrum_memory(ctx, 2 * spectra * bins * 2 * sizeof(float));
  const View<float> signal(reinterpret_cast<float*>(signal_memory.data()), plan.signal());
  const View<float> spectrum(reinterpret_cast<float*>(spectrum_memory.data()), plan.spectrum());
  std::vector<float> samples(2 * time), values(2 * spectra * bins * 2);
  // The last block may have fewer frames. Samples of the block before it remain behind them; the spectra of those are
  // not read.
  for (size_t first = 0; first < out.frames; first += block) {
    const size_t count = std::min(block, out.frames - first);
    for (size_t f = 0; f < count; ++f)
      for (size_t n = 0; n < frame; ++n) {
        // Spectrum f + 1 is centred on sample 512 (f + 1).
        const size_t from = (first + f) * hop + n, to = (f + 1) * transform - frame / 2 + n;
        samples[to] = static_cast<float>(weights[n] * x[from]);
        // The second item of the batch.
        samples[time + to] = static_cast<float>(weights[n] * y[from]);
      }
    ctx.write<float>(samples, signal);
    stft_forward(ctx, {.plan = plan, .x = signal, .spectrum = spectrum});
    ctx.read<float>(spectrum, values);
    for (size_t f = 0; f < count; ++f)
      for (size_t j = 0; j < bands; ++j) {
        const auto norm = [&](size_t row) {
          double sum = 0;
          for (size_t i = 2 * (row * bins + edges[j]); i < 2 * (row * bins + edges[j + 1]); ++i)
            sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
          return std::sqrt(sum);
        };
        out.x[j * out.frames + first + f] = norm(f + 1);
        out.y[j * out.frames + first + f] = norm(spectra + f + 1);
      }
  }
  return out;
}

double norm_of(const double* v, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += v[i] * v[i];
  return std::sqrt(sum);
}

/// Normalises `n` values, `stride` apart, to mean 0 and norm 1. Values that do not vary become zeros.
void normalise(double* v, size_t n, size_t stride) {
  double mean = 0, sum = 0;
  for (size_t i = 0; i < n; ++i) mean += v[i * stride] / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) {
    v[i * stride] -= mean;
    sum += v[i * stride] * v[i * stride];
  }
  const double scale = sum > 0 ? 1 / std::sqrt(sum) : 0;
  for (size_t i = 0; i < n; ++i) v[i * stride] *= scale;
}

/// Of vectors with mean 0 and norm 1, their correlation coefficient.
double inner(const double* a, const double* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

Intelligibility intelligibility(Context& ctx, std::span<const float> decoded, std::span<const float> original,
                                int64_t sample_rate) {
  if (decoded.size() != original.size())
    throw Error(ErrorKind::usage, "intelligibility: " + std::to_string(decoded.size()) + " and " +
                                      std::to_string(original.size()) + " samples, expected as many");
  Intelligibility score;
  if (sample_rate > max_sample_rate)
    throw Error(ErrorKind::usage, "intelligibility: rate " + std::to_string(sample_rate) + ", expected at most " +
                                      std::to_string(max_sample_rate));
  if (sample_rate < min_intelligibility_rate || peak_of(original) < silence_peak) return score;
  const std::vector<float> x = at_10_khz(original, sample_rate);
  const std::vector<float> y = at_10_khz(decoded, sample_rate);
  // Silent frames are judged by the original alone, and the same frames are removed from both signals.
  const std::vector<size_t> loud = loud_frames(x);
  // Joining n frames leaves n - 1, because the last one ends with the last sample.
  if (loud.size() < segment + 1) return score;
  const Bands b = band_norms(ctx, join(x, loud), join(y, loud));

  // The largest value that STOI lets a band of the decoded signal have, relative to the original.
  const double most = 1 + std::pow(10.0, -distortion_bound / 20);
  const size_t segments = b.frames - segment + 1;
  std::array<double, bands * segment> sx{}, sy{};  // [band][frame] of one segment
  double stoi = 0, estoi = 0;
  for (size_t m = 0; m < segments; ++m) {
    for (size_t j = 0; j < bands; ++j) {
      double* const u = sx.data() + j * segment;
      double* const v = sy.data() + j * segment;
      std::copy_n(b.x.data() + j * b.frames + m, segment, u);
      std::copy_n(b.y.data() + j * b.frames + m, segment, v);
      std::array<double, segment> clipped{};
      const double level = norm_of(v, segment), gain = level > 0 ? norm_of(u, segment) / level : 0;
      // STOI scales each band of a segment to the original's energy, clips it, and correlates over time.
      for (size_t n = 0; n < segment; ++n) clipped[n] = std::min(gain * v[n], most * u[n]);
      normalise(u, segment, 1);
      normalise(clipped.data(), segment, 1);
      normalise(v, segment, 1);
      stoi += inner(u, clipped.data(), segment);
    }
    // ESTOI normalises the bands over time, as done above, then each frame over the bands, and correlates. It uses no
    // scaling and no clipping.
    for (size_t n = 0; n < segment; ++n) {
      normalise(sx.data() + n, bands, segment);
      normalise(sy.data() + n, bands, segment);
    }
    estoi += inner(sx.data(), sy.data(), sx.size()) / segment;
  }
  score.stoi = stoi / static_cast<double>(bands * segments);
  score.estoi = estoi / static_cast<double>(segments);
  return score;
}

}  // namespace nacre::training
