#pragma once
// Reading and writing of audio files. libsndfile decodes all formats but MP3, which libmpg123 decodes. This layer
// checks what both accept silently: truncated data, missing data, samples that are not finite, and implausible sample
// rates and channel counts. A file that fails a check throws Error(input), which names the file and the reason. A file
// that cannot be opened or written throws Error(io). No file is shortened silently: the reader delivers all links of a
// chained Ogg and all frames of an MP3 whose index is missing or wrong, or it throws.
//
// Samples are float with full scale +-1 and interleaved channels. Integer formats are scaled to that range; values of
// float formats are kept.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nacre/error.h"

namespace nacre::training {

inline constexpr int min_sample_rate = 1000, max_sample_rate = 768000, max_channels = 64;
/// A signal whose largest magnitude is below this (-100 dB, a third of the smallest 16-bit step) is not scaled.
inline constexpr float silence_peak = 1e-5f;
/// A signal whose samples all stay this near to their mean (-80 dB, three 16-bit steps) counts as silence. A constant
/// offset or a converter's noise offers nothing to train on or to judge.
inline constexpr float silence_deviation = 1e-4f;
/// Peak magnitude of a normalised signal.
inline constexpr float normalised_peak = 0.95f;
/// A larger magnitude is treated as damage. It exceeds the range of 32-bit integers that are stored as float.
inline constexpr float largest_sample = 1e10f;

struct AudioInfo {
  int sample_rate = 0;
  int channels = 0;
  int64_t frames = 0;  ///< according to the header; 0 or an estimate unless frames_known
  /// False for FLAC that was written to a pipe and for MP3 without an index.
  bool frames_known = true;
};

struct AudioOptions {
  /// Reads the intact parts of a file that is truncated, lacks its end or is damaged. Each defect gives one warning.
  bool salvage = false;
};

struct Audio {
  std::vector<float> samples;  ///< interleaved
  int sample_rate = 0;
  int channels = 1;
  int64_t frames() const { return channels > 0 ? static_cast<int64_t>(samples.size()) / channels : 0; }
};

/// Reads a file piece by piece. Memory use does not depend on the file's length.
class AudioReader {
 public:
  /// "-" is standard input. Input that cannot be rewound (standard input, a pipe) is first copied to an unlinked
  /// temporary file in $TMPDIR or /tmp. Throws Error(io) if the file cannot be opened, Error(input) if it is not valid
  /// audio.
  explicit AudioReader(const std::string& path, AudioOptions = {});
  AudioReader(AudioReader&&) noexcept;
  AudioReader& operator=(AudioReader&&) noexcept;
  ~AudioReader();

  const AudioInfo& info() const noexcept;
  /// Reads up to `frames` frames into `to`, resizes it to what was read, and returns the number of frames; 0 at the
  /// end. Throws Error(input) at a sample that is not finite, and at the end if there were fewer frames than the header
  /// declares.
  int64_t read(int64_t frames, std::vector<float>& to);
  /// Returns to the first frame, for a second pass.
  void rewind();
  /// The next read begins at `frame`. Where the format cannot seek or the header has no length, the reader decodes up
  /// to that frame.
  void seek(int64_t frame);
  /// The name of the file in messages.
  const std::string& name() const noexcept;
  /// Defects that were accepted, without the file's name. The list is complete once everything has been read.
  const std::vector<std::string>& warnings() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads a signal while it arrives on standard input or a pipe. Nothing is copied to a file, and no read waits for more
/// than one frame. Reads WAV, RF64, Wave64, AIFF, AU and CAF with samples of one size: integers, floats, A-law, mu-law.
/// A header that says the length is unknown, as programs write it to a pipe, is read up to the end of the input. The
/// checks are those of AudioReader.
class LiveReader {
 public:
  /// `waiting` is called at least four times a second while no input comes. What it throws ends the call.
  explicit LiveReader(const std::string& path, AudioOptions = {}, std::function<void()> waiting = {});
  LiveReader(LiveReader&&) noexcept;
  LiveReader& operator=(LiveReader&&) noexcept;
  ~LiveReader();

