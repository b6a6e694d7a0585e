#pragma once
// CRC-32C (Castagnoli, reflected, 0x82f63b78): what every file we write is checked with. The result is the same on
// every machine; it finds every single error burst of up to 32 bits.
#include <cstddef>
#include <cstdint>
#include <span>

#include "nacre/cxx20.h"

namespace nacre {

/// The CRC of `data`; "123456789" gives 0xE3069283 and no data 0. Pass the CRC of what came before as `seed` to go on:
/// crc32c(b, crc32c(a)) is the CRC of a followed by b.
uint32_t crc32c(std::span<const std::byte> data, uint32_t seed = 0) noexcept;

/// The same by tables, whatever the processor has: what the instruction is tested against.
uint32_t crc32c_portable(std::span<const std::byte> data, uint32_t seed = 0) noexcept;

}  // namespace nacre
