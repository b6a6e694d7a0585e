// Streams of channels that are coded together and of segments with a scale. All lengths around the ends of segments
// come back as they were. Then every fault of what is new must be found.
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "files/stream_tools.h"
#include "nacre/error.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Segment {
  std::vector<int32_t> codes;
  float scale = 1;
  bool operator==(const Segment&) const = default;
};
using Groups = std::vector<std::vector<Segment>>;

StreamHeader segmented(uint32_t channels = 2, uint32_t segment = 100, uint32_t stride = 60) {
  StreamHeader h = small_header();
  h.hop = 10, h.channels = channels, h.joint = 2, h.segment = segment, h.stride = stride, h.scaled = true;
  h.packet_frames = 0;
  return h;
}

/// The frames of every segment of a signal, by the definition.
std::vector<uint32_t> frames_of_segments(const StreamHeader& h, uint64_t samples) {
  std::vector<uint32_t> frames;
  for (uint64_t at = 0; at < samples; at += h.stride)
    frames.push_back(static_cast<uint32_t>((std::min<uint64_t>(samples - at, h.segment) + h.hop - 1) / h.hop));
  return frames;
}

Groups random_groups(const StreamHeader& h, const std::vector<uint32_t>& frames, std::mt19937_64& rng) {
  Groups groups(h.groups());
  for (auto& group : groups)
    for (const uint32_t n : frames) {
      Segment s{
          std::vector<int32_t>(size_t{n} * h.codebooks),
          h.scaled ? std::ldexp(1 + static_cast<float>(rng() % 1000) / 1000, static_cast<int>(rng() % 80) - 40) : 1};
      for (int32_t& c : s.codes) c = static_cast<int32_t>(rng() % h.codebook_size);
      group.push_back(std::move(s));
    }
  return groups;
}

