#pragma once
// View<T>: the library's only tensor type. It is dense and typed, owns nothing, and is passed by value, also to
// kernels.
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "nacre/bf16.h"

namespace nacre {

/// Extents in memory order, channels innermost. `width` is 1 for audio (frequency bins or period in discriminators).
struct Shape {
  int64_t batch = 1, time = 1, width = 1, channels = 1;

  bool operator==(const Shape&) const = default;
  NACRE_HD constexpr int64_t elements() const { return batch * time * width * channels; }
  /// Number of channel vectors: elements / channels.
  NACRE_HD constexpr int64_t rows() const { return batch * time * width; }
};

/// Element type of an activation or of an effective weight in memory. Arithmetic is in float in both cases.
enum class Storage : uint8_t { float32, bfloat16 };
inline constexpr size_t bytes_per_element(Storage s) { return s == Storage::float32 ? sizeof(float) : sizeof(bf16); }
template <class T>
requires(std::is_same_v<T, float> || std::is_same_v<T, bf16>) inline constexpr Storage storage_of =
    std::is_same_v<T, bf16> ? Storage::bfloat16 : Storage::float32;
template <class T>
struct Type {
  using type = T;
};
/// Calls f(Type<float>{}) or f(Type<bf16>{}). It turns a run-time storage into a template argument.
template <class F>
decltype(auto) visit(Storage s, F&& f) {
  if (s == Storage::bfloat16) return f(Type<bf16>{});
  return f(Type<float>{});
}

template <class T>
struct View {
  T* data = nullptr;
  Shape shape{};

  View() = default;
  NACRE_HD View(T* d, Shape s) : data(d), shape(s) {}
  /// Converts View<U> to View<const U>; no other conversion exists.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>) NACRE_HD View(View<U> v)
      : data(v.data), shape(v.shape) {}

  NACRE_HD explicit operator bool() const { return data != nullptr; }
  NACRE_HD int64_t elements() const { return shape.elements(); }
  NACRE_HD T& operator[](int64_t i) const { return data[i]; }
  NACRE_HD T* begin() const { return data; }
  NACRE_HD T* end() const { return data + elements(); }
};

}  // namespace nacre
