// The instruction and the tables, compared with published values, with each other, and with a bitwise division.
#include "nacre/files/crc32c.h"

#include <string_view>

#include "harness.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::span<const std::byte> bytes_of(std::string_view s) { return std::as_bytes(std::span(s.data(), s.size())); }

uint32_t bit_by_bit(std::span<const std::byte> data) {
  uint32_t crc = ~0u;
  for (std::byte b : data) {
    crc ^= std::to_integer<uint32_t>(b);
    for (int i = 0; i < 8; ++i) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}

}  // namespace

TEST_CASE("CRC-32C matches the published vectors", "[crc32c]") {
  CHECK(crc32c(bytes_of("123456789")) == 0xE3069283u);
  CHECK(crc32c_portable(bytes_of("123456789")) == 0xE3069283u);
  CHECK(crc32c({}) == 0u);
  // RFC 3720 B.4: 32 bytes of zeros, of ones, and rising.
  std::vector<std::byte> zeros(32), ones(32, std::byte{0xff}), rising(32);
  for (size_t i = 0; i < 32; ++i) rising[i] = static_cast<std::byte>(i);
  CHECK(crc32c(zeros) == 0x8A9136AAu);
  CHECK(crc32c(ones) == 0x62A8AB43u);
  CHECK(crc32c(rising) == 0x46DD794Eu);
}

TEST_CASE("CRC-32C is the same by instruction, by table, bit by bit and in parts", "[crc32c]") {
  std::mt19937_64 rng(seed());
  std::vector<std::byte> data(300);
  for (auto& b : data) b = static_cast<std::byte>(rng());
  for (size_t size = 0; size < 80; ++size) {
    for (size_t offset = 0; offset < 9; ++offset) {  // every alignment of the eight-byte loop
      const auto part = std::span<const std::byte>(data).subspan(offset, size);
      const uint32_t expected = bit_by_bit(part);
      REQUIRE(crc32c(part) == expected);
      REQUIRE(crc32c_portable(part) == expected);
      const size_t cut = size / 3;
      REQUIRE(crc32c(part.subspan(cut), crc32c(part.first(cut))) == expected);
      REQUIRE(crc32c_portable(part.subspan(cut), crc32c_portable(part.first(cut))) == expected);
    }
  }
}
