#pragma once
// Tools for the test of an op: the devices of this build, buffers with fences that start as NaN, one seed that is
// printed and can be set, and a comparison with a double-precision reference. Each allowance is derived beside its use.
//
//   NACRE_TEST_SEED=7 ./nacre_tests     repeats a failure
#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "catch.h"
#include "nacre/context.h"

namespace nacre::test {

/// Half a unit in the last place of a float, relative: the largest rounding error of one float operation.
inline constexpr double ulp = 0x1p-24;
/// The same for storage in bf16.
inline constexpr double bf16_ulp = 0x1p-8;

/// The devices that this build and machine can use: the CPU, and CUDA (real or emulated) if there is one.
/// NACRE_TEST_DEVICES=cpu or =cuda leaves out the other.
std::vector<Device> devices();
/// The seed from NACRE_TEST_SEED, or 1. Every failure prints it.
uint64_t seed();

/// Counts calls of operator new between construction and count(). Libraries that allocate internally are left out.
class AllocationCounter {
 public:
  AllocationCounter();
  int64_t count() const;

 private:
  int64_t start_;
};

/// A device buffer and its host copy. Fences of at least one row enclose it on both sides. They hold NaN, or a negative
/// integer.
template <class T>
class Buffer {
 public:
  Buffer(Context& ctx, std::string name, Shape shape, std::vector<T> before);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const std::string& name() const { return name_; }
  Shape shape() const { return shape_; }
  int64_t size() const { return shape_.elements(); }
  /// The initial content of the buffer.
  const std::vector<T>& before() const { return before_; }
  /// The input value i as a double, for the reference.
  double operator[](int64_t i) const;
  operator View<T>() const { return {data(), shape_}; }
  operator View<const T>() const { return {data(), shape_}; }
  T* data() const;
  /// Copies the buffer to the host. Fails if a fence was written.
  std::vector<T> read() const;
  /// Copies new content to the device and to before().
  void write(std::vector<T> content);

 private:
  Context& ctx_;
  std::string name_;
  Shape shape_;
  std::vector<T> before_;
  int64_t fence_;
  Memory memory_;
};

/// One test case of one op on one device.
class Case {
 public:
  Case(std::string name, Device device, Shape shape, int threads = 2, Precision precision = Precision::fp32);
  Context ctx;

  /// Uniform values in [low, high), rounded to T.
  template <class T = float>
  Buffer<T>& random(const std::string& name, Shape, double low, double high);
  /// Integers in [low, high]. Sums of their products are exact in float in any order.
  template <class T = float>
  Buffer<T>& integers(const std::string& name, Shape, int low, int high);
  template <class T = float>
  Buffer<T>& values(const std::string& name, Shape, std::vector<T>);
  /// An output, initialised with NaN (or the smallest integer).
  template <class T = float>
  Buffer<T>& output(const std::string& name, Shape);
  template <class T = float>
  Buffer<T>& zeros(const std::string& name, Shape);
  /// Scratch for an op, initialised with NaN, of the shape that its *_scratch function returned. An empty shape gives
  /// an empty view.
  View<float> scratch(Shape);

  /// Checks |buffer[i] - expected(i)| <= allowance(i) for every i. NaN fails. Prints the worst element and the seed.
  /// Returns the largest error relative to its allowance, so that a test can show that it would notice a planted error.
  template <class T>
  double expect(const Buffer<T>& buffer, const std::function<double(int64_t)>& expected,
                const std::function<double(int64_t)>& allowance);
  /// Checks that the buffer has exactly the expected bits.
  template <class T>
  void expect_equal(const Buffer<T>& buffer, const std::vector<T>& expected);

  std::mt19937_64 rng;

 private:
  std::string label() const;
  std::string name_;
  Device device_;
  Shape shape_;
  std::deque<std::shared_ptr<void>> owned_;
};

/// The largest error over its allowance, without a failure. With it, tests show that a planted error of ten allowances
/// is noticed.
double worst_ratio(const std::vector<double>& found, const std::function<double(int64_t)>& expected,
                   const std::function<double(int64_t)>& allowance);

}  // namespace nacre::test