  /// frames_known is false if the header has no length.
  const AudioInfo& info() const noexcept;
  /// Waits for one frame and reads those that are there, up to `frames` of them. Otherwise as AudioReader::read().
  int64_t read(int64_t frames, std::vector<float>& to);
  /// Reads and drops what follows the samples, so that the program that writes to the pipe does not fail.
  void drain();
  const std::string& name() const noexcept;
  const std::vector<std::string>& warnings() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads the whole file. `warnings`, if given, receives AudioReader::warnings().
Audio read_audio(const std::string& path, AudioOptions = {}, std::vector<std::string>* warnings = nullptr);

/// The mean over the channels: [frames, channels] to [frames].
std::vector<float> to_mono(std::span<const float> interleaved, int channels);

/// The number of frames after resampling `frames` frames: rounded to nearest, and at least 1 if `frames` is positive.
int64_t resampled_frames(int64_t frames, int from_rate, int to_rate);

/// The number of output samples, on each side, that one input sample influences.
int64_t resampling_reach(int from_rate, int to_rate);

/// Resamples a stream with soxr (very high quality, linear phase, no delay). The output does not depend on how the
/// input was split into pieces. It has resampled_frames(all input) frames. Equal rates pass the samples through
/// unchanged.
class Resampler {
 public:
  Resampler(int from_rate, int to_rate, int channels = 1);
  Resampler(Resampler&&) noexcept;
  Resampler& operator=(Resampler&&) noexcept;
  ~Resampler();
  /// Appends the samples that are ready to `out`.
  void process(std::span<const float> interleaved, std::vector<float>& out);
  /// Appends the remaining samples. The object cannot be used afterwards.
  void finish(std::vector<float>& out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Resamples a whole interleaved signal with Resampler.
std::vector<float> resample(std::span<const float> interleaved, int channels, int from_rate, int to_rate);

/// The largest |x|.
float peak_of(std::span<const float> x);
/// True if |x - mean| stays below silence_deviation, and for an empty span.
bool is_silence(std::span<const float> x);
/// The factor that scales a signal of this peak to a peak of 0.95. It is 1 for silence, which is not scaled.
float peak_gain(float peak);
/// Multiplies x by peak_gain(peak_of(x)) and returns that gain.
float normalise_peak(std::span<float> x);

enum class WavFormat : uint8_t { pcm16, float32 };

/// Writes a WAV file piece by piece under a temporary name. commit() moves it to its place. Without commit() no file
/// remains. "-" is standard output; the data is spooled first, so that the header is correct.
///
/// A file of known length below 4 GiB is plain RIFF. With 16-bit samples it has the 44-byte header that every reader
/// knows. A longer file is RF64. A file of unknown length reserves room in its header for RF64.
class WavWriter {
 public:
  /// `frames` is the length, if it is known. Writing more frames throws Error(usage).
  WavWriter(const std::string& path, int sample_rate, int channels = 1, WavFormat = WavFormat::pcm16,
            std::optional<int64_t> frames = {});
  WavWriter(WavWriter&&) noexcept;
  WavWriter& operator=(WavWriter&&) noexcept;
  ~WavWriter();
  /// Throws Error(io) if writing fails, Error(usage) for a sample that is not finite.
  void write(std::span<const float> interleaved);
  /// Flushes, checks and renames the file. Returns the number of samples that were clipped to 16 bits.
  int64_t commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes a whole file with WavWriter. Returns the number of clipped samples.
int64_t write_wav(const std::string& path, const Audio&, WavFormat = WavFormat::pcm16);
/// True if plain RIFF, whose sizes have 32 bits, can hold so many frames.
bool fits_wav(int64_t frames, int channels, WavFormat);
/// The header of a plain RIFF file; the samples follow it. Without a length, all sizes are 0xFFFFFFFF, as programs
/// write them to a pipe. Throws Error(usage) for a length that does not fit.
std::string wav_header(int sample_rate, int channels, WavFormat, std::optional<int64_t> frames = {});
/// A small 16-bit WAV file in memory.
std::string wav_bytes(std::span<const float> interleaved, int sample_rate, int channels = 1);

/// Rounds to the nearest 16-bit step (halves to even) and clips. Increments `clipped` if x was clipped.
int16_t to_pcm16(float x, int64_t& clipped);

}  // namespace nacre::training