/// Writes segment by segment, or (ahead) group by group.
Bytes written(const StreamHeader& h, const Groups& groups, uint64_t samples, bool ahead = false) {
  Bytes out;
  StreamWriter w(h, [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
  const size_t segments = groups[0].size();
  for (size_t i = 0; i < segments * groups.size(); ++i) {
    const size_t g = ahead ? i / segments : i % groups.size(), s = ahead ? i % segments : i / groups.size();
    w.write(static_cast<uint32_t>(g), groups[g][s].codes, groups[g][s].scale);
  }
  w.finish(samples);
  REQUIRE(w.bytes() == out.size());
  return out;
}

struct Parsed {
  StreamHeader header;
  Groups groups;
  uint64_t frames = 0, samples = 0;
};
Parsed parsed(const Bytes& bytes, size_t piece = ~size_t{0}) {
  StreamReader r(source_of(bytes, piece), "test.nacre");
  Parsed p{r.header(), Groups(r.header().groups())};
  while (const auto packet = r.next()) {
    auto& group = p.groups[packet->group];
    REQUIRE(packet->first_frame == group.size() * r.header().packet_frames);
    REQUIRE(packet->codes.size() == size_t{packet->frames} * r.header().codebooks);
    group.push_back({{packet->codes.begin(), packet->codes.end()}, packet->scale});
  }
  REQUIRE(r.finished());
  p.frames = r.frames(), p.samples = r.samples();
  return p;
}
std::string refusal(const Bytes& bytes) {
  try {
    parsed(bytes);
    return "none";
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) FAIL_CHECK("another kind: " << e.what());
    return e.what();
  }
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

constexpr size_t head = 76, tail = 32;
uint32_t seed_of(const Bytes& b) { return crc32c(std::span(b).first(head - 4)); }
Bytes with_field(Bytes b, size_t at, uint64_t value, size_t size) {
  set(b, at, value, size);
  set(b, head - 4, seed_of(b), 4);
  return b;
}
/// Corrects the CRC of a packet of `size` bytes.
void seal(Bytes& b, size_t at, size_t size) {
  set(b, at + size - 4, crc32c(std::span(b).subspan(at, size - 4), seed_of(b)), 4);
}

}  // namespace

TEST_CASE("streams of segments come back as they were, whatever their length", "[stream][segments]") {
  std::mt19937_64 rng(seed());
  struct Sizes {
    uint32_t segment, stride, hop;
  };
  // Whole frames or not; overlaps of half a segment, less, less than a frame and none.
  for (const Sizes& sizes :
       {Sizes{100, 60, 10}, {100, 50, 10}, {101, 97, 7}, {100, 100, 10}, {99, 95, 10}, {40, 33, 64}})
    for (const uint32_t channels : {1u, 2u, 3u, 5u})
      for (const bool scaled : {true, false}) {
        StreamHeader h = segmented(channels, sizes.segment, sizes.stride);
        h.hop = sizes.hop, h.scaled = scaled;
        for (uint64_t samples = 0; samples<3 * sizes.stride + 3; samples += samples> 2 && channels != 3 ? 7 : 1) {
          INFO(sizes.segment << " by " << sizes.stride << ", hop " << sizes.hop << ", " << samples << " samples");
          h.samples = samples % 2 == 0 ? samples : StreamHeader::unknown;
          const std::vector<uint32_t> frames = frames_of_segments(h, samples);
          const Groups groups = random_groups(h, frames, rng);
          const Bytes bytes = written(h, groups, samples);
          REQUIRE((written(h, groups, samples, true) == bytes));
          const Parsed back = parsed(bytes, samples % 3 == 0 ? 1 : ~size_t{0});
          StreamHeader expected = h;
          expected.packet_frames = (sizes.segment + sizes.hop - 1) / sizes.hop;
          REQUIRE(back.header == expected);
          REQUIRE((back.groups == groups));
          REQUIRE(back.samples == samples);
          // Frames are numbered by their place.
          const uint64_t place = frames.empty() ? 0 : (frames.size() - 1) * expected.packet_frames + frames.back();
          REQUIRE(back.frames == place);
          REQUIRE(frames_of(expected, samples) == place);
        }
      }
  StreamHeader h = segmented();
  h.packet_frames = 10;
  CHECK(first_sample(h, 0) == 0);
  CHECK(first_sample(h, 9) == 90);
  CHECK(first_sample(h, 10) == 60);
  CHECK(first_sample(h, 23) == 150);
  CHECK(first_sample(small_header(), 23) == 23 * 320);
}

TEST_CASE("the bytes of a stream of segments are those of the description", "[stream][segments]") {
  // Written by hand from docs/format.md, so that a change of the format is noticed.
  StreamHeader h{.model = 0x1122334455667788,
                 .model_rate = 16000,
                 .original_rate = 8000,
                 .channels = 3,
                 .joint = 2,
                 .gain = 1,
                 .samples = 5,
                 .hop = 10,
                 .codebooks = 2,
                 .codebook_size = 10,
                 .segment = 0x1234,
                 .stride = 0x1000,
                 .scaled = true};
  const Bytes b = written(h, {{{{1, 2}, 0.5f}}, {{{3, 4}, 1e-8f}}}, 5);
  const std::array<unsigned, 20> extension = {2, 0, 1, 0, 0x34, 0x12, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0};
  REQUIRE(b.size() == 76 + 2 * (12 + 4 + 1 + 4) + 32);
  CHECK(b[10] == std::byte{1});
  CHECK(b[11] == std::byte{0});
  CHECK(b[32] == std::byte{466 & 0xff});  // frames of a segment: 4660 samples
  CHECK(b[33] == std::byte{466 >> 8});
  for (size_t i = 0; i < 16; ++i) CHECK(std::to_integer<unsigned>(b[56 + i]) == extension[i]);
  CHECK(b[76] == std::byte{'P'});
  CHECK(b[76 + 8] == std::byte{1});  // frames
  const std::array<unsigned, 9> first = {0, 0, 0, 0x3f, 0x21}, second = {0x77, 0xcc, 0x2b, 0x32, 0x43};
  for (size_t i = 0; i < 5; ++i) {
    CHECK(std::to_integer<unsigned>(b[88 + i]) == first[i]);
    CHECK(std::to_integer<unsigned>(b[88 + 21 + i]) == second[i]);
  }
  CHECK(b[97 + 2] == std::byte{1});  // group
  CHECK(b[118] == std::byte{'E'});
}

TEST_CASE("joint channels without segments are packets of groups", "[stream][segments]") {
  std::mt19937_64 rng(seed());
  StreamHeader h = small_header();
  h.channels = 5, h.joint = 2;
  CHECK(nominal_bits_per_second(h) == 3 * 2 * 10 * 50);
  // The codes of a stream of three channels, each coded by itself.
  StreamHeader three = small_header();
  three.channels = 3;
  Stream s = random_stream(three, 7, rng);
  const Bytes of_three = nacre::test::written(s);
  Bytes b;
  StreamWriter w(h, [&](std::span<const std::byte> d) { b.insert(b.end(), d.begin(), d.end()); });
  for (uint32_t g = 0; g < 3; ++g) w.write(g, s.codes[g]);
  w.finish(s.samples);
  REQUIRE(b.size() == of_three.size() + 16);
  StreamReader r(source_of(b), "test.nacre");
  CHECK(r.header() == h);
  std::vector<std::vector<int32_t>> back(3);
  while (const auto p = r.next()) back[p->group].insert(back[p->group].end(), p->codes.begin(), p->codes.end());
  CHECK((back == s.codes));
  CHECK_THROWS_WITH(w.write(3, {}), Catch::Contains("after the end"));
  StreamWriter other(h, [](std::span<const std::byte>) {});
  CHECK_THROWS_WITH(other.write(3, {}), Catch::Contains("group is 3, expected 0 to 2"));
  CHECK_THROWS_WITH(other.write(0, std::vector<int32_t>(2), 0.5f), Catch::Contains("expected 1: it has no scales"));
}

TEST_CASE("the extension of a header is bounded, whatever its CRC says", "[stream][segments]") {
  const Bytes good = written(segmented(), {{}}, 0);
  REQUIRE(good.size() == head + tail);
  const auto header = [](const Bytes& b) -> std::string {
    try {
      StreamReader(source_of(b), "test.nacre");
      return "none";
    } catch (const Error& e) {
      REQUIRE(e.kind() == ErrorKind::input);
      return e.what();
    }
  };
  CHECK(header(good) == "none");
  for (const auto& [value, right] : {std::pair{0u, false}, {1u, true}, {2u, true}, {64u, true}, {65u, false}})
    CHECK((header(with_field(good, 56, value, 2)) == "none") == right);
  for (uint64_t bit = 1; bit < 16; ++bit) {
    CHECK(has(header(with_field(good, 58, 1 | uint64_t{1} << bit, 2)), "flags that this program does not know"));
    CHECK(has(header(with_field(good, 10, 1 | uint64_t{1} << bit, 2)), "flags that this program does not know"));
  }
  CHECK(header(with_field(good, 58, 0, 2)) == "none");  // no scales
  for (const auto& [value, right] : {std::pair{90u, false}, {91u, true}, {100u, true}, {101u, false}}) {
    INFO("a segment of " << value << " samples, 10 frames");
    CHECK((header(with_field(good, 60, value, 4)) == "none") == right);
  }
  for (const auto& [value, right] :
       {std::pair{0u, false}, {49u, false}, {50u, true}, {100u, true}, {101u, false}, {~0u, false}})
    CHECK((header(with_field(good, 64, value, 4)) == "none") == right);
  CHECK(has(header(with_field(good, 64, 101, 4)), "the distance of segments is 101, expected 50 to 100"));
  CHECK(has(header(with_field(good, 32, 9, 4)), "frames per packet is 9, expected 10, those of a segment"));
  for (const uint32_t value : {1u, 1u << 31}) CHECK(has(header(with_field(good, 68, value, 4)), "does not know"));
  // Without segments, there is neither a distance nor a scale.
  const Bytes none = with_field(good, 60, 0, 4);
  CHECK(has(header(none), "there are no segments"));
  CHECK(has(header(with_field(none, 64, 0, 4)), "there are no segments"));
  const Bytes joint = with_field(with_field(none, 64, 0, 4), 58, 0, 2);
  CHECK(header(joint) == "none");
  CHECK(has(header(with_field(joint, 56, 1, 2)), "the extension of the header says nothing"));
  StreamHeader h = segmented();
  const ByteSink nowhere = [](std::span<const std::byte>) {};
  h.segment = (1u << 24) + 1, h.stride = h.segment, h.hop = 1000;
  CHECK_THROWS_WITH(StreamWriter(h, nowhere), Catch::Contains("length of a segment is 16777217, expected 1 to"));
  h.segment = h.stride = 1u << 24, h.codebooks = 1;
  CHECK(StreamWriter(h, nowhere).header().packet_frames == 16778);
}

TEST_CASE("scales are positive and bounded in both directions", "[stream][segments]") {
  const StreamHeader h = segmented(2);
  const Bytes good = written(h, {{{{1, 2}, 0.5f}}}, 10);
  constexpr size_t packet = 12 + 4 + 3 + 4;
  REQUIRE(good.size() == head + packet + tail);
  StreamWriter w(h, [](std::span<const std::byte>) {});
  const std::vector<int32_t> codes(2);
  for (const float scale : {0.0f, -0.0f, -1.0f, 0x1p-61f, 0x1.000002p60f, INFINITY, -INFINITY, NAN, 1e-45f}) {
    INFO(scale);
    Bytes b = good;
    set(b, head + 12, std::bit_cast<uint32_t>(scale), 4);
    seal(b, head, packet);
    CHECK(has(refusal(b), "packet 0: the scale is "));
    CHECK_THROWS_WITH(w.write(0, codes, scale), Catch::Contains("expected 2^-60 to 2^60"));
  }
  for (const float scale : {0x1p-60f, 1e-8f, 0x1p60f}) {
    const Bytes b = written(h, {{{{1, 2}, scale}}}, 10);
    CHECK(parsed(b).groups[0][0].scale == scale);
  }
}

TEST_CASE("a segment is short at the end of the signal alone", "[stream][segments]") {
  std::mt19937_64 rng(seed());
  const StreamHeader h = segmented();  // 10 frames, next segment after 6
  const auto write = [&](const std::vector<uint32_t>& frames, uint64_t samples) -> std::string {
    try {
      const Groups groups = random_groups(h, frames, rng);
      const Bytes bytes = written(h, groups, samples);
      const Groups back = parsed(bytes).groups;
      REQUIRE((back == groups));
      return "none";
    } catch (const Error& e) {
      REQUIRE(e.kind() == ErrorKind::usage);
      return e.what();
    }
  };
  CHECK(write({10, 10, 4}, 160) == "none");
  CHECK(write({10, 9, 3}, 150) == "none");
  CHECK(write({10, 9, 3}, 148) == "none");
  CHECK(has(write({10, 9, 3}, 160), "do not match the length"));
  CHECK(has(write({10, 10, 3}, 150), "do not match the length"));
  CHECK(has(write({10, 9, 4}, 150), "a segment of 4 frames behind one of 9, which ends the signal"));
  CHECK(has(write({10, 6, 1}, 121), "which ends the signal"));
  CHECK(has(write({10, 9, 3, 1}, 181), "which ends the signal"));
  CHECK(has(write({10, 11}, 160), "a segment of 11 frames, expected at most 10"));
  CHECK(has(write({10, 10, 7}, 190), "do not match the length"));  // another segment would begin
  // Of frames that are longer than the overlap, a second short segment could hold a third.
  StreamHeader long_frames = segmented(2, 100, 50);
  long_frames.hop = 64;
  StreamWriter ends(long_frames, [](std::span<const std::byte>) {});
  for (const size_t n : {2, 1, 1}) ends.write(0, std::vector<int32_t>(2 * n), 1);
  CHECK_THROWS_WITH(ends.write(0, std::vector<int32_t>(2), 1), Catch::Contains("which ends the signal"));
  StreamHeader two = h;
  two.channels = 4;
  StreamWriter w(two, [](std::span<const std::byte>) {});
  w.write(0, std::vector<int32_t>(20), 1);
  CHECK_THROWS_WITH(w.write(1, std::vector<int32_t>(18), 1), Catch::Contains("the groups differ in length"));

  // The same faults in a stream. Packets of 10 frames of two codes of ten bits; the last has 4 frames.
  const Bytes good = written(h, random_groups(h, {10, 10, 4}, rng), 160);
  constexpr size_t whole = 12 + 4 + 25 + 4, last = 12 + 4 + 10 + 4;
  REQUIRE(good.size() == head + 2 * whole + last + tail);
  Bytes b = good;
  // The second packet loses two frames: 5 bytes.
  b.erase(b.begin() + head + whole + 12 + 4 + 20, b.begin() + head + whole + 12 + 4 + 25);
  set(b, head + whole + 8, 8, 4);
  seal(b, head + whole, whole - 5);
  CHECK(has(refusal(b), "found a packet of 4 frames, expected 8"));
  // A length of 150 has 9 frames in the second segment and 3 in the third.
  b = good;
  set(b, b.size() - 12, 164, 8);
  seal(b, b.size() - tail, tail);
  CHECK(has(refusal(b), "do not match the length"));
}

TEST_CASE("any cut and any flipped bit of a stream of segments is noticed", "[stream][segments]") {
  std::mt19937_64 rng(seed());
  for (const uint32_t channels : {2u, 3u}) {
    const StreamHeader h = segmented(channels);
    const Bytes good = written(h, random_groups(h, frames_of_segments(h, 147), rng), 147);
    REQUIRE(refusal(good) == "none");
    for (size_t n = 0; n < good.size(); ++n)
      if (refusal({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)}) == "none") FAIL("cut at byte " << n);
    for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
      Bytes bad = good;
      bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      if (refusal(bad) == "none") FAIL("bit " << bit % 8 << " of byte " << bit / 8);
    }
  }
}

