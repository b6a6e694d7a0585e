#pragma once
// Audio files in and out. libsndfile does the decoding, and libmpg123 that of MP3; what they accept without a word is
// checked here: data cut short, no data, samples that are not finite, rates and channel counts that no microphone has. A
// file that fails a check is an Error(input) whose text names the file and the reason; a file that cannot be opened or
// written is an Error(io). Nothing is read short in silence: all links of a chained Ogg, all of an MP3 whose index is
// missing or wrong, or an error.
//
// Samples are float, full scale +-1, channels interleaved. Integer formats are scaled; float formats are taken as they
// are.
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/error.h"

namespace nacre::training {

inline constexpr int min_sample_rate = 1000, max_sample_rate = 768000, max_channels = 64;
/// A signal whose largest magnitude is below this (-100 dB; a third of the smallest 16-bit step) is not scaled.
inline constexpr float silence_peak = 1e-5f;
/// A signal that stays this near to its mean (-80 dB; three 16-bit steps) is silence: there is nothing to train on or to
/// judge in an offset, or in the noise of a converter.
inline constexpr float silence_deviation = 1e-4f;
/// Where the peak of a normalised signal lies.
inline constexpr float normalised_peak = 0.95f;
/// A sample beyond this is damage, not audio: it is above the range of 32-bit integers stored as float.
inline constexpr float largest_sample = 1e10f;

struct AudioInfo {
  int sample_rate = 0;
  int channels = 0;
  int64_t frames = 0;  ///< as the header says; 0 or an estimate unless frames_known
  /// False for FLAC that was written to a pipe and for MP3 without an index.
  bool frames_known = true;
};

struct AudioOptions {
  /// Take what is whole of a file that is not: cut short, without its end, damaged somewhere. One warning each.
  bool salvage = false;
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
  explicit AudioReader(const std::string& path, AudioOptions = {});
  AudioReader(AudioReader&&) noexcept;
  AudioReader& operator=(AudioReader&&) noexcept;
  ~AudioReader();

  const AudioInfo& info() const noexcept;
  /// Reads up to `frames` frames into `to` (resized to what was read) and returns their number; 0 at the end. Throws
  /// Error(input) at a sample that is not finite, and at the end when fewer frames came than the header promised.
  int64_t read(int64_t frames, std::vector<float>& to);
  /// Back to the first frame, for a second pass.
  void rewind();
  /// The next read begins at this frame. Decodes up to there where the format cannot seek or its header has no length.
  void seek(int64_t frame);
  /// As messages call it.
  const std::string& name() const noexcept;
  /// What was taken although something is wrong, without the file's name: complete once everything was read.
  const std::vector<std::string>& warnings() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The whole file. `warnings`, if given, gets what AudioReader::warnings() says.
Audio read_audio(const std::string& path, AudioOptions = {}, std::vector<std::string>* warnings = nullptr);

/// Mean over the channels.
std::vector<float> to_mono(std::span<const float> interleaved, int channels);

/// Frames that `frames` become: the nearest whole number, at least 1 if there were any.
int64_t resampled_frames(int64_t frames, int from_rate, int to_rate);

/// Samples of the output, on each side, that one sample of the input reaches.
int64_t resampling_reach(int from_rate, int to_rate);

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
/// True if |x - mean| stays below silence_deviation; also of no samples.
bool is_silence(std::span<const float> x);
/// What to multiply a signal of this peak with so that it peaks at 0.95; 1 for silence, which stays as it is.
float peak_gain(float peak);
/// x *= peak_gain(peak_of(x)), and returns that gain.
float normalise_peak(std::span<float> x);

enum class WavFormat : uint8_t { pcm16, float32 };

/// Writes a WAV file piece by piece under a temporary name; commit() puts it in its place. Without commit() nothing
/// stays. "-" is standard output (spooled first, so that the header is right).
///
/// A file of known length below 4 GiB is plain RIFF: 16 bits have the header of 44 bytes that every reader knows. A longer
/// one is RF64; one of unknown length leaves room to become RF64.
class WavWriter {
 public:
  /// `frames` is the length if it is known; writing more is an Error(usage).
  WavWriter(const std::string& path, int sample_rate, int channels = 1, WavFormat = WavFormat::pcm16,
            std::optional<int64_t> frames = {});
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
