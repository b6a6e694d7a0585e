// Any bytes are either refused with Error(input), or give tensors that lie inside the file and write back to the same
// bytes.
#include <cstdlib>
#include <string>

#include "nacre/error.h"
#include "nacre/files/safetensors.h"

using namespace nacre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The length of the header is set to the real length. Otherwise the fuzzer would only learn that field. The first
  // byte is the number of data bytes that follow the header.
  if (size < 2) return 0;
  const size_t tail = data[0] % size, header = size - 1 - tail;
  std::vector<std::byte> file(8);
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(static_cast<uint64_t>(header) >> (8 * i) & 0xff);
  for (size_t i = 1; i < size; ++i) file.push_back(static_cast<std::byte>(data[i]));
  try {
    const Safetensors read = Safetensors::parse(file, "fuzz");
    size_t total = 0;
    for (const auto& t : read.tensors()) {
      if (static_cast<uint64_t>(t.elements()) * bytes_per_element(t.dtype) != t.data.size()) std::abort();
      total += t.data.size();
      first_nonfinite(t);
    }
    if (total != tail) std::abort();
    std::vector<std::byte> out;
    write_safetensors([&](std::span<const std::byte> d) { out.insert(out.end(), d.begin(), d.end()); }, read.tensors(),
                      read.metadata(), {.allow_nonfinite = true});
    const Safetensors again = Safetensors::parse(out, "again");
    if (again.metadata() != read.metadata()) std::abort();
    if (weights_identity(again.tensors()) != weights_identity(read.tensors())) std::abort();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) std::abort();
  }
  return 0;
}
