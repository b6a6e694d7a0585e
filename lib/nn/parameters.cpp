// Parameters: registration under the names of checkpoints, layout in flat blocks, initial values, and conversion
// between the layout in files and that in memory.
//
//  Blocks after allocate(), in elements; every tensor is padded to a multiple of pad_elements:
//    values_, gradients_           [ directions v | gains g | other trained parameters ]
//    weights32_ or weights16_      [ effective weights w ], each at the offset of its v
//    weight_grads_                 [ gradients of w ], likewise
//    buffers_                      [ parameters that are not trained, such as codebooks that averages update ]
//    derived_memory_               [ what derive() registered ]
//
// So one call of the weight norm covers all weights of a model, and one call of the optimizer all trained values. The
// padding belongs to no tensor and to no row of the weight norm.
#include "nacre/nn/parameters.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "nacre/random.h"

namespace nacre {
namespace {

// In elements. Each tensor starts at a multiple of 64 bytes of its block, in a block of bf16 of 32 bytes.
constexpr int64_t pad_elements = 16;
int64_t padded(int64_t n) { return (n + pad_elements - 1) / pad_elements * pad_elements; }

// Elements of a tensor with this shape in a file.
int64_t product(const std::vector<int64_t>& v) {
  int64_t p = 1;
  for (const int64_t x : v) p *= x;
  return p;
}
std::string text(const std::vector<int64_t>& v) {
  std::string s = "[";
  for (size_t i = 0; i < v.size(); ++i) s += (i > 0 ? ", " : "") + std::to_string(v[i]);
  return s + "]";
}
// The whole of a block. Memory of 0 bytes has no address, and a null view with channels = 0 counts as empty.
template <class T>
View<T> view_of(const Memory& m, int64_t elements) {
  return elements == 0 ? View<T>(nullptr, {.channels = 0})
                       : View<T>(reinterpret_cast<T*>(m.data()), {.channels = elements});
}

/// FNV-1a. The offset basis lacks its last digit, 7. That is part of the format of seeds
/// (docs/decisions/seed-format.md).
uint64_t hash(const std::string& s) {
  uint64_t h = 1469598103934665603ull;
  for (const char c : s) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

double normal(const Philox& draw, uint64_t counter) {  // Box-Muller transform
  // 1 - [0, 1) is in (0, 1], so the logarithm is finite.
  const double u = 1.0 - draw.uniform(2 * counter), v = draw.uniform(2 * counter + 1);
  // Each number takes two uniform ones, at counters 2 i and 2 i + 1.
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
}

/// Initial values of one piece in file layout. The stream depends on the name, so adding a layer changes no other
/// layer.
std::vector<float> drawn(const Parameter& p, size_t piece, uint64_t seed) {
  const Init& init = p.init;
  const std::string& name = p.names[piece];
  // Counters begin at 0 in every piece, and the index of an element in the file decides its counter. So the values do
  // not depend on the layout in memory either.
  const Philox draw{seed, hash(init.shared ? name.substr(0, name.rfind('.')) : name)};
  std::vector<float> values(static_cast<size_t>(p.piece_elements()), init.kind == Init::one ? 1.0f : 0.0f);
  if (init.kind == Init::uniform)
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((2 * draw.uniform(i) - 1) * init.scale);
  if (init.kind == Init::normal)
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(init.scale * normal(draw, i));
  return values;
}

/// Appends the norms of the rows of a piece in file layout.
void append_norms(std::span<const float> piece, int64_t rows, std::vector<float>& norms) {
  const size_t length = piece.size() / static_cast<size_t>(rows);
  for (size_t at = 0; at < piece.size(); at += length) {
    // In double, so that the rounding to float dominates the error of the gain.
    double sum = 0;
    for (const double v : piece.subspan(at, length)) sum += v * v;
    norms.push_back(static_cast<float>(std::sqrt(sum)));
  }
}

}  // namespace

Init uniform_by_fan_in(int64_t fan_in) { return {Init::uniform, 1.0 / std::sqrt(static_cast<double>(fan_in))}; }

int64_t Parameter::piece_elements() const { return product(stored); }

namespace {

/// Calls f(index in the file, index in memory) for every element of a piece of StoredAs::convolution.
template <class F>
void each_place(const std::vector<int64_t>& stored, F&& f) {
  // Axes in the file are [first, in, taps] or [first, in, taps of time, taps of width]; k counts taps of time (the only
  // ones in one dimension), w taps of width.
  const int64_t in = stored[1], taps = stored[2], taps_of_width = stored.size() > 3 ? stored[3] : 1;
  for (int64_t o = 0; o < stored[0]; ++o)
    for (int64_t w = 0; w < taps_of_width; ++w)
      for (int64_t k = 0; k < taps; ++k)
        for (int64_t i = 0; i < in; ++i)
          f(static_cast<size_t>(((o * in + i) * taps + k) * taps_of_width + w),
            static_cast<size_t>(((o * taps_of_width + w) * taps + k) * in + i));
}

}  // namespace

std::vector<float> Parameter::to_file(std::span<const float> whole, size_t piece) const {
  const auto n = static_cast<size_t>(piece_elements());
  const std::span<const float> mine = whole.subspan(piece * n, n);
  // With StoredAs::same this copy is the result; else each_place() overwrites every element of it.
  std::vector<float> out(mine.begin(), mine.end());
  if (stored_as == StoredAs::convolution)
    each_place(stored, [&](size_t in_file, size_t in_memory) { out[in_file] = mine[in_memory]; });
  return out;
}
void Parameter::from_file(std::span<const float> values, size_t piece, std::span<float> whole) const {
  const auto n = static_cast<size_t>(piece_elements());
  const std::span<float> mine = whole.subspan(piece * n, n);
  if (stored_as == StoredAs::convolution)
    each_place(stored, [&](size_t in_file, size_t in_memory) { mine[in_memory] = values[in_file]; });
  else
    std::copy(values.begin(), values.end(), mine.begin());
}

// The parameter and the piece of it that have this name in files; {nullptr, 0} if none has. Pointers to parameters,
// weights and derived values stay valid while others are added, because they lie in deques.
Parameters::Place Parameters::find(const std::string& name) {
  for (Parameter& p : parameters_)
    for (size_t i = 0; i < p.names.size(); ++i)
      if (p.names[i] == name) return {&p, i};
  return {nullptr, 0};
}

Parameter& Parameters::add(std::string name, std::vector<int64_t> stored, Shape shape, Init init, StoredAs as,
                           bool trained) {
  return add_stack({std::move(name)}, std::move(stored), shape, init, as, trained);
}

Parameter& Parameters::add_stack(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init init,
                                 StoredAs as, bool trained) {
  if (names.empty() || product(stored) * static_cast<int64_t>(names.size()) != whole.elements())
    throw Error(ErrorKind::usage, "parameter " + (names.empty() ? "?" : names[0]) + ": pieces of " + text(stored) +
                                      " do not make " + str(whole));
  if (const Place known = find(names[0]); known.parameter != nullptr) {
    // Layers hold pointers, so a second registration must ask for the same pieces in the same order.
    if (known.parameter->names != names || known.parameter->stored != stored || known.parameter->shape != whole)
      throw Error(ErrorKind::usage, "parameter " + names[0] + ": registered as " + text(known.parameter->stored) +
                                        ", now asked for as " + text(stored));
    return *known.parameter;
  }
  if (allocated_) throw Error(ErrorKind::usage, "parameter " + names[0] + ": added after allocate()");
  parameters_.push_back({this, std::move(names), std::move(stored), as, whole, trained, init, {}, {}});
  return parameters_.back();
}

Weight& Parameters::add_weight(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole, Init init,
                               StoredAs as) {
  std::vector<std::string> v_names, g_names;
  for (const std::string& n : names) {
    v_names.push_back(n + ".weight_v");
    g_names.push_back(n + ".weight_g");
  }
  // One gain per index of the first axis of the stored tensor: per output channel, or per input channel of a transposed
  // convolution. In files it is [first, 1, ...], as PyTorch stores it.
  const int64_t rows = stored.at(0) * static_cast<int64_t>(names.size());
  std::vector<int64_t> g_stored(stored.size(), 1);
  g_stored[0] = stored[0];
  // Before anything is registered, so that a refused call leaves no half of a weight.
  expect_one_form(names, ".weight");
  Parameter& v = add_stack(std::move(v_names), std::move(stored), whole, init, as);
  Parameter& g = add_stack(std::move(g_names), std::move(g_stored), {.channels = rows}, {Init::norm_of_direction});
  return weight_of(v, &g);
}

Weight& Parameters::add_plain_weight(std::vector<std::string> names, std::vector<int64_t> stored, Shape whole,
                                     Init init, StoredAs as) {
  expect_one_form(names, ".weight_v");
  for (std::string& n : names) n += ".weight";
  return weight_of(add_stack(std::move(names), std::move(stored), whole, init, as), nullptr);
}

Weight& Parameters::add_named_weight(std::string name, std::vector<int64_t> stored, Shape whole, Init init,
                                     StoredAs as) {
  return weight_of(add_stack({std::move(name)}, std::move(stored), whole, init, as), nullptr);
}

// Refuses a weight whose names are already registered in the other form, with or without a gain.
void Parameters::expect_one_form(const std::vector<std::string>& names, const char* of_other_form) {
  for (const std::string& n : names)
    if (find(n + of_other_form).parameter != nullptr)
      throw Error(ErrorKind::usage, "parameter " + n + ": its weight is registered both with and without a gain");
}

// The weight whose direction is v, made at the first call.
Weight& Parameters::weight_of(Parameter& v, Parameter* g) {
  for (Weight& w : weights_)
    if (w.v == &v) return w;
  weights_.push_back({&v, g, v.shape, {}, {}, {}});
  return weights_.back();
}

const Derived& Parameters::derive(std::string name, Shape shape, std::function<void(Context&, View<float>)> compute) {
  for (const Derived& d : derived_) {
    if (d.name != name) continue;
    if (d.shape != shape)
      throw Error(ErrorKind::usage,
                  "derived " + name + ": registered as " + str(d.shape) + ", now asked for as " + str(shape));
    return d;
  }
  if (allocated_) throw Error(ErrorKind::usage, "derived " + name + ": added after allocate()");
  derived_.push_back({std::move(name), shape, {}, std::move(compute)});
  return derived_.back();
}

// In the order of registration, so a derived value may read those that were registered before it.
void Parameters::compute_derived(Context& ctx) const {
  for (const Derived& d : derived_) d.compute(ctx, d.value);
}

void Parameters::allocate(Context& ctx, bool with_gradients, Storage storage) {
  if (allocated_) throw Error(ErrorKind::usage, "parameters: allocated twice");
  // Order: directions, gains, other parameters. The weight norm and the optimizer then see one flat block each.
  // In elements: of trained parameters in values_, of others in buffers_.
  std::map<const Parameter*, int64_t> offsets;
  int64_t directions = 0;
  for (const Weight& w : weights_) {
    offsets[w.v] = directions;
    directions += padded(w.v->shape.elements());
  }
  int64_t gains = 0;
  for (const Weight& w : weights_) {
    if (w.g == nullptr) continue;
    offsets[w.g] = directions + gains;
    gains += padded(w.g->shape.elements());
  }
  // What is not part of a weight follows in the order of registration.
  int64_t trained = directions + gains, buffers = 0;
  for (const Parameter& p : parameters_) {
    if (offsets.contains(&p)) continue;
    int64_t& end = p.trained ? trained : buffers;
    offsets[&p] = end;
    end += padded(p.shape.elements());
  }
  const auto floats = [](int64_t n) { return static_cast<size_t>(n) * sizeof(float); };
  values_memory_ = Memory(ctx, floats(trained));
  buffers_memory_ = Memory(ctx, floats(buffers));
  values_ = view_of<float>(values_memory_, trained);
  buffers_ = view_of<float>(buffers_memory_, buffers);
  // Only the effective weights are stored in bf16. Directions, gains and gradients stay float, so small updates are not
  // lost to rounding.
  if (storage == Storage::float32) {
    weights_memory_ = Memory(ctx, floats(directions));
    weights32_ = view_of<float>(weights_memory_, directions);
  } else {
    weights_memory_ = Memory(ctx, static_cast<size_t>(directions) * sizeof(bf16));
    weights16_ = view_of<bf16>(weights_memory_, directions);
  }
  if (with_gradients) {
    gradients_memory_ = Memory(ctx, floats(trained));
    weight_grads_memory_ = Memory(ctx, floats(directions));
    gradients_ = view_of<float>(gradients_memory_, trained);
    weight_grads_ = view_of<float>(weight_grads_memory_, directions);
  }
  for (Parameter& p : parameters_) {
    const int64_t at = offsets[&p];
    p.value = View<float>((p.trained ? values_ : buffers_).data + at, p.shape);
    if (p.trained && with_gradients) p.grad = View<float>(gradients_.data + at, p.shape);
  }
  // An effective weight and its gradient have the same offset in their blocks as the direction has in values_.
  for (Weight& w : weights_) {
    const int64_t at = offsets[w.v], rows = w.v->stored[0] * static_cast<int64_t>(w.v->names.size());
    // The first axis is outermost in memory, too, and pieces of a stack follow each other along it. So a row of the
    // weight norm is contiguous in either layout.
    const int64_t length = w.shape.elements() / rows;
    if (weights32_) w.value32 = View<float>(weights32_.data + at, w.shape);
    if (weights16_) w.value16 = View<bf16>(weights16_.data + at, w.shape);
    if (with_gradients) w.grad = View<float>(weight_grads_.data + at, w.shape);
    for (int64_t r = 0; r < rows; ++r)
      // Offsets of gains count from the start of the gains, which the weight norm gets as a view of their own.
      rows_host_.push_back(
          {at + r * length, length, w.g != nullptr ? offsets[w.g] - directions + r : WeightRow::no_gain});
  }
  directions_ = View<float>(values_.data, {.channels = directions});
  gains_ = View<float>(values_.data + directions, {.channels = gains});
  if (with_gradients) {
    direction_grads_ = View<float>(gradients_.data, {.channels = directions});
    gain_grads_ = View<float>(gradients_.data + directions, {.channels = gains});
  }
  rows_memory_ = Memory(ctx, rows_host_.size() * sizeof(WeightRow));
  const auto rows = view_of<WeightRow>(rows_memory_, static_cast<int64_t>(rows_host_.size()));
  ctx.write<WeightRow>(rows_host_, rows);
  rows_ = rows;
  int64_t derived = 0;
  for (const Derived& d : derived_) derived += padded(d.shape.elements());
  derived_memory_ = Memory(ctx, floats(derived));
  float* at_derived = view_of<float>(derived_memory_, derived).data;
  for (Derived& d : derived_) {
    d.value = View<float>(at_derived, d.shape);
    at_derived += padded(d.shape.elements());
  }
  allocated_ = true;
  with_gradients_ = with_gradients;
}

void Parameters::initialise(Context& ctx, uint64_t seed) {
  if (!allocated_) throw Error(ErrorKind::usage, "parameters: initialised before allocate()");
  std::vector<float> whole;
  for (const Parameter& p : parameters_) {
    if (p.init.kind == Init::norm_of_direction) continue;
    whole.resize(static_cast<size_t>(p.shape.elements()));
    // All pieces are drawn into `whole` before it is written once.
    for (size_t i = 0; i < p.names.size(); ++i) p.from_file(drawn(p, i, seed), i, whole);
    ctx.write<float>(whole, p.value);
  }
  for (const Weight& w : weights_) {
    if (w.g == nullptr) continue;
    whole.resize(static_cast<size_t>(w.shape.elements()));
    ctx.read<float>(w.v->value, whole);
    std::vector<float> gains;
    // With g = |v| the effective weight starts as the direction itself, within rounding. Rows are summed in the order
    // of the file.
    for (size_t i = 0; i < w.v->names.size(); ++i) append_norms(w.v->to_file(whole, i), w.v->stored[0], gains);
    ctx.write<float>(gains, w.g->value);
  }
  refresh(ctx);
}

void Parameters::refresh(Context& ctx) {
  if (rows_.elements() > 0 && weights32_)
    weight_norm_forward(ctx, {.v = directions_, .g = gains_, .rows = rows_, .w = weights32_});
  else if (rows_.elements() > 0)
    weight_norm_forward<bf16>(ctx, {.v = directions_, .g = gains_, .rows = rows_, .w = weights16_});
  compute_derived(ctx);
}
void Parameters::clear_gradients(Plan& p) const {
  const Step s = p.step("clear gradients");
  if (!p.recording()) return;  // the parameters of a survey have no memory
  // What ops add to without an overwriting first use: biases, codebooks, and other parameters that are no weights.
  std::vector<View<float>> cleared{step_gradients()[1]};
  // No step overwrites the gradient of a weight that is not trained in this walk, so it is cleared here.
  for (const Weight& w : weights_)
    if (!p.trains(w)) cleared.push_back(w.grad);
  s.backward([cleared = std::move(cleared)](Context& c) {
    for (const View<float>& v : cleared) c.zero(v);
  });
}
std::array<View<float>, 2> Parameters::step_gradients() const noexcept {
  // Gradients of directions and gains are left out: they follow from those of the effective weights.
  const int64_t normed = directions_.elements() + gains_.elements();
  return {weight_grads_, View<float>(gradients_.data + normed, {.channels = gradients_.elements() - normed})};
}
void Parameters::finish_gradients(Context& ctx) {
  if (rows_.elements() == 0) return;
  // weight_norm_backward() adds to its results.
  ctx.zero(direction_grads_);
  ctx.zero(gain_grads_);
  weight_norm_backward(
      ctx,
      {.v = directions_, .g = gains_, .rows = rows_, .dw = weight_grads_, .dv = direction_grads_, .dg = gain_grads_});
}

Shape Parameters::update_scratch(Context& ctx) const {
  return weight_norm_adamw_scratch(ctx, values_.shape, directions_.elements(), gains_.elements(), rows_.elements());
}
void Parameters::update(Context& ctx, const AdamW& a) {
  // The type of the effective weights selects the instance; everything else is float in both.
  const auto run = [&]<class T>(View<T> w) {
    weight_norm_adamw<T>(ctx, {.adamw = a,
                               .directions = directions_.elements(),
                               .gains = gains_.elements(),
                               .rows = rows_,
                               .dw = weight_grads_,
                               .w = w});
  };
  if (weights16_)
    run(weights16_);
  else
    run(weights32_);
  compute_derived(ctx);
}

void Parameters::assign(Context& ctx, const Parameters& other, View<const float> values) {
  // Equal parameters in equal order have equal layouts, so whole blocks are copied.
  bool same = parameters_.size() == other.parameters_.size();
  for (size_t i = 0; same && i < parameters_.size(); ++i)
    same = parameters_[i].names == other.parameters_[i].names && parameters_[i].shape == other.parameters_[i].shape;
  if (!same) throw Error(ErrorKind::usage, "parameters: assigned from another model");
  ctx.copy<float>(values ? values : View<const float>(other.values_), values_);
  ctx.copy<float>(other.buffers_, buffers_);
  refresh(ctx);
}

int64_t Parameters::effective_elements() const {
  int64_t n = 0;
  for (const Parameter& p : parameters_) {
    // A direction has as many elements as its effective weight, so leaving out the gains counts the latter.
    const bool gain = std::any_of(weights_.begin(), weights_.end(), [&](const Weight& w) { return w.g == &p; });
    if (p.trained && !gain) n += p.shape.elements();
  }
  return n;
}

using TensorVisitor = std::function<void(const std::string&, const std::vector<int64_t>&, std::span<const float>)>;

void Parameters::each_tensor(Context& ctx, const TensorVisitor& f) const { each_tensor(ctx, {}, f); }

void Parameters::each_tensor(Context& ctx, View<const float> block, const TensorVisitor& f) const {
  // Pieces of a stack are separate tensors in a file and sort by their own names. A `block` has the layout of values_
  // and so no place for what is not trained.
  std::map<std::string, std::pair<const Parameter*, size_t>> sorted;
  for (const Parameter& p : parameters_) {
    if (block && !p.trained) continue;
    for (size_t i = 0; i < p.names.size(); ++i) sorted[p.names[i]] = {&p, i};
  }
  std::vector<float> whole;
  for (const auto& [name, place] : sorted) {
    const Parameter& p = *place.first;
    View<const float> from = p.value;
    if (block) from = View<const float>(block.data + (p.value.data - values_.data), p.shape);
    whole.resize(static_cast<size_t>(p.shape.elements()));
    ctx.read<float>(from, whole);
    f(name, p.stored, p.to_file(whole, place.second));
  }
}

bool Parameters::set_tensor(Context& ctx, const std::string& name, const std::vector<int64_t>& stored,
                            std::span<const float> values, View<float> block) {
  const Place place = find(name);
  if (place.parameter == nullptr || (block && !place.parameter->trained)) return false;
  Parameter& p = *place.parameter;
  if (stored != p.stored || static_cast<int64_t>(values.size()) != p.piece_elements())
    throw Error(ErrorKind::input, name + " is " + text(stored) + ", the model expects " + text(p.stored));
  View<float> to = p.value;
  // The same offset as in values_.
  if (block) to = View<float>(block.data + (p.value.data - values_.data), p.shape);
  // The other pieces of a stack keep their values: the whole is read, changed in one piece, and written back.
  std::vector<float> whole(static_cast<size_t>(p.shape.elements()));
  ctx.read<float>(to, whole);
  p.from_file(values, place.piece, whole);
  ctx.write<float>(whole, to);
  return true;
}

}  // namespace nacre
