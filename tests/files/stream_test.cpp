// Round trips of many sizes. Then every possible fault of a stream must be found.
#include "nacre/files/stream.h"

#include <limits>

#include "file_tools.h"
#include "files/stream_tools.h"
#include "nacre/error.h"

using namespace nacre;
using namespace nacre::test;

namespace {

Stream parsed(const Bytes& bytes, size_t piece = ~size_t{0}) {
  StreamReader r(source_of(bytes, piece), "test.nacre");
  Stream s{r.header(), std::vector<std::vector<int32_t>>(r.header().channels), 0};
  while (const auto p = r.next()) {
    auto& codes = s.codes[p->group];
    REQUIRE(codes.size() == p->first_frame * r.header().codebooks);
    REQUIRE(p->codes.size() == p->frames * r.header().codebooks);
    codes.insert(codes.end(), p->codes.begin(), p->codes.end());
  }
  REQUIRE(r.finished());
  REQUIRE_FALSE(r.next());
  s.samples = r.samples();
  return s;
}

bool refused(const Bytes& bytes, const std::string& text = "") {
  try {
    parsed(bytes);
    return false;
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) return false;
    if (std::string(e.what()).find("test.nacre: byte ") == std::string::npos) return false;
    if (std::string(e.what()).find(text) == std::string::npos) FAIL_CHECK(e.what() << " lacks " << text);
    return true;
  }
}

/// The header with one field changed and its CRC corrected.
Bytes with_field(Bytes b, size_t at, uint64_t value, size_t size) {
  set(b, at, value, size);
  set(b, 56, header_crc(b), 4);
  return b;
}

}  // namespace

TEST_CASE("streams come back as they were, whatever the sizes and pieces", "[stream]") {
  std::mt19937_64 rng(seed());
  for (uint32_t size : {2u, 3u, 4u, 5u, 255u, 256u, 257u, 1000u, 1024u, 65535u, 65536u})  // bits 1 to 16
    for (uint32_t books : {1u, 3u, 8u})
      for (uint32_t channels : {1u, 2u, 3u})
        for (uint64_t frames : {0u, 1u, 2u, 4u, 5u, 13u}) {  // none, within, at and past a packet of four
          StreamHeader h = small_header();
          h.codebook_size = size;
          h.codebooks = books;
          h.channels = channels;
          h.packet_frames = 4;
          if (frames % 2 == 1) h.samples = frames * h.hop;
          const Stream s = random_stream(h, frames, rng);
          const Bytes bytes = written(s);
          for (size_t piece : {size_t{1}, size_t{7}, ~size_t{0}}) {
            const Stream back = parsed(bytes, piece);
            REQUIRE(back.header == h);
            REQUIRE(back.codes == s.codes);
            REQUIRE(back.samples == s.samples);
          }
          for (size_t piece : {1, 3, 4, 9}) REQUIRE(written(s, piece) == bytes);
        }
}

TEST_CASE("the bytes of a stream are those of the description", "[stream]") {
  // Written by hand from docs/format.md, so that a change of the format is noticed.
  StreamHeader h{.model = 0x1122334455667788,
                 .model_rate = 16000,
                 .original_rate = 8000,
                 .gain = 1,
                 .samples = 5,
                 .hop = 10,
                 .codebooks = 2,
                 .codebook_size = 10,
                 .packet_frames = 50};
  const Bytes b = written(Stream{h, {{1, 2}}, 5});
  const unsigned char expected[] = {0x89, 'N',  'A',  'C',  'R',  'E',  13, 10, 1, 0, 0,    0,    0x80, 0x3e,
                                    0,    0,    0x40, 0x1f, 0,    0,    1,  0,  2, 0, 10,   0,    0,    0,
                                    10,   0,    0,    0,    50,   0,    0,  0,  0, 0, 0x80, 0x3f, 0x88, 0x77,
                                    0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 5,  0,  0, 0, 0,    0,    0,    0};
  REQUIRE(b.size() == 60 + 12 + 1 + 4 + 32);
  for (size_t i = 0; i < 56; ++i) CHECK(std::to_integer<unsigned>(b[i]) == expected[i]);
  CHECK(b[60] == std::byte{'P'});
  CHECK(b[68] == std::byte{1});     // frames
  CHECK(b[72] == std::byte{0x21});  // code 1 in the low four bits, code 2 above it
  CHECK(b[77] == std::byte{'E'});
}

