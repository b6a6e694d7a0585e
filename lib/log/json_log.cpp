// The log of a run: one JSON object per line. A failure to write is reported once and counted, and training goes
// on.
#include "nacre/log/json_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "files/files.h"
#include "nacre/files/atomic_file.h"

namespace nacre::training {

struct JsonLog::Impl {
  std::string path;
  LogFailure failed;
  Descriptor fd = {};
  bool torn = false;  // the file ends within a line
  int64_t lost = 0;
};

JsonLog::JsonLog(const std::string& path, LogFailure failed)
    : impl_(new Impl{.path = path, .failed = std::move(failed)}) {
  Impl& m = *impl_;
  // O_APPEND: every line goes to the end, whatever else writes to the file.
  m.fd = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!m.fd) throw_errno(path, "cannot open");
  char last = '\n';
  // A process that was killed may have left half a line. The next line must not continue it.
  const off_t size = ::lseek(m.fd.get(), 0, SEEK_END);
  if (size > 0 && ::pread(m.fd.get(), &last, 1, size - 1) != 1) throw_errno(path, "cannot read");
  m.torn = last != '\n';
}
JsonLog::~JsonLog() = default;

void JsonLog::write(const nlohmann::ordered_json& object) {
  Impl& m = *impl_;
  std::string line = m.torn ? "\n" : "";
  // Names of files need not be UTF-8. dump() would throw by default.
  line += object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  line += '\n';
  if (write_all(m.fd.get(), line.data(), line.size())) {
    m.torn = false;
    return;
  }
  const int error = errno;
  // The number of bytes written is unknown. The next line begins with a line end; an empty line is harmless.
  m.torn = true;
  if (m.lost++ == 0 && m.failed)
    m.failed(m.path + ": cannot write: " + std::strerror(error) + "; training goes on without this log");
}

int64_t JsonLog::lost() const { return impl_->lost; }

void drop_log_lines_after(const std::string& path, int64_t step, const LogFailure& failed) {
  try {
    std::ifstream in(path, std::ios::binary);
    if (!in) return;
    std::string kept, line;
    bool changed = false;
    while (std::getline(in, line)) {
      const auto object = nlohmann::json::parse(line, nullptr, false);
      // Without a line end, the last line may be cut: it goes. Lines without a step stay.
      const bool stays = object.is_object() && !in.eof() &&
                         (!object.contains("step") || !object["step"].is_number_integer() || object["step"] <= step);
      changed = changed || !stays;
      if (stays) kept += line + "\n";
    }
    if (in.bad()) throw_errno(path, "cannot read");
    if (changed) write_file_atomically(path, kept);
  } catch (const Error& e) {
    if (failed) failed(std::string(e.what()) + "; it still has lines of steps after " + std::to_string(step));
  }
}

}  // namespace nacre::training
