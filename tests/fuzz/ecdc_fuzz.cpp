// Any bytes are either refused with Error(input), or have codes that the writer packs into the same bytes.
#include "nacre/files/ecdc.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "nacre/error.h"

using namespace nacre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::vector<std::byte> bytes(size - 1);
  if (size > 1) std::memcpy(bytes.data(), data + 1, size - 1);
  // Mostly with a right beginning. Otherwise the fuzzer would seldom get past it.
  size_t json = 0;
  if (data[0] % 4 != 0 && bytes.size() >= 9) {
    json = std::min<size_t>(bytes.size() - 9, data[0]);
    std::memcpy(bytes.data(), "ECDC\0\0\0\0", 8);
    bytes[8] = static_cast<std::byte>(json);
  }
  size_t at = 0;
  const size_t piece = 1 + data[0] % 64u;
  std::vector<std::byte> out;
  try {
    EcdcReader reader([&](std::span<std::byte> into) {
      const size_t n = std::min({into.size(), bytes.size() - at, piece});
      if (n > 0) std::memcpy(into.data(), bytes.data() + at, n);
      at += n;
      return n;
    });
    EcdcWriter writer(reader.header(),
                      [&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); });
    out.clear();  // JSON has several spellings, of which the writer has one
    const size_t header = at;
    while (const auto packet = reader.next()) writer.write(packet->codes, packet->scale);
    writer.finish();
    if (at != bytes.size() ||
        !std::equal(out.begin(), out.end(), bytes.begin() + static_cast<std::ptrdiff_t>(header), bytes.end()))
      std::abort();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) std::abort();
  }
  return 0;
}
