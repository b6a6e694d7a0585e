// The class Plan: walks, layout of memory, runs, and the calls of Plan and Step that layers make. Between the two
// walks, lay_out() finds which backward passes run, who writes each gradient first, which gradients share memory, and
// where each block lies. Records: plan_impl.h. Costs and receptive fields: survey.cpp. Streams: plan_stream.cpp.
// Design: docs/decisions/plan-records-the-program.md.
#include "nacre/ops/gradient_sums.h"
#include "nn/plan_impl.h"

namespace nacre {

/// Ends the innermost walk. In reverse order of its steps, it assigns the moments of the backward passes (first walk),
/// or appends the backward closures to the program (second walk).
void Plan::Impl::end_walk() {
  settle();
  Open w = std::move(open.back());
  open.pop_back();
  if (walk == Walk::first) {
    for (size_t i = w.steps.size(); i-- > 0;) nth(steps, w.steps[i]).backward = clock++;
    ++clock;  // one moment for the functions registered with then()
    return;
  }
  // The steps are reversed; the closures of one step (backward, then update) keep their order.
  for (size_t end = w.later.size(); end > 0;) {
    size_t begin = end;
    while (begin > 0 && w.later[begin - 1].step == w.later[end - 1].step) --begin;
    const int step = w.later[begin].step;
    for (size_t i = begin; i < end; ++i) program.push_back(std::move(w.later[i]));
    if (nth(steps, step).finishes_sums)
      program.push_back({finish_gradient_sums, step, nth(steps, step).walk, Kind::backward});
    end = begin;
  }
  for (Op& op : w.last) program.push_back(std::move(op));
}

/// Finds the steps that a gradient reaches. Gradients start at steps without outputs (losses, or steps without inputs
/// as well, such as clearing gradients). They reach a step if an active step reads one of its outputs. A step
/// that stays inactive gets no gradient memory and no backward closure.
void Plan::Impl::find_active() {
  if (!training()) return;
  std::vector<char> wanted(activations.size(), 0);
  // All readers of an output are later steps, so `wanted` is complete for the outputs of a step when it is visited.
  for (size_t s = steps.size(); s-- > 0;) {
    StepRecord& step = steps[s];
    if (step.outputs.empty())
      step.active = step.inputs.empty() || differentiable(step);
    else
      step.active = std::any_of(step.outputs.begin(), step.outputs.end(), [&](int id) { return nth(wanted, id) != 0; });
    if (!step.active) continue;
    for (const int id : step.inputs) {
      Activation& x = nth(activations, id);
      if (!x.differentiable) continue;
      nth(wanted, id) = 1;
      for (Reading& r : x.readings)
        if (r.step == static_cast<int>(s)) r.writes = true;
    }
  }
}

/// Sets which writers of a gradient overwrite and which add. The last reader in forward order runs first in backward
/// order and overwrites.
void Plan::Impl::order_writers() {
  for (Activation& x : activations) {
    // Readings are in forward order, because the first walk appends them while it makes the steps.
    bool later = false;
    for (size_t i = x.readings.size(); i-- > 0;)
      if (x.readings[i].writes) x.readings[i].add = std::exchange(later, true);
  }
  // For weights this holds per walk, because each walk runs its own backward passes.
  std::map<std::pair<int, const Weight*>, bool> later;
  for (size_t i = uses.size(); i-- > 0;) {
    WeightUse& u = uses[i];
    const StepRecord& s = nth(steps, u.step);
    // The first write replaces the gradient of the last run, so a weight that is used needs no clearing
    // (docs/decisions/gradients-at-first-use.md).
    u.writes = s.active;
    if (u.writes) u.add = std::exchange(later[{s.walk, u.weight}], true);
  }
}

/// Assigns gradient blocks. x shares the block of y where the gradient of y passes to x unchanged.
void Plan::Impl::share_gradients() {
  // In reverse order, so that y has its block before x, which y was made from, asks to share it.
  for (size_t i = activations.size(); i-- > 0;) {
    Activation& x = activations[i];
    std::vector<Reading*> writers;
    for (Reading& r : x.readings)
      if (r.writes) writers.push_back(&r);
    if (writers.empty()) continue;
    Reading& last = *writers.back();
    // `last` is the first writer in backward order. It may share if it also made y: no later backward pass reads y's
    // gradient, so the remaining writers of x can add to it in place. Of two activations that a step passes y's
    // gradient to, one shares it. x needs its own block if `last` reads x a second time, or if x is a source, whose
    // gradient stays readable.
    const bool alone = writers.size() < 2 || writers[writers.size() - 2]->step != last.step;
    if (last.passes_to >= 0 && alone && x.made >= 0) {
      Activation& y = nth(activations, last.passes_to);
      if (y.made == last.step && y.grad >= 0 && y.bytes == x.bytes && !std::exchange(y.shared, true)) {
        last.aliased = true;
        x.grad = y.grad;
      }
    }
    // The gradient is alive from its first writer to the backward pass of the step that made x, which is its only
    // reader. If x shares the block of y, these moments extend the lifetime that y gave it.
    if (x.grad < 0) x.grad = add_block(x.bytes, {}, x.made < 0);
    Block& block = nth(blocks, x.grad);
    block.moments.push_back({last.step, Until::backward});
    if (x.made >= 0) block.moments.push_back({x.made, Until::backward});
  }
}

/// Decides after which backward passes parts of gradients are added, and keeps the parts until then: when they are
/// most_parts, and at the end of a walk.
void Plan::Impl::place_sums() {
  std::vector<int> order;
  for (size_t i = 0; i < steps.size(); ++i)
    if (!steps[i].parts.empty() && steps[i].active && steps[i].trains) order.push_back(static_cast<int>(i));
  // The backward passes of a walk follow each other without those of another.
  std::sort(order.begin(), order.end(), [&](int a, int b) { return nth(steps, a).backward < nth(steps, b).backward; });
  std::vector<int> waiting;
  size_t bytes = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    StepRecord& s = nth(steps, order[i]);
    for (const int block : s.parts) waiting.push_back(block), bytes += nth(blocks, block).bytes;
    if (bytes < most_parts && i + 1 < order.size() && nth(steps, order[i + 1]).walk == s.walk) continue;
    s.finishes_sums = true;
    for (const int block : waiting) nth(blocks, block).moments.push_back({order[i], Until::backward});
    waiting.clear(), bytes = 0;
  }
}