TEST_CASE("a stream of segments is read from any frame on", "[stream][segments]") {
  std::mt19937_64 rng(seed());
  for (const uint32_t stride : {50u, 60u, 96u, 100u})
    for (const uint32_t channels : {2u, 3u})
      for (uint64_t samples = 0; samples<330; samples += samples % 100> 90 ? 1 : 9) {
        const StreamHeader h = segmented(channels, 100, stride);
        const Groups groups = random_groups(h, frames_of_segments(h, samples), rng);
        const Bytes bytes = written(h, groups, samples);
        const PositionedSource source{.read = [&](uint64_t at, std::span<std::byte> into) -> size_t {
                                        if (at >= bytes.size()) return 0;
                                        const size_t n = std::min<size_t>(into.size(), bytes.size() - at);
                                        std::memcpy(into.data(), bytes.data() + at, n);
                                        return n;
                                      },
                                      .size = bytes.size()};
        for (const uint64_t from : {0u, 9u, 10u, 25u, 30u, 39u, 40u, 1000u}) {
          INFO("stride " << stride << ", " << samples << " samples, from frame " << from);
          StreamReader at(source, "test.nacre"), on(source_of(bytes), "test.nacre");
          at.seek(from), on.seek(from);
          uint64_t next = std::min<uint64_t>(from / 10, groups[0].size()) * h.groups();
          while (const auto p = at.next()) {
            const auto q = on.next();
            REQUIRE(q);
            const Segment& s = groups[next % h.groups()][next / h.groups()];
            for (const StreamPacket& packet : {*p, *q}) {
              REQUIRE(packet.group == next % h.groups());
              REQUIRE(packet.first_frame == next / h.groups() * 10);
              REQUIRE(packet.scale == s.scale);
              REQUIRE(std::equal(packet.codes.begin(), packet.codes.end(), s.codes.begin(), s.codes.end()));
            }
            ++next;
          }
          CHECK_FALSE(on.next());
          CHECK(next == groups[0].size() * h.groups());
          CHECK(at.samples() == samples);
        }
      }
}

