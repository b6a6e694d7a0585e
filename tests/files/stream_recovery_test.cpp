// Reading a stream from a frame on, and reading around damage. What the reader returns is compared with the codes that
// were written: a packet has its own codes in its own place, or it is lost.
#include <algorithm>

#include "files/stream_tools.h"
#include "nacre/error.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Bytes that are read at positions; counts them.
PositionedSource positioned(const Bytes& bytes, size_t& count) {
  return {.read = [&bytes, &count](uint64_t at, std::span<std::byte> into) -> size_t {
            if (at >= bytes.size()) return 0;
            const size_t n = std::min(into.size(), bytes.size() - static_cast<size_t>(at));
            std::memcpy(into.data(), bytes.data() + at, n);
            count += n;
            return n;
          },
          .size = bytes.size()};
}

struct Recovered {
  std::vector<std::vector<bool>> lost;  // per channel and frame
  uint64_t packets = 0, frames = 0, samples = 0;
  bool cut_off = false, continued = false;
  /// Frames that are lost in one channel at least, up to frames.
  uint64_t lost_frames() const {
    uint64_t n = 0;
    for (size_t t = 0; t < frames; ++t)
      n += std::any_of(lost.begin(), lost.end(), [&](const auto& l) { return l[t]; }) ? 1 : 0;
    return n;
  }
};
/// Reads all and expects every packet in its place, with the codes of `s` or lost.
Recovered recovered(const Bytes& bytes, const Stream& s, size_t piece = ~size_t{0}) {
  StreamReader r(source_of(bytes, piece), "test.nacre", {.recover = true});
  const uint32_t channels = s.header.channels, books = s.header.codebooks;
  Recovered out{.lost = std::vector<std::vector<bool>>(channels)};
  while (const auto p = r.next()) {
    REQUIRE(p->group == out.packets % channels);
    REQUIRE(p->first_frame == out.lost[p->group].size());
    REQUIRE(p->frames > 0);
    out.lost[p->group].insert(out.lost[p->group].end(), p->frames, p->lost);
    ++out.packets;
    if (p->lost) {
      REQUIRE(p->codes.empty());
      continue;
    }
    const auto& codes = s.codes[p->group];
    REQUIRE((p->first_frame + p->frames) * books <= codes.size());
    REQUIRE(std::equal(p->codes.begin(), p->codes.end(),
                       codes.begin() + static_cast<std::ptrdiff_t>(p->first_frame * books)));
    REQUIRE(p->codes.size() == p->frames * books);
  }
  REQUIRE(r.finished());
  REQUIRE_FALSE(r.next());
  out.frames = r.frames(), out.samples = r.samples(), out.cut_off = r.cut_off(), out.continued = r.continued();
  for (const auto& channel : out.lost) REQUIRE(channel.size() >= out.frames);
  return out;
}

std::string refusal(const Bytes& bytes) {
  try {
    StreamReader r(source_of(bytes), "test.nacre", {.recover = true});
    while (r.next()) {
    }
    return "none";
  } catch (const Error& e) {
    REQUIRE(e.kind() == ErrorKind::input);
    return e.what();
  }
}

/// Three frames of two codes of ten bits, with head and CRC.
constexpr size_t packet_bytes = 12 + 8 + 4;
std::ptrdiff_t packet_at(size_t number) { return static_cast<std::ptrdiff_t>(60 + number * packet_bytes); }

}  // namespace

