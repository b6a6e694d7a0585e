// The two decoders of AudioReader, on ByteRange in place of a file. SoundFile (libsndfile) decodes in blocks of fixed
// length, so that what is lost by damage does not depend on how the caller reads. MpegFile (libmpg123) decodes MP3.
// Both are C libraries that call back into ByteRange, which therefore never throws.
#include "data/decoder.h"

#include <mpg123.h>
#include <sndfile.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace nacre::training {

int64_t ByteRange::read(void* to, int64_t bytes) {
  const auto wanted = static_cast<size_t>(std::clamp<int64_t>(bytes, 0, std::max<int64_t>(0, size() - tell())));
  auto* const out = static_cast<char*>(to);
  size_t have = 0;
  while (have < wanted) {
    const ssize_t n = ::pread(fd_, out + have, wanted - have, static_cast<off_t>(part_.begin + at_ + have));
    if (n < 0 && errno == EINTR) continue;
    // Decoders do not pass errors on, so the caller asks for error() after each call.
    if (n < 0) error_ = errno;
    if (n <= 0) break;
    have += static_cast<size_t>(n);
  }
  // Patches replace bytes of the header in what the decoder reads. The file itself is not changed.
  const uint64_t first = part_.begin + at_, last = first + have;
  for (const Container::Patch& p : patches_)
    for (size_t i = 0; i < p.bytes.size(); ++i)
      if (p.at + i >= first && p.at + i < last) out[p.at + i - first] = p.bytes[i];
  at_ += have;
  return static_cast<int64_t>(have);
}

int64_t ByteRange::seek(int64_t offset, int whence) {
  const int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? tell() : size();
  if (base + offset < 0) return -1;
  at_ = static_cast<uint64_t>(base + offset);
  return tell();
}

namespace {

struct CloseSound {
  void operator()(SNDFILE* f) const { sf_close(f); }
};

class SoundFile : public Decoder {
 public:
  explicit SoundFile(ByteRange& bytes) : bytes_(bytes) {
    // libsndfile calls these for every access. b is the ByteRange.
    static SF_VIRTUAL_IO calls{
        .get_filelen = [](void* b) -> sf_count_t { return static_cast<ByteRange*>(b)->size(); },
        .seek = [](sf_count_t offset, int whence, void* b) -> sf_count_t {
          return static_cast<ByteRange*>(b)->seek(offset, whence);
        },
        .read = [](void* to, sf_count_t n, void* b) -> sf_count_t { return static_cast<ByteRange*>(b)->read(to, n); },
        .write = [](const void*, sf_count_t, void*) -> sf_count_t { return 0; },
        .tell = [](void* b) -> sf_count_t { return static_cast<ByteRange*>(b)->tell(); },
    };
    SF_INFO info{};
    sound_.reset(sf_open_virtual(&calls, SFM_READ, &info, &bytes));
    if (!sound_) throw DecodeFault{std::string("not readable as audio: ") + sf_strerror(nullptr)};
    info_ = {.sample_rate = info.samplerate, .channels = info.channels};
    vorbis_ = (info.format & SF_FORMAT_SUBMASK) == SF_FORMAT_VORBIS;
    // The header of FLAC that was written to a pipe has no length.
    info_.frames_known = info.frames < SF_COUNT_MAX;
    info_.frames = info_.frames_known ? info.frames : 0;
  }
  int64_t read(int64_t frames, float* to) override {
    const auto width = static_cast<size_t>(info_.channels);
    int64_t done = 0;
    while (done < frames) {
      if (used_ == block_.size() && !refill()) break;
      const size_t n = std::min(static_cast<size_t>(frames - done) * width, block_.size() - used_);
      std::copy_n(block_.begin() + static_cast<std::ptrdiff_t>(used_), n, to + static_cast<size_t>(done) * width);
      used_ += n;
      done += static_cast<int64_t>(n / width);
    }
    // The good frames in front of a failed block are returned first.
    if (done == 0 && failed_ != SF_ERR_NO_ERROR) throw DecodeFault{sf_error_number(failed_)};
    return done;
  }
  bool seek(int64_t frame) override {
    // The position changes, so neither the block nor an earlier fault applies.
    failed_ = SF_ERR_NO_ERROR;
    block_.clear();
    used_ = 0;
    if (vorbis_ && last_page_ < 0) last_page_ = last_page_of(bytes_);
    // After a seek, libsndfile's first Vorbis block lacks the overlap with the previous block. Starting 8192 frames
    // earlier, the longest block, avoids this. Seeks into the last page start at its first frame, because libsndfile
    // counts from a wrong position in a page that the end of the stream truncates.
    const int64_t first = vorbis_ ? std::max<int64_t>(0, std::min(frame - 8192, last_page_ - 1)) : frame;
    if (sf_seek(sound_.get(), first, SEEK_SET) != first) return false;
    // Decodes and drops the frames in front. In the last block, `used_` ends at the wanted frame.
    for (int64_t left = frame - first; left > 0; left -= static_cast<int64_t>(used_) / info_.channels) {
      if (!refill()) return false;
      used_ = std::min(block_.size(), static_cast<size_t>(left * info_.channels));
    }
    return true;
  }

