#pragma once
// Audio files in and out. libsndfile does the decoding; what it accepts without a word is checked here: data cut short,
// no data, samples that are not finite, rates and channel counts that no microphone has. A file that fails a check is
// an Error(input) whose text names the file and the reason; a file that cannot be opened or written is an Error(io).
//
// Samples are float, full scale +-1, channels interleaved. Integer formats are scaled; float formats are taken as they
// are.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nacre/error.h"

namespace nacre::training {

inline constexpr int min_sample_rate = 1000, max_sample_rate = 768000, max_channels = 64;
/// A signal whose largest magnitude is below this (-100 dB; a third of the smallest 16-bit step) is silence.
inline constexpr float silence_peak = 1e-5f;
/// Where the peak of a normalised signal lies.
inline constexpr float normalised_peak = 0.95f;
/// A sample beyond this is damage, not audio: it is above the range of 32-bit integers stored as float.
inline constexpr float largest_sample = 1e10f;

struct AudioInfo {
  int sample_rate = 0;
  int channels = 0;
  int64_t frames = 0;  ///< as the header says; MP3 without an index only estimates it
};

struct Audio {
  std::vector<float> samples;  ///< interleaved
  int sample_rate = 0;
  int channels = 1;
  int64_t frames() const { return channels > 0 ? static_cast<int64_t>(samples.size()) / channels : 0; }
};

/// Reads a file piece by piece, in memory that does not depend on its length.
class AudioReader {
 public:
  /// "-" is standard input. What cannot be rewound (standard input, a pipe) is first copied to an unlinked temporary
  /// file in $TMPDIR or /tmp. Throws Error(io) when it cannot be opened, Error(input) when it is not sound audio.
  explicit AudioReader(const std::string& path);
  AudioReader(AudioReader&&) noexcept;
  AudioReader& operator=(AudioReader&&) noexcept;
  ~AudioReader();

  const AudioInfo& info() const noexcept;
  /// Reads up to `frames` frames into `to` (resized to what was read) and returns their number; 0 at the end. Throws
  /// Error(input) at a sample that is not finite, and at the end when fewer frames came than the header promised.
  int64_t read(int64_t frames, std::vector<float>& to);
  /// Back to the first frame, for a second pass.
  void rewind();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The whole file.
Audio read_audio(const std::string& path);

/// Mean over the channels.
std::vector<float> to_mono(std::span<const float> interleaved, int channels);

/// Frames that `frames` become: the nearest whole number, at least 1 if there were any.
int64_t resampled_frames(int64_t frames, int from_rate, int to_rate);

/// Resamples a stream (soxr, very high quality, linear phase, no delay). The output does not depend on how the input
/// was cut into pieces, and has resampled_frames(all input) frames. Equal rates pass through.
class Resampler {
 public:
  Resampler(int from_rate, int to_rate, int channels = 1);
  Resampler(Resampler&&) noexcept;
  Resampler& operator=(Resampler&&) noexcept;
  ~Resampler();
  /// Appends what is ready to `out`.
  void process(std::span<const float> interleaved, std::vector<float>& out);
  /// Appends the rest. The object is used up.
  void finish(std::vector<float>& out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::vector<float> resample(std::span<const float> interleaved, int channels, int from_rate, int to_rate);

/// max |x|.
float peak_of(std::span<const float> x);
/// What to multiply a signal of this peak with so that it peaks at 0.95; 1 for silence, which stays as it is.
float peak_gain(float peak);
/// x *= peak_gain(peak_of(x)), and returns that gain.
float normalise_peak(std::span<float> x);

enum class WavFormat : uint8_t { pcm16, float32 };

/// Writes a WAV file piece by piece under a temporary name; commit() puts it in its place. Without commit() nothing
/// stays. "-" is standard output (spooled first, so that the header is right). Past 4 GiB the file becomes RF64.
class WavWriter {
 public:
  WavWriter(const std::string& path, int sample_rate, int channels = 1, WavFormat = WavFormat::pcm16);
  WavWriter(WavWriter&&) noexcept;
  WavWriter& operator=(WavWriter&&) noexcept;
  ~WavWriter();
  /// Throws Error(io) when the disk does, Error(usage) for a sample that is not finite.
  void write(std::span<const float> interleaved);
  /// Flushes, checks, renames. Returns the number of samples that pcm16 had to clip.
  int64_t commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One call: returns the number of clipped samples.
int64_t write_wav(const std::string& path, const Audio&, WavFormat = WavFormat::pcm16);
/// A small WAV file (PCM16) in memory.
std::string wav_bytes(std::span<const float> interleaved, int sample_rate, int channels = 1);

/// Nearest 16-bit step (halves to even), clipped; `clipped` counts.
int16_t to_pcm16(float x, int64_t& clipped);

}  // namespace nacre::training
