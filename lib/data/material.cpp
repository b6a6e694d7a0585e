// The samples of a file as the model sees them: choice of channels, resampling, level. survey() reads all of a file and
// finds what read_material() needs to give any part of it with the same samples.
#include "nacre/data/material.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nacre::training {
namespace {

constexpr int64_t piece_frames = 1 << 15;
/// The channels cancel if the power of their mean is below this fraction of their mean power.
constexpr double cancelled = 0.01;

/// Accumulates the power of each channel and of the mean channel.
class ChannelPower {
 public:
  explicit ChannelPower(int channels) : channels_(static_cast<size_t>(channels)), power_(channels_, 0) {}
  // Sums of squares in double: a long file has more samples than a float can count.
  void add(std::span<const float> interleaved, std::span<const float> mean) {
    for (size_t i = 0; i < interleaved.size(); ++i) power_[i % channels_] += square(interleaved[i]);
    for (const float v : mean) mean_power_ += square(v);
    frames_ += static_cast<int64_t>(mean.size());
  }
  /// The loudest channel if the channels cancel in the mean, else -1.
  int instead_of_mean() const {
    if (frames_ == 0) return -1;
    const double channels = std::accumulate(power_.begin(), power_.end(), 0.0) / static_cast<double>(channels_);
    // Below the level of silence, cancellation has no meaning.
    // The power of all frames if every sample had the magnitude silence_deviation.
    const double least =
        static_cast<double>(silence_deviation) * static_cast<double>(silence_deviation) * static_cast<double>(frames_);
    if (channels < least || mean_power_ >= cancelled * channels) return -1;
    return static_cast<int>(std::max_element(power_.begin(), power_.end()) - power_.begin());
  }

 private:
  static double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }
  size_t channels_;
  std::vector<double> power_;
  double mean_power_ = 0;
  int64_t frames_ = 0;
};

std::vector<float> one_channel(std::span<const float> interleaved, int channels, int channel) {
  if (channel < 0) return to_mono(interleaved, channels);
  const auto width = static_cast<size_t>(channels);
  std::vector<float> out(interleaved.size() / width);
  for (size_t t = 0; t < out.size(); ++t) out[t] = interleaved[t * width + static_cast<size_t>(channel)];
  return out;
}

/// Channels that are resampled: two of a stereo file for a model of two, otherwise the one channel, which a model of
/// two channels gets twice.
int sources(int file_channels, int model_channels) { return model_channels == 2 && file_channels == 2 ? 2 : 1; }

/// A piece of the file with as many channels as sources().
std::vector<float> source_of(std::span<const float> interleaved, const Material& m, int count) {
  if (count == 2) return {interleaved.begin(), interleaved.end()};
  return one_channel(interleaved, m.channels, m.channel);
}

/// Repeats each sample of one channel for a model of two.
void widen(std::vector<float>& x, int from_channels, int to_channels) {
  if (from_channels == to_channels) return;
  std::vector<float> wide;
  wide.reserve(2 * x.size());
  for (const float v : x) wide.insert(wide.end(), 2, v);
  x = std::move(wide);
}

void expect_channels(int channels) {
  if (channels != 1 && channels != 2)
    throw Error(ErrorKind::usage, "material: " + std::to_string(channels) + " channels, expected 1 or 2");
}

/// Accumulates the statistics of one channel that decide about gain and silence.
struct Level {
  float least = 0, most = 0;
  double sum = 0;
  /// Adds every `step`-th sample.
  void add(std::span<const float> x, size_t step, bool first) {
    if (x.empty()) return;
    if (first) least = most = x[0];
    for (size_t i = 0; i < x.size(); i += step) {
      least = std::min(least, x[i]), most = std::max(most, x[i]);
      sum += static_cast<double>(x[i]);
    }
  }
  float peak() const { return std::max(most, -least); }
  // Of a signal without samples, least, most and mean are 0.
  bool silent(int64_t samples) const {
    const double mean = samples > 0 ? sum / static_cast<double>(samples) : 0;
    return std::max(static_cast<double>(most) - mean, mean - static_cast<double>(least)) <
           static_cast<double>(silence_deviation);
  }
};

