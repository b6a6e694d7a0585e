// What a container says about its audio, read from headers alone. Each inspect_ function walks over one format's chunks
// or pages to the samples and compares the declared size with the bytes that are there. The outcomes: a fault (cut off
// or empty), a patch of sizes that a recorder left at 0 or at a value for "unknown", or nothing.
// The same functions serve a file (FileBytes), whose size is known, and a file that arrives (ArrivingBytes), of which
// no byte behind the samples' beginning may be waited for. file.arrives() tells them apart.
#include "data/container.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "data/sniff.h"
#include "nacre/error.h"

namespace nacre::training {
namespace {

/// Bytes at any position of a file.
class Bytes {
 public:
  explicit Bytes(uint64_t size) : size_(size) {}
  virtual ~Bytes() = default;
  uint64_t size() const { return size_; }
  /// Of unknown size.
  bool arrives() const { return size_ == arriving_size; }
  /// Fewer bytes than requested at the end.
  virtual std::string at(uint64_t offset, size_t n) const = 0;

 private:
  uint64_t size_;
};

/// A file. Small reads are served from a buffered block.
class FileBytes : public Bytes {
 public:
  FileBytes(int fd, uint64_t size) : Bytes(size), fd_(fd) {}
  std::string at(uint64_t offset, size_t n) const override {
    // The block is replaced as soon as it does not hold all of the bytes.
    if (offset < block_at_ || offset + n > block_at_ + block_.size()) {
      // Many small chunks or pages in a row are worth a large block; single reads far apart are not.
      const bool near = offset >= last_ && offset - last_ < 1024;
      block_ = read(offset, near ? std::max<size_t>(n, 65536) : n);
      block_at_ = offset;
    }
    last_ = offset;
    return block_.substr(static_cast<size_t>(offset - block_at_), n);
  }

 private:
  std::string read(uint64_t offset, size_t n) const {
    std::string out(n, '\0');
    size_t have = 0;
    while (have < n) {
      const ssize_t got = ::pread(fd_, out.data() + have, n - have, static_cast<off_t>(offset + have));
      if (got < 0 && errno == EINTR) continue;
      // Fewer bytes at the end of the file. An error looks the same: the decoder meets it again and reports it.
      if (got <= 0) break;
      have += static_cast<size_t>(got);
    }
    out.resize(have);
    return out;
  }

  int fd_;
  mutable std::string block_;
  mutable uint64_t block_at_ = 0, last_ = 0;
};

/// A file that arrives. Its size is unknown, and no length that it declares reaches the assumed one.
class ArrivingBytes : public Bytes {
 public:
  explicit ArrivingBytes(const ByteReader& read) : Bytes(arriving_size), read_(read) {}
  std::string at(uint64_t offset, size_t n) const override { return read_(offset, n); }

 private:
  const ByteReader& read_;
};

/// An unsigned number of as many bytes as are given.
uint64_t number(std::string_view bytes, bool big_endian) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i)
    value = value << 8 | static_cast<unsigned char>(bytes[big_endian ? i : bytes.size() - 1 - i]);
  return value;
}

std::string number_bytes(uint64_t value, bool big_endian, size_t width = 4) {
  std::string bytes(width, '\0');
  for (size_t i = 0; i < width; ++i) bytes[big_endian ? width - 1 - i : i] = static_cast<char>(value >> (8 * i) & 255);
  return bytes;
}

std::string truncated(uint64_t promised, uint64_t there) {
  return "truncated: the header declares " + std::to_string(promised) + " bytes of audio, " + std::to_string(there) +
         " are there";
}

/// The samples in front of the cut can be read.
void is_cut(Container& c, std::string fault) {
  c.fault = std::move(fault);
  c.salvageable = true;
}

/// Programs that write to a pipe do not know the length and leave one of these values: the largest 32-bit number,
/// signed or unsigned, or slightly less. In AIFF, SoX leaves 0x7F000000 and the 8 bytes before the samples.
bool unknown_length(uint64_t n) {
  return (n >= 0x7FFFF000u && n <= 0x80000000u) || n >= 0xFFFFF000u || n == 0x7F000008u;
}
/// The same for formats with sizes of 64 bits: zero, or more bytes than any file has.
bool unknown_long_length(uint64_t n) { return n == 0 || n >= arriving_size / 2; }

