// Arithmetic on samples: channels, resampling by soxr, levels, 16-bit rounding.
#include "nacre/data/audio.h"

#include <soxr.h>

#include <algorithm>
#include <cmath>

#include "data/soxr_memory.h"

namespace nacre::training {

std::vector<float> to_mono(std::span<const float> interleaved, int channels) {
  if (channels < 1 || interleaved.size() % static_cast<size_t>(channels) != 0)
    throw Error(ErrorKind::usage, "to_mono: " + std::to_string(interleaved.size()) +
                                      " samples are not whole frames of " + std::to_string(channels) + " channels");
  if (channels == 1) return {interleaved.begin(), interleaved.end()};
  const size_t c = static_cast<size_t>(channels);
  std::vector<float> mono(interleaved.size() / c);
  for (size_t t = 0; t < mono.size(); ++t) {
    double sum = 0;
    for (size_t i = 0; i < c; ++i) sum += static_cast<double>(interleaved[t * c + i]);
    mono[t] = static_cast<float>(sum / channels);
  }
  return mono;
}

int64_t resampled_frames(int64_t frames, int from_rate, int to_rate) {
  if (frames <= 0) return 0;
  // Rounded to the nearest. The product of a long file exceeds 64 bits only for absurd lengths, which a header may
  // claim.
  const auto exact = static_cast<__int128>(frames) * to_rate;
  return std::max<int64_t>(1, static_cast<int64_t>((exact + from_rate / 2) / from_rate));
}

int64_t resampling_reach(int from_rate, int to_rate) {
  constexpr int64_t reach = 400;  // samples of the lower rate; from 200 on, output is bitwise that of the whole signal
  return (reach * to_rate + std::min(from_rate, to_rate) - 1) / std::min(from_rate, to_rate);
}

struct Resampler::Impl {
  int from = 0, to = 0;
  size_t channels = 1;
  soxr_t soxr = nullptr;
  int64_t taken = 0, given = 0;  // frames of input and of output so far
  std::vector<float> buffer = {};
  ~Impl() {
    if (soxr != nullptr) soxr_delete(soxr);
  }
};

Resampler::Resampler(int from_rate, int to_rate, int channels) : impl_(std::make_unique<Impl>()) {
  for (const int rate : {from_rate, to_rate})
    if (rate < min_sample_rate || rate > max_sample_rate)
      throw Error(ErrorKind::usage, "resample: the rate is " + std::to_string(rate) + ", expected " +
                                        std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
  if (channels < 1 || channels > max_channels)
    throw Error(ErrorKind::usage, "resample: " + std::to_string(channels) + " channels");
  impl_->from = from_rate;
  impl_->to = to_rate;
  impl_->channels = static_cast<size_t>(channels);
  if (from_rate == to_rate) return;
  const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_VHQ, 0);
  // One thread: the result must not depend on their number.
  const soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
  soxr_error_t error = nullptr;
  expect_memory_for_soxr("resample", 0);
  impl_->soxr = soxr_create(from_rate, to_rate, static_cast<unsigned>(channels), &error, nullptr, &quality, &runtime);
  if (error != nullptr) throw Error(ErrorKind::memory, std::string("resample: ") + error);
}
Resampler::Resampler(Resampler&&) noexcept = default;
Resampler& Resampler::operator=(Resampler&&) noexcept = default;
Resampler::~Resampler() = default;

void Resampler::process(std::span<const float> in, std::vector<float>& out) {
  Impl& m = *impl_;
  if (in.size() % m.channels != 0) throw Error(ErrorKind::usage, "resample: the input ends within a frame");
  m.taken += static_cast<int64_t>(in.size() / m.channels);
  if (m.soxr == nullptr) {
    out.insert(out.end(), in.begin(), in.end());
    m.given = m.taken;
    return;
  }
  // soxr takes input and gives output in portions of its own. The loop ends when all is taken and a call gave nothing.
  size_t frames = in.size() / m.channels;
  const float* data = in.data();
  m.buffer.resize(4096 * m.channels);
  expect_memory_for_soxr("resample", in.size() + m.buffer.size());
  for (size_t used = 1, made = 1; frames > 0 || made > 0;) {
    // A null input would signal the end of the stream.
    static const float nothing = 0;
    if (soxr_error_t e =
            soxr_process(m.soxr, frames > 0 ? data : &nothing, frames, &used, m.buffer.data(), 4096, &made))
      throw Error(ErrorKind::memory, std::string("resample: ") + e);
    out.insert(out.end(), m.buffer.begin(), m.buffer.begin() + static_cast<std::ptrdiff_t>(made * m.channels));
    m.given += static_cast<int64_t>(made);
    data += used * m.channels;
    frames -= used;
  }
}

void Resampler::finish(std::vector<float>& out) {
  Impl& m = *impl_;
  if (m.soxr == nullptr) return;
  m.buffer.resize(4096 * m.channels);
  expect_memory_for_soxr("resample", m.buffer.size());
  for (size_t made = 1; made > 0 && m.taken > 0;) {
    if (soxr_error_t e = soxr_process(m.soxr, nullptr, 0, nullptr, m.buffer.data(), 4096, &made))
      throw Error(ErrorKind::memory, std::string("resample: ") + e);
    out.insert(out.end(), m.buffer.begin(), m.buffer.begin() + static_cast<std::ptrdiff_t>(made * m.channels));
    m.given += static_cast<int64_t>(made);
  }
  // The length that soxr produces may differ by a frame because of its own rounding.
  // Only the end is changed.
  const int64_t wanted = resampled_frames(m.taken, m.from, m.to);
  const int64_t size = static_cast<int64_t>(out.size()) + (wanted - m.given) * static_cast<int64_t>(m.channels);
  out.resize(static_cast<size_t>(std::max<int64_t>(size, 0)), 0.0f);
  m.given = wanted;
}

std::vector<float> resample(std::span<const float> interleaved, int channels, int from_rate, int to_rate) {
  Resampler resampler(from_rate, to_rate, channels);
  std::vector<float> out;
  resampler.process(interleaved, out);
  resampler.finish(out);
  return out;
}

float peak_of(std::span<const float> x) {
  float peak = 0;
  for (const float v : x) peak = std::max(peak, std::fabs(v));
  return peak;
}
bool is_silence(std::span<const float> x) {
  if (x.empty()) return true;
  const auto [least, most] = std::minmax_element(x.begin(), x.end());
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v);
  const double mean = sum / static_cast<double>(x.size());
  return std::max(static_cast<double>(*most) - mean, mean - static_cast<double>(*least)) <
         static_cast<double>(silence_deviation);
}
float peak_gain(float peak) { return peak < silence_peak ? 1.0f : normalised_peak / peak; }
float normalise_peak(std::span<float> x) {
  const float gain = peak_gain(peak_of(x));
  if (gain != 1.0f)
    for (float& v : x) v *= gain;
  return gain;
}

int16_t to_pcm16(float x, int64_t& clipped) {
  // The scale is 32768 because the reader divides by 32768. 16-bit samples therefore survive reading and writing
  // unchanged.
  const float scaled = std::nearbyint(x * 32768.0f);
  if (scaled > 32767.0f || scaled < -32768.0f) {
    ++clipped;
    return scaled > 0 ? int16_t{32767} : int16_t{-32768};
  }
  return static_cast<int16_t>(scaled);
}

}  // namespace nacre::training
