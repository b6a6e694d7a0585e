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

/// Accumulates the statistics that decide about gain and silence.
struct Level {
  float least = 0, most = 0;
  double sum = 0;
  void add(std::span<const float> x, bool first) {
    if (x.empty()) return;
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    least = first ? *low : std::min(least, *low), most = first ? *high : std::max(most, *high);
    for (const float v : x) sum += static_cast<double>(v);
  }
  float peak() const { return std::max(most, -least); }
  bool silent(int64_t samples) const {
    const double mean = samples > 0 ? sum / static_cast<double>(samples) : 0;
    return std::max(static_cast<double>(most) - mean, mean - static_cast<double>(least)) <
           static_cast<double>(silence_deviation);
  }
};

/// Reads the file once with m.channel. Returns the channel to use instead of the mean, or -1.
int pass(AudioReader& reader, const MaterialOptions& options, Material& m, std::vector<float>* samples, int64_t most) {
  Resampler resampler(m.sample_rate, options.sample_rate);
  ChannelPower power(m.channels);
  Level level;
  std::vector<float> piece, ready;
  m.frames = m.samples = 0;
  if (samples != nullptr) samples->clear();
  // Beyond `most` the samples are given up, and only the statistics go on.
  const auto take = [&] {
    level.add(ready, m.samples == 0);
    m.samples += static_cast<int64_t>(ready.size());
    if (samples != nullptr && m.samples <= most)
      samples->insert(samples->end(), ready.begin(), ready.end());
    else if (samples != nullptr)
      *samples = {};
    ready.clear();
  };
  while (const int64_t n = reader.read(piece_frames, piece)) {
    m.frames += n;
    const std::vector<float> mono = one_channel(piece, m.channels, m.channel);
    if (m.channels > 1 && m.channel < 0) power.add(piece, mono);
    resampler.process(mono, ready);
    take();
    if (options.check) options.check();
  }
  std::vector<float> rest;
  resampler.finish(rest);
  ready = std::move(rest);
  take();
  m.silent = level.silent(m.samples);
  m.gain = m.silent ? 1 : peak_gain(level.peak());
  return power.instead_of_mean();
}

}  // namespace

Material survey(AudioReader& reader, const MaterialOptions& options, std::vector<float>* samples, int64_t most) {
  Material m{.sample_rate = reader.info().sample_rate, .channels = reader.info().channels};
  // Whether the channels cancel is known only at the end, so such a file is read a second time.
  if (const int channel = pass(reader, options, m, samples, most); channel >= 0) {
    m.channel = channel;
    reader.rewind();
    pass(reader, options, m, samples, most);
  }
  m.warnings = reader.warnings();
  // Before the warning about channels, which says nothing about the header.
  m.exact_header = m.warnings.empty() && reader.info().frames_known && reader.info().frames == m.frames;
  if (m.channel >= 0)
    m.warnings.push_back("its channels cancel each other (opposite phase); only channel " +
                         std::to_string(m.channel + 1) + " is used");
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
  // Resampling by `up` / `down` starts at a point where the sample grids of input and output coincide. The point is
  // early enough for the filter to be independent of what precedes it.
  const int64_t common = std::gcd(m.sample_rate, options.sample_rate);
  const int64_t down = m.sample_rate / common, up = options.sample_rate / common;
  const int64_t margin = up == down ? 0 : resampling_reach(m.sample_rate, options.sample_rate);  // of output
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
  Resampler resampler(m.sample_rate, options.sample_rate);
  const int64_t end = offset + n,
                enough = first_frame + (end - at + 2 * margin) * down / up;  // the resampler delays some
  // Reads about as many frames as are needed, then in steps of 1024 until the resampler has given enough.
  for (bool last = false; at < end && !last;) {
    last = read(std::clamp<int64_t>(enough - frames, 1024, piece_frames)) == 0;
    if (last)
      resampler.finish(out);
    else
      resampler.process(one_channel(piece, m.channels, m.channel), out);
    for (float& v : out) v *= m.gain;
    const auto size = static_cast<int64_t>(out.size());
    const int64_t from = std::clamp<int64_t>(offset - at, 0, size), to = std::clamp<int64_t>(end - at, from, size);
    if (to > from) sink(std::span(out).subspan(static_cast<size_t>(from), static_cast<size_t>(to - from)));
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
  auto next = to.begin();
  read_material(path, m, options, offset, static_cast<int64_t>(to.size()),
                [&](std::span<const float> x) { next = std::copy(x.begin(), x.end(), next); });
}

}  // namespace nacre::training