 private:
  /// The frame at which the last page but one ends, or 0 if there is none. It is the page's granule position (RFC
  /// 3533), six bytes after the start of "OggS".
  static int64_t last_page_of(ByteRange& bytes) {
    const int64_t before = bytes.tell(), size = std::min<int64_t>(bytes.size(), 3 * 65536);  // a page has <= 65,307 B
    std::string tail(static_cast<size_t>(size), '\0');
    bytes.seek(-size, SEEK_END);
    tail.resize(static_cast<size_t>(bytes.read(tail.data(), size)));
    bytes.seek(before, SEEK_SET);
    int64_t found = 0;
    for (size_t at = tail.rfind("OggS"); at != std::string::npos && at > 0; at = tail.rfind("OggS", at - 1)) {
      const size_t earlier = tail.rfind("OggS", at - 1);
      if (earlier == std::string::npos || earlier + 14 > tail.size()) break;
      uint64_t granule = 0;
      for (size_t i = 14; i-- > 6;) granule = granule << 8 | static_cast<unsigned char>(tail[earlier + i]);
      found = static_cast<int64_t>(granule);
      if (found >= 0) break;  // -1: no packet ends in that page
    }
    return std::max<int64_t>(0, found);
  }
  /// Decodes the next block. Blocks always hold the same frames, so that the output of a damaged file does not depend
  /// on how it is read. A block with an error is dropped, because libsndfile continues after the damage without
  /// reporting its position.
  bool refill() {
    constexpr int64_t block_frames = 4096;
    used_ = 0;
    block_.clear();
    if (failed_ != SF_ERR_NO_ERROR) return false;
    block_.resize(static_cast<size_t>(block_frames * info_.channels));
    const int64_t n = std::max<int64_t>(0, sf_readf_float(sound_.get(), block_.data(), block_frames));
    failed_ = sf_error(sound_.get());
    block_.resize(failed_ == SF_ERR_NO_ERROR ? static_cast<size_t>(n * info_.channels) : 0);
    return !block_.empty();
  }

