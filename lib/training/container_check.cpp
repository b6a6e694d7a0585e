#include "container_check.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace nacre::training {
namespace {

class Bytes {
 public:
  Bytes(int fd, uint64_t size) : fd_(fd), size_(size) {}
  uint64_t size() const { return size_; }
  std::string at(uint64_t offset, size_t n) const {
    std::string out(n, '\0');
    size_t have = 0;
    while (have < n) {
      const ssize_t got = ::pread(fd_, out.data() + have, n - have, static_cast<off_t>(offset + have));
      if (got <= 0) break;
      have += static_cast<size_t>(got);
    }
    out.resize(have);
    return out;
  }

 private:
  int fd_;
  uint64_t size_;
};

uint64_t number(std::string_view bytes, bool big_endian) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i)
    value = value << 8 | static_cast<unsigned char>(bytes[big_endian ? i : bytes.size() - 1 - i]);
  return value;
}

std::string truncated(uint64_t promised, uint64_t there) {
  return "truncated: the header promises " + std::to_string(promised) + " bytes of audio, " + std::to_string(there) +
         " are there";
}

/// Programs that write to a pipe do not know the length and leave one of these.
bool unknown_length(uint64_t n) { return n == 0 || n >= 0x7FFFF000u; }

std::string chunks_fault(const Bytes& file, bool big_endian, bool rf64, std::string_view data_name) {
  uint64_t long_data = 0;
  for (uint64_t at = 12; at + 8 <= file.size();) {
    const std::string header = file.at(at, 8);
    if (header.size() < 8) break;
    const uint64_t size = number(std::string_view(header).substr(4), big_endian), start = at + 8;
    const std::string_view name = std::string_view(header).substr(0, 4);
    if (name == "ds64" && size >= 24) long_data = number(file.at(start + 8, 8), false);
    if (name == data_name) {
      const uint64_t there = file.size() - start;
      if (rf64 && size == 0xFFFFFFFFu) return long_data > there ? truncated(long_data, there) : "";
      if (unknown_length(size)) return there == 0 ? "empty: no audio in it" : "";
      return size > there ? truncated(size, there) : "";
    }
    at = start + size + (size & 1);
  }
  return "truncated: it ends before its audio begins";
}

std::string ogg_fault(const Bytes& file) {
  // The last page starts within 65,307 bytes (header 27, 255 lengths, 255 x 255 bytes) of the end.
  const uint64_t from = file.size() > 65536 ? file.size() - 65536 : 0;
  const std::string tail = file.at(from, static_cast<size_t>(file.size() - from));
  const size_t page = tail.rfind("OggS");
  if (page == std::string::npos || page + 27 > tail.size()) return "truncated: its last page is cut";
  const size_t lengths = static_cast<unsigned char>(tail[page + 26]);
  if (page + 27 + lengths > tail.size()) return "truncated: its last page is cut";
  size_t end = page + 27 + lengths;
  for (size_t i = 0; i < lengths; ++i) end += static_cast<unsigned char>(tail[page + 27 + i]);
  if (end > tail.size()) return "truncated: its last page is cut";
  if ((tail[page + 5] & 4) == 0) return "truncated: the last page is not marked as the end of the stream";
  return "";
}

}  // namespace

std::string container_fault(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return "";
  if (status.st_size == 0) return "empty: 0 bytes";
  const Bytes file(fd, static_cast<uint64_t>(status.st_size));
  const std::string head = file.at(0, 24);
  const std::string_view magic = std::string_view(head).substr(0, std::min<size_t>(4, head.size()));
  const std::string_view kind = head.size() >= 12 ? std::string_view(head).substr(8, 4) : std::string_view();
  if (magic == "OggS") return ogg_fault(file);
  if ((magic == "RIFF" || magic == "RIFX" || magic == "RF64") && (kind == "WAVE" || head.size() < 12))
    return chunks_fault(file, magic == "RIFX", magic == "RF64", "data");
  if (magic == "FORM" && (kind == "AIFF" || kind == "AIFC")) return chunks_fault(file, true, false, "SSND");
  if ((magic == ".snd" || magic == "dns.") && head.size() >= 12) {
    const bool big = magic == ".snd";
    const uint64_t start = number(std::string_view(head).substr(4, 4), big);
    const uint64_t size = number(std::string_view(head).substr(8, 4), big);
    const uint64_t there = file.size() > start ? file.size() - start : 0;
    if (!unknown_length(size) && size > there) return truncated(size, there);
  }
  return "";
}

}  // namespace nacre::training
