#include "nacre/nn/plan.h"

#include <algorithm>
#include <string>
#include <vector>

namespace nacre {
namespace {

constexpr size_t alignment = 256;
size_t rounded(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

struct Plan::Impl {
  enum class Walk { none, first, second };
  /// A moment in a step. Forward of step s is at s, its backward at 2 steps - 1 - s; unknown until the first walk is
  /// over.
  struct Moment {
    int step = 0;
    Phase phase = Phase::forward;
  };
  struct Block {
    size_t bytes = 0, offset = 0;
    std::vector<Moment> moments;  // alive from the first to the last of these
    bool always = false;
    int begin = 0, end = 0;
  };
  struct Reading {
    int step = 0;
    int passes_to = -1;
    bool aliased = false;
  };
  struct Activation {
    Shape shape;
    size_t bytes = 0;
    int made = 0;
    bool differentiable = true;
    int value = -1, grad = -1;  // blocks
    std::vector<Reading> readings;
    size_t next_reading = 0;  // second walk
  };

  explicit Impl(Context& c, Purpose p) : ctx(c), purpose(p) {}

  Context& ctx;
  Purpose purpose;
  Walk walk = Walk::none;
  int step = -1, steps = 0;
  std::vector<Activation> activations;
  std::vector<Block> blocks;
  size_t next_activation = 0;
  std::vector<int> calls;  // block of the n-th scratch, kept or permanent call
  size_t next_call = 0;
  Memory memory;
  size_t total = 0, live = 0, unshared = 0;

  bool training() const { return purpose == Purpose::training; }
  int time(Moment m) const { return m.phase == Phase::forward ? m.step : 2 * steps - 1 - m.step; }
  std::byte* address(int block) {
    if (walk != Walk::second || block < 0) return nullptr;
    return memory.data() + blocks[static_cast<size_t>(block)].offset;
  }
  int add_block(size_t bytes, std::vector<Moment> moments, bool always = false) {
    blocks.push_back({rounded(bytes), 0, std::move(moments), always, 0, 0});
    return static_cast<int>(blocks.size()) - 1;
  }
  [[noreturn]] void walks_differ() const {
    throw Error(ErrorKind::usage, "plan: the second walk differs from the first at step " + std::to_string(step));
  }
  Activation& at(int id) {
    if (id < 0 || static_cast<size_t>(id) >= activations.size())
      throw Error(ErrorKind::usage, "plan: step " + std::to_string(step) + " reads an activation that no step made");
    return activations[static_cast<size_t>(id)];
  }
  /// Which block of the n-th call of this kind; made in the first walk.
  std::byte* call(size_t bytes, std::vector<Moment> moments, bool always) {
    if (bytes == 0) return nullptr;
    if (walk == Walk::first) {
      calls.push_back(add_block(bytes, std::move(moments), always));
      return nullptr;
    }
    if (next_call >= calls.size() || blocks[static_cast<size_t>(calls[next_call])].bytes != rounded(bytes))
      walks_differ();
    return address(calls[next_call++]);
  }
  void lay_out();
  void share_gradients();
  void pack();
};

/// Gradients: who overwrites, who adds, and which pass through without a copy.
void Plan::Impl::share_gradients() {
  if (!training()) return;
  // Later activations first: y's gradient block exists before x asks to share it.
  for (size_t i = activations.size(); i-- > 0;) {
    Activation& x = activations[i];
    if (!x.differentiable || x.readings.empty()) continue;
    Reading& last = x.readings.back();
    const bool alone = x.readings.size() < 2 || x.readings[x.readings.size() - 2].step != last.step;
    if (last.passes_to >= 0 && alone) {
      const Activation& y = activations[static_cast<size_t>(last.passes_to)];
      if (y.made == last.step && y.grad >= 0 && y.bytes == x.bytes) {
        last.aliased = true;
        x.grad = y.grad;
      }
    }
    if (x.grad < 0) x.grad = add_block(x.bytes, {});
    Block& block = blocks[static_cast<size_t>(x.grad)];
    block.moments.push_back({last.step, Phase::backward});
    block.moments.push_back({x.made, Phase::backward});
  }
}

void Plan::Impl::lay_out() {
  steps = step + 1;
  share_gradients();
  const int last_moment = training() ? 2 * steps - 1 : steps - 1;
  for (Block& b : blocks) {
    if (b.always || b.moments.empty()) {
      b.begin = 0, b.end = std::max(last_moment, 0);
      continue;
    }
    b.begin = b.end = time(b.moments.front());
    for (const Moment& m : b.moments) {
      b.begin = std::min(b.begin, time(m));
      b.end = std::max(b.end, time(m));
    }
  }
  pack();
}

/// Largest first, each at the lowest offset that is free during its whole life.
void Plan::Impl::pack() {
  std::vector<size_t> order(blocks.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  std::vector<const Block*> placed, near;
  total = live = unshared = 0;
  for (const size_t i : order) {
    Block& b = blocks[i];
    near.clear();
    for (const Block* p : placed)
      if (p->begin <= b.end && b.begin <= p->end) near.push_back(p);
    std::sort(near.begin(), near.end(), [](const Block* p, const Block* q) { return p->offset < q->offset; });
    size_t offset = 0;
    for (const Block* p : near) {
      if (offset + b.bytes <= p->offset) break;
      offset = std::max(offset, p->offset + p->bytes);
    }
    b.offset = offset;
    total = std::max(total, offset + b.bytes);
    unshared += b.bytes;
    placed.push_back(&b);
  }
  for (const Block& moment : blocks) {  // the live sum can only rise where some block begins
    size_t sum = 0;
    for (const Block& b : blocks)
      if (b.begin <= moment.begin && moment.begin <= b.end) sum += b.bytes;
    live = std::max(live, sum);
  }
}

Plan::Plan(Context& ctx, Purpose purpose) : impl_(std::make_unique<Impl>(ctx, purpose)) {}
Plan::Plan(Plan&&) noexcept = default;
Plan& Plan::operator=(Plan&&) noexcept = default;
Plan::~Plan() = default;

void Plan::reserve(const std::function<void(Plan&)>& walk) {
  impl_ = std::make_unique<Impl>(impl_->ctx, impl_->purpose);
  impl_->walk = Impl::Walk::first;
  walk(*this);
  impl_->lay_out();
  impl_->memory = Memory(impl_->ctx, impl_->total);
  impl_->walk = Impl::Walk::second;
  impl_->step = -1;
  walk(*this);
  if (impl_->step + 1 != impl_->steps || impl_->next_activation != impl_->activations.size() ||
      impl_->next_call != impl_->calls.size())
    impl_->walks_differ();
}

Context& Plan::context() const noexcept { return impl_->ctx; }
bool Plan::training() const noexcept { return impl_->training(); }
size_t Plan::bytes() const noexcept { return impl_->total; }
size_t Plan::peak_live_bytes() const noexcept { return impl_->live; }
size_t Plan::unshared_bytes() const noexcept { return impl_->unshared; }
void Plan::next_step() { ++impl_->step; }

Plan::Raw Plan::make(Shape shape, size_t size, Phase kept_until, bool differentiable) {
  Impl& p = *impl_;
  const size_t bytes = static_cast<size_t>(shape.elements()) * size;
  if (p.walk == Impl::Walk::first) {
    Impl::Activation a;
    a.shape = shape;
    a.bytes = bytes;
    a.made = p.step;
    a.differentiable = differentiable;
    std::vector<Impl::Moment> moments{{p.step, Phase::forward}};
    if (p.training() && kept_until == Phase::backward) moments.push_back({p.step, Phase::backward});
    a.value = p.add_block(bytes, std::move(moments));
    p.activations.push_back(std::move(a));
    return {nullptr, nullptr, static_cast<int>(p.activations.size()) - 1, false};
  }
  if (p.next_activation >= p.activations.size()) p.walks_differ();
  const int id = static_cast<int>(p.next_activation++);
  const Impl::Activation& a = p.at(id);
  if (a.made != p.step || a.bytes != bytes) p.walks_differ();
  return {p.address(a.value), p.address(a.grad), id, false};
}

Plan::Raw Plan::root(Shape shape, size_t size) {
  const Raw r = make(shape, size, Phase::forward, false);
  if (impl_->walk == Impl::Walk::first)
    impl_->blocks[static_cast<size_t>(impl_->activations.back().value)].always = true;
  return r;
}

Plan::Raw Plan::read(int id, Phase kept_until, int passes_to) {
  Impl& p = *impl_;
  Impl::Activation& a = p.at(id);
  if (p.walk == Impl::Walk::first) {
    auto& moments = p.blocks[static_cast<size_t>(a.value)].moments;
    moments.push_back({p.step, Phase::forward});
    if (p.training() && kept_until == Phase::backward) moments.push_back({p.step, Phase::backward});
    if (p.training()) a.readings.push_back({p.step, passes_to, false});
    return {nullptr, nullptr, id, false};
  }
  Raw r{p.address(a.value), nullptr, id, false};
  if (!p.training()) return r;
  if (a.next_reading >= a.readings.size() || a.readings[a.next_reading].step != p.step) p.walks_differ();
  const Impl::Reading& reading = a.readings[a.next_reading++];
  if (reading.aliased || !a.differentiable) return r;
  r.grad = p.address(a.grad);
  r.add = a.next_reading < a.readings.size();
  return r;
}

std::byte* Plan::finish(int id) {
  Impl& p = *impl_;
  Impl::Activation& a = p.at(id);
  if (p.walk == Impl::Walk::first) p.blocks[static_cast<size_t>(a.value)].always = true;
  return p.address(a.value);
}

std::byte* Plan::temporary(Shape shape, size_t size, Phase phase) {
  if (phase == Phase::backward && !impl_->training()) return nullptr;
  return impl_->call(static_cast<size_t>(shape.elements()) * size, {{impl_->step, phase}}, false);
}
std::byte* Plan::kept_block(Shape shape, size_t size) {
  if (!impl_->training()) return nullptr;
  return impl_->call(static_cast<size_t>(shape.elements()) * size,
                     {{impl_->step, Phase::forward}, {impl_->step, Phase::backward}}, false);
}
std::byte* Plan::permanent(Shape shape, size_t size) {
  return impl_->call(static_cast<size_t>(shape.elements()) * size, {}, true);
}

}  // namespace nacre