/// Reads the file once with m.channel. Returns the channel to use instead of the mean, or -1.
int pass(AudioReader& reader, const MaterialOptions& options, Material& m, std::vector<float>* samples, int64_t most) {
  const int count = sources(m.channels, options.channels);
  Resampler resampler(m.sample_rate, options.sample_rate, count);
  ChannelPower power(m.channels);
  std::vector<Level> levels(static_cast<size_t>(count));
  std::vector<float> piece, ready;
  m.frames = m.samples = 0;
  if (samples != nullptr) samples->clear();
  // Beyond `most` the samples are given up, and only the statistics go on.
  const auto take = [&] {
    for (size_t c = 0; c < levels.size(); ++c)
      levels[c].add(std::span(ready).subspan(std::min(c, ready.size())), levels.size(), m.samples == 0);
    m.samples += static_cast<int64_t>(ready.size() / levels.size());
    widen(ready, count, options.channels);
    if (samples != nullptr && m.samples <= most)
      samples->insert(samples->end(), ready.begin(), ready.end());
    else if (samples != nullptr)
      *samples = {};
    ready.clear();
  };
  while (const int64_t n = reader.read(piece_frames, piece)) {
    m.frames += n;
    const std::vector<float> source = source_of(piece, m, count);
    // Only where a mean was taken; `source` is that mean.
    if (m.channels > count && m.channel < 0) power.add(piece, source);
    resampler.process(source, ready);
    take();
    if (options.check) options.check();
  }
  std::vector<float> rest;
  resampler.finish(rest);
  ready = std::move(rest);
  take();
  // One gain for all channels, so that their balance is kept.
  float peak = 0;
  m.silent = true;
  for (const Level& level : levels) {
    m.silent = m.silent && level.silent(m.samples);
    peak = std::max(peak, level.peak());
  }
  m.gain = m.silent ? 1 : peak_gain(peak);
  return power.instead_of_mean();
}

}  // namespace

Material survey(AudioReader& reader, const MaterialOptions& options, std::vector<float>* samples, int64_t most) {
  expect_channels(options.channels);
  Material m{.sample_rate = reader.info().sample_rate, .channels = reader.info().channels};
  // Whether the channels cancel is known only at the end, so such a file is read a second time.
  if (const int channel = pass(reader, options, m, samples, most); channel >= 0) {
    m.channel = channel;
    reader.rewind();
    pass(reader, options, m, samples, most);
  }
  m.warnings = reader.warnings();
  // Before the warnings about channels, which say nothing about the header.
  m.exact_header = m.warnings.empty() && reader.info().frames_known && reader.info().frames == m.frames;
  const bool surround = options.channels == 2 && m.channels > 2;
  if (m.channel >= 0)
    m.warnings.push_back("its channels cancel each other (opposite phase); only channel " +
                         std::to_string(m.channel + 1) + " is used" + (surround ? ", for both of the model" : ""));
  else if (surround)
    m.warnings.push_back("it has " + std::to_string(m.channels) +
                         " channels and the model two; both get the mean of all");
  if (samples != nullptr)
    for (float& v : *samples) v *= m.gain;
  return m;
}

Material survey(const std::string& path, const MaterialOptions& options, std::vector<float>* samples, int64_t most) {
  AudioReader reader(path, options.audio);
  return survey(reader, options, samples, most);
}

