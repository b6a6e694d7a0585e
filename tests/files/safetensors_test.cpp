// Malformed files come first: every rule of the format has a file that breaks it. Round trips and conversions follow.
#include "nacre/files/safetensors.h"

#include <cstring>
#include <limits>

#include "file_tools.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::vector<std::byte> file_of(const std::string& json, size_t data_bytes, uint64_t length) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i) & 0xff);
  file += json;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return to_bytes(file);
}
std::vector<std::byte> file_of(const std::string& json, size_t data_bytes) {
  return file_of(json, data_bytes, json.size());
}
Safetensors parse(const std::string& json, size_t data_bytes, SafetensorsOptions options = {}) {
  return Safetensors::parse(file_of(json, data_bytes), "test.safetensors", options);
}
void refuse(const std::string& json, size_t data_bytes, const std::string& text) {
  INFO(json);
  try {
    parse(json, data_bytes);
    FAIL("was accepted");
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::input);
    CHECK_THAT(e.what(), Catch::Contains("test.safetensors") && Catch::Contains(text));
  }
}
std::string entry(const std::string& name, const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "F32") {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}
std::vector<std::byte> written(std::span<const StoredTensor> tensors,
                               const std::map<std::string, std::string>& metadata = {},
                               SafetensorsWriteOptions options = {}) {
  std::vector<std::byte> out;
  write_safetensors([&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); }, tensors, metadata,
                    options);
  return out;
}
template <class T>
StoredTensor tensor(const std::string& name, Dtype dtype, const std::vector<T>& values) {
  return {name, dtype, {static_cast<int64_t>(values.size())}, std::as_bytes(std::span(values))};
}

}  // namespace

TEST_CASE("safetensors: what the format allows is read", "[safetensors]") {
  CHECK(parse("{}", 0).size() == 0);
  CHECK(parse("{ \"__metadata__\" : { } }   ", 0).metadata().empty());
  CHECK(parse("{\"__metadata__\":{\"format\":\"pt\"}}", 0).metadata().at("format") == "pt");
  const Safetensors f = parse("{" + entry("b", "[2, 1]", "[4,12]") + "," + entry("a", "[]", "[0,4]") + "," +
                                  entry("z", "[0,3]", "[12,12]") + "}",
                              12);
  REQUIRE(f.tensors().size() == 3);
  CHECK(f.tensors()[0].name == "a");  // sorted by name
  CHECK(f.at("a").shape.empty());
  CHECK(f.at("a").elements() == 1);  // rank 0 is one element
  CHECK(f.at("b").shape == std::vector<int64_t>{2, 1});
  CHECK(f.at("b").data[0] == std::byte{4});
  CHECK(f.at("z").data.empty());
  CHECK(f.find("c") == nullptr);
  CHECK_THROWS_WITH(f.at("c"), Catch::Contains("has no tensor \"c\""));
  // Escapes in names, and a character beyond the basic plane, written as a surrogate pair.
  const Safetensors escaped = parse("{" + entry("a\\u0041\\/\\n\\ud83d\\ude00", "[1]", "[0,4]") + "}", 4);
  CHECK(escaped.tensors()[0].name == "aA/\n\xf0\x9f\x98\x80");
  // Two empty tensors at the same offset do not overlap.
  CHECK(parse("{" + entry("a", "[0]", "[0,0]") + "," + entry("b", "[0]", "[0,0]") + "}", 0).size() == 2);
  CHECK(parse("{" + entry("a", "[1]", "[0,4]") + "}", 9, {.allow_trailing_bytes = true}).size() == 1);
}

