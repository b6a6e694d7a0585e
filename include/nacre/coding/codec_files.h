#pragma once
// Conversion of audio files to .nacre streams or .ecdc files of EnCodec and back, in memory that does not depend on
// their length. `nacre encode` and `nacre decode` are command lines for these functions.
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nacre/codec/codec.h"
#include "nacre/data/audio.h"
#include "nacre/files/stream.h"

namespace nacre::training {

/// Thrown when FileHooks::stop requests it. Incomplete outputs have been removed by then.
struct Stopped {
  int signal = 0;
};

struct FileHooks {
  /// Called with the seconds of audio done and in all (0: unknown).
  std::function<void(double, double)> progress = {};
  /// A signal handler stores the signal's number here.
  const std::atomic<int>* stop = nullptr;
  /// True while an incomplete output exists that would remain if the process ended at once.
  std::atomic<bool>* unfinished = nullptr;
};

enum class StreamFormat : uint8_t {
  nacre,  ///< nacre/files/stream.h
  ecdc    ///< nacre/files/ecdc.h
};

struct FileReport {
  double seconds = 0;       ///< duration of the audio
  double wall_seconds = 0;  ///< elapsed time
  uint64_t bytes = 0;       ///< size of the stream; decode: of what was read of it
  int64_t codebooks = 0;    ///< encode: of the stream; decode: those decoded
  int channels = 0;
  int sample_rate = 0;  ///< of the audio file
  int64_t samples = 0;  ///< per channel
  int64_t clipped = 0;  ///< decode to 16 bits: number of samples beyond full scale
  /// encode: AudioReader::warnings(); decode: what DecodeOptions::conceal accepted, without the stream's name.
  std::vector<std::string> warnings = {};
  /// decode: times in seconds, on the axis of the whole stream, that were lost in a channel and concealed, and the
  /// number of their frames.
  std::vector<std::pair<double, double>> lost = {};
  int64_t lost_frames = 0;
};

struct EncodeOptions {
  AudioOptions audio = {};
  int64_t codebooks = 0;  ///< codebooks of the stream, the model's first ones; 0: all
  StreamFormat format = StreamFormat::nacre;
  /// Samples are multiplied by it before coding, 2^-40 to 2^40; the stream's gain is its reciprocal. 0: by the peak.
  float gain = 0;
  /// Live encoding: frames per block and per packet, 1 to 65536; 0: 1.
  int64_t block_frames = 0;
};
struct DecodeOptions {
  WavFormat format = WavFormat::pcm16;
  bool model_rate = false;    ///< keep the model's sample rate instead of the original's
  int64_t codebooks = 0;      ///< codebooks used, the stream's first ones; 0: all that it has
  int64_t max_codebooks = 0;  ///< the same for streams that have more, and without effect for others; 0: no limit
  /// Decodes a part: round(from * rate) to round(to * rate) of the output's samples, in seconds. Without `to`, up to
  /// the end. The samples are those of the whole, up to the rounding of sums in floats.
  double from = 0;
  std::optional<double> to = {};
  /// Decodes damaged streams and streams without an end (docs/format.md, "Reading around damage"). For .nacre only.
  bool conceal = false;
};

/// Encodes and decodes files with one model. Outputs appear complete or not at all. "-" is standard input or output.
class FileCodec {
 public:
  explicit FileCodec(Codec&);

