#pragma once
// A reader of event files that shares nothing with the writer: a bitwise CRC and a short wire-format parser.
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace nacre::test {

struct Field {
  int number = 0, type = 0;
  uint64_t value = 0;      // a varint, or the bits of a fixed-size value
  std::string bytes = {};  // of wire type 2
  double real() const {
    double x = 0;
    std::memcpy(&x, &value, 8);
    return x;
  }
  float single() const {
    float x = 0;
    const auto low = static_cast<uint32_t>(value);
    std::memcpy(&x, &low, 4);
    return x;
  }
};
using Fields = std::vector<Field>;

inline Fields parse_message(const std::string& b) {
  Fields out;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t x = 0;
    for (int shift = 0;; shift += 7) {
      if (at >= b.size() || shift > 63) throw std::runtime_error("bad varint");
      const auto c = static_cast<unsigned char>(b[at++]);
      x |= static_cast<uint64_t>(c & 127) << shift;
      if (c < 128) return x;
    }
  };
  const auto take = [&](uint64_t n) {
    if (n > b.size() - at) throw std::runtime_error("field past the end");
    at += n;
    return b.substr(at - n, n);
  };
  while (at < b.size()) {
    Field f;
    const uint64_t key = varint();
    f.number = static_cast<int>(key >> 3);
    f.type = static_cast<int>(key & 7);
    if (f.type == 0)
      f.value = varint();
    else if (f.type == 2)
      f.bytes = take(varint());
    else if (f.type == 1 || f.type == 5) {
      const std::string raw = take(f.type == 1 ? 8 : 4);
      for (size_t i = raw.size(); i-- > 0;) f.value = f.value << 8 | static_cast<unsigned char>(raw[i]);
    } else {
      throw std::runtime_error("bad wire type");
    }
    out.push_back(f);
  }
  return out;
}

/// The only field with that number.
inline const Field& get(const Fields& fields, int number) {
  const Field* found = nullptr;
  for (const Field& f : fields)
    if (f.number == number) {
      if (found != nullptr) throw std::runtime_error("field twice");
      found = &f;
    }
  if (found == nullptr) throw std::runtime_error("no field " + std::to_string(number));
  return *found;
}
inline Fields inside(const Fields& fields, int number) { return parse_message(get(fields, number).bytes); }

struct EventFile {
  std::vector<Fields> events;
  bool torn = false;  // ends within a record
};

inline EventFile parse_events(const std::string& b) {
  const auto little = [&](size_t at, size_t n) {
    uint64_t x = 0;
    for (size_t i = n; i-- > 0;) x = x << 8 | static_cast<unsigned char>(b[at + i]);
    return x;
  };
  const auto masked = [&](size_t at, size_t n) {
    uint32_t crc = ~0u;
    for (size_t i = at; i < at + n; ++i) {
      crc ^= static_cast<unsigned char>(b[i]);
      for (int k = 0; k < 8; ++k) crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    }
    crc = ~crc;
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
  };
  EventFile out;
  for (size_t at = 0; at < b.size();) {
    if (b.size() - at < 12) return out.torn = true, out;
    const uint64_t n = little(at, 8);
    if (little(at + 8, 4) != masked(at, 8)) throw std::runtime_error("bad checksum of a length");
    if (b.size() - at - 12 < n + 4) return out.torn = true, out;
    if (little(at + 12 + n, 4) != masked(at + 12, n)) throw std::runtime_error("bad checksum of a record");
    out.events.push_back(parse_message(b.substr(at + 12, n)));
    at += n + 16;
  }
  return out;
}

}  // namespace nacre::test