TEST_CASE("safetensors: lengths that lie are refused", "[safetensors]") {
  for (size_t n = 0; n < 8; ++n)
    CHECK_THROWS_WITH(Safetensors::parse(std::vector<std::byte>(n), "f", {}), Catch::Contains("expected at least 8"));
  const std::vector<uint64_t> lengths = {
      3, 100'000'000, 100'000'001, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7};
  for (uint64_t length : lengths) CHECK_THROWS_AS(Safetensors::parse(file_of("{}", 0, length), "f", {}), Error);
  CHECK_THROWS_AS(Safetensors::parse(file_of("{}", 0, 0), "f", {}), Error);
  CHECK_THROWS_AS(Safetensors::parse(file_of("{}", 0, 1), "f", {}), Error);
  CHECK_THROWS_WITH(Safetensors::parse(file_of("{}", 0, 100'000'001), "f", {}), Catch::Contains("at most 100000000"));
}

TEST_CASE("safetensors: offsets, shapes and types must agree", "[safetensors]") {
  refuse("{" + entry("a", "[1]", "[0,4]") + "}", 3, "cut off");
  refuse("{" + entry("a", "[1]", "[0,4]") + "}", 5, "1 bytes follow the last tensor");
  refuse("{}", 1, "1 bytes follow");
  refuse("{" + entry("a", "[1]", "[4,8]") + "}", 8, "must be contiguous");  // a hole
  refuse("{" + entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[8,12]") + "}", 12,
         "must be contiguous");  // a hole
  refuse("{" + entry("a", "[2]", "[0,8]") + "," + entry("b", "[1]", "[4,8]") + "}", 8,
         "must be contiguous");  // overlap
  refuse("{" + entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[0,4]") + "}", 4, "must be contiguous");  // shared
  refuse("{" + entry("a", "[1]", "[4,0]") + "}", 4, "data_offsets are [4, 0]");
  refuse("{" + entry("a", "[2]", "[0,4]") + "}", 4, "needs 8 bytes");
  refuse("{" + entry("a", "[1]", "[0,4]", "F64") + "}", 4, "needs 8 bytes");
  refuse("{" + entry("a", "[1]", "[0,4]", "BF16") + "}", 4, "needs 2 bytes");
  refuse("{" + entry("a", "[1]", "[0,4]", "F4") + "}", 4, "\"F4\", which is not supported");
  refuse("{" + entry("a", "[1]", "[0,4]", "f32") + "}", 4, "not supported");
  // Products around 2^31, 2^32, 2^63 and 2^64. None may wrap to a small number.
  for (const char* shape : {"[2147483648]", "[65536,65536]", "[4294967296,2147483648]", "[4294967296,4294967296]",
                            "[18446744073709551615]", "[1099511627776,1099511627776]", "[9223372036854775808]",
                            "[4611686018427387905]", "[1099511627777]", "[2,1099511627776]"})
    for (const char* offsets : {"[0,0]", "[0,4]", "[0,18446744073709551615]", "[18446744073709551612,0]"})
      refuse("{" + entry("a", shape, offsets) + "}", 4, "tensor \"a\"");
  refuse("{" + entry("a", "[18446744073709551616]", "[0,4]") + "}", 4, "64 bits");
  refuse("{" + entry("a", "[1,1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4, "more than 8 dimensions");
  CHECK(parse("{" + entry("a", "[1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4).size() == 1);
}

TEST_CASE("safetensors: the header is strict JSON", "[safetensors]") {
  const std::string a = entry("a", "[1]", "[0,4]");
  refuse("", 0, "begin with '{'");
  refuse(" {}", 0, "begin with '{'");
  refuse("[]", 0, "begin with '{'");
  refuse("{", 0, "expected");
  refuse("{}}", 0, "unexpected data after");
  refuse(std::string("{}\0", 3), 0, "unexpected data after");
  refuse("{" + a + ",}", 4, "expected '\"'");
  refuse("{" + a + "," + a + "}", 4, "\"a\" appears twice");
  refuse("{" + a + "," + entry("\\u0061", "[1]", "[4,8]") + "}", 8,
         "\"a\" appears twice");  // the same name, written with an escape
  refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "appears twice");
  refuse("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "appears twice");
  refuse("{\"__metadata__\":{\"k\":1}}", 0, "expected '\"'");
  refuse("{\"__metadata__\":[]}", 0, "expected '{'");
  refuse("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "\"dtype\" twice");
  refuse("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "lacks dtype");
  refuse("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "lacks shape");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "lacks data_offsets");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "unknown key \"x\"");
  refuse("{" + entry("a", "[1]", "[4]") + "}", 4, "two data_offsets");
  refuse("{" + entry("a", "[1]", "[0,4,8]") + "}", 4, "two data_offsets");
  for (const char* number : {"-1", "1.0", "1e0", "01", "+1", "0x1", "\"1\"", "null", "true", "NaN", "", "[1]"})
    refuse("{" + entry("a", "[" + std::string(number) + (*number == 0 ? "1,]" : "]"), "[0,4]") + "}", 4,
           "header, byte");
  refuse("{'a':1}", 0, "expected '\"'");
  refuse("{\"a", 0, "cut off");
  refuse("{\"a\\", 0, "cut off");
  refuse("{\"a\\u12", 0, "cut off");
  refuse("{\"a\\u12g4\":1}", 0, "hexadecimal");
  refuse("{\"a\\x\":1}", 0, "unknown escape");
  refuse("{\"a\n\":1}", 0, "control character");
  refuse("{" + entry("a\\u0000b", "[1]", "[0,4]") + "}", 4, "zero byte");
  refuse("{\"\\ud800\":1}", 0, "surrogate");
  refuse("{\"\\udc00\":1}", 0, "surrogate");
  refuse("{\"\\ud800\\u0041\":1}", 0, "surrogate");
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff",
                          "\xc3", "\xe2\x82", "\xf5\x80\x80\x80"})
    refuse("{\"" + std::string(bad) + "\":{}}", 0, "UTF-8");
  refuse(std::string(100000, '{'), 0, "expected");  // nesting must not use the stack
  refuse("{\"a\":{\"shape\":" + std::string(100000, '[') + "}}", 0, "whole number");
  // Control characters of a name are escaped before they reach a terminal.
  refuse("{" + entry("\\u001b[31m\\u009b", "[2]", "[0,4]") + "}", 4, "\"\\x1b[31m\\xc2\\x9b\"");
}

TEST_CASE("safetensors: every cut and many flipped bits of a file give an error or a consistent list",
          "[safetensors]") {
  const std::vector<float> a{1, 2, 3};
  const std::vector<uint8_t> b{1, 2, 3, 4, 5};
  const std::vector<StoredTensor> tensors{tensor("a", Dtype::f32, a), tensor("b", Dtype::u8, b)};
  const auto file = written(tensors, {{"format", "pt"}});
  for (size_t n = 0; n < file.size(); ++n)
    REQUIRE_THROWS_AS(Safetensors::parse({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n)}, "f", {}),
                      Error);
  for (size_t bit = 0; bit < 8 * file.size(); ++bit) {
    auto bad = file;
    bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    try {
      size_t bytes = 0;
      const Safetensors read = Safetensors::parse(bad, "f", {});
      for (const auto& t : read.tensors()) {
        REQUIRE(static_cast<size_t>(t.elements()) * bytes_per_element(t.dtype) == t.data.size());
        bytes += t.data.size();
      }
      REQUIRE(bytes == 17);
    } catch (const Error& e) {
      REQUIRE(e.kind() == ErrorKind::input);
    }
  }
}

TEST_CASE("safetensors: what is written is read, aligned and in a fixed order", "[safetensors]") {
  std::mt19937_64 rng(seed());
  std::vector<std::vector<std::byte>> storage;
  std::vector<StoredTensor> tensors;
  for (int i = 0; i < 16; ++i) {
    const auto dtype = static_cast<Dtype>(i);
    for (int64_t n : {0, 1, 3, 17}) {  // no element, one, odd counts
      storage.emplace_back(static_cast<size_t>(n) * bytes_per_element(dtype));
      for (auto& byte : storage.back()) byte = static_cast<std::byte>(rng());
      tensors.push_back({"t." + std::string(str(dtype)) + "." + std::to_string(n), dtype, {1, n}, {}});
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].data = storage[i];
  tensors.push_back({"snow \xe2\x98\x83 \"quoted\"\n", Dtype::u8, {1, 5}, bytes_of("hello")});
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"note", "a \"b\"\\ \x01\n"}};
  const SafetensorsWriteOptions any{.allow_nonfinite = true};
  const auto file = written(tensors, metadata, any);
  const Safetensors read = Safetensors::parse(file, "f", {});
  CHECK(read.metadata() == metadata);
  REQUIRE(read.tensors().size() == tensors.size());
  const std::byte* first = file.data() + file.size();
  size_t total = 0;
  for (const auto& t : tensors) total += t.data.size();
  first -= total;
  CHECK((first - file.data()) % 64 == 0);
  const std::byte* begin = read.at("t.U64.1").data.data() - read.at("t.U64.0").data.size();
  for (const auto& t : tensors) {
    INFO(t.name);
    const StoredTensor& r = read.at(t.name);
    CHECK(r.dtype == t.dtype);
    CHECK(r.shape == t.shape);
    CHECK(std::equal(r.data.begin(), r.data.end(), t.data.begin(), t.data.end()));
    CHECK((r.data.data() - begin) % static_cast<std::ptrdiff_t>(bytes_per_element(t.dtype)) == 0);
  }
  std::shuffle(tensors.begin(), tensors.end(), rng);
  CHECK(written(tensors, metadata, any) == file);
  CHECK(weights_identity(tensors) == weights_identity(read.tensors()));

  Folder folder;
  write_safetensors(folder / "m.safetensors", tensors, metadata, any);
  CHECK(slurp(folder / "m.safetensors") == std::string(reinterpret_cast<const char*>(file.data()), file.size()));
  CHECK(Safetensors::read(folder / "m.safetensors").size() == tensors.size());
  CHECK_THROWS_WITH(Safetensors::read(folder / "m.safetensors", {.max_file_bytes = 100}),
                    Catch::Contains("at most 100"));
  CHECK_THROWS_WITH(Safetensors::read(folder / "none"), Catch::Contains("could not open"));
  CHECK_THROWS_WITH(Safetensors::read(folder.path()), Catch::Contains("not a regular file"));
}

TEST_CASE("safetensors: the identity of weights notices names, shapes, types and values", "[safetensors]") {
  const std::vector<float> values{1, 2, 3, 4};
  StoredTensor t = tensor("a", Dtype::f32, values);
  const uint64_t whole = weights_identity({&t, 1});
  StoredTensor other = t;
  other.name = "b";
  CHECK(weights_identity({&other, 1}) != whole);
  other = t;
  other.shape = {2, 2};
  CHECK(weights_identity({&other, 1}) != whole);
  other = t;
  other.dtype = Dtype::i32;
  CHECK(weights_identity({&other, 1}) != whole);
  std::vector<float> changed = values;
  changed[3] = std::nextafter(4.0f, 5.0f);
  other = tensor("a", Dtype::f32, changed);
  CHECK(weights_identity({&other, 1}) != whole);
  CHECK(weights_identity({}) == 0xcbf29ce484222325u);
}

TEST_CASE("safetensors: the writer refuses what could not be read back", "[safetensors]") {
  const std::vector<float> values{1, 2};
  const StoredTensor good = tensor("a", Dtype::f32, values);
  const auto refused = [](std::vector<StoredTensor> t, const std::string& text) {
    CHECK_THROWS_WITH(written(t), Catch::Contains(text));
  };
  refused({good, good}, "two tensors named \"a\"");
  StoredTensor bad = good;
  bad.shape = {3};
  refused({bad}, "F32 [3] and has 8 bytes");
  bad.shape = {-2};
  refused({bad}, "F32 [-2]");
  bad.shape = std::vector<int64_t>(9, 1);
  refused({bad}, "[1, 1");
  for (const std::string& name : {std::string("__metadata__"), std::string("\xff"), std::string("a\0b", 3)}) {
    bad = good;
    bad.name = name;
    refused({bad}, "is not a valid tensor name");
  }
  CHECK_THROWS_WITH(written(std::vector{good}, {{"k", "\xff"}}), Catch::Contains("metadata \"k\""));
}

TEST_CASE("safetensors: values that are not finite are found in every floating type", "[safetensors]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (float v : {nan, inf, -inf}) {
    for (size_t i : {0, 1, 4}) {
      std::vector<float> f(5, 1.0f);
      std::vector<double> d(5, 1.0);
      std::vector<uint16_t> h(5, 0x3c00), b(5, 0x3f80);
      f[i] = v;
      d[i] = v;
      h[i] = std::isnan(v) ? 0x7e00 : v > 0 ? 0x7c00 : 0xfc00;
      b[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16);
      for (const StoredTensor& t : {tensor("x", Dtype::f32, f), tensor("x", Dtype::f64, d), tensor("x", Dtype::f16, h),
                                    tensor("x", Dtype::bf16, b)}) {
        INFO(str(t));
        CHECK(first_nonfinite(t) == static_cast<int64_t>(i));
        try {
          written({&t, 1});
          FAIL("was written");
        } catch (const Error& e) {
          CHECK(e.kind() == ErrorKind::diverged);
          CHECK_THAT(e.what(), Catch::Contains("\"x\"") && Catch::Contains("element " + std::to_string(i)));
        }
        const auto file = written({&t, 1}, {}, {.allow_nonfinite = true});
        CHECK(Safetensors::parse(file, "f", {}).size() == 1);
        CHECK_THROWS_WITH(Safetensors::parse(file, "f", {.allow_nonfinite = false}), Catch::Contains("not finite"));
      }
    }
  }
  const std::vector<int32_t> integers(3, -1);  // all bits set is no NaN in an integer
  CHECK(first_nonfinite(tensor("i", Dtype::i32, integers)) == -1);
}