TEST_CASE("a stream is read from any frame on", "[stream]") {
  std::mt19937_64 rng(seed());
  for (uint32_t channels : {1u, 2u, 3u})
    for (uint64_t frames : {0u, 1u, 3u, 14u, 15u, 16u}) {
      StreamHeader h = small_header();
      h.channels = channels;
      const Stream s = random_stream(h, frames, rng);
      const Bytes bytes = written(s);
      for (uint64_t from : {uint64_t{0}, uint64_t{2}, uint64_t{3}, uint64_t{11}, uint64_t{12}, uint64_t{14},
                            uint64_t{15}, uint64_t{1000}, ~uint64_t{0}}) {
        INFO(channels << " channels, " << frames << " frames, from " << from);
        size_t read = 0, all = 0;
        StreamReader at(positioned(bytes, read), "test.nacre"), on(source_of(bytes), "test.nacre");
        at.seek(from), on.seek(from);
        const uint64_t first = std::min(from / 3 * 3, frames);
        uint64_t next = first;
        while (const auto p = at.next()) {
          const auto q = on.next();
          REQUIRE(q);
          REQUIRE(p->first_frame == next);
          REQUIRE(q->first_frame == next);
          const auto expected = std::span(s.codes[p->group]).subspan(next * 2, p->frames * 2);
          REQUIRE(std::equal(p->codes.begin(), p->codes.end(), expected.begin(), expected.end()));
          REQUIRE(std::equal(q->codes.begin(), q->codes.end(), expected.begin(), expected.end()));
          if (p->group + 1 == channels) next += p->frames;
          all += 16 + (p->frames * 20 + 7) / 8;
        }
        CHECK_FALSE(on.next());
        CHECK(next == frames);
        CHECK(at.frames() == frames);
        CHECK(at.samples() == s.samples);
        // The header, the packets from the frame on, the closing packet. Behind the end, the last packets are read.
        CHECK(read <= 60 + all + 32 + (first == frames ? channels * packet_bytes : 0));
        at.seek(0);  // back
        if (frames > 0) CHECK(at.next()->first_frame == 0);
        if (first > 0) CHECK_THROWS_WITH(on.seek(0), Catch::Contains("cannot go back to frame 0"));
      }
    }
}

TEST_CASE("damage in front of the frame that is sought is not seen in a file", "[stream]") {
  std::mt19937_64 rng(seed());
  const Stream s = random_stream(small_header(), 30, rng);
  Bytes bytes = written(s);
  bytes[static_cast<size_t>(packet_at(4)) + 13] ^= std::byte{1};
  size_t read = 0;
  StreamReader at(positioned(bytes, read), "test.nacre"), on(source_of(bytes), "test.nacre");
  at.seek(15);
  CHECK(at.next()->first_frame == 15);
  CHECK_THROWS_WITH(on.seek(15), Catch::Contains("the CRC of packet 4 does not match"));
  // The packet itself is checked.
  at.seek(14);
  CHECK_THROWS_WITH(at.next(), Catch::Contains("the CRC of packet 4 does not match"));
  // A stream without its end, behind it.
  bytes.resize(bytes.size() - 32 - packet_bytes - 1);
  StreamReader cut(positioned(bytes, read), "test.nacre");
  CHECK_THROWS_WITH(([&] {
                      cut.seek(29);
                      while (cut.next()) {
                      }
                    }()),
                    Catch::Contains("the stream is cut off after 8 whole packets (0.48 s)"));
}

TEST_CASE("whole streams are read alike where damage is read around", "[stream][recovery]") {
  std::mt19937_64 rng(seed());
  for (uint32_t channels : {1u, 2u, 3u})
    for (uint64_t frames : {0u, 1u, 2u, 3u, 4u, 13u}) {
      StreamHeader h = small_header();
      h.channels = channels;
      if (frames % 2 == 1) h.samples = frames * h.hop;
      const Stream s = random_stream(h, frames, rng);
      for (size_t piece : {size_t{1}, size_t{7}, ~size_t{0}}) {
        const Recovered r = recovered(written(s), s, piece);
        CHECK(r.frames == frames);
        CHECK(r.samples == s.samples);
        CHECK(r.lost_frames() == 0);
        CHECK_FALSE(r.cut_off);
        CHECK_FALSE(r.continued);
      }
    }
}