  /// Scales by the peak over all channels (see peak_gain), resamples, and codes each group of channels
  /// (CodecConfig::audio_channels) separately. If the last group has fewer channels than the codec, its last channel is
  /// coded several times, and decoding gives their mean. A silent file is coded without scaling and with the smallest
  /// gain, so that it decodes to silence. Throws what AudioReader
  /// throws, Error(io), and Error(usage) for more codebooks than the model has.
  ///
  /// With EncodeOptions::gain, standard input and pipes are encoded live: nothing is spooled, and every block of frames
  /// is written as a packet of its own as soon as its samples have arrived; of a segmented codec, every segment. The
  /// stream has the length in its header only if the audio's header has one. Throws Error(usage) for a codec that needs
  /// the whole signal and has no segments, and for StreamFormat::ecdc.
  ///
  /// StreamFormat::ecdc: the samples are coded as they are, because an .ecdc file has no gain. Throws Error(input) for
  /// more channels than the model has and Error(usage) for a model that not_for_ecdc() refuses.
  FileReport encode(const std::string& audio, const std::string& stream, const FileHooks& = {},
                    const EncodeOptions& = {});
  /// Reads .nacre streams and .ecdc files; the content decides. Audio of an .ecdc file has the model's rate and
  /// channels. Throws Error(input) for a damaged stream and for a stream that another model made, and Error(usage) if
  /// the stream has fewer than DecodeOptions::codebooks or does not hold the part.
  ///
  /// Of a .nacre file, only the packets around a part are read. All packets before are read from a pipe, with
  /// DecodeOptions::conceal, for a recurrent codec without segments (CodecConfig::recurrent, which depends on all
  /// frames before) and of an .ecdc file. What is behind a part is not read.
  ///
  /// From standard input to standard output, a .nacre stream is decoded live, unless a part or concealment is asked
  /// for: the samples of a packet are written when it has arrived, and remain written if the stream turns out to be
  /// damaged behind it. The WAV header has the length, or 0xFFFFFFFF for its sizes if the stream's header has none. A
  /// stream without a length in its header must have less than one hop of padding; see docs/program.md. A codec that
  /// needs the whole signal and has no segments, and a length beyond plain RIFF, are decoded as into a file.
  FileReport decode(const std::string& stream, const std::string& audio, const DecodeOptions& = {},
                    const FileHooks& = {});

  uint64_t identity() const noexcept { return identity_; }

 private:
  Codec& codec_;
  uint64_t identity_;
};

/// The header that encode() writes, without gain and length. codebooks: as EncodeOptions::codebooks.
StreamHeader stream_header(const CodecConfig&, uint64_t identity, int sample_rate, int channels, int64_t codebooks = 0);
/// The size in bytes of a stream with `frames` frames per channel: of a segmented stream, up to this place (frames_of
/// in nacre/files/stream.h). If its header has no length, the largest size that this can be.
uint64_t stream_bytes(const StreamHeader&, uint64_t frames);

/// Why a codec can neither write nor decode .ecdc files, as the rest of a sentence; empty if it can. The layout of the
/// codes decides, not the weights, which an .ecdc file does not identify.
std::string not_for_ecdc(const CodecConfig&);

/// Result of check_stream(), which reads a stream to its end and throws Error(input) if it is damaged.
struct StreamFacts {
  StreamFormat format = StreamFormat::nacre;
  StreamHeader header;  ///< of an .ecdc file: without model, gain and packets
  uint64_t frames = 0;  ///< of a segmented stream: the place behind the last one
  uint64_t samples = 0, bytes = 0;
};
StreamFacts check_stream(const std::string& path);

/// Assignment of input files to output files.
enum class FileKind : uint8_t { audio, stream };
struct FileJob {
  std::string in, out;
  bool make_folders = false;  ///< create missing folders above `out`
};
struct FileJobs {
  std::vector<FileJob> jobs;
  std::vector<Error> refused;  ///< one error for each input that cannot be converted
  bool several = false;        ///< more than one file was requested: a folder, or several inputs
};
struct MatchOptions {
  bool overwrite = false;
  bool keep_ending = false;  ///< x.wav becomes x.wav.nacre
  StreamFormat format = StreamFormat::nacre;  ///< of the streams that become of audio files
};
/// Inputs are files, folders, or "-". `output` is a folder if there are several inputs, if it already is a folder, or
/// if it ends in '/'. An input folder is mirrored there, below its own name if it is one of several inputs. x.wav
/// becomes x.nacre or x.ecdc, and these become x.wav. Inputs with the same output are all refused. Throws Error(usage)
/// if the request as a whole is invalid.
FileJobs match_files(const std::vector<std::string>& inputs, const std::string& output, FileKind from,
                     MatchOptions = {});
/// All files of a kind that the inputs name or contain.
FileJobs find_files(const std::vector<std::string>& inputs, FileKind);

}  // namespace nacre::training