TEST_CASE("the container stays below 5 % of the rate for three seconds at 32 kbit/s", "[stream]") {
  std::mt19937_64 rng(seed());
  StreamHeader h{.model_rate = 16000, .original_rate = 16000, .hop = 320, .codebooks = 64, .codebook_size = 1024};
  CHECK(nominal_bits_per_second(h) == 32000);
  const Bytes bytes = written(random_stream(h, 150, rng));
  CHECK(static_cast<double>(bytes.size()) < 1.05 * 3 * 32000 / 8);
}

TEST_CASE("any cut and any flipped bit of twenty streams is noticed", "[stream]") {
  std::mt19937_64 rng(seed());
  for (int file = 0; file < 20; ++file) {
    StreamHeader h = small_header();
    h.codebook_size = static_cast<uint32_t>(2 + rng() % 1023);
    h.codebooks = static_cast<uint32_t>(1 + rng() % 4);
    h.channels = static_cast<uint32_t>(1 + file % 2);
    const Stream s = random_stream(h, 10 + rng() % 6, rng);  // at least four packets
    const Bytes good = written(s);
    REQUIRE(parsed(good).codes == s.codes);
    for (size_t n = 0; n < good.size(); ++n)
      if (!refused({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)})) FAIL("cut at byte " << n);
    for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
      Bytes bad = good;
      bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      if (!refused(bad)) FAIL("bit " << bit % 8 << " of byte " << bit / 8);
    }
    Bytes longer = good;
    longer.push_back(std::byte{0});
    CHECK(refused(longer, "unexpected data after the end"));
    Bytes joined = good;
    joined.insert(joined.end(), good.begin(), good.end());
    CHECK(refused(joined, "unexpected data after the end"));
  }
}

TEST_CASE("packets that are swapped, doubled, dropped or of another stream are noticed", "[stream]") {
  std::mt19937_64 rng(seed());
  StreamHeader h = small_header();
  const Stream s = random_stream(h, 12, rng);
  const Bytes good = written(s);
  constexpr std::ptrdiff_t packet = 12 + 8 + 4;  // three frames of two codes of ten bits
  REQUIRE(good.size() == 60 + 4 * packet + 32);
  const auto at = [](Bytes& b, int i) { return b.begin() + 60 + i * packet; };
  Bytes bad = good;
  std::swap_ranges(at(bad, 1), at(bad, 2), at(bad, 2));
  CHECK(refused(bad, "found packet 2, expected packet 1"));
  bad = good;
  bad.erase(at(bad, 1), at(bad, 2));
  CHECK(refused(bad, "found packet 2, expected packet 1"));
  bad = good;
  const Bytes doubled(at(bad, 1), at(bad, 2));
  bad.insert(at(bad, 2), doubled.begin(), doubled.end());
  CHECK(refused(bad, "found packet 1, expected packet 2"));
  bad = good;
  bad.erase(at(bad, 3), at(bad, 4));
  CHECK(refused(bad, "found packet 4, expected packet 3"));
  h.gain = 0.5f;
  Bytes other = written(random_stream(h, 12, rng));
  bad = good;
  std::copy(at(other, 1), at(other, 2), at(bad, 1));
  CHECK(refused(bad, "CRC of packet 1"));
}

TEST_CASE("header fields are bounded, whatever their CRC says", "[stream]") {
  std::mt19937_64 rng(seed());
  const Bytes good = written(random_stream(small_header(), 0, rng));
  const auto ok_header = [&](const Bytes& b) {
    try {
      StreamReader(source_of(b), "test.nacre");
      return true;
    } catch (const Error& e) {
      REQUIRE(e.kind() == ErrorKind::input);
      return false;
    }
  };
  struct Field {
    const char* name;
    size_t at, size;
    uint64_t low, high;
  };
  for (const Field& f : {Field{"model rate", 12, 4, 1, 1 << 20}, Field{"original rate", 16, 4, 1, 1 << 20},
                         Field{"channels", 20, 2, 1, 64}, Field{"codebooks", 22, 2, 1, 256},
                         Field{"hop", 24, 4, 1, 1 << 20}, Field{"codebook size", 28, 4, 2, 65536},
                         Field{"packet frames", 32, 4, 1, 65536}, Field{"samples", 48, 8, 0, uint64_t{1} << 40}}) {
    INFO(f.name);
    CHECK(ok_header(with_field(good, f.at, f.low, f.size)));
    CHECK(ok_header(with_field(good, f.at, f.high, f.size)));
    if (f.low > 0) CHECK_FALSE(ok_header(with_field(good, f.at, f.low - 1, f.size)));
    CHECK_FALSE(ok_header(with_field(good, f.at, f.high + 1, f.size)));
    if (f.size < 8) CHECK_FALSE(ok_header(with_field(good, f.at, ~uint64_t{0}, f.size)));
  }
  for (uint64_t v = 0; v < 256; ++v) CHECK(ok_header(with_field(good, 8, v, 2)) == (v == 1));  // versions
  for (uint64_t v = 0; v < 16; ++v) CHECK_FALSE(ok_header(with_field(good, 10, uint64_t{1} << v, 2)));
  for (float gain : {0.0f, -0.0f, -1.0f, 0x1p-41f, 0x1p41f, INFINITY, -INFINITY, NAN, 1e-45f})
    CHECK_FALSE(ok_header(with_field(good, 36, std::bit_cast<uint32_t>(gain), 4)));
  for (float gain : {0x1p-40f, 0x1p40f, 1.0f}) CHECK(ok_header(with_field(good, 36, std::bit_cast<uint32_t>(gain), 4)));
  // Each field is within its limits, but a packet would have 32 MiB.
  CHECK_FALSE(ok_header(with_field(with_field(with_field(good, 32, 65536, 4), 22, 256, 2), 28, 65536, 4)));
}

TEST_CASE("codes past the codebook and padding that is not zero are refused under a right CRC", "[stream]") {
  for (uint32_t size : {3u, 5u, 6u, 7u, 9u, 1000u}) {
    StreamHeader h = small_header();
    h.codebooks = 1;
    h.codebook_size = size;
    const int bits = code_bits(h);
    const Bytes good = written({h, {{0}}, h.hop});
    const auto end = good.size() - 32 - 4;
    for (uint32_t value = 0; value < 1u << (8 * (bits > 8 ? 2 : 1)); ++value) {
      Bytes b = good;
      set(b, 72, value, bits > 8 ? 2 : 1);
      set(b, end, crc32c(std::span(b).subspan(60, end - 60), header_crc(b)), 4);
      if (refused(b) != (value >= size)) FAIL("codebook of " << size << ", bits " << value);
    }
  }
}

