// Weights as safetensors. A file is the length of the header (8 bytes, little-endian), the header (JSON), and the data,
// into which the header's offsets point. safetensors_header.cpp parses the JSON; this file checks what the numbers
// mean, converts elements, computes the identity of weights, and writes.
// parse() trusts nothing: first the length of the header against the file's, then shape, type and offsets of each
// tensor against each other, then all offsets in sequence against the data. Only then does it make spans into the data.
#include "nacre/files/safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "files/safetensors_header.h"
#include "files/text.h"
#include "files/weights_identity.h"
#include "nacre/bf16.h"
#include "nacre/error.h"

namespace nacre {
namespace {

struct DtypeRow {
  std::string_view name;
  size_t bytes;
};
// In the order of Dtype, which is also that of increasing alignment.
constexpr DtypeRow dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},   {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2},
                               {"U16", 2},  {"F16", 2}, {"BF16", 2}, {"I32", 4},     {"U32", 4},     {"F32", 4},
                               {"C64", 8},  {"F64", 8}, {"I64", 8},  {"U64", 8}};
const DtypeRow& row(Dtype d) noexcept { return dtypes[static_cast<size_t>(d)]; }

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw Error(ErrorKind::input, file + ": " + what);
}

/// Element i of the data, which may be unaligned. The bytes are little-endian, as those of the machine.
template <class T>
T load(std::span<const std::byte> data, size_t i) noexcept {
  T value;
  std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
  return value;
}

