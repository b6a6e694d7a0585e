// kernels/runtime.h on the CPU: kernels run by the scheduler, at once and in stream order. What a device would do
// behind the host's back is done as late as the contract allows, so that a missing wait shows.
//
//   NACRE_EMULATION=rotate                   another order of threads and blocks at every launch: the default
//   NACRE_EMULATION=forward|reverse|random   always this one
//   NACRE_EMULATION=all                      every launch runs in four orders, which must leave equal bits
//   NACRE_EMULATION_SEED=N                   of the random orders
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "context_impl.h"
#include "emulation/devices.h"
#include "emulation/scheduler.h"
#include "emulation/shadow.h"
#include "host.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace nacre::cuda {
namespace {

using emulation::Fault;
using emulation::Order;

// ---- device memory
// --------------------------------------------------------------------------------------------------------

struct Block {
  size_t bytes;
  enum Kind : uint8_t { heap, mapped, watched } kind;
};
std::mutex& memory_mutex() {
  static std::mutex m;
  return m;
}
std::map<std::byte*, Block>& blocks() {
  static auto* const b = new std::map<std::byte*, Block>;
  return *b;
}
constexpr size_t map_from = size_t{64} << 20;  // larger blocks are mapped: zeros that nobody touches cost nothing
constexpr size_t hide_to = 256 << 10;          // host code may not touch blocks up to this size (AddressSanitizer)

void hide(std::byte* p, const Block& b, bool hidden) {
#if defined(__SANITIZE_ADDRESS__)
  if (b.kind != Block::heap || b.bytes > hide_to) return;
  if (hidden)
    __asan_poison_memory_region(p, b.bytes);
  else
    __asan_unpoison_memory_region(p, b.bytes);
#else
  (void)p, (void)b, (void)hidden;
#endif
}
/// Device memory is open to kernels and copies, and closed to host code.
struct Open {
  Open() {
    memory_mutex().lock();
    for (const auto& [p, b] : blocks()) hide(p, b, false);
  }
  ~Open() {
    for (const auto& [p, b] : blocks()) hide(p, b, true);
    memory_mutex().unlock();
  }
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;
};

bool on_device(const void* at, size_t bytes) {
  auto next = blocks().upper_bound(static_cast<std::byte*>(const_cast<void*>(at)));
  if (next == blocks().begin()) return false;
  const auto& [p, b] = *std::prev(next);
  return static_cast<const std::byte*>(at) + bytes <= p + b.bytes;
}
void expect_device(const char* what, const void* at, size_t bytes) {
  if (bytes > 0 && !on_device(at, bytes)) throw Fault(std::string(what) + ": not device memory, or beyond its buffer");
}

// ---- orders
// -----------------------------------------------------------------------------------------------------------------

struct Mode {
  bool all = false;
  std::optional<Order::Kind> fixed;
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

/// Device memory before a launch, and after its first order where that changed it: what the other orders must leave.
/// One of them, used again, so that launches do not map and clear its pages anew.
class Orders {
 public:
  void begin() {
    before_.clear(), after_.clear(), changed_.clear();
    for (const auto& [p, b] : blocks()) before_.insert(before_.end(), p, p + b.bytes);
  }
  void note_first() {
    each([&](std::byte* p, size_t bytes, const std::byte* before) {
      const bool changed = std::memcmp(p, before, bytes) != 0;
      changed_.push_back(changed);
      if (changed) after_.insert(after_.end(), p, p + bytes);
    });
  }
  /// As before the launch. What has not changed need not be put back.
  void restore() {
    size_t i = 0;
    each([&](std::byte* p, size_t bytes, const std::byte* before) {
      if (changed_[i++]) std::memcpy(p, before, bytes);
    });
  }
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
  template <class F>
  void each(F f) {
    size_t at = 0;
    for (const auto& [p, b] : blocks()) {
      f(p, b.bytes, before_.data() + at);
      at += b.bytes;
    }
  }
  std::vector<std::byte> before_, after_;
  std::vector<bool> changed_;
};

void run(const Launch& how, const emulation::Kernel& kernel, uint64_t number) {
  const Mode& m = mode();
  const uint64_t seed = m.seed * 1000003 + number;
  if (m.all) {
    size_t bytes = 0;
    for (const auto& [p, b] : blocks()) bytes += b.bytes;
    if (bytes <= compare_to) {
      static Orders* const orders = new Orders;
      orders->begin();
      bool first = true;
      for (const Order o : {Order{Order::random, seed}, Order{Order::random, seed + 1}, Order{Order::reverse, 0},
                            Order{Order::forward, 0}}) {
        if (!first) orders->restore();
        emulation::run_grid(kernel, how.grid, how.block, how.shared_bytes, o);
        if (first)
          orders->note_first();
        else if (!orders->as_first())
          throw Fault(std::string("kernel ") + how.name +
                      ": other bits in another order of threads and blocks: a race, or a sum whose order is not fixed");
        first = false;
      }
      return;
    }
  }
  Order order{m.fixed.value_or(static_cast<Order::Kind>(number % 3)), seed};
  emulation::run_grid(kernel, how.grid, how.block, how.shared_bytes, order);
}

}  // namespace

// ---- Runtime
// ----------------------------------------------------------------------------------------------------------------

struct Runtime::Impl {
  struct Count {
    const char* name = nullptr;
    int64_t launches = 0;
  };
  std::vector<Count> counts;
  uint64_t number = 0;
  std::vector<std::function<void()>>* recording = nullptr;
  std::map<void*, std::vector<std::byte>> staged;  // uploads on their way