TEST_CASE("safetensors: conversion to float is exact for every half and bf16", "[safetensors]") {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const auto halves = to_floats(tensor("h", Dtype::f16, all)), bfs = to_floats(tensor("b", Dtype::bf16, all));
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint32_t exponent = i >> 10 & 31, mantissa = i & 1023;
    const double sign = i >= 32768 ? -1 : 1;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25);
    if (exponent == 31)
      REQUIRE((mantissa == 0 ? std::isinf(halves[i]) && std::signbit(halves[i]) == (sign < 0) : std::isnan(halves[i])));
    else
      REQUIRE((halves[i] == sign * value && std::signbit(halves[i]) == (sign < 0)));
    REQUIRE(std::bit_cast<uint32_t>(bfs[i]) == i << 16);
  }
  const std::vector<double> doubles{0.1, -1e300 * 0, 3e38, 1e-320, -std::numeric_limits<double>::infinity()};
  CHECK(to_floats(tensor("d", Dtype::f64, doubles)) == std::vector<float>{0.1f, -0.0f, 3e38f, 0.0f, -INFINITY});
  const std::vector<double> huge{1, 1e39};
  CHECK_THROWS_WITH(to_floats(tensor("d", Dtype::f64, huge)), Catch::Contains("element 1 is too large"));
  const std::vector<int32_t> integers(3);
  CHECK_THROWS_WITH(to_floats(tensor("i", Dtype::i32, integers)), Catch::Contains("expected F32, F16, BF16 or F64"));
  // Data at odd addresses.
  const std::vector<float> values{1.5f, -2.5f};
  std::vector<std::byte> shifted(9);
  std::memcpy(shifted.data() + 1, values.data(), 8);
  CHECK(to_floats({"s", Dtype::f32, {2}, std::span<const std::byte>(shifted).subspan(1)}) == values);
}