/// An IEEE half: 1 bit of sign, 5 of exponent, 10 of mantissa. Every half is a float, so the conversion is exact.
float half_to_float(uint16_t half) noexcept {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = half >> 10 & 31u,
                 mantissa = half & 0x3ffu;
  if (exponent == 0) {
    // Subnormal numbers are multiples of 2^-24.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  // The exponents are biased by 15 and by 127; 112 is the difference. Exponent 31 stands for infinities and NaN.
  return std::bit_cast<float>(exponent == 31 ? sign | 0x7f800000u | mantissa << 13
                                             : sign | (exponent + 112) << 23 | mantissa << 13);
}

/// A floating-point number is not finite if all bits of its exponent are set. The data may be unaligned, so they are
/// loaded as integers.
bool is_nonfinite(const StoredTensor& t, size_t i) noexcept {
  switch (t.dtype) {
    case Dtype::f16:
      return (load<uint16_t>(t.data, i) & 0x7c00u) == 0x7c00u;
    case Dtype::bf16:
      return (load<uint16_t>(t.data, i) & 0x7f80u) == 0x7f80u;
    case Dtype::f32:
      return (load<uint32_t>(t.data, i) & 0x7f800000u) == 0x7f800000u;
    case Dtype::f64:
      return (load<uint64_t>(t.data, i) >> 52 & 0x7ffu) == 0x7ffu;
    case Dtype::c64:
      return (load<uint32_t>(t.data, 2 * i) & 0x7f800000u) == 0x7f800000u ||
             (load<uint32_t>(t.data, 2 * i + 1) & 0x7f800000u) == 0x7f800000u;
    default:
      return false;
  }
}

/// Computes the number of elements; false if there are too many.
bool count_elements(std::span<const int64_t> shape, uint64_t& elements) noexcept {
  elements = 1;
  for (int64_t n : shape) {
    if (n < 0 || __builtin_mul_overflow(elements, static_cast<uint64_t>(n), &elements)) return false;
    // The limit keeps elements times 8 bytes far below 2^64, so later products cannot overflow.
    if (elements > max_safetensors_elements) return false;
  }
  return true;
}

std::string nonfinite_text(const StoredTensor& t, int64_t i) {
  return "tensor " + in_quotes(t.name) + " has a value that is not finite, the first at element " + std::to_string(i);
}

/// Appends 8 bytes in little-endian order.
void put_u64(std::string& out, uint64_t v) {
  for (int i = 0; i < 8; ++i) out += static_cast<char>(v >> (8 * i) & 0xff);
}

/// Appends a JSON string with the escapes that JSON demands. The text is valid UTF-8 (check_for_writing()), whose other
/// characters need none.
void put_json(std::string& out, std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  out += '"';
  for (char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20) {
      out += "\\u00";
      out += digits[u >> 4];
      out += digits[u & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

/// The order does not depend on the caller's, so equal tensors give equal bytes and equal identities.
std::vector<const StoredTensor*> by_name(std::span<const StoredTensor> tensors) {
  std::vector<const StoredTensor*> order;
  order.reserve(tensors.size());
  for (const auto& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  return order;
}

/// Throws unless the reader above would accept the file: names, sizes and metadata, and finite values if the options
/// ask for them. Called before the first byte is written.
void check_for_writing(std::span<const StoredTensor> tensors, const std::map<std::string, std::string>& metadata,
                       SafetensorsWriteOptions options) {
  const auto refuse = [](const std::string& what) { throw Error(ErrorKind::usage, "safetensors: " + what); };
  // Equal names are neighbours in this order.
  const StoredTensor* before = nullptr;
  for (const StoredTensor* t : by_name(tensors)) {
    if (t->name == "__metadata__" || !is_utf8(t->name) || t->name.find('\0') != std::string::npos)
      refuse(in_quotes(t->name) + " is not a valid tensor name");
    if (before != nullptr && before->name == t->name) refuse("there are two tensors named " + in_quotes(t->name));
    before = t;
    uint64_t elements = 0;
    if (t->shape.size() > max_safetensors_rank || !count_elements(t->shape, elements) ||
        elements * row(t->dtype).bytes != t->data.size())
      refuse("tensor " + in_quotes(t->name) + " is " + str(*t) + " and has " + std::to_string(t->data.size()) +
             " bytes");
    if (!options.allow_nonfinite)
      if (const int64_t i = first_nonfinite(*t); i >= 0)
        throw Error(ErrorKind::diverged, "safetensors: " + nonfinite_text(*t, i));
  }
  for (const auto& [key, value] : metadata)
    if (!is_utf8(key) || !is_utf8(value)) refuse("metadata " + in_quotes(key) + " is not valid UTF-8");
}

}  // namespace

std::string_view str(Dtype d) noexcept { return row(d).name; }
size_t bytes_per_element(Dtype d) noexcept { return row(d).bytes; }

bool dtype_from(std::string_view name, Dtype& out) noexcept {
  for (size_t i = 0; i < std::size(dtypes); ++i)
    if (dtypes[i].name == name) {
      out = static_cast<Dtype>(i);
      return true;
    }
  return false;
}

int64_t StoredTensor::elements() const noexcept {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::string str(const StoredTensor& t) {
  std::string out = std::string(str(t.dtype)) + " [";
  for (size_t i = 0; i < t.shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(t.shape[i]);
  return out + "]";
}

std::vector<float> to_floats(const StoredTensor& t) {
  // The number of elements by the data, which the shape agrees with in tensors of parse() and of check_for_writing().
  const size_t n = t.data.size() / row(t.dtype).bytes;
  std::vector<float> out(n);
  switch (t.dtype) {
    case Dtype::f32:
      if (n > 0) std::memcpy(out.data(), t.data.data(), n * sizeof(float));
      break;
    case Dtype::f16:
      for (size_t i = 0; i < n; ++i) out[i] = half_to_float(load<uint16_t>(t.data, i));
      break;
    case Dtype::bf16:
      for (size_t i = 0; i < n; ++i)
        // BF16 is the upper half of a float.
        out[i] = std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(t.data, i)) << 16);
      break;
    case Dtype::f64:
      for (size_t i = 0; i < n; ++i) {
        const double value = load<double>(t.data, i);
        out[i] = static_cast<float>(value);
        // An infinity of the file remains one. A finite number must not become one.
        if (std::isinf(out[i]) && !std::isinf(value))
          throw Error(ErrorKind::input,
                      "tensor " + in_quotes(t.name) + ": element " + std::to_string(i) + " is too large for a float");
      }
      break;
    default:
      throw Error(ErrorKind::input,
                  "tensor " + in_quotes(t.name) + " is " + str(t) + ", expected F32, F16, BF16 or F64");
  }
  return out;
}

int64_t first_nonfinite(const StoredTensor& t) noexcept {
  const size_t n = t.data.size() / row(t.dtype).bytes;
  for (size_t i = 0; i < n; ++i)
    if (is_nonfinite(t, i)) return static_cast<int64_t>(i);
  return -1;
}

void WeightsIdentity::add(const StoredTensor& t) {
  uint64_t hash = hash_;
  const auto take = [&hash](const void* data, size_t size) {
    const auto* p = static_cast<const unsigned char*>(data);
    // FNV-1a with its 64-bit prime.
    for (size_t i = 0; i < size; ++i) hash = (hash ^ p[i]) * 0x100000001b3u;
  };
  // Zero bytes end the names and a rank precedes the dimensions, so that different tensors never give the same bytes.
  std::string head = t.name + '\0' + std::string(str(t.dtype)) + '\0';
  put_u64(head, t.shape.size());
  for (int64_t n : t.shape) put_u64(head, static_cast<uint64_t>(n));
  take(head.data(), head.size());
  take(t.data.data(), t.data.size());
  hash_ = hash;
}
uint64_t weights_identity(std::span<const StoredTensor> tensors) {
  WeightsIdentity identity;
  for (const StoredTensor* t : by_name(tensors)) identity.add(*t);
  return identity.value();
}

Safetensors Safetensors::read(const std::filesystem::path& path, SafetensorsOptions options) {
  return parse(read_file(path, options.max_file_bytes), path.string(), options);
}

Safetensors Safetensors::parse(std::vector<std::byte> file, const std::string& name, SafetensorsOptions options) {
  if (file.size() < 8)
    fail(name, "is not safetensors: it has " + std::to_string(file.size()) + " bytes, expected at least 8");
  uint64_t length = 0;
  // Bytes behind the first 8 are not looked at before this length is known to be possible.
  for (size_t i = 0; i < 8; ++i) length |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  if (length > max_safetensors_header)
    fail(name, "is not safetensors: its header would have " + std::to_string(length) + " bytes, expected at most " +
                   std::to_string(max_safetensors_header));
  // file.size() - 8 instead of length + 8, which a hostile length would overflow.
  if (length > file.size() - 8)
    fail(name,
         "is cut off: its header has " + std::to_string(length) + " bytes, the file " + std::to_string(file.size()));

  Safetensors out;
  out.name_ = name;
  // The tensors below are spans into this buffer. Moving a Safetensors keeps them valid, because it moves the vector.
  out.file_ = std::move(file);
  SafetensorsHeader header = parse_safetensors_header(
      {reinterpret_cast<const char*>(out.file_.data()) + 8, static_cast<size_t>(length)}, name);
  out.metadata_ = std::move(header.metadata);
  const auto data = std::span<const std::byte>(out.file_).subspan(8 + static_cast<size_t>(length));

  std::vector<const SafetensorsEntry*> order;
  // From here to the end of the checks, the entries are viewed in order of their data. They stay in order of name.
  order.reserve(header.entries.size());
  for (const auto& e : header.entries) {
    uint64_t elements = 0;
    if (!count_elements(e.shape, elements)) fail(name, "tensor " + in_quotes(e.name) + " has too many elements");
    const uint64_t bytes = elements * row(e.dtype).bytes;  // at most 2^43
    // The offsets still come from the file. Whether they lie inside of it is checked below, when all are known to be in
    // sequence.
    if (e.end < e.begin || e.end - e.begin != bytes)
      fail(name, "tensor " + in_quotes(e.name) + " needs " + std::to_string(bytes) + " bytes, its data_offsets are [" +
                     std::to_string(e.begin) + ", " + std::to_string(e.end) + "]");
    order.push_back(&e);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  // Tensors must cover the data without gap and without overlap, as the format demands. So no byte has two meanings,
  // and nothing can be hidden between tensors.
  uint64_t at = 0;
  for (const auto* e : order) {
    if (e->begin != at)
      fail(name, "tensor " + in_quotes(e->name) + " begins at byte " + std::to_string(e->begin) +
                     " of the data, expected " + std::to_string(at) + ": tensors must be contiguous");
    at = e->end;
  }
  if (at > data.size())
    fail(name,
         "is cut off: its tensors have " + std::to_string(at) + " bytes, the file only " + std::to_string(data.size()));
  // at is the end of the last tensor.
  if (at < data.size() && !options.allow_trailing_bytes)
    fail(name, std::to_string(data.size() - at) + " bytes follow the last tensor");

  out.tensors_.reserve(header.entries.size());
  // All offsets are inside of the data here.
  for (auto& e : header.entries) {
    out.tensors_.push_back({.name = std::move(e.name),
                            .dtype = e.dtype,
                            .shape = std::move(e.shape),
                            .data = data.subspan(static_cast<size_t>(e.begin), static_cast<size_t>(e.end - e.begin))});
    if (!options.allow_nonfinite)
      if (const int64_t i = first_nonfinite(out.tensors_.back()); i >= 0)
        fail(name, nonfinite_text(out.tensors_.back(), i));
  }
  return out;
}

const StoredTensor* Safetensors::find(std::string_view name) const noexcept {
  // The parser has sorted the entries by name.
  const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const StoredTensor& t, std::string_view n) { return t.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

const StoredTensor& Safetensors::at(std::string_view name) const {
  if (const StoredTensor* t = find(name)) return *t;
  fail(name_, "has no tensor " + in_quotes(name));
}

void write_safetensors(const ByteSink& sink, std::span<const StoredTensor> tensors,
                       const std::map<std::string, std::string>& metadata, SafetensorsWriteOptions options) {
  check_for_writing(tensors, metadata, options);
  auto order = by_name(tensors);
  // The order of Dtype is that of element sizes, so larger elements come first and every tensor is aligned. The sort is
  // stable, so names stay in order within a type.
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->dtype > b->dtype; });

  // The first 8 bytes are the length of the header, filled in at the end.
  std::string header(8, '\0');
  header += '{';
  // A comma in front of every member but the first of an object. Every other member ends with '"' or '}'.
  const auto next = [&header] {
    if (header.back() != '{') header += ',';
  };
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      next();
      put_json(header, key);
      header += ':';
      put_json(header, value);
    }
    header += '}';
  }
  uint64_t at = 0;
  for (const StoredTensor* t : order) {
    next();
    put_json(header, t->name);
    header += ":{\"dtype\":\"" + std::string(str(t->dtype)) + "\",\"shape\":[";
    for (size_t i = 0; i < t->shape.size(); ++i) header += (i > 0 ? "," : "") + std::to_string(t->shape[i]);
    // The tensors follow one another without gaps, in the order in which they are written below.
    header += "],\"data_offsets\":[" + std::to_string(at) + ",";
    at += t->data.size();
    header += std::to_string(at) + "]}";
  }
  header += '}';
  // The format allows spaces behind the JSON object. With them the data begin at a multiple of 64 bytes.
  header.resize((header.size() + 63) / 64 * 64, ' ');
  if (header.size() - 8 > max_safetensors_header)
    throw Error(ErrorKind::usage, "safetensors: the header would have " + std::to_string(header.size() - 8) + " bytes");
  std::string length;
  put_u64(length, header.size() - 8);
  header.replace(0, 8, length);

  sink(std::as_bytes(std::span(header)));
  for (const StoredTensor* t : order)
    if (!t->data.empty()) sink(t->data);
}

void write_safetensors(const std::filesystem::path& path, std::span<const StoredTensor> tensors,
                       const std::map<std::string, std::string>& metadata, SafetensorsWriteOptions options) {
  AtomicFile file(path);
  write_safetensors([&](std::span<const std::byte> data) { file.write(data); }, tensors, metadata, options);
  file.commit();
}

}  // namespace nacre
