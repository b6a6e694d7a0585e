// The .ecdc file of EnCodec (docs/exchange.md): "ECDC", a version byte, the length of the JSON (32 bits, big-endian),
// the JSON, then the codes. Codes of 10 bits follow one another without gaps, least significant bit first, frame by
// frame and within a frame codebook by codebook. With segments, each segment begins with its scale (float32,
// big-endian) and ends with a whole byte; without, only the file does.
// The format has neither a checksum nor a closing packet. The JSON's number of samples says how many frames there are,
// so a file that is too short or too long is found, and changed codes are not. The reader returns the packets of
// StreamReader, so that the caller need not know the format.
#include "nacre/files/ecdc.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "files/text.h"
#include "nacre/error.h"

namespace nacre {
namespace {

using nlohmann::json;

constexpr std::string_view magic = "ECDC";
constexpr size_t head_bytes = 9;           // magic, version, length of the JSON
constexpr uint32_t max_json_bytes = 1024;  // the package writes at most 75
constexpr uint64_t max_samples = uint64_t{1} << 40;
constexpr int bits_per_code = 10;
// About a second. Four codes fill whole bytes, so every packet but the last ends with a byte.
constexpr uint64_t packet_frames = 76;
static_assert(packet_frames * bits_per_code % 8 == 0);

/// Bytes of the codes of so many frames, padded to a whole byte.
size_t payload_bytes(uint64_t frames, uint32_t codebooks) {
  return static_cast<size_t>((frames * codebooks * bits_per_code + 7) / 8);
}

/// The defect of a number, or "".
std::string outside(const char* name, uint64_t found, uint64_t low, uint64_t high) {
  if (found >= low && found <= high) return {};
  return std::string(name) + " is " + std::to_string(found) + ", expected " + std::to_string(low) + " to " +
         std::to_string(high);
}
std::string problem(const EcdcHeader& h) {
  if (std::string what = outside("the number of samples (al)", h.samples, 0, max_samples); !what.empty()) return what;
  return outside("the number of codebooks (nc)", h.codebooks, 1, h.model->max_codebooks);
}
/// The defect of a scale, or "".
std::string problem_of_scale(float scale) {
  if (std::isfinite(scale) && scale > 0) return {};
  return "the scale of a segment is " + std::to_string(scale) + ", expected a positive, finite number";
}

/// The JSON of a header as json.dumps of Python writes it, for equal bytes.
std::string json_text(const EcdcHeader& h) {
  return "{\"m\": \"" + std::string(h.model->name) + "\", \"al\": " + std::to_string(h.samples) +
         ", \"nc\": " + std::to_string(h.codebooks) + ", \"lm\": false}";
}

/// Sets the header from its JSON. Returns the defect, or "".
std::string read_json(std::string_view text, EcdcHeader& h) {
  // At most max_json_bytes long. A key that appears twice has its last value.
  const json all = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!all.is_object()) return "the header is not a JSON object";
  for (const auto& [key, value] : all.items())
    if (key != "m" && key != "al" && key != "nc" && key != "lm")
      return "the header has the key " + in_quotes(key) + ", which this program does not know";
  for (const char* key : {"m", "al", "nc", "lm"})
    if (!all.contains(key)) return "the header has no key \"" + std::string(key) + "\"";
  if (!all["m"].is_string()) return "the name of the model (m) is not a string";
  const std::string model = all["m"].get<std::string>();
  const auto* known =
      std::find_if(std::begin(ecdc_models), std::end(ecdc_models), [&](const EcdcModel& m) { return model == m.name; });
  if (known == std::end(ecdc_models)) {
    std::string names;
    for (const EcdcModel& m : ecdc_models) names += (names.empty() ? "" : " and ") + std::string(m.name);
    return "is of the model " + in_quotes(model) + ", this program reads files of " + names;
  }
  h.model = known;
  if (!all["lm"].is_boolean()) return "the key lm is not true or false";
  if (all["lm"].get<bool>())
    return "was compressed with EnCodec's language model, which this program does not have; compress the audio again "
           "without -l (use_lm=False)";
  for (const char* key : {"al", "nc"})
    if (!all[key].is_number_unsigned()) return "the key " + std::string(key) + " is not a whole number from 0 on";
  h.samples = all["al"].get<uint64_t>();
  const uint64_t codebooks = all["nc"].get<uint64_t>();
  // Clamped, so that a number beyond 32 bits stays out of range for problem() instead of wrapping into it.
  h.codebooks = static_cast<uint32_t>(std::min<uint64_t>(codebooks, ~uint32_t{0}));
  return problem(h);
}

}  // namespace