  void count(const char* name) {
    for (Count& c : counts)
      if (std::strcmp(c.name, name) == 0) {
        ++c.launches;
        return;
      }
    counts.push_back({name, 1});
  }
  template <class F>
  void now_or_later(F f) {
    if (recording != nullptr)
      recording->push_back(f);
    else
      f();
  }
  void refuse_in_capture(const char* what) const {
    if (recording != nullptr)
      throw Error(ErrorKind::usage, std::string("capture: the step calls ") + what + ", which a graph cannot hold");
  }
  void execute(const Launch& how, const emulation::Kernel& kernel) {
    const ForeignAllocations emulator;
    const Open memory;
    count(how.name);
    run(how, kernel, number++);
  }
};

Runtime::Runtime(int index) : impl_(std::make_unique<Impl>()) {
  if (index != 0)
    throw Error(ErrorKind::device, "device cuda:" + std::to_string(index) + ": this machine has one (emulated) device");
  impl_->counts.reserve(256);
}
Runtime::~Runtime() = default;

void Runtime::launch(const Launch& how, const KernelCall& call) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  Impl& r = *impl_;
  if (r.recording == nullptr) return r.execute(how, {how.name, call.run, call.tuple});
  r.recording->push_back([&r, how, run = call.run, kept = call.copy(call.tuple)] {
    r.execute(how, {how.name, run, kept.get()});
  });
}
void Runtime::zero(void* to, size_t bytes) {
  const auto work = [=] {
    const Open memory;
    expect_device("zero", to, bytes);
    if (bytes > 0) std::memset(to, 0, bytes);
  };
  if (impl_->recording == nullptr) return work();
  impl_->recording->push_back(work);
}
void Runtime::copy_on_device(void* to, const void* from, size_t bytes) {
  const auto work = [=] {
    const Open memory;
    expect_device("copy to", to, bytes);
    expect_device("copy from", from, bytes);
    if (bytes > 0) std::memmove(to, from, bytes);
  };
  if (impl_->recording == nullptr) return work();
  impl_->recording->push_back(work);
}
void Runtime::copy_to_device(void* to, const void* from, size_t bytes) {
  impl_->refuse_in_capture("write");
  const Open memory;
  expect_device("write to", to, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Runtime::copy_to_host(void* to, const void* from, size_t bytes) {
  impl_->refuse_in_capture("read");
  const Open memory;
  expect_device("read from", from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Runtime::synchronize() { impl_->refuse_in_capture("synchronize"); }
void Runtime::upload(void* to, const void* from, size_t bytes) { copy_to_device(to, from, bytes); }

std::function<void()> Runtime::capture(const std::function<void()>& step) {
  if (impl_->recording != nullptr) throw Error(ErrorKind::usage, "capture: inside another capture");
  auto recorded = std::make_shared<std::vector<std::function<void()>>>();
  impl_->recording = recorded.get();
  try {
    step();
  } catch (...) {
    impl_->recording = nullptr;
    throw;
  }
  impl_->recording = nullptr;
  return [recorded] {
    for (const auto& f : *recorded) f();
  };
}

int64_t Runtime::launches(std::string_view name) const {
  int64_t n = 0;
  for (const Impl::Count& c : impl_->counts)
    if (name.empty() || name == c.name) n += c.launches;
  return n;
}
const char* Runtime::description() const { return "emulated on the CPU"; }
const DeviceLimits& Runtime::limits() const { return emulation::device().limits; }
void* Runtime::stream() const { return nullptr; }

// Kernels run when they are launched, so the clock of the host is the device's.
struct Event::Impl {
  std::optional<std::chrono::steady_clock::time_point> at;
};
Event::Event() : impl_(std::make_unique<Impl>()) {}
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
void Event::record(Context& ctx) {
  runtime(ctx).impl().refuse_in_capture("an event");
  impl_->at = std::chrono::steady_clock::now();
}
double Event::seconds_since(const Event& start) const {
  if (!impl_->at || !start.impl_->at) throw Fault("event: never recorded");
  return std::chrono::duration<double>(*impl_->at - *start.impl_->at).count();
}

int device_count(std::string*) { return 1; }

void* device_allocate(int, size_t bytes) {
  const ForeignAllocations emulator;
  const std::lock_guard lock(memory_mutex());
  Block b{bytes, Block::heap};
  void* p = nullptr;
  if (bytes >= map_from) {
    b.kind = Block::mapped;
    p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
  } else if (emulation::watches_accesses) {
    b.kind = Block::watched;
    p = emulation::watched_allocate(bytes);
    if (p == nullptr) return nullptr;
  } else {
    // Not rounded up: an access just beyond the end must not hit the rest of a line.
    if (posix_memalign(&p, 256, bytes) != 0) return nullptr;
    std::memset(p, 0, bytes);
  }
  blocks()[static_cast<std::byte*>(p)] = b;
  hide(static_cast<std::byte*>(p), b, true);
  return p;
}
void device_release(void* p) noexcept {
  if (p == nullptr) return;
  const std::lock_guard lock(memory_mutex());
  const auto found = blocks().find(static_cast<std::byte*>(p));
  if (found == blocks().end()) return;
  const Block b = found->second;
  hide(found->first, b, false);
  blocks().erase(found);
  if (b.kind == Block::mapped) munmap(p, b.bytes);
  if (b.kind == Block::watched) emulation::watched_release(p, b.bytes);
  if (b.kind == Block::heap) std::free(p);
}

// ---- Fft: in double, by the definition's own recursion
// -----------------------------------------------------------------------

struct Fft::Impl {
  Impl(int64_t n, int64_t b) : length(n), batch(b), roots(static_cast<size_t>(n)), work(2 * static_cast<size_t>(n)) {
    for (int64_t i = 0; i < n; ++i) {
      const double angle = -2 * M_PI * static_cast<double>(i) / static_cast<double>(n);
      roots[static_cast<size_t>(i)] = {std::cos(angle), std::sin(angle)};
    }
  }
  using Complex = std::complex<double>;
  int64_t length, batch;
  std::vector<Complex> roots, work;

  /// out = DFT of in[0], in[stride], ...; splits by the smallest prime factor.
  void transform(const Complex* in, Complex* out, int64_t n, int64_t stride) {
    if (n == 1) {
      *out = *in;
      return;
    }
    int64_t p = 2;
    while (n % p != 0) ++p;
    const int64_t m = n / p, step = length / n;
    for (int64_t i = 0; i < p; ++i) transform(in + i * stride, out + i * m, m, stride * p);
    std::vector<Complex> column(static_cast<size_t>(p));
    for (int64_t k = 0; k < m; ++k) {
      for (int64_t i = 0; i < p; ++i) column[static_cast<size_t>(i)] = out[i * m + k];
      for (int64_t q = 0; q < p; ++q) {
        Complex sum = 0;
        for (int64_t i = 0; i < p; ++i)
          sum += column[static_cast<size_t>(i)] * roots[static_cast<size_t>(i * (k + q * m) % n * step)];
        out[q * m + k] = sum;
      }
    }
  }
  void forward(const float* real, float* spectrum) {
    const int64_t bins = length / 2 + 1;
    for (int64_t b = 0; b < batch; ++b) {
      Complex *in = work.data(), *out = in + length;
      for (int64_t i = 0; i < length; ++i) in[i] = static_cast<double>(real[b * length + i]);
      transform(in, out, length, 1);
      for (int64_t k = 0; k < bins; ++k) {
        spectrum[2 * (b * bins + k)] = static_cast<float>(out[k].real());
        spectrum[2 * (b * bins + k) + 1] = static_cast<float>(out[k].imag());
      }
    }
  }
  void inverse(float* spectrum, float* real) {
    const int64_t bins = length / 2 + 1;
    for (int64_t b = 0; b < batch; ++b) {
      Complex *in = work.data(), *out = in + length;
      for (int64_t k = 0; k < length; ++k) {
        const int64_t mirrored = k < bins ? k : length - k;
        const float* c = spectrum + 2 * (b * bins + mirrored);
        // The conjugate of what it transforms: the roots are those of the forward direction. As in cuFFT, the imaginary
        // parts of the first bin and, for even lengths, the last do not count.
        const bool real_bin = mirrored == 0 || 2 * mirrored == length;
        const double im = real_bin ? 0 : static_cast<double>(c[1]);
        in[k] = {static_cast<double>(c[0]), k < bins ? -im : im};
      }
      transform(in, out, length, 1);
      for (int64_t i = 0; i < length; ++i) real[b * length + i] = static_cast<float>(out[i].real());
    }
    std::memset(spectrum, 0xff, static_cast<size_t>(2 * batch * bins) * sizeof(float));  // cuFFT overwrites it, too
  }
};
Fft::Fft(Context& ctx, int64_t length, int64_t batch) : impl_(std::make_unique<Impl>(length, batch)) {
  runtime(ctx).impl().refuse_in_capture("a transform's constructor");
}
Fft::Fft(Fft&&) noexcept = default;
Fft& Fft::operator=(Fft&&) noexcept = default;
Fft::~Fft() = default;
void Fft::forward(Context& ctx, const float* real, float* spectrum) {
  Runtime::Impl& r = runtime(ctx).impl();
  r.now_or_later([&r, f = impl_.get(), real, spectrum] {
    const ForeignAllocations emulator;
    const Open memory;
    r.count("cufft");
    expect_device("cufft", real, static_cast<size_t>(f->batch * f->length) * sizeof(float));
    expect_device("cufft", spectrum, static_cast<size_t>(f->batch * (f->length / 2 + 1)) * 2 * sizeof(float));
    f->forward(real, spectrum);
  });
}
void Fft::inverse(Context& ctx, float* spectrum, float* real) {
  Runtime::Impl& r = runtime(ctx).impl();
  r.now_or_later([&r, f = impl_.get(), real, spectrum] {
    const ForeignAllocations emulator;
    const Open memory;
    r.count("cufft");
    expect_device("cufft", real, static_cast<size_t>(f->batch * f->length) * sizeof(float));
    expect_device("cufft", spectrum, static_cast<size_t>(f->batch * (f->length / 2 + 1)) * 2 * sizeof(float));
    f->inverse(spectrum, real);
  });
}

}  // namespace nacre::cuda
