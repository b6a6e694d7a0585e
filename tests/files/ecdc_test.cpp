// Files of the package encodec, byte for byte in both directions. Round trips of many sizes. Then every fault that a
// file without a checksum can show must be found.
#include "nacre/files/ecdc.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "golden/ecdc.inc"
#include "harness.h"
#include "nacre/error.h"

using namespace nacre;
using namespace nacre::test;

namespace {

using Bytes = std::vector<std::byte>;

constexpr const EcdcModel* model_48 = &ecdc_models[1];

/// Writes codes in pieces of `piece` frames (0: all at once).
Bytes written(const EcdcHeader& h, std::span<const int32_t> codes, size_t piece = 0) {
  Bytes out;
  EcdcWriter w(h, [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
  const size_t step = piece == 0 ? std::max<size_t>(codes.size(), 1) : piece * h.codebooks;
  for (size_t at = 0; at < codes.size(); at += step) w.write(codes.subspan(at, std::min(step, codes.size() - at)));
  w.finish();
  REQUIRE(w.bytes() == out.size());
  return out;
}

ByteSource source_of(const Bytes& bytes, size_t piece = ~size_t{0}) {
  return [&bytes, piece, at = size_t{0}](std::span<std::byte> into) mutable {
    const size_t n = std::min({into.size(), bytes.size() - at, piece});
    if (n > 0) std::memcpy(into.data(), bytes.data() + at, n);
    at += n;
    return n;
  };
}

/// The same for the model with segments, each with its scale.
Bytes written(const EcdcHeader& h, std::span<const int32_t> codes, std::span<const float> scales) {
  Bytes out;
  EcdcWriter w(h, [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
  for (uint64_t s = 0; s < h.segments(); ++s) {
    const size_t n = static_cast<size_t>(h.segment_frames(s)) * h.codebooks;
    w.write(codes.first(n), scales[s]);
    codes = codes.subspan(n);
  }
  w.finish();
  REQUIRE(codes.empty());
  REQUIRE(w.bytes() == out.size());
  return out;
}

struct Parsed {
  EcdcHeader header;
  std::vector<int32_t> codes;
  std::vector<float> scales = {};
};
Parsed parsed(const Bytes& bytes, size_t piece = ~size_t{0}) {
  EcdcReader r(source_of(bytes, piece), "test.ecdc");
  Parsed p{r.header(), {}};
  const bool segmented = r.header().model->segment != 0;
  while (const auto packet = r.next()) {
    if (segmented)
      REQUIRE(packet->first_frame == p.scales.size() * 150);
    else
      REQUIRE(p.codes.size() == packet->first_frame * r.header().codebooks);
    REQUIRE(packet->codes.size() == packet->frames * r.header().codebooks);
    REQUIRE(packet->frames <= (segmented ? 150 : 76));
    p.scales.push_back(packet->scale);
    p.codes.insert(p.codes.end(), packet->codes.begin(), packet->codes.end());
  }
  REQUIRE_FALSE(r.next());
  return p;
}

/// The message of the error of this kind that a call throws.
template <class F>
std::string thrown(ErrorKind kind, F&& call) {
  try {
    call();
  } catch (const Error& e) {
    if (e.kind() != kind) FAIL_CHECK("another kind: " << e.what());
    return e.what();
  }
  return "nothing";
}
std::string refusal(const Bytes& bytes) {
  return thrown(ErrorKind::input, [&] { parsed(bytes); });
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Bytes with_json(const std::string& json, const Bytes& payload = {}) {
  Bytes b;
  for (const char c : std::string("ECDC") + '\0') b.push_back(static_cast<std::byte>(c));
  for (const int shift : {24, 16, 8, 0}) b.push_back(static_cast<std::byte>(json.size() >> shift & 0xff));
  for (const char c : json) b.push_back(static_cast<std::byte>(c));
  b.insert(b.end(), payload.begin(), payload.end());
  return b;
}

}  // namespace

TEST_CASE("ecdc: the bytes are those of the package encodec, in both directions", "[ecdc]") {
  for (const GoldenEcdc& g : golden_ecdc) {
    INFO(g.samples << " samples, " << g.codebooks << " codebooks");
    const EcdcHeader h{.samples = g.samples, .codebooks = g.codebooks};
    Bytes expected(g.bytes.size());
    std::memcpy(expected.data(), g.bytes.data(), expected.size());
    CHECK((written(h, g.codes) == expected));
    const Parsed back = parsed(expected);
    CHECK(back.header == h);
    CHECK((back.codes == std::vector<int32_t>(g.codes.begin(), g.codes.end())));
  }
}

TEST_CASE("ecdc: the bytes of the 48 kHz model are those of the package encodec, in both directions", "[ecdc]") {
  for (const GoldenEcdc48& g : golden_ecdc_48) {
    INFO(g.samples << " samples, " << g.codebooks << " codebooks");
    const EcdcHeader h{.model = model_48, .samples = g.samples, .codebooks = g.codebooks};
    std::vector<float> scales;
    for (const uint32_t bits : g.scales) scales.push_back(std::bit_cast<float>(bits));
    REQUIRE(h.segments() == scales.size());
    REQUIRE(h.frames() * g.codebooks == g.codes.size());
    CHECK(scales.back() == 1e-8f);
    Bytes expected(g.bytes.size());
    std::memcpy(expected.data(), g.bytes.data(), expected.size());
    CHECK((written(h, g.codes, scales) == expected));
    for (const size_t piece : {size_t{1}, ~size_t{0}}) {
      const Parsed back = parsed(expected, piece);
      CHECK(back.header == h);
      CHECK((back.codes == std::vector<int32_t>(g.codes.begin(), g.codes.end())));
      CHECK((back.scales == scales));
    }
  }
}

TEST_CASE("ecdc: segments of the 48 kHz model and their scales", "[ecdc]") {
  std::mt19937_64 rng(seed());
  for (const uint64_t samples :
       {0u, 1u, 320u, 47520u, 47521u, 47620u, 47681u, 48000u, 48001u, 95040u, 95041u, 200000u}) {
    INFO(samples << " samples");
    const EcdcHeader h{.model = model_48, .samples = samples, .codebooks = 3};
    uint64_t frames = 0, segments = 0;
    for (uint64_t at = 0; at < samples; at += 47520) {
      const uint64_t n = (std::min<uint64_t>(samples - at, 48000) + 319) / 320;
      CHECK(h.segment_frames(segments) == n);
      frames += n, ++segments;
    }
    CHECK(h.segments() == segments);
    CHECK(h.segment_frames(segments) == 0);
    CHECK(h.frames() == frames);
    std::vector<int32_t> codes(frames * 3);
    for (int32_t& c : codes) c = static_cast<int32_t>(rng() % 1024);
    std::vector<float> scales(segments);
    for (float& s : scales) s = static_cast<float>(1 + rng() % 1000) / 1000;
    const Parsed back = parsed(written(h, codes, scales));
    CHECK((back.codes == codes));
    CHECK((back.scales == scales));
  }
  // One frame of one code: a scale, ten bits and six of padding.
  const std::vector<int32_t> code{1023};
  const std::vector<float> one{1.0f};
  const Bytes good = written({.model = model_48, .samples = 1, .codebooks = 1}, code, one);
  Bytes bad = good;
  bad.back() ^= std::byte{4};
  CHECK(refusal(bad) ==
        "test.ecdc: byte " + std::to_string(good.size() - 1) + ": the padding of a segment's last byte is not zero");
  for (size_t n = 1; n <= 6; ++n)
    CHECK(has(refusal({good.begin(), good.end() - static_cast<std::ptrdiff_t>(n)}), "the file is cut off"));
  EcdcWriter w({.model = model_48, .samples = 320, .codebooks = 1}, [](std::span<const std::byte>) {});
  for (const float scale : {0.0f, -0.0f, -1.0f, INFINITY, -INFINITY, NAN}) {
    INFO(scale);
    bad = good;
    const auto bits = std::bit_cast<uint32_t>(scale);
    for (size_t i = 0; i < 4; ++i) bad[good.size() - 6 + i] = static_cast<std::byte>(bits >> (24 - 8 * i) & 0xff);
    CHECK(has(refusal(bad), "byte " + std::to_string(good.size() - 6) + ": the scale of a segment is "));
    CHECK(has(thrown(ErrorKind::usage, [&] { w.write(code, scale); }), "expected a positive, finite number"));
  }
  EcdcWriter two({.model = model_48, .samples = 47521, .codebooks = 1}, [](std::span<const std::byte>) {});
  CHECK(has(thrown(ErrorKind::usage, [&] { two.write(code, 1); }), "segment 0 has 1 frames, expected 149"));
  EcdcWriter plain({.samples = 320, .codebooks = 1}, [](std::span<const std::byte>) {});
  CHECK(has(thrown(ErrorKind::usage, [&] { plain.write(code, 0.5f); }), "expected 1: the model has none"));
}

TEST_CASE("ecdc: codes come back as they were, whatever the sizes and pieces", "[ecdc]") {
  std::mt19937_64 rng(seed());
  for (const uint32_t codebooks : {1u, 2u, 3u, 31u, 32u})
    for (const uint64_t samples : {0u, 1u, 319u, 320u, 321u, 75u * 320, 76u * 320, 76u * 320 + 1, 153u * 320}) {
      const EcdcHeader h{.samples = samples, .codebooks = codebooks};
      REQUIRE(h.frames() == (samples + 319) / 320);
      std::vector<int32_t> codes(h.frames() * codebooks);
      for (int32_t& c : codes) c = static_cast<int32_t>(rng() % 1024);
      const Bytes bytes = written(h, codes);
      for (const size_t piece : {1, 3, 76, 77}) REQUIRE((written(h, codes, piece) == bytes));
      for (const size_t piece : {size_t{1}, size_t{7}, ~size_t{0}}) {
        const Parsed back = parsed(bytes, piece);
        REQUIRE(back.header == h);
        REQUIRE((back.codes == codes));
      }
    }
}

TEST_CASE("ecdc: cuts, further bytes and padding are noticed", "[ecdc]") {
  std::vector<int32_t> codes(3 * 3, 1023);  // 90 bits: the last byte has six bits of padding
  const Bytes good = written({.samples = 700, .codebooks = 3}, codes);
  for (size_t n = 0; n < good.size(); ++n) {
    INFO("cut at byte " << n);
    CHECK(refusal({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)}) ==
          "test.ecdc: byte " + std::to_string(n) + ": the file is cut off");
  }
  Bytes longer = good;
  longer.push_back(std::byte{0});
  CHECK(refusal(longer) ==
        "test.ecdc: byte " + std::to_string(good.size()) + ": unexpected data after the 3 frames of 700 samples");
  for (int bit = 0; bit < 8; ++bit) {
    INFO("bit " << bit << " of the last byte");
    Bytes other = good;
    other.back() ^= static_cast<std::byte>(1 << bit);
    if (bit < 2)
      CHECK(refusal(other) == "nothing");  // a code
    else
      CHECK(refusal(other) ==
            "test.ecdc: byte " + std::to_string(good.size() - 1) + ": the padding of the last byte is not zero");
  }
  // A reader that failed does not go on.
  const Bytes cut(good.begin(), good.end() - 1);
  EcdcReader r(source_of(cut), "test.ecdc");
  CHECK(has(thrown(ErrorKind::input, [&] { r.next(); }), "cut off"));
  CHECK(has(thrown(ErrorKind::input, [&] { r.next(); }), "reading has failed before"));
}

TEST_CASE("ecdc: every wrong header is refused with its reason and position", "[ecdc]") {
  const Bytes good = with_json(R"({"m": "encodec_24khz", "al": 0, "nc": 2, "lm": false})");
  CHECK(refusal(good) == "nothing");
  Bytes bad = good;
  for (size_t i = 0; i < 4; ++i) {
    bad = good;
    bad[i] ^= std::byte{0x20};
    CHECK(refusal(bad) == "test.ecdc: byte 0: is not an .ecdc file");
  }
  bad = good;
  bad[4] = std::byte{1};
  CHECK(refusal(bad) == "test.ecdc: byte 4: has version 1, this program reads version 0");
  for (const size_t length : {size_t{0}, size_t{1}, size_t{1025}, size_t{0xffffffff}}) {
    bad = good;
    for (size_t i = 0; i < 4; ++i) bad[5 + i] = static_cast<std::byte>(length >> (8 * (3 - i)) & 0xff);
    CHECK(has(refusal(bad), "byte 5: the length of the header's JSON is " + std::to_string(length)));
  }
  struct Case {
    const char *json, *says;
  };
  for (const Case& c : {
           Case{R"({"m": "encodec_24khz", "al": 0, "nc": 2, "lm": false)", "is not a JSON object"},
           {"[0]", "is not a JSON object"},
           {"[[[[[[[[[[[[[[[[", "is not a JSON object"},
           {"{\"m\": \"\xff\"}", "is not a JSON object"},
           {R"({"al": 0, "nc": 2, "lm": false})", "has no key \"m\""},
           {R"({"m": "encodec_24khz", "nc": 2, "lm": false})", "has no key \"al\""},
           {R"({"m": "encodec_24khz", "al": 0, "lm": false})", "has no key \"nc\""},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 2})", "has no key \"lm\""},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 2, "lm": false, "x\u001b": 1})", R"(has the key "x\x1b", which)"},
           {R"({"m": 24, "al": 0, "nc": 2, "lm": false})", "(m) is not a string"},
           {R"({"m": "encodec_32khz", "al": 0, "nc": 2, "lm": false})",
            R"(is of the model "encodec_32khz", this program reads files of encodec_24khz and encodec_48khz)"},
           {R"({"m": "encodec_48khz", "al": 0, "nc": 17, "lm": false})", "(nc) is 17, expected 1 to 16"},
           {R"({"m": "encodec_48khz", "al": 0, "nc": 2, "lm": true})",
            "compress the audio again without -l (use_lm=False)"},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 2, "lm": true})",
            "compress the audio again without -l (use_lm=False)"},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 2, "lm": 0})", "lm is not true or false"},
           {R"({"m": "encodec_24khz", "al": -1, "nc": 2, "lm": false})", "al is not a whole number"},
           {R"({"m": "encodec_24khz", "al": 1.0, "nc": 2, "lm": false})", "al is not a whole number"},
           {R"({"m": "encodec_24khz", "al": 0, "nc": "2", "lm": false})", "nc is not a whole number"},
           {R"({"m": "encodec_24khz", "al": 1099511627777, "nc": 2, "lm": false})",
            "(al) is 1099511627777, expected 0 to 1099511627776"},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 0, "lm": false})", "(nc) is 0, expected 1 to 32"},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 33, "lm": false})", "(nc) is 33, expected 1 to 32"},
           {R"({"m": "encodec_24khz", "al": 0, "nc": 4294967298, "lm": false})", "expected 1 to 32"},
       }) {
    INFO(c.json);
    const std::string says = refusal(with_json(c.json));
    INFO(says);
    CHECK(has(says, "test.ecdc: byte 9: "));
    CHECK(has(says, c.says));
    CHECK_FALSE(has(says, "\n"));
  }
  // Any JSON of the same content is read, and the largest length is.
  CHECK(parsed(with_json("\n{\"lm\":false,\"nc\":32,\"al\":0,\"m\":\"encodec_24khz\"} ")).header.codebooks == 32);
  const Bytes largest = with_json(R"({"m": "encodec_24khz", "al": 1099511627776, "nc": 32, "lm": false})");
  CHECK(EcdcReader(source_of(largest)).header().frames() == uint64_t{3435973837});
}

