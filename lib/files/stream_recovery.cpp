// Reading around damage: StreamReader with StreamReaderOptions::recover (docs/format.md, "Reading around damage").
// stream.cpp is the reader that refuses damage.
// next_recovered() replaces the strict part of next(). find() looks for the next packet that is whole and fits what
// came before. If its number is greater than packets_, the packets between are lost: next_recovered() returns them one
// by one, and the packet that was found waits in Recovery::found, its codes in codes_. Every group therefore has a
// packet for every stretch up to the one that was found.
// The window holds what was read and not yet passed: at most the packet that was expected and the one behind it. Its
// byte `first` is the byte at_ of the stream. Offsets count from there.
#include <algorithm>

#include "files/stream_layout.h"
#include "nacre/error.h"
#include "nacre/files/crc32c.h"

namespace nacre {

using namespace stream_layout;

namespace {

/// Lost time of which not a byte is there. Only the number in a packet says that it was, so this is limited.
constexpr double most_absent_seconds = 600;
/// CRCs that may be computed per byte that was read, on average. A stream has one, and a search rarely meets bytes that
/// look like a packet. Input made for the purpose could have a packet of 1 MiB at every byte.
constexpr uint64_t most_checks = 16;

/// A stream of this header has no more frames than this. The products of the limits fit into 64 bits.
uint64_t most_frames(const StreamHeader& h) {
  const uint64_t samples = h.samples == StreamHeader::unknown ? max_samples : h.samples;
  const uint64_t at_model = samples * h.model_rate / h.original_rate + 3;
  if (h.segment != 0) return (at_model + h.stride - 1) / h.stride * h.packet_frames;
  return (at_model + 4 * uint64_t{h.hop}) / h.hop;
}

}  // namespace

/// Reads on until the window holds `bytes` bytes from at_ on. False if the source ends before. May move the window, so
/// spans into it end here.
bool StreamReader::have(size_t bytes) {
  Recovery& r = recovery_;
  if (r.first >= r.window.size() - r.first) {  // moves each byte once, on average
    r.window.erase(r.window.begin(), r.window.begin() + static_cast<std::ptrdiff_t>(r.first));
    r.first = 0;
  }
  // No more is read than was asked for: a pipe may have no more yet.
  while (!r.at_end && r.window.size() - r.first < bytes) {
    const size_t held = r.window.size();
    r.window.resize(r.first + bytes);
    const size_t n = take(at_ + held - r.first, std::span(r.window).subspan(held));
    r.window.resize(held + n);
    r.at_end = n == 0;
  }
  return r.window.size() - r.first >= bytes;
}

/// Passes bytes that the window holds.
void StreamReader::skip(size_t bytes) {
  recovery_.first += bytes;
  at_ += bytes;
}

/// Whether a packet can be the next one that was not lost.
bool StreamReader::follows(const Found& f) const {
  // A packet beyond the longest stream that this header permits would make the caller produce audio up to there.
  if (f.stretch * header_.packet_frames + f.frames > most_frames(header_)) return false;
  const uint32_t groups = header_.groups();
  // Other groups of this stretch have been passed. All of them have the same number of frames.
  if (packets_ % groups != 0 && f.stretch == packets_ / groups) return f.frames == stretch_frames_;
  // Behind a shorter stretch, there is at most the next one.
  return may_follow(header_, {stretch_before_, stretch_frames_}, f.frames) &&
         (packets_ == 0 || stretch_frames_ == header_.packet_frames || f.stretch == (packets_ - 1) / groups + 1);
}

/// The frames of the next packet, which is lost. Those of a segmented stream follow from its length.
uint32_t StreamReader::lost_frames(const Found& found) const {
  const uint64_t stretch = packets_ / header_.groups();
  // All groups of a stretch have the same number of frames. So a packet of the same stretch says it, found behind this
  // one or passed before it.
  if (stretch == found.stretch) return found.frames;
  if (packets_ % header_.groups() != 0) return stretch_frames_;
  const uint64_t samples = found.closing ? found.samples : header_.samples;
  // Only the last stretch can be shorter, and a packet of a later one has been found. The last two segments can be
  // shorter. Which ones are follows from the length, if that is known.
  if (header_.segment == 0 || samples == StreamHeader::unknown) return header_.packet_frames;
  const uint64_t at_model = at_model_rate(header_, samples);
  // At least so many frames that may_follow() accepts the next stretch behind them: floor(stride / hop) + n frames
  // reach beyond the next beginning by at most n hops and by more than n - 1. Rounding of the length could give one
  // frame less.
  const uint32_t next = found.stretch == stretch + 1 ? found.frames : 1;
  return std::min(std::max(segment_frames(header_, at_model, stretch), header_.stride / header_.hop + next),
                  header_.packet_frames);
}

/// `found` if its CRC matches the bytes. An old packet, one that is there twice, is returned as well.
std::optional<StreamReader::Found> StreamReader::verified(size_t offset, Found found) {
  if (!have(offset + found.bytes)) return {};
  // The limit bounds the work: at most 16 * (position + 1 MiB) bytes under CRCs.
  recovery_.checked += found.bytes;
  if (recovery_.checked / most_checks > at_ + offset + (uint64_t{1} << 20))
    fail("too many bytes look like packets and are none");
  const auto all = std::span<const std::byte>(recovery_.window).subspan(recovery_.first + offset, found.bytes);
  const auto covered = all.first(found.bytes - crc_bytes);
  if (get<uint32_t>(all, covered.size()) != crc32c(covered, seed_)) return {};
  // A closing packet has no codes, and those of an old packet are not used.
  if (found.closing || found.number < packets_) return found;
  if (!unpack(header_, covered.subspan(packet_head_bytes), found.number, found.frames, codes_, scale_).empty())
    return {};
  return found;
}

/// The packet that begins `offset` bytes from here.
std::optional<StreamReader::Found> StreamReader::packet_at(size_t offset) {
  if (!have(offset + packet_head_bytes)) return {};
  auto head = std::span<const std::byte>(recovery_.window).subspan(recovery_.first + offset);
  Found f{.number = get<uint32_t>(head, 4)};
  if (head[0] == data_kind && head[1] == std::byte{0}) {
    f.group = get<uint16_t>(head, 2), f.stretch = f.number / header_.groups(), f.frames = get<uint32_t>(head, 8);
    if (f.group != f.number % header_.groups() || f.number == ~uint32_t{0} || f.frames == 0 ||
        f.frames > header_.packet_frames || (f.number >= packets_ && !follows(f)))
      return {};
    f.bytes = static_cast<size_t>(packet_bytes(header_, f.frames));
    return verified(offset, f);
  }
  // Not a data packet. Of the closing packet, f.number is the number of data packets in the stream.
  constexpr size_t bytes = closing_bytes + crc_bytes;
  if (head[0] != closing_kind || get<uint32_t>(head, 0) >> 8 != 0 || get<uint32_t>(head, 8) != 0 ||
      f.number < packets_ || f.number % header_.groups() != 0 || !have(offset + bytes))
    return {};
  // have() may have moved the window.
  head = std::span<const std::byte>(recovery_.window).subspan(recovery_.first + offset);
  f.closing = true, f.bytes = bytes, f.samples = get<uint64_t>(head, 20);
  const uint64_t frames = get<uint64_t>(head, 12), stretches = f.number / header_.groups();
  // Every stretch before the last one is whole.
  if (f.number == packets_) {
    // No packet is missing.
    if (frames != frames_) return {};
  } else {
    // The last packets are missing. The closing packet says which stretch is the last one and how many frames it has.
    f.stretch = stretches - 1;
    const uint64_t before = f.stretch * header_.packet_frames;
    if (frames <= before || frames - before > header_.packet_frames) return {};
    f.frames = static_cast<uint32_t>(frames - before);
    if (!follows(f)) return {};
  }
  // Without the stretch before the last one, which may be among the lost packets.
  if (!length_problem(header_, frames, f.samples).empty()) return {};
  return verified(offset, f);
}

/// The next packet, from here to the end of the source. Passes it, and all bytes before it.
std::optional<StreamReader::Found> StreamReader::find() {
  const auto whole = static_cast<size_t>(packet_bytes(header_, header_.packet_frames));
  const uint64_t begin = at_;
  for (;;) {
    std::optional<Found> found = packet_at(0);
    // If bytes were changed and none are missing, the next packet is where it would be anyway.
    if (!found && (found = packet_at(whole))) skip(whole);
    while (!found && have(1)) {
      skip(1);
      found = packet_at(0);
    }
    if (!found) return {};
    const uint64_t skipped = at_ - begin;
    skip(found->bytes);
    // A packet that is there twice.
    if (found->number < packets_) continue;
    // Every `whole` bytes that were skipped account for one lost packet. The others have no bytes. Only these are
    // limited.
    const uint64_t lost = found->number - packets_;
    recovery_.absent += lost - std::min<uint64_t>(lost, skipped / whole);
    const double seconds = header_.segment != 0 ? static_cast<double>(recovery_.absent) / header_.groups() *
                                                      header_.stride / header_.model_rate
                                                : static_cast<double>(recovery_.absent) / header_.groups() *
                                                      header_.packet_frames * header_.hop / header_.model_rate;
    if (seconds > most_absent_seconds)
      fail("found packet " + std::to_string(found->number) + ", expected packet " + std::to_string(packets_) +
           ": more than " + std::to_string(static_cast<int>(most_absent_seconds / 60)) + " minutes are missing");
    return found;
  }
}

std::optional<StreamPacket> StreamReader::next_recovered() {
  Recovery& r = recovery_;
  if (!r.found) r.found = find();
  if (!r.found) {
    end_without_closing();
    return {};
  }
  const Found f = *r.found;
  // Still in front of the packet that was found. passed() counts the lost packet like any other.
  if (packets_ < f.number) {
    StreamPacket packet = passed(packets_ % header_.groups(), lost_frames(f));
    packet.codes = {}, packet.scale = 1, packet.lost = true;
    state_ = State::open;
    return packet;
  }
  r.found.reset();
  if (!f.closing) {
    state_ = State::open;
    return passed(f.group, f.frames);
  }
  samples_ = f.samples;
  // One byte shows it. What it belongs to is not examined.
  r.continued = have(1);
  state_ = State::finished;
  return {};
}

/// The source ends without a closing packet. frames_ counts the stretches of which all groups were passed, so a last
/// stretch with packets of some groups is not part of the length.
void StreamReader::end_without_closing() {
  recovery_.cut_off = true;
  samples_ = header_.samples;
  if (header_.samples == StreamHeader::unknown || !length_problem(header_, frames_, header_.samples).empty()) {
    // Up to 2^48 frames of 2^20 samples.
    const unsigned __int128 held = end_of_frames(header_, frames_) * header_.original_rate / header_.model_rate;
    samples_ = static_cast<uint64_t>(std::min<unsigned __int128>(held, max_samples));
  }
  state_ = State::finished;
}

}  // namespace nacre