TEST_CASE("a flipped bit loses one packet", "[stream][recovery]") {
  std::mt19937_64 rng(seed());
  for (uint32_t channels : {1u, 2u})
    for (bool known : {false, true}) {
      StreamHeader h = small_header();
      h.channels = channels;
      if (known) h.samples = 14 * h.hop;
      const Stream s = random_stream(h, 14, rng);  // four stretches of three frames, and one of two
      const Bytes good = written(s);
      const size_t end = good.size() - 32;
      for (size_t bit = 8 * 60; bit < 8 * good.size(); ++bit) {
        Bytes bad = good;
        bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
        INFO("bit " << bit % 8 << " of byte " << bit / 8 << ", " << channels << " channels, length " << known);
        const Recovered r = recovered(bad, s, bit % 3 == 0 ? 1 : ~size_t{0});
        CHECK(r.frames == 14);
        CHECK(r.samples == 14 * h.hop);
        CHECK_FALSE(r.continued);
        CHECK(r.cut_off == (bit / 8 >= end));
        if (r.cut_off) {
          CHECK(r.lost_frames() == 0);
          continue;
        }
        const size_t number = (bit / 8 - 60) / packet_bytes;
        CHECK(r.lost_frames() == (number / channels < 4 ? 3 : 2));
        const uint64_t stretch = std::min<size_t>(number, 5 * channels - 1) / channels;
        for (uint32_t c = 0; c < channels; ++c) {
          const auto lost = std::count(r.lost[c].begin(), r.lost[c].end(), true);
          // The packets of the last stretch are shorter.
          const bool last = stretch == 4;
          if (!last) CHECK(lost == (number % channels == c ? 3 : 0));
          if (lost > 0) CHECK(r.lost[c][stretch * 3]);
        }
      }
      for (size_t bit = 0; bit < 8 * 60; ++bit) {
        Bytes bad = good;
        bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
        if (refusal(bad) == "none") FAIL("header: bit " << bit % 8 << " of byte " << bit / 8);
      }
    }
}

TEST_CASE("a stream that is cut at any byte has its whole packets", "[stream][recovery]") {
  std::mt19937_64 rng(seed());
  for (uint32_t channels : {1u, 2u})
    for (bool known : {false, true}) {
      StreamHeader h = small_header();
      h.channels = channels;
      if (known) h.samples = 14 * h.hop;
      const Stream s = random_stream(h, 14, rng);
      const Bytes good = written(s);
      const size_t short_bytes = 12 + 5 + 4;  // two frames
      for (size_t n = 0; n < good.size(); ++n) {
        INFO("cut at byte " << n << ", " << channels << " channels, length " << known);
        const Bytes cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n));
        if (n < 60) {
          CHECK_THAT(refusal(cut), Catch::Contains("cut off"));
          continue;
        }
        const Recovered r = recovered(cut, s);
        uint64_t frames = std::min<uint64_t>((n - 60) / (packet_bytes * channels), 4) * 3;
        if (n >= 60 + channels * (4 * packet_bytes + short_bytes)) frames += 2;
        CHECK(r.frames == frames);
        CHECK(r.samples == frames * h.hop);
        CHECK(r.lost_frames() == 0);
        CHECK(r.cut_off);
      }
    }
}