/// Computes the lifetimes of all blocks and packs them.
void Plan::Impl::lay_out() {
  // The order is fixed: the others need to know which steps are active, and share_gradients() needs the writers.
  find_active();
  order_writers();
  share_gradients();
  count();
  place_sums();
  for (Block& b : blocks) {
    if (b.always || b.moments.empty()) {
      // Memory that is read after the run, or in the next one, shares its addresses with nothing.
      b.begin = 0, b.end = clock;
      continue;
    }
    // A block that only backward passes use is not needed if none of them runs.
    const bool for_backward = std::all_of(b.moments.begin(), b.moments.end(),
                                          [](const Moment& m) { return m.pass == Until::backward; });
    b.needed = !for_backward || std::any_of(b.moments.begin(), b.moments.end(),
                                            [&](const Moment& m) { return nth(steps, m.step).active; });
    // Several calls appended the moments, so they are not in order of time.
    b.begin = b.end = time(b.moments.front());
    for (const Moment& m : b.moments) {
      b.begin = std::min(b.begin, time(m));
      b.end = std::max(b.end, time(m));
    }
  }
  pack();
}

/// First fit by decreasing size: each block gets the lowest offset that is free during its whole lifetime.
void Plan::Impl::pack() {
  // Large blocks come first, while there are few gaps; small ones fill the gaps later. The stable sort leaves equal
  // sizes in order of creation, so equal walks get equal addresses.
  std::vector<size_t> order;
  for (size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i].needed) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  std::vector<const Block*> placed, near;
  total = live = unshared = 0;
  for (const size_t i : order) {
    Block& b = blocks[i];
    near.clear();
    // Lifetimes that share one moment overlap: the step of that moment may read one block while it writes the other.
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
  for (const Block* moment : placed) {  // the live size only rises where a block begins
    size_t sum = 0;
    for (const Block* b : placed)
      if (b->begin <= moment->begin && moment->begin <= b->end) sum += b->bytes;
    live = std::max(live, sum);
  }
}

/// Saves (or restores) the memory that steps change before the run is complete.
void Plan::Impl::keep_state(bool restore) {
  // The copies lie in `undo` back to back, in the order of `changed`.
  auto* at = reinterpret_cast<float*>(undo.data());
  for (const View<float>& v : changed) {
    const View<float> copy(at, v.shape);
    if (restore)
      ctx.copy<float>(copy, v);
    else
      ctx.copy<float>(v, copy);
    at += v.elements();
  }
}

