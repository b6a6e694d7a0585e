#include "harness.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "allocations.h"

namespace nacre::test {
namespace {

template <class T>
T poison() {
  if constexpr (std::is_same_v<T, float>) return std::numeric_limits<float>::quiet_NaN();
  if constexpr (std::is_same_v<T, bf16>) return bf16{0x7fff};
  if constexpr (std::is_same_v<T, int32_t>) return std::numeric_limits<int32_t>::min();
}
template <class T>
double as_double(T x) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_float(x);
  else
    return static_cast<double>(x);
}
template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(static_cast<float>(x));
  else
    return static_cast<T>(x);
}
/// The content of fences: NaN, so that a read from a fence shows in every sum that uses it. The bits of this NaN are
/// the result of no computation, so that a write to a fence shows as well.
template <class T>
T fence_value() {
  if constexpr (std::is_same_v<T, float>) return std::bit_cast<float>(0x7fe5a5a5u);
  if constexpr (std::is_same_v<T, bf16>) return bf16{0x7fe5};
  if constexpr (std::is_same_v<T, int32_t>) return static_cast<int32_t>(0xa5a5a5a5u);
}

}  // namespace

std::vector<Device> devices() {
  static const std::vector<Device> all = [] {
    const char* text = std::getenv("NACRE_TEST_DEVICES");
    const std::string wanted = text != nullptr ? text : "";
    std::vector<Device> found;
    if (wanted != "cuda") found.push_back({});
    if (wanted != "cpu" && cuda_available()) found.push_back({Device::cuda, 0});
    return found;
  }();
  return all;
}

uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("NACRE_TEST_SEED");
    return text != nullptr ? std::strtoull(text, nullptr, 10) : 1ull;
  }();
  return value;
}

AllocationCounter::AllocationCounter() : start_(allocations.load()) {}
int64_t AllocationCounter::count() const { return allocations.load() - start_; }

template <class T>
Buffer<T>::Buffer(Context& ctx, std::string name, Shape shape, std::vector<T> before)
    : ctx_(ctx), name_(std::move(name)), shape_(shape), before_(std::move(before)) {
  // A fence has at least one row, so that a wrong row loop stays in the fence and not in the heap. Its size is a
  // multiple of 256 bytes.
  const int64_t row = std::max<int64_t>(shape.width * shape.channels, 1);
  const int64_t line = static_cast<int64_t>(256 / sizeof(T));
  fence_ = (row + line - 1) / line * line;
  memory_ = Memory(ctx, static_cast<size_t>(size() + 2 * fence_) * sizeof(T));
  const std::vector<T> fence(static_cast<size_t>(fence_), fence_value<T>());
  for (T* place : {data() - fence_, data() + size()}) ctx_.write<T>(fence, View<T>(place, {.channels = fence_}));
  write(before_);
}
template <class T>
T* Buffer<T>::data() const {
  return reinterpret_cast<T*>(memory_.data()) + fence_;
}
template <class T>
double Buffer<T>::operator[](int64_t i) const {
  return as_double(before_[static_cast<size_t>(i)]);
}
template <class T>
void Buffer<T>::write(std::vector<T> content) {
  before_ = std::move(content);
  ctx_.write<T>(before_, View<T>(data(), shape_));
}
template <class T>
std::vector<T> Buffer<T>::read() const {
  std::vector<unsigned char> all(memory_.size());
  ctx_.read<unsigned char>(View<const unsigned char>(reinterpret_cast<const unsigned char*>(memory_.data()),
                                                     {.channels = static_cast<int64_t>(all.size())}),
                           all);
  const size_t fence = static_cast<size_t>(fence_) * sizeof(T), body = static_cast<size_t>(size()) * sizeof(T);
  const std::vector<T> untouched(static_cast<size_t>(fence_), fence_value<T>());
  if (std::memcmp(all.data(), untouched.data(), fence) != 0) FAIL_CHECK(name_ << ": written before its start");
  if (std::memcmp(all.data() + fence + body, untouched.data(), fence) != 0)
    FAIL_CHECK(name_ << ": written past its end");
  std::vector<T> out(static_cast<size_t>(size()));
  if (body > 0) std::memcpy(out.data(), all.data() + fence, body);
  return out;
}

Case::Case(std::string name, Device device, Shape shape, int threads, Precision precision)
    : ctx({.device = device, .threads = threads, .precision = precision}),
      rng(seed() * 0x9E3779B97F4A7C15ull + std::hash<std::string>{}(name + str(shape))),
      name_(std::move(name)),
      device_(device),
      shape_(shape) {}

std::string Case::label() const {
  return name_ + " " + str(shape_) + " on " + str(device_) + ", NACRE_TEST_SEED=" + std::to_string(seed());
}