// Without segments, the whole file counts as one.
uint64_t EcdcHeader::segments() const noexcept {
  if (model->segment == 0) return samples == 0 ? 0 : 1;
  return (samples + model->stride - 1) / model->stride;
}
uint64_t EcdcHeader::segment_frames(uint64_t segment) const noexcept {
  if (segment >= segments()) return 0;
  const uint64_t rest = samples - segment * model->stride;
  return ((model->segment == 0 ? rest : std::min<uint64_t>(rest, model->segment)) + ecdc_hop - 1) / ecdc_hop;
}
uint64_t EcdcHeader::frames() const noexcept {
  const uint64_t n = segments();
  // A signal can end in the part of a segment that the next one holds, too: the last two may be shorter.
  // Without any segment, n - 1 wraps, and a segment behind the end has 0 frames.
  uint64_t sum = segment_frames(n - 1);
  if (n >= 2) sum += segment_frames(n - 2) + (n - 2) * segment_frames(0);
  return sum;
}

// ---- EcdcWriter

EcdcWriter::EcdcWriter(EcdcHeader header, ByteSink sink) : header_(header), sink_(std::move(sink)) {
  if (const std::string what = problem(header_); !what.empty()) throw Error(ErrorKind::usage, "ecdc: " + what);
  const std::string text = json_text(header_);
  for (const char c : magic) buffer_.push_back(static_cast<std::byte>(c));
  buffer_.push_back(std::byte{0});  // version
  for (const int shift : {24, 16, 8, 0}) buffer_.push_back(static_cast<std::byte>(text.size() >> shift & 0xff));
  for (const char c : text) buffer_.push_back(static_cast<std::byte>(c));
  emit();
}

// Passes the complete bytes on; the bits of a byte that is not complete stay in pending_.
void EcdcWriter::emit() {
  if (buffer_.empty()) return;
  sink_(buffer_);
  bytes_ += buffer_.size();
  buffer_.clear();
}

void EcdcWriter::write(std::span<const int32_t> codes, float scale) {
  if (finished_) throw Error(ErrorKind::usage, "ecdc: write after the end of the file");
  const bool segmented = header_.model->segment != 0;
  if (const std::string what = problem_of_scale(scale); !what.empty()) throw Error(ErrorKind::usage, "ecdc: " + what);
  if (!segmented && scale != 1)
    throw Error(ErrorKind::usage, "ecdc: the scale is " + std::to_string(scale) + ", expected 1: the model has none");
  if (codes.size() % header_.codebooks != 0)
    throw Error(ErrorKind::usage, "ecdc: " + std::to_string(codes.size()) + " codes are not whole frames of " +
                                      std::to_string(header_.codebooks));
  const uint64_t frames = codes.size() / header_.codebooks;
  // frames_ never exceeds those of the header, so the difference does not wrap.
  if (frames > header_.frames() - frames_)
    throw Error(ErrorKind::usage, "ecdc: " + std::to_string(frames_ + frames) + " frames, expected " +
                                      std::to_string(header_.frames()) + " for " + std::to_string(header_.samples) +
                                      " samples");
  if (segmented && frames != header_.segment_frames(segment_))
    throw Error(ErrorKind::usage, "ecdc: segment " + std::to_string(segment_) + " has " + std::to_string(frames) +
                                      " frames, expected " + std::to_string(header_.segment_frames(segment_)));
  for (const int32_t c : codes)
    if (c < 0 || static_cast<uint32_t>(c) >= ecdc_codebook_size)
      throw Error(ErrorKind::usage,
                  "ecdc: code is " + std::to_string(c) + ", expected 0 to " + std::to_string(ecdc_codebook_size - 1));
  frames_ += frames;
  // A segment begins with a whole byte, because the one before ended with end_of_bits(). So its scale can go straight
  // into the buffer.
  if (segmented && frames > 0) {
    ++segment_;
    const auto bits = std::bit_cast<uint32_t>(scale);
    for (const int shift : {24, 16, 8, 0}) buffer_.push_back(static_cast<std::byte>(bits >> shift & 0xff));
  }
  // The buffer holds one piece at a time, however many codes are passed at once.
  const size_t piece = packet_frames * header_.codebooks;
  while (!codes.empty()) {
    const std::span<const int32_t> now = codes.first(std::min(piece, codes.size()));
    codes = codes.subspan(now.size());
    // Without gaps, least significant bit first, over all frames: bits that remain wait for the next call.
    for (const int32_t c : now) {
      pending_ |= static_cast<uint32_t>(c) << filled_;  // at most 7 + 10 bits
      for (filled_ += bits_per_code; filled_ >= 8; filled_ -= 8, pending_ >>= 8)
        buffer_.push_back(static_cast<std::byte>(pending_ & 0xff));
    }
    emit();
  }
  if (segmented) end_of_bits();
}

/// Zero bits complete the last byte.
void EcdcWriter::end_of_bits() {
  if (filled_ > 0) buffer_.push_back(static_cast<std::byte>(pending_));
  pending_ = 0, filled_ = 0;
  emit();
}