/// A warning only: the patches make the file whole.
void is_unfinished(Container& c, uint64_t there) {
  c.warning = "the header declares no audio, but " + std::to_string(there) +
              " bytes of it are there, because the recording was not finished; they are used";
}

/// What tells the formats with chunks of 4 bytes name, 4 bytes size apart.
struct Chunks {
  bool big_endian = false, rf64 = false;
  std::string_view data_name;
};

/// The size of 64 bits at `at` belongs to the audio of a file that arrives.
void is_endless_if(bool endless, uint64_t at, bool big_endian, Container& c) {
  c.endless = endless;
  if (endless) c.patches.push_back({at, number_bytes(arriving_size / 2, big_endian, 8)});
}

/// A chunk's name consists of printable characters. The check prevents a file of zeros from being parsed as chunks of 8
/// bytes.
bool is_chunk_name(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

/// True if complete chunks fill the file from `at` to its end, so that no audio lies between.
bool only_chunks(const Bytes& file, uint64_t at, bool big_endian) {
  while (at + 8 <= file.size()) {
    const std::string header = file.at(at, 8);
    if (header.size() < 8) break;  // the end of a file that arrives
    if (!is_chunk_name(header.substr(0, 4))) return false;
    const uint64_t size = number(std::string_view(header).substr(4), big_endian);
    at += 8 + size + (size & 1);
  }
  return file.arrives() ? file.at(at, 1).empty() : at >= file.size() && at <= file.size() + 1;
}

/// The data chunk of a file that arrives. Its declared size stands, unless it means that the length was unknown.
void inspect_arriving_data(const Bytes& file, uint64_t begin, uint64_t at, uint64_t size, const Chunks& kind,
                           Container& c) {
  const bool unfinished = size == 0 && !only_chunks(file, at + 8, kind.big_endian);
  if (size == 0 && !unfinished) {
    c.fault = "empty: it contains no audio";
  } else if (unfinished || unknown_length(size)) {
    c.endless = true;
    // libsndfile reads a WAV whose sizes are 8 and 0 up to the end of the file. In AIFF, 4 GiB are the most.
    const bool wav = kind.data_name == "data";
    c.patches.push_back({begin + 4, number_bytes(wav ? 8 : 0xFFFFFFFFu, kind.big_endian)});
    c.patches.push_back({at + 4, number_bytes(wav ? 0 : 0xFFFFFFFFu, kind.big_endian)});
  }
}

/// WAV, RIFX, RF64 and AIFF: behind 12 bytes (name, size, kind) come chunks. Those in front of the samples are passed,
/// those behind them are not looked at, except to tell an empty file from an unfinished one.
void inspect_chunks(const Bytes& file, uint64_t begin, const Chunks& kind, Container& c) {
  uint64_t long_data = 0, long_data_at = 0;
  for (uint64_t at = begin + 12; at + 8 <= file.size();) {
    const std::string header = file.at(at, 8);
    if (header.size() < 8) break;
    const uint64_t size = number(std::string_view(header).substr(4), kind.big_endian), start = at + 8;
    const std::string_view name = std::string_view(header).substr(0, 4);
    if (!is_chunk_name(name)) break;
    // RF64 has the 64-bit sizes in this chunk: of the file, then of the data (EBU Tech 3306).
    if (name == "ds64" && size >= 24) long_data = number(file.at(start + 8, 8), false), long_data_at = start + 8;
    if (name == kind.data_name) {
      // Of a file that arrives, this is far more than a size of 32 bits can declare.
      const uint64_t there = file.size() - start;
      c.audio = start + (kind.data_name == "SSND" ? 8 : 0);  // behind offset and block size
      if (kind.rf64 && size == 0xFFFFFFFFu) {
        if (file.arrives() && long_data_at > 0)
          return is_endless_if(unknown_long_length(long_data), long_data_at, false, c);
        if (long_data > there) is_cut(c, truncated(long_data, there));
        if (long_data == 0 && long_data_at > 0 && there > 0 && !only_chunks(file, start, false)) {
          c.patches.push_back({long_data_at, number_bytes(there, false, 8)});
          is_unfinished(c, there);
        }
      } else if (file.arrives()) {
        inspect_arriving_data(file, begin, at, size, kind, c);
      } else if (size == 0 && (there == 0 || only_chunks(file, start, kind.big_endian))) {
        c.fault = "empty: it contains no audio";
      } else if (size == 0) {
        // The recorder stopped before it filled in the sizes. The size 0xFFFFFFFF means up to the end of the file.
        c.patches.push_back(
            {begin + 4, number_bytes(std::min<uint64_t>(file.size() - begin - 8, 0xFFFFFFFFu), kind.big_endian)});
        c.patches.push_back({at + 4, number_bytes(std::min<uint64_t>(there, 0xFFFFFFFFu), kind.big_endian)});
        is_unfinished(c, there);
      } else if (unknown_length(size)) {
        if (there == 0) c.fault = "empty: it contains no audio";
      } else if (size > there) {
        is_cut(c, truncated(size, there));
      }
      return;
    }
    // Chunks begin at even positions.
    at = start + size + (size & 1);
  }
  c.fault = "truncated: it ends, or is damaged, before its audio begins";
}

/// CAF: sizes have 64 bits; -1 means the rest of the file.
void inspect_caf(const Bytes& file, uint64_t begin, Container& c) {
  for (uint64_t at = begin + 8; at + 12 <= file.size();) {
    const std::string header = file.at(at, 12);
    if (header.size() < 12) break;
    const uint64_t size = number(std::string_view(header).substr(4), true), start = at + 12;
    if (!is_chunk_name(header.substr(0, 4))) break;
    if (header.starts_with("data")) {
      const uint64_t there = file.size() - start, count = std::min<uint64_t>(there, 4);  // size of the edit count
      c.audio = start + count;
      if (file.arrives()) return is_endless_if(unknown_long_length(size), at + 4, true, c);
      if (size != ~uint64_t{0} && size > there) is_cut(c, truncated(size - count, there - count));
      if (size > there) c.patches.push_back({at + 4, number_bytes(there, true, 8)});  // else libsndfile refuses it
      return;
    }
    // Prevents overflow of the sum below.
    if (size > file.size()) break;
    at = start + size;
  }
  c.fault = "truncated: it ends, or is damaged, before its audio begins";
}

/// Sony's Wave64: RIFF with 16-byte names and 64-bit sizes, which include the chunk's header of 24 bytes.
void inspect_wave64(const Bytes& file, uint64_t begin, Container& c) {
  for (uint64_t at = begin + 40; at + 24 <= file.size();) {
    const std::string header = file.at(at, 24);
    if (header.size() < 24) break;
    const uint64_t size = number(std::string_view(header).substr(16), false), there = file.size() - at;
    if (header.starts_with("data")) {
      c.audio = at + 24;
      if (size > 24) c.audio_bytes = size - 24;
      if (file.arrives()) return is_endless_if(size <= 24 || unknown_long_length(size), at + 16, false, c);
      if (size > there) is_cut(c, truncated(size - 24, there - 24));
      if (size <= 24 && there > 24) {
        c.patches.push_back({at + 16, number_bytes(there, false, 8)});
        is_unfinished(c, there - 24);
      }
      return;
    }
    if (size < 24 || size > there) break;
    // Chunks begin at multiples of 8 bytes.
    at += (size + 7) / 8 * 8;
  }
  c.fault = "truncated: it ends, or is damaged, before its audio begins";
}

/// NIST SPHERE: a text header with one line per property.
void inspect_sphere(const Bytes& file, uint64_t begin, Container& c) {
  const std::string head = file.at(begin, 1024);
  const auto property = [&](const std::string& name) -> uint64_t {
    const size_t at = head.find("\n" + name + " -i ");
    return at == std::string::npos ? 0 : std::strtoull(head.c_str() + at + name.size() + 5, nullptr, 10);
  };
  // The second line of the header is its own length in bytes.
  const uint64_t start = std::strtoull(head.c_str() + std::min<size_t>(8, head.size()), nullptr, 10);
  const uint64_t promised = property("sample_count") * property("channel_count") * property("sample_n_bytes");
  const uint64_t there = file.size() - std::min(file.size(), begin + start);
  if (promised > there) is_cut(c, truncated(promised, there));
}

/// An Ogg page. `size` includes header and segments; 0 means that there is no page.
struct Page {
  uint64_t size = 0;
  bool first = false, last = false;  ///< of its logical stream
};

Page page_at(const Bytes& file, uint64_t at) {
  const std::string head = file.at(at, 27 + 255);
  if (head.size() < 27 || !head.starts_with("OggS")) return {};
  const size_t segments = static_cast<unsigned char>(head[26]);
  if (head.size() < 27 + segments) return {};
  Page page{.size = 27 + segments, .first = (head[5] & 2) != 0, .last = (head[5] & 4) != 0};
  for (size_t i = 0; i < segments; ++i) page.size += static_cast<unsigned char>(head[27 + i]);
  return page;
}

/// The position of the next page after bytes that are not a page, or the end of the file.
uint64_t next_page(const Bytes& file, uint64_t at) {
  // Blocks overlap by 3 bytes, so that a name across a border is found. They grow, because usually the next page is
  // near.
  for (size_t block = 256;; at += block - 3, block = std::min<size_t>(2 * block, 65536)) {
    const std::string bytes = file.at(at, block);
    if (const size_t found = bytes.find("OggS"); found != std::string::npos) return at + found;
    if (bytes.size() < block) return file.size();
  }
}

/// A link begins at a page that begins a stream and follows a page that does not. Streams that play together begin
/// together (RFC 3533).
void find_links(const Bytes& file, uint64_t begin, Container& c) {
  std::vector<Container::Part> links{{begin, file.size()}};
  bool beginnings = true;
  for (uint64_t at = begin; at < file.size();) {
    const Page page = page_at(file, at);
    if (page.size == 0) {  // a tag at the end, or damage
      const uint64_t next = next_page(file, at + 1);
      if (next < file.size() && c.fault.empty())
        is_cut(c,
               "damaged: from byte " + std::to_string(at) + " on, " + std::to_string(next - at) + " bytes are not Ogg");
      at = next;
      continue;
    }
    // The end of the link before, and a link that reaches to the end of the file unless another begins.
    if (page.first && !beginnings) {
      links.back().end = at;
      links.push_back({at, file.size()});
    }
    beginnings = page.first;
    at += page.size;
  }
  c.parts = std::move(links);
}

void inspect_ogg(const Bytes& file, uint64_t begin, Container& c) {
  // The last page starts within 65,307 bytes of the end (header of 27, 255 lengths, 255 x 255 bytes of data).
  const uint64_t from = file.size() > begin + 65536 ? file.size() - 65536 : begin;
  const std::string tail = file.at(from, static_cast<size_t>(file.size() - from));
  const size_t at = tail.rfind("OggS");
  const Page last = at == std::string::npos ? Page{} : page_at(file, from + at);
  if (last.size == 0 || from + at + last.size > file.size()) {
    is_cut(c, "truncated: its last page is incomplete");
  } else if (!last.last) {
    is_cut(c, "truncated: the last page is not marked as the end of the stream");
  }
  find_links(file, begin, c);
}

/// The position of the audio after any ID3v2 tags.
uint64_t behind_tags(const Bytes& file) {
  uint64_t at = 0;
  for (;;) {
    const std::string head = file.at(at, 10);
    // Ten bytes of header. The size has 4 x 7 bits; a set high bit means that this is no tag.
    if (head.size() < 10 || !head.starts_with("ID3")) return at;
    uint64_t size = 0;
    for (size_t i = 6; i < 10; ++i) {
      if ((head[i] & 0x80) != 0) return at;
      size = size << 7 | static_cast<unsigned char>(head[i]);
    }
    const bool footer = (head[5] & 0x10) != 0;
    at += 10 + size + (footer ? 10 : 0);
  }
}

}  // namespace

