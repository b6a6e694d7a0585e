#include "nacre/files/ecdc.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "files/text.h"
#include "nacre/error.h"

namespace nacre {
namespace {

using nlohmann::json;

constexpr std::string_view magic = "ECDC", model_24 = "encodec_24khz", model_48 = "encodec_48khz";
constexpr size_t head_bytes = 9;           // magic, version, length of the JSON
constexpr uint32_t max_json_bytes = 1024;  // the package writes at most 75
constexpr uint64_t max_samples = uint64_t{1} << 40;
constexpr int bits_per_code = 10;
// About a second. Four codes fill whole bytes, so every packet but the last ends with a byte.
constexpr uint64_t packet_frames = 76;
static_assert(packet_frames * bits_per_code % 8 == 0);

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
  return outside("the number of codebooks (nc)", h.codebooks, 1, ecdc_models[0].max_codebooks);
}

/// The JSON of a header as json.dumps of Python writes it, for equal bytes.
std::string json_text(const EcdcHeader& h) {
  return "{\"m\": \"" + std::string(model_24) + "\", \"al\": " + std::to_string(h.samples) +
         ", \"nc\": " + std::to_string(h.codebooks) + ", \"lm\": false}";
}

/// Sets the header from its JSON. Returns the defect, or "".
std::string read_json(std::string_view text, EcdcHeader& h) {
  const json all = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!all.is_object()) return "the header is not a JSON object";
  for (const auto& [key, value] : all.items())
    if (key != "m" && key != "al" && key != "nc" && key != "lm")
      return "the header has the key " + in_quotes(key) + ", which this program does not know";
  for (const char* key : {"m", "al", "nc", "lm"})
    if (!all.contains(key)) return "the header has no key \"" + std::string(key) + "\"";
  if (!all["m"].is_string()) return "the name of the model (m) is not a string";
  const std::string model = all["m"].get<std::string>();
  if (model == model_48)
    return "is of EnCodec's 48 kHz model, whose frames have a scale for each second; this program reads files of " +
           std::string(model_24);
  if (model != model_24)
    return "is of the model " + in_quotes(model) + ", this program reads files of " + std::string(model_24);
  if (!all["lm"].is_boolean()) return "the key lm is not true or false";
  if (all["lm"].get<bool>())
    return "was compressed with EnCodec's language model, which this program does not have; compress the audio again "
           "without -l (use_lm=False)";
  for (const char* key : {"al", "nc"})
    if (!all[key].is_number_unsigned()) return "the key " + std::string(key) + " is not a whole number from 0 on";
  h.samples = all["al"].get<uint64_t>();
  const uint64_t codebooks = all["nc"].get<uint64_t>();
  h.codebooks = static_cast<uint32_t>(std::min<uint64_t>(codebooks, ~uint32_t{0}));
  return problem(h);
}

}  // namespace

uint64_t EcdcHeader::frames() const noexcept { return (samples + ecdc_hop - 1) / ecdc_hop; }

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

void EcdcWriter::emit() {
  if (buffer_.empty()) return;
  sink_(buffer_);
  bytes_ += buffer_.size();
  buffer_.clear();
}

void EcdcWriter::write(std::span<const int32_t> codes, float) {
  if (finished_) throw Error(ErrorKind::usage, "ecdc: write after the end of the file");
  if (codes.size() % header_.codebooks != 0)
    throw Error(ErrorKind::usage, "ecdc: " + std::to_string(codes.size()) + " codes are not whole frames of " +
                                      std::to_string(header_.codebooks));
  const uint64_t frames = codes.size() / header_.codebooks;
  if (frames > header_.frames() - frames_)
    throw Error(ErrorKind::usage, "ecdc: " + std::to_string(frames_ + frames) + " frames, expected " +
                                      std::to_string(header_.frames()) + " for " + std::to_string(header_.samples) +
                                      " samples");
  for (const int32_t c : codes)
    if (c < 0 || static_cast<uint32_t>(c) >= ecdc_codebook_size)
      throw Error(ErrorKind::usage,
                  "ecdc: code is " + std::to_string(c) + ", expected 0 to " + std::to_string(ecdc_codebook_size - 1));
  frames_ += frames;
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
}

void EcdcWriter::finish() {
  if (finished_) throw Error(ErrorKind::usage, "ecdc: ended twice");
  if (frames_ != header_.frames())
    throw Error(ErrorKind::usage, "ecdc: " + std::to_string(frames_) + " frames, expected " +
                                      std::to_string(header_.frames()) + " for " + std::to_string(header_.samples) +
                                      " samples");
  if (filled_ > 0) buffer_.push_back(static_cast<std::byte>(pending_));
  emit();
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
  const uint64_t frames = std::min(packet_frames, header_.frames() - frames_);
  if (frames == 0) {
    std::byte more{};
    if (source_({&more, 1}) != 0)
      fail("unexpected data after the " + std::to_string(header_.frames()) + " frames of " +
           std::to_string(header_.samples) + " samples");
    state_ = State::finished;
    return {};
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
    fail("the padding of the last byte is not zero");
  }
  StreamPacket packet{.group = 0, .first_frame = frames_, .frames = static_cast<uint32_t>(frames), .codes = codes_};
  frames_ += frames;
  state_ = State::open;
  return packet;
}

}  // namespace nacre
