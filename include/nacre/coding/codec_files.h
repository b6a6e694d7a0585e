#pragma once
// Audio files to .nacre streams and back, in memory that does not depend on their length. What `nacre encode` and
// `nacre decode` are command lines for.
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nacre/codec/codec.h"
#include "nacre/data/audio.h"
#include "nacre/files/stream.h"

namespace nacre::training {

/// Thrown when FileHooks::stop asks for it; everything half-written has been removed by then.
struct Stopped {
  int signal = 0;
};

struct FileHooks {
  /// Seconds of audio done, and in all (0: not known).
  std::function<void(double, double)> progress = {};
  /// Set by a signal handler to the signal's number.
  const std::atomic<int>* stop = nullptr;
  /// True while there is something half-written that leaving at once would leave behind.
  std::atomic<bool>* unfinished = nullptr;
};

struct FileReport {
  double seconds = 0;       ///< of audio
  double wall_seconds = 0;  ///< that it took
  uint64_t bytes = 0;       ///< of the stream
  int channels = 0;
  int sample_rate = 0;  ///< of the audio file
  int64_t samples = 0;  ///< per channel
  int64_t clipped = 0;  ///< decode, 16 bits: samples beyond full scale
  std::vector<std::string> warnings = {};  ///< encode: AudioReader::warnings()
};

struct DecodeOptions {
  WavFormat format = WavFormat::pcm16;
  bool model_rate = false;  ///< keep the model's sample rate instead of the original's
};

/// Encodes and decodes files with one model. Outputs appear whole or not at all; "-" is standard input or output.
class FileCodec {
 public:
  explicit FileCodec(Codec&);

  /// Scales by the peak over all channels (see peak_gain), resamples, codes channel by channel. A silent file is coded
  /// as it is, with the smallest gain, so that it decodes to silence. Throws what AudioReader throws, and Error(io).
  FileReport encode(const std::string& audio, const std::string& stream, const FileHooks& = {}, AudioOptions = {});
  /// Throws Error(input) for a damaged stream and for one that another model made.
  FileReport decode(const std::string& stream, const std::string& audio, const DecodeOptions& = {},
                    const FileHooks& = {});

  uint64_t identity() const noexcept { return identity_; }

 private:
  Codec& codec_;
  uint64_t identity_;
};

/// What encode() writes into the header, but for gain and length.
StreamHeader stream_header(const CodecConfig&, uint64_t identity, int sample_rate, int channels);
/// Bytes of a stream of so many frames per channel.
uint64_t stream_bytes(const StreamHeader&, uint64_t frames);

/// Reads a stream to its end; throws Error(input) where it is damaged.
struct StreamFacts {
  StreamHeader header;
  uint64_t frames = 0, samples = 0, bytes = 0;
};
StreamFacts check_stream(const std::string& path);

/// Which file becomes which.
enum class FileKind : uint8_t { audio, stream };
struct FileJob {
  std::string in, out;
  bool make_folders = false;  ///< the folders above `out` may be missing
};
struct FileJobs {
  std::vector<FileJob> jobs;
  std::vector<Error> refused;  ///< one for each input that cannot be done
  bool several = false;        ///< more than one was asked for: a folder, or several inputs
};
struct MatchOptions {
  bool overwrite = false;
  bool keep_ending = false;  ///< x.wav becomes x.wav.nacre
};
/// Inputs are files, folders, or "-". `output` is a folder if there are several inputs, if it is one already, or if it
/// ends in '/'; a folder is mirrored there (below its own name if it is one of several inputs). x.wav becomes x.nacre
/// and the other way round. Inputs that would become the same file are all refused. Throws Error(usage) when the whole
/// request makes no sense.
FileJobs match_files(const std::vector<std::string>& inputs, const std::string& output, FileKind from, MatchOptions = {});
/// All files of a kind that inputs stand for.
FileJobs find_files(const std::vector<std::string>& inputs, FileKind);

}  // namespace nacre::training