void EcdcWriter::finish() {
  if (finished_) throw Error(ErrorKind::usage, "ecdc: ended twice");
  if (frames_ != header_.frames())
    throw Error(ErrorKind::usage, "ecdc: " + std::to_string(frames_) + " frames, expected " +
                                      std::to_string(header_.frames()) + " for " + std::to_string(header_.samples) +
                                      " samples");
  end_of_bits();
  finished_ = true;
}

// ---- EcdcReader

EcdcReader::EcdcReader(ByteSource source, std::string name) : source_(std::move(source)), name_(std::move(name)) {
  buffer_.resize(head_bytes);
  // The magic and the version are compared before the rest is read: another file may be shorter than a header.
  read(std::span(buffer_).first(magic.size()));
  if (!std::equal(magic.begin(), magic.end(), buffer_.begin(),
                  [](char c, std::byte b) { return static_cast<std::byte>(c) == b; })) {
    at_ = 0;
    fail("is not an .ecdc file");
  }
  read(std::span(buffer_).subspan(magic.size(), 1));
  if (const auto version = std::to_integer<unsigned>(buffer_[magic.size()]); version != 0) {
    at_ = magic.size();
    fail("has version " + std::to_string(version) + ", this program reads version 0");
  }
  read(std::span(buffer_).subspan(magic.size() + 1));
  uint32_t length = 0;
  for (size_t i = magic.size() + 1; i < head_bytes; ++i) length = length << 8 | std::to_integer<uint32_t>(buffer_[i]);
  if (const std::string what = outside("the length of the header's JSON", length, 2, max_json_bytes); !what.empty()) {
    at_ = magic.size() + 1;
    fail(what);
  }
  buffer_.resize(length);
  read(buffer_);
  const std::string what = read_json({reinterpret_cast<const char*>(buffer_.data()), buffer_.size()}, header_);
  if (what.empty()) return;
  at_ = head_bytes;
  fail(what);
}

// The position is the number of bytes that were read, unless the caller has set at_ to where the defect is.
void EcdcReader::fail(const std::string& what) const {
  throw Error(ErrorKind::input, name_ + ": byte " + std::to_string(at_) + ": " + what);
}

void EcdcReader::read(std::span<std::byte> into) {
  while (!into.empty()) {
    const size_t n = std::min(source_(into), into.size());
    if (n == 0) fail("the file is cut off");
    at_ += n;
    into = into.subspan(n);
  }
}

std::optional<StreamPacket> EcdcReader::next() {
  if (state_ == State::finished) return {};
  if (state_ == State::failed) fail("reading has failed before");
  state_ = State::failed;  // until this packet has been read
  const bool segmented = header_.model->segment != 0;
  const uint64_t frames =
      segmented ? header_.segment_frames(segment_) : std::min(packet_frames, header_.frames() - frames_);
  // Behind the last segment, or all frames are read. Nothing may follow.
  if (frames == 0) {
    std::byte more{};
    if (source_({&more, 1}) != 0)
      fail("unexpected data after the " + std::to_string(header_.frames()) + " frames of " +
           std::to_string(header_.samples) + " samples");
    state_ = State::finished;
    return {};
  }
  float scale = 1;
  if (segmented) {
    buffer_.resize(sizeof(float));
    read(buffer_);
    uint32_t bits = 0;
    for (const std::byte b : buffer_) bits = bits << 8 | std::to_integer<uint32_t>(b);
    scale = std::bit_cast<float>(bits);
    if (const std::string what = problem_of_scale(scale); !what.empty()) {
      at_ -= sizeof(float);
      fail(what);
    }
  }
  buffer_.resize(payload_bytes(frames, header_.codebooks));
  read(buffer_);
  codes_.resize(static_cast<size_t>(frames) * header_.codebooks);
  uint32_t pending = 0;
  int filled = 0;
  size_t at = 0;
  for (int32_t& code : codes_) {
    // Never past the payload, whose size was computed from the same number of bits.
    for (; filled < bits_per_code; filled += 8) pending |= std::to_integer<uint32_t>(buffer_[at++]) << filled;
    code = static_cast<int32_t>(pending & (ecdc_codebook_size - 1));  // 10 bits hold valid codes only
    pending >>= bits_per_code;
    filled -= bits_per_code;
  }
  // So every sequence of codes has one encoding only.
  if (pending != 0) {
    --at_;
    fail(segmented ? "the padding of a segment's last byte is not zero" : "the padding of the last byte is not zero");
  }
  // Places, as in a segmented .nacre stream: those of segment i begin at i times the frames of a whole segment.
  const uint64_t first = segmented ? segment_++ * ((header_.model->segment + ecdc_hop - 1) / ecdc_hop) : frames_;
  StreamPacket packet{
      .group = 0, .first_frame = first, .frames = static_cast<uint32_t>(frames), .codes = codes_, .scale = scale};
  frames_ += frames;
  state_ = State::open;
  return packet;
}

}  // namespace nacre
