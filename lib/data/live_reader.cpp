// LiveReader: audio that is decoded while it arrives, by libsndfile on a file that seems complete. libsndfile asks for
// the size and seeks, which a pipe cannot. So it sees a virtual file of arriving_size bytes, whose header is patched if
// it has no length, so that libsndfile reads on (container.h). Every byte that it asks for has arrived before the call,
// so no wait happens inside of libsndfile, where no exception may pass.
#include <fcntl.h>
#include <poll.h>
#include <sndfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "data/arriving.h"
#include "data/audio_checks.h"
#include "data/container.h"
#include "data/sniff.h"
#include "files/files.h"

namespace nacre::training {

void wait_for(int fd, short events, const std::function<void()>& waiting) {
  // A signal may arrive between a check and the wait, which it then does not interrupt. Each wait therefore ends.
  constexpr int milliseconds = 250;
  for (;;) {
    if (waiting) waiting();
    pollfd p{.fd = fd, .events = events, .revents = 0};
    const int n = ::poll(&p, 1, milliseconds);
    // An error of poll() is also one of the call that follows, which reports it.
    if (n > 0 || (n < 0 && errno != EINTR)) return;
  }
}

namespace {

/// Pictures and texts may stand before the samples.
constexpr size_t longest_header = 1 << 20;
/// Bytes that one call may take from the input.
constexpr size_t portion = 1 << 16;

/// What has arrived and has not been used yet.
class Arriving {
 public:
  Arriving(int fd, std::string name, std::function<void()> waiting)
      : fd_(fd), name_(std::move(name)), waiting_(std::move(waiting)) {}
  /// The position behind the last byte that has arrived.
  uint64_t end() const { return begin_ + bytes_.size(); }
  /// Waits until the input has reached a position, or ends.
  void fill(uint64_t until) {
    while (end() < until && !ended_) {
      const size_t have = bytes_.size();
      bytes_.resize(have + portion);
      ssize_t n = -1;
      // Waits until there is at least one byte. Whatever has arrived by then is taken, up to `portion` bytes.
      do {
        wait_for(fd_, POLLIN, waiting_);
        n = ::read(fd_, bytes_.data() + have, portion);
      } while (n < 0 && (errno == EINTR || errno == EAGAIN));
      // Also before an error is thrown, so that bytes_ holds arrived bytes only.
      bytes_.resize(have + static_cast<size_t>(std::max<ssize_t>(n, 0)));
      if (n < 0) throw_errno(name_, "cannot read");
      ended_ = n == 0;
    }
  }
  /// The bytes at a position that has not been dropped, as far as they have arrived.
  std::string_view at(uint64_t offset, size_t n) const {
    if (offset < begin_ || offset >= end()) return {};
    return std::string_view(bytes_).substr(static_cast<size_t>(offset - begin_), n);
  }
  // Frees what is in front of a position.
  void drop(uint64_t until) {
    const uint64_t stop = std::clamp(until, begin_, end());
    bytes_.erase(0, static_cast<size_t>(stop - begin_));
    begin_ = stop;
  }
  bool ended() const { return ended_; }