Plan::Plan(Context& ctx, Purpose purpose, int64_t block_frames)
    : impl_(std::make_unique<Impl>(ctx, purpose, block_frames)) {
  if (purpose == Purpose::streaming ? block_frames < 1 : block_frames != 0)
    throw Error(ErrorKind::usage, "plan: a block of " + std::to_string(block_frames) + " frames, expected " +
                                      (purpose == Purpose::streaming ? "at least 1" : "0: this plan has no blocks"));
}
Plan::Plan(Plan&&) noexcept = default;
Plan& Plan::operator=(Plan&&) noexcept = default;
Plan::~Plan() = default;

// Leaves the records and the layout, but no memory. If the walk throws, the records stay incomplete until the next
// reserve() or survey() replaces them.
void Plan::first_walk(const std::function<void(Plan&)>& walk) {
  Impl& p = *impl_;
  p.walk = Impl::Walk::first;
  p.begin_walk();
  walk(*this);
  p.end_walk();
  p.lay_out();
  p.walk = Impl::Walk::none;
}
void Plan::survey(const std::function<void(Plan&)>& walk) {
  impl_ = std::make_unique<Impl>(impl_->ctx, impl_->purpose, impl_->block_frames);
  impl_->surveys = true;
  first_walk(walk);
}
void Plan::reserve(const std::function<void(Plan&)>& walk) {
  impl_ = std::make_unique<Impl>(impl_->ctx, impl_->purpose, impl_->block_frames);
  first_walk(walk);
  Impl& p = *impl_;
  // One allocation for everything. It is zeroed, which persistent() and carries() guarantee.
  p.memory = Memory(p.ctx, p.total);
  p.walk = Impl::Walk::second;
  // Steps, walks and activations are numbered again from the beginning. Equal numbers in both walks are what connects
  // the records of the first walk with the calls of the second.
  p.newest = -1, p.walks = 0;
  p.labels.reset();
  p.begin_walk();
  walk(*this);
  // A second walk that makes fewer calls is found only here; all other differences are found at the call.
  if (p.newest + 1 != static_cast<int>(p.steps.size()) || p.next_activation != p.activations.size() ||
      p.next_call != p.calls.size() || p.next_use != p.uses.size())
    p.walks_differ();
  p.end_walk();
  p.walk = Impl::Walk::none;
  int64_t elements = 0;
  for (const View<float>& v : p.changed) elements += v.elements();
  // The copies are allocated now because a run must not allocate.
  p.undo = Memory(p.ctx, static_cast<size_t>(elements) * sizeof(float));
}

namespace {
/// Sums that wait must not outlive a run that ends early, because the plan may free their parts.
// After a complete run nothing waits: place_sums() ends every walk with a sum.
class SumsOfRun {
 public:
  explicit SumsOfRun(Context& ctx) : ctx_(ctx) {}
  SumsOfRun(const SumsOfRun&) = delete;
  SumsOfRun& operator=(const SumsOfRun&) = delete;
  ~SumsOfRun() { forget_gradient_sums(ctx_); }

 private:
  Context& ctx_;
};
}  // namespace

