// CRC-32C by the instruction of SSE 4.2, or from tables, eight bytes at once ("slicing by 8": Kounavis and Berry, "A
// Systematic Approach to Building High Performance Software-based CRC Generators", 2005).
// The register is reflected: its lowest bit belongs to the highest power of the polynomial. Inside of this file it is
// not inverted. The two public functions invert it before and after, so a CRC can be passed as the seed of the next
// piece.
#include "nacre/files/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace nacre {
namespace {

// 0x1edc6f41 with its 32 bits in reverse order.
constexpr uint32_t polynomial = 0x82f63b78u;

// tables[k][b] is the effect of byte b followed by k zero bytes. It lets eight bytes be processed at once.
using Tables = std::array<std::array<uint32_t, 256>, 8>;
constexpr Tables make_tables() {
  Tables t{};
  // Eight steps of the division, one bit each: byte b alone, in a register that was zero.
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? polynomial : 0);
    t[0][b] = crc;
  }
  // One more zero byte behind: the step that table 0 does for any register.
  for (size_t k = 1; k < 8; ++k)
    for (size_t b = 0; b < 256; ++b) t[k][b] = (t[k - 1][b] >> 8) ^ t[0][t[k - 1][b] & 0xff];
  return t;
}
constexpr Tables tables = make_tables();

#if defined(__x86_64__)
/// The instruction computes exactly the step of this register for 8 bytes or for one. memcpy, because p need not be
/// aligned. The attribute permits it in this function alone. The caller has asked the processor.
__attribute__((target("sse4.2"))) uint32_t by_instruction(const unsigned char* p, size_t n, uint32_t crc) {
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; n > 0; ++p, --n) crc = _mm_crc32_u8(crc, *p);
  return crc;
}

/// Asks the processor once. The initialisation of a static variable is safe in several threads.
bool has_instruction() noexcept {
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") != 0;
  }();
  return has;
}
#endif

}  // namespace

uint32_t crc32c_portable(std::span<const std::byte> data, uint32_t seed) noexcept {
  const auto* p = reinterpret_cast<const unsigned char*>(data.data());
  size_t n = data.size();
  uint32_t crc = ~seed;
  for (; n >= 8; p += 8, n -= 8) {
    // The first four bytes meet the register, which then has no bits left. A CRC is linear, so the effects of the eight
    // bytes are added (xor), each followed by the zero bytes that stand for the bytes behind it.
    crc = tables[7][(crc ^ p[0]) & 0xff] ^ tables[6][((crc >> 8) ^ p[1]) & 0xff] ^
          tables[5][((crc >> 16) ^ p[2]) & 0xff] ^ tables[4][((crc >> 24) ^ p[3]) & 0xff] ^ tables[3][p[4]] ^
          tables[2][p[5]] ^ tables[1][p[6]] ^ tables[0][p[7]];
  }
  for (; n > 0; ++p, --n) crc = (crc >> 8) ^ tables[0][(crc ^ *p) & 0xff];
  return ~crc;
}

uint32_t crc32c(std::span<const std::byte> data, uint32_t seed) noexcept {
#if defined(__x86_64__)
  if (has_instruction())
    return ~by_instruction(reinterpret_cast<const unsigned char*>(data.data()), data.size(), ~seed);
#endif
  return crc32c_portable(data, seed);
}

}  // namespace nacre