TEST_CASE("packets that are missing, swapped, doubled or moved are found by their number", "[stream][recovery]") {
  std::mt19937_64 rng(seed());
  const StreamHeader h = small_header();
  const Stream s = random_stream(h, 30, rng);
  const Bytes good = written(s);
  const auto lost = [&](const Bytes& bytes, std::vector<size_t> packets) {
    const Recovered r = recovered(bytes, s);
    CHECK(r.frames == 30);
    CHECK_FALSE(r.cut_off);
    for (size_t t = 0; t < r.lost[0].size(); ++t)
      CHECK(r.lost[0][t] == (std::find(packets.begin(), packets.end(), t / 3) != packets.end()));
  };
  for (size_t first = 0; first < 10; ++first)
    for (size_t end = first + 1; end <= 10; ++end) {
      Bytes bad = good;
      bad.erase(bad.begin() + packet_at(first), bad.begin() + packet_at(end));
      std::vector<size_t> missing(end - first);
      for (size_t i = first; i < end; ++i) missing[i - first] = i;
      lost(bad, missing);
      // As many bytes of something else.
      bad = good;
      std::fill(bad.begin() + packet_at(first), bad.begin() + packet_at(end), std::byte{'P'});
      lost(bad, missing);
    }
  for (size_t n = 0; n < 10; ++n) {
    Bytes bad = good;
    const Bytes packet(bad.begin() + packet_at(n), bad.begin() + packet_at(n + 1));
    bad.insert(bad.begin() + packet_at(n), packet.begin(), packet.end());
    lost(bad, {});
    for (size_t bytes : {1, 11, 24, 30, 100}) {
      bad = good;
      bad.insert(bad.begin() + packet_at(n), bytes, std::byte{'P'});
      lost(bad, {});
      bad = good;
      bad.insert(bad.begin() + packet_at(n) + 14, bytes, std::byte{0});
      lost(bad, {n});
    }
    for (size_t bytes = 1; bytes < packet_bytes; ++bytes) {
      bad = good;
      bad.erase(bad.begin() + packet_at(n), bad.begin() + packet_at(n) + static_cast<std::ptrdiff_t>(bytes));
      lost(bad, {n});
    }
  }
  Bytes bad = good;
  std::swap_ranges(bad.begin() + packet_at(3), bad.begin() + packet_at(4), bad.begin() + packet_at(4));
  lost(bad, {3});  // it comes too late
  StreamHeader of_other = h;
  of_other.gain = 0.5f;
  const Bytes other = written(random_stream(of_other, 30, rng));
  bad = good;
  std::copy(other.begin() + packet_at(5), other.begin() + packet_at(7), bad.begin() + packet_at(5));
  lost(bad, {5, 6});
  bad = good;
  bad.insert(bad.end(), good.begin(), good.end());
  CHECK(recovered(bad, s).continued);
}

TEST_CASE("a packet's number makes ten minutes at most", "[stream][recovery]") {
  std::mt19937_64 rng(seed());
  StreamHeader h = small_header();
  h.codebooks = 1, h.codebook_size = 2;
  // 3 frames of 20 ms per packet of 17 bytes: 10000 packets are ten minutes.
  const uint64_t packets = 10100;
  const Stream s = random_stream(h, 3 * packets, rng);
  const Bytes good = written(s);
  REQUIRE(good.size() == 60 + packets * 17 + 32);
  for (uint64_t missing : {9999u, 10000u, 10001u}) {
    INFO(missing);
    Bytes bad = good;
    bad.erase(bad.begin() + 60 + 17, bad.begin() + 60 + 17 + static_cast<std::ptrdiff_t>(17 * missing));
    if (missing <= 10000)
      CHECK(recovered(bad, s).lost_frames() == 3 * missing);
    else
      CHECK_THAT(refusal(bad),
                 Catch::Contains("found packet 10002, expected packet 1: more than 10 minutes are missing"));
    // Damaged bytes are as long as what they were.
    bad = good;
    std::fill_n(bad.begin() + 60 + 17, 17 * missing, std::byte{0});
    CHECK(recovered(bad, s).lost_frames() == 3 * missing);
    // The end may be missing, too: the closing packet has the number of packets.
    bad = good;
    bad.erase(bad.begin() + 60 + 17, bad.begin() + static_cast<std::ptrdiff_t>(60 + 17 + 17 * missing));
    bad.erase(bad.end() - 32 - static_cast<std::ptrdiff_t>(17 * (packets - missing - 1)), bad.end() - 32);
    CHECK_THAT(refusal(bad), Catch::Contains("more than 10 minutes are missing"));
  }
  // Many short gaps count together.
  Bytes sparse(good.begin(), good.begin() + 60);
  for (uint64_t n = 0; n < packets; n += 101)
    sparse.insert(sparse.end(), good.begin() + static_cast<std::ptrdiff_t>(60 + 17 * n),
                  good.begin() + static_cast<std::ptrdiff_t>(60 + 17 * (n + 1)));
  CHECK(refusal(sparse) == "none");  // 99 gaps of 100 packets
  Bytes sparser(good.begin(), good.begin() + 60);
  for (uint64_t n = 0; n < packets; n += 2525)
    sparser.insert(sparser.end(), good.begin() + static_cast<std::ptrdiff_t>(60 + 17 * n),
                   good.begin() + static_cast<std::ptrdiff_t>(60 + 17 * (n + 1)));
  sparser.insert(sparser.end(), good.end() - 32, good.end());
  CHECK_THAT(refusal(sparser), Catch::Contains("more than 10 minutes are missing"));
  // A packet that is behind the length of the header is none of the stream.
  StreamHeader with_length = h;
  with_length.samples = 30 * h.hop;
  Stream little = random_stream(with_length, 30, rng);
  Bytes bad = written(little);
  const size_t at = 60 + 9 * 17;
  set(bad, at + 4, 20, 4);
  set(bad, at + 13, crc32c(std::span(bad).subspan(at, 13), header_crc(bad)), 4);
  const Recovered r = recovered(bad, little);
  CHECK(r.frames == 30);
  CHECK(r.lost_frames() == 3);
}