  ByteRange& bytes_;
  std::unique_ptr<SNDFILE, CloseSound> sound_;
  std::vector<float> block_;  // decoded; frames from `used_` on have not been returned yet
  size_t used_ = 0;
  bool vorbis_ = false;
  int64_t last_page_ = -1;  // Vorbis only: the first frame of the last page; -1: unknown
  int failed_ = SF_ERR_NO_ERROR;
};

struct CloseMpeg {
  void operator()(mpg123_handle* h) const { mpg123_delete(h); }
};

class MpegFile : public Decoder {
 public:
  explicit MpegFile(ByteRange& bytes) {
    // Once per process; the initialisation of a static is safe among threads.
    static const int started = mpg123_init();
    int error = started;
    mpeg_.reset(error == MPG123_OK ? mpg123_new(nullptr, &error) : nullptr);
    if (!mpeg_) throw Error(ErrorKind::memory, std::string("libmpg123: ") + mpg123_plain_strerror(error));
    // libmpg123's own messages on standard error do not name the file.
    mpg123_param(mpeg_.get(), MPG123_ADD_FLAGS, MPG123_QUIET | MPG123_FORCE_FLOAT, 0);
    // A frame's data may begin up to 511 bytes before the frame. The smallest frames hold 13 bytes; the data may then
    // span 40 frames.
    mpg123_param(mpeg_.get(), MPG123_PREFRAMES, 48, 0);
    mpg123_replace_reader_handle(
        mpeg_.get(),
        [](void* b, void* to, size_t n) -> ssize_t {
          return static_cast<ssize_t>(static_cast<ByteRange*>(b)->read(to, static_cast<int64_t>(n)));
        },
        [](void* b, off_t offset, int whence) -> off_t { return static_cast<ByteRange*>(b)->seek(offset, whence); },
        nullptr);
    long rate = 0;
    int channels = 0, encoding = 0;
    if (mpg123_open_handle(mpeg_.get(), &bytes) != MPG123_OK ||
        mpg123_getformat(mpeg_.get(), &rate, &channels, &encoding) != MPG123_OK)
      throw DecodeFault{std::string("not readable as audio: ") + mpg123_strerror(mpeg_.get())};
    info_ = {.sample_rate = static_cast<int>(rate), .channels = channels};
    // Without an index, libmpg123 assumes that every frame is as long as the first.
    const off_t length = mpg123_length(mpeg_.get());
    info_.frames = std::max<off_t>(0, length);
    info_.frames_known = length > 0 && has_index(bytes);
  }
  int64_t read(int64_t frames, float* to) override {
    const size_t width = static_cast<size_t>(info_.channels) * sizeof(float);
    size_t have = 0;
    const size_t wanted = static_cast<size_t>(frames) * width;
    while (have < wanted && !ended_ && fault_.empty()) {
      size_t got = 0;
      const int code = mpg123_read(mpeg_.get(), reinterpret_cast<unsigned char*>(to) + have, wanted - have, &got);
      have += got;
      if (code == MPG123_DONE) {
        ended_ = true;
      } else if (code == MPG123_NEW_FORMAT) {
        long rate = 0;
        int channels = 0, encoding = 0;
        mpg123_getformat(mpeg_.get(), &rate, &channels, &encoding);
        // libmpg123 also reports the format of the first frame in this way.
        if (rate != info_.sample_rate || channels != info_.channels)
          fault_ = "the format changes there to " + std::to_string(rate) + " Hz with " + std::to_string(channels) +
                   " channels, at the beginning it is " + std::to_string(info_.sample_rate) + " Hz and " +
                   std::to_string(info_.channels);
      } else if (code != MPG123_OK) {
        fault_ = mpg123_strerror(mpeg_.get());
      }
    }
    // As in SoundFile: first what was decoded, then the fault.
    if (have == 0 && !fault_.empty()) throw DecodeFault{fault_};
    return static_cast<int64_t>(have / width);
  }
  bool seek(int64_t frame) override {
    ended_ = false;
    fault_.clear();
    return mpg123_seek(mpeg_.get(), static_cast<off_t>(frame), SEEK_SET) == frame;
  }

 private:
  /// An index (Xing, Info or VBRI) is in the first frame, whose other bytes are zero.
  static bool has_index(ByteRange& bytes) {
    constexpr std::array<std::string_view, 3> index_names{"Xing", "Info", "VBRI"};
    const int64_t before = bytes.tell();
    char head[256];
    bytes.seek(first_frame(bytes), SEEK_SET);
    const std::string_view text(head, static_cast<size_t>(bytes.read(head, sizeof head)));
    bytes.seek(before, SEEK_SET);
    return std::any_of(index_names.begin(), index_names.end(),
                       [&](std::string_view name) { return text.find(name) != std::string_view::npos; });
  }
  /// Skips leading zeros, which some writers leave as room for tags.
  static int64_t first_frame(ByteRange& bytes) {
    bytes.seek(0, SEEK_SET);
    char block[4096];
    for (int64_t at = 0;;) {
      const int64_t n = bytes.read(block, sizeof block);
      if (n <= 0) return 0;
      for (int64_t i = 0; i < n; ++i)
        if (static_cast<unsigned char>(block[i]) == 0xFF) return at + i;
      at += n;
    }
  }

  std::unique_ptr<mpg123_handle, CloseMpeg> mpeg_;
  std::string fault_;
  bool ended_ = false;
};

}  // namespace

std::unique_ptr<Decoder> open_with_libsndfile(ByteRange& bytes) { return std::make_unique<SoundFile>(bytes); }
std::unique_ptr<Decoder> open_with_libmpg123(ByteRange& bytes) { return std::make_unique<MpegFile>(bytes); }

}  // namespace nacre::training
