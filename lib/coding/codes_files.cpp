// Input bytes of a stream, and the choice between its two formats. Input reads the first sniffed_bytes at once, to tell
// the format and to name a file of another kind. source() gives them again, so every reader sees the input from its
// beginning.
#include "coding/codes_files.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "data/arriving.h"
#include "data/sniff.h"

namespace nacre::training {

template <class Call>
size_t Input::read(Call&& call) {
  for (;;) {
    // A signal that is to stop the call ends the wait for a pipe that is silent.
    if (arrives_ && hooked_ != nullptr) wait_for(fd(), POLLIN, [this] { hooked_->check(); });
    const ssize_t n = call();
    if (n >= 0) {
      bytes_ += static_cast<uint64_t>(n);
      return static_cast<size_t>(n);
    }
    if (errno != EINTR) throw_errno(name_, "cannot read");
  }
}

size_t Input::read_next(std::span<std::byte> to) {
  return read([&] { return ::read(fd(), to.data(), to.size()); });
}

Input::Input(const std::string& path, const Hooked* hooked)
    : name_(path == "-" ? "standard input" : path), hooked_(hooked), arrives_(arrives(path)) {
  if (path != "-") {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) throw_errno(path, "cannot open");
    if (S_ISDIR(status.st_mode)) throw Error(ErrorKind::io, path + ": is a folder, expected a .nacre stream");
    file_ = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file_) throw_errno(path, "cannot open");
  }
  // Standard input may be a file, too, and need not be at its beginning.
  struct stat status {};
  if (const off_t at = ::lseek(fd(), 0, SEEK_CUR); at >= 0 && ::fstat(fd(), &status) == 0 && S_ISREG(status.st_mode))
    // Only these have positions. A pipe keeps start_ at -1.
    start_ = at, size_ = std::max<off_t>(0, status.st_size - at);
  std::array<std::byte, sniffed_bytes> bytes{};
  // A pipe may give fewer bytes at once; only 0 is its end.
  for (size_t n = 1; n > 0 && head_.size() < sniffed_bytes;) {
    n = read_next(std::span(bytes).first(sniffed_bytes - head_.size()));
    head_.append(reinterpret_cast<const char*>(bytes.data()), n);
  }
}

PositionedSource Input::positioned() {
  bytes_ = 0;  // reads the head again
  return {.read =
              [this](uint64_t position, std::span<std::byte> to) {
                return read([&] { return ::pread(fd(), to.data(), to.size(), start_ + static_cast<off_t>(position)); });
              },
          .size = static_cast<uint64_t>(size_)};
}

namespace {

/// The header of a .nacre stream with the same content, as far as an .ecdc file says it. It knows no model.
StreamHeader header_of(const EcdcHeader& h) {
  const EcdcModel& m = *h.model;
  return {.model_rate = m.sample_rate,
          .original_rate = m.sample_rate,
          .channels = m.channels,
          .joint = m.channels,
          .samples = h.samples,
          .hop = ecdc_hop,
          .codebooks = h.codebooks,
          .codebook_size = ecdc_codebook_size,
          .packet_frames = (m.segment + ecdc_hop - 1) / ecdc_hop,
          .segment = m.segment,
          .stride = m.stride,
          .scaled = m.segment != 0};
}

}  // namespace

CodesReader::CodesReader(Input& input, StreamReaderOptions options, bool positions)
    : reader_(open(input, options, positions)) {
  const auto* ecdc = std::get_if<EcdcReader>(&reader_);
  header_ = ecdc != nullptr ? header_of(ecdc->header()) : std::get<StreamReader>(reader_).header();
}

CodesReader::Reader CodesReader::open(Input& input, StreamReaderOptions options, bool positions) {
  // An input of any other kind goes to StreamReader, whose refusal is replaced by what the
  // input is, if that is known.
  const Thing thing = thing_of(input.head());
  if (thing == Thing::ecdc) return EcdcReader(input.source(), input.name());
  try {
    if (positions && input.has_positions()) return StreamReader(input.positioned(), input.name(), options);
    return StreamReader(input.source(), input.name(), options);
  } catch (const Error& e) {
    const std::string reason = mistaken(thing, Thing::stream);
    if (e.kind() != ErrorKind::input || reason.empty()) throw;
    throw Error(ErrorKind::input, input.name() + ": " + reason);
  }
}

CodesWriter::Writer CodesWriter::make(StreamFormat format, const StreamHeader& h, const ByteSink& sink) {
  if (format == StreamFormat::nacre) return StreamWriter(h, sink);
  // The model with segments is the second one.
  return EcdcWriter({.model = &ecdc_models[h.segment != 0 ? 1 : 0], .samples = h.samples, .codebooks = h.codebooks},
                    sink);
}

}  // namespace nacre::training
