// The costs and receptive fields that a plan computes from its steps.
#include <cmath>

#include "nn/plan_impl.h"

namespace nacre {
namespace {

// Rounds towards minus infinity, for b > 0: positions in front of an activation are negative.
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

}  // namespace

Work& Work::operator+=(const Work& w) noexcept {
  products += w.products, floats += w.floats, bytes += w.bytes, launches += w.launches, zeros += w.zeros;
  return *this;
}
Costs& Costs::operator+=(const Costs& c) noexcept {
  forward += c.forward, input_gradient += c.input_gradient, weight_gradient += c.weight_gradient;
  backward += c.backward, sums += c.sums, sums_alone += c.sums_alone;
  return *this;
}
Span Footprint::of(Span output) const noexcept {
  const int64_t length = dilation * (count - 1);
  if (!transposed) return {output.first * stride - left, output.last * stride - left + length};
  // Input t feeds outputs t * stride - left ... t * stride - left + length. The result is all t that feed the span.
  // The first bound is rounded up, the last one down. With dilation the span also covers positions in between that feed
  // nothing.
  return {floor_div(output.first + left - length + stride - 1, stride), floor_div(output.last + left, stride)};
}

/// Computes the rows from the costs of the steps, after it is known which backward passes run and which gradients they
/// add to.
void Plan::Impl::count() {
  // As many sums as a launch takes (SumBatch::most in kernels/runtime/gradient_sums.h).
  constexpr double sums_per_launch = 60;
  std::map<int, Work> sums;  // of the walks, each of which ends with the sums that wait
  Work alone{};
  std::map<int, size_t> row_of;  // the first row of a step
  for (const auto& [step, row, costs] : counted) {
    const StepRecord& s = nth(steps, step);
    row_of.emplace(step, rows.size());
    rows.push_back({.name = row, .forward = costs.forward});
    // A step may need one of the two gradients only: the first layer of a model has no input gradient, a frozen one no
    // weight gradient.
    if (s.active) rows.back().backward += costs.backward;
    if (s.active && reads_differentiable(s)) rows.back().backward += costs.input_gradient;
    if (s.active && s.trains)
      rows.back().backward += costs.weight_gradient, sums[s.walk] += costs.sums, alone += costs.sums_alone;
  }
  // A gradient that is added to is also read. A gradient that passes through a step is copied, or added by a
  // kernel, unless both activations share it. A step without a row is an activation in front of a step that has one.
  for (const Activation& x : activations)
    for (const Reading& r : x.readings) {
      const auto row = row_of.lower_bound(r.step);
      if (!r.writes || r.aliased || row == row_of.end()) continue;
      Work& backward = nth(rows, static_cast<int>(row->second)).backward;
      const auto bytes = static_cast<double>(x.bytes);
      if (r.add) backward += r.adding.value_or(Work{.bytes = bytes});
      if (r.passes_to >= 0) backward.bytes += 2 * bytes, backward.launches += r.add ? 1 : 0;
    }
  for (auto& [number, of_walk] : sums) {
    of_walk.launches =
        std::ceil(std::max(of_walk.launches / sums_per_launch, of_walk.bytes / static_cast<double>(most_parts)));
    alone += of_walk;
  }
  if (alone.launches > 0) rows.push_back({.name = "sums", .backward = alone});
}

const std::vector<CostRow>& Plan::costs() const noexcept { return impl_->rows; }

/// Visits the steps in reverse order, so the span of a value is complete before the step that makes it is visited.
Span Plan::reach(Flow to, Span span, Flow from) const {
  Impl& p = *impl_;
  const auto value_of = [&](int id) { return p.at(id).value; };  // several activations may share one value
  std::map<int, Span> spans;
  const auto join = [&](int value, Span more) {
    const auto [at, is_new] = spans.try_emplace(value, more);
    if (!is_new) at->second = {std::min(at->second.first, more.first), std::max(at->second.last, more.last)};
  };
  join(value_of(to.id), span);
  for (size_t i = p.steps.size(); i-- > 0;) {
    const Impl::StepRecord& s = p.steps[i];
    for (const int out : s.outputs) {
      const auto known = spans.find(value_of(out));
      if (known == spans.end()) continue;
      // A copy, because an input may share the value of the output (a fork), and join() then changes the entry.
      const Span of_output = known->second;
      for (const int in : s.inputs) {
        const auto reach = s.reaches.find(value_of(in));
        join(value_of(in), reach == s.reaches.end() ? of_output : reach->second.of(of_output));
      }
    }
  }
  const auto found = spans.find(value_of(from.id));
  if (found == spans.end())
    throw Error(ErrorKind::usage, "plan: the span of an input is requested for an output that does not depend on it");
  return found->second;
}

// ---- Step

void Step::costs(Costs c, std::string row) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk != Plan::Impl::Walk::first) return;
  if (row.empty()) {
    row = p.steps.back().name;
    // Adds the costs that the makers of the inputs passed on to their reader (costs_reader).
    for (const int id : p.steps.back().inputs)
      if (const int maker = Plan::Impl::nth(p.activations, id).made; maker >= 0)
        c += std::exchange(Plan::Impl::nth(p.steps, maker).for_reader, {});
  }
  p.counted.push_back({number_, std::move(row), c});
}
void Step::costs_reader(const Costs& c) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk == Plan::Impl::Walk::first) p.steps.back().for_reader += c;
}
void Step::costs_adding(Flow x, const Work& w) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk != Plan::Impl::Walk::first) return;
  for (Plan::Impl::Reading& r : p.at(x.id).readings)
    if (r.step == number_) r.adding = w;
}
void Step::reaches(Flow x, const Footprint& r) const {
  Plan::Impl& p = *plan_->impl_;
  p.expect_newest(number_);
  if (p.walk == Plan::Impl::Walk::first) p.steps.back().reaches[p.at(x.id).value] = r;
}

}  // namespace nacre