TEST_CASE("lost segments keep their time, and the others their codes and scales", "[stream][segments]") {
  std::mt19937_64 rng(seed());
  for (const bool known : {true, false})
    for (const uint32_t channels : {2u, 3u})
      for (const uint64_t samples : {301u, 298u, 336u, 370u, 350u}) {
        StreamHeader h = segmented(channels);
        if (known) h.samples = samples;
        const std::vector<uint32_t> frames = frames_of_segments(h, samples);
        const Groups groups = random_groups(h, frames, rng);
        const Bytes good = written(h, groups, samples);
        const size_t count = frames.size() * h.groups();
        std::vector<size_t> begins;
        size_t at = head;
        for (size_t p = 0; p < count; ++p)
          begins.push_back(at), at += 12 + 4 + (frames[p / h.groups()] * size_t{20} + 7) / 8 + 4;
        begins.push_back(at);
        REQUIRE(good.size() == at + tail);
        for (uint32_t lost = 0; lost<1u << count; lost += count> 8 ? 37 : 1)
          for (const bool erased : {false, true}) {
            INFO(samples << " samples, known " << known << ", lost " << lost << ", erased " << erased);
            Bytes bad = good;
            for (size_t p = count; p-- > 0;)
              if (lost >> p & 1) {
                if (erased)
                  bad.erase(bad.begin() + static_cast<std::ptrdiff_t>(begins[p]),
                            bad.begin() + static_cast<std::ptrdiff_t>(begins[p + 1]));
                else
                  bad[begins[p] + 13] ^= std::byte{4};
              }
            StreamReader r(source_of(bad), "test.nacre", {.recover = true});
            size_t n = 0;
            while (const auto p = r.next()) {
              REQUIRE(n < count);
              REQUIRE(p->group == n % h.groups());
              REQUIRE(p->first_frame == n / h.groups() * 10);
              REQUIRE(p->lost == ((lost >> n & 1) != 0));
              // Without the length, only what is there says that the segment before the last one is shorter.
              if (!p->lost || known) REQUIRE(p->frames == frames[n / h.groups()]);
              if (!p->lost) {
                const Segment& s = groups[p->group][n / h.groups()];
                REQUIRE(std::equal(p->codes.begin(), p->codes.end(), s.codes.begin(), s.codes.end()));
                REQUIRE(p->scale == s.scale);
              }
              ++n;
            }
            REQUIRE(n == count);
            CHECK(r.samples() == samples);
            CHECK_FALSE(r.cut_off());
          }
        // Without a closing packet, the length is that in the header, or that of the frames.
        const Bytes cut(good.begin(), good.end() - 1);
        StreamReader r(source_of(cut), "test.nacre", {.recover = true});
        while (r.next()) {
        }
        CHECK(r.cut_off());
        CHECK(r.samples() == (known ? samples : (frames.size() - 1) * 60 + frames.back() * 10));
      }
}
