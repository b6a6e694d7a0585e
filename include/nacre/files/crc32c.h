#pragma once
// CRC-32C (Castagnoli, reflected, 0x82f63b78), the checksum of every file that nacre writes. The result is the same on
// every machine. It detects every error burst of up to 32 bits.
#include <cstddef>
#include <cstdint>
#include <span>

#include "nacre/cxx20.h"

namespace nacre {

/// The CRC of `data`. "123456789" gives 0xE3069283, and empty data gives 0. Pass the CRC of the preceding data as
/// `seed` to continue: crc32c(b, crc32c(a)) is the CRC of a followed by b.
uint32_t crc32c(std::span<const std::byte> data, uint32_t seed = 0) noexcept;

/// The same computed from tables on every processor. The hardware instruction is tested against it.
uint32_t crc32c_portable(std::span<const std::byte> data, uint32_t seed = 0) noexcept;

}  // namespace nacre