template <class T>
Buffer<T>& Case::values(const std::string& name, Shape shape, std::vector<T> content) {
  auto made = std::make_shared<Buffer<T>>(ctx, name, shape, std::move(content));
  owned_.push_back(made);
  return *made;
}
template <class T>
Buffer<T>& Case::random(const std::string& name, Shape shape, double low, double high) {
  std::uniform_real_distribution<double> draw(low, high);
  std::vector<T> content(static_cast<size_t>(shape.elements()));
  for (T& x : content) x = from_double<T>(draw(rng));
  return values<T>(name, shape, std::move(content));
}
template <class T>
Buffer<T>& Case::integers(const std::string& name, Shape shape, int low, int high) {
  std::uniform_int_distribution<int> draw(low, high);
  std::vector<T> content(static_cast<size_t>(shape.elements()));
  for (T& x : content) x = from_double<T>(draw(rng));
  return values<T>(name, shape, std::move(content));
}
template <class T>
Buffer<T>& Case::output(const std::string& name, Shape shape) {
  return values<T>(name, shape, std::vector<T>(static_cast<size_t>(shape.elements()), poison<T>()));
}
template <class T>
Buffer<T>& Case::zeros(const std::string& name, Shape shape) {
  return values<T>(name, shape, std::vector<T>(static_cast<size_t>(shape.elements()), from_double<T>(0)));
}
View<float> Case::scratch(Shape shape) {
  if (shape.elements() == 0) return {};
  return output<float>("scratch", shape);
}

double worst_ratio(const std::vector<double>& found, const std::function<double(int64_t)>& expected,
                   const std::function<double(int64_t)>& allowance) {
  double worst = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(found.size()); ++i) {
    const double error = std::fabs(found[static_cast<size_t>(i)] - expected(i)), allowed = allowance(i);
    const double ratio =
        error <= allowed ? (allowed > 0 ? error / allowed : 0) : (allowed > 0 ? error / allowed : HUGE_VAL);
    if (std::isnan(error)) return HUGE_VAL;
    worst = std::max(worst, ratio);
  }
  return worst;
}

template <class T>
double Case::expect(const Buffer<T>& buffer, const std::function<double(int64_t)>& expected,
                    const std::function<double(int64_t)>& allowance) {
  const std::vector<T> found = buffer.read();
  double worst = 0;
  int64_t where = -1, bad = 0;
  for (int64_t i = 0; i < buffer.size(); ++i) {
    const double value = as_double(found[static_cast<size_t>(i)]), wanted = expected(i), allowed = allowance(i);
    const double error = std::fabs(value - wanted);
    const bool ok = error <= allowed;  // false for NaN
    if (!ok) ++bad;
    double ratio = std::isnan(error) ? HUGE_VAL : (error == 0 ? 0 : error / allowed);
    if (where < 0 || ratio > worst) worst = ratio, where = i;
  }
  if (bad > 0) {
    const double value = as_double(found[static_cast<size_t>(where)]);
    FAIL_CHECK(label() << ": " << buffer.name() << " " << str(buffer.shape()) << " has " << bad << " of "
                       << buffer.size() << " elements off; worst at " << where << ": " << value << ", expected "
                       << expected(where) << ", allowed error " << allowance(where));
  } else {
    SUCCEED();
  }
  return worst;
}

template <class T>
void Case::expect_equal(const Buffer<T>& buffer, const std::vector<T>& expected) {
  const std::vector<T> found = buffer.read();
  REQUIRE(found.size() == expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    if (std::memcmp(&found[i], &expected[i], sizeof(T)) != 0) {
      FAIL_CHECK(label() << ": " << buffer.name() << " differs at " << i << ": " << as_double(found[i]) << ", expected "
                         << as_double(expected[i]));
      return;
    }
  SUCCEED();
}

#define NACRE_INSTANTIATE(T)                                                               \
  template class Buffer<T>;                                                                \
  template Buffer<T>& Case::values<T>(const std::string&, Shape, std::vector<T>);          \
  template Buffer<T>& Case::random<T>(const std::string&, Shape, double, double);          \
  template Buffer<T>& Case::integers<T>(const std::string&, Shape, int, int);              \
  template Buffer<T>& Case::output<T>(const std::string&, Shape);                          \
  template Buffer<T>& Case::zeros<T>(const std::string&, Shape);                           \
  template double Case::expect<T>(const Buffer<T>&, const std::function<double(int64_t)>&, \
                                  const std::function<double(int64_t)>&);                  \
  template void Case::expect_equal<T>(const Buffer<T>&, const std::vector<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
NACRE_INSTANTIATE(int32_t)

}  // namespace nacre::test