void read_material(AudioReader& reader, const Material& m, const MaterialOptions& options, int64_t offset, int64_t n,
                   const SampleSink& sink) {
  if (offset < 0 || n < 0 || n > m.samples - offset)
    throw Error(ErrorKind::usage, reader.name() + ": samples " + std::to_string(offset) + " to " +
                                      std::to_string(offset + n) + " were requested, it has " +
                                      std::to_string(m.samples));
  expect_channels(options.channels);
  if (reader.info().channels != m.channels || reader.info().sample_rate != m.sample_rate)
    throw Error(ErrorKind::input, reader.name() + ": changed while it was in use: it has " +
                                      std::to_string(reader.info().channels) + " channels at " +
                                      std::to_string(reader.info().sample_rate) + " Hz, and had " +
                                      std::to_string(m.channels) + " at " + std::to_string(m.sample_rate) + " Hz");
  // Resampling by `up` / `down` starts at a point where the sample grids of input and output coincide. The point is
  // early enough for the filter to be independent of what precedes it.
  const int64_t common = std::gcd(m.sample_rate, options.sample_rate);
  const int64_t down = m.sample_rate / common, up = options.sample_rate / common;
  const int64_t margin = up == down ? 0 : resampling_reach(m.sample_rate, options.sample_rate);  // of output
  // Output sample group * up and input frame group * down stand at the same time.
  const int64_t group = std::max<int64_t>(0, (offset - margin) / up);
  const int64_t first_frame = group * down;

  std::vector<float> piece, out;
  int64_t frames = 0, at = group * up;  // frames read so far; first output sample of `out`
  const auto read = [&](int64_t wanted) {
    const int64_t got = reader.read(wanted, piece);
    frames += got;
    if (options.check) options.check();
    return got;
  };
  if (m.exact_header) {
    reader.seek(first_frame);
    frames = first_frame;
  } else {
    // A seek is unreliable if the header's length is not that of the file.
    reader.rewind();
    // The frames are decoded and dropped.
    while (frames < first_frame && read(std::min(piece_frames, first_frame - frames)) > 0) {
    }
  }
  const int count = sources(m.channels, options.channels);
  Resampler resampler(m.sample_rate, options.sample_rate, count);
  const int64_t end = offset + n,
                enough = first_frame + (end - at + 2 * margin) * down / up;  // the resampler delays some
  // Reads about as many frames as are needed, then in steps of 1024 until the resampler has given enough.
  for (bool last = false; at < end && !last;) {
    last = read(std::clamp<int64_t>(enough - frames, 1024, piece_frames)) == 0;
    if (last)
      resampler.finish(out);
    else
      resampler.process(source_of(piece, m, count), out);
    for (float& v : out) v *= m.gain;
    const int64_t size = static_cast<int64_t>(out.size()) / count, wide = options.channels;
    widen(out, count, options.channels);
    const int64_t from = std::clamp<int64_t>(offset - at, 0, size), to = std::clamp<int64_t>(end - at, from, size);
    if (to > from)
      sink(std::span(out).subspan(static_cast<size_t>(from * wide), static_cast<size_t>((to - from) * wide)));
    at += size;
    out.clear();
  }
  if (at < end)
    throw Error(ErrorKind::input, reader.name() + ": became shorter while it was in use: " + std::to_string(frames) +
                                      " of " + std::to_string(m.frames) + " frames are there");
}

void read_material(const std::string& path, const Material& m, const MaterialOptions& options, int64_t offset,
                   int64_t n, const SampleSink& sink) {
  AudioReader reader(path, options.audio);
  read_material(reader, m, options, offset, n, sink);
}

void read_material(const std::string& path, const Material& m, const MaterialOptions& options, int64_t offset,
                   std::span<float> to) {
  expect_channels(options.channels);
  const auto wide = static_cast<size_t>(options.channels);
  if (to.size() % wide != 0)
    throw Error(ErrorKind::usage,
                path + ": room for " + std::to_string(to.size()) + " samples of " + std::to_string(wide) + " channels");
  auto next = to.begin();
  read_material(path, m, options, offset, static_cast<int64_t>(to.size() / wide),
                [&](std::span<const float> x) { next = std::copy(x.begin(), x.end(), next); });
}

}  // namespace nacre::training