namespace {

/// The first four bytes, or fewer.
std::string_view magic_of(const std::string& head) {
  return std::string_view(head).substr(0, std::min<size_t>(4, head.size()));
}

/// Formats whose header declares the size of the samples, which follow it; false for others.
bool inspect_sized(const Bytes& file, uint64_t begin, const std::string& head, Container& c) {
  const std::string_view magic = magic_of(head);
  const std::string_view kind = head.size() >= 12 ? std::string_view(head).substr(8, 4) : std::string_view();
  if ((magic == "RIFF" || magic == "RIFX" || magic == "RF64") && (kind == "WAVE" || head.size() < 12)) {
    inspect_chunks(file, begin, {.big_endian = magic == "RIFX", .rf64 = magic == "RF64", .data_name = "data"}, c);
  } else if (magic == "FORM" && (kind == "AIFF" || kind == "AIFC")) {
    inspect_chunks(file, begin, {.big_endian = true, .data_name = "SSND"}, c);
  } else if ((magic == ".snd" || magic == "dns.") && head.size() >= 12) {
    const bool big = magic == ".snd";
    const uint64_t start = begin + number(std::string_view(head).substr(4, 4), big);
    const uint64_t size = number(std::string_view(head).substr(8, 4), big);
    const uint64_t there = file.size() > start ? file.size() - start : 0;
    c.audio = start;
    if (!unknown_length(size) && size > there) is_cut(c, truncated(size, there));
    if (file.arrives()) {
      c.endless = size == 0 || unknown_length(size);
      if (c.endless) c.patches.push_back({begin + 8, number_bytes(0xFFFFFFFFu, big)});
    } else if (size == 0 && there > 0) {
      c.patches.push_back({begin + 8, number_bytes(std::min<uint64_t>(there, 0xFFFFFFFFu), big)});
      is_unfinished(c, there);
    }
  } else if (magic == "caff") {
    inspect_caf(file, begin, c);
  } else if (magic == "riff" && head.size() >= 8 && number(std::string_view(head).substr(4, 4), true) == 0x2E91CF11u) {
    inspect_wave64(file, begin, c);
  } else {
    return false;
  }
  return true;
}

}  // namespace

