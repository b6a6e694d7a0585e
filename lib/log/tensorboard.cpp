// Event files of TensorBoard: TFRecord records with protobuf messages tensorflow.Event. A log is not worth a run: a
// failure to write is reported once and counted, and training goes on.
#include "nacre/log/tensorboard.h"

#include <fcntl.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "files/files.h"
#include "nacre/data/audio.h"
#include "nacre/files/crc32c.h"

namespace nacre::training {
namespace {

// Messages are written field by field, so that neither TensorFlow's definitions nor generated code are needed.
using Wire = google::protobuf::internal::WireFormatLite;

/// A protobuf message. Fields appear in the order of the calls.
class Message {
 public:
  Message& number(int field, int64_t value) {
    return add([&](auto* out) { Wire::WriteInt64(field, value, out); });
  }
  Message& real(int field, double value) {
    return add([&](auto* out) { Wire::WriteDouble(field, value, out); });
  }
  Message& single(int field, float value) {
    return add([&](auto* out) { Wire::WriteFloat(field, value, out); });
  }
  Message& bytes(int field, std::string_view value) {
    return add([&](auto* out) { Wire::WriteBytes(field, std::string(value), out); });
  }
  Message& message(int field, const Message& value) { return bytes(field, value.bytes_); }
  const std::string& encoded() const { return bytes_; }

 private:
  template <class F>
  Message& add(F&& write) {
    google::protobuf::io::StringOutputStream stream(&bytes_);
    google::protobuf::io::CodedOutputStream out(&stream);
    write(&out);
    return *this;
  }
  std::string bytes_;
};

// Field numbers of tensorflow.Event, Summary, Summary.Value and their members.
namespace event {
constexpr int wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7;
constexpr int session_start = 1;
}  // namespace event
namespace value {
constexpr int tag = 1, simple_value = 2, image = 4, audio = 6, tensor = 8, metadata = 9;
}

void append_little_endian(std::string& out, uint64_t x, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(x >> (8 * i) & 255));
}
void append_checksum(std::string& out, std::string_view of) {
  const uint32_t crc = crc32c(std::as_bytes(std::span(of.data(), of.size())));
  // TFRecord masks its checksums, so that CRCs over data that contains CRCs remain reliable.
  append_little_endian(out, ((crc >> 15) | (crc << 17)) + 0xA282EAD8u, 4);
}
/// A record of TFRecord: length (64 bits), CRC of the length, data, CRC of the data.
std::string record(const std::string& payload) {
  std::string out;
  out.reserve(payload.size() + 16);
  append_little_endian(out, payload.size(), 8);
  append_checksum(out, std::string_view(out).substr(0, 8));
  out += payload;
  append_checksum(out, payload);
  return out;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Readers take the files of a folder in order of name. A new file therefore needs a later time than all existing ones.
int64_t file_time(const std::string& folder) {
  constexpr std::string_view start = "events.out.tfevents.";
  int64_t latest = 0;
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(folder, ignored), end; !ignored && it != end; it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(start)) latest = std::max<int64_t>(latest, std::atoll(name.c_str() + start.size()));
  }
  const auto now = static_cast<int64_t>(seconds_now());
  // The time keeps ten digits, whatever the other files are called.
  return latest >= now && latest < 9999999999 ? latest + 1 : now;
}

}  // namespace

struct EventWriter::Impl {
  std::string folder;
  EventOptions options;
  std::string path = {};
  Descriptor fd = {};
  int64_t lost = 0;

  bool open() noexcept;
  bool put(const Message& what) noexcept {
    const std::string bytes = record(what.encoded());
    return write_all(fd.get(), bytes.data(), bytes.size());
  }
  void add(const Message& what);
  void add_value(int64_t step, const Message& v) {
    add(Message()
            .real(event::wall_time, seconds_now())
            .number(event::step, step)
            .message(event::summary, Message().message(1, v)));
  }
};

bool EventWriter::Impl::open() noexcept {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0') std::strcpy(host.data(), "localhost");
  // O_EXCL and a running number: two writers that start in the same second get files of their own.
  for (int n = 0; !fd && n < 1000; ++n) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%010lld", static_cast<long long>(file_time(folder)));
    path = folder + "/events.out.tfevents." + digits.data() + "." + host.data() + "." + std::to_string(::getpid()) +
           "." + std::to_string(n);
    fd = Descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!fd && errno != EEXIST) return false;
  }
  // The first event of a file names its version.
  return fd && put(Message().real(event::wall_time, seconds_now()).bytes(event::file_version, "brain.Event:2"));
}

void EventWriter::Impl::add(const Message& what) {
  if ((fd || open()) && put(what)) return;
  const int error = errno;
  // The file may end within a record, and readers stop there. The next event begins a new file.
  fd = {};
  if (lost++ == 0 && options.failed)
    options.failed(path + ": cannot write: " + std::strerror(error) + "; training goes on without this log");
}

EventWriter::EventWriter(std::string folder, EventOptions options)
    : impl_(new Impl{.folder = std::move(folder), .options = std::move(options)}) {
  Impl& m = *impl_;
  std::error_code failed;
  std::filesystem::create_directories(m.folder, failed);
  if (failed) throw Error(ErrorKind::io, m.folder + ": cannot create the folder: " + failed.message());
  if (!m.open()) throw_errno(m.path, "cannot write");
  // Readers drop events of earlier files from this step on.
  if (m.options.resume_step >= 0)
    m.add(Message()
              .real(event::wall_time, seconds_now())
              .number(event::step, m.options.resume_step)
              .message(event::session_log, Message().number(1, event::session_start)));
}
EventWriter::~EventWriter() = default;

const std::string& EventWriter::path() const { return impl_->path; }
int64_t EventWriter::lost() const { return impl_->lost; }

void EventWriter::scalar(std::string_view tag, int64_t step, double x) {
  impl_->add_value(step, Message().bytes(value::tag, tag).single(value::simple_value, static_cast<float>(x)));
}

void EventWriter::image(std::string_view tag, int64_t step, const Image& image) {
  impl_->add_value(step, Message()
                             .bytes(value::tag, tag)
                             .message(value::image, Message()
                                                        .number(1, image.height)
                                                        .number(2, image.width)
                                                        .number(3, 3)  // RGB
                                                        .bytes(4, png_bytes(image))));
}

void EventWriter::audio(std::string_view tag, int64_t step, std::span<const float> interleaved, int sample_rate,
                        int channels) {
  impl_->add_value(step, Message()
                             .bytes(value::tag, tag)
                             .message(value::audio, Message()
                                                        .single(1, static_cast<float>(sample_rate))
                                                        .number(2, channels)
                                                        .number(3, static_cast<int64_t>(interleaved.size()) / channels)
                                                        .bytes(4, wav_bytes(interleaved, sample_rate, channels))
                                                        .bytes(5, "audio/wav")));
}

void EventWriter::text(std::string_view tag, int64_t step, std::string_view markdown) {
  const Message shape = Message().message(2, Message().number(1, 1));
  impl_->add_value(
      step, Message()
                .bytes(value::tag, tag)
                .message(value::tensor, Message().number(1, 7).message(2, shape).bytes(8, markdown))  // 7: string
                .message(value::metadata, Message().message(1, Message().bytes(1, "text"))));
}

}  // namespace nacre::training