void Plan::run() {
  Impl& p = *impl_;
  const SumsOfRun sums(p.ctx);
  for (const Impl::Op& op : p.program)
    if (p.runs(op)) op.run(p.ctx);
}
void Plan::set_inner(bool on) noexcept { impl_->runs_inner = on; }
bool Plan::run(const std::function<bool()>& give_up) {
  Impl& p = *impl_;
  const SumsOfRun sums(p.ctx);
  p.keep_state(false);
  // After the first then() weights have moved, and these are not copied. So the run completes, and the state is always
  // that before a whole step or after it.
  bool final = false;
  for (const Impl::Op& op : p.program) {
    if (!final && give_up()) {
      p.keep_state(true);
      return false;
    }
    if (!p.runs(op)) continue;
    op.run(p.ctx);
    final = final || op.kind == Impl::Kind::then;
  }
  return true;
}
void Plan::run_until(int step, Until pass) {
  Impl& p = *impl_;
  const Impl::Kind last = pass == Until::forward ? Impl::Kind::forward : Impl::Kind::backward;
  // `end` is behind the last closure of this pass, in case that the step recorded several.
  size_t end = p.program.size();
  while (end > 0 && !(p.program[end - 1].step == step && p.program[end - 1].kind == last)) --end;
  if (end == 0)
    throw Error(ErrorKind::usage, "plan: run_until: step " + std::to_string(step) + " has no " +
                                      (pass == Until::forward ? "forward" : "backward") + " pass");
  // Forward passes change no state, so a run of forward passes alone saves the copies.
  const bool changes = pass == Until::backward;
  const SumsOfRun sums(p.ctx);
  if (changes) p.keep_state(false);
  for (size_t i = 0; i < end; ++i) {
    const Impl::Op& op = p.program[i];
    // An inner walk trains other parameters, such as those of a discriminator, and is left out.
    if (op.walk == 0 && (op.kind == Impl::Kind::forward || op.kind == Impl::Kind::backward)) op.run(p.ctx);
  }
  finish_gradient_sums(p.ctx);
  if (changes) p.keep_state(true);
}
void Plan::run_gradients() {
  Impl& p = *impl_;
  const SumsOfRun sums(p.ctx);
  p.keep_state(false);
  // With inner walks, unlike run_until(): their parameters have gradients, too.
  for (const Impl::Op& op : p.program)
    if (op.kind == Impl::Kind::forward || op.kind == Impl::Kind::backward) op.run(p.ctx);
  p.keep_state(true);
}
Context& Plan::context() const noexcept { return impl_->ctx; }
bool Plan::training() const noexcept { return impl_->training(); }
bool Plan::recording() const noexcept { return impl_->walk == Impl::Walk::second; }
size_t Plan::bytes() const noexcept { return impl_->total; }
size_t Plan::peak_live_bytes() const noexcept { return impl_->live; }
size_t Plan::unshared_bytes() const noexcept { return impl_->unshared; }
const std::vector<std::string>& Plan::steps() const noexcept { return impl_->names; }

Step Plan::step(std::string name) {
  Impl& p = *impl_;
  p.expect_walking("step()");
  p.settle();
  ++p.newest;
  if (p.walk == Impl::Walk::first) {
    p.steps.push_back({.name = name, .walk = p.open.back().number, .forward = p.clock++});
    p.names.push_back(std::move(name));
  } else if (p.newest >= static_cast<int>(p.steps.size()) || Impl::nth(p.steps, p.newest).name != name ||
             Impl::nth(p.steps, p.newest).walk != p.open.back().number) {
    p.walks_differ();
  }
  p.open.back().steps.push_back(p.newest);
  p.unsettled = p.newest;
  return {*this, p.newest};
}
int Plan::last_step() const noexcept { return impl_->newest; }

void Plan::inner(const std::function<void(Plan&)>& walk) {
  impl_->expect_walking("inner()");
  impl_->begin_walk();
  walk(*this);
  impl_->end_walk();
}

Frozen Plan::freeze(const Parameters& parameters) {
  Impl* const p = impl_.get();
  // The same parameters may be frozen twice, in nested scopes. Ending a scope removes the newest entry only.
  p->frozen.push_back(&parameters);
  return Frozen([p, which = &parameters] {
    p->frozen.erase(std::find(p->frozen.rbegin(), p->frozen.rend(), which).base() - 1);
  });
}

bool Plan::trains(const Weight& w) const {
  const Impl& p = *impl_;
  p.expect_walking("trains()");
  // The layout sets `writes`, so the answer is false throughout the first walk.
  return std::any_of(p.uses.begin(), p.uses.end(), [&](const Impl::WeightUse& u) {
    return u.writes && u.weight == &w && Impl::nth(p.steps, u.step).walk == p.open.back().number;
  });
}

void Plan::set_labels(View<const int32_t> labels) {
  impl_->expect_walking("set_labels()");
  impl_->labels = labels;
}
View<const int32_t> Plan::labels(int64_t batch) {
  const Shape expected{.channels = batch};
  if (!impl_->labels) return persistent<int32_t>(expected);
  if (impl_->labels->shape != expected)
    impl_->refuse("labels is " + str(impl_->labels->shape) + ", expected " + str(expected));
  return *impl_->labels;
}

void Plan::then(std::function<void(Context&)> run) {
  Impl& p = *impl_;
  p.expect_walking("then()");
  if (p.walk == Impl::Walk::second && p.training())
    p.open.back().last.push_back({std::move(run), -1, p.open.back().number, Impl::Kind::then});
}