Container inspect_container(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0)
    throw Error(ErrorKind::io, std::string("cannot get the size of an open file: ") + std::strerror(errno));
  Container c;
  if (status.st_size == 0) {
    c.fault = "empty: 0 bytes";
    return c;
  }
  // Reads only headers and, for Ogg, the page headers. It never decodes. What libsndfile would accept silently (cut
  // files, chained streams) or refuse (sizes that a recorder left at zero) is found here.
  const FileBytes file(fd, static_cast<uint64_t>(status.st_size));
  const uint64_t begin = behind_tags(file);
  c.parts = {{begin < file.size() ? begin : 0, file.size()}};
  const std::string head = file.at(begin, 24);
  const std::string_view magic = magic_of(head);
  if (magic == "OggS") {
    inspect_ogg(file, begin, c);
  } else if (inspect_sized(file, begin, head, c)) {
  } else if (magic == "NIST") {
    inspect_sphere(file, begin, c);
  } else if (magic != "fLaC") {
    // After a tag, even one of wrong size, the decoder searches for frames.
    c.mpeg = is_mpeg_frame(head) || begin > 0 || head.starts_with("ID3");
  }
  return c;
}

Container inspect_arriving(const ByteReader& read) {
  const ArrivingBytes file(read);
  Container c;
  c.parts = {{0, arriving_size}};
  // 12 bytes name every format, and hold both sizes of AU.
  if (!inspect_sized(file, 0, file.at(0, 12), c)) c.parts.clear();
  return c;
}

}  // namespace nacre::training
