#pragma once
// Plan: where every activation, gradient and scratch block of a model lives. The model is walked twice: the first walk
// records who writes and who reads each activation, lifetimes are packed into one block, and the second walk hands out
// addresses. After that a step takes only a Context: every address is fixed.
#include <cstddef>
#include <functional>
#include <memory>

#include "nacre/context.h"

namespace nacre {

enum class Phase : uint8_t { forward, backward };
enum class Purpose : uint8_t { inference, training };

/// An activation that has a lifetime, and in the second walk an address.
template <class T>
struct Flow {
  int id = -1;
  Shape shape{};
};
/// What a layer that reads an activation gets. `grad` is empty where nobody needs it; `add` tells = from +=.
template <class T>
struct Read {
  View<const T> value{};
  View<T> grad{};
  bool add = false;
};
/// What a layer that writes an activation gets. `grad` holds the whole gradient when backward reaches this layer.
template <class T>
struct Made {
  View<T> value{};
  View<const T> grad{};
  Flow<T> flow{};
};

class Plan {
 public:
  Plan(Context&, Purpose);
  Plan(Plan&&) noexcept;
  Plan& operator=(Plan&&) noexcept;
  ~Plan();

  /// Walks twice, allocates in between. The walk must make the same calls both times.
  /// Throws Error(usage) naming the step when it does not, Error(memory) when the block cannot be had.
  void reserve(const std::function<void(Plan&)>& walk);

  Context& context() const noexcept;
  bool training() const noexcept;
  /// Bytes of the block, and of the live data at the worst moment: equal when the packing is perfect.
  size_t bytes() const noexcept;
  size_t peak_live_bytes() const noexcept;
  /// Bytes if nothing shared memory: what the plan saves is the difference.
  size_t unshared_bytes() const noexcept;

  // ---- called by layers while they are walked ----

  /// A new step of the forward pass; its backward is the mirror image.
  void next_step();
  /// This step writes an activation. kept_until = backward: this step's backward reads the value again.
  template <class T>
  Made<T> makes(Shape shape, Phase kept_until = Phase::forward, bool differentiable = true) {
    const Raw r = make(shape, sizeof(T), kept_until, differentiable);
    return {typed<T>(r.value, shape), View<const T>(typed<T>(r.grad, shape)), {r.id, shape}};
  }
  /// This step reads it; kept_until = backward: in its backward, too. The last reader in forward order runs first in
  /// backward and overwrites the gradient, all others add.
  template <class T>
  Read<T> reads(Flow<T> x, Phase kept_until) {
    const Raw r = read(x.id, kept_until, -1);
    return {View<const T>(typed<T>(r.value, x.shape)), typed<T>(r.grad, x.shape), r.add};
  }
  /// This step reads x in forward to make y = x + ...: the gradient of y passes to x unchanged. Where x and y can share
  /// one block, `grad` comes back empty and there is nothing to do in backward; else the layer copies or adds.
  template <class T>
  Read<T> passes(Flow<T> x, Flow<T> y) {
    const Raw r = read(x.id, Phase::forward, y.id);
    return {View<const T>(typed<T>(r.value, x.shape)), typed<T>(r.grad, x.shape), r.add};
  }
  /// The value stays readable after the last step.
  template <class T>
  View<const T> result(Flow<T> x) {
    return View<const T>(typed<T>(finish(x.id), x.shape));
  }
  /// Alive during that phase of this step only.
  template <class T = float>
  View<T> scratch(Shape shape, Phase used_in) {
    return typed<T>(temporary(shape, sizeof(T), used_in), shape);
  }
  /// Written in this step's forward, read in its backward.
  template <class T>
  View<T> kept(Shape shape) {
    return typed<T>(kept_block(shape, sizeof(T)), shape);
  }
  /// Alive as long as the plan: inputs, results, counters.
  template <class T>
  View<T> keeps(Shape shape) {
    return typed<T>(permanent(shape, sizeof(T)), shape);
  }
  /// keeps(), as the source of a flow that needs no gradient: the audio a model reads.
  template <class T>
  Made<T> source(Shape shape) {
    const Raw r = root(shape, sizeof(T));
    return {typed<T>(r.value, shape), {}, {r.id, shape}};
  }

 private:
  struct Raw {
    std::byte* value = nullptr;
    std::byte* grad = nullptr;
    int id = -1;
    bool add = false;
  };
  template <class T>
  static View<T> typed(std::byte* p, Shape shape) {
    return p == nullptr ? View<T>(nullptr, shape) : View<T>(reinterpret_cast<T*>(p), shape);
  }
  Raw make(Shape, size_t size, Phase kept_until, bool differentiable);
  Raw root(Shape, size_t size);
  Raw read(int id, Phase kept_until, int passes_to);
  std::byte* finish(int id);
  std::byte* temporary(Shape, size_t size, Phase);
  std::byte* kept_block(Shape, size_t size);
  std::byte* permanent(Shape, size_t size);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre
