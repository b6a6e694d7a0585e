// What only streaming plans have: lags, the first block, and the state that goes from block to block.
#include "nn/plan_impl.h"

namespace nacre {

// The lag of an activation in its own rows: as set_lag() stated it, or else that of the inputs of the step that made
// it, which must agree and be read at the output's own position only. A source that has no stated lag is not late. A
// layer that changes the number of rows per frame must call set_lag(), because lags are not converted here.
int64_t Plan::Impl::lag(int id) {
  const Activation& x = at(id);
  if (x.lag >= 0) return x.lag;
  // -1: the step has read no activation yet.
  int64_t found = -1;
  if (x.made >= 0)
    for (const int input : nth(steps, x.made).inputs) {
      const auto& reaches = nth(steps, x.made).reaches;
      // At the ends of a block the step would pad where rows of other blocks belong.
      if (const auto r = reaches.find(at(input).value); r != reaches.end() && !r->second.own_position())
        refuse("step " + name(x.made) + " cannot be streamed: it depends on other rows than its own");
      const int64_t of_input = lag(input);
      if (found >= 0 && of_input != found)
        refuse("step " + name(x.made) + " reads activations that are " + std::to_string(found) + " and " +
               std::to_string(of_input) + " rows late");
      found = of_input;
    }
  return std::max<int64_t>(found, 0);
}

bool Plan::streaming() const noexcept { return impl_->purpose == Purpose::streaming; }
int64_t Plan::block_frames() const noexcept { return impl_->block_frames; }
int64_t Plan::start_frames() const noexcept { return impl_->start_frames; }
int64_t Plan::lag(Flow x) const { return impl_->lag(x.id); }
void Plan::set_lag(Flow x, int64_t rows) {
  Impl& p = *impl_;
  p.expect_walking("set_lag()");
  if (rows < 0) p.refuse("a lag of " + std::to_string(rows) + " rows");
  p.at(x.id).lag = rows;
}
void Plan::require_start(int64_t frames) {
  impl_->expect_walking("require_start()");
  impl_->start_frames = std::max(impl_->start_frames, frames);
}

// ---- state

StreamBlock& Plan::block() noexcept { return impl_->stream_block; }

// Each call of Step::carries() is one view in `carried`, in the order of the calls. The bytes of a state are those of
// the views back to back, without the padding that blocks have in memory. Plans of other block lengths have the same
// views, so their states are interchangeable.
void Plan::reset() {
  for (const View<std::byte>& v : impl_->carried) impl_->ctx.zero(v);
}
size_t Plan::state_bytes() const noexcept {
  // The views are of bytes, so elements are bytes.
  int64_t bytes = 0;
  for (const View<std::byte>& v : impl_->carried) bytes += v.elements();
  return static_cast<size_t>(bytes);
}

namespace {

void expect_state(size_t found, size_t expected) {
  if (found != expected)
    throw Error(ErrorKind::usage,
                "plan: a state of " + std::to_string(found) + " bytes, expected " + std::to_string(expected));
}

}  // namespace

void Plan::read_state(std::span<std::byte> to) const {
  expect_state(to.size(), state_bytes());
  for (const View<std::byte>& v : impl_->carried) {
    impl_->ctx.read<std::byte>(v, to.first(static_cast<size_t>(v.elements())));
    to = to.subspan(static_cast<size_t>(v.elements()));
  }
}
void Plan::write_state(std::span<const std::byte> from) {
  expect_state(from.size(), state_bytes());
  for (const View<std::byte>& v : impl_->carried) {
    impl_->ctx.write<std::byte>(from.first(static_cast<size_t>(v.elements())), v);
    from = from.subspan(static_cast<size_t>(v.elements()));
  }
}
void Plan::continue_from(const Plan& other) {
  const std::vector<View<std::byte>>&from = other.impl_->carried, &to = impl_->carried;
  // Only the sizes are compared; the order of steps is the caller's promise.
  if (!std::equal(from.begin(), from.end(), to.begin(), to.end(),
                  [](const auto& a, const auto& b) { return a.shape == b.shape; }))
    throw Error(ErrorKind::usage, "plan: the state of a plan with other steps");
  for (size_t i = 0; i < to.size(); ++i) impl_->ctx.copy<std::byte>(from[i], to[i]);
}

}  // namespace nacre