Step::Raw Plan::root(Shape shape, Storage storage, bool with_gradient) {
  Impl& p = *impl_;
  p.expect_walking("source()");
  p.settle();
  const size_t bytes = static_cast<size_t>(shape.elements()) * bytes_per_element(storage);
  if (p.walk == Impl::Walk::first) {
    // The block is always alive, because the caller fills it between runs.
    p.activations.push_back({.shape = shape,
                             .storage = storage,
                             .bytes = bytes,
                             .walk = p.open.back().number,
                             .differentiable = with_gradient && p.training(),
                             .value = p.add_block(bytes, {}, true)});
    return {.id = static_cast<int>(p.activations.size()) - 1};
  }
  if (p.next_activation >= p.activations.size()) p.walks_differ();
  const int id = static_cast<int>(p.next_activation++);
  const Impl::Activation& a = p.at(id);
  if (a.made >= 0 || a.bytes != bytes) p.walks_differ();
  return {.value = p.address(a.value), .grad = p.address(a.grad), .id = id};
}

Flow Plan::detach(Flow x) {
  Impl& p = *impl_;
  p.expect_walking("detach()");
  p.settle();
  const Impl::Activation& from = p.at(x.id);
  if (p.walk == Impl::Walk::first) {
    // The record refers to the block of x, so what reads it extends the lifetime of x's value. It asks for no gradient,
    // because `differentiable` stays false.
    p.activations.push_back({.shape = from.shape,
                             .storage = from.storage,
                             .bytes = from.bytes,
                             .made = from.made,
                             .walk = p.open.back().number,
                             .value = from.value});
    return {static_cast<int>(p.activations.size()) - 1, x.shape, x.storage};
  }
  if (p.next_activation >= p.activations.size() ||
      Impl::nth(p.activations, static_cast<int>(p.next_activation)).value != from.value)
    p.walks_differ();
  return {static_cast<int>(p.next_activation++), x.shape, x.storage};
}

std::byte* Plan::finish(Flow x, Storage as) {
  Impl& p = *impl_;
  Impl::Activation& a = p.at(x.id);
  if (a.storage != as)
    p.refuse(std::string("the result is read as ") + (as == Storage::float32 ? "float" : "bf16") +
             ", it is stored in " + (a.storage == Storage::float32 ? "float" : "bf16"));
  // Before the layout, so that nothing else gets these addresses.
  if (p.walk == Impl::Walk::first) Impl::nth(p.blocks, a.value).always = true;
  return p.address(a.value);
}
std::byte* Plan::permanent(Shape shape, size_t size) {
  impl_->expect_walking("persistent()");
  return impl_->call(static_cast<size_t>(shape.elements()) * size, {}, true);
}

// ---- Step

Step::Raw Step::make(Shape shape, Storage storage, Until until, int shares) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  const size_t bytes = static_cast<size_t>(shape.elements()) * bytes_per_element(storage);
  if (p.walk == Plan::Impl::Walk::first) {
    Plan::Impl::Activation a{.shape = shape,
                             .storage = storage,
                             .bytes = bytes,
                             .made = number_,
                             .walk = p.open.back().number,
                             // A shared value is the same block under a second id; only the gradients differ.
                             .value = shares >= 0 ? p.at(shares).value : p.add_block(bytes, {})};
    // In plans for inference no backward moment is recorded, so values are freed after their last reader.
    auto& moments = Plan::Impl::nth(p.blocks, a.value).moments;
    moments.push_back({number_, Until::forward});
    if (p.training() && until == Until::backward) moments.push_back({number_, Until::backward});
    p.activations.push_back(std::move(a));
    const int id = static_cast<int>(p.activations.size()) - 1;
    p.steps.back().outputs.push_back(id);
    return {.id = id};
  }
  if (p.next_activation >= p.activations.size()) p.walks_differ();
  const int id = static_cast<int>(p.next_activation++);
  const Plan::Impl::Activation& a = p.at(id);
  if (a.made != number_ || a.bytes != bytes) p.walks_differ();
  return {.value = p.address(a.value), .grad = p.address(a.grad), .id = id};
}

