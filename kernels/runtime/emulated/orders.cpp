// Runs a launch in one order or in several. A correct kernel gives the same bits in every order of threads and blocks.
// With NACRE_EMULATION=all a launch runs three times from the same device memory, and all memory of the device must be
// equal afterwards, if the device's buffers have at most 64 MiB. Otherwise a launch runs once; unless one order is
// asked for, successive launches take turns with the orders, and most repeats of a launch are not checked (Repeats).
#include "runtime/emulated/orders.h"

#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/emulated/memory.h"
#include "runtime/emulated/traffic.h"

namespace nacre::emulation {
namespace {

/// What the environment asks for, read once. Other words, and none, mean rotation.
struct Mode {
  bool all = false;
  std::optional<Order::Kind> fixed;  // empty: rotation
  uint64_t seed = 1;
};
const Mode& mode() {
  static const Mode m = [] {
    Mode read;
    if (const char* seed = std::getenv("NACRE_EMULATION_SEED")) read.seed = std::strtoull(seed, nullptr, 10);
    const char* text = std::getenv("NACRE_EMULATION");
    const std::string word = text != nullptr ? text : "";
    if (word == "all") read.all = true;
    if (word == "forward") read.fixed = Order::forward;
    if (word == "reverse") read.fixed = Order::reverse;
    if (word == "random") read.fixed = Order::random;
    return read;
  }();
  return m;
}
constexpr size_t compare_to = size_t{64} << 20;  // bytes of device memory that are copied to compare orders

/// Copies of device memory: before a launch, and after its first order where that changed it, which the other orders
/// must reproduce. One object is reused, so that launches do not map and clear new pages.
class Orders {
 public:
  // The calls of one launch: begin(), first run, note_first(); then for every other order restore(), run, as_first().
  // If a later run changes a buffer that the first run did not, as_first() returns false and the launch fails. So only
  // buffers that the first run changed need restoring.
  void begin(int device) {
    device_ = device;
    before_.clear(), after_.clear(), changed_.clear();
    for (const auto& [p, b] : buffers())
      if (b.device == device) before_.insert(before_.end(), p, p + b.bytes);
  }
  void note_first() {
    each([&](std::byte* p, size_t bytes, const std::byte* before) {
      const bool changed = std::memcmp(p, before, bytes) != 0;
      changed_.push_back(changed);
      if (changed) after_.insert(after_.end(), p, p + bytes);
    });
  }
  /// Restores the memory from before the launch, where it has changed.
  void restore() {
    size_t i = 0;
    each([&](std::byte* p, size_t bytes, const std::byte* before) {
      if (changed_[i++]) std::memcpy(p, before, bytes);
    });
  }
  /// Whether all memory has the bits that it had behind the first run.
  bool as_first() {
    size_t i = 0, at = 0;
    bool same = true;
    each([&](std::byte* p, size_t bytes, const std::byte* before) {
      const bool changed = changed_[i++];
      same = same && std::memcmp(p, changed ? after_.data() + at : before, bytes) == 0;
      if (changed) at += bytes;
    });
    return same;
  }

 private:
  // The copies hold the device's buffers one after the other, by address. A launch neither makes nor frees buffers.
  template <class F>
  void each(F f) {
    size_t at = 0;
    for (const auto& [p, b] : buffers()) {
      if (b.device != device_) continue;
      f(p, b.bytes, before_.data() + at);
      at += b.bytes;
    }
  }
  int device_ = 0;
  std::vector<std::byte> before_, after_;  // of all buffers; of those that the first run changed
  std::vector<bool> changed_;              // per buffer
};

/// How often each launch has run. A training step repeats its launches with equal arguments. A repeat accesses the same
/// bytes between the same barriers, unless data decide. So the first of eight is checked, and the others are not: the
/// checks take more time than the kernels.
class Repeats {
 public:
  /// Whether this launch shall be checked. Counts it.
  bool checked(const Kernel& kernel, dim3 grid, dim3 size, const SharedMemory& shared, unsigned edges) {
    // A launch is a fault if its memory was freed since the last one. So counting starts anew with each release.
    if (releases_ != released_buffers) counts_.clear(), releases_ = released_buffers;
    key_.assign(kernel.identity);
    const uint64_t numbers[] = {grid.x, grid.y, grid.z, size.x, size.y, size.z, shared.dynamic, edges};
    key_.append(reinterpret_cast<const char*>(numbers), sizeof(numbers));
    key_.push_back(static_cast<char>(shared.device));
    return counts_[key_]++ % check_one_of == 0;
  }

 private:
  static constexpr uint64_t check_one_of = 8;
  std::unordered_map<std::string, uint64_t> counts_;
  std::string key_;  // kept for its memory
  uint64_t releases_ = 0;
};

}  // namespace

void run_in_orders(const Kernel& kernel, dim3 grid, dim3 size, const SharedMemory& shared, unsigned edges,
                   uint64_t number) {
  const Mode& m = mode();
  // Differs from launch to launch, and is the same when a process is repeated.
  const uint64_t seed = m.seed * 1000003 + number;
  if (m.all) {
    size_t bytes = 0;
    for (const auto& [p, b] : buffers())
      if (b.device == shared.device) bytes += b.bytes;
    // Larger memories run once, in one order, as without `all`: copying them would take longer than the kernels.
    if (bytes <= compare_to) {
      static Orders* const orders = new Orders;
      orders->begin(shared.device);
      // Accesses are checked and counted in the first order alone. Whether two of them are separated by a barrier does
      // not depend on the order, and the checks take most of the time. Which order is first changes from launch to
      // launch.
      constexpr uint64_t count = 3;
      const Order all[count] = {{Order::random, seed}, {Order::reverse, 0}, {Order::forward, 0}};
      {
        const CountedLaunch counted(kernel.name);
        run_grid(kernel, grid, size, shared, edges, all[number % count]);
      }
      orders->note_first();
      for (uint64_t i = 1; i < count; ++i) {
        const Unwatched unwatched;
        orders->restore();
        run_grid(kernel, grid, size, shared, edges, all[(number + i) % count]);
        if (!orders->as_first())
          throw Fault(std::string("kernel ") + kernel.name +
                      ": other bits in another order of threads and blocks: a race, or a sum whose order is not fixed");
      }
      return;
    }
  }
  // Rotation: forward, reverse, random, by the number of the launch.
  const Order order{m.fixed.value_or(static_cast<Order::Kind>(number % 3)), seed};
  static auto* const repeats = new Repeats;
  std::optional<Unwatched> unchecked;
  if (watches_accesses && !m.fixed && !counts_traffic() && !repeats->checked(kernel, grid, size, shared, edges))
    unchecked.emplace();
  const CountedLaunch counted(kernel.name);
  run_grid(kernel, grid, size, shared, edges, order);
}

}  // namespace nacre::emulation