TEST_CASE("lengths that do not fit to the frames are refused", "[stream]") {
  StreamHeader h = small_header();
  const auto fits = [](const StreamHeader& header, size_t frames, uint64_t samples) {
    Bytes out;
    StreamWriter w(header, [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
    for (uint32_t c = 0; c < header.channels; ++c) w.write(c, std::vector<int32_t>(frames * header.codebooks));
    try {
      w.finish(samples);
    } catch (const Error& e) {
      REQUIRE(e.kind() == ErrorKind::usage);
      return false;
    }
    REQUIRE(parsed(out).samples == samples);
    return true;
  };
  CHECK(fits(h, 0, 0));
  CHECK(fits(h, 10, 3200));
  CHECK(fits(h, 10, 2881));
  CHECK(fits(h, 10, 3202));  // rounding in the resampler
  CHECK_FALSE(fits(h, 10, 3203));
  CHECK_FALSE(fits(h, 10, 1900));
  CHECK_FALSE(fits(h, 10, ~uint64_t{0}));
  h.original_rate = 44100;
  CHECK(fits(h, 10, 8820));
  CHECK_FALSE(fits(h, 10, 9000));
  h.samples = 8820;
  CHECK_FALSE(fits(h, 10, 8819));
  // The reader refuses the same header: its length is many years.
  std::mt19937_64 rng(seed());
  Bytes b = written(random_stream(small_header(), 4, rng));
  set(b, b.size() - 12, uint64_t{1} << 40, 8);
  set(b, b.size() - 4, crc32c(std::span(b).subspan(b.size() - 32, 28), header_crc(b)), 4);
  CHECK(refused(b, "do not match the length"));
}

TEST_CASE("the writer refuses what the reader would", "[stream]") {
  const ByteSink nowhere = [](std::span<const std::byte>) {};
  StreamHeader h = small_header();
  h.codebook_size = 1;
  CHECK_THROWS_WITH(StreamWriter(h, nowhere), Catch::Contains("codebook size is 1"));
  CHECK_THROWS_AS(StreamWriter(StreamHeader{}, nowhere), Error);
  StreamWriter w(small_header(), nowhere);
  CHECK_THROWS_WITH(w.write(1, {}), Catch::Contains("channel is 1, expected 0 to 0"));
  CHECK_THROWS_WITH(w.write(0, std::vector<int32_t>(3)), Catch::Contains("not whole frames"));
  CHECK_THROWS_WITH(w.write(0, std::vector<int32_t>{0, 1000}), Catch::Contains("code is 1000, expected 0 to 999"));
  CHECK_THROWS_WITH(w.write(0, std::vector<int32_t>{0, -1}), Catch::Contains("code is -1, expected 0 to 999"));
  w.finish(0);
  CHECK_THROWS_WITH(w.finish(0), Catch::Contains("ended twice"));
  CHECK_THROWS_WITH(w.write(0, std::vector<int32_t>(2)), Catch::Contains("after the end"));
  h = small_header();
  h.channels = 2;
  StreamWriter two(h, nowhere);
  two.write(0, std::vector<int32_t>(2));
  CHECK_THROWS_WITH(two.finish(320), Catch::Contains("differ in length"));
}

TEST_CASE("random headers and packets under right CRCs stay within bounds", "[stream]") {
  std::mt19937_64 rng(seed());
  const Bytes good = written(random_stream(small_header(), 12, rng));
  for (int i = 0; i < 10000; ++i) {
    Bytes b = good;
    const int changes = static_cast<int>(1 + rng() % 3);
    for (int k = 0; k < changes; ++k) {
      const size_t at = 12 + rng() % 44;
      b[at] = static_cast<std::byte>(rng());
    }
    set(b, 56, header_crc(b), 4);
    // The CRC of the first packet is corrected, too, so that its fields are checked.
    set(b, 80, crc32c(std::span(b).subspan(60, 20), header_crc(b)), 4);
    try {
      StreamReader r(source_of(b), "test.nacre");
      while (const auto p = r.next()) REQUIRE(p->codes.size() <= (size_t{1} << 23));
    } catch (const Error& e) {
      REQUIRE(e.kind() == ErrorKind::input);
    }
  }
  for (int i = 0; i < 10000; ++i) {
    Bytes b(rng() % 200);
    for (auto& x : b) x = static_cast<std::byte>(rng());
    if (!b.empty() && i % 2 == 0) std::copy_n(good.begin(), std::min<size_t>(b.size(), 12), b.begin());
    REQUIRE(refused(b));
  }
}