Step::Raw Step::read(Flow x, Storage as, Until until, int passes_to) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  Plan::Impl::Activation& a = p.at(x.id);
  if (a.storage != as)
    p.refuse(std::string("reads ") + (as == Storage::float32 ? "float" : "bf16") + ", the activation is stored in " +
             (a.storage == Storage::float32 ? "float" : "bf16"));
  if (p.walk == Plan::Impl::Walk::first) {
    // The backward passes of an inner walk run before those of the outer one. Among readers in both, the last in
    // forward order would not be the first writer, as order_writers() assumes.
    if (a.differentiable && a.walk != p.open.back().number)
      p.refuse("reads an activation of another walk, and gradients cannot pass between walks; use detach()");
    auto& moments = Plan::Impl::nth(p.blocks, a.value).moments;
    moments.push_back({number_, Until::forward});
    if (p.training() && until == Until::backward) moments.push_back({number_, Until::backward});
    a.readings.push_back({.step = number_, .passes_to = passes_to});
    auto& inputs = p.steps.back().inputs;
    // A step may read an activation more than once (x + x). Each reading has a record; the inputs list it once.
    if (std::find(inputs.begin(), inputs.end(), x.id) == inputs.end()) inputs.push_back(x.id);
    return {.id = x.id};
  }
  // The readings of one activation come in the same order in both walks, so a counter per activation finds the record.
  if (a.next_reading >= a.readings.size() || a.readings[a.next_reading].step != number_) p.walks_differ();
  const Plan::Impl::Reading& r = a.readings[a.next_reading++];
  Raw raw{.value = p.address(a.value), .id = x.id};
  // An aliased gradient already holds what this step would pass on, so the step gets no view and writes nothing.
  if (!r.writes || r.aliased) return raw;
  raw.grad = p.address(a.grad);
  raw.add = r.add;
  return raw;
}

std::byte* Step::temporary(Shape shape, size_t size, Until pass) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (pass == Until::backward && !p.training()) return nullptr;
  return p.call(static_cast<size_t>(shape.elements()) * size, {{number_, pass}}, false);
}
std::byte* Step::partial(Shape shape) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  const size_t bytes = static_cast<size_t>(shape.elements()) * sizeof(float);
  if (!p.training() || bytes == 0) return nullptr;
  std::byte* const at = p.call(bytes, {{number_, Until::backward}}, false);
  if (p.walk == Plan::Impl::Walk::first) p.steps.back().parts.push_back(p.calls.back());
  return at;
}
std::byte* Step::save(Shape shape, size_t size) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (!p.training()) return nullptr;
  // The memory is also occupied in between, because a lifetime runs from the first to the last moment.
  return p.call(static_cast<size_t>(shape.elements()) * size, {{number_, Until::forward}, {number_, Until::backward}},
                false);
}
std::byte* Step::state(Shape shape, size_t size) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  const size_t bytes = static_cast<size_t>(shape.elements()) * size;
  std::byte* const at = p.call(bytes, {}, true);
  // `at` is null in the first walk. reset() clears the memory as bytes.
  if (at != nullptr) p.carried.push_back({at, {.channels = static_cast<int64_t>(bytes)}});
  return at;
}

WeightGrad Step::gradient(const Weight& w) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  // A frozen weight leaves no use in either walk, so the numbers of the uses stay equal.
  if (!p.trainable(*w.v->owner)) return {};
  if (p.walk == Plan::Impl::Walk::first) {
    p.steps.back().trains = true;
    p.uses.push_back({.step = number_, .weight = &w});
    return {};
  }
  if (p.next_use >= p.uses.size() || p.uses[p.next_use].step != number_ || p.uses[p.next_use].weight != &w)
    p.walks_differ();
  const Plan::Impl::WeightUse& use = p.uses[p.next_use++];
  return use.writes ? WeightGrad{w.grad, use.add} : WeightGrad{};
}
View<float> Step::gradient(const Parameter& parameter) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (!parameter.trained || !p.trainable(*parameter.owner)) return {};
  if (p.walk == Plan::Impl::Walk::first) p.steps.back().trains = true;
  return parameter.grad;
}

void Step::changes(View<float> v) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk == Plan::Impl::Walk::second && p.training()) p.changed.push_back(v);
}

void Step::forward(std::function<void(Context&)> run) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk == Plan::Impl::Walk::second)
    p.program.push_back({std::move(run), number_, p.open.back().number, Plan::Impl::Kind::forward});
}
void Step::backward(std::function<void(Context&)> run) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  // Closures wait until the walk ends, because their order is the reverse of the calls.
  if (p.walk == Plan::Impl::Walk::second && Plan::Impl::nth(p.steps, number_).active)
    p.open.back().later.push_back({std::move(run), number_, p.open.back().number, Plan::Impl::Kind::backward});
}
void Step::update(std::function<void(Context&)> run) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk == Plan::Impl::Walk::second && p.training())
    p.open.back().later.push_back({std::move(run), number_, p.open.back().number, Plan::Impl::Kind::update});
}

}  // namespace nacre