TEST_CASE("input of heads without packets does not take long", "[stream][recovery]") {
  // 256 KiB of codes per packet, and every 24 bytes the head of a packet that could be.
  StreamHeader h = small_header();
  h.codebooks = 32, h.codebook_size = 2, h.packet_frames = 65536;
  std::mt19937_64 rng(seed());
  Bytes bytes = written(random_stream(h, 1, rng));
  bytes.resize(60);
  for (size_t i = 0; i < 100000; ++i) {
    Bytes head(24);
    head[0] = std::byte{'P'};
    set(head, 4, i % 7, 4);
    set(head, 8, 65536, 4);
    bytes.insert(bytes.end(), head.begin(), head.end());
  }
  CHECK_THAT(refusal(bytes), Catch::Contains("too many bytes look like packets"));
}

TEST_CASE("damage at random places is lost or refused, and nothing else", "[stream][recovery]") {
  std::mt19937_64 rng(seed());
  for (int i = 0; i < 3000; ++i) {
    StreamHeader h = small_header();
    h.channels = static_cast<uint32_t>(1 + rng() % 3);
    h.packet_frames = static_cast<uint32_t>(1 + rng() % 5);
    if (rng() % 2 == 0) h.samples = 20 * h.hop;
    const Stream s = random_stream(h, 20, rng);
    Bytes b = written(s);
    const int changes = static_cast<int>(1 + rng() % 6);
    for (int k = 0; k < changes; ++k) {
      const auto at = static_cast<std::ptrdiff_t>(60 + rng() % (b.size() - 60));
      const auto n = static_cast<std::ptrdiff_t>(std::min<size_t>(rng() % 40, b.size() - static_cast<size_t>(at) - 1));
      switch (rng() % 4) {
        case 0:
          b[static_cast<size_t>(at)] ^= static_cast<std::byte>(1 + rng() % 255);
          break;
        case 1:
          b.erase(b.begin() + at, b.begin() + at + n);
          break;
        case 2:
          b.insert(b.begin() + at, static_cast<size_t>(n), static_cast<std::byte>(rng()));
          break;
        default: {
          const Bytes again(b.begin() + at, b.begin() + at + n);
          b.insert(b.begin() + static_cast<std::ptrdiff_t>(60 + rng() % (b.size() - 60)), again.begin(), again.end());
        }
      }
    }
    const Recovered r = recovered(b, s, rng() % 2 == 0 ? 5 : ~size_t{0});
    CHECK(r.frames <= 20);
    if (!r.cut_off) CHECK(r.frames == 20);
  }
}