 private:
  int fd_;
  std::string name_;
  std::function<void()> waiting_;
  std::string bytes_;
  uint64_t begin_ = 0;  // the position of bytes_[0]
  bool ended_ = false;
};

struct CloseSound {
  void operator()(SNDFILE* f) const { sf_close(f); }
};

/// Bytes of one sample, or 0 for a coding whose samples have no fixed size.
size_t sample_bytes(int format) {
  switch (format & SF_FORMAT_SUBMASK) {
    case SF_FORMAT_PCM_S8:
    case SF_FORMAT_PCM_U8:
    case SF_FORMAT_ULAW:
    case SF_FORMAT_ALAW:
      return 1;
    case SF_FORMAT_PCM_16:
      return 2;
    case SF_FORMAT_PCM_24:
      return 3;
    case SF_FORMAT_PCM_32:
    case SF_FORMAT_FLOAT:
      return 4;
    case SF_FORMAT_DOUBLE:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

struct LiveReader::Impl {
  std::string name;
  AudioOptions options;
  Descriptor fd = {};
  std::unique_ptr<Arriving> input = nullptr;
  Container container = {};
  AudioInfo info = {};
  std::vector<std::string> warnings = {};
  std::unique_ptr<SNDFILE, CloseSound> sound = nullptr;
  uint64_t frame_bytes = 0;  // bytes of one sample of every channel
  int64_t position = 0;  // in frames

  // What libsndfile sees: a file of arriving_size bytes.
  // The position of the next byte that libsndfile reads.
  uint64_t at = 0;
  // While a file is opened, it ends where its samples begin. libsndfile looks at the samples and for chunks behind
  // them, and that must neither wait for them nor depend on whether they have arrived.
  bool opening = true;

  int64_t read_bytes(void* to, int64_t bytes);
  void open();
  void at_end();
  [[noreturn]] void refuse(const std::string& what) const {
    bad(name, what +
                  ", so it cannot be read while it arrives; convert it to 16-bit WAV (ffmpeg -i - -f wav -), or omit "
                  "--gain and --no-normalise: it is then copied to a temporary file first");
  }
};

int64_t LiveReader::Impl::read_bytes(void* to, int64_t bytes) {
  // All has arrived: the header before it is opened, and samples before they are asked for.
  const uint64_t wanted = at + static_cast<uint64_t>(std::max<int64_t>(bytes, 0));
  const uint64_t stop = opening ? std::min(wanted, container.audio) : wanted;
  if (at >= stop) return 0;
  const std::string_view found = input->at(at, static_cast<size_t>(stop - at));
  auto* const out = static_cast<char*>(to);
  found.copy(out, found.size());
  for (const Container::Patch& p : container.patches)
    for (size_t i = 0; i < p.bytes.size(); ++i)
      if (p.at + i >= at && p.at + i < at + found.size()) out[p.at + i - at] = p.bytes[i];
  at += found.size();
  return static_cast<int64_t>(found.size());
}

void LiveReader::Impl::open() {
  static SF_VIRTUAL_IO calls{
      .get_filelen = [](void*) -> sf_count_t { return static_cast<sf_count_t>(arriving_size); },
      .seek = [](sf_count_t offset, int whence, void* m) -> sf_count_t {
        auto& self = *static_cast<Impl*>(m);
        const auto base = static_cast<int64_t>(whence == SEEK_SET ? 0 : whence == SEEK_CUR ? self.at : arriving_size);
        if (base + offset < 0) return -1;
        self.at = static_cast<uint64_t>(base + offset);
        return base + offset;
      },
      .read = [](void* to, sf_count_t n, void* m) -> sf_count_t { return static_cast<Impl*>(m)->read_bytes(to, n); },
      .write = [](const void*, sf_count_t, void*) -> sf_count_t { return 0; },
      .tell = [](void* m) -> sf_count_t { return static_cast<sf_count_t>(static_cast<Impl*>(m)->at); },
  };
  SF_INFO found{};
  sound.reset(sf_open_virtual(&calls, SFM_READ, &found, this));
  if (!sound) bad(name, std::string("not readable as audio: ") + sf_strerror(nullptr));
  frame_bytes = sample_bytes(found.format) * static_cast<uint64_t>(std::max(found.channels, 0));
  // The number of frames that have arrived follows from bytes only if all samples have one size.
  if (frame_bytes == 0) refuse("its samples are compressed in blocks");
  info = {.sample_rate = found.samplerate, .channels = found.channels};
  info.frames_known = !container.endless;
  info.frames = !info.frames_known          ? 0
                : container.audio_bytes > 0 ? static_cast<int64_t>(container.audio_bytes / frame_bytes)
                                            : found.frames;
  opening = false;
  // The header is not read again.
  input->drop(at);
}

LiveReader::LiveReader(const std::string& path, AudioOptions options, std::function<void()> waiting)
    : impl_(std::make_unique<Impl>(Impl{.name = path == "-" ? "standard input" : path, .options = options})) {
  Impl& m = *impl_;
  if (path != "-") {
    struct stat status {};
    do {
      // Opening a pipe waits until a program writes to it.
      m.fd = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!m.fd && errno == EINTR && waiting) waiting();
    } while (!m.fd && errno == EINTR);
    if (!m.fd) throw_errno(path, "cannot open");
    if (::fstat(m.fd.get(), &status) == 0 && S_ISDIR(status.st_mode))
      throw Error(ErrorKind::io, path + ": is a folder, expected an audio file");
  }
  m.input = std::make_unique<Arriving>(path == "-" ? STDIN_FILENO : m.fd.get(), m.name, std::move(waiting));
  bool too_long = false;
  m.container = inspect_arriving([&](uint64_t offset, size_t n) {
    too_long = too_long || offset + n > longest_header;
    if (too_long) return std::string();
    m.input->fill(offset + n);
    return std::string(m.input->at(offset, n));
  });
  if (m.container.parts.empty()) {
    // The message needs a few more bytes.
    m.input->fill(sniffed_bytes);
    const std::string_view head = m.input->at(0, sniffed_bytes);
    if (head.empty()) bad(m.name, "empty: 0 bytes");
    const Thing found = thing_of(head);
    if (const std::string reason = mistaken(found, Thing::audio); !reason.empty()) bad(m.name, reason);
    m.refuse("is not WAV, RF64, Wave64, AIFF, AU or CAF");
  }
  if (too_long) m.refuse("its header is longer than " + std::to_string(longest_header) + " bytes");
  if (!m.container.fault.empty()) bad(m.name, m.container.fault);
  if (m.container.audio > longest_header)
    m.refuse("its header is longer than " + std::to_string(longest_header) + " bytes");
  m.input->fill(m.container.audio);
  m.open();
  expect_plausible(m.info, m.name);
}
LiveReader::LiveReader(LiveReader&&) noexcept = default;
LiveReader& LiveReader::operator=(LiveReader&&) noexcept = default;
LiveReader::~LiveReader() = default;

const AudioInfo& LiveReader::info() const noexcept { return impl_->info; }
const std::string& LiveReader::name() const noexcept { return impl_->name; }
const std::vector<std::string>& LiveReader::warnings() const noexcept { return impl_->warnings; }

int64_t LiveReader::read(int64_t frames, std::vector<float>& to) {
  Impl& m = *impl_;
  to.clear();
  if (m.info.frames_known) frames = std::min(frames, m.info.frames - m.position);
  // Waits for one frame only. Those that came with it are read, too.
  if (frames > 0) m.input->fill(m.at + m.frame_bytes);
  const int64_t n = std::min(frames, static_cast<int64_t>((m.input->end() - m.at) / m.frame_bytes));
  if (n <= 0) {
    m.at_end();
    return 0;
  }
  to.resize(static_cast<size_t>(n * m.info.channels));
  if (sf_readf_float(m.sound.get(), to.data(), n) != n) {
    // Only AIFF has no size without a limit.
    if (sf_error(m.sound.get()) == SF_ERR_NO_ERROR) bad(m.name, "longer than 4 GiB, which its format cannot say");
    bad(m.name, "damaged after frame " + std::to_string(m.position) + ": " + sf_strerror(m.sound.get()));
  }
  // libsndfile never goes back behind the samples that it gave.
  m.input->drop(m.at);
  expect_samples(to, m.info.channels, m.position, m.name);
  m.position += n;
  return n;
}

/// read() may be called again after the end, so the warning is given once.
void LiveReader::Impl::at_end() {
  if (position == 0) bad(name, "empty: it contains no audio");
  if (!info.frames_known || position >= info.frames || !warnings.empty()) return;
  const std::string reason = fewer_frames(info.frames, position);
  if (!options.salvage) bad(name, reason + "; --salvage uses the part that is there");
  warnings.push_back(reason + "; the part that is there is used");
}

void LiveReader::drain() {
  Arriving& input = *impl_->input;
  while (!input.ended()) {
    input.drop(input.end());
    input.fill(input.end() + 1);
  }
}

}  // namespace nacre::training