TEST_CASE("ecdc: a writer takes only what the file can hold", "[ecdc]") {
  const auto nowhere = [](std::span<const std::byte>) {};
  const auto refused = [](auto&& call) { return thrown(ErrorKind::usage, call); };
  CHECK(has(refused([&] { EcdcWriter({.samples = 1, .codebooks = 0}, nowhere); }), "(nc) is 0, expected 1 to 32"));
  CHECK(has(refused([&] { EcdcWriter({.samples = 1, .codebooks = 33}, nowhere); }), "(nc) is 33, expected 1 to 32"));
  CHECK(has(refused([&] { EcdcWriter({.samples = (uint64_t{1} << 40) + 1, .codebooks = 1}, nowhere); }), "(al) is"));
  EcdcWriter w({.samples = 321, .codebooks = 2}, nowhere);
  const std::vector<int32_t> three(3), low{0, -1}, high{0, 1024}, one{0, 1023}, two(4);
  CHECK(has(refused([&] { w.write(three); }), "3 codes are not whole frames of 2"));
  CHECK(has(refused([&] { w.write(low); }), "code is -1, expected 0 to 1023"));
  CHECK(has(refused([&] { w.write(high); }), "code is 1024, expected 0 to 1023"));
  w.write(one);
  CHECK(has(refused([&] { w.finish(); }), "1 frames, expected 2 for 321 samples"));
  CHECK(has(refused([&] { w.write(two); }), "3 frames, expected 2 for 321 samples"));
  w.write(one);
  w.finish();
  CHECK(has(refused([&] { w.write(one); }), "write after the end"));
  CHECK(has(refused([&] { w.finish(); }), "ended twice"));
}
